"""`recbole_multdpo.run`: Python's values, results as objects, and the command line's errors."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import recbole_multdpo
from recbole_multdpo import ComparisonResult, RunResult, cli
from recbole_multdpo.comparison import runs
from recbole_multdpo.errors import ConfigError, DataError
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.trained.start import arguments
from tests.integration.toy import N_USERS, write_toy

SETTINGS = {
    "topk": [2, 5],
    "valid_metric": "NDCG@5",
    "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
    "state": "WARNING",
    "show_progress": False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def ease(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("runs") / "ease"
    given = {**SETTINGS, "reg_weight": np.float64(10.0)}
    result = recbole_multdpo.run("EASE", "toy", config_dict=given, data_path=data, run_dir=folder)
    assert isinstance(result, RunResult)
    return result


def read(settings: dict) -> dict:
    """The settings as a run reads them back from the arguments."""
    base = {"model": "LLMRec", "dataset": "ml-100k"}
    config = load_config(arguments({**base, **settings}))
    return {key: config[key] for key in settings}


def test_values_of_python_arrive_as_they_are() -> None:
    given = {
        "run_dir": Path("a folder/with 'quotes'"),
        "beta": np.float32(0.5),
        "seed": np.int64(7),
        "topk": (5, 10),
        "val_interval": {"rating": "[4,inf)"},
        "show_progress": False,
        "num_threads": None,
        "eval_args": {"order": "TO"},
        "item_text_fields": ["movie_title"],
    }
    found = read(given)
    assert found["run_dir"] == "a folder/with 'quotes'"
    assert found["beta"] == 0.5 and found["seed"] == 7 and found["topk"] == [5, 10]
    assert found["show_progress"] is False and found["num_threads"] is None
    assert found["val_interval"] == given["val_interval"]
    assert found["eval_args"]["order"] == "TO" and found["eval_args"]["mode"]["test"] == "full"
    assert list(found["item_text_fields"]) == ["movie_title"]
    with pytest.raises(ConfigError, match="beta: object is neither text, number"):
        arguments({"beta": object()})


def test_files_with_spaces_and_their_precedence(tmp_path: Path) -> None:
    files = [tmp_path / "first one.yaml", tmp_path / "second.yaml"]
    files[0].write_text("beta: 1.5\nepochs: 2\n")
    files[1].write_text("epochs: 3\n")
    for given in (files, [str(file) for file in files]):
        argv = arguments({"model": "LLMRec", "dataset": "ml-100k", "config_files": given})
        config = load_config(argv)
        assert (config["beta"], config["epochs"]) == (1.5, 3)
    one = load_config(arguments({"model": "BPR", "dataset": "ml-100k", "config_files": files[1]}))
    assert one["epochs"] == 3


def test_a_run_is_what_recbole_returns_and_more(ease: RunResult) -> None:
    assert {"best_valid_score", "valid_score_bigger", "best_valid_result", "test_result"} <= {*ease}
    assert ease["test_result"] == ease.test and ease["best_valid_result"] == ease.valid
    assert ease["best_valid_score"] == ease.valid["ndcg@5"] and ease["valid_score_bigger"] is True
    assert ease["model"] == "EASE" and len(ease) == len(list(ease))
    assert list(ease.metrics.columns) == ["valid", "test"]
    assert ease.metrics.loc["ndcg@5", "test"] == ease.test["ndcg@5"]
    assert ease.settings["reg_weight"] == 10.0
    assert "EASE on toy" in repr(ease) and "ndcg@5" in repr(ease)
    assert RunResult.load(ease.run_dir) == ease


def test_users_and_recommendations_of_a_run(ease: RunResult) -> None:
    assert isinstance(ease.per_user, pd.DataFrame) and len(ease.per_user) == N_USERS
    assert ease.per_user["ndcg@5"].mean() == pytest.approx(ease.test["ndcg@5"], abs=5.1e-5)
    (answer,) = ease.recommender().for_users(["u1"], k=3)
    assert len(answer.recommendations) == 3


def test_a_quiet_run_keeps_its_log(ease: RunResult) -> None:
    """`state` is for the console; a notebook that silences it wants the file all the more."""
    log = (ease.run_dir / "run.log").read_text()
    assert "command: " in log and "INFO" in log
    assert logging.getLogger().level == logging.WARNING  # as before the run


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def member(argv: list[str], *_: object) -> int:
        return cli.main(argv)

    monkeypatch.setattr(runs, "run_in_subprocess", member)


def test_a_comparison(data: Path, tmp_path: Path, in_this_process: None) -> None:
    result = recbole_multdpo.run(
        ["EASE", "Pop"],
        "toy",
        seeds=2,
        tune={"EASE.reg_weight": [1, 100]},
        data_path=data,
        run_dir=tmp_path / "both",
        **SETTINGS,
    )
    assert isinstance(result, ComparisonResult) and result.failures == {}
    assert list(result.table.index) == ["EASE", "Pop"] and result.metric == "ndcg@5"
    assert result.best == result.table["ndcg@5"].idxmax() and result.std.shape == result.table.shape
    assert set(result.significance["system"]) == {"EASE", "Pop"} - {result.reference}
    assert len(result.runs) == 4 and result.report.is_file() and "EASE" in repr(result)
    pop = result.run("Pop", 2021)
    assert isinstance(pop, RunResult) and pop["seed"] == 2021
    of_ease = [result.run("EASE", seed).test["ndcg@5"] for seed in (2020, 2021)]
    assert result.table.loc["EASE", "ndcg@5"] == pytest.approx(np.mean(of_ease))
    with pytest.raises(KeyError, match="no run of 'BPR'"):
        result.run("BPR")
    assert ComparisonResult.load(result.run_dir) == result


def test_a_single_model_in_a_list_is_no_comparison(ease: RunResult, data: Path) -> None:
    again = recbole_multdpo.run(resume=ease.run_dir)
    assert again == ease
    assert arguments({"model": ["EASE"]}) == ["--model=EASE"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"model": "LLMRec", "lr": 1}, ConfigError, "did you mean learning_rate"),
        ({"model": "LMRec"}, ConfigError, "did you mean LLMRec"),
        ({"model": ["LLMRec", "EASY"]}, ConfigError, "did you mean EASE"),
        ({"model": "EASE", "dataset": "ml100k"}, DataError, "did you mean ml-100k"),
        ({"model": "EASE", "reg_weight": "high"}, ConfigError, "reg_weight"),
        (
            {"model": "EASE", "config_files": ["a"], "config_file_list": ["b"]},
            ConfigError,
            "one of",
        ),
        ({"model": "EASE", "config_files": "nowhere.yaml"}, ConfigError, "does not exist"),
    ],
)
def test_errors(given: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        recbole_multdpo.run(**{"dataset": "ml-100k", **given})


def test_results_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no finished comparison"):
        ComparisonResult.load(tmp_path)
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        RunResult.load(tmp_path)

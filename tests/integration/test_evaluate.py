"""A finished run is tested again: its own figures to the digit, others by hand, or a refusal."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recbole_multdpo.evaluate import main
from recbole_multdpo.quick_start import run
from tests.integration.test_conversations import DATA, write_conversations
from tests.integration.toy import N_USERS, toy_arguments
from tests.settings.test_information import LEAVE_ONE_OUT
from tests.settings.test_information import arguments as classical_arguments

pytestmark = pytest.mark.integration

IN_TIME = "--eval_args={'order': 'TO'}"
SAMPLED = "--eval_args={'mode': {'valid': 'full', 'test': 'uni6'}}"
# name to the run's model and settings
RUNS = {
    "EASE": ("EASE", [LEAVE_ONE_OUT]),
    "SLIMElastic-refit": ("SLIMElastic", ["--test_information=refit"]),
    "BPR-sampled": ("BPR", [SAMPLED]),
    "MultiVAE": ("MultiVAE", [LEAVE_ONE_OUT, "--train_batch_size=64"]),
    "ADMMSLIM": ("ADMMSLIM", []),
    "Pop": ("Pop", ["--metrics=[NDCG, ItemCoverage, AveragePopularity]"]),
    "SASRec": ("SASRec", [IN_TIME, "--hidden_size=8", "--inner_size=8", "--n_layers=1"]),
    "SASRec-rolling": (
        "SASRec",
        [IN_TIME, "--test_information=rolling", "--hidden_size=8", "--inner_size=8"],
    ),
    "LLMRec": ("LLMRec", [LEAVE_ONE_OUT]),
    "LLMRec-lora": ("LLMRec", ["--loss=sft", "--finetune=lora", SAMPLED]),
    "LLMRec-refit": ("LLMRec", ["--loss=sft", "--test_information=refit"]),
    "LLMRec-EASE": ("LLMRec", ["--loss=sft", "--assistant=EASE", "--sft_cache=False"]),
    "LLMRec-BPR": ("LLMRec", ["--loss=sft", "--assistant=BPR", "--BPR.epochs=2"]),
    "D3": ("D3", ["--assistant=EASE"]),
    "BIGRec": ("BIGRec", ["--generation_tokens=6", "--grounding_weight=popularity"]),
    "BIGRec-EASE": (
        "BIGRec",
        ["--generation_tokens=6", "--grounding_weight=assistant", "--assistant=EASE"],
    ),
}


def make(name: str, data_path: Path, folder: Path) -> dict[str, Any]:
    """One of `RUNS`; its result."""
    model, extra = RUNS[name]
    if model in ("LLMRec", "BIGRec", "D3"):
        return run(toy_arguments(data_path, folder, f"--model={model}", *extra))
    return run(classical_arguments(model, data_path, folder, *extra))


def evaluated(folder: Path, *settings: str) -> dict[str, Any]:
    """Content of the file that the command writes."""
    file = folder.parent / f"evaluation-of-{folder.name}.json"
    file.unlink(missing_ok=True)
    assert main([str(folder), f"--output={file}", *settings]) == 0
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", RUNS)
def test_the_figures_of_the_run_come_out_again(name: str, data_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = make(name, data_path, folder)
    before = (folder / "result.json").read_bytes()
    found = evaluated(folder)
    assert found["test_result"] == result["test_result"] and found["own_test"]
    assert found["test_set"] == result["test_set"]
    assert (folder / "result.json").read_bytes() == before


def test_an_assistant_that_is_gone_is_trained_again(data_path: Path, tmp_path: Path) -> None:
    for name in ("LLMRec-BPR", "LLMRec-EASE"):
        folder = tmp_path / name
        result = make(name, data_path, folder)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        shutil.rmtree(folder / "checkpoints")
        assert evaluated(folder)["test_result"] == result["test_result"]
        assert not (tmp_path / "cache").exists()  # an evaluation leaves its file alone


def test_a_damaged_assistant_is_refused(
    data_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    make("LLMRec-EASE", data_path, folder)
    file = folder / "checkpoints" / "assistant" / "scores.npy"
    np.save(file, np.zeros((2, 3), dtype=np.float32))
    assert main([str(folder)]) == 2
    assert "scores.npy cannot be read (float32 (2, 3) instead of" in capsys.readouterr().err
    shutil.rmtree(file.parent)  # the remedy
    assert main([str(folder)]) == 0


def test_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_path = write_conversations(tmp_path / "data")
    for model in ("LLMRec", "EASE"):
        folder = tmp_path / model
        if model == "LLMRec":
            result = run(toy_arguments(data_path, folder, *DATA, "--loss=sft"))
        else:
            given = classical_arguments(model, data_path, folder, *DATA)
            result = run([text for text in given if "timestamp" not in text])
        assert evaluated(folder)["test_result"] == result["test_result"]
        assert main([str(folder), "--eval_args={'order': 'TO'}"]) == 2
        assert "no effect with benchmark_filename" in capsys.readouterr().err
        assert evaluated(folder, "--eval_args={'mode': 'uni5'}")["test_result"]


# --------------------------------------------------------------------------------------------------
# other evaluations


@pytest.fixture(scope="module")
def runs(data_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("EASE", "LLMRec", "SASRec"):
        make(name, data_path, folder / name)
    return folder


@pytest.mark.parametrize("name", ["EASE", "LLMRec", "SASRec"])
def test_other_metrics_and_cutoffs(runs: Path, name: str) -> None:
    """With one test item a hit at 1 is NDCG at 1, and at 3 it lies between those at 2 and 5."""
    own = json.loads((runs / name / "result.json").read_text())["test_result"]
    found = evaluated(runs / name, "--metrics=[Hit, NDCG, ItemCoverage]", "--topk=[1, 2, 3, 5]")
    figures = found["test_result"]
    assert not found["own_test"] and found["topk"] == [1, 2, 3, 5]
    assert figures["hit@2"] == own["hit@2"] and figures["ndcg@5"] == own["ndcg@5"]
    assert figures["hit@1"] == figures["ndcg@1"]
    assert own["hit@2"] <= figures["hit@3"] <= own["hit@5"] and figures["itemcoverage@5"] > 0


@pytest.mark.parametrize("name", ["EASE", "LLMRec", "SASRec"])
def test_sampled_candidates_are_the_same_at_every_call(runs: Path, name: str) -> None:
    sampled = ["--eval_args={'mode': 'uni5'}", "--topk=[1, 2]"]
    one, again = evaluated(runs / name, *sampled), evaluated(runs / name, *sampled)
    full = evaluated(runs / name, "--topk=[1, 2]")
    assert one["test_result"] == again["test_result"]
    assert one["eval_args"]["mode"] == {"valid": "uni5", "test": "uni5"}
    assert one["eval_args"]["split"] == full["eval_args"]["split"]
    # few candidates are easier to beat than all
    assert one["test_result"]["hit@2"] > full["test_result"]["hit@2"]


def test_other_information_gives_what_a_run_with_it_has(
    runs: Path, data_path: Path, tmp_path: Path
) -> None:
    train = "--test_information=train"
    other = run(classical_arguments("EASE", data_path, tmp_path / "c", LEAVE_ONE_OUT, train))
    assert evaluated(runs / "EASE", train)["test_result"] == other["test_result"]
    assert evaluated(runs / "EASE")["test_result"] != other["test_result"]
    other = run(toy_arguments(data_path, tmp_path / "l", LEAVE_ONE_OUT, train))
    assert evaluated(runs / "LLMRec", train)["test_result"] == other["test_result"]


def test_a_part_of_the_test_rows(data_path: Path, tmp_path: Path) -> None:
    """The last row of each user alone, where the run tests the last three."""
    split = "--eval_args={'split': {'RS': [0.5, 0.2, 0.3]}, 'order': 'TO'}"
    folder = tmp_path / "run"
    run(classical_arguments("EASE", data_path, folder, split))
    found = evaluated(folder, LEAVE_ONE_OUT, "--test_information=train")
    assert found["num_users_evaluated"] == N_USERS
    per_user = pd.read_csv(folder / "per_user.csv")
    assert (per_user["n_test"] >= 3).all()
    # one of three hits or more must be found to count
    assert 0 < found["test_result"]["recall@5"] <= per_user["hit@5"].mean()


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("EASE", ["--reg_weight=3"], "reg_weight cannot be changed for an evaluation"),
        ("EASE", ["--metric=[NDCG]"], "did you mean metrics"),
        ("EASE", ["--topk=[500]"], "topk=.500. asks for more items than the 30"),
        ("EASE", ["--metrics=[NDGC]"], "has no metric 'NDGC'"),
        ("EASE", ["--test_information=refit"], "Train it again"),
        ("EASE", ["--eval_args={'mode': 'labeled'}"], "mode labeled compares scores with the"),
        ("EASE", ["--eval_args={'mode': 'labeled'}", "--metrics=[AUC]"], "needs a label of every"),
        ("EASE", ["--test_information=rolling"], "is RecBole's test of sequential models"),
        (
            "EASE",
            ["--eval_args={'split': {'RS': [0.5, 0.2, 0.3]}}"],
            r"\d+ of 72 test rows are rows that the run was trained or chosen by",
        ),
        ("LLMRec", ["--eval_args={'order': 'RO'}"], "trained or chosen by"),
        ("LLMRec", ["--metrics=[GAUC]"], "GAUC needs the rank of every item"),
    ],
)
def test_refusals(
    runs: Path,
    name: str,
    settings: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert main([str(runs / name), f"--output={tmp_path / 'e.json'}", *settings]) == 2
    assert re.search(expected, capsys.readouterr().err)
    assert not (tmp_path / "e.json").exists()


def test_figures_that_do_not_come_out_again_are_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs / "EASE", folder)
    file = folder / "result.json"
    result = json.loads(file.read_text())
    result["test_result"]["ndcg@5"] = 0.9
    file.write_text(json.dumps(result))
    assert main([str(folder)]) == 2
    assert "does not give its figures again: ndcg@5 0.9 there, " in capsys.readouterr().err
    assert not list(folder.glob("evaluation*"))


def test_every_evaluation_has_a_file_of_its_own(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs / "EASE", folder)
    for number in (1, 2):
        assert main([str(folder), "--topk=[3]", "--metrics=[NDCG]"]) == 0
        file = folder / f"evaluation-{number}.json"
        assert np.isfinite(json.loads(file.read_text())["test_result"]["ndcg@3"])
        printed = capsys.readouterr().out
        assert str(file) in printed and "ndcg@3" in printed
    assert main([str(folder), f"--output={folder / 'result.json'}"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["BPR", "LLMRec"])
def test_low_ratings_are_left_out_as_in_a_run(model: str, data_path: Path, tmp_path: Path) -> None:
    """A run tested again with `seen_items=rated` has the figures of a run with it."""
    results = {}
    for seen in ("positives", "rated"):
        settings = [
            "--val_interval={'rating': '[5,inf)'}",
            f"--seen_items={seen}",
            "--topk=[5, 20]",
        ]
        if model == "LLMRec":
            arguments = toy_arguments(data_path, tmp_path / seen, "--loss=sft", *settings)
        else:
            settings.append("--epochs=1")
            arguments = classical_arguments(model, data_path, tmp_path / seen, *settings)
        results[seen] = run(arguments)
        assert results[seen]["seen_items"] == seen
        assert evaluated(tmp_path / seen)["own_test"]
    found = evaluated(tmp_path / "positives", "--seen_items=rated")
    assert found["seen_items"] == "rated" and not found["own_test"]
    assert found["test_result"] != results["positives"]["test_result"]
    assert found["test_result"] == results["rated"]["test_result"]


def test_probabilities_are_tested_on_request(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "calibration" not in evaluated(runs / "LLMRec")
    capsys.readouterr()
    found = evaluated(runs / "LLMRec", "--calibration")["calibration"]
    assert found["users"] == found["held_out_items"] == N_USERS  # leave-one-out
    assert found["bits_per_item"] == pytest.approx(found["bits_per_item_as_sets"])
    shown = capsys.readouterr().out
    assert f"{found['bits_per_item']:.3f} bits each" in shown
    assert "probability to be held out" in shown


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("EASE", [], "EASE ranks by scores that are no probabilities"),
        ("LLMRec", ["--eval_args={'mode': 'uni5'}"], "sampled candidates are a part"),
    ],
)
def test_where_there_are_no_probabilities_of_the_catalogue(
    runs: Path, name: str, setting: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(runs / name), "--calibration", *setting]) == 2
    assert message in capsys.readouterr().err

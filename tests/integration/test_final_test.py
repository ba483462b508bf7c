"""Runs without a test (`final_test=False`), and the test that is made later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader

import recbole_multdpo
from recbole_multdpo import cli, recommend
from recbole_multdpo.classical import run as classical_run
from recbole_multdpo.comparison.runs import run_comparison
from recbole_multdpo.errors import ConfigError, MultDPOError
from recbole_multdpo.plots.__main__ import main as plots
from recbole_multdpo.quick_start import run
from recbole_multdpo.training import trainer
from tests.integration.toy import N_USERS, classical_arguments, toy_arguments, write_toy

WITHOUT = "--final_test=False"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    "extra",
    [
        (),
        ("--assistant=EASE",),
        ("--test_information=refit",),
        ("--model=BIGRec", "--loss=sft"),
        ("--finetune=lora", "--lora_r=2", "--sft_cache=False"),
    ],
)
def test_the_test_made_later_is_that_of_a_whole_run(
    data: Path, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    whole = run(toy_arguments(data, tmp_path / "whole/run", *extra))
    folder = tmp_path / "parts/run"
    valid = run(toy_arguments(data, folder, *extra, WITHOUT))
    assert not [key for key in valid if "test" in key] and not (folder / "model").exists()
    assert valid["valid_result"] == whole["valid_result"]
    tested = run([f"--resume={folder}", "--final_test=True"])
    for key in ("valid_result", "test_result", "model_files", "settings_hash"):
        assert tested[key] == whole[key], key
    assert tested["best_epochs"] and tested["best_epochs"].items() <= whole["best_epochs"].items()
    assert {**tested.get("against_sft", {})} == {**whole.get("against_sft", {})}
    of_users = [tmp_path / name / "run/per_user.csv" for name in ("whole", "parts")]
    assert of_users[0].read_text() == of_users[1].read_text()
    assert "final_test: true" in (folder / "config.yaml").read_text()
    again = run([f"--resume={folder}"])  # finished: nothing is done
    assert again["seconds"] == tested["seconds"]


def test_no_user_of_the_test_part_is_ranked(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str] = []
    collect = trainer.collect_rankings

    def recording(ranker, weights, loader: AbstractDataLoader, *args):  # type: ignore[no-untyped-def]
        parts.append("test" if len(loader._dataset) > 2 * N_USERS else "valid")
        return collect(ranker, weights, loader, *args)

    # one row of a user to validate, three to test: their number tells the parts apart
    split = "--eval_args={'split': {'RS': [0.6, 0.1, 0.3]}, 'order': 'RO', 'group_by': 'user'}"
    monkeypatch.setattr(trainer, "collect_rankings", recording)
    run(toy_arguments(data, tmp_path / "parts/run", split, WITHOUT))
    assert parts == ["valid"] * 2  # after each preference epoch
    parts.clear()
    run(toy_arguments(data, tmp_path / "control/run", split))
    assert parts.count("test") == 2  # of SFT and of the aligned model


def test_a_model_of_recbole_is_tested_by_training_it_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(classical_arguments("BPR", data, tmp_path / "whole", "--epochs=2"))
    folder = tmp_path / "parts"
    with monkeypatch.context() as patch:

        def refused(*_: object) -> None:
            raise AssertionError("the test is prepared")

        patch.setattr(classical_run.ClassicalRun, "for_test", refused)
        valid = run(classical_arguments("BPR", data, folder, "--epochs=2", WITHOUT))
    assert not [key for key in valid if "test" in key] and not (folder / "model").exists()
    assert valid["valid_result"] == whole["valid_result"]
    tested = run([f"--resume={folder}", "--final_test=True"])
    assert tested["test_result"] == whole["test_result"]


def test_answers_about_a_run_without_a_test(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs/run"
    argv = toy_arguments(data, folder, WITHOUT)
    result = recbole_multdpo.run(**dict(text[2:].split("=", 1) for text in argv))
    assert result.test == {} and result.valid["ndcg@5"] > 0
    assert "ndcg@5" in repr(result)
    printed = capsys.readouterr().out
    assert f"--resume={folder} --final_test=True" in printed and "recommend" not in printed
    remedy = f"--resume={folder} --final_test=True"
    for command, arguments in (
        (recommend.main, [str(folder), "--users=u1"]),
        (plots, ["cutoffs", str(folder), f"--output={tmp_path / 'plot.png'}"]),
    ):
        assert command(arguments) != 0
        said = capsys.readouterr().err
        assert remedy in said and "final_test=False" in said, said
    with pytest.raises(MultDPOError, match="final_test=False"):
        result.recommender()
    # training is drawn all the same
    assert plots(["training", str(folder), f"--output={tmp_path / 'training.png'}"]) == 0
    # --resume=auto with the test finds it, without the test there is nothing to continue
    auto = [f"--checkpoint_dir={folder.parent}", "--resume=auto"]
    kept = [text for text in argv if not text.startswith(("--run_dir", WITHOUT))]
    assert cli.main([*kept, *auto]) == 0
    assert "test_result" in json.loads((folder / "result.json").read_text())


def test_a_comparison_needs_tests(data: Path, tmp_path: Path) -> None:
    argv = classical_arguments("EASE,Pop", data, tmp_path / "all", WITHOUT)
    with pytest.raises(ConfigError, match="final_test=False"):
        run_comparison(argv)

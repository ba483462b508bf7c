"""Preference training against its start: step 0 can be the best, and both are tested."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.checkpoint import check_checkpoint
from recbole_multdpo.runs.per_user import START_FILE, read_per_user
from recbole_multdpo.training import start_test
from recbole_multdpo.training.step import TrainingStep
from recbole_multdpo.training.trainer import SetwiseTrainer
from tests.integration.toy import toy_arguments, write_toy

START = "--eval_on_start=True"
# a first stage that has learnt something, and preference steps each of which spoils it
FIRST = ("--sft_epochs=12", "--sft_learning_rate=1e-2", "--weight_decay=0.0")
WORSE = (START, *FIRST, "--learning_rate=1.0", "--lr_scheduler_type=constant")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


SUPERVISED = (*FIRST, "--lr_scheduler_type=constant")


def validations(folder: Path) -> dict[int, float]:
    """NDCG@5 by step of the preference stage."""
    rows = pd.read_csv(folder / "validations.csv")
    rows = rows[(rows["stage"] == "preference") & (rows["metric"] == "ndcg@5")]
    return dict(zip(rows["step"], rows["value"], strict=True))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def supervised(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft") / "run"
    run(toy_arguments(data, folder, "--loss=sft", *SUPERVISED))
    return folder


@pytest.mark.parametrize("extra", [(), ("--finetune=lora", "--lora_r=2")])
def test_the_start_is_kept_where_every_epoch_is_worse(
    data: Path, tmp_path: Path, supervised: Path, extra: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    result = run(toy_arguments(data, folder, *WORSE, *extra))
    found = validations(folder)
    assert list(found) == [0, 3, 6]
    assert found[0] == max(found.values()) > found[3]
    assert result["best_epochs"]["preference"] == {"epoch": 0, "of": 2}
    assert check_checkpoint(folder / "checkpoints/preference/best")["global_step"] == 0
    assert result["valid_result"]["ndcg@5"] == found[0]
    against = result["against_sft"]
    assert against["sft"] == against["aligned"] == result["test_result"]["ndcg@5"]
    if not extra:
        assert same(weights(folder), weights(supervised))
    # control: without it the best of the epochs is taken, and other weights
    other = run(toy_arguments(data, tmp_path / "other", *WORSE, *extra, "--eval_on_start=False"))
    assert other["best_epochs"]["preference"]["epoch"] > 0
    assert list(validations(tmp_path / "other")) == [3, 6]
    assert other["against_sft"]["difference"] < 0


def test_the_trained_weights_do_not_depend_on_the_validation_before(
    data: Path, tmp_path: Path
) -> None:
    """The last step's checkpoint is the same bit by bit, dropout's draws included."""
    stage = "checkpoints/preference/step-6"
    for name, on in (("with", "True"), ("without", "False")):
        run(toy_arguments(data, tmp_path / name, f"--eval_on_start={on}"))
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name / stage).glob("*.safetensors")}
        for name in ("with", "without")
    )
    assert first == second and first


def test_early_stopping_counts_from_the_start(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run(toy_arguments(data, folder, *WORSE, "--epochs=9", "--stopping_step=1"))
    assert result["best_epochs"]["preference"]["epoch"] == 0
    assert list(validations(folder)) == [0, 3, 6]
    assert "2 validations without improvement" in (folder / "run.log").read_text()


def test_a_limited_stage_has_its_start_too(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(toy_arguments(data, folder, START, "--max_steps=2", "--sft_max_steps=3"))
    assert list(validations(folder)) == [0, 2]


def test_refit_of_a_kept_start_trains_no_preferences(
    data: Path, tmp_path: Path, supervised: Path
) -> None:
    folder = tmp_path / "run"
    result = run(toy_arguments(data, folder, *WORSE, "--test_information=refit"))
    assert result["refit_epochs"] == {"sft": 12, "preference": 0}
    assert not (folder / "checkpoints/refit-preference").exists()
    assert "SFT kept" in (folder / "run.log").read_text()
    alone = run(
        toy_arguments(data, tmp_path / "sft", "--loss=sft", *SUPERVISED, "--test_information=refit")
    )
    assert result["test_result"] == alone["test_result"]


@pytest.mark.parametrize("at", [1, 4])
def test_a_resumed_run_is_the_uninterrupted_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Stopped before the first preference step, and after a whole epoch."""
    arguments = (*WORSE, "--sft_cache=False")
    whole = run(toy_arguments(data, tmp_path / "whole", *arguments))
    step = TrainingStep.run

    def failing(self: TrainingStep, batch: Any, number: int) -> dict[str, float]:
        if self.stage.kind == "preference" and number == at:
            raise RuntimeError("stopped")
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "run", failing)
        with pytest.raises(RuntimeError, match="stopped"):
            run(toy_arguments(data, tmp_path / "cut", *arguments))
    resumed = run([f"--resume={tmp_path / 'cut'}"])
    keys = ("model_files", "test_result", "valid_result", "sft_test_result", "best_epochs")
    for key in keys[: -1 if at == 1 else None]:
        assert resumed[key] == whole[key], key
    assert resumed["best_epochs"]["preference"] == whole["best_epochs"]["preference"]
    assert validations(tmp_path / "cut") == validations(tmp_path / "whole")


def test_the_supervised_model_is_tested_once_per_first_stage(
    data: Path, tmp_path: Path, supervised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = SetwiseTrainer.evaluate_ranker

    def counted(self: SetwiseTrainer, *arguments: Any) -> dict[str, float]:
        calls.append(self.stage.name)
        return original(self, *arguments)

    monkeypatch.setattr(SetwiseTrainer, "evaluate_ranker", counted)
    expected = json.loads((supervised / "result.json").read_text())["test_result"]
    for number, loss in enumerate(("mult_dpo", "dpo")):
        folder = tmp_path / loss
        result = run(toy_arguments(data, folder, f"--loss={loss}", *SUPERVISED))
        assert result["sft_test_result"] == expected
        assert calls.count("sft") == 1, number
        start, own = (read_per_user(folder / name) for name in (START_FILE, "per_user.csv"))
        assert start["ndcg@5"].mean() == pytest.approx(expected["ndcg@5"], abs=1e-4)
        difference = own["ndcg@5"].mean() - start["ndcg@5"].mean()
        against = result["against_sft"]
        assert against["difference"] == pytest.approx(difference, abs=2e-4)
        assert against["ci_low"] <= difference <= against["ci_high"]
    run(toy_arguments(data, tmp_path / "shorter", *SUPERVISED, "--rank_history=2"))
    assert calls.count("sft") == 2  # another ranking is another test


def test_a_long_ranking_is_not_doubled_unasked(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_test, "AUTO_SECONDS", 0.0)
    result = run(toy_arguments(data, tmp_path / "auto"))
    assert "sft_test_result" not in result
    assert "--test_sft=True" in result["against_sft"]["left_out"]
    assert "sft_test_result" in run(toy_arguments(data, tmp_path / "on", "--test_sft=True"))
    never = run(toy_arguments(data, tmp_path / "off", "--test_sft=False"))
    assert "sft_test_result" not in never


def test_results_are_on_stdout_however_quiet_the_log(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(toy_arguments(data, tmp_path / "run", "--state=WARNING"))
    out, err = capsys.readouterr()
    assert err == ""
    assert "test ndcg@5: SFT 0." in out and "SFT test" in out
    assert "best: preference epoch" in out
    assert f"python -m recbole_multdpo.recommend {tmp_path / 'run'}" in out


def test_the_log_of_a_run_is_short(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two lines a validated epoch, no bar without a terminal, one numbering."""
    arguments = (START, "--show_progress=True", "--epochs=4", "--sft_epochs=3")
    run(toy_arguments(data, tmp_path / "run", *arguments))
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert len(lines) <= 7 + 3 + 2 * 4 + 3 and len(text) < 2800
    assert re.search(r"a prompt \(prompt_template=items\): .*\\nNext item:", text)
    assert "%|" not in text and "\r" not in text and "\x1b" not in text
    assert all(text.count(f"preference epoch {n}/4: loss") == 1 for n in range(1, 5))
    assert "stage 1/2: supervised fine-tuning, 3 epochs x 3 steps" in text
    assert "stage 2/2: preference training, 4 epochs x 3 steps" in text
    assert "before preference training: valid ndcg@5" in text and "(24 users)" in text
    assert "epoch 0" not in text
    whole = (tmp_path / "run/run.log").read_text()
    assert "grad_norm" in whole and "recall@2" in whole and "command: " in whole

"""Trials: few steps and few users, through the real run, on three steps of eight users an epoch."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recbole_multdpo.classical import assistant
from recbole_multdpo.cli import main
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.checkpoint import check_checkpoint
from recbole_multdpo.runtime.interruption import Interrupted
from recbole_multdpo.trained.evaluation import evaluate_run
from recbole_multdpo.training.stages import train_loader
from recbole_multdpo.training.trainer import SetwiseTrainer
from tests.integration.test_conversations import DATA, write_conversations
from tests.integration.toy import (
    N_USERS,
    classical_arguments,
    cut_short,
    toy_arguments,
    toy_model,
)
from tests.reliability.kills import differences, what_is_left
from tests.reliability.test_interrupted_runs import at_step

pytestmark = pytest.mark.integration
IN_TIME = "--eval_args={'order': 'TO'}"
LINEAR = ["--lr_scheduler_type=linear", "--warmup_ratio=0.5"]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize(
    ("settings", "steps", "validated"),
    [
        # inside of the first epoch, of the second, and beyond the epochs
        (["--max_steps=2"], {"sft": 2, "preference": 2}, [2]),
        (["--max_steps=4", "--sft_max_steps=0"], {"sft": 3, "preference": 4}, [3, 4]),
        (
            ["--max_steps=8", "--eval_step=2", "--sft_max_steps=1"],
            {"sft": 1, "preference": 8},
            [6, 8],
        ),
    ],
)
def test_a_stage_ends_at_its_last_step(
    data_path: Path,
    tmp_path: Path,
    settings: list[str],
    steps: dict[str, int],
    validated: list[int],
) -> None:
    """The step size falls to 0 over these steps, and what they lead to is validated."""
    result = run(toy_arguments(data_path, tmp_path / "run", *LINEAR, *settings))
    logged = rows(tmp_path / "run" / "steps.csv")
    for stage, n_steps in steps.items():
        rates = [float(row["learning_rate"]) for row in logged if row["stage"] == stage]
        peak = {"sft": 2e-3, "preference": 3e-4}[stage]
        warmup = -(-n_steps // 2)
        rising = [peak * step / warmup for step in range(warmup)]
        falling = [
            peak * (n_steps - step) / (n_steps - warmup or 1) for step in range(warmup, n_steps)
        ]
        assert rates == pytest.approx(rising + falling)
    found = {int(row["step"]) for row in rows(tmp_path / "run" / "validations.csv")}
    assert sorted(found) == validated
    best = check_checkpoint(tmp_path / "run" / "checkpoints" / "preference" / "best")
    assert best["global_step"] in validated
    assert result["trial"]["preference_steps"] == steps["preference"]
    log = (tmp_path / "run" / "run.log").read_text()
    assert f"trial: the preference stage ends after step {steps['preference']} (6 steps by" in log


def test_the_only_step_of_a_warmup_changes_no_weight(data_path: Path, tmp_path: Path) -> None:
    """As the guide says."""
    run(toy_arguments(data_path, tmp_path / "run", "--max_steps=1"))
    logged = rows(tmp_path / "run" / "steps.csv")
    assert [float(row["learning_rate"]) for row in logged] == [0, 0]


def test_without_validations_the_last_step_counts(data_path: Path, tmp_path: Path) -> None:
    """Also for a baseline, which has the supervised stage only."""
    run(
        toy_arguments(data_path, tmp_path / "run", "--model=D3", "--max_steps=4", "--assistant=Pop")
    )
    assert len(rows(tmp_path / "run" / "steps.csv")) == 4
    best = check_checkpoint(tmp_path / "run" / "checkpoints" / "sft" / "best")
    assert (best["global_step"], best["position"]["epoch"], best["position"]["batch"]) == (4, 1, 1)


@pytest.mark.parametrize(("stage", "step"), [("sft", 4), ("preference", 1), ("preference", 4)])
def test_a_trial_is_resumed_inside_of_its_last_epoch(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, step: int
) -> None:
    """At its last step too, before the validation: equal bit by bit to an undisturbed one."""
    settings = ["--max_steps=4", "--train_users=20", "--sft_cache=False"]
    run(toy_arguments(data_path, tmp_path / "whole", *settings))
    at_step(monkeypatch, stage, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(toy_arguments(data_path, folder, *settings))
    result = run([f"--resume={folder}"])
    assert differences(what_is_left(tmp_path / "whole"), what_is_left(folder)) == []
    assert result["trial"] == {
        "users": 20,
        "of_users": N_USERS,
        "sft_steps": 4,
        "preference_steps": 4,
    }


def test_few_users_are_trained_on_and_all_are_ranked(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[int]] = {"sft": set(), "preference": set()}
    train_step = SetwiseTrainer._train_step

    def watched(trainer: SetwiseTrainer, batch):  # type: ignore[no-untyped-def]
        seen[trainer.stage.name] |= set(batch.user_ids.tolist())
        return train_step(trainer, batch)

    monkeypatch.setattr(SetwiseTrainer, "_train_step", watched)
    folder = tmp_path / "run"
    result = run(toy_arguments(data_path, folder, "--train_users=5"))
    assert seen["sft"] == seen["preference"] and len(seen["sft"]) == 5
    assert "trial: 5 of 24 users" in (folder / "run.log").read_text()
    assert result["trial"]["users"] == 5
    everybody = run(toy_arguments(data_path, tmp_path / "all"))
    assert result["test_set"] == everybody["test_set"] and "trial" not in everybody
    known = [
        pd.read_csv(run_dir / "per_user.csv")["n_train"] for run_dir in (folder, tmp_path / "all")
    ]
    assert len(known[0]) == N_USERS and known[0].equals(known[1])


def test_fewer_users_are_among_more_and_the_seed_chooses(data_path: Path, tmp_path: Path) -> None:
    def users(*settings: str) -> list[int]:
        config, parts, model = toy_model(data_path, tmp_path, *settings)
        return train_loader(config, model, parts[0], "sft", 8).users.tolist()

    assert set(users("--train_users=5")) < set(users("--train_users=9"))
    assert users("--train_users=9") == sorted(users("--train_users=9"))
    assert users("--train_users=9") != users("--train_users=9", "--seed=7")
    assert users("--train_users=99") == users()


def test_a_refit_makes_the_steps_that_validation_chose(data_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(toy_arguments(data_path, folder, "--max_steps=4", "--test_information=refit"))
    best = check_checkpoint(folder / "checkpoints" / "preference" / "best")["global_step"]
    steps = [row["stage"] for row in rows(folder / "steps.csv")]
    assert steps.count("refit-sft") == 4 and steps.count("refit-preference") == best


def test_a_comparison_says_who_was_cut_short(data_path: Path, tmp_path: Path) -> None:
    """RecBole's own models have no such setting: their figures are of all users."""
    arguments = toy_arguments(
        data_path, tmp_path / "comparison", "--model=LLMRec,Pop", "--loss=sft", "--train_users=5"
    )
    assert main(arguments) == 0
    notes = json.loads((tmp_path / "comparison" / "results.json").read_text())["notes"]
    assert any("LLMRec sft (5 of 24 users). Pop learned from all users" in note for note in notes)


def test_recboles_models_refuse_a_trial(data_path: Path, tmp_path: Path) -> None:
    status = main(classical_arguments("Pop", data_path, tmp_path / "run", "--train_users=5"))
    assert status != 0


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["--loss=sft", "--eval_args={'mode': 'uni6'}"],
        ["--loss=sft", "--eval_args={'mode': 'total9'}", "--test_information=refit"],
        ["--model=D3", "--assistant=EASE", "--assistant_weight=0.3"],
        ["--model=BIGRec", "--generation_tokens=6"],
        DATA,
    ],
    ids=["LLMRec", "sampled", "refit", "D3", "BIGRec", "conversation"],
)
def test_some_users_are_tested_as_in_a_whole_test(
    data_path: Path, tmp_path: Path, settings: list[str]
) -> None:
    """Their rows are those of a run that tests everybody, and the figures are their means."""
    if settings == DATA:
        settings = [*DATA, f"--data_path={write_conversations(tmp_path / 'said')}"]
    whole = run(toy_arguments(data_path, tmp_path / "whole", *settings))
    folder = tmp_path / "run"
    result = run(toy_arguments(data_path, folder, *settings, "--test_users=5"))
    check_tested(folder, result, tmp_path / "whole", whole)
    assert result["model_files"] == whole["model_files"]


@pytest.mark.parametrize(
    ("model", "settings"),
    [("EASE", ["--eval_args={'mode': 'pop6'}"]), ("SASRec", [IN_TIME, "--epochs=1"])],
)
def test_recboles_models_are_tested_on_some_users_too(
    data_path: Path, tmp_path: Path, model: str, settings: list[str]
) -> None:
    folders = [tmp_path / "run", tmp_path / "whole"]
    result, whole = (
        run(classical_arguments(model, data_path, folder, *settings, f"--test_users={n}"))
        for folder, n in zip(folders, (5, 0), strict=True)
    )
    check_tested(folders[0], result, folders[1], whole)
    assert result["valid_result"] == whole["valid_result"]  # chooses the epoch


def check_tested(
    folder: Path, result: dict[str, Any], whole_folder: Path, whole: dict[str, Any]
) -> None:
    """A test of five users against that of all."""
    own, everybody = (pd.read_csv(each / "per_user.csv") for each in (folder, whole_folder))
    same = everybody[everybody["user"].isin(own["user"])]
    pd.testing.assert_frame_equal(
        *(rows.sort_values("user", ignore_index=True) for rows in (own, same)),
        check_dtype=False,  # a column of zeros is read as whole numbers
    )
    n_all = len(everybody)
    for name, figure in result["test_result"].items():
        if name in own:
            assert figure == pytest.approx(own[name].mean(), abs=5e-5)
    ndcg = own["ndcg@5"]
    margin = 1.96 * ndcg.std() / 5**0.5
    limits: dict[str, Any] = {"test_users": 5, "of_test_users": n_all}
    line = f"test: 5 of {n_all} users (--test_users)"
    if margin:  # conversations: nobody finds anything, which has no interval
        limits["test_margin"] = {"ndcg@5": pytest.approx(margin, abs=1e-6)}
        line += f"; ndcg@5 {ndcg.mean():.4f} ± {margin:.4f} (95 %)"
    assert result["trial"] == limits
    assert line in (folder / "run.log").read_text(encoding="utf-8")
    assert result["num_users_evaluated"] == 5 != whole["num_users_evaluated"]
    assert result["test_set"] != whole["test_set"] and "trial" not in whole
    again = evaluate_run(folder, {})
    assert again["own_test"] and again["test_result"] == result["test_result"]
    assert again["num_users_evaluated"] == 5 and again["test_set"] == result["test_set"]
    later = evaluate_run(folder, {"test_users": 0})
    assert not later["own_test"] and later["test_result"] == whole["test_result"]
    assert later["test_set"] == whole["test_set"]


def test_an_assistants_weight_is_chosen_by_these_users(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both stages and the scores of the assistant are those of a whole test, from the caches."""
    settings = ["--loss=sft", "--assistant=EASE"]
    for n_users in (5, 0):
        folder = tmp_path / f"run{n_users}"
        result = run(toy_arguments(data_path, folder, *settings, f"--test_users={n_users}"))
        best = max(row["ndcg@5"] for row in result["assistant"]["curve"])
        assert result["valid_result"]["ndcg@5"] == best
    cached = [each.name.split("-")[0] for each in (tmp_path / "cache").iterdir()]
    assert cached.count("assistant") == cached.count("sft") == 1
    monkeypatch.setattr(assistant, "_train", None)  # nor does a later test train it again
    assert evaluate_run(folder, {})["test_result"] == result["test_result"]


def test_a_test_of_some_users_is_resumed_with_its_number_alone(
    data_path: Path, tmp_path: Path
) -> None:
    whole = run(toy_arguments(data_path, tmp_path / "whole", "--test_users=5"))
    cut_short(toy_arguments(data_path, tmp_path / "run", "--test_users=5"))
    with pytest.raises(ConfigError, match="test_users"):
        run([f"--resume={tmp_path / 'run'}", "--test_users=6"])
    result = run([f"--resume={tmp_path / 'run'}"])
    for key in ("valid_result", "test_result", "test_set", "trial"):
        assert result[key] == whole[key]


def test_a_comparison_tests_the_same_users(data_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    extra = ["--model=LLMRec,EASE", "--loss=sft", "--test_users=6"]
    assert main(toy_arguments(data_path, folder, *extra)) == 0
    found = json.loads((folder / "results.json").read_text())
    (test,) = [each for each in found["significance"] if each["metric"] == "ndcg@5"]
    assert test["n_users"] == 6
    (note,) = [note for note in found["notes"] if "test_users" in note]
    assert "tested on 6 of 24 users (test_users): by chance of the users, ndcg@5" in note
    assert " for LLMRec sft, ± 0." in note and " for EASE (95 %)" in note
    assert not any("other items" in note or "cut short" in note for note in found["notes"])

"""Weights & Biases: a run of its own, one axis per stage, the test once, and an end in any case."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from recbole_multdpo.comparison import runs
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.quick_start import run
from recbole_multdpo.settings import config
from recbole_multdpo.trained import evaluation
from recbole_multdpo.training.trainer import SetwiseTrainer
from tests.integration.toy import CLASSICAL, COLUMNS, toy_arguments, write_toy
from tests.reliability.kills import what_is_left

pytestmark = pytest.mark.integration
STAGES = ("sft", "preference")


class WandbError(Exception):
    """Base class of the package's errors."""


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module in place of the package, which keeps what is logged in a run."""
    module: Any = ModuleType("wandb")
    module.run, module.logged, module.axes = None, [], {}
    module.begun, module.ended = [], []
    module.errors = SimpleNamespace(Error=WandbError)

    def init(**options: Any) -> None:
        assert module.run is None
        module.begun.append(options)
        module.run = SimpleNamespace(summary={})

    def define_metric(name: str, step_metric: str) -> None:
        module.axes[name] = step_metric

    def log(metrics: dict[str, Any], commit: bool = True) -> None:
        assert module.run is not None
        module.logged.append(metrics)

    def finish(exit_code: int) -> None:
        module.run = None
        module.ended.append(exit_code)

    module.init, module.define_metric, module.log, module.finish = init, define_metric, log, finish
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(config, "missing_for_logging", lambda settings: [])
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_toy(tmp_path / "data")


def curves(wandb: Any) -> dict[str, list[tuple[int, float]]]:
    """Name to (step of the stage, value) of all that has a step."""
    found: dict[str, list[tuple[int, float]]] = {}
    for metrics in wandb.logged:
        (step,) = [key for key in metrics if key.endswith("_step")] or [None]
        for name, value in metrics.items():
            if step not in (None, name):
                assert name.startswith(step.removesuffix("_step") + "/")
                found.setdefault(name, []).append((metrics[step], value))
    return found


def metrics_of_tests(wandb: Any) -> list[dict[str, float]]:
    return [metrics for metrics in wandb.logged if any(key.startswith("test") for key in metrics)]


def test_steps_are_those_of_tensorboard_and_validations_those_of_the_table(
    data: Path, tmp_path: Path, wandb: Any
) -> None:
    extra = ("--log_wandb=True", "--eval_on_start=True", "--sft_epochs=2", "--sft_eval_step=1")
    result = run(toy_arguments(data, tmp_path / "run", *extra))
    found = curves(wandb)
    steps = {name: values for name, values in found.items() if "/valid/" not in name}
    logged = what_is_left(tmp_path / "run")["tensorboard"]
    expected = {name: v for name, v in logged.items() if name.startswith(("sft/", "preference/"))}
    assert steps.keys() == expected.keys()
    assert {"preference/rewards/accuracies", "preference/logps/rejected"} < steps.keys()
    for name, values in steps.items():
        assert values == [(step, pytest.approx(value)) for step, value in expected[name]]

    table = pd.read_csv(tmp_path / "run/validations.csv")
    for (stage, metric), rows in table.groupby(["stage", "metric"]):
        pairs = list(zip(rows["step"], rows["value"], strict=True))
        assert found.pop(f"{stage}/valid/{metric}") == pairs
        first = 0 if stage == "preference" else 3  # before the first preference step too
        assert pairs[0][0] == first and len(pairs) > 1
    assert not any("/valid/" in name for name in found)
    assert {wandb.axes[f"{stage}/*"] for stage in STAGES} == {"sft_step", "preference_step"}

    (at_end,) = metrics_of_tests(wandb)
    assert at_end == wandb.logged[-1]
    assert at_end == {
        f"{head}/{name}": value
        for head, entry in (("test", "test_result"), ("test_sft", "sft_test_result"))
        for name, value in result[entry].items()
    }
    named = {key.split("/")[0] for metrics in wandb.logged for key in metrics}
    assert named == {"sft", "sft_step", "preference", "preference_step", "test", "test_sft"}
    (begun,) = wandb.begun
    assert begun["name"] == "run" and begun["config"]["loss"] == "mult_dpo"
    assert wandb.ended == [0]


def test_a_teacher_and_an_assistant_log_nothing(data: Path, tmp_path: Path, wandb: Any) -> None:
    extra = ("--log_wandb=True", "--sft_teacher=EASE", "--assistant=BPR", "--BPR.epochs=1")
    run(toy_arguments(data, tmp_path / "run", *extra))
    assert not any(key.startswith(("train", "valid")) for logged in wandb.logged for key in logged)
    assert not wandb.run and len(wandb.begun) == 1


def test_a_model_of_recbole_logs_its_test_too(data: Path, tmp_path: Path, wandb: Any) -> None:
    places = [f"--data_path={data}", f"--run_dir={tmp_path / 'run'}", "--log_wandb=True"]
    result = run(["--model=BPR", *CLASSICAL, COLUMNS, *places, "--epochs=2"])
    assert [m["valid_step"] for m in wandb.logged if "valid_step" in m] == [0, 1]
    assert metrics_of_tests(wandb) == [{f"test/{k}": v for k, v in result["test_result"].items()}]
    assert wandb.ended == [0]
    found = evaluation.evaluate_run(tmp_path / "run", {}, log_wandb=True)
    assert metrics_of_tests(wandb)[1] == {f"test/{k}": v for k, v in found["test_result"].items()}
    assert wandb.ended == [0, 0]


def test_it_ends_as_failed_after_an_error(
    data: Path, tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(SetwiseTrainer, "_train_step", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        run(toy_arguments(data, tmp_path / "run", "--log_wandb=True"))
    assert wandb.ended == [1] and not metrics_of_tests(wandb)


def test_a_run_of_the_callers_stays_open(data: Path, tmp_path: Path, wandb: Any) -> None:
    wandb.init(project="theirs")
    run(toy_arguments(data, tmp_path / "run", "--log_wandb=True"))
    assert len(wandb.begun) == 1 and wandb.ended == [] and len(metrics_of_tests(wandb)) == 1


def test_who_is_not_logged_in_is_told_before_anything_is_loaded(
    tmp_path: Path, data: Path, wandb: Any
) -> None:
    def refuse(**_: Any) -> None:
        raise WandbError("No API key configured.")

    wandb.init = refuse
    with pytest.raises(ConfigError, match=r"refuses: No API key configured\. Or .*WANDB_MODE=off"):
        run(toy_arguments(data, tmp_path / "run", "--log_wandb=True"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("own", [{}, {"WANDB_RUN_GROUP": "mine"}])
def test_members_of_a_comparison_are_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: dict[str, str]
) -> None:
    for name in ("WANDB_RUN_GROUP", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    script = tmp_path / "show.py"
    names = "['WANDB_RUN_GROUP', 'WANDB_NAME']"
    script.write_text(f"import os, sys\nprint(*map(os.environ.get, {names}))\nsys.exit(1)")
    popen = runs.subprocess.Popen
    monkeypatch.setattr(
        runs.subprocess, "Popen", lambda _, **options: popen([sys.executable, script], **options)
    )
    folder = tmp_path / "losses/tuning/EASE/trial-000"
    runner = runs.Runner(None, 1, "ndcg@5", tmp_path / "losses")
    group = own.get("WANDB_RUN_GROUP", "losses")
    # the reason of a failure is the last line that was printed
    assert runner.run_all({folder: {"model": "EASE"}}) == {folder: f"{group} tuning/EASE/trial-000"}

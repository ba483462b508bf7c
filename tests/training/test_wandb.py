"""Weights & Biases gets every step's metrics, under the names that TensorBoard has."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from recbole_multdpo.quick_start import run
from recbole_multdpo.settings import config
from tests.integration.toy import toy_arguments, write_toy
from tests.reliability.kills import what_is_left


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module in place of the package, which keeps what is logged."""
    module: Any = ModuleType("wandb")
    module.run, module.logged, module.axes = None, [], {}

    def init(**_: Any) -> None:
        module.run = SimpleNamespace(summary={})

    def define_metric(name: str, step_metric: str) -> None:
        module.axes[name] = step_metric

    module.init, module.define_metric = init, define_metric
    module.log = lambda metrics, commit: module.logged.append(metrics)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(config, "missing_for_logging", lambda settings: [])
    return module


@pytest.mark.integration
def test_every_step_is_logged_as_in_tensorboard(tmp_path: Path, wandb: Any) -> None:
    data = write_toy(tmp_path / "data")
    run(toy_arguments(data, tmp_path / "run", "--log_wandb=True"))
    assert wandb.axes["preference/*"] == "preference_step" and wandb.axes["sft/*"] == "sft_step"
    found: dict[str, list[tuple[int, float]]] = {}
    for metrics in wandb.logged:
        for stage in ("sft", "preference"):
            for name, value in metrics.items():
                if name.startswith(f"{stage}/"):
                    found.setdefault(name, []).append((metrics[f"{stage}_step"], value))
    logged = what_is_left(tmp_path / "run")["tensorboard"]
    expected = {name: v for name, v in logged.items() if name.startswith(("sft/", "preference/"))}
    assert found.keys() == expected.keys()
    assert {"preference/rewards/accuracies", "preference/logps/rejected"} < found.keys()
    for name, values in found.items():
        assert values == [(step, pytest.approx(value)) for step, value in expected[name]]

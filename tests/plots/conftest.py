"""Small run folders with known numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from recbole_multdpo.runs.step_log import StepLog
from recbole_multdpo.settings.text import dump_settings

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Factory of run folders: name, settings, seed, test NDCG@5 and @10, seconds, steps."""
    pytest.importorskip("matplotlib")

    def make(
        name: str,
        *,
        model: str = "LLMRec",
        seed: int = 1,
        ndcg: tuple[float, float] = (0.1, 0.2),
        seconds: dict[str, float] | None = None,
        n_steps: int = 0,
        finished: bool = True,
        test_set: str = "same",
        known: str = "train",
        **settings: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        own = {"loss": "mult_dpo", "sft_epochs": 2, "epochs": 3} if model == "LLMRec" else {}
        common = {"model": model, "seed": seed, "valid_metric": "NDCG@5"}
        (folder / "config.yaml").write_text(dump_settings({**common, **own, **settings}))
        if n_steps:
            log_stage(folder, "sft", n_steps)
            log_stage(folder, "preference", n_steps)
        if finished:
            result = {
                "seed": seed,
                "test_set": test_set,
                "test_information": known,
                "test_result": {"ndcg@5": ndcg[0], "ndcg@10": ndcg[1], "hit@5": 0.5},
                "seconds": seconds or {"sft": 0.0, "preference": 1.0},
            }
            (folder / "result.json").write_text(json.dumps(result))
        return folder

    return make


def log_stage(folder: Path, stage: str, n_steps: int) -> None:
    """Steps whose loss falls and whose margin grows, a validation at every tenth."""
    log = StepLog(folder, stage)
    for step in range(1, n_steps + 1):
        metrics = {"loss": 10 / step, "positive_logp": -5.0 - step / 100}
        if stage == "preference":
            metrics |= {"negative_logp": -6.0 - step / 10, "margin": step / 10}
        log.step(step, 1 + step // 10, metrics)
        if step % 10 == 0 and stage == "preference":
            log.validation(step, {"ndcg@5": step / 1000, "hit@5": 0.5})


def set_seconds(folder: Path, seconds: Iterable[float]) -> None:
    """Replace the seconds of every row of a run's `steps.csv`."""
    header, *lines = (folder / "steps.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    for row, value in zip(rows, seconds, strict=True):
        row[3] = str(value)
    (folder / "steps.csv").write_text("\n".join([header, *map(",".join, rows)]) + "\n")

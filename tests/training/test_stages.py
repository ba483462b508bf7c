"""The log's line about the batches of a stage, and its warning about small ones on GPUs."""

from __future__ import annotations

import logging
import re

import pytest

from recbole_multdpo.runtime import processes
from recbole_multdpo.training import stages
from recbole_multdpo.training.step import Stage


@pytest.mark.parametrize(
    ("name", "n_processes", "device", "line", "warning"),
    [
        ("sft", 1, "cuda", "sft: 16 examples per step", None),
        ("sft", 2, "cuda", "sft: 16 examples per step: 8 on each of 2 processes", None),
        ("preference", 8, "cpu", "preference: 16 examples per step: 2 on each of 8", None),
        ("preference", 8, "cuda", "2 on each of 8 processes", "--train_batch_size to 64, which"),
        ("refit-sft", 3, "cuda", "at most 6 on each of 3", "--sft_batch_size to 24.*--sft_learn"),
    ],
)
def test_examples_per_step_and_process(  # type: ignore[no-untyped-def]
    caplog, monkeypatch, name: str, n_processes: int, device: str, line: str, warning: str | None
) -> None:
    monkeypatch.setattr(processes, "world_size", lambda: n_processes)
    with caplog.at_level(logging.INFO):
        stages._log_batches(Stage(name, 1, 1.0, 0), 16, device)
    first, *rest = caplog.messages
    assert line in first
    assert len(rest) == (warning is not None)
    if warning:
        assert re.search(warning, rest[0])

"""The lines of RecBole's own models: one per epoch, numbered from 1, without long metrics."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from recbole.trainer import Trainer

from recbole_multdpo.classical import run as classical_run
from recbole_multdpo.quick_start import run
from tests.integration.toy import classical_arguments, toy_arguments, write_toy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


def lines(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    """The console's lines of a model's training, without times."""
    shown = [r.getMessage() for r in caplog.records if r.levelno >= logging.INFO]
    assert not [text for text in shown if "epoch 0" in text or "valid result" in text]
    assert max(map(len, "\n".join(shown).splitlines())) < 250
    of_epochs = [text for text in shown if text.startswith((name, f"best of {name}"))]
    return [re.sub(r"\d+:\d\d", "0:00", text) for text in of_epochs]


def test_every_epoch_has_one_line(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    argv = classical_arguments("BPR", data, tmp_path / "run", "--epochs=5", "--eval_step=2")
    with caplog.at_level(logging.DEBUG):
        result = run(argv)
    found = lines(caplog, "BPR")
    number = r"\d\.\d+"
    left = r"; 0:00, at most about 0:00 left"
    first = f"valid ndcg@5 {number}"
    expected = [
        f"BPR epoch 1/5: loss {number}{left}",
        f"BPR epoch 2/5: loss {number}, {first}{left}",
        f"BPR epoch 3/5: loss {number}{left}",
        f"BPR epoch 4/5: loss {number}, {first}(, the best so far)?{left}",
        f"BPR epoch 5/5: loss {number}; 0:00",
        r"best of BPR: epoch [24] of 5",
    ]
    assert len(found) == len(expected)
    for text, pattern in zip(found, expected, strict=True):
        assert re.fullmatch(pattern, text), text
    told = max(re.findall(r"valid ndcg@5 (\S+?)[,;]", "\n".join(found)))
    assert told == f"{result['valid_result']['ndcg@5']:.4f}"


def test_early_stopping_is_told(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.3, 0.4, 0.2, 0.1, 0.0, 0.9])
    monkeypatch.setattr(Trainer, "_valid_epoch", lambda *_, **__: (next(scores), {"ndcg@5": 0.0}))
    argv = classical_arguments("BPR", data, tmp_path / "run", "--epochs=6", "--stopping_step=2")
    with caplog.at_level(logging.INFO):
        run(argv)
    *epochs, best = lines(caplog, "BPR")
    assert ["the best so far" in line for line in epochs] == [False, True, False, False, False]
    early = "after 3 validations without improvement (--stopping_step)"
    assert best == f"best of BPR: epoch 2 of 5, {early}"


def test_a_model_without_epochs_has_one_line_without_a_loss(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(classical_arguments("EASE", data, tmp_path / "run"))
    (line,) = lines(caplog, "EASE")
    assert re.fullmatch(r"EASE: valid ndcg@5 0\.\d{4}; 0:00", line)


def test_an_assistant_is_quiet(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[str] = []
    fit = classical_run.ClassicalRun.fit

    def recorded(self: classical_run.ClassicalRun, show_progress: bool) -> dict[str, float]:
        fitted.append(self.config["model"])
        return fit(self, show_progress)

    monkeypatch.setattr(classical_run.ClassicalRun, "fit", recorded)
    with caplog.at_level(logging.INFO):
        run(toy_arguments(data, tmp_path / "run", "--assistant=EASE", "--sft_teacher=EASE"))
    assert fitted == ["EASE", "EASE"] and lines(caplog, "EASE") == []

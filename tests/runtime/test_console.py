"""Progress on a terminal and elsewhere; what the console shows and what the log keeps."""

from __future__ import annotations

import logging
import sys

import pytest

from recbole_multdpo.runtime import console
from recbole_multdpo.runtime.console import (
    Progress,
    bar_format,
    counted,
    duration,
    quieten_libraries,
)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (7, "0:07"), (750, "12:30"), (3723, "1:02:03")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counts_are_plural_where_they_should_be() -> None:
    assert [counted(n, "epoch") for n in (0, 1, 2, 1682)] == [
        "0 epochs",
        "1 epoch",
        "2 epochs",
        "1,682 epochs",
    ]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; the test moves it."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds_each", "n_lines"),
    [(0.01, 0), (1.0, 3), (60.0, 9)],  # a hundred items: a second, two minutes, two hours
)
def test_without_a_terminal_a_line_a_tenth_or_half_a_minute(
    clock: list[float], caplog: pytest.LogCaptureFixture, seconds_each: float, n_lines: int
) -> None:
    with caplog.at_level(logging.INFO):
        for _ in Progress(range(100), 100, "ranking", show=True):
            clock[0] += seconds_each
    assert len(caplog.messages) == n_lines
    if n_lines == 9:
        assert caplog.messages[0] == "ranking: 10 of 100, 1:30:00 left"


def test_nothing_is_shown_unless_asked_for(
    clock: list[float], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO):
        for _ in Progress(range(100), 100, "ranking", show=False):
            clock[0] += 60
    assert not caplog.messages
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("columns", "is_drawn"), [(60, False), (80, False), (120, True)])
def test_a_narrow_terminal_shows_counts_and_numbers(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    columns: int,
    is_drawn: bool,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = Progress(range(3), 3, "preference epoch 1/4", show=True)
    for _ in bar:
        bar.shown = {"loss": 26.2, "margin": 1.25}
    assert ("{bar" in bar_format()) == is_drawn
    shown = capsys.readouterr().err.split("\r")
    assert any("0/3" in text for text in shown)
    assert all(len(text) <= columns for text in shown)


def test_messages_of_libraries_come_once(caplog: pytest.LogCaptureFixture) -> None:
    library = logging.getLogger("huggingface_hub")
    library.handlers = [logging.StreamHandler(sys.stdout)]
    quieten_libraries(show_progress=False)
    assert not any(isinstance(handler, logging.StreamHandler) for handler in library.handlers)
    with caplog.at_level(logging.WARNING):
        library.warning("retrying")
    assert caplog.messages == ["retrying"]

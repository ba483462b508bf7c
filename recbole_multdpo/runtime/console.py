"""Progress and details: bars on a terminal, a line now and then elsewhere, the rest in the log."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

from tqdm import tqdm

T = TypeVar("T")

DETAIL = 15  # between DEBUG and INFO: a run's log file has it, the console has not
logging.addLevelName(DETAIL, "DETAIL")

LINE_SECONDS = 30.0  # least time between two lines of one loop
LINES = 10  # of one loop, at most
WIDE = 100  # columns of a terminal with room for the drawn part of a bar
_COUNTS = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


def log_detail(message: object) -> None:
    """Log what only the run's log file shows."""
    logging.getLogger().log(DETAIL, message)


@contextmanager
def only_warnings() -> Iterator[None]:
    """Leave out what is logged below WARNING, in the console and in the run's log."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.setLevel(level)


def has_terminal() -> bool:
    """True if somebody watches stderr: bars are drawn on terminals only."""
    stream = sys.stderr
    return stream is not None and hasattr(stream, "isatty") and stream.isatty()


def shows_bars(asked: bool) -> bool:
    """True if bars of other libraries, which know bars only, are wanted and can be drawn."""
    return asked and has_terminal()


def quieten_libraries(*, show_progress: bool) -> None:
    """Give third-party libraries one voice: their messages come once, through the root logger.

    Hugging Face's libraries have handlers of their own and hand their messages on as well, so that
    each would be printed twice; their bars know nothing of `show_progress`.

    Args:
        show_progress: keep their bars.
    """
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    if show_progress:
        enable_progress_bars()
        transformers_logging.enable_progress_bar()
    else:
        disable_progress_bars()
        transformers_logging.disable_progress_bar()
    for name in ("huggingface_hub", "transformers"):
        library = logging.getLogger(name)
        library.handlers = [logging.NullHandler()]
        library.propagate = True


def bar_format() -> str:
    """Layout of a bar: a narrow terminal shows the counts instead of the drawn part."""
    if shutil.get_terminal_size().columns < WIDE:
        return "{desc}: " + _COUNTS
    return "{desc}: {percentage:3.0f}%|{bar:20}| " + _COUNTS


def duration(seconds: float) -> str:
    """Seconds as `0:07`, `12:30` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(number: int, noun: str) -> str:
    """`1 epoch`, `20 epochs`, `1,682 items`: a number of things that take an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class Progress(Generic[T]):
    """Iterates over something and shows how far it is.

    A terminal gets a bar that disappears at the end. Elsewhere a line is logged at a tenth of the
    way, at most every `LINE_SECONDS`: a short loop logs nothing, a long one nine lines.

    Attributes:
        shown: numbers beside the counts; set it in the loop's body.
    """

    def __init__(
        self, items: Iterable[T], total: int, name: str, *, show: bool, initial: int = 0
    ) -> None:
        """Wrap an iterable.

        Args:
            items: what is left of it.
            total: number of all items, those before `initial` too.
            name: of the loop.
            show: False to show nothing.
            initial: number of items that were done before.
        """
        self.shown: Mapping[str, float] = {}
        self._items, self._total, self._name = items, total, name
        self._show, self._initial = show, initial

    def __iter__(self) -> Iterator[T]:
        if not self._show:
            yield from self._items
        elif has_terminal():
            yield from self._with_bar()
        else:
            yield from self._with_lines()

    def _with_bar(self) -> Iterator[T]:
        with tqdm(
            total=self._total,
            initial=self._initial,
            desc=self._name,
            bar_format=bar_format(),
            dynamic_ncols=True,
            leave=False,
        ) as bar:
            for item in self._items:
                yield item
                if self.shown:
                    bar.set_postfix({k: f"{v:.3g}" for k, v in self.shown.items()}, refresh=False)
                bar.update()

    def _with_lines(self) -> Iterator[T]:
        start = last = time.monotonic()
        told = self._initial
        for done, item in enumerate(self._items, self._initial + 1):
            yield item
            now = time.monotonic()
            is_due = now - last >= LINE_SECONDS and (done - told) * LINES >= self._total
            if is_due and done < self._total:
                left = (now - start) / (done - self._initial) * (self._total - done)
                numbers = "".join(f", {name} {value:.3g}" for name, value in self.shown.items())
                logging.getLogger().info(
                    f"{self._name}: {done:,} of {self._total:,}, {duration(left)} left{numbers}"
                )
                last, told = now, done

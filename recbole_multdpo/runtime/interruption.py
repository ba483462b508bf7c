"""Ctrl-C and SIGTERM: the step under way is finished and saved, then the run leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run.

    Attributes:
        exit_status: what the process ends with, 128 and the signal's number, as shells do.
    """

    def __init__(self, number: int) -> None:
        """By the signal's number."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


class SignalHandler:
    """Turns signals into `Interrupted`: at once, or inside `deferred` when the work says so.

    A Ctrl-C while a signal waits is raised at once; another SIGTERM is not, as a scheduler and a
    comparison may both send one, and neither is in a run of several processes, whose launcher
    passes on what they may have got themselves. Use as a context manager in the main
    thread; elsewhere, where Python allows no handlers, it does nothing.

    Attributes:
        requested: number of the signal that waits, None without one.
    """

    def __init__(self) -> None:
        """Without handlers as yet."""
        self.requested: int | None = None
        self._is_deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalHandler:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Put the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._is_deferred:
            raise Interrupted(number)
        from recbole_multdpo.runtime import processes  # with torch, which converters do without

        is_impatient = self.requested is not None and number == signal.SIGINT
        if is_impatient and processes.world_size() == 1:
            raise Interrupted(number)
        self.requested = self.requested or number

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `requested`; the code inside looks at it and calls `stop`."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self.requested is not None:
            self.stop()

    def stop(self) -> NoReturn:
        """Raise the signal that waits."""
        assert self.requested is not None
        raise Interrupted(self.requested)

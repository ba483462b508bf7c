"""Handle Ctrl-C and SIGTERM: finish and save the current step, then stop."""

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
        exit_status: exit status for the process: 128 + the signal's number, as in shells.
    """

    def __init__(self, number: int) -> None:
        """Take the signal's number."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


class SignalHandler:
    """Turn signals into `Interrupted`: at once, or inside `deferred` when the code calls `stop`.

    A Ctrl-C while a signal is pending is raised at once. Another SIGTERM is not, as a scheduler and
    a comparison may both send one. Neither is raised in a run of several processes, whose launcher
    may forward a signal that they already received. Use as a context manager in the main thread; in
    other threads, where Python allows no handlers, it does nothing.

    Attributes:
        requested: number of the pending signal, None without one.
    """

    def __init__(self) -> None:
        """Create without installing handlers."""
        self.requested: int | None = None
        self._is_deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalHandler:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._is_deferred:
            raise Interrupted(number)
        from recbole_multdpo.runtime import processes  # imports torch, which converters do not need

        is_impatient = self.requested is not None and number == signal.SIGINT
        if is_impatient and processes.world_size() == 1:
            raise Interrupted(number)
        self.requested = self.requested or number

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block, a signal only sets `requested`; the code polls it and calls `stop`."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self.requested is not None:
            self.stop()

    def stop(self) -> NoReturn:
        """Raise the pending signal as `Interrupted`."""
        assert self.requested is not None
        raise Interrupted(self.requested)

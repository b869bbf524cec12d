"""Signals that end a run: at once where nothing is lost by it, else at the next safe point."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU")
    if hasattr(signal, name)  # Windows has two of them
)
"""Ctrl-C; docker stop, Slurm; a terminal that closes; what schedulers send before the end."""


SAME_PRESS_S = 1.0


class Interrupted(KeyboardInterrupt):
    """A signal ends the run. No `except Exception` takes it for an error of the code that it came in.

    Attributes:
        signal: that came.
        at_once: it was the second one: nothing more is saved.
    """

    def __init__(self, number: int, *, at_once: bool = False) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)
        self.at_once = at_once

    @property
    def exit_code(self) -> int:
        """As shells give it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal


class Stopping:
    """Takes the signals that end a run, within a `with` block in the main thread; elsewhere it does nothing.

    The first signal raises `Interrupted` where the main thread is; within `held` it is kept until `check`, or until the
    next `opened` block. A second one raises in any case, and a third meets what the system does with it. Those that
    come within `SAME_PRESS_S` of the first are the same: launchers pass on what a terminal has sent to all. Signals
    that were ignored when the block began stay so, as those of `nohup` and of shells for commands in the background.
    """

    def __init__(self) -> None:
        self.pending: signal.Signals | None = None
        self._since_s = 0.0  # time.monotonic() of the first signal
        self._is_open = True
        self._raised = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @contextmanager
    def held(self) -> Iterator[None]:
        """The block is gone through whole, but for `opened` blocks within it."""
        before, self._is_open = self._is_open, False
        try:
            yield
        finally:
            self._is_open = before

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The block may be left at any point, until `close`: whoever opens it knows what to do then."""
        before, self._is_open = self._is_open, True
        try:
            self.check()
            yield
        finally:
            self._is_open = before

    def close(self) -> None:
        """From here on the block that is open is gone through whole."""
        self._is_open = False

    def check(self) -> None:
        """Raises `Interrupted` if a signal is kept."""
        if self.pending is not None and not self._raised:
            self._raised = True
            raise Interrupted(self.pending)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.pending is not None:
            if time.monotonic() - self._since_s < SAME_PRESS_S:
                return
            for other in self._before:
                signal.signal(other, signal.SIG_DFL)
            raise Interrupted(number, at_once=True)
        self.pending, self._since_s = signal.Signals(number), time.monotonic()
        if self._is_open:
            self.check()
        else:  # not by print: the main thread may be within one
            os.write(2, f"mmrl: {self.pending.name}: stopping when the step is saved (again: at once)\n".encode())

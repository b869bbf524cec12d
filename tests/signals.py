"""Signals in tests: what a process inherits from its shell is set aside."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from mmrl_core.support import SIGNALS


@pytest.fixture
def signals_reach_the_run() -> Iterator[None]:
    """Started by `nohup`, or in the background of a shell, a process has some of them ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)

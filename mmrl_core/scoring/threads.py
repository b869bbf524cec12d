"""Daemon threads for reward functions, which may hang: no thread is joined, not even at exit."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

CANCEL_GRACE_S = 1.0  # an async reward has this long to end after it was cancelled


def in_thread(target: Callable[[], Any]) -> tuple[Future[Any], threading.Thread]:
    """Run in a new daemon thread, which unlike those of an executor is not joined at exit."""
    future: Future[Any] = Future()
    torch = sys.modules.get("torch")
    device: int | None = None
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        device = torch.cuda.current_device()  # a new thread would start on device 0

    def run() -> None:
        try:
            if device is not None:
                sys.modules["torch"].cuda.set_device(device)
            future.set_result(target())
        except BaseException as error:  # SystemExit too: no reward ends the run
            future.set_exception(error)

    thread = threading.Thread(target=run, name="mmrl-reward", daemon=True)
    thread.start()
    return future, thread


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        _, self.thread = in_thread(self.loop.run_forever)

    def responds(self) -> bool:
        """Whether the loop still turns; False while a reward blocks it."""
        turned = threading.Event()
        self.loop.call_soon_threadsafe(turned.set)
        return turned.wait(CANCEL_GRACE_S)

    def end(self) -> None:
        """End the loop when it is no longer blocked, after what was cancelled has ended."""
        self.loop.call_soon_threadsafe(self.loop.call_later, CANCEL_GRACE_S, self.loop.stop)

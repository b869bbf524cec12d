"""Judging answers in a process of its own, which is ended when an answer takes too long, and started anew.

The process is started with the first answer that needs it, and kept. A verdict is kept, too: the completions of a group
often give the same answer, and a hostile one costs its time once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import threading
from typing import Any

from mmrl_core.errors import RewardError
from mmrl_core.scoring import DiedError, IsolatedFunction

logger = logging.getLogger(__name__)

MAX_KEPT = 16_384  # verdicts; an answer has at most `parsing.MAX_ANSWER_CHARS`
_MATHEMATICS = "mmrl_text_reasoning.judging:same_mathematics"
_GYM = "mmrl_text_reasoning.gym_judging:score"
_lock = threading.Lock()
_processes: dict[tuple[int, str], IsolatedFunction] = {}  # by process, which may have been forked, and function


@functools.lru_cache(MAX_KEPT)
def same_mathematics(gold: str, answer: str, limit_s: float) -> bool:
    """`judging.same_mathematics`; False where the answer takes longer than the limit, or ends the process.

    Raises:
        RewardError: the process does not start, as where math-verify is missing.
    """
    return bool(_judged(_MATHEMATICS, (gold, answer), limit_s))


@functools.lru_cache(MAX_KEPT)
def gym_score(entry: str, answer: str, limit_s: float) -> float:
    """`gym_judging.score`; 0.0 where the answer takes longer than the limit, or ends the process.

    Raises:
        RewardError: the process does not start, as where reasoning-gym is missing.
    """
    return float(_judged(_GYM, (entry, answer), limit_s) or 0.0)


def prepare_gym() -> None:
    """Start the process of `gym_score` in the background: its imports take seconds, and the run has other things to do.

    What keeps it from starting is reported by the first score.
    """

    def start() -> None:
        with _lock, contextlib.suppress(RewardError):
            _function(_GYM).start()

    if not _is_isolated():
        threading.Thread(target=start, daemon=True).start()


def _judged(target: str, arguments: tuple[Any, ...], limit_s: float) -> Any:
    """What the function returns; None where it is ended. What it raises is not an answer's fault, and is raised."""
    try:
        with _lock:
            return _function(target).call(arguments, {}, limit_s)
    except (TimeoutError, DiedError) as error:
        logger.debug("an answer was not judged, and scores 0: %s", error or type(error).__name__)
        return None


def _function(target: str) -> Any:
    if _is_isolated():
        return _Here(target)
    key = os.getpid(), target
    if key not in _processes:
        _processes[key] = IsolatedFunction(target.rpartition(":")[2], target, forked=True)
    return _processes[key]


def _is_isolated() -> bool:
    """Whether this is a reward's own process already (`isolate: true`), which may not start others."""
    return multiprocessing.current_process().name == "mmrl-reward"


class _Here:
    """Calls the function in this process, which others watch over."""

    def __init__(self, target: str) -> None:
        module, _, name = target.partition(":")
        self._function = getattr(__import__(module, fromlist=[name]), name)

    def call(self, arguments: tuple[Any, ...], options: dict[str, Any], limit_s: float) -> Any:
        del options, limit_s
        return self._function(*arguments)

"""What a reward function returned, read as a judgement of each completion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from mmrl_core.types import Rollout

SHAPES = ("completion", "step", "token", "group")
MAX_REWARD = 1e18  # its square, which the spread of a group needs, must fit float32


@dataclass(frozen=True)
class Judgement:
    """What a reward said of one completion.

    Attributes:
        value: the score, for step and token rewards their sum. None = unscored.
        parts: the numbers of a step or token reward.
        failure: why the reward failed on the completion. None if it scored it, or chose not to.
    """

    value: float | None
    parts: Sequence[float] | None = None
    failure: str | None = None


def read_judgements(
    returned: Any, shape: str, num_completions: int, rollouts: Sequence[Rollout] | None
) -> list[Judgement]:
    """A judgement for each completion of a group.

    Args:
        returned: by a reward function, anything at all.
        shape: one of `SHAPES`.
        rollouts: of the completions; None outside of a run, where a step or token reward may have any length.
    """
    values = _as_list(returned)
    if values is None or len(values) != num_completions:
        what = type(returned).__name__ if values is None else f"{len(values)} results"
        return [Judgement(None, failure=f"returned {what} for {num_completions} completions")] * num_completions
    if shape in ("completion", "group"):
        return [_read_number(value) for value in values]
    sizes = [None] * num_completions if rollouts is None else [num_parts(shape, rollout) for rollout in rollouts]
    return [_read_parts(value, size, shape) for value, size in zip(values, sizes, strict=True)]


def num_parts(shape: str, rollout: Rollout) -> int:
    """How many numbers a step or token reward gives a rollout."""
    return len(rollout.rows) if shape == "step" else rollout.num_actions


def _as_list(value: Any) -> list[Any] | None:
    """The elements of a list, tuple, array or tensor; None for anything else."""
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) >= 1:
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    return None


def _read_number(value: Any) -> Judgement:
    if value is None:
        return Judgement(None)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # numpy or torch scalar
        value = value.item()
    if not isinstance(value, Real):
        return Judgement(None, failure=f"returned {type(value).__name__} {value!r:.80}, which is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= MAX_REWARD:
        return Judgement(None, failure=f"returned {number}, which is not a finite number up to {MAX_REWARD:g}")
    return Judgement(number)


def _read_parts(value: Any, size: int | None, shape: str) -> Judgement:
    """The numbers of a step or token reward for one rollout; `size` None allows any length."""
    if value is None:
        return Judgement(None)
    numbers = _as_list(value)
    if numbers is None or (size is not None and len(numbers) != size):
        what = type(value).__name__ if numbers is None else f"{len(numbers)} numbers"
        expected = "a list of numbers" if size is None else f"{size} numbers, one for each {shape}"
        return Judgement(None, failure=f"returned {what} for a rollout, not {expected}")
    parts = []
    for number in numbers:
        judgement = _read_number(number)
        if judgement.value is None:
            return Judgement(None, failure=judgement.failure or f"returned None for a {shape}")
        parts.append(judgement.value)
    return Judgement(math.fsum(parts), parts)

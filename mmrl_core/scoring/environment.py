"""The reward that an environment pays, `Reply.reward`, as a reward of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmrl_core.types import Rollout, RolloutGroup


def environment(
    completions: Sequence[Any], samples: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout]
) -> list[list[float]]:
    """What the environment paid for each turn of each rollout, a reward of shape `step`.

    A turn for which it paid nothing has 0, so a rollout that was never paid has a sum of 0. It is not unscored: an
    environment cannot pay the turn that ends a conversation, so paying nothing is how it says 0 to a policy that ends
    at once.

    Args:
        completions: B completions, not read.
        samples: B data rows, not read.
        rollouts: B rollouts.

    Returns:
        B lists, a number for each row of the rollout, in the environment's own units.
    """
    return [[row.step_reward or 0.0 for row in rollout.rows] for rollout in rollouts]


def is_paid(group: RolloutGroup) -> bool:
    """Whether an environment paid for any turn of the group, be it 0."""
    return any(row.step_reward is not None for rollout in group.rollouts for row in rollout.rows)

"""Rollout strategies: prompts -> groups of rollouts.

A strategy is a registered function `(policy, prompts, group_size, sampling, **options) -> groups`. If it has a
parameter `on_group`, it gets a function to call with each group as soon as it is finished, the very object that it
returns later: rewards then run while other groups are still being sampled. A strategy calls
`policy.rollout` as often as it needs: once for a single turn; for several turns, once a turn, with the conversation so
far as a new prompt and group size 1, adding each turn's row to its trajectory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mmrl_core.types import Prompt, RolloutGroup, Sampling

if TYPE_CHECKING:
    from mmrl_core.policy import Policy


def single_turn(
    policy: Policy,
    prompts: Sequence[Prompt],
    group_size: int,
    sampling: Sampling,
    on_group: Callable[[RolloutGroup], None] | None = None,
) -> list[RolloutGroup]:
    """One decision for each rollout."""
    return policy.rollout(prompts, group_size, sampling, on_group=on_group)

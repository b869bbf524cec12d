"""ReMax (arXiv:2310.10505): the baseline is what the greedy answer earns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmrl_core.advantage_stages import for_each_trajectory
from mmrl_core.policy import Policy
from mmrl_core.types import LOSS_MASK, Prompt, RewardView, RolloutGroup, Sampling

GREEDY = "greedy"


def with_greedy(policy: Policy, prompts: Sequence[Prompt], group_size: int, sampling: Sampling) -> list[RolloutGroup]:
    """A rollout strategy: group_size - 1 sampled answers and, as the last of the group, the greedy one.

    The greedy answer is scored, not trained on, and has the outcome `greedy: 1`. ReMax as published has groups of 2.
    """
    sampled = policy.rollout(prompts, group_size - 1, sampling)
    greedy = policy.rollout(prompts, 1, replace(sampling, temperature=0.0))
    groups = []
    for group, baseline in zip(sampled, greedy, strict=True):
        (rollout,) = baseline.rollouts
        rows = [
            replace(
                row,
                trajectory_id=f"{row.prompt_id}/{GREEDY}",
                observation=group.rollouts[0].rows[0].observation,
                masks={**row.masks, LOSS_MASK: torch.zeros(row.num_actions, dtype=torch.bool)},
            )
            for row in rollout.rows
        ]
        last = replace(rollout, rows=rows, outcome={**rollout.outcome, GREEDY: 1})
        others = [replace(item, outcome={**item.outcome, GREEDY: 0}) for item in group.rollouts]
        groups.append(RolloutGroup(group.prompt, [*others, last]))
    return groups


def greedy_baseline(advantages: Tensor, view: RewardView) -> Tensor:
    """[B] -> [B]: reward - reward of the group's greedy answer, which is not trained itself.

    With the strategy `with_greedy`. A group whose greedy answer is unscored has advantage 0.

    Source: ReMax, arXiv:2310.10505.
    """
    is_greedy = torch.tensor([row.trajectory_id.endswith(f"/{GREEDY}") for row in view.rows])

    def compared(rewards: Tensor, group_ids: Tensor) -> Tensor:
        found = torch.zeros_like(rewards)
        for group in group_ids.unique():
            members = group_ids == group
            baseline = rewards[members & greedy_of]
            if len(baseline) == 1 and not bool(baseline.isnan()):
                found[members] = (rewards[members] - baseline).nan_to_num(0.0)
        return found

    _, trajectory = view.trajectory_ids.unique(return_inverse=True)
    greedy_of = torch.zeros(int(trajectory.max()) + 1, dtype=torch.bool).index_put((trajectory,), is_greedy)
    return for_each_trajectory(compared, advantages, view)

"""Advantage stages of VITAL: groups of hard prompts weigh more (DGRPO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from mmrl_core.advantage_stages import group_means
from mmrl_core.config.numbers import Share
from mmrl_core.errors import ConfigError
from mmrl_core.types import RewardView

FULL_REWARD = 2.0  # of the published total without tools: format 1 + task 1


def difficulty(
    advantages: Tensor,
    view: RewardView,
    *,
    rule: Literal["task", "published"] = "task",
    minimum: Share = 0.5,
    rewards: Sequence[str] | None = None,
    ranges: Mapping[str, Sequence[float]] | None = None,
) -> Tensor:
    """Multiply the advantages of a group by minimum + (1 - minimum) * difficulty; place it after any base stage.

    The difficulty of a group is 1 - its mean task reward: a prompt that always succeeds has weight `minimum`, one that
    always fails has weight 1. Each trajectory counts once in the mean, however many rows it has; unscored ones are left
    out. A group without any scored trajectory keeps its advantages.

    Args:
        advantages: [B] or [B, T], what the previous stage gave.
        view: the rewards of the step.
        rule: "task" as above. "published" takes the difficulty from the mean total mu: clip(2 - mu, 0, 1); `rewards`
            and `ranges` have no part in it.
        minimum: weight of the easiest group, 0..1.
        rewards: labels of the rewards that measure success. Default: all but those called "format" or "<...>format".
            A trajectory's task reward is their mean, weighted by their weights; one that could not score the trajectory
            is left out of it.
        ranges: label -> [low, high], where a reward is mapped to 0..1 and clipped; default [0, 1].

    Returns:
        The shape of `advantages`, without gradient.

    Raises:
        ConfigError: a label that is no reward of the run, a range without width, weights that cannot be averaged,
            or `minimum` out of 0..1.

    Source: DGRPO of VITAL, arXiv:2508.04416, as released ("published", minimum 0.5). quirk: with tools the published
    total reaches 3 and mu often exceeds 2, so that the weight sticks at its minimum, and a bonus for format or tool
    calls makes a prompt look easy. The default rule reads the task reward alone; where every completion has format 1
    and no tool is called, both rules agree.

    >>> reward, group = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64)
    >>> mask = torch.ones(4, 1, dtype=torch.bool)
    >>> view = RewardView(reward, {"iou": reward}, {"iou": 1.0}, reward[:, None], group, torch.arange(4), mask)
    >>> difficulty(torch.ones(4), view)  # difficulty 1 - 1/4
    tensor([0.8750, 0.8750, 0.8750, 0.8750])
    """
    if not 0 <= minimum <= 1:
        raise ConfigError(f"vital/difficulty: minimum is a weight in 0..1, not {minimum}")
    if rule == "task":
        hardness = 1 - group_means(_task_rewards(view, rewards, ranges or {}), view)
    elif rule == "published":
        hardness = (FULL_REWARD - group_means(view.rewards, view)).clamp(0, 1)
    else:
        raise ConfigError(f"vital/difficulty: rule is 'task' or 'published', not {rule!r}")
    weights = torch.where(hardness.isnan(), 1.0, minimum + (1 - minimum) * hardness)  # [B]
    return advantages.detach() * (weights if advantages.dim() == 1 else weights[:, None])


def _task_rewards(view: RewardView, rewards: Sequence[str] | None, ranges: Mapping[str, Sequence[float]]) -> Tensor:
    """[B] in 0..1: weighted mean of the task rewards that scored the trajectory, NaN where none did."""
    known = ", ".join(view.components)
    labels = [key for key in view.components if not key.endswith("format")] if rewards is None else list(rewards)
    for label in [*labels, *ranges]:
        if label not in view.components:
            raise ConfigError(f"vital/difficulty: {label!r} is no reward of this run; its rewards: {known}")
    weights = [view.weights[label] for label in labels]
    if min(weights, default=0.0) < 0 or sum(weights) == 0:
        raise ConfigError(
            f"vital/difficulty: there is no task reward of positive weight alone. Name those with 'rewards'; "
            f"rewards here: {known}"
        )
    total = torch.zeros_like(view.rewards)
    total_weight = torch.zeros_like(view.rewards)
    for label, weight in zip(labels, weights, strict=True):
        low, high = ranges.get(label, (0.0, 1.0))
        if not low < high:
            raise ConfigError(
                f"vital/difficulty: the range of {label!r} is [low, high] with low < high: [{low}, {high}]"
            )
        values = view.components[label]
        total += weight * ((values - low) / (high - low)).clamp(0, 1).nan_to_num(nan=0.0)
        total_weight += weight * ~values.isnan()
    return total / total_weight  # 0 / 0 is NaN: unscored

"""Advantage stages: what a config lists under `algorithm.advantage`, and the helpers that stages of plugins use too.

A stage is ``stage(advantages, view, **options) -> advantages``, and a config lists stages in order. The first receives
``view.rewards`` [B], each later one what the previous returned, [B] or [B, T]. The stage ``x`` is ``x_stage`` below:

    [group_relative]                                   GRPO
    [{name: group_relative, divide_by_std: none}]      Dr. GRPO; the same as [group_mean]
    [leave_one_out]                                    RLOO
    [discounted_returns, whiten]                       REINFORCE++
    [group_mean, whiten]                               REINFORCE++-baseline
    [normalise_each_reward, normalise_over_batch]      GDPO: several rewards, each on its own scale

Rules of a stage: an unscored trajectory (reward NaN) comes in as NaN, is left out of every mean and std, and gets
advantage 0; a trajectory counts once, however many rows it has; groups are not split over processes. A stage that
has a parameter ``reduce_sum`` gets a function that adds up a tensor over all processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from mmrl_core.advantages import (
    ReduceSum,
    batch_normalised_advantages,
    discounted_returns,
    expand_to_tokens,
    group_relative_advantages,
    index_of,
    leave_one_out_advantages,
    this_process_alone,
    whiten,
)
from mmrl_core.config.numbers import FactorOrZero, Share
from mmrl_core.errors import ConfigError
from mmrl_core.types import RewardView


def group_relative_stage(
    advantages: Tensor,
    view: RewardView,
    *,
    divide_by_std: Literal["group", "batch", "none"] = "group",
    eps: FactorOrZero = 1e-4,
    reduce_sum: ReduceSum = this_process_alone,
) -> Tensor:
    """[B] -> [B]: `group_relative_advantages`, each trajectory counting once."""
    options = {"divide_by_std": divide_by_std, "eps": eps, "reduce_sum": reduce_sum}
    return for_each_trajectory(group_relative_advantages, advantages, view, **options)


def group_mean_stage(advantages: Tensor, view: RewardView) -> Tensor:
    """[B] -> [B]: subtract the mean of the group and keep the units; `group_relative` with divide_by_std none."""
    return for_each_trajectory(group_relative_advantages, advantages, view, divide_by_std="none")


def leave_one_out_stage(advantages: Tensor, view: RewardView) -> Tensor:
    """[B] -> [B]: `leave_one_out_advantages`, each trajectory counting once."""
    return for_each_trajectory(leave_one_out_advantages, advantages, view)


def normalise_each_reward_stage(advantages: Tensor, view: RewardView, *, eps: FactorOrZero = 1e-4) -> Tensor:
    """[B] -> [B]: normalise every reward in its group, then add them up with their weights.

    Reads ``view.components`` and ``view.weights``, not the previous stage. A reward that could not score a trajectory
    adds 0 to it. Usually followed by `normalise_over_batch` (each trajectory counts once, as in TRL) or `whiten`
    (each token counts once).

    Source: TRL's ``multi_objective_aggregation="normalize_then_sum"``; GDPO, arXiv:2601.05242.

    Raises:
        ConfigError: a component has no weight, as hooks may leave it; the message names it.
    """
    if bare := sorted(view.components.keys() - view.weights.keys()):
        raise ConfigError(
            f"normalise_each_reward adds rewards up by their weights, and {bare[0]!r} has none: the plugin that added "
            "it has to give one, as Scores.with_component does"
        )
    total = torch.zeros_like(advantages)
    for name, rewards in view.components.items():
        group_relative = for_each_trajectory(group_relative_advantages, rewards, view, eps=eps)
        total = total + view.weights[name] * group_relative
    return total


def normalise_over_batch_stage(
    advantages: Tensor, view: RewardView, *, eps: FactorOrZero = 1e-4, reduce_sum: ReduceSum = this_process_alone
) -> Tensor:
    """[B] -> [B]: `batch_normalised_advantages`, each trajectory counting once."""

    def normalised(values: Tensor, group_ids: Tensor) -> Tensor:
        return batch_normalised_advantages(values, eps=eps, reduce_sum=reduce_sum)

    return for_each_trajectory(normalised, advantages, view)


def discounted_returns_stage(advantages: Tensor, view: RewardView, *, gamma: Share = 1.0) -> Tensor:
    """[B] -> [B, T]: `discounted_returns` of ``view.token_rewards``; what an earlier stage made is not read."""
    return discounted_returns(view.token_rewards, view.mask, gamma=gamma, trajectory_ids=view.trajectory_ids)


def whiten_stage(
    advantages: Tensor, view: RewardView, *, eps: FactorOrZero = 1e-8, reduce_sum: ReduceSum = this_process_alone
) -> Tensor:
    """[B] or [B, T] -> [B, T]: `whiten` over the trained tokens of scored trajectories."""
    tokens = view.mask & ~view.rewards.isnan()[:, None]
    return whiten(expand_to_tokens(advantages, tokens), tokens, eps=eps, reduce_sum=reduce_sum)


# Helpers of stages


def for_each_trajectory(function: Callable[..., Tensor], values: Tensor, view: RewardView, **options: Any) -> Tensor:
    """Apply a function to one value for each trajectory, and give its result to all rows of the trajectory.

    Args:
        function: (values [N], group_ids [N], **options) -> [N]; unscored trajectories come in as NaN.
        values: [B], equal on the rows of a trajectory.
        view: the rewards of the step.

    Returns:
        [B].

    Raises:
        ConfigError: the values are [B, T], or differ between the rows of a trajectory; says what to change.

    >>> one, two = torch.tensor([0, 0, 1]), torch.tensor([1.0, 1.0, 3.0])  # a trajectory of two rows, one of one
    >>> mask = torch.ones(3, 1, dtype=torch.bool)
    >>> view = RewardView(two, {}, {}, two[:, None], torch.zeros(3, dtype=torch.int64), one, mask)
    >>> for_each_trajectory(lambda values, group_ids: values - values.mean(), two, view)
    tensor([-1., -1.,  1.])
    """
    if values.dim() != 1:
        raise ConfigError(
            f"this stage compares trajectories and takes advantages [B], but got shape {tuple(values.shape)}: "
            "put it before the stages that give one advantage per token"
        )
    trajectory, num_trajectories = index_of(view.trajectory_ids)
    rows = torch.arange(len(values), device=values.device)
    first_row = rows.new_full((num_trajectories,), len(values)).scatter_reduce(0, trajectory, rows, "amin")
    values = values.masked_fill(view.rewards.isnan(), torch.nan)
    if not torch.allclose(values[first_row][trajectory], values, rtol=0, atol=0, equal_nan=True):
        raise ConfigError(
            "this stage compares trajectories, but an earlier stage gave the rows of one trajectory different "
            "advantages: put it before that stage"
        )
    return function(values[first_row], view.group_ids[first_row], **options)[trajectory]


def group_means(values: Tensor, view: RewardView) -> Tensor:
    """Mean over the scored trajectories of the row's group, each counting once; [B] -> [B].

    Args:
        values: [B], NaN where a value is missing.
        view: the rewards of the step; a trajectory whose total is NaN is left out.

    Returns:
        [B], equal within a group; NaN where no trajectory of the group is scored.

    >>> mask = torch.ones(3, 1, dtype=torch.bool)
    >>> values, trajectories = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0, 0, 1])  # two rows, and one
    >>> view = RewardView(values, {}, {}, values[:, None], torch.zeros(3, dtype=torch.int64), trajectories, mask)
    >>> group_means(values, view)
    tensor([0.5000, 0.5000, 0.5000])
    """
    _, trajectory, num_rows = torch.unique(view.trajectory_ids, return_inverse=True, return_counts=True)
    group, num_groups = index_of(view.group_ids)
    scored = ~(values.isnan() | view.rewards.isnan())
    shares = scored / num_rows[trajectory]  # the rows of a trajectory add up to one
    sums = values.new_zeros(2, num_groups)
    sums.index_add_(1, group, torch.stack([torch.where(scored, values, 0.0) * shares, shares]))
    return (sums[0] / sums[1])[group]

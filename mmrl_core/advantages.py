"""Rewards into advantages: pure functions on plain tensors. `advantage_stages.py` makes stages of them.

Rules that hold throughout: an unscored trajectory (reward NaN) is left out of every mean and std and gets advantage 0;
a group whose rewards are all equal, or that has one scored member, gets exactly 0; group statistics count each
trajectory once, however many rows it has. A group must not be split over processes. Statistics over the batch span
all processes if ``reduce_sum`` is passed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mmrl_core.errors import ConfigError

ReduceSum = Callable[[Tensor], Tensor]
"""Adds up a tensor over all processes. Every process calls it equally often, with the same shapes."""

FLAT_TOLERANCE = 1e-6
"""Rewards that differ by less than this, relative to the largest, count as equal. Without it the rounding of a weighted
sum (a few 1e-8 in float32) would be divided by a std of the same size, and noise would become a training signal."""


def this_process_alone(tensor: Tensor) -> Tensor:
    """The `ReduceSum` of a single process."""
    return tensor


def group_relative_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    divide_by_std: Literal["group", "batch", "none"] = "group",
    eps: float = 1e-4,
    reduce_sum: ReduceSum = this_process_alone,
) -> Tensor:
    """Compare each reward with its group: (reward - mean) / (std + eps).

    Args:
        rewards: [N] float, one for each trajectory; NaN marks an unscored one.
        group_ids: [N] int; completions of one prompt share an id, in any order.
        divide_by_std: "group" gives unitless advantages (GRPO). "batch" divides by the std of all rewards of the
            batch, so that prompts with little spread are not weighted up. "none" keeps reward units (Dr. GRPO).
            TRL: ``scale_rewards``.
        eps: added to std, in reward units.
        reduce_sum: makes the std of "batch" span all processes.

    Returns:
        [N] without gradient, in the dtype of the rewards. 0 where the reward is NaN, and throughout a group whose
        rewards are all equal or that has one scored member.

    Source: GRPO, arXiv:2402.03300, section 4.1; Dr. GRPO, arXiv:2503.20783; "batch" arXiv:2508.08221.
    Our choice: std divides by n - 1, and eps is TRL's 1e-4; the papers fix neither.

    >>> group_relative_advantages(torch.tensor([1., 0., 0., 0.]), torch.tensor([7, 7, 7, 7]))
    tensor([ 1.4997, -0.4999, -0.4999, -0.4999])
    """
    centred, group_std, _ = _centre_in_groups(rewards, group_ids)
    if divide_by_std == "group":
        return _divided(centred, group_std + eps)
    if divide_by_std == "batch":
        _, variance = _mean_and_variance(rewards, ~rewards.isnan(), reduce_sum)
        return _divided(centred, variance.sqrt() + eps)
    if divide_by_std == "none":
        return centred
    raise ConfigError(f"divide_by_std is {divide_by_std!r}; it can be 'group', 'batch' or 'none'")


def leave_one_out_advantages(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Compare each reward with the mean of the others in its group.

    Equal to G / (G - 1) times the group-relative advantage without division by std, G counting scored members.

    Args:
        rewards: [N] float, one for each trajectory; NaN marks an unscored one.
        group_ids: [N] int; completions of one prompt share an id.

    Returns:
        [N] without gradient, in reward units; 0 where group_relative_advantages is 0.

    Source: RLOO, arXiv:2402.14740. A group of one gives 0, as in TRL's RLOOTrainer.

    >>> leave_one_out_advantages(torch.tensor([1., 0., 0., 1.]), torch.tensor([7, 7, 7, 7]))
    tensor([ 0.6667, -0.6667, -0.6667,  0.6667])
    """
    centred, _, num_scored = _centre_in_groups(rewards, group_ids)
    return centred * num_scored / (num_scored - 1).clamp(min=1)


def varying_groups(metric: Tensor, group_ids: Tensor) -> Tensor:
    """Which rows belong to a group in which the metric is not constant (the groups that dynamic sampling keeps).

    Args:
        metric: [N] float, usually accuracy or the reward; NaN marks an unscored completion.
        group_ids: [N] int; completions of one prompt share an id.

    Returns:
        bool [N], the same for all members of a group, unscored ones included; False in a group with fewer than two
        scored members.

    Source: DAPO, arXiv:2503.14476, section 3.2.

    >>> varying_groups(torch.tensor([1., 1., 0., 1., 0., 0.]), torch.tensor([1, 1, 2, 2, 3, 3]))
    tensor([False, False,  True,  True, False, False])
    """
    metric = _detached_float(metric)
    index, num_groups = index_of(group_ids)
    unscored = metric.isnan()
    infinity = metric.new_full((num_groups,), torch.inf)
    lowest = infinity.scatter_reduce(0, index, metric.masked_fill(unscored, torch.inf), "amin")
    highest = (-infinity).scatter_reduce(0, index, metric.masked_fill(unscored, -torch.inf), "amax")
    largest = torch.maximum(lowest.abs(), highest.abs())
    return (highest - lowest > FLAT_TOLERANCE * largest)[index]


def overlong_penalty(lengths: Tensor, max_length: int, cache: int) -> Tensor:
    """Soft penalty for completions near the length limit; added to the task reward.

    0 up to max_length - cache tokens, then linear, -1 from max_length on.

    Args:
        lengths: [N] int, in tokens.
        max_length: length at which the full penalty is reached, in tokens.
        cache: width of the linear part, in tokens.

    Returns:
        float32 [N] in [-1, 0].

    Source: soft overlong punishment of DAPO, arXiv:2503.14476, section 3.4 (there max_length 20480, cache 4096).

    >>> overlong_penalty(torch.tensor([100, 18432, 20481]), 20480, 4096)
    tensor([ 0.0000, -0.5000, -1.0000])
    """
    return ((max_length - cache - lengths.float()) / cache).clamp(-1, 0)


def discounted_returns(
    token_rewards: Tensor, mask: Tensor, *, gamma: float = 1.0, trajectory_ids: Tensor | None = None
) -> Tensor:
    """Reward still to come at each token: R_t = r_t + gamma * R of the trajectory's next trained token.

    Args:
        token_rewards: [B, T] float, reward units; NaN counts as 0.
        mask: bool [B, T], trained tokens.
        gamma: discount for each trained token.
        trajectory_ids: int [B]; rows of one trajectory share an id, and rewards of later rows reach earlier ones.
            The rows of a trajectory come in the order of its turns. None: each row is a trajectory.

    Returns:
        [B, T] without gradient; 0 where not masked.

    Source: REINFORCE++, arXiv:2501.03262. Our choice: tokens that are not trained (tool text between two turns) pass
    the return on without a discount. On single-turn completions this is the same as resetting there, as verl does,
    which on several turns would cut the early ones off from the outcome.

    >>> discounted_returns(torch.tensor([[0., 0., 1.]]), torch.tensor([[True, True, True]]), gamma=0.5)
    tensor([[0.2500, 0.5000, 1.0000]])
    """
    if trajectory_ids is None:
        trajectory_ids = torch.arange(mask.shape[0], device=mask.device)
    order = trajectory_ids.argsort(stable=True)  # the rows of a trajectory follow each other, in their order
    ids = trajectory_ids[order]
    ends = torch.cat([ids[1:] != ids[:-1], ids.new_ones(1, dtype=torch.bool)])  # [B], last row of its trajectory
    values = _detached_float(token_rewards).nan_to_num(nan=0.0)[order]
    discounts = torch.ones_like(values).masked_fill(mask[order], gamma)
    discounts[ends, -1] = 0.0  # nothing flows from one trajectory into another
    returns = _suffix_sums(values.flatten(), discounts.flatten()).reshape(values.shape)
    in_given_order = torch.empty_like(returns)
    in_given_order[order] = returns
    return expand_to_tokens(in_given_order, mask)


def whiten(values: Tensor, mask: Tensor, *, eps: float = 1e-8, reduce_sum: ReduceSum = this_process_alone) -> Tensor:
    """Give the masked values mean 0 and variance 1: (value - mean) / sqrt(variance + eps).

    Args:
        values: float, any shape.
        mask: bool, the same shape; True for the values that count.
        eps: added to the variance, in squared units of the values.
        reduce_sum: makes mean and variance span all processes.

    Returns:
        The shape of values, without gradient. 0 where not masked, and throughout if the values are all equal or
        only one is masked.

    Source: REINFORCE++, arXiv:2501.03262; sample variance (n - 1) and eps as verl's ``masked_whiten``.

    >>> whiten(torch.tensor([0.5, 0.5, -0.5, 9.]), torch.tensor([True, True, True, False]))
    tensor([ 0.5774,  0.5774, -1.1547,  0.0000])
    """
    mean, variance = _mean_and_variance(values, mask, reduce_sum)
    return torch.where(mask & _varies(mean, variance), (values.detach() - mean) * (variance + eps).rsqrt(), 0.0)


def batch_normalised_advantages(
    advantages: Tensor, *, eps: float = 1e-4, reduce_sum: ReduceSum = this_process_alone
) -> Tensor:
    """Normalise over the batch, each trajectory counting once: (advantage - mean) / (std + eps).

    Args:
        advantages: [N] float, one for each trajectory; NaN marks an unscored one.
        eps: added to std, in units of the advantages.
        reduce_sum: makes mean and std span all processes.

    Returns:
        [N] without gradient; 0 where NaN, and throughout if the advantages are all equal.

    Source: TRL's ``normalize_advantages`` of RLOO and the second half of its ``normalize_then_sum``. `whiten` differs:
    there each token counts once, and eps is inside the root.
    """
    mask = ~advantages.isnan()
    mean, variance = _mean_and_variance(advantages, mask, reduce_sum)
    return torch.where(mask & _varies(mean, variance), (advantages.detach() - mean) / (variance.sqrt() + eps), 0.0)


def expand_to_tokens(advantages: Tensor, mask: Tensor) -> Tensor:
    """Give each trained token its advantage.

    Args:
        advantages: [B], copied to all tokens of the row, or [B, T].
        mask: bool [B, T], trained tokens.

    Returns:
        [B, T]; 0 where not masked.

    >>> expand_to_tokens(torch.tensor([0.5, -1.0]), torch.tensor([[True, True], [True, False]]))
    tensor([[ 0.5000,  0.5000],
            [-1.0000,  0.0000]])
    """
    if advantages.dim() == 1:
        advantages = advantages[:, None]  # [B] -> [B, 1]
    return torch.where(mask, advantages, 0.0)


# Shared arithmetic.


def _detached_float(values: Tensor) -> Tensor:
    return values.detach() if values.is_floating_point() else values.detach().float()


def index_of(ids: Tensor) -> tuple[Tensor, int]:
    """Ids of any value -> position among the distinct ids, and how many of these there are."""
    distinct, index = torch.unique(ids, return_inverse=True)
    return index, distinct.numel()


def _centre_in_groups(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """reward - group mean (0 if unscored or in a flat group), group std, scored members of the group; each [N]."""
    if rewards.shape != group_ids.shape:
        raise ValueError(f"rewards have shape {tuple(rewards.shape)} but group_ids {tuple(group_ids.shape)}")
    rewards = _detached_float(rewards)
    index, num_groups = index_of(group_ids)
    scored = ~rewards.isnan()

    def group_sum(values: Tensor) -> Tensor:
        return values.new_zeros(num_groups).index_add(0, index, values)[index]

    num_scored = group_sum(scored.to(rewards.dtype))
    mean = group_sum(torch.where(scored, rewards, 0.0)) / num_scored.clamp(min=1)
    centred = torch.where(scored & varying_groups(rewards, group_ids), rewards - mean, 0.0)
    std = (group_sum(centred.square()) / (num_scored - 1).clamp(min=1)).sqrt()
    return centred, std, num_scored


def _divided(centred: Tensor, std: Tensor) -> Tensor:
    return torch.where(centred == 0, 0.0, centred / std)  # 0 / 0 in a flat group if eps is 0


def _mean_and_variance(values: Tensor, mask: Tensor, reduce_sum: ReduceSum) -> tuple[Tensor, Tensor]:
    """Scalar mean and sample variance of the masked values; in two passes, since E[x^2] - E[x]^2 cancels."""
    values = _detached_float(values)
    total, count = reduce_sum(torch.stack([torch.where(mask, values, 0.0).sum(), mask.sum().to(values.dtype)]))
    mean = total / count.clamp(min=1)
    squares = reduce_sum(torch.where(mask, values - mean, 0.0).square().sum())
    return mean, squares / (count - 1).clamp(min=1)


def _varies(mean: Tensor, variance: Tensor) -> Tensor:
    return variance > (FLAT_TOLERANCE * mean).square()


def _suffix_sums(values: Tensor, discounts: Tensor) -> Tensor:
    """x_t = values_t + discounts_t * x_{t+1} for [N] tensors, by doubling: log2(N) vector steps instead of N."""
    reach = 1
    while discounts.any():
        # values_t now holds the sum over t .. t + reach - 1, and discounts_t what multiplies x_{t + reach}.
        values = values + discounts * torch.nn.functional.pad(values[reach:], (0, reach))
        discounts = discounts * torch.nn.functional.pad(discounts[reach:], (0, reach))
        reach *= 2
    return values

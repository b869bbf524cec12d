"""The arithmetic of rewards: the totals of a group, and the view that advantage stages read.

`mmrl_core.scoring` runs the reward functions; nothing here calls one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mmrl_core.types import RewardView, Rollout, RolloutGroup, Scores

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1e-6
"""A rest of a total below this share of it is the rounding of totals to float32, not a reward."""


def group_totals(weights: Sequence[float], values: Sequence[Sequence[float | None]], group_size: int) -> list[float]:
    """Weighted sums of rewards within one group of G rollouts.

    Args:
        weights: a weight for each reward.
        values: G numbers for each reward, None = unscored.
        group_size: G.

    Returns:
        G totals. NaN (unscored) where a reward is unscored, because totals of a group are compared and must be sums
        over the same rewards, and throughout if there is no reward.

    >>> group_totals([1.0, 0.5], [[1.0, 2.0], [10.0, None]], 2)
    [6.0, nan]
    """
    totals = []
    for of_rollout in zip(*values, strict=True) if values else [()] * group_size:
        scored = [weight * value for weight, value in zip(weights, of_rollout, strict=True) if value is not None]
        totals.append(sum(scored) if scored and len(scored) == len(weights) else math.nan)
    return totals


def reward_view(
    scores: Scores, groups: Sequence[RolloutGroup], masks: Tensor, stats: Mapping[str, Tensor] | None = None
) -> RewardView:
    """Turn rewards of all four shapes into what advantage stages read. Nothing else does.

    Args:
        scores: of N rollouts, in the order of the groups. Its totals may have been shaped since: what the step and
            token rewards do not account for belongs to the completion as a whole.
        groups: with B rows in all. Rows of the result are in the order groups -> rollouts -> rows.
        masks: bool [B, T], tokens that are trained.
        stats: `RewardView.stats`.

    Returns:
        A view on the device of `masks`. Over the rows of a scored trajectory with a trained token, `token_rewards` add
        up to its total: token rewards are on their tokens, a step reward is on the last trained token of its row, the
        rest of the total on the last trained token of the last row. A reward of a row without a trained token goes to
        the nearest row before it in its trajectory that has one, or else to the nearest after it. In an unscored
        trajectory all are 0.

    Raises:
        ValueError: the numbers of rollouts, rows or tokens do not agree.

    Example: one group of one rollout with two rows of 2 tokens, all trained, total 1.0, step rewards [0.25, 0.5]:
    `rewards` is [1, 1] and `token_rewards` is [[0, 0.25], [0, 0.75]].
    """
    import torch

    rollouts = [rollout for group in groups for rollout in group.rollouts]
    _check_sizes(scores, rollouts, masks)
    group_of = torch.tensor([g for g, group in enumerate(groups) for _ in group.rollouts], dtype=torch.int64)  # [N]
    of_row = torch.tensor([n for n, rollout in enumerate(rollouts) for _ in rollout.rows], dtype=torch.int64)  # [B]

    def by_row(values: Tensor) -> Tensor:
        return values.cpu()[of_row].to(masks.device)  # [N] -> [B]

    return RewardView(
        rewards=by_row(scores.totals.float()),
        components={key: by_row(values.float()) for key, values in scores.components.items()},
        weights=dict(scores.weights),
        token_rewards=_rewards_on_tokens(scores, rollouts, masks.cpu()).float().to(masks.device),
        group_ids=by_row(group_of),
        trajectory_ids=of_row.to(masks.device),
        mask=masks,
        rows=[row for rollout in rollouts for row in rollout.rows],
        prompts=[group.prompt for group in groups for rollout in group.rollouts for _ in rollout.rows],
        stats=stats or {},
    )


def _check_sizes(scores: Scores, rollouts: Sequence[Rollout], masks: Tensor) -> None:
    num_rows = sum(len(rollout.rows) for rollout in rollouts)
    if len(rollouts) != len(scores.totals) or num_rows != len(masks):
        raise ValueError(
            f"{len(rollouts)} rollouts with {num_rows} rows, but {len(scores.totals)} totals and {len(masks)} masks"
        )
    longest = max((row.num_actions for rollout in rollouts for row in rollout.rows), default=0)
    if longest > masks.shape[1]:
        raise ValueError(f"a row has {longest} actions, but the masks {masks.shape[1]} columns")


def _rewards_on_tokens(scores: Scores, rollouts: Sequence[Rollout], trained: Tensor) -> Tensor:
    """Every reward on its token, float64 [B, T]; `trained` is bool [B, T]."""
    import torch

    placed = torch.zeros(trained.shape, dtype=torch.float64)
    # [B], last trained token of each row, -1 where there is none
    last = [max((t for t, is_trained in enumerate(row) if is_trained), default=-1) for row in trained.tolist()]
    start = 0
    for n, (rollout, total) in enumerate(zip(rollouts, scores.totals.tolist(), strict=True)):
        rows = range(start, start + len(rollout.rows))
        start = rows.stop
        if math.isnan(total):
            continue
        accounted = 0.0
        for of_rollouts in scores.token_rewards.values():
            numbers = of_rollouts[n].double().cpu()
            accounted += numbers.sum().item()
            for b, part in zip(rows, numbers.split([row.num_actions for row in rollout.rows]), strict=True):
                placed[b, : len(part)] += part
        for steps in scores.step_rewards.values():
            accounted += math.fsum(steps[n])
            for b, number in zip(rows, steps[n], strict=True):
                _place(placed, number, b, rows, last)
        rest = total - accounted
        if rows and abs(rest) > ROUNDING * max(1.0, abs(total)):
            _place(placed, rest, rows[-1], rows, last)
    return placed


def _place(placed: Tensor, number: float, b: int, rows: range, last: Sequence[int]) -> None:
    """Add a number to the last trained token of row b, or of the nearest row before it that has one, or after it."""
    for candidate in [*range(b, rows.start - 1, -1), *range(b + 1, rows.stop)]:
        if last[candidate] >= 0:
            placed[candidate, last[candidate]] += number
            return

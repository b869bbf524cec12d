"""What a step measures of its rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmrl_core.types import Batch, Rollout, RolloutGroup, Scores

if TYPE_CHECKING:
    from torch import Tensor

Metrics = dict[str, float]


def rollout_metrics(groups: Sequence[RolloutGroup], scores: Scores, batch: Batch) -> Metrics:
    """Metrics of a step's rollouts: means over scored rollouts, spread, lengths."""
    import torch

    sizes = [len(group.rollouts) for group in groups]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = torch.tensor([float(rollout.num_actions) for rollout in rollouts])
    spreads = torch.tensor([float(part.nan_to_num(0.0).std()) for part in scores.totals.split(sizes) if len(part) > 1])
    trained = batch.advantages[batch.mask]
    num_tokens = max(float(lengths.sum()), 1.0)
    return {
        "reward/total": float(scores.totals.nanmean()),
        "reward/total_std": float(spreads.mean()) if len(spreads) else 0.0,
        **{f"reward/{name}": float(values.nanmean()) for name, values in scores.components.items()},
        **_totals_of_parts(groups, scores),
        **{f"failures/{name}": float(count) for name, count in scores.failures.items() if count},
        "unscored": float(scores.totals.isnan().float().mean()),
        **_unscored_by_reward(groups, scores),
        "groups/flat": float((spreads < 1e-6).float().mean()) if len(spreads) else 0.0,
        "advantage/abs_mean": float(trained.abs().mean()) if len(trained) else 0.0,
        "completion_tokens/mean": float(lengths.mean()),
        "completion_tokens/max": float(lengths.max()),
        "truncated": sum(rollout.truncated for rollout in rollouts) / len(rollouts),
        "truncated/tokens": sum(rollout.num_actions for rollout in rollouts if rollout.truncated) / num_tokens,
        **mean_outcomes(rollouts),
    }


def _totals_of_parts(groups: Sequence[RolloutGroup], scores: Scores) -> Metrics:
    """Mean totals of a mixture's parts, `reward/<part>/total`: the mean of all depends on how many groups each has."""
    import torch

    totals: dict[str, list[Tensor]] = {}
    for group, part in zip(groups, scores.split(groups), strict=True):
        if group.prompt.part:
            totals.setdefault(f"reward/{group.prompt.part}/total", []).append(part.totals)
    return {name: float(torch.cat(values).nanmean()) for name, values in totals.items()}


def _unscored_by_reward(groups: Sequence[RolloutGroup], scores: Scores) -> Metrics:
    """`unscored/<reward>`: the share that a reward did not score of its rollouts, in a mixture those of its part."""
    import torch

    parts = [group.prompt.part for group in groups for _ in group.rollouts]
    shares = {}
    for name, values in scores.components.items():
        own = torch.tensor([not part or name.startswith(f"{part}/") for part in parts])
        if bool(own.any()):
            shares[f"unscored/{name}"] = float(values[own].isnan().float().mean())
    return shares


def trajectory_advantages(batch: Batch) -> list[float]:
    """Mean advantage over trained tokens of each trajectory of the batch, its rows counting alike."""
    import torch

    by_row = batch.advantages.sum(1) / batch.mask.sum(1).clamp(min=1)
    num_rows = batch.trajectory_ids.bincount()
    return (torch.zeros(len(num_rows)).index_add(0, batch.trajectory_ids, by_row) / num_rows).tolist()


def mean_outcomes(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means of the numbers among what happened in the rollouts, `outcome/<name>`."""
    values: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, value in rollout.outcome.items():
            if isinstance(value, int | float):
                values.setdefault(f"outcome/{name}", []).append(float(value))
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}

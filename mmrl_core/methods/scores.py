"""Losses of whole trajectories: pairs, levels and other comparisons within groups, with their exact gradient.

A *score* s_n is the logprob of trajectory n, summed or averaged over its trained tokens. A loss L(s_1, ..., s_N) sees
the scores of all groups of an optimizer step at once; a pass without gradient gives them. Its gradient is

    sum_n dL/ds_n * grad s_n

so that a second pass over micro-batches, however groups are split among them, needs the numbers dL/ds_n alone. They
become advantages of the plain policy gradient: the weight of token t is -dL/ds_n, divided by the number of trained
tokens of n where scores are means. Everything after that is as for any loss: rows with weight 0 are left out, KL
penalty and entropy bonus are added.

A loss is registered for it with ``unit="score"``, and ``score="sum"`` or "mean":

    loss(inputs: ScoreInputs, **options) -> (scalar, metrics)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from mmrl_core.advantages import ReduceSum, this_process_alone
from mmrl_core.errors import HookResultError
from mmrl_core.plugins.hook_results import check_score_loss
from mmrl_core.types import Batch

Reduction = Literal["sum", "mean"]
ScoreLoss = Callable[["ScoreInputs"], tuple[Tensor, Mapping[str, Tensor | float]]]


@dataclass(frozen=True)
class ScoreInputs:
    """What a loss of unit "score" reads: the N trajectories of an optimizer step in this process, groups whole.

    Attributes:
        scores: float32 [N], of the policy that is trained, with gradient; 0 for a trajectory without a trained token.
        lengths: float32 [N], trained tokens.
        group_ids: int64 [N], equal for the completions of one prompt.
        rewards: float32 [N], totals; NaN = unscored.
        components: name of a reward -> [N], unweighted; NaN = unscored.
        advantages: float32 [N], mean over the trained tokens.
        old_scores: float32 [N], before the first update on these rollouts; equal to `scores` until then.
        frozen_scores: name of a frozen policy that the loss asked for (``frozen=("reference",)``) -> float32 [N].
        num_groups, num_trajectories, num_tokens: counts over all processes, to divide by: the losses of the processes
            are added up.
        reduce_sum: adds up a tensor over all processes; every process calls the loss once for an optimizer step.
    """

    scores: Tensor
    lengths: Tensor
    group_ids: Tensor
    rewards: Tensor
    components: Mapping[str, Tensor]
    advantages: Tensor
    old_scores: Tensor
    frozen_scores: Mapping[str, Tensor] = field(default_factory=dict)
    num_groups: float = 1.0
    num_trajectories: float = 1.0
    num_tokens: float = 1.0
    reduce_sum: ReduceSum = field(default_factory=lambda: this_process_alone)


def score_weights(
    batch: Batch,
    logprobs: Tensor,
    loss: ScoreLoss,
    reduction: Reduction,
    reduce_sum: ReduceSum,
    source: str,
) -> tuple[Batch, dict[str, float]]:
    """The batch with the gradient of a loss of scores in the place of its advantages, and the loss among its metrics.

    Args:
        batch: whole groups.
        logprobs: float32 [B, T], of the current policy, without gradient.
        loss: with its options.
        reduction: what a score is of its tokens' logprobs.
        reduce_sum: over all processes.
        source: whose loss it is, for messages.

    Returns:
        A batch whose `advantages` [B, T] are -dL/dlogprob, 0 where not trained; metrics that add up over processes.

    Raises:
        HookResultError: the loss returned no scalar with a gradient, or no finite gradient.
    """
    of_row = batch.trajectory_ids.unique(return_inverse=True)[1]
    inputs = _score_inputs(batch, logprobs, of_row, reduction, reduce_sum)
    with torch.enable_grad():
        result = loss(inputs)
        check_score_loss(result, source)
        value, metrics = result
        (gradient,) = torch.autograd.grad(value, inputs.scores, allow_unused=True)
    if gradient is None or not bool(torch.isfinite(gradient).all()):
        what = "does not depend on inputs.scores" if gradient is None else "has a gradient that is not finite"
        raise HookResultError(f"the loss of {source} {what}.")
    if reduction == "mean":
        gradient = gradient / inputs.lengths.clamp(min=1)
    weighted = replace(batch, advantages=-gradient[of_row][:, None] * batch.mask)
    numbers = {name: float(number) for name, number in metrics.items()}
    return weighted, {**numbers, "policy_loss": float(value.detach())}


def _score_inputs(
    batch: Batch, logprobs: Tensor, of_row: Tensor, reduction: Reduction, reduce_sum: ReduceSum
) -> ScoreInputs:
    """What the loss reads; `of_row` is int64 [B], the trajectory of each row, 0 to N - 1."""
    num = int(of_row.max()) + 1
    first = torch.zeros(num, dtype=torch.int64).scatter_reduce(
        0, of_row, torch.arange(len(batch)), "amin", include_self=False
    )
    lengths = _sum_rows(batch.mask.sum(1).to(logprobs.dtype), of_row, num)

    def scores_of(values: Tensor) -> Tensor:
        sums = _sum_rows((values.nan_to_num() * batch.mask).sum(1), of_row, num)
        return sums / lengths.clamp(min=1) if reduction == "mean" else sums

    counts = torch.tensor([len(batch.group_ids.unique()), num, float(lengths.sum())])
    num_groups, num_trajectories, num_tokens = reduce_sum(counts).tolist()
    return ScoreInputs(
        scores=scores_of(logprobs).detach().requires_grad_(),
        lengths=lengths,
        group_ids=batch.group_ids[first],
        rewards=batch.rewards[first],
        components={name: values[first] for name, values in batch.components.items()},
        advantages=_sum_rows(batch.advantages.sum(1), of_row, num) / lengths.clamp(min=1),
        old_scores=scores_of(logprobs if batch.old_logprobs is None else batch.old_logprobs),
        frozen_scores={name: scores_of(values) for name, values in batch.frozen_logprobs.items()},
        num_groups=num_groups,
        num_trajectories=num_trajectories,
        num_tokens=num_tokens,
        reduce_sum=reduce_sum,
    )


def _sum_rows(values: Tensor, of_row: Tensor, num_trajectories: int) -> Tensor:
    """[B] -> [N]: the sum over the rows of each trajectory."""
    return values.new_zeros(num_trajectories).index_add(0, of_row, values)

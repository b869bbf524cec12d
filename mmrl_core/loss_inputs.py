"""What a policy answers about rows, and what a policy loss reads; letters as in `types.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Statistic:
    """A registered `statistic` that a component needs: function(logits [n, V], tokens [n]) -> [n], without gradient.

    The logits are at the sampling temperature, and of some of the tokens at a time.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TokenStats:
    """A policy's answer about rows: logprobs float32 [B, T] of their actions, and what else it was asked for.

    Attributes:
        entropy: [B, T], with a gradient if it was asked for; else without, or None.
        extras: the policy's own quantities that a loss asked for, by name, each [B, T]; with gradient where they
            depend on the weights.
        penalties: scalars with gradient that are added to the loss, already weighted, as means over the tokens of these
            rows; by name.

    Values on padding are 0.
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    penalties: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchTotals:
    """Counts over the whole optimizer step: all micro-batches of all processes.

    Attributes:
        num_tokens, num_rows: trained tokens, and rows. They normalise the loss.
        num_computed: tokens of the rows that are computed, where rows without gradient are left out. Metrics are means
            over them; None: over all tokens.
    """

    num_tokens: float
    num_rows: float
    num_computed: float | None = None


@dataclass(frozen=True)
class LossInputs:
    """What a policy loss reads, for one micro-batch.

    Attributes:
        logprobs: [B, T], current policy, with gradient.
        old_logprobs: [B, T], the trainer's when sampling, without gradient, on-policy equal to logprobs; with
            `algorithm.old_logprobs: sampler` those that the rows were sampled with.
        advantages: [B, T], 0 where not trained.
        mask: bool [B, T], trained tokens.
        totals: counts that normalise the loss over the optimizer step.
        sampler_logprobs: [B, T], as the rollout engine reported them.
        ref_logprobs: [B, T], of the policy that the KL penalty is taken to.
        frozen_logprobs: name of a frozen policy that the loss asked for -> [B, T].
        entropy: [B, T], if the policy gave it; with a gradient if the loss asked for it.
        extras: what else the loss asked the policy for, by name, each [B, T]; see `TokenStats.extras`.
        rewards: [B], total of the trajectory.
        penalties: see `TokenStats.penalties`. The step adds them; a loss leaves them alone.
        components: name of a reward -> [B], unweighted, NaN = unscored.
        columns: name -> [B, T], see `Batch.columns`.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    totals: BatchTotals
    sampler_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    frozen_logprobs: Mapping[str, Tensor] = field(default_factory=dict)
    entropy: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    rewards: Tensor | None = None
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    components: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Mapping[str, Tensor] = field(default_factory=dict)

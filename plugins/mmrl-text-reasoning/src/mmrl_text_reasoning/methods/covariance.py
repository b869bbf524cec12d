"""Clip-Cov and KL-Cov (arXiv:2505.22617): the few tokens that drive entropy down are taken out, or held back."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor

from mmrl_core import hookimpl
from mmrl_core.config.numbers import Factor, FactorOrZero, Share
from mmrl_core.errors import ConfigError
from mmrl_core.loss_inputs import LossInputs
from mmrl_core.losses import Metrics, ratios_of, token_mean
from mmrl_core.run import Run, derive_seed
from mmrl_core.types import LOSS_MASK, Batch

KL_COV = "kl_cov"


class ClipCov:
    """Take tokens out of the update whose covariance of logprob and advantage lies in a range; a few, drawn at random.

    The covariance of a token is (A - mean A) * (logprob - mean logprob), means over the trained tokens of the step.
    Use it with the loss `clipped`.

    Args:
        share: of all trained tokens that are taken out, at least one.
        low, high: the range.

    quirk of the published code: covariances are those of a micro-batch; here they are of the whole step of a process.

    Source: arXiv:2505.22617 and verl's ``clip_cov``.
    """

    def __init__(self, *, share: Share = 2e-4, low: Factor = 1.0, high: Factor = 5.0) -> None:
        self._share, self._low, self._high = share, low, high

    @hookimpl(wrapper=True)
    def mmrl_batch(self, run: Run, batch: Batch) -> Generator[None, Batch, Batch]:
        batch = yield
        values = covariances(batch)
        chosen = ((values > self._low) & (values < self._high) & batch.mask).flatten().nonzero()[:, 0]
        number = max(1, int(self._share * int(batch.mask.sum())))
        seed = derive_seed(run.config.seed, "clip_cov", run.state.step)
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))
        mask = batch.mask.clone().flatten()
        mask[chosen[order[:number]]] = False
        run.counts["clip_cov"] += min(number, len(chosen))
        return without(batch, mask.view_as(batch.mask))


class KLCov:
    """Mark the tokens with the highest covariance, on which the loss `kl_cov` puts a penalty for moving.

    Args:
        share: of all trained tokens that are marked, at least one.

    Source: arXiv:2505.22617 and verl's ``kl_cov``.
    """

    def __init__(self, *, share: Share = 2e-4) -> None:
        self._share = share

    @hookimpl(wrapper=True)
    def mmrl_batch(self, batch: Batch) -> Generator[None, Batch, Batch]:
        batch = yield
        values = torch.where(batch.mask, covariances(batch), -torch.inf).flatten()
        number = min(max(1, int(self._share * int(batch.mask.sum()))), int(batch.mask.sum()))
        marked = torch.zeros(batch.mask.numel())
        marked[values.topk(number).indices] = 1.0
        return replace(batch, columns={**batch.columns, KL_COV: marked.view(batch.mask.shape)})


def covariances(batch: Batch) -> Tensor:
    """[B, T]: (A - mean) * (logprob - mean) of each trained token under the weights before the update; 0 elsewhere."""
    logprobs, advantages = batch.columns["logprobs"], batch.advantages
    mean_logprob = logprobs[batch.mask].mean() if bool(batch.mask.any()) else 0.0
    mean_advantage = advantages[batch.mask].mean() if bool(batch.mask.any()) else 0.0
    return torch.where(batch.mask, (advantages - mean_advantage) * (logprobs - mean_logprob), 0.0)


def without(batch: Batch, mask: Tensor) -> Batch:
    """The batch with fewer trained tokens."""
    return replace(batch, masks={**batch.masks, LOSS_MASK: mask}, advantages=batch.advantages * mask)


def kl_cov(inputs: LossInputs, *, weight: FactorOrZero = 1.0) -> tuple[Tensor, Metrics]:
    """-A * ratio, without clipping, plus weight * |logprob - old_logprob| on the tokens that `KLCov` has marked.

    Args:
        inputs: with the column "kl_cov".
        weight: verl's ``ppo_kl_coef``.

    Returns:
        [B, T], for the aggregation token_mean, and the metric ratio_mean.

    Source: arXiv:2505.22617 and verl's ``kl_cov``.
    """
    if KL_COV not in inputs.columns:
        raise ConfigError("the loss kl_cov needs the behaviour text_reasoning/kl_cov under plugins, which marks tokens")
    ratio = ratios_of(inputs, "token")
    moved = (inputs.logprobs - inputs.old_logprobs).abs()
    losses = -inputs.advantages * ratio + weight * inputs.columns[KL_COV] * moved
    return losses, {"ratio_mean": token_mean(ratio, inputs)}

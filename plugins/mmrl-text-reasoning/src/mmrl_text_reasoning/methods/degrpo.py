"""DeGRPO of Thinkless (arXiv:2505.13379): the choice between short and long reasoning learns apart from the answer."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl_core.config.numbers import FactorOrZero, Share
from mmrl_core.loss_inputs import LossInputs
from mmrl_core.losses import Metrics, clipped


def degrpo(
    inputs: LossInputs, *, alpha: FactorOrZero = 0.001, clip_low: Share = 0.2, clip_high: FactorOrZero = 0.2
) -> tuple[Tensor, Metrics]:
    """The clipped loss as alpha * mean over control tokens + mean over all others.

    The control token is the first trained token of a row, `<short>` or `<think>`. Under aggregation token_mean, which
    divides by all tokens, it is weighted by alpha * tokens / rows, and others by tokens / (tokens - rows).

    Args:
        inputs: counts are those of the whole update, so that micro-batches add up.
        alpha: weight of the control tokens.
        clip_low, clip_high: of the ratio.

    Returns:
        [B, T], for the aggregation token_mean, and the metrics of `clipped`.

    Source: arXiv:2505.13379 and its code. A KL penalty of 0.001 (k3) belongs to the published settings.
    """
    token_losses, metrics = clipped(inputs, clip_low=clip_low, clip_high=clip_high)
    num_tokens, num_rows = inputs.totals.num_tokens, inputs.totals.num_rows
    is_control = inputs.mask & (inputs.mask.cumsum(1) == 1)
    others = num_tokens / max(num_tokens - num_rows, 1.0)
    return token_losses * torch.where(is_control, alpha * num_tokens / num_rows, others), metrics

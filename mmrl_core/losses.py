"""Logprobs into token losses, and these into a scalar: pure tensor functions. `policy_loss.py` composes them.

    loss = aggregate(surrogate(logprobs) * importance weights) + kl.coefficient * aggregate(kl) - entropy bonus

A surrogate is ``surrogate(inputs, **options) -> (token_losses [B, T], metrics)``: what is minimised, token by token,
before padding is removed and before any mean is taken. Registered with ``needs=("entropy", ...)``, it is given these
quantities of the policy too: ``inputs.entropy``, and any other as ``inputs.extras[name]``. The algorithms as
combinations:

              surrogate                        aggregation        usual options
    GRPO      clipped                          sequence_mean      clip 0.2, 0.2; usually kl 0.001 to 0.04
    Dr. GRPO  clipped                          constant_length
    DAPO      clipped                          token_mean         clip 0.2, 0.28
    BNPO      clipped                          local_token_mean
    GSPO      clipped, ratio sequence_mean     sequence_mean      clip 3e-4, 4e-4
    RLOO      clipped, ratio sequence_sum      sequence_mean
    CISPO     cispo                            token_mean         cap 5

Every metric is a detached scalar that adds up: its sum over the micro-batches and processes of an optimizer step is the
mean over the trained tokens of that step (for policy_loss, the policy term of that step).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mmrl_core.config.numbers import FactorOrZero, OneOrMore, PositiveFactor, Share
from mmrl_core.errors import ConfigError
from mmrl_core.loss_inputs import BatchTotals, LossInputs

Metrics = dict[str, Tensor]
Surrogate = Callable[..., tuple[Tensor, Metrics]]
Aggregation = Literal["sequence_mean", "token_mean", "local_token_mean", "constant_length"]
KLEstimator = Literal["k1", "k2", "k3", "k3_straight_through"]

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this, either side, before exp; beyond it the gradient is zero. Without it one token with a
very unlikely logprob makes the float32 ratio infinite and the whole loss NaN."""


# Surrogates: one loss for each token.


def clipped(
    inputs: LossInputs,
    *,
    clip_low: Share = 0.2,
    clip_high: FactorOrZero = 0.2,
    ratio: Literal["token", "sequence_mean", "sequence_sum"] = "token",
    ratio_cap: OneOrMore | None = None,
    dual_clip: OneOrMore | None = None,
) -> tuple[Tensor, Metrics]:
    """The clipped surrogate of PPO: -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A).

    Args:
        inputs: reads logprobs, old_logprobs, advantages, mask, totals.
        clip_low, clip_high: how far the ratio may fall below and rise above 1. DAPO raises clip_high to 0.28. A
            clip_low of 1 bounds nothing. TRL: ``epsilon``, ``epsilon_high``.
        ratio: "token" is exp(logprob - old_logprob) of each token. "sequence_mean" is the exp of its mean over the
            row, put on every token (GSPO; ranges near 3e-4; TRL: ``importance_sampling_level="sequence"``).
            "sequence_sum" is the ratio of the whole row, put on every token (RLOO). The last two give their paper's
            loss under the aggregation sequence_mean.
        ratio_cap: upper bound of the unclipped ratio; bounds the loss where A < 0. TRL: ``delta``.
        dual_clip: upper bound of the loss where A < 0, in units of -A; 3 in the paper. verl: ``clip_ratio_c``.

    Returns:
        [B, T] loss of each token, and the metrics ratio_mean, clip_fraction_low and clip_fraction_high (share of
        tokens whose gradient the lower or upper bound removes).

    Source: PPO, arXiv:1707.06347; GRPO, arXiv:2402.03300; DAPO, arXiv:2503.14476; GSPO, arXiv:2507.18071 (4.3 for
    advantages that differ between tokens); RLOO, arXiv:2402.14740; ratio_cap, arXiv:2505.07291; dual_clip,
    arXiv:1912.09729.
    """
    advantages = inputs.advantages
    ratios = ratios_of(inputs, ratio)
    within = ratios.clamp(1 - clip_low, 1 + clip_high)
    unclipped = ratios if ratio_cap is None else ratios.clamp(max=ratio_cap)
    token_losses = -torch.min(unclipped * advantages, within * advantages)
    if dual_clip is not None:
        token_losses = torch.where(advantages < 0, token_losses.clamp(max=-dual_clip * advantages), token_losses)
    return token_losses, {
        "ratio_mean": token_mean(ratios, inputs),
        "clip_fraction_low": token_mean((ratios < 1 - clip_low) & (advantages < 0), inputs),
        "clip_fraction_high": token_mean((ratios > 1 + clip_high) & (advantages > 0), inputs),
    }


def cispo(
    inputs: LossInputs,
    *,
    cap: PositiveFactor | None = None,
    clip_low: FactorOrZero | None = None,
    clip_high: FactorOrZero | None = None,
) -> tuple[Tensor, Metrics]:
    """REINFORCE with a bounded, detached ratio as its weight: -weight * A * logprob.

    Unlike `clipped`, a token outside the bounds keeps its gradient. Two conventions are in use; name one.

    Args:
        inputs: reads logprobs, old_logprobs, advantages, mask, totals.
        cap: weight = min(ratio, cap), without a lower bound; 5 is usual. TRL, where it is called ``epsilon_high``
            and, if unset, silently becomes 0.2.
        clip_low, clip_high: weight = clip(ratio, 1 - clip_low, 1 + clip_high). verl.

    Returns:
        [B, T] loss of each token, and the metrics ratio_mean, clip_fraction_low and clip_fraction_high (share of
        tokens whose weight was bounded from below or above).

    Raises:
        ConfigError: neither convention is named, or both.

    Source: MiniMax-M1, arXiv:2506.13585.
    """
    if cap is not None and clip_low is None and clip_high is None:
        lowest, highest = 0.0, cap
    elif cap is None and clip_low is not None and clip_high is not None:
        lowest, highest = 1 - clip_low, 1 + clip_high
    else:
        raise ConfigError("cispo needs either cap (5.0 is usual), or both clip_low and clip_high")
    ratios = ratios_of(inputs, "token").detach()
    token_losses = -ratios.clamp(lowest, highest) * inputs.advantages * inputs.logprobs
    return token_losses, {
        "ratio_mean": token_mean(ratios, inputs),
        "clip_fraction_low": token_mean(ratios < lowest, inputs),
        "clip_fraction_high": token_mean(ratios > highest, inputs),
    }


def reinforce(inputs: LossInputs) -> tuple[Tensor, Metrics]:
    """The plain policy gradient: -A * logprob [B, T]; no ratio, so old_logprobs are not read."""
    return -inputs.advantages * inputs.logprobs, {}


def nll(inputs: LossInputs) -> tuple[Tensor, Metrics]:
    """Supervised fine-tuning: -logprob [B, T]; advantages are not read."""
    return -inputs.logprobs, {}


# Terms and weights.


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """Estimate KL(policy, reference) at each token that the policy sampled.

    With d = logprob - ref_logprob:

    ===================  =============  ============  =======================================================
    estimator            value          gradient      property
    ===================  =============  ============  =======================================================
    k1                   d              1             unbiased value; can be negative
    k2                   d^2 / 2        d             biased value; on-policy the right gradient
    k3                   e^-d + d - 1   1 - e^-d      unbiased value, never negative; GRPO's
    k3_straight_through  e^-d + d - 1   d             value of k3, gradient of k2
    ===================  =============  ============  =======================================================

    Args:
        logprobs: [B, T], policy, with gradient.
        ref_logprobs: [B, T], reference.
        estimator: a row of the table.

    Returns:
        [B, T] in nats.

    Source: Schulman, http://joschu.net/blog/kl-approx.html; straight-through as verl's ``k3+``. k3 clamps d to
    +-MAX_LOG_RATIO.

    >>> kl_estimate(torch.tensor([-1.0, -0.5]), torch.tensor([-1.2, -0.5]), "k1")
    tensor([0.2000, 0.0000])
    """
    _same_shape(logprobs, ref_logprobs)
    difference = logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        bounded = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return torch.expm1(-bounded) + bounded
    if estimator == "k3_straight_through":
        k2 = kl_estimate(logprobs, ref_logprobs, "k2")
        k3 = kl_estimate(logprobs, ref_logprobs, "k3")
        return k2 + (k3 - k2).detach()
    raise ConfigError(f"kl estimator is {estimator!r}; it can be 'k1', 'k2', 'k3' or 'k3_straight_through'")


def importance_weights(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor,
    *,
    level: Literal["token", "sequence"] = "sequence",
    mode: Literal["truncate", "mask"] = "mask",
    max_weight: float = 3.0,
    min_weight: float = 0.0,
) -> Tensor:
    """Correct for a rollout engine whose logprobs differ from the trainer's under the same weights.

    Args:
        old_logprobs: [B, T], the trainer's when sampling.
        sampler_logprobs: [B, T], the engine's; a token it could not score (NaN) counts as equal.
        mask: bool [B, T], trained tokens.
        level: "token" is exp(old - sampler) of each token, "sequence" the product over the row.
        mode: "truncate" moves weights into [min_weight, max_weight], "mask" sets those outside to 0.
        max_weight, min_weight: the range. TRL: ``vllm_importance_sampling_clip_max`` and ``_min``.

    Returns:
        [B, T], without gradient, to multiply the token losses (not the KL) with. 1 where not masked at token level.

    Source: truncated, https://fengyao.notion.site/off-policy-rl (token, truncate, 2); masked, IcePop,
    arXiv:2510.18855. The defaults are TRL's ``vllm_importance_sampling_mode="sequence_mask"``.

    >>> old, sampler = torch.tensor([[-0.95, -0.5]]), torch.tensor([[-1.0, -1.75]])
    >>> importance_weights(old, sampler, torch.tensor([[True, True]]), level="token", mode="truncate")
    tensor([[1.0513, 3.0000]])
    """
    log_weights = torch.where(mask, old_logprobs - sampler_logprobs, 0.0).detach().nan_to_num(nan=0.0)
    if level == "sequence":
        log_weights = log_weights.sum(-1, keepdim=True).expand_as(log_weights)  # [B, T] -> [B, 1] -> [B, T]
    elif level != "token":
        raise ConfigError(f"importance level is {level!r}; it can be 'token' or 'sequence'")
    weights = _bounded_exp(log_weights)
    if mode == "truncate":
        return weights.clamp(min_weight, max_weight)
    if mode == "mask":
        return torch.where((weights >= min_weight) & (weights <= max_weight), weights, 0.0)
    raise ConfigError(f"importance mode is {mode!r}; it can be 'truncate' or 'mask'")


def off_policy_sequence_mask(
    logprobs: Tensor, sampler_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, threshold: float
) -> Tensor:
    """Which tokens to keep when rows that are both bad and stale are dropped.

    A row is stale if the mean of sampler_logprob - logprob over its trained tokens exceeds the threshold.

    Args:
        logprobs: [B, T], policy.
        sampler_logprobs: [B, T], of the policy that sampled; NaN (not scored) counts as equal.
        advantages: [B, T].
        mask: bool [B, T], trained tokens.
        threshold: in nats per token, positive. TRL: ``off_policy_mask_threshold``.

    Returns:
        bool [B, T]; False where A < 0 in a stale row.

    Source: DeepSeek-V3.2, arXiv:2512.02556.
    """
    drift = torch.where(mask, sampler_logprobs - logprobs, 0.0).detach().nan_to_num(nan=0.0)
    mean_drift = drift.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)  # [B, 1]
    return (advantages >= 0) | (mean_drift <= threshold)


# Token losses -> scalar.


def aggregate(
    token_losses: Tensor, mask: Tensor, how: Aggregation, totals: BatchTotals, *, max_length: int | None = None
) -> Tensor:
    """Average token losses, so that the sum over all micro-batches and processes is the loss of the optimizer step.

    Args:
        token_losses: [B, T]; what it holds where not masked is ignored.
        mask: bool [B, T], trained tokens.
        how: "sequence_mean": mean over a row's tokens, then over rows (GRPO; TRL ``loss_type="grpo"``).
            "token_mean": mean over all tokens of the step (DAPO; TRL "dapo").
            "constant_length": sum over tokens / (rows * max_length) (Dr. GRPO; TRL "dr_grpo").
            "local_token_mean": mean over the tokens of this micro-batch, times its share of the step's rows (BNPO;
            TRL "bnpo"). By definition it depends on how the step is cut into micro-batches.
        totals: rows and tokens of the whole step; the rows include those without a trained token.
        max_length: longest completion allowed, in tokens; for "constant_length".

    Returns:
        Scalar with gradient; 0 if nothing is masked.

    Raises:
        ConfigError: how is unknown, or "constant_length" comes without max_length.
        ValueError: the shapes differ; [B, 1] is not spread over the tokens in silence.

    Source: GRPO, arXiv:2402.03300; DAPO, arXiv:2503.14476; Dr. GRPO, arXiv:2503.20783.
    """
    _same_shape(token_losses, mask)
    token_losses = torch.where(mask, token_losses, 0.0)
    num_rows, num_tokens = max(totals.num_rows, 1), max(totals.num_tokens, 1)
    if how == "sequence_mean":
        return (token_losses.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / num_rows
    if how == "token_mean":
        return token_losses.sum() / num_tokens
    if how == "local_token_mean":
        return token_losses.sum() / mask.sum().clamp(min=1) * (len(mask) / num_rows)
    if how == "constant_length":
        if max_length is None:
            raise ConfigError("the aggregation constant_length needs max_length, the longest completion in tokens")
        return token_losses.sum() / (num_rows * max_length)
    raise ConfigError(
        f"aggregation is {how!r}; it can be 'sequence_mean', 'token_mean', 'local_token_mean' or 'constant_length'"
    )


# Shared arithmetic.


def _same_shape(values: Tensor, others: Tensor) -> None:
    if values.shape != others.shape:
        raise ValueError(f"tensors of one shape are needed, got {tuple(values.shape)} and {tuple(others.shape)}")


def _bounded_exp(log_ratios: Tensor) -> Tensor:
    return log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def ratios_of(inputs: LossInputs, level: str) -> Tensor:
    """[B, T] ratio of policy and old policy: of each token, or of its row (the same on every token)."""
    log_ratios = torch.where(inputs.mask, inputs.logprobs - inputs.old_logprobs, 0.0)
    if level == "token":
        return _bounded_exp(log_ratios)
    row_sum = log_ratios.sum(-1, keepdim=True)  # [B, 1]
    if level == "sequence_sum":
        return _bounded_exp(row_sum).expand_as(log_ratios)
    if level == "sequence_mean":
        row_mean = row_sum / inputs.mask.sum(-1, keepdim=True).clamp(min=1)
        # GSPO-token: the row's ratio in value, the token's own logprob in gradient. With one advantage for the row the
        # gradients are those of exp(row_mean) on every token; unlike those they also fit advantages by token.
        return _bounded_exp(row_mean.detach() + log_ratios - log_ratios.detach())
    raise ConfigError(f"ratio is {level!r}; it can be 'token', 'sequence_mean' or 'sequence_sum'")


def token_mean(values: Tensor, inputs: LossInputs) -> Tensor:
    """The part of this micro-batch in the mean over the computed tokens of the step, for metrics."""
    num_tokens = inputs.totals.num_tokens if inputs.totals.num_computed is None else inputs.totals.num_computed
    totals = replace(inputs.totals, num_tokens=num_tokens)
    return aggregate(values.detach().to(inputs.logprobs.dtype), inputs.mask, "token_mean", totals)


def zero_where_not_trained(inputs: LossInputs) -> LossInputs:
    """What padding and tool text hold, even NaN, must not reach the loss: 0 * NaN is NaN, in gradients too."""

    def zeroed(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.where(inputs.mask, values, 0.0)

    def all_zeroed(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.where(inputs.mask, values, 0.0) for name, values in named.items()}

    return replace(
        inputs,
        logprobs=torch.where(inputs.mask, inputs.logprobs, 0.0),
        old_logprobs=torch.where(inputs.mask, inputs.old_logprobs, 0.0),
        advantages=torch.where(inputs.mask, inputs.advantages, 0.0),
        sampler_logprobs=zeroed(inputs.sampler_logprobs),
        ref_logprobs=zeroed(inputs.ref_logprobs),
        entropy=zeroed(inputs.entropy),
        extras=all_zeroed(inputs.extras),
        columns=all_zeroed(inputs.columns),
        frozen_logprobs=all_zeroed(inputs.frozen_logprobs),
    )


def required(values: Tensor | None, problem: str) -> Tensor:
    if values is None:
        raise ConfigError(problem)
    return values

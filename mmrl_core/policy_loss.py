"""The loss of a micro-batch: the surrogate that a config names, its corrections, KL penalty and entropy bonus."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmrl_core.config.schema import AlgorithmConfig
from mmrl_core.loss_inputs import LossInputs
from mmrl_core.losses import (
    Metrics,
    Surrogate,
    aggregate,
    clipped,
    importance_weights,
    kl_estimate,
    off_policy_sequence_mask,
    ratios_of,
    required,
    token_mean,
    zero_where_not_trained,
)
from mmrl_core.plugins.hook_results import check_token_losses
from mmrl_core.types import KL_WEIGHT


def policy_loss(
    inputs: LossInputs,
    algorithm: AlgorithmConfig,
    surrogate: Surrogate = clipped,
    *,
    max_length: int | None = None,
    unit: Literal["token", "row", "score"] = "token",
) -> tuple[Tensor, Metrics]:
    """The loss of one micro-batch; minimise the sum over the micro-batches and processes of an optimizer step.

    Where processes average their gradients (DDP), multiply the loss by their number to get that sum.

    Args:
        inputs: one micro-batch; totals count the whole optimizer step.
        algorithm: `loss.options` are the surrogate's. `aggregate` is how token losses become a scalar. `kl` weighs
            KL(policy, reference), averaged like the policy term (TRL: ``beta``), if its place is the loss;
            `kl.times_ratio` multiplies it with the token ratio, which keeps it unbiased off-policy (TRL:
            ``use_bias_correction_kl``). `entropy_coefficient` weighs the mean entropy over the step's tokens, which is
            maximised whatever the aggregation (TRL: ``entropy_coef``). `importance_correction` corrects the policy
            term for the rollout engine, see `importance_weights`. `off_policy_threshold` leaves rows out of the policy
            term, see `off_policy_sequence_mask`.
        surrogate: the loss of each token or row.
        max_length: longest completion allowed, in tokens; for the aggregation "constant_length".
        unit: what the surrogate gives: losses of tokens [B, T], or of rows [B], which stand on each token of the row.
            "score": it is not called; the advantages are the negative gradient of a loss of scores, see
            `methods/scores.py`, the policy term is the sum of -advantage * logprob, and its value is reported there.

    Returns:
        Scalar with gradient, and metrics: those of the surrogate; policy_loss (the policy term alone); kl_old (k3
        estimate of KL(old policy, policy)); where their input is there, kl_ref (before kl.times_ratio), entropy,
        importance_weight and importance_zeroed (share of tokens), off_policy_dropped (share of tokens).

    Raises:
        ConfigError: an option needs a tensor that inputs lacks, or has an unknown value.
        HookResultError: the surrogate returned anything but losses of its unit and metrics.
    """
    inputs = zero_where_not_trained(inputs)
    metrics: Metrics = {}
    if unit == "score":
        loss = -(inputs.advantages * (inputs.logprobs - inputs.logprobs.detach())).sum()
    else:
        result = surrogate(inputs, **algorithm.loss.options)
        check_token_losses(result, inputs, f"loss {algorithm.loss.name!r}", unit)
        token_losses, surrogate_metrics = result
        metrics |= surrogate_metrics
        if unit == "row":
            token_losses = token_losses[:, None].expand(inputs.mask.shape)
        token_losses = _corrected(token_losses, inputs, algorithm, metrics)
        loss = aggregate(token_losses, inputs.mask, algorithm.aggregate, inputs.totals, max_length=max_length)
        metrics["policy_loss"] = loss.detach()
    metrics["kl_old"] = token_mean(kl_estimate(inputs.old_logprobs, inputs.logprobs), inputs)

    loss = loss + _kl_penalty(inputs, algorithm, metrics, max_length)
    if inputs.entropy is not None:
        metrics["entropy"] = token_mean(inputs.entropy, inputs)
    if algorithm.entropy_coefficient != 0:
        entropy = required(inputs.entropy, "entropy_coefficient is set, but the policy did not report its entropy")
        bonus = aggregate(entropy, inputs.mask, "token_mean", inputs.totals)
        loss = loss - algorithm.entropy_coefficient * bonus
    return loss, metrics


def _kl_penalty(
    inputs: LossInputs, algorithm: AlgorithmConfig, metrics: Metrics, max_length: int | None
) -> Tensor | float:
    """The weighted penalty for leaving the reference or the old policy; its estimate is added to the metrics."""
    coefficient = algorithm.kl.coefficient if algorithm.kl.place == "loss" else 0.0
    if coefficient == 0 and inputs.ref_logprobs is None:
        return 0.0
    ref_logprobs = required(inputs.ref_logprobs, "kl.coefficient is set, but there is no reference policy")
    kl = kl_estimate(inputs.logprobs, ref_logprobs, algorithm.kl.estimator)
    metrics["kl_ref"] = token_mean(kl, inputs)
    if KL_WEIGHT in inputs.columns:
        kl = kl * inputs.columns[KL_WEIGHT]
    if algorithm.kl.times_ratio:
        kl = kl * ratios_of(inputs, "token")
    return coefficient * aggregate(kl, inputs.mask, algorithm.aggregate, inputs.totals, max_length=max_length)


def _corrected(token_losses: Tensor, inputs: LossInputs, algorithm: AlgorithmConfig, metrics: Metrics) -> Tensor:
    """Token losses [B, T] weighted for the rollout engine, stale bad rows left out; both add to the metrics."""
    if (correction := algorithm.importance_correction) is not None:
        weights = importance_weights(
            inputs.old_logprobs,
            required(inputs.sampler_logprobs, "importance_correction is set, but rollouts came without logprobs"),
            inputs.mask,
            level=correction.level,
            mode=correction.mode,
            max_weight=correction.maximum,
            min_weight=correction.minimum,
        )
        token_losses = token_losses * weights
        metrics["importance_weight"] = token_mean(weights, inputs)
        metrics["importance_zeroed"] = token_mean(weights == 0, inputs)
    if (threshold := algorithm.off_policy_threshold) is not None:
        sampled = inputs.old_logprobs if inputs.sampler_logprobs is None else inputs.sampler_logprobs
        keep = off_policy_sequence_mask(inputs.logprobs, sampled, inputs.advantages, inputs.mask, threshold=threshold)
        token_losses = token_losses * keep
        metrics["off_policy_dropped"] = token_mean(~keep, inputs)
    return token_losses

"""Losses and advantage stages that users of TRL and verl look for by name, each a page of arithmetic."""

from __future__ import annotations

from math import comb
from typing import Literal

import torch
from torch import Tensor

from mmrl_core.advantage_stages import for_each_trajectory
from mmrl_core.advantages import ReduceSum, this_process_alone, varying_groups
from mmrl_core.config.numbers import Count, Factor, FactorOrZero, PositiveFactor, Share
from mmrl_core.errors import ConfigError
from mmrl_core.loss_inputs import LossInputs
from mmrl_core.losses import Metrics, clipped, ratios_of, token_mean
from mmrl_core.types import RewardView

# Losses of tokens and rows


def sapo(
    inputs: LossInputs, *, positive: PositiveFactor = 1.0, negative: PositiveFactor = 1.05
) -> tuple[Tensor, Metrics]:
    """-A * sigmoid(t (ratio - 1)) * 4 / t: the ratio fades out softly instead of being clipped.

    Args:
        inputs: logprobs, old_logprobs, advantages.
        positive, negative: t where the advantage is above 0, and elsewhere; a larger t fades sooner.

    Returns:
        [B, T], for the aggregation sequence_mean, and the metric ratio_mean.

    Source: arXiv:2511.20347; the temperatures are TRL's ``sapo_temperature_pos`` and ``_neg``.
    """
    ratio = ratios_of(inputs, "token")
    temperature = torch.where(inputs.advantages > 0, positive, negative)
    gate = torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature
    return -inputs.advantages * gate, {"ratio_mean": token_mean(ratio, inputs)}


def gmpo(inputs: LossInputs, *, clip_low: FactorOrZero = 0.4, clip_high: FactorOrZero = 0.4) -> tuple[Tensor, Metrics]:
    """-A * geometric mean over the row of the clipped ratios: one wild token does not decide the row.

    Each log-ratio is bounded in the direction of the advantage alone, before the mean.

    Args:
        inputs: logprobs, old_logprobs, and advantages that are equal over a row.
        clip_low, clip_high: bounds of the log-ratio (not of the ratio): ratios from exp(-clip_low) to exp(clip_high).

    Returns:
        [B], a loss of each row for the aggregation sequence_mean, and the metrics ratio_mean and clipped.

    Source: arXiv:2507.20673. TRL: ``GMPOTrainer``; verl: ``geo_mean``.
    """
    advantages = _by_row(inputs)
    log_ratio = torch.where(inputs.mask, inputs.logprobs - inputs.old_logprobs, 0.0)
    bounded = log_ratio.clamp(-clip_low, clip_high)
    is_good = (advantages > 0)[:, None]
    kept = torch.where(is_good, torch.minimum(log_ratio, bounded), torch.maximum(log_ratio, bounded))
    ratio = (kept.sum(1) / inputs.mask.sum(1).clamp(min=1)).exp()
    metrics = {
        "ratio_mean": token_mean(ratio[:, None].expand(inputs.mask.shape), inputs),
        "clipped": token_mean(kept != log_ratio, inputs),
    }
    return -advantages * ratio, metrics


def luspo(inputs: LossInputs, *, clip_low: Share = 3e-4, clip_high: FactorOrZero = 4e-4) -> tuple[Tensor, Metrics]:
    """GSPO's loss times the length of its row, so that long rows are not weighed down.

    Returns:
        [B, T], for the aggregation sequence_mean: the mean over rows of the sums over their tokens; and the metrics of
        `clipped`.

    Source: TRL's ``loss_type="luspo"`` with ``importance_sampling_level="sequence"``; arXiv:2602.05261 (unverified).
    """
    losses, metrics = clipped(inputs, ratio="sequence_mean", clip_low=clip_low, clip_high=clip_high)
    return losses * inputs.mask.sum(1, keepdim=True), metrics


def dppo(
    inputs: LossInputs,
    *,
    divergence: Literal["tv", "kl"] = "tv",
    low: FactorOrZero = 0.15,
    high: FactorOrZero = 0.15,
    ratio_cap: PositiveFactor = 20.0,
) -> tuple[Tensor, Metrics]:
    """REINFORCE with a bounded ratio as its weight, without tokens whose probability has already moved too far.

    How far is judged by the chance of the sampled token against all others ("binary"), and not by its ratio, which is
    large for rare tokens and small for likely ones. A token is left out where it has moved in the direction of its
    advantage by more than the limit.

    Args:
        inputs: old_logprobs are best the sampler's (`algorithm.old_logprobs: sampler`), as published.
        divergence: "tv", |p - p_old|, or "kl", KL(old, new) of the binary distributions.
        low, high: limits for a falling and a rising probability. Unverified: published limits differ between runs.
        ratio_cap: the ratio's upper bound as a weight.

    Returns:
        [B, T], for the aggregation token_mean, and the metrics ratio_mean and masked (share of tokens).

    Source: arXiv:2602.04879, read in descriptions; TRL has it as an experiment, verl as ``dppo_tv`` and ``dppo_kl``.
    """
    new, old = inputs.logprobs.detach().exp(), inputs.old_logprobs.exp()
    if divergence == "tv":
        distance = (new - old).abs()
    else:
        rest_old, rest_new = (1 - old).clamp(min=1e-12), (1 - new).clamp(min=1e-12)
        log_ratio = inputs.old_logprobs - inputs.logprobs.detach()
        distance = old * log_ratio + rest_old * (rest_old.log() - rest_new.log())
    rising = (inputs.advantages > 0) & (new > old) & (distance > high)
    falling = (inputs.advantages < 0) & (new < old) & (distance > low)
    kept = ~(rising | falling)
    ratio = ratios_of(inputs, "token").detach()
    losses = -inputs.advantages * ratio.clamp(max=ratio_cap) * inputs.logprobs * kept
    return losses, {"ratio_mean": token_mean(ratio, inputs), "masked": token_mean(~kept, inputs)}


def _by_row(inputs: LossInputs) -> Tensor:
    """[B] advantages that are equal over the trained tokens of a row; raises ConfigError if they are not."""
    lengths = inputs.mask.sum(1).clamp(min=1)
    means = inputs.advantages.sum(1) / lengths
    if not torch.allclose(torch.where(inputs.mask, means[:, None], 0.0), inputs.advantages, rtol=1e-4, atol=1e-6):
        raise ConfigError("this loss has one ratio for a row, and needs advantages that are equal over its tokens")
    return means


# Advantage stages


def optimal_baseline(advantages: Tensor, view: RewardView) -> Tensor:
    """[B] -> [B]: reward - the mean of the group weighted by length, the baseline of least variance (OPO).

    Long answers have larger gradients, so they count more in the baseline.

    Source: OPO, arXiv:2505.23585; exactly on-policy: one update a rollout batch, no KL, no entropy bonus.
    """
    lengths = view.mask.sum(1).float()

    def compared(rewards: Tensor, group_ids: Tensor) -> Tensor:
        found = torch.zeros_like(rewards)
        for group in group_ids.unique():
            scored = (group_ids == group) & ~rewards.isnan()
            weights = of_trajectory[scored]
            if bool(scored.any()) and float(weights.sum()) > 0:
                found[scored] = rewards[scored] - (weights * rewards[scored]).sum() / weights.sum()
        return found

    _, trajectory = view.trajectory_ids.unique(return_inverse=True)
    of_trajectory = torch.zeros(int(trajectory.max()) + 1).index_add(0, trajectory, lengths)
    return for_each_trajectory(compared, advantages, view)


def pass_at_k(advantages: Tensor, view: RewardView, *, k: Count = 4, right_above: Factor = 0.5) -> Tensor:
    """[B] -> [B]: advantages of the reward "at least one of k answers is right", over all subsets of k of the group.

    Of n answers of which w are wrong, a subset has the mean m = 1 - C(w, k) / C(n, k) and the std s = sqrt(m (1 - m)).
    A right answer has (1 - m) / s; a wrong one (1 - m - C(w-1, k-1) / C(n-1, k-1)) / s. A group that is right or wrong
    in every subset has advantage 0: what is solved often enough is left alone, and effort goes to hard prompts.

    Args:
        k: answers of which one has to be right; less than the group size.
        right_above: an answer is right if its reward is above this.

    Raises:
        ConfigError: a group has fewer than k scored answers.

    Source: pass@k training, arXiv:2508.10751, the analytical form.
    """

    def compared(rewards: Tensor, group_ids: Tensor) -> Tensor:
        found = torch.zeros_like(rewards)
        for group in group_ids.unique():
            members = ((group_ids == group) & ~rewards.isnan()).nonzero()[:, 0]
            size, right = len(members), rewards[members] > right_above
            wrong = size - int(right.sum())
            if size == 0:
                continue
            if size < k:
                raise ConfigError(f"pass_at_k: a group has {size} scored answers, fewer than k={k}. Lower k.")
            mean = 1 - comb(wrong, k) / comb(size, k)
            if mean in (0.0, 1.0):
                continue
            std = (mean * (1 - mean)) ** 0.5
            for_wrong = 1 - mean - comb(wrong - 1, k - 1) / comb(size - 1, k - 1)
            found[members] = torch.where(right, (1 - mean) / std, for_wrong / std).to(found.dtype)
        return found

    return for_each_trajectory(compared, advantages, view)


def scaled_by_valid_groups(
    advantages: Tensor, view: RewardView, *, reduce_sum: ReduceSum = this_process_alone
) -> Tensor:
    """Multiply by all rows / rows in groups whose rewards vary: GPG's correction for groups without a gradient.

    Comes after a stage that compares; [B] or [B, T] stay what they are. Rows are counted over all processes.

    Source: GPG, arXiv:2504.02546 (its alpha); the loss beside it is `reinforce`.
    """
    varies = varying_groups(view.rewards, view.group_ids)
    num_valid, num_rows = reduce_sum(torch.tensor([int(varies.sum()), len(varies)])).tolist()
    return advantages * (num_rows / num_valid) if num_valid else advantages

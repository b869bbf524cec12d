"""DRPO: decoupled reward policy optimisation (arXiv:2510.04474), shorter right answers without punishing long ones."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl_core.config.numbers import Count, Factor, FactorOrZero, PositiveFactor
from mmrl_core.methods import ScoreInputs


def drpo(
    inputs: ScoreInputs,
    *,
    max_length: Count,
    length_temperature: PositiveFactor = 0.1,
    temperature: PositiveFactor = 10.0,
    kl_weight: FactorOrZero = 1000.0,
    kl_limit: FactorOrZero = 1e-4,
    right_above: Factor = 0.5,
    reward: str | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Right answers weighted by their shortness against wrong ones, and a guard on the distance to the old policy.

    Of each prompt with right (P) and wrong (N) answers, with s the mean logprob of an answer's tokens:

        J = sum_P c s / sum_P c - temperature * log mean_N exp(s / temperature),
        c = exp((1 - length / max_length) / length_temperature)

    The loss is -sum J / number of all prompts + w K, where K is the mean over tokens of old logprob - logprob and
    w = max(kl_weight * (K - kl_limit), 0) is held fixed. A right answer is never pushed down, however long. Prompts
    without both kinds have no gradient but that of K. There are no ratios and no advantages; the reward must tell right
    from wrong.

    Args:
        inputs: scores are means (`score="mean"`).
        max_length: longest completion, in tokens. quirk of the published code: the longest of the batch, padding
            included, so that a weight depends on what else is in the batch.
        length_temperature: lambda; a large one weighs all right answers alike, which is DisCO.
        temperature: tau, of the wrong answers' mean.
        kl_weight, kl_limit: beta and delta of the guard, in nats a token.
        right_above: an answer is right if its reward is above this.
        reward: the reward that tells; default: the total.

    Returns:
        Scalar, and the metrics `kl_guard` (w) and `drpo_prompts` (prompts with both kinds).
        quirk of the published code: its value is another with the same gradient.

    Source: arXiv:2510.04474 and its code; the defaults are the published ones.
    """
    rewards = inputs.rewards if reward is None else inputs.components[reward]
    right = (rewards > right_above) & ~rewards.isnan()
    wrong = ~right & ~rewards.isnan()
    objective = 0.0 * inputs.scores.sum()
    num_used = 0
    for group in inputs.group_ids.unique():
        of_group = inputs.group_ids == group
        positive, negative = right & of_group, wrong & of_group
        if not bool(positive.any()) or not bool(negative.any()):
            continue
        weights = ((1 - inputs.lengths[positive] / max_length) / length_temperature).softmax(0)
        mean = (inputs.scores[negative] / temperature).logsumexp(0) - negative.sum().log()
        objective = objective + (weights * inputs.scores[positive]).sum() - temperature * mean
        num_used += 1
    drift = (inputs.lengths * (inputs.old_scores - inputs.scores)).sum() / inputs.num_tokens
    guard = (kl_weight * (inputs.reduce_sum(drift.detach()) - kl_limit)).clamp(min=0)
    loss = -objective / inputs.num_groups + guard * drift
    share = len(inputs.scores) / inputs.num_trajectories  # metrics add up over processes
    return loss, {"kl_guard": guard * share, "drpo_prompts": torch.tensor(float(num_used))}

"""The loss of FIND: a policy gradient on the initial noise, a learned baseline, and a pull towards N(0, I)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl_core.config.numbers import FactorOrZero, Share
from mmrl_core.errors import ConfigError
from mmrl_core.loss_inputs import LossInputs
from mmrl_core.losses import MAX_LOG_RATIO, Metrics, aggregate


def find(
    inputs: LossInputs,
    *,
    reward_weight: FactorOrZero = 1.0,
    clip: Share = 0.05,
    form: Literal["min", "published"] = "min",
    regulariser: Literal["kl", "quadratic"] = "kl",
    regulariser_weight: FactorOrZero = 0.01,
    value_weight: FactorOrZero = 1.0,
    baseline: Literal["value", "none"] = "value",
) -> tuple[Tensor, Metrics]:
    """Policy term, regulariser and value loss of each action; T is 1, since a latent is drawn once.

        ratio = exp(logprob - old_logprob)
        loss  = -reward_weight * min(ratio * A, clip(ratio) * A) + regulariser_weight * distance to N(0, I)
                + value_weight * (V(distribution that sampled) - R)^2

    Where logprobs and distance are means over the D entries of the latent (the policy's default), the expected loss is
    lowest where reward_weight * E[R] - regulariser_weight * KL(policy, N(0, I)) is highest, with the KL of the whole
    latent in nats: the weights do not depend on D.

    Args:
        inputs: reads logprobs, old_logprobs, advantages, rewards (NaN = unscored), mask, totals, and of extras
            prior_kl, prior_quadratic and, for the baseline "value", value (of the distribution that sampled the row)
            and baseline (of the present one), each [B, T].
        reward_weight: of the policy term; published 10.
        clip: the ratio is held within 1 - clip and 1 + clip; published 0.2. The log-ratio is that of one latent entry
            where logprobs are means: 0.05 is then far from narrow, as it allows the whole density to change by
            exp(0.05 * D).
        form: "min" is PPO's pessimistic bound. "published" is clip(ratio) * A alone, which has no gradient in either
            direction once the ratio is outside, so that only the regulariser can bring the policy back.
        regulariser: "kl" is KL(policy, N(0, I)); "quadratic" the published stand-in, mean^2 + (std - 1)^2.
        regulariser_weight: published 0.01.
        value_weight: of the value loss; it acts on the value network alone.
        baseline: "value" is dynamic reward calibration: A = R - V, where V follows the moving distribution. It takes
            plain rewards: `algorithm.advantage: []`. "none" takes the advantages as they come, for instance relative
            to their group.

    Returns:
        [B, T] loss of each action; an unscored one has the regulariser only. Metrics: ratio_mean, clip_fraction_low
        and clip_fraction_high (share of actions whose policy gradient the bound removes), prior_kl, prior_quadratic
        (per entry where the policy's are); with the baseline "value" also baseline (mean of V), value_loss and
        calibrated_advantage (mean of |R - V|).

    Raises:
        ConfigError: an option has no such value, or the baseline "value" meets advantages that are no plain rewards.

    Source: FIND, arXiv:2407.19453, and its public code as of November 2024. quirk: there the old policy is the one at
    the start of the run and rewards belong to other actions; here each action is compared with the distribution that
    it was drawn from, and keeps its own reward.
    """
    _check(form, ("min", "published"), "form")
    _check(regulariser, ("kl", "quadratic"), "regulariser")
    _check(baseline, ("value", "none"), "baseline")
    if not 0 < clip < 1:
        raise ConfigError(f"find/find: clip is a distance from the ratio 1, between 0 and 1, not {clip}")

    metrics: Metrics = {}
    advantages, value_losses = inputs.advantages, torch.zeros_like(inputs.logprobs)
    if baseline == "value":
        rewards, scored = _plain_rewards(inputs)
        advantages = torch.where(scored, rewards - inputs.extras["baseline"].detach(), 0.0)
        value_losses = torch.where(scored, inputs.extras["value"] - rewards, 0.0).square()
        metrics = {
            "baseline": _mean(inputs.extras["baseline"], inputs),
            "value_loss": _mean(value_losses, inputs),
            "calibrated_advantage": _mean(advantages.abs(), inputs),
        }

    ratios = (inputs.logprobs - inputs.old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    gains = ratios.clamp(1 - clip, 1 + clip) * advantages
    below, above = ratios < 1 - clip, ratios > 1 + clip
    if form == "min":
        gains = torch.min(ratios * advantages, gains)
        below, above = below & (advantages < 0), above & (advantages > 0)
    distances = inputs.extras["prior_kl" if regulariser == "kl" else "prior_quadratic"]
    metrics |= {
        "ratio_mean": _mean(ratios, inputs),
        "clip_fraction_low": _mean(below, inputs),
        "clip_fraction_high": _mean(above, inputs),
        "prior_kl": _mean(inputs.extras["prior_kl"], inputs),
        "prior_quadratic": _mean(inputs.extras["prior_quadratic"], inputs),
    }
    return -reward_weight * gains + regulariser_weight * distances + value_weight * value_losses, metrics


def _plain_rewards(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Rewards [B, 1], 0 where unscored, and bool [B, 1] where they are scored."""
    if inputs.rewards is None:
        raise ConfigError("find/find: baseline 'value' needs the rewards of the rollouts, which are not there")
    scored = ~inputs.rewards.isnan()[:, None]
    rewards = inputs.rewards.nan_to_num(nan=0.0)[:, None].to(inputs.logprobs.dtype)
    # One advantage stage left in the config would make A the difference of two baselines, and nobody would notice.
    if bool((inputs.mask & scored & (inputs.advantages != rewards)).any()):
        raise ConfigError(
            "find/find: baseline 'value' is taken from plain rewards. Set algorithm.advantage to [], or baseline to "
            "'none' to use the advantages that the stages in algorithm.advantage make"
        )
    return rewards, scored


def _check(value: str, allowed: tuple[str, ...], option: str) -> None:
    if value not in allowed:
        raise ConfigError(f"find/find: {option} is {value!r}; it can be {' or '.join(map(repr, allowed))}")


def _mean(values: Tensor, inputs: LossInputs) -> Tensor:
    """The part of this micro-batch in the mean over the step's actions, for metrics."""
    return aggregate(values.detach().to(inputs.logprobs.dtype), inputs.mask, "token_mean", inputs.totals)

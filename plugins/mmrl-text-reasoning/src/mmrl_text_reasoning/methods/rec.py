"""The REC family (arXiv:2509.24203): REINFORCE with a group baseline, off-policy, with what keeps it stable."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl_core.advantage_stages import for_each_trajectory
from mmrl_core.config.numbers import Factor, FactorOrZero, PositiveFactor, Seed, Share
from mmrl_core.loss_inputs import LossInputs
from mmrl_core.losses import Metrics, ratios_of, token_mean
from mmrl_core.run import derive_seed
from mmrl_core.types import RewardView


def rec(
    inputs: LossInputs,
    *,
    mask: Literal["none", "one_side", "two_side", "ring"] = "one_side",
    clip_low: Share = 0.2,
    clip_high: FactorOrZero = 0.2,
    ring_low: Share = 0.6,
    ring_high: FactorOrZero = 2.0,
    weight: Literal["none", "ratio", "advantage"] = "none",
    temperature: PositiveFactor = 1.0,
    k2: FactorOrZero = 0.0,
    forward_kl: FactorOrZero = 0.0,
    scale: Factor = 1.0,
) -> tuple[Tensor, Metrics]:
    """-A * logprob * M * c on each token, without gradient through the ratio.

    Args:
        inputs: with old_logprobs where a mask, ratio weights or k2 are used.
        mask: M. "one_side" keeps a token unless its ratio has left the range in the direction of its advantage;
            with weight "ratio" its gradient is that of PPO's clipped loss. "two_side" keeps ratios in the range; "ring"
            those and, on the other side of the advantage, the ones beyond `ring_low` and `ring_high`.
        clip_low, clip_high: the range is 1 - clip_low to 1 + clip_high.
        ring_low, ring_high: the ring's outer bounds are 1 - ring_low and 1 + ring_high.
        weight: c. "ratio" is importance sampling, "advantage" exp(A / temperature) (RED-Weight).
        temperature: of RED-Weight.
        k2: weight of (logprob - old_logprob)^2 (Kimi's OPMD; the 1/2 is in it).
        forward_kl: weight of -logprob.
        scale: of the first term; 1 / (1 + tau) for OPMD.

    Returns:
        [B, T], for the aggregation token_mean, and the metrics ratio_mean and masked (share of tokens).

    Source: arXiv:2509.24203 and its code, read.
    """
    ratio = ratios_of(inputs, "token").detach()
    kept = _kept(ratio, inputs.advantages, mask, (clip_low, clip_high), (ring_low, ring_high))
    factor = torch.ones_like(ratio)
    if weight == "ratio":
        factor = ratio
    elif weight == "advantage":
        factor = (inputs.advantages / temperature).exp()
    losses = -scale * inputs.advantages * inputs.logprobs * kept * factor
    if k2:
        losses = losses + k2 * (inputs.logprobs - inputs.old_logprobs).square()
    if forward_kl:
        losses = losses - forward_kl * inputs.logprobs
    return losses, {"ratio_mean": token_mean(ratio, inputs), "masked": token_mean(~kept, inputs)}


def _kept(ratio: Tensor, advantages: Tensor, mask: str, clip: tuple[float, float], ring: tuple[float, float]) -> Tensor:
    """Bool [B, T]: tokens that keep their gradient."""
    low, high = 1 - clip[0], 1 + clip[1]
    if mask == "none":
        return torch.ones_like(ratio, dtype=torch.bool)
    within = (ratio >= low) & (ratio <= high)
    if mask == "two_side":
        return within
    if mask == "ring":
        far = ((advantages >= 0) & (ratio <= 1 - ring[0])) | ((advantages <= 0) & (ratio >= 1 + ring[1]))
        return within | far
    return ((advantages >= 0) & (ratio <= high)) | ((advantages <= 0) & (ratio >= low))


def shifted_baseline(
    advantages: Tensor,
    view: RewardView,
    *,
    baseline: Literal["mean", "log_mean_exp"] = "mean",
    tau: PositiveFactor = 1.0,
    shift: Factor = 0.0,
) -> Tensor:
    """[B] -> [B]: reward - (baseline of the group + shift).

    OPMD has `log_mean_exp`, tau * log mean exp(r / tau). AsymRE has the mean and shift -0.1, which raises every
    advantage by 0.1: a flat group then pushes all of its answers up a little, so it does not have advantage 0 here.

    Source: OPMD and AsymRE (arXiv:2506.20520) as in arXiv:2509.24203.
    """

    def shifted(rewards: Tensor, group_ids: Tensor) -> Tensor:
        found = torch.zeros_like(rewards)
        for group in group_ids.unique():
            scored = (group_ids == group) & ~rewards.isnan()
            values = rewards[scored]
            if not len(values):
                continue
            mean = values.mean()
            if baseline == "log_mean_exp":
                mean = tau * ((values / tau).logsumexp(0) - torch.tensor(float(len(values))).log())
            found[scored] = values - mean - shift
        return found

    return for_each_trajectory(shifted, advantages, view)


def red_drop(
    advantages: Tensor, view: RewardView, *, divide_by_std: bool = False, eps: FactorOrZero = 1e-6, seed: Seed = 0
) -> Tensor:
    """[B] -> [B]: drop surplus bad answers of a group, then compare with the mean of the rest.

    Where more answers are below the mean than not, as many of them as there are too many are left out at random and get
    advantage 0. The std, if it is divided by, is the population's. The draw depends on the group's prompt and answers
    alone, so that a resumed run repeats it.

    Source: RED-Drop of arXiv:2509.24203.
    """
    content = [(row.prompt_id, row.action.flatten()[:16].tolist()) for row in view.rows]

    def dropped(rewards: Tensor, group_ids: Tensor) -> Tensor:
        found = torch.zeros_like(rewards)
        for group in group_ids.unique().tolist():
            members = ((group_ids == group) & ~rewards.isnan()).nonzero()[:, 0]
            values = rewards[members]
            if not len(members) or bool((values == values[0]).all()):
                continue
            bad = members[values < values.mean()]
            surplus = 2 * len(bad) - len(members)
            if surplus > 0:
                generator = torch.Generator().manual_seed(derive_seed(seed, "red_drop", group, content) % 2**63)
                gone = bad[torch.randperm(len(bad), generator=generator)[:surplus]]
                members = members[~torch.isin(members, gone)]
            centred = rewards[members] - rewards[members].mean()
            found[members] = centred / (rewards[members].std(correction=0) + eps) if divide_by_std else centred
        return found

    return for_each_trajectory(dropped, advantages, view)

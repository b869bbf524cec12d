"""TRPA: trust-region preference approximation (arXiv:2504.04524), a loss over pairs of levels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmrl_core.config.numbers import Factor, PositiveFactor
from mmrl_core.methods import ScoreInputs

REFERENCE = "reference"


def trpa(
    inputs: ScoreInputs,
    *,
    beta: PositiveFactor = 0.1,
    kappa: PositiveFactor = 2.5,
    best: Factor = 1.0,
    reward: str | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-log sigmoid(kappa beta (h_i - h_j)), the mean over pairs of a group in which i has the higher reward.

    h is the mean logprob of an answer's tokens, minus that under the reference policy. The reward is read as a level:
    only its order counts, so that no value can be hacked. Where the whole step has no pair, the loss is the mean of
    -log sigmoid(h) over the answers at the best level and of -log sigmoid(-h) over the others.

    The trust region is `algorithm.kl: {coefficient: 0.001, to: old}`, as the preset has it.

    Args:
        inputs: scores are means (`score="mean"`), with those of the frozen policy "reference".
        beta: scale of h.
        kappa: further scale of pairs whose better answer is at the best level.
        best: an answer with at least this reward is at the best level, which the published levels number 1.
        reward: the reward that gives the levels; default: the total.

    Returns:
        Scalar, and the metric `pairs`, their number.

    quirk of the published code: pairs are formed inside of a micro-batch, which parts groups and loses pairs; here
    groups are whole.

    Source: arXiv:2504.04524 and its code.
    """
    levels = inputs.rewards if reward is None else inputs.components[reward]
    h = inputs.scores - inputs.frozen_scores[REFERENCE]
    pairs = (levels[:, None] > levels) & (inputs.group_ids[:, None] == inputs.group_ids)  # NaN is above nothing
    counts = inputs.reduce_sum(torch.stack([pairs.sum(), (~levels.isnan()).sum()]).float())
    num_pairs, num_scored = counts.tolist()
    if num_pairs:
        scale = beta * torch.where(levels >= best, kappa, 1.0)[:, None]
        terms = logsigmoid(scale * (h[:, None] - h))
        loss = -torch.where(pairs, terms, 0.0).sum() / num_pairs
    else:
        terms = logsigmoid(torch.where(levels >= best, h, -h))
        loss = -torch.where(levels.isnan(), 0.0, terms).sum() / max(num_scored, 1.0)
    return loss, {"pairs": pairs.sum()}

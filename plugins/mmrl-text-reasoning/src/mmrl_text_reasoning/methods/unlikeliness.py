"""Unlikeliness reward (arXiv:2506.02355): right answers count more the less likely they were."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from mmrl_core import hookimpl
from mmrl_core.config.numbers import Share
from mmrl_core.errors import ConfigError
from mmrl_core.types import Rollout, RolloutGroup, Scores


class Unlikeliness:
    """Lower a positive reward by the share beta * rank / G, where rank 0 is the least likely answer of its group.

    Likelihood is the mean logprob of the answer's tokens when it was sampled. Rewards of 0 or below, and unscored ones,
    stay. A group that is right throughout is no longer flat: it moves towards its rare answers. A filter of flat groups
    comes after it, so dynamic sampling keeps such groups.

    Args:
        beta: 0 changes nothing.
        reward: the reward that is lowered; default: the total.

    quirk of the published paper: its text counts ranks one higher than its code; this is the code's.

    Source: arXiv:2506.02355 and its code. Two passes over each batch (`epochs_per_rollout: 2`) belong to the method.
    """

    def __init__(self, *, beta: Share = 0.25, reward: str | None = None) -> None:
        self._beta = beta
        self._reward = reward

    @hookimpl(wrapper=True)
    def mmrl_shape_rewards(self, groups: Sequence[RolloutGroup]) -> Generator[None, Scores, Scores]:
        scores = yield
        if self._reward is not None and self._reward not in scores.components:
            raise ConfigError(f"unlikeliness: no reward {self._reward!r}; rewards: {', '.join(scores.components)}.")
        paid = scores.totals if self._reward is None else scores.components[self._reward]
        weight = 1.0 if self._reward is None else scores.weights[self._reward]
        shares = torch.tensor([share for group in groups for share in rank_shares(group.rollouts)])
        return scores.with_component("unlikeliness", -self._beta * shares * paid.clamp(min=0), weight)


def rank_shares(rollouts: Sequence[Rollout]) -> list[float]:
    """rank / G of each rollout, 0 for the least likely; equal likelihoods in their order."""
    means = []
    for rollout in rollouts:
        logprobs = [row.sampler_logprobs for row in rollout.rows if row.sampler_logprobs is not None]
        tokens = torch.cat(logprobs) if logprobs else torch.zeros(0)
        means.append(float(tokens.nanmean()) if len(tokens) else 0.0)
    order = sorted(range(len(means)), key=lambda index: means[index])
    ranks = {index: rank for rank, index in enumerate(order)}
    return [ranks[index] / len(means) for index in range(len(means))]

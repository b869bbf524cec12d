"""DAST, the length term of UI-R1-E: short right answers gain, long ones and short wrong ones lose."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmrl_core import hookimpl
from mmrl_core.errors import ConfigError
from mmrl_core.types import RolloutGroup, Scores

if TYPE_CHECKING:
    from mmrl_core.config import RunConfig
    from mmrl_core.run import Run


def dast_bonus(lengths: Tensor, correct: Tensor, *, a: float = -0.5, b: float = 0.5) -> Tensor:
    """What DAST adds to the rewards of one group, by length.

    With p the share of right completions, their mean length Lr and the greatest length Lmax, the budget is
    L = p * Lr + (1 - p) * Lmax, and lambda = (length - L) / L. A right completion gets max(a * lambda + b, 0.1), a
    wrong one min(0.9 * lambda - 0.1, -0.1).

    Args:
        lengths: int or float [G], tokens of the completions, the end token included.
        correct: bool [G].
        a, b: slope and offset for right completions.

    Returns:
        float32 [G]; 0 throughout where no completion has a token, which leaves no budget.

    Source: UI-R1, arXiv:2503.21620, public code as of November 2025; the formula is DAST's, arXiv:2503.04472, made an
    addition to the reward.

    >>> dast_bonus(torch.tensor([10, 20, 40]), torch.tensor([True, True, False]))  # budget 2/3 * 15 + 1/3 * 40 = 70/3
    tensor([ 0.7857,  0.5714, -0.1000])
    """
    lengths = lengths.float()
    share = correct.float().mean()
    right_length = lengths[correct].mean() if bool(correct.any()) else lengths.new_zeros(())
    budget = share * right_length + (1 - share) * lengths.max()
    if not budget > 0:
        return torch.zeros_like(lengths)
    excess = (lengths - budget) / budget
    return torch.where(correct, (a * excess + b).clamp(min=0.1), (0.9 * excess - 0.1).clamp(max=-0.1))


class Dast:
    """Adds `dast_bonus` to the rewards before they are compared in their groups; `reward/dast` in the metrics.

    A length is the number of tokens that the policy sampled, its end token included. (quirk of the published code: the
    padded length, which is the same for all completions of a device, so that the term compares devices.)
    """

    def __init__(
        self,
        *,
        a: float = -0.5,
        b: float = 0.5,
        rewards: Sequence[str] | None = None,
        stages: Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            a, b: as in `dast_bonus`.
            rewards: labels of the rewards that all have to be 1 for a completion to be right; default: all of the run.
                (quirk of the published code: right is a total of exactly 3.)
            stages: in which it acts, by the `name` that the config gives them; default: all.
        """
        self.a, self.b = a, b
        self.rewards, self.stages = rewards, stages

    @hookimpl
    def mmrl_configure(self, config: RunConfig) -> None:
        named = [stage.name for stage in config.stages]
        for stage in self.stages or ():
            if stage not in named:
                raise ConfigError(f"gui/dast: no stage has the name {stage!r}; names here: {named}")

    @hookimpl(wrapper=True)
    def mmrl_shape_rewards(
        self, run: Run, groups: Sequence[RolloutGroup], scores: Scores
    ) -> Generator[None, Scores, Scores]:
        shaped = yield
        if self.stages is not None and run.stage.name not in self.stages:
            return shaped
        right = self._right(scores)
        bonuses = []
        start = 0
        for group in groups:
            end = start + len(group.rollouts)
            lengths = torch.tensor([rollout.num_actions for rollout in group.rollouts])
            scored = ~shaped.totals[start:end].isnan()
            bonus = torch.zeros(len(group.rollouts))
            if bool(scored.any()):
                bonus[scored] = dast_bonus(lengths[scored], right[start:end][scored], a=self.a, b=self.b)
            bonuses.append(bonus)
            start = end
        added = torch.cat(bonuses)
        return replace(
            shaped,
            totals=shaped.totals + added,
            components={**shaped.components, "dast": added},
            weights={**shaped.weights, "dast": 1.0},
        )

    def _right(self, scores: Scores) -> Tensor:
        """Bool [N]."""
        labels = list(scores.components) if self.rewards is None else list(self.rewards)
        for label in labels:
            if label not in scores.components:
                known = ", ".join(scores.components)
                raise ConfigError(f"gui/dast: {label!r} is no reward of this run; its rewards: {known}")
        if not labels:
            raise ConfigError("gui/dast: the run has no rewards, so no completion is right or wrong")
        return torch.stack([scores.components[label] >= 1 - 1e-6 for label in labels]).all(0)

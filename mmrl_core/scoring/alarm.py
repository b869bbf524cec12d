"""Alarms about rewards that teach nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import RewardError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Alarm:
    """Something that makes the result of a run doubtful. It is a record of kind "alarm" in metrics.jsonl.

    Attributes:
        name: what it is about: constant_reward, unscored_reward, unscored_run or weights.
        message: what was seen, and what to look at.
    """

    name: str
    message: str


@dataclass
class ConstantRewardAlarm:
    """Notices rewards that teach nothing, because every rollout gets the same.

    A reward that has varied, and then gives all rollouts the best score it ever gave, is learnt, and no alarm.

    Attributes:
        patience: a reward is reported after this many constant steps in a row, and only once.
    """

    patience: int = 50
    _steps: dict[str, int] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)
    _seen: dict[str, list[float]] = field(default_factory=dict)  # lowest and highest score so far
    _streak: dict[str, list[float]] = field(default_factory=dict)  # the same, of the constant steps in a row

    def update(self, components: Mapping[str, Tensor]) -> list[Alarm]:
        """Look at one more step.

        Args:
            components: reward -> [N], NaN = unscored. A reward with exactly one scored rollout says nothing, and the
                step does not count for it.

        Returns:
            An alarm for each reward that has now been constant, or wholly unscored, for `patience` steps.
        """
        alarms = []
        for key, values in components.items():
            scored = [value for value in values.tolist() if not math.isnan(value)]
            if len(scored) == 1 or len(values) == 0:
                continue
            constant = not scored or min(scored) == max(scored)
            self._steps[key] = self._steps.get(key, 0) + 1 if constant else 0
            if not constant:
                self._streak.pop(key, None)
            if scored:
                _widen(self._seen, key, scored)
                _widen(self._streak, key, scored) if constant else None
            if self._steps[key] >= self.patience and key not in self._reported and not self._is_learnt(key):
                self._reported.add(key)
                alarms.append(_constant(key, scored, self._steps[key]))
        return alarms

    def _is_learnt(self, key: str) -> bool:
        """Whether the constant score is the best one, and others were seen before."""
        if key not in self._streak:
            return False
        lowest, highest = self._seen[key]
        return self._streak[key] == [highest, highest] and lowest < highest

    def state(self) -> dict[str, Any]:
        """Plain values for the checkpoint: counts and scores of constant steps, and the rewards that were reported."""
        return {
            "steps": dict(self._steps),
            "reported": sorted(self._reported),
            "seen": {key: list(values) for key, values in self._seen.items()},
            "streak": {key: list(values) for key, values in self._streak.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._steps = dict(state["steps"])
        self._reported = set(state["reported"])
        self._seen = {key: list(values) for key, values in state.get("seen", {}).items()}
        self._streak = {key: list(values) for key, values in state.get("streak", {}).items()}


def _widen(ranges: dict[str, list[float]], key: str, values: Sequence[float]) -> None:
    known = ranges.get(key, [])
    ranges[key] = [min([*known, *values]), max([*known, *values])]


def _constant(key: str, scored: Sequence[float], steps: int) -> Alarm:
    was = f"the same for every rollout (now {scored[0]:g})" if scored else "unscored for every rollout"
    return Alarm(
        "constant_reward" if scored else "unscored_reward",
        f"reward {key!r} was {was} in each of the last {steps} steps, so nothing is learnt from it. Look at the "
        "written rollouts: is it always reached, never reached, or reading the wrong thing?",
    )


@dataclass
class UnscoredRunAlarm:
    """Counts steps in a row in which the rewards scored nothing at all, after which a run should stop."""

    _steps: int = 0

    def update(self, unscored: float, limit: int | None) -> bool:
        """Look at one more step; whether the run should stop.

        Args:
            unscored: share of rollouts whose total is unscored, 0 to 1.
            limit: steps in a row without any score after which it should; None: never.
        """
        self._steps = self._steps + 1 if unscored == 1.0 else 0
        return limit is not None and self._steps >= limit

    def error(self, step: int, reasons: Mapping[str, Sequence[str]]) -> RewardError:
        """What to say of it.

        Args:
            step: the last one, from 1.
            reasons: reward -> why it failed, see `RewardRunner.failure_reasons`.
        """
        causes = [f"reward {key!r} {why[0]}" for key, why in reasons.items() if why]
        cause = "; ".join(causes) or "no reward failed, but at least one left every completion unscored (None)"
        return RewardError(
            f"the rewards scored no rollout in the last {self._steps} steps, {step - self._steps + 1} to {step}, so "
            f"nothing can be learnt: {cause}. Mend the reward and go on with --resume; algorithm.max_unscored_steps "
            "says after how many steps a run stops."
        )

    def state(self) -> int:
        return self._steps

    def load_state(self, state: int) -> None:
        self._steps = state

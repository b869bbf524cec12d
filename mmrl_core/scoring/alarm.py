"""The alarm about rewards that teach nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class ConstantRewardAlarm:
    """Notices rewards that teach nothing, because every rollout gets the same.

    Attributes:
        patience: a reward is reported after this many constant steps in a row, and only once.
    """

    patience: int = 50
    _steps: dict[str, int] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)

    def update(self, components: Mapping[str, Tensor]) -> list[str]:
        """Look at one more step.

        Args:
            components: reward -> [N], NaN = unscored. A reward with exactly one scored rollout says nothing, and the
                step does not count for it.

        Returns:
            A message for each reward that has now been constant, or wholly unscored, for `patience` steps.
        """
        messages = []
        for key, values in components.items():
            scored = [value for value in values.tolist() if not math.isnan(value)]
            if len(scored) == 1 or len(values) == 0:
                continue
            constant = not scored or min(scored) == max(scored)
            self._steps[key] = self._steps.get(key, 0) + 1 if constant else 0
            if self._steps[key] >= self.patience and key not in self._reported:
                self._reported.add(key)
                was = f"the same for every rollout (now {scored[0]:g})" if scored else "unscored for every rollout"
                messages.append(
                    f"reward {key!r} was {was} in each of the last {self._steps[key]} steps, so nothing is learnt from "
                    "it. Look at the written rollouts: is it always reached, never reached, or reading the wrong thing?"
                )
        return messages

    def state(self) -> dict[str, Any]:
        """Plain values for the checkpoint: counts of constant steps, and the rewards that were reported."""
        return {"steps": dict(self._steps), "reported": sorted(self._reported)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._steps = dict(state["steps"])
        self._reported = set(state["reported"])

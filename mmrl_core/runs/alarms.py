"""The alarms of a run: rewards that teach nothing or score nothing, and weights that explode."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.runs.log import read_metrics
from mmrl_core.scoring import Alarm, ConstantRewardAlarm, UnscoredRunAlarm

if TYPE_CHECKING:
    from torch import Tensor

EXPLODED = 100.0
"""Trained weights whose norm is this many times that at the start of the run have exploded.

Training moves weights by a few percent, and from scratch by less than ten times; nothing that learns reaches this. A
learning rate of 1 or more does, within a few steps: AdamW moves every weight by about the learning rate in each step,
and weights of a network are 0.01 to 0.1 in size.
"""


def alarms_of(run: Path) -> list[str]:
    """Messages of the alarms of a run, from its metrics.jsonl, in order.

    What once stopped the run, because nothing was scored, is left out where it was resumed and went on.
    """
    records = read_metrics(run) if (run / "metrics.jsonl").is_file() else []
    last_step = max((place for place, record in enumerate(records) if record["kind"] == "step"), default=-1)
    alarms = [(place, record) for place, record in enumerate(records) if record["kind"] == "alarm"]
    return [alarm["message"] for place, alarm in alarms if alarm["name"] != "unscored_run" or place > last_step]


@dataclass
class WeightsAlarm:
    """Notices trained weights that have grown beyond anything that training does; see `EXPLODED`."""

    _start: float | None = None
    _reported: bool = False

    def update(self, norm: float, step: int, lr: float) -> Alarm | None:
        """Look at the norm of the trained weights after a step."""
        if self._start is None:  # made by hand, with no weights looked at before
            self._start = norm
        if self._reported or not self._start or norm <= EXPLODED * self._start:
            return None
        self._reported = True
        return Alarm(
            "weights",
            f"the trained weights have exploded: their norm is {norm:.3g} after step {step}, and was "
            f"{self._start:.3g} at the start. What the policy writes from here on is worth nothing. Lower optimizer.lr "
            f"(now {lr:g}), and go on from a checkpoint before.",
        )

    def begin(self, norm: float) -> None:
        """The norm at the start of the run; that of a resumed run is known already."""
        if self._start is None:
            self._start = norm

    def state(self) -> list[Any]:
        return [self._start, self._reported]

    def load_state(self, state: list[Any]) -> None:
        self._start, self._reported = state


@dataclass
class RunAlarms:
    """All alarms of a run, with what they remember between steps."""

    constant: ConstantRewardAlarm = field(default_factory=ConstantRewardAlarm)
    unscored: UnscoredRunAlarm = field(default_factory=UnscoredRunAlarm)
    weights: WeightsAlarm = field(default_factory=WeightsAlarm)

    def of_rewards(self, components: Mapping[str, Tensor]) -> list[Alarm]:
        """Alarms about the scores of a step: reward -> [N]."""
        return self.constant.update(components)

    def of_step(self, record: Mapping[str, Any]) -> list[Alarm]:
        """Alarms about the metrics of a step that is done."""
        alarm = self.weights.update(record.get("weights/norm", math.nan), record["step"], record["lr"])
        return [alarm] if alarm is not None else []

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "constant": self.constant.state(),
            "unscored": self.unscored.state(),
            "weights": self.weights.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.constant.load_state(state["constant"])
        self.unscored.load_state(state["unscored"])
        self.weights.load_state(state["weights"])

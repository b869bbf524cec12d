"""Which rollouts are right, and what they said: by the reward that decides it, as its plugin declares.

The reward is `eval.pass_reward`, or else the first one of the task, or of the mixture's part. A rollout is right where
that reward has reached the `maximum` of its registration; with no maximum, nothing is said to be right or wrong. What a
completion said is read by the `answer` of the registration, where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmrl_core.config import RunConfig, parts_of
from mmrl_core.support import finite

if TYPE_CHECKING:
    from mmrl_core.plugins import Registry
    from mmrl_core.types import RolloutGroup, Scores

PASS_TOLERANCE = 1e-6
"""A reward this close to its maximum has reached it, whatever float32 made of it."""

MAX_SAID = 2_000
"""Characters of an answer that are kept."""

MAX_REASON = 1000
"""Characters of why a reward failed: an exception may quote a whole completion."""


@dataclass(frozen=True)
class _Judge:
    """A reward that decides: its highest value, None if it has none, and what reads the answer out of a completion."""

    maximum: float | None
    answer_of: Callable[[Any, Mapping[str, Any]], Any] | None


class Rightness:
    """Judges the rollouts of a run, in training and on held-out rows."""

    def __init__(self, config: RunConfig, registry: Registry) -> None:
        self._judges: dict[str, dict[str, _Judge]] = {}  # of each part: reward key -> judge, in order of precedence
        for parts in (parts_of(config), *map(parts_of, config.stages)):
            for part in parts:
                first = [reward for reward in part.rewards if reward.key == config.eval.pass_reward]
                for reward in [*first, *part.rewards]:
                    key = f"{part.name}/{reward.key}" if part.name else reward.key
                    entry = registry.get("reward", reward.name)
                    judge = _Judge(entry.details.get("maximum", 1.0), entry.detail("answer"))
                    self._judges.setdefault(part.name, {}).setdefault(key, judge)

    def judged(self, groups: Sequence[RolloutGroup], scores: Scores | None) -> list[dict[str, Any]]:
        """For each rollout: "correct", None where that is unknown; "said" and "gold", the answers, where they are read.

        Args:
            scores: of exactly these rollouts.
        """
        columns = {} if scores is None else {name: values.tolist() for name, values in scores.components.items()}
        judged: list[dict[str, Any]] = []
        for group in groups:
            judges = self._judges.get(group.prompt.part, {})
            key = next((key for key in judges if key in columns), None)
            judge = judges[key] if key is not None else _Judge(None, None)
            answer, sample = group.prompt.answer, group.prompt.sample
            gold = {"gold": _said(judge, answer, sample)} if answer is not None else {}
            for rollout in group.rollouts:
                value = math.nan if key is None else columns[key][len(judged)]
                unknown = judge.maximum is None or math.isnan(value)
                correct = None if unknown else value >= (judge.maximum or 0.0) - PASS_TOLERANCE
                read = {"said": _said(judge, rollout.completion, sample), **gold}
                judged.append({"correct": correct, **{name: text for name, text in read.items() if text is not None}})
        return judged


def _said(judge: _Judge, completion: Any, sample: Mapping[str, Any]) -> str | None:
    """The answer in a completion; None where none is read, for what it is read by belongs to others."""
    if judge.answer_of is None:
        return None
    try:
        answer = judge.answer_of(completion, sample)
    except Exception:
        return None
    return None if answer is None else str(answer)[:MAX_SAID]


def scored_rollouts(
    groups: Sequence[RolloutGroup], scores: Scores | None, rightness: Rightness | None
) -> list[dict[str, Any]]:
    """The keys "rewards", "failures" and "total" of each rollout, None = unscored, and those of `Rightness.judged`."""
    judged = [] if rightness is None else rightness.judged(groups, scores)
    told = _scores_told(groups, scores)
    return [one | own for one, own in zip(told, judged, strict=True)] if judged else told


def _scores_told(groups: Sequence[RolloutGroup], scores: Scores | None) -> list[dict[str, Any]]:
    if scores is None:
        return [{"rewards": {}, "failures": {}, "total": None} for group in groups for _ in group.rollouts]
    columns = {name: values.tolist() for name, values in scores.components.items()}
    return [
        {
            "rewards": {name: finite(values[n]) for name, values in columns.items()},
            "failures": {name: why[:MAX_REASON] for name, of in scores.reasons.items() if (why := of[n]) is not None},
            "total": finite(total),
        }
        for n, total in enumerate(scores.totals.tolist())
    ]

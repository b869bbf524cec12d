"""Accuracy over all rows and by column. Shares are in 0..1."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mmrl_core.scoring import score_each
from mmrl_text_reasoning import rewards
from mmrl_text_reasoning.parsing import final_answer

Sample = Mapping[str, Any]
SOLVED = 1 - 1e-6  # reasoning-gym pays less for what is nearly right


def accuracy(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    by: Sequence[str] = ("level", "subject", "type", "set"),
    reward: Literal["accuracy", "gym"] = "accuracy",
    untagged: bool = True,
    answer_s: float | None = None,
) -> dict[str, float]:
    """Share of right answers, over all rows and those of each value of some columns.

    Args:
        completions: N texts.
        samples: N rows, as for the reward.
        by: columns to give shares for, where rows have them.
        reward: that decides: `accuracy`, or `gym`, where the full score is right.
        untagged, answer_s: options of the reward.

    Returns:
        "accuracy"; "accuracy/<column>/<value>"; "marked", the share of completions that mark their answer by a box, an
        answer block or "####"; "characters", their mean length; "num_unscored", the rows without a gold that can be
        read, which are left out of the others. NaN where no row is left.

    >>> rows = [{"answer": "2", "level": 1}, {"answer": "3", "level": 2}]
    >>> numbers = accuracy([r"\\boxed{2}", "2"], rows)
    >>> [numbers[name] for name in ("accuracy", "accuracy/level/1", "accuracy/level/2", "marked")]
    [0.5, 1.0, 0.0, 0.5]
    """
    options: dict[str, Any] = {"untagged": untagged} | ({} if answer_s is None else {"answer_s": answer_s})
    scores = score_each(getattr(rewards, reward), completions, samples, **options)
    groups: dict[str, list[float]] = defaultdict(list)
    for completion, sample, score in zip(completions, samples, scores, strict=True):
        if score is None:
            continue
        right = float(score >= SOLVED)
        groups["accuracy"].append(right)
        groups["marked"].append(float(final_answer(completion, untagged=False) is not None))
        groups["characters"].append(float(len(completion)) if isinstance(completion, str) else 0.0)
        for column in by:
            if isinstance(sample.get(column), str | int):
                groups[f"accuracy/{column}/{sample[column]}"].append(right)
    num_scored = len(groups["accuracy"])
    return {name: sum(values) / len(values) if values else math.nan for name, values in sorted(groups.items())} | {
        "num_unscored": float(len(samples) - num_scored)
    }

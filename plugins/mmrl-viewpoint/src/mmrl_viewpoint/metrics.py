"""Benchmark metrics of viewpoint learning: completions and their rows in, named numbers out.

An answer that cannot be read is a wrong one. Rows without gold are left out and counted in `num_unscored`. A number
that no row defines is NaN. Shares are in 0..1; papers print them times 100.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl_core.scoring import plain_text, score_each, unwrapped
from mmrl_viewpoint.parsing import answer_text, is_formatted, numbers
from mmrl_viewpoint.rewards import accuracy as accuracy_reward

Sample = Mapping[str, Any]

TOLERANCES = tuple(percent / 100 for percent in range(50, 0, -5))


def accuracy(
    completions: Sequence[str], samples: Sequence[Sample], *, by: str | None = "question_type"
) -> dict[str, float]:
    """Share of right answers, by the rule of the reward, also for each type of question.

    Args:
        completions: N texts.
        samples: N rows with `ground_truth`, maybe `options`, and the column `by`.
        by: column whose values get an accuracy each; None for none.

    Returns:
        "accuracy"; "accuracy/<value>" over the rows with each value; "mean_over_types", the mean of those; "formatted",
        the share of completions in the published form; "num_unscored".

    >>> rows = [{"ground_truth": "A", "question_type": "left"}, {"ground_truth": "B", "question_type": "up"}]
    >>> accuracy(["<answer>A</answer>"] * 2, rows)["accuracy/left"]
    1.0
    """
    scored: list[float] = []
    of_value: dict[str, list[float]] = defaultdict(list)
    for right, sample in zip(score_each(accuracy_reward, completions, samples), samples, strict=True):
        if right is None:
            continue
        scored.append(right)
        if by is not None and sample.get(by) is not None:
            of_value[str(sample[by])].append(right)
    shares = {f"accuracy/{value}": _mean(rights) for value, rights in sorted(of_value.items())}
    return {
        "accuracy": _mean(scored),
        **shares,
        "mean_over_types": _mean(list(shares.values())),
        "formatted": _mean([float(is_formatted(completion)) for completion in completions]),
        "num_unscored": float(len(samples) - len(scored)),
    }


def circular_accuracy(completions: Sequence[str], samples: Sequence[Sample]) -> dict[str, float]:
    """Share of questions that are answered right under every rotation of their options.

    Args:
        completions: N texts.
        samples: N rows; those with one `circular_group` are the rotations of one question. A row without it is a
            question of its own.

    Returns:
        "circular_accuracy", over questions; "accuracy", over rows; "num_questions"; "num_unscored", rows.

    >>> rows = [{"ground_truth": "A", "circular_group": "7"}, {"ground_truth": "B", "circular_group": "7"}]
    >>> circular_accuracy(["<answer>A</answer>"] * 2, rows)["circular_accuracy"]
    0.0
    """
    groups: dict[Any, list[float]] = defaultdict(list)
    for index, right in enumerate(score_each(accuracy_reward, completions, samples)):
        if right is not None:
            group = samples[index].get("circular_group")
            groups[("row", index) if group is None else str(group)].append(right)
    rights = [right for group in groups.values() for right in group]
    return {
        "circular_accuracy": _mean([min(group) for group in groups.values()]),
        "accuracy": _mean(rights),
        "num_questions": float(len(groups)),
        "num_unscored": float(len(samples) - len(rights)),
    }


def omni3d(completions: Sequence[str], samples: Sequence[Sample]) -> dict[str, float]:
    """Open questions of Omni3D-Bench, by the kind of answer.

    Texts, "yes" and "no" among them, and counts have to be equal. Sizes and ratios count by mean relative accuracy: the
    share of the tolerances 0.5, 0.45, ..., 0.05 that the relative error stays below (arXiv:2412.14171, section 3).

    Args:
        completions: N texts; the answer is in the answer block. Of a number's answer the first number counts.
        samples: N rows with `ground_truth` and `answer_type`: "str", "int" or "float".

    Returns:
        "yes_no", "choice", "count": shares of right answers; "number": mean relative accuracy; "mean", of all rows;
        "num_unscored", rows whose gold is of none of these types.

    >>> row = {"ground_truth": "2.0", "answer_type": "float"}
    >>> omni3d(["<answer>1.7</answer>"], [row])["number"]  # an error of 0.15 is below seven of the ten
    0.7
    """
    scores: dict[str, list[float]] = {"yes_no": [], "choice": [], "count": [], "number": []}
    for completion, sample in zip(completions, samples, strict=True):
        kind = sample.get("answer_type")
        gold_value = unwrapped(sample.get("ground_truth"))
        truth, answer = "" if gold_value is None else str(gold_value).strip(), answer_text(completion) or ""
        if kind == "str" and truth:
            name = "yes_no" if _word(truth) in ("yes", "no") else "choice"
            scores[name].append(float(_word(answer) == _word(truth)))
        elif kind in ("int", "float") and (gold := next(numbers(truth), None)) is not None:
            value = next(numbers(answer), None)
            if kind == "int":
                scores["count"].append(float(value == gold))
            else:
                scores["number"].append(_relative_accuracy(value, gold))
    everything = [score for kind_scores in scores.values() for score in kind_scores]
    return {
        **{name: _mean(values) for name, values in scores.items()},
        "mean": _mean(everything),
        "num_unscored": float(len(samples) - len(everything)),
    }


def _relative_accuracy(value: float | None, gold: float) -> float:
    if value is None or gold == 0:
        return float(value == gold)
    error = abs(value - gold) / abs(gold)
    return _mean([float(error < tolerance) for tolerance in TOLERANCES])


def _word(text: str) -> str:
    return plain_text(text).casefold().strip(" .")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan

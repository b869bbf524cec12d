"""Benchmark metrics: accuracy by question type, what a constant answer would reach, and how answers are wrong."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl_core.scoring import score_each
from mmrl_uav_vqa.parsing import answer_text, normalized_label, parse_count, parse_yes_no
from mmrl_uav_vqa.rewards import AreaRule, Rule, Untagged, accuracy, gold_answer, gold_kind

Sample = Mapping[str, Any]


def by_type(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    count_tolerance: int = 0,
    area_rule: AreaRule = "tolerance",
    aliases: Mapping[str, Sequence[str]] | None = None,
    untagged: Untagged = "wrong",
    rule: Rule = "typed",
) -> dict[str, float]:
    """Accuracy over all rows, over types, and of each type, by the rules of the reward.

    Args:
        completions, samples, count_tolerance, area_rule, aliases, untagged, rule: as in `rewards.accuracy`. For
            numbers to put beside those of HRVQA: rule "hrvqa", its own.

    Returns:
        Shares in 0..1; NaN where no row decides them.
            accuracy: of all rows (HRVQA's OA). mean_type_accuracy: mean over the types that occur (its AA).
            accuracy/<type>: "untyped" for rows without one.
            exact: answers that are the gold text, case aside.
            most_common: accuracy of always giving the most common gold answer of the type, in these very rows. A model
            below it has learnt less than the skew of the data.
            readable: rows with a single answer block.
            yes_as_no, no_as_yes: of gold yes (no), the share answered by the other one.
        count_error: mean |answer - truth| of the counts that can be read, in objects.
        num_unscored: rows without usable gold answer or of an unknown type; they count nowhere else.
    """
    scores = score_each(
        accuracy,
        completions,
        samples,
        count_tolerance=count_tolerance,
        area_rule=area_rule,
        aliases=aliases,
        untagged=untagged,
        rule=rule,
    )
    of_type: dict[str, list[float]] = defaultdict(list)
    golds: dict[str, Counter[str]] = defaultdict(Counter)
    yes_no: Counter[tuple[str | None, str | None]] = Counter()
    count_errors: list[float] = []
    exact: list[float] = []
    readable: list[float] = []
    for completion, sample, score in zip(completions, samples, scores, strict=True):
        gold = None if score is None else gold_answer(sample)
        if score is None or gold is None:
            continue
        truth, question_type = gold
        answer = answer_text(completion, untagged=untagged)
        of_type[question_type or "untyped"].append(score)
        golds[question_type or "untyped"][normalized_label(truth)] += 1
        exact.append(float(answer is not None and answer.lower() == truth.lower()))
        readable.append(float(answer is not None))
        kind = gold_kind(truth, question_type)
        if kind == "yes_no":
            yes_no[parse_yes_no(truth), parse_yes_no(answer or "")] += 1
        elif kind == "number":
            count, true_count = parse_count(answer or ""), parse_count(truth)
            if count is not None and true_count is not None:
                count_errors.append(float(abs(count - true_count)))
    types = {name: _mean(values) for name, values in sorted(of_type.items())}
    num_scored = sum(map(len, of_type.values()))
    num_common = sum(max(counter.values()) for counter in golds.values())
    return {
        "accuracy": _mean([score for values in of_type.values() for score in values]),
        "mean_type_accuracy": _mean(list(types.values())),
        "exact": _mean(exact),
        "most_common": num_common / num_scored if num_scored else math.nan,
        "readable": _mean(readable),
        "count_error": _mean(count_errors),
        "yes_as_no": _share(yes_no, "yes", "no"),
        "no_as_yes": _share(yes_no, "no", "yes"),
        "num_unscored": float(len(samples) - num_scored),
        **{f"accuracy/{name}": value for name, value in types.items()},
    }


def _share(yes_no: Counter[tuple[str | None, str | None]], truth: str, answer: str) -> float:
    total = sum(count for (gold, _), count in yes_no.items() if gold == truth)
    return yes_no[truth, answer] / total if total else math.nan


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan

"""Benchmark metrics of VITAL: completions and their rows in, named numbers out.

An answer that cannot be read is a wrong one. Rows without usable gold are left out and counted in `num_unscored`. A
number that no row defines is NaN. Shares are in 0..1; papers often print them times 100.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl_core.data import read_options
from mmrl_core.errors import TaskDataError
from mmrl_core.scoring import gold_text, score_each, unwrapped
from mmrl_vital.parsing import Span, answer_text, parse_choice, parse_span, parse_spans, split_span
from mmrl_vital.rewards import multiple_choice, numerical

Sample = Mapping[str, Any]

THRESHOLDS = (0.3, 0.5, 0.7)
IOP_THRESHOLDS = (0.3, 0.5)
GROUNDED_FROM = 0.5
ROUNDING = 1e-9  # spans have decimals that floats lack; without it an IoU of exactly 0.7 may miss 0.7


def temporal_grounding(completions: Sequence[str], samples: Sequence[Sample]) -> dict[str, float]:
    """Overlap in time of the answered span with the gold span; of several gold spans the best counts.

    IoU is intersection over union, without the 1e-4 s that the published code adds to lengths: with it, an overlap of
    exactly 0.5 would miss 0.5. A gold span without length is met by the same instant alone, with an IoU of 1.

    Args:
        completions: N texts.
        samples: N rows; `ground_truth` is what `parsing.parse_spans` reads.

    Returns:
        "mIoU"; "R@0.3", "R@0.5", "R@0.7", the shares of rows whose IoU is at least that; "readable", the share of
        answers with a span; "num_unscored".

    >>> temporal_grounding(["<answer>From 2 to 7 seconds</answer>"], [{"ground_truth": [0, 10]}])["mIoU"]
    0.5
    """
    ious: list[float] = []
    num_read = 0
    for completion, sample in zip(completions, samples, strict=True):
        if golds := parse_spans(sample.get("ground_truth")):
            span = parse_span(answer_text(completion))
            num_read += span is not None
            ious.append(_best_iou(span, golds))
    return _grounding(ious) | {
        "readable": num_read / len(ious) if ious else math.nan,
        "num_unscored": float(len(samples) - len(ious)),
    }


def accuracy(completions: Sequence[str], samples: Sequence[Sample], *, by: str | None = None) -> dict[str, float]:
    """Share of right answers to multiple-choice and numerical questions.

    A letter has to be the gold one; a number has to equal the gold rounded to one decimal. Nothing is guessed where no
    answer is found. (quirk of some published scripts: they draw a random option then.)

    Args:
        completions: N texts.
        samples: N rows with `ground_truth`, `task` ("multiple_choice" or "numerical"; rows of other tasks are
            unscored) and maybe `options`.
        by: column, such as "task" or "duration_class": also give "accuracy/<value>" over the rows with each value.

    Returns:
        "accuracy", "accuracy/<value>", "num_unscored".

    >>> rows = [{"task": "multiple_choice", "ground_truth": "B", "duration_class": "long"}] * 2
    >>> accuracy(["<answer>B</answer>", "<answer>?</answer>"], rows, by="duration_class")
    {'accuracy': 0.5, 'num_unscored': 0.0, 'accuracy/long': 0.5}
    """
    scored: list[float] = []
    of_value: dict[str, list[float]] = defaultdict(list)
    for completion, sample in zip(completions, samples, strict=True):
        reward = {"multiple_choice": multiple_choice, "numerical": numerical}.get(str(sample.get("task")))
        value = score_each(reward, [completion], [sample])[0] if reward is not None else None
        if value is None:
            continue
        right = float(value == 1.0)
        scored.append(right)
        if by is not None and sample.get(by) is not None:
            of_value[str(sample[by])].append(right)
    result = {"accuracy": _mean(scored), "num_unscored": float(len(samples) - len(scored))}
    return result | {f"accuracy/{name}": _mean(values) for name, values in sorted(of_value.items())}


def grounded_qa(completions: Sequence[str], samples: Sequence[Sample]) -> dict[str, float]:
    """Multiple choice with the span of the evidence, each by itself and both together.

    Args:
        completions: N texts like "From 5.0 to 12.5 seconds, B" in answer tags.
        samples: N rows; `ground_truth` as in `rewards.grounded_qa`, `options` if its answer is more than a letter.

    Returns:
        "accuracy"; "mIoU", "R@0.3", "R@0.5", "R@0.7" as in `temporal_grounding`; "mIoP", "IoP@0.3", "IoP@0.5", the same
        with intersection over the *predicted* length, of several gold spans the best; "accuracy_IoU@0.5", the share of
        right answers whose span has an IoU of at least 0.5 (ReXTime's measure of both); "accuracy_IoP@0.5", the same
        with the IoP (Acc@GQA of NExT-GQA); "num_unscored", rows without a gold letter (free text has no right or
        wrong); "num_without_span", scored rows without a gold span, which only "accuracy" counts.

    Source: NExT-GQA, arXiv:2309.01327, and its public evaluation, where an answered instant has an IoP of 1 inside a
    gold span (ends included) and of 0 outside, and an IoU of 0.

    >>> row = {"ground_truth": {"span": [[0, 10], [20, 30]], "answer": "B"}}
    >>> result = grounded_qa(["<answer>From 20 to 24 seconds, B</answer>"], [row])
    >>> [result[name] for name in ("accuracy", "mIoU", "accuracy_IoU@0.5", "accuracy_IoP@0.5")]
    [1.0, 0.4, 0.0, 1.0]
    """
    ious: list[float] = []
    iops: list[float] = []
    right: list[float] = []
    grounded_right: list[float] = []
    for completion, sample in zip(completions, samples, strict=True):
        golds, letter, options = _grounded_gold(sample)
        if letter is None:
            continue
        span, rest = split_span(answer_text(completion))
        right.append(float(parse_choice(rest, options) == letter))
        if golds:
            ious.append(_best_iou(span, golds))
            iops.append(_best_iop(span, golds))
            grounded_right.append(right[-1])
    both = {
        f"accuracy_{name}@{GROUNDED_FROM}": _mean(
            [is_right * _reaches(value, GROUNDED_FROM) for is_right, value in zip(grounded_right, values, strict=True)]
        )
        for name, values in (("IoU", ious), ("IoP", iops))
    }
    return {
        "accuracy": _mean(right),
        **_grounding(ious),
        "mIoP": _mean(iops),
        **{f"IoP@{threshold}": _mean([_reaches(iop, threshold) for iop in iops]) for threshold in IOP_THRESHOLDS},
        **both,
        "num_unscored": float(len(samples) - len(right)),
        "num_without_span": float(len(right) - len(ious)),
    }


def _grounded_gold(sample: Sample) -> tuple[list[Span], str | None, Sequence[str] | None]:
    """Gold spans, gold letter, options; no letter where the gold answer is free text, or cannot be read."""
    gold = unwrapped(sample.get("ground_truth"))
    try:
        options = read_options(sample.get("options"), least=1)
        if isinstance(gold, Mapping):
            golds, answer = parse_spans(gold.get("span")), gold_text(gold.get("answer"), "ground_truth.answer") or ""
        else:
            span, answer = split_span(answer_text(gold))
            golds = parse_spans([span]) if span else []
    except TaskDataError:
        return [], None, None
    is_choice = bool(options) or len(answer.strip(" ().")) == 1
    return golds, parse_choice(answer, options) if is_choice else None, options


def _best_iou(span: Span | None, golds: Sequence[Span]) -> float:
    if span is None:
        return 0.0
    if span in golds:  # also of an instant, whose union has no length
        return 1.0
    unions = [_length(span) + _length(gold) - _shared(span, gold) for gold in golds]
    return max(_shared(span, gold) / union if union else 0.0 for gold, union in zip(golds, unions, strict=True))


def _best_iop(span: Span | None, golds: Sequence[Span]) -> float:
    if span is None:
        return 0.0
    if not _length(span):
        return float(any(start <= span[0] <= end for start, end in golds))
    return max(_shared(span, gold) for gold in golds) / _length(span)


def _length(span: Span) -> float:
    return span[1] - span[0]


def _shared(first: Span, second: Span) -> float:
    """Seconds that lie in both."""
    return max(0.0, min(first[1], second[1]) - max(first[0], second[0]))


def _grounding(ious: Sequence[float]) -> dict[str, float]:
    recalls = {f"R@{threshold}": _mean([_reaches(iou, threshold) for iou in ious]) for threshold in THRESHOLDS}
    return {"mIoU": _mean(ious), **recalls}


def _reaches(value: float, threshold: float) -> float:
    return float(value >= threshold - ROUNDING)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan

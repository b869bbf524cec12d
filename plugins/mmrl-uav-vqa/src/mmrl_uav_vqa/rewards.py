"""Rewards of UAV-VL-R1: an answer compared by the type of its question, and the format.

The paper says that its rewards are rules on the two tags and on the answer; their exact form is not public. The rules
here are our own, typed, where the systems that it descends from compare strings, or whatever number a mathematics
parser finds in the whole text. Completions are untrusted: they are parsed with bounds and never evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmrl_core.data import read_options, read_texts
from mmrl_core.errors import TaskDataError
from mmrl_core.scoring import gold_text, unusable_gold
from mmrl_uav_vqa.parsing import (
    QUESTION_TYPES,
    Area,
    answer_text,
    chosen_option,
    has_format,
    is_option,
    normalized_label,
    parse_area,
    parse_count,
    parse_directions,
    parse_yes_no,
    question_type_of,
)
from mmrl_uav_vqa.published_rule import is_right

Sample = Mapping[str, Any]

MAX_SOFT_CREDIT = 0.5  # of a count that is not exact: below it, a near miss would pay as much as half a hit in format
AREA_TOLERANCE = 0.05 * (1 + 1e-9)  # relative error that still counts as right; in floats, 2.1 for 2 is a hair more
AREA_ZERO_AT = 0.5  # relative error at which linear credit ends
# HRVQA sorts areas into these classes; each holds its upper end, in square metres.
AREA_CLASS_ENDS_M2 = (0.0, 10.0, 100.0, 1000.0)
AREA_CLASS_NAMES = (
    "0m2",
    "between 0m2 and 10m2",
    "between 10m2 and 100m2",
    "between 100m2 and 1000m2",
    "more than 1000m2",
)

# What HRVQA runs together, and the other spelling of a colour.
_LABEL_ALIASES = {
    "fitnessorsoccer": "fitness or soccer",
    "fitnessorbasketball": "fitness or basketball",
    "tennisorsoccer": "tennis or soccer",
    "basketballorsoccer": "basketball or soccer",
    "grey": "gray",
}

GOLD = "a word, a number, or yes or no"  # what a gold answer may be, for messages

Untagged = Literal["wrong", "whole_text"]
AreaRule = Literal["tolerance", "linear", "class"]
Rule = Literal["typed", "hrvqa"]


def format(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """1.0 for one think block, then one answer block that is not blank, and nothing else; else 0.0.

    White space may stand around the blocks. Nothing of the samples is read.

    quirks of the family that this system is from, mended: several tag pairs and an empty answer pass there; a trailing
    line break fails.

    Raises:
        ValueError: the lengths differ.

    >>> format(["<think>two rows</think> <answer>4</answer>\\n", "<answer>4</answer>"], [{}, {}])
    [1.0, 0.0]
    """
    return [float(has_format(completion)) for completion, _ in zip(completions, samples, strict=True)]


def accuracy(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    count_tolerance: int = 0,
    soft_counts: bool = False,
    area_rule: AreaRule = "tolerance",
    aliases: Mapping[str, Sequence[str]] | None = None,
    untagged: Untagged = "wrong",
    rule: Rule = "typed",
) -> list[float | None]:
    """The answer against the gold one, by the type of the question, in [0, 1].

    What is compared how; a gold answer that is not of its type ("many" for a number) is compared as a label:

        number    one integer in the answer, in digits or words (zero to twenty), equal to the gold one. Two numbers
                  are no answer.
        yes_no    the first word; an answer that says both is wrong.
        area      one number, with or without unit: m2, km2, ha. See `area_rule`.
        location  the same set of directions, in any order: "left top corner" is "upper left".
        the rest  equal labels, see `parsing.normalized_label`, or an alias. "red or blue" is neither.

    Without a type the gold answer decides: yes or no, an integer, a number with a unit, directions, or else a label. If
    the sample has `options`, a letter stands for its option.

    Args:
        completions: B texts, completion only.
        samples: B rows; `answer` (text), `question_type` (see `parsing.question_type_of`), and if they have it
            `options` (list of texts), `unit` (of areas, for numbers without one) and `aliases` (other right answers).
        count_tolerance: a count off by at most so many is right, too.
        soft_counts: a wrong count p earns max(0, 1 - |p - t| / max(1, t)), at most 0.5.
        area_rule: "tolerance": right up to a relative error of 5 %; "linear": the same, then falling to 0 at 50 %;
            "class": both in the same of HRVQA's classes, of 0, 10, 100 and 1000 m2 upwards, where the answer may also
            be the name of the class, "between 10m2 and 100m2".
        aliases: label -> other names of it.
        untagged: "whole_text" reads a completion without answer tags as an answer, for models that were not taught
            them; "wrong" pays 0.
        rule: "typed" as above; "hrvqa" takes an answer where HRVQA's own evaluation does, and looks at no other option
            than `untagged`, see `published_rule`. For published numbers alone: gold areas score 0 by it.

    Returns:
        B values; 0.0 where no answer can be read, None where the sample has no gold answer.

    Raises:
        ValueError: the lengths differ, or an option has a value that it does not know.
        TaskDataError: the gold answer is no text, number or bool, such as a list of several; the type is unknown; or
            `options` or `aliases` are no list of texts.

    Source: arXiv:2508.11196 for typed, rule-based rewards; the rules are ours.

    >>> gold = [{"question_type": "number", "answer": "4"}, {"question_type": "location", "answer": "top left"}]
    >>> accuracy(["<answer>four cars</answer>", "<answer>upper left corner</answer>"], gold)
    [1.0, 1.0]
    """
    if count_tolerance < 0:
        raise ValueError(f"count_tolerance is {count_tolerance}, below 0")
    if area_rule not in ("tolerance", "linear", "class") or untagged not in ("wrong", "whole_text"):
        raise ValueError(f"area_rule {area_rule!r} or untagged {untagged!r} is unknown")
    if rule not in ("typed", "hrvqa"):
        raise ValueError(f"rule is 'typed' or 'hrvqa', not {rule!r}")
    if rule == "hrvqa":
        return [
            _by_published_rule(answer_text(completion, untagged=untagged), sample)
            for completion, sample in zip(completions, samples, strict=True)
        ]
    pairs = [(name, label) for label, names in (aliases or {}).items() for name in names]
    table = {normalized_label(name): normalized_label(label) for name, label in pairs}
    rules = _Rules(count_tolerance, soft_counts, area_rule, _LABEL_ALIASES | table)
    return [
        rules.score(answer_text(completion, untagged=untagged), sample)
        for completion, sample in zip(completions, samples, strict=True)
    ]


def _by_published_rule(answer: str | None, sample: Sample) -> float | None:
    gold = gold_answer(sample)
    return None if gold is None else float(answer is not None and is_right(answer, gold[0]))


def gold_kind(answer: str, question_type: str | None) -> str:
    """How a gold answer is compared: "number", "yes_no", "area", "location" or "label".

    Args:
        question_type: one of `parsing.QUESTION_TYPES`; None, and "other", leave it to the answer.

    >>> gold_kind("4", "number"), gold_kind("many", "number"), gold_kind("12.5m2", None), gold_kind("4", "scene")
    ('number', 'label', 'area', 'label')
    """
    area = parse_area(answer)
    fits = {
        "yes_no": parse_yes_no(answer) is not None,
        "number": parse_count(answer) is not None and (question_type == "number" or len(answer.split()) == 1),
        "area": area is not None and (question_type == "area" or area.has_unit),
        "location": parse_directions(answer) is not None,
    }
    if question_type in fits:
        return question_type if fits[question_type] else "label"
    if question_type not in (None, "other"):
        return "label"
    return next((kind for kind, is_fit in fits.items() if is_fit), "label")


def gold_answer(sample: Sample) -> tuple[str, str | None] | None:
    """Gold answer and question type of a sample; None where the answer is missing or blank.

    Raises:
        TaskDataError: the answer is neither a text nor a number, or the type is unknown.
    """
    answer = gold_text(sample.get("answer"), "answer", GOLD) if isinstance(sample, Mapping) else None
    if answer is None:
        return None
    name = sample.get("question_type")
    if name is None or name == "":
        return answer, None
    question_type = question_type_of(name)
    if question_type is None:
        raise TaskDataError(f"question_type is {name!r}, none of {', '.join(QUESTION_TYPES)}")
    return answer, question_type


@dataclass(frozen=True)
class _Rules:
    count_tolerance: int
    soft_counts: bool
    area_rule: AreaRule
    aliases: Mapping[str, str]  # normalised alias -> normalised label

    def score(self, answer: str | None, sample: Sample) -> float | None:
        gold = gold_answer(sample)
        if gold is None:
            return None
        truth, question_type = gold
        if not answer:
            return 0.0
        if options := read_options(sample.get("options"), least=1):
            if not is_option(truth, options):
                raise unusable_gold(truth, "answer", f"one of the options {options!r:.200}")
            truth, answer = chosen_option(truth, options), chosen_option(answer, options)
        kind = gold_kind(truth, question_type)
        if kind == "number":
            return self._count(parse_count(answer), parse_count(truth))
        if kind == "yes_no":
            return float(parse_yes_no(answer) == parse_yes_no(truth))
        if kind == "area":
            return self._area(answer, parse_area(truth), sample.get("unit"))
        if kind == "location":
            return float(parse_directions(answer) == parse_directions(truth))
        right = [truth, *(read_texts(sample.get("aliases"), "aliases") or ())]
        return float(self._label(answer) in {self._label(name) for name in right})

    def _label(self, text: str) -> str:
        label = normalized_label(text)
        return self.aliases.get(label, label)

    def _count(self, count: int | None, truth: int | None) -> float:
        assert truth is not None
        if count is None:
            return 0.0
        error = abs(count - truth)
        if error <= self.count_tolerance:
            return 1.0
        return min(MAX_SOFT_CREDIT, max(0.0, 1.0 - error / max(1, truth))) if self.soft_counts else 0.0

    def _area(self, answer: str, truth: Area | None, unit: object) -> float:
        assert truth is not None
        truth_m2 = _square_metres(truth, unit)
        area = parse_area(answer)
        if self.area_rule == "class":
            name = normalized_label(answer) if area is None else area_class(_square_metres(area, unit))
            return float(name.replace(" ", "") == area_class(truth_m2).replace(" ", ""))
        if area is None:
            return 0.0
        difference = abs(_square_metres(area, unit) - truth_m2)
        if difference == 0.0 or truth_m2 == 0.0:
            return float(difference == 0.0)
        error = difference / abs(truth_m2)
        if error <= AREA_TOLERANCE:
            return 1.0
        falling = (AREA_ZERO_AT - error) / (AREA_ZERO_AT - AREA_TOLERANCE)
        return max(0.0, falling) if self.area_rule == "linear" else 0.0


def area_class(square_metres: float) -> str:
    """The class of HRVQA that an area is in. (quirk of its evaluation: "0m2" is right up to 1000 m2, too.)

    >>> area_class(0), area_class(10), area_class(10.5)
    ('0m2', 'between 0m2 and 10m2', 'between 10m2 and 100m2')
    """
    index = next((i for i, end in enumerate(AREA_CLASS_ENDS_M2) if square_metres <= end), len(AREA_CLASS_ENDS_M2))
    return AREA_CLASS_NAMES[index]


def _square_metres(area: Area, unit: object) -> float:
    """The area, in the sample's unit where none is written; m2 where that has none either."""
    implied = parse_area(f"1 {unit}") if not area.has_unit and isinstance(unit, str) else None
    return area.square_metres * (implied.square_metres if implied is not None else 1.0)

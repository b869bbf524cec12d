"""Rewards of Visual-RFT: detection, fine-grained classification and reasoning grounding.

Every reward takes the B completions and their B samples and returns B numbers in the same order. A sample is a row of
the published data: `solution` is a string with the gold answer in answer tags, or that answer as a list or number.
`None` means unscored, because the sample holds no gold; a gold that is there and cannot be read is a TaskDataError,
which says what is expected. A completion that cannot be read, or is no string, scores 0.0. Every number is finite and
in the stated range. Completions are untrusted and only ever parsed (see `parsing`).

Published totals are plain sums: detection iou + confidence + format (0..3), classification accuracy + format (0..2),
grounding giou + format (0..3).

quirk of the published code, everywhere: it first hands the whole completion and the solution to a symbolic mathematics
parser, which picks one number out of each and pays 1.0 where they agree, so that boxes of the wrong size and missing
boxes score 1.0. It is not done here; numbers below mean the published rule without that step.

Boxes: completions and solutions are read in PER_MILLE (0..1000 per axis) unless told otherwise. A model that writes
pixels of the resized image (Qwen2.5-VL) needs `completion_convention="absolute_px"` and the columns `resized_width_px`
and `resized_height_px` in its samples; the gold box is converted, the model's is taken as written.

Source: Visual-RFT, arXiv:2503.01785, and its public code as of 2025-05-21.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmrl_core.data import read_texts
from mmrl_core.media import Box, BoxConvention, box_giou, box_iou, convert
from mmrl_core.scoring import gold_text, unusable_gold, unwrapped
from mmrl_visual_rft.parsing import (
    Detection,
    answer_text,
    name_words,
    normalised_name,
    parse_boxes,
    parse_detections,
)

Sample = Mapping[str, Any]
Convention = BoxConvention | str

# How far a grounding box may reach over an edge of the image, as a share of that side. Models overshoot by a little at
# the border; far beyond it the numbers are of another convention, or made up.
OVERHANG = 0.1
DETECTIONS = "detections, [{'Position': [x1, y1, x2, y2], 'Confidence': 1}], or No Objects"


# Detection


def iou(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    threshold: float = 0.5,
    dense: bool = False,
    completion_convention: Convention = BoxConvention.PER_MILLE,
    solution_convention: Convention = BoxConvention.PER_MILLE,
) -> list[float | None]:
    """Detection: summed IoU of the matched boxes, over the larger of the two box counts.

    Predictions in order of confidence, highest first, each take the free gold box of highest IoU, if that IoU is above
    the threshold; equal confidences keep the order of writing. A confident loose box may so take the gold box from a
    better one, as in average precision. A position written twice counts once. Boxes without area, inverted ones
    included, match nothing.

    quirks of the published code, mended:
        No truth and none predicted scores 0 there, 1.0 here (truth empty and boxes predicted stays 0.0).
        A missing, textual or non-finite confidence costs the whole reward there; here such a box is ordered as if it
        had confidence 1.0, and its IoU is unaffected. Finite values outside 0..1 order as written.
        Answers that are not clean one-line JSON are lost there (see `parse_detections`).

    Args:
        completions: B texts, completion only.
        samples: B rows; `solution` like "<answer>[{'Position': [254, 303, 291, 365], 'Confidence': 1}]</answer>" or
            "<answer>No Objects</answer>".
        threshold: in [0, 1); an IoU has to be strictly above it.
        dense: credit for every overlap, for shaping. The threshold is ignored, and the pairs of highest IoU match
            first whatever their confidence, so that a loose box never takes the credit of a better one.
        completion_convention: what the numbers in completions mean.
        solution_convention: what the numbers in `solution` mean.

    Returns:
        B values in [0, 1]; None where `solution` is missing, or the image size is needed and missing.

    Raises:
        ValueError: the lengths differ, the threshold is out of range, or a convention is unknown.
        TaskDataError: `solution` holds no detections.

    Our choice: the paper averages over predictions; the code, and this, take the larger count, so missed boxes cost.

    >>> gold = {"solution": "<answer>[{'Position': [0, 0, 100, 100], 'Confidence': 1}]</answer>"}
    >>> iou(["<answer>[{'Position': [0, 0, 100, 80], 'Confidence': 0.9}]</answer>"], [gold])
    [0.8]
    """
    _check_threshold(threshold)
    rewards: list[float | None] = []
    for truths, predictions in _detection_pairs(completions, samples, completion_convention, solution_convention):
        if truths is None:
            rewards.append(None)
        elif predictions is None:
            rewards.append(0.0)
        elif not truths and not predictions:
            rewards.append(1.0)
        else:
            ious = _best_ious(truths, predictions) if dense else _matched_ious(truths, predictions, threshold)
            rewards.append(min(1.0, sum(ious) / max(len(truths), len(predictions))))
    return rewards


def detection_score(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    threshold: float = 0.5,
    completion_convention: Convention = BoxConvention.PER_MILLE,
    solution_convention: Convention = BoxConvention.PER_MILLE,
) -> list[float | None]:
    """Detection, for reporting: number of matched boxes over the larger of the two box counts, in [0, 1].

    Matches, empty answers, arguments, None and errors as in `iou`; a match counts 1 instead of its IoU.

    Our choice: not part of the published rewards.

    >>> gold = {"solution": "<answer>[{'Position': [0, 0, 100, 100], 'Confidence': 1}]</answer>"}
    >>> detection_score(["<answer>[{'Position': [0, 0, 100, 80], 'Confidence': 0.9}]</answer>"], [gold])
    [1.0]
    """
    _check_threshold(threshold)
    rewards: list[float | None] = []
    for truths, predictions in _detection_pairs(completions, samples, completion_convention, solution_convention):
        if truths is None:
            rewards.append(None)
        elif predictions is None:
            rewards.append(0.0)
        elif not truths and not predictions:
            rewards.append(1.0)
        else:
            num_matched = sum(value > 0 for value in _matched_ious(truths, predictions, threshold))
            rewards.append(num_matched / max(len(truths), len(predictions)))
    return rewards


def confidence(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    gate: Literal["matched", "recall", "none"] = "matched",
    threshold: float = 0.5,
    completion_convention: Convention = BoxConvention.PER_MILLE,
    solution_convention: Convention = BoxConvention.PER_MILLE,
) -> list[float | None]:
    """Detection: how well the stated confidences tell hits from misses; mean over predictions of c, or 1 - c on a miss.

    Predictions are matched as in `iou`. Missed gold boxes cost nothing here; they do in `iou`.

    quirks of the published code, mended:
        One junk box of confidence 0 earns the full reward, so not looking at the image pays. `gate` decides:
            "matched" (default): 0.0 where there are gold boxes and none is matched. It stops exactly that answer and
                leaves every answer with a match at its published number.
            "recall": the mean times the share of gold boxes matched. Also stops padding one hit with sure misses, but
                changes the numbers of ordinary answers.
            "none": as published.
        A confidence outside 0..1 is clamped after averaging (-3 on a miss pays 1.0) and NaN gets out; here a box whose
        confidence is missing, no number, or outside 0..1 counts 0.
        No truth: 0 always; here 1.0 for a correct "No Objects", else the mean of 1 - c.

    Args:
        completions, samples, threshold, completion_convention, solution_convention: as in `iou`.
        gate: see above.

    Returns:
        B values in [0, 1]; None as in `iou`. 0.0 where boxes exist and none is predicted.

    Raises:
        ValueError: as in `iou`, or the gate is unknown.

    >>> gold = {"solution": "<answer>[{'Position': [0, 0, 100, 100], 'Confidence': 1}]</answer>"}
    >>> junk = "<answer>[{'Position': [500, 500, 600, 600], 'Confidence': 0.0}]</answer>"
    >>> confidence([junk], [gold]), confidence([junk], [gold], gate="none")
    ([0.0], [1.0])
    """
    _check_threshold(threshold)
    if gate not in ("matched", "recall", "none"):
        raise ValueError(f"unknown gate {gate!r}. Gates: matched, recall, none.")
    rewards: list[float | None] = []
    for truths, predictions in _detection_pairs(completions, samples, completion_convention, solution_convention):
        if truths is None:
            rewards.append(None)
        elif predictions is None:
            rewards.append(0.0)
        elif not predictions:
            rewards.append(0.0 if truths else 1.0)
        else:
            hits = [value > 0 for value in _matched_ious(truths, predictions, threshold)]
            credits = [_calibration(p.confidence, hit) for p, hit in zip(predictions, hits, strict=True)]
            reward = sum(credits) / len(credits)
            if truths and gate == "matched" and not any(hits):
                reward = 0.0
            elif truths and gate == "recall":
                reward *= sum(hits) / len(truths)
            rewards.append(min(1.0, reward))
    return rewards


def _detection_pairs(
    completions: Sequence[str],
    samples: Sequence[Sample],
    completion_convention: Convention,
    solution_convention: Convention,
) -> Iterator[tuple[list[Box] | None, list[Detection] | None]]:
    """(gold boxes, distinct predictions) per row, both in the convention of the completions.

    No gold: (None, None). Unreadable completion: (gold, None).
    """
    to, origin = BoxConvention(completion_convention), BoxConvention(solution_convention)
    for completion, sample in zip(completions, samples, strict=True):
        solution = solution_text(sample)
        gold = parse_detections(answer_text(solution), origin)
        if gold is None and answer_text(solution) != "" and solution is not None:
            raise unusable_gold(sample["solution"], "solution", DETECTIONS)
        truths = None if gold is None else _converted([detection.box for detection in gold], to, sample)
        if truths is None:
            yield None, None
            continue
        predictions = parse_detections(answer_text(completion), to)
        if predictions is not None:
            first_of_each: dict[Box, Detection] = {}
            for prediction in predictions:
                first_of_each.setdefault(prediction.box, prediction)
            predictions = list(first_of_each.values())
        yield truths, predictions


def _matched_ious(truths: list[Box], predictions: list[Detection], threshold: float) -> list[float]:
    """IoU of each prediction with the gold box it takes, 0.0 where it takes none; in the order of `predictions`."""
    ious = [0.0] * len(predictions)
    free = list(truths)
    # sorted() is stable in reverse, too: equal confidences keep the order of writing.
    order = sorted(range(len(predictions)), key=lambda index: _rank(predictions[index].confidence), reverse=True)
    for index in order:
        overlaps = [box_iou(predictions[index].box, truth) for truth in free]
        best = max(overlaps, default=0.0)
        if best > threshold:
            ious[index] = best
            del free[overlaps.index(best)]
    return ious


def _best_ious(truths: list[Box], predictions: list[Detection]) -> list[float]:
    """IoUs of the pairs when the highest IoU pairs first, whatever the confidences."""
    pairs = [
        (overlap, row, column)
        for row, prediction in enumerate(predictions)
        for column, truth in enumerate(truths)
        if (overlap := box_iou(prediction.box, truth)) > 0
    ]
    pairs.sort(key=lambda pair: pair[0], reverse=True)
    rows: set[int] = set()
    columns: set[int] = set()
    ious = []
    for overlap, row, column in pairs:
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
            ious.append(overlap)
    return ious


def _rank(confidence: float | None) -> float:
    return 1.0 if confidence is None else confidence


def _calibration(confidence: float | None, hit: bool) -> float:
    if confidence is None or not 0.0 <= confidence <= 1.0:
        return 0.0
    return confidence if hit else 1.0 - confidence


def _check_threshold(threshold: float) -> None:
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold must be in [0, 1), got {threshold!r}")


# Format, shared by all three tasks


def format(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """1.0 for thinking, then an answer, and nothing else: `<think>...</think> <answer>...</answer>`; else 0.0.

    Blanks around the whole and between the two blocks are fine. Each of the four tags has to occur exactly once, with
    its own spelling and case. The answer may not be blank; the thinking may be empty. Needs no gold, so never None.

    quirk of the published code: its pattern lets repeated, nested and stray tags, two whole turns and an empty answer
    pass, and fails on a trailing newline.

    Raises:
        ValueError: the lengths differ.

    >>> format(["<think></think><answer>cat</answer>", "<think>a cat</think><answer> </answer>"], [{}, {}])
    [1.0, 0.0]
    """
    return [float(_has_format(completion)) for completion, _ in zip(completions, samples, strict=True)]


def _has_format(completion: object) -> bool:
    if not isinstance(completion, str):
        return False
    text = completion.strip()
    if any(text.count(tag) != 1 for tag in ("<think>", "</think>", "<answer>", "</answer>")):
        return False
    if not (text.startswith("<think>") and text.endswith("</answer>")):
        return False
    _, _, rest = text.partition("</think>")
    between, _, answer = rest.removesuffix("</answer>").partition("<answer>")
    return not between.strip() and bool(answer.strip())


# Classification


def classification_accuracy(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    aliases: Mapping[str, Sequence[str]] | None = None,
    class_names: Sequence[str] | None = None,
) -> list[float | None]:
    """Classification: 1.0 where the answer is the class of the solution, else 0.0.

    The answer is the class if both are equal after `normalised_name` (case, blanks, underscores, hyphens, punctuation
    at the ends), or are aliases of one class. Where the class list is known, an answer may also be a phrase, if it
    names exactly one class of the list, and that is the right one: "a Garden Phlox, I think" counts, "phlox or rose"
    does not. Of overlapping names the longest counts, so "christmas rose" does not name "rose".

    quirk of the published code: it pays where either text contains the other, so "", "a" and "rose or lily or phlox"
    all score 1.0. See `classification_substring` for that number.

    Args:
        completions: B texts, completion only.
        samples: B rows; `solution` like "<answer>garden phlox</answer>". A row may have `aliases` (other names for its
            solution, or a table as below) and `class_names`, which then replace the options.
        aliases: other names of each class.
        class_names: all classes of the task.

    Returns:
        B values, 0.0 or 1.0; None where `solution` is missing.

    Raises:
        ValueError: the lengths differ.
        TaskDataError: `solution` names nothing, or nothing in the class list that is known.

    >>> gold = {"solution": "<answer>garden phlox</answer>"}
    >>> classification_accuracy(["<answer>Garden_Phlox.</answer>", "<answer>phlox</answer>"], [gold, gold])
    [1.0, 0.0]
    """
    shared = _Vocabulary.of(class_names, aliases)
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        solution = _class_text(sample)
        gold = answer_text(solution)
        vocabulary = shared
        if isinstance(sample, Mapping) and ("aliases" in sample or "class_names" in sample):
            own = sample.get("aliases", aliases)
            table = own if isinstance(own, Mapping) or own is None else {gold or "": read_texts(own, "aliases")}
            vocabulary = _Vocabulary.of(read_texts(sample.get("class_names", class_names), "class_names"), table)
        truth = vocabulary.class_of(gold)
        if not truth and gold != "" and solution is not None:
            raise unusable_gold(sample["solution"], "solution", "the name of a class, of the list if there is one")
        if not truth:
            rewards.append(None)
            continue
        answer = answer_text(completion)
        rewards.append(float(vocabulary.class_of(answer) == truth or vocabulary.classes_in(answer) == {truth}))
    return rewards


@dataclass(frozen=True)
class _Vocabulary:
    """What a name stands for. Keys of classes are their normalised names."""

    class_of_name: Mapping[str, str]  # normalised name or alias -> class
    class_of_words: Mapping[tuple[str, ...], str]  # the same by words, to find names in a phrase; empty: list unknown
    is_closed: bool  # True: a name outside the list is no class

    @classmethod
    def of(cls, class_names: Any, aliases: Any) -> "_Vocabulary":
        classes, table = _strings(class_names), _table(aliases)
        by_name: dict[str, str] = {}
        by_words: dict[tuple[str, ...], str] = {}
        # Classes come last: where an alias is spelled like another class, the class wins.
        itself = [(name, [name]) for name in (*(name for name, _ in table), *classes)]
        for class_name, others in [*table, *itself]:
            for name in others:
                by_name[normalised_name(name)] = normalised_name(class_name)
                by_words[name_words(name)] = normalised_name(class_name)
        if classes:
            known = {normalised_name(name) for name in classes}
            by_name = {name: key for name, key in by_name.items() if key in known}
            by_words = {words: key for words, key in by_words.items() if key in known}
        by_name.pop("", None)
        by_words.pop((), None)
        return cls(by_name, by_words if classes else {}, bool(classes))

    def class_of(self, name: str | None) -> str:
        """The class that this text is the name of; empty if none."""
        key = normalised_name(name)
        return self.class_of_name.get(key, "" if self.is_closed else key)

    def classes_in(self, text: str | None) -> set[str]:
        """The classes that this text names, reading left to right and preferring long names."""
        longest = max(map(len, self.class_of_words), default=0)
        words = name_words(text) if longest else ()
        found: set[str] = set()
        start = 0
        while start < len(words):
            for length in range(min(longest, len(words) - start), 0, -1):
                named = self.class_of_words.get(words[start : start + length])
                if named:
                    found.add(named)
                    start += length
                    break
            else:
                start += 1
        return found


def _table(aliases: Any) -> list[tuple[str, list[str]]]:
    if not isinstance(aliases, Mapping):
        return []
    return [(name, _strings(others)) for name, others in aliases.items() if isinstance(name, str)]


def _strings(value: Any) -> list[str]:
    """A list of names as it may stand in a data row: one name alone is a list of one, and what is no name is left."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, Iterable) else []


def classification_substring(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """The published classification rule, for reporting beside published numbers. Do not train on it, it is hackable.

    1.0 where one of solution and answer contains the other, both in lower case and without spaces and underscores; else
    0.0. As published, quirks included: the answer is the first block that opens and closes on one line, else the whole
    completion, thinking included; an empty answer is contained in everything and scores 1.0.

    Returns:
        B values, 0.0 or 1.0; None where `solution` is missing or empty.

    Raises:
        ValueError: the lengths differ.
        TaskDataError: `solution` is no text, such as a list of several.

    >>> classification_substring(["<answer>BMW</answer>"], [{"solution": "<answer>2012 BMW 1 Series</answer>"}])
    [1.0]
    """
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        gold = _published_name(_class_text(sample))
        answer = _published_name(completion if isinstance(completion, str) else "")
        rewards.append(float(gold in answer or answer in gold) if gold else None)
    return rewards


def _published_name(text: str | None) -> str:
    if text is None:
        return ""
    start = text.find("<answer>")
    while start >= 0:
        # A line without a closing tag after its first opening one has no whole block, so go on with the next line.
        end_of_line = text.find("\n", start)
        line = text[start:] if end_of_line < 0 else text[start:end_of_line]
        inside, closing, _ = line.removeprefix("<answer>").partition("</answer>")
        if closing:
            text = inside
            break
        start = text.find("<answer>", start + len(line))
    return text.strip().replace(" ", "").replace("_", "").lower()


# Grounding


def grounding_giou(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    strict: bool = False,
    completion_convention: Convention = BoxConvention.PER_MILLE,
    solution_convention: Convention = BoxConvention.PER_MILLE,
) -> list[float | None]:
    """Grounding: generalised IoU of the answer's first box with the gold box, plus 1, in [0, 2].

    2.0 is the gold box itself, near 0 a small box far away, 0.0 no box at all. Any box earns more than none, kept as
    shaping. Beware: a box over the whole image earns about 1 whatever the target; `grounding_iou` does not pay that.

    A box with inverted corners scores 0.0. Rejected rather than sorted: the prompt asks for top-left, then
    bottom-right, whoever reads the box later relies on it, and the detection reward gives such boxes 0 as well.

    quirks of the published code, mended:
        Of several boxes it pairs the first two top-left corners, with rewards up to 26 seen; here the first box counts,
        or, if `strict`, several boxes score 0.0.
        Reversed corners score 2.0 there.
        Floats, signs and square brackets score 0 there; here they are read. Full-width digits count there, not here.
        Any coordinate is accepted there; here a box that reaches over an edge by more than a tenth of that side
        (OVERHANG) scores 0.0. A smaller overhang is taken as written: it already costs. Without a known image size,
        pixels are not checked.
        An answer equal to the solution's text scores 2.0 there whatever the text; here only boxes count.

    Args:
        completions: B texts, completion only.
        samples: B rows; `solution` like "<answer> (10,20),(300,400) </answer>". A solution of several boxes, for an
            instruction that several answer, is met by the one that fits best.
        strict: an answer with several boxes scores 0.0.
        completion_convention: what the numbers in completions mean.
        solution_convention: what the numbers in `solution` mean.

    Returns:
        B values in [0, 2]; None where `solution` is missing, or the image size is needed and missing.

    Raises:
        ValueError: the lengths differ, or a convention is unknown.
        TaskDataError: `solution` holds no box, or an inverted one.

    >>> gold = {"solution": "<answer> (0,0),(100,100) </answer>"}
    >>> grounding_giou(["<answer>(0,0),(100,50)</answer>", "<answer>(300,0),(400,100)</answer>"], [gold, gold])
    [1.5, 0.5]
    """
    return _grounding(
        completions, samples, strict, completion_convention, solution_convention, lambda a, b: box_giou(a, b) + 1.0
    )


def grounding_iou(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    strict: bool = False,
    completion_convention: Convention = BoxConvention.PER_MILLE,
    solution_convention: Convention = BoxConvention.PER_MILLE,
) -> list[float | None]:
    """Grounding: plain IoU of the answer's first box with the gold box, in [0, 1]. All else as in `grounding_giou`.

    The measure of the benchmark (mean IoU), and the reward the released 7B model is said to use; the public code does
    not hold it. Nothing for boxes that do not overlap, so it learns only from answers that already do.

    >>> gold = {"solution": "<answer> (0,0),(100,100) </answer>"}
    >>> grounding_iou(["<answer>(0,0),(100,50)</answer>", "<answer>(300,0),(400,100)</answer>"], [gold, gold])
    [0.5, 0.0]
    """
    return _grounding(completions, samples, strict, completion_convention, solution_convention, box_iou)


def _grounding(
    completions: Sequence[str],
    samples: Sequence[Sample],
    strict: bool,
    completion_convention: Convention,
    solution_convention: Convention,
    likeness: Callable[[Box, Box], float],
) -> list[float | None]:
    to, origin = BoxConvention(completion_convention), BoxConvention(solution_convention)
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        solution = solution_text(sample)
        golds = parse_boxes(answer_text(solution), origin)
        if solution is not None and (not golds or any(gold.is_inverted for gold in golds)):
            raise unusable_gold(sample["solution"], "solution", "one or more boxes, (x1,y1),(x2,y2), corners in order")
        truths = _converted(golds, to, sample)
        if not truths:
            rewards.append(None)
            continue
        boxes = parse_boxes(answer_text(completion), to)
        if not boxes or (strict and len(boxes) > 1) or boxes[0].is_inverted or not _is_near_image(boxes[0], sample):
            rewards.append(0.0)
        else:
            rewards.append(max(likeness(boxes[0], truth) for truth in truths))
    return rewards


def _is_near_image(box: Box, sample: Sample) -> bool:
    frame = Box(-OVERHANG, -OVERHANG, 1 + OVERHANG, 1 + OVERHANG, BoxConvention.UNIT)
    frames = _converted([frame], box.convention, sample)
    if frames is None:
        return True
    frame = frames[0]
    return frame.x1 <= box.x1 and frame.y1 <= box.y1 and box.x2 <= frame.x2 and box.y2 <= frame.y2


# Samples


def solution_text(sample: Sample) -> str | None:
    """The solution as text that the parsers read, also where it is stored as boxes; None where it is missing or blank.

    >>> solution_text({"solution": [[1, 2, 3, 4]]}), solution_text({"solution": ["<answer>cat</answer>"]})
    ('[[1, 2, 3, 4]]', '<answer>cat</answer>')
    """
    stored = sample.get("solution") if isinstance(sample, Mapping) else None
    plain = unwrapped(stored)
    if isinstance(plain, list | tuple | Mapping):
        boxes = stored if isinstance(stored, list | tuple) else plain  # [{"Position": ...}] is not to be unwrapped
        return repr(boxes.tolist() if hasattr(boxes, "tolist") else boxes)
    return None if plain is None or not str(plain).strip() else str(plain)


def _class_text(sample: Sample) -> str | None:
    stored = sample.get("solution") if isinstance(sample, Mapping) else None
    return gold_text(stored, "solution", "the name of a class")


def _converted(boxes: list[Box], to: BoxConvention, sample: Sample) -> list[Box] | None:
    """Boxes in another convention; None where the sample lacks the image size that this needs."""
    try:
        return [convert(box, to, sample.get("resized_width_px"), sample.get("resized_height_px")) for box in boxes]
    except (TypeError, ValueError):
        return None

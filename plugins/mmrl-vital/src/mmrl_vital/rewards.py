"""Rewards of VITAL: temporal grounding, video and image question answering, and the format with its tool bonus.

Every reward takes the B completions and their B samples and returns B numbers in the same order. A sample is a row of
the data: `ground_truth` is the gold, `task` names its entry in TASKS, `options` lists the options of a choice. `None`
means unscored, because the sample holds no gold; a gold that is there and cannot be read is a TaskDataError, which says
what is expected. A completion that cannot be read, or is no string, scores 0.0.
Every number is finite and in the stated range. Completions are untrusted and only ever parsed (see `parsing`).

The published total is a plain sum: format with tool bonus (0..2) + task (0..1).

quirk of the published code, everywhere: it reads the whole completion. Here only the answer block counts, in gold texts
too, if they have one.

Source: Thinking With Videos (VITAL), arXiv:2508.04416, and its public code as of October 2025.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

from mmrl_core.data import read_options
from mmrl_core.errors import TaskDataError
from mmrl_core.scoring import gold_text, unusable_gold, unwrapped
from mmrl_vital.parsing import (
    Span,
    answer_text,
    parse_choice,
    parse_number,
    parse_span,
    parse_spans,
    split_span,
)

Sample = Mapping[str, Any]
Reward = Callable[..., list[float | None]]
SpanKind = Literal["plain", "short", "chapters"]

IOU_EPS_S = 1e-4
SPAN = "a span, [start, end] in seconds, or several; the end not before the start"
REGRESSION_EPS = 1e-9

_FORMAT_TAG = re.compile(r"</?(?:think|tool_call|answer)>")
_OPENING_TAG = re.compile(r"<(think|tool_call|answer)>")
# A letter, with or without words that announce it: "(B)", "Answer: B."
_SINGLE_LETTER = re.compile(r"\W*(?:(?i:(?:the )?(?:correct )?(?:answer|option|choice)(?: is)?)\W+)?[A-Za-z]\W*")
# Words as ROUGE has them, and every letter or digit of a script other than Latin by itself.
_ROUGE_TOKEN = re.compile(r"[a-z0-9]+|[^\W_\x00-\u024f\u1e00-\u1eff]")


# Temporal grounding


def iou(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """Temporal grounding: IoU of the answer's span with the gold span, of several the best, in [0, 1].

    IoU = inter / (length_p + length_g - inter + eps), each length plus eps, eps = 1e-4 s; so the IoU of equal spans of
    6 s is published as 0.99995. Here equal spans score 1.0, the rest as published. No span, or one that ends before it
    starts, scores 0.0.

    Args:
        completions: B texts, completion only.
        samples: B rows; `ground_truth` is what `parse_spans` reads: [start, end] in seconds, JSON text, "From 5.0 to
            12.5 seconds", or a list of spans.

    Returns:
        B values; None where `ground_truth` is missing. To an instant, only the same instant has an IoU above 0.

    Raises:
        ValueError: the lengths differ.
        TaskDataError: `ground_truth` has no span whose end is not before its start.

    quirks of the published code: see `parse_span`.

    >>> iou(["<think></think><answer>From 2.0 to 8.0 seconds.</answer>"], [{"ground_truth": [2, 8]}])
    [1.0]
    """
    return _span_rewards(completions, samples, "plain")


def iou_short(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """Temporal grounding in short videos: clip((IoU - 0.2) / 0.6, 0, 1), all of it from 0.8. All else as in `iou`.

    >>> iou_short(["from 0 to 6", "from 0 to 1"], [{"ground_truth": [0, 7]}] * 2)
    [1.0, 0.0]
    """
    return _span_rewards(completions, samples, "short")


def iou_chapters(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """Temporal grounding in long videos with chapters: clip(IoU / 0.5, 0, 1). All else as in `iou`.

    >>> iou_chapters(["from 0 to 60"], [{"ground_truth": [0, 100]}])
    [1.0]
    """
    return _span_rewards(completions, samples, "chapters")


def _span_rewards(completions: Sequence[str], samples: Sequence[Sample], kind: SpanKind) -> list[float | None]:
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        golds = parse_spans(_gold(sample)) or _unusable(sample, SPAN)
        rewards.append(_span_reward(parse_span(answer_text(completion)), golds, kind) if golds else None)
    return rewards


def _span_reward(span: Span | None, golds: Sequence[Span], kind: SpanKind) -> float:
    value = max(_iou(span, gold) for gold in golds) if span else 0.0
    if kind == "short":
        value = (value - 0.2) / 0.6
    elif kind == "chapters":
        value = value / 0.5
    return min(1.0, max(0.0, value))


def _iou(span: Span, gold: Span) -> float:
    if span == gold:
        return 1.0
    inter = max(0.0, min(span[1], gold[1]) - max(span[0], gold[0]))
    return inter / ((span[1] - span[0] + IOU_EPS_S) + (gold[1] - gold[0] + IOU_EPS_S) - inter + IOU_EPS_S)


# Question answering


def multiple_choice(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """Multiple choice: 1.0 where the answer names the option of the gold, else 0.0; see `parse_choice`.

    Args:
        completions: B texts, completion only.
        samples: B rows; `ground_truth` like "B", "(B)", "B. a cat", or an option's text. `options`, if there, are the
            row's options; only their letters count.

    Returns:
        B values, 0.0 or 1.0; None where `ground_truth` is missing.

    Raises:
        ValueError: the lengths differ.
        TaskDataError: `ground_truth` names no option, or `options` are no list of texts.

    quirk of the published code: the first capital counts, in the gold of some sources too.

    >>> multiple_choice(["<answer>I think B</answer>", "<answer>A or B</answer>"], [{"ground_truth": "(B)"}] * 2)
    [1.0, 0.0]
    """
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        options = _options(sample)
        gold = parse_choice(_gold_text(sample), options) or _unusable(sample, "the letter or text of an option")
        rewards.append(float(parse_choice(answer_text(completion), options) == gold) if gold else None)
    return rewards


def numerical(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """A number: 1.0 where it equals the gold rounded to one decimal, else 0.5 where rounded to an integer, else 0.0.

    Args:
        completions: B texts, completion only; the first number of the answer counts, see `parse_number`.
        samples: B rows; `ground_truth` a number, or a text with one.

    Returns:
        B values, 0.0, 0.5 or 1.0; None where `ground_truth` is missing.

    Raises:
        ValueError: the lengths differ.
        TaskDataError: `ground_truth` has no number.

    >>> numerical(["2.04", "1.6", "3"], [{"ground_truth": "2.0"}] * 3)
    [1.0, 0.5, 0.0]
    """
    return _number_rewards(completions, samples, _rounded_equality)


def regression(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """A number: clip(1 - (|p - g| + 1e-9) / (|g| + 1e-9), 0, 1). Arguments, None and errors as in `numerical`.

    quirk of the published code: 0 for an exact answer to a gold of 0. Here p = g scores 1.0, the rest as published.

    >>> [round(value, 6) for value in regression(["75", "0"], [{"ground_truth": 100}] * 2)]
    [0.75, 0.0]
    """
    return _number_rewards(completions, samples, _relative_closeness)


def _number_rewards(
    completions: Sequence[str], samples: Sequence[Sample], likeness: Callable[[float, float], float]
) -> list[float | None]:
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        gold, number = parse_number(_gold_text(sample)), parse_number(answer_text(completion))
        if gold is None:
            rewards.append(_unusable(sample, "a number"))
        else:
            rewards.append(0.0 if number is None else likeness(number, gold))
    return rewards


def _rounded_equality(number: float, gold: float) -> float:
    if round(number, 1) == round(gold, 1):
        return 1.0
    return 0.5 if round(number) == round(gold) else 0.0


def _relative_closeness(number: float, gold: float) -> float:
    if number == gold:
        return 1.0
    return max(0.0, 1.0 - (abs(number - gold) + REGRESSION_EPS) / (abs(gold) + REGRESSION_EPS))


def ocr(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """Text in an image: clip(1 - WER, 0, 1), WER = edit distance in words / number of gold words. Case counts.

    Args:
        completions: B texts, completion only.
        samples: B rows; `ground_truth` the text.

    Returns:
        B values in [0, 1]; None where `ground_truth` is missing.

    Raises:
        ValueError: the lengths differ.
        TaskDataError: `ground_truth` has no word.

    >>> ocr(["<answer>No Parking any time</answer>"], [{"ground_truth": "No parking any time"}])
    [0.75]
    """
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        gold, words = (_gold_text(sample) or "").split(), (answer_text(completion) or "").split()
        is_right = 1.0 - _edit_distance(words, gold) / len(gold) if gold else _unusable(sample, "a text")
        rewards.append(None if is_right is None else max(0.0, is_right))
    return rewards


def _edit_distance(words: Sequence[str], gold: Sequence[str]) -> int:
    """Levenshtein distance, a whole column of its table at a time, as bits (Myers 1999; Hyyrö 2003).

    `up` and `down` mark where the distance rises or falls by one from a gold word to the next. The plain table would
    take minutes for two answers of the greatest length.
    """
    at: Counter[str] = Counter()
    for index, word in enumerate(gold):
        at[word] += 1 << index
    full = (1 << len(gold)) - 1
    last = 1 << (len(gold) - 1)
    up, down, distance = full, 0, len(gold)
    for word in words:
        match = at[word]
        diagonal = (((match & up) + up) ^ up) | match | down
        right_up = (down | ~(diagonal | up)) & full
        right_down = up & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = (right_up << 1) | 1
        up = ((right_down << 1) | ~(diagonal | right_up)) & full
        down = right_up & diagonal & full
    return distance


def free_form(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """Free text: mean of the F measures of ROUGE-1, ROUGE-2 and ROUGE-L, Porter stemmer on, in [0, 1].

    As the `rouge-score` package has them: lower case, words of ASCII letters and digits, those above three characters
    stemmed. Three departures:
        quirk of the published code: other scripts have no words, so such answers score 0. Here each letter outside the
        Latin script is a word.
        A gold of one word has no pair of words, so ROUGE-2 is 0 and the mean at most 2/3 as published. Here ROUGE-2 is
        then left out, so the gold scores 1.0.
        The stemmer is Porter's original. The published one has NLTK's additions, which change the score of about one
        pair of English sentences in 500; loading NLTK takes seconds.

    Args:
        completions: B texts, completion only.
        samples: B rows; `ground_truth` the text.

    Returns:
        B values; None where `ground_truth` is missing.

    Raises:
        ValueError: the lengths differ.
        TaskDataError: `ground_truth` has no word.

    >>> free_form(["<answer>Dogs running.</answer>", "<answer>a cat</answer>"], [{"ground_truth": "dog run"}] * 2)
    [1.0, 0.0]
    """
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        gold = _rouge_tokens(_gold_text(sample))
        score = _rouge(_rouge_tokens(answer_text(completion)), gold) if gold else _unusable(sample, "a text")
        rewards.append(score)
    return rewards


def _rouge_tokens(text: str | None) -> list[str]:
    import snowballstemmer  # loads the stemmers of all its languages

    words = _ROUGE_TOKEN.findall(text.lower()) if text else []
    stem = snowballstemmer.stemmer("porter").stemWord  # one for each call: it keeps state, and rewards run in threads
    return [stem(word) if len(word) > 3 else word for word in words]


def _rouge(words: Sequence[str], gold: Sequence[str]) -> float:
    if not words:
        return 0.0
    scores = [_overlap(words, gold), _f_measure(_common_length(words, gold), len(words), len(gold))]
    if len(gold) > 1:
        scores.append(_overlap(list(pairwise(words)), list(pairwise(gold))))
    return sum(scores) / len(scores)


def _overlap(grams: Sequence[Any], gold: Sequence[Any]) -> float:
    return _f_measure((Counter(grams) & Counter(gold)).total(), len(grams), len(gold))


def _f_measure(num_common: int, num_predicted: int, num_gold: int) -> float:
    return 2 * num_common / (num_predicted + num_gold)


def _common_length(words: Sequence[str], gold: Sequence[str]) -> int:
    """Length of the longest common subsequence, with a row of its table as bits (Hyyrö 2004): a 0 where it grows."""
    at: Counter[str] = Counter()
    for index, word in enumerate(gold):
        at[word] += 1 << index
    full = (1 << len(gold)) - 1
    row = full
    for word in words:
        match = row & at[word]
        row = ((row + match) | (row - match)) & full
    return len(gold) - row.bit_count()


# Grounded question answering


def grounded_qa(
    completions: Sequence[str], samples: Sequence[Sample], *, span: SpanKind = "plain"
) -> list[float | None]:
    """Answer and the span that shows it: the sum of both parts, in [0, 2].

    The span part is `iou`, `iou_short` or `iou_chapters`. The answer part is what stands beside the span: as in
    `multiple_choice` where the gold has a letter or names one of the row's options, else as in `free_form`.

    quirk of the published code: it returns the span part only, so the answer is never rewarded.

    Args:
        completions: B texts, completion only, like "From 5.0 to 12.5 seconds. (B)" in the answer block.
        samples: B rows; `ground_truth` a text of the same form, or {"span": ..., "answer": "B"} with a span as in
            `iou`. `options` as in `multiple_choice`.
        span: which of the three grounding rewards is the span part.

    Returns:
        B values; None where `ground_truth` is missing.

    Raises:
        ValueError: the lengths differ, or `span` is unknown.
        TaskDataError: `ground_truth` lacks the span or the answer.

    >>> gold = {"ground_truth": "From 5.0 to 12.5 seconds. (B)"}
    >>> grounded_qa(["<answer>B, from 5.0 to 12.5 seconds</answer>", "<answer>(B)</answer>"], [gold, gold])
    [2.0, 1.0]
    """
    if span not in ("plain", "short", "chapters"):
        raise ValueError(f"span must be 'plain', 'short' or 'chapters', got {span!r}")
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        golds, gold_answer = _grounded_gold(sample)
        predicted, answer = split_span(answer_text(completion))
        options = _options(sample)
        letter = parse_choice(gold_answer, options) if options or _SINGLE_LETTER.fullmatch(gold_answer) else None
        gold_tokens = _rouge_tokens(gold_answer)
        if not golds or not (letter or gold_tokens):
            rewards.append(_unusable(sample, 'a span and an answer, {"span": [1, 2], "answer": "B"}'))
            continue
        if letter:
            answer_part = float(parse_choice(answer, options) == letter)
        else:
            answer_part = _rouge(_rouge_tokens(answer), gold_tokens)
        rewards.append(_span_reward(predicted, golds, span) + answer_part)
    return rewards


def _grounded_gold(sample: Sample) -> tuple[list[Span], str]:
    """Gold spans and answer; empty where missing."""
    gold = unwrapped(_gold(sample))
    if isinstance(gold, Mapping):
        return parse_spans(gold.get("span")), gold_text(gold.get("answer"), "ground_truth.answer") or ""
    span, answer = split_span(answer_text(gold))
    return parse_spans([span]) if span else [], answer


# Any task


TASKS: Mapping[str, tuple[Reward, float]] = {  # task name -> (reward, its maximum)
    "temporal_grounding": (iou, 1.0),
    "temporal_grounding_short": (iou_short, 1.0),
    "temporal_grounding_chapters": (iou_chapters, 1.0),
    "multiple_choice": (multiple_choice, 1.0),
    "numerical": (numerical, 1.0),
    "regression": (regression, 1.0),
    "ocr": (ocr, 1.0),
    "free_form": (free_form, 1.0),
    "grounded_qa": (grounded_qa, 2.0),
    "grounded_qa_short": (partial(grounded_qa, span="short"), 2.0),
    "grounded_qa_chapters": (partial(grounded_qa, span="chapters"), 2.0),
}


def task(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """The reward of each row's own task, over its maximum: in [0, 1], so that the tasks of a mixture weigh the same.

    Args:
        completions: B texts, completion only.
        samples: B rows; `task` a name in TASKS, and what that reward needs.

    Returns:
        B values; None where the task or `ground_truth` is missing.

    Raises:
        ValueError: the lengths differ.
        TaskDataError: the task is unknown, or its reward cannot read `ground_truth`.

    >>> task(["<answer>(B)</answer>"], [{"task": "grounded_qa", "ground_truth": "From 1 to 2 seconds. (B)"}])
    [0.5]
    """
    return [_task_reward(completion, sample) for completion, sample in zip(completions, samples, strict=True)]


def _task_reward(completion: str, sample: Sample) -> float | None:
    name = sample.get("task") if isinstance(sample, Mapping) else None
    if name in (None, ""):
        return None
    if not isinstance(name, str) or name not in TASKS:
        raise TaskDataError(f"task is {name!r}, none of {', '.join(TASKS)}")
    reward, maximum = TASKS[name]
    (value,) = reward([completion], [sample])
    return None if value is None else value / maximum


def format(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    max_tool_calls: int = 2,
    useful_from: float = 0.5,
) -> list[float | None]:
    """Format F, 0.0 or 1.0, plus 0.5 for each useful tool call. Needs no gold, so never None.

    F = 1 if the completion is a row of think, tool_call and answer blocks with nothing but blanks around them, none
    blank, no two of one kind in succession, none inside another; the first is think, the last answer.

    The bonus is 0.5 * min(valid_tool_calls, max_tool_calls), paid if F = 1 and the tool was of use: the task reward of
    the completion (see `task`) reaches `useful_from`. Where the sample has no known task or usable gold, F decides.

    quirks of the published code: the bonus is paid whatever format and answer, so that calling the tool is always worth
    it, and for two calls where the prompt allows one. Text before the first and after the last block, tags inside
    blocks, and blank blocks pass.

    Args:
        completions: B texts: what the policy wrote over all turns, without what the tools returned.
        samples: B rows; `valid_tool_calls` is the number of successful calls in this completion, 0 if missing.
        max_tool_calls: calls that are paid for; what the prompt and the rollout allow.
        useful_from: least task reward, over its maximum, for which the bonus is paid. 0 pays with any answer.

    Returns:
        B values in [0, 1 + 0.5 * max_tool_calls].

    Raises:
        ValueError: the lengths differ, max_tool_calls is negative, or useful_from is outside [0, 1].

    >>> text = "<think>where?</think><tool_call>{}</tool_call><think>there</think><answer>B</answer>"
    >>> rows = [{"valid_tool_calls": 1, "task": "multiple_choice", "ground_truth": gold} for gold in "AB"]
    >>> format([text, text], rows)
    [1.0, 1.5]
    """
    if max_tool_calls < 0:
        raise ValueError(f"max_tool_calls must be 0 or more, got {max_tool_calls!r}")
    if not 0.0 <= useful_from <= 1.0:
        raise ValueError(f"useful_from must be in [0, 1], got {useful_from!r}")
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        if not _has_format(completion):
            rewards.append(0.0)
            continue
        num_paid = min(_num_tool_calls(sample), max_tool_calls)
        usefulness = _usefulness(completion, sample) if num_paid else None
        is_useful = usefulness is None or usefulness >= useful_from
        rewards.append(1.0 + (0.5 * num_paid if is_useful else 0.0))
    return rewards


def _usefulness(completion: str, sample: Sample) -> float | None:
    """The task reward; None where the row has no known task or usable gold, which that reward says itself."""
    try:
        return _task_reward(completion, sample)
    except TaskDataError:
        return None


def _has_format(completion: object) -> bool:
    if not isinstance(completion, str):
        return False
    text, position, last = completion.strip(), 0, ""
    while position < len(text):
        opening = _OPENING_TAG.match(text, position)
        if opening is None or opening[1] == last or (not last and opening[1] != "think"):
            return False
        last = opening[1]
        closing = _FORMAT_TAG.search(text, opening.end())
        if closing is None or closing[0] != f"</{last}>" or not text[opening.end() : closing.start()].strip():
            return False
        position = closing.end()
        while text[position : position + 1].isspace():
            position += 1
    return last == "answer"


# Samples


def _num_tool_calls(sample: Sample) -> int:
    value = sample.get("valid_tool_calls") if isinstance(sample, Mapping) else None
    return max(0, value) if isinstance(value, int) else 0


def _gold(sample: Sample) -> Any:
    return sample.get("ground_truth") if isinstance(sample, Mapping) else None


def _gold_text(sample: Sample) -> str | None:
    """The gold as text, also where it is a number, or the answer beside a span."""
    gold = unwrapped(_gold(sample))
    if isinstance(gold, Mapping) and "answer" in gold:
        gold = gold["answer"]
    text = gold_text(gold, "ground_truth")
    return None if text is None else answer_text(text)


def _unusable(sample: Sample, expected: str) -> Any:
    """None where the row has no gold.

    Raises:
        TaskDataError: it has one, which its reward could not read.
    """
    gold = _gold(sample)
    plain = unwrapped(gold)
    if plain is not None and not (isinstance(plain, str) and not plain.strip()):
        raise unusable_gold(gold, "ground_truth", expected)
    return None


def _options(sample: Sample) -> list[str] | None:
    return read_options(sample.get("options"), least=1) if isinstance(sample, Mapping) else None

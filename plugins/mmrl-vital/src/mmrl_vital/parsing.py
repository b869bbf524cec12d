"""Reading answers out of completions: spans of time, option letters, numbers.

A completion is untrusted text. Nothing here evaluates it or raises on it, every pattern runs in linear time, and every
number read is finite. Texts longer than MAX_ANSWER_CHARS are not read at all. Full-width digits and letters count.

`None` means that nothing can be read.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite, nan
from typing import Any

from mmrl_core.scoring import plain_text, unwrapped

Span = tuple[float, float]  # start and end in seconds

# A turn of 1024 tokens stays below; without a limit a rambling completion stalls the whole batch.
MAX_ANSWER_CHARS = 16_384
# Ten thousand hours of video. Far below where sums of floats lose the second.
MAX_SECONDS = 3.6e7
# Between start and end stands a separator with a few words around it, not a sentence.
_MAX_GAP_CHARS = 64

_DIGITS = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "小": 3600.0, "时": 3600.0, "時": 3600.0, "分": 60.0, "秒": 1.0}
_TIME = re.compile(
    rf"""
    (?P<clock>[0-9]{{1,3}}:[0-5][0-9](?::[0-5][0-9])?(?:\.[0-9]+)?)(?![0-9])
    | (?P<number>{_DIGITS})
      (?:(?:\s{{0,2}}|-)(?P<unit>(?:hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)(?![a-zA-Z])|小[时時]|[时時]|分[钟鐘]?|秒))?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_GAP_WORD = re.compile(r"[a-z]+|[^\W\d_]|-+|[~→,;]")
# How surely a separator means "from this number to that one": "events 2, 5 to 8" names the span 5 to 8.
_SEPARATORS = {
    **dict.fromkeys(("to", "until", "till", "through", "-", "~", "→", "到", "至"), 0),
    "and": 1,
    **dict.fromkeys((",", ";"), 2),
}
_NO_SEPARATOR = 3  # blanks alone, or the word "end"
_FILLERS = {
    "about", "approximately", "around", "at", "begin", "begins", "end", "ends", "ending", "it", "lasts", "mark",
    "roughly", "start", "starts", "the", "time", "timestamp", "h", "hour", "hours", "m", "min", "mins", "minute",
    "minutes", "s", "sec", "secs", "second", "seconds", "第", "秒", "分", "的",
}  # fmt: skip
_SPAN_LEAD_IN = re.compile(r"\b(?:from|between)[:\s]{0,4}$", re.IGNORECASE)
# Before `plain_text`, which makes dashes and parts of words of them.
_PLAIN_MARKS = str.maketrans(
    dict.fromkeys("〜∼～", "~") | {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3"}
)

_NUMBER = re.compile(
    r"(?:(?<![\w)])(?P<sign>[-+])[$€£]?)?"
    r"(?P<number>"
    # Six groups of three are plenty; unbounded, a long row of groups would be read again from each of its groups.
    r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,6}(?![0-9])|[0-9]+)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?"
    r"|\.[0-9]+(?:[eE][+-]?[0-9]+)?)"
    r"(?: ?/ ?(?P<divisor>[0-9]+(?:\.[0-9]+)?))?"
)

_TAG = re.compile(r"</?(?:think|tool_call|answer)>")
_LEADING_BLOCK = re.compile(r"[^<]*<answer>([^<]*)</answer>")

_LATIN = "A-Za-z0-9_À-ɏ"
_LABEL = re.compile(r"\W{0,4}(?:\(([A-Za-z])\)|([A-Za-z])\)|([A-Z])(?:[.:](?![A-Za-z])| ?-|,? (?:because|since)\b))")
_OPTION_LABEL = re.compile(r"\s*\(?([A-Za-z])\s*[.):]\s*(?=\S)")
_LONE_LETTER = re.compile(r"\W*([A-Za-z])\W*")


def _letter_after(verbs: str) -> re.Pattern[str]:
    between = "is|are|be|should be|would be|must be|will be|the|option|choice|letter|correct"
    return re.compile(
        rf"(?i:\b(?:{verbs})s?(?: (?:{between})){{0,4}})"
        rf"[\s:=(\[*\"'`-]{{1,6}}([A-Z]|[a-z](?=\W{{0,8}}$))(?![{_LATIN}'])"
    )


_ANSWER_IS = _letter_after("answer|choice|choose|select|pick|go with|option is|one is")
_OPTION_IS = _letter_after("option")
_BRACKETED = re.compile(r"[(\[]([A-Z])[)\]]")
# "A man" is an article, and "I think" a pronoun, unless no other letter is there.
_STANDALONE = re.compile(
    rf"(?<![{_LATIN}'])([B-HJ-Z]|A(?! (?!(?:and|as|because|but|is|nor|or|since|was)\b)[a-z]))(?![{_LATIN}'])"
)
_ANY_STANDALONE = re.compile(rf"(?<![{_LATIN}'])([A-Z])(?![{_LATIN}'])")


# The answer block


def answer_text(completion: object) -> str | None:
    """What stands in the answer block, without blanks around it. Tags are case sensitive.

    The block is the first one after the last `</think>` or `</tool_call>`; if it lost its closing tag, it runs to the
    end of the text. Where none follows, a whole block before the thinking counts, but none inside of it. A completion
    without any think, tool_call or answer tag is an answer as a whole.

    quirk of the published code: numbers and letters count wherever they stand, so that the thinking, or the arguments
    of the tool call, earn the reward.

    Returns:
        The text, maybe empty; None where there is no answer, the answer is longer than MAX_ANSWER_CHARS, or
        `completion` is not a string.

    >>> answer_text("<think>maybe <answer>A</answer></think><answer> B </answer>")
    'B'
    >>> answer_text("<answer>A</answer><think>I saw it.</think>")
    'A'
    """
    if not isinstance(completion, str):
        return None
    rest = completion.rpartition("</think>")[2].rpartition("</tool_call>")[2]
    before, opening, inside = rest.partition("<answer>")
    if opening:
        answer = inside.partition("</answer>")[0]
    elif (first := _LEADING_BLOCK.match(completion)) is not None:
        answer = first[1]
    elif _TAG.search(completion):
        return None
    else:
        answer = before
    answer = answer.strip()
    return answer if len(answer) <= MAX_ANSWER_CHARS else None


def _plain(text: str | None) -> str:
    """The text with digits, letters, dashes and fractions as ASCII has them; empty if too long."""
    return plain_text(text.translate(_PLAIN_MARKS)) if text is not None and len(text) <= MAX_ANSWER_CHARS else ""


# Time


@dataclass(frozen=True)
class _Time:
    seconds: float
    unit: float | None  # seconds of the largest unit written; None for a bare number, 1.0 for a clock
    smallest_unit: float | None
    start: int  # where it stands in the text
    end: int


def parse_span(text: str | None) -> Span | None:
    """The span of time that a text names: the last "number separator number" whose end is not before its start.

    Times are seconds ("12.5"), have units ("12.5s", "2 min 5 sec", "1h", "5秒"), or are clock times ("1:05",
    "01:02:03"). A start without unit takes that of the end if it then comes first ("1 to 2 minutes"). Separators are
    "to", "until", "through", dashes, "~", "→", "到" and "至"; where no such pair is found, "and"; then a comma; then
    blanks alone or the word "end", as in "Start: 5 End: 8". Line breaks are blanks. A comma never groups thousands.

    quirk of the published code: it pairs all numbers of a line in order, so one number before the span shifts it; it
    splits clock times, cuts fractions where a unit is glued on, drops minus signs, and loses spans over two lines.

    Returns:
        (start, end) in seconds, start <= end, both at most MAX_SECONDS in size.

    >>> parse_span("2 people, from 1:05 to 1:10.5")
    (65.0, 70.5)
    """
    return split_span(text)[0]


def split_span(text: str | None) -> tuple[Span | None, str]:
    """The span as in `parse_span`, and the text without it, for answers that hold a span and something else.

    >>> split_span("From 5.0 to 12.5 seconds. (B)")
    ((5.0, 12.5), '(B)')
    """
    text = _plain(text)
    times = _times(text)
    best: tuple[int, Span, int, int] | None = None
    for first, second in pairwise(times):
        rank = _separator_rank(text[first.end : second.start])
        if rank is None or (best is not None and rank > best[0]):
            continue
        start = first.seconds
        if first.unit is None and second.unit is not None and start * second.unit <= second.seconds:
            start *= second.unit
        if start <= second.seconds:
            best = rank, (start, second.seconds), first.start, second.end
    if best is None:
        return None, text
    _, span, start_char, end_char = best
    before = _SPAN_LEAD_IN.sub("", text[:start_char].rstrip(" [("))
    rest = f"{before} {text[end_char:].lstrip(' .,;:)]')}"
    return span, rest.strip()


def _times(text: str) -> list[_Time]:
    """All times in order of writing, "1 min 30 s" as one."""
    times: list[_Time] = []
    end_of_last = 0
    for match in _TIME.finditer(text):
        gap = text[end_of_last : match.start()]
        end_of_last = match.end()
        # A dash with nothing but blanks between it and the number before separates; elsewhere it is a sign.
        is_negative = (
            gap.endswith("-")
            and not re.match(r"[a-zA-Z0-9]", gap[-2:-1])
            and (not times or bool(gap[-_MAX_GAP_CHARS:].strip(" \t\n-")))
        )
        unit: float | None = 1.0
        if match["clock"]:
            seconds = 0.0
            for part in match["clock"].split(":"):
                seconds = seconds * 60 + float(part)
        else:
            unit = _UNIT_SECONDS[match["unit"][0].casefold()] if match["unit"] else None
            seconds = float(match["number"]) * (unit or 1.0)
        if not seconds <= MAX_SECONDS:
            seconds = nan  # compares with nothing, so it is part of no span
        time = _Time(-seconds if is_negative else seconds, unit, unit, match.start() - is_negative, match.end())
        last = times[-1] if times else None
        if last and _continues(last, time, gap) and not match["clock"]:
            times[-1] = replace(last, seconds=last.seconds + seconds, smallest_unit=unit, end=time.end)
        else:
            times.append(time)
    return times


def _continues(last: _Time, time: _Time, gap: str) -> bool:
    """Whether the second is the smaller part of one time, as 30 s in "1 min 30 s" or "1 minute and 30 seconds"."""
    if last.smallest_unit is None or time.unit is None or gap.strip() not in ("", ",", "and", ", and"):
        return False
    return time.unit < last.smallest_unit and time.seconds < last.smallest_unit


def _separator_rank(gap: str) -> int | None:
    """0 for the surest separator of start and end; None if the gap is none."""
    if len(gap) > _MAX_GAP_CHARS:
        return None
    words = [word[0] if word[0] == "-" else word for word in _GAP_WORD.findall(gap.lower())]
    separators = [word for word in words if word not in _FILLERS]
    if not _SEPARATORS.keys() >= set(separators):
        return None
    if separators:
        return min(_SEPARATORS[word] for word in separators)
    return _NO_SEPARATOR if gap.isspace() or not {"end", "ends"}.isdisjoint(words) else None


def parse_spans(gold: Any) -> list[Span]:
    """The spans of a ground truth: one, or several of which any counts.

    Args:
        gold: [start, end], a list of such, JSON text of either, or text that `parse_span` reads, maybe in answer tags;
            or one of these in an object, such as {"span": [1, 2], "answer": "B"}.

    Returns:
        (start, end) in seconds, start <= end; others are left out. Empty where there is none.

    quirk of the published code: it evaluates text as code.

    >>> parse_spans("[[1, 2.5], [7, 9]]"), parse_spans("From 5.0 to 12.5 seconds.")
    ([(1.0, 2.5), (7.0, 9.0)], [(5.0, 12.5)])
    """
    gold = unwrapped(gold)
    if isinstance(gold, Mapping):
        gold = unwrapped(gold.get("span"))
    if isinstance(gold, str):
        text = answer_text(gold)
        try:
            value = json.loads(text or "")
        except (ValueError, RecursionError):
            value = None
        spans = [parse_span(text)] if value is None else _listed_spans(value)
    else:
        spans = _listed_spans(gold)
    return [span for span in spans if span is not None and span[0] <= span[1]]


def _listed_spans(value: Any) -> list[Span | None]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    pairs = value if any(isinstance(item, Sequence) for item in value) else [value]
    return [_pair(pair) for pair in pairs]


def _pair(value: Any) -> Span | None:
    if not isinstance(value, Sequence) or len(value) != 2:
        return None
    if not all(
        isinstance(item, int | float) and not isinstance(item, bool) and abs(item) <= MAX_SECONDS for item in value
    ):
        return None
    return float(value[0]), float(value[1])


# Choices


def parse_choice(text: str | None, options: Sequence[str] | None = None) -> str | None:
    """The option letter that an answer names, in upper case.

    Read in this order, and the first that finds anything decides; if that finds two different letters, the answer is
    not one: the text of an option; a letter alone; a label at the start ("B. a cat", "(b)"); "the answer is B" and its
    like; "option B"; "(B)"; any capital that stands alone, the article "A" and the pronoun "I" last.

    quirk of the published code: the first capital of the text counts: A of "Answer: B", O of "Option B".

    Args:
        text: the answer, without its block.
        options: the options of this row, as letters ("A"), labelled texts ("A. cat"), or texts, then lettered in
            order. Only their letters count. None: any letter counts.

    >>> parse_choice("I think B"), parse_choice("a dog", ["a cat", "a dog"]), parse_choice("C", ["A", "B"])
    ('B', 'B', None)
    """
    text = " ".join(_plain(text).split())
    letters = dict(_lettered(options)) if options else None
    if letters:
        key = _option_key(text)
        named = {letter for letter, option in letters.items() if key and key == option}
        if len(named) == 1:
            return named.pop()
    for found in _letters_found(text):
        named = {letter.upper() for letter in found}
        if letters is not None:
            named &= letters.keys()
        if named:
            return named.pop() if len(named) == 1 else None
    return None


def _letters_found(text: str) -> Iterator[list[str]]:
    """Letters by each rule, the surest rule first."""
    alone, label = _LONE_LETTER.fullmatch(text), _LABEL.match(text)
    yield [alone[1]] if alone else []
    yield [label[1] or label[2] or label[3]] if label else []
    for pattern in (_ANSWER_IS, _OPTION_IS, _BRACKETED, _STANDALONE, _ANY_STANDALONE):
        yield pattern.findall(text)


def _lettered(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Letter and normalised text (empty where there is only a letter) of each option."""
    for index, option in enumerate(options[:26]):
        text = _plain(str(option))
        if alone := _LONE_LETTER.fullmatch(text):
            yield alone[1].upper(), ""
        elif label := _OPTION_LABEL.match(text):
            yield label[1].upper(), _option_key(text[label.end() :])
        else:
            yield chr(ord("A") + index), _option_key(text)


def _option_key(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


# Numbers


def parse_number(text: str | None) -> float | None:
    """The first number of a text, finite.

    Signs (also "−"), thousands separators ("1,234.5"), decimals, exponents ("1.5e-3") and simple fractions ("3/4")
    count; a percent sign or a unit after the number changes nothing. A fraction over zero is no number.

    quirk of the published code: thousands separators, exponents and fractions cut numbers, and integers lose their
    minus sign.

    >>> parse_number("about -1,234.5 m"), parse_number("3/4 of it"), parse_number("none")
    (-1234.5, 0.75, None)
    """
    match = _NUMBER.search(_plain(text))
    if match is None:
        return None
    value = float(match["number"].replace(",", "")) * (-1 if match["sign"] == "-" else 1)
    if match["divisor"] is not None:
        divisor = float(match["divisor"])
        value = value / divisor if divisor else nan
    return value if isfinite(value) else None

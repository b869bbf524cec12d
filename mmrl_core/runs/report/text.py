"""Numbers and texts as the page shows them."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

MAX_FACTS_OF_COMPLETION = 12
MAX_FACT_CHARS = 40
MAX_NAME_CHARS = 300  # of a prompt's id, a metric, a file
MAX_SHOWN_CHARS = 8_000  # of a prompt or completion; a runaway one would hide all others
SMALLEST_CHANGE = 5e-4  # less rounds to 0.000

_TAG = re.compile(r"(</?(?:think|tool_call|answer)>)")  # shown as written; the text between them is styled
# What a browser would drop or choke on: control characters become symbols, lone surrogates a replacement mark.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)


def number_of(value: Any) -> float | None:
    """The value as a float if it is a finite number and no bool, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def format_number(value: Any) -> str:
    """A few significant digits for reading in a column; a dash for what is missing.

    >>> [format_number(value) for value in (0.57321, 12, 1234.5, 0.00002, None)]
    ['0.573', '12', '1,234', '2.0e-05', '–']
    """
    number = number_of(value)
    if number is None:
        return "–"
    size = abs(number)
    if isinstance(value, int) and size < 1e15:
        text = f"{value:,}"
    elif size >= 1e7 or 0 < size < 1e-3:
        text = f"{number:.1e}"
    else:
        text = f"{number:,.{3 if size < 100 else 1 if size < 1000 else 0}f}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def format_change(value: float | None) -> str:
    """A number with its sign always written.

    >>> [format_change(value) for value in (0.25, -0.5, 0.0, None)]
    ['+0.250', '−0.500', '±0.000', '–']
    """
    if value is not None and abs(value) < SMALLEST_CHANGE:
        return "±0.000"
    return f"+{format_number(value)}" if value is not None and value > 0 else format_number(value)


def format_interval(interval: tuple[float, float] | None) -> str:
    """The edges of an interval; "" for none.

    >>> [format_interval(interval) for interval in ((0.1, 0.25), None)]
    ['0.100 to 0.250', '']
    """
    return "" if interval is None else f"{format_number(interval[0])} to {format_number(interval[1])}"


def format_seconds(value: float) -> str:
    """A time within a medium.

    >>> [format_seconds(value) for value in (0, 12.04, 3600.0, 1e9)]
    ['0.0 s', '12.0 s', '3600.0 s', '1.0e+09 s']
    """
    return f"{value:.1f} s" if abs(value) < 1e6 else f"{value:.1e} s"


def visible(text: str) -> str:
    """The text with symbols for control characters."""
    return text.translate(_VISIBLE)


def name_of(value: Any) -> str:
    """A name as the page shows it, cut where it is longer than any name."""
    text = value if isinstance(value, str) else str(value) if number_of(value) is not None else json.dumps(value)
    return visible(text if len(text) <= MAX_NAME_CHARS else f"{text[:MAX_NAME_CHARS]}…")


def shortened(text: str) -> str:
    left_out = len(text) - MAX_SHOWN_CHARS
    return visible(text if left_out <= 0 else f"{text[:MAX_SHOWN_CHARS]}\n[{left_out:,} more characters]")


def readable(names: Iterable[str]) -> dict[str, str]:
    """Names without their plugin and underscores, where that leaves them distinct.

    >>> readable(["reward/visual_rft/iou", "a/format", "b/format"])
    {'reward/visual_rft/iou': 'iou', 'a/format': 'a/format', 'b/format': 'b/format'}
    """
    ends = {name: name_of(name.rpartition("/")[2].replace("_", " ")) for name in names}
    counts = Counter(ends.values())
    return {name: end if counts[end] == 1 else name_of(name) for name, end in ends.items()}


def told_apart(text: str) -> list[tuple[str, str]]:
    """(CSS class, piece) pairs that make up a completion: reasoning, calls and answers have a class of their own."""
    pieces, style = [], "plain"
    for piece in _TAG.split(shortened(text)):
        if _TAG.fullmatch(piece) and piece[1] != "/":
            style = piece[1:-1]
        if piece:
            pieces.append((style, piece))
        if _TAG.fullmatch(piece) and piece[1] == "/":
            style = "plain"
    return pieces


def told_outcome(outcome: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) pairs of the facts of a conversation, cut short."""

    def short(text: str) -> str:
        return visible(text if len(text) <= MAX_FACT_CHARS else f"{text[:MAX_FACT_CHARS]}…")

    def told(value: Any) -> str:
        if number_of(value) is not None:
            return format_number(value)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    facts = list(outcome.items())[:MAX_FACTS_OF_COMPLETION]
    return [(short(name.replace("_", " ")), short(told(value))) for name, value in facts]

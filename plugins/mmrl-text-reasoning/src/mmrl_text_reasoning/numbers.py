r"""Plain numbers, which most answers are: read and compared exactly, without a parser of mathematics.

Everything is bounded: digits by `MAX_DIGITS`, exponents by three digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 300
TOLERANCE = Fraction(2, 10**6)
"""Relative, between a decimal and a number that is not whole: 0.333333 is 1/3, written with six digits."""

_MAGNITUDE = r"(?:\d{1,3}(?:\{?,\}?\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?:(?P<mixed>\d{0,9})\\frac(?:\{(?P<top>-?\d+)\}\{(?P<bottom>\d+)\}|(?P<short>\d\d))"
    rf"|(?P<whole>{_MAGNITUDE})"
    r"(?:[eE](?P<e>[+-]?\d{1,3})|(?:\\times|\\cdot|\*|x)10(?:\^|\*\*)\{?(?P<ten>[+-]?\d{1,3})\}?)?"
    r"(?:/(?P<under>\d+))?)"
    r"(?P<percent>%|\\text\{\s?percent\}|\s?percent\b)?"
)
# A unit after a number: words, or something in \text{}. A single letter may be a variable, and some words change the
# number.
_NO_UNIT = (
    r"(?:and|or|to|if|not|than|less|more|pi|sqrt|sin|cos|tan|log|ln|exp|mod|theta|hundred|thousand|million|billion|"
    r"trillion|dozen|squared|cubed|factorial|over|times|plus|minus)\b"
)
_UNIT = re.compile(
    r"(?:\^?\\(?:circ|degree)|\^\{\\circ\}|\\(?:text|mathrm|mbox|textrm)\{[^{}\d]{1,40}\}"
    rf"|(?:\s+(?!{_NO_UNIT})[A-Za-z]{{2,20}}){{1,4}})"
    r"(?:\^\{?[23]\}?)?"
)
# Blanks in a number: around signs, and before groups of three digits; those before a word stay.
_BLANKS = re.compile(r"(?<!\d)\s+(?![A-Za-z\s])|\s+(?![A-Za-z\s\d])|\s+(?=\d{3}(?!\d))")
_MIXED = re.compile(r"^([+-]?\d{1,9})\s+(\d{1,9})/(\d{1,9})")
_MONEY = re.compile(r"^([+-]?)(?:\\?\$|€|£)\s*")


@dataclass(frozen=True)
class Number:
    """A number as written.

    Attributes:
        value: the number; of a percentage, the number before the sign.
        is_percent: whether a sign of percent follows.
        is_decimal: whether it is written with a point or an exponent, and so may be rounded.
    """

    value: Fraction
    is_percent: bool = False
    is_decimal: bool = False


def read_number(text: str) -> Number | None:
    r"""The number that a text is, with or without a unit; None if it is anything else.

    Commas group digits by three. Units are left out: the question says which is meant.

    >>> [str(read_number(text).value) for text in ("1,234.5", r"-\frac{3}{4}", r"3\frac12", "$18", "10 cm", "2.5e3")]
    ['2469/2', '-3/4', '7/2', '18', '10', '2500']
    >>> read_number("1/0"), read_number("2x"), read_number("1,2")
    (None, None, None)
    """
    if len(text) > 2 * MAX_DIGITS:
        return None
    stated = _MONEY.sub(r"\1", text.strip().replace(r"\%", "%").replace("dfrac", "frac").replace("tfrac", "frac"))
    stated = re.sub(r"\\[!,;: ]", "", stated)
    stated = _MIXED.sub(r"\1\\frac{\2}{\3}", stated)
    stated = _BLANKS.sub("", stated)
    found = _NUMBER.match(stated)
    if found is None or (found.end() < len(stated) and not _UNIT.fullmatch(stated, found.end())):
        return None
    return _number(found)


def same_number(gold: Number, answer: Number) -> bool:
    """Whether two numbers are one: exactly, or up to rounding where neither is whole and one is a decimal.

    A percentage equals the number before the sign, and what it stands for: 50% is 50, as an answer to "how many per
    cent", and 0.5.

    >>> half = Number(Fraction(1, 2))
    >>> [same_number(half, Number(Fraction(n), True)) for n in (50, 5)]
    [True, False]
    """
    if gold.is_percent == answer.is_percent:
        return _close_enough(gold.value, answer.value, gold.is_decimal or answer.is_decimal)
    decimal = gold.is_decimal or answer.is_decimal
    bare, percent = (answer, gold) if gold.is_percent else (gold, answer)
    return bare.value == percent.value or _close_enough(bare.value, Fraction(percent.value) / 100, decimal)


def _number(found: re.Match[str]) -> Number | None:
    parts = found.groupdict()
    sign = -1 if parts["sign"] == "-" else 1
    digits = sum(len(part) for part in parts.values() if part)
    if digits > MAX_DIGITS:
        return None
    if parts["whole"] is not None:
        whole = re.sub(r"[{},]", "", parts["whole"]).rstrip(".") or "0"
        exponent = int(parts["e"] or parts["ten"] or 0)
        value = Fraction(whole) * Fraction(10) ** exponent
        if parts["under"] is not None:
            if not int(parts["under"]):
                return None
            value /= int(parts["under"])
    else:
        top, bottom = (parts["short"][0], parts["short"][1]) if parts["short"] else (parts["top"], parts["bottom"])
        if not int(bottom):
            return None
        value = Fraction(int(top), int(bottom)) + int(parts["mixed"] or 0)
    is_decimal = parts["whole"] is not None and ("." in parts["whole"] or bool(parts["e"] or parts["ten"]))
    return Number(sign * value, bool(parts["percent"]), is_decimal)


def _close_enough(a: Fraction, b: Fraction, decimal: bool) -> bool:
    if a == b:
        return True
    if not decimal or a.denominator == 1 or b.denominator == 1:
        return False
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))

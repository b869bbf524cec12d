"""Values and what is wrong with them, in words. Needs nothing but the standard library."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from mmrl_core.errors import did_you_mean

LONGEST = 200
"""Characters of a value that an error quotes."""

_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_WORDS_FOR_BOOLS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


def expectation(item: Mapping[str, Any], value: Any) -> str:
    """An error of pydantic as "should be a number; got 'x'."."""
    kind = str(item["type"])
    context = item.get("ctx", {})
    hint = ""
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        finite = not isinstance(value, float) or math.isfinite(value)
        expected = f"be {words} {number(context[bound])}" if finite else "be a finite number"
    elif kind == "literal_error":
        expected = f"be {context['expected']}"
        hint = did_you_mean(str(value), re.findall(r"'([^']*)'", expected))
    elif (family := kind.partition("_")[0]) in _EXPECTED:
        expected = f"be {_EXPECTED[family]}"
        if family == "string" and isinstance(value, int | float):
            hint = " Put it in quotes."
        elif family == "bool" and str(value).lower() in _WORDS_FOR_BOOLS:
            hint = f" Write {_WORDS_FOR_BOOLS[str(value).lower()]}; yes, no, on and off are text here."
        elif family == "int" and isinstance(value, float) and value.is_integer():
            hint = f" Write {int(value)}."
    else:
        expected = str(item["msg"]).removeprefix("Input should ")
    return f"should {expected}; got {described(value)}.{hint}"


def described(value: Any) -> str:
    """A value in few words: a mapping, a list of 3, 'text', null."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 4 :]}"


def number(value: float) -> str:
    """A bound as people write it.

    >>> [number(value) for value in (0.001, 2, 1e-30, 1e12)]
    ['0.001', '2', '1e-30', '1,000,000,000,000']
    """
    return f"{int(value):,}" if abs(value) >= 1000 and value == int(value) else f"{value:g}"

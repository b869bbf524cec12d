"""Gold answers as data sets store them: text, number, a list of one, an object around the value.

A reward that cannot read a gold must say so: left unscored, its part of the total would be missing without a word.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmrl_core.errors import TaskDataError

MAX_JSON_CHARS = 65_536
MAX_WRAPPINGS = 4  # [{"value": ["A"]}] has three


def unwrapped(value: Any) -> Any:
    """What is left of a gold without what data sets put around it: a list of one, an object of one entry, an array.

    Returns:
        A text, number, bool, or a list or object of several; None where nothing is there (null, NaN, an empty list).

    >>> unwrapped(["A"]), unwrapped({"value": 3}), unwrapped([1.5, 4]), unwrapped(float("nan"))
    ('A', 3, [1.5, 4], None)
    """
    for _ in range(MAX_WRAPPINGS):
        if hasattr(value, "tolist"):  # an array, or a scalar of one
            value = value.tolist()
        if isinstance(value, Mapping) and len(value) == 1:
            value = next(iter(value.values()))
        elif isinstance(value, list | tuple) and len(value) <= 1:
            value = value[0] if value else None
        else:
            break
    return None if isinstance(value, float) and math.isnan(value) else value


def gold_text(value: Any, what: str, expected: str = "a text or a number") -> str | None:
    """A gold answer as text.

    Args:
        value: as stored: a text; a number; a bool, which becomes "true" or "false"; or one of these, wrapped as in
            `unwrapped`, or a text wrapped so and written as JSON, as cells of tables hold it.
        what: the column, for the message.
        expected: what it should hold, for the message.

    Returns:
        The text without blanks around it; None where nothing, or a blank text, is stored.

    Raises:
        TaskDataError: it is something else, such as a list of several.

    >>> [gold_text(stored, "solution") for stored in (["A"], 3.0, " ", '["A"]', "[A]")]
    ['A', '3', None, 'A', '[A]']
    """
    plain = unwrapped(value)
    if isinstance(plain, str):
        plain = _out_of_json(plain)
    if plain is None:
        return None
    if isinstance(plain, bool):
        return str(plain).lower()
    if isinstance(plain, int | float) and math.isfinite(plain):
        whole = isinstance(plain, float) and plain.is_integer() and abs(plain) < 1e15
        return str(int(plain) if whole else plain)
    if not isinstance(plain, str):
        raise unusable_gold(value, what, expected)
    return plain.strip() or None


def _out_of_json(text: str) -> Any:
    """The one text or number of a JSON list of a text, or of an object of one entry; other texts as they are."""
    text = text.strip()
    if text[:1] + text[-1:] not in ("[]", "{}") or len(text) > MAX_JSON_CHARS:
        return text
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        return text
    found = unwrapped(stored)
    is_wrapped = isinstance(found, str) or (isinstance(stored, dict) and isinstance(found, int | float))
    return found if is_wrapped else text


def unusable_gold(value: Any, what: str, expected: str) -> TaskDataError:
    """The error for a gold that is there and cannot be used."""
    return TaskDataError(f"{what} is {_short(value)}, and the gold has to be {expected}")


def score_each(
    reward: Callable[..., Sequence[float | None]],
    completions: Sequence[Any],
    samples: Sequence[Mapping[str, Any]],
    **options: Any,
) -> list[float | None]:
    """The scores of a reward, for metrics: a row whose gold it cannot read is unscored and does not end the others."""
    scores: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        try:
            scores += reward([completion], [sample], **options)
        except TaskDataError:
            scores.append(None)
    return scores


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."

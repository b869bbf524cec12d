"""The options of a question as files store them: a list, or a list that stands as one text."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl_core.errors import TaskDataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_TEXT_CHARS = 65_536
EXPECTED = (
    'two or more options: a list of texts, the JSON or Python text of one, such as ["left", "right"], '
    'or labelled lines, "A. left" and below it "B. right"'
)
_CLOSING = r"[.):\]．。）】：、]"


def read_options(value: Any, column: str = "options", *, least: int = 2) -> list[str] | None:
    """The options of a row, whatever form the file has given them.

    Args:
        value: a list (or array) of texts or numbers; an object from letters A, B, ... to texts, entries without text
            left out; an object of the two lists "text" and "label"; or a text: JSON or Python of these, or options
            behind the labels A, B, ... (or a, b, ... or 1, 2, ...), each on a line of its own or all on one.
        column: for the message.
        least: so many options have to be in a list.

    Returns:
        The options in order, without blanks around them; labels in front of them stay in lists and are dropped in
        texts and objects. None where there are none: null, NaN, a blank text or an empty list.

    Raises:
        TaskDataError: anything else, and fewer options than `least`.

    >>> read_options('["left", "right"]'), read_options("A. left\\nB. right"), read_options("(A) left (B) right")
    (['left', 'right'], ['left', 'right'], ['left', 'right'])
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    found = value
    if isinstance(value, str):
        if not value.strip():
            return None
        found = _parsed(value)
    if isinstance(found, Mapping):
        found = _of_object(found)
    if isinstance(found, Sequence) and not isinstance(found, str | bytes):
        if not found:
            return None
        texts = [_text(item) for item in found]
        if len(texts) >= least and all(texts):
            return texts
    shown = repr(value)
    raise TaskDataError(f"{column} is {shown[:80]}{'...' if len(shown) > 80 else ''}, not {EXPECTED}")


def read_texts(value: Any, column: str) -> list[str] | None:
    """A list of texts that need not be options, such as other names of an answer: as `read_options`, one is enough.

    A text that is no list is one item.

    >>> read_texts("car", "aliases"), read_texts('["car"]', "aliases"), read_texts(["car", "auto"], "aliases")
    (['car'], ['car'], ['car', 'auto'])
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str):
        found = _literal(value)
        value = found if isinstance(found, list | tuple) else [value]
    if isinstance(value, list | tuple) and len(value) == 1:
        text = _text(value[0])
        if not text and value[0] not in (None, ""):
            raise TaskDataError(f"{column} is {value!r:.80}, not a list of texts")
        return [text] if text else None
    return read_options(value, column)


def _text(item: Any) -> str:
    """An option as text; empty where it is none."""
    if hasattr(item, "tolist"):
        item = item.tolist()
    if isinstance(item, str):
        return item.strip()
    is_number = isinstance(item, int) or (isinstance(item, float) and math.isfinite(item))
    return str(item) if is_number else ""


def _of_object(found: Mapping[Any, Any]) -> list[Any] | None:
    if isinstance(found.get("text"), Sequence) and not isinstance(found["text"], str):
        return list(found["text"])
    by_label = {str(key).strip().upper(): text for key, text in found.items() if text is not None}
    labels = list(LETTERS[: len(by_label)])
    return [by_label[label] for label in labels] if sorted(by_label) == labels else None


def _parsed(text: str) -> Any:
    """What a text spells: a list or an object, or the list of its labelled options; None for anything else."""
    if len(text) > MAX_TEXT_CHARS:
        return None
    found = _literal(text)
    return found if isinstance(found, list | tuple | dict) else labelled_options(text)


def _literal(text: str) -> Any:
    """JSON or a Python literal; None where it is neither. Nothing is evaluated."""
    text = text.strip()
    if len(text) > MAX_TEXT_CHARS or text[:1] not in ("[", "(", "{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        _refuse_neighbours(text)
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
        return None


def _refuse_neighbours(text: str) -> None:
    """ValueError where two texts stand side by side, as numpy prints lists: Python would join them into one."""
    last = tokenize.COMMA
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE):
            continue
        if token.type == last == tokenize.STRING:
            raise ValueError("texts without a comma between them")
        last = token.type


def labelled_options(text: str) -> list[str] | None:
    """Options behind labels in order, A to at most Z, a to z or 1 to 26; None where the text is none from its start on.

    Labels at the start of lines go before labels within a line, so that "A. go to B. now" is one option on its line.

    >>> labelled_options("A. go to B. now\\nB. wait"), labelled_options("A: left, B: right"), labelled_options("A cat")
    (['go to B. now', 'wait'], ['left', 'right'], None)
    """
    text = text.strip()
    if len(text) > MAX_TEXT_CHARS:
        return None
    for before, after in ((r"(?:^|\n)[ \t]*", r"(?![0-9])"), (r"(?:^|(?<=[\s;,(]))", r"(?=\s)")):
        for labels in (LETTERS, LETTERS.lower(), [str(number) for number in range(1, len(LETTERS) + 1)]):
            found = _labels_in_order(text, labels, before, after)
            if len(found) > 1 and found[0][0] == 0:
                ends = [start for start, _ in found[1:]] + [len(text)]
                return [
                    text[start:end].strip().rstrip(",;").strip() for (_, start), end in zip(found, ends, strict=True)
                ]
    return None


def _labels_in_order(text: str, labels: Sequence[str], before: str, after: str) -> list[tuple[int, int]]:
    """Where each label starts and ends, as far as they follow one another."""
    found: list[tuple[int, int]] = []
    for label in labels:
        pattern = re.compile(rf"{before}[(\[（【]?{label}{_CLOSING}{after}")
        match = pattern.search(text, found[-1][1] if found else 0)
        if match is None:
            break
        found.append((match.start(), match.end()))
    return found

"""Reading actions out of completions.

A completion is untrusted text: nothing here evaluates it. Answers are read by one small parser that takes Python and
JSON spelling alike; its work is bounded by MAX_ANSWER_CHARS, MAX_DEPTH and MAX_TRIES.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from mmrl_core.media import MAX_COORDINATE, BoxConvention, Point
from mmrl_gui.actions import ACTIONS, DIRECTIONS, NO_POINT, NO_TEXT, action_name

MAX_ANSWER_CHARS = 8_192  # of one answer block; an action is a hundred characters
MAX_DEPTH = 6  # a point lies three deep
MAX_TRIES = 32  # openings of a list or object that are tried in an answer with prose around it
MAX_NUMBER_CHARS = 40

POINT_KEYS = ("point", "coordinate")
TEXT_KEYS = ("input_text", "text", "direction", "app_name")

_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_NUMBER_ONLY = re.compile(_NUMBER)
_TOKEN = re.compile(rf"\s*(?:(?P<mark>[\[\](){{}},:])|(?P<quote>['\"])|(?P<number>{_NUMBER})|(?P<word>[A-Za-z]+))")
# An action's name without quotes, which UI-R1 reads, too.
_BARE_NAME = re.compile(r"\s*(?!(?i:true|false|null|none)\b)([A-Za-z_]+)(?=\s*[,}])")
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_CLOSING = {"[": "]", "(": ")"}
_OPENING = re.compile(r"[\[{]")


@dataclass(frozen=True)
class Action:
    """One action as a completion states it.

    Attributes:
        name: in the spelling of `actions.ACTIONS`.
        point: where, as written and in the convention that it was read in; None where there is none, it is no pair of
            finite numbers, or lies at negative coordinates (the filler).
        text: what to type, a direction or a name; None where there is none, or the filler stands for it.
    """

    name: str
    point: Point | None = None
    text: str | None = None


def split_thinking(completion: object) -> tuple[str | None, str]:
    """(what stands in the think block, or None if there is none that ends; what follows it)."""
    if not isinstance(completion, str):
        return None, ""
    thinking, closing, rest = completion.partition("</think>")
    return (thinking.partition("<think>")[2], rest) if closing else (None, completion)


def answer_text(completion: object) -> str | None:
    """What stands in the last whole answer block after the thinking, without blanks around it and without code fence.

    Where none follows the thinking, that of an answer which stands before it counts, but none inside of it.

    quirk of the published code: it takes the first block anywhere, so that one quoted in the thinking hides the answer.

    Returns:
        The text, maybe empty; None where there is no whole block, or it is longer than MAX_ANSWER_CHARS.

    >>> answer_text("<think>not <answer>a</answer></think> <answer> b </answer>")
    'b'
    >>> answer_text("<answer>a</answer> <think>I looked.</think>")
    'a'
    """
    thinking, rest = split_thinking(completion)
    answer = _last_block(rest)
    if answer is None and thinking is not None and isinstance(completion, str):
        answer = _last_block(completion.partition("<think>")[0])
    if answer is None or len(answer) > MAX_ANSWER_CHARS:
        return None
    answer = answer.strip()
    if answer.startswith("```") and answer.endswith("```") and len(answer) >= 6:
        answer = answer[3:-3].strip().removeprefix("json").removeprefix("python").strip()
    return answer


def _last_block(text: str) -> str | None:
    before, closing, _ = text.rpartition("</answer>")
    _, opening, answer = before.rpartition("<answer>")
    return answer if closing and opening else None


def parse_literal(text: str) -> Any:
    """A list, object, string, number, bool or null in Python's or JSON's spelling; nothing is evaluated.

    Raises:
        ValueError: it is none, or not alone, or deeper than MAX_DEPTH.

    >>> parse_literal('[{"action": \\'click\\', "point": (1, -2.5),}]')
    [{'action': 'click', 'point': [1, -2.5]}]
    """
    value, end = _value(text, 0, 0)
    if text[end:].strip():
        raise ValueError("text after the value")
    return value


def _value(text: str, start: int, depth: int) -> tuple[Any, int]:
    """(value that begins at `start`, position after it)."""
    token = _TOKEN.match(text, start)
    if token is None or depth > MAX_DEPTH:
        raise ValueError("no value")
    if token["quote"]:
        return _string(text, token.end(), token["quote"])
    if token["number"]:
        return _number(token["number"]), token.end()
    if token["word"]:
        if token["word"].lower() not in _WORDS:
            raise ValueError("unknown word")
        return _WORDS[token["word"].lower()], token.end()
    if token["mark"] in _CLOSING:
        return _items(text, token.end(), depth, _CLOSING[token["mark"]])
    if token["mark"] == "{":
        return _object(text, token.end(), depth)
    raise ValueError("no value")


def _items(text: str, position: int, depth: int, closing: str) -> tuple[list[Any], int]:
    items: list[Any] = []
    while not (token := _mark(text, position)) or token[0] != closing:
        value, position = _value(text, position, depth + 1)
        items.append(value)
        position = _after_item(text, position, closing)
    return items, token[1]


def _object(text: str, position: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    while not (token := _mark(text, position)) or token[0] != "}":
        key, position = _value(text, position, depth + 1)
        colon = _mark(text, position)
        if not isinstance(key, str) or not colon or colon[0] != ":":
            raise ValueError("no key")
        bare = _BARE_NAME.match(text, colon[1]) if key.strip() == "action" else None
        found[key.strip()], position = (bare[1], bare.end()) if bare else _value(text, colon[1], depth + 1)
        position = _after_item(text, position, "}")
    return found, token[1]


def _after_item(text: str, position: int, closing: str) -> int:
    """Behind the comma after an item, or before the closing mark."""
    mark = _mark(text, position)
    if mark and mark[0] == ",":
        return mark[1]
    if mark and mark[0] == closing:
        return position
    raise ValueError("neither a comma nor an end")


def _mark(text: str, position: int) -> tuple[str, int] | None:
    token = _TOKEN.match(text, position)
    return (token["mark"], token.end()) if token and token["mark"] else None


def _string(text: str, position: int, quote: str) -> tuple[str, int]:
    parts: list[str] = []
    while position < len(text):
        char = text[position]
        if char == quote:
            return "".join(parts), position + 1
        if char == "\\" and position + 1 < len(text):
            position += 1
            char = _ESCAPES.get(text[position], text[position])
        parts.append(char)
        position += 1
    raise ValueError("a string without end")


def _number(text: str) -> int | float:
    if len(text) > MAX_NUMBER_CHARS:
        raise ValueError("too long a number")
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def parse_actions(completion: object, convention: BoxConvention = BoxConvention.ABSOLUTE_PX) -> list[Action] | None:
    """The actions of an answer, in order of writing.

    The answer is a list of objects, or an object, with `action`, `point` (or `coordinate`) and `input_text` (or `text`,
    `direction`, `app_name`), in Python's or JSON's spelling, alone or with prose around it. Coordinates may be floats
    or quoted; an action's name, as UI-R1 reads it, may lack its quotes.

    quirk of the published code: it runs the answer, or reads it by patterns that know single quotes only, cut a text at
    an apostrophe, lose an object over several lines, and read a missing point as (0, 0).

    Args:
        completion: untrusted text.
        convention: what the numbers of its points mean.

    Returns:
        The actions; None where there is no answer, or no object in it that names an action.

    >>> parse_actions("<answer>[{'action': 'click', 'point': [3, 4], 'input_text': 'no input text'}]</answer>")[0].point
    Point(x=3, y=4, convention=<BoxConvention.ABSOLUTE_PX: 'absolute_px'>)
    """
    answer = answer_text(completion)
    if answer is None:
        return None
    actions = [action for found in _objects(answer) if (action := _action(found, convention)) is not None]
    return actions or None


def _objects(answer: str) -> Iterator[Mapping[str, Any]]:
    """Every object of a text, those in lists included, as far as MAX_TRIES reaches."""
    position = 0
    for _ in range(MAX_TRIES):
        opening = _OPENING.search(answer, position)
        if opening is None:
            return
        try:
            value, position = _value(answer, opening.start(), 0)
        except ValueError:
            position = opening.end()
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield item


def _action(found: Mapping[str, Any], convention: BoxConvention) -> Action | None:
    name = action_name(found.get("action"))
    if name is None:
        return None
    point = next((found[key] for key in POINT_KEYS if key in found), None)
    text = next((found[key] for key in TEXT_KEYS if key in found), None)
    return Action(name, _point(point, convention), stated_text(text))


def _point(value: object, convention: BoxConvention) -> Point | None:
    numbers = coordinates(value)
    if numbers is None or len(numbers) != 2 or min(numbers) < 0:
        return None
    return Point(numbers[0], numbers[1], convention)


def coordinates(value: object) -> list[float] | None:
    """The numbers of a list, quoted ones included; None where it is no list, or an item no finite number in range.

    A list may be quoted as a whole, and be an object of x and y.

    >>> coordinates([1, "2.5"]), coordinates("[140, 220]"), coordinates({"x": 3, "y": 4}), coordinates("140")
    ([1, 2.5], [140.0, 220.0], [3, 4], None)
    """
    if hasattr(value, "tolist"):  # numpy, from parquet
        value = value.tolist()
    if isinstance(value, str):
        value = _quoted_list(value)
    elif isinstance(value, Mapping) and set(value) == {"x", "y"}:
        value = [value["x"], value["y"]]
    if not isinstance(value, list | tuple):
        return None
    numbers = [_coordinate(item) for item in value]
    return None if any(number is None for number in numbers) else [number for number in numbers if number is not None]


def _quoted_list(text: str) -> list[str] | None:
    text = text.strip() if len(text) <= MAX_DEPTH * MAX_NUMBER_CHARS else ""
    if text[:1] not in _CLOSING or not text.endswith(_CLOSING[text[:1]]):
        return None
    return text[1:-1].split(",")


def _coordinate(value: object) -> float | None:
    if isinstance(value, str) and len(value) <= MAX_NUMBER_CHARS and _NUMBER_ONLY.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Compared before anything is computed: an int may be too long for a float.
    return value if abs(value) <= MAX_COORDINATE and isfinite(value) else None


def stated_text(value: object) -> str | None:
    """A text argument without blanks around it, or a number as text; None where it is blank or the filler."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_COORDINATE:
        value = str(value)
    text = value.strip() if isinstance(value, str) else ""
    return None if text.lower() in ("", NO_TEXT) else text


def has_actions_format(completion: object) -> bool:
    """Whether the answer is nothing but well-formed actions of GUI-R1: a list of objects with exactly its types.

    `action` a string, `point` two whole numbers or two shares of the sides, `input_text` a string; not the filler where
    the action needs a text; a direction in lower case where it scrolls.

    quirk of the published code: an empty list, True for 1 and points of more than two numbers pass.
    """
    try:
        value = parse_literal(answer_text(completion) or "")
    except ValueError:
        return False
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(_is_well_formed(item) for item in items)


def _is_well_formed(item: object) -> bool:
    if not isinstance(item, dict):
        return False
    name, point, text = item.get("action"), item.get("point"), item.get("input_text")
    if not isinstance(name, str) or not isinstance(text, str) or not isinstance(point, list) or len(point) != 2:
        return False
    if not all(type(number) is int or (type(number) is float and 0 <= number <= 1) for number in point):
        return False
    action = ACTIONS.get(action_name(name) or "")
    if action is not None and action.text_required:
        return text.strip().lower() != NO_TEXT
    return action is None or action.argument != "direction" or text in DIRECTIONS


def has_block_format(completion: object, *, thinking: bool, may_be_blank: bool = True) -> bool:
    """Whether a completion is one think block (or none, without thinking), then one answer block, and nothing else.

    Blanks around the blocks are fine. The thinking may quote answer tags, but no think tags.

    Args:
        completion: untrusted text.
        thinking: a think block has to be there; else none may.
        may_be_blank: of the thinking.
    """
    if not isinstance(completion, str):
        return False
    rest = completion.strip()
    if thinking:
        if not rest.startswith("<think>"):
            return False
        inside, closing, rest = rest.removeprefix("<think>").partition("</think>")
        if not closing or "<think>" in inside or not (may_be_blank or inside.strip()):
            return False
        rest = rest.strip()
    tags = [rest.count(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    return tags == [0, 0, 1, 1] and rest.startswith("<answer>") and rest.endswith("</answer>")


def action_answer(actions: Sequence[tuple[str, Sequence[float] | None, str | None]], *, decimals: int = 0) -> str:
    """Actions (name, point or None, text or None) in the answer form of GUI-R1; points with so many decimals.

    >>> action_answer([("click", (3, 4), None)])
    "[{'action': 'click', 'point': [3, 4], 'input_text': 'no input text'}]"
    """
    items = []
    for name, point, text in actions:
        digits = decimals if point and decimals else None
        numbers = ", ".join(str(round(number, digits)) for number in point or NO_POINT)
        items.append(f"{{'action': '{name}', 'point': [{numbers}], 'input_text': {quoted(text or NO_TEXT)}}}")
    return f"[{', '.join(items)}]"


def quoted(text: str) -> str:
    """A string in single quotes that `parse_literal` reads back."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"

"""Text with data columns in braces."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl_core.errors import TaskDataError, did_you_mean
from mmrl_core.media import is_picture


class Template:
    """Text with data columns in braces: `"Where is the {label}?"`. `{{` and `}}` are literal braces.

    Braces name columns and nothing else: no attribute, index, conversion or format is looked at, so a column called
    `a.b` is written `{a.b}`.
    """

    def __init__(self, text: str, key: str) -> None:
        """
        Args:
            text: the template.
            key: config key that it comes from, for messages.

        Raises:
            TaskDataError: unbalanced or empty braces, or more than a column name in them.
        """
        self.text = text
        self.key = key
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise TaskDataError(f"{key}: {text!r}: {error}. Write a literal brace as {{{{ or }}}}.") from error
        self._parts: list[tuple[str, str | None]] = []
        for literal, column, spec, conversion in parsed:
            if column == "":
                raise TaskDataError(f"{key}: {text!r}: empty braces. Name a column, or write literal ones as {{{{}}}}.")
            if spec or conversion:
                raise TaskDataError(
                    f"{key}: {text!r}: braces hold a column name and nothing else, not a format or conversion."
                )
            self._parts.append((literal, column))

    @property
    def columns(self) -> list[str]:
        return [column for _, column in self._parts if column is not None]

    @property
    def only_column(self) -> str | None:
        """The column, if the template is just `{column}`."""
        return self._parts[0][1] if len(self._parts) == 1 and not self._parts[0][0] else None

    def render(self, row: Mapping[str, Any]) -> str:
        """The text for a row. Lists and mappings are written as JSON.

        Raises:
            TaskDataError: the row lacks a column, or it is null, or holds a medium.
        """
        return "".join(
            literal + ("" if column is None else _text_of(value_of(row, column, self.key), column, self.key))
            for literal, column in self._parts
        )


def value_of(row: Mapping[str, Any], column: str, key: str) -> Any:
    """The value of a column, or a `TaskDataError` that names the nearest one."""
    if column in row:
        return row[column]
    raise TaskDataError(f"{key}: {no_column(column, row)}")


def no_column(column: str, columns: Mapping[str, Any] | Sequence[str]) -> str:
    hint = did_you_mean(column, columns) or f" Columns: {', '.join(columns)}."
    return f"the data have no column {column!r}.{hint}"


def _text_of(value: Any, column: str, key: str) -> str:
    if isinstance(value, str):
        if _is_chat(_read_json(value)):
            raise TaskDataError(_chat_in(column, key))
        return value
    if value is None:
        raise TaskDataError(f"{key}: column {column!r} is null")
    if is_media(value):
        raise TaskDataError(f"{key}: column {column!r} holds a medium; list it under prompt.images, videos or audios")
    if hasattr(value, "tolist"):  # numpy
        value = value.tolist()
    if _is_chat(value):
        raise TaskDataError(_chat_in(column, key))
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _chat_in(column: str, key: str) -> str:
    return (
        f"{key}: column {column!r} holds the messages of a chat, not a text; name a column with the question, or a "
        "source that reads conversations"
    )


def _read_json(text: str) -> Any:
    """What a table's cell holds that may be messages written as JSON; None of any other text."""
    if not text.lstrip().startswith(("[", "{")) or not ('"role"' in text or '"from"' in text):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_chat(value: Any) -> bool:
    """Whether a value is a turn or a list of turns, in one of the two forms in use."""
    value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, list | tuple) or not value:
        return False
    turns = [turn.keys() if isinstance(turn, Mapping) else () for turn in value]
    return all({"role", "content"} <= set(turn) or {"from", "value"} <= set(turn) for turn in turns)


def is_media(value: Any) -> bool:
    """Whether a value is, or holds, bytes or a decoded medium, which rewards and logs should not carry around."""
    if isinstance(value, bytes | bytearray | memoryview):
        return True
    if isinstance(value, Mapping):
        return {"array", "sampling_rate"} <= value.keys() or any(is_media(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(is_media(item) for item in value)
    return is_picture(value)

"""Turns of a chat as data sets write them, and media at their places in them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmrl_core.data.row_media import Medium
from mmrl_core.errors import TaskDataError
from mmrl_core.media import MEDIUM_KEYS

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
"""What data sets call a role -> what chat templates call it."""

TOOL_ROLES = ("tool", "tool_call", "tool_response", "function", "function_call", "observation")
"""Roles of chats in which tools are called. They are not read: how a call is written differs between models."""

PART_KINDS = {kind + suffix: kind for kind in ("image", "video", "audio") for suffix in ("", "_url")}
"""Type of a part of a message -> kind of medium."""


@dataclass(frozen=True)
class Slot:
    """A place for the next medium of its kind in the row's columns, or for `value`, which the message holds itself."""

    kind: str
    value: Any = None


Part = str | Slot | Medium


class Turn(NamedTuple):
    """A turn; as it was read, it has slots for its media, and marks are a part of its texts."""

    role: str
    parts: list[Part]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))


def read_turns(value: Any, what: str) -> list[Turn]:
    """The turns of a chat.

    Args:
        value: a list of `{"role": ..., "content": ...}`, where content is a text or a list of parts, or of
            `{"from": ..., "value": ...}`; or either written as JSON. A turn without content is left out.
        what: the column, for messages.

    Raises:
        TaskDataError: it is something else, or has a role or a part that is not read, or calls of tools.

    >>> read_turns([{"from": "human", "value": "What is this? <image>"}], "conversations")
    [Turn(role='user', parts=['What is this? <image>'])]
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise TaskDataError(f"{what}: expected messages, this is the text {value[:40]!r}") from None
    if not isinstance(value, list | tuple) or not all(isinstance(turn, Mapping) for turn in value):
        raise TaskDataError(f"{what}: expected a list of messages, this is {type(value).__name__}")
    turns = []
    for number, turn in enumerate(value):
        where = f"{what}, message {number}"
        said = turn.get("role", turn.get("from"))
        if said in TOOL_ROLES or turn.get("tool_calls"):
            what = f"the role {said!r}" if said in TOOL_ROLES else "tool_calls"
            raise TaskDataError(
                f"{where}: {what} is not read, since models write calls of tools differently; leave such rows out. "
                "Tools that a policy may call in a run are rollout.tools."
            )
        if said not in ROLES:
            raise TaskDataError(f"{where}: the role {said!r} is not read; roles: {', '.join(ROLES)}")
        content = turn.get("content", turn.get("value"))
        if parts := list(_parts(content, where)):
            turns.append(Turn(ROLES[said], parts))
    return turns


def _parts(content: Any, where: str) -> Iterator[Part]:
    if isinstance(content, str):
        if content:
            yield content
        return
    if content is not None and not isinstance(content, list | tuple):
        raise TaskDataError(f"{where}: its content is {type(content).__name__}, not a text or a list of parts")
    for part in content or ():
        if isinstance(part, str):
            yield part
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            yield part["text"]
        elif kind in PART_KINDS:
            held = {key: part[key] for key in MEDIUM_KEYS if part.get(key) is not None}
            yield Slot(PART_KINDS[kind], held or None)
        else:
            raise TaskDataError(f"{where}: a part of type {kind!r} is not read; types: text, {', '.join(PART_KINDS)}")


def is_chat(value: Any) -> bool:
    """Whether a value is a list of turns, in one of the forms that `read_turns` takes."""
    if isinstance(value, str) and value.lstrip()[:1] == "[" and ('"role"' in value or '"from"' in value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    if not isinstance(value, list | tuple) or not value or not all(isinstance(turn, Mapping) for turn in value):
        return False
    return all({"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys() for turn in value)


def without_media(value: Any, turns: Sequence[Turn]) -> Any:
    """Messages as a sample keeps them: as they are, or with empty places for the media that they hold themselves."""
    if not any(isinstance(part, Slot) and part.value is not None for turn in turns for part in turn.parts):
        return value
    return [
        {
            "role": turn.role,
            "content": [
                {"type": part.kind} if isinstance(part, Slot) else {"type": "text", "text": part} for part in turn.parts
            ],
        }
        for turn in turns
    ]


def place_media(media: Sequence[Medium], turns: Sequence[Turn], marks: Mapping[str, str]) -> list[Turn]:
    """Turns with the media of a row at their places.

    Args:
        media: those of a kind in the order in which they are marked.
        turns: in which slots without a value, and marks in texts, stand for media. Media of a kind that has no place in
            any of them come first in the first turn of the user.
        marks: mark -> kind of medium.

    Raises:
        TaskDataError: there are more or fewer places for media of a kind than media.
    """
    split = [(turn.role, [piece for part in turn.parts for piece in _pieces(part, marks)]) for turn in turns]
    places = Counter(piece.kind for _, pieces in split for piece in pieces if isinstance(piece, Slot))
    waiting = {kind: [medium for medium in media if medium.kind == kind] for kind in places}
    for kind, number in places.items():
        if number != (found := len(waiting[kind])):
            raise TaskDataError(f"prompt.marks: the text marks {number} media of kind {kind}, the row has {found}")
    first = [medium for medium in media if medium.kind not in places]
    placed = []
    for role, pieces in split:
        parts: list[Part] = [waiting[piece.kind].pop(0) if isinstance(piece, Slot) else piece for piece in pieces]
        if role == "user" and first:
            parts, first = [*first, *parts], []
        placed.append(Turn(role, parts))
    return placed


def _pieces(part: Part, marks: Mapping[str, str]) -> Iterator[Part]:
    """A part, its text cut at marks."""
    if not isinstance(part, str) or not marks:
        yield part
        return
    for place, stretch in enumerate(re.split("(" + "|".join(map(re.escape, marks)) + ")", part)):
        if place % 2:
            yield Slot(marks[stretch])
        elif stretch:
            yield stretch

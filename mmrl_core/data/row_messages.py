"""A row as messages: a template of text or the turns of a chat, with media at their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmrl_core.data.row_media import Medium, RowMedia
from mmrl_core.data.system_message import SystemMessage
from mmrl_core.data.templates import Template, value_of
from mmrl_core.data.turns import Part, Slot, Turn, place_media, read_turns, without_media
from mmrl_core.errors import TaskDataError

if TYPE_CHECKING:
    from mmrl_core.config import DataConfig, PromptConfig


class Said(NamedTuple):
    """What a row says.

    Attributes:
        messages: of the prompt, see `Prompt.messages`.
        media: in the order of the messages.
        text: of all turns, marks and all.
        gold: text of the turn of the assistant that the chat ends with; None if it ends with one of the user.
        kept: columns whose value in the sample differs from that of the row.
    """

    messages: list[dict[str, Any]]
    media: list[Medium]
    text: str
    gold: str | None
    kept: Mapping[str, Any]


class RowMessages:
    """Makes the messages of rows as a config's `prompt` says.

    Attributes:
        columns: those that hold media and nothing else.
    """

    def __init__(self, prompt: PromptConfig, at: str, data: DataConfig) -> None:
        """
        Args:
            prompt: the templates.
            at: config key of `prompt`, for messages.
            data: the folder that paths of media start from and may not leave, and which images are opened.

        Raises:
            TaskDataError: a template is malformed.
        """
        self._system = SystemMessage(prompt, at, data)
        self._media = RowMedia(prompt, at, data)
        self.text = Template(prompt.messages or prompt.text, f"{at}.{'messages' if prompt.messages else 'text'}")
        self._chat = self.text.only_column if prompt.messages else None
        if prompt.messages and self._chat is None:
            raise TaskDataError(f"{at}.messages: {prompt.messages!r}: name one column, such as '{{messages}}'")
        self._marks = {mark: kind for kind, mark in prompt.marks.items()}
        self.columns = {column for column in self._media.columns | self._system.columns if column is not None}

    @property
    def templates(self) -> Iterator[Template]:
        yield from [*self._system.templates, *self._media.templates, self.text]

    def read(self, row: Mapping[str, Any], folder: Path | None, reading: list[Any]) -> Said:
        """The messages of a row; for the arguments and errors see `RowMedia.read`.

        Raises:
            TaskDataError: the chat of the row has no turn of the user to answer.
        """
        system = self._system.read(row, folder, reading)
        media = self._media.read(row, folder, reading)
        turns, gold, kept = self._turns(row)
        text = "".join(turn.text for turn in turns)
        for parts, place, slot in _held(turns):
            parts[place] = self._media.load(slot.kind, slot.value, folder, reading)
        placed = place_media(media, turns, self._marks)
        if system and not any(turn.role == "system" for turn in placed):
            placed.insert(0, Turn("system", [*system]))
        reading.clear()
        found = [part for turn in placed for part in turn.parts if isinstance(part, Medium)]
        return Said([_message(turn) for turn in placed], found, text, gold, kept)

    def look(self, row: Mapping[str, Any], folder: Path | None) -> int:
        """Read no more of a row's media than their headers; the number of characters of its text."""
        self._system.look(row, folder)
        self._media.look(row, folder)
        turns, _, _ = self._turns(row)
        for _, _, slot in _held(turns):
            self._media.look_at(slot.kind, slot.value, folder)
        return sum(len(turn.text) for turn in turns)

    def _turns(self, row: Mapping[str, Any]) -> tuple[list[Turn], str | None, dict[str, Any]]:
        """Turns of the prompt; the gold turn of the assistant; columns of the row without media."""
        if self._chat is None:
            text = self.text.render(row)
            return [Turn("user", [text] if text else [])], None, {}
        column, key = self._chat, self.text.key
        turns = read_turns(value_of(row, column, key), f"{key}: column {column!r}")
        kept = without_media(row[column], turns)
        gold = turns.pop().text if turns and turns[-1].role == "assistant" else None
        if not turns or turns[-1].role != "user":
            raise TaskDataError(f"{key}: the chat in column {column!r} has no message of the user to answer")
        return turns, gold, {} if kept is row[column] else {column: kept}


def _held(turns: Sequence[Turn]) -> Iterator[tuple[list[Part], int, Slot]]:
    """Media that messages hold themselves: the parts of the turn, the place in them, and what is there."""
    for turn in turns:
        for place, part in enumerate(turn.parts):
            if isinstance(part, Slot) and part.value is not None:
                yield turn.parts, place, part


def _message(turn: Turn) -> dict[str, Any]:
    content = [part.part if isinstance(part, Medium) else {"type": "text", "text": part} for part in turn.parts]
    return {"role": turn.role, "content": content}

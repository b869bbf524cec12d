"""Layouts of rows that other frameworks read: which one a data set is in, and the `prompt` that stands for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmrl_core.data.objects import with_objects
from mmrl_core.data.rows_in_memory import Row
from mmrl_core.data.turns import is_chat
from mmrl_core.errors import TaskDataError

if TYPE_CHECKING:
    from mmrl_core.config import PromptConfig

MARKS = {"image": "<image>", "video": "<video>", "audio": "<audio>"}
MESSAGES = "messages"
"""Column that a layout adds where a row has its turns in several columns."""


@dataclass(frozen=True)
class Layout:
    """A layout of rows.

    Attributes:
        names: by any of which `layout` of a data source may ask for it; the first is its own.
        peer: whose it is, for sentences.
        needs: columns that its rows have.
        fits: whether a row with these columns is of the layout.
        chat: column of the messages; None: `text` is what the prompt says.
        text: template.
        marks: marks of media in its texts.
        convert: gives a row the column `chat`.
    """

    names: Sequence[str]
    peer: str
    needs: Sequence[str]
    fits: Callable[[Row], bool] = lambda row: True
    chat: str | None = None
    text: str = ""
    marks: Mapping[str, str] | None = None
    convert: Callable[[Row], Row] | None = None

    def is_of(self, row: Row) -> bool:
        return all(column in row for column in self.needs) and self.fits(row)

    def row(self, row: Row, media: Collection[str]) -> Row:
        """A row with all that the prompt of this layout names; the columns of media that it leaves out are null."""
        row = row if self.convert is None else self.convert(row)
        if self.chat and "swift" in self.names and row.get("objects") and row.get(self.chat):
            row = {**row, self.chat: with_objects(_chat(row[self.chat]), row["objects"])}
        return row if all(column in row for column in media) else dict.fromkeys(media) | dict(row)

    def prompt(self, prompt: PromptConfig, columns: Collection[str]) -> PromptConfig:
        """A config's prompt with what it leaves out filled in, given the columns that rows have."""
        default = type(prompt)()
        found: dict[str, Any] = {f"{kind}s": [f"{{{_media_column(kind, columns) or kind + 's'}}}"] for kind in MARKS}
        if prompt.text == default.text and not prompt.messages:
            found |= {MESSAGES: f"{{{self.chat}}}"} if self.chat else {"text": self.text}
        if self.marks:
            found["marks"] = dict(self.marks)
        own = {key: value for key, value in found.items() if getattr(prompt, key) == getattr(default, key)}
        return prompt.model_copy(update=own)

    def sentence(self, prompt: PromptConfig, columns: Collection[str]) -> str:
        """What rows with these columns are taken for, given the prompt that `prompt` returned."""
        said = f"messages {prompt.messages}" if prompt.messages else f"text {prompt.text!r}"
        kinds = [kind for kind in MARKS if _media_column(kind, columns)]
        media = [f"{kind}s {' '.join(getattr(prompt, f'{kind}s'))}" for kind in kinds]
        placed = f", placed by {' '.join(prompt.marks.values())}" if kinds and prompt.marks else ""
        return f"rows are in {self.peer} layout (layout: {self.names[0]}): {', '.join([said, *media])}{placed}"


def choose_layout(
    name: str | None, prompt: PromptConfig, rows: Iterable[Row], key: str
) -> tuple[Layout, Collection[str]] | None:
    """The layout of a data set, and the columns of its rows; None if the config's prompt is to be taken as it is.

    Args:
        name: as the config has it; None: it is recognised, if the prompt says nothing of text and messages.
        prompt: of the config.
        rows: the first that can be read.
        key: of the source, for the message.

    Raises:
        TaskDataError: none of the rows is of the layout that is named.
    """
    default = type(prompt)()
    if name == "plain" or (name is None and (prompt.text, prompt.messages) != (default.text, default.messages)):
        return None
    alone = all(getattr(prompt, key) == getattr(default, key) for key in ("images", "videos", "audios", "marks"))
    columns: dict[str, None] = {}
    found: Layout | None = None
    for row in rows:
        columns |= dict.fromkeys(row)
        found = found or next((layout for layout in LAYOUTS if _is_meant(layout, row, name, alone)), None)
    if found is None and name is not None and columns:
        needs = " or ".join(", ".join(layout.needs) for layout in LAYOUTS if name in layout.names)
        raise TaskDataError(f"{key}.layout: {name!r} needs the columns {needs}; the rows have {', '.join(columns)}.")
    return None if found is None else (found, columns)


def _is_meant(layout: Layout, row: Row, name: str | None, alone: bool) -> bool:
    """Whether a row is to be read in a layout; `alone`: the config's prompt says nothing of media."""
    if not layout.is_of(row) or (name is not None and name not in layout.names):
        return False
    if name is not None or "problem" not in row:
        return True
    # The column that `prompt.text` names by default is there: what is recognised has to say more than that.
    says_more = "prompt" in layout.needs and layout.chat is not None
    return alone and (says_more or ("problem" in layout.needs and _has_media(row)))


def _media_column(kind: str, columns: Collection[str]) -> str | None:
    return next((column for column in (f"{kind}s", kind) if column in columns), None)


def _has_chat(column: str) -> Callable[[Row], bool]:
    return lambda row: is_chat(row[column])


def _has_media(row: Row) -> bool:
    return any(_media_column(kind, row) for kind in MARKS)


def _chat(value: Any) -> list[Any]:
    """Messages, which cells of tables hold as JSON."""
    return list(json.loads(value) if isinstance(value, str) else value)


def _with_completion(row: Row) -> Row:
    """TRL: the gold is a column of its own, a text or messages."""
    gold = row["completion"] or []
    turns = [{"role": "assistant", "content": gold}] if isinstance(gold, str) else gold
    return {**row, MESSAGES: [*_chat(row["prompt"]), *turns]}


def _with_system(row: Row) -> Row:
    """ShareGPT as LLaMA-Factory writes it: the system message is a column of its own."""
    return {**row, MESSAGES: [*_system(row), *_chat(row["conversations"])]}


def _system(row: Row) -> list[dict[str, Any]]:
    return [{"role": "system", "content": row["system"]}] if row.get("system") else []


def _from_columns(question: str, further: str | None, answer: str) -> Callable[[Row], Row]:
    """Turns that are columns: what was said before in `history`, pairs of a question and an answer."""

    def convert(row: Row) -> Row:
        turns = _system(row)
        for asked, answered in row.get("history") or ():
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        asked = [row[column] for column in (question, further) if column and row.get(column)]
        turns.append({"role": "user", "content": "\n".join(map(str, asked))})
        if row.get(answer):
            turns.append({"role": "assistant", "content": str(row[answer])})
        return {**row, MESSAGES: turns}

    return convert


TWO_MARKS = {kind: MARKS[kind] for kind in ("image", "video")}

LAYOUTS = (
    Layout(("verl",), "verl's", ("prompt", "reward_model"), _has_chat("prompt"), "prompt", marks=TWO_MARKS),
    Layout(("verl",), "verl's", ("prompt", "data_source"), _has_chat("prompt"), "prompt", marks=TWO_MARKS),
    Layout(("trl",), "TRL's", ("prompt", "completion"), _has_chat("prompt"), MESSAGES, convert=_with_completion),
    Layout(("trl",), "TRL's", ("prompt",), _has_chat("prompt"), "prompt"),
    Layout(("trl",), "TRL's", ("prompt",), lambda row: isinstance(row["prompt"], str), text="{prompt}"),
    Layout(("swift", "llama_factory"), "ms-swift's", ("messages",), _has_chat("messages"), "messages", marks=MARKS),
    Layout(
        ("sharegpt", "llama_factory", "swift"),
        "the ShareGPT",
        ("conversations", "system"),
        _has_chat("conversations"),
        MESSAGES,
        marks=MARKS,
        convert=_with_system,
    ),
    Layout(
        ("sharegpt", "llama_factory", "swift"),
        "the ShareGPT",
        ("conversations",),
        _has_chat("conversations"),
        "conversations",
        marks=MARKS,
    ),
    Layout(
        ("llama_factory", "swift"),
        "LLaMA-Factory's",
        ("instruction", "output"),
        chat=MESSAGES,
        marks=MARKS,
        convert=_from_columns("instruction", "input", "output"),
    ),
    Layout(
        ("swift",),
        "ms-swift's",
        ("query",),
        chat=MESSAGES,
        marks=MARKS,
        convert=_from_columns("query", None, "response"),
    ),
    Layout(("easyr1",), "EasyR1's", ("problem",), text="{problem}", marks=TWO_MARKS),
)
"""The layouts, the most telling first."""

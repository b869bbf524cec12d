"""Data rows into prompts: templates, media, broken rows set aside. `draw.py` says in which order a run draws them.

A data source is a registered function `(split, **options)` that returns a sequence of mappings. Reading a row may fail;
the row is then set aside with its file and reason, and the run goes on unless too many rows are broken.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from mmrl_core.data.layouts import Layout, choose_layout
from mmrl_core.data.marks import MarksOff
from mmrl_core.data.media_folders import MAX_PATH
from mmrl_core.data.noted_files import noted_files
from mmrl_core.data.plain_text import plain_text
from mmrl_core.data.row_media import decoded_bytes
from mmrl_core.data.row_messages import RowMessages
from mmrl_core.data.set_aside import BrokenRow, SetAside
from mmrl_core.data.templates import Template, is_media, no_column
from mmrl_core.errors import MissingPackageError, TaskDataError, UnfitPromptError
from mmrl_core.plugins import Plugins
from mmrl_core.types import Prompt

if TYPE_CHECKING:
    from mmrl_core.config import DataConfig, PartConfig, PromptConfig, SourceConfig

KEPT_BYTES = 512 << 20  # decoded prompts kept between epochs
NUM_LONGEST = 8  # rows with the longest texts, which `mmrl check` reads whole
NUM_ROWS_FOR_COLUMNS = 8  # a column missing from all of the first rows is a mistake in the task, not a broken row


class Preparer(Protocol):
    """What this room needs of a conversation's environment."""

    def prepare(self, prompt: Prompt) -> Prompt:
        """The prompt that the policy is given, with the tools that it may call."""


Accept = Callable[[Prompt], object]
"""Raises UnfitPromptError for a prompt that the policy does not take."""


class PromptSource:
    """The prompts of one data source, read when asked for.

    Attributes:
        name: of the source ("train"); prompt ids start with it.
        set_aside: the broken rows met so far.
        files: that the rows were read from.
        layout: a sentence on the layout of rows that was named or recognised, and what its columns are taken for; None
            where the config's `prompt` is taken as it is.
    """

    def __init__(
        self,
        plugins: Plugins,
        source: SourceConfig,
        prompt: PromptConfig,
        data: DataConfig,
        *,
        name: str,
        part: str = "",
        environment: Preparer | None = None,
        accept: Accept | None = None,
    ) -> None:
        """
        Args:
            source: the data source and its options.
            prompt: templates.
            data: where media lie, and how many rows may be broken.
            name: what to call the source.
            part: of a mixture, that the prompts belong to.
            environment: prepares each prompt, with the tools that may be called.
            accept: asks the policy whether it takes a prompt. Rows that it does not take are set aside, or with
                `data.on_long` an error.

        Raises:
            PluginError: no installed plugin provides the source, or it has no such option.
            TaskDataError: the data are missing, empty or not rows, or a template is malformed.
        """
        self.name = f"{part}/{name}" if part else name
        self.part = part
        self.set_aside = SetAside(self.name, data.max_broken)
        self.layout: str | None = None
        at = f"mixture.{part}." if part else ""  # for messages
        self._answer = Template(prompt.answer, f"{at}prompt.answer")
        self._prefix, self._template = prompt.prefix, prompt.template
        self._environment = environment
        self._accept = accept
        self._sets_long_aside = data.on_long == "set_aside"
        self._columns_checked = False
        self._kept: OrderedDict[int, Prompt] = OrderedDict()
        self._kept_bytes = 0
        self._layout: Layout | None = None
        self._media_columns: set[str] = set()
        self._looked: list[tuple[int, int]] = []  # a heap of characters and rows
        with noted_files(source) as self.files:
            self._rows = _load_rows(plugins, source, f"{at}data.{name}")
        self._num_rows = len(self._rows) if source.limit is None else min(source.limit, len(self._rows))
        if self._num_rows == 0:
            raise TaskDataError(f"data source {source.name!r}, split {source.split!r}, has no rows ({at}data.{name}).")
        prompt = self._in_layout(source.layout, prompt, f"{at}data.{name}")
        self._messages = RowMessages(prompt, f"{at}prompt", data)
        self._media_columns = self._messages.columns
        self._marks_off = MarksOff(self.name, prompt.marks.keys())

    @classmethod
    def of_part(
        cls,
        plugins: Plugins,
        part: PartConfig,
        split: Literal["train", "held_out"],
        environment: Preparer | None = None,
        accept: Accept | None = None,
    ) -> Self:
        """The rows of a part that are trained on, or those that are held out; it must have them."""
        source = getattr(part.data, split)
        prompt, data, name = part.prompt, part.data, part.name
        return cls(plugins, source, prompt, data, name=split, part=name, environment=environment, accept=accept)

    @property
    def marks_off(self) -> str | None:
        """What is wrong if texts hold marks of media that `prompt.marks` leaves out, as far as rows have been read."""
        return self._marks_off.found

    @property
    def is_made(self) -> bool:
        """Whether the source makes its rows: it has read no file, and names no folder of media."""
        return not self.files and getattr(self._rows, "media_root", None) is None

    def __len__(self) -> int:
        """Number of rows, broken ones included."""
        return self._num_rows

    def prompt(self, index: int) -> Prompt | None:
        """The prompt of a row; None if the row is broken or not taken, and then in `set_aside`.

        Messages are a system message, if it is not empty, and a user message whose content is the images, the
        videos, the audios, then the text; with `prompt.marks`, media are placed where the text has their marks. With
        `prompt.messages` they are the turns of a chat, see `read_turns`; the turn of the assistant that it may end with
        is the gold answer, and `prompt.system` is for those that have no system message of their own. A media
        column may hold one medium, a list of them, or null for none. Paths are relative to `data.media_root`, which
        they may not leave; without it to the folder of the data file or of the source's options. Where there is none,
        as for most hub data sets, it is the working folder.

        Raises:
            IndexError: there is no such row.
            TaskDataError: a template names a column that the data lack, or too many rows are broken; or the policy
                does not take the prompt, and `data.on_long` is "error".
            MissingPackageError: a package that reads the row's media is not installed.
        """
        if not 0 <= index < self._num_rows:
            raise IndexError(f"{self.name!r} has {self._num_rows} rows; there is no row {index}")
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        if not self._columns_checked:
            self._check_columns()
        reading: list[Any] = []  # the medium being read, for the record of what broke
        try:
            prompt = self._build(index, reading)
            if self._environment is not None:
                prompt = self._environment.prepare(prompt)
        except MissingPackageError:  # no fault of the row
            raise
        except Exception as error:  # sources decode rows with libraries that raise anything on broken files
            known = isinstance(error, TaskDataError)
            reason = str(error) if known else f"cannot read the row: {type(error).__name__}: {error}"
            self._set_aside(index, reading, reason)
            return None
        if not self._takes(index, prompt):
            return None
        self.set_aside.add_sound(index)
        self._keep(index, prompt)
        return prompt

    def look(self, index: int) -> str | None:
        """Why a row is broken, as far as it shows without decoding media; None if it does not. It is not set aside.

        The row is read and its text rendered; of images and audios the headers are read, videos have to be there.
        """
        try:
            num_characters = self._messages.look(self._row(index), getattr(self._rows, "media_root", None))
            heapq.heappush(self._looked, (num_characters, index))
            if len(self._looked) > NUM_LONGEST:
                heapq.heappop(self._looked)
        except MissingPackageError:  # no fault of the row
            raise
        except Exception as error:  # as in `prompt`
            return f"{self.name}:{index}: {plain_text(str(error) or type(error).__name__)}"
        return None

    @property
    def longest_looked(self) -> list[int]:
        """Rows with the longest texts of those that `look` has found sound, `NUM_LONGEST` at most."""
        return sorted(index for _, index in self._looked)

    def refuse(self, prompt: Prompt, reason: str) -> BrokenRow:
        """Set aside the row of a prompt that was given out, since a step could not use it.

        It is given out again when its turn comes, so that a resumed run sees the prompts of one that was not stopped.

        Raises:
            TaskDataError: too many rows are broken.
            UnfitPromptError: `data.on_long` is "error".
        """
        if not self._sets_long_aside:
            raise UnfitPromptError(f"row {prompt.id}: {reason}.")
        return self._set_aside(int(prompt.id.rpartition(":")[2]), prompt.media_files, reason)

    def _set_aside(self, index: int, reading: Sequence[Any], reason: str) -> BrokenRow:
        file = self._file(index, reading)
        broken = BrokenRow(f"{self.name}:{index}", index, plain_text(file), plain_text(reason))
        self.set_aside.add(broken)
        return broken

    def _takes(self, index: int, prompt: Prompt) -> bool:
        """Whether the policy takes the prompt of a row, which is set aside otherwise."""
        try:
            if self._accept is not None:
                self._accept(prompt)
        except UnfitPromptError as error:
            if not self._sets_long_aside:
                raise
            self._set_aside(index, prompt.media_files, str(error))
            return False
        return True

    def _keep(self, index: int, prompt: Prompt) -> None:
        """Keep a decoded prompt for the next epoch, in place of those used longest ago."""
        self._kept[index] = prompt
        self._kept_bytes += decoded_bytes(prompt)
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= decoded_bytes(self._kept.popitem(last=False)[1])

    def _row(self, index: int) -> Mapping[str, Any]:
        row = self._rows[index]
        if not isinstance(row, Mapping):
            raise TaskDataError(f"the row is {type(row).__name__}, not a mapping of columns")
        # Paths may hold bytes that are no UTF-8; what is shown and written may not.
        row = {name: value if name in self._media_columns else plain_text(value) for name, value in row.items()}
        return row if self._layout is None else self._layout.row(row, self._media_columns)

    def _in_layout(self, name: str | None, prompt: PromptConfig, key: str) -> PromptConfig:
        """The prompt for the layout that the rows are in, if they are in one."""
        chosen = choose_layout(name, prompt, self._first_rows(), key)
        if chosen is None:
            return prompt
        self._layout, columns = chosen
        prompt = self._layout.prompt(prompt, columns)
        self.layout = self._layout.sentence(prompt, columns)
        return prompt

    def _first_rows(self) -> Iterator[Mapping[str, Any]]:
        for index in range(min(NUM_ROWS_FOR_COLUMNS, self._num_rows)):
            try:
                row = self._row(index)
            except Exception:  # a broken row; set aside when it is drawn
                continue
            yield row

    def _build(self, index: int, reading: list[Any]) -> Prompt:
        row = self._row(index)
        said = self._messages.read(row, getattr(self._rows, "media_root", None), reading)
        self._marks_off.look(index, said.text, {medium.kind for medium in said.media})
        # A row without gold answer, as null says, is one that cannot be checked or imitated.
        unanswered = any(row.get(column, "") is None for column in self._answer.columns)
        answer = "" if unanswered else self._answer.render(row)
        return Prompt(
            id=f"{self.name}:{index}",
            part=self.part,
            messages=said.messages,
            sample={
                column: said.kept.get(column, value)
                for column, value in row.items()
                if column not in self._media_columns and not is_media(value)
            },
            answer=answer if self._answer.text else said.gold or "",
            media_keys=tuple(medium.key for medium in said.media),
            media_files=tuple(medium.file for medium in said.media),
            prefix=self._prefix,
            template=self._template,
        )

    def _file(self, index: int, reading: Sequence[Any]) -> str:
        """What to look at: the medium being read as the row gives it, or else the data file and line."""
        value = reading[0] if reading else None
        if isinstance(value, Mapping):
            value = value.get("path")
        if isinstance(value, str | Path) and len(str(value)) <= MAX_PATH:  # a longer one is the medium itself
            return str(value)
        where = getattr(self._rows, "where", None)
        return str(where(index)) if where is not None else ""

    def _check_columns(self) -> None:
        """Templates name columns that at least one of the first readable rows has."""
        columns = dict.fromkeys(column for row in self._first_rows() for column in row)
        if not columns:
            return
        for template in [*self._messages.templates, self._answer]:
            for column in template.columns:
                if column not in columns:
                    raise TaskDataError(f"{template.key}: {template.text!r}: {no_column(column, list(columns))}")
        if named := [column for column in columns if f"{{{column}}}" in self._prefix]:
            at = self._messages.text.key.rpartition(".")[0] + "."
            raise TaskDataError(
                f"{at}prefix: {self._prefix!r}: a prefix is the same for all rows, and {{{named[0]}}} is a column. "
                "Write it without."
            )
        self._columns_checked = True


def _load_rows(plugins: Plugins, source: SourceConfig, key: str) -> Sequence[Mapping[str, Any]]:
    entry = plugins.registry.get("source", source.name)
    try:
        rows = entry.call(options=source.options, split=source.split)
    except OSError as error:
        missing = error.filename if error.filename is not None else error
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise TaskDataError(f"data source {source.name!r} ({key}): {missing} {problem}.") from error
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        raise TaskDataError(f"data source {entry.id!r} returned {type(rows).__name__}, not a sequence of rows.")
    return rows

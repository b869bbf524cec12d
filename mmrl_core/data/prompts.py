"""Data rows into prompts: templates, media, broken rows set aside. In which order a run draws them, `mixture.py` says.

A data source is a registered function `(split, **options)` that returns a sequence of mappings. Reading a row may fail;
the row is then set aside with its file and reason, and the run goes on unless too many rows are broken.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import re
import string
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from mmrl_core.discovery import Plugins
from mmrl_core.errors import TaskDataError
from mmrl_core.registry import call_with_options
from mmrl_core.types import Prompt

if TYPE_CHECKING:
    from mmrl_core.config import DataConfig, PartConfig, PromptConfig, SourceConfig
    from mmrl_core.conversation import Environment
    from mmrl_core.media import Video

logger = logging.getLogger(__name__)

MIN_ROWS_TO_JUDGE = 20  # among fewer rows read, one broken row says nothing about the share
KEPT_BYTES = 512 << 20  # decoded prompts kept between epochs
NUM_ROWS_FOR_COLUMNS = 8  # a column missing from all of the first rows is a mistake in the task, not a broken row


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
    raise TaskDataError(f"{key}: {_no_column(column, row)}")


def _no_column(column: str, columns: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(column, list(columns), n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Columns: {', '.join(columns)}."
    return f"the data have no column {column!r}. {hint}"


def _text_of(value: Any, column: str, key: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise TaskDataError(f"{key}: column {column!r} is null")
    if _is_media(value):
        raise TaskDataError(f"{key}: column {column!r} holds a medium; list it under prompt.images, videos or audios")
    if hasattr(value, "tolist"):  # numpy
        value = value.tolist()
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _is_media(value: Any) -> bool:
    """Whether a value is, or holds, bytes or a decoded medium, which rewards and logs should not carry around."""
    if isinstance(value, bytes | bytearray | memoryview):
        return True
    if isinstance(value, Mapping):
        return {"array", "sampling_rate"} <= value.keys() or any(_is_media(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_is_media(item) for item in value)
    from PIL import Image

    return isinstance(value, Image.Image)


@dataclass(frozen=True)
class BrokenRow:
    """A row that was set aside: `file` is the medium that broke, else the data file and line if the source knows."""

    id: str
    index: int
    file: str
    reason: str


class SetAside:
    """The broken rows of a source. Refuses to go on when too many of those read are broken."""

    def __init__(self, name: str, max_broken: float) -> None:
        """
        Args:
            name: of the source, for messages.
            max_broken: share of the rows read that may be broken.
        """
        self._name = name
        self._max_broken = max_broken
        self._read: set[int] = set()
        self._broken: dict[int, BrokenRow] = {}

    def __len__(self) -> int:
        return len(self._broken)

    def __iter__(self) -> Iterator[BrokenRow]:
        return iter(sorted(self._broken.values(), key=lambda row: row.index))

    @property
    def num_read(self) -> int:
        """Rows read so far, each counted once."""
        return len(self._read)

    def add_sound(self, index: int) -> None:
        self._read.add(index)

    def add(self, row: BrokenRow) -> None:
        """Set a row aside.

        Raises:
            TaskDataError: more than `max_broken` of at least `MIN_ROWS_TO_JUDGE` rows are broken; shows three.
        """
        if row.index not in self._broken:
            logger.warning("row %s is set aside: %s", row.id, row.reason)
        self._read.add(row.index)
        self._broken[row.index] = row
        if self.num_read >= MIN_ROWS_TO_JUDGE and len(self) > self._max_broken * self.num_read:
            raise TaskDataError(
                f"{len(self)} of {self.num_read} rows of {self._name!r} are broken, more than data.max_broken "
                f"({self._max_broken:g}) allows:\n" + self.describe(3)
            )

    def describe(self, num_rows: int) -> str:
        """The first broken rows, one a line."""
        return "\n".join(f"  {row.id}: {row.reason}" for row in list(self)[:num_rows])


class PromptSource:
    """The prompts of one data source, read when asked for.

    Attributes:
        name: of the source ("train"); prompt ids start with it.
        set_aside: the broken rows met so far.
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
        environment: Environment | None = None,
    ) -> None:
        """
        Args:
            source: the data source and its options.
            prompt: templates.
            data: where media lie, and how many rows may be broken.
            name: what to call the source.
            part: of a mixture, that the prompts belong to.
            environment: that prompts are prepared for, with the tools that may be called.

        Raises:
            PluginError: no installed plugin provides the source, or it has no such option.
            TaskDataError: the data are missing, empty or not rows, or a template is malformed.
        """
        self.name = f"{part}/{name}" if part else name
        self.part = part
        self.set_aside = SetAside(self.name, data.max_broken)
        at = f"mixture.{part}." if part else ""  # for messages
        self._root = Path(data.media_root).expanduser() if data.media_root is not None else None
        self._system = Template(prompt.system, f"{at}prompt.system")
        self._text = Template(prompt.text, f"{at}prompt.text")
        self._answer = Template(prompt.answer, f"{at}prompt.answer")
        self._images = [Template(text, f"{at}prompt.images") for text in prompt.images]
        self._videos = [Template(text, f"{at}prompt.videos") for text in prompt.videos]
        self._audios = [Template(text, f"{at}prompt.audios") for text in prompt.audios]
        self._video = prompt.video
        self._max_audio_s = prompt.max_audio_s
        self._marks = {mark: kind for kind, mark in prompt.marks.items()}
        self._environment = environment
        self._media_columns = {template.only_column for template in [*self._images, *self._videos, *self._audios]}
        self._columns_checked = False
        self._kept: OrderedDict[int, Prompt] = OrderedDict()
        self._kept_bytes = 0
        self._rows = _load_rows(plugins, source, f"{at}data.{name}")
        self._num_rows = len(self._rows) if source.limit is None else min(source.limit, len(self._rows))
        if self._num_rows == 0:
            raise TaskDataError(f"data source {source.name!r}, split {source.split!r}, has no rows ({at}data.{name}).")

    @classmethod
    def of_part(
        cls,
        plugins: Plugins,
        part: PartConfig,
        split: Literal["train", "held_out"],
        environment: Environment | None = None,
    ) -> Self:
        """The rows of a part that are trained on, or those that are held out; it must have them."""
        source = getattr(part.data, split)
        return cls(plugins, source, part.prompt, part.data, name=split, part=part.name, environment=environment)

    def __len__(self) -> int:
        """Number of rows, broken ones included."""
        return self._num_rows

    def prompt(self, index: int) -> Prompt | None:
        """The prompt of a row; None if the row is broken, which is then in `set_aside`.

        Messages are a system message, if the template is not empty, and a user message whose content is the images, the
        videos, the audios, then the text; with `prompt.marks`, media stand where the text has their marks. A media
        column may hold one medium, a list of them, or null for none. Paths are relative to `data.media_root`, which
        they may not leave; without it to the data file's folder, or to the working folder.

        Raises:
            IndexError: there is no such row.
            TaskDataError: a template names a column that the data lack, or too many rows are broken.
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
        except Exception as error:  # sources decode rows with libraries that raise anything on broken files
            known = isinstance(error, TaskDataError)
            reason = str(error) if known else f"cannot read the row: {type(error).__name__}: {error}"
            self.set_aside.add(BrokenRow(f"{self.name}:{index}", index, self._file(index, reading), reason))
            return None
        self.set_aside.add_sound(index)
        self._keep(index, prompt)
        return prompt

    def _keep(self, index: int, prompt: Prompt) -> None:
        """Keep a decoded prompt for the next epoch, in place of those used longest ago."""
        self._kept[index] = prompt
        self._kept_bytes += _decoded_bytes(prompt)
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= _decoded_bytes(self._kept.popitem(last=False)[1])

    def _row(self, index: int) -> Mapping[str, Any]:
        row = self._rows[index]
        if not isinstance(row, Mapping):
            raise TaskDataError(f"the row is {type(row).__name__}, not a mapping of columns")
        return row

    def _build(self, index: int, reading: list[Any]) -> Prompt:
        from mmrl_core.media import load_audio, load_image

        row = self._row(index)
        media: list[_Medium] = []
        for value in self._media_values(self._images, row):
            reading[:] = [value]
            media.append(self._medium(value, {"type": "image", "image": load_image(value, root=self._root)}))
        for value in self._media_values(self._videos, row):
            reading[:] = [value]
            video = self._load_video(value)
            part = {"type": "video", "video": video.frames, "metadata": video.metadata, "times_s": video.times_s}
            media.append(self._medium(value, part, key=self._video_key(value)))
        for value in self._media_values(self._audios, row):
            reading[:] = [value]
            audio = load_audio(value, root=self._root, max_seconds=self._max_audio_s)
            heard = {"type": "audio", "audio": audio.samples, "sampling_rate": audio.sampling_rate}
            media.append(self._medium(value, heard))
        reading.clear()
        placed = place_media(media, self._text.render(row), self._marks)
        media = [item for item in placed if isinstance(item, _Medium)]
        content = [item.part if isinstance(item, _Medium) else {"type": "text", "text": item} for item in placed]
        messages: list[dict[str, Any]] = []
        if system := self._system.render(row):
            messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
        messages.append({"role": "user", "content": content})
        # A row without gold answer, as null says, is one that cannot be checked or imitated.
        unanswered = any(row.get(column, "") is None for column in self._answer.columns)
        return Prompt(
            id=f"{self.name}:{index}",
            part=self.part,
            messages=messages,
            sample={
                column: value
                for column, value in row.items()
                if column not in self._media_columns and not _is_media(value)
            },
            answer="" if unanswered else self._answer.render(row),
            media_keys=tuple(medium.key for medium in media),
            media_files=tuple(medium.file for medium in media),
        )

    def _medium(self, value: Any, part: dict[str, Any], key: str | None = None) -> _Medium:
        from mmrl_core.media import content_hash, media_file

        return _Medium(part, key or content_hash(value, root=self._root), media_file(value, root=self._root))

    def _load_video(self, value: Any) -> Video:
        from mmrl_core.media import load_video

        options = self._video
        return load_video(
            value,
            root=self._root,
            fps=options.fps,
            num_frames=options.num_frames,
            min_frames=options.min_frames,
            max_frames=options.max_frames,
            min_pixels=options.min_pixels,
            max_pixels=options.max_pixels,
            timestamps=options.timestamps,
        )

    def _video_key(self, value: Any) -> str:
        """Hash of what the model is shown of a video: other frames of the same file have other features."""
        from mmrl_core.media import content_hash

        shown = f"{content_hash(value, root=self._root)} {self._video.model_dump_json()}"
        return hashlib.sha256(shown.encode()).hexdigest()

    def _media_values(self, templates: Sequence[Template], row: Mapping[str, Any]) -> Iterator[Any]:
        for template in templates:
            if template.only_column is None:
                yield self._located(template.render(row))  # a path made of columns
                continue
            value = value_of(row, template.only_column, template.key)
            if value is not None:
                yield from map(self._located, value if isinstance(value, list | tuple) else [value])

    def _located(self, value: Any) -> Any:
        """The medium, with the path from the data file's folder if no `data.media_root` is set."""
        folder = getattr(self._rows, "media_root", None)
        if self._root is not None or folder is None:
            return value
        if isinstance(value, Mapping) and value.get("bytes") is None and value.get("path"):
            return {**value, "path": self._located(value["path"])}
        if isinstance(value, str | Path) and (path := Path(folder) / value).exists():
            return str(path)
        return value

    def _file(self, index: int, reading: Sequence[Any]) -> str:
        """What to look at: the medium being read as the row gives it, or else the data file and line."""
        value = reading[0] if reading else None
        if isinstance(value, Mapping):
            value = value.get("path")
        if isinstance(value, str | Path):
            return str(value)
        where = getattr(self._rows, "where", None)
        return str(where(index)) if where is not None else ""

    def _check_columns(self) -> None:
        """Templates name columns that at least one of the first readable rows has."""
        columns: dict[str, None] = {}
        for index in range(min(NUM_ROWS_FOR_COLUMNS, self._num_rows)):
            try:
                columns |= dict.fromkeys(self._row(index))
            except Exception:  # a broken row; set aside when it is drawn
                continue
        if not columns:
            return
        media = [*self._images, *self._videos, *self._audios]
        for template in [self._system, *media, self._text, self._answer]:
            for column in template.columns:
                if column not in columns:
                    raise TaskDataError(f"{template.key}: {template.text!r}: {_no_column(column, list(columns))}")
        self._columns_checked = True


@dataclass(frozen=True)
class _Medium:
    """A part of a message's content, what its features are kept under, and the file that it was read from."""

    part: dict[str, Any]
    key: str
    file: str | None

    @property
    def kind(self) -> str:
        return str(self.part["type"])


def place_media(media: Sequence[_Medium], text: str, kinds: Mapping[str, str]) -> list[_Medium | str]:
    """Media and stretches of text in the order of the prompt.

    Args:
        media: those of a kind in the order in which they are marked.
        text: in which marks stand for media. Media of kinds that it has no mark of come first.
        kinds: mark -> kind of medium.

    Raises:
        TaskDataError: the text marks more or fewer media of a kind than there are.
    """
    stretches = re.split("(" + "|".join(map(re.escape, kinds)) + ")", text) if kinds else [text]
    marked = Counter(kinds[stretch] for stretch in stretches[1::2])
    waiting = {kind: [medium for medium in media if medium.kind == kind] for kind in marked}
    for kind, number in marked.items():
        if number != (found := len(waiting[kind])):
            raise TaskDataError(f"prompt.marks: the text marks {number} media of kind {kind}, the row has {found}")
    placed: list[_Medium | str] = [medium for medium in media if medium.kind not in marked]
    for place, stretch in enumerate(stretches):
        if place % 2:
            placed.append(waiting[kinds[stretch]].pop(0))
        elif stretch:
            placed.append(stretch)
    return placed


def _decoded_bytes(prompt: Prompt) -> int:
    """Memory of a prompt's decoded media, and some for the rest."""
    total = 4096
    for message in prompt.messages:
        for part in message["content"]:
            if part["type"] == "image":
                total += 3 * part["image"].width * part["image"].height
            elif part["type"] == "video":
                total += part["video"].numel() * part["video"].element_size()
            elif part["type"] == "audio":
                total += part["audio"].nbytes
    return total


def _load_rows(plugins: Plugins, source: SourceConfig, key: str) -> Sequence[Mapping[str, Any]]:
    entry = plugins.registry.get("source", source.name)
    options = {"split": source.split, **source.options}
    try:
        rows = call_with_options(entry.load(), options=options, name=f"data source {entry.id!r}")
    except OSError as error:
        missing = error.filename if error.filename is not None else error
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise TaskDataError(f"data source {source.name!r} ({key}): {missing} {problem}.") from error
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        raise TaskDataError(f"data source {entry.id!r} returned {type(rows).__name__}, not a sequence of rows.")
    return rows

"""Shards of WebDataset: tar files whose members of one name, but for the ending, are a row."""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmrl_core.data.lines import LONGEST_LINE
from mmrl_core.data.rows_in_memory import Row, as_row
from mmrl_core.errors import TaskDataError

MEDIA_ENDINGS = {
    "image": ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"),
    "video": ("mp4", "webm", "mkv", "avi", "mov"),
    "audio": ("wav", "flac", "mp3", "ogg", "opus"),
}
TEXT_ENDINGS = ("txt", "text", "caption")
NUMBER_ENDINGS = ("cls", "index", "id")


class Member(NamedTuple):
    """A file in a shard: its ending, and where its bytes are."""

    ending: str
    offset: int
    size: int


class Shard:
    """A tar file of rows: only the places of its members are kept, and their bytes are read when a row is asked for.

    A member is a column called like its ending: `jpg` holds bytes, `txt` text, `cls` a number, `json` what is written
    in it. The keys of a JSON object are columns of their own. All pictures of a row are in `images` too, videos in
    `videos`, sounds in `audios`, unless the JSON has that column; a name in it that is one of the row's members stands
    for the member. `__key__` is the name of the row.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            TaskDataError: it is no tar file, or a compressed one, in which nothing can be found without reading it all.
        """
        self.path = path
        self._keys: list[str] = []
        self._members: list[list[Member]] = []
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isfile():
                        self._add(member)
                    archive.members = []  # type: ignore[attr-defined]  # it would keep them all
        except tarfile.TarError as error:
            raise TaskDataError(
                f"{path}: no tar file, or a compressed one, which has to be unpacked: {error}"
            ) from error

    def _add(self, member: tarfile.TarInfo) -> None:
        folder, slash, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")
        if not stem:  # a hidden file
            return
        key = f"{folder}{slash}{stem}"
        if not self._keys or self._keys[-1] != key:  # members of a row follow one another
            self._keys.append(key)
            self._members.append([])
        self._members[-1].append(Member(sys.intern(ending.lower()), member.offset_data, member.size))

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, index: int) -> Row:
        key, members = self._keys[index], self._members[index]
        if (size := sum(member.size for member in members)) > LONGEST_LINE:
            raise TaskDataError(f"{self.where(index)}: the row has {size} bytes, more than the limit of {LONGEST_LINE}")
        contents: dict[str, Any] = {}
        with open(self.path, "rb") as file:
            for member in members:
                file.seek(member.offset)
                contents[member.ending] = file.read(member.size)
        name = key.rpartition("/")[2]
        media = {
            f"{name}.{ending}": {"bytes": content, "path": f"{self.path}/{key}.{ending}"}
            for ending, content in contents.items()
            if _kind(ending) is not None
        }
        row: dict[str, Any] = {"__key__": key}
        for ending, content in contents.items():
            row |= self._columns(ending, content, self.where(index)) if _kind(ending) is None else {}
        row = {column: _members_named(value, media) for column, value in row.items()}
        for kind in MEDIA_ENDINGS:
            found = [medium for title, medium in media.items() if _kind(title.partition(".")[2]) == kind]
            if found and not {kind, f"{kind}s"} & row.keys():
                row[f"{kind}s"] = found
        return {title.partition(".")[2]: medium for title, medium in media.items()} | row

    def _columns(self, ending: str, content: bytes, where: str) -> dict[str, Any]:
        """What a member that is no medium gives to its row."""
        last = ending.rpartition(".")[2]
        try:
            if last == "json":
                value = json.loads(content.decode("utf-8-sig"))
                return dict(as_row(value, where)) if isinstance(value, dict) else {ending: value}
            if last in TEXT_ENDINGS:
                return {ending: content.decode("utf-8-sig")}
            if last in NUMBER_ENDINGS:
                return {ending: int(content)}
        except (ValueError, RecursionError) as error:
            raise TaskDataError(f"{where}: its member .{ending} cannot be read: {error}") from error
        return {ending: content}

    def where(self, index: int) -> str:
        return f"{self.path}/{self._keys[index]}"


def _kind(ending: str) -> str | None:
    """The kind of medium that an ending stands for, "0.jpg" as well as "jpg"."""
    last = ending.rpartition(".")[2]
    return next((kind for kind, endings in MEDIA_ENDINGS.items() if last in endings), None)


def _members_named(value: Any, media: Mapping[str, Any]) -> Any:
    """A value of a row, in which names of the row's members are the members."""
    if isinstance(value, str):
        return media.get(value.rpartition("/")[2], value)
    return [_members_named(item, media) for item in value] if isinstance(value, list) else value

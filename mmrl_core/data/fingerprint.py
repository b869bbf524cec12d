"""Whether the files of a source are those that a run began with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrl_core.config import SourceConfig
    from mmrl_core.data.prompts import PromptSource

WHOLE_BYTES = 64 << 20  # files up to this size are hashed whole
NUM_PIECES, PIECE_BYTES = 64, 256 << 10  # of a larger file, spread evenly from its first byte to its last

_noted: ContextVar[list[Path] | None] = ContextVar("files of the source that is being opened", default=None)


def note_files(paths: Iterable[Path]) -> None:
    """Say that a reader takes rows from files."""
    files = _noted.get()
    if files is not None:
        files += paths


@contextmanager
def noted_files(source: SourceConfig) -> Iterator[list[Path]]:
    """The files that are read while a source is opened, and those that its options name; complete at the end."""
    files: list[Path] = []
    token = _noted.set(files)
    try:
        yield files
    finally:
        _noted.reset(token)
    split = source.split.partition("[")[0]
    named = [Path(text.replace("{split}", split)).expanduser() for text in _texts(source.options)]
    files += [path for path in named if _is_file(path)]
    files[:] = sorted({path.absolute() for path in files})


def source_fingerprint(source: PromptSource) -> dict[str, Any]:
    """What tells a source whose files have changed from the same source; plain data, for JSON.

    Media that rows name are not part of it.

    Returns:
        "rows": their number; "files": for each file that rows come from its "path", its "bytes", a "sha256", and
        "hashed", whether that is of the "whole" file or, above 64 MiB, of "parts": 64 pieces of 256 KiB, spread from
        its first byte to its last. A source that makes its rows has no files.
    """
    return {"rows": len(source), "files": [_file_fingerprint(path) for path in source.files if _is_file(path)]}


def changed_sources(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each source whose data are not what they were. Files may have moved to another folder.

    Args:
        before, now: `source_fingerprint` of each source, by its name.
    """
    changes = []
    for name, fingerprint in now.items():
        if name not in before:
            continue
        old, new = _by_name(before[name]), _by_name(fingerprint)
        if differing := sorted(file for file in old.keys() | new.keys() if old.get(file) != new.get(file)):
            sizes = [_size(states.get(differing[0], [])) for states in (old, new)]
            how = f"{sizes[0]}, now {sizes[1]}" if sizes[0] != sizes[1] else f"{sizes[0]}, but others"
            more = f", and {len(differing) - 1} more files" if len(differing) > 1 else ""
            changes.append(f"data.{name}: {differing[0]} is not what it was ({how}){more}")
        elif before[name]["rows"] != fingerprint["rows"]:
            changes.append(f"data.{name} has {fingerprint['rows']} rows and had {before[name]['rows']}")
    return changes


def _by_name(fingerprint: Mapping[str, Any]) -> dict[str, list[tuple[int, str]]]:
    """File name -> (bytes, hash) of each file of that name."""
    found: dict[str, list[tuple[int, str]]] = {}
    for file in fingerprint["files"]:
        found.setdefault(Path(file["path"]).name, []).append((file["bytes"], file["sha256"]))
    for states in found.values():
        states.sort()
    return found


def _size(states: list[tuple[int, str]]) -> str:
    return f"{sum(size for size, _ in states)} bytes" if states else "not there"


def _file_fingerprint(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    whole = size <= WHOLE_BYTES
    with open(path, "rb") as file:
        if whole:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            pieces = hashlib.sha256()
            for number in range(NUM_PIECES):
                file.seek((size - PIECE_BYTES) * number // (NUM_PIECES - 1))
                pieces.update(file.read(PIECE_BYTES))
            digest = pieces.hexdigest()
    return {"path": str(path), "bytes": size, "sha256": digest, "hashed": "whole" if whole else "parts"}


def _texts(value: Any) -> Iterator[str]:
    """All texts in the options of a source."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text that is no path
        return False

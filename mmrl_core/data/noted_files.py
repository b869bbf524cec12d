"""Which files a source of rows reads, noted by the readers while it is opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrl_core.config import SourceConfig

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

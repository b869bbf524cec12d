"""Patterns for several data files: `data/*.parquet`, `shards/train-{000..009}.tar`, `{a,b}.jsonl`."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from mmrl_core.data.tables import DATA_SUFFIXES
from mmrl_core.errors import TaskDataError

MOST_FILES = 100_000  # that braces may name
_BRACES = re.compile(r"\{([^{},]*\.\.[^{},]*|[^{}]*,[^{}]*)\}")
_WILD = re.compile(r"[*?\[]")


class Pattern:
    """A path with wildcards, braces or both that ends like a data file.

    `*`, `?`, `[ab]` and `**` stand for what is there, as in a shell; names that start with a point are left out.
    `{a,b}` is each of the two, `{000..009}` each of the numbers, with as many digits.

    Attributes:
        text: as written.
        names: with the braces expanded.
        folder: the last one before anything that varies.
    """

    def __init__(self, text: str) -> None:
        """
        Raises:
            TaskDataError: the braces name more than `MOST_FILES` files.
        """
        self.text = text
        self.names = list(itertools.islice(_expanded(str(Path(text).expanduser())), MOST_FILES + 1))
        if len(self.names) > MOST_FILES:
            raise TaskDataError(f"{text}: its braces name more than {MOST_FILES:,} files")
        fixed = re.split(rf"{_BRACES.pattern}|{_WILD.pattern}", str(Path(text).expanduser()))[0]
        self.folder = Path(fixed[: fixed.rfind("/") + 1])

    def files(self) -> list[Path]:
        """The files there are, each once, sorted."""
        return sorted({path for name in self.names for path in _matches(name)})

    def all_files(self) -> list[Path]:
        """The same.

        Raises:
            TaskDataError: there is none, or none for one of the names in braces.
        """
        for name in self.names:
            if not _matches(name):
                of = f", one of the {len(self.names)} names in {self.text}" if len(self.names) > 1 else ""
                raise TaskDataError(f"no file matches {name}{of}")
        return self.files()


def pattern_of(text: str) -> Pattern | None:
    """The pattern that a text is; None for a path that exists as it is written, or that has nothing to expand."""
    if not text.lower().endswith(DATA_SUFFIXES) or not (_WILD.search(text) or _BRACES.search(text)):
        return None
    return None if Path(text).expanduser().exists() else Pattern(text)


def _matches(name: str) -> list[Path]:
    found = glob.iglob(name, recursive=True) if _WILD.search(name) else [name]
    return [path for path in map(Path, found) if path.is_file()]


def _expanded(text: str) -> Iterator[str]:
    """The texts that a text with braces stands for; those of the first braces vary most slowly."""
    match = _BRACES.search(text)
    if match is None:
        yield text
        return
    for choice in _choices(match[1]):
        for rest in _expanded(text[match.end() :]):
            yield text[: match.start()] + choice + rest


def _choices(inside: str) -> Iterator[str]:
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if ends is None:
        yield from inside.split(",")
        return
    width = max(map(len, ends.groups())) if any(end[0] == "0" and len(end) > 1 for end in ends.groups()) else 0
    for number in range(int(ends[1]), int(ends[2]) + 1):
        yield f"{number:0{width}}"

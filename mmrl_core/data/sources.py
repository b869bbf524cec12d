"""Rows of a data set: hub name, parquet, JSONL, JSON, CSV, shards, a saved data set, or a folder of images.

Rows are read one at a time, when asked for, and media in them stay as stored (path or bytes). So one broken line or
image breaks its row, which the run sets aside (see `set_aside`), and not the load. What is wrong with the
data set as a whole, such as a missing file or split, is a `TaskDataError` at once.
"""

from __future__ import annotations

import bisect
import difflib
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

from mmrl_core.data.folders import choose_split, file_parts, folder_parts, pattern_parts
from mmrl_core.data.noted_files import note_files
from mmrl_core.data.parquet_rows import ParquetRows, Table, cause
from mmrl_core.data.patterns import pattern_of
from mmrl_core.data.rows_in_memory import Row
from mmrl_core.data.tables import DATA_SUFFIXES, RowPart
from mmrl_core.errors import TaskDataError, did_you_mean

NUM_ROWS_SHOWING_COLUMNS = 100  # rows of a text file that are looked at to learn its columns


class Rows(Sequence[Row]):
    """Rows of one split in a fixed order. Reading a broken row raises TaskDataError that names file and line.

    Attributes:
        media_root: folder that media paths in the rows start from and may not leave; None for hub data sets.
    """

    def __init__(
        self,
        parts: Sequence[RowPart],
        *,
        columns: Sequence[str] | None = None,
        media_root: Path | None = None,
        selection: range | None = None,
    ) -> None:
        self._parts = list(parts)
        self._ends = list(itertools.accumulate(len(part) for part in self._parts))
        self._columns = columns
        self._selection = range(self._ends[-1] if self._ends else 0) if selection is None else selection
        self.media_root = media_root

    def __len__(self) -> int:
        return len(self._selection)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            selection = self._selection[index]
            return Rows(self._parts, columns=self._columns, media_root=self.media_root, selection=selection)
        part, offset = self._locate(index)
        row = part.read(offset)
        return row if self._columns is None else {name: row.get(name) for name in self._columns}

    def select_columns(self, names: Sequence[str]) -> Rows:
        """The same rows with these columns alone; those of a table that are left out are not read.

        A row that lacks one has None there.
        """
        parts = [part.select_columns(names) if isinstance(part, Table | ParquetRows) else part for part in self._parts]
        return Rows(parts, columns=names, media_root=self.media_root, selection=self._selection)

    def select_range(self, first: str | None, last: str | None) -> Rows:
        """The rows of a range as `parse_split` gives it; percentages are rounded to the nearest row."""
        start, stop = (_range_end(end, len(self)) for end in (first, last))
        return self[start:stop]

    def where(self, index: int) -> str:
        """File and line of a row (or file and row number), for messages and for `SetAside`."""
        part, offset = self._locate(index)
        return part.where(offset)

    def _locate(self, index: int) -> tuple[RowPart, int]:
        position = self._selection[index]
        number = bisect.bisect_right(self._ends, position)
        return self._parts[number], position - (self._ends[number - 1] if number else 0)


class ListedRows(list[Row]):
    """Rows in memory whose media lie in a folder, which their paths may not leave: what a source may return.

    Attributes:
        media_root: the folder.
    """

    def __init__(self, rows: Iterable[Row], *, media_root: Path) -> None:
        super().__init__(rows)
        self.media_root = media_root


def load_rows(
    path: str | Path,
    *,
    split: str | None = None,
    revision: str | None = None,
    columns: Sequence[str] | None = None,
    subset: str | None = None,
) -> Rows:
    """Open a data set. Local files win over hub names.

    Args:
        path: a parquet, JSONL, JSON, CSV or TSV file, or a tar of WebDataset (see `Shard`); a folder of such; a folder
            written by `save_to_disk`; a folder of images (with or without metadata.jsonl or metadata.csv, whose column
            file_name names the image; without it, a sub-folder names the label); several files by a pattern such as
            "data/*.parquet" or "shards/train-{000..009}.tar", sorted (see `Pattern`); or a hub name such as
            "owner/name".
        split: name of the split, optionally with a range: "train[:90%]", "train[90%:]", "test[:200]". In a folder, and
            in a pattern whose files are of several splits, a split is a file ("val.jsonl",
            "test-00000-of-00004.parquet", "refcoco_val.json") or a sub-folder; without such names everything is
            "train". One file, or one pattern, is the split that is asked for if that is "train" or part of its name.
            None: the only split there is.
        revision: of a hub data set; local data have none.
        columns: keep only these. A row of a text file that lacks one has None there.
        subset: configuration name of a hub data set.

    Returns:
        Rows whose values are as stored: images {"bytes": ..., "path": ...} or whatever the text file says, never
        decoded; everything in CSV and TSV is a string.

    Raises:
        TaskDataError: nothing there (nearest existing names are listed), unknown split or column, unreadable file,
            a revision or subset for local data, or hub trouble.
    """
    split_name, *ends = (None, None, None) if split is None else parse_split(split)
    local, pattern = Path(path).expanduser(), pattern_of(str(path))
    if local.exists() or pattern is not None:
        if revision is not None or subset is not None:
            raise TaskDataError(f"{local} is local: 'revision' and 'subset' are for hub data sets only")
        if pattern is not None:
            parts, media_root = pattern_parts(pattern, split_name), pattern.folder
        elif local.is_file():
            parts, media_root = file_parts(local, split_name), local.parent
        else:
            parts, media_root = folder_parts(local, split_name), local
    else:
        _refuse_if_meant_as_local(str(path), local)
        parts, media_root = [_load_hub(str(path), split_name, revision, subset)], None
    found = Rows(parts, media_root=media_root).select_range(*ends)
    if columns is None:
        return found
    _check_columns(parts, columns, str(path))
    return found.select_columns(columns)


def parse_split(split: str) -> tuple[str, str | None, str | None]:
    """Name and range of a split: numbers or percentages, None for an open end.

    Raises:
        TaskDataError: brackets that hold no range.

    >>> parse_split("train[10%:]")
    ('train', '10%', None)
    """
    if "[" not in split:
        return split, None, None
    match = re.fullmatch(r"([^\[\]]+)\[(-?\d+%?)?:(-?\d+%?)?\]", split)
    if match is None:
        raise TaskDataError(f"split {split!r}: expected a name, maybe with a range: train[:90%], test[:200]")
    return match[1], match[2], match[3]


def rows(
    split: str,
    *,
    path: str,
    revision: str | None = None,
    columns: Sequence[str] | None = None,
    subset: str | None = None,
) -> Rows:
    """Data source `rows`: `load_rows` with the split that the config names."""
    return load_rows(path, split=split, revision=revision, columns=columns, subset=subset)


def _load_hub(name: str, split: str | None, revision: str | None, subset: str | None) -> Table:
    from datasets import get_dataset_split_names, load_dataset

    try:
        if split is None:
            names = get_dataset_split_names(name, subset, revision=revision)
            split = choose_split(names, None, f"hub data set {name!r}", default_ok=False)
        dataset = load_dataset(name, subset, split=split, revision=revision)
        note_files(Path(file["filename"]) for file in dataset.cache_files)
        return Table(dataset, f"{name} {split}")
    except TaskDataError:
        raise
    except Exception as error:
        try:
            names = get_dataset_split_names(name, subset, revision=revision)
        except Exception:  # the first error says it all
            names = []
        if names and split not in names:
            choose_split(names, split, f"hub data set {name!r}", default_ok=False)
        at = f" at revision {revision}" if revision else ""
        raise TaskDataError(
            f"data set {name!r}{at}: not a local file or folder ({nearest(Path(name))}), and the hub data set of that "
            f"name cannot be loaded: {cause(error)}"
        ) from error


def _range_end(end: str | None, num_rows: int) -> int | None:
    """Row number of one end of a range."""
    if end is None:
        return None
    return round(int(end[:-1]) * num_rows / 100) if end.endswith("%") else int(end)


def _check_columns(parts: Sequence[RowPart], columns: Sequence[str], where: str) -> None:
    known: dict[str, None] = {}
    for part in parts:
        if isinstance(part, Table | ParquetRows):
            known |= dict.fromkeys(part.column_names)
            continue
        for index in range(min(len(part), NUM_ROWS_SHOWING_COLUMNS)):
            try:
                known |= dict.fromkeys(part.read(index))
            except TaskDataError:  # raised again when the row is used
                continue
    missing = [name for name in columns if name not in known]
    if missing and known:
        hint = did_you_mean(missing[0], known)
        raise TaskDataError(f"{where} has no column {missing[0]!r}.{hint} Columns: {', '.join(known)}")


def _refuse_if_meant_as_local(text: str, path: Path) -> None:
    """A missing path that cannot be, or hardly is, a hub name."""
    hub_like = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", text) is not None
    first_is_folder = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    if not hub_like or first_is_folder or path.suffix.lower() in DATA_SUFFIXES:
        raise TaskDataError(f"{text}: no such file or folder ({nearest(path)})")


def nearest(path: Path) -> str:
    """What does exist near a missing path."""
    parent = path.absolute().parent
    child = path.absolute().name
    while not parent.is_dir():
        child = parent.name
        parent = parent.parent
    names = sorted(entry.name for entry in parent.iterdir())
    near = difflib.get_close_matches(child, names, n=3)
    if near:
        return f"nearest in {parent}: {', '.join(near)}"
    return f"{parent} holds: {', '.join(names[:8]) + (', ...' if len(names) > 8 else '') or 'nothing'}"

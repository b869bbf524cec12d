"""Rows of a data set: hub name, parquet, JSONL, JSON, CSV, a saved data set, or a folder of images.

Rows are read one at a time, when asked for, and media in them stay as stored (path or bytes). So one broken line or
image breaks its row, which the run sets aside (`mmrl_core.data.SetAside`), and not the load. What is wrong with the
data set as a whole, such as a missing file or split, is a `TaskDataError` at once.
"""

from __future__ import annotations

import bisect
import csv
import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

from mmrl_core.errors import TaskDataError

TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
DATA_SUFFIXES = (".parquet", *TEXT_SUFFIXES)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_NAMES = ("train", "validation", "valid", "val", "dev", "test", "eval")
DEFAULT_SPLIT = "train"  # what a file or folder without split names counts as
NUM_ROWS_SHOWING_COLUMNS = 100  # rows of a text file that are looked at to learn its columns
LONGEST_FIELD = 1 << 30  # characters of a CSV field; images are kept there as base64, above the 128 Ki of Python

Row = Mapping[str, Any]


class RowPart(Protocol):
    """Some rows of one origin, such as a file; sources in plugins bring their own and wrap them in `Rows`."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Row:
        """Row `index`; raises TaskDataError if that row is broken."""

    def where(self, index: int) -> str:
        """File and line, or file and row number, for messages."""


class Rows(Sequence[Row]):
    """Rows of one split in a fixed order. Reading a broken row raises TaskDataError that names file and line.

    Attributes:
        media_root: folder that relative media paths in the rows start from; None for hub data sets.
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
        parts = [part.select_columns(names) if isinstance(part, _Table) else part for part in self._parts]
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
        path: a parquet, JSONL, JSON, CSV or TSV file; a folder of such; a folder written by `save_to_disk`; a folder
            of images (with or without metadata.jsonl or metadata.csv, whose column file_name names the image; without
            it, a sub-folder's name is the label); or a hub name such as "owner/name".
        split: name of the split, optionally with a range: "train[:90%]", "train[90%:]", "test[:200]". In a folder a
            split is a file ("val.jsonl", "test-00000-of-00004.parquet", "refcoco_val.json") or a sub-folder; without
            such names everything is "train". One file is the split that is asked for if that is "train" or part of its
            name. None: the only split there is.
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
    local = Path(path).expanduser()
    if local.exists():
        if revision is not None or subset is not None:
            raise TaskDataError(f"{local} is local: 'revision' and 'subset' are for hub data sets only")
        parts = _file_parts(local, split_name) if local.is_file() else _folder_parts(local, split_name)
        media_root = local if local.is_dir() else local.parent
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


class _JsonLines:
    """A JSONL file: only the offsets of its lines are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[tuple[int, int]] = []  # (byte offset, line number), blank lines left out
        offset = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self.lines.append((offset, number))
                offset += len(line)

    def __len__(self) -> int:
        return len(self.lines)

    def read(self, index: int) -> Row:
        with open(self.path, "rb") as file:
            file.seek(self.lines[index][0])
            line = file.readline()
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:  # ValueError covers broken JSON and broken UTF-8
            raise TaskDataError(f"{self.where(index)}: broken JSON: {error}") from error
        return _as_row(row, self.where(index))

    def where(self, index: int) -> str:
        return f"{self.path}:{self.lines[index][1]}"


class _Items:
    """Rows in memory; a `_Broken` stands for a row that could not be read."""

    def __init__(self, path: Path, items: Sequence[Any], line_numbers: Sequence[int] | None = None) -> None:
        self.path = path
        self.items = items
        self.line_numbers = line_numbers

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> Row:
        item = self.items[index]
        if isinstance(item, _Broken):
            raise TaskDataError(f"{self.where(index)}: {item.reason}")
        return _as_row(item, self.where(index))

    def where(self, index: int) -> str:
        return f"{self.path}:{self.line_numbers[index]}" if self.line_numbers else f"{self.path} row {index}"


@dataclass(frozen=True)
class _Broken:
    reason: str


class _Table:
    """Rows of a `datasets.Dataset`, as stored: the arrow format neither decodes media nor casts anything."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset = dataset.with_format("arrow")
        self.name = name

    @property
    def column_names(self) -> list[str]:
        return list(self.dataset.column_names)

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Row:
        return self.dataset[index].to_pylist()[0]

    def select_columns(self, names: Sequence[str]) -> _Table:
        return _Table(self.dataset.select_columns([name for name in self.column_names if name in names]), self.name)

    def where(self, index: int) -> str:
        return f"{self.name} row {index}"


class _ImagesWithMetadata:
    """Rows of metadata.jsonl or metadata.csv, with the image that file_name names."""

    def __init__(self, metadata: RowPart, folder: Path) -> None:
        self.metadata = metadata
        self.folder = folder

    def __len__(self) -> int:
        return len(self.metadata)

    def read(self, index: int) -> Row:
        row = self.metadata.read(index)
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise TaskDataError(f"{self.where(index)}: no column 'file_name' that names the image")
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise TaskDataError(f"{self.where(index)}: file_name {name!r} leads out of {self.folder}")
        return {**row, "image": {"path": str(path.absolute()), "bytes": None}}

    def where(self, index: int) -> str:
        return self.metadata.where(index)


def _as_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise TaskDataError(f"{where}: a row is an object with named columns, this is {type(value).__name__}")
    return value


def _file_parts(path: Path, split: str | None) -> list[RowPart]:
    """One data file. It has no splits of its own, except JSON that is an object of lists."""
    if path.suffix.lower() not in DATA_SUFFIXES:
        raise TaskDataError(f"{path}: unknown kind of data file; known: {', '.join(DATA_SUFFIXES)}")
    if path.suffix.lower() == ".json" and not _is_json_lines(path):
        content = _read_json(path)
        if isinstance(content, dict):
            lists = {name: value for name, value in content.items() if isinstance(value, list)}
            name = _choose_split(lists, split, str(path), default_ok=len(lists) == 1)
            return [_Items(path, lists[name])]
    if split not in (None, DEFAULT_SPLIT, *_split_labels(path, path.parent)):
        raise TaskDataError(
            f"{path} is one file, and split {split!r} is not part of its name. Name the file that holds the split, a "
            f"folder with one file per split, or a range of this file such as split: {DEFAULT_SPLIT}[90%:]."
        )
    return _read_files([path])


def _read_files(paths: Sequence[Path]) -> list[RowPart]:
    parts: list[RowPart] = []
    for path in paths:
        suffix = path.suffix.lower()
        try:
            if suffix == ".jsonl" or (suffix == ".json" and _is_json_lines(path)):
                parts.append(_JsonLines(path))
            elif suffix in (".csv", ".tsv"):
                parts.append(_read_csv(path, "\t" if suffix == ".tsv" else ","))
            elif suffix == ".json":
                content = _read_json(path)
                if not isinstance(content, list):
                    raise TaskDataError(f"{path}: expected a list of rows, this is {type(content).__name__}")
                parts.append(_Items(path, content))
        except OSError as error:
            raise TaskDataError(f"{path}: {error.strerror or error}") from error
    parquet = [path for path in paths if path.suffix.lower() == ".parquet"]
    if parquet:
        parts.append(_read_parquet(parquet))
    return parts


def _is_json_lines(path: Path) -> bool:
    """Many data sets name JSON-lines files .json: the first line is an object and another follows."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            first, second = file.readline(), file.readline()
        return second.lstrip().startswith("{") and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError, OSError):
        return False


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TaskDataError(f"{path}: broken JSON: {error}") from error
    except OSError as error:
        raise TaskDataError(f"{path}: {error.strerror or error}") from error


def _read_csv(path: Path, delimiter: str) -> _Items:
    csv.field_size_limit(LONGEST_FIELD)
    items: list[Any] = []
    numbers: list[int] = []
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file, delimiter=delimiter)
        header: list[str] | None = None
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                items.append(_Broken(f"broken CSV: {error}"))
                numbers.append(reader.line_num)
                continue
            if not fields:
                continue
            if header is None:
                header = fields
                continue
            sound = len(fields) == len(header)
            why = f"{len(fields)} fields, but the header has {len(header)}"
            items.append(dict(zip(header, fields, strict=True)) if sound else _Broken(why))
            numbers.append(reader.line_num)
    return _Items(path, items, numbers)


def _read_parquet(paths: Sequence[Path]) -> _Table:
    from datasets import Dataset

    names = ", ".join(str(path) for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
    try:
        return _Table(Dataset.from_parquet([str(path) for path in paths]), names)
    except Exception as error:
        raise TaskDataError(f"cannot read {names}: {_cause(error)}") from error


def _folder_parts(folder: Path, split: str | None) -> list[RowPart]:
    if (folder / "dataset_dict.json").is_file():
        names = _read_json(folder / "dataset_dict.json").get("splits", [])
        name = _choose_split(names, split, str(folder), default_ok=False)
        return [_load_saved(folder / name)]
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        saved = _load_saved(folder)
        _choose_split([str(saved.dataset.split or DEFAULT_SPLIT)], split, str(folder), default_ok=True)
        return [saved]

    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    ]
    metadata = [path for path in files if path.name in ("metadata.jsonl", "metadata.csv")]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    data = [path for path in files if path.suffix.lower() in DATA_SUFFIXES]
    if metadata and images:
        chosen = _files_of_split(metadata, folder, split)
        return [_ImagesWithMetadata(part, path.parent) for path in chosen for part in _read_files([path])]
    if data:
        return _read_files(_files_of_split(data, folder, split))
    if images:
        # File names such as test_01.jpg say nothing about splits in a folder of images; its sub-folders do.
        chosen = _files_of_split(images, folder, split, labels=_folder_labels)
        items = [_image_row(path, folder) for path in chosen]
        return [_Items(folder, items)]
    shown = ", ".join(path.name for path in sorted(folder.iterdir())[:8]) or "nothing"
    raise TaskDataError(
        f"{folder} holds no data files ({', '.join(DATA_SUFFIXES)}), no images and no saved data set. It holds: {shown}"
    )


def _image_row(path: Path, folder: Path) -> dict[str, Any]:
    """{"image": ..., "label": name of the sub-folder}; no label for images outside of sub-folders."""
    row: dict[str, Any] = {"image": {"path": str(path.absolute()), "bytes": None}}
    below = path.relative_to(folder).parts[:-1]
    if below and below[0] in SPLIT_NAMES:
        below = below[1:]
    return row | {"label": "/".join(below)} if below else row


def _folder_labels(path: Path, folder: Path) -> list[str]:
    top = path.relative_to(folder).parts[:-1][:1]
    return [name for name in top if name in SPLIT_NAMES]


def _split_labels(path: Path, folder: Path) -> list[str]:
    """Split names that a data file may go by, the most telling first: sub-folder, word of its name, whole name."""
    below = list(path.relative_to(folder).parts[:-1])
    stem = re.sub(r"[-_.]\d+(-of-\d+)?$", "", path.name.removesuffix(path.suffix))
    words = [word for word in re.split(r"[-_.]", stem) if word in SPLIT_NAMES]
    return [name for name in below if name in SPLIT_NAMES] + words + [stem, *below]


def _files_of_split(
    files: Sequence[Path],
    folder: Path,
    split: str | None,
    labels: Callable[[Path, Path], list[str]] = _split_labels,
) -> list[Path]:
    labels_of = {path: labels(path, folder) for path in files}
    chosen = [path for path in files if split in labels_of[path]]
    if chosen:
        return chosen
    without_splits = not any(name in SPLIT_NAMES for names in labels_of.values() for name in names)
    if without_splits and split in (None, DEFAULT_SPLIT):
        return list(files)
    available = sorted({names[0] if names else DEFAULT_SPLIT for names in labels_of.values()})
    name = _choose_split([DEFAULT_SPLIT] if without_splits else available, split, str(folder), default_ok=False)
    return [path for path in files if (labels_of[path] or [DEFAULT_SPLIT])[0] == name]


def _load_saved(folder: Path) -> _Table:
    from datasets import load_from_disk

    try:
        return _Table(load_from_disk(str(folder)), str(folder))
    except Exception as error:
        raise TaskDataError(f"cannot read the saved data set {folder}: {_cause(error)}") from error


def _load_hub(name: str, split: str | None, revision: str | None, subset: str | None) -> _Table:
    from datasets import get_dataset_split_names, load_dataset

    try:
        if split is None:
            names = get_dataset_split_names(name, subset, revision=revision)
            split = _choose_split(names, None, f"hub data set {name!r}", default_ok=False)
        return _Table(load_dataset(name, subset, split=split, revision=revision), f"{name} {split}")
    except TaskDataError:
        raise
    except Exception as error:
        try:
            names = get_dataset_split_names(name, subset, revision=revision)
        except Exception:  # the first error says it all
            names = []
        if names and split not in names:
            _choose_split(names, split, f"hub data set {name!r}", default_ok=False)
        at = f" at revision {revision}" if revision else ""
        raise TaskDataError(
            f"data set {name!r}{at}: not a local file or folder ({_nearest(Path(name))}), and the hub data set of that "
            f"name cannot be loaded: {_cause(error)}"
        ) from error


def _choose_split(names: Iterable[str], split: str | None, where: str, *, default_ok: bool) -> str:
    """The split to use. `default_ok`: asking for "train" is fine where the only split has another name."""
    names = list(names)
    if split in names:
        return str(split)
    if len(names) == 1 and (split is None or (default_ok and split == DEFAULT_SPLIT)):
        return names[0]
    available = ", ".join(names) or "none"
    if split is None:
        raise TaskDataError(f"{where} has several splits; name one with 'split'. Splits: {available}")
    near = difflib.get_close_matches(split, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise TaskDataError(f"{where} has no split {split!r}.{hint} Splits: {available}")


def _range_end(end: str | None, num_rows: int) -> int | None:
    """Row number of one end of a range."""
    if end is None:
        return None
    return round(int(end[:-1]) * num_rows / 100) if end.endswith("%") else int(end)


def _check_columns(parts: Sequence[RowPart], columns: Sequence[str], where: str) -> None:
    known: dict[str, None] = {}
    for part in parts:
        if isinstance(part, _Table):
            known |= dict.fromkeys(part.column_names)
            continue
        for index in range(min(len(part), NUM_ROWS_SHOWING_COLUMNS)):
            try:
                known |= dict.fromkeys(part.read(index))
            except TaskDataError:  # raised again when the row is used
                continue
    missing = [name for name in columns if name not in known]
    if missing and known:
        near = difflib.get_close_matches(missing[0], known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TaskDataError(f"{where} has no column {missing[0]!r}.{hint} Columns: {', '.join(known)}")


def _refuse_if_meant_as_local(text: str, path: Path) -> None:
    """A missing path that cannot be, or hardly is, a hub name."""
    hub_like = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", text) is not None
    first_is_folder = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    if not hub_like or first_is_folder or path.suffix.lower() in DATA_SUFFIXES:
        raise TaskDataError(f"{text}: no such file or folder ({_nearest(path)})")


def _nearest(path: Path) -> str:
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


def _cause(error: BaseException) -> str:
    """The innermost explicit cause in one line: `datasets` wraps the real one in "an error occurred"."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__

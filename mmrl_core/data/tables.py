"""Files of rows: JSONL, JSON, CSV, TSV, parquet and saved data sets, read one row at a time with media as stored."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmrl_core.errors import TaskDataError
from mmrl_core.support import written_aside

if TYPE_CHECKING:
    import pyarrow

TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
DATA_SUFFIXES = (".parquet", *TEXT_SUFFIXES)
LONGEST_FIELD = 1 << 30  # characters of a CSV field; images are kept there as base64, above the 128 Ki of Python


Row = Mapping[str, Any]


class RowPart(Protocol):
    """Some rows of one origin, such as a file; sources in plugins bring their own and wrap them in `Rows`."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Row:
        """Row `index`; raises TaskDataError if that row is broken."""

    def where(self, index: int) -> str:
        """File and line, or file and row number, for messages."""


class JsonLines:
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


class Items:
    """Rows in memory; a `Broken` stands for a row that could not be read."""

    def __init__(self, path: Path, items: Sequence[Any], line_numbers: Sequence[int] | None = None) -> None:
        self.path = path
        self.items = items
        self.line_numbers = line_numbers

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> Row:
        item = self.items[index]
        if isinstance(item, Broken):
            raise TaskDataError(f"{self.where(index)}: {item.reason}")
        return _as_row(item, self.where(index))

    def where(self, index: int) -> str:
        return f"{self.path}:{self.line_numbers[index]}" if self.line_numbers else f"{self.path} row {index}"


@dataclass(frozen=True)
class Broken:
    reason: str


class Table:
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

    def select_columns(self, names: Sequence[str]) -> Table:
        return Table(self.dataset.select_columns([name for name in self.column_names if name in names]), self.name)

    def where(self, index: int) -> str:
        return f"{self.name} row {index}"


def _as_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise TaskDataError(f"{where}: a row is an object with named columns, this is {type(value).__name__}")
    return value


def read_files(paths: Sequence[Path]) -> list[RowPart]:
    parts: list[RowPart] = []
    for path in paths:
        suffix = path.suffix.lower()
        try:
            if suffix == ".jsonl" or (suffix == ".json" and is_json_lines(path)):
                parts.append(JsonLines(path))
            elif suffix in (".csv", ".tsv"):
                parts.append(_read_csv(path, "\t" if suffix == ".tsv" else ","))
            elif suffix == ".json":
                content = read_json(path)
                if not isinstance(content, list):
                    raise TaskDataError(f"{path}: expected a list of rows, this is {type(content).__name__}")
                parts.append(Items(path, content))
        except OSError as error:
            raise TaskDataError(f"{path}: {error.strerror or error}") from error
    parquet = [path for path in paths if path.suffix.lower() == ".parquet"]
    if parquet:
        parts.append(open_parquet(parquet))
    return parts


def is_json_lines(path: Path) -> bool:
    """Many data sets name JSON-lines files .json: the first line is an object and another follows."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            first, second = file.readline(), file.readline()
        return second.lstrip().startswith("{") and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError, OSError):
        return False


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TaskDataError(f"{path}: broken JSON: {error}") from error
    except OSError as error:
        raise TaskDataError(f"{path}: {error.strerror or error}") from error


def _read_csv(path: Path, delimiter: str) -> Items:
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
                items.append(Broken(f"broken CSV: {error}"))
                numbers.append(reader.line_num)
                continue
            if not fields:
                continue
            if header is None:
                header = fields
                continue
            sound = len(fields) == len(header)
            why = f"{len(fields)} fields, but the header has {len(header)}"
            items.append(dict(zip(header, fields, strict=True)) if sound else Broken(why))
            numbers.append(reader.line_num)
    return Items(path, items, numbers)


def open_parquet(paths: Sequence[Path]) -> Table:
    from datasets import Dataset

    names = ", ".join(str(path) for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
    try:
        return Table(Dataset.from_parquet([str(path) for path in paths]), names)
    except Exception as error:
        raise TaskDataError(f"cannot read {names}: {cause(error)}") from error


def load_saved(folder: Path) -> Table:
    from datasets import load_from_disk

    try:
        return Table(load_from_disk(str(folder)), str(folder))
    except Exception as error:
        raise TaskDataError(f"cannot read the saved data set {folder}: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """The innermost explicit cause in one line: `datasets` wraps the real one in "an error occurred"."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def read_parquet(path: Path, *, schema: pyarrow.Schema | None = None, remade: bool = False) -> list[dict[str, Any]]:
    """All rows of one parquet file in memory; `load_rows` reads rows of large ones when they are asked for.

    Args:
        path: of the file.
        schema: names and types of the columns to read; None: those of the file.
        remade: whether the file is written anew where it is missing, which the error for a broken one then says.

    Raises:
        TaskDataError: the file is missing, torn, or of another schema.
    """
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path, schema=schema).to_pylist()
    except Exception as error:  # pyarrow raises several kinds on files it cannot read
        advice = " Delete it; it is written anew when needed." if remade else ""
        raise TaskDataError(f"{path} cannot be read: {error}.{advice}") from error


def write_parquet(rows: Sequence[Row], path: Path, *, schema: pyarrow.Schema) -> None:
    """Write rows to a parquet file, uncompressed; a kill leaves the old file or the new one.

    Args:
        rows: mappings of columns.
        path: of the file; its folder is made if it is missing.
        schema: names and types of the columns.
    """
    import pyarrow
    import pyarrow.parquet

    with written_aside(path) as aside:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), aside, compression="none")

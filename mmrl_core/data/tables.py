"""Files of rows: JSONL, JSON, CSV, TSV, parquet, tar and saved data sets, read one row at a time, media as stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmrl_core.data.delimited import read_delimited
from mmrl_core.data.lines import LONGEST_LINE, bounded_lines, too_long
from mmrl_core.data.noted_files import note_files
from mmrl_core.data.parquet_rows import Files, ParquetRows, Table, cause
from mmrl_core.data.rows_in_memory import Items, Row, as_row
from mmrl_core.data.shards import Shard
from mmrl_core.errors import TaskDataError
from mmrl_core.support import written_aside

if TYPE_CHECKING:
    import pyarrow

TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
LARGEST_JSON = 1 << 30  # bytes; in memory its values take several times as many
DATA_SUFFIXES = (".parquet", *TEXT_SUFFIXES, ".tar")


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
        self._long: dict[int, int] = {}  # number of a row -> its bytes, where those are too many
        offset = 0
        with open(path, "rb") as file:
            for number, (line, length) in enumerate(bounded_lines(file), start=1):
                if line is None:
                    self._long[len(self.lines)] = length
                if line is None or line.strip():
                    self.lines.append((offset, number))
                offset += length

    def __len__(self) -> int:
        return len(self.lines)

    def read(self, index: int) -> Row:
        index = range(len(self))[index]
        if index in self._long:
            raise TaskDataError(f"{self.where(index)}: {too_long(self._long[index])}")
        with open(self.path, "rb") as file:
            file.seek(self.lines[index][0])
            line = file.readline()
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:  # ValueError covers broken JSON and broken UTF-8
            raise TaskDataError(f"{self.where(index)}: broken JSON: {error}") from error
        return as_row(row, self.where(index))

    def where(self, index: int) -> str:
        return f"{self.path}:{self.lines[index][1]}"


def read_files(paths: Sequence[Path]) -> list[RowPart]:
    parts: list[RowPart] = []
    note_files(paths)
    for path in paths:
        suffix = path.suffix.lower()
        try:
            if suffix == ".jsonl" or (suffix == ".json" and is_json_lines(path)):
                parts.append(JsonLines(path))
            elif suffix in (".csv", ".tsv"):
                parts.append(read_delimited(path, "\t" if suffix == ".tsv" else ","))
            elif suffix == ".json":
                content = read_json(path)
                if not isinstance(content, list):
                    raise TaskDataError(f"{path}: expected a list of rows, this is {type(content).__name__}")
                parts.append(Items(path, content))
            elif suffix == ".tar":
                parts.append(Shard(path))
        except OSError as error:
            raise TaskDataError(f"{path}: {error.strerror or error}") from error
    parquet = [path for path in paths if path.suffix.lower() == ".parquet"]
    if parquet:
        parts.append(ParquetRows(Files(parquet)))
    return parts


def is_json_lines(path: Path) -> bool:
    """Many data sets name JSON-lines files .json: the first line is an object and another follows."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            first, second = file.readline(LONGEST_LINE), file.readline(LONGEST_LINE)
        return second.lstrip().startswith("{") and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError, OSError):
        return False


def read_json(path: Path) -> Any:
    note_files([path])
    try:
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise TaskDataError(
                f"{path} has {size} bytes, more than the limit of {LARGEST_JSON} of a file that is read at once; "
                "write it as JSON lines"
            )
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TaskDataError(f"{path}: broken JSON: {error}") from error
    except OSError as error:
        raise TaskDataError(f"{path}: {error.strerror or error}") from error


def load_saved(folder: Path) -> Table:
    from datasets import load_from_disk

    note_files(sorted(folder.glob("*.arrow")))
    try:
        return Table(load_from_disk(str(folder)), str(folder))
    except Exception as error:
        raise TaskDataError(f"cannot read the saved data set {folder}: {cause(error)}") from error


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

"""Rows of parquet files: the first ones straight from the file, all of them once more are asked for."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.data.lines import LONGEST_LINE
from mmrl_core.data.rows_in_memory import Row
from mmrl_core.errors import TaskDataError

if TYPE_CHECKING:
    import pyarrow

NUM_FIRST_ROWS = 256  # read from the file itself: a preview, a check and the columns need no more
FIRST_BYTES = 128 << 20  # of these rows that are kept
BATCH_BYTES = 16 << 20  # decoded at a time, as far as a row is not larger
MAX_BATCH = 10_000


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
        return only_row(self.dataset[index], self.where(index))

    def select_columns(self, names: Sequence[str]) -> Table:
        return Table(self.dataset.select_columns([name for name in self.column_names if name in names]), self.name)

    def where(self, index: int) -> str:
        return f"{self.name} row {index}"


class ParquetRows:
    """Rows of parquet files with the same columns.

    Opening reads the footers alone. The first rows are decoded from the file in small batches. Whoever reads further
    on has `datasets` write all rows to its cache once, in small batches too, since parquet has no quick way to a row.
    """

    def __init__(self, files: Files, columns: Sequence[str] | None = None) -> None:
        self._files = files
        self.column_names = list(files.column_names if columns is None else columns)
        self.name = files.name
        self._first: list[pyarrow.RecordBatch] = []
        self._further = files.batches(self.column_names)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._files.num_rows

    def read(self, index: int) -> Row:
        if index < NUM_FIRST_ROWS and not self._files.is_opened:
            with self._lock:
                row = self._first_row(index)
            if row is not None:
                return row
        return self._whole.read(index)

    def select_columns(self, names: Sequence[str]) -> ParquetRows:
        return ParquetRows(self._files, [name for name in self.column_names if name in names])

    def where(self, index: int) -> str:
        return f"{self.name} row {index}"

    @functools.cached_property
    def _whole(self) -> Table:
        return self._files.whole.select_columns(self.column_names)

    def _first_row(self, index: int) -> Row | None:
        """A row near the start; None if those before it take too much memory."""
        start = 0
        for number in range(len(self._first) + NUM_FIRST_ROWS):
            if number == len(self._first):
                if sum(batch.nbytes for batch in self._first) > FIRST_BYTES:
                    return None
                batch = next(self._further, None)
                if batch is None:
                    return None
                self._first.append(batch)
            if index < start + len(self._first[number]):
                return only_row(self._first[number].slice(index - start, 1), self.where(index))
            start += len(self._first[number])
        return None


class Files:
    """Parquet files, opened as far as is needed.

    Raises:
        TaskDataError: a file is torn, or its columns are not those of the others.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        import pyarrow.parquet

        self.paths = list(paths)
        self.name = ", ".join(str(path) for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
        try:
            footers = [pyarrow.parquet.read_metadata(path) for path in paths]
        except Exception as error:  # pyarrow raises several kinds on files it cannot read
            raise TaskDataError(f"cannot read {self.name}: {cause(error)}") from error
        schemas = [footer.schema.to_arrow_schema() for footer in footers]
        self.column_names: list[str] = schemas[0].names
        self.num_rows: int = sum(footer.num_rows for footer in footers)
        groups = [footer.row_group(number) for footer in footers for number in range(footer.num_row_groups)]
        row_bytes = max(1, sum(group.total_byte_size for group in groups) // max(1, self.num_rows))
        self._batch_size = min(MAX_BATCH, max(1, BATCH_BYTES // row_bytes))
        if any(not schema.equals(schemas[0]) for schema in schemas):
            _ = self.whole  # casts what can be cast, and says what cannot

    @property
    def is_opened(self) -> bool:
        """Whether the rows are in the cache already."""
        return "whole" in self.__dict__

    @functools.cached_property
    def whole(self) -> Table:
        from datasets import Dataset

        try:
            paths = [str(path) for path in self.paths]
            return Table(Dataset.from_parquet(paths, batch_size=self._batch_size), self.name)
        except Exception as error:
            raise TaskDataError(f"cannot read {self.name}: {cause(error)}") from error

    def batches(self, columns: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
        """All rows, a few at a time."""
        import pyarrow.parquet

        for path in self.paths:
            try:
                with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
                    size = min(self._batch_size, 64)
                    yield from file.iter_batches(batch_size=size, columns=list(columns), use_threads=False)
            except Exception as error:
                raise TaskDataError(f"cannot read {path}: {cause(error)}") from error


def only_row(table: Any, where: str) -> Row:
    """The row of a table of one, unless it is too large."""
    if table.nbytes > LONGEST_LINE:
        raise TaskDataError(
            f"{where}: the row has {table.nbytes} bytes, more than the limit of {LONGEST_LINE}; keep media in files"
        )
    return dict(table.to_pylist()[0])


def cause(error: BaseException) -> str:
    """The innermost explicit cause in one line: `datasets` wraps the real one in "an error occurred"."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__

"""CSV and TSV files, read so that no stray quotation mark swallows the rows behind it."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrl_core.data.lines import LONGEST_LINE, bounded_lines, too_long
from mmrl_core.data.rows_in_memory import Broken, Items
from mmrl_core.errors import TaskDataError

logger = logging.getLogger(__name__)

LONGEST_FIELD = LONGEST_LINE  # characters; images are kept there as base64, above the 128 Ki of Python
MOST_LINES = 10_000  # of one field
UNCLOSED = "unexpected end of data"  # what `csv` says of a quoted field whose end it does not find


def read_delimited(path: Path, delimiter: str) -> Items:
    """Rows of a CSV or TSV file, the first line with their names; every value is a string.

    A field in quotation marks may hold delimiters and line breaks, as writers of such files produce it; one over
    several lines is a warning that names its line. In TSV, a line with as many fields as the header is a row, and
    quotation marks that no writer would have set are characters like others: a field runs over several lines only if
    those in between would not be rows themselves. In CSV such a line is one broken row, and the line behind it the
    next.

    Args:
        path: of the file, in UTF-8.
        delimiter: a comma or a tab.

    Raises:
        TaskDataError: the header is not UTF-8.
    """
    csv.field_size_limit(LONGEST_FIELD)
    lines: list[str] = []
    long: dict[int, int] = {}  # line -> its length, where that is too much
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, length in bounded_lines(file):
            if line is None:
                long[len(lines)] = length
            lines.append(line or "\n")
    return _Parser(path, delimiter, lines, long).rows()


class _Parser:
    """Takes the lines of a file apart."""

    def __init__(self, path: Path, delimiter: str, lines: Sequence[str], long: dict[int, int]) -> None:
        self._path, self._delimiter, self._lines, self._long = path, delimiter, lines, long
        self._header: list[str] | None = None

    def rows(self) -> Items:
        items: list[Any] = []
        numbers: list[int] = []
        over_lines: list[int] = []
        at = 0
        while at < len(self._lines):
            start = at
            if start in self._long:
                at += 1
                items.append(Broken(too_long(self._long[start])))
            elif not self._lines[start].strip("\r\n"):
                at += 1
                continue
            else:
                record, at = self._record(start)
                if self._header is None:
                    self._header = self._as_header(record)
                    continue
                items.append(record if isinstance(record, Broken) else dict(zip(self._header, record, strict=True)))
                if at > start + 1:
                    over_lines.append(start + 1)
            numbers.append(start + 1)
        if over_lines:
            logger.warning(
                "%s:%d: a field in quotation marks goes over several lines (%d rows have such); look if that is meant",
                *(self._path, over_lines[0], len(over_lines)),
            )
        return Items(self._path, items, numbers)

    def _as_header(self, record: list[str] | Broken) -> list[str]:
        if isinstance(record, Broken):
            raise TaskDataError(f"{self._path}: its first line, which names the columns, is broken: {record.reason}")
        return record

    def _record(self, start: int) -> tuple[list[str] | Broken, int]:
        """The fields of the record that starts at a line, and the line behind it."""
        line = self._lines[start]
        if not _is_utf8(line):
            return Broken("broken UTF-8; save the file as UTF-8"), start + 1
        if '"' not in line:
            return self._of_width(self._split(line)), start + 1
        fields, why = self._quoted(start, start + 1)
        if fields is not None and self._fits(fields):
            return fields, start + 1
        if why == UNCLOSED and (joined := self._joined(start)) is not None:
            return joined
        if self._delimiter == "\t":
            return self._of_width(self._split(line)), start + 1
        if why == UNCLOSED:
            return Broken("broken CSV: a quotation mark opens a field, and none closes it"), start + 1
        return self._of_width(next(csv.reader([line], delimiter=self._delimiter))), start + 1

    def _joined(self, start: int) -> tuple[list[str], int] | None:
        """A record over several lines, as a writer's quotation marks make it."""
        first_full = self._is_full(start)
        for end in range(start + 2, min(start + MOST_LINES, len(self._lines)) + 1):
            last = end - 1
            if last in self._long or not _is_utf8(self._lines[last]):
                return None
            if '"' in self._lines[last]:
                fields, why = self._quoted(start, end)
                if fields is not None:
                    stray = first_full and self._is_full(last)
                    return (fields, end) if self._fits(fields) and not stray else None
                if why != UNCLOSED:
                    return None
            if self._is_full(last):
                return None
        return None

    def _is_full(self, at: int) -> bool:
        """Whether a line of a TSV file is a row by itself. The commas in a text make no rows."""
        width = len(self._header) if self._header is not None else 0
        return self._delimiter == "\t" and len(self._split(self._lines[at])) == width

    def _split(self, line: str) -> list[str]:
        return line.rstrip("\r\n").split(self._delimiter)

    def _quoted(self, start: int, end: int) -> tuple[list[str] | None, str]:
        """The fields of lines by the rules of quotation, or why they are not a record."""
        reader = csv.reader(self._lines[start:end], delimiter=self._delimiter, strict=True)
        try:
            fields = next(reader)
        except csv.Error as error:
            return None, str(error)
        return (fields, "") if reader.line_num == end - start else (None, "it ends before its last line")

    def _fits(self, fields: Sequence[str]) -> bool:
        return self._header is None or len(fields) == len(self._header)

    def _of_width(self, fields: list[str]) -> list[str] | Broken:
        if self._header is None or self._fits(fields):
            return fields
        return Broken(f"{len(fields)} fields, but the header has {len(self._header)}")


def _is_utf8(line: str) -> bool:
    """Whether no byte of it had to be escaped."""
    if line.isascii():
        return True
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True

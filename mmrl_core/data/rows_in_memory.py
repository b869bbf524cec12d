"""Rows that were read at once, some of which may be broken; and rows as every reader gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl_core.data.plain_text import plain_text
from mmrl_core.errors import TaskDataError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Broken:
    reason: str


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
        return as_row(item, self.where(index))

    def where(self, index: int) -> str:
        return f"{self.path}:{self.line_numbers[index]}" if self.line_numbers else f"{self.path} row {index}"


def as_row(value: Any, where: str) -> Row:
    """A parsed JSON value as a row, its text writable as UTF-8; raises TaskDataError for what is no object."""
    if not isinstance(value, dict):
        raise TaskDataError(f"{where}: a row is an object with named columns, this is {type(value).__name__}")
    try:
        return plain_text(value)
    except RecursionError as error:
        raise TaskDataError(f"{where}: its values are nested too deeply") from error

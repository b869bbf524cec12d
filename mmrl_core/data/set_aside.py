"""Rows that are broken, and how many of them a run tolerates."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from mmrl_core.errors import TaskDataError

logger = logging.getLogger(__name__)

MIN_ROWS_TO_JUDGE = 20  # among fewer rows read, one broken row says nothing about the share


@dataclass(frozen=True)
class BrokenRow:
    """A row that was set aside: `file` is the medium that broke, else the data file and line if the source knows."""

    id: str
    index: int
    file: str
    reason: str


class SetAside:
    """The broken rows of a source. Refuses to go on when too many of those read are broken."""

    def __init__(self, name: str, max_broken: float) -> None:
        """
        Args:
            name: of the source, for messages.
            max_broken: share of the rows read that may be broken.
        """
        self._name = name
        self._max_broken = max_broken
        self._read: set[int] = set()
        self._broken: dict[int, BrokenRow] = {}

    def __len__(self) -> int:
        return len(self._broken)

    def __iter__(self) -> Iterator[BrokenRow]:
        return iter(sorted(self._broken.values(), key=lambda row: row.index))

    @property
    def num_read(self) -> int:
        """Rows read so far, each counted once."""
        return len(self._read)

    def add_sound(self, index: int) -> None:
        self._read.add(index)

    def add(self, row: BrokenRow) -> None:
        """Set a row aside.

        Raises:
            TaskDataError: more than `max_broken` of at least `MIN_ROWS_TO_JUDGE` rows are broken; shows three.
        """
        if row.index not in self._broken:
            logger.warning("row %s is set aside: %s", row.id, row.reason)
        self._read.add(row.index)
        self._broken[row.index] = row
        if self.num_read >= MIN_ROWS_TO_JUDGE and len(self) > self._max_broken * self.num_read:
            raise TaskDataError(
                f"{len(self)} of {self.num_read} rows of {self._name!r} are broken, more than data.max_broken "
                f"({self._max_broken:g}) allows:\n" + self.describe(3)
            )

    def describe(self, num_rows: int) -> str:
        """The first broken rows, one a line."""
        return "\n".join(f"  {row.id}: {row.reason}" for row in list(self)[:num_rows])

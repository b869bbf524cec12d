"""Lines of text files, each no longer than memory allows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, AnyStr

LONGEST_LINE = 64 << 20  # bytes or characters of one row; twenty pictures of 2 MB in base64
CHUNK = 1 << 20


def bounded_lines(file: IO[AnyStr]) -> Iterator[tuple[AnyStr | None, int]]:
    """(line with its end, its length) for each line; None in place of one longer than `LONGEST_LINE`."""
    while line := file.readline(CHUNK):
        length, pieces = len(line), [line]
        while pieces[-1][-1:] not in ("\n", b"\n") and (piece := file.readline(CHUNK)):
            length += len(piece)
            # What would be too long is not kept, only its end is looked at.
            if length > LONGEST_LINE:
                pieces.clear()
            pieces.append(piece)
        yield (None if length > LONGEST_LINE else line[:0].join(pieces)), length


def too_long(length: int) -> str:
    """Why a row is broken whose line has this length."""
    return f"the line has {length} bytes, more than the limit of {LONGEST_LINE}; keep media in files beside it"

"""Files that a kill leaves old or new but never half written, and numbers as JSON has them."""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to. It takes the place of `path` if the block succeeds.

    The folder of `path` is made if it is missing. The path is hidden, ends in `.unfinished` (see `remove_unfinished`)
    and is never given twice, so that threads, processes and machines may write one file at the same time. A folder
    takes the place of a folder, whose content is deleted; a kill between the two renames leaves neither in place.

    >>> with written_aside(Path("numbers.txt")) as aside:  # doctest: +SKIP
    ...     aside.write_text("1 2 3")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:12]
    aside = path.with_name(f".{path.name}.{token}.unfinished")
    try:
        yield aside
        if path.is_dir():
            old = path.with_name(f".{path.name}.{token}.old.unfinished")
            path.rename(old)
            aside.rename(path)
            shutil.rmtree(old)
        else:
            aside.replace(path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Delete the files and folders that killed processes left half written in a folder, at any depth."""
    for leftover in list(folder.rglob(".*.unfinished")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """The value, or None for a float that is not finite, which JSON does not have.

    >>> [finite(value) for value in (1.5, float("nan"), "text")]
    [1.5, None, 'text']
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value

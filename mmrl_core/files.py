"""Writing files so that a kill leaves the old one or the new one, and numbers as JSON has them."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to; it takes the place of `path` if the block succeeds.

    The folder of `path` is made if it is missing. What is written aside has a hidden name that ends in `.unfinished`,
    see `remove_unfinished`. A folder takes the place of a folder, whose content is then gone.

    >>> with written_aside(Path("numbers.txt")) as aside:  # doctest: +SKIP
    ...     aside.write_text("1 2 3")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield aside
        if path.is_dir():
            old = path.with_name(f".{path.name}.{os.getpid()}.old.unfinished")
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
    """Delete what killed processes left half written in a folder, at any depth."""
    for leftover in list(folder.rglob(".*.unfinished")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """`value`, but None for a float that is not finite, which JSON does not have.

    >>> [finite(value) for value in (1.5, float("nan"), "text")]
    [1.5, None, 'text']
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value

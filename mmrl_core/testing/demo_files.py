"""Writing the data of demos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrl_core.errors import TaskDataError
from mmrl_core.support import written_aside


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """A path to write a file to, which becomes `path` if the block ends well and is removed otherwise.

    It is `mmrl_core.support.files.written_aside` with an error that says where demo data may go instead.

    Raises:
        TaskDataError: the block, or making the folder, raised an OSError.
    """
    try:
        with written_aside(path) as unfinished:
            yield unfinished
    except OSError as error:
        raise TaskDataError(
            f"the demo's data cannot be written to {path}: {error.strerror or error}. "
            "Name another folder with the environment variable MMRL_CACHE."
        ) from error

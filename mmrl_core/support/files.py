"""Files that a kill leaves old or new but never half written, folders that cannot be written, and numbers for JSON."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmrl_core.errors import MMRLError

_REPLACED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}\.old\.unfinished")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux, see renameat2(2)


@contextmanager
def written_aside(path: Path, *, keeps_existing: bool = False) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to. It takes the place of `path` if the block succeeds.

    The folder of `path` is made if it is missing. The path is hidden, ends in `.unfinished` (see `remove_unfinished`)
    and is never given twice, so that threads, processes and machines may write one file at the same time. A folder
    takes the place of a folder in one step where the system can swap two names (Linux, on local file systems).
    Elsewhere a kill between two renames leaves the old folder aside, and `remove_unfinished` puts it back.

    Args:
        path: where the file or folder shall be.
        keeps_existing: what another writer has put there meanwhile stays, since others may be reading it.

    >>> with written_aside(Path("numbers.txt")) as aside:  # doctest: +SKIP
    ...     aside.write_text("1 2 3")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:12]
    aside = path.with_name(f".{path.name}.{token}.unfinished")
    try:
        yield aside
        if path.exists() and keeps_existing:
            return
        if not path.is_dir():
            aside.replace(path)
        elif not exchange(aside, path):
            _replace_folder(aside, path, path.with_name(f".{path.name}.{token}.old.unfinished"))
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


def exchange(one: Path, other: Path) -> bool:
    """Swap two files or folders in one step; False where the system or the file system cannot."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is None:
        return False
    return swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _replace_folder(new: Path, path: Path, old: Path) -> None:
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old)


def remove_unfinished(folder: Path) -> None:
    """Delete the files and folders that killed processes left half written in a folder, at any depth.

    A folder that was moved aside for a new one, which then did not take its place, is put back.
    """
    for leftover in list(folder.rglob(".*.unfinished")):
        replaced = _REPLACED.fullmatch(leftover.name)
        if replaced and not leftover.with_name(replaced["name"]).exists():
            leftover.rename(leftover.with_name(replaced["name"]))
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def writes_to(folder: Path, what: str) -> Iterator[None]:
    """Say in one sentence that a folder cannot be written, whichever library found out.

    Args:
        folder: that the block writes to.
        what: is written, for the message: "the checkpoint of step 4".

    Raises:
        MMRLError: the system refused to write.
    """
    try:
        yield
    except MMRLError:
        raise
    except Exception as error:
        reason = _refusal(error, folder)
        if reason is None:
            raise
        raise MMRLError(f"{what} cannot be written to {folder}: {reason}") from error


_ADVICE = {
    errno.ENOSPC: "Make room there; what was saved before is whole.",
    errno.EDQUOT: "Make room there; what was saved before is whole.",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f).",
    errno.ENOENT: "It has vanished: was it moved or deleted?",
    errno.EROFS: "Name a folder that can be written.",
    errno.EACCES: "Name a folder that you may write to.",
    errno.EPERM: "Name a folder that you may write to.",
    errno.EEXIST: "A part of the path is a file: name another folder.",
    errno.ENOTDIR: "A part of the path is a file: name another folder.",
}


def _refusal(error: BaseException, folder: Path) -> str | None:
    """Why the system refused to write, as a sentence and what to do; None if that was not the cause."""
    number = next((cause.errno for cause in _causes(error) if isinstance(cause, OSError) and cause.errno), None)
    if number is None and (told := re.search(r"\(os error (\d+)\)", str(error))):  # safetensors, in Rust
        number = int(told[1])
    if number is None and ("PytorchStreamWriter" in str(error) or "inline_container" in str(error)):
        number = _why_unwritable(folder)
    if number is None:
        return None
    return f"{os.strerror(number)}. {_ADVICE.get(number, '')}".strip()


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _why_unwritable(folder: Path) -> int:
    """The error number of writing a megabyte to a folder; torch names none."""
    probe = folder / f".{uuid.uuid4().hex[:12]}.unfinished"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return errno.ENOSPC  # a smaller file fits


def finite(value: Any) -> Any:
    """The value, or None for a float that is not finite, which JSON does not have.

    >>> [finite(value) for value in (1.5, float("nan"), "text")]
    [1.5, None, 'text']
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""A lock on a folder that ends with the process that holds it, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrl_core.errors import MMRLError

LOCK_FILE = ".lock"
"""In a locked folder. One that a killed process left behind locks nothing."""

_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for one run, see `FolderLock`; of several processes that train together the first does."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    lock = FolderLock(folder)
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a run is going on in a folder. Nothing is written; a lock on another machine may not be seen."""
    try:
        file = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(file)
    return False


class FolderLock:
    """Holds a folder for one run. The folder is made if it is missing.

    The system gives the lock back when the process ends, also by a kill. Processes forked from it do not hold it on.
    A file system without locks is not an obstacle; two runs in one folder are then not noticed.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            MMRLError: another process holds the folder, or it cannot be made or written.
        """
        self.path = folder / LOCK_FILE
        self._file: int | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while self._file is None:
                self._file = self._locked()
            os.truncate(self._file, 0)
            os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            os.fsync(self._file)
        except OSError as error:
            self.release()
            raise MMRLError(
                f"the run folder {folder} cannot be written: {error.strerror or error}. Name another with --output, or "
                "make room or give yourself the right to write there."
            ) from error
        _held.add(self)

    def _locked(self) -> int | None:
        """The locked file; None if it was deleted meanwhile, by a process that gave it back."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
                os.close(file)
                raise MMRLError(
                    f"a run is going on in {self.path.parent} ({holder}). Wait for it or stop it, or name another "
                    "--output."
                ) from error
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == os.fstat(file).st_ino:
                return file
        os.close(file)
        return None

    def release(self) -> None:
        """Give the folder back. May be called more than once."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self._file)
            self._file = None

    def forget(self) -> None:
        """In a forked process: what it inherited must not hold the folder when the first process has ended."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()


os.register_at_fork(after_in_child=_forget_all)

"""What the process that judges answers may do: read and compute, within a limit of memory."""

from __future__ import annotations

import os
import sys
from typing import Any

MEMORY_BYTES = 1 << 30
"""That an answer may take beside what the process has: a number of 10^9 digits ends in MemoryError."""

_REFUSED = frozenset(
    {
        *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.putenv"),
        *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
        *("os.kill", "os.chown", "subprocess.Popen", "pty.spawn", "socket.connect", "socket.bind", "ctypes.dlopen"),
        *("shutil.rmtree", "shutil.move", "shutil.copyfile", "webbrowser.open", "urllib.Request"),
    }
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_confined = False


class RefusedError(RuntimeError):
    """Something in an answer tried to do more than compute."""


def confine() -> None:
    """Confine the process that calls it, for good; a second call changes nothing.

    The parsers that run here do not evaluate answers, or are given only those that are plain formulas. This is for what
    slips through: Python reports what touches the system (see `sys.addaudithook`), and that is refused.
    """
    global _confined
    if _confined:
        return
    _confined = True
    sys.dont_write_bytecode = True
    _limit_memory()
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _REFUSED or (event == "open" and arguments[2] & _WRITING):
        raise RefusedError(f"an answer may not call {event}")


def _limit_memory() -> None:
    try:
        import resource

        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):  # not Linux: the time limit has to do
        return

"""Processes of a run that end with it, also when it is killed."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal


def end_with_parent() -> None:
    """Have the system end this process, a child of multiprocessing, as soon as the one that started it has ended.

    The parent holds one end of a pipe as long as it lives, and the system signals its closing to this process, whatever
    that is doing: a thread would not get its turn in code that holds the interpreter. (Linux's PR_SET_PDEATHSIG ends a
    process with the *thread* that started it.) Where the system knows no signals for pipes nothing happens; a process
    that waits for its next call ends in any case.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    kill_when_closed(parent.sentinel, os.getpid())
    if not parent.is_alive():  # it ended before there was a signal to send
        os._exit(1)


def kill_when_closed(pipe: int, owner: int) -> None:
    """Have the system kill a process, or with a negative number a group, once the other end of a pipe is closed.

    The owner, or a child of it, keeps its end open: a pipe that nobody reads signals nothing. The setting belongs to
    the pipe, so that any process that has the end can make it. Where there are no such signals nothing happens.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(pipe, fcntl.F_SETOWN, owner)
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)

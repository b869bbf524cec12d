"""The server that multiprocessing forks processes from: there is one in a process, and it keeps its first imports."""

from multiprocessing import forkserver
from typing import Any


def leave_server() -> None:
    """The next process is forked from a new server. The old one ends with this process.

    It is not told to stop: that waits for the processes forked from it, such as a reward's, which live on. Python has
    no public way to either.
    """
    server: Any = forkserver._forkserver
    server._forkserver_pid = server._forkserver_address = server._forkserver_alive_fd = None

"""Processes that tools run in: one that hangs or crashes is ended, and the conversation goes on."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from mmrl_core.conversation.tools import Question
from mmrl_core.errors import MediaError, PluginError, ToolError
from mmrl_core.support import end_with_parent

if TYPE_CHECKING:
    from pydantic import BaseModel

    from mmrl_core.conversation.tools import Part, Tool, ToolContext

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 180.0
"""Limit on the imports of a process, which are those of its tools."""

FILE_MODULE = "mmrl_file_"
"""Prefix of modules made of a file that a config names (`file.py:Tool`). A process cannot import them by their name."""


@dataclass(frozen=True)
class Call:
    """A call with checked arguments: the tool's index among the tools, the arguments, and the conversation."""

    tool: int
    arguments: BaseModel
    context: ToolContext


class ToolWorkers:
    """Runs calls in processes side by side, each within a time limit. Processes start when they are first needed.

    Args:
        tools: every process has all of them.
        num_workers: most processes at a time.
        timeout_s: seconds for a call; the process of one that takes longer is ended.
    """

    def __init__(self, tools: Sequence[Tool], *, num_workers: int, timeout_s: float) -> None:
        self._tools = list(tools)
        self._num_workers = num_workers
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []

    def run(self, calls: Sequence[Call]) -> list[Sequence[Part] | Question | ToolError]:
        """Results in the order of the calls; a ToolError in place of a result holds the message for the policy.

        Raises:
            PluginError: a process does not start because a tool cannot be pickled or imported, or a call cannot be
                pickled.
        """
        try:
            return self._run(calls)
        except BaseException:  # what is still under way must not be taken for the result of a later call
            self.close()
            raise

    def _run(self, calls: Sequence[Call]) -> list[Sequence[Part] | Question | ToolError]:
        results: dict[int, Any] = {}
        waiting = deque(range(len(calls)))
        while len(results) < len(calls):
            for worker in self._idle(len(waiting)):
                worker.start(waiting[0], calls[waiting[0]], time.monotonic() + self._timeout_s)
                waiting.popleft()
            busy = [worker for worker in self._workers if worker.job is not None]
            first_deadline = min(worker.deadline for worker in busy)
            ready = wait([worker.connection for worker in busy], max(0.0, first_deadline - time.monotonic()))
            for worker in busy:
                job = worker.job
                assert job is not None
                if worker.connection in ready:
                    results[job] = self._result(worker, self._tools[calls[job].tool].name)
                elif time.monotonic() >= worker.deadline:
                    results[job] = ToolError(f"the call was stopped after {self._timeout_s:g} s.")
                    self._drop(worker)
        return [results[index] for index in range(len(calls))]

    def close(self) -> None:
        """End the processes. The next call starts others."""
        for worker in list(self._workers):
            self._drop(worker)

    def _idle(self, wanted: int) -> list[_Worker]:
        """At most `wanted` workers without a call; new ones are started up to `num_workers`."""
        for worker in list(self._workers):
            if worker.job is None and not worker.is_alive():  # it did not end in a call
                self._drop(worker)
        idle = [worker for worker in self._workers if worker.job is None]
        started = []
        for _ in range(min(wanted - len(idle), self._num_workers - len(self._workers))):
            started.append(_Worker(self._tools))
            self._workers.append(started[-1])
        for worker in started:
            worker.wait_until_ready()
        return (idle + started)[:wanted]

    def _result(self, worker: _Worker, name: str) -> Any:
        try:
            answer = worker.connection.recv_bytes()
        except (EOFError, OSError):
            logger.warning("the process of tool %r ended in a call", name)
            self._drop(worker)
            return ToolError("the tool crashed.")
        worker.job = None
        result, refusal, problem = pickle.loads(answer)
        if problem is not None:
            logger.warning("tool %r: %s", name, problem)
        return result if refusal is None else ToolError(refusal)

    def _drop(self, worker: _Worker) -> None:
        worker.kill()
        self._workers.remove(worker)


class _Worker:
    """One process.

    `job` is the index of the call that it works on, None when it is idle; `deadline` is the `time.monotonic()` at which
    the call is stopped.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        modules = {type(tool).__module__ for tool in tools}
        files = {name: sys.modules[name].__file__ for name in modules if name.startswith(FILE_MODULE)}
        pickled = _pickled(tools, "a tool of rollout.tools")
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True, name="mmrl-tools")
        self._process.start()
        theirs.close()
        self.job: int | None = None
        self.deadline = 0.0
        self._send(pickle.dumps((files, pickled)))

    def wait_until_ready(self) -> None:
        if not self.connection.poll(START_TIMEOUT_S):
            raise PluginError(f"the tools of rollout.tools did not start within {START_TIMEOUT_S:g} s.")
        try:
            problem = self.connection.recv_bytes().decode()
        except (EOFError, OSError):
            self._process.join(1)
            problem = f"their process ended with {self._process.exitcode}."
        if problem:
            raise PluginError(f"the tools of rollout.tools do not start: {problem}")

    def start(self, job: int, call: Call, deadline: float) -> None:
        self.job, self.deadline = job, deadline
        self._send(_pickled(call, "a call of a tool"))

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def _send(self, message: bytes) -> None:
        with suppress(OSError):  # it has ended; reading from it says so
            self.connection.send_bytes(message)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _pickled(value: Any, what: str) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:  # pickling calls an object's own methods
        raise PluginError(f"{what} cannot be sent to its process: {error}") from error


def _work(connection: Connection) -> None:
    """Main function of a process: it imports the tools, sends "" or the problem, and then answers calls.

    The answer to a call is the pickled tuple (result, message for the policy in its place, line for the log).
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the trainer ends its workers itself
    os.dup2(2, 1)  # the standard output is for what the command prints
    os.environ["OMP_NUM_THREADS"] = "1"  # before the tools import torch: the trainer has the cores
    try:
        files, pickled = pickle.loads(connection.recv_bytes())
        for name, file in files.items():
            _import_file(name, file)
        tools = pickle.loads(pickled)
        for tool in tools:
            tool.start()
    except Exception as error:  # imports run a plugin's code
        connection.send_bytes(f"{type(error).__name__}: {error}".encode())
        return
    connection.send_bytes(b"")
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):  # the trainer has ended
            return
        try:
            call: Call = pickle.loads(message)
            answer = pickle.dumps((_checked(tools[call.tool].run(call.arguments, call.context)), None, None))
        except ToolError as error:
            answer = pickle.dumps((None, str(error), None))
        except MediaError as error:  # its message names the file, which is not for the policy
            answer = pickle.dumps((None, "the file cannot be read.", str(error)))
        except Exception as error:
            answer = pickle.dumps((None, "the tool failed.", f"{type(error).__name__}: {error}"))
        connection.send_bytes(answer)


def _import_file(name: str, file: str) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


def _checked(result: Any) -> Any:
    if isinstance(result, Question):
        return result
    if not isinstance(result, Sequence) or not all(isinstance(part, Mapping) and "type" in part for part in result):
        raise TypeError(f"a tool returns parts of a message, or a Question, not {type(result).__name__}")
    return result

"""A reward in a process of its own (`isolate: true`): it may crash, exit, or never let go of the interpreter.

Arguments and results are pickled, which costs a fraction of a millisecond a group for text. The process is started when
it is first needed, and again after it has died or was ended because it took too long.
"""

from __future__ import annotations

import asyncio
import faulthandler
import functools
import importlib
import importlib.util
import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from mmrl_core.errors import RewardError
from mmrl_core.support import end_with_parent, stand_ins
from mmrl_core.types import Rollout

START_TIMEOUT_S = 180.0
"""Limit on the imports of the process, which are those of the reward."""


class DiedError(Exception):
    """The process ended in a call."""


class IsolatedFunction:
    """Calls a function in a process of its own, one call at a time.

    Attributes:
        num_restarts: how often the process was replaced.
    """

    def __init__(
        self,
        name: str,
        target: str,
        *,
        forked: bool = False,
        adapt: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    ) -> None:
        """
        Args:
            name: of the reward, for messages.
            target: "module:attribute", as a registry's entry has it.
            adapt: makes the function that is called of the one that is imported; it is pickled.
            forked: take processes from one that has imported the module already, where the system can fork, so that a
                replacement is there in a fraction of a second; for functions whose calls are ended often.
        """
        module, _, attribute = target.partition(":")
        file = getattr(sys.modules.get(module), "__file__", None) if module.startswith("mmrl_file_") else None
        self._origin = (module, attribute, file)
        self._adapt = adapt
        self._name = name
        self._forked = forked and "forkserver" in multiprocessing.get_all_start_methods()
        self.num_restarts = 0
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Start the process ahead of the first call, which then does not wait for its imports.

        Raises:
            RewardError: it does not start.
        """
        self._started()

    def call(self, arguments: Sequence[Any], options: Mapping[str, Any], timeout_s: float) -> Any:
        """What the function returns.

        Raises:
            TimeoutError: it took longer, and was ended.
            DiedError: its process ended; says how.
            RewardError: the process does not start.
            RuntimeError: the function raised; says what, and where.
        """
        connection = self._started()
        message = pickle.dumps((arguments, dict(options)))
        try:
            connection.send_bytes(message)
            if not connection.poll(timeout_s):
                self._replace(grace_s=0.0)
                raise TimeoutError
            result, error = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise DiedError(self._replace()) from None
        if error is not None:
            raise RuntimeError(error)
        return result

    def _started(self) -> Connection:
        if self._connection is not None and self._process is not None and self._process.is_alive():
            return self._connection
        context: Any = multiprocessing.get_context("forkserver" if self._forked else "spawn")
        if self._forked:  # without effect if the server runs already; then each process imports the module itself
            context.set_forkserver_preload([__name__, self._origin[0]])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._origin, self._adapt), daemon=True, name="mmrl-reward"
        )
        self._process.start()
        theirs.close()
        weakref.finalize(self, self._process.kill)
        try:
            problem = self._connection.recv_bytes().decode() if self._connection.poll(START_TIMEOUT_S) else "too slow"
        except (EOFError, OSError):
            problem = f"its process {self._replace()}"
        if problem:
            raise RewardError(f"reward {self._name!r} does not start in a process of its own: {problem}")
        return self._connection

    def _replace(self, grace_s: float = 1.0) -> str:
        """End the process, so that the next call starts another; returns how it had ended, if it had."""
        assert self._process is not None and self._connection is not None
        self._process.join(grace_s)
        code = self._process.exitcode
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._process = self._connection = None
        self.num_restarts += 1
        if code is None:
            return "was ended"
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def without_observations(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Rollouts as another process gets them: what a policy decided on may be large, or no data at all."""
    return [replace(item, rows=[replace(row, observation=None) for row in item.rows]) for item in rollouts]


def _serve(
    connection: Connection,
    origin: tuple[str, str, str | None],
    adapt: Callable[[Callable[..., Any]], Callable[..., Any]] | None,
) -> None:
    """Main function of the process: it imports the reward, sends "" or the problem, and then answers calls."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the run ends its processes itself
    os.dup2(2, 1)  # the standard output is for what the command prints
    faulthandler.enable()  # a crash writes where it was
    try:
        function = _imported(*origin)
        if adapt is not None:
            function = adapt(function)
    except BaseException as error:  # imports run the reward's code
        connection.send_bytes(f"{type(error).__name__}: {error}".encode())
        return
    connection.send_bytes(b"")
    while True:
        try:
            arguments, options = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):  # the run has ended
            return
        connection.send_bytes(_answer(function, arguments, options))


def _answer(function: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> bytes:
    """The pickled pair (result, what was raised)."""
    try:
        result = function(*arguments, **options)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        return pickle.dumps((result, None))
    except BaseException as error:
        return pickle.dumps((None, f"{type(error).__name__}: {error}{_where(error)}"))


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""


def _imported(module: str, attribute: str, file: str | None) -> Any:
    if file is not None:
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None and spec.loader is not None
        sys.modules[module] = importlib.util.module_from_spec(spec)
        with stand_ins():
            spec.loader.exec_module(sys.modules[module])
    return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))

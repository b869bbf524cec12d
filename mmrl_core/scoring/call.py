"""One reward of a config: calls of its function, each group by itself, with a time limit."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import RewardError
from mmrl_core.scoring.isolated import DiedError, IsolatedFunction, without_observations
from mmrl_core.scoring.own import own_copy
from mmrl_core.scoring.reading import SHAPES, Judgement, read_judgements
from mmrl_core.scoring.signature import as_called_here, check_signature
from mmrl_core.scoring.threads import CANCEL_GRACE_S, LoopThread, in_thread
from mmrl_core.types import Prompt, Rollout, RolloutGroup

if TYPE_CHECKING:
    from mmrl_core.config import RewardConfig
    from mmrl_core.plugins import Plugins

MAX_HANGING = 8  # abandoned calls still running, after which a reward is not called any more
MAX_CONCURRENT = 64  # groups of an async reward in flight


@dataclass(frozen=True)
class Call:
    """What a reward is called with: the completions of one group."""

    completions: Sequence[Any]
    samples: Sequence[Mapping[str, Any]]
    rollouts: Sequence[Rollout] | None = None
    prompt: Prompt | None = None

    @staticmethod
    def of(group: RolloutGroup) -> Call:
        rollouts = list(group.rollouts)
        samples = [{**group.prompt.sample, **rollout.outcome} for rollout in rollouts]
        return Call([rollout.completion for rollout in rollouts], samples, rollouts, group.prompt)

    def arguments(self) -> tuple[list[Any], list[dict[str, Any]]]:
        """Completions and samples for one call alone: what it writes into them, nobody else sees."""
        return [own_copy(completion) for completion in self.completions], [own_copy(dict(row)) for row in self.samples]

    def one(self, index: int) -> Call:
        at = slice(index, index + 1)
        return Call(self.completions[at], self.samples[at], self.rollouts and self.rollouts[at], self.prompt)


def plain_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The messages of a prompt as data sets write them: a text, or parts in which media are empty places."""
    messages = []
    for message in prompt.messages:
        parts = [part if part["type"] == "text" else {"type": part["type"]} for part in message["content"]]
        is_text = all(part["type"] == "text" for part in parts)
        content = "".join(part["text"] for part in parts) if is_text else parts
        messages.append({"role": message["role"], "content": content})
    return messages


class _HungError(Exception):
    """A call did not end in time, or was not made because too many before it still hang."""


class Reward:
    """One reward of a config: its function, and how it is called.

    Attributes:
        config: name, weight, options, time limit.
        function: what the name stands for, as it is called here.
        shape: one of `SHAPES`.
        maximum: the highest score that it declares to give, 1 if its registration declares none. None if it declares to
            have none, or is a function from a file that declares nothing.
        needs_rollouts: whether it can be called within a run only.
    """

    def __init__(self, plugins: Plugins, config: RewardConfig, part: str | None = None) -> None:
        """
        Args:
            part: of a mixture, whose groups alone it scores; None for all groups.

        Raises:
            PluginError: no installed plugin provides the reward, or it cannot be imported.
            RewardError: it is declared wrongly, or a given option is wrong.
        """
        self._part = part
        entry = plugins.registry.get("reward", config.name)
        self.config = config
        self.shape = str(entry.details.get("shape", "completion"))
        if self.shape not in SHAPES:
            raise RewardError(
                f"reward {entry.id!r} is declared with shape {self.shape!r}; shapes: {', '.join(SHAPES)}."
            )
        maximum = entry.details.get("maximum", 1.0)
        if maximum is not None and not isinstance(maximum, int | float):
            raise RewardError(f"reward {entry.id!r} is declared with maximum {maximum!r}, which is no number or None.")
        self.maximum = None if maximum is None else float(maximum)
        loaded = entry.load()
        if not callable(loaded):
            raise RewardError(f"reward {entry.id!r} ({entry.target}) is not a function.")
        self.function = as_called_here(entry.id, loaded, config)
        self._takes, self.needs_rollouts = check_signature(entry.id, self.function, config.options)
        adapt = functools.partial(as_called_here, entry.id, config=config) if config.style else None
        self.isolated = IsolatedFunction(entry.id, entry.target, adapt=adapt) if config.isolate else None
        is_async = inspect.iscoroutinefunction
        waits = is_async(self.function) or is_async(getattr(self.function, "__call__", None))  # noqa: B004
        self._is_async = waits and self.isolated is None  # a process of its own runs one call at a time
        self._loop: LoopThread | None = None
        self._abandoned: list[threading.Thread] = []
        self._waiting: deque[tuple[Call, Future[list[Judgement]]]] = deque()
        self._num_workers = 0
        self._lock = threading.Lock()

    def is_for(self, group: RolloutGroup) -> bool:
        """Whether the reward scores the group; of a mixture, only groups of its part."""
        return self._part in (None, group.prompt.part)

    def submit(self, call: Call) -> Future[list[Judgement]]:
        """Judge a group in the background: plain functions one group after another, async ones side by side."""
        future: Future[list[Judgement]] = Future()
        with self._lock:
            self._waiting.append((call, future))
            is_new = self._num_workers < (MAX_CONCURRENT if self._is_async else 1)
            self._num_workers += is_new
        if is_new:
            in_thread(self._work)
        return future

    def _work(self) -> None:
        """Judge what waits, then end."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._num_workers -= 1
                    return
                call, future = self._waiting.popleft()
            try:
                future.set_result(self._judge(call, time.monotonic() + self.config.timeout_s))
            except BaseException as error:
                future.set_exception(error)

    def _judge(self, call: Call, deadline: float) -> list[Judgement]:
        """Judgements of a group; if the reward raises, of each completion by itself, so that only the culprit fails."""
        count = len(call.completions)
        try:
            return read_judgements(self._run(call, deadline), self.shape, count, call.rollouts)
        except _HungError as error:
            failure = str(error)
        except BaseException as error:
            if self.shape != "group" and count > 1:
                return [judgement for i in range(count) for judgement in self._judge(call.one(i), deadline)]
            failure = f"its process {error}" if isinstance(error, DiedError) else _raised(error)
        return [Judgement(None, failure=failure)] * count

    def _run(self, call: Call, deadline: float) -> Any:
        """What the function returns; raises what it raises, or `_HungError`."""
        with self._lock:
            self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
            num_hanging = len(self._abandoned)
        if num_hanging >= MAX_HANGING:
            raise _HungError(f"not called, because {MAX_HANGING} earlier calls of it still hang")
        if (left_s := deadline - time.monotonic()) <= 0:
            raise _HungError(f"no time left of the {self.config.timeout_s:g} s of its group")
        options = dict(self.config.options)
        if "rollouts" in self._takes and call.rollouts is not None:
            options["rollouts"] = list(call.rollouts)
        if "prompts" in self._takes and call.prompt is not None:
            options["prompts"] = [plain_messages(call.prompt) for _ in call.completions]
        if self.isolated is not None:
            return self._run_isolated(call, options, left_s)
        arguments = call.arguments()
        if self._is_async:
            return self._await(self.function(*arguments, **options), left_s)
        future, thread = in_thread(lambda: self.function(*arguments, **options))
        return self._result(future, thread, left_s)

    def _run_isolated(self, call: Call, options: dict[str, Any], timeout_s: float) -> Any:
        """The same in a process of its own, which shares nothing with the run."""
        assert self.isolated is not None
        if "rollouts" in options:
            options["rollouts"] = without_observations(options["rollouts"])
        try:
            return self.isolated.call((list(call.completions), list(call.samples)), options, timeout_s)
        except TimeoutError:
            raise _HungError(self._too_long()) from None

    def _await(self, coroutine: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
        # One loop for the life of the reward: clients and semaphores of its module are bound to the first they see.
        with self._lock:
            if self._loop is None:
                self._loop = LoopThread()
            loop = self._loop

        async def bounded() -> Any:
            task = asyncio.ensure_future(coroutine)
            done, _ = await asyncio.wait([task], timeout=timeout_s)
            if not done:
                task.cancel()
                await asyncio.wait([task])
                raise _HungError(self._too_long())
            return task.result()

        future = asyncio.run_coroutine_threadsafe(bounded(), loop.loop)
        try:
            return self._result(future, loop.thread, timeout_s + CANCEL_GRACE_S)
        except _HungError:
            with self._lock:
                if self._loop is loop and not loop.responds():
                    self._loop = None
                    loop.end()
            raise

    def _result(self, future: Future[Any], thread: threading.Thread, timeout_s: float) -> Any:
        try:
            return future.result(timeout_s)
        except TimeoutError:
            if future.done():  # the reward's own TimeoutError
                raise
            with self._lock:
                if thread not in self._abandoned:
                    self._abandoned.append(thread)
            raise _HungError(self._too_long()) from None

    def _too_long(self) -> str:
        return f"took longer than {self.config.timeout_s:g} s"


def _raised(error: BaseException) -> str:
    """What was raised, and where in the reward's code."""
    text = (str(error).strip().splitlines() or [""])[0]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""
    return f"raised {type(error).__name__}: {text[:200]}{where}"

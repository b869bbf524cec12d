"""Run reward functions, and turn what they return into what advantage stages read.

A reward is a registered function `(completions, samples, **options)`, plain or `async def`, called once for each group:
`completions` are what the policy wrote, `samples` the data rows (without media) they belong to, all the same row within
a group. If it has a parameter `rollouts`, it gets the group's `Rollout` objects too. It returns one result for each
completion; which, the detail `shape=` of its registration says:

=============  =====================================================================================================
`completion`   a number for each completion (the default)
`step`         a list of numbers for each completion, one for each row of its rollout
`token`        a sequence of numbers for each completion, one for each action token over the rows of its rollout
`group`        a number for each completion, judged jointly: comparisons and pair judgements are made inside, and
               the completions of a group are never scored apart
=============  =====================================================================================================

A number is a score, None is "unscored": the reward has nothing to say, which differs from 0. Anything else (an
exception, a hang, NaN, text, a wrong length) is a *failure*: the completion is unscored, the failure is counted and its
reason kept. A failure ends a run only where the reward has `stop_on_failure`.

Rewards run side by side in threads. They should not draw from the global random generators: in which order threads
reach them is not fixed, and a resumed run would differ.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol, cast

from mmrl_core.errors import RewardError
from mmrl_core.types import RewardView, Rollout, RolloutGroup, Scores

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmrl_core.config import RewardConfig
    from mmrl_core.discovery import Plugins

logger = logging.getLogger(__name__)

SHAPES = ("completion", "step", "token", "group")
MAX_REWARD = 1e18  # its square, which the spread of a group needs, must fit float32
MAX_REASONS = 5  # different reasons kept for a reward; the counts go on
MAX_HANGING = 8  # abandoned calls still running, after which a reward is not called any more
MAX_CONCURRENT = 64  # groups of an async reward in flight
CANCEL_GRACE_S = 1.0  # an async reward has this long to end after it was cancelled


@dataclass(frozen=True)
class Judgement:
    """What a reward said of one completion.

    Attributes:
        value: the score (of step and token rewards: their sum), None if unscored.
        parts: the numbers of a step or token reward.
        failure: why the reward failed on it; None if it scored it, or chose not to.
    """

    value: float | None
    parts: Sequence[float] | None = None
    failure: str | None = None


@dataclass(frozen=True)
class _Call:
    """What a reward is called with: the completions of one group."""

    completions: Sequence[Any]
    samples: Sequence[Mapping[str, Any]]
    rollouts: Sequence[Rollout] | None = None

    def one(self, index: int) -> _Call:
        at = slice(index, index + 1)
        return _Call(self.completions[at], self.samples[at], self.rollouts and self.rollouts[at])


class _HungError(Exception):
    """A call did not end in time, or was not made because too many before it still hang."""


class RewardRunner:
    """Calls the rewards of a config, each group by itself, and keeps count of what fails.

    A group has `timeout_s` of its reward. A plain function that takes longer is abandoned: Python cannot end a thread,
    so it goes on in a daemon thread, which is never joined, not even at exit. (A call that never releases the
    interpreter lock, such as a regular expression that backtracks without end, cannot be abandoned either and stops
    the process.) An async function is cancelled. A reward that raises for a group is called again for each of its
    completions, in what is left of the time, so that only the culprit is unscored; not so where completions are judged
    jointly.

    Attributes:
        failure_reasons: reward key -> the first few different reasons for which it failed.
    """

    def __init__(
        self, plugins: Plugins, configs: Sequence[RewardConfig] | Mapping[str, Sequence[RewardConfig]]
    ) -> None:
        """
        Args:
            configs: the rewards, with weight and options; or those of each part of a mixture, by its name. Then a group
                is scored by the rewards of its prompt's part, the others leave it unscored, and rewards are called
                `<part>/<name>`.

        Raises:
            PluginError: a reward is not provided by any installed plugin, or cannot be imported.
            RewardError: two rewards have one name, or a reward is declared wrongly or given a wrong option.
        """
        self.failure_reasons: dict[str, list[str]] = {}
        self._started: dict[int, tuple[RolloutGroup, dict[str, Future[list[Judgement]]]]] = {}
        self._rewards: dict[str, _Reward] = {}
        by_part = configs if isinstance(configs, Mapping) else {None: configs}
        for part, rewards in by_part.items():
            for config in rewards:
                key = f"{part}/{config.key}" if part else config.key
                if key in self._rewards:
                    raise RewardError(f"two rewards are called {key!r}; give one of them a 'label'.")
                self._rewards[key] = _Reward(plugins, config, part)

    @property
    def keys(self) -> list[str]:
        """Names of the rewards in metrics, in the order of the config."""
        return list(self._rewards)

    def maximum(self, key: str) -> float | None:
        """The highest score a reward declares to give; None if it declares to have none."""
        value = self._reward(key).details.get("maximum", 1.0)
        return None if value is None else float(value)

    def scores_any(self, key: str, groups: Sequence[RolloutGroup]) -> bool:
        """Whether any of the groups is of the part that a reward is for; True for what is no reward of the config."""
        reward = self._rewards.get(key)
        return reward is None or any(reward.is_for(group) for group in groups)

    def start(self, group: RolloutGroup) -> None:
        """Begin to score a group in the background, while others are still being sampled; `score` picks it up."""
        call = _call_of(group)
        own = {key: reward for key, reward in self._rewards.items() if reward.is_for(group)}
        self._started[id(group)] = group, {key: reward.submit(call) for key, reward in own.items()}

    def score(self, groups: Sequence[RolloutGroup]) -> Scores:
        """Score the rollouts of a step. Groups that were started are waited for, the others scored now.

        A total is the weighted sum of the components. A component that leaves a whole group unscored without failing
        (a reward for other tasks of a mixture) is left out there; where it scores only some of a group, or fails, the
        totals of the others are unscored: totals within a group are always sums over the same components.

        Raises:
            RewardError: a reward failed that has stop_on_failure.
        """
        import torch

        for group in groups:
            if id(group) not in self._started:
                self.start(group)
        started = [self._started[id(group)][1] for group in groups]
        unscored = [_unscored(group) for group in groups]
        judged = self._collect(
            {key: [own.get(key, none) for own, none in zip(started, unscored, strict=True)] for key in self._rewards}
        )
        self._started.clear()
        totals: list[float] = []
        for i, group in enumerate(groups):
            weighted = [(reward.config.weight, judged[key][i]) for key, reward in self._rewards.items()]
            totals += _group_totals(weighted, len(group.rollouts))
        flat = {key: [judgement for group in groups for judgement in group] for key, groups in judged.items()}

        rollouts = [rollout for group in groups for rollout in group.rollouts]

        def parts(shape: str) -> dict[str, list[list[float]]]:
            """For each reward of the shape, the weighted numbers of each rollout; zeros where it is unscored."""
            return {
                key: [
                    [number * reward.config.weight for number in judgement.parts or [0.0] * _num_parts(shape, rollout)]
                    for judgement, rollout in zip(flat[key], rollouts, strict=True)
                ]
                for key, reward in self._rewards.items()
                if reward.shape == shape
            }

        return Scores(
            totals=torch.tensor(totals, dtype=torch.float32),
            components={
                key: torch.tensor([math.nan if j.value is None else j.value for j in judgements], dtype=torch.float32)
                for key, judgements in flat.items()
            },
            weights={key: reward.config.weight for key, reward in self._rewards.items()},
            token_rewards={
                key: [torch.tensor(numbers, dtype=torch.float32) for numbers in of_rollouts]
                for key, of_rollouts in parts("token").items()
            },
            step_rewards=parts("step"),
            failures={key: sum(j.failure is not None for j in judgements) for key, judgements in flat.items()},
        )

    def score_samples(
        self, key: str, completions: Sequence[Any], samples: Sequence[Mapping[str, Any]]
    ) -> list[float | None]:
        """Score completions outside of a run, with one reward.

        Args:
            key: name of the reward, see `keys`.
            completions: N completions.
            samples: N data rows; neighbours with equal rows form a group, as in training.

        Returns:
            N scores (of step and token rewards: the sums); None where unscored.

        Raises:
            RewardError: the reward needs rollouts, which only a run has; or it failed and has stop_on_failure.
        """
        return [judgement.value for judgement in self.judge(key, completions, samples)]

    def judge(self, key: str, completions: Sequence[Any], samples: Sequence[Mapping[str, Any]]) -> list[Judgement]:
        """As `score_samples`, with the reason where the reward failed."""
        reward = self._reward(key)
        if len(completions) != len(samples):
            raise ValueError(f"{len(completions)} completions, but {len(samples)} samples")
        if reward.needs_rollouts:
            raise RewardError(f"reward {reward.config.name!r} reads rollouts: it scores only within a run.")
        calls: list[_Call] = []
        start = 0
        for end in range(1, len(samples) + 1):
            if end == len(samples) or samples[end] != samples[start]:
                calls.append(_Call(list(completions[start:end]), list(samples[start:end])))
                start = end
        judged = self._collect({key: [reward.submit(call) for call in calls]})
        return [judgement for group in judged[key] for judgement in group]

    def _reward(self, key: str) -> _Reward:
        if key not in self._rewards:
            raise RewardError(f"no reward is called {key!r}; rewards here: {', '.join(self._rewards) or 'none'}.")
        return self._rewards[key]

    def _collect(self, running: Mapping[str, Sequence[Future[list[Judgement]]]]) -> dict[str, list[list[Judgement]]]:
        """For each reward and each group, a judgement for each completion."""
        judged = {key: [future.result() for future in futures] for key, futures in running.items()}
        for key, groups in judged.items():
            for group in groups:
                for judgement in group:
                    if judgement.failure is not None:
                        self._note_failure(key, judgement.failure)
        return judged

    def _note_failure(self, key: str, reason: str) -> None:
        message = f"reward {self._rewards[key].config.name!r} failed: {reason}"
        if self._rewards[key].config.stop_on_failure:
            raise RewardError(message)
        reasons = self.failure_reasons.setdefault(key, [])
        if not reasons:
            logger.warning("%s. The completion is unscored; further failures are counted, not shown.", message)
        if reason not in reasons and len(reasons) < MAX_REASONS:
            reasons.append(reason)


def _call_of(group: RolloutGroup) -> _Call:
    rollouts = list(group.rollouts)
    samples = [{**group.prompt.sample, **rollout.outcome} for rollout in rollouts]
    return _Call([rollout.completion for rollout in rollouts], samples, rollouts)


def _unscored(group: RolloutGroup) -> Future[list[Judgement]]:
    """What the rewards of other parts of a mixture say of a group."""
    future: Future[list[Judgement]] = Future()
    future.set_result([Judgement(None)] * len(group.rollouts))
    return future


def _group_totals(components: Sequence[tuple[float, Sequence[Judgement]]], num_rollouts: int) -> list[float]:
    """Totals of one group from (weight, judgements); NaN = unscored."""
    apply = [
        (weight, judgements)
        for weight, judgements in components
        if weight != 0 and any(j.value is not None or j.failure is not None for j in judgements)
    ]
    totals = []
    for n in range(num_rollouts):
        values = [(weight, judgements[n].value) for weight, judgements in apply]
        if not values or any(value is None for _, value in values):
            totals.append(math.nan)
        else:
            totals.append(sum(weight * cast(float, value) for weight, value in values))
    return totals


class _Reward:
    """One reward of a config: its function, and how it is called."""

    def __init__(self, plugins: Plugins, config: RewardConfig, part: str | None = None) -> None:
        """
        Args:
            part: of a mixture, whose groups alone it scores; None for all groups.
        """
        self._part = part
        entry = plugins.registry.get("reward", config.name)
        self.config = config
        self.details = entry.details
        self.shape = str(entry.details.get("shape", "completion"))
        if self.shape not in SHAPES:
            raise RewardError(
                f"reward {entry.id!r} is declared with shape {self.shape!r}; shapes: {', '.join(SHAPES)}."
            )
        self.function: Callable[..., Any] = entry.load()
        if not callable(self.function):
            raise RewardError(f"reward {entry.id!r} ({entry.target}) is not a function.")
        self.takes_rollouts, self.needs_rollouts = _check_signature(entry.id, self.function, config.options)
        is_async = inspect.iscoroutinefunction
        self.is_async = is_async(self.function) or is_async(getattr(self.function, "__call__", None))  # noqa: B004
        self._loop: _LoopThread | None = None
        self._abandoned: list[threading.Thread] = []
        self._waiting: deque[tuple[_Call, Future[list[Judgement]]]] = deque()
        self._num_workers = 0
        self._lock = threading.Lock()

    def is_for(self, group: RolloutGroup) -> bool:
        return self._part in (None, group.prompt.part)

    def submit(self, call: _Call) -> Future[list[Judgement]]:
        """Judge a group in the background: plain functions one group after another, async ones side by side."""
        future: Future[list[Judgement]] = Future()
        with self._lock:
            self._waiting.append((call, future))
            is_new = self._num_workers < (MAX_CONCURRENT if self.is_async else 1)
            self._num_workers += is_new
        if is_new:
            _in_thread(self._work)
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
                future.set_result(self._judge_group(call))
            except BaseException as error:
                future.set_exception(error)

    def _judge_group(self, call: _Call) -> list[Judgement]:
        deadline = time.monotonic() + self.config.timeout_s
        try:
            return self._read(self._run(call, deadline), call)
        except _HungError as error:
            return [Judgement(None, failure=str(error))] * len(call.completions)
        except BaseException as error:
            if self.shape == "group" or len(call.completions) == 1:
                return [Judgement(None, failure=_raised(error))] * len(call.completions)
        return [self._judge_one(call.one(i), deadline) for i in range(len(call.completions))]

    def _judge_one(self, call: _Call, deadline: float) -> Judgement:
        """One completion of a group for which the reward raised."""
        try:
            return self._read(self._run(call, deadline), call)[0]
        except _HungError as error:
            return Judgement(None, failure=str(error))
        except BaseException as error:
            return Judgement(None, failure=_raised(error))

    def _run(self, call: _Call, deadline: float) -> Any:
        """What the function returns; raises what it raises, or `_HungError`."""
        with self._lock:
            self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
            num_hanging = len(self._abandoned)
        if num_hanging >= MAX_HANGING:
            raise _HungError(f"not called, because {MAX_HANGING} earlier calls of it still hang")
        if (left_s := deadline - time.monotonic()) <= 0:
            raise _HungError(f"no time left of the {self.config.timeout_s:g} s of its group")
        options = dict(self.config.options)
        if self.takes_rollouts and call.rollouts is not None:
            options["rollouts"] = list(call.rollouts)
        # Lists of its own, so that a reward which changes them harms nobody.
        arguments = (list(call.completions), list(call.samples))
        if self.is_async:
            return self._await(self.function(*arguments, **options), left_s)
        future, thread = _in_thread(lambda: self.function(*arguments, **options))
        return self._result(future, thread, left_s)

    def _await(self, coroutine: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
        # One loop for the life of the reward: clients and semaphores of its module are bound to the first they see.
        with self._lock:
            if self._loop is None:
                self._loop = _LoopThread()
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
                    # Once it is no longer blocked, it ends, after what was cancelled has.
                    loop.loop.call_soon_threadsafe(loop.loop.call_later, CANCEL_GRACE_S, loop.loop.stop)
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

    def _read(self, returned: Any, call: _Call) -> list[Judgement]:
        """Judgements from what a function returned for a group."""
        count = len(call.completions)
        values = _as_list(returned)
        if values is None or len(values) != count:
            what = type(returned).__name__ if values is None else f"{len(values)} results"
            return [Judgement(None, failure=f"returned {what} for {count} completions")] * count
        if self.shape in ("completion", "group"):
            return [_read_number(value) for value in values]
        sizes: list[int | None] = [None] * count
        if call.rollouts is not None:
            sizes = [_num_parts(self.shape, rollout) for rollout in call.rollouts]
        return [_read_parts(value, size, self.shape) for value, size in zip(values, sizes, strict=True)]


def _num_parts(shape: str, rollout: Rollout) -> int:
    """How many numbers a step or token reward gives a rollout."""
    return len(rollout.rows) if shape == "step" else rollout.num_actions


def _check_signature(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a reward takes, and whether it needs, `rollouts`; refuses options that it does not have."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return False, False
    rollouts = signature.parameters.get("rollouts")
    own = [p.name for p in list(signature.parameters.values())[2:] if p is not rollouts and p.kind != p.VAR_KEYWORD]
    takes_any = any(p.kind == p.VAR_KEYWORD for p in signature.parameters.values())
    for option in options:
        if option not in own and (not takes_any or option == "rollouts"):
            close = difflib.get_close_matches(option, own, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Its options: {', '.join(own) or 'none'}."
            raise RewardError(f"reward {name!r} has no option {option!r}. {hint}")
    try:
        signature.bind([], [], **options, **({"rollouts": []} if rollouts else {}))
    except TypeError as error:
        raise RewardError(f"reward {name!r} cannot be called as (completions, samples, **options): {error}.") from error
    return rollouts is not None, rollouts is not None and rollouts.default is inspect.Parameter.empty


def _as_list(value: Any) -> list[Any] | None:
    """The elements of a list, tuple, array or tensor; None for anything else."""
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) >= 1:
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    return None


def _read_number(value: Any) -> Judgement:
    if value is None:
        return Judgement(None)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # numpy or torch scalar
        value = value.item()
    if not isinstance(value, Real):
        return Judgement(None, failure=f"returned {type(value).__name__} {value!r:.80}, which is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= MAX_REWARD:
        return Judgement(None, failure=f"returned {number}, which is not a finite number up to {MAX_REWARD:g}")
    return Judgement(number)


def _read_parts(value: Any, size: int | None, shape: str) -> Judgement:
    if value is None:
        return Judgement(None)
    numbers = _as_list(value)
    if numbers is None or (size is not None and len(numbers) != size):
        what = type(value).__name__ if numbers is None else f"{len(numbers)} numbers"
        expected = "a list of numbers" if size is None else f"{size} numbers, one for each {shape}"
        return Judgement(None, failure=f"returned {what} for a rollout, not {expected}")
    parts = []
    for number in numbers:
        judgement = _read_number(number)
        if judgement.value is None:
            return Judgement(None, failure=judgement.failure or f"returned None for a {shape}")
        parts.append(judgement.value)
    return Judgement(math.fsum(parts), parts)


def _raised(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""
    return f"raised {type(error).__name__}: {text[:200]}{where}"


class _Target(Protocol):
    def __call__(self) -> Any: ...


def _in_thread(target: _Target) -> tuple[Future[Any], threading.Thread]:
    """Run in a new daemon thread, which unlike those of an executor is not joined at exit."""
    future: Future[Any] = Future()
    torch = sys.modules.get("torch")
    device: int | None = None
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        device = torch.cuda.current_device()  # a new thread would start on device 0

    def run() -> None:
        try:
            if device is not None:
                sys.modules["torch"].cuda.set_device(device)
            future.set_result(target())
        except BaseException as error:  # SystemExit too: no reward ends the run
            future.set_exception(error)

    thread = threading.Thread(target=run, name="mmrl-reward", daemon=True)
    thread.start()
    return future, thread


class _LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        _, self.thread = _in_thread(self.loop.run_forever)

    def responds(self) -> bool:
        """Whether the loop still turns, or a reward blocks it."""
        turned = threading.Event()
        self.loop.call_soon_threadsafe(turned.set)
        return turned.wait(CANCEL_GRACE_S)


def reward_view(scores: Scores, groups: Sequence[RolloutGroup], masks: Tensor) -> RewardView:
    """Turn rewards of all four shapes into what advantage stages read. Nothing else does.

    Args:
        scores: of N rollouts, in the order of the groups. Its totals may have been shaped since: whatever the step and
            token rewards do not account for belongs to the completion as a whole.
        groups: with B rows in all; rows of the result are in the order groups -> rollouts -> rows.
        masks: bool [B, T], tokens that are trained.

    Returns:
        A view on the device of `masks`. Over the rows of a scored trajectory with a trained token, `token_rewards` add
        up to its total: token rewards stand on their tokens, a step reward on the last trained token of its row, the
        rest of the total on the last trained token of the last row. A row without a trained token passes on what would
        stand there to the last trained token before it in its trajectory, or else to the first row after it that has
        one. In an unscored trajectory all are 0.

    Raises:
        ValueError: the numbers of rollouts, rows or tokens do not agree.

    Example: one group of one rollout with two rows of 2 tokens, all trained, total 1.0, step rewards [0.25, 0.5]:
    `rewards` is [1, 1] and `token_rewards` is [[0, 0.25], [0, 0.75]].
    """
    import torch

    rollouts = [(g, rollout) for g, group in enumerate(groups) for rollout in group.rollouts]
    num_rows = sum(len(rollout.rows) for _, rollout in rollouts)
    if len(rollouts) != len(scores.totals) or num_rows != len(masks):
        raise ValueError(
            f"{len(rollouts)} rollouts with {num_rows} rows, but {len(scores.totals)} totals and {len(masks)} masks"
        )
    longest = max((row.num_actions for _, rollout in rollouts for row in rollout.rows), default=0)
    if longest > masks.shape[1]:
        raise ValueError(f"a row has {longest} actions, but the masks {masks.shape[1]} columns")
    trained = masks.cpu()
    # [B], last trained token of each row, -1 where there is none
    last = [max((t for t, is_trained in enumerate(row) if is_trained), default=-1) for row in trained.tolist()]
    totals = scores.totals.tolist()
    token_rewards = torch.zeros(trained.shape, dtype=torch.float64)
    start = 0
    for n, (_, rollout) in enumerate(rollouts):
        rows = range(start, start + len(rollout.rows))
        start = rows.stop
        if math.isnan(totals[n]):
            continue
        accounted = 0.0
        for of_rollouts in scores.token_rewards.values():
            given = of_rollouts[n].double().cpu()
            accounted += given.sum().item()
            for b, part in zip(rows, given.split([row.num_actions for row in rollout.rows]), strict=True):
                token_rewards[b, : len(part)] += part
        for steps in scores.step_rewards.values():
            accounted += math.fsum(steps[n])
            for b, step_reward in zip(rows, steps[n], strict=True):
                _place(token_rewards, step_reward, b, rows, last)
        rest = totals[n] - accounted
        if rows and abs(rest) > 1e-6 * max(1.0, abs(totals[n])):  # below: rounding of totals to float32
            _place(token_rewards, rest, rows[-1], rows, last)
    of_row = torch.tensor([n for n, (_, rollout) in enumerate(rollouts) for _ in rollout.rows], dtype=torch.int64)
    group_of = torch.tensor([g for g, _ in rollouts], dtype=torch.int64)

    def by_row(values: torch.Tensor) -> torch.Tensor:
        return values.cpu()[of_row].to(masks.device)  # [N] -> [B]

    return RewardView(
        rewards=by_row(scores.totals.float()),
        components={key: by_row(values.float()) for key, values in scores.components.items()},
        weights=dict(scores.weights),
        token_rewards=token_rewards.float().to(masks.device),
        group_ids=by_row(group_of),
        trajectory_ids=of_row.to(masks.device),
        mask=masks,
    )


def _place(token_rewards: Tensor, value: float, b: int, rows: range, last: Sequence[int]) -> None:
    """Add a reward to the last trained token of row b, or of the nearest row of its trajectory that has one."""
    for candidate in [*range(b, rows.start - 1, -1), *range(b + 1, rows.stop)]:
        if last[candidate] >= 0:
            token_rewards[candidate, last[candidate]] += value
            return


@dataclass
class ConstantRewardAlarm:
    """Notices rewards that teach nothing, because every rollout gets the same.

    Attributes:
        patience: steps in a row after which a reward is reported; each reward once.
    """

    patience: int = 50
    _steps: dict[str, int] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)

    def update(self, components: Mapping[str, Tensor]) -> list[str]:
        """Look at one more step.

        Args:
            components: reward -> [N], NaN = unscored. A reward with exactly one scored rollout says nothing, and the
                step does not count for it.

        Returns:
            A message for each reward that has now been constant, or wholly unscored, for `patience` steps.
        """
        messages = []
        for key, values in components.items():
            scored = [value for value in values.tolist() if not math.isnan(value)]
            if len(scored) == 1 or len(values) == 0:
                continue
            constant = not scored or min(scored) == max(scored)
            self._steps[key] = self._steps.get(key, 0) + 1 if constant else 0
            if self._steps[key] >= self.patience and key not in self._reported:
                self._reported.add(key)
                was = f"the same for every rollout (now {scored[0]:g})" if scored else "unscored for every rollout"
                messages.append(
                    f"reward {key!r} was {was} in each of the last {self._steps[key]} steps, so nothing is learnt from "
                    "it. Look at the written rollouts: is it always reached, never reached, or reading the wrong thing?"
                )
        return messages

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"steps": dict(self._steps), "reported": sorted(self._reported)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._steps = dict(state["steps"])
        self._reported = set(state["reported"])

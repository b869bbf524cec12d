"""A reward in a process of its own may crash, exit or hold the interpreter: the run goes on without its scores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrl_core.config.schema import RewardConfig
from mmrl_core.errors import RewardError
from mmrl_core.plugins import load_plugins
from mmrl_core.scoring import IsolatedFunction, RewardRunner
from tests.forked import leave_server

REWARDS = '''
import asyncio, ctypes, os, re, signal

def judge(completions, samples, *, factor=1.0):
    """What each completion says."""
    for completion in completions:
        if completion == "crash":
            ctypes.string_at(0)
        if completion == "exit":
            os._exit(7)
        if completion == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if completion == "hold":  # never lets go of the interpreter
            re.match(r"(a+)+$", "a" * 64 + "b")
        if completion == "raise":
            raise KeyError("gold")
    samples[0].clear()
    return [factor * len(completion) for completion in completions]

async def waits(completions, samples):
    await asyncio.sleep(0)
    return [1.0] * len(completions)
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("isolated") / "mine.py"
    path.write_text(REWARDS)
    return path


def test_only_the_culprit_is_unscored_and_the_process_is_replaced(file: Path) -> None:
    config = RewardConfig(name=f"{file}:judge", isolate=True, factor=2.0)
    runner = RewardRunner(load_plugins(), [config])
    sample = {"gold": 1}
    told = {}
    for word in ("exit", "crash", "killed", "raise"):
        good, bad = runner.judge("judge", ["abc", word], [sample] * 2)
        assert (good.value, bad.value) == (6.0, None)
        told[word] = bad.failure
    assert told["exit"] == "its process exited with code 7"
    assert told["crash"] == "its process died of SIGSEGV" and told["killed"] == "its process died of SIGKILL"
    assert "KeyError: 'gold'" in (told["raise"] or "") and "mine.py:" in (told["raise"] or "")
    assert runner.restarts("judge") == 6  # for the group, and for the culprit alone
    assert sample == {"gold": 1}
    assert [runner.take_restarts(), runner.take_restarts()] == [{"judge": 6}, {"judge": 0}]


def test_one_that_holds_the_interpreter_is_ended_in_its_time(file: Path) -> None:
    runner = RewardRunner(load_plugins(), [RewardConfig(name=f"{file}:judge", isolate=True, timeout_s=1.0)])
    (held,) = runner.judge("judge", ["hold"], [{}])
    assert held.failure == "took longer than 1 s" and runner.restarts("judge") == 1
    assert runner.score_samples("judge", ["abc"], [{}]) == [3.0]


def test_async_rewards_may_be_isolated_too(file: Path) -> None:
    runner = RewardRunner(load_plugins(), [RewardConfig(name=f"{file}:waits", isolate=True)])
    assert runner.score_samples("waits", ["a", "b"], [{}] * 2) == [1.0, 1.0]
    assert runner.restarts("waits") == 0


def test_a_reward_that_does_not_start_says_why(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "once.py"
    path.write_text("def judge(completions, samples):\n    return [1.0] * len(completions)\n")
    config = RewardConfig(name=f"{path}:judge", isolate=True, stop_on_failure=True)
    runner = RewardRunner(load_plugins(), [config])
    path.write_text("raise OSError('no such device')\n")
    with pytest.raises(RewardError, match="does not start in a process of its own: OSError: no such device"):
        runner.score_samples("judge", ["a"], [{}])


@pytest.fixture
def own_server() -> Iterator[None]:
    """The server that processes are forked from ends with the test: it has no other test's imports."""
    yield
    leave_server()


def test_a_forked_function_starts_ahead_and_is_back_at_once_after_a_slow_call(own_server: None) -> None:
    function = IsolatedFunction("sleep", "time:sleep", forked=True)
    function.start()
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        function.call([60.0], {}, timeout_s=0.05)
    assert time.monotonic() - start < 0.9  # a process that has not ended in time gets no second of grace
    assert function.call([0.0], {}, timeout_s=60.0) is None and function.num_restarts == 1

"""Rewards: what they may return, how they may fail, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmrl_core.config.schema import RewardConfig
from mmrl_core.errors import PluginError, RewardError
from mmrl_core.plugins import Plugins, sign_of_style
from mmrl_core.plugins.registry import Registry
from mmrl_core.scoring.call import MAX_HANGING
from mmrl_core.scoring.runner import RewardRunner
from mmrl_core.types import Prompt, Rollout, RolloutGroup, Row

Samples = Sequence[dict[str, Any]]
NAN = math.nan


def runner_of(function: Callable[..., Any], *, details: dict[str, Any] | None = None, **config: Any) -> RewardRunner:
    """A runner with one reward, called 'r'."""
    return RewardRunner(plugins_of(r=(function, details or {})), [RewardConfig(name="r", **config)])


def plugins_of(**rewards: tuple[Callable[..., Any], dict[str, Any]]) -> Plugins:
    registry = Registry()
    for name, (function, details) in rewards.items():
        setattr(sys.modules[__name__], f"registered_{name}", function)
        registry.add("reward", name, f"{__name__}:registered_{name}", "for a test", **details)
    return Plugins({}, registry, {})


def group(*completions: str, sample: dict[str, Any] | None = None, rows: Sequence[Sequence[int]] = ()) -> RolloutGroup:
    """A group whose n-th rollout has rows of rows[n] actions (default: one row of 2)."""
    rollouts = []
    for n, completion in enumerate(completions):
        sizes = rows[n] if rows else [2]
        of_rollout = [
            Row("p", f"p/{n}", None, torch.zeros(size, dtype=torch.int64), size, step_index=i)
            for i, size in enumerate(sizes)
        ]
        rollouts.append(Rollout(of_rollout, completion))
    return RolloutGroup(Prompt("p", [], sample or {}), rollouts)


def lengths(completions: Sequence[str], samples: Samples) -> list[float]:
    return [float(len(completion)) for completion in completions]


def assert_close(actual: torch.Tensor, expected: Sequence[Any]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32), equal_nan=True)


def test_each_group_is_one_call_with_its_own_sample() -> None:
    calls = []

    def reward(completions: Sequence[str], samples: Samples, *, factor: float) -> list[float]:
        calls.append((list(completions), list(samples)))
        return [factor * len(completion) for completion in completions]

    runner = runner_of(reward, weight=0.5, factor=2.0)
    scores = runner.score([group("a", "bb", sample={"id": 1}), group("ccc", "", sample={"id": 2})])
    assert calls == [(["a", "bb"], [{"id": 1}] * 2), (["ccc", ""], [{"id": 2}] * 2)]
    assert_close(scores.components["r"], [2.0, 4.0, 6.0, 0.0])
    assert_close(scores.totals, [1.0, 2.0, 3.0, 0.0])
    assert scores.weights == {"r": 0.5} and scores.failures == {"r": 0}


@pytest.mark.parametrize(
    "returned",
    [
        [1, True],
        (1.0, 1.0),
        np.array([1.0, 1.0]),
        torch.ones(2),
        [np.float32(1), np.bool_(True)],
        [torch.tensor(1.0), 1],
    ],
)
def test_every_kind_of_number_is_a_score(returned: Any) -> None:
    assert runner_of(lambda completions, samples: returned).score_samples("r", ["a", "b"], [{}, {}]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (NAN, "nan"),
        (math.inf, "inf"),
        (-math.inf, "inf"),
        (1e300, "not a finite number"),
        (10**400, "inf"),
        ("1.0", "str '1.0'"),
        ([1.0], "list"),
        (np.float64("nan"), "nan"),
        (1j, "complex"),
    ],
)
def test_what_is_no_finite_number_is_unscored_and_counted(value: Any, reason: str) -> None:
    runner = runner_of(lambda completions, samples: [1.0, value])
    scores = runner.score([group("a", "b")])
    assert_close(scores.totals, [1.0, NAN])
    assert scores.failures == {"r": 1}
    assert reason in runner.failure_reasons["r"][0]


def test_none_is_unscored_but_no_failure() -> None:
    runner = runner_of(lambda completions, samples: [None, 0.0])
    scores = runner.score([group("a", "b")])
    assert_close(scores.components["r"], [NAN, 0.0])
    assert scores.failures == {"r": 0} and runner.failure_reasons == {}


@pytest.mark.parametrize("returned", [[1.0], [1.0, 2.0, 3.0], 1.0, None, "ab", {"a": 1, "b": 2}, torch.tensor(1.0)])
def test_wrong_length_or_type_leaves_the_group_unscored(returned: Any) -> None:
    runner = runner_of(lambda completions, samples: returned)
    assert runner.score_samples("r", ["a", "b"], [{}, {}]) == [None, None]
    assert "for 2 completions" in runner.failure_reasons["r"][0]


def test_only_the_culprit_of_a_raising_group_is_unscored() -> None:
    runner = runner_of(lambda completions, samples: [1 / len(completion) for completion in completions])
    scores = runner.score([group("a", "", "bb"), group("cccc", "dddd")])
    assert_close(scores.totals, [1.0, NAN, 0.5, 0.25, 0.25])
    assert scores.failures == {"r": 1}
    assert "ZeroDivisionError: division by zero" in runner.failure_reasons["r"][0]
    assert "test_runner.py" in runner.failure_reasons["r"][0]


def test_completions_judged_jointly_are_never_scored_apart() -> None:
    sizes = []

    def reward(completions: Sequence[str], samples: Samples) -> list[float]:
        sizes.append(len(completions))
        raise ValueError("no judge")

    runner = runner_of(reward, details={"shape": "group"})
    assert runner.score_samples("r", ["a", "b"], [{}, {}]) == [None, None]
    assert sizes == [2]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), RecursionError("deep"), TimeoutError("mine")])
def test_nothing_that_a_reward_raises_ends_the_run(error: BaseException) -> None:
    def reward(completions: Sequence[str], samples: Samples) -> list[float]:
        raise error

    async def async_reward(completions: Sequence[str], samples: Samples) -> list[float]:
        raise error

    assert runner_of(reward).score_samples("r", ["a"], [{}]) == [None]
    if isinstance(error, Exception):
        assert runner_of(async_reward).score_samples("r", ["a"], [{}]) == [None]


def test_a_reward_cannot_harm_others_through_its_arguments() -> None:
    def reward(completions: list[str], samples: list[dict[str, Any]]) -> list[float]:
        completions.clear()
        samples.clear()
        raise ValueError

    plugins = plugins_of(bad=(reward, {}), good=(lengths, {}))
    scores = RewardRunner(plugins, [RewardConfig(name="bad"), RewardConfig(name="good")]).score([group("a", "bb")])
    assert_close(scores.components["good"], [1.0, 2.0])
    assert scores.failures == {"bad": 2, "good": 0}


def test_a_hanging_reward_is_abandoned_and_other_groups_are_scored() -> None:
    release = threading.Event()

    def reward(completions: Sequence[str], samples: Samples) -> list[float]:
        if "hang" in completions:
            release.wait(30)
        return [1.0] * len(completions)

    runner = runner_of(reward, timeout_s=0.2)
    start = time.monotonic()
    scores = runner.score([group("a", "hang"), group("b", "c")])
    assert time.monotonic() - start < 5
    assert_close(scores.totals, [NAN, NAN, 1.0, 1.0])
    assert runner.failure_reasons["r"] == ["took longer than 0.2 s"]
    release.set()


def test_a_reward_that_always_hangs_is_called_no_more() -> None:
    release = threading.Event()
    calls = []

    def reward(completions: Sequence[str], samples: Samples) -> list[float]:
        calls.append(1)
        release.wait(30)
        return [1.0] * len(completions)

    runner = runner_of(reward, timeout_s=0.02)
    runner.score([group("a") for _ in range(MAX_HANGING + 5)])
    assert len(calls) == MAX_HANGING
    assert "earlier calls of it still hang" in runner.failure_reasons["r"][1]
    release.set()
    deadline = time.monotonic() + 5
    while runner.score_samples("r", ["a"], [{}]) != [1.0]:  # once they have ended, it is called again
        assert time.monotonic() < deadline


def test_a_hanging_reward_does_not_hold_up_the_end_of_the_process() -> None:
    program = """
import sys, time, types
from mmrl_core.config.schema import RewardConfig
from mmrl_core.plugins import Plugins
from mmrl_core.plugins.registry import Registry
from mmrl_core.scoring.runner import RewardRunner
module = sys.modules["hanging"] = types.ModuleType("hanging")
async def blocks(completions, samples): time.sleep(60)
module.hangs = lambda completions, samples: time.sleep(60)
module.blocks = blocks
registry = Registry()
registry.add("reward", "hangs", "hanging:hangs", "")
registry.add("reward", "blocks", "hanging:blocks", "")
runner = RewardRunner(Plugins({}, registry, {}), [RewardConfig(name=n, timeout_s=0.1) for n in ("hangs", "blocks")])
print(runner.score_samples("hangs", ["a"], [{}]), runner.score_samples("blocks", ["a"], [{}]), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=45)
    assert done.stdout == "[None] [None] False\n", done.stderr  # and scoring lines needs no torch


def test_async_groups_run_at_once_and_the_late_one_is_cancelled() -> None:
    cancelled = []

    async def reward(completions: Sequence[str], samples: Samples) -> list[float]:
        try:
            await asyncio.sleep(30 if "hang" in completions else 0.2)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise
        return [1.0] * len(completions)

    runner = runner_of(reward, timeout_s=2.0)
    start = time.monotonic()
    scores = runner.score([group("a"), group("hang"), *(group("b") for _ in range(20))])
    assert time.monotonic() - start < 4
    assert_close(scores.totals, [1.0, NAN, *[1.0] * 20])
    assert cancelled == [1]


def test_an_async_reward_keeps_one_event_loop() -> None:
    loops = set()

    async def reward(completions: Sequence[str], samples: Samples) -> list[float]:
        loops.add(id(asyncio.get_running_loop()))
        return [1 / len(completion) for completion in completions]

    runner = runner_of(reward)
    assert runner.score_samples("r", ["a", "", "bb"], [{}] * 3) == [1.0, None, 0.5]
    assert runner.score_samples("r", ["a"], [{}]) == [1.0]
    assert len(loops) == 1


def test_an_async_reward_that_blocks_its_loop_gets_a_new_one() -> None:
    async def reward(completions: Sequence[str], samples: Samples) -> list[float]:
        if completions[0] == "block":
            time.sleep(6)
        return [1.0]

    runner = runner_of(reward, timeout_s=0.1)
    assert runner.score_samples("r", ["block"], [{}]) == [None]
    assert runner.score_samples("r", ["a"], [{}]) == [1.0]


def test_rewards_run_side_by_side() -> None:
    barrier = threading.Barrier(2, timeout=10)

    def reward(completions: Sequence[str], samples: Samples) -> list[float]:
        barrier.wait()
        return [1.0] * len(completions)

    runner = RewardRunner(plugins_of(a=(reward, {}), b=(reward, {})), [RewardConfig(name="a"), RewardConfig(name="b")])
    assert_close(runner.score([group("x", "y")]).totals, [2.0, 2.0])


def test_a_reward_that_is_to_stop_the_run_raises_with_its_name_and_the_reason() -> None:
    runner = runner_of(lambda completions, samples: [NAN], stop_on_failure=True)
    with pytest.raises(RewardError, match="reward 'r' failed: returned nan"):
        runner.score([group("a")])


def test_the_first_failure_is_logged_once_with_the_id(caplog: pytest.LogCaptureFixture) -> None:
    runner = runner_of(lambda completions, samples: [NAN, "x"])
    runner.score([group("a", "b"), group("a", "b")])
    assert len(caplog.records) == 1
    assert "reward 'r' failed: returned nan" in caplog.text
    assert len(runner.failure_reasons["r"]) == 2


def test_rewards_may_ask_for_rollouts() -> None:
    def reward(completions: Sequence[str], samples: Samples, rollouts: Sequence[Rollout]) -> list[float]:
        return [float(rollout.num_actions) for rollout in rollouts]

    runner = runner_of(reward)
    assert_close(runner.score([group("a", "b", rows=[[2, 3], [4]])]).totals, [5.0, 4.0])
    with pytest.raises(RewardError, match="only within a run"):
        runner.score_samples("r", ["a"], [{}])


def test_rollouts_with_a_default_can_be_done_without() -> None:
    def reward(completions: Sequence[str], samples: Samples, *, rollouts: Any = None) -> list[float]:
        return [float(rollouts is not None)] * len(completions)

    runner = runner_of(reward)
    assert runner.score_samples("r", ["a"], [{}]) == [0.0]
    assert_close(runner.score([group("a")]).totals, [1.0])


@pytest.mark.parametrize(
    ("config", "details", "message"),
    [
        ({"facter": 2.0}, {}, "reward 'core/r': no option 'facter'. Did you mean 'factor'?"),
        ({}, {}, "reward 'core/r': missing option 'factor', which has no default."),
        ({"factor": "2"}, {}, "reward 'core/r': option 'factor' should be a number; got '2'."),
        ({"factor": 1.0}, {"shape": "words"}, "shape 'words'; shapes: completion, step, token, group"),
    ],
)
def test_wrong_declarations_are_refused_before_the_run(
    config: dict[str, Any], details: dict[str, Any], message: str
) -> None:
    def reward(completions: Sequence[str], samples: Samples, *, factor: float) -> list[float]:
        return [factor]

    with pytest.raises((PluginError, RewardError)) as caught:
        runner_of(reward, details=details, **config)
    assert message in str(caught.value)


def of_trl(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    return [1.0] * len(completions)


def of_trl_by_keywords(completions: Any, **kwargs: Any) -> list[float]:
    return [1.0] * len(completions)


def of_trl_with_ids(completions: Any, solution: Any, completion_ids: Any, **kwargs: Any) -> list[float]:
    return [1.0] * len(completions)


def of_trl_with_a_log(completions: Any, solution: Any, log_metric: Any = None, **kwargs: Any) -> list[float]:
    return [1.0] * len(completions)


def without_rows(completions: Any) -> list[float]:
    return [1.0] * len(completions)


@pytest.mark.parametrize("function", [of_trl, of_trl_by_keywords, of_trl_with_ids, of_trl_with_a_log, without_rows])
def test_a_reward_that_was_written_to_be_called_otherwise_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(RewardError, match=r"Rewards are called as \(completions, samples, \*\*options\)") as caught:
        runner_of(function)
    assert ("written for TRL?" in str(caught.value)) == (function is not without_rows)


def test_a_column_as_second_argument_is_a_sign_of_trl() -> None:
    def reward(completions: Any, solution: Any, **kwargs: Any) -> list[float]:
        return [1.0] * len(completions)

    assert sign_of_style(reward) is None and sign_of_style(lengths, ["samples_of"]) is None
    style, sign = sign_of_style(reward, ["problem", "solution"]) or ("", "")
    assert style == "trl" and "takes the column 'solution' as its second argument" in sign


def test_what_a_reward_writes_into_its_arguments_nobody_else_sees() -> None:
    media, array, seen = object(), np.zeros(2), []

    def writes(completions: list[Any], samples: list[dict[str, Any]]) -> list[float]:
        for sample in samples:
            sample["boxes"][0].append(9)
            sample.pop("answer")
            assert sample["image"] is media
        for frames in completions:
            frames.clear()
        return [1.0] * len(completions)

    def writes_into_arrays(completions: list[Any], samples: list[dict[str, Any]]) -> list[float]:
        samples[0]["array"] += 1
        return [1.0] * len(completions)

    def reads(completions: list[Any], samples: list[dict[str, Any]]) -> list[float]:
        seen.append((completions, samples))
        return [1.0] * len(completions)

    sample = {"boxes": [[1, 2]], "answer": "A", "image": media, "array": array}
    group_of = RolloutGroup(Prompt("p", [], sample), [replace(r, completion=[r]) for r in group("a", "b").rollouts])
    rewards = {"first": (writes, {}), "arrays": (writes_into_arrays, {}), "last": (reads, {})}
    runner = RewardRunner(plugins_of(**rewards), [RewardConfig(name=name) for name in rewards])
    for _ in range(2):  # and nothing persists from step to step
        scores = runner.score([group_of])
        assert scores.failures == {"first": 0, "arrays": 2, "last": 0}
        completions, samples = seen.pop()
        assert [(row["boxes"], row["answer"]) for row in samples] == [([[1, 2]], "A")] * 2
        assert [len(frames) for frames in completions] == [1, 1]
    assert sample["boxes"] == [[1, 2]] and array.sum() == 0
    assert "read-only" in runner.failure_reasons["arrays"][0]


def test_completions_left_unscored_without_a_failure_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    def reward(completions: Sequence[str], samples: Samples) -> list[float | None]:
        return [None if not sample.get("gold") else 1.0 for sample in samples]

    runner = runner_of(reward)
    for _ in range(2):
        runner.score([group("a", sample={"gold": 1}), group("a", "b")])
    (record,) = caplog.records
    assert "reward 'r' left 2 of 2 completions of prompt p unscored" in record.getMessage()


def test_two_rewards_of_one_name_need_labels() -> None:
    plugins = plugins_of(r=(lengths, {}))
    with pytest.raises(RewardError, match="label"):
        RewardRunner(plugins, [RewardConfig(name="r"), RewardConfig(name="r")])
    runner = RewardRunner(plugins, [RewardConfig(name="r"), RewardConfig(name="r", label="again")])
    assert runner.keys == ["r", "again"]
    with pytest.raises(PluginError, match="no installed plugin provides reward 'nothing'"):
        RewardRunner(plugins, [RewardConfig(name="nothing")])


def test_neighbours_with_equal_samples_are_scored_as_a_group() -> None:
    calls = []

    def reward(completions: Sequence[str], samples: Samples) -> list[float]:
        calls.append("".join(completions))
        return [1.0] * len(completions)

    runner = runner_of(reward)
    assert runner.score_samples("r", list("abcd"), [{"i": 0}, {"i": 0}, {"i": 1}, {"i": 0}]) == [1.0] * 4
    assert calls == ["ab", "c", "d"]
    assert runner.score_samples("r", [], []) == []
    assert json.dumps(runner.score_samples("r", ["a"], [{}])) == "[1.0]"


def test_totals_of_a_group_are_sums_over_the_same_components() -> None:
    # Worked by hand. x: [1, 2 | 3, 4], y: for the first group only, and there not for the second rollout in the third.
    def x(completions: Sequence[str], samples: Samples) -> list[float]:
        return [1.0, 2.0]

    def y(completions: Sequence[str], samples: Samples) -> list[float | None]:
        return {"all": [10.0, 20.0], "none": [None, None], "some": [10.0, None]}[samples[0]["y"]]

    plugins = plugins_of(x=(x, {}), y=(y, {}))
    configs = [RewardConfig(name="x"), RewardConfig(name="y", weight=0.5)]
    groups = [group("a", "b", sample={"y": kind}) for kind in ("all", "none", "some")]
    assert_close(RewardRunner(plugins, configs).score(groups).totals, [6.0, 12.0, 1.0, 2.0, 6.0, NAN])
    only_reported = [RewardConfig(name="x"), RewardConfig(name="y", weight=0.0)]
    assert_close(RewardRunner(plugins, only_reported).score(groups).totals, [1.0, 2.0] * 3)


def test_a_failed_component_leaves_the_total_unscored() -> None:
    plugins = plugins_of(x=(lengths, {}), y=(lambda completions, samples: None, {}))
    scores = RewardRunner(plugins, [RewardConfig(name="x"), RewardConfig(name="y")]).score([group("a", "b")])
    assert_close(scores.totals, [NAN, NAN])
    assert_close(scores.components["x"], [1.0, 1.0])


def test_step_rewards_are_summed_weighted_and_checked() -> None:
    runner = runner_of(
        lambda completions, samples: [[0.25, 0.5], [1.0], None, [1.0, 2.0], [NAN]],
        details={"shape": "step"},
        weight=2.0,
    )
    scores = runner.score([group(*"abcde", rows=[[1, 1], [3], [2], [4], [1]])])
    assert_close(scores.components["r"], [0.75, 1.0, NAN, NAN, NAN])
    assert_close(scores.totals, [1.5, 2.0, NAN, NAN, NAN])
    assert scores.step_rewards["r"] == [[0.5, 1.0], [2.0], [0.0], [0.0], [0.0]]
    assert scores.failures == {"r": 2}
    assert "returned 2 numbers for a rollout, not 1 numbers, one for each step" in runner.failure_reasons["r"][0]


def test_token_rewards_cover_the_actions_of_all_rows() -> None:
    runner = runner_of(
        lambda completions, samples: [torch.tensor([1.0, 2.0, 3.0]), np.zeros(2), [1.0]], details={"shape": "token"}
    )
    scores = runner.score([group(*"abc", rows=[[1, 2], [2], [2]])])
    assert_close(scores.totals, [6.0, 0.0, NAN])
    assert [values.tolist() for values in scores.token_rewards["r"]] == [[1.0, 2.0, 3.0], [0.0, 0.0], [0.0, 0.0]]
    assert runner.score_samples("r", list("abc"), [{}] * 3) == [6.0, 0.0, 1.0]


FILE_REWARDS = """
async def judge(completions, samples):
    return [None if c == "unscored" else 2.0 for c in completions]

def each_step(completions, samples):
    return [[1.0, 0.5]] * len(completions)

each_step.shape, each_step.maximum = "step", 1.5

def nonsense(completions, samples):
    return []

nonsense.maximum = "two"
"""


def test_a_function_from_a_file_declares_its_details_as_attributes(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FILE_REWARDS)

    def runner(name: str) -> RewardRunner:
        return RewardRunner(Plugins({}, Registry(), {}), [RewardConfig(name=f"{path}:{name}")])

    steps = runner("each_step")
    assert steps.maximum("each_step") == 1.5
    assert steps.score([group("a", rows=[[1, 1]])]).step_rewards == {"each_step": [[1.0, 0.5]]}
    assert runner("judge").maximum("judge") is None, "it has promised nothing"
    with pytest.raises(RewardError, match="is declared with maximum 'two', which is no number"):
        runner("nonsense")
    assert runner_of(lengths).maximum("r") == 1.0

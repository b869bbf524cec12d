"""Rewards written for TRL, verl, ms-swift and EasyR1 score here what they score there, under the rules of our own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl_core.config import RewardConfig, load_reward
from mmrl_core.errors import MMRLError, RewardError
from mmrl_core.plugins import load_plugins
from mmrl_core.scoring.runner import RewardRunner
from mmrl_core.types import Prompt, Rollout, RolloutGroup, Row

PEERS = Path(__file__).parents[2] / "data" / "peers"
THOUGHT = "<think>\nso\n</think>\n"
TRL = {"prompt": [{"role": "system", "content": "Think in <think> tags."}, {"role": "user", "content": "1+1?"}]}
VERL = {
    "prompt": [{"role": "user", "content": "1+1?"}],
    "data_source": "hiyouga/geometry3k",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 7},
}
GSM8K = VERL | {"data_source": "openai/gsm8k"}
SWIFT = {"messages": [{"role": "user", "content": "1+1?"}], "solution": "2"}
EASYR1 = {"problem": "1+1?", "answer": "2"}
BOX, WRONG = "\\boxed{2}", "\\boxed{3}"

CASES: list[tuple[str, dict[str, Any], dict[str, Any], list[str], list[float | None]]] = [
    ("trl_vlm.py:accuracy_reward", {"style": "trl"}, TRL | {"solution": "2"}, [THOUGHT + "2", "3"], [1.0, 0.0]),
    ("trl_vlm.py:accuracy_reward", {"style": "trl"}, TRL | {"solution": None}, ["2", "3"], [None, None]),
    (
        "trl_vlm.py:accuracy_reward",
        {"style": "trl", "columns": {"solution": "gold"}},
        TRL | {"gold": "2"},
        ["2"],
        [1.0],
    ),
    ("trl_vlm.py:think_format_reward", {"style": "trl"}, TRL, [THOUGHT + "2", "2"], [1.0, 0.0]),
    (
        "open_r1.py:accuracy_reward",
        {"style": "trl"},
        {"problem": "", "solution": BOX},
        [BOX, WRONG, ""],
        [1.0, 0.0, 0.0],
    ),
    ("open_r1.py:accuracy_reward", {"style": "trl"}, {"problem": "", "solution": "2"}, [BOX], [None]),
    ("open_r1.py:tag_count_reward", {"style": "trl"}, {"problem": ""}, [THOUGHT, ""], [0.5, 0.0]),
    ("open_r1.py:length_reward", {"style": "trl"}, TRL | {"solution": ""}, ["x" * 25], [0.75]),
    ("verl_scores.py:compute_score", {"style": "verl"}, GSM8K, ["#### 2", "2", "#### 1,0"], [1.0, 0.0, 0.0]),
    ("verl_scores.py:compute_score", {"style": "verl", "format_score": 0.1}, GSM8K, ["#### 1,0"], [0.1]),
    ("verl_scores.py:compute_score", {"style": "verl"}, VERL, [f"<think>a</think>{BOX}", BOX, ""], [1.0, 0.9, 0.0]),
    ("verl_scores.py:compute_score", {"style": "verl", "result": "acc"}, VERL, [BOX, WRONG], [1.0, 0.0]),
    ("verl_scores.py:compute_score_batch", {"style": "verl"}, VERL, ["is 2", "is 3"], [1.0, 0.0]),
    ("verl_scores.py:compute_score_elsewhere", {"style": "verl"}, EASYR1, ["12345", "1"], [0.5, 0.1]),
    ("easyr1_math.py:compute_score", {"style": "easyr1"}, EASYR1, [f"<think>a</think>{BOX}", BOX, ""], [1.0, 0.9, 0.0]),
    ("easyr1_math.py:compute_score", {"style": "easyr1", "format_weight": 0.25}, EASYR1, [BOX], [0.75]),
    ("easyr1_math.py:compute_score", {"style": "easyr1", "result": "format"}, EASYR1, [BOX], [0.0]),
    ("easyr1_math.py:compute_score_of_one", {"style": "easyr1"}, EASYR1, [BOX, "< think >a</think>" + BOX], [0.5, 1.0]),
    ("easyr1_math.py:compute_score_as_before", {"style": "easyr1"}, VERL | {"answer": "2"}, [BOX], [0.9]),
    ("swift_plugin.py:BoxAccuracy", {"style": "swift"}, SWIFT, [BOX, WRONG], [1.0, 0.0]),
    ("swift_plugin.py:Brevity", {"style": "swift"}, SWIFT, ["x" * 50], [0.5]),
    ("swift_plugin.py:Brevity", {"style": "swift", "max_chars": 200}, SWIFT, ["x" * 50], [0.75]),
    ("swift_plugin.py:Asked", {"style": "swift"}, SWIFT, ["x", "?"], [0.5, None]),
]


def runner_of(name: str, **config: Any) -> RewardRunner:
    return RewardRunner(load_plugins(), [RewardConfig(name=f"{PEERS}/{name}", **config)])


@pytest.mark.parametrize(("name", "config", "sample", "completions", "scores"), CASES)
def test_a_reward_of_another_framework_scores_as_there(name, config, sample, completions, scores) -> None:
    runner = runner_of(name, **config)
    judged = runner.judge(runner.keys[0], completions, [sample] * len(completions))
    assert [judgement.failure for judgement in judged] == [None] * len(scores)
    assert [judgement.value for judgement in judged] == pytest.approx(scores)
    assert "swift" not in sys.modules


@pytest.mark.parametrize("number", [3, 8, 20], ids=lambda number: CASES[number][0])
def test_they_run_in_processes_of_their_own(number) -> None:
    name, config, sample, completions, scores = CASES[number]
    runner = runner_of(name, isolate=True, **config)
    assert runner.score_samples(runner.keys[0], completions, [sample] * len(completions)) == pytest.approx(scores)


def file_reward(folder: Path, code: str) -> str:
    (folder / "mine.py").write_text("import asyncio, time\n" + code)
    return f"{folder}/mine.py:reward"


def group_of(sample: dict[str, Any], *completions: str) -> RolloutGroup:
    messages = [{"role": "user", "content": [{"type": "image", "image": object()}, {"type": "text", "text": "What?"}]}]
    rollouts = [
        Rollout([Row("p", str(i), None, torch.tensor([5, 6, 7 + i]), 3)], text) for i, text in enumerate(completions)
    ]
    return RolloutGroup(Prompt("p", messages, sample), rollouts)


def test_what_a_run_alone_knows_is_passed_to_those_that_ask(tmp_path) -> None:
    code = "def reward(prompts, completions, completion_ids, **kwargs):\n    assert prompts[0] == "
    code += "[{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'What?'}]}], prompts\n"
    code += "    return [ids[-1] for ids in completion_ids]\n"
    runner = RewardRunner(load_plugins(), [RewardConfig(name=file_reward(tmp_path, code), style="trl")])
    assert runner.score([group_of({}, "a", "b")]).totals.tolist() == [7.0, 8.0]
    with pytest.raises(RewardError, match="scores only within a run"):
        runner.judge("reward", ["a"], [{}])
    own = "def reward(completions, samples, *, prompts):\n    return [len(messages) for messages in prompts]\n"
    (tmp_path / "own").mkdir()
    runner = RewardRunner(load_plugins(), [RewardConfig(name=file_reward(tmp_path / "own", own))])
    assert runner.score([group_of({}, "a", "b")]).totals.tolist() == [1.0, 1.0]
    lengths = runner_of("easyr1_math.py:compute_score_with_length", style="easyr1")
    assert lengths.score([group_of(EASYR1, "a", "b")]).totals.tolist() == [-3.0, -3.0]


@pytest.mark.parametrize(
    ("code", "style", "failures"),
    [
        ("def reward(completions, **kwargs):\n    return 1.0\n", "trl", ["returned float for 2 completions"] * 2),
        ("def reward(completions, **kwargs):\n    time.sleep(9)\n", "trl", ["took longer than 0.2 s"] * 2),
        (
            "async def reward(completions, **kwargs):\n    await asyncio.sleep(9)\n",
            "trl",
            ["took longer than 0.2 s"] * 2,
        ),
        (
            "def reward(solution_str, ground_truth):\n    return 1 / len(solution_str)\n",
            "verl",
            [None, "raised ZeroDiv"],
        ),
        (
            "def reward(solution_str):\n    return {'acc': 1}\n",
            "verl",
            ["it returned a dict with no entry 'score': acc"] * 2,
        ),
        ("def reward(completions, target, **kwargs):\n    return []\n", "trl", ["and the row has no such column"] * 2),
        ("def reward(reward_inputs):\n    return []\n", "easyr1", ["returned 0 results for 2 completions"] * 2),
    ],
)
def test_their_failures_leave_completions_unscored_with_the_reason(tmp_path, code, style, failures) -> None:
    config = RewardConfig(name=file_reward(tmp_path, code), style=style, timeout_s=0.2)
    judged = RewardRunner(load_plugins(), [config]).judge("reward", ["a", ""], [{"answer": "2"}] * 2)
    for judgement, failure in zip(judged, failures, strict=True):
        assert (judgement.failure or "") == "" if failure is None else failure in str(judgement.failure)
        assert (judgement.value is None) == (failure is not None)


def test_a_row_without_gold_says_which_columns_there_are(tmp_path) -> None:
    runner = runner_of("verl_scores.py:compute_score_batch", style="verl")
    (judgement,) = runner.judge("compute_score_batch", ["2"], [{"result": "2"}])
    assert "the row has no gold" in str(judgement.failure) and "Columns: result" in str(judgement.failure)
    wrong = runner_of("trl_vlm.py:accuracy_reward", style="trl", columns={"solution": "gold"})
    (judgement,) = wrong.judge("accuracy_reward", ["2"], [{"golden": "2"}])
    assert "the row has no column 'gold'. Columns: golden" in str(judgement.failure)
    named = runner_of("verl_scores.py:compute_score_batch", style="verl", columns={"ground_truth": "result"})
    assert named.score_samples("compute_score_batch", ["2"], [{"result": "2"}]) == [1.0]


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("trl_vlm.py:think_format_reward", "trl"),
        ("open_r1.py:tag_count_reward", "trl"),
        ("verl_scores.py:compute_score", "verl"),
        ("verl_scores.py:compute_score_batch", "verl"),
        ("easyr1_math.py:compute_score", "easyr1"),
        ("easyr1_math.py:compute_score_of_one", "easyr1"),
        ("easyr1_math.py:compute_score_as_before", "easyr1"),
        ("swift_plugin.py:BoxAccuracy", "swift"),
        ("swift_plugin.py:Asked", "swift"),
    ],
)
def test_the_style_of_a_reward_is_proposed_where_its_parameters_show_it(name, style) -> None:
    with pytest.raises(MMRLError, match=f"Set style: {style}"):
        load_reward(f"{PEERS}/{name}")
    with pytest.raises(RewardError, match=f"Set style: {style}"):
        runner_of(name)
    assert load_reward(f"{PEERS}/{name}", [f"style={style}"]).style == style


STATE = "it reads 'trainer_state', which {} passes and a run here does not: its scores would differ. Write it without."
ORM = "class reward:\n    def __call__(self, completions, **kwargs):\n        return [kwargs['trainer_state'].epoch]\n"


@pytest.mark.parametrize(
    ("style", "code", "problem"),
    [
        ("trl", "def reward(completions, trainer_state, **kwargs):\n    return [1.0]\n", STATE.format("TRL")),
        ("trl_text", "def reward(completions, trainer_state=None):\n    return [1.0]\n", STATE.format("TRL")),
        ("trl", "async def reward(completions, **k):\n    return [k.get('trainer_state')]\n", STATE.format("TRL")),
        (
            "trl",
            "def reward(completions, environments, **k):\n    return [1.0]\n",
            "it reads 'environments', which TRL",
        ),
        ("swift", ORM, STATE.format("ms-swift")),
        (
            "trl",
            "def reward(completions, log_metric, **k):\n    return [1.0]\n",
            "it needs 'log_metric', and nothing is logged here; give that parameter a default.",
        ),
    ],
)
def test_a_reward_that_reads_what_is_not_passed_is_refused_when_it_is_read(tmp_path, style, code, problem) -> None:
    with pytest.raises(MMRLError) as caught:
        load_reward(file_reward(tmp_path, code), [f"style={style}"])
    assert problem in str(caught.value)


def test_a_reward_that_only_writes_down_more_elsewhere_scores_here(tmp_path) -> None:
    code = "def reward(completions, log_extra=None, log_metric=None, **kwargs):\n"
    code += "    assert log_extra is None and log_metric is None and 'trainer' not in kwargs\n    return [1.0]\n"
    runner = RewardRunner(load_plugins(), [RewardConfig(name=file_reward(tmp_path, code), style="trl")])
    assert runner.score([group_of({}, "a")]).totals.tolist() == [1.0]


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("easyr1_math.py:compute_score", ["style=easyr1", "format_wieght=1"], "Did you mean 'format_weight'?"),
        ("easyr1_math.py:compute_score", ["style=easyr1", "format_weight=much"], "option 'format_weight' should be"),
        ("swift_plugin.py:Brevity", ["style=swift", "max_char=1"], "Did you mean 'max_chars'?"),
        ("swift_plugin.py:Brevity", ["style=trl"], "it is a class, as rewards of style 'swift' are"),
        ("trl_vlm.py:accuracy_reward", ["style=verlo"], "'style' should be 'trl', 'trl_text', 'verl', 'swift'"),
        ("easyr1_math.py:compute_score", ["style=verl"], "style 'verl' is for rewards with a parameter 'solution_str'"),
        ("trl_vlm.py:text_of", ["columns={a: b}"], "'columns' is for rewards with a 'style'"),
    ],
)
def test_wrong_options_of_a_reward_in_a_style_are_found_when_the_config_is_read(name, options, problem) -> None:
    with pytest.raises(MMRLError) as caught:
        load_reward(f"{PEERS}/{name}", options)
    assert problem in str(caught.value)

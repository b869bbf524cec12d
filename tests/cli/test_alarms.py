"""Runs that cannot teach anything say so: rewards that score nothing, weights and logits that are no numbers."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrl_core.cli import main
from mmrl_core.runs import read_metrics
from mmrl_core.testing import build_tiny

REWARDS = """
def spread(completions, samples):
    return [sum(map(ord, completion)) % 97 / 96 for completion in completions]

def crashes(completions, samples):
    return [sample["gold"] for sample in samples]

def silent(completions, samples):
    return [None for _ in completions]

def sometimes(completions, samples):
    return [None if sample["number"] % 2 else 1.0 for sample in samples]

def dies(completions, samples):
    import os
    os._exit(3)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    build_tiny("qwen2", folder)
    return folder


@pytest.fixture
def task(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """`task(*rewards, steps=..., **sections)` writes a task, and returns a command line that trains it."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(model)
    Path("mine.py").write_text(REWARDS)
    Path("rows.jsonl").write_text("".join(json.dumps({"question": f"{n}?", "number": n}) + "\n" for n in range(4)))

    def write(*rewards: str, steps: int = 2, **sections: Any) -> list[str]:
        config = {
            "name": "mine",
            "model": {"path": "model"},
            "data": {"train": {"path": "rows.jsonl"}},
            "prompt": {"text": "{question}"},
            "rewards": [f"mine.py:{reward}" for reward in rewards],
            "rollout": {"max_tokens": 4},
            "stages": [{"kind": "grpo", "steps": steps, "prompts_per_step": 2, "group_size": 2}],
        }
        Path("task.yaml").write_text(json.dumps(config | sections))
        return ["train", "task.yaml", "--output", "run"]

    yield write


def records(kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(Path("run")) if record["kind"] == kind]


@pytest.mark.parametrize(
    ("reward", "cause"),
    [("crashes", "reward 'crashes' raised KeyError: 'gold'"), ("silent", "left every completion unscored (None)")],
)
def test_a_run_whose_rewards_score_nothing_stops_with_their_error_and_goes_on_when_mended(task, reward, cause, capsys):
    command = task(reward, steps=4, algorithm={"max_unscored_steps": 2})
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "the rewards scored no rollout in the last 2 steps, 1 to 2" in told and cause in told
    (alarm,) = records("alarm")
    assert (alarm["name"], alarm["step"]) == ("unscored_run", 2) and cause in alarm["message"]
    assert [(r["step"], r["unscored"], r[f"unscored/{reward}"]) for r in records("step")] == [(1, 1, 1), (2, 1, 1)]
    for name in [name for name in sys.modules if name.startswith("mmrl_file_mine")]:
        del sys.modules[name]  # as in another process
    Path("mine.py").write_text(REWARDS + f"\n{reward} = spread\n")
    assert main([*command, "--resume"]) == 0, capsys.readouterr().err
    assert [record["step"] for record in records("step")] == [1, 2, 3, 4]


RAISING = """
import torch

def fails(*anything, **more):
    values = [1.0]
    return values[len(anything)]  # IndexError

def loss(inputs):
    return torch.zeros(2, 3) + torch.zeros(4, 5)

loss.needs = ("raising.py:statistic",)

def statistic(logits, tokens):
    return {}["likeliest"]

def plain_loss(inputs):
    return fails(inputs)

def unnamed():
    pass
"""


@pytest.mark.parametrize(
    ("section", "first", "code"),
    [
        ({"algorithm": {"loss": "raising.py:plain_loss"}}, "loss 'raising.py:plain_loss' raised IndexError: ", "fails"),
        ({"algorithm": {"loss": "raising.py:unnamed"}}, "loss 'raising.py:unnamed' raised TypeError: unnamed()", None),
        ({"algorithm": {"loss": "raising.py:loss"}}, "statistic 'raising.py:statistic' raised ", "statistic"),
        ({"algorithm": {"advantage": ["raising.py:fails"]}}, "advantage 'raising.py:fails' raised ", "fails"),
        ({"rollout": {"strategy": "raising.py:fails"}}, "strategy 'raising.py:fails' raised IndexError: ", "fails"),
        ({"eval": {"metrics": ["raising.py:fails"]}}, "metric 'raising.py:fails' raised IndexError: ", "fails"),
    ],
)
def test_what_code_of_a_file_raises_begins_with_whose_it_is_and_shows_that_code_alone(
    section, first, code, task, capsys
):
    Path("raising.py").write_text(RAISING)
    more = {"data": {"train": {"path": "rows.jsonl"}, "held_out": {"path": "rows.jsonl"}}} if "eval" in section else {}
    assert main(task("spread", steps=1, **section, **more)) == 1
    told = capsys.readouterr().err
    told = told[told.index("mmrl: ") :]
    assert told.startswith(f"mmrl: {first}"), told
    assert told.count(" in ") == 0 if code is None else 'raising.py", line' in told and f"in {code}" in told
    assert "trainer.py" not in told and "registry.py" not in told


def test_a_reward_that_leaves_rows_unscored_has_its_share_in_the_metrics(task):
    assert main(task("spread", "sometimes", steps=2)) == 0
    assert [record["unscored/sometimes"] for record in records("step")] == [0.5, 0.5]
    assert [record["unscored/spread"] for record in records("step")] == [0, 0]


def test_processes_of_an_isolated_reward_that_were_replaced_are_counted_in_the_metrics(task):
    command = task("spread", steps=1)
    config = json.loads(Path("task.yaml").read_text())
    config["rewards"].append({"name": "mine.py:dies", "isolate": True})
    config["stages"][0] |= {"prompts_per_step": 1}
    Path("task.yaml").write_text(json.dumps(config))
    assert main(command) == 0
    (step,) = records("step")
    assert (step["restarts/dies"], step["failures/dies"]) == (3, 2)  # for the group, and for each of its two alone
    assert "restarts/spread" not in step


def test_entropy_and_tokens_at_the_limit_are_always_in_the_metrics_and_cost_no_pass(task):
    assert main(task("spread", steps=1)) == 0
    (step,) = records("step")
    assert 0 < step["entropy"] <= math.log(512) and step["truncated/tokens"] == 1.0
    assert "count/score_tokens" not in step and step["weights/norm"] > 0


def test_exploded_weights_are_an_alarm_and_the_exit_code_says_so(task, capsys):
    command = task("spread", steps=1, optimizer={"lr": 1e6})
    assert main(command) == 3
    (alarm,) = records("alarm")
    assert alarm["name"] == "weights" and "Lower optimizer.lr (now 1e+06)" in alarm["message"]
    assert "the run ended with 1 alarms; the first: the trained weights have exploded" in capsys.readouterr().err


def test_a_run_whose_logits_are_no_numbers_ends_with_one_sentence_and_keeps_what_was_saved(task, capsys):
    command = task("spread", steps=6, optimizer={"lr": 1e12}, checkpoint={"every_steps": None})
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told and "optimizer.lr" in told and "step" in told, told
    assert not list(Path("run").glob("checkpoints/*")), "weights without meaning are not saved"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_model_is_refused_in_evaluation_with_the_name_of_its_first_broken_weight(task, temperature, capsys):
    held_out = {"train": {"path": "rows.jsonl"}, "held_out": {"path": "rows.jsonl"}}
    task("spread", data=held_out, eval={"temperatures": [temperature]}, model={"path": "broken"})
    build_tiny("qwen2", Path("broken"))
    weights = load_file("broken/model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, "broken/model.safetensors", metadata={"format": "pt"})
    assert main(["eval", "task.yaml", "--checkpoint", "broken"]) == 2
    told = capsys.readouterr().err
    assert f"logits of sampled token 1 are NaN or infinite, and the weights are not finite, first in '{name}'" in told
    if temperature == 0.0:
        assert main(["train", "task.yaml", "--output", "run"]) == 2
        told = capsys.readouterr().err
        assert "after step 0, the weights are not finite, first in" in told and name in told


@pytest.mark.parametrize(("reward", "code"), [("silent", 1), ("crashes", 1), ("sometimes", 0)])
def test_scoring_a_file_fails_where_no_line_got_a_score(task, reward, code, capsys):
    task(reward)
    lines = [{"completion": "a", "sample": {"number": number}} for number in range(2)]
    Path("lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["score", f"mine.py:{reward}", "lines.jsonl"]) == code
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 2
    assert ("left all 2 lines unscored" in told.err) == (reward == "silent")

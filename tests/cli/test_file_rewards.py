"""`mmrl check`, `mmrl train --dry-run` and `mmrl train` agree on a reward from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrl_core.cli import main
from mmrl_core.testing import build_tiny

REWARD = """
def twice(completions, samples):
    return [2.0 if completion == sample["answer"] else 0.0 for completion, sample in zip(completions, samples)]

"""

TASK = """
name: mine
model: {path: model}
data: {train: {path: rows.jsonl}}
prompt: {text: "{question}", answer: "{answer}"}
rewards: [{name: NAME.py:twice, timeout_s: 20}]
rollout: {max_tokens: 2}
stages: [{kind: grpo, steps: 1, prompts_per_step: 1, group_size: 2}]
"""

COMMANDS = (["check", "task.yaml"], ["train", "task.yaml", "--dry-run"], ["train", "task.yaml", "--output", "run"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    build_tiny("qwen2", folder)
    return folder


@pytest.fixture
def task(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes task.yaml and the reward that it names, with what the reward declares; commands run there."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(model)
    rows = [{"question": f"{n} and 1?", "answer": str(n + 1)} for n in range(3)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(declaration: str) -> None:
        Path("mine.py").write_text(REWARD + declaration)
        Path("task.yaml").write_text(TASK.replace("NAME", "mine"))

    return write


@pytest.mark.parametrize("declaration", ["", "twice.maximum = 2.0", "twice.maximum = None"])
def test_a_file_reward_that_pays_2_is_accepted_by_every_command(task, declaration, capsys):
    task(declaration)
    for command in COMMANDS:
        assert main(command) == 0, capsys.readouterr()
    assert len((Path("run") / "metrics.jsonl").read_text().splitlines()) >= 1


def test_a_file_reward_is_held_against_the_maximum_that_it_declares(task, capsys):
    task("twice.maximum = 1.0")
    assert [main(command) for command in COMMANDS[:2]] == [1, 2]
    output = capsys.readouterr()
    told = "reward 'twice': gold answer: not the maximum 1 on train:0, train:1, train:2; train:0 scores 2 for '1'"
    assert told in output.out and told in output.err


def test_check_says_what_a_file_reward_has_not_declared(task, capsys):
    task("")
    assert main(["check", "task.yaml"]) == 0
    assert "reward 'twice': gold answer: scored on 3 rows; the reward declares no maximum" in capsys.readouterr().out

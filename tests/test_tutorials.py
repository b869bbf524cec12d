"""The tutorials do what they say: their files are written, their commands run in order, and print what is shown."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributions import Normal

from mmrl_core.cli import main, make_parser
from mmrl_core.config import component_problems, load_config
from mmrl_core.errors import PolicyError
from mmrl_core.plugins import load_plugins
from mmrl_core.types import Prompt, Sampling
from tests.test_docs import ROOT, fenced, named_files

PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def shown_commands(text: str) -> list[tuple[list[str], str]]:
    """Words of each command in the console blocks, and the output below it, "" where the page shows none."""
    parts = re.split(r"^\$ ", "".join(fenced(text, "console")), flags=re.MULTILINE)[1:]
    return [(shlex.split(line), output) for line, _, output in (part.partition("\n") for part in parts)]


def commands_not_run(text: str) -> list[list[str]]:
    """Arguments of each mmrl in the shell blocks: demos, which take a minute, and recipes for a GPU."""
    lines = "".join(fenced(text, "sh")).replace("\\\n", " ").splitlines()
    found = [re.split(r"^mmrl |-m mmrl_core ", line) for line in lines]
    return [shlex.split(parts[1]) for parts in found if len(parts) == 2]


def is_shown(printed: str, shown: str) -> bool:
    """Whether a page shows what was printed; a line of three dots stands for any lines."""
    lines = ["(?:.*\n)*" if line == "...\n" else re.escape(line) for line in shown.splitlines(keepends=True)]
    return re.fullmatch("".join(lines), printed) is not None


def write_files(text: str) -> None:
    for name, content in named_files(text).items():
        Path(name).write_text(content, encoding="utf-8")


def move_to_gpu(text: str) -> None:
    """Edits the task of a page as it says, "In `FILE` write `extends: [...]`"; the tiny model's line goes."""
    for name, extends in re.findall(r"^In `(\S+)` write `(extends: [^`]*)`", text, re.MULTILINE):
        rest = re.sub(r"^(?:extends|model):.*\n", "", Path(name).read_text(), flags=re.MULTILINE)
        Path(name).write_text(f"{extends}\n{rest}")


def evaluations(run: str) -> list[dict[str, Any]]:
    lines = Path("runs", run, "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == "eval"]


@pytest.fixture(scope="module")
def judge():
    """The process that judges formulas, running: on a busy machine it starts slower than a check lets a reward be."""
    load_plugins().registry.get("reward", "text_reasoning/accuracy").load()(["$x$"], [{"answer": "y"}])


def test_every_plugin_has_a_tutorial():
    assert {page.stem for page in PAGES} == set(load_plugins().plugins)


@pytest.mark.usefixtures("judge")
@each_page
def test_a_tutorial_runs_as_shown(page, tmp_path, monkeypatch, capfd):
    """All pages in one process, since imports take longer than the commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    text = page.read_text(encoding="utf-8")
    write_files(text)
    commands = shown_commands(text)
    assert {words[1] for words, _ in commands} > {"check", "preview", "train"}
    for words, shown in commands:
        if words[0] == "python":
            runpy.run_path(words[1], run_name="__main__")
        else:
            assert (words[0], main(words[1:])) == ("mmrl", 0), words
        printed = capfd.readouterr().out
        assert not shown or is_shown(printed, shown), printed


@each_page
def test_what_a_tutorial_leaves_to_the_reader_loads(page, tmp_path, monkeypatch):
    """Its shortened demo and its recipes for a GPU name files, tasks and keys that there are."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    write_files(text)
    move_to_gpu(text)
    Path("tasks").symlink_to(ROOT / "tasks")
    demo, *recipes = commands_not_run(text)
    assert demo[1].startswith(f"{page.stem}/demo_") and len(recipes) > 1
    for words in (demo, *recipes):
        arguments, overrides = make_parser("train").parse_known_args(words)
        config = load_config(arguments.task, [*arguments.overrides, *overrides])
        assert component_problems(config, load_plugins()) == [] and config.model.path != "models/tiny"


def test_the_policy_of_its_page_learns(tmp_path, monkeypatch, capfd):
    """Its commands run as shown; the likelier colours of the names become those of the rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    text = (ROOT / "docs" / "write_a_policy.md").read_text(encoding="utf-8")
    write_files(text)
    for words, shown in shown_commands(text):
        assert (words[0], main(words[1:])) == ("mmrl", 0), words
        printed = capfd.readouterr().out
        assert not shown or is_shown(printed, shown), printed
    evaluated = [record["greedy/reward/closeness"] for record in evaluations("painting")]
    held_back = [record["greedy/reward/closeness"] for record in evaluations("held_back")]
    assert evaluated[0] < 0.65 and min(evaluated[1:]) > 0.95 and len(evaluated) == 3, (
        "at the start, then of both trainings"
    )
    assert evaluated[0] + 0.05 < held_back[-1] < evaluated[-1], "the penalty holds it near grey"
    means = load_file("runs/painting/checkpoints/step-120/model/palette.safetensors")["means.weight"]
    rows = [json.loads(line)["rgb"] for line in Path("colours.jsonl").read_text().splitlines()]
    torch.testing.assert_close(means.clamp(0, 1), torch.tensor(rows) / 255, rtol=0, atol=0.15)


def test_the_policy_of_its_page_keeps_its_rules(tmp_path, monkeypatch):
    """Ratios begin at 1, equal seeds give equal pictures, greedy is the mean, and what is saved is read back."""
    monkeypatch.chdir(tmp_path)
    write_files((ROOT / "docs" / "write_a_policy.md").read_text(encoding="utf-8"))
    painter = runpy.run_path("painter.py")
    painter["blank"](Path("blank"))
    policy = painter["Painter"]("blank", std=0.2)
    prompts = [Prompt(f"train:{i}", [], {"name": name}) for i, name in enumerate(("blue", "red"))]
    groups = policy.rollout(prompts, 3, Sampling(seed=5))
    rows = [row for group in groups for rollout in group.rollouts for row in rollout.rows]
    drawn = Normal(0.5, 0.2).log_prob(torch.stack([row.action for row in rows]))
    torch.testing.assert_close(policy.logprobs(rows).logprobs, drawn)
    again = policy.rollout(prompts, 3, Sampling(seed=5))
    pictures = [
        [rollout.completion.tobytes() for group in each for rollout in group.rollouts] for each in (groups, again)
    ]
    assert pictures[0] == pictures[1] and len(set(pictures[0])) == 6
    (greedy,) = policy.rollout(prompts[:1], 1, Sampling(temperature=0.0))
    assert greedy.rollouts[0].rows[0].action.tolist() == [0.5] * 3
    policy.freeze("reference")
    policy.weights.means.weight.data += 0.3
    torch.testing.assert_close(policy.logprobs(rows, frozen="reference").logprobs, drawn)
    policy.save(Path("blank"))
    assert torch.equal(painter["Painter"]("blank").weights.means.weight, policy.weights.means.weight)
    with pytest.raises(PolicyError, match="does not know hue"):
        policy.logprobs(rows, needs=["hue"])


def test_dots_stand_for_any_lines_and_nothing_else():
    assert is_shown("a\nb\nc\n", "a\n...\n") and is_shown("a\n", "a\n...\n")
    assert not is_shown("a\nb\n", "a\n") and not is_shown("b\na\n", "a\n...\n")

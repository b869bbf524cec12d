"""Parsing a command line, and what commands do with it."""

from __future__ import annotations

import functools
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mmrl_core.cli import app, dry_run, info, score
from mmrl_core.types import RewardView


@pytest.mark.parametrize("command", app.COMMANDS)
def test_help_is_a_sentence_options_and_an_example_that_parses(command, capsys):
    assert app.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    sentence = text.split("\n\n")[1]
    assert re.fullmatch(r"[A-Z][^.]*\.", sentence.replace("\n", " ")), sentence
    example = text.rpartition("Example:\n")[2].strip()
    program, *arguments = shlex.split(example)
    assert program == "mmrl" and arguments[0] == command
    parsed = app.parse(arguments)
    assert parsed.run is app.COMMANDS[command].run


def test_overrides_may_follow_options():
    parsed = app.parse(["train", "t", "a=1", "--output", "o", "b=-2", "--dry-run", "c=3"])
    assert parsed.overrides == ["a=1", "b=-2", "c=3"]
    assert app.parse(["train", "--output", "o", "t"]).overrides == []


def test_a_dry_run_prints_its_findings_and_makes_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("task.yaml").write_text("name: my/task\nstages: [{kind: grpo, steps: 1}]\n")
    monkeypatch.setattr(dry_run, "check_run", lambda config: ["one", f"two of {config.name}"])
    assert app.main(["train", "task.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out == "one\ntwo of my/task\n"
    assert not Path("runs").exists()


def test_score_never_cuts_a_group(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("rewards.py").write_text("def place(completions, samples):\n    return list(range(len(completions)))\n")
    monkeypatch.setattr(score, "SCORE_LINES", 2)
    rows = [json.dumps({"completion": "x", "sample": {"id": i}}) for i in [1, 2, 2, 2, 3]]
    Path("rows.jsonl").write_text("\n".join(rows))
    assert app.main(["score", "rewards.py:place", "rows.jsonl"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["reward"] for result in results] == [0, 0, 1, 2, 0]


def test_only_the_command_that_runs_looks_up_what_its_help_says():
    code = "import sys; from mmrl_core.cli import main; main({}); print(*(n for n in sys.modules if 'testing' in n))"
    loaded = {
        command: subprocess.run(
            [sys.executable, "-c", code.format([command, "--help"])], capture_output=True, text=True, check=True
        ).stdout.splitlines()[-1]
        for command in ("list", "tiny")
    }
    assert "mmrl_core" not in loaded["list"] and "mmrl_core.testing" in loaded["tiny"]


MISSING = object()


def stage(first, /, view: RewardView, *rest, scale=2, reduce=len, kind: int | None = None, **options: str): ...
def marked(first: float, *, second: bool = False): ...
def positional(first, second=MISSING, /): ...


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (stage, "first, /, view: RewardView, *rest, scale=2, reduce=len, kind: int | None = None, **options: str"),
        (marked, "first: float, *, second: bool = False"),
        (positional, "first, second=<object object>, /"),
        (functools.partial(marked, 1.0), "*, second: bool = False"),
    ],
)
def test_a_signature_reads_as_it_was_written_and_names_no_address(function, wanted):
    assert ", ".join(info._signature_parts(inspect.signature(function).parameters.values())) == wanted

"""What a new user types: help, lists, wrong flags, names that are not installed."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mmrl_core import trainer
from mmrl_core.cli import EXIT_CODES, main, make_parser
from mmrl_core.plugins import install_hint, load_plugins, presets
from mmrl_core.plugins.registry import KINDS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)  # main() sets some
    Path("task.yaml").write_text("name: my/task\nstages: [{kind: grpo, steps: 1}]\n")
    Path("wrong.yaml").write_text("name: x\nsede: 1\n")
    Path("rewards.py").write_text("def length(completions, samples):\n    return [len(text) for text in completions]\n")
    Path("rows.jsonl").write_text('{"completion": "a", "sample": {}}\n')
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


def test_the_bare_command_shows_the_help(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: mmrl") and "Train a policy as a task config says." in text


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    (version,) = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert capsys.readouterr().out == f"mmrl {version}\n"


@pytest.mark.parametrize(
    ("written", "form"),
    [
        (["--group_size=4"], "stages.0.group_size=4"),
        (["--group-size", "4"], "stages.0.group_size=4"),
        (["--lr=1e-5"], "optimizer.lr=1e-5"),
        (["--optimizer.lr", "1e-5"], "optimizer.lr=1e-5"),
        (["--temperature=0.7"], "rollout.temperature=0.7"),
        (["--seed"], "seed=..."),
    ],
)
def test_a_key_given_as_an_option_is_answered_with_the_form_that_works(written, form, capsys):
    for command in (["train", "task.yaml"], ["preview", "task.yaml"]):
        assert main([*command, *written]) == 2
        *_, line = capsys.readouterr().err.splitlines()
        assert line.endswith(
            f"unrecognized arguments: {' '.join(written)}. Config values are written without dashes: {form}"
        )


def test_list_shows_everything_that_is_registered(capsys):
    assert main(["list", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    shown = {row["id"] for rows in tables.values() for row in rows if "id" in row}
    entries = [entry.id.removeprefix("core/") for kind in KINDS for entry in load_plugins().registry.entries(kind)]
    assert not {*entries, *presets(), *load_plugins().tasks} - shown
    assert {kind.plural for kind in KINDS.values()} - {"advantages", "losses", "strategies"} <= set(tables)


@pytest.mark.parametrize("command", ["train", "info", "check", "score"])
def test_a_name_of_a_plugin_that_is_not_installed_says_how_to_install_it(command, folder, capsys):
    more = ["-"] if command == "score" else []
    assert main([command, "visionary/boxes", *more]) == 2
    assert "Try: pip install mmrl-visionary, or, if it is on no package index" in capsys.readouterr().err


def test_the_hint_names_the_folder_of_a_plugin_of_the_checkout():
    assert install_hint("visual_rft") == f" Try: pip install -e {ROOT / 'plugins' / 'mmrl-visual-rft'}"


def test_make_says_how_to_go_on():
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    for target in ("install", "demo"):  # as if this were not run by make itself
        command = ["make", "-n", target]
        done = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=True)
        assert "Go on with: source .venv/bin/activate && mmrl list" in done.stdout.splitlines()[-1]


# Wrong input

WRONG: dict[str, list[tuple[str, str]]] = {
    "train task": [
        ("absent.yaml", "there is no file absent.yaml"),
        ("a/b", "no task 'a/b'"),
        ("wrong.yaml", "'sede'"),
    ],
    "train overrides": [
        ("task.yaml seed", "'seed' is not of the form key.path=value."),
        ("task.yaml sede=1", "Did you mean 'seed'?"),
        ("task.yaml seed=-1", "'seed' should be at least 0"),
    ],
    "train --output": [
        ("task.yaml --output task.yaml", "exists and is not empty"),
        ("task.yaml --output", "expected one argument"),
    ],
    "train --resume": [
        ("task.yaml --resume", "--resume needs --output"),
        ("task.yaml --resume=yes", "ignored explicit argument 'yes'"),
    ],
    "train --dry-run": [
        ("task.yaml --dry-run=yes", "ignored explicit argument 'yes'"),
    ],
    "eval task": [
        ("absent.yaml --checkpoint .", "whole checkpoint"),
        ("", "--checkpoint"),
    ],
    "eval overrides": [
        ("task.yaml seed --checkpoint m", "there is no checkpoint folder m"),
    ],
    "eval --checkpoint": [
        ("task.yaml --checkpoint absent", "there is no checkpoint folder absent"),
    ],
    "eval --with": [
        ("--checkpoint absent --with inspect:x", "there is no checkpoint folder absent"),
        ("--checkpoint absent --with", "expected one argument"),
    ],
    "eval --limit": [
        ("task.yaml --checkpoint . --limit 0", "is not a whole number above 0"),
        ("task.yaml --checkpoint . --limit -1", "is not a whole number above 0"),
        ("task.yaml --checkpoint . --limit x", "is not a whole number above 0"),
        ("task.yaml --checkpoint . --limit 1.5", "is not a whole number above 0"),
        ("task.yaml --checkpoint . --limit ''", "is not a whole number above 0"),
    ],
    "score reward": [
        ("visual_rft/iuo rows.jsonl", "Did you mean 'visual_rft/iou'?"),
        ("rewards.py:size rows.jsonl", "has no 'size'"),
        ("absent.py:f rows.jsonl", "there is no file absent.py"),
    ],
    "score file": [
        ("rewards.py:length absent.jsonl", "there is no file absent.jsonl"),
        ("rewards.py:length", "required"),
    ],
    "score --option": [
        ("rewards.py:length rows.jsonl --option a=1", "no option 'a'"),
        ("rewards.py:length rows.jsonl --option a", "is not of the form key=value"),
    ],
    "check id": [
        ("giu", "there is no task, plugin or file 'giu'. Did you mean 'gui'?"),
        ("visual_rft/demo_detektion", "Did you mean 'visual_rft/demo_detection'?"),
        ("taks.yaml", "Did you mean 'task.yaml'?"),
        ("absent", "no task 'absent'"),
        ("wrong.yaml", "unknown key 'sede'"),
    ],
    "check overrides": [
        ("task.yaml sede=1", "Did you mean 'seed'?"),
    ],
    "preview task": [
        ("absent.yaml", "there is no file absent.yaml"),
    ],
    "preview overrides": [
        ("task.yaml sede=1", "Did you mean 'seed'?"),
    ],
    "preview --num": [
        ("task.yaml --num 0", "is not a whole number above 0"),
        ("task.yaml --num -3", "is not a whole number above 0"),
        ("task.yaml --num many", "is not a whole number above 0"),
    ],
    "preview --output": [
        ("task.yaml --output", "expected one argument"),
    ],
    "list kind": [
        ("taks", "invalid choice: 'taks'"),
    ],
    "list --json": [
        ("--json=yes", "ignored explicit argument 'yes'"),
    ],
    "info id": [
        ("cliped", "Did you mean 'clipped'?"),
        ("", "required"),
    ],
    "view run_directory": [
        ("absent", "there is no run in absent"),
        ("task.yaml", "there is no run in task.yaml"),
    ],
    "view other": [
        ("absent other", "there is no run in absent"),
    ],
    "view --follow": [
        ("run --follow=yes", "ignored explicit argument 'yes'"),
    ],
    "view --port": [
        ("run --port x", "--port"),
    ],
    "view --trust": [
        ("run --trust=yes", "ignored explicit argument 'yes'"),
    ],
    "import-config file": [
        ("absent.yaml", "there is no file absent.yaml"),
        ("task.yaml", "no key says whose config it is. Name the framework: --peer trl, verl, easyr1, swift"),
        ("rewards.py --peer trl", "rewards.py: no command is in it"),
    ],
    "import-config --peer": [
        ("task.yaml --peer ours", "invalid choice: 'ours'"),
    ],
    "import-config --processes": [
        ("task.yaml --peer trl --processes 0", "is not a whole number above 0"),
    ],
    "import-config --rewards": [
        ("task.yaml --peer trl --rewards absent.py", "there is no file absent.py"),
    ],
    "import-config --output": [
        ("task.yaml --peer trl --output task.yaml", "task.yaml exists"),
    ],
    "sample checkpoint": [
        ("absent hello", "there is no checkpoint folder absent"),
    ],
    "sample question": [
        ("absent", "required"),
    ],
    "sample overrides": [
        ("absent hello seed", "there is no checkpoint folder absent"),
    ],
    "sample --image": [
        ("absent hello --image", "expected one argument"),
    ],
    "sample --video": [
        ("absent hello --video", "expected one argument"),
    ],
    "sample --audio": [
        ("absent hello --audio", "expected one argument"),
    ],
    "sample --temperature": [
        ("absent hello --temperature hot", "--temperature"),
        ("absent hello --temperature -1", "--temperature"),
    ],
    "sample --num": [
        ("absent hello --num 0", "is not a whole number above 0"),
        ("absent hello --num 3", "greedy answers would all be the same"),
    ],
    "sample --max-tokens": [
        ("absent hello --max-tokens 0", "is not a whole number above 0"),
    ],
    "export run_directory": [
        ("absent exported", "there is no checkpoint folder absent"),
    ],
    "export output": [
        ("absent", "required"),
    ],
    "export --merge": [
        ("absent exported --merge=yes", "ignored explicit argument 'yes'"),
    ],
    "export --gguf-ready": [
        ("absent exported --gguf-ready=yes", "ignored explicit argument 'yes'"),
    ],
    "export --push": [
        ("absent exported --push", "expected one argument"),
    ],
    "export --precision": [
        ("absent exported --precision int8", "invalid choice: 'int8'"),
    ],
    "runs folder": [
        ("absent", "there is no folder absent"),
        ("task.yaml", "there is no folder task.yaml"),
    ],
    "runs --json": [
        ("--json=yes", "ignored explicit argument 'yes'"),
    ],
    "compare runs": [
        ("absent", "name two runs, or more, to compare"),
        ("absent other", "there is no run in absent"),
    ],
    "compare --all": [
        ("absent other --all=yes", "ignored explicit argument 'yes'"),
    ],
    "tiny kind": [
        ("qwen2vl model", "Did you mean 'qwen2_vl'?"),
    ],
    "tiny directory": [
        ("qwen2 task.yaml", "task.yaml"),
        ("qwen2", "required"),
    ],
    "tiny --seed": [
        ("qwen2 model --seed x", "--seed"),
        ("qwen2 model --seed 1.5", "--seed"),
        ("qwen2 model --seed -1", "--seed"),
        ("qwen2 model --seed 4294967296", "--seed"),
    ],
    "new kind": [
        ("taks mine", "invalid choice: 'taks'"),
        ("task", "required"),
    ],
    "new name": [
        ("task My-Task", "such as 'my_task'"),
        ("task 3d", "such as 'd'"),
        ("task class", "no word of Python, nor 'core'; such as 'traffic_signs'"),
        ("plugin core", "nor 'core'"),
        ("plugin gui", "a plugin 'gui' is installed already (mmrl-gui)"),
    ],
    "new --modality": [
        ("task mine --modality smell", "invalid choice: 'smell'"),
    ],
    "new --output": [
        ("task mine --output task.yaml", "task.yaml exists and is not an empty folder, and nothing is overwritten"),
        ("task mine --output .", "nothing is overwritten"),
        ("task mine --output task.yaml/in", "A part of the path is a file"),
    ],
    "doctor --json": [
        ("--json=yes", "ignored explicit argument 'yes'"),
    ],
}
"""Of every argument of every command: wrong input, and words of the answer."""


def arguments_of_commands() -> set[str]:
    parser = make_parser()
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {
        f"{name} {action.option_strings[-1] if action.option_strings else action.dest}"
        for name, command in commands.choices.items()
        for action in command._actions
        if action.dest != "help"
    }


def test_the_table_has_every_argument_of_every_command():
    assert {"score file" if key == "score path" else key for key in arguments_of_commands()} == set(WRONG)


@pytest.mark.parametrize(
    ("argument", "case"), [(argument, case) for argument, cases in WRONG.items() for case in cases]
)
def test_wrong_input_is_answered_in_one_line(argument, case, folder, capsys):
    given, words = case
    assert main([argument.split()[0], *shlex.split(given)]) == 2
    captured = capsys.readouterr()
    told = [line for line in captured.err.splitlines() if line.startswith("mmrl")]
    assert len(told) == 1 and words in told[0] and captured.out == "" and "Traceback" not in captured.err
    assert captured.err.startswith(("mmrl: ", "usage: mmrl"))


# Exit codes


def test_the_docs_list_the_exit_codes():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    listed = {int(code): meaning for code, meaning in re.findall(r"^\| `(\d+)` \| (.*) \|$", page, re.MULTILINE)}
    assert listed == EXIT_CODES and set(EXIT_CODES) == {0, 1, 2, 3, 130, 143}


def test_commands_end_with_the_codes_of_the_table(folder, monkeypatch, capsys):
    def interrupted(config, output, resume):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train", interrupted)
    Path("bad.yaml").write_text("name: x\ndata: {train: {path: absent.jsonl}}\n")
    found = {
        0: main(["list", "presets"]),
        1: main(["check", "bad.yaml"]),
        2: main(["train", "wrong.yaml"]),
        130: main(["train", "task.yaml", "--output", "run"]),
    }
    assert all(code == returned and code in EXIT_CODES for code, returned in found.items()), found

"""The tutorials do what they say: their files are written, their commands run in order, and print what is shown."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from mmrl_core.cli import main, make_parser
from mmrl_core.config import component_problems, load_config
from mmrl_core.plugins import load_plugins
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


def test_dots_stand_for_any_lines_and_nothing_else():
    assert is_shown("a\nb\nc\n", "a\n...\n") and is_shown("a\n", "a\n...\n")
    assert not is_shown("a\nb\n", "a\n") and not is_shown("b\na\n", "a\n...\n")

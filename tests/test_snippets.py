"""Every code block of every page is held to what the code knows; a block or command of an unknown kind fails.

| block | is held to |
| --- | --- |
| yaml | the reader of configs; a fragment is read on top of a task |
| python | is executed, in a folder with what the page gives before; a signature without a body is parsed |
| sh, console | each command is parsed by its own parser, its task and overrides are read; QUICK ones are run |
| json | the reader of JSON, line by line |
| text | the commands that it names, and their options |
| none, in a generated page | test_docs.py: the page is as docs/generate.py writes it |

ELSEWHERE names the blocks that another test runs, NOT_RUN the commands that are parsed and not run, and why.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import InvalidRequirement, Requirement

from mmrl_core.cli import main
from mmrl_core.cli.app import COMMANDS, make_parser, parse
from mmrl_core.config import RunConfig, component_problems, load_config
from mmrl_core.errors import MMRLError
from mmrl_core.plugins import load_plugins
from tests.test_docs import PAGES, ROOT, named_files

PEERS = ROOT / "tests" / "data" / "peers"
GENERATED = "<!-- Written by docs/generate.py"
BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
A_TASK = """
name: my_run
extends: [text_reasoning/own]
data: {train: {path: rows.jsonl}}
stages: [{kind: grpo, steps: 1, prompts_per_step: 2, group_size: 2}]
"""
STANDS_FOR = {"TASK": "text_reasoning/demo_walks", "PLUGIN": "gui"}
"""Words in capitals that a command reads; others, such as RUN and DIR, name folders of the reader's."""

STAND_INS = {
    "docs/coming_from_trl.md": {"config.yaml": "open_r1.yaml", "rewards.py": "open_r1.py"},
    "docs/coming_from_verl.md": {"run_grpo.sh": "verl_geo3k.sh"},
    "docs/coming_from_easyr1.md": {"config.yaml": "easyr1_config.yaml"},
    "docs/coming_from_ms_swift.md": {"run_grpo.sh": "swift_grpo.sh"},
}
"""Page -> the reader's files that it speaks of, and the file in tests/data/peers that is taken for each."""

OWN = {"answers.jsonl": '{"completion": "<answer>42</answer>", "sample": {"answer": "42"}}\n', "my_run.yaml": A_TASK}
"""Files of the reader's own that pages speak of."""

OF_ITEMS = ("mixture", "plugins", "rewards")
"""Lists: what prose says of their items is of another task than the one it is tried on."""

NEEDED_WITH = {
    "rollout.steps_ahead": ["algorithm.old_logprobs=sampler", "rollout.engine={name: hf, copy: true}"],
    "epochs": ["stages.0.steps=null"],
}
"""Words of a key in prose, and what has to be set with it."""

QUICK = ("check", "doctor", "import-config", "info", "list", "new", "score")
"""Commands that are run."""

TO_INSTALL = ("cd", "git", "make", "pip", "python3", "source")
"""Commands that would change the machine: targets, extras and distributions are looked up."""


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Elsewhere:
    """Blocks of a page that another test runs; `part` is in those that are meant."""

    page: str
    languages: str
    test: str
    part: str = ""

    def has(self, block: Block) -> bool:
        return fnmatch(block.page, self.page) and block.language in self.languages.split() and self.part in block.text


ELSEWHERE = (
    Elsewhere("README.md", "yaml", "tests/test_docs.py::test_readme_task_loads"),
    Elsewhere("README.md", "python", "tests/test_docs.py::test_readme_reward_runs"),
    Elsewhere("docs/start.md", "console", "tests/test_docs.py::test_ten_minutes_are_as_shown"),
    Elsewhere(
        "docs/plugins.md", "python yaml toml markdown json console", "tests/test_docs.py::test_tutorial_commands_train"
    ),
    Elsewhere("docs/plugins.md", "text", "tests/test_docs.py::test_tutorial_lists_the_files_that_it_shows"),
    Elsewhere("docs/code.md", "text", "tests/test_docs.py::test_the_tree_names_every_folder_and_room_in_ten_lines"),
    Elsewhere(
        "docs/stages_and_losses.md",
        "python yaml json console",
        "tests/test_docs.py::test_the_stage_and_the_loss_of_the_page_train_as_shown",
    ),
    Elsewhere(
        "docs/metrics.md",
        "pycon",
        "tests/test_docs.py::test_the_snippets_of_metrics_run_and_there_is_one_for_each_plugin",
    ),
    Elsewhere(
        "docs/tutorials/*.md", "python yaml json console", "tests/test_tutorials.py::test_a_tutorial_runs_as_shown"
    ),
    Elsewhere(
        "docs/write_a_policy.md",
        "python yaml json console",
        "tests/test_tutorials.py::test_the_policy_of_its_page_learns",
    ),
    Elsewhere("docs/coming_from_*.md", "yaml", "tests/cli/test_import_config.py::test_the_task_of_a_page_loads"),
    Elsewhere(
        "plugins/mmrl-find/README.md",
        "python",
        "plugins/mmrl-find/tests/test_find.py::test_readme_code_draws_from_the_learned_noise",
        "noise.safetensors",
    ),
)
SEVERAL = "starts several processes: tests/integration/test_distributed.py"
HUB = "needs a model of the hub, and a GPU to be of use"
NOT_RUN = (
    ("*", r"mmrl train \w+/demo_", "trains for a minute or more; docs/results.md has what it reaches"),
    ("CONTRIBUTING.md", "mmrl train first.yaml", "trains for half a minute: tests/install/new_user.py"),
    ("CONTRIBUTING.md", "pytest tests/unit/", "is a part of the suite"),
    ("docs/[br]*s.md", "python benchmarks/", "measures for minutes to an hour"),
    (
        "docs/coming_from_*.md",
        "mmrl train my_task.yaml --dry-run",
        "needs a model of the hub; what was imported is read",
    ),
    ("docs/hardware.md", "accelerate launch ", SEVERAL),
    ("docs/metrics.md", "mmrl eval --with ", "needs a trained run: tests/unit/cli/test_eval_elsewhere.py"),
    ("docs/reliability.md", "(accelerate launch|torchrun) ", SEVERAL),
    ("docs/scale.md", "torchrun ", SEVERAL),
    ("docs/scale.md", "sbatch ", "needs Slurm: tests/integration/test_slurm.py has stand-ins"),
    ("docs/scale.md", "(ray|docker) ", "needs a cluster, or a daemon"),
    ("docs/vllm.md", "vllm serve", "needs vLLM: tests/vllm/test_vllm_server.py starts one"),
    ("docs/tutorials/*.md", "mmrl train .* --output runs/full", HUB),
    ("docs/tutorials/*.md", "(mmrl|accelerate launch .* mmrl_core) train tasks/", HUB),
    ("docs/vllm.md", "(python -m|mmrl train) ", "needs vLLM: tests/vllm/test_vllm_server.py"),
    ("plugins/mmrl-*/README.md", "mmrl eval tasks/", "needs a trained model and published data"),
)
"""Pages, commands, and why they are not run."""


# What there is


def blocks(path: Path) -> list[Block]:
    text, page = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[2], m[3]) for m in BLOCK.finditer(text)]


def command_lines(block: Block) -> Iterator[str]:
    """Commands of a block, those over several lines joined; a console shows output below them, which is none."""
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        text = "".join(line[2:] for line in text.splitlines(keepends=True) if line.startswith("$ "))
    command = ""
    for line in text.splitlines():
        command += line + "\n"
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        if words:
            yield command
        command = ""
    assert not command, f"a quotation does not end: {command}"


def in_parts(line: str) -> list[list[str]]:
    """Words of each of the commands that `&&` joins."""
    parts: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def in_prose(page: Path) -> list[str]:
    """What stands between backticks outside of blocks."""
    return re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text(encoding="utf-8")).replace("\\|", "|"))


def help_of(command: str) -> str:
    parser = make_parser()
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return str(subparsers.choices[command].format_help())


# Commands


def mmrl(words: list[str]) -> None:
    """Parses a command, and reads the task that it names with its overrides."""
    words = [STANDS_FOR.get(word, word) for word in words]
    try:
        arguments = parse(words)
    except SystemExit as stop:
        assert stop.code == 0, f"mmrl {shlex.join(words)} is no command line"
        return
    task = getattr(arguments, "task", None)
    if hasattr(arguments, "overrides") and task is not None and task not in load_plugins().plugins:
        assert component_problems(load_config(task, arguments.overrides), load_plugins()) == []


def pip(words: list[str]) -> None:
    """`pip install`: distributions of this repository, with extras that they have; others are well-formed."""
    assert words[0] == "install"
    options = {"--constraint": 1, "--find-links": 1, "-e": 0, "--no-deps": 0, "-U": 0, "...": 0}
    rest = words[1:]
    while rest:
        word, *rest = rest
        if word in options:
            rest = rest[options[word] :]
            continue
        path, _, extras = word.partition("[")
        named = ROOT / path if path.startswith((".", "plugins/")) else None
        if named is None and word == "mmrl-colours":  # of docs/plugins.md
            continue
        requirement = Requirement(f"here[{extras}" if named and extras else "here" if named else word)
        if named is None and requirement.name.startswith("mmrl-"):
            named = ROOT if requirement.name == "mmrl-core" else ROOT / "plugins" / requirement.name
        if named is not None:
            project = tomllib.loads((named / "pyproject.toml").read_text())["project"]
            assert requirement.extras <= set(project.get("optional-dependencies", {})), f"{word}: no such extra"


def make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")
    assert [word for word in words if not re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE)] == []


def python(words: list[str]) -> None:
    if words[0] != "-m":
        path = Path(words[0]) if Path(words[0]).is_file() else ROOT / words[0]
        assert path.is_file(), f"there is no {words[0]}"
        script = path.read_text()
        assert [word for word in words[1:] if word.startswith("--") and f'"{word}"' not in script] == []
    elif words[1] == "mmrl_core":
        mmrl(words[2:])
    else:
        assert find_spec(words[1]) is not None, f"there is no module {words[1]}"


def accelerate(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch"
    arguments = launch_command_parser().parse_args(words[1:])
    assert arguments.module and arguments.training_script == "mmrl_core"
    mmrl(arguments.training_script_args)


def torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    arguments = get_args_parser().parse_args(words)
    assert arguments.module and arguments.training_script == "mmrl_core"
    mmrl(arguments.training_script_args)


def sbatch(words: list[str]) -> None:
    assert (ROOT / words[0]).is_file(), f"there is no {words[0]}"
    mmrl(["train", words[1], *words[3:], "--output", words[2]])


def ray(words: list[str]) -> None:
    assert words[:2] == ["job", "submit"]
    assert words[words.index("--") + 1] == "torchrun"
    torchrun(words[words.index("--") + 2 :])


def docker(words: list[str]) -> None:
    assert (ROOT / words[words.index("--file") + 1]).is_file()


def vllm(words: list[str]) -> None:
    """Its options are vLLM's, which is not installed here."""
    assert words[0] == "serve"


def pytest_command(words: list[str]) -> None:
    assert [word for word in words if not word.startswith("-") and not (ROOT / word).exists()] == []


def cd(words: list[str]) -> None:
    if words[0] != "mmrl":  # the checkout
        os.chdir(words[0])


def python3(words: list[str]) -> None:
    assert words[:2] == ["-m", "venv"], "python3 makes the environment, python is the one in it"


def source(words: list[str]) -> None:
    assert re.fullmatch(r"\.venv[a-z-]*/bin/activate", words[0]) and len(words) == 1


def git(words: list[str]) -> None:
    assert words[0] == "clone" and words[-1] == "mmrl"


SHELL = {
    "accelerate": accelerate,
    "cd": cd,
    "docker": docker,
    "vllm": vllm,
    "git": git,
    "make": make,
    "mmrl": mmrl,
    "pip": pip,
    "pytest": pytest_command,
    "python": python,
    "python3": python3,
    "ray": ray,
    "sbatch": sbatch,
    "source": source,
    "torchrun": torchrun,
}


def without_environment(words: list[str]) -> list[str]:
    while words and re.match(r"[A-Z][A-Z0-9_]*=", words[0]):
        words = words[1:]
    return words


def is_elsewhere(block: Block) -> bool:
    return any(entry.has(block) for entry in ELSEWHERE)


def is_not_run(page: str, words: list[str]) -> bool:
    return any(fnmatch(page, pages) and re.match(command, shlex.join(words)) for pages, command, _ in NOT_RUN)


# A check for each language


def check_commands(block: Block) -> None:
    for line in command_lines(block):
        for words in map(without_environment, in_parts(line)):
            assert words[0] in SHELL, f"no check of the command {words[0]!r}"
            if is_elsewhere(block) and words[0] == "mmrl":
                parse(words[1:])
            elif words[0] == "mmrl" and words[1] in QUICK:
                assert main(words[1:]) == 0, shlex.join(words)
            else:
                SHELL[words[0]](words[1:])
                known = words[0] in TO_INSTALL or is_elsewhere(block) or is_not_run(block.page, words)
                assert known, f"neither run nor in NOT_RUN: {shlex.join(words)}"


def check_yaml(block: Block) -> None:
    is_task = re.search(r"^stages:", block.text, re.MULTILINE) is not None
    Path("fragment.yaml").write_text(block.text)
    Path("task.yaml").write_text(block.text if is_task else A_TASK.replace("own]", "own, fragment.yaml]"))
    assert component_problems(load_config("task.yaml"), load_plugins()) == []


def check_python(block: Block) -> None:
    if re.match(r"def \w+\(.*\)( -> .*)?\s*\Z", block.text):
        ast.parse(f"{block.text.rstrip()}: ...")
    elif GENERATED in (ROOT / block.page).read_text() and re.match(r"\w+: ", block.text):
        ast.parse(block.text.replace("<lambda>", "default"))
    else:
        exec(compile(block.text, f"{block.page}:{block.line}", "exec"), {"__name__": "snippet"})


def check_json(block: Block) -> None:
    assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines())


def check_text(block: Block) -> None:
    """Each line names a command, and options that it has."""
    for line in block.text.splitlines():
        check_mention(line)


def check_mention(text: str) -> None:
    """A command in prose or in an overview, with `...`, brackets or words in capitals in place of arguments."""
    names = re.findall(r"\bmmrl ([a-z-]+)", text)
    assert names and set(names) <= set(COMMANDS), f"no command: {text}"
    assert [option for option in re.findall(r"--[a-z-]+", text) if option not in "".join(map(help_of, names))] == []
    if overrides := re.findall(r" ([a-z_]+\.[\w.]+=\S+)", text):
        Path("my_run.yaml").write_text(A_TASK)
        load_config("my_run.yaml", overrides)


def check_of_generated(block: Block) -> None:
    assert GENERATED in (ROOT / block.page).read_text(), "a block without a language: name it"


CHECKS = {
    "": check_of_generated,
    "console": check_commands,
    "json": check_json,
    "python": check_python,
    "sh": check_commands,
    "text": check_text,
    "yaml": check_yaml,
}


# Tests

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder with the recipes of a checkout in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    Path("tasks").symlink_to(ROOT / "tasks")
    return tmp_path


def lay_out(page: Path) -> None:
    """The files that a page gives, and those of the reader that it speaks of."""
    name = page.relative_to(ROOT).as_posix()
    for file, content in {**named_files(page.read_text(encoding="utf-8")), **OWN}.items():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(content, encoding="utf-8")
    if name in STAND_INS:
        shutil.copytree(PEERS, ".", dirs_exist_ok=True)
    for file, peer in STAND_INS.get(name, {}).items():
        shutil.copy(PEERS / peer, file)


@pytest.mark.usefixtures("folder")
@each_page
def test_blocks_of_a_page_are_sound(page):
    lay_out(page)
    wrong = []
    for block in blocks(page):
        if is_elsewhere(block) and block.language not in ("sh", "console"):
            continue
        assert block.language in CHECKS, f"{block.page}:{block.line}: no check of {block.language!r}"
        try:
            CHECKS[block.language](block)
        except (AssertionError, MMRLError, SystemExit, SyntaxError, InvalidRequirement) as error:
            wrong.append(f"{block.page}:{block.line}: {error or type(error).__name__}")
    assert wrong == []


@pytest.mark.usefixtures("folder")
@each_page
def test_commands_in_the_prose_of_a_page_are_sound(page):
    wrong = []
    for text in in_prose(page):
        words = text.split()
        try:
            if words[:2] == ["mmrl", "info"] and "/" in words[2] and words[2].islower():
                assert main(words[1:]) == 0
            elif words[0] == "mmrl" and len(words) > 1 and text not in ("mmrl COMMAND --help", "mmrl --version"):
                check_mention(text)
            elif words[0] in ("make", "pip", "python") and len(words) > 1:
                for part in in_parts(text):
                    SHELL[part[0]](part[1:])
        except (AssertionError, MMRLError, InvalidRequirement) as error:
            wrong.append(f"{text}: {error}")
    assert wrong == []


@pytest.mark.usefixtures("folder")
@each_page
def test_keys_in_the_prose_of_a_page_can_be_set(page):
    """`model.lora: {rank: 16}` and `optimizer.lr=1e-5` alike, on top of a task."""
    Path("my_run.yaml").write_text(A_TASK)
    wrong = []
    for text in in_prose(page):
        found = re.fullmatch(r"((\w+)(?:\.\w+)*)(?:: |=)(\S.*)", text)
        if found and found[2] in RunConfig.model_fields and found[2] not in OF_ITEMS and "..." not in text:
            try:
                others = [other for words, needed in NEEDED_WITH.items() if words in text for other in needed]
                load_config("my_run.yaml", [*others, f"{found[1].replace('.N.', '.0.')}={found[3]}"])
            except MMRLError as error:
                wrong.append(f"{text}: {error}")
    assert wrong == []


def test_no_page_has_code_outside_of_these_blocks():
    for page in PAGES:
        rest = BLOCK.sub("", page.read_text(encoding="utf-8"))
        assert re.findall(r"(?<!\n)\n\n(?: {4}|\t)\S.*|```|~~~", rest) == [], page


def test_what_is_said_to_be_run_elsewhere_is():
    every = [block for page in PAGES for block in blocks(page)]
    for entry in ELSEWHERE:
        file, _, test = entry.test.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text(), entry.test
        for language in entry.languages.split():
            assert any(entry.has(block) for block in every if block.language == language), (entry.page, language)


def test_no_reason_is_left_over():
    commands = [
        (block.page, shlex.join(without_environment(words)))
        for page in PAGES
        for block in blocks(page)
        if block.language in ("sh", "console") and not is_elsewhere(block)
        for line in command_lines(block)
        for words in in_parts(line)
    ]
    for of, command, _ in NOT_RUN:
        assert any(fnmatch(page, of) and re.match(command, words) for page, words in commands), command

"""`mmrl import-config`: a config of TRL, verl, EasyR1 or ms-swift as a task."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmrl_core.cli.command import Command, positive
from mmrl_core.errors import MMRLError

HEADINGS = (
    ("look", "Look at"),
    ("missing", "Without a counterpart here"),
    ("defaults", "Left out in the file, where their default is not ours"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="YAML of TRL, EasyR1, verl or ms-swift, or the shell script that starts a run",
    )
    parser.add_argument(
        "--peer",
        choices=("trl", "verl", "easyr1", "swift"),
        help="whose config it is (default: by its keys)",
    )
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="processes of the run, by which TRL and ms-swift count",
    )
    parser.add_argument("--rewards", type=Path, metavar="FILE.py", help="file of the functions in reward_funcs")
    parser.add_argument(
        "--output", type=Path, metavar="TASK.yaml", help="where to write the task (default: standard output)"
    )


def run(arguments: argparse.Namespace) -> None:
    text = imported(arguments.file, arguments.peer, arguments.processes, arguments.rewards)
    if arguments.output is None:
        print(text, end="")
        return
    if arguments.output.exists():
        raise MMRLError(f"{arguments.output} exists. Name another --output.")
    arguments.output.write_text(text, encoding="utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    print(*comments, f"wrote {arguments.output}", sep="\n")


def imported(file: Path, peer: str | None = None, processes: int | None = None, rewards: Path | None = None) -> str:
    """A task as YAML, with comments on what has no counterpart, what has another default, and what to look at.

    Args:
        file: the config.
        peer: whose it is; None: recognised.
        processes: of the run, for sizes that count by process.
        rewards: file of the functions that the config names.

    Raises:
        ConfigError: the file is no such config.
    """
    import yaml

    from mmrl_core.cli.peers.files import NAMES, TABLES, read_file
    from mmrl_core.cli.peers.of_trainer import translate
    from mmrl_core.cli.peers.of_verl import translate_easyr1, translate_verl
    from mmrl_core.cli.peers.task import Task

    found = read_file(file, peer)
    given = dict(found.values) | ({} if processes is None else {"num_processes": processes})
    if found.peer in ("verl", "easyr1"):
        given.pop("num_processes", None)
    task = Task(NAMES[found.peer], TABLES[found.peer], given)
    task.copy_direct()
    if found.peer == "verl":
        translate_verl(task, found.folder)
    elif found.peer == "easyr1":
        translate_easyr1(task, found.folder)
    else:
        translate(task, found.folder, rewards, swift=found.peer == "swift")
    head = [f"# From {file.name}, a config of {NAMES[found.peer]}, by `mmrl import-config`."]
    for name, heading in HEADINGS:
        lines = dict.fromkeys(getattr(task, name))
        head += [f"# {heading}:", *(f"#   {' '.join(line.split())}" for line in lines)] if lines else []
    return "\n".join(head) + "\n" + yaml.safe_dump(task.ordered(), sort_keys=False, allow_unicode=True, width=110)


COMMAND = Command(
    "import-config",
    "Turn a config of TRL, verl, EasyR1 or ms-swift into a task, and say what has no counterpart.",
    "mmrl import-config run_grpo.sh --output my_task.yaml",
    add_arguments,
    run,
)

"""`mmrl import-config`: a config of TRL, verl, EasyR1 or ms-swift as a task."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmrl_core.cli.command import Command, positive
from mmrl_core.errors import MMRLError


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
    from mmrl_core.peers import imported

    text = imported(arguments.file, arguments.peer, arguments.processes, arguments.rewards)
    if arguments.output is None:
        print(text, end="")
        return
    if arguments.output.exists():
        raise MMRLError(f"{arguments.output} exists. Name another --output.")
    arguments.output.write_text(text, encoding="utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    print(*comments, f"wrote {arguments.output}", sep="\n")


COMMAND = Command(
    "import-config",
    "Turn a config of TRL, verl, EasyR1 or ms-swift into a task, and say what has no counterpart.",
    "mmrl import-config run_grpo.sh --output my_task.yaml",
    add_arguments,
    run,
)

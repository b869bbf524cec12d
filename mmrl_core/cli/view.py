"""`mmrl view`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmrl_core.cli.command import Command
from mmrl_core.errors import MMRLError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="run directory")
    parser.add_argument(
        "--trust", action="store_true", help="run the Python file that the run names as its view (default: do not)"
    )


def run(arguments: argparse.Namespace) -> None:
    if not arguments.run_directory.is_dir():
        raise MMRLError(f"there is no run in {arguments.run_directory}.")

    from mmrl_core.runs import write_report

    print(write_report(arguments.run_directory, runs_files=arguments.trust))


COMMAND = Command(
    "view", "Write a run's report, one HTML file that needs no server.", "mmrl view runs/first", add_arguments, run
)

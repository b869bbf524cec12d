"""`mmrl view`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmrl_core.cli.command import Command
from mmrl_core.errors import MMRLError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="run directory")
    parser.add_argument(
        "other", type=Path, nargs="?", metavar="RUN2", help="run to compare it with, side by side (default: none)"
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="serve the report on this machine, anew whenever the run has more, until Ctrl-C (default: write a file)",
    )
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="of --follow, 0: any (default: 8000)")
    parser.add_argument(
        "--trust", action="store_true", help="run the Python file that the run names as its view (default: do not)"
    )


def run(arguments: argparse.Namespace) -> None:
    runs = [path for path in (arguments.run_directory, arguments.other) if path is not None]
    for path in runs:
        if not path.is_dir():
            raise MMRLError(f"there is no run in {path}.")

    from mmrl_core.runs import ReportServer, write_report

    if not arguments.follow:
        print(write_report(*runs, runs_files=arguments.trust))
        return
    with ReportServer(runs, arguments.port, runs_files=arguments.trust) as server:
        print(f"{server.url} shows the run as it goes on; Ctrl-C ends this.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


COMMAND = Command(
    "view",
    "Write a run's report, one HTML file that needs no server.",
    "mmrl view runs/first",
    add_arguments,
    run,
)

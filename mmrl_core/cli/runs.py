"""`mmrl runs`: the runs in a folder, a line each."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl_core.cli.command import Command
from mmrl_core.cli.tables import print_table
from mmrl_core.errors import MMRLError

if TYPE_CHECKING:
    from mmrl_core.runs import RunSummary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), metavar="DIR", help="where runs lie (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list, the newest first")


def run(arguments: argparse.Namespace) -> None:
    from mmrl_core.runs import find_runs, summarize

    folder: Path = arguments.folder
    if not folder.is_dir():
        raise MMRLError(f"there is no folder {folder}. Name the one that your runs are written to.")
    found = sorted(map(summarize, find_runs(folder)), key=lambda summary: -summary.modified)
    if arguments.json:
        print(json.dumps([_facts(summary) for summary in found], indent=2))
    elif found:
        print_table([_row(summary) for summary in found])
    else:
        print(f"no run in {folder}; `mmrl train TASK` writes one")


def _facts(summary: RunSummary) -> dict[str, object]:
    return {
        "run": str(summary.path),
        "task": summary.task,
        "status": summary.status,
        "steps": summary.steps,
        "planned": summary.planned,
        "alarms": summary.num_alarms,
        "held_out": {"metric": summary.headline, "before": summary.before, "after": summary.after},
        "modified": summary.modified,
    }


def _row(summary: RunSummary) -> dict[str, str]:
    steps = f"{summary.steps:,}" if summary.planned is None else f"{summary.steps:,}/{summary.planned:,}"
    alarms = f", {summary.num_alarms} alarm{'s' * (summary.num_alarms > 1)}" if summary.num_alarms else ""
    values = [f"{value:.3f}" for value in (summary.before, summary.after) if value is not None]
    return {
        "run": os.path.relpath(summary.path),
        "task": summary.task,
        "status": f"{summary.status}{alarms}",
        "steps": steps,
        "held out": f"{summary.headline} {' -> '.join(values)}" if values else "",
        "last written": _ago(summary.age_s),
    }


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


COMMAND = Command(
    "runs", "List the runs in a folder, each with its state and what it reached.", "mmrl runs", add_arguments, run
)

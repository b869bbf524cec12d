"""`mmrl eval`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from mmrl_core.cli.command import Command, add_task, positive
from mmrl_core.cli.tables import print_table
from mmrl_core.errors import MMRLError
from mmrl_core.support import finite, written_aside


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_task(parser)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        required=True,
        help="a folder checkpoints/step-N of a run, whose eval.json is written, or any model folder, for one in it",
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="held-out rows used (default: eval.limit or all)")


def run(arguments: argparse.Namespace) -> None:
    from mmrl_core.config import load_config

    config = load_config(arguments.task, arguments.overrides)
    checkpoint: Path = arguments.checkpoint
    if not checkpoint.is_dir():
        raise MMRLError(f"there is no checkpoint folder {checkpoint}.")

    from mmrl_core.evaluation import evaluate_checkpoint

    metrics = evaluate_checkpoint(config, checkpoint, arguments.limit)
    print_table([{"metric": name, "value": _number(value)} for name, value in metrics.items()])
    path = _run_of(checkpoint) / "eval.json"
    result = {
        "task": arguments.task,
        "overrides": arguments.overrides,
        "checkpoint": str(checkpoint),
        "limit": arguments.limit,
        "metrics": {name: finite(value) for name, value in metrics.items()},
    }
    with written_aside(path) as aside:
        aside.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(f"\nwritten to {os.path.relpath(path) if path.is_relative_to(Path.cwd()) else path}")


def _run_of(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to: RUN of RUN/checkpoints/step-N; any other folder is its own."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else checkpoint


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


COMMAND = Command(
    "eval",
    "Compute a task's benchmark metrics of a checkpoint on its held-out rows.",
    "mmrl eval visual_rft/demo_detection --checkpoint runs/first/checkpoints/step-5 --limit 64",
    add_arguments,
    run,
)

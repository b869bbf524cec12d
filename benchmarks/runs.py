"""What the benchmarks share: runs of `mmrl train`, and what their metrics say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrl_core.runs import read_metrics

COLUMNS = ("greedy/reward/score", "t1/reward/score", "greedy/reward/iou", "greedy/AP", "greedy/AP50")
HEADINGS = ("score greedy", "score T=1", "mean IoU", "AP", "AP50")


def train(task: str, output: Path, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Train, or go on with a run that was begun; returns its metrics. A run that is done is not trained again."""
    command = [sys.executable, "-m", "mmrl_core", "train", task, *overrides, "--output", str(output)]
    if (output / "report.html").is_file():
        return read_metrics(output)
    if (output / "config.yaml").is_file():
        command.append("--resume")
    print("$ mmrl", " ".join(command[3:]), flush=True)
    subprocess.run(command, check=True)
    return read_metrics(output)


def evaluation(records: Sequence[dict[str, Any]], label: str) -> dict[str, Any]:
    """The held-out metrics with this label."""
    return next(record for record in records if record["kind"] == "eval" and record["label"] == label)


def step_seconds(records: Sequence[dict[str, Any]], stage: str) -> list[float]:
    """Seconds of each step of a stage."""
    return [record["seconds"] for record in records if record["kind"] == "step" and record["stage"] == stage]


def table_row(*labels: str, record: dict[str, Any]) -> str:
    """A Markdown table row: labels, then the columns of `COLUMNS`."""
    return "| " + " | ".join([*labels, *(f"{record[name]:.3f}" for name in COLUMNS)]) + " |"


def table_head(*labels: str) -> str:
    titles = [*labels, *HEADINGS]
    return "| " + " | ".join(titles) + " |\n|" + " --- |" * len(titles)

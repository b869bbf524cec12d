"""What `mmrl eval` found of a run's checkpoints, read from `eval/*.json` for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl_core.runs.report.reading import edges_of

MAX_SHOWN = 50
"""Evaluations shown, in the order of their files' names."""

MAX_BYTES = 1_000_000
"""Of a file; one with more metrics than that was not written by `mmrl eval`."""


@dataclass(frozen=True)
class CheckpointResult:
    """One evaluation: a title that says of what, notes, and metrics with their intervals in the order of the file."""

    title: str
    file: str
    notes: list[str]
    metrics: list[tuple[str, float, tuple[float, float] | None]]


def read_checkpoint_results(run: Path) -> list[CheckpointResult]:
    """Evaluations in the run. A file that is no such result is left out."""
    paths = sorted(run.glob("eval/*.json"))
    found = [_read(path) for path in paths[: 2 * MAX_SHOWN]]
    return [result for result in found if result is not None][:MAX_SHOWN]


def _read(path: Path) -> CheckpointResult | None:
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(values, Mapping) or not isinstance(values.get("metrics"), Mapping):
        return None
    rows = f"the first {values['limit']} rows" if values.get("limit") else "all rows"
    title = f"{values.get('checkpoint')} on {values.get('task')}, {rows}"
    overrides = values.get("overrides")
    if isinstance(overrides, list) and overrides:
        title += f", {' '.join(map(str, overrides))}"
    notes = values.get("notes")
    notes = [str(note) for note in notes] if isinstance(notes, list) else []
    intervals = edges_of(values, "intervals")
    numbers = [
        (str(name), float(value), intervals.get(str(name)))
        for name, value in values["metrics"].items()
        if _is_number(value)
    ]
    return CheckpointResult(
        title[:300], path.name, [str(note) for note in notes] if isinstance(notes, list) else [], numbers
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300

"""What a run came to, in a few numbers: for `mmrl runs` and `mmrl compare`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl_core.runs.log import read_metrics
from mmrl_core.runs.report import at, number_of, read_config
from mmrl_core.support import is_held

MOST_DEPTH = 3
"""Folders below that in which runs are looked for, such as a folder for each method and in it one for each seed."""

WORK = {
    "seconds in steps": "seconds",
    "sampled tokens": "count/decode_tokens",
    "trained tokens": "count/update_tokens",
    "media encodes": "count/media_encodes",
}
"""What a run did -> the metric of a step that is summed."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class RunSummary:
    """A run directory in short.

    Attributes:
        task: name of its task; "" if its config cannot be read.
        steps: done so far.
        planned: steps of all stages; None where one counts in epochs.
        status: "running", "failed", "done" or "stopped"; "ended" where its length is not known.
        headline: name of the held-out metric that it is known by: the total reward, or the first reward or metric.
        before, after: the headline at the first and the last evaluation; None if it was not measured.
        num_alarms: rewards that score nothing, losses that are not numbers, ...
        modified: seconds since 1970 of its last record.
        evaluation: the last one.
        work: what all steps did; what was not counted is left out.
    """

    path: Path
    task: str
    steps: int
    planned: int | None
    status: str
    headline: str
    before: float | None
    after: float | None
    num_alarms: int
    modified: float
    evaluation: Record
    work: Mapping[str, float]

    @property
    def age_s(self) -> float:
        return max(0.0, time.time() - self.modified)


def summarize(run: Path) -> RunSummary:
    """Read a run directory; what is missing or torn in it is left out.

    Raises:
        OSError: it has no metrics.jsonl.
    """
    records = read_metrics(run)
    _, config, _ = read_config(run / "config.yaml")
    steps = [record for record in records if record.get("kind") == "step"]
    evaluations = [record for record in records if record.get("kind") == "eval"]
    last = evaluations[-1] if evaluations else {}
    headline = _headline(last)
    done = max((record["step"] for record in steps if isinstance(record.get("step"), int)), default=0)
    planned = _planned(config)
    return RunSummary(
        path=run,
        task=str(at(config, "name") or ""),
        steps=done,
        planned=planned,
        status=_status(run, records, done, planned),
        headline=headline,
        before=number_of(evaluations[0].get(headline)) if evaluations else None,
        after=number_of(last.get(headline)),
        num_alarms=sum(record.get("kind") == "alarm" for record in records),
        modified=(run / "metrics.jsonl").stat().st_mtime,
        evaluation=last,
        work={name: sum(found) for name, metric in WORK.items() if (found := _numbers(steps, metric))},
    )


def find_runs(folder: Path) -> Iterator[Path]:
    """Run directories in a folder, at most `MOST_DEPTH` below it; the folder itself may be one."""
    level = [folder]
    for _ in range(MOST_DEPTH + 1):
        runs = [path for path in level if (path / "metrics.jsonl").is_file() and (path / "config.yaml").is_file()]
        yield from runs
        others = [path for path in level if path not in runs]
        level = [path for other in others for path in sorted(other.iterdir()) if _is_folder(path)]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not path.name.startswith(".")


def _headline(evaluation: Record) -> str:
    names = [name for name in evaluation if "/" in name]
    wanted = ("greedy/reward/total", *(name for name in names if "/reward/" in name), *names)
    return next((name for name in wanted if name in evaluation), "")


def _planned(config: Any) -> int | None:
    stages = at(config, "stages")
    counts = [at(stage, "steps") for stage in stages] if isinstance(stages, list) else []
    return sum(counts) if counts and all(isinstance(count, int) for count in counts) else None


def _status(run: Path, records: Sequence[Record], done: int, planned: int | None) -> str:
    if is_held(run):
        return "running"
    if records and records[-1].get("kind") == "error":
        return "failed"
    if planned is None:
        return "ended"
    return "done" if done >= planned else "stopped"


def _numbers(steps: Sequence[Record], metric: str) -> list[float]:
    return [number for record in steps if (number := number_of(record.get(metric))) is not None]

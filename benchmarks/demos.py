"""What demos learn: untrained, after the cold start and after each stage of GRPO, over seeds.

    OMP_NUM_THREADS=1 python benchmarks/demos.py gui/demo_screens audio_aqa/demo_sounds --seeds 0 1 2

    OMP_NUM_THREADS=1 python benchmarks/demos.py visual_rft/demo_classification --seeds 0 \\
        --presets algorithm/grpo "algorithm/drpo algorithm.loss.max_length=16" algorithm/d3s algorithm/unlikeliness

The second command trains a task with several algorithms, each a preset with what else it needs.

Prints a table for each task: a row for each seed and evaluation, a column for each held-out reward and metric. A run
that was interrupted is resumed; one that is done is not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from runs import train

LEFT_OUT = ("completion_tokens", "num_", "set_aside")


def table(runs: Sequence[tuple[int, list[dict[str, Any]]]]) -> str:
    """Markdown table of (seed, metrics of its run)."""
    rows = [(seed, record) for seed, records in runs for record in records if record["kind"] == "eval"]
    rows = [(seed, record) for seed, record in rows if not record["label"].startswith("step ")]
    columns = list(dict.fromkeys(name for _, record in rows for name in record if is_shown(name)))
    titles = ["seed", "model", *columns]
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for seed, record in rows:
        cells = [f"{record[name]:.3f}" if name in record else "-" for name in columns]
        lines.append("| " + " | ".join([str(seed), record["label"], *cells]) + " |")
    return "\n".join(lines)


def is_shown(name: str) -> bool:
    """All that is greedy; of samples at a temperature the rewards."""
    temperature, _, metric = name.partition("/")
    sampled = temperature.startswith("t") and metric.startswith("reward/")
    return (temperature == "greedy" or sampled) and not metric.startswith(LEFT_OUT)


def with_preset(task: str, preset: str, folder: Path) -> str:
    """Path of a task that extends a task by a preset."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump({"extends": [task, preset], "name": folder.name}, sort_keys=False))
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", help="such as gui/demo_screens")
    parser.add_argument("--output", type=Path, default=Path("runs/demos_table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--presets", nargs="+", default=[""], help="each a preset and overrides, as one argument")
    arguments = parser.parse_args()
    for task, preset in itertools.product(arguments.tasks, arguments.presets):
        name, *overrides = shlex.split(preset) or [""]
        folder = arguments.output / "-".join([task, *([name] if name else [])]).replace("/", "-")
        trained = with_preset(task, name, folder) if name else task
        runs = [
            (seed, train(trained, folder / f"seed{seed}", [f"seed={seed}", *overrides])) for seed in arguments.seeds
        ]
        text = f"{task} {preset}\n\n{table(runs)}\n"
        (folder / "table.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()

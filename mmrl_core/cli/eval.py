"""`mmrl eval`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.cli.command import Command, positive
from mmrl_core.cli.evaluated import Evaluated, config_of, find_evaluated, result_path
from mmrl_core.cli.tables import print_table
from mmrl_core.errors import MMRLError
from mmrl_core.support import finite, written_aside

if TYPE_CHECKING:
    from mmrl_core.types import RolloutGroup, Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "task",
        metavar="TASK",
        nargs="?",
        help="task id, see `mmrl list tasks`, or path of a YAML (default: the task of the checkpoint's run)",
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="config values to change, YAML: eval.limit=64"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="MODEL",
        required=True,
        help="a run (its newest checkpoint), its checkpoints/step-N, a folder of a model or a LoRA adapter, a GGUF "
        "file, or the name of a model of the hub, owner/name. The result goes to eval/ in the run or folder, with the "
        "completions",
    )
    parser.add_argument(
        "--with",
        dest="elsewhere",
        metavar="FRAMEWORK:TASK",
        help="a task of another framework instead of TASK: inspect:FILE.py, inspect:PACKAGE/TASK (inspect_ai), "
        "lmms:TASK, lmms:FILE.yaml (lmms-eval); overrides change the model",
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="held-out rows used (default: eval.limit or all)")


def run(arguments: argparse.Namespace) -> None:
    task, overrides = _task_and_overrides(arguments)
    evaluated = find_evaluated(arguments.checkpoint)
    if arguments.elsewhere is not None:
        _run_elsewhere(arguments, task, overrides, evaluated)
        return
    config, notes = config_of(evaluated, task, overrides)
    for note in notes:
        print(note)

    from mmrl_core.cli.opening import evaluate_checkpoint
    from mmrl_core.plugins import load_plugins
    from mmrl_core.runs import Rightness, answer_lines, held_out_intervals

    lines: list[str] = []
    intervals: dict[str, tuple[float, float]] = {}

    def keep(groups: Sequence[RolloutGroup], scores: Scores, temperature: float) -> None:
        registry = load_plugins().registry
        lines.extend(answer_lines(groups, scores, temperature, Rightness(config, registry)))
        intervals.update(held_out_intervals(config, registry, groups, scores, temperature))

    metrics = evaluate_checkpoint(config, evaluated.weights, arguments.limit, log_all=keep)
    _keep(arguments, evaluated, config.name, task, overrides, notes, metrics, lines, intervals)


def _run_elsewhere(
    arguments: argparse.Namespace, task: str | None, overrides: Sequence[str], evaluated: Evaluated
) -> None:
    if task is not None:
        given = f"--with {arguments.elsewhere}"
        raise MMRLError(f"{given} says what is evaluated, and so does TASK {task!r}. Leave one out.")
    from mmrl_core.cli.elsewhere import measure

    folder = evaluated.folder / "eval"
    measured = measure(arguments.elsewhere, arguments.checkpoint, overrides, arguments.limit, folder)
    for note in measured.notes:
        print(note)
    framework, _, name = arguments.elsewhere.partition(":")
    lines = [f"{json.dumps(line, allow_nan=False)}\n" for line in measured.lines]
    called = f"{framework}/{Path(name).name}"
    _keep(arguments, evaluated, called, arguments.elsewhere, overrides, measured.notes, measured.metrics, lines, {})


def _keep(
    arguments: argparse.Namespace,
    evaluated: Evaluated,
    task: str,
    given_task: str | None,
    overrides: Sequence[str],
    notes: Sequence[str],
    metrics: Mapping[str, float],
    lines: Sequence[str],
    intervals: Mapping[str, tuple[float, float]],
) -> None:
    """Print what was measured, and write it, with a line for each completion."""
    print_table([{"metric": name, "value": _number(value)} for name, value in metrics.items()])
    path = result_path(evaluated, task, arguments.limit, overrides)
    result = {
        "task": task,
        "given_task": given_task,
        "overrides": overrides,
        "checkpoint": evaluated.name,
        "given_checkpoint": arguments.checkpoint,
        "limit": arguments.limit,
        "notes": notes,
        "metrics": {name: finite(value) for name, value in metrics.items()},
        "intervals": {name: edges for name, edges in intervals.items() if name in metrics},
    }
    with written_aside(path.with_suffix(".jsonl")) as aside:
        aside.write_text("".join(lines), encoding="utf-8")
    with written_aside(path) as aside:
        aside.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    shown = os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else path
    print(f"\nwritten to {shown}, the completions beside it")


def _task_and_overrides(arguments: argparse.Namespace) -> tuple[str | None, list[str]]:
    """Without a task, argparse takes the first override for one."""
    task, overrides = arguments.task, list(arguments.overrides)
    is_override = task is not None and "=" in task and not Path(task).exists()
    return (None, [task, *overrides]) if is_override else (task, overrides)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


COMMAND = Command(
    "eval",
    "Compute a task's benchmark metrics of a checkpoint, or of any model, on its held-out rows.",
    "mmrl eval visual_rft/demo_detection --checkpoint runs/first/checkpoints/step-5 --limit 64",
    add_arguments,
    run,
)

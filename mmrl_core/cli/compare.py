"""`mmrl compare`: two runs, or more, in numbers and in what they were told."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.cli.command import Command
from mmrl_core.cli.tables import print_table
from mmrl_core.errors import MMRLError

if TYPE_CHECKING:
    from mmrl_core.runs import RunSummary

MAX_DIFFERENCES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories; the first is compared with")
    parser.add_argument(
        "--all", action="store_true", help=f"every config key that differs (default: {MAX_DIFFERENCES})"
    )


def run(arguments: argparse.Namespace) -> None:
    if len(arguments.runs) < 2:
        raise MMRLError("name two runs, or more, to compare.")
    for path in arguments.runs:
        if not (path / "metrics.jsonl").is_file():
            raise MMRLError(
                f"there is no run in {path}: it has no metrics.jsonl. `mmrl runs` lists the runs of a folder."
            )
    from mmrl_core.runs import summarize

    summaries = [summarize(path) for path in arguments.runs]
    names = _names(arguments.runs)
    first = summaries[0]
    steps = [f"{summary.steps:,} ({summary.status})" for summary in summaries]
    rows = [_row("steps", names, steps)]
    rows += [
        _row(name, names, [f"{summary.work[name]:,.0f}" if name in summary.work else "-" for summary in summaries])
        for name in first.work
    ]
    print_table(rows)
    print("\nheld out, at the last evaluation of each")
    metrics = [name for name in first.evaluation if "/" in name]
    rows = [_row(name, names, _values([summary.evaluation for summary in summaries], name)) for name in metrics]
    print_table(rows)
    for name, summary in list(zip(names, summaries, strict=True))[1:]:
        lines = _differences(first, summary)
        print(f"\n{name} is configured as {names[0]}" if not lines else f"\nconfig of {names[0]}, and of {name}")
        shown = lines if arguments.all else lines[:MAX_DIFFERENCES]
        print(*(f"  {line}" for line in shown), sep="\n", end="\n" if shown else "")
        if len(shown) < len(lines):
            print(f"  and {len(lines) - len(shown)} more; --all shows them")


def _row(name: str, names: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    return {"": name, **dict(zip(names, values, strict=True))}


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise MMRLError("a run is named twice. Name different ones.")


def _values(evaluations: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """A metric of each evaluation, and how far it is from that of the first."""
    from mmrl_core.runs import number_of

    first, *others = [number_of(evaluation.get(name)) for evaluation in evaluations]
    shown = ["-" if first is None else f"{first:.3f}"]
    for value in others:
        change = f" ({value - first:+.3f})" if value is not None and first is not None else ""
        shown.append("-" if value is None else f"{value:.3f}{change}")
    return shown


def _differences(first: RunSummary, other: RunSummary) -> list[str]:
    """Config keys with their values in the one and the other; why not, where a config cannot be read any more."""
    from mmrl_core.config import differing_keys, load_config

    try:
        configs = [load_config(str(summary.path / "config.yaml")) for summary in (first, other)]
    except MMRLError as error:
        return [f"cannot be compared: {str(error).splitlines()[0]}"]
    return [line.replace(" there, ", ", ").removesuffix(" here") for line in differing_keys(*configs)]


COMMAND = Command(
    "compare",
    "Compare runs: steps, work, held-out metrics, and the config keys that differ.",
    "mmrl compare runs/first runs/second",
    add_arguments,
    run,
)

"""What went wrong in a run, for the box at the top of its report: its end, alarms, failures, rows set aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmrl_core.runs.report.reading import Points, Record
from mmrl_core.runs.report.text import format_number, shortened, visible

MAX_PROBLEMS = 12
FAILURES = "failures/"


def problems_of(
    records: Sequence[Record], columns: Mapping[str, Points], num_set_aside: int, unreadable: Sequence[str]
) -> list[tuple[str, str]]:
    """(CSS class, text) of each problem, the gravest first: "error", "alarm" or "failure".

    Args:
        records: all of metrics.jsonl.
        columns: its numbers, of which `failures/<reward>` are shown with the first message of each.
        num_set_aside: broken rows.
        unreadable: sentences about files of the run that cannot be read.
    """
    found = [("error", f"The run ended after step {_step(one)}: {_message(one)}") for one in _of_kind(records, "error")]
    found += [("alarm", f"Step {_step(one)}: {_message(one)}") for one in _of_kind(records, "alarm")]
    found += [("error", text) for text in unreadable]
    found += [("failure", text) for text in _failures(records, columns)]
    if num_set_aside:
        rows = "row was" if num_set_aside == 1 else "rows were"
        found.append(("failure", f"{num_set_aside:,} broken {rows} set aside; see below."))
    if left_out := len(found) - MAX_PROBLEMS:
        found = found[:MAX_PROBLEMS] + ([("failure", f"{left_out} more.")] if left_out > 0 else [])
    return [(style, shortened(text)) for style, text in found]


def resumes_of(records: Sequence[Record]) -> list[str]:
    """A line for each resume with other keys than the run had begun with."""
    lines = []
    for record in _of_kind(records, "resume")[:MAX_PROBLEMS]:
        changes = record.get("changes")
        told = "; ".join(map(str, changes)) if isinstance(changes, list) else ""
        lines.append(shortened(f"after step {_step(record)}: {told}"))
    return lines


def _failures(records: Sequence[Record], columns: Mapping[str, Points]) -> list[str]:
    first = {str(one.get("name")): _message(one) for one in reversed(_of_kind(records, "failure"))}
    counts = {key.removeprefix(FAILURES): sum(v.values()) for key, v in columns.items() if key.startswith(FAILURES)}
    lines = []
    for name in dict.fromkeys([*counts, *first]):
        number = f"{counts[name]:,.0f}" if name in counts else "some"
        text = f"Reward {visible(name)} failed on {number} completions, which are unscored."
        lines.append(f"{text} The first time: {first[name]}" if name in first else text)
    return lines


def _of_kind(records: Sequence[Record], kind: str) -> list[Record]:
    return [record for record in records if record.get("kind") == kind]


def _step(record: Record) -> str:
    step: Any = record.get("step")
    return format_number(step)


def _message(record: Record) -> str:
    return str(record.get("message", ""))

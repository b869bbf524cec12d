"""The files of a run folder, read as they are: a value may be missing, torn or of a type that no run would write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl_core.runs.charts import Stage
from mmrl_core.runs.report.text import MAX_SHOWN_CHARS, name_of, number_of
from mmrl_core.runs.rollouts import RolloutFile, read_json_lines, rollout_files
from mmrl_core.runs.starts import FILE_NAME as STARTS

_TEMPERATURE_METRIC = re.compile(r"(greedy|t[0-9][0-9.]*)/(.+)")

MAX_CONFIG_BYTES = 1 << 20
MAX_CONFIG_DEPTH = 40
MAX_COLUMNS = 2_000  # metrics that are looked at; a run has a few hundred
MAX_STEP = 1 << 53
MAX_STAGES = 50

Record = Mapping[str, Any]
Points = dict[int, float]  # step -> number


def read_config(path: Path) -> tuple[str, Any, str]:
    """The text of a config, "" if there is none; the config, None if it cannot be read; and why, or ""."""
    if not path.exists() and not path.is_symlink():
        return "", None, ""
    if not path.is_file() or path.is_symlink():
        return "", None, f"{path.name} is not shown: it is no regular file."
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1).decode("utf-8", errors="replace")
    except OSError as error:
        return "", None, f"{path.name} cannot be read: {error.strerror}."
    if len(text) > MAX_CONFIG_BYTES:
        return (
            text[:MAX_SHOWN_CHARS],
            None,
            f"{path.name} is longer than {MAX_CONFIG_BYTES:,} bytes, so it is not read.",
        )
    try:
        return text, _plain_yaml(text), ""
    except Exception as error:  # numbers, dates and keys made by hand raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return text[:MAX_CONFIG_BYTES], None, f"{path.name} cannot be read: {reason[0][:200]}."


def _plain_yaml(text: str) -> Any:
    """YAML without aliases, which may stand for more than any memory holds, and not deeper than a config is."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        line = event.start_mark.line + 1 if event.start_mark is not None else 0
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {line} has an alias (*{event.anchor}), which no run writes")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_CONFIG_DEPTH:
            raise ValueError(f"line {line} is nested more than {MAX_CONFIG_DEPTH} deep")
    return yaml.load(text, Loader=loader)


@dataclass(frozen=True)
class RunFiles:
    """Everything of a run directory that the report shows, but for its rollouts, whose files are listed.

    Attributes:
        name: of the directory.
        unreadable: why the config cannot be read, or "".
        starts: records of starts.jsonl.
    """

    path: Path
    name: str
    config_text: str
    config: Any
    unreadable: str
    records: list[Record]
    steps: list[Record]
    evaluations: list[Evaluation]
    columns: dict[str, Points]
    stages: list[Stage]
    files: list[RolloutFile]
    starts: list[Record]


def read_run(path: Path) -> RunFiles:
    """Read a run directory."""
    config_text, config, unreadable = read_config(path / "config.yaml")
    records: list[Record] = [*read_json_lines(path / "metrics.jsonl")]
    steps, evaluations = sorted_records(records)
    return RunFiles(
        path,
        name_of(path.resolve().name),
        config_text,
        config,
        unreadable,
        records,
        steps,
        evaluations,
        columns_of(steps),
        stages_of(steps),
        rollout_files(path),
        [*read_json_lines(path / STARTS)],
    )


def at(tree: Any, *keys: str) -> Any:
    """The value under nested keys, None where a key is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def mapping_of(record: Record, key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def list_of(record: Record, key: str) -> list[Any]:
    value = record.get(key)
    return value if isinstance(value, list) else []


def numbers_of(record: Record) -> list[tuple[str, float]]:
    """Names and values of the finite numbers of a record."""
    return [(key, number) for key, value in record.items() if (number := number_of(value)) is not None]


@dataclass(frozen=True)
class Evaluation:
    """Held-out metrics of a step; the keys of `values` are (metric, "greedy" or a temperature).

    `intervals` has the 95 % intervals of some of them; `num_rows` is None where the run did not note it.
    """

    step: int
    label: str
    values: Mapping[tuple[str, str], float]
    intervals: Mapping[tuple[str, str], tuple[float, float]]
    num_rows: int | None = None


def sorted_records(records: Sequence[Record]) -> tuple[list[Record], list[Evaluation]]:
    """Step records and evaluations, by step. The last record of a repeated step or evaluation counts."""
    steps: dict[int, Record] = {}
    evaluations: dict[tuple[int, str], Evaluation] = {}
    for record in records:
        step, label = record.get("step"), name_of(record.get("label", ""))
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < MAX_STEP:
            continue
        if record.get("kind") == "step":
            steps[step] = record
        elif record.get("kind") == "eval":
            numbers = {name: number for key, number in numbers_of(record) if (name := _metric_name(key))}
            rows = number_of(record.get("num_prompts"))
            num_rows = int(rows) if rows is not None and 0 < rows < MAX_STEP else None
            edges = edges_of(record, "intervals").items()
            intervals = {name: pair for key, pair in edges if (name := _metric_name(key))}
            evaluations[step, label] = Evaluation(step, label, numbers, intervals, num_rows)
    return [steps[step] for step in sorted(steps)], sorted(evaluations.values(), key=lambda one: one.step)


def _metric_name(key: str) -> tuple[str, str] | None:
    """(metric, "greedy" or a temperature); None for what is no held-out metric."""
    match = _TEMPERATURE_METRIC.fullmatch(key)
    return match and (match[2], match[1] if match[1] == "greedy" else f"T = {match[1][1:]}")


def edges_of(record: Record, key: str) -> dict[str, tuple[float, float]]:
    """Name -> low and high edge, of the intervals under a key."""
    found = {}
    for name, edges in mapping_of(record, key).items():
        low, high = map(number_of, edges) if isinstance(edges, list) and len(edges) == 2 else (None, None)
        if low is not None and high is not None:
            found[str(name)] = (low, high)
    return found


def columns_of(steps: Sequence[Record]) -> dict[str, Points]:
    """Metric -> its numbers by step. Each kind of stage has a loss of its own, because they share no scale."""
    columns: dict[str, Points] = {}
    for record in steps:
        for key, number in numbers_of(record):
            name = f"loss ({name_of(record.get('stage_kind', ''))})" if key == "loss" else key
            if name in columns or len(columns) < MAX_COLUMNS:
                columns.setdefault(name, {})[record["step"]] = number
    return columns


def stages_of(steps: Sequence[Record]) -> list[Stage]:
    by_name: dict[str, list[int]] = {}
    for record in steps:
        by_name.setdefault(name_of(record.get("stage", "")), []).append(record["step"])
    return [Stage(name, numbers[0], numbers[-1]) for name, numbers in list(by_name.items())[:MAX_STAGES]]

"""The files of a run folder, read as they are: a value may be missing, torn or of a type that no run would write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl_core.runs.charts import Stage
from mmrl_core.runs.report.text import number_of, visible
from mmrl_core.runs.rollouts import read_json_lines

_TEMPERATURE_METRIC = re.compile(r"(greedy|t[0-9][0-9.]*)/(.+)")

Record = Mapping[str, Any]
Points = dict[int, float]  # step -> number


def read_config(path: Path) -> tuple[str, Any]:
    """The text of a config, "" if there is none, and the config, None if it cannot be read."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        return text, yaml.safe_load(text)
    except OSError:
        return "", None
    except yaml.YAMLError:
        return text, None


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
    """Held-out metrics of a step; the keys of `values` are (metric, "greedy" or a temperature)."""

    step: int
    label: str
    values: Mapping[tuple[str, str], float]


def read_metrics(path: Path) -> tuple[list[Record], list[Evaluation]]:
    """Step records and evaluations, by step. The last record of a repeated step or evaluation counts."""
    steps: dict[int, Record] = {}
    evaluations: dict[tuple[int, str], Evaluation] = {}
    for record in read_json_lines(path):
        step, label = record.get("step"), str(record.get("label", ""))
        if not isinstance(step, int):
            continue
        if record.get("kind") == "step":
            steps[step] = record
        elif record.get("kind") == "eval":
            numbers = {
                (match[2], match[1] if match[1] == "greedy" else f"T = {match[1][1:]}"): number
                for key, number in numbers_of(record)
                if (match := _TEMPERATURE_METRIC.fullmatch(key))
            }
            evaluations[step, label] = Evaluation(step, label, numbers)
    return [steps[step] for step in sorted(steps)], sorted(evaluations.values(), key=lambda one: one.step)


def columns_of(steps: Sequence[Record]) -> dict[str, Points]:
    """Metric -> its numbers by step. Each kind of stage has a loss of its own, because they share no scale."""
    columns: dict[str, Points] = {}
    for record in steps:
        for key, number in numbers_of(record):
            name = f"loss ({record.get('stage_kind', '')})" if key == "loss" else key
            columns.setdefault(name, {})[record["step"]] = number
    return columns


def stages_of(steps: Sequence[Record]) -> list[Stage]:
    by_name: dict[str, list[int]] = {}
    for record in steps:
        by_name.setdefault(visible(str(record.get("stage", ""))), []).append(record["step"])
    return [Stage(name, numbers[0], numbers[-1]) for name, numbers in by_name.items()]

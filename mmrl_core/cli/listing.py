"""`mmrl list`: what is installed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.cli.command import Command
from mmrl_core.cli.tables import print_table
from mmrl_core.errors import MMRLError

if TYPE_CHECKING:
    from mmrl_core.plugins import Plugins
    from mmrl_core.plugins.registry import Entry

ALGORITHM_KINDS = ("advantage", "loss", "strategy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind", nargs="?", choices=list(LISTS), metavar="KIND", help=f"one of {', '.join(LISTS)} (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object {kind: [rows]}")


def run(arguments: argparse.Namespace) -> None:
    from mmrl_core.plugins import load_plugins

    plugins = load_plugins()
    tables = {kind: rows(plugins) for kind, rows in LISTS.items() if arguments.kind in (None, kind)}
    if arguments.json:
        print(json.dumps(tables, indent=2, ensure_ascii=False))
        return
    for kind, rows in tables.items():
        if len(tables) > 1:
            print(f"{'' if kind == next(iter(tables)) else chr(10)}{kind}")
        print_table([{key: _first_line(value) for key, value in row.items()} for row in rows])
    for plugin in plugins.plugins.values() if "plugins" in tables else ():
        if plugin.error is not None:
            print(f"\nplugin {plugin.name!r} failed to load:\n{plugin.error}")


def _plugin_rows(plugins: Plugins) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for plugin in plugins.plugins.values():
        status = "ok" if plugin.error is None else "FAILED"
        row = {"name": plugin.name, "status": status, "distribution": plugin.distribution, "version": plugin.version}
        rows.append(row | ({"error": plugin.error} if plugin.error is not None else {"description": plugin.summary}))
    return rows


def _task_rows(plugins: Plugins) -> list[dict[str, Any]]:
    rows = []
    for task in plugins.tasks.values():
        try:
            rows.append({"id": task.id, "plugin": task.plugin, "description": _comment(task.path)})
        except (MMRLError, ImportError, OSError) as error:
            rows.append({"id": task.id, "plugin": task.plugin, "error": str(error)})
    return rows


def _reward_rows(plugins: Plugins) -> list[dict[str, Any]]:
    return [_entry_row(entry) | _plain(entry.details) for entry in plugins.registry.entries("reward")]


def _preset_rows(plugins: Plugins) -> list[dict[str, Any]]:
    from mmrl_core.plugins import presets

    return [{"id": name, "description": _comment(path)} for name, path in presets().items()]


def _algorithm_rows(plugins: Plugins) -> list[dict[str, Any]]:
    presets = [{"kind": "preset", **row} for row in _preset_rows(plugins) if row["id"].startswith("algorithm/")]
    entries = [entry for kind in ALGORITHM_KINDS for entry in plugins.registry.entries(kind)]
    return presets + [{"kind": entry.kind, **_entry_row(entry)} for entry in entries]


def _hook_rows(plugins: Plugins) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "plugins": [p.name for p in plugins.plugins.values() if hasattr(p.module, name)],
            "description": _first_line(doc),
        }
        for name, doc in hooks().items()
    ]


def _entry_rows(kind: str, plugins: Plugins) -> list[dict[str, Any]]:
    return [_entry_row(entry) for entry in plugins.registry.entries(kind)]


LISTS: Mapping[str, Callable[[Plugins], list[dict[str, Any]]]] = {
    "plugins": _plugin_rows,
    "tasks": _task_rows,
    "presets": _preset_rows,
    "sources": partial(_entry_rows, "source"),
    "rewards": _reward_rows,
    "metrics": partial(_entry_rows, "metric"),
    "statistics": partial(_entry_rows, "statistic"),
    "tools": partial(_entry_rows, "tool"),
    "environments": partial(_entry_rows, "environment"),
    "algorithms": _algorithm_rows,
    "models": partial(_entry_rows, "model"),
    "policies": partial(_entry_rows, "policy"),
    "engines": partial(_entry_rows, "engine"),
    "views": partial(_entry_rows, "view"),
    "behaviours": partial(_entry_rows, "behaviour"),
    "hooks": _hook_rows,
}


def _entry_row(entry: Entry) -> dict[str, Any]:
    return {"id": entry.id.removeprefix("core/"), "description": entry.description}


def _plain(details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, str | int | float | None) else repr(value) for key, value in details.items()
    }


def hooks() -> dict[str, str]:
    """Hook name -> its documentation."""
    from mmrl_core import hookspecs

    return {name: value.__doc__ or "" for name, value in vars(hookspecs).items() if name.startswith("mmrl_")}


def _comment(path: Path) -> str:
    """The first line of a YAML, if it is a comment: what the file is."""
    with open(path, encoding="utf-8", errors="replace") as file:
        first = file.readline().strip()
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _first_line(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return next((line for line in str(value).strip().splitlines() if line), "")


COMMAND = Command("list", "List what is installed.", "mmrl list rewards --json", add_arguments, run)

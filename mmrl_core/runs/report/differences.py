"""Keys in which two configs differ, for a report of two runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmrl_core.runs.report.text import name_of, shortened

MAX_SHOWN = 60
MAX_VALUE_CHARS = 200


def config_differences(first: Any, second: Any) -> list[tuple[str, str, str]]:
    """(key, value of the first, value of the second) where they differ; "–" for a key that one does not have.

    >>> config_differences({"seed": 0, "model": {"path": "m"}}, {"seed": 1, "model": {"path": "m"}})
    [('seed', '0', '1')]
    """
    one, two = _flat(first), _flat(second)
    keys = [key for key in dict.fromkeys([*one, *two]) if one.get(key) != two.get(key)]
    return [(name_of(key), one.get(key, "–"), two.get(key, "–")) for key in keys[:MAX_SHOWN]]


def _flat(tree: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(tree, Mapping) and tree:
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(value, Mapping | list) for value in tree):
        items = [(str(place), value) for place, value in enumerate(tree)]
    else:
        return {prefix: shortened(json.dumps(tree, default=str)[:MAX_VALUE_CHARS])} if prefix else {}
    flat: dict[str, str] = {}
    for key, value in items:
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat

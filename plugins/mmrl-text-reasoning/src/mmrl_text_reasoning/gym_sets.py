"""What is known of the sets of reasoning-gym 0.1.25, read in their scorers; and their entries as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LISTS = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
"""Sets whose scorers evaluate an answer that looks like a list."""

FORMULAS = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
"""Sets whose scorers evaluate an answer as a formula."""

NOT_OFFERED = {
    "codeio": "it runs generated programs to score an answer",
    "composite": "`mixture` mixes sets, each with its own options",
}
"""Sets that are not offered, and why."""

_TUPLE, _PAIRS = "(tuple)", "(pairs)"


def entry_text(entry: Mapping[str, Any]) -> str:
    """An entry as JSON, from which `read_entry` makes the same: scorers tell tuples from lists, and 0 from "0".

    >>> read_entry(entry_text({"board": ((1, 2), (3, 4)), "colours": {0: 1}}))
    {'board': ((1, 2), (3, 4)), 'colours': {0: 1}}
    """
    return json.dumps(_coded(entry), default=str, ensure_ascii=False)


def read_entry(text: str) -> dict[str, Any]:
    """The entry of `entry_text`."""
    entry = _decoded(json.loads(text))
    assert isinstance(entry, dict)
    return entry


def _coded(value: Any) -> Any:
    if hasattr(value, "tolist"):  # an array
        value = value.tolist()
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _coded(item) for key, item in value.items()}
        return {_PAIRS: [[_coded(key), _coded(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_coded(item) for item in value]}
    return [_coded(item) for item in value] if isinstance(value, list) else value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_TUPLE}:
        return tuple(_decoded(item) for item in value[_TUPLE])
    if value.keys() == {_PAIRS}:
        return {_decoded(key): _decoded(item) for key, item in value[_PAIRS]}
    return {key: _decoded(item) for key, item in value.items()}

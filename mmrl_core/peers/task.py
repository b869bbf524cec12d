"""A task that is being made of another framework's config, with what there is to say about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl_core.peers.keys import UNSET, Key

ORDER = ("name", "seed", "extends", "model", "data", "prompt", "rewards", "rollout", "algorithm", "optimizer")
"""Sections at the start of a task; the others follow."""


class Task:
    """A task and remarks.

    Attributes:
        values: of the config, nested.
        missing: keys without a counterpart, a line each.
        defaults: what was left out, where their default is not ours, a line each.
        look: what a reader should look at, a line each.
    """

    def __init__(self, peer: str, table: Mapping[str, Key], given: Mapping[str, Any]) -> None:
        """
        Args:
            peer: name of the framework, for the remarks.
            table: its keys.
            given: what the config says.
        """
        self.peer = peer
        self.values: dict[str, Any] = {"stages": [{"kind": "grpo"}]}
        self.missing: list[str] = []
        self.defaults: list[str] = []
        self.look: list[str] = []
        self._table = table
        self._given = given

    def get(self, key: str) -> Any:
        """The value of a key, their default where it is left out; None where there is none."""
        value = self._given.get(key, UNSET)
        if value is UNSET and key in self._table:
            value = self._table[key].default
        return None if value is UNSET else value

    def is_given(self, *keys: str) -> bool:
        return any(self._given.get(key) is not None for key in keys)

    def set(self, path: str, value: Any) -> None:
        """Set our key; None is left out."""
        if value is None:
            return
        *parents, last = path.split(".")
        at: Any = self.values
        if parents[:1] == ["stage"]:
            at, parents = self.values["stages"][0], parents[1:]
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value

    def set_from(self, path: str, value: Any, *keys: str) -> None:
        """Set a key to what their keys come to; remarked on where none of them was given and ours is otherwise."""
        ours = default_of(path)
        if self.is_given(*keys):
            self.set(path, value)
        elif value is not None and value != ours:
            self.set(path, value)
            self.defaults.append(f"{path} is {_shown(value)}, as {self.peer} has it by default (ours: {_shown(ours)})")

    def copy_direct(self) -> None:
        """Set the keys whose values go where they are called otherwise."""
        for name, key in self._table.items():
            if key.direct and key.here:
                value = self.get(name)
                value = key.values.get(value, value) if key.values and isinstance(value, str) else value
                self.set_from(key.here, value, name)

    def remark_missing(self, machinery: tuple[str, ...]) -> None:
        """Remark on keys that have no counterpart, and on those that nobody knows."""
        for name, value in self._given.items():
            key = self._table.get(name)
            if key is None and not name.startswith(machinery):
                self.missing.append(f"{name}: {_shown(value)} (unknown here)")
            elif key is not None and not key.here and key.counts and value not in (None, key.default):
                self.missing.append(f"{name}: {_shown(value)} ({key.note})")

    def ordered(self) -> dict[str, Any]:
        """The values in the order in which they are read."""
        first = {name: self.values[name] for name in ORDER if name in self.values}
        return (
            first
            | {name: value for name, value in self.values.items() if name != "stages"}
            | {"stages": self.values["stages"]}
        )


def default_of(path: str) -> Any:
    """Our default of a key; None where there is none."""
    from pydantic import BaseModel

    from mmrl_core.config import RunConfig, StageConfig
    from mmrl_core.plugins import load_plugins

    parents = path.split(".")
    model: type[BaseModel] = RunConfig
    if parents[0] == "stage":
        model, parents = StageConfig, parents[1:]
    if parents[0] == "model" and len(parents) > 1 and parents[1] not in ("path", "revision"):
        options = load_plugins().registry.get("policy", "language_model").options()
        option = options.get(parents[1])
        return option.default if option is not None and len(parents) == 2 else None
    at: Any = None
    for name in parents:
        fields = model.model_fields
        if name not in fields or fields[name].is_required():
            return None
        at = fields[name].get_default(call_default_factory=True) if at is None else getattr(at, name)
        model = type(at) if isinstance(at, BaseModel) else BaseModel
    return list(at) if isinstance(at, tuple) else at


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."

"""What plugins provide, by kind and id: `Registry`, and how a registered function is called with options."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl_core.errors import MMRLError, PluginError

CORE = "core"

KINDS = {
    "source": "data sources: (split, **options) -> rows",
    "reward": "rewards: (completions, samples, **options) -> numbers or None",
    "metric": "benchmark metrics: (completions, samples, **options) -> {name: number}",
    "advantage": "advantage stages: (advantages, view, **options) -> [B] or [B, T]",
    "loss": "policy-loss surrogates: (inputs, **options) -> token losses [B, T], metrics",
    "strategy": "rollout strategies: (policy, prompts, group_size, sampling, **options) -> groups",
    "tool": "tools that a policy may call in a rollout: subclasses of mmrl_core.Tool, made with (**options)",
    "environment": "what a policy talks to over several turns: (tools, media_root, **options) -> Environment",
    "engine": "rollout engines of the language-model policy",
    "policy": "policies: classes of the Policy protocol, made with (config, *, path, device, engine, **options)",
    "model": "builders of starting models: (directory, *, seed, **options)",
    "behaviour": "hooks with options and state: classes whose methods are hooks, made with (**options) for each run",
    "view": "what the report draws on a rollout's media: (completion, sample, **options) -> list of shapes",
}


@dataclass(frozen=True)
class Entry:
    """Something a plugin provides: `id` is `namespace/name`, `target` the import string `module:attribute`."""

    kind: str
    id: str
    target: str
    description: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """Import and return the object.

        Raises:
            PluginError: the module or attribute cannot be imported; names the entry and the cause.
        """
        module_name, _, attribute = self.target.partition(":")
        try:
            return functools.reduce(getattr, attribute.split("."), importlib.import_module(module_name))
        except MMRLError:
            raise
        except Exception as error:
            raise PluginError(f"{self.kind} {self.id!r} ({self.target}) cannot be imported: {error}") from error


class Registry:
    """What installed plugins provide, by kind and id."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        self._namespace = CORE

    def add(self, kind: str, name: str, target: str, description: str, **details: Any) -> None:
        """Add an entry under the namespace of the plugin that is registering.

        Args:
            kind: one of `KINDS`.
            name: without namespace.
            target: "package.module:attribute"; imported when first used.
            description: one line, shown by `mmrl list`.
            details: what the kind's user reads without importing, such as `maximum=1.0` of a reward.

        Raises:
            PluginError: unknown kind, or the id is taken.
        """
        if kind not in self._entries:
            raise PluginError(f"plugin {self._namespace!r} registers a {kind!r}; kinds: {', '.join(KINDS)}.")
        entry = Entry(kind, f"{self._namespace}/{name}", target, description, details)
        if entry.id in self._entries[kind]:
            raise PluginError(f"plugin {self._namespace!r} registers {kind} {entry.id!r} twice.")
        self._entries[kind][entry.id] = entry

    def entries(self, kind: str) -> list[Entry]:
        return sorted(self._entries[kind].values(), key=lambda entry: entry.id)

    def get(self, kind: str, name: str) -> Entry:
        """The entry called `name`: an id, a core name without namespace, or `path/to/file.py:attribute`.

        Raises:
            PluginError: there is none; names what is close, and which plugin would be needed.
        """
        if ".py:" in name:
            return _file_entry(kind, name)
        entries = self._entries[kind]
        entry = entries.get(name) or entries.get(f"{CORE}/{name}")
        if entry is None:
            raise PluginError(self._missing(kind, name))
        return entry

    def _missing(self, kind: str, name: str) -> str:
        known = [entry.id.removeprefix(f"{CORE}/") for entry in self.entries(kind)]
        message = f"no installed plugin provides {kind} {name!r}"
        if close := difflib.get_close_matches(name, known, n=1):
            message += f". Did you mean {close[0]!r}?"
        else:
            message += f" (installed: {', '.join(known) or 'none'})."
        namespace, slash, _ = name.partition("/")
        if slash and not any(known_id.startswith(f"{namespace}/") for known_id in known):
            message += f" Try: pip install mmrl-{namespace.replace('_', '-')}"
        return message

    def registering(self, namespace: str) -> Registry:
        """The same registry, adding under another namespace."""
        view = Registry.__new__(Registry)
        view._entries = self._entries
        view._namespace = namespace
        return view


def _file_entry(kind: str, name: str) -> Entry:
    """An entry for `file.py:attribute`: the file is imported under a name of its own."""
    path_text, _, attribute = name.rpartition(":")
    path = Path(path_text).expanduser().resolve()
    if not path.is_file():
        raise PluginError(f"{kind} {name!r}: there is no file {path_text}.")
    module_name = f"mmrl_file_{path.stem}_{abs(hash(str(path)))}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise PluginError(f"{kind} {name!r}: {path_text} cannot be imported: {error}") from error
    if not hasattr(sys.modules[module_name], attribute):
        raise PluginError(f"{kind} {name!r}: {path_text} has no {attribute!r}.")
    return Entry(kind, name, f"{module_name}:{attribute}", f"from {path_text}")


def call_with_options(function: Callable[..., Any], *arguments: Any, options: Mapping[str, Any], name: str) -> Any:
    """Call a registered function with options from a config; a wrong option is the user's error, not a crash."""
    import inspect

    parameters = dict(list(inspect.signature(function).parameters.items())[len(arguments) :])
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_any and (unknown := [key for key in options if key not in parameters]):
        raise PluginError(f"{name} has no option {unknown[0]!r}; its options: {', '.join(parameters)}.")
    return function(*arguments, **options)

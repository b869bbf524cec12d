"""Finds plugins, keeps what they provide, and says clearly what is missing.

A plugin is an installed package with an entry point in group `mmrl` (its name is the namespace, its value a module with
hook implementations), or a Python file named in a config as `file.py:name`. Tasks are entry points in group
`mmrl.tasks` (name -> package that holds `<name>.yaml`) and share the namespace of their distribution.

Nothing here imports torch; entries are import strings, resolved when they are used.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from mmrl_core import hookspecs
from mmrl_core.errors import MMRLError, PluginError

if TYPE_CHECKING:
    from mmrl_core.config import Component

PLUGIN_GROUP = "mmrl"
TASK_GROUP = "mmrl.tasks"
CORE = "core"

KINDS = {
    "source": "data sources: (split, **options) -> rows",
    "reward": "rewards: (completions, samples, **options) -> numbers or None",
    "metric": "benchmark metrics: (completions, samples, **options) -> {name: number}",
    "advantage": "advantage stages: (advantages, view, **options) -> [B] or [B, T]",
    "loss": "policy-loss surrogates: (inputs, **options) -> token losses [B, T], metrics",
    "strategy": "rollout strategies: (policy, prompts, group_size, sampling, **options) -> groups",
    "tool": "tools that a policy may call in a rollout: subclasses of mmrl_core.tools.Tool, made with (**options)",
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


@dataclass(frozen=True)
class Plugin:
    """A plugin as found: `error` holds the traceback if it failed to load."""

    name: str
    distribution: str
    version: str
    summary: str = ""
    module: ModuleType | None = None
    error: str | None = None


@dataclass(frozen=True)
class TaskEntry:
    """A task definition that an installed package ships; the YAML is read when it is used."""

    id: str
    package: str
    name: str
    plugin: str

    @property
    def path(self) -> Path:
        """Path of the YAML file."""
        spec = importlib.util.find_spec(self.package)
        folders = list(spec.submodule_search_locations or []) if spec else []
        for folder in folders:
            path = Path(folder) / f"{self.name}.yaml"
            if path.is_file():
                return path
        raise PluginError(f"task {self.id!r} is registered in package {self.package!r}, which has no {self.name}.yaml.")


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


@dataclass(frozen=True)
class Plugins:
    """All that is installed. `plugins` lists those that failed to load too."""

    plugins: Mapping[str, Plugin]
    registry: Registry
    tasks: Mapping[str, TaskEntry]

    def hooks(self, enabled: Iterable[Component], *extra: object) -> pluggy.PluginManager:
        """A plugin manager with the plugins, and the behaviours, that a run enables.

        Args:
            enabled: plugins and registered behaviours, in the order in which they are asked first. Of each behaviour an
                object is made with the options.
            extra: objects with hook implementations registered before them, so that they answer last; the core's own.

        Raises:
            PluginError: one is not installed, failed to load, has no such option, or no hook.
        """
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        for plugin in extra:
            manager.register(plugin, name=CORE)
        for component in reversed(list(enabled)):
            if not is_behaviour(component.name):
                manager.register(self.require(component.name), name=component.name)
                continue
            entry = self.registry.get("behaviour", component.name)
            made = call_with_options(entry.load(), options=component.options, name=f"behaviour {entry.id!r}")
            manager.register(made, name=entry.id)
            if not manager.get_hookcallers(made):
                raise PluginError(f"behaviour {entry.id!r} has no hook: mark its methods with @hookimpl.")
        _refuse_unknown_hooks(manager)
        return manager

    def require(self, name: str) -> ModuleType:
        """The module of an installed plugin that loaded."""
        plugin = self.plugins.get(name)
        if plugin is None:
            close = difflib.get_close_matches(name, self.plugins, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Try: pip install mmrl-{name.replace('_', '-')}"
            raise PluginError(f"plugin {name!r} is not installed (installed: {', '.join(self.plugins)}). {hint}")
        if plugin.module is None:
            raise PluginError(f"plugin {name!r} ({plugin.distribution}) failed to load:\n{plugin.error}")
        return plugin.module

    def task(self, task_id: str) -> TaskEntry:
        if task_id in self.tasks:
            return self.tasks[task_id]
        message = f"no task {task_id!r}: neither a file, nor provided by an installed plugin"
        if close := difflib.get_close_matches(task_id, self.tasks, n=1):
            raise PluginError(f"{message}. Did you mean {close[0]!r}?")
        namespace = task_id.partition("/")[0]
        failed = self.plugins.get(namespace)
        if failed is not None and failed.error is not None:
            raise PluginError(f"{message}; plugin {namespace!r} failed to load:\n{failed.error}")
        raise PluginError(f"{message} (tasks: {', '.join(sorted(self.tasks)) or 'none'}).")


def is_behaviour(name: str) -> bool:
    """Whether an item of `plugins` in a config names a registered behaviour, and not a plugin."""
    return "/" in name or ".py:" in name


def _refuse_unknown_hooks(manager: pluggy.PluginManager) -> None:
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        known = [name for name in vars(hookspecs) if name.startswith("mmrl_")]
        unknown = str(error).partition("unknown hook ")[2].partition("'")[2].partition("'")[0]
        close = difflib.get_close_matches(unknown, known, n=1)
        name = manager.get_name(error.plugin)
        hint = f" Did you mean {close[0]!r}?" if close else f" Hooks: {', '.join(known)}."
        raise PluginError(f"plugin {name!r} implements hook {unknown!r}, which does not exist.{hint}") from error


@functools.cache
def load_plugins() -> Plugins:
    """Import every installed plugin's module and let it register; remember those that fail instead of raising."""
    registry = Registry()
    core = importlib.import_module("mmrl_core.builtin")
    core.mmrl_register(registry)
    plugins: dict[str, Plugin] = {}
    namespaces: dict[str, str] = {}
    for entry_point in sorted(entry_points(group=PLUGIN_GROUP), key=lambda point: point.name):
        distribution, version, summary = _origin(entry_point)
        namespaces[distribution] = entry_point.name
        plugin = functools.partial(Plugin, entry_point.name, distribution, version, summary)
        try:
            if entry_point.name in plugins:
                raise PluginError(f"{plugins[entry_point.name].distribution} already provides this plugin name.")
            module = entry_point.load()
            manager = pluggy.PluginManager(hookspecs.PROJECT)
            manager.add_hookspecs(hookspecs)
            manager.register(module, name=entry_point.name)
            _refuse_unknown_hooks(manager)
            manager.hook.mmrl_register(registry=registry.registering(entry_point.name))
            plugins[entry_point.name] = plugin(module=module)
        except Exception as error:
            detail = str(error) if isinstance(error, MMRLError) else traceback.format_exc(limit=-3).strip()
            plugins[entry_point.name] = plugin(error=detail)
    return Plugins(plugins, registry, _find_tasks(namespaces))


def _find_tasks(namespaces: Mapping[str, str]) -> dict[str, TaskEntry]:
    tasks = {}
    for entry_point in entry_points(group=TASK_GROUP):
        distribution = _origin(entry_point)[0]
        namespace = namespaces.get(distribution, distribution.replace("-", "_"))
        task = TaskEntry(f"{namespace}/{entry_point.name}", entry_point.value, entry_point.name, namespace)
        tasks[task.id] = task
    return dict(sorted(tasks.items()))


def _origin(entry_point: EntryPoint) -> tuple[str, str, str]:
    """Name, version and summary of the distribution an entry point comes from."""
    distribution: Distribution | None = entry_point.dist
    if distribution is None:
        return "unknown", "?", ""
    summaries = distribution.metadata.get_all("Summary") or [""]
    return distribution.name, distribution.version, summaries[0]


@functools.cache
def presets() -> Mapping[str, Path]:
    """Presets that configs extend: "algorithm/dapo" -> its YAML, in the wheel or beside the package in a checkout."""
    package = Path(__file__).parent
    folder = next((path for path in (package / "configs", package.parent / "configs") if path.is_dir()), package)
    paths = sorted(folder.glob("*/*.yaml")) if folder != package else []
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def call_with_options(function: Callable[..., Any], *arguments: Any, options: Mapping[str, Any], name: str) -> Any:
    """Call a registered function with options from a config; a wrong option is the user's error, not a crash."""
    import inspect

    parameters = dict(list(inspect.signature(function).parameters.items())[len(arguments) :])
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_any and (unknown := [key for key in options if key not in parameters]):
        raise PluginError(f"{name} has no option {unknown[0]!r}; its options: {', '.join(parameters)}.")
    return function(*arguments, **options)

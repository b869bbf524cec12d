"""Finds plugins, keeps what they provide, and says clearly what is missing.

A plugin is an installed package with an entry point in group `mmrl` (its name is the namespace, its value a module with
hook implementations), or a Python file named in a config as `file.py:name`. Tasks are entry points in group
`mmrl.tasks` (name -> package that holds `<name>.yaml`) and share the namespace of their distribution.

Nothing here imports torch; entries are import strings, resolved when they are used.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pluggy

from mmrl_core import hookspecs
from mmrl_core.errors import MMRLError, PluginError, did_you_mean
from mmrl_core.plugins.registry import CORE, Registry, install_hint

if TYPE_CHECKING:
    from mmrl_core.config.schema import Component

PLUGIN_GROUP = "mmrl"
TASK_GROUP = "mmrl.tasks"


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
                _register(manager, self.require(component.name), component.name)
                continue
            entry = self.registry.get("behaviour", component.name)
            made = entry.call(options=component.options)
            _register(manager, made, entry.id)
            if not manager.get_hookcallers(made):
                raise PluginError(f"behaviour {entry.id!r} has no hook: mark its methods with @hookimpl.")
        return manager

    def require(self, name: str) -> ModuleType:
        """The module of an installed plugin that loaded."""
        plugin = self.plugins.get(name)
        if plugin is None:
            hint = did_you_mean(name, self.plugins) or install_hint(name)
            raise PluginError(f"plugin {name!r} is not installed (installed: {', '.join(self.plugins)}).{hint}")
        if plugin.module is None:
            raise PluginError(f"plugin {name!r} ({plugin.distribution}) failed to load:\n{plugin.error}")
        return plugin.module

    def task(self, task_id: str) -> TaskEntry:
        if task_id in self.tasks:
            return self.tasks[task_id]
        message = f"no task {task_id!r}: neither a file, nor provided by an installed plugin"
        if hint := did_you_mean(task_id, self.tasks):
            raise PluginError(f"{message}.{hint}")
        namespace = task_id.partition("/")[0]
        failed = self.plugins.get(namespace)
        if failed is not None and failed.error is not None:
            raise PluginError(f"{message}; plugin {namespace!r} failed to load:\n{failed.error}")
        known = f"{message} (tasks: {', '.join(sorted(self.tasks)) or 'none'})."
        raise PluginError(known + (install_hint(namespace) if "/" in task_id and failed is None else ""))


def is_behaviour(name: str) -> bool:
    """Whether an item of `plugins` in a config names a registered behaviour, and not a plugin."""
    return "/" in name or ".py:" in name


def _register(manager: pluggy.PluginManager, plugin: object, name: str) -> None:
    """Register a plugin whose hooks all exist.

    Raises:
        PluginError: a hook does not exist; pluggy would ignore it in silence.
    """
    known = [hook for hook in vars(hookspecs) if hook.startswith("mmrl_")]
    for attribute in dir(plugin):
        marks = manager.parse_hookimpl_opts(plugin, attribute)
        if marks is None or marks["optionalhook"]:
            continue
        hook = marks["specname"] or attribute
        if hook not in known:
            hint = did_you_mean(hook, known) or f" Hooks: {', '.join(known)}."
            raise PluginError(f"plugin {name!r} implements hook {hook!r}, which does not exist.{hint}")
    manager.register(plugin, name=name)


@functools.cache
def load_plugins() -> Plugins:
    """Import every installed plugin's module and let it register; remember those that fail instead of raising."""
    registry = Registry()
    core = importlib.import_module("mmrl_core.plugins.builtin")
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
            _register(manager, module, entry_point.name)
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
    package = Path(__file__).parents[1]
    folder = next((path for path in (package / "configs", package.parent / "configs") if path.is_dir()), package)
    paths = sorted(folder.glob("*/*.yaml")) if folder != package else []
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}

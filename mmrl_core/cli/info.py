"""`mmrl info`: what an id is, where it is from, and the options it has."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.cli.command import Command
from mmrl_core.cli.listing import hooks
from mmrl_core.cli.model_info import PREFIX, model_info
from mmrl_core.errors import MMRLError, did_you_mean

if TYPE_CHECKING:
    from mmrl_core.config import RunConfig, StageConfig
    from mmrl_core.plugins import Plugins
    from mmrl_core.plugins.registry import Entry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "id",
        metavar="ID",
        help="plugin, task, preset, hook, or anything registered, see `mmrl list`; or model/NAME, with a kind of "
        "`mmrl tiny`, a model's folder, or a hub's model in the cache",
    )


def run(arguments: argparse.Namespace) -> None:
    from mmrl_core import hookspecs
    from mmrl_core.plugins import install_hint, load_plugins, presets
    from mmrl_core.plugins.registry import KINDS

    name: str = arguments.id
    plugins = load_plugins()
    parts: list[Callable[[], str]] = []
    if name in plugins.plugins:
        parts.append(partial(_plugin_info, plugins, name))
    if name in plugins.tasks:
        parts.append(partial(_task_info, plugins, name))
    if name in presets():
        parts.append(partial(_yaml_info, "preset", name, presets()[name], "core"))
    if name in hooks():
        parts.append(partial("hook {}\n\n{}".format, name, _docstring(getattr(hookspecs, name))))
    for kind in KINDS:
        entries = {entry.id: entry for entry in plugins.registry.entries(kind)}
        if entry := entries.get(name) or entries.get(f"core/{name}"):
            parts.append(partial(_entry_info, plugins, entry))
    if not parts and name.startswith(PREFIX):  # presets may be called so, too
        parts.append(partial(model_info, plugins, name.removeprefix(PREFIX)))
    if not parts:
        ids = [entry.id.removeprefix("core/") for kind in KINDS for entry in plugins.registry.entries(kind)]
        known = [*plugins.plugins, *plugins.tasks, *presets(), *hooks(), *ids]
        namespace = name.partition("/")[0]
        missing = install_hint(namespace) if namespace != name and namespace not in plugins.plugins else ""
        hint = (did_you_mean(name, known) or " `mmrl list` shows what there is.") + missing
        raise MMRLError(f"nothing installed is called {name!r}.{hint}")
    errors = []
    for part in parts:  # an id may name several things, of which one may be broken
        try:
            print(f"{part()}\n")
        except MMRLError as error:
            errors.append(str(error))
    if errors:
        raise MMRLError("\n".join(errors))


def _plugin_info(plugins: Plugins, name: str) -> str:
    from mmrl_core.plugins.registry import KINDS

    plugin = plugins.plugins[name]
    lines = [f"plugin {name}", f"from: {plugin.distribution} {plugin.version}", plugin.summary]
    if plugin.error is not None:
        return "\n".join([*lines, "", "failed to load:", plugin.error])
    lines += ["", _docstring(plugin.module)] if plugin.module is not None and plugin.module.__doc__ else []
    provided = {kind: [e.id for e in plugins.registry.entries(kind) if e.id.startswith(f"{name}/")] for kind in KINDS}
    provided["task"] = [task.id for task in plugins.tasks.values() if task.plugin == name]
    provided["hook"] = [hook for hook in hooks() if hook != "mmrl_register" and hasattr(plugin.module, hook)]
    plural = {name: kind.plural for name, kind in KINDS.items()} | {"task": "tasks", "hook": "hooks"}
    told = [f"{plural[kind]}: {', '.join(ids)}" for kind, ids in provided.items() if ids]
    return "\n".join([*lines, "", *told])


def _task_info(plugins: Plugins, name: str) -> str:
    from mmrl_core.config import load_config

    task = plugins.tasks[name]
    told = _yaml_info("task", name, task.path, f"plugin {task.plugin}")
    config = load_config(name)
    asked = [_order(config, stage, plugins) for stage in config.stages if stage.kind == "grpo"]
    return "\n".join([told, *(["", *dict.fromkeys(asked)] if asked else [])])


def _order(config: RunConfig, stage: StageConfig, plugins: Plugins) -> str:
    """Who is asked in a stage, in order."""
    from mmrl_core.config import entries_in_order

    entries = entries_in_order(config, stage, plugins)
    asked = " -> ".join(f"{entry.kind} {entry.id.removeprefix('core/')}" for entry in entries)
    return f"order in stage {stage.name or stage.kind}: {asked}"


def _yaml_info(kind: str, name: str, path: Path, origin: str) -> str:
    from mmrl_core.config import extends_chain

    chain = ", ".join(extends_chain(path)) or "nothing"
    return f"{kind} {name}\nfrom: {origin}, {path}\nextends: {chain}\n\n{path.read_text(encoding='utf-8').rstrip()}"


def _entry_info(plugins: Plugins, entry: Entry) -> str:
    from mmrl_core.plugins.registry import KINDS

    plugin = plugins.plugins.get(entry.id.partition("/")[0])
    origin = f"{plugin.distribution} {plugin.version}" if plugin is not None else "core"
    lines = [f"{entry.kind} {entry.id.removeprefix('core/')}: {entry.description}", f"from: {origin}, {entry.target}"]
    lines += [
        f"kind: {KINDS[entry.kind].description}",
        *(f"{key}: {value}" for key, value in entry.details.items() if key != "options"),
    ]
    target = entry.load()
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # not callable, or written in C
        return "\n".join([*lines, "", _docstring(target)]).rstrip()
    options = entry.options()
    # A range has a name in the code, which says nothing here.
    shown = [
        p.replace(annotation=options[p.name].type) if p.name in options and p.annotation is not p.empty else p
        for p in parameters
    ]
    lines.append(f"signature: {entry.target.rpartition(':')[2]}({', '.join(_signature_parts(shown))})")
    lines.append("options:" if options else "options: none")
    lines += [f"  {option}" for option in options.values()]
    return "\n".join([*lines, "", _docstring(target)]).rstrip()


def _signature_parts(parameters: Iterable[inspect.Parameter]) -> Iterator[str]:
    """The text between the brackets of a `def`: the parameters, and the marks `/` and `*`.

    Postponed annotations are text, which `str(signature)` would put in quotes.
    """
    before = None
    marked = False  # `*args` marks what follows as keyword-only, as does `*`
    for parameter in parameters:
        if before is parameter.POSITIONAL_ONLY and parameter.kind is not before:
            yield "/"
        if parameter.kind is parameter.KEYWORD_ONLY and not marked:
            yield "*"
        marked |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        before = parameter.kind
        yield _parameter(parameter)
    if before is inspect.Parameter.POSITIONAL_ONLY:
        yield "/"


def _parameter(parameter: inspect.Parameter) -> str:
    """One parameter as a `def` would have it: `eps: float = 0.0001`."""
    text = parameter.name
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        text = ("*" if parameter.kind is parameter.VAR_POSITIONAL else "**") + text
    annotation = parameter.annotation
    if annotation is not parameter.empty:
        text += f": {annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)}"
    if parameter.default is not parameter.empty:
        text += f"{'=' if annotation is parameter.empty else ' = '}{_default(parameter.default)}"
    return text


def _default(value: Any) -> str:
    """A default as its author wrote it, as far as it can be known: functions by name, nothing by its address."""
    if inspect.isroutine(value) or inspect.isclass(value):
        return value.__qualname__
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _docstring(thing: Any) -> str:
    return inspect.getdoc(thing) or "no documentation"


COMMAND = Command(
    "info",
    "Show what an id is, where it is from and what options it has; or what a model does here.",
    "mmrl info clipped",
    add_arguments,
    run,
)

"""What a config names: every component is found by the marks of the schema, imported, and its options checked."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from mmrl_core.config.component import Registered
from mmrl_core.config.layers import is_short, short_forms
from mmrl_core.config.merge import CORE_PREFIX, name_of
from mmrl_core.config.messages import Locate, fault_line
from mmrl_core.config.methods import method_problems
from mmrl_core.config.nodes import DEFAULT, Mark, Node
from mmrl_core.config.options import KeyPath, model_of, option_problems, options_model, options_of
from mmrl_core.config.schedules import SCHEDULED_KINDS, ends
from mmrl_core.config.schema import RunConfig
from mmrl_core.errors import ConfigError, MMRLError, PluginError, did_you_mean
from mmrl_core.plugins import PEERS, Plugins, is_behaviour, sign_of_style, styled
from mmrl_core.plugins.registry import KINDS, Entry

POLICY = ("model", "policy")

TORCH_KINDS = frozenset({"advantage", "engine", "loss", "policy", "strategy"})
"""Kinds that compute with tensors."""

MAX_PROBLEMS = 60
"""Of components, that are put into words."""


def check_components(config: RunConfig, plugins: Plugins) -> None:
    """Resolve everything that a config names, and check its options. Imports it, calls nothing.

    `load_config` has done this for a config from a file. A config made in Python needs it.

    Raises:
        ConfigError: lists every problem, one a line, with file and line.
    """
    if problems := component_problems(config, plugins):
        raise ConfigError("\n".join(problems))


def component_problems(config: RunConfig, plugins: Plugins) -> list[str]:
    """What `check_components` would refuse, one line each."""
    values = config.model_dump()

    def locate(path: KeyPath) -> Mark:
        return Mark(config.where(*path), 0, "")

    found = [*_problems(values, locate, plugins), *method_problems(config, plugins)]
    return list(dict.fromkeys(found))  # stages inherit components


def node_problems(root: Node, plugins: Plugins) -> list[str]:
    """What is wrong with the components of a config as it was read, whether or not its schema is sound."""

    def locate(path: KeyPath) -> Mark:
        mark = root.find(path)[0].mark
        return root.mark if mark.source == DEFAULT else mark

    refused, problems = _refused_short_forms(root, plugins)
    values = root.plain
    for key in refused:
        del values["model"]["policy"][key]
    untouched = {path for path, mark in root.marks() if mark == DEFAULT}
    return [*problems, *itertools.islice(_problems(values, locate, plugins, untouched), MAX_PROBLEMS)]


def _problems(
    values: dict[str, Any], locate: Locate, plugins: Plugins, untouched: Iterable[KeyPath] = ()
) -> Iterator[str]:
    """What is wrong with components: with their names, then, which imports them, with their options.

    A wrong name is to be said at once, so that nothing is imported for its options then that may import torch.

    Args:
        untouched: places that still have their default, which is sound.
    """
    yield from _plugin_problems(values.get("plugins"), locate, plugins)
    found: list[tuple[Entry, KeyPath, type[BaseModel], dict[str, Any]]] = []
    unknown = False
    for kind, path, model, component in named(RunConfig, values):
        name = component.get("name")
        is_plugin = kind == "behaviour" and not is_behaviour(str(name))
        if not isinstance(name, str) or path in untouched or is_plugin:
            continue
        try:
            found.append((plugins.registry.get(kind, name), path, model, component))
        except MMRLError as error:
            unknown = True
            yield f"{locate(path)}: {error}"
    for entry, path, model, component in found:
        if not (unknown and _needs_torch(entry)):
            yield from _component_problems(entry, path, model, component, locate)


def _needs_torch(entry: Entry) -> bool:
    """Whether looking up the options of an entry may import torch. A file has been imported when it was found."""
    return entry.kind in TORCH_KINDS and "options" not in entry.details and ".py:" not in entry.id


def _component_problems(
    entry: Entry, path: KeyPath, model: type[BaseModel], component: dict[str, Any], locate: Locate
) -> Iterator[str]:
    kind, name = entry.kind, component["name"]
    try:
        target = reward_as_called(entry, component) if kind == "reward" else entry.declaration()
    except MMRLError as error:
        yield f"{locate(path)}: {error}"
        return
    options = {key: value for key, value in component.items() if key not in model.model_fields}
    others = [key for key in model.model_fields if key != "name"]
    try:
        at_ends = ends(options) if kind in SCHEDULED_KINDS else [options]
    except ValueError as error:
        yield f"{locate(path)}: {kind} {name!r}: {error}."
        return
    declared, wrong = options_model(target), set()
    of = KINDS[kind]
    found = [problem for at in at_ends for problem in option_problems(target, at, of.positional, of.given, others)]
    for problem in found:
        wrong.add(problem.path)
        if problem.fault is not None and declared is not None and problem.is_inside:
            yield fault_line(problem.fault, declared, locate, at=path)
        else:
            yield f"{locate((*path, *problem.path))}: {kind} {name!r}: {problem.text}"
    for place, value in _endless(options):
        if place not in wrong:
            mark, dotted = locate((*path, *place)), ".".join(map(str, place))
            yield f"{mark}: {kind} {name!r}: option {dotted!r} should be a finite number; got {value}."
    if kind == "source" and callable(target) and component.get("split", "train") != "train":
        parameters = inspect.signature(target).parameters
        if "split" not in parameters:
            yield f"{locate((*path, 'split'))}: {kind} {name!r}: it has no splits, so 'split' would do nothing."


def reward_as_called(entry: Entry, component: dict[str, Any]) -> Any:
    """What declares the options of a reward, which for one in a style is its function as it is called here.

    Raises:
        PluginError: it was written for another framework, and its style does not say so, or says another.
    """
    target = entry.declaration()
    if (style := component.get("style")) is None:
        if "options" in entry.details:  # a plugin's own
            return target
        if sign := sign_of_style(target):
            raise PluginError(f"reward {entry.id!r} {sign[1]}: written for {PEERS[sign[0]]}? Set style: {sign[0]}.")
        return target
    if style not in PEERS:  # the schema says so
        return target
    try:
        return styled(target, style)
    except PluginError as error:
        raise PluginError(f"reward {entry.id!r}: {error}") from error


def _endless(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, float]]:
    """Where numbers are that are infinite or none, of which nothing can be computed, and the number."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _endless(inner, (*path, key))


def misspelt_left_out(items: Iterable[Node], plugins: Plugins) -> Iterator[str]:
    """What is wrong with plugins that a config leaves out: they are neither there nor installed."""
    behaviours = [entry.id.removeprefix(CORE_PREFIX) for entry in plugins.registry.entries("behaviour")]
    known = [*plugins.plugins, *behaviours]
    for item in items:
        name = name_of(item)
        if name is not None and name not in known and ".py:" not in name:
            listed = f" Installed: {', '.join(known) or 'none'}."
            yield f"{item.mark}: there is no plugin {name!r} to leave out.{did_you_mean(name, known) or listed}"


def _plugin_problems(items: Any, locate: Locate, plugins: Plugins) -> Iterator[str]:
    """What is wrong with the list `plugins`, apart from the options of behaviours."""
    seen: set[str] = set()
    for i, item in enumerate(items if isinstance(items, list) else ()):
        item = {"name": item} if isinstance(item, str) else item
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            continue
        where, name = locate(("plugins", i)), item["name"].removeprefix(CORE_PREFIX)
        if name in seen:
            yield f"{where}: {name!r} is listed twice in 'plugins'."
        seen.add(name)
        if is_behaviour(item["name"]):
            continue
        try:
            plugins.require(name)
        except PluginError as error:
            yield f"{where}: {error}"
        if set(item) - {"name", "enabled"}:
            known = [e.id for e in plugins.registry.entries("behaviour") if e.id.startswith(f"{name}/")]
            yield f"{where}: plugin {name!r} takes no options. Behaviours, which do: {', '.join(known) or 'none'}."


def with_declared_defaults(config: RunConfig, plugins: Plugins) -> RunConfig:
    """A sound config in which every option that a component declares in `Options` has a value, set or not.

    Imports the components, so reading a config leaves it to those who compare or save configs.
    """
    values = config.model_dump(mode="json")
    for kind, path, model, component in named(RunConfig, values):
        if kind == "behaviour" and not is_behaviour(component["name"]):
            continue
        declared = options_model(plugins.registry.get(kind, component["name"]).declaration())
        if declared is None:
            continue
        options = {key: value for key, value in component.items() if key not in model.model_fields}
        filled = declared.model_validate_json(json.dumps(options), strict=True).model_dump(mode="json")
        place: Any = values
        for key in path:
            place = place[key]
        place.update(filled)
    return RunConfig.model_validate_json(json.dumps(values), strict=True)


def named(
    annotation: Any, value: Any, path: KeyPath = (), marks: Iterable[Any] = ()
) -> Iterator[tuple[str, KeyPath, type[BaseModel], dict[str, Any]]]:
    """Kind, path, model and keys of every component in a value. Parts of the value that the schema refuses are skipped.

    Args:
        annotation: of the schema, for the value.
        value: plain.
        path: of the value.
        marks: metadata of the annotation; `Registered` says the kind.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from named(arguments[0], value, path, arguments[1:])
        return
    if arguments and type(None) in arguments:
        yield from named(next(a for a in arguments if a is not type(None)), value, path, marks)
        return
    kind = next((mark.kind for mark in marks if isinstance(mark, Registered)), None)
    model = model_of(annotation)
    if model is not None and kind is not None:
        value = {"name": value} if isinstance(value, str) else value
        if isinstance(value, dict):
            default = model.model_fields["name"].default
            yield kind, path, model, {"name": default, **value} if isinstance(default, str) else value
    elif model is not None and isinstance(value, dict):
        for name, info in model.model_fields.items():
            if name in value:
                yield from named(info.annotation, value[name], (*path, name), info.metadata)
    elif origin is list and isinstance(value, list):
        for i, item in enumerate(value):
            yield from named(arguments[0], item, (*path, i))


# Short forms of a policy's options


def short_annotations(root: Node, plugins: Plugins) -> dict[str, Any]:
    """Keys that may be written in `model` with the policy of a config -> their annotation, None if it is not known."""
    entry = _policy_entry(root, plugins)
    if entry is None or not (keys := entry.details.get("model_keys", ())):
        return {}
    try:
        known = options_of(entry.declaration(), KINDS["policy"].positional, KINDS["policy"].given)
    except MMRLError:
        known = {}
    return {key: known[key].annotation if key in known else None for key in keys}


def _policy_entry(root: Node, plugins: Plugins) -> Any:
    node, walked = root.find((*POLICY, "name"))
    try:
        return plugins.registry.get("policy", str(node.value)) if walked == (*POLICY, "name") else None
    except PluginError:
        return None


def _refused_short_forms(root: Node, plugins: Plugins) -> tuple[list[str], list[str]]:
    """Keys that are written in `model` and are no options of the policy there, and a line for each."""
    entry = _policy_entry(root, plugins)
    policy, walked = root.find(POLICY)
    if entry is None or walked != POLICY or not isinstance(policy.value, dict):
        return [], []
    own = entry.details.get("model_keys", ())
    wrong = {key: node for key, node in policy.value.items() if key not in own and is_short(key, node)}
    if not wrong:
        return [], []
    try:
        known = options_of(entry.declaration(), KINDS["policy"].positional, KINDS["policy"].given)
    except MMRLError:  # its own line says so
        return list(wrong), []
    of = short_forms()
    name = entry.id.removeprefix(CORE_PREFIX)
    lines = []
    for key, node in wrong.items():
        whose = " or ".join(map(repr, of.get(key, ())))
        hint = f" Write 'model.policy.{key}'." if key in known else f" Its options: {', '.join(known) or 'none'}."
        what = f"'model.{key}' is short for an option of policy {whose}, and the policy here is {name!r}."
        lines.append(f"{node.mark}: {what}{hint}")
    return list(wrong), lines

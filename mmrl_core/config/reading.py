"""Reads task configs: YAML, `extends`, stage defaults and command-line overrides into a checked `RunConfig`.

    what it extends -> the file itself -> `key.path=value` -> each stage filled from the top
        -> each part of a mixture filled from its task -> RunConfig

Later layers win. **Mappings** merge key by key, **scalars and lists** replace. A mapping over a list changes items of
it: its keys are positions, or the name, label, task or kind of an item if only one has it, so `stages.sft.steps=5` and
`rewards: {0: {weight: 2}}` change one item. **Components** (things with a `name`, such as a loss or a data source)
merge their options while the name stays the same or is left out; another name replaces the component with all its
options.

**Stages** inherit the sections `STAGE_SECTIONS` from the top of the config in the same way. An override of such a
section that a stage sets for itself would do nothing in that stage, and is an error.

**Parts** of a `mixture` inherit what `PART_INHERITS` lists in the same way, from the task that their key `task` names,
or else from the section that the mixture stands in.

`extends` holds one or several of: a preset (`algorithm/dapo`, see `configs/`), a task id, a `.yaml` path relative to
the extending file or to the current folder. Later entries win over earlier ones, and the file wins over them all.

**Scalars** follow YAML 1.2, not PyYAML's 1.1: `1e-6` is a number, `no`, `off`, `yes`, `on` and dates are text, `true`
and `false` are the only bools. Duplicate keys are errors. Every problem found is reported at once, with file and line.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError

from mmrl_core.config.schema import (
    STAGE_SECTIONS,
    Component,
    Origins,
    PartConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    StageConfig,
)
from mmrl_core.discovery import Plugins, is_behaviour, load_plugins, presets
from mmrl_core.errors import ConfigError, PluginError
from mmrl_core.registry import CORE

COMMAND_LINE = "command line"
YAML_SUFFIXES = (".yaml", ".yml")
PART_INHERITS = {
    "data": ("data",),
    "prompt": ("prompt",),
    "rewards": ("rewards",),
    "tools": ("rollout", "tools"),
    "environment": ("rollout", "environment"),
    "metrics": ("eval", "metrics"),
}
"""Key of a part of a mixture -> where its task has what it stands for."""
KeyPath = tuple[str | int, ...]


def load_config(task: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a task config, with everything it extends, and check it.

    Args:
        task: a task id such as "visual_rft/demo_detection", or the path of a YAML file.
        overrides: "key.path=value", the value in YAML: "stages.1.steps=5", "rewards.iou.weight=2".

    Returns:
        The resolved config. `config.where(...)` tells where a value was written.

    Raises:
        ConfigError: lists every problem, one a line, with file and line.
        PluginError: there is no such task.
    """
    reader = _Reader()
    root = reader.read_task(task)
    if reader.unreadable:
        raise ConfigError("\n".join(reader.problems))
    root = reader.apply_overrides(root, overrides)
    return reader.validated(reader.fill_mixtures(reader.fill_stages(root)))


def dump_config(config: RunConfig) -> str:
    """YAML of a resolved config, every default written out; `load_config` of it gives an equal config."""
    return yaml.dump(
        config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, indent=2
    )


def load_reward(name: str, options: Sequence[str] = ()) -> RewardConfig:
    """A reward with options "key=value" from the command line.

    Raises:
        ConfigError: an option that the reward does not have, or not with this value.
        PluginError: there is no such reward.
    """
    reader = _Reader()
    mark = _Mark(COMMAND_LINE, 0, "")
    values = {"name": _Node(name, mark)}
    for option in options:
        key, equals, text = option.partition("=")
        if equals and key.strip():
            values[key.strip()] = reader._parse(text, COMMAND_LINE, key.strip())
        else:
            reader.problems.append(f"{COMMAND_LINE}: {option!r} is not of the form key=value.")
    target = load_plugins().registry.get("reward", name).load()
    root = _Node(values, mark)
    try:
        config = RewardConfig.model_validate_json(json.dumps(root.plain), strict=True)
        reader.problems += [f"{COMMAND_LINE}: {text}" for _, text in _option_problems("reward", config, target)]
    except ValidationError as error:
        reader.problems += _validation_problems(error, root)
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    return config


def differing_keys(saved: RunConfig, current: RunConfig) -> list[str]:
    """Where two configs differ: "optimizer.lr: 1e-06 there, 1e-05 here"."""
    return list(_differences(saved.model_dump(mode="json"), current.model_dump(mode="json"), ()))


def extends_chain(path: Path) -> list[str]:
    """The files that a config extends, directly or not, in the order in which they are merged, as text."""
    reader = _Reader()
    reader.read_file(path.resolve(), ())
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    return [_shown(file) for file in reader.files[:-1]]


# Components and their options.


@dataclass(frozen=True)
class _Filled:
    """What the core passes to a registered function: so many positional arguments, and some keywords if it has them."""

    positional: int
    keywords: frozenset[str] = frozenset()


FILLED_BY_CORE = {
    "source": _Filled(0, frozenset({"split", "limit"})),
    "reward": _Filled(2, frozenset({"completions", "samples", "rollouts"})),
    "metric": _Filled(2, frozenset({"completions", "samples"})),
    "advantage": _Filled(2, frozenset({"advantages", "view", "reduce_sum"})),
    "loss": _Filled(1, frozenset({"inputs"})),
    "strategy": _Filled(4, frozenset({"policy", "prompts", "group_size", "sampling", "on_group", "environment"})),
    "environment": _Filled(2, frozenset({"tools", "media_root"})),
    "tool": _Filled(0),
    "model": _Filled(0, frozenset({"directory", "on_progress"})),
    "engine": _Filled(0),
    "policy": _Filled(1, frozenset({"config", "path", "device", "engine"})),
    "behaviour": _Filled(0),
    "view": _Filled(2, frozenset({"completion", "sample"})),
}
"""Parameters that a config must not set as options, by kind."""


def check_components(config: RunConfig, plugins: Plugins) -> None:
    """Resolve everything that a config names, and check options against signatures. Imports it, calls nothing.

    Raises:
        ConfigError: lists every problem, one a line, with file and line.
    """
    if problems := component_problems(config, plugins):
        raise ConfigError("\n".join(problems))


def component_problems(config: RunConfig, plugins: Plugins) -> list[str]:
    """What `check_components` would complain of; empty if all is well."""
    problems = list(_plugin_problems(config, plugins))
    for kind, path, component in _components(config):
        try:
            target = plugins.registry.get(kind, component.name).load()
        except PluginError as error:
            problems.append(f"{config.where(*path)}: {error}")
            continue
        for key, problem in _option_problems(kind, component, target):
            problems.append(f"{config.where(*path, *([key] if key else []))}: {kind} {component.name!r}: {problem}")
    return list(dict.fromkeys(problems))  # what stages inherit is met once for each of them


def _plugin_problems(config: RunConfig, plugins: Plugins) -> Iterator[str]:
    """What is wrong with `plugins`, behaviours and their options apart."""
    seen: set[str] = set()
    for i, component in enumerate(config.plugins):
        where, name = config.where("plugins", i), component.name.removeprefix(f"{CORE}/")
        if name in seen:
            yield f"{where}: {name!r} stands twice in 'plugins'."
        seen.add(name)
        if is_behaviour(component.name):
            continue
        try:
            plugins.require(name)
        except PluginError as error:
            yield f"{where}: {error}"
        if component.options:
            known = [e.id for e in plugins.registry.entries("behaviour") if e.id.startswith(f"{name}/")]
            yield f"{where}: plugin {name!r} takes no options. Behaviours, which do: {', '.join(known) or 'none'}."


def _components(config: RunConfig) -> Iterator[tuple[str, KeyPath, Component]]:
    """Kind, path and component of everything that a config names."""
    for i, component in enumerate(config.plugins):
        if is_behaviour(component.name):
            yield "behaviour", ("plugins", i), component
    yield "policy", ("model", "policy"), config.model.policy
    if config.model.build is not None:
        yield "model", ("model", "build"), config.model.build
    for i, metric in enumerate(config.eval.metrics):
        yield "metric", ("eval", "metrics", i), metric
    if config.log.view is not None:
        yield "view", ("log", "view"), config.log.view
    stages = ((("stages", i), stage) for i, stage in enumerate(config.stages))
    sections: list[tuple[KeyPath, RunConfig | StageConfig]] = [((), config), *stages]
    for path, section in sections:
        yield from _data_components(path, section)
        for i, part in enumerate(section.mixture):
            where = (*path, "mixture", i)
            yield from _data_components(where, part)
            yield from _environment_components(where, part)
            for n, metric in enumerate(part.metrics):
                yield "metric", (*where, "metrics", n), metric
        yield "engine", (*path, "rollout", "engine"), section.rollout.engine
        yield "strategy", (*path, "rollout", "strategy"), section.rollout.strategy
        yield from _environment_components((*path, "rollout"), section.rollout)
        for i, advantage in enumerate(section.algorithm.advantage):
            yield "advantage", (*path, "algorithm", "advantage", i), advantage
        yield "loss", (*path, "algorithm", "loss"), section.algorithm.loss


def _data_components(
    path: KeyPath, section: RunConfig | StageConfig | PartConfig
) -> Iterator[tuple[str, KeyPath, Component]]:
    for split in ("train", "held_out"):
        if (source := getattr(section.data, split)) is not None:
            yield "source", (*path, "data", split), source
    for i, reward in enumerate(section.rewards):
        yield "reward", (*path, "rewards", i), reward


def _environment_components(
    path: KeyPath, section: RolloutConfig | PartConfig
) -> Iterator[tuple[str, KeyPath, Component]]:
    for i, tool in enumerate(section.tools):
        yield "tool", (*path, "tools", i), tool
    if section.environment is not None:
        yield "environment", (*path, "environment"), section.environment


def option_names(kind: str, target: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a registered function that a config may set; `**options` is left out."""
    filled = FILLED_BY_CORE[kind]
    parameters = list(inspect.signature(target).parameters.values())
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    taken = {*positional[: filled.positional], *filled.keywords}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {p.name: p for p in named if p.name not in taken}


def _option_problems(kind: str, component: Component, target: Any) -> Iterator[tuple[str, str]]:
    """Option (or "") and what is wrong with it."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # not callable, or written in C without a signature
        yield "", "is not a function with a signature"
        return
    options = option_names(kind, target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _type_hints(target)
    for key, value in component.options.items():
        if key in options:
            if problem := _type_problem(value, hints.get(key)):
                yield key, f"option {key!r} {problem}"
        elif key in parameters or key in FILLED_BY_CORE[kind].keywords:
            yield key, f"{key!r} is passed by the run and cannot be set. Options: {', '.join(options) or 'none'}."
        elif not takes_any:
            fields = [name for name in type(component).model_fields if name != "name"]
            yield key, f"no option {key!r}.{_nearest(key, [*options, *fields], 'Options')}"
    for name, parameter in options.items():
        if parameter.default is parameter.empty and name not in component.options:
            yield "", f"missing option {name!r}, which has no default."


def _type_hints(target: Any) -> dict[str, Any]:
    """Annotations of a function that can be resolved; those that name what only a type checker imports cannot."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except Exception:  # a hint is a help, not a duty: whatever its text raises, options are then not type-checked
        return {}


def _type_problem(value: Any, hint: Any) -> str:
    """What is wrong with an option, by its annotation; "" if nothing is, or if that cannot be told."""
    if hint is None:
        return ""
    try:
        TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return " or ".join(dict.fromkeys(_expectation(item, value) for item in error.errors()))
    except (PydanticUserError, TypeError):  # an annotation pydantic knows nothing of
        return ""
    return ""


# Reading and merging.


@dataclass(frozen=True)
class _Mark:
    """Where something was written: a file and its line, or the command line; and its dotted path there."""

    source: str
    line: int
    written: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class _Node:
    """A value with its mark: dict[str, _Node], list[_Node], or a scalar."""

    value: Any
    mark: _Mark

    @property
    def plain(self) -> Any:
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain for node in self.value]
        return self.value

    def find(self, path: KeyPath) -> tuple[_Node, KeyPath]:
        """The node at a path, or the last one on the way, and the part of the path that was walked."""
        node = self
        for depth, key in enumerate(path):
            child = None
            if isinstance(node.value, dict):
                child = node.value.get(key)
            elif isinstance(node.value, list) and isinstance(key, int) and key < len(node.value):
                child = node.value[key]
            if child is None:
                return node, path[:depth]
            node = child
        return node, path

    def marks(self, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
        yield path, str(self.mark)
        if isinstance(self.value, dict):
            children: Any = self.value.items()
        else:
            children = enumerate(self.value) if isinstance(self.value, list) else ()
        for key, node in children:
            yield from node.marks((*path, key))


class _Loader(yaml.SafeLoader):
    """Composes nodes with the scalars of YAML 1.2; nothing is constructed from tags."""


_Loader.yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or `_Loader` would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)

_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
}
for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})$"), list(_first))


class _Reader:
    """One reading of a task: the files read, and the problems found so far."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.files: list[Path] = []
        self.unreadable = False  # something is missing, so that checking the rest would report what is not wrong

    def read_task(self, task: str) -> _Node:
        path = Path(task).expanduser()
        if path.suffix not in YAML_SUFFIXES:
            path = load_plugins().task(task).path
        elif not path.is_file():
            raise ConfigError(f"there is no file {task}.")
        return self.merge(_DEFAULTS, self.read_file(path.resolve(), ()), RunConfig)

    def read_file(self, path: Path, chain: tuple[Path, ...]) -> _Node:
        """A file merged over what it extends."""
        root = self._parse(path.read_text(encoding="utf-8"), _shown(path))
        if not isinstance(root.value, dict):
            self._unreadable(root.mark, f"a config is a mapping of keys; got {_described(root.plain)}.")
            return _Node({}, root.mark)
        values = dict(root.value)
        extends = values.pop("extends", None)
        merged = _Node({}, root.mark)
        for entry in _entries(extends):
            base = self._find_config(entry, path, "extends")
            if base is None:
                continue
            if base in (*chain, path):
                steps = " extends ".join(_shown(step) for step in (*chain, path, base))
                self._unreadable(entry.mark, f"extends goes in a circle: {steps}.")
                continue
            merged = self.merge(merged, self.read_file(base, (*chain, path)), RunConfig)
        self.files.append(path)
        return self.merge(merged, _Node(values, root.mark), RunConfig)

    def apply_overrides(self, root: _Node, overrides: Sequence[str]) -> _Node:
        for override in overrides:
            path, equals, text = override.partition("=")
            keys = path.strip().split(".")
            if not equals or not all(keys):
                self.problems.append(f"{COMMAND_LINE}: {override!r} is not of the form key.path=value.")
                continue
            layer = self._parse(text, COMMAND_LINE, path.strip())
            for depth in reversed(range(len(keys))):
                mark = _Mark(COMMAND_LINE, 0, ".".join(keys[:depth]))
                layer = _Node({keys[depth]: layer}, mark)
            root = self.merge(root, layer, RunConfig)
            if keys[0] in STAGE_SECTIONS:
                self._refuse_shadowed(root, keys[0], layer.value[keys[0]])
                self._refuse_in_mixture(root, path.strip(), keys[0], layer.value[keys[0]])
        return root

    def fill_stages(self, root: _Node) -> _Node:
        """Give each stage the sections of the top, under its own."""
        stages = root.value.get("stages")
        if stages is None or not isinstance(stages.value, list):
            return root
        filled = []
        for stage in stages.value:
            if isinstance(stage.value, dict):
                top = {key: root.value[key] for key in STAGE_SECTIONS if key in root.value}
                filled.append(_Node(self.merge(_Node(top, stage.mark), stage, RunConfig).value, stage.mark))
            else:
                filled.append(stage)
        return _Node({**root.value, "stages": _Node(filled, stages.mark)}, root.mark)

    def fill_mixtures(self, root: _Node) -> _Node:
        """Give each part of each mixture what it takes from its task, or from where it stands, under its own."""
        root = self._fill_mixture(root)
        stages = root.value.get("stages")
        if stages is None or not isinstance(stages.value, list):
            return root
        filled = [self._fill_mixture(stage) if isinstance(stage.value, dict) else stage for stage in stages.value]
        return _Node({**root.value, "stages": _Node(filled, stages.mark)}, root.mark)

    def _fill_mixture(self, section: _Node) -> _Node:
        mixture = section.value.get("mixture")
        if mixture is None or not isinstance(mixture.value, list):
            return section
        filled = [self._fill_part(part, section) if isinstance(part.value, dict) else part for part in mixture.value]
        parts = [part for part in filled if part is not None]
        return _Node({**section.value, "mixture": _Node(parts, mixture.mark)}, section.mark)

    def _fill_part(self, part: _Node, section: _Node) -> _Node | None:
        """None if its task cannot be read, which is noted."""
        task = part.value.get("task")
        values = {**part.value, "task": _Node(None, part.mark)}  # filled, it takes nothing from anywhere any more
        if task is not None and task.value is None:
            section = _Node({}, task.mark)
        elif task is not None:
            path = self._find_config(task, Path(task.mark.source), "task")
            if path is None:
                return None
            section = self.read_file(path, ())
            if "mixture" in section.value:
                self._unreadable(task.mark, f"{task.value} is a mixture itself: name its parts instead.")
                return None
            values.setdefault("name", _Node(_task_name(task.value), task.mark))
        found = {key: section.find(place) for key, place in PART_INHERITS.items()}
        base = {key: node for key, (node, walked) in found.items() if walked == PART_INHERITS[key]}
        return self.merge(_Node(base, part.mark), _Node(values, part.mark), PartConfig)

    def validated(self, root: _Node) -> RunConfig:
        config = None
        try:
            # By way of JSON: in its strict mode "5" is no number and 1 no bool, but a list may become a tuple.
            config = RunConfig.model_validate_json(json.dumps(root.plain), strict=True)
        except ValidationError as error:
            self.problems += _validation_problems(error, root)
        if config is None or self.problems:
            raise ConfigError("\n".join(dict.fromkeys(self.problems)))
        config._origins = Origins(root.marks())
        return config

    def merge(self, base: _Node | None, over: _Node, annotation: Any) -> _Node:
        """`over` wins; see the module's docstring for the rules."""
        model = _model(annotation)
        if model is not None and issubclass(model, Component):
            over = _component_mapping(over)
            base = _component_mapping(base) if base is not None else None
            if base is not None and _renames(base, over, model):
                return over
        if isinstance(over.value, dict):
            if _is_list(annotation) and (base is None or isinstance(base.value, list)):
                return self._merge_items(base, over, annotation)
            if base is not None and isinstance(base.value, dict):
                merged = dict(base.value)
                for key, node in over.value.items():
                    merged[key] = self.merge(merged.get(key), node, _child(annotation, key))
                return _Node(merged, over.mark)
        return over

    def _merge_items(self, base: _Node | None, over: _Node, annotation: Any) -> _Node:
        """A mapping of positions or names, over a list."""
        items = [] if base is None else list(base.value)
        for key, node in over.value.items():
            found = [i for i, item in enumerate(items) if key in _item_names(i, item)]
            if len(found) == 1:
                items[found[0]] = self.merge(items[found[0]], node, _child(annotation, found[0]))
            else:
                names = [max(_item_names(i, item), key=len) for i, item in enumerate(items)]
                what = "is not in the list" if not found else "is there more than once: use its position"
                listed = ", ".join(f"{i} ({name})" if name != str(i) else name for i, name in enumerate(names))
                self.problems.append(f"{node.mark}: {node.mark.written!r} {what}. Items: {listed or 'none'}.")
        return _Node(items, over.mark if base is None else base.mark)

    def _refuse_shadowed(self, root: _Node, section: str, layer: _Node) -> None:
        """An override that a stage overrides again would silently do nothing there."""
        stages = root.value.get("stages")
        for i, stage in enumerate(stages.value if stages is not None and isinstance(stages.value, list) else []):
            own = stage.value.get(section) if isinstance(stage.value, dict) else None
            for path, mark in _shadows(layer, own, (section,)):
                key = ".".join(path)
                self.problems.append(
                    f"{COMMAND_LINE}: {key!r} has no effect in stage {i}, which sets it at {mark}. "
                    f"Write stages.{i}.{key}=..."
                )

    def _refuse_in_mixture(self, root: _Node, key: str, section: str, layer: _Node) -> None:
        """An override of what a part of the mixture has of its own would silently do nothing there."""
        mixture = root.value.get("mixture")
        parts = mixture.value if mixture is not None and section in PART_INHERITS else []
        for i, part in enumerate(parts if isinstance(parts, list) else []):
            if not isinstance(part.value, dict):
                continue
            marks = [mark for _, mark in _shadows(layer, part.value.get(section), (section,))]
            if "task" in part.value:
                marks.append(part.value["task"].mark)
            if marks:
                self.problems.append(
                    f"{COMMAND_LINE}: {key!r} has no effect in part {i} of the mixture, which has its own from "
                    f"{marks[0]}. Write mixture.{i}.{key}=..."
                )

    def _find_config(self, entry: _Node, path: Path, key: str) -> Path | None:
        """The file that an entry under a key of the file `path` names; None if there is none, which is noted."""
        name = entry.value
        if not isinstance(name, str):
            self._unreadable(entry.mark, f"{key} names presets, tasks or files; got {_described(entry.plain)}.")
            return None
        if Path(name).suffix in YAML_SUFFIXES:
            for candidate in (path.parent / Path(name).expanduser(), Path(name).expanduser()):
                if candidate.is_file():
                    return candidate.resolve()
            where = f"{_shown(path.parent)}, the folder of this file, nor in the current folder"
            self._unreadable(entry.mark, f"there is no file {name!r}, neither in {where}.")
            return None
        if name in presets():
            return presets()[name].resolve()
        try:
            return load_plugins().task(name).path.resolve()
        except PluginError as error:
            known = [*presets(), *load_plugins().tasks]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Presets: {', '.join(presets())}. {error}"
            self._unreadable(entry.mark, f"{key} names {name!r}, which is no preset, task or .yaml file. {hint}")
            return None

    def _parse(self, text: str, source: str, written: str = "") -> _Node:
        """Text to nodes; problems are noted, and the rest is read on."""
        on_command_line = source == COMMAND_LINE
        start = _Mark(source, 0 if on_command_line else 1, written)
        try:
            root = yaml.compose(text, _Loader)
        except yaml.MarkedYAMLError as error:
            at = error.problem_mark or error.context_mark
            mark = _Mark(source, 0 if on_command_line or at is None else at.line + 1, written)
            context = f" {error.context}" if error.context else ""
            self._unreadable(mark, f"this is not YAML: {error.problem}{context}.")
            return _Node({}, start)
        except yaml.YAMLError as error:  # a character that YAML forbids
            self._unreadable(start, f"this is not YAML: {' '.join(str(error).split())}.")
            return _Node({}, start)
        return _Node({}, start) if root is None and not on_command_line else self._convert(root, start, ())

    def _convert(self, node: yaml.Node | None, mark: _Mark, inside: tuple[int, ...]) -> _Node:
        if node is None:
            return _Node(None, mark)
        if id(node) in inside:
            self._unreadable(mark, "an alias refers to a value that it is part of.")
            return _Node(None, mark)
        inside = (*inside, id(node))
        if isinstance(node, yaml.MappingNode):
            values: dict[str, _Node] = {}
            for key_node, value_node in node.value:
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
                child_mark = self._child_mark(mark, key_node, key)
                if not key:
                    self.problems.append(f"{child_mark}: a key is a word; got {_described_node(key_node)}.")
                elif key in values:
                    self.problems.append(f"{child_mark}: key {key!r} stands twice; first at {values[key].mark}.")
                else:
                    values[key] = self._convert(value_node, child_mark, inside)
            return _Node(values, mark)
        if isinstance(node, yaml.SequenceNode):
            items = enumerate(node.value)
            return _Node([self._convert(item, self._child_mark(mark, item, str(i)), inside) for i, item in items], mark)
        return _Node(self._scalar(node, mark), mark)

    def _child_mark(self, mark: _Mark, node: yaml.Node, key: str) -> _Mark:
        line = 0 if mark.source == COMMAND_LINE else node.start_mark.line + 1
        return _Mark(mark.source, line, f"{mark.written}.{key}" if mark.written else key)

    def _scalar(self, node: yaml.Node, mark: _Mark) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "str":
            return text
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text, 16 if text.startswith("0x") else 10)
            if kind == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (KeyError, ValueError):
            self.problems.append(f"{mark}: {text!r} is not of the type {kind} that its tag names.")
            return None
        self.problems.append(f"{mark}: the tag {node.tag} is not supported.")
        return None

    def _unreadable(self, mark: _Mark, message: str) -> None:
        self.problems.append(f"{mark}: {message}")
        self.unreadable = True


def _entries(extends: _Node | None) -> list[_Node]:
    if extends is None or extends.value is None:
        return []
    return extends.value if isinstance(extends.value, list) else [extends]


def _shown(path: Path) -> str:
    """A path as an error shows it: relative to the current folder if it lies there."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _component_mapping(node: _Node) -> _Node:
    """`loss: clipped` as `loss: {name: clipped}`."""
    return _Node({"name": node}, node.mark) if isinstance(node.value, str) else node


def _renames(base: _Node, over: _Node, model: type[Component]) -> bool:
    """Whether `over` names another component than `base`."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict) or "name" not in over.value:
        return False
    default = model.model_fields["name"].get_default()
    old = base.value["name"].value if "name" in base.value else default
    return str(old).removeprefix(f"{CORE}/") != str(over.value["name"].value).removeprefix(f"{CORE}/")


def _item_names(position: int, item: _Node) -> set[str]:
    """What an item of a list can be called in an override: its position, label, name, task, short name or kind."""
    values = item.value if isinstance(item.value, dict) else {"name": item}
    names = {str(values[key].value) for key in ("label", "name", "task", "kind") if key in values}
    return {str(position), *names, *(_task_name(name) for name in names)}


def _task_name(task: str) -> str:
    """The last part of an id, or the name of a YAML file without its folder and suffix."""
    return task.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")


def _shadows(layer: _Node, own: _Node | None, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], _Mark]]:
    """Paths set in `layer` that `own` sets too, and not from the command line."""
    if own is None:
        return
    if isinstance(layer.value, dict) and isinstance(own.value, dict):
        for key, node in layer.value.items():
            yield from _shadows(node, own.value.get(key), (*path, key))
    elif own.mark.source != COMMAND_LINE:
        yield path, own.mark


# The schema: which model stands where.


def _unwrapped(annotation: Any) -> Any:
    """An annotation without `| None`; of other unions the first member."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(member for member in typing.get_args(annotation) if member is not type(None))
    return annotation


def _model(annotation: Any) -> type[BaseModel] | None:
    annotation = _unwrapped(annotation)
    return annotation if inspect.isclass(annotation) and issubclass(annotation, BaseModel) else None


def _is_list(annotation: Any) -> bool:
    return typing.get_origin(_unwrapped(annotation)) is list


def _child(annotation: Any, key: str | int) -> Any:
    """The annotation of what stands under a key."""
    annotation = _unwrapped(annotation)
    model = _model(annotation)
    if model is not None:
        return model.model_fields[key].annotation if key in model.model_fields else None
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is dict:
        return arguments[1]
    return arguments[0] if origin is list else None


def _annotation_at(path: KeyPath) -> Any:
    annotation: Any = RunConfig
    for key in path:
        annotation = _child(annotation, key)
    return annotation


def _default_components(model: type[BaseModel]) -> _Node:
    """The components that a config has if it names none, so that `algorithm.loss.clip_high=0.3` needs no name."""
    mark = _Mark("default", 0, "")
    values: dict[str, _Node] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.default, Component):
            options = {key: _Node(value, mark) for key, value in info.default.options.items()}
            values[name] = _Node({"name": _Node(info.default.name, mark), **options}, mark)
        elif isinstance(info.default, BaseModel) and (inner := _default_components(type(info.default))).value:
            values[name] = inner
    return _Node(values, mark)


_DEFAULTS = _default_components(RunConfig)


def _key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield prefix + name
        inner = _model(info.annotation)
        if inner is not None and not issubclass(inner, Component):
            yield from _key_paths(inner, f"{prefix}{name}.")


# Messages.


def _validation_problems(error: ValidationError, root: _Node) -> Iterator[str]:
    """One line for each problem; the branches of a union make one."""
    expectations: dict[tuple[str, str], list[str]] = {}
    for item in error.errors():
        node, path = root.find(item["loc"])
        mark = node.mark if node.mark.source != "default" else root.mark
        if item["type"] == "missing":
            yield f"{mark}: missing key {_written(mark, item['loc'][-1], inside=True)!r}."
        elif item["type"] == "extra_forbidden":
            yield f"{mark}: unknown key {_unknown_key(mark, path)}"
        elif item["type"] == "value_error":
            yield f"{mark}: {item['msg'].removeprefix('Value error, ')}."
        else:
            key = (str(mark), mark.written or ".".join(map(str, path)))
            expectations.setdefault(key, []).append(_expectation(item, node.plain))
    for (where, written), texts in expectations.items():
        *firsts, last = dict.fromkeys(texts)
        yield f"{where}: {written!r} " + "".join(f"{first.partition(';')[0]}, or " for first in firsts) + last


def _written(mark: _Mark, key: Any, inside: bool = False) -> str:
    """A key as an error names it: alone where a line tells the rest, in full on the command line."""
    if mark.line or not mark.written:
        return str(key)
    return f"{mark.written}.{key}" if inside else mark.written


def _unknown_key(mark: _Mark, path: KeyPath) -> str:
    model = _model(_annotation_at(path[:-1]))
    assert model is not None, "only models forbid keys"
    keys = sorted(model.model_fields)
    if model is RunConfig:
        keys = sorted([*keys, "extends"])
    key = str(path[-1])
    text = repr(_written(mark, key)) + "."
    if close := difflib.get_close_matches(key, keys, n=1):
        text += f" Did you mean {(_written(mark, key).removesuffix(key) + close[0])!r}?"
    elif elsewhere := [path for path in _key_paths(RunConfig) if path.rpartition(".")[2] == key]:
        text += f" Did you mean {elsewhere[0]!r}?"
    elif key in StageConfig.model_fields and model is not StageConfig:
        text += f" It is a key of a stage: {'stages.0.' + key!r}."
    return f"{text} Keys here: {', '.join(keys)}."


_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_WORDS_FOR_BOOLS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


def _expectation(item: Mapping[str, Any], value: Any) -> str:
    """A pydantic error as "should be a number; got 'x'."."""
    kind = str(item["type"])
    context = item.get("ctx", {})
    hint = ""
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        expected = f"be {words} {context[bound]}"
    elif kind == "literal_error":
        expected = f"be {context['expected']}"
        if close := difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", expected), n=1):
            hint = f" Did you mean {close[0]!r}?"
    elif (family := kind.partition("_")[0]) in _EXPECTED:
        expected = f"be {_EXPECTED[family]}"
        if family == "string" and isinstance(value, int | float):
            hint = " Put it in quotes."
        elif family == "bool" and str(value).lower() in _WORDS_FOR_BOOLS:
            hint = f" Write {_WORDS_FOR_BOOLS[str(value).lower()]}; yes, no, on and off are text here."
        elif family == "int" and isinstance(value, float) and value.is_integer():
            hint = f" Write {int(value)}."
    else:
        expected = str(item["msg"]).removeprefix("Input should ")
    return f"should {expected}; got {_described(value)}.{hint}"


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _described_node(node: yaml.Node) -> str:
    kinds: dict[type[yaml.Node], str] = {yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list"}
    return kinds.get(type(node), "nothing")


def _nearest(name: str, known: Sequence[str], title: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return (f" Did you mean {close[0]!r}?" if close else "") + f" {title}: {', '.join(known) or 'none'}."


def _differences(saved: Any, current: Any, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(current, dict):
        for key in dict.fromkeys([*saved, *current]):
            yield from _differences(saved.get(key), current.get(key), (*path, key))
    elif isinstance(saved, list) and isinstance(current, list) and len(saved) == len(current):
        for i, (one, other) in enumerate(zip(saved, current, strict=True)):
            yield from _differences(one, other, (*path, str(i)))
    elif saved != current:
        yield f"{'.'.join(path)}: {_described(saved)} there, {_described(current)} here"

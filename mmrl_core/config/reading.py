"""Reads task configs: YAML, `extends`, command-line overrides and what sections inherit, into a checked `RunConfig`.

    layers.py      what it extends -> the file itself -> `key.path=value`, merged by the rules of merge.py
    filling.py     each stage filled from the top, each part of a mixture from its task
    schema.py      keys and values, whose faults messages.py puts into words
    components.py  what the config names is installed and takes its options

Every problem of a config is reported in one error, one a line, with file and line: YAML, keys and values, components
and their options. What is sound is checked even where another section is not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from mmrl_core.config.components import (
    misspelt_left_out,
    node_problems,
    reward_as_called,
    short_annotations,
    with_declared_defaults,
)
from mmrl_core.config.filling import fill_mixtures, fill_stages, refuse_too_many_sections
from mmrl_core.config.layers import Layers, apply_overrides, shown
from mmrl_core.config.limits import MAX_FILLED
from mmrl_core.config.merge import without_disabled
from mmrl_core.config.messages import differences, fault_line
from mmrl_core.config.methods import method_problems
from mmrl_core.config.nodes import COMMAND_LINE, DEFAULT, Mark, Node, Problems, parse, yaml_text
from mmrl_core.config.options import KeyPath, faults, model_faults, option_problems
from mmrl_core.config.schema import RewardConfig, RunConfig
from mmrl_core.errors import ConfigError
from mmrl_core.plugins import load_plugins
from mmrl_core.plugins.registry import KINDS

MAX_FAULTS = 60
"""Of keys and values, that are put into words. A mistake at the top is one in each stage."""


def load_config(task: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a task config, with everything it extends, and check it, the components that it names included.

    Args:
        task: a task id such as "visual_rft/demo_detection", or the path of a YAML file.
        overrides: "key.path=value", the value in YAML: "stages.1.steps=5", "rewards.iou.weight=2".

    Returns:
        The resolved config. `config.where(...)` tells where a value was written.

    Raises:
        ConfigError: lists every problem, one a line, with file and line.
        PluginError: there is no such task.
    """
    problems = Problems()
    layers = Layers(problems)
    root = layers.read_task(task)
    if problems.unreadable:
        raise ConfigError(str(problems))
    root = apply_overrides(root, overrides, problems)
    if problems.unreadable:
        raise ConfigError(str(problems))
    refuse_too_many_sections(root)
    root = fill_mixtures(fill_stages(root, problems), layers)
    if root.has_more_than(MAX_FILLED):
        raise ConfigError(f"{task}: with what stages and parts inherit the config has more than {MAX_FILLED:,} values.")
    return _checked(without_disabled(root), problems)


def _checked(root: Node, problems: Problems) -> RunConfig:
    """The config of a root that has everything filled in.

    Raises:
        ConfigError: there are problems, earlier ones or new ones.
    """
    plugins = load_plugins()
    config = None
    try:
        # By way of JSON: in its strict mode "5" is no number and 1 no bool, but a list may become a tuple.
        config = RunConfig.model_validate_json(json.dumps(root.plain), strict=True)
    except ValidationError as error:
        short = short_annotations(root, plugins)
        found = faults(error, root.plain)
        for fault in found[:MAX_FAULTS]:
            problems.lines.append(fault_line(fault, RunConfig, lambda path: _mark(root, path), short=short))
        if len(found) > MAX_FAULTS:
            problems.add(root.mark, f"keys and values have {len(found) - MAX_FAULTS:,} problems more.")
    left_out = [item for item, was_there in problems.left_out.values() if not was_there]
    problems.lines += [*misspelt_left_out(left_out, plugins), *node_problems(root, plugins)]
    if config is None or problems.lines:
        raise ConfigError(str(problems))
    config._origins.update(root.marks())
    if wrong := list(dict.fromkeys(method_problems(config, plugins))):
        raise ConfigError("\n".join(wrong))
    return config


def _mark(root: Node, path: KeyPath) -> Mark:
    mark = root.find(path)[0].mark
    return root.mark if mark.source == DEFAULT else mark


def load_reward(name: str, options: Sequence[str] = ()) -> RewardConfig:
    """A reward with options "key=value" from the command line.

    Raises:
        ConfigError: an option that the reward does not have, or not with this value.
        PluginError: there is no such reward.
    """
    problems = Problems()
    mark = Mark(COMMAND_LINE, 0, "")
    values = {"name": Node(name, mark)}
    for option in options:
        key, equals, text = option.partition("=")
        if equals and key.strip():
            values[key.strip()] = parse(text, COMMAND_LINE, problems, key.strip())
        else:
            problems.add(COMMAND_LINE, f"{option!r} is not of the form key=value.")
    root = Node(values, mark)
    for fault in model_faults(RewardConfig, root.plain):
        problems.lines.append(fault_line(fault, RewardConfig, lambda path: _mark(root, path)))
    target = reward_as_called(load_plugins().registry.get("reward", name), root.plain)
    fields = RewardConfig.model_fields
    own = {key: value for key, value in root.plain.items() if key not in fields}
    kind, others = KINDS["reward"], [key for key in fields if key != "name"]
    for problem in option_problems(target, own, kind.positional, kind.given, others):
        problems.add(COMMAND_LINE, problem.text)
    if problems.lines:
        raise ConfigError(str(problems))
    return RewardConfig.model_validate_json(json.dumps(root.plain), strict=True)


def dump_config(config: RunConfig) -> str:
    """YAML of a resolved config, every default written out; `load_config` of it gives an equal config."""
    return yaml_text(config.model_dump(mode="json"))


def differing_keys(saved: RunConfig, current: RunConfig) -> list[str]:
    """Where two configs differ: "optimizer.lr: 1e-06 there, 1e-05 here".

    An option that a component declares in `Options` has its default where it is left out.
    """
    plugins = load_plugins()
    there, here = (with_declared_defaults(config, plugins).model_dump(mode="json") for config in (saved, current))
    return list(differences(there, here))


def extends_chain(path: Path) -> list[str]:
    """The files that a config extends, directly or not, in the order in which they are merged, as text."""
    layers = Layers(Problems())
    layers.read_file(path.resolve())
    if layers.problems.lines:
        raise ConfigError(str(layers.problems))
    return [shown(file) for file in layers.files[:-1]]

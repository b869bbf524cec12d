"""Faults that pydantic finds in a config, as sentences: where it was written, what is wrong, what was meant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from mmrl_core.config.nodes import Mark
from mmrl_core.config.options import Fault, KeyPath, annotation_at, model_of
from mmrl_core.config.schema import Component, ModelConfig, RunConfig, StageConfig
from mmrl_core.config.words import described
from mmrl_core.errors import did_you_mean

Locate = Callable[[KeyPath], Mark]
"""Path in a config -> the mark of what is there, or of the nearest thing around it."""


def fault_line(
    fault: Fault, model: type[BaseModel], locate: Locate, *, at: KeyPath = (), short: Mapping[str, Any] | None = None
) -> str:
    """A fault as a line of an error.

    Args:
        model: what the fault was found with.
        at: where in the config that model is.
        short: keys that may be written in the section `model`, with the model of their value if they have one.
    """
    *inside, key = fault.path or ("",)
    path = (*at, *fault.path)
    if fault.kind == "missing":
        mark = locate((*at, *inside))
        return f"{mark}: missing key {_written(mark, key, inside=True)!r}."
    mark = locate(path)
    if fault.kind == "unknown":
        section = model_of(annotation_at(model, fault.path[:-1]))
        assert section is not None, "only models forbid keys"
        return f"{mark}: unknown key {_unknown(mark, str(key), section, short or {})}"
    if fault.kind == "rule":
        return f"{mark}: {fault.text}."
    return f"{mark}: {mark.written or '.'.join(map(str, path))!r} {fault.text}"


def _written(mark: Mark, key: Any, inside: bool = False) -> str:
    """A key as an error names it: alone where a line tells the rest, in full on the command line."""
    if mark.line or not mark.written:
        return str(key)
    return f"{mark.written}.{key}" if inside else mark.written


def _unknown(mark: Mark, key: str, section: type[BaseModel], short: Mapping[str, Any]) -> str:
    keys = sorted([*section.model_fields, *_more_keys(section, short)])
    text = repr(_written(mark, key)) + "."
    if hint := did_you_mean(key, keys):
        # On the command line the whole path is named.
        text += hint.replace("'", f"'{_written(mark, key).removesuffix(key)}", 1)
    elif elsewhere := [path for path in _key_paths(RunConfig, short) if path.rpartition(".")[2] == key]:
        text += f" Did you mean {elsewhere[0]!r}?"
    elif key in StageConfig.model_fields and section is not StageConfig:
        text += f" It is a key of a stage: {'stages.0.' + key!r}."
    return f"{text} Keys here: {', '.join(keys)}."


def _more_keys(section: type[BaseModel], short: Mapping[str, Any]) -> Collection[str]:
    """Keys of a section that are read before the schema is checked."""
    if section is RunConfig:
        return ("extends",)
    return short if section is ModelConfig else ()


def find_key(name: str) -> str | None:
    """Where a key is written on the command line, "stages.0.group_size" of "group_size"; None if there is none.

    Args:
        name: a key alone, or dotted.
    """
    top = [f"stages.0.{path}" for path in StageConfig.model_fields if path not in RunConfig.model_fields]
    paths = [*_key_paths(RunConfig, {}), *top]
    for path in sorted(paths, key=lambda path: path.count(".")):
        if path == name or path.endswith(f".{name}"):
            return path
    return None


def _key_paths(model: type[BaseModel], short: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    annotations = {name: info.annotation for name, info in model.model_fields.items()}
    for name, annotation in (annotations | (dict(short) if model is ModelConfig else {})).items():
        yield prefix + name
        inner = model_of(annotation)
        if inner is not None and not issubclass(inner, Component):
            yield from _key_paths(inner, short, f"{prefix}{name}.")


def differences(saved: Any, current: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Where two plain configs differ: "optimizer.lr: 1e-06 there, 1e-05 here"."""
    if isinstance(saved, dict) and isinstance(current, dict):
        for key in dict.fromkeys([*saved, *current]):
            yield from differences(saved.get(key), current.get(key), (*path, key))
    elif isinstance(saved, list) and isinstance(current, list) and len(saved) == len(current):
        for i, (one, other) in enumerate(zip(saved, current, strict=True)):
            yield from differences(one, other, (*path, str(i)))
    elif saved != current:
        yield f"{'.'.join(path)}: {described(saved)} there, {described(current)} here"

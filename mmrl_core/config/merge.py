"""How one layer of a config is merged over another: mappings, lists, items of lists, components, plugins.

Later layers win. **Mappings** merge key by key, **scalars and lists** replace. A mapping over a list changes items of
it: its keys are positions, or the name, label, task or kind of an item if only one has it, so `stages.sft.steps=5` and
`rewards: {0: {weight: 2}}` change one item. **Components** (things with a `name`, such as a loss or a data source)
merge their options while the name stays the same or is left out. Another name replaces the component with all its
options. The list `plugins` **adds up**: a plugin that is named again has its options merged, another one is appended.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from mmrl_core.config.nodes import DEFAULT, Mark, Node, Problems, items_of
from mmrl_core.config.options import model_of, unwrapped
from mmrl_core.config.schema import Component, PartConfig, PluginConfig, RunConfig

CORE_PREFIX = "core/"


@dataclass(frozen=True)
class Place:
    """Where in the schema a value is: its annotation, and what the schema has there by default."""

    annotation: Any
    default: Any = None

    @property
    def model(self) -> type[BaseModel] | None:
        return model_of(self.annotation)

    @property
    def is_list(self) -> bool:
        return typing.get_origin(unwrapped(self.annotation)) is list

    @property
    def adds_up(self) -> bool:
        return self.is_list and self.child(0).model is PluginConfig

    @property
    def default_name(self) -> str | None:
        """The name of the component that is meant where none is named."""
        if isinstance(self.default, Component):
            return self.default.name
        name = None if self.model is None else self.model.model_fields["name"].default
        return name if isinstance(name, str) else None

    def child(self, key: str | int) -> Place:
        """The place of what is under a key. Its annotation is None where the schema has no such key."""
        if self.model is not None:
            info = self.model.model_fields.get(str(key))
            return Place(None) if info is None else Place(info.annotation, info.default)
        plain = unwrapped(self.annotation)
        arguments, origin = typing.get_args(plain), typing.get_origin(plain)
        return Place(arguments[1] if origin is dict else arguments[0] if origin is list else None)


RUN = Place(RunConfig)
PART = Place(PartConfig)


def merge(base: Node | None, over: Node, place: Place, problems: Problems) -> Node:
    """Merge `over` over `base` by the rules of this module."""
    if place.model is not None and issubclass(place.model, Component):
        over = component_mapping(over)
        base = component_mapping(base) if base is not None else None
        if base is not None and _renames(base, over, place):
            return over
    if isinstance(over.value, dict):
        if place.is_list and (base is None or isinstance(base.value, list)):
            return _merge_items(base, over, place, problems)
        if base is not None and isinstance(base.value, dict):
            merged = dict(base.value)
            for key, node in over.value.items():
                merged[key] = merge(merged.get(key), node, place.child(key), problems)
            return Node(merged, over.mark)
    if place.adds_up and isinstance(over.value, list):
        return _add_up(items_of(base), over, place, problems)
    return over


def _merge_items(base: Node | None, over: Node, place: Place, problems: Problems) -> Node:
    """A mapping of positions or names, over a list."""
    items = items_of(base)
    for key, node in over.value.items():
        found = [i for i, item in enumerate(items) if key in item_names(i, item)]
        if len(found) == 1:
            items[found[0]] = merge(items[found[0]], node, place.child(found[0]), problems)
        else:
            names = [max(item_names(i, item), key=len) for i, item in enumerate(items)]
            what = "is not in the list" if not found else "is there more than once: use its position"
            listed = ", ".join(f"{i} ({name})" if name != str(i) else name for i, name in enumerate(names))
            problems.add(node.mark, f"{node.mark.written!r} {what}. Items: {listed or 'none'}.")
    return Node(items, over.mark if base is None else base.mark)


def _add_up(items: list[Node], over: Node, place: Place, problems: Problems) -> Node:
    """A list over a list that adds up. What a layer itself names twice is kept twice; components.py refuses it."""
    places = {name: i for i, item in enumerate(items) if (name := name_of(item)) is not None}
    for item in over.value:
        name = name_of(item)
        at = None if name is None else places.pop(name, None)
        if _is_disabled(item):  # merged lists come here once more, with nothing before them
            problems.left_out.setdefault(item.mark, (item, at is not None))
        if at is None:
            items.append(item)
        else:
            items[at] = merge(items[at], item, place.child(at), problems)
    return Node(items, over.mark)


def without_disabled(root: Node) -> Node:
    """The config without the plugins that have `enabled: false`."""
    plugins = root.value.get("plugins")
    if plugins is None or not isinstance(plugins.value, list):
        return root
    kept = [item for item in plugins.value if not _is_disabled(item)]
    return Node({**root.value, "plugins": Node(kept, plugins.mark)}, root.mark)


def _is_disabled(item: Node) -> bool:
    return isinstance(item.value, dict) and "enabled" in item.value and item.value["enabled"].value is False


# Components


def component_mapping(node: Node) -> Node:
    """`loss: clipped` as `loss: {name: clipped}`."""
    return Node({"name": node}, node.mark) if isinstance(node.value, str) else node


def name_of(component: Node) -> str | None:
    """The name of a component in either form, without the core's prefix."""
    values = component_mapping(component).value
    name = values["name"].value if isinstance(values, dict) and "name" in values else None
    return name.removeprefix(CORE_PREFIX) if isinstance(name, str) else None


def _renames(base: Node, over: Node, place: Place) -> bool:
    """Whether `over` names another component than `base`."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict) or "name" not in over.value:
        return False
    old = name_of(base) if "name" in base.value else place.default_name
    return old != name_of(over)


def item_names(position: int, item: Node) -> set[str]:
    """What an item of a list can be called in an override: its position, label, name, task, short name or kind."""
    values = item.value if isinstance(item.value, dict) else {"name": item}
    names = {str(values[key].value) for key in ("label", "name", "task", "kind") if key in values}
    return {str(position), *names, *(short_name(name) for name in names)}


def short_name(name: str) -> str:
    """The last part of an id, or the name of a YAML file without its folder and suffix."""
    return name.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")


def default_components() -> Node:
    """The components that a config has if it names none, so that `algorithm.loss.clip_high=0.3` needs no name."""
    return _default_components(RunConfig)


def _default_components(model: type[BaseModel]) -> Node:
    mark = Mark(DEFAULT, 0, "")
    values: dict[str, Node] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.default, Component):
            options = {key: Node(value, mark) for key, value in info.default.options.items()}
            values[name] = Node({"name": Node(info.default.name, mark), **options}, mark)
        elif isinstance(info.default, BaseModel) and (inner := _default_components(type(info.default))).value:
            values[name] = inner
    return Node(values, mark)

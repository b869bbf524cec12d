"""The layers of a config: a file, what it extends, and overrides from the command line, merged in this order.

    what it extends -> the file itself -> `key.path=value`

`extends` holds one or several of: a preset (`algorithm/dapo`, see `configs/`), a task id, a `.yaml` path relative to
the extending file or to the current folder. Later entries win over earlier ones, and the file wins over them all.

**Short forms**: options of a policy that is registered with `model_keys` may be written as keys of `model`. In each
layer `model.lora` becomes `model.policy.lora` before the layer is merged, so that the last layer wins whichever form
it uses. The mark of the value still says what was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mmrl_core.config.limits import MAX_EXTENDS
from mmrl_core.config.merge import RUN, component_mapping, default_components, merge
from mmrl_core.config.nodes import COMMAND_LINE, Mark, Node, Problems, parse, read_text
from mmrl_core.config.schema import STAGE_SECTIONS
from mmrl_core.config.words import described
from mmrl_core.errors import ConfigError, PluginError, did_you_mean
from mmrl_core.plugins import load_plugins, presets

YAML_SUFFIXES = (".yaml", ".yml")
PART_INHERITS = {
    "data": ("data",),
    "prompt": ("prompt",),
    "rewards": ("rewards",),
    "tools": ("rollout", "tools"),
    "environment": ("rollout", "environment"),
    "metrics": ("eval", "metrics"),
}
"""Key of a part of a mixture -> where its task has the same."""


def files_beside(name: str) -> list[str]:
    """YAML files in the folder of a path, with or without a suffix, written as it is; for did-you-mean."""
    folder = Path(name).expanduser().parent
    found = sorted(path.name for path in folder.glob("*") if path.suffix in YAML_SUFFIXES)
    return [str(Path(name).parent / file) for file in found]


class Layers:
    """Reads files for one config.

    Attributes:
        problems: those found so far.
        files: those read so far, each after what it extends.
    """

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.files: list[Path] = []
        self._read: dict[Path, Node] = {}

    def read_task(self, task: str) -> Node:
        """A task id or the path of a YAML file, merged over what it extends and over the default components."""
        path = Path(task).expanduser()
        if path.suffix not in YAML_SUFFIXES:
            path = load_plugins().task(task).path
        elif not path.is_file():
            raise ConfigError(f"there is no file {task}.{did_you_mean(task, files_beside(task))}")
        return merge(default_components(), self.read_file(path.resolve()), RUN, self.problems)

    def read_file(self, path: Path, chain: tuple[Path, ...] = ()) -> Node:
        """A file merged over what it extends. However many files extend it, it is read once.

        Args:
            chain: the files that extend it, the first one first.
        """
        if path not in self._read:
            self._read[path] = self._read_file(path, chain)
        return self._read[path]

    def _read_file(self, path: Path, chain: tuple[Path, ...]) -> Node:
        root = parse(read_text(path, shown(path), self.problems), shown(path), self.problems)
        if not isinstance(root.value, dict):
            self.problems.add_unreadable(root.mark, f"a config is a mapping of keys; got {described(root.plain)}.")
            return Node({}, root.mark)
        values = dict(root.value)
        extends = values.pop("extends", None)
        merged = Node({}, root.mark)
        methods: dict[str, str] = {}
        for entry in self._entries(extends, chain):
            base = self.find(entry, path, "extends")
            if base is None:
                continue
            if base in (*chain, path):
                steps = " extends ".join(shown(step) for step in (*chain, path, base))
                self.problems.add_unreadable(entry.mark, f"extends goes in a circle: {steps}.")
                continue
            layer = self.read_file(base, (*chain, path))
            self._refuse_second_method(methods, layer, entry)
            merged = merge(merged, layer, RUN, self.problems)
        self.files.append(path)
        return merge(merged, with_long_forms(Node(values, root.mark), self.problems), RUN, self.problems)

    def _refuse_second_method(self, methods: dict[str, str], layer: Node, entry: Node) -> None:
        """Note it where two of the files that one file extends are whole methods, of which the last alone would count.

        Args:
            methods: name of a method -> the entry that brought it, of the files before.
        """
        node, walked = layer.find(("algorithm", "method"))
        if walked != ("algorithm", "method") or not isinstance(node.value, str):
            return
        for name, other in methods.items():
            if name != node.value:
                what = f"{other!r} ({name}) and {entry.value!r} ({node.value}) are both whole methods"
                self.problems.add(entry.mark, f"{what}, and the second would undo the first. Extend one of them.")
        methods.setdefault(node.value, str(entry.value))

    def _entries(self, extends: Node | None, chain: tuple[Path, ...]) -> list[Node]:
        """What a file extends; nothing if it is too much, which is noted."""
        if extends is None or extends.value is None:
            return []
        entries = extends.value if isinstance(extends.value, list) else [extends]
        if len(entries) > MAX_EXTENDS or len(chain) >= MAX_EXTENDS:
            what = f"lists {len(entries):,} files" if len(entries) > MAX_EXTENDS else f"goes on for {len(chain)} files"
            self.problems.add_unreadable(extends.mark, f"extends {what}, and {MAX_EXTENDS} are the most.")
            return []
        return entries

    def find(self, entry: Node, path: Path, key: str) -> Path | None:
        """The file that an entry under a key of the file `path` names; None if there is none, which is noted."""
        name = entry.value
        if not isinstance(name, str):
            what = f"{key} names presets, tasks or files; got {described(entry.plain)}."
            self.problems.add_unreadable(entry.mark, what)
            return None
        if Path(name).suffix in YAML_SUFFIXES:
            for candidate in (path.parent / Path(name).expanduser(), Path(name).expanduser()):
                if candidate.is_file():
                    return candidate.resolve()
            where = f"{shown(path.parent)}, the folder of this file, nor in the current folder"
            self.problems.add_unreadable(entry.mark, f"there is no file {name!r}, neither in {where}.")
            return None
        if name in presets():
            return presets()[name].resolve()
        try:
            return load_plugins().task(name).path.resolve()
        except PluginError as error:
            hint = did_you_mean(name, [*presets(), *load_plugins().tasks])
            what = f"{key} names {name!r}, which is no preset, task or .yaml file."
            self.problems.add_unreadable(entry.mark, what + (hint or f" Presets: {', '.join(presets())}. {error}"))
            return None


def shown(path: Path) -> str:
    """A path as an error shows it: relative to the current folder if it is in it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# Short forms


def short_forms() -> dict[str, list[str]]:
    """Keys of `model` that are short for an option of a policy -> the policies that have it."""
    found: dict[str, list[str]] = {}
    for entry in load_plugins().registry.entries("policy"):
        for key in entry.details.get("model_keys", ()):
            found.setdefault(key, []).append(entry.id.removeprefix("core/"))
    return found


def with_long_forms(layer: Node, problems: Problems) -> Node:
    """A layer in which options of the policy are under `model.policy`."""
    model = layer.value.get("model")
    if model is None or not isinstance(model.value, dict):
        return layer
    short = {key: node for key, node in model.value.items() if key in short_forms()}
    if not short:
        return layer
    rest = {key: node for key, node in model.value.items() if key not in short}
    policy = component_mapping(rest.get("policy", Node({}, model.mark)))
    if not isinstance(policy.value, dict):  # the schema refuses it; of its options nothing is to be said
        return Node({**layer.value, "model": Node(rest, model.mark)}, layer.mark)
    for key, node in short.items():
        if key in policy.value:
            problems.add(node.mark, f"'model.{key}' is set a second time; first at {policy.value[key].mark}.")
    rest["policy"] = Node({**short, **policy.value}, policy.mark)
    return Node({**layer.value, "model": Node(rest, model.mark)}, layer.mark)


def is_short(key: str, node: Node) -> bool:
    """Whether an option of the policy was written as a key of `model`."""
    return node.mark.written == f"model.{key}"


# Overrides


def apply_overrides(root: Node, overrides: Sequence[str], problems: Problems) -> Node:
    """Merge "key.path=value" over a config, the value in YAML, one after the other.

    What would silently do nothing is refused once all are merged: another override may set the same in the stage.
    """
    shared: list[tuple[str, str, Node]] = []  # (path, section, value) of those for all stages
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            problems.add(COMMAND_LINE, f"{override!r} is not of the form key.path=value.")
            continue
        layer = parse(text, COMMAND_LINE, problems, path.strip())
        for depth in reversed(range(len(keys))):
            layer = Node({keys[depth]: layer}, Mark(COMMAND_LINE, 0, ".".join(keys[:depth])))
        root = merge(root, with_long_forms(layer, problems), RUN, problems)
        if keys[0] in STAGE_SECTIONS:
            shared.append((path.strip(), keys[0], layer.value[keys[0]]))
    for written, section, value in shared:
        _refuse_shadowed(root, section, value, problems)
        _refuse_in_mixture(root, written, section, value, problems)
    return root


def _refuse_shadowed(root: Node, section: str, layer: Node, problems: Problems) -> None:
    """An override that a stage overrides again would silently do nothing there."""
    stages = root.value.get("stages")
    for i, stage in enumerate(stages.value if stages is not None and isinstance(stages.value, list) else []):
        own = stage.value.get(section) if isinstance(stage.value, dict) else None
        for path, mark in _shadows(layer, own, (section,)):
            key = ".".join(path)
            problems.add(
                COMMAND_LINE,
                f"{key!r} has no effect in stage {i}, which sets it at {mark}. "
                f"Write stages.{i}.{key}=... instead or as well.",
            )


def _refuse_in_mixture(root: Node, key: str, section: str, layer: Node, problems: Problems) -> None:
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
            problems.add(
                COMMAND_LINE,
                f"{key!r} has no effect in part {i} of the mixture, which has its own from {marks[0]}. "
                f"Write mixture.{i}.{key}=...",
            )


def _shadows(layer: Node, own: Node | None, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mark]]:
    """Paths set in `layer` that `own` sets too, and not from the command line."""
    if own is None:
        return
    if isinstance(layer.value, dict) and isinstance(own.value, dict):
        for key, node in layer.value.items():
            yield from _shadows(node, own.value.get(key), (*path, key))
    elif own.mark.source != COMMAND_LINE:
        yield path, own.mark

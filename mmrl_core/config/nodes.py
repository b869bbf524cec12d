"""YAML text to nodes, which are values that know where they were written; and plain values back to YAML.

Scalars follow YAML 1.2, not PyYAML's 1.1: `1e-6` is a number, `no`, `off`, `yes`, `on` and dates are text, `true` and
`false` are the only bools. Duplicate keys are errors, and no tag constructs anything.

A config may come from a stranger, so what it may cost is limited before it is read: bytes, depth, and values and
characters once its aliases are written out. What goes beyond is one error, with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmrl_core.config.limits import MAX_BYTES, MAX_CHARACTERS, MAX_DEPTH, MAX_KEY, MAX_NUMBER, MAX_VALUES
from mmrl_core.config.options import KeyPath

COMMAND_LINE = "command line"
DEFAULT = "default"


@dataclass(frozen=True)
class Mark:
    """Where something was written: a file and its line, or the command line; and its dotted path there."""

    source: str
    line: int
    written: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Node:
    """A value with its mark: dict[str, Node], list[Node], or a scalar."""

    value: Any
    mark: Mark

    @property
    def plain(self) -> Any:
        """The value without marks."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain for node in self.value]
        return self.value

    def find(self, path: KeyPath) -> tuple[Node, KeyPath]:
        """The node at a path, or the last one on the way, and the part of the path that exists."""
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

    def has_more_than(self, number: int) -> bool:
        """Whether it has more values in it than a number. Counts no further."""
        waiting, found = [self], 0
        while waiting and found <= number:
            value = waiting.pop().value
            found += 1
            waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return found > number

    def marks(self, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
        """Path and mark, as text, of this node and all below it."""
        yield path, str(self.mark)
        if isinstance(self.value, dict):
            children: Any = self.value.items()
        else:
            children = enumerate(self.value) if isinstance(self.value, list) else ()
        for key, node in children:
            yield from node.marks((*path, key))


def items_of(node: Node | None) -> list[Node]:
    """The items of a list, none of anything else."""
    return list(node.value) if node is not None and isinstance(node.value, list) else []


@dataclass
class Problems:
    """What is wrong with a config, a sentence each, in the order in which it was found.

    Args:
        unreadable: something is missing, so that a check of the rest would report what is not wrong.
        left_out: plugins with `enabled: false`, and whether a file before had them.
    """

    lines: list[str] = field(default_factory=list)
    unreadable: bool = False
    left_out: dict[Mark, tuple[Node, bool]] = field(default_factory=dict)

    def add(self, mark: Mark | str, message: str) -> None:
        self.lines.append(f"{mark}: {message}")

    def add_unreadable(self, mark: Mark, message: str) -> None:
        self.add(mark, message)
        self.unreadable = True

    def __str__(self) -> str:
        """A line for each cause. What stages inherit is found once for each of them, and is one cause."""
        causes: dict[str, list[str]] = {}
        for line in dict.fromkeys(self.lines):
            what = line.partition(": ")[2]
            causes.setdefault(_POSITION.sub("#", what), []).append(line)
        told: list[str] = []
        for lines in causes.values():
            told += lines if len(lines) < ALIKE else [_with_others(lines[0], lines[1:])]
        more = len(told) - MAX_TOLD
        return "\n".join([*told[:MAX_TOLD], *([f"... and {more:,} more problems."] if more > 0 else [])])


ALIKE = 4
"""So many lines that say the same become one."""

MAX_TOLD = 40
"""Problems of a config that are listed. Someone who put a data file in its place gets no more."""


_POSITION = re.compile(r"(?<=[\w.]\.)\d+(?=[.'])")
"""The position in a dotted key, 'stages.0.kind'. What is wrong at several positions of a list has one cause."""


def _with_others(line: str, others: list[str]) -> str:
    """
    >>> _with_others("a.yaml:3: it is wrong.", ["a.yaml:4: it is wrong.", "a.yaml:5: it is wrong."])
    'a.yaml:3: it is wrong. And 2 more, at a.yaml:4, a.yaml:5.'
    """
    places = list(dict.fromkeys(other.partition(": ")[0] for other in others))
    few = ", ".join([*places[:3], *(["..."] if places[3:] else [])])
    return f"{line} And {len(others)} more, at {few}{'' if places[3:] else '.'}"


class _TooMuch(yaml.MarkedYAMLError):
    """A limit of this module is passed; `problem` is the sentence that says so."""


class _Loader(yaml.SafeLoader):
    """Composes nodes with the scalars of YAML 1.2; nothing is constructed from tags."""

    depth = num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        self.num_nodes += 1
        if self.depth > MAX_DEPTH:
            problem = f"values are nested more than {MAX_DEPTH} deep here, which no config needs"
            raise _TooMuch(problem=problem, problem_mark=self.peek_event().start_mark)
        if self.num_nodes > 2 * MAX_VALUES:  # keys are nodes too
            raise _TooMuch(problem=_TOO_MANY, problem_mark=self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_TOO_MANY = (
    f"a config may have {MAX_VALUES:,} values and {MAX_CHARACTERS:,} characters with its aliases written out, and here "
    "it has more. Keep data in data files"
)

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


def yaml_text(values: Any) -> str:
    """Plain values as YAML that `parse` reads as the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, indent=2)


def read_text(path: Path, shown: str, problems: Problems) -> str:
    """The text of a config file; what keeps it from being read is noted, and the text is then empty.

    Args:
        shown: the path as problems name it.
    """
    mark = Mark(shown, 0, "")
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        problems.add_unreadable(mark, f"the file cannot be read: {error.strerror or error}.")
        return ""
    if len(content) > MAX_BYTES:
        problems.add_unreadable(mark, f"the file has more than {MAX_BYTES:,} bytes. Is it a config, and not data?")
        return ""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        other = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        what = (
            "the file is UTF-16"
            if other
            else f"byte {error.start + 1} of the file, {content[error.start]:#04x}, is no UTF-8"
        )
        problems.add_unreadable(mark if other else Mark(shown, line, ""), f"{what}. Save it as UTF-8.")
        return ""


def parse(text: str, source: str, problems: Problems, written: str = "") -> Node:
    """YAML text to nodes; problems are noted, and the rest is read on.

    Args:
        source: file name, or `COMMAND_LINE`, whose values have no line.
        written: dotted path under which the text was written, of an override.
    """
    return _Parser(source, problems).parse(text, written)


class _Parser:
    """Reads one text. `source` and `problems` as in `parse`."""

    def __init__(self, source: str, problems: Problems) -> None:
        self._source, self._problems = source, problems
        self._has_lines = source != COMMAND_LINE
        self._num_values = self._num_characters = 0

    def parse(self, text: str, written: str) -> Node:
        start = self._mark(0, written)
        try:
            root = yaml.compose(text, _Loader)
            return Node({}, start) if root is None and self._has_lines else self._convert(root, start, ())
        except _TooMuch as error:
            mark = start if error.problem_mark is None else self._mark(error.problem_mark.line, written)
            self._problems.add_unreadable(mark, f"{error.problem}.")
            return Node({}, start)
        except yaml.MarkedYAMLError as error:
            at = error.problem_mark or error.context_mark
            context = f" {error.context}" if error.context else ""
            mark = start if at is None else self._mark(at.line, written)
            self._problems.add_unreadable(mark, f"this is not YAML: {error.problem}{context}.")
            return Node({}, start)
        except yaml.YAMLError as error:  # a character that YAML forbids
            self._problems.add_unreadable(start, f"this is not YAML: {' '.join(str(error).split())}.")
            return Node({}, start)

    def _count(self, node: yaml.Node) -> None:
        """Raises _TooMuch where the values so far, or their characters, are more than a config may have."""
        self._num_values += 1
        if isinstance(node, yaml.ScalarNode):
            self._num_characters += len(node.value)
        elif isinstance(node, yaml.MappingNode):
            self._num_characters += sum(len(key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if self._num_values > MAX_VALUES or self._num_characters > MAX_CHARACTERS:
            raise _TooMuch(problem=_TOO_MANY, problem_mark=node.start_mark)

    def _mark(self, line: int, written: str) -> Mark:
        return Mark(self._source, line + 1 if self._has_lines else 0, written)

    def _convert(self, node: yaml.Node | None, mark: Mark, inside: tuple[int, ...]) -> Node:
        """A node of PyYAML as ours. `inside` has the identities of the nodes around it: aliases can make a circle."""
        if node is None:
            return Node(None, mark)
        if id(node) in inside:
            self._problems.add_unreadable(mark, "an alias refers to a value that it is part of.")
            return Node(None, mark)
        self._count(node)
        inside = (*inside, id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, mark, inside)
        if isinstance(node, yaml.SequenceNode):
            children = [(item, self._child_mark(mark, item, str(i))) for i, item in enumerate(node.value)]
            return Node([self._convert(item, at, inside) for item, at in children], mark)
        return Node(self._scalar(node, mark), mark)

    def _mapping(self, node: yaml.MappingNode, mark: Mark, inside: tuple[int, ...]) -> Node:
        values: dict[str, Node] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
            child_mark = self._child_mark(mark, key_node, key)
            if not key:
                self._problems.add(child_mark, f"a key is a word; got {_described_node(key_node)}.")
            elif not self._is_text(key, mark):
                continue
            elif len(key) > MAX_KEY:
                self._problems.add_unreadable(
                    mark, f"a key is a word; got {len(key):,} characters that begin {key[:20]!r}."
                )
            elif key in values:
                self._problems.add(child_mark, f"key {key!r} is written twice; first at {values[key].mark}.")
            else:
                values[key] = self._convert(value_node, child_mark, inside)
        return Node(values, mark)

    def _is_text(self, text: str, mark: Mark) -> bool:
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._problems.add_unreadable(mark, "the text holds half of a surrogate pair, which is no character.")
            return False
        return True

    def _child_mark(self, mark: Mark, node: yaml.Node, key: str) -> Mark:
        return self._mark(node.start_mark.line, f"{mark.written}.{key}" if mark.written else key)

    def _scalar(self, node: yaml.Node, mark: Mark) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "str":
            return text if self._is_text(text, mark) else None
        if len(text) > MAX_NUMBER:
            self._problems.add_unreadable(
                mark, f"{text[:20]!r}... has {len(text):,} characters, too many for the type {kind}."
            )
            return None
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
            self._problems.add(mark, f"{text!r} is not of the type {kind} that its tag names.")
            return None
        self._problems.add(mark, f"the tag {node.tag} is not supported.")
        return None


def _described_node(node: yaml.Node) -> str:
    kinds: dict[type[yaml.Node], str] = {yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list"}
    return kinds.get(type(node), "nothing")

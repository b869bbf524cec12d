"""Properties of what a plugin registers: imports, docstrings, and options that are what their declaration says."""

from __future__ import annotations

import ast
import enum
import inspect
import json
import math
import textwrap
import typing
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from annotated_types import Ge, Gt, Le, Lt

from mmrl_core.config.options import REQUIRED, Option, option_problems, options_model, signature_of
from mmrl_core.errors import MMRLError
from mmrl_core.plugins.registry import KINDS, Entry
from mmrl_core.testing.subject import Subject

ODD_VALUES: tuple[Any, ...] = (True, -7, 2.5, "no such text", [[{}]], {"no": [{}]}, None)
"""No type of an option but Any takes them all."""

TAKES_ALL = frozenset(("Any", "object"))


def can_be_imported(subject: Subject) -> Iterator[str]:
    """Whether the import string of each entry leads to something that can be called."""
    for entry in subject.entries():
        try:
            target = entry.load()
        except MMRLError as error:
            yield f"{error}. Correct its import string, or what keeps its module from being imported."
            continue
        if not callable(target):
            yield f"{entry.kind} {entry.id} ({entry.target}): is not callable. {KINDS[entry.kind].description}"


def have_docstrings(subject: Subject) -> Iterator[str]:
    """Whether each entry says what it does."""
    for entry, target in subject.loaded():
        if callable(target) and not inspect.getdoc(target):
            yield (
                f"{entry.kind} {entry.id} ({entry.target}): has no docstring, which `mmrl info {entry.id}` shows. "
                "Say what it returns, in which range, and where it is from."
            )


def are_described(subject: Subject) -> Iterator[str]:
    """Whether the registration of each entry describes it in a line."""
    for entry in subject.entries():
        if not entry.description.strip() or "\n" in entry.description.strip():
            yield (
                f"{entry.kind} {entry.id}: is registered with the description {entry.description!r}. `mmrl list` shows "
                "it: say in one line what it is."
            )


def option_types_are_checked(subject: Subject) -> Iterator[str]:
    """Options that would take any value, as they have no type, or one that cannot be read where the config is."""
    for entry, target, options in _optioned(subject):
        for option in options.values():
            where = f"{entry.kind} {entry.id} ({entry.target}): option {option.name!r}"
            if option.annotation is REQUIRED:
                yield f"{where} has no type, so a config may set it to anything. Annotate it."
            elif option.type not in TAKES_ALL and not any(_refused(entry, target, option, v) for v in ODD_VALUES):
                yield (
                    f"{where}: its type {option.type!r} cannot be read, so a config may set it to anything. Import "
                    "what it names outside of `if TYPE_CHECKING`."
                )


def option_ranges_are_true(subject: Subject) -> Iterator[str]:
    """Defaults that their own type or range refuses, and values outside of a range that are taken."""
    for entry, target, options in _optioned(subject):
        for option in options.values():
            where = f"{entry.kind} {entry.id} ({entry.target}): option {option.name!r}"
            default = _as_in_yaml(option.default)
            if default is not REQUIRED and (said := _refused(entry, target, option, default)):
                yield f"{where}: its default {default!r} is refused: {said} Change the default or the type."
            for limit, beyond in _beyond(target, option):
                if not _refused(entry, target, option, beyond):
                    yield f"{where}: {beyond!r} is taken, although it is declared as {limit}. Correct the declaration."


def options_are_read(subject: Subject) -> Iterator[str]:
    """Options that the code of an entry never looks at, so that setting them does nothing."""
    for entry, target, options in _optioned(subject):
        unread = _unread(subject, target, options)
        for name in unread:
            yield (
                f"{entry.kind} {entry.id} ({entry.target}): option {name!r} is never read, so that setting it does "
                "nothing. Use it, or take it out."
            )


def _optioned(subject: Subject) -> Iterator[tuple[Entry, Any, dict[str, Option]]]:
    for entry, _ in subject.loaded():
        try:
            options = entry.options()
        except (TypeError, ValueError):  # not callable, or without a signature
            continue
        yield entry, entry.declaration(), options


def _refused(entry: Entry, target: Any, option: Option, value: Any) -> str:
    """Why a value of an option is refused; "" if it is taken."""
    kind = KINDS[entry.kind]
    problems = option_problems(target, {option.name: value}, kind.positional, kind.given)
    return next((problem.text for problem in problems if problem.path[:1] == (option.name,)), "")


def _as_in_yaml(default: Any) -> Any:
    """A default as a config would write it; `REQUIRED` where YAML has no such value."""
    if isinstance(default, enum.Enum):
        default = default.value
    elif isinstance(default, PurePath):
        default = str(default)
    try:
        return default if default is REQUIRED else json.loads(json.dumps(default))
    except (TypeError, ValueError):
        return REQUIRED


def _beyond(target: Any, option: Option) -> Iterator[tuple[str, float]]:
    """Limits of an option, as texts, each with a number that lies just beyond."""
    model = options_model(target)
    metadata = list(model.model_fields[option.name].metadata) if model is not None else []
    for limit in [*metadata, *_limits(option.annotation)]:
        if isinstance(limit, Gt):
            yield f"> {limit.gt}", limit.gt  # type: ignore[misc]
        elif isinstance(limit, Lt):
            yield f"< {limit.lt}", limit.lt  # type: ignore[misc]
        elif isinstance(limit, Ge):
            yield f">= {limit.ge}", _step(limit.ge, -1)
        elif isinstance(limit, Le):
            yield f"<= {limit.le}", _step(limit.le, 1)


def _limits(annotation: Any) -> list[Any]:
    """Limits of an annotation, of its members in a union too; not of what is inside lists."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *metadata = typing.get_args(annotation)
        return [*metadata, *_limits(inner)]
    if type(None) in (members := typing.get_args(annotation)):
        return [limit for member in members for limit in _limits(member)]
    return []


def _step(limit: Any, sign: int) -> Any:
    return limit + sign if isinstance(limit, int) else math.nextafter(limit, sign * math.inf)


def _unread(subject: Subject, target: Any, options: dict[str, Option]) -> list[str]:
    if options_model(target) is not None or _makes_its_own_init(target):
        nodes = (node for tree in subject.files.values() for node in ast.walk(tree))
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        return [name for name in options if name not in used]
    read: set[str] = set()
    for function in _readers(target):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):  # no source to look into
            return []
        read |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return [name for name in options if name not in read]


def _makes_its_own_init(target: Any) -> bool:
    return inspect.isclass(target) and hasattr(target, "__dataclass_fields__")


def _readers(target: Any) -> list[Any]:
    """The functions that are given the options: of a class each `__init__` that takes some of them."""
    if not inspect.isclass(target):
        return [inspect.unwrap(target)]
    signature_of(target)
    return [vars(base)["__init__"] for base in target.__mro__ if "__init__" in vars(base) and base is not object]

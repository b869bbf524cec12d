"""The options of a registered class or function: which it has, and what is wrong with those that are set.

A target declares its options with an attribute `Options`, a pydantic model: the fields are the options, with their
types, defaults, descriptions, validators and nested models. Without it the options are the parameters of the target's
signature, apart from those that the core passes. A range is a part of the type: `clip: Annotated[float, Lt(1.0)]`,
see `config/numbers.py`.

Registering and calling entries needs this module, so it imports pydantic inside its functions.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mmrl_core.config.words import expectation
from mmrl_core.errors import did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel, TypeAdapter, ValidationError

KeyPath = tuple[str | int, ...]

REQUIRED = inspect.Parameter.empty
"""Default of an option that has none."""


@dataclass(frozen=True)
class Option:
    """An option as it is declared. `str` of it is one readable line, such as "eps: float = 0.0001".

    Args:
        annotation: a type, or its text where annotations are postponed. `REQUIRED` if there is none.
        default: `REQUIRED` if there is none.
    """

    name: str
    annotation: Any
    default: Any
    description: str = ""

    @property
    def type(self) -> str:
        """The annotation as text, "" if there is none."""
        return "" if self.annotation is REQUIRED else type_text(self.annotation)

    def __str__(self) -> str:
        shown = f"{self.name}: {self.type}" if self.type else self.name
        return shown if self.default is REQUIRED else f"{shown} = {default_text(self.default)}"


def type_text(annotation: Any) -> str:
    """An annotation as it is printed: without modules and bounds, `int | None` for `Optional[int]`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(type_text, arguments))
    if annotation is None or annotation is type(None):
        return "None"
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if arguments and inspect.isclass(origin):
        return f"{origin.__name__}[{', '.join(map(type_text, arguments))}]"
    if inspect.isclass(annotation):
        return annotation.__name__
    return annotation if isinstance(annotation, str) else re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(annotation))


def default_text(value: Any) -> str:
    """A default as it is printed: the name of a function or class, otherwise its `repr`."""
    return str(value.__name__) if inspect.isroutine(value) or inspect.isclass(value) else repr(value)


def options_of(target: Any, positional: int, given: Collection[str]) -> dict[str, Option]:
    """The options of a registered class or function, by name. `**options` of a signature is left out.

    Args:
        positional: number of arguments that the core passes by position.
        given: names of arguments that the core passes by keyword.
    """
    if (model := options_model(target)) is not None:
        return {
            name: Option(
                name,
                info.annotation,
                REQUIRED if info.is_required() else info.get_default(call_default_factory=True),
                info.description or "",
            )
            for name, info in model.model_fields.items()
        }
    parameters = list(signature_of(target).parameters.values())
    passed = {*_positional_names(parameters)[:positional], *given}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in passed]
    hints = _type_hints(target)
    annotations = {p.name: hints[p.name] if _has_range(hints.get(p.name)) else p.annotation for p in named}
    return {p.name: Option(p.name, annotations[p.name], p.default) for p in named}


def signature_of(target: Any) -> inspect.Signature:
    """The signature of a function or class. A class whose `__init__` passes everything on has that of its base too.

    Raises:
        TypeError, ValueError: it is not callable, or is written in C without a signature.
    """
    signature = inspect.signature(target)
    if not inspect.isclass(target) or not _passes_on(signature):
        return signature
    own: dict[str, inspect.Parameter] = {}
    for base in target.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        init = inspect.signature(vars(base)["__init__"])
        _, *parameters = init.parameters.values()  # without self
        if not _passes_on(init):
            own = {p.name: p for p in parameters} | own
            return inspect.Signature(sorted(own.values(), key=lambda p: p.kind))
        own = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY} | own
    return signature


def _passes_on(signature: inspect.Signature) -> bool:
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    return {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds


def options_model(target: Any) -> type[BaseModel] | None:
    """The pydantic model that a target declares as `Options`, or is, if it does."""
    return model_of(target) or model_of(getattr(target, "Options", None))


@dataclass(frozen=True)
class OptionProblem:
    """Something wrong with the options of a component.

    Args:
        path: below the component; empty where something is missing.
        text: a sentence that names the option.
        fault: what pydantic found, of options that a model declares.
    """

    path: KeyPath
    text: str
    fault: Fault | None = None

    @property
    def is_inside(self) -> bool:
        """Whether the problem lies in a value, and not in which options are given."""
        return self.fault is not None and (len(self.fault.path) > 1 or self.fault.kind in ("rule", "value"))


def option_problems(
    target: Any, options: Mapping[str, Any], positional: int, given: Collection[str], others: Sequence[str] = ()
) -> Iterator[OptionProblem]:
    """What is wrong with options.

    Args:
        positional, given: as in `options_of`.
        others: keys beside the options in a config, such as `weight` of a reward, to name what was meant.
    """
    try:
        signature = signature_of(target)
    except (TypeError, ValueError):  # not callable, or written in C without a signature
        yield OptionProblem((), "is not a function with a signature")
        return
    own = options_of(target, positional, given)
    listed = f"Options: {', '.join(own) or 'none'}."
    named = [*own, *others]
    passed = (*_positional_names(signature.parameters.values())[:positional], *given)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    model = options_model(target)
    if model is not None:
        takes_any = model.model_config.get("extra") == "allow"
    for key in options:
        if key in own:
            continue
        if key in passed:
            yield OptionProblem((key,), f"{key!r} is passed by the run and cannot be set. {listed}")
        elif not takes_any:
            hint = did_you_mean(key, named)
            yield OptionProblem((key,), f"no option {key!r}.{hint} Options: {', '.join(named) or 'none'}.")
    if model is not None:
        for fault in model_faults(model, {key: value for key, value in options.items() if takes_any or key in own}):
            yield OptionProblem(fault.path, _sentence(fault, model), fault)
        return
    hints = _type_hints(target)
    for key, option in own.items():
        if key in options:
            if problem := _type_problem(options[key], hints.get(key)):
                yield OptionProblem((key,), f"option {key!r} {problem}")
        elif option.default is REQUIRED:
            yield OptionProblem((), f"missing option {key!r}, which has no default.")


def _positional_names(parameters: Any) -> list[str]:
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _type_hints(target: Any) -> dict[str, Any]:
    """The annotations of a function, with ranges. Those that cannot be resolved, as only a type checker imports them,
    are left out."""
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    found: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        alone = types.SimpleNamespace(__annotations__={name: annotation})
        with suppress(Exception):  # a hint is a help, not a duty: whatever its text raises, it is then not checked
            found |= typing.get_type_hints(alone, getattr(function, "__globals__", {}), include_extras=True)
    return found


def _has_range(hint: Any) -> bool:
    """Whether an annotation, or a member of it, is `Annotated`: its name alone would not say what type it is."""
    return typing.get_origin(hint) is typing.Annotated or any(map(_has_range, typing.get_args(hint)))


def _type_problem(value: Any, hint: Any) -> str:
    """What is wrong with an option, by its annotation. "" if nothing is, or if the annotation cannot tell."""
    from pydantic import PydanticUserError, ValidationError

    if hint is None:
        return ""
    try:
        _adapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return "".join(fault.text for fault in faults(error, value))
    except (PydanticUserError, TypeError):  # an annotation pydantic knows nothing of, or no value of YAML
        return ""
    return ""


@functools.lru_cache(maxsize=256)
def _adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


# Faults that pydantic finds


@dataclass(frozen=True)
class Fault:
    """Something wrong at `path`, below what was validated.

    Args:
        kind: a key is missing, a key is unknown, a rule of the model is broken, or a value is of a wrong type or size.
        text: of a rule, the sentence without its full stop; of a value, "should be ...; got ....".
    """

    path: KeyPath
    kind: Literal["missing", "unknown", "rule", "value"]
    text: str = ""


def model_faults(model: type[BaseModel], values: Mapping[str, Any]) -> list[Fault]:
    """Faults that a pydantic model finds in values as they come from YAML."""
    from pydantic import ValidationError

    try:
        text = json.dumps(values)
    except TypeError:  # made in Python, with values that YAML does not have
        text = None
    try:
        # By way of JSON: in its strict mode "5" is no number and 1 no bool, but a list may become a tuple.
        model.model_validate(values) if text is None else model.model_validate_json(text, strict=True)
    except ValidationError as error:
        return faults(error, values)
    return []


def faults(error: ValidationError, values: Any) -> list[Fault]:
    """The errors of pydantic, one for each place. The branches of a union make one."""
    found: list[Fault] = []
    expectations: dict[KeyPath, list[str]] = {}
    for item in error.errors():
        value, path = _walk(values, item["loc"])
        if item["type"] == "missing":
            found.append(Fault((*path, item["loc"][-1]), "missing"))
        elif item["type"] == "extra_forbidden":
            found.append(Fault(path, "unknown"))
        elif item["type"] == "value_error":
            found.append(Fault(path, "rule", item["msg"].removeprefix("Value error, ")))
        else:
            expectations.setdefault(path, []).append(expectation(item, value))
    for path, texts in expectations.items():
        *firsts, last = dict.fromkeys(texts)
        found.append(Fault(path, "value", "".join(f"{text.partition(';')[0]}, or " for text in firsts) + last))
    return found


def _walk(values: Any, loc: KeyPath) -> tuple[Any, KeyPath]:
    """The value at a location, or the last one on the way, and the part of the way that exists."""
    for depth, key in enumerate(loc):
        is_item = isinstance(values, list) and isinstance(key, int) and key < len(values)
        if not is_item and not (isinstance(values, dict) and key in values):
            return values, loc[:depth]
        values = values[key]
    return values, loc


def _sentence(fault: Fault, model: type[BaseModel]) -> str:
    """A fault of an option as a sentence that names it, dotted."""
    *parents, key = map(str, fault.path or ("",))
    parent, dotted = ".".join(parents), ".".join([*parents, key])
    if fault.kind == "missing":
        return f"missing option {dotted!r}, which has no default."
    if fault.kind == "unknown":
        section = model_of(annotation_at(model, fault.path[:-1]))
        keys = sorted(section.model_fields) if section is not None else []
        return f"option {parent!r} has no key {key!r}.{did_you_mean(key, keys)} Keys here: {', '.join(keys)}."
    return f"{fault.text}." if fault.kind == "rule" else f"option {dotted!r} {fault.text}"


# Annotations of a model


def unwrapped(annotation: Any) -> Any:
    """An annotation without `| None`. Of other unions the first member."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        first = next(member for member in typing.get_args(annotation) if member is not type(None))
        return unwrapped(first)
    return annotation


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model that an annotation names, if it does."""
    if annotation is None:
        return None
    from pydantic import BaseModel

    annotation = unwrapped(annotation)
    return annotation if inspect.isclass(annotation) and issubclass(annotation, BaseModel) else None


def annotation_at(model: type[BaseModel], path: KeyPath) -> Any:
    """The annotation at a path of a model; None if the model has no such path."""
    annotation: Any = model
    for key in path:
        inner = model_of(annotation)
        if inner is not None:
            annotation = inner.model_fields[str(key)].annotation if str(key) in inner.model_fields else None
            continue
        plain = unwrapped(annotation)
        arguments, origin = typing.get_args(plain), typing.get_origin(plain)
        annotation = arguments[1] if origin is dict else arguments[0] if origin is list else None
    return annotation

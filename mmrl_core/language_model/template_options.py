"""The options of a chat template: which variables it reads, and whether a prompt sets others."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from mmrl_core.errors import PolicyError, did_you_mean
from mmrl_core.types import Prompt

STANDARD = frozenset(
    {
        *("messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"),
        *(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")),
    }
)
"""What transformers gives to every template."""

_GENERATION_TAG = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
"""A tag of transformers that marks what an assistant says, and holds no variable."""


def variables_of(template: str) -> set[str]:
    """Variables that a template reads from outside; those of its loops, macros and own settings are not among them.

    Raises:
        PolicyError: it is malformed.

    >>> sorted(variables_of("{% for m in messages %}{{ m }}{% endfor %}{% if not thinking is defined %}"
    ...                     "{% set thinking = true %}{% endif %}{{ thinking }}"))
    ['messages', 'thinking']
    """
    from jinja2 import Environment, TemplateError
    from jinja2.meta import find_undeclared_variables

    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(_GENERATION_TAG.sub("", template))
        # Jinja counts what is set in both branches of an `if` too; it is read of what the template itself wrote.
        return find_undeclared_variables(tree) & set(_read_before_set(tree, set()))
    except TemplateError as error:
        raise PolicyError(f"the model's chat template cannot be read: {error}.") from error


def _read_before_set(node: Any, known: set[str]) -> Iterator[str]:
    """Names that a node reads while they are not known. What it sets for the nodes behind it is added to `known`."""
    from jinja2 import nodes

    def inside(children: Iterable[Any], names: set[str]) -> Iterator[str]:
        for child in children:
            yield from _read_before_set(child, names)

    if isinstance(node, nodes.Name):
        if node.ctx != "load":
            known.add(node.name)
        elif node.name not in known:
            yield node.name
    elif isinstance(node, nodes.Assign):
        yield from inside([node.node, node.target], known)
    elif isinstance(node, nodes.If):
        yield from _read_before_set(node.test, known)
        ways = [node.body, *([item.test, *item.body] for item in node.elif_), node.else_]
        branches = [(children, known.copy()) for children in ways]
        for children, names in branches:
            yield from inside(children, names)
        known |= set.intersection(*(names for _, names in branches))
    elif isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock | nodes.AssignBlock | nodes.With):
        own = known | {"loop", "caller", "varargs", "kwargs"}
        if isinstance(node, nodes.For):
            yield from _read_before_set(node.iter, known)
        if isinstance(node, nodes.Macro):
            known.add(node.name)
        yield from inside(node.iter_child_nodes(exclude=("iter",)), own)
        if isinstance(node, nodes.AssignBlock):
            yield from _read_before_set(node.target, known)
    else:
        yield from inside(node.iter_child_nodes(), known)


def check_options(prompt: Prompt, known: Collection[str]) -> None:
    """Refuse options of a prompt that the template does not read: they would change nothing.

    Args:
        known: variables that the template reads.

    Raises:
        PolicyError: names those that it reads.
    """
    if unknown := [name for name in prompt.template if name not in known]:
        at = f"mixture.{prompt.part}." if prompt.part else ""
        raise PolicyError(
            f"{at}prompt.template: the model's chat template reads no {unknown[0]!r}."
            f"{did_you_mean(unknown[0], known)} It reads: {', '.join(known) or 'no options'}."
        )

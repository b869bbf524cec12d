"""Reference pages of the classes that authors of plugins meet, from their docstrings and signatures."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from typing import Any

CLASSES = {
    "reward_view.md": ("mmrl_core.types:RewardView", "what an advantage stage reads"),
    "loss_inputs.md": ("mmrl_core.loss_inputs:LossInputs", "what a policy loss reads"),
    "scores.md": ("mmrl_core.methods:ScoreInputs", "what a loss that compares whole trajectories reads"),
    "policy.md": ("mmrl_core.policy:Policy", "what a policy is; `PolicyBase` below is what most inherit"),
    "environment.md": ("mmrl_core.conversation:Environment", "what answers a policy over several turns"),
    "run.md": ("mmrl_core.run:Run", "what a hook may use of a run"),
}
"""Page -> the class, and what it is."""

ALSO = {
    "policy.md": "mmrl_core.policy:PolicyBase",
    "environment.md": "mmrl_core.conversation:Reply",
    "run.md": "mmrl_core.run:TrainState",
}
"""A second class on the page of the first."""


def class_page(name: str) -> list[str]:
    """Parts of a page, in Markdown."""
    target, what = CLASSES[name]
    parts = [f"# {target.partition(':')[2]}", f"`{target.replace(':', '.')}`: {what}."]
    for index, each in enumerate([target, *([ALSO[name]] if name in ALSO else [])]):
        module, _, attribute = each.partition(":")
        thing = getattr(importlib.import_module(module), attribute)
        if index:
            parts.append(f"## {attribute}")
            parts.append(f"`{each.replace(':', '.')}`")
        parts += _described(thing)
    return parts


def _described(thing: type) -> list[str]:
    text, attributes = _split_attributes(inspect.getdoc(thing) or "")
    parts = [_markdown(text)]
    if attributes:
        parts.append("Attributes:\n\n" + "\n".join(f"- {_markdown(line)}" for line in attributes))
    if dataclasses.is_dataclass(thing):
        lines = [f"{f.name}: {f.type}" + _default(f) for f in dataclasses.fields(thing)]
        parts.append("```python\n" + "\n".join(lines) + "\n```")
    for name, function in _methods(thing):
        parts.append(f"### {name}")
        parts.append(f"```python\n{_signature(thing, name, function)}\n```")
        if doc := inspect.getdoc(function):
            parts.append(_docstring(doc))
    return parts


def _methods(thing: type) -> list[tuple[str, Any]]:
    """Public methods of the class itself, in the order of its source."""
    found = []
    for name, value in vars(thing).items():
        function = getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(function):
            found.append((name, function))
    return found


def _signature(thing: type, name: str, function: Any) -> str:
    """The lines of the definition as they stand in the source, without the body and without `self`."""
    source = textwrap.dedent(inspect.getsource(function))
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    node.args.args = [argument for argument in node.args.args if argument.arg not in ("self", "cls")]
    node.decorator_list, node.body = [], [ast.Expr(ast.Constant(...))]
    return ast.unparse(node).removesuffix(":\n    ...")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}"
    return "" if field.default_factory is dataclasses.MISSING else f" = {field.default_factory.__name__}()"


def _split_attributes(doc: str) -> tuple[str, list[str]]:
    """The text of a docstring and the items of its `Attributes:`."""
    text, _, rest = doc.partition("\nAttributes:\n")
    block, _, after = rest.partition("\n\n")
    items: list[str] = []
    for line in block.splitlines():
        if line.startswith("    ") and not line.startswith("     "):
            items.append(line.strip())
        elif items:
            items[-1] += " " + line.strip()
    named = [re.sub(r"^([\w, ]+): ", lambda m: ", ".join(f"`{n}`" for n in m[1].split(", ")) + ": ", i) for i in items]
    return f"{text}\n\n{after}".strip(), named


def _docstring(doc: str) -> str:
    """Paragraphs, and `Args:` and the like as they are."""
    parts = []
    for paragraph in doc.split("\n\n"):
        if re.match(r"(Args|Returns|Raises|Attributes|Yields):", paragraph) or paragraph.startswith(">>>"):
            parts.append(f"```\n{paragraph}\n```")
        else:
            parts.append(_markdown(paragraph))
    return "\n\n".join(parts)


def _markdown(text: str) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n")).replace("|", "\\|")

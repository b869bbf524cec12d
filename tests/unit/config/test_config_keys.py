"""Every key of the config is read somewhere in the core, so that none is without effect."""

import ast
import inspect
from pathlib import Path

import pytest
from pydantic import BaseModel

import mmrl_core
from mmrl_core.config import algorithm, component, schema

PACKAGE = Path(mmrl_core.__file__).parent
SCHEMA = (component, algorithm, schema)
MODELS = {
    value
    for module in SCHEMA
    for value in vars(module).values()
    if inspect.isclass(value) and issubclass(value, BaseModel) and value.__module__ == module.__name__
}
KEYS = sorted((m.__name__, key) for m in MODELS for key in m.__annotations__ if key in m.model_fields)


def attributes_read(path: Path) -> set[str]:
    """Names x of every `something.x` that a file reads, `getattr(something, "x")` included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            names.add(node.attr)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            names |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return names


SCHEMA_FILES = {Path(module.__file__) for module in SCHEMA}
READ = set().union(*(attributes_read(path) for path in PACKAGE.rglob("*.py") if path not in SCHEMA_FILES))
INSIDE_CONFIG = {
    ("Component", "name"),
    ("RewardConfig", "label"),
    ("DataConfig", "train"),
    ("DataConfig", "held_out"),
    ("PartConfig", "task"),
}
"""Read through a property of the model (`RewardConfig.key`), by a name in a variable (`getattr(data, split)`), or
before there is a model (`task`)."""


@pytest.mark.parametrize(("model", "key"), KEYS)
def test_every_key_is_read(model, key):
    assert key in READ or (model, key) in INSIDE_CONFIG, f"{model}.{key} is read nowhere in mmrl_core: it has no effect"

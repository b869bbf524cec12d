"""Properties of the distribution and of its source: what it imports, and which hooks it implements."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from mmrl_core import hookspecs
from mmrl_core.errors import did_you_mean
from mmrl_core.testing.faces import past_a_face
from mmrl_core.testing.subject import NothingToCheck, Subject

HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "numpy", "PIL", "pydantic", "yaml")
"""What `mmrl list` gets by without; importing any of it takes longer than everything else that it does."""

VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[\w.]+)?")
IMPORT_TIMEOUT_S = 120


def loads(subject: Subject) -> Iterator[str]:
    """Whether its module was imported and registered."""
    if subject.plugin.error is not None:
        yield f"plugin {subject.name!r} ({subject.plugin.distribution}) failed to load:\n{subject.plugin.error}"


def is_light(subject: Subject) -> Iterator[str]:
    """What a fresh interpreter has imported once the plugin is loaded."""
    if subject.package is None or subject.plugin.module is None:
        raise NothingToCheck("its source is not there")
    module = subject.plugin.module.__name__
    code = f"import sys, {module}; print('loaded:', *(name for name in {HEAVY!r} if name in sys.modules))"
    paths = os.pathsep.join(path for path in sys.path if path)
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=IMPORT_TIMEOUT_S,
        check=False,
    )
    if result.returncode:
        yield f"{module} cannot be imported alone: {result.stderr.strip().splitlines()[-1]}"
    elif loaded := result.stdout.rpartition("loaded:")[2].split():
        yield (
            f"importing {module} imports {', '.join(loaded)}, which `mmrl list` would wait for. Import it in the "
            "functions that need it, and name entries by import string."
        )


def has_metadata(subject: Subject) -> Iterator[str]:
    """What the metadata of the distribution say."""
    name = subject.plugin.distribution
    try:
        found: Distribution = distribution(name)
    except PackageNotFoundError:
        yield f"there is no distribution {name!r}. Give the plugin a pyproject.toml and install it with pip."
        return
    if not VERSION.fullmatch(found.version or ""):
        yield f"{name}: the version is {found.version!r}. Set `version` in pyproject.toml to one such as 0.1.0."
    if not (found.metadata.get_all("Summary") or [""])[0].strip():
        yield f"{name}: has no summary, which `mmrl list plugins` shows. Set `description` in pyproject.toml."
    if not _readme(found):
        yield f'{name}: has no README. Write one, and set `readme = "README.md"` in pyproject.toml.'
    if not any(re.match(r"mmrl[-_]core\b", requirement) for requirement in found.requires or ()):
        yield f"{name}: does not require mmrl-core. Add it to `dependencies` in pyproject.toml."


def _readme(found: Distribution) -> str:
    """The text that metadata hold below their fields, or in their field Description."""
    text = found.read_text("METADATA") or ""
    body = text.partition("\n\n")[2]
    return body.strip() or "".join(found.metadata.get_all("Description") or ()).strip()


def imports_faces(subject: Subject) -> Iterator[str]:
    """Imports past the faces of the core's rooms, and of private names."""
    for path, tree in subject.files.items():
        for arrow in past_a_face(path):
            named = f" ({arrow.name})" if arrow.name else ""
            yield (
                f"{_shown(subject, path)}:{arrow.line}: imports mmrl_core.{arrow.target}{named}, which is inside a "
                f"room of the core and may change. Import what `mmrl_core.{arrow.target.partition('.')[0]}` names."
            )
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mmrl_core":
                for alias in node.names:
                    if alias.name.startswith("_"):
                        yield (
                            f"{_shown(subject, path)}:{node.lineno}: imports {node.module}.{alias.name}, which is "
                            "private and may change. Use a name without an underscore, or write your own."
                        )


def implements_hooks(subject: Subject) -> Iterator[str]:
    """Hooks that do not exist, arguments that they are not called with, and hooks that nobody will call."""
    specs = {name: value for name, value in vars(hookspecs).items() if name.startswith("mmrl_")}
    for path, tree in subject.files.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            where, is_marked = f"{_shown(subject, path)}:{node.lineno}", any(map(_is_mark, node.decorator_list))
            if node.name not in specs:
                if is_marked:
                    hint = did_you_mean(node.name, specs) or f" Hooks: {', '.join(specs)}."
                    yield f"{where}: implements hook {node.name!r}, which does not exist.{hint}"
                continue
            if not is_marked:
                yield f"{where}: {node.name} is not marked, so it is never called. Put @hookimpl above it."
            passed = {"self", *inspect.signature(specs[node.name]).parameters}
            for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
                if argument.arg not in passed:
                    taken = ", ".join(sorted(passed - {"self"})) or "none"
                    yield f"{where}: {node.name} takes {argument.arg!r}, which it is not called with: {taken}."


def _is_mark(decorator: ast.expr) -> bool:
    node = decorator.func if isinstance(decorator, ast.Call) else decorator
    return (isinstance(node, ast.Name) and node.id == "hookimpl") or (
        isinstance(node, ast.Attribute) and node.attr == "hookimpl"
    )


def _shown(subject: Subject, path: Path) -> str:
    """A file from the folder of the package on."""
    package = subject.package
    return path.relative_to(package.parent).as_posix() if package is not None else path.name

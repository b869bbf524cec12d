"""What of `mmrl_core` others may import: its top level, and what the faces of its rooms name. Read, not imported.

A room is a folder of the package; its face is the `__all__` of its `__init__`.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

OPEN_MODULES = {
    "config.schema": "config.schema",
    "config.component": "config.schema",
    "config.algorithm": "config.schema",
    "config.numbers": "config.schema",
    "config.rows": "config.schema",
    "config.options": "config.options",
    "config.limits": "config.options",
    "config.words": "config.options",
    "plugins.registry": "plugins.registry",
    "plugins.hook_results": "plugins.hook_results",
    "methods.resampling": "methods.resampling",
    "plugins.builtin": "plugins",
    "cli.dry_run": "cli",
}
"""Modules of a room that stand on a floor below it, and are no secret of its: module -> place, see `tests/house.py`."""


@dataclass(frozen=True)
class Arrow:
    """An import of `name` (None: of the module itself) from `target`, found in `file` at `line`."""

    file: Path
    line: int
    source: str  # module, dotted below the package: "media.video"
    target: str
    name: str | None

    def __str__(self) -> str:
        named = f" ({self.name})" if self.name else ""
        return f"{shown(self.file)}:{self.line}: {self.source} -> {self.target}{named}"


def shown(path: Path) -> str:
    """A path from the folder of the package on, if it lies in it."""
    root = PACKAGE.parent
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


@functools.cache
def modules() -> dict[str, Path]:
    """Module, dotted below the package, without "__init__" -> its file. The package itself is ""."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def rooms() -> list[str]:
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def imports(path: Path, source: str = "") -> Iterator[Arrow]:
    """What a file imports of the package, wherever in it: in functions and for type checkers too."""
    known = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("mmrl_core."):
                    yield Arrow(path, node.lineno, source, alias.name.removeprefix("mmrl_core."), None)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mmrl_core":
            base = (node.module or "").removeprefix("mmrl_core").removeprefix(".")
            for alias in node.names:
                module = f"{base}.{alias.name}" if base else alias.name
                if module in known:
                    yield Arrow(path, node.lineno, source, module, None)
                elif base:
                    yield Arrow(path, node.lineno, source, base, alias.name)


@functools.cache
def face(room: str) -> frozenset[str]:
    """What a room's `__init__` names for others, its `__all__`."""
    for node in ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return frozenset(ast.literal_eval(node.value))
    return frozenset()


def past_a_face(path: Path, source: str = "") -> list[Arrow]:
    """Imports that reach into another room past its face."""
    wrong = []
    for arrow in imports(path, source):
        room = arrow.target.partition(".")[0]
        if room not in rooms() or room == source.partition(".")[0] or arrow.target in OPEN_MODULES:
            continue
        if arrow.target != room or (arrow.name is not None and arrow.name not in face(room)):
            wrong.append(arrow)
    return wrong

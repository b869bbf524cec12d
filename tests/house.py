"""The plan of `mmrl_core`, measured: floors, faces and sizes.

`python -m tests.house` prints it, `tests/unit/test_house.py` holds it.

A *place* is a file at the top of the package, or a room (a folder with what is in it). The config's schema is a place
of its own, of several files: it is needed on a floor below its reading.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from mmrl_core.testing.faces import OPEN_MODULES, PACKAGE, Arrow, face, imports, modules, past_a_face, rooms, shown

FLOORS: tuple[frozenset[str], ...] = tuple(
    frozenset(floor.split())
    for floor in (
        "errors types loss_inputs",
        "support",
        "config.options",
        "config.schema plugins.registry plugins.hook_results",
        "policy advantages losses rewards",
        "run advantage_stages policy_loss",
        "methods.resampling",
        "hookspecs batching",
        "plugins",
        "config media",
        "data scoring conversation methods peers",
        "runs language_model",
        "starting_model optimizer checkpoint defaults sampling",
        "evaluation",
        "step",
        "trainer",
        "testing",
        "cli",
        "__main__",
    )
)
"""From low to high. A place imports places of lower floors only; those on one floor do not know each other."""

ABOVE_THE_CORE = frozenset({"language_model", "testing", "cli", "__main__"})
"""Rooms that the core and its own rooms may not import; entries of the registry name them by string."""

LANGUAGE_MODEL_IMPORTS = frozenset(
    {"errors", "types", "loss_inputs", "support", "config.schema", "plugins.registry", "policy", "media"}
)

MAX_CORE_LINES = 4000
MAX_FILE_LINES = 400
MAX_CLASS_LINES = 300
MAX_FUNCTION_LINES = 60

LONGER = {
    "mmrl_core/media/video.py:load_video": "one call with eleven options, each a line of its docstring",
}
"""Functions that may be longer, and why."""


def place_of(module: str) -> str:
    """Where a module stands: "media.video" in "media", "trainer" in itself."""
    return OPEN_MODULES.get(module, module.partition(".")[0])


def floor_of(place: str) -> int:
    for index, floor in enumerate(FLOORS):
        if place in floor:
            return index
    raise LookupError(f"mmrl_core/{place} stands on no floor: add it to FLOORS in {shown(Path(__file__))}")


def arrows() -> list[Arrow]:
    """All imports between places of the package."""
    found = []
    for module, path in modules().items():
        if module:  # the package's own `__init__` names what everybody may use, and imports it when it is asked for
            found += [a for a in imports(path, module) if place_of(a.source) != place_of(a.target)]
    return found


def against_the_direction() -> list[Arrow]:
    """Imports of a place on the same floor or above, or of a room that the core may not import."""
    wrong = []
    for arrow in arrows():
        source, target = place_of(arrow.source), place_of(arrow.target)
        above = floor_of(target) >= floor_of(source)
        barred = target in ABOVE_THE_CORE and (source not in ABOVE_THE_CORE or target == "language_model")
        if above or barred or (source == "language_model" and target not in LANGUAGE_MODEL_IMPORTS):
            wrong.append(arrow)
    return wrong


@dataclass(frozen=True)
class Part:
    """A file, class or function and its length."""

    name: str
    lines: int


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def core_lines() -> int:
    return sum(num_lines(path) for path in PACKAGE.glob("*.py"))


def parts() -> tuple[list[Part], list[Part], list[Part]]:
    """Files, classes and functions of the package, the longest first."""
    files, classes, functions = [], [], []
    for path in modules().values():
        files.append(Part(shown(path), num_lines(path)))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                part = Part(f"{shown(path)}:{node.name}", node.end_lineno - node.lineno + 1)
                (classes if isinstance(node, ast.ClassDef) else functions).append(part)
    for found in (files, classes, functions):
        found.sort(key=lambda part: -part.lines)
    return files, classes, functions


def main() -> None:
    print(f"core, mmrl_core/*.py: {core_lines()} lines (limit {MAX_CORE_LINES})")
    for room in rooms():
        total = sum(num_lines(path) for path in (PACKAGE / room).rglob("*.py"))
        reached = {place_of(a.target) for a in arrows() if place_of(a.source) == room}
        print(f"  {room:15} {total:6} lines, a face of {len(face(room)):3} names; imports {', '.join(sorted(reached))}")
    limits = (MAX_FILE_LINES, MAX_CLASS_LINES, MAX_FUNCTION_LINES)
    for what, limit, found in zip(("files", "classes", "functions"), limits, parts(), strict=True):
        print(f"longest {what} (limit {limit}):", *(f"\n  {part.lines:5}  {part.name}" for part in found[:8]), sep="")
    wrong = against_the_direction()
    print(f"imports against the direction: {len(wrong)}", *(f"\n  {arrow}" for arrow in wrong), sep="")
    past = [arrow for module, path in modules().items() for arrow in past_a_face(path, module)]
    print(f"imports past a face: {len(past)}", *(f"\n  {arrow}" for arrow in past), sep="")


if __name__ == "__main__":
    main()

"""The plan of the package holds: imports go one way, through the faces of rooms; `mmrl list` loads nothing heavy."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "numpy", "pydantic", "yaml", "rich", "PIL")


def test_every_place_stands_on_a_floor():
    for module in house.modules():
        if module:
            house.floor_of(house.place_of(module))


def test_no_import_goes_against_the_direction():
    assert not list(map(str, house.against_the_direction()))


@pytest.mark.parametrize("module", [name for name in house.modules() if name not in ("", "__main__")])
def test_other_rooms_are_entered_through_their_face(module):
    assert not list(map(str, house.past_a_face(house.modules()[module], module)))


@pytest.mark.parametrize("module", [name for name in house.modules() if "." in name])
def test_a_room_does_not_go_through_its_own_face(module):
    own = [a for a in house.imports(house.modules()[module], module) if a.target == module.partition(".")[0]]
    assert not list(map(str, own)), "modules of a room import each other directly; their face is for others"


def test_the_core_stays_small():
    assert house.core_lines() < house.MAX_CORE_LINES


def test_files_classes_and_functions_stay_within_their_limits():
    files, classes, functions = house.parts()
    assert [part for part in files if part.lines > house.MAX_FILE_LINES] == []
    assert [part for part in classes if part.lines > house.MAX_CLASS_LINES] == []
    longer = {part.name for part in functions if part.lines > house.MAX_FUNCTION_LINES}
    assert longer == set(house.LONGER), "a longer function needs its reason in house.LONGER, and only it"


OUTSIDE = [
    path
    for pattern in (
        "plugins/*/src/**/*.py",
        "plugins/*/tests/*.py",
        "benchmarks/*.py",
        "docs/*.py",
        "tests/integration/*.py",
        "tests/cli/*.py",
    )
    for path in sorted(house.PACKAGE.parent.glob(pattern))
]


@pytest.mark.parametrize("path", OUTSIDE, ids=house.shown)
def test_plugins_and_whoever_else_is_outside_enter_rooms_through_their_face(path):
    """Unit tests of a room (tests/unit/<room>) may open it, as they test what is inside."""
    assert not list(map(str, house.past_a_face(path)))


@pytest.mark.parametrize("page", sorted((house.PACKAGE.parent / "docs").glob("*.md")), ids=house.shown)
def test_snippets_of_the_docs_enter_rooms_through_their_face(page, tmp_path):
    for number, snippet in enumerate(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)):
        path = tmp_path / f"{number}.py"
        path.write_text(snippet)
        try:
            assert not list(map(str, house.past_a_face(path)))
        except SyntaxError:  # a signature, in a reference page
            assert "import" not in snippet


def test_nothing_of_a_plugin_is_imported_by_the_core():
    for path in house.modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.startswith("mmrl_") and not n.startswith("mmrl_core")], path.name


def test_importing_the_package_imports_nothing_heavy():
    modules = "mmrl_core, mmrl_core.plugins.discovery, mmrl_core.errors, mmrl_core.hookspecs"
    assert loaded_by(f"import {modules}") == set()


def test_mmrl_list_imports_nothing_heavy():
    run = "assert main(['list']) == 0; assert main(['list', '--json']) == 0"
    assert loaded_by(f"from mmrl_core.cli import main; {run}") == set()


def loaded_by(code: str) -> set[str]:
    """Heavy modules that a fresh interpreter has after running the code."""
    ask = f"{code}\nimport sys; print('loaded:', *(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.rpartition("loaded:")[2].split())


@pytest.mark.parametrize("package", ["mmrl_core", "mmrl_core.language_model", "mmrl_core.testing"])
def test_a_lazy_face_names_the_same_everywhere(package):
    module = importlib.import_module(package)
    assert all(getattr(module, name) is not None for name in module.__all__)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    imported = [alias.name for node in checked.body for alias in node.names]
    assert sorted(imported) == sorted(module.__all__)

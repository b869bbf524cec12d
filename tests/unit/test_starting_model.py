"""Built models are kept until what builds them changes, and no longer."""

from __future__ import annotations

import ast
import inspect
import shutil
import sys
from pathlib import Path

import pytest

from mmrl_core import starting_model
from mmrl_core.plugins import load_plugins
from tests import house

TESTING = house.PACKAGE / "testing"


@pytest.fixture
def digest_with(tmp_path, monkeypatch):
    """The digest of a builder beside a copy of the testing room, after text was added to files of them."""
    number = iter(range(100))

    def digest(*changed: str) -> str:
        name = f"probe_house_{next(number)}"
        shutil.copytree(TESTING, tmp_path / name / "testing")
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "builder.py").write_text("def build(directory): ...\n")
        for path in changed:
            with open(tmp_path / name / path, "a") as file:
                file.write("\n# changed\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(starting_model, "BUILDING_BLOCKS", f"{name}.testing.models")
        builder = __import__(f"{name}.builder", fromlist=["build"]).build
        for module in [module for module in sys.modules if module.startswith(name)]:
            monkeypatch.delitem(sys.modules, module)
        return starting_model._source_digest(builder)

    return digest


def test_a_change_of_what_builders_use_builds_anew_and_one_of_the_checks_does_not(digest_with):
    before = digest_with()
    assert digest_with("testing/checks.py", "testing/__init__.py") == before
    changed = [digest_with(path) for path in ("builder.py", "testing/models/tower.py", "testing/models/sizes.py")]
    assert before not in changed and len(set(changed)) == 3


def test_what_builders_use_cannot_move_away_in_silence(monkeypatch):
    monkeypatch.setattr(starting_model, "BUILDING_BLOCKS", "mmrl_core.testing.gone")
    with pytest.raises(AssertionError, match="has moved"):
        starting_model._source_digest(load_plugins)


def test_whatever_a_builder_takes_from_the_testing_room_is_in_the_digest():
    face = ast.parse((TESTING / "__init__.py").read_text(encoding="utf-8"))
    homes = {
        alias.name: node.module for node in ast.walk(face) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    builders = [entry.load() for entry in load_plugins().registry.entries("model")]
    files = {Path(inspect.getsourcefile(builder) or "") for builder in builders}
    files |= {path for module, path in house.modules().items() if module.startswith("testing.models")}
    assert len(builders) > 5
    for path in files:
        for arrow in house.imports(path):
            target = f"mmrl_core.{arrow.target}"
            home = homes[str(arrow.name)] if arrow.target == "testing" else target
            assert "testing" not in home or home.startswith(starting_model.BUILDING_BLOCKS), arrow

"""Built models are kept until what builds them changes, and no longer."""

from __future__ import annotations

import ast
import inspect
import os
import shutil
import sys
from pathlib import Path

import pytest

from mmrl_core import starting_model
from mmrl_core.config import RunConfig
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


BUILDER = '''
import time
from pathlib import Path

def quick(directory, *, seed, on_progress=None):
    """A model of one file."""
    directory.mkdir()
    (directory / "config.json").write_text(str(seed))
    if on_progress is not None:
        on_progress("half of it")

def fails(directory, *, seed, on_progress=None):
    """Ends in the middle of it."""
    directory.mkdir()
    (directory / "config.json").write_text("half")
    raise KeyboardInterrupt
'''


@pytest.fixture
def building(tmp_path, monkeypatch):
    """`building(name)` -> the model that a builder of that name makes, and what was told meanwhile."""
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "builders.py").write_text(BUILDER)

    def build(name):
        told = []
        model = {"build": {"name": f"{tmp_path / 'builders.py'}:{name}"}}
        config = RunConfig(name="x", seed=5, model=model)
        return starting_model.starting_model(config, load_plugins().registry, progress=told.append), told

    return build


def test_a_build_tells_what_it_does_and_how_long_it_took_and_is_made_once(building):
    folder, told = building("quick")
    assert (folder / "config.json").read_text() == "5"
    assert told[0].startswith("building the starting model") and str(folder) in told[0]
    assert told[1:] == ["half of it", "built the starting model in 0 s"]
    assert building("quick") == (folder, [])
    assert list(folder.parent.iterdir()) == [folder]


def test_a_build_that_is_interrupted_leaves_nothing_behind(building, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        building("fails")
    assert list((tmp_path / "cache").rglob("*")) == [tmp_path / "cache" / "models"]


def test_what_a_killed_build_left_is_deleted_by_a_later_one_and_what_is_going_on_is_not(building):
    folder, _ = building("quick")
    shutil.rmtree(folder)
    stale, going_on = (folder.with_name(f".{folder.name}.{token}.unfinished") for token in ("aa", "bb"))
    inner = folder.with_name(f".{stale.name}.cc.unfinished")  # a builder that writes aside itself
    for path in (stale, going_on, inner):
        path.mkdir()
    for path in (stale, inner):
        os.utime(path, (0, 0))
    building("quick")
    assert set(folder.parent.iterdir()) == {folder, going_on}

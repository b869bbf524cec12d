"""A missing package of an extra is one sentence; the install of the core alone is small."""

import doctest
import re
import sys
import tomllib
from pathlib import Path

import pytest

from mmrl_core.errors import MissingPackageError, MMRLError
from mmrl_core.support import extras

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_example_is_true():
    assert doctest.testmod(extras).failed == 0


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError) as caught:
        extras.need("av", "video", "reading video files")
    assert str(caught.value) == "reading video files needs the package av. Try: pip install 'mmrl-core[video]'"
    assert isinstance(caught.value, MMRLError)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("raise OSError('no library\\nof the system')", "no library"),
        ("raise RuntimeError", "RuntimeError"),
    ],
)
def test_a_package_that_is_there_but_broken_says_why(tmp_path, monkeypatch, content, why):
    (tmp_path / "half_installed.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match=re.escape(f"half_installed, which cannot be imported ({why}). Try")):
        extras.need("half_installed", "video", "reading video files")


def test_at_most_twelve_packages_are_installed_with_the_core():
    assert len(PROJECT["dependencies"]) <= 12


def test_every_extra_that_the_code_names_exists():
    named = set()
    sources = [*(ROOT / "mmrl_core").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")]
    for path in sources:
        named |= {match[1] for match in re.finditer(r'\bneed\("[\w.]+", "(\w+)"', path.read_text(encoding="utf-8"))}
    assert {"vision", "video", "audio", "report"} <= named <= set(PROJECT["optional-dependencies"])

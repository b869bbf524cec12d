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
SOURCES = [*(ROOT / "mmrl_core").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")]


def test_the_example_is_true():
    assert doctest.testmod(extras).failed == 0


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError) as caught:
        extras.need("av", "video", "reading video files")
    assert str(caught.value) == "reading video files needs the package av. Try: pip install 'mmrl-core[video]'"
    assert isinstance(caught.value, MMRLError)


def test_a_missing_package_has_the_name_that_pip_knows(monkeypatch):
    """Each import that the code asks for, and the packages of the extra that it says to install."""
    for path in SOURCES:
        for module, extra in re.findall(r'\bneed\("([\w.]+)", "(\w+)"', path.read_text(encoding="utf-8")):
            if module == "no_such_package":  # the example of a docstring
                continue
            monkeypatch.setitem(sys.modules, module, None)
            with pytest.raises(MissingPackageError) as caught:
                extras.need(module, extra, "it")
            (package,) = re.findall(r"needs the package (\w+)", str(caught.value))
            assert package in packages_of(extra), f"{path}: {module}"


def packages_of(extra):
    """Names of the distributions that an extra brings, those of the extras that it names included."""
    names = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        if within := re.match(r"mmrl-core\[(.+)\]", requirement):
            names |= set().union(*map(packages_of, within[1].split(",")))
        else:
            names.add(re.match(r"[\w-]+", requirement)[0])
    return names


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
    for path in SOURCES:
        named |= {match[1] for match in re.finditer(r'\bneed\("[\w.]+", "(\w+)"', path.read_text(encoding="utf-8"))}
    assert {"vision", "video", "audio", "report"} <= named <= set(PROJECT["optional-dependencies"])

"""What a release holds together: one version, one licence, what distributions ask of each other, the extras' page."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml")))
PROJECTS = {folder: tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in FOLDERS}
CORE = PROJECTS[ROOT]


def test_all_distributions_and_the_citation_have_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    versions = {project["name"]: project["version"] for project in PROJECTS.values()}
    assert set(versions.values()) == {citation["version"]} and len(versions) == 9, versions
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(citation)
    assert citation["license"] == CORE["license"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_distribution_carries_the_licence_and_says_what_it_is(folder):
    project = PROJECTS[folder]
    assert project["license"] == "Apache-2.0" and project["license-files"] == ["LICENSE"]
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert "Version 2.0, January 2004" in (folder / "LICENSE").read_text()
    assert {"description", "readme", "keywords", "classifiers", "requires-python"} <= set(project)
    assert project["requires-python"] == CORE["requires-python"]


@pytest.mark.parametrize("folder", FOLDERS[1:], ids=lambda folder: folder.name)
def test_a_plugin_needs_this_core_and_extras_that_it_has(folder):
    (core,) = [text for text in PROJECTS[folder]["dependencies"] if text.startswith("mmrl-core")]
    match = re.fullmatch(r"mmrl-core(?:\[([\w,]+)\])?>=(\d+\.\d+)", core)
    assert match is not None and CORE["version"].startswith(f"{match[2]}."), core
    assert set(filter(None, (match[1] or "").split(","))) <= set(CORE["optional-dependencies"])


def test_the_new_plugin_begins_with_what_these_have():
    template = ROOT / "mmrl_core" / "cli" / "scaffold" / "plugin" / "pyproject.toml.template"
    project = tomllib.loads(template.read_text().replace("$name", "x").replace("$package", "mmrl-x"))["project"]
    assert project["requires-python"] == CORE["requires-python"]
    (needed,) = re.findall(r"^mmrl-core\[\S+\]>=(.+)$", project["dependencies"][0])
    assert CORE["version"].startswith(f"{needed}.")


def test_every_extra_is_explained_with_what_it_brings():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = {
        name: row
        for names, row in re.findall(r"^\| (`.*?`) \| (.*) \|$", page, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    for extra, requirements in CORE["optional-dependencies"].items():
        for requirement in requirements:
            name, inner = re.match(r"([\w-]+)(?:\[(.*)\])?", requirement).groups()
            for word in inner.split(",") if inner else [name]:
                assert word in rows[extra], f"{extra}: {word}"


def test_ci_runs_every_target_that_tests():
    targets = re.findall(r"^(test[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE) == targets

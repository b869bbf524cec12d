"""`mmrl new`: what it makes passes its tests and its checks, and trains, before anything is edited."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mmrl_core.cli import main
from mmrl_core.plugins import load_plugins
from mmrl_core.runs import read_metrics

MODALITIES = ("text", "image", "video", "audio")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own_tests(path: str, patch: pytest.MonkeyPatch) -> int:
    """Run the cases of a file's test of its reward; how many there were. `make test-install` runs all by pytest."""
    patch.syspath_prepend(Path.cwd())
    patch.delitem(sys.modules, "reward", raising=False)
    test = runpy.run_path(path)["test_a_completion_gets_its_score"]
    cases = test.pytestmark[0].args[1]
    for completion, expected in cases:
        test(completion, expected)
    sys.modules.pop("reward", None)
    return len(cases)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_new_task_passes_its_check_with_real_files_and_has_three_places_to_edit(modality, here, monkeypatch, capsys):
    assert main(["new", "task", "mine", "--modality", modality]) == 0
    told = capsys.readouterr().out
    assert re.findall(r"^  (\d)  (\S+): ", told, re.MULTILINE) == [
        ("1", "mine.yaml"),
        ("2", "mine.yaml"),
        ("3", "reward.py"),
    ]
    monkeypatch.chdir("mine")
    sources = "".join(path.read_text() for path in Path().glob("*.*") if path.suffix in (".py", ".yaml"))
    assert sorted(re.findall(r"EDIT (\d)", sources)) == ["1", "2", "3"]
    assert own_tests("test_reward.py", monkeypatch) == 5
    assert main(["check", "mine.yaml"]) == 0
    checked = capsys.readouterr().out
    assert checked.count("scores the maximum, 1, on") == 2 and "warn" not in checked
    media = [path for path in Path("data").iterdir() if path.suffix != ".jsonl"]
    assert len(media) == (0 if modality == "text" else 32)


def test_a_new_task_learns_within_seconds(here, monkeypatch):
    assert main(["new", "task", "mine", "--modality", "text", "--output", "some/where"]) == 0
    monkeypatch.chdir("some/where")
    assert main(["train", "mine.yaml", "--output", "run"]) == 0
    evals = [record["greedy/reward/score"] for record in read_metrics(Path("run")) if record["kind"] == "eval"]
    assert evals[0] == 0.0 and evals[-1] > 0.5, "untrained, after sft, after grpo"
    assert Path("run/report.html").is_file()


def test_a_new_plugin_registers_checks_and_trains(here, monkeypatch, capsys):
    """As `pip install` leaves it: its sources on the path, with what its pyproject says of the entry points."""
    assert main(["new", "plugin", "my_signs"]) == 0
    folder = here / "mmrl-my-signs"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / "src" / "mmrl_my_signs-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    (info / "entry_points.txt").write_text(
        "".join(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups)
    )
    monkeypatch.syspath_prepend(folder / "src")
    assert own_tests(str(folder / "tests" / "test_my_signs.py"), monkeypatch) == 5
    load_plugins.cache_clear()
    try:
        capsys.readouterr()
        assert main(["check", "my_signs"]) == 0 and main(["check", "my_signs/tiny"]) == 0
        told = capsys.readouterr().out
        assert "ok    task my_signs/my_signs parses" in told and "ok    task my_signs/tiny parses" in told
        assert main(["train", "my_signs/tiny", "stages.sft.steps=1", "stages.grpo.steps=1", "--output", "run"]) == 0
    finally:
        load_plugins.cache_clear()


@pytest.mark.parametrize("kind", ["task", "plugin"])
def test_what_is_made_is_clean_python_and_made_alike(kind, here):
    for name in ("one", "two"):
        assert main(["new", kind, "mine", "--output", name]) == 0
    files = [
        sorted(path.relative_to(name) for path in Path(name).rglob("*") if path.is_file()) for name in ("one", "two")
    ]
    assert files[0] == files[1] and all(Path("one", f).read_bytes() == Path("two", f).read_bytes() for f in files[0])
    assert not [file for file in files[0] if "NAME" in str(file) or file.suffix == ".template"]
    select = ["--isolated", "--line-length", "120", "--select", "E,F,I,UP,B,SIM,RUF"]
    for command in (["check", *select], ["format", "--check", "--isolated", "--line-length", "120"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd="one", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def test_a_folder_that_cannot_be_made_leaves_nothing(here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert main(["new", "task", "mine"]) == 2
    assert "pip install 'mmrl-core[vision]'" in capsys.readouterr().err
    assert list(here.iterdir()) == []

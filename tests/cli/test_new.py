"""`mmrl new`: what it makes passes its tests and its checks, and trains, before anything is edited."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mmrl_core.cli import main
from mmrl_core.runs import read_metrics

MODALITIES = ("text", "image", "video", "audio")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder: Path, *commands: list[str], **environment: str) -> str:
    """The folder's own tests, then commands of mmrl, in one process; all of them succeed."""
    code = (
        "import json, sys, pytest; from mmrl_core.cli import main\n"
        "code = pytest.main(['-q', '-p', 'no:cacheprovider', '.'])\n"
        "sys.exit(max([code, *map(main, json.loads(sys.argv[1]))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout + done.stderr
    return done.stdout


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
    assert main(["check", "mine.yaml"]) == 0
    checked = capsys.readouterr().out
    assert checked.count("scores the maximum, 1, on") == 2 and "warn" not in checked
    media = [path for path in Path("data").iterdir() if path.suffix != ".jsonl"]
    assert len(media) == (0 if modality == "text" else 32)


def test_a_new_task_passes_its_tests_and_learns(here):
    assert main(["new", "task", "mine", "--modality", "text", "--output", "some/where"]) == 0
    run(here / "some" / "where", ["train", "mine.yaml", "--output", str(here / "run")])
    evals = [record["greedy/reward/score"] for record in read_metrics(here / "run") if record["kind"] == "eval"]
    assert evals[0] == 0.0 and evals[-1] > 0.5, "untrained, after sft, after grpo"
    assert (here / "run" / "report.html").is_file()


def test_a_new_plugin_registers_checks_and_trains(here):
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
    told = run(
        folder,
        ["check", "my_signs"],
        ["check", "my_signs/tiny"],
        ["train", "my_signs/tiny", "stages.sft.steps=1", "stages.grpo.steps=1", "--output", str(here / "run")],
        PYTHONPATH=str(folder / "src"),
    )
    assert "ok    task my_signs/my_signs parses" in told and "ok    task my_signs/tiny parses" in told


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

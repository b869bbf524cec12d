"""How a run was started: code, command and machine, as far as they can be found out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmrl_core.runs.rollouts import read_json_lines
from mmrl_core.runs.starts import FILE_NAME, note_start, start_record


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *names, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_each_start_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mmrl", "train", "a/task", "x.y=1", "b={c: d e}", "--output", "runs/a"])
    for num_processes in (1, 4):
        note_start(tmp_path, num_processes)
    first, second = map(json.loads, (tmp_path / FILE_NAME).read_text().splitlines())
    assert first["command"] == "mmrl train a/task x.y=1 'b={c: d e}' --output runs/a"
    assert first["overrides"] == ["x.y=1", "b={c: d e}"]
    assert {"python", "torch", "mmrl-core"} <= set(first["versions"]) and first["num_cpus"] >= 1
    assert (first["num_processes"], second["num_processes"]) == (1, 4)
    (tmp_path / FILE_NAME).write_text('{"time": "tor')  # by a kill
    note_start(tmp_path, 2)
    assert [line["num_processes"] for line in read_json_lines(tmp_path / FILE_NAME)] == [2]


def test_a_package_that_is_run_by_python_is_named_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/site/mmrl_core/__main__.py", "train", "a b"])
    assert start_record(1)["command"] == "python -m mmrl_core train 'a b'"


def test_the_commit_is_that_of_the_folder_and_says_whether_files_differ(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "--quiet")
    (tmp_path / "task.yaml").write_text("name: a\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert start_record(1)["commit"] == commit
    (tmp_path / "task.yaml").write_text("name: b\n")
    assert start_record(1)["commit"] == f"{commit} with changes"


def test_without_git_nothing_is_said_of_a_commit(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not {"commit", "mmrl_commit"} & set(start_record(1))

"""Fingerprints of data files: the same for a copy, another for a change anywhere."""

import os
from pathlib import Path

import pytest

from mmrl_core.checkpoint import data_files as module
from mmrl_core.checkpoint.data_files import fingerprint, refuse_changed, source_fingerprints
from mmrl_core.config import load_config
from mmrl_core.errors import TaskDataError


def test_a_copy_has_the_same_and_times_do_not_count(tmp_path: Path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"n": 1}\n')
    os.utime(tmp_path / "b.jsonl", (0, 0))
    assert fingerprint(tmp_path / "a.jsonl") == fingerprint(tmp_path / "b.jsonl")
    assert fingerprint(tmp_path / "a.jsonl").startswith("9 ")


CHANGES = {
    "grown": lambda folder: (folder / "rows.jsonl").write_text('{"n": 1}\n{"n": 2}\n'),
    "one digit": lambda folder: (folder / "rows.jsonl").write_text('{"n": 2}\n'),
    "a file more": lambda folder: (folder / "more.csv").write_text("n\n1\n"),
    "a file less": lambda folder: (folder / "picture.png").unlink(),
    "another size of a picture": lambda folder: (folder / "picture.png").write_bytes(b"123"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_changes_with_what_is_in_it(tmp_path: Path, change: str):
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n')
    (tmp_path / "picture.png").write_bytes(b"12")
    (tmp_path / ".hidden").touch()
    before = fingerprint(tmp_path)
    (tmp_path / ".hidden").write_text("of no source")
    assert fingerprint(tmp_path) == before
    CHANGES[change](tmp_path)
    assert fingerprint(tmp_path) != before


def test_of_a_large_file_blocks_at_both_ends_and_between_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"WHOLE_BYTES": 100, "BLOCK_BYTES": 10, "NUM_BLOCKS": 5}.items():
        monkeypatch.setattr(module, name, value)
    path = tmp_path / "rows.parquet"
    path.write_bytes(bytes(210))
    before = fingerprint(path)
    for place, is_read in {0: True, 9: True, 15: False, 55: True, 105: True, 209: True}.items():
        path.write_bytes(bytes(place) + b"x" + bytes(209 - place))
        assert (fingerprint(path) != before) is is_read, place


TASK = """
name: t
model: {path: m}
data: {train: {name: rows, path: one.jsonl}, held_out: {name: rows, path: held.jsonl}}
prompt: {text: "{n}"}
rewards: [exact_match]
stages:
  - {kind: sft, steps: 1}
  - {kind: grpo, steps: 1, data: {train: {name: rows, path: two.jsonl}}}
"""


def test_files_of_all_stages_to_come_and_of_held_out_rows_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "held"):
        Path(f"{name}.jsonl").write_text('{"n": 1}\n')
    Path("task.yaml").write_text(TASK.replace("rewards: [exact_match]", "rewards: ['r.py:pay']"))
    Path("r.py").write_text("def pay(completions, samples):\n    return [1.0 for _ in completions]\n")
    config = load_config("task.yaml")
    before = source_fingerprints(config)
    assert list(before) == ["one.jsonl", "two.jsonl", "held.jsonl"]
    assert list(source_fingerprints(config, 1)) == ["two.jsonl", "held.jsonl"]
    refuse_changed(before, source_fingerprints(config))
    Path("one.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    refuse_changed(before, source_fingerprints(config, 1))
    with pytest.raises(TaskDataError, match=r"one.jsonl has changed \(bytes then and now: 9 and 18\)\nPut them back"):
        refuse_changed(before, source_fingerprints(config))
    Path("held.jsonl").unlink()
    with pytest.raises(TaskDataError, match=r"held\.jsonl is gone"):
        refuse_changed(before, source_fingerprints(config, 1))

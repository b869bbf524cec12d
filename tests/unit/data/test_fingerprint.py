"""A run that goes on can tell that its data are others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmrl_core.config.schema import DataConfig, PromptConfig, SourceConfig
from mmrl_core.data import PromptSource, changed_sources, source_fingerprint
from mmrl_core.data import fingerprint as fingerprint_module
from mmrl_core.plugins import load_plugins
from tests.source_cases import CASES

PLUGINS = load_plugins()


def fingerprints(path: Path, **options: Any) -> dict[str, Any]:
    config = SourceConfig(name="rows", path=str(path), **options)
    source = PromptSource(PLUGINS, config, PromptConfig(text="x"), DataConfig(), name="train")
    return json.loads(json.dumps({"train": source_fingerprint(source)}))  # as a checkpoint keeps it


def test_the_same_file_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "rows.jsonl", tmp_path / "b" / "rows.jsonl"
    for path in (first, second):
        path.parent.mkdir()
        path.write_text('{"q": 1}\n')
    assert changed_sources(fingerprints(first), fingerprints(second)) == []
    assert fingerprints(first)["train"]["files"][0] | {"sha256": ""} == {
        "path": str(first),
        "bytes": 9,
        "sha256": "",
        "hashed": "whole",
    }


@pytest.mark.parametrize(
    ("content", "change"),
    [
        ('{"q": 1}\n{"q": 2}\n{"q": 3}\n', "rows.jsonl is not what it was (18 bytes, now 27 bytes)"),
        ('{"q": 1}\n{"q": 3}\n', "rows.jsonl is not what it was (18 bytes, but others)"),
    ],
)
def test_a_file_that_has_grown_or_changed_is_named(tmp_path: Path, content: str, change: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": 1}\n{"q": 2}\n')
    before = fingerprints(path)
    path.write_text(content)
    assert changed_sources(before, fingerprints(path)) == [f"data.train: {change}"]


def test_a_large_file_is_hashed_in_parts_its_ends_among_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint_module, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(fingerprint_module, "PIECE_BYTES", 16)
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"q": number}) for number in range(500)]
    path.write_text("\n".join(lines))
    before = fingerprints(path)
    assert before["train"]["files"][0]["hashed"] == "parts"
    for changed in (0, 499):
        path.write_text("\n".join(line.replace("q", "p") if n == changed else line for n, line in enumerate(lines)))
        assert len(changed_sources(before, fingerprints(path))) == 1


def test_other_rows_of_the_same_file_are_a_change_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": 1}\n{"q": 2}\n')
    assert changed_sources(fingerprints(path), fingerprints(path, split="train[:1]")) == [
        "data.train has 1 rows and had 2"
    ]


@pytest.mark.parametrize("name", CASES)
def test_the_files_of_every_source_are_known(name: str, tmp_path: Path) -> None:
    case = CASES[name][0]
    options = case.write(tmp_path, "a.mp4" if case.kind == "video" else "a.png")
    written = {path for path in tmp_path.iterdir() if path.is_file()}
    config = SourceConfig(name=name, split=case.split, **options)
    prompt = PromptConfig(text="x")
    files = set(PromptSource(PLUGINS, config, prompt, DataConfig(), name="train").files)
    assert files == written, "read files with mmrl_core.data, or name them in an option of the source"

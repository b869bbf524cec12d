"""`mmrl check` looks at every row for what shows without decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmrl_core.config.schema import DataConfig, PromptConfig, SourceConfig
from mmrl_core.data import PromptSource
from mmrl_core.plugins import load_plugins
from mmrl_core.testing import medium_bytes, row_checks
from mmrl_core.testing.row_checks import further_row_findings

PLUGINS = load_plugins()


def source_of(folder: Path, lines: list[str], **prompt: Any) -> PromptSource:
    (folder / "rows.jsonl").write_text("\n".join(lines))
    config = SourceConfig(name="rows", path=str(folder / "rows.jsonl"))
    return PromptSource(PLUGINS, config, PromptConfig(**prompt), DataConfig(max_broken=1.0), name="train")


def test_faults_behind_the_first_rows_are_found_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(medium_bytes("image"))
    (tmp_path / "a.wav").write_bytes(medium_bytes("audio"))
    (tmp_path / "wide.png").write_bytes(b"no picture")
    rows = [json.dumps({"q": "x", "image": "a.png", "sound": "a.wav"}) for _ in range(50)]
    rows[40] = json.dumps({"q": "x", "image": "gone.png", "sound": "a.wav"})
    rows[41] = json.dumps({"q": "x", "image": "wide.png", "sound": "a.wav"})
    rows[42] = json.dumps({"q": None, "image": "a.png", "sound": "a.wav"})
    rows[49] = rows[49][:20]  # the last line is torn
    source = source_of(tmp_path, rows, text="{q}", images=["{image}"], audios=["{sound}"], max_audio_s=0.6)
    (finding,) = further_row_findings("data.train", source, 32, 0.1)
    assert not finding.ok and finding.tolerable
    assert "data.train: 4 of the rows behind them are broken:" in finding.what
    for part in (
        "train:40: ",
        "no such file",
        "train:41: ",
        "not an image",
        "'q' is null",
        "rows.jsonl:50: broken",
    ):
        assert part in finding.what
    (finding,) = further_row_findings("data.train", source, 32, 0.05)
    assert not finding.tolerable and "more than data.max_broken (0.05) allows" in finding.what
    assert len(source.set_aside) == 0  # a look sets nothing aside


def test_audio_over_the_limit_is_found_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(medium_bytes("audio"))
    source = source_of(tmp_path, [json.dumps({"sound": "a.wav"})], text="x", audios=["{sound}"], max_audio_s=0.4)
    (finding,) = further_row_findings("data.train", source, 0, 0.05)
    assert "0.5 s is more than the limit of 0.4 s" in finding.what


def test_sound_rows_are_said_to_be_and_few_rows_need_nothing(tmp_path: Path) -> None:
    source = source_of(tmp_path, ['{"q": "x"}'] * 3, text="{q}")
    (finding,) = further_row_findings("data.train", source, 1, 0.0)
    assert finding.ok and "none of the rows behind them shows a fault" in finding.what
    assert further_row_findings("data.train", source, 3, 0.0) == []


def test_of_many_rows_as_many_as_the_limit_are_looked_at_the_last_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_checks, "MAX_LOOKED", 10)
    source = source_of(tmp_path, [*['{"q": "x"}'] * 99, '{"q": '], text="{q}")
    (finding,) = further_row_findings("data.train", source, 0, 0.5)
    assert "1 of 10 rows spread over those behind them are broken" in finding.what


def test_marks_that_nobody_set_are_a_finding(tmp_path: Path) -> None:
    source = source_of(tmp_path, ['{"q": "<image>x"}'], text="{q}")
    source.prompt(0)
    (finding,) = further_row_findings("data.train", source, 1, 0.5)
    assert not finding.ok and finding.tolerable and "marks are off" in finding.what


def test_rows_that_a_source_makes_are_not_made_to_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def rows(split):\n    return [{'q': 'x'}, {'q': None}]\n")
    config = SourceConfig(name=f"{tmp_path}/own.py:rows")
    source = PromptSource(PLUGINS, config, PromptConfig(text="{q}"), DataConfig(), name="train")
    assert source.is_made and further_row_findings("data.train", source, 1, 0.0) == []

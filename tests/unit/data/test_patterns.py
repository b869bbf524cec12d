"""Patterns of data files: what they match, in which order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mmrl_core.checkpoint.data_files import fingerprint
from mmrl_core.config.schema import DataConfig, PromptConfig, SourceConfig
from mmrl_core.data import PromptSource, load_rows, patterns
from mmrl_core.errors import TaskDataError
from mmrl_core.plugins import load_plugins


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one row each, which names its file."""
    monkeypatch.chdir(tmp_path)
    for name in ("a/train-08", "a/train-09", "a/train-10", "b/.hidden", "b/rows", "split/train-0", "split/val-0"):
        path = Path(f"{name}.jsonl")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"problem": path.stem}) + "\n")
    Path("b/rows.csv").write_text("problem\ncsv\n")
    pyarrow.parquet.write_table(pyarrow.table({"problem": ["parquet"]}), "b/rows.parquet")


CASES = {
    "a/*.jsonl": "train-08 train-09 train-10",
    "a/train-{08..09}.jsonl": "train-08 train-09",
    "a/train-{9..10}.jsonl": None,
    "a/train-{09..10}.jsonl": "train-09 train-10",
    "a/train-{1,0}{0,8}.jsonl": None,
    "{b/rows,a/train-?8}.jsonl": "train-08 rows",
    "b/*.jsonl": "rows",
    "b/rows.{csv,parquet}": None,
    "b/*.csv": "csv",
    "b/*.parquet": "parquet",
    "**/*[89].jsonl": "train-08 train-09",
    "{a,a}/*8.jsonl": "train-08",
}
"""Pattern -> its rows, None: refused."""


@pytest.mark.parametrize("pattern", CASES)
def test_a_pattern_is_the_files_that_match_sorted_each_once(pattern: str) -> None:
    expected = CASES[pattern]
    if expected is None:
        with pytest.raises(TaskDataError, match=r"no file matches|no such file"):
            load_rows(pattern)
    else:
        assert [row["problem"] for row in load_rows(pattern, split="train")] == expected.split()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("a/*.tar", r"^no file matches a/\*\.tar$"),
        ("a/train-{08..11}.jsonl", r"^no file matches a/train-11\.jsonl, one of the 4 names in a/train-\{08\.\.11\}"),
        ("a/train-{0..100000}.jsonl", r"its braces name more than 100,000 files"),
        ("split/*.jsonl", r"split has several splits.*Splits: train, val"),
    ],
)
def test_what_a_pattern_does_not_find_is_one_clear_error(path: str, said: str) -> None:
    with pytest.raises(TaskDataError, match=said):
        load_rows(path)


def test_files_of_several_splits_are_told_apart_and_others_are_one(tmp_path: Path) -> None:
    assert [row["problem"] for row in load_rows("split/*.jsonl", split="val")] == ["val-0"]
    assert [row["problem"] for row in load_rows("split/val-*.jsonl", split="train")] == ["val-0"], "as one file"
    assert len(load_rows("{a,b}/*.jsonl", split="train")) == 4, "files without the word are not left out"
    with pytest.raises(TaskDataError, match=r"a/\*\.jsonl: split 'val' is not part of the names of its files"):
        load_rows("a/*.jsonl", split="val")


def test_a_file_that_is_called_like_a_pattern_is_that_file() -> None:
    Path("a/train-[08].jsonl").write_text('{"problem": "itself"}\n')
    assert [row["problem"] for row in load_rows("a/train-[08].jsonl")] == ["itself"]


def test_media_lie_below_the_folder_before_anything_that_varies(tmp_path: Path) -> None:
    folders = {text: load_rows(text).media_root for text in ("a/*.jsonl", "{a,b}/*.jsonl", f"{tmp_path}/a/*.jsonl")}
    assert list(folders.values()) == [Path("a"), Path(), tmp_path / "a"]


def test_a_source_of_a_pattern_notes_its_files(tmp_path: Path) -> None:
    source = PromptSource(load_plugins(), SourceConfig(path="a/*.jsonl"), PromptConfig(), DataConfig(), name="train")
    assert source.files == sorted((tmp_path / "a").glob("*.jsonl"))


def test_a_link_that_leads_out_of_the_folder_is_refused() -> None:
    Path("a/train-11.jsonl").symlink_to(Path("b/rows.jsonl").absolute())
    with pytest.raises(TaskDataError, match=r"a/train-11\.jsonl is a link to .*b/rows\.jsonl, out of a"):
        load_rows("a/*.jsonl")


def test_the_fingerprint_changes_with_the_files_that_match() -> None:
    before = fingerprint("a/*.jsonl")
    Path("a/other.csv").write_text("n\n")
    assert fingerprint("a/*.jsonl") == before == fingerprint("a/train-*.jsonl")
    Path("a/train-11.jsonl").write_text("{}\n")
    more = fingerprint("a/*.jsonl")
    Path("a/train-11.jsonl").rename("a/train-12.jsonl")
    assert len({before, more, fingerprint("a/*.jsonl")}) == 3


def test_as_many_names_as_are_allowed_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MOST_FILES", 3)
    assert len(patterns.Pattern("x-{1..3}.tar").names) == 3
    with pytest.raises(TaskDataError, match="more than 3 files"):
        patterns.Pattern("x-{1..4}.tar")

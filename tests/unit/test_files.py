"""Files are old or new, never half written."""

import math
from pathlib import Path

import pytest

from mmrl_core.support import finite, remove_unfinished, written_aside


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_in_place_only_after_the_block(tmp_path: Path):
    path = tmp_path / "made" / "numbers.txt"
    with written_aside(path) as aside:
        aside.write_text("1 2 3")
        assert not path.exists() and aside.parent == path.parent
    assert path.read_text() == "1 2 3" and names(path.parent) == ["numbers.txt"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, is_folder: bool):
    path = tmp_path / "kept"
    for number in range(2):
        try:
            with written_aside(path) as aside:
                if is_folder:
                    aside.mkdir()
                    (aside / "inside").write_text(str(number))
                else:
                    aside.write_text(str(number))
                if number:
                    raise OSError("disk full")
        except OSError:
            assert number
    assert (path / "inside" if is_folder else path).read_text() == "0"
    assert names(tmp_path) == ["kept"]


def test_a_folder_takes_the_place_of_a_folder(tmp_path: Path):
    for name in ("first", "second"):
        with written_aside(tmp_path / "folder") as aside:
            aside.mkdir()
            (aside / name).touch()
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["second"]


def test_two_writers_of_one_file_do_not_share_a_path(tmp_path: Path):
    path = tmp_path / "file"
    with written_aside(path) as first, written_aside(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and names(tmp_path) == ["file"]


def test_what_was_left_half_written_is_found_at_any_depth_and_nothing_else(tmp_path: Path):
    kept = [tmp_path / "a" / "file", tmp_path / ".hidden"]
    with written_aside(kept[0]) as file, written_aside(tmp_path / "folder") as folder:
        file.touch()
        folder.mkdir()
    for path in kept:
        path.touch()
    file.touch()  # as a process leaves it that is killed within the block
    folder.mkdir()
    (folder / "inside").touch()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == [".hidden", "a", "folder"] and names(tmp_path / "a") == ["file"]
    remove_unfinished(tmp_path / "missing")


def test_numbers_that_json_lacks_are_null():
    assert [finite(value) for value in (1.5, 2, True, "nan", math.nan, -math.inf)] == [1.5, 2, True, "nan", None, None]

"""Files are old or new, never half written."""

import errno
import math
import multiprocessing
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmrl_core.errors import MMRLError
from mmrl_core.support import files, finite, remove_unfinished, writes_to, written_aside


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


@pytest.mark.parametrize("can_swap", [True, False])
def test_a_kill_while_a_folder_takes_the_place_of_another_leaves_one_of_them_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_swap: bool
):
    """With a swap there is no moment without the folder; without it the old one is put back."""
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    seen = []

    def killed(*arguments: object) -> None:
        seen.append(names(path) if path.exists() else None)
        raise SystemExit

    if not can_swap:
        monkeypatch.setattr(files, "exchange", lambda one, other: False)
    with monkeypatch.context() as patch, pytest.raises(SystemExit), written_aside(path) as aside:
        aside.mkdir()
        (aside / "new").touch()
        patch.setattr(files.shutil, "rmtree", killed)  # what comes after the renames
    assert seen[0] == ["new"]
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["folder"] and names(path) == ["new"]

    path.rename(tmp_path / ".folder.0123456789ab.old.unfinished")  # as a kill between two renames leaves it
    (tmp_path / ".folder.0123456789ab.unfinished").mkdir()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["folder"] and names(path) == ["new"]


def test_a_folder_that_another_writer_has_made_meanwhile_stays_where_that_is_asked_for(tmp_path: Path):
    path = tmp_path / "folder"
    for name in ("first", "second"):
        with written_aside(path, keeps_existing=True) as aside:
            aside.mkdir()
            (aside / name).touch()
    assert names(tmp_path) == ["folder"] and names(path) == ["first"]


def with_torch(folder: Path) -> None:
    torch.save({"weights": torch.zeros(1 << 16)}, folder / "training.pt")


def with_safetensors(folder: Path) -> None:
    save_file({"weights": torch.zeros(1 << 16)}, folder / "model.safetensors")


def with_python(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("x" * (1 << 18))


def write_to_a_full_disk(write, folder: Path, result: Path) -> None:
    """As on a disk without room: files may not grow beyond 4 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        with writes_to(folder, "it"):
            write(folder)
    except MMRLError as error:
        result.write_text(str(error))


@pytest.mark.parametrize("write", [with_torch, with_safetensors, with_python])
def test_whichever_library_finds_that_nothing_can_be_written_it_is_one_sentence(tmp_path: Path, write):
    result = tmp_path / "result"
    result.touch()
    process = multiprocessing.get_context("fork").Process(target=write_to_a_full_disk, args=(write, tmp_path, result))
    process.start()
    process.join(60)
    assert (
        result.read_text() == f"it cannot be written to {tmp_path}: File too large. Raise the limit on the size of "
        "files (ulimit -f)."
    )


def test_an_error_that_has_nothing_to_do_with_writing_passes(tmp_path: Path):
    with pytest.raises(RuntimeError, match="sizes differ"), writes_to(tmp_path, "it"):
        raise RuntimeError("sizes differ")
    with pytest.raises(MMRLError, match=r"vanished"), writes_to(tmp_path, "it"):
        raise OSError(errno.ENOENT, "gone")


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

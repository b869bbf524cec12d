"""One run in a folder at a time, and a killed one leaves no lock behind."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from mmrl_core.errors import MMRLError
from mmrl_core.support import LOCK_FILE, FolderLock, locked_folder

CONTEXT = multiprocessing.get_context("fork")


def hold(folder: Path, connection, has_child: bool) -> None:
    """Hold the lock until something is received. A child does so too, and outlives the process."""
    lock = FolderLock(folder)
    child = os.fork() if has_child else None
    if child == 0:
        time.sleep(30)
        os._exit(0)
    connection.send(child)
    connection.poll(30)
    lock.release()


def start(folder: Path, has_child: bool = False):
    connection, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=hold, args=(folder, theirs, has_child))
    process.start()
    assert connection.poll(60)
    return process, connection


def test_a_second_run_is_refused_while_the_first_lives_and_told_which_it_is(tmp_path: Path):
    folder = tmp_path / "made" / "run"
    process, connection = start(folder)
    with pytest.raises(MMRLError, match=rf"a run is going on in {folder} \(process {process.pid} on .+\)"):
        FolderLock(folder)
    connection.send("let go")
    process.join(60)
    assert list(folder.iterdir()) == []
    with locked_folder(folder):
        assert (folder / LOCK_FILE).exists()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("has_child", [False, True])
def test_a_killed_run_leaves_no_lock_not_even_by_its_children(tmp_path: Path, has_child: bool):
    process, connection = start(tmp_path, has_child)
    child = connection.recv()
    process.kill()
    process.join()  # with a time limit it would wait for the child, too
    FolderLock(tmp_path).release()
    if child is not None:
        os.kill(child, signal.SIGKILL)


def test_other_processes_of_a_run_do_not_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with locked_folder(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with locked_folder(tmp_path):
            pass
        assert (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("folder", ["file/run", "/proc/run", "/proc/self"])
def test_a_folder_that_cannot_be_made_or_written_is_one_sentence(tmp_path: Path, folder: str):
    (tmp_path / "file").touch()
    with pytest.raises(MMRLError, match=r"the run folder .* cannot be written: .*Name another with --output"):
        FolderLock(tmp_path / folder)

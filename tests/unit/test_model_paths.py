"""What is meant as a folder is never looked for on a hub, and a checkpoint stands for the model in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrl_core.errors import PolicyError
from mmrl_core.support import local_model


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working folder with models, a run with two checkpoints, a file, and a folder of somebody's name."""
    monkeypatch.chdir(tmp_path)
    for folder in ("models/mine", "weights/other", "runs/first/checkpoints/step-9/model", "Qwen"):
        Path(folder).mkdir(parents=True)
    Path("runs/first/checkpoints/step-10/model").mkdir(parents=True)
    for folder in ("models/mine", "runs/first/checkpoints/step-10/model"):
        Path(folder, "config.json").write_text("{}")
    Path("runs/first/checkpoints/step-10/state.json").write_text("{}")
    Path("notes.txt").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("models/mine", "models/mine"),
        ("models/mine/", "models/mine"),
        ("./models/mine", "models/mine"),
        ("weights/other", "weights/other"),
        ("runs/first/checkpoints/step-10", "runs/first/checkpoints/step-10/model"),
        ("runs/first/checkpoints/step-10/model", "runs/first/checkpoints/step-10/model"),
        ("runs/first/checkpoints/step-9/model", "runs/first/checkpoints/step-9/model"),
    ],
)
def test_a_folder_is_itself_and_a_checkpoint_its_model(path, folder, here):
    found = local_model(path)
    assert found is not None and found.absolute() == here / folder
    assert local_model(str(here / path)) == here / folder


@pytest.mark.parametrize("path", ["gpt2", "owner/name", "Owner/Name-2.5_VL", "model-of/step", "nope"])
def test_a_hub_name_is_none(path):
    assert local_model(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "models/nope",  # the folder models is here
        "weights/nope",
        "Qwen/Qwen2.5-VL-3B-Instruct",  # so is a folder of this name; what is meant is not clear
        "checkpoints/best",
        "outputs/tiny",
        "step-5",
        "run/step-5",
        "./nope",
        "../nope",
        "/nowhere/model",
        "~/nope",
        "a/b/c",
        "nope/",
        "owner/name/",
        "C:\\models\\nope",
        "my models/nope",
        "",
    ],
)
def test_what_can_only_be_a_folder_and_is_none_is_refused_at_once(path):
    with pytest.raises(PolicyError, match=r"model\.path: there is no folder .*looked for /"):
        local_model(path)


def test_a_folder_of_the_hubs_owner_is_told_of():
    with pytest.raises(PolicyError, match=r"If the hub's Qwen/Some-VL is meant, start where there is no folder Qwen\."):
        local_model("Qwen/Some-VL")


def test_a_run_is_asked_for_a_checkpoint_and_names_its_newest():
    with pytest.raises(PolicyError, match=r"runs/first is a run. Give .* runs/first/checkpoints/step-10\."):
        local_model("runs/first")


def test_one_file_is_a_model_if_it_is_gguf(here):
    Path("weights/tiny.gguf").write_text("")
    assert local_model("weights/tiny.gguf") == Path("weights/tiny.gguf")
    for path in ("weights/nope.gguf", "nope.gguf"):
        with pytest.raises(PolicyError, match=r"there is no file .*nope\.gguf \(looked for /"):
            local_model(path)


def test_another_file_is_no_model():
    with pytest.raises(PolicyError, match=r"notes\.txt is a file. Give the folder"):
        local_model("notes.txt")

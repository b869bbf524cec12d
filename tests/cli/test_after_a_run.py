"""`mmrl sample`, `export`, `runs`, `compare`: a trained model asked and given away, runs listed and compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from mmrl_core.cli import main
from mmrl_core.support import locked_folder
from mmrl_core.testing import build_tiny

TASK = """
name: colours
description: Name the colour.
model: {path: models/tiny}
data:
  train: {path: rows.jsonl}
  held_out: {path: rows.jsonl}
prompt: {system: "Answer in a word.", text: "{problem}", images: ["{image}"]}
rewards: ["rewards.py:length"]
rollout: {max_tokens: 5}
optimizer: {lr: 0.03}
stages: [{kind: grpo, steps: 1, prompts_per_step: 2, group_size: 2}]
"""

REWARD = """
def length(completions, samples):
    return [len(text) / 10 for text in completions]
"""

QUESTION = "say red"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a run of LoRA and one of all weights, and their model."""
    folder = tmp_path_factory.mktemp("sample")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_tiny("qwen2_5_vl", folder / "models" / "tiny")
        Path("rewards.py").write_text(REWARD)
        names = ("red", "blue", "green", "white")
        for name in names:
            Image.new("RGB", (56, 56), name).save(f"{name}.png")
        rows = [{"problem": f"say {name}", "image": f"{name}.png"} for name in names]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        Path("task.yaml").write_text(TASK)
        for name, overrides in {"whole": [], "lora": ["model.lora.rank=3", "model.lora.alpha=5"]}.items():
            assert main(["train", "task.yaml", *overrides, "--output", f"runs/{name}"]) == 0
    return folder


def sampled(capsys, *arguments: str) -> str:
    assert main(["sample", *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("run", ["whole", "lora"])
def test_a_question_is_answered_as_the_run_answered_it_held_out(run, here, capsys):
    """The first held-out row, asked by hand: its system message, media and limits are the run's."""
    answer = sampled(capsys, f"runs/{run}", QUESTION, "--image", "red.png")
    assert main(["eval", "--checkpoint", f"runs/{run}"]) == 0
    lines = next(Path("runs", run, "eval").glob("*.jsonl")).read_text().splitlines()
    first = json.loads(lines[0])
    cut = f" [cut at {first['num_tokens']} tokens]" if first["truncated"] else ""
    assert first["completion"] and answer == f"{first['completion']}{cut}\n"


def test_the_image_and_the_limit_are_what_the_command_says(here, capsys):
    assert sampled(capsys, "models/tiny", QUESTION, "--max-tokens", "2").endswith("[cut at 2 tokens]\n")
    answers = sampled(capsys, "runs/lora", QUESTION, "--image", "red.png", "--num", "3", "--temperature", "1")
    assert len(set(answers.split("\n---\n"))) == 3


def test_a_run_on_chats_takes_a_question_too(here, capsys, monkeypatch):
    chat = [{"role": "user", "content": QUESTION}]
    Path("chats.jsonl").write_text(json.dumps({"turns": chat}) + "\n")
    shutil.copytree("runs/whole", "exported_run")
    config = Path("exported_run/config.yaml")
    prompt = {"messages": "{turns}", "system": ""}
    values = yaml.safe_load(config.read_text())
    values |= {"prompt": prompt, "data": {"train": {"path": "chats.jsonl"}, "held_out": {"path": "chats.jsonl"}}}
    config.write_text(yaml.safe_dump(values | {"stages": []}))
    asked = sampled(capsys, "exported_run", QUESTION)
    assert main(["eval", "--checkpoint", "exported_run"]) == 0
    (line,) = next(Path("exported_run/eval").glob("*.jsonl")).read_text().splitlines()
    assert asked.startswith(json.loads(line)["completion"]) and asked.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/lora", QUESTION, "--image", "none.png"], "there is no file"),
        (["runs/lora", QUESTION, "--image", "rewards.py"], "rewards.py"),
        (["runs/lora", QUESTION, "--num", "2"], "Set --temperature"),
        (["runs/none", QUESTION], "there is no checkpoint folder runs/none"),
        (["runs/lora", QUESTION, "--temperature", "nan"], "'nan' is not a number from 0 on"),
    ],
)
def test_what_cannot_be_asked_is_said(arguments, message, here, capsys):
    assert main(["sample", *arguments]) == 2
    assert message in capsys.readouterr().err


def exported(capsys, *arguments: str) -> str:
    assert main(["export", *arguments]) == 0, capsys.readouterr().err
    return (Path(arguments[1]) / "README.md").read_text()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(5, 12)[None]).logits


def test_a_merged_adapter_is_a_whole_model_that_says_the_same(here, capsys):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    card = exported(capsys, "runs/lora", "exported", "--merge")
    merged = AutoModelForImageTextToText.from_pretrained("exported", dtype=torch.float32)
    base = AutoModelForImageTextToText.from_pretrained("models/tiny", dtype=torch.float32)
    before = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, "runs/lora/checkpoints/step-1/model"))
    assert torch.allclose(logits(merged), adapted, atol=1e-5) and not torch.allclose(before, adapted, atol=1e-3)
    capsys.readouterr()
    asked = [QUESTION, "--image", "red.png", "--max-tokens", "5"]
    answer = sampled(capsys, "exported", *asked, "prompt.system=Answer in a word.")
    assert answer == sampled(capsys, "runs/lora", *asked)
    assert "library_name: transformers" in card and "| `greedy/reward/length` |" in card


def test_an_adapter_whose_model_has_moved_is_merged_into_the_runs_own(here, capsys, monkeypatch, tmp_path):
    exported(capsys, "runs/lora", "exported_a", "--merge")
    moved = shutil.copytree(here, tmp_path / "moved")
    (here / "models").rename(here / "elsewhere")
    monkeypatch.chdir(moved)
    try:
        exported(capsys, "runs/lora", "exported_b", "--merge")
    finally:
        (here / "elsewhere").rename(here / "models")
    one, other = (load_file(moved / name / "model.safetensors") for name in ("exported_a", "exported_b"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_precision_and_adapters(here, capsys):
    exported(capsys, "runs/whole", "exported", "--precision", "bfloat16")
    assert {value.dtype for value in load_file("exported/model.safetensors").values()} == {torch.bfloat16}
    card = exported(capsys, "runs/lora/checkpoints/step-1", "exported_adapter")
    assert "library_name: peft" in card and "Over 4 held-out prompts" in card
    trained = Path("runs/lora/checkpoints/step-1/model/adapter_model.safetensors").read_bytes()
    assert Path("exported_adapter/adapter_model.safetensors").read_bytes() == trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/whole", "exported", "--merge"], "is no LoRA adapter"),
        (["runs/lora", "exported", "--precision", "bfloat16"], "Add --merge"),
        (["runs/lora", "models"], "models exists and is not an empty folder"),
        (["models/tiny", "exported"], "is no run"),
        (["runs/nothing", "exported"], "there is no checkpoint folder runs/nothing"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_written(arguments, message, here, capsys):
    assert main(["export", *arguments]) == 2
    assert message in capsys.readouterr().err and not Path("exported").exists()


def listed(capsys, *arguments: str) -> dict[str, dict]:
    assert main(["runs", *arguments, "--json"]) == 0, capsys.readouterr().err
    return {Path(run["run"]).name: run for run in json.loads(capsys.readouterr().out)}


def record(run: str, **values) -> None:
    with Path(run, "metrics.jsonl").open("a") as file:
        file.write(json.dumps(values) + "\n")


def test_runs_are_listed_with_their_state_and_what_they_reached(here, capsys, tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("failed", "going", "torn", "stopped"):
        shutil.copytree("runs/whole", tmp_path / "deep" / name)
    shutil.copytree("runs/lora", tmp_path / "done")
    record(str(tmp_path / "deep/failed"), kind="error", step=1, message="disk full")
    record(str(tmp_path / "deep/failed"), kind="alarm", step=1, message="flat")
    record(str(tmp_path / "deep/failed"), kind="error", step=1, message="disk full")
    config = tmp_path / "deep/stopped/config.yaml"
    config.write_text(config.read_text().replace("steps: 1\n", "steps: 3\n"))
    (tmp_path / "deep/torn/config.yaml").write_text("{")
    with (tmp_path / "deep/torn/metrics.jsonl").open("a") as file:
        file.write('{"kind": "eval", "st')
    (tmp_path / "no_run").mkdir()
    with locked_folder(tmp_path / "deep/going"):
        found = listed(capsys, str(tmp_path))
        assert main(["runs", str(tmp_path)]) == 0
    states = {"failed": "failed", "going": "running", "torn": "ended", "stopped": "stopped", "done": "done"}
    assert {name: run["status"] for name, run in found.items()} == states
    assert found["failed"]["alarms"] == 1 and found["stopped"]["planned"] == 3 and found["torn"]["task"] == ""
    evaluations = [json.loads(line) for line in Path("runs/lora/metrics.jsonl").read_text().splitlines()]
    ends = [one["greedy/reward/length"] for one in evaluations if one["kind"] == "eval"]
    shown = {"metric": "greedy/reward/length", "before": ends[0], "after": ends[-1]}
    assert found["done"]["held_out"] == shown and ends[0] != ends[-1]
    table = capsys.readouterr().out
    assert "failed, 1 alarm" in table and f"{ends[0]:.3f} -> {ends[-1]:.3f}" in table and "1/3" in table


def test_runs_are_compared_in_numbers_and_in_config(here, capsys):
    assert main(["compare", "runs/whole", "runs/lora"]) == 0
    shown = capsys.readouterr().out
    whole, lora = (listed(capsys, "runs")[name]["held_out"]["after"] for name in ("whole", "lora"))
    row = next(line for line in shown.splitlines() if line.startswith("greedy/reward/length"))
    assert row.split() == ["greedy/reward/length", f"{whole:.3f}", f"{lora:.3f}", f"({lora - whole:+.3f})"]
    assert "config of whole, and of lora" in shown and "model.policy.lora: null, a mapping" in shown
    assert main(["compare", "runs/whole", "runs/whole/../whole"]) == 2
    assert "named twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs", "nowhere"], "there is no folder nowhere"),
        (["compare", "runs/whole"], "name two runs"),
        (["compare", "runs/whole", "models"], "there is no run in models"),
    ],
)
def test_what_cannot_be_listed_or_compared_is_said(arguments, message, here, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err

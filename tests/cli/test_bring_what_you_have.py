"""Data and rewards of other frameworks train as they are, from a task of five lines."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mmrl_core.cli import main
from mmrl_core.testing import build_tiny

PEERS = Path(__file__).parents[1] / "data" / "peers"
COLOURS = ("red", "blue", "green")
TASK = """
name: mine
model: {{path: {model}}}
data: {{train: {{path: {data}}}}}
rewards: [{{name: {reward}, style: {style}}}]
stages: [{{kind: grpo, steps: 2, prompts_per_step: 2, group_size: 2, rollout: {{max_tokens: 3}}}}]
"""


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), colour).save(buffer, "PNG")
    return buffer.getvalue()


def jsonl(row: Callable[[str], dict[str, Any]]) -> str:
    Path("train.jsonl").write_text("".join(json.dumps(row(colour)) + "\n" for colour in COLOURS))
    return "train.jsonl"


def trl() -> str:
    prompt = [said("system", "Think in <think> tags."), said("user", "Which colour?")]
    return jsonl(lambda colour: {"prompt": prompt, "image": f"images/{colour}.png", "solution": colour})


def sharegpt() -> str:
    turns = [{"from": "human", "value": "<image>Which colour?"}, {"from": "gpt", "value": "red"}]
    return jsonl(
        lambda colour: {"conversations": turns, "images": [base64.b64encode(png(colour)).decode()], "solution": colour}
    )


def llama_factory() -> str:
    def row(colour: str) -> dict[str, Any]:
        picture = [f"images/{colour}.png"]
        return {"instruction": "<image>Which?", "input": "", "output": colour, "images": picture, "answer": colour}

    Path("train.json").write_text(json.dumps([row(colour) for colour in COLOURS]))
    return "train.json"


def swift() -> str:
    return jsonl(
        lambda colour: {
            "messages": [said("user", "<image>Which colour?")],
            "images": [f"images/{colour}.png"],
            "solution": colour,
        }
    )


def verl() -> str:
    rows = [
        {
            "data_source": "openai/gsm8k",
            "prompt": [said("user", "<image>Which colour?")],
            "images": [{"bytes": png(colour), "path": None}],
            "reward_model": {"style": "rule", "ground_truth": colour},
            "extra_info": {"index": number},
        }
        for number, colour in enumerate(COLOURS)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "train.parquet")
    return "train.parquet"


def easyr1() -> str:
    rows = [
        {"problem": "<image>Which colour?", "answer": colour, "images": [{"bytes": png(colour), "path": None}]}
        for colour in COLOURS
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "train.parquet")
    return "train.parquet"


def table() -> str:
    with open("train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("problem", "image", "answer"))
        writer.writerows(("Which colour?", f"images/{colour}.png", colour) for colour in COLOURS)
    return "train.csv"


def shards() -> str:
    Path("shards").mkdir()
    for colour in COLOURS:
        with tarfile.open(f"shards/train-{colour}.tar", "w") as archive:
            row = {"messages": [said("user", "<image>Which colour?")], "solution": colour}
            for name, content in ((f"{colour}.json", json.dumps(row).encode()), (f"{colour}.png", png(colour))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return "shards"


CASES: dict[str, tuple[Callable[[], str], str, str]] = {
    "trl": (trl, "trl_vlm.py:accuracy_reward", "trl"),
    "sharegpt": (sharegpt, "open_r1.py:length_reward", "trl"),
    "llama_factory": (llama_factory, "easyr1_math.py:compute_score_with_length", "easyr1"),
    "swift": (swift, "swift_plugin.py:Brevity", "swift"),
    "verl": (verl, "verl_scores.py:compute_score", "verl"),
    "easyr1": (easyr1, "easyr1_math.py:compute_score", "easyr1"),
    "csv": (table, "easyr1_math.py:compute_score_as_before", "easyr1"),
}
"""Layout -> what writes its data, a reward and its style."""

SHARDS = (shards, "swift_plugin.py:BoxAccuracy", "swift")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    build_tiny("qwen2_5_vl", folder)
    return folder


@pytest.fixture
def write(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes data, pictures and task.yaml of a case; commands run there."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for colour in COLOURS:
        Path(f"images/{colour}.png").write_bytes(png(colour))

    def write_case(name: str) -> None:
        data, reward, style = CASES.get(name, SHARDS)
        text = TASK.format(model=model, data=data(), reward=PEERS / reward, style=style)
        Path("task.yaml").write_text(text)

    return write_case


def steps(run: str) -> list[dict[str, Any]]:
    records = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record.get("kind") == "step"]


@pytest.mark.parametrize("name", CASES)
def test_five_lines_train_two_steps_on_pictures(name, write, capsys) -> None:
    write(name)
    assert main(["train", "task.yaml", "--output", "run"]) == 0, capsys.readouterr()
    found = steps("run")
    assert len(found) == 2
    for step in found:
        key = CASES[name][1].partition(":")[2]
        assert math.isfinite(step[f"reward/{key}"]) and not step.get(f"failures/{key}") and not step["unscored"]


def test_check_and_preview_say_what_rows_are_taken_for(write, capsys) -> None:
    write("verl")
    assert main(["check", "task.yaml"]) == 0, capsys.readouterr()
    told = "rows are in verl's layout (layout: verl): messages {prompt}, images {images}, placed by <image> <video>"
    assert f"data.train: {told}" in capsys.readouterr().out
    assert main(["preview", "task.yaml", "--num", "1"]) == 0
    assert f"train: {told}" in capsys.readouterr().out
    Path("task.yaml").write_text(Path("task.yaml").read_text().replace(", style: verl", ""))
    assert main(["check", "task.yaml"]) == 2
    assert "takes 'solution_str', and would get completions and data rows: written for verl? Set style: verl" in (
        capsys.readouterr().err
    )


def test_a_run_on_shards_that_was_stopped_goes_on_as_if_it_had_not_been(write) -> None:
    write("shards")
    assert main(["train", "task.yaml", "--output", "whole"]) == 0
    assert main(["train", "task.yaml", "stages.0.steps=1", "--output", "parts"]) == 0
    assert main(["train", "task.yaml", "--output", "parts", "--resume"]) == 0
    whole, parts = steps("whole"), steps("parts")
    keys = [key for key in whole[1] if key.startswith(("reward/", "loss", "grad_norm", "completion_tokens"))]
    assert len(keys) > 3 and [parts[-1][key] for key in keys] == [whole[1][key] for key in keys]

"""What is wrong with a task is said in one clear message by every command that can know it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from mmrl_core.cli import main
from mmrl_core.testing import build_tiny

SOLUTION = "<answer>[{'Position': [100, 100, 500, 500], 'Confidence': 1.0}]</answer>"

TASK = """
extends: visual_rft/detection
name: small
model: {path: MODEL}
data:
  train: {name: visual_rft/published, path: rows.jsonl}
  media_root: .
  max_broken: 0.5
prompt:
  answer: "<think></think>{solution}"
stages:
  - {kind: grpo, steps: 1, prompts_per_step: 1, group_size: 2}
"""

COMMANDS = {
    "check": ["check", "task.yaml"],
    "preview": ["preview", "task.yaml"],
    "dry run": ["train", "task.yaml", "--dry-run"],
}


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny("qwen2_5_vl", folder)
    return folder


@pytest.fixture
def task(tmp_path, monkeypatch, model):
    """Writes task.yaml, with pieces replaced, beside three rows with pictures; commands run there."""
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    Image.new("RGB", (84, 84), "grey").save(buffer, "PNG")
    rows = []
    for index in range(3):
        Path(f"{index}.png").write_bytes(buffer.getvalue())
        rows.append({"image": f"{index}.png", "problem": f"detect {index}", "solution": SOLUTION})
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(*replaced: tuple[str, str], more: str = "") -> None:
        text = TASK.replace("MODEL", str(model))
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        Path("task.yaml").write_text(text + more)

    return write


def run(command: str, capsys) -> tuple[int, str]:
    code = main(COMMANDS[command])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def says(text: str, *pieces: str) -> None:
    """The pieces stand together in exactly one line."""
    lines = [line for line in text.splitlines() if all(piece in line for piece in pieces)]
    assert len(lines) == 1, text
    assert "Traceback" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_a_sound_task_passes(command, task, capsys):
    task()
    code, output = run(command, capsys)
    assert code == 0, output


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_key(command, task, capsys):
    task(("  max_broken: 0.5", "  max_brokn: 0.5"))
    code, output = run(command, capsys)
    assert code == 2
    says(output, "task.yaml:8: unknown key 'max_brokn'. Did you mean 'max_broken'?")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_plugin(command, task, capsys):
    task(more="plugins: [visual_rtf]\n")
    code, output = run(command, capsys)
    assert code in (1, 2)
    says(output, "plugin 'visual_rtf' is not installed", "Did you mean 'visual_rft'?")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_data_file(command, task, capsys):
    task(("rows.jsonl", "row.jsonl"))
    code, output = run(command, capsys)
    assert code in (1, 2)
    says(output, "row.jsonl", "rows.jsonl")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_broken_image(command, task, capsys):
    task()
    Path("1.png").write_bytes(Path("1.png").read_bytes()[:60])
    code, output = run(command, capsys)
    assert code == (1 if command == "check" else 0)  # a run goes on without it, but says so
    says(output, "row 1" if command != "preview" else "train:1", "1.png")


@pytest.mark.parametrize("command", ["check", "dry run"])
def test_a_reward_that_raises(command, task, capsys):
    Path("mine.py").write_text("def bad(completions, samples):\n    raise KeyError('colour')\n")
    task(more="rewards: [mine.py:bad]\n")
    code, output = run(command, capsys)
    assert code == (1 if command == "check" else 2)
    says(output, "'bad'", "KeyError: 'colour'", "gold answer")


@pytest.mark.parametrize("command", ["check", "dry run"])
def test_gold_answers_that_do_not_score_the_maximum(command, task, capsys):
    task(("<think></think>{solution}", "{solution}"))
    code, output = run(command, capsys)
    assert code == (1 if command == "check" else 2)
    says(output, "visual_rft/format", "gold answer", "0")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_prompt_longer_than_the_limit(command, task, capsys):
    task(("model: {", "model: {max_prompt_tokens: 20, "))
    code, output = run(command, capsys)
    assert code == 0 if command == "preview" else code in (1, 2)  # a preview shows it with its length
    assert "max_prompt_tokens" in output and "20" in output and "Traceback" not in output


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_path_that_does_not_exist(command, task, capsys, model):
    task((str(model), "./nowhere"))
    code, output = run(command, capsys)
    assert code in (1, 2)
    says(output, "model", "./nowhere")


BUILDER = """
from mmrl_core.testing import build_tiny

def built(directory, *, seed: int = 0, on_progress=None):
    \"\"\"A tiny model.\"\"\"
    build_tiny("qwen2_5_vl", directory, seed=seed)
    if on_progress is not None:
        on_progress("trained 100 steps")
"""


def test_a_dry_run_that_builds_its_model_tells_of_it_and_how_long_it_took(task, capsys, monkeypatch, model):
    monkeypatch.setenv("MMRL_CACHE", "cache")
    Path("builder.py").write_text(BUILDER)
    task((f"path: {model}", "build: builder.py:built"))
    code, output = run("dry run", capsys)
    assert code == 0, output
    lines = output.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("building the starting model"))
    assert lines[start + 1] == "trained 100 steps" and lines[start + 2].startswith("built the starting model in ")
    (made,) = Path("cache/models").iterdir()
    assert (made / "config.json").is_file() and not made.name.startswith("."), "nothing is left half-built"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_path_in_a_folder_of_models_is_not_asked_of_the_hub(command, task, capsys, model):
    Path("models").mkdir()
    task((str(model), "models/nope"))
    code, output = run(command, capsys)
    assert code in (1, 2)
    says(output, "model.path: there is no folder models/nope")

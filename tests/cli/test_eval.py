"""`mmrl eval` as people run it: of a run, a checkpoint, an adapter, a model; with results that are kept and shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmrl_core.cli import main
from mmrl_core.testing import build_tiny

TASK = """
name: NAME
model: {path: MODEL}
data:
  train: {path: rows.jsonl}
  held_out: {path: rows.jsonl}
prompt: {text: "{problem}"}
rewards: ["rewards.py:length"]
rollout: {max_tokens: 4}
optimizer: {lr: 0.5}
stages: [{kind: grpo, steps: 1, prompts_per_step: 2, group_size: 2}]
"""

REWARD = """
def length(completions, samples):
    return [len(text) / 10 for text in completions]
"""


def write(name: str, *, task: str = "short", model: str = "", more: str = "") -> None:
    Path(name).write_text(TASK.replace("NAME", task).replace("MODEL", model) + more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run of LoRA, one of all weights, and the tasks that they were trained from."""
    folder = tmp_path_factory.mktemp("eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model = folder / "models" / "tiny"
        build_tiny("qwen2", model)
        Path("rewards.py").write_text(REWARD)
        Path("rows.jsonl").write_text("".join(json.dumps({"problem": f"say {i}"}) + "\n" for i in range(4)))
        write("whole.yaml", model=str(model))
        write("lora.yaml", model=str(model), more="extends: []\n")
        for name, overrides in {"whole": [], "lora": ["model.lora.rank=3", "model.lora.alpha=5"]}.items():
            assert main(["train", "whole.yaml", *overrides, "--output", f"runs/{name}"]) == 0
    return folder


@pytest.fixture
def here(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    for folder in runs.glob("**/eval"):
        shutil.rmtree(folder)
    capsys.readouterr()
    return runs


def evaluate(capsys, *arguments: str) -> tuple[str, dict]:
    """Output, and the result that was written."""
    code = main(["eval", *arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    path = Path(captured.out.rpartition("written to ")[2].partition(",")[0])
    result = json.loads(path.read_text(), parse_constant=pytest.fail)
    lines = [
        json.loads(line, parse_constant=pytest.fail) for line in path.with_suffix(".jsonl").read_text().splitlines()
    ]
    assert len(lines) == result["metrics"]["num_prompts"] and all(len(line["completion"]) >= 0 for line in lines)
    mean = sum(line["total"] for line in lines) / len(lines)
    assert result["metrics"]["greedy/reward/length"] == pytest.approx(mean)
    assert set(lines[0]["rewards"]) == {"length"} and lines[0]["prompt"]
    return captured.out, {**result, "path": str(path)}


def of_training(run: str, place: int) -> float:
    """What the training itself measured: first of the starting model, last of what it saved."""
    records = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == "eval"][place]["greedy/reward/length"]


@pytest.mark.parametrize(
    ("run", "form", "task"),
    [
        ("whole", "", []),
        ("lora", "checkpoints/step-1", ["whole.yaml"]),
        ("lora", "checkpoints/step-1/model", []),
    ],
)
def test_a_checkpoint_is_evaluated_with_its_runs_own_model(run, form, task, here, capsys):
    """The YAML knows nothing of the LoRA adapter, which an override of the training had set."""
    _, result = evaluate(capsys, *task, "--checkpoint", str(Path("runs", run, form)))
    assert result["path"] == f"runs/{run}/eval/step-1-short-all.json"
    assert result["metrics"]["greedy/reward/length"] == pytest.approx(of_training(f"runs/{run}", -1))
    assert result["notes"] == [] and of_training(f"runs/{run}", -1) != of_training(f"runs/{run}", 0)


def test_an_adapter_without_its_run_says_what_it_is(here, capsys):
    shutil.copytree("runs/lora/checkpoints/step-1/model", "adapter", dirs_exist_ok=True)
    _, result = evaluate(capsys, "whole.yaml", "--checkpoint", "adapter")
    assert result["metrics"]["greedy/reward/length"] == pytest.approx(of_training("runs/lora", -1))
    assert result["path"] == "adapter/eval/adapter-short-all.json"
    assert main(["eval", "--checkpoint", "adapter"]) == 2
    assert "adapter belongs to no run: name a TASK" in capsys.readouterr().err


def test_a_model_folder_is_evaluated_with_the_task(here, capsys):
    _, result = evaluate(capsys, "whole.yaml", "--checkpoint", "models/tiny", "--limit", "3")
    assert result["path"] == "models/tiny/eval/tiny-short-3.json" and result["metrics"]["num_prompts"] == 3


def test_a_model_of_the_hub_is_looked_up_by_its_name(here, capsys, monkeypatch):
    """The hub's cache on this machine has it, so that nothing is fetched."""
    from huggingface_hub import constants

    snapshot = here / "hub" / "models--someone--tiny" / "snapshots" / "0123"
    if not snapshot.exists():
        shutil.copytree("models/tiny", snapshot)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _, result = evaluate(capsys, "whole.yaml", "--checkpoint", "someone/tiny")
    assert result["metrics"]["greedy/reward/length"] == pytest.approx(of_training("runs/whole", 0))
    assert result["path"] == "eval/someone--tiny-short-all.json"


def test_no_result_is_overwritten_and_each_limit_has_its_own(here, capsys):
    paths = [
        evaluate(capsys, *arguments, "--checkpoint", "runs/whole")[1]["path"]
        for arguments in (["--limit", "1"], ["--limit", "1"], ["rollout.max_tokens=3", "--limit", "1"])
    ]
    names = [Path(path).name for path in paths]
    assert names[:2] == ["step-1-short-1.json", "step-1-short-1-2.json"]
    assert len(set(names)) == 3 and all(Path(path).is_file() for path in paths)


def test_another_task_than_the_runs_is_said(here, capsys):
    write("other.yaml", task="other", model="nowhere/at-all")
    text, result = evaluate(capsys, "other.yaml", "--checkpoint", "runs/lora", "--limit", "1")
    assert text.startswith("note: the run trained 'short', and this evaluates 'other'.\n") and result["task"] == "other"
    write("changed.yaml", model="nowhere/at-all", more="")
    Path("changed.yaml").write_text(Path("changed.yaml").read_text().replace('"{problem}"', '"Please {problem}"'))
    text, result = evaluate(capsys, "changed.yaml", "--checkpoint", "runs/lora", "--limit", "1")
    assert text.startswith("note: task 'short' is not as the run had it: prompt.text: '{problem}' in the run, 'Please ")


def test_the_report_shows_what_was_evaluated(here, capsys):
    pytest.importorskip("jinja2")
    evaluate(capsys, "--checkpoint", "runs/whole", "--limit", "2")
    Path("runs/whole/eval/broken.json").write_text("{")
    Path("runs/whole/eval/list.json").write_text('{"metrics": [1]}')
    hostile = {
        "metrics": {"<script>": 1e999, "a": 2},
        "checkpoint": "<script>alert(1)</script>",
        "task": [],
        "notes": [3],
    }
    Path("runs/whole/eval/z.json").write_text(json.dumps(hostile).replace("Infinity", "1e999"))
    assert main(["view", "runs/whole"]) == 0
    page = Path("runs/whole/report.html").read_text()
    assert "step-1 on short, the first 2 rows" in page and "eval/step-1-short-2.json" in page
    assert "<script>alert(1)" not in page and "eval/broken.json" not in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["whole.yaml", "--checkpoint", "absent"], "there is no checkpoint folder absent. Give a run"),
        (["whole.yaml", "--checkpoint", "runs/absent"], "there is no checkpoint folder runs/absent"),
        (["whole.yaml", "--checkpoint", "rows.jsonl"], "there is no checkpoint folder rows.jsonl"),
        (["whole.yaml", "--checkpoint", "models"], "models holds no whole checkpoint"),
        (["--checkpoint", "models/tiny"], "models/tiny belongs to no run: name a TASK"),
        (["shrt.yaml", "--checkpoint", "runs/whole"], "there is no file shrt.yaml"),
        (["evl.limit=3", "--checkpoint", "runs/whole"], "unknown key 'evl'"),
    ],
)
def test_what_cannot_be_evaluated_is_said(arguments, words, here, capsys):
    assert main(["eval", *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == "" and "Traceback" not in captured.err

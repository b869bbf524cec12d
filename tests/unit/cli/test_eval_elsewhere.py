"""`mmrl eval --with`: tasks of inspect_ai and lmms-eval on small checkpoints, with results kept as any others."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from PIL import Image

from mmrl_core.cli import main
from mmrl_core.cli.answering import Answerer, Request
from mmrl_core.testing import build_tiny
from mmrl_core.types import Sampling

INSPECT_TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ContentImage, ContentText, GenerateConfig
from inspect_ai.scorer import Score, Target, mean, scorer
from inspect_ai.solver import TaskState, generate, use_tools
from inspect_ai.tool import tool


@scorer(metrics=[mean()])
def length():
    async def score(state: TaskState, target: Target) -> Score:
        return Score(value=float(len(state.output.completion)), answer=state.output.completion)
    return score


def question(number):
    picture = ContentImage(image="picture.png")
    asked = ChatMessageUser(content=[picture, ContentText(text=f"Which {number}?")])
    said = [ChatMessageSystem(content="Be brief."), asked]
    return Sample(id=number, input=said, target="red")


@task
def pictures():
    config = GenerateConfig(max_tokens=6)
    return Task(MemoryDataset([question(n) for n in range(3)]), solver=generate(), scorer=length(), config=config)


@tool
def clock():
    async def execute() -> str:
        \"\"\"Tells the time.\"\"\"
        return "noon"
    return execute


@task
def with_tools():
    sample = Sample(input="What time is it?", target="noon")
    return Task([sample], solver=[use_tools(clock()), generate()], scorer=length())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    build_tiny("qwen2_5_vl", folder / "model")
    Image.new("RGB", (56, 56), "red").save(folder / "picture.png")
    (folder / "pictures.py").write_text(INSPECT_TASK)
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def said_alone(folder: Path, text: str, max_tokens: int) -> str:
    """What the checkpoint says to a picture and a text, asked directly."""
    answerer = Answerer(str(folder / "model"))
    picture = {"type": "image", "image": Image.open(folder / "picture.png").convert("RGB")}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [picture, {"type": "text", "text": text}]},
    ]
    (answer,) = answerer.answer([Request(messages, Sampling(max_tokens=max_tokens, temperature=0.0))])
    answerer.close()
    return answer.text


def test_a_task_of_inspect_runs_on_a_checkpoint_with_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("inspect_ai", reason="inspect_ai is not installed")
    command = ["eval", "--with", "inspect:pictures.py@pictures", "--checkpoint", "model", "--limit", "2"]
    assert main(command) == 0, capsys.readouterr().err
    (result,) = (here / "model" / "eval").glob("model-inspect-*-2.json")
    kept = json.loads(result.read_text())
    lines = [json.loads(line) for line in result.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [0, 1] and kept["given_task"] == "inspect:pictures.py@pictures"
    assert [line["completion"] for line in lines] == [said_alone(here, f"Which {n}?", 6) for n in range(2)]
    mean = sum(len(line["completion"]) for line in lines) / 2
    assert kept["metrics"] == {"length/mean": pytest.approx(mean)} and f"{mean:.6g}" in capsys.readouterr().out
    assert list((here / "model" / "eval" / "inspect").iterdir()), "its own log, which `inspect view` opens"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("inspect:pictures.py@with_tools", "the task gives the model tools (clock)"),
        ("inspect:gone.py", "inspect task 'gone.py'"),
        ("inspect", "expected FRAMEWORK:TASK"),
        ("helm:mmlu", "Frameworks: inspect, lmms"),
    ],
)
def test_what_cannot_be_run_is_said(here: Path, given: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("inspect_ai", reason="inspect_ai is not installed")
    assert main(["eval", "--with", given, "--checkpoint", "model"]) == 2
    error = capsys.readouterr().err
    assert expected in error and "Traceback" not in error


def test_a_task_and_a_framework_are_one_too_many(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "my/task", "--with", "inspect:pictures.py", "--checkpoint", "model"]) == 2
    assert "Leave one out" in capsys.readouterr().err
    assert main(["eval", "--with", "inspect:pictures.py", "--checkpoint", "model", "model.lora.rnk=2"]) == 2


def test_inspect_finds_the_provider_by_its_entry_point(here: Path) -> None:
    """As `inspect eval pictures.py --model mmrl/model` does."""
    model = pytest.importorskip("inspect_ai.model", reason="inspect_ai is not installed")
    (found,) = [point for point in entry_points(group="inspect_ai") if point.name == "mmrl"]
    assert found.load().MMRLModel.__module__ == "mmrl_core.cli.inspect_provider"
    assert type(model.get_model("mmrl/model", memoize=False).api) is found.load().MMRLModel


LMMS_TASK = """task: naming
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_visual: !function naming_utils.visual
doc_to_text: !function naming_utils.text
doc_to_target: colour
generation_kwargs: {max_new_tokens: 6, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
LMMS_UTILS = """
from PIL import Image


def visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return f"Which {doc['number']}?"
"""


def test_a_task_of_lmms_eval_runs_on_a_checkpoint_with_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval pins an older PyAV than mmrl-core[video], see docs/metrics.md")
    (here / "naming.yaml").write_text(LMMS_TASK)
    (here / "naming_utils.py").write_text(LMMS_UTILS)
    rows = [{"image": str(here / "picture.png"), "number": n, "colour": "red"} for n in range(3)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["eval", "--with", "lmms:naming.yaml", "--checkpoint", "model", "--limit", "2"]) == 0
    (result,) = (here / "model" / "eval").glob("model-lmms-*-2.json")
    kept = json.loads(result.read_text())
    lines = [json.loads(line) for line in result.with_suffix(".jsonl").read_text().splitlines()]
    assert len(lines) == 2 and kept["metrics"]["naming/exact_match"] == 0.0
    assert all(isinstance(line["completion"], list) for line in lines)

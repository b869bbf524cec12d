"""Every held-out answer is noted with what is right, and the report has as many of them as fit."""

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmrl_core.config import load_config
from mmrl_core.plugins import load_plugins
from mmrl_core.runs import Rightness
from mmrl_core.runs.answers import SMALL_SIDE, AnswerLog
from mmrl_core.runs.report import answers as report_answers
from mmrl_core.runs.report.answers import answer_table
from mmrl_core.runs.report.media import Media
from mmrl_core.runs.report.reading import read_run
from mmrl_core.runs.rollouts import read_rollouts, rollout_files
from mmrl_core.types import Prompt, Rollout, RolloutGroup, Row, Scores

REWARDS = """
def nearness(completions, samples):
    return [0.5 for _ in completions]

def exact(completions, samples):
    return [1.0 for _ in completions]

def unbounded(completions, samples):
    return [3.0 for _ in completions]

exact.maximum = 1.0
nearness.maximum = 2.0
unbounded.maximum = None
"""


def rightness(folder: Path, *rewards: str, **evaluation: Any) -> Rightness:
    (folder / "own.py").write_text(REWARDS)
    listed = [{"name": f"{folder}/own.py:{name}", "label": name} for name in rewards]
    task = {"name": "t", "version": 1, "rewards": listed, "eval": evaluation, "prompt": {"text": "{q}"}}
    (folder / "task.yaml").write_text(json.dumps(task))
    return Rightness(load_config(str(folder / "task.yaml")), load_plugins().registry)


def group(name: str, *completions: Any, picture: bool = False) -> RolloutGroup:
    part = [{"type": "image", "image": Image.new("RGB", (600, 300), (10, 90, 10))}] if picture else []
    messages = [{"role": "user", "content": [*part, {"type": "text", "text": f"what is {name}?"}]}]
    row = Row(name, "t", None, torch.zeros(3, dtype=torch.int64), 3)
    rollouts = [Rollout([row], completion) for completion in completions]
    return RolloutGroup(Prompt(name, messages, {"q": name}, f"gold of {name}"), rollouts)


def scores(**columns: list[float]) -> Scores:
    components = {name: torch.tensor(values) for name, values in columns.items()}
    return Scores(torch.stack(list(components.values())).sum(0), components, dict.fromkeys(components, 1.0))


@pytest.mark.parametrize(
    ("rewards", "evaluation", "expected"),
    [
        (("nearness", "exact"), {}, [True, False, None]),  # the first one decides, at its maximum of 2
        (("nearness", "exact"), {"pass_reward": "exact"}, [False, True, True]),
        (("unbounded", "exact"), {}, [None, None, None]),  # with no maximum, nothing is right or wrong
    ],
)
def test_right_is_what_the_reward_that_decides_has_at_its_maximum(tmp_path, rewards, evaluation, expected):
    judge = rightness(tmp_path, *rewards, **evaluation)
    found = scores(**{rewards[0]: [2.0, 1.5, math.nan], "exact": [0.0, 1.0, 1.0]})
    judged = judge.judged([group("a", "x", "y"), group("b", "z")], found)
    assert [one["correct"] for one in judged] == expected


def test_every_answer_is_a_line_and_each_picture_one_small_file(tmp_path: Path):
    groups = [group("a", "x", "y", picture=True), group("b", "z", picture=True)]
    AnswerLog(tmp_path, rightness(tmp_path, "exact")).write(7, groups, scores(exact=[1.0, 0.0, 1.0]), 1.0)
    (file,) = rollout_files(tmp_path)
    assert (file.path.name, file.step, file.split, file.temperature) == (
        "step-000007-answers-t1.jsonl",
        7,
        "answers",
        1.0,
    )
    lines = read_rollouts(file.path)
    told = [(line["prompt_id"], line["completion"], line["answer"], line["correct"], line["total"]) for line in lines]
    assert told == [
        ("a", "x", "gold of a", True, 1),
        ("a", "y", "gold of a", False, 0),
        ("b", "z", "gold of b", True, 1),
    ]
    assert lines[0]["sample"] == {"q": "a"} and lines[0]["prompt"] == "[image]\nwhat is a?"
    (medium,) = {path for line in lines for path in line["media"]}
    assert Image.open(tmp_path / "rollouts" / medium).size == (SMALL_SIDE, SMALL_SIDE // 2)


def test_a_picture_that_the_policy_made_is_an_answer_too(tmp_path: Path):
    made = [Image.new("RGB", (28, 28), (shade, 0, 0)) for shade in (10, 200)]
    groups = [group("a", made[0]), group("b", [*made, made[0]])]  # the second is a video, shown by its middle
    AnswerLog(tmp_path, rightness(tmp_path, "exact")).write(7, groups, scores(exact=[1.0, 1.0]), 0.0)
    media = Media(tmp_path / "rollouts", None)
    table = answer_table([read_run(tmp_path)], [media])
    uris = {one["id"]: one["uri"] for one in media.embedded}
    shown = [uris[row["made"]["picture"]].partition(",")[2] for row in table.sets[0]["rows"]]
    shades = [Image.open(io.BytesIO(base64.b64decode(data))).getpixel((9, 9))[0] for data in shown]
    assert shades == pytest.approx([10, 200], abs=8)


def run_with(folder: Path, steps: list[int], names: list[str], text: str = "x", about: str = "") -> Any:
    folder.mkdir()
    log = AnswerLog(folder, rightness(folder, "exact"))
    for step in steps:
        groups = [group(f"{name}{about}", text, picture=True) for name in names]
        log.write(step, groups, scores(exact=[float(step > index) for index in range(len(names))]), 0.0)
    return read_run(folder)


def tables_of(*runs: Any) -> Any:
    media = [Media(run.path / "rollouts", None) for run in runs]
    return answer_table(list(runs), media)


def test_the_table_has_every_set_with_its_share_of_right_answers_and_its_interval(tmp_path: Path):
    table = tables_of(run_with(tmp_path / "a", [0, 3], list("abcdef")))
    assert [told["label"] for told in table.sets] == ["step 0, greedy", "step 3, greedy"]
    assert [told["right"] for told in table.sets] == [0, 0.5]
    assert table.sets[1]["interval"] == pytest.approx([0.18762, 0.81238], abs=1e-4)  # Wilson's for 3 of 6
    assert [prompt["gold"] for prompt in table.prompts] == [f"gold of {name}" for name in "abcdef"]
    assert all(prompt["picture"] == table.prompts[0]["picture"] for prompt in table.prompts), (
        "one picture, embedded once"
    )


def test_prompts_of_two_runs_are_one_only_where_they_ask_the_same(tmp_path: Path):
    one, two, other = (run_with(tmp_path / name, [1], ["a", "b"], about="!" * (name == "o")) for name in "xyo")
    assert len(tables_of(one, two).prompts) == 2
    table = tables_of(one, other)
    assert len(table.prompts) == 4 and [told["label"] for told in table.sets] == [
        "x: step 1, greedy",
        "o: step 1, greedy",
    ]


def test_what_does_not_fit_is_named_and_the_newest_and_oldest_go_first(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(report_answers, "MAX_TEXT_CHARS", 2_000)
    table = tables_of(run_with(tmp_path / "a", [0, 1, 2], list("abcdef"), text="x" * 30))
    assert [told["step"] for told in table.sets] == [0, 2]
    assert table.left_out == ["step 1, greedy is in rollouts/step-000001-answers.jsonl."]
    monkeypatch.setattr(report_answers, "MAX_TEXT_CHARS", 300)
    table = tables_of(read_run(tmp_path / "a"))
    assert [len(told["rows"]) for told in table.sets] == [2]
    assert table.left_out[0] == "More than these 2 answers are in rollouts/step-000002-answers.jsonl."

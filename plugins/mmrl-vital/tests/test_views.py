"""The spans of time that the report draws."""

import json
from pathlib import Path

import pytest
import torch

from mmrl_core.plugins import load_plugins
from mmrl_core.runs import RolloutLog, write_report
from mmrl_core.types import Prompt, Rollout, RolloutGroup, Row
from mmrl_vital import views
from mmrl_vital.demo_data import two_turns
from mmrl_vital.views import timeline

SAMPLE = {"duration": 90.0, "ground_truth": [30.0, 42.5]}
GOLD = ("gold", [30.0, 42.5])


def call(start: object, end: object) -> str:
    arguments = json.dumps({"start_time": start, "end_time": end})
    return f'<think>1 to 2</think><tool_call>{{"name": "get_video_clip_frame", "arguments": {arguments}}}</tool_call>'


def drawn(completion: str, sample: dict) -> list[tuple[str, list[float]]]:
    spans = timeline(completion, sample)
    assert all(span["length_s"] == float(sample["duration"]) for span in spans)
    return [(span["kind"], span["span"]) for span in spans]


def test_gold_then_calls_then_the_answer():
    completion = f"{call(25, 45.5)}\n{call('28', '44')}\n<think>5 to 6</think><answer>From 29.1 to 0:41 s</answer>"
    calls = [("call", [25.0, 45.5]), ("call", [28.0, 44.0])]
    assert drawn(completion, SAMPLE) == [GOLD, *calls, ("predicted", [29.1, 41.0])]


@pytest.mark.parametrize(
    ("task", "gold"),
    [
        ("grounded_qa", {"span": [[1, 2], [5, 9]], "answer": "B"}),
        ("temporal_grounding_short", [[1, 2], [5, 9]]),
        ("temporal_grounding", "[[1, 2], [5, 9]]"),
    ],
)
def test_every_gold_span_is_drawn(task: str, gold: object):
    spans = drawn("<answer>From 3 to 4 seconds. (B)</answer>", {"duration": 10, "ground_truth": gold, "task": task})
    assert spans == [("gold", [1, 2]), ("gold", [5, 9]), ("predicted", [3, 4])]


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "<think>From 1 to 2 seconds</think>",
        "<answer>never</answer>",
        call("soon", 3),
        call(1, None),
        call(float("nan"), 3),
        call(1, 10**400),
        call([1], {"a": 2}),
        "<tool_call>" * 20_000,
        "<tool_call>" + "[" * 100_000,
        '<tool_call>{"arguments": [1, 2]}</tool_call><tool_call>7</tool_call>',
        "<script>alert(1)</script>",
    ],
)
def test_what_cannot_be_read_draws_nothing(completion: str):
    assert drawn(completion, SAMPLE) == [GOLD]


@pytest.mark.parametrize("duration", [None, 0.0, -3, float("nan"), float("inf"), "long"])
def test_without_a_duration_there_is_no_axis(duration: object):
    assert timeline(call(1, 2), SAMPLE | {"duration": duration}) == []


def test_a_choice_is_drawn_with_what_had_to_be_seen_and_no_answer():
    events = [{"start_s": 8.0, "end_s": 12.0}, {"start_s": 36.0, "end_s": 40.0}]
    sample = {"duration": 96, "ground_truth": "C", "task": "multiple_choice", "asked_s": 38.0, "events": events}
    assert drawn(f"{call(36, 40)}<answer>C, from 3 to 4</answer>", sample) == [("gold", [36, 40]), ("call", [36, 40])]
    assert drawn("<answer>C</answer>", {"duration": 96, "ground_truth": "C", "task": "multiple_choice"}) == []


def test_the_demo_s_own_turns_are_read():
    sample = {"duration": 96.0, "ground_truth": "B", "task": "multiple_choice"}
    assert drawn(two_turns(36, 40, "B"), sample) == [("call", [36.0, 40.0])]


def test_the_report_draws_the_view(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(f"log: {{view: {views.__file__}:timeline}}")
    row = Row("p", "t", None, torch.zeros(1), 1)
    rollout = Rollout([row], f"{call(18, 63)}<answer>From 45 to 54 seconds</answer>")
    group = RolloutGroup(Prompt("p", [{"role": "user", "content": "when?"}], SAMPLE | {"duration": 90}), [rollout])
    RolloutLog(tmp_path).write(0, "s", "held_out", [group], None, None, 0.0)
    page = write_report(tmp_path).read_text()
    # 18 of 90 s are 20 %, 63 - 18 are 50 %; 45 are 50 %, 54 - 45 are 10 %.
    assert '<i class="span call" style="left: 20.0%; width: 50.0%">' in page
    assert '<i class="span predicted" style="left: 50.0%; width: 10.0%">' in page


def test_view_is_found_by_its_registered_name():
    assert load_plugins().registry.get("view", "vital/timeline").load() is timeline

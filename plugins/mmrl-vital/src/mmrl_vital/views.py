"""What the report draws of a rollout over a video: gold spans of time, the clips that were asked for, the answer."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from mmrl_vital.parsing import Span, answer_text, parse_span, parse_spans

GROUNDING_TASKS = ("temporal_grounding", "grounded_qa")  # and their variants, which begin so: answers name a span


def timeline(completion: str, sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Spans of time in the video; the report adds the times of the frames that it shows.

    Reads spans with the parsers that the rewards use: what is drawn is what was scored.

    Args:
        completion: untrusted text, all turns of the policy; nothing is drawn for what cannot be read.
        sample: `duration` of the video in seconds; `ground_truth`, as the rewards of `task` read it. For a task whose
            answer is no span, those of the row's `events` (`start_s`, `end_s`) that hold the time `asked_s`, if the row
            has these: what had to be seen.

    Returns:
        A dict for each span: "span" [start, end] and "length_s" of the video, in seconds, and "kind": "gold", "call"
        (`start_time` to `end_time` of a tool call, carried out or not) or "predicted". Empty without a duration.

    >>> timeline("<answer>From 2 to 4 seconds</answer>", {"duration": 8, "ground_truth": [2, 5]})[1]
    {'span': [2.0, 4.0], 'length_s': 8.0, 'kind': 'predicted'}
    """
    length_s = _seconds(sample.get("duration"))
    if length_s is None or length_s <= 0:
        return []
    found = [("call", window) for window in _windows(completion)]
    if str(sample.get("task") or GROUNDING_TASKS[0]).startswith(GROUNDING_TASKS):
        gold, answer = sample.get("ground_truth"), parse_span(answer_text(completion))
        spans = parse_spans(gold.get("span") if isinstance(gold, Mapping) else gold)
        found += [("predicted", answer)] if answer is not None else []
    else:
        spans = list(_events_asked_about(sample))
    found = [*(("gold", span) for span in spans), *found]
    return [{"span": [*span], "length_s": length_s, "kind": kind} for kind, span in found]


def _events_asked_about(sample: Mapping[str, Any]) -> Iterator[Span]:
    asked_s = _seconds(sample.get("asked_s"))
    if asked_s is not None:
        for event in sample.get("events") or []:
            if event["start_s"] <= asked_s <= event["end_s"]:
                yield event["start_s"], event["end_s"]


def _windows(completion: str) -> Iterator[Span]:
    """Windows of the tool calls that can be read, in order."""
    for block in completion.split("<tool_call>")[1:]:
        try:
            call = json.loads(block.partition("</tool_call>")[0])
        except (ValueError, RecursionError):
            continue
        arguments = call.get("arguments") if isinstance(call, Mapping) else None
        if isinstance(arguments, Mapping):
            start_s, end_s = _seconds(arguments.get("start_time")), _seconds(arguments.get("end_time"))
            if start_s is not None and end_s is not None:
                yield start_s, end_s


def _seconds(value: Any) -> float | None:
    """A finite number, also one written as text, as the tools take it."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None

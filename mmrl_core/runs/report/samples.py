"""Rollouts of the report: prompts and completions with their rewards, media and timelines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl_core.runs.report.media import Media, is_area, percent
from mmrl_core.runs.report.reading import Evaluation, Record, RunFiles, list_of, mapping_of
from mmrl_core.runs.report.text import (
    format_seconds,
    name_of,
    number_of,
    readable,
    shortened,
    told_apart,
    told_outcome,
    visible,
)
from mmrl_core.runs.rollouts import RolloutFile, read_rollouts

MAX_COMPARED_PROMPTS = 6
MAX_COMPARED_EVALUATIONS = 4
MAX_TRAINING_STEPS = 6
MAX_GROUPS_OF_STEP = 3
MAX_COMPLETIONS_OF_GROUP = 32
MAX_TURNS_OF_COMPLETION = 12
MAX_REWARDS = 60


def timeline(rollouts: Sequence[Record], shapes: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any] | None:
    """Lanes over an axis of time, for the rollouts of a prompt and their shapes; None if no shape is one of time.

    The gold and the prompt's frames come first. Then one rollout has a lane for its calls, with the frames that they
    returned, and one for its answer; several have a lane each, named by their number.
    """
    spans = [[shape for shape in own if not is_area(shape)] for own in shapes]
    if not any(spans):
        return None
    length_s = max(span["length_s"] for own in spans for span in own)

    def lane(
        name: str, told: Sequence[dict[str, Any]], under: Sequence[dict[str, Any]] = (), seen_in: Sequence[Any] = ()
    ) -> dict[str, Any]:
        """`told` are drawn over `under` and written beside the lane. The frames of messages are marked."""
        messages = [message for message in seen_in if isinstance(message, Mapping)]
        times = [number_of(time) for message in messages for time in list_of(message, "times_s")]
        return {
            "name": name,
            "spans": [*under, *told],
            "ticks": sorted({percent(time, length_s) for time in times if time is not None}),
            "told": ", ".join(span["told"] for span in told[:3]),
        }

    gold = [span for span in spans[0] if span["style"] == "gold"]
    calls = [[span for span in own if span["style"] == "call"] for own in spans]
    answers = [[span for span in own if span["style"] not in ("gold", "call")] for own in spans]
    lanes = [lane("gold", gold), lane("frames", [], seen_in=rollouts[:1])]
    if len(rollouts) == 1:
        lanes += [lane("tool calls", calls[0], seen_in=list_of(rollouts[0], "turns")), lane("predicted", answers[0])]
    lanes = [one for one in lanes if one["spans"] or one["ticks"]]
    if len(rollouts) > 1:
        numbered = enumerate(zip(answers, calls, strict=True), start=1)
        lanes += [lane(str(number), told, under) for number, (told, under) in numbered]
    return {"length": format_seconds(length_s), "lanes": lanes}


def _shown_rollout(rollout: Record, media: Media) -> dict[str, Any]:
    """Completion, turns, rewards and facts of a rollout, as the template shows them beside its prompt."""
    rewards, turns = mapping_of(rollout, "rewards"), list_of(rollout, "turns")
    made, text = rollout.get("completion_media"), rollout.get("completion")
    film = media.film(made)
    return {
        "completion": told_apart(text if isinstance(text, str) else ""),
        "turns": [
            {
                "role": visible(str(turn.get("role", ""))[:24]),
                "text": told_apart(str(turn.get("text", ""))),
                "panels": media.panels(turn),
            }
            for turn in turns[:MAX_TURNS_OF_COMPLETION]
            if isinstance(turn, Mapping)
        ],
        "num_turns_left_out": max(0, len(turns) - MAX_TURNS_OF_COMPLETION),
        "outcome": told_outcome(mapping_of(rollout, "outcome")),
        "made": media.picture(made) if isinstance(made, str) and film is None else None,
        "film": film,
        "rewards": {name: number_of(rewards[key]) for key, name in readable(list(rewards)[:MAX_REWARDS]).items()},
        "total": number_of(rollout.get("total")),
        "advantage": number_of(rollout.get("advantage")),
        "correct": rollout.get("correct") if isinstance(rollout.get("correct"), bool) else None,
        "said": shortened(str(rollout.get("said") or "")),
        "truncated": rollout.get("truncated") is True,
        "num_tokens": number_of(rollout.get("num_tokens")) and rollout["num_tokens"],
    }


def _shown_prompt(rollout: Record) -> dict[str, str]:
    return {
        "id": name_of(rollout.get("prompt_id", "")),
        "text": shortened(str(rollout.get("prompt", ""))),
        "answer": shortened(str(rollout.get("answer") or "")),
        "gold": shortened(str(rollout.get("gold") or rollout.get("answer") or "")),
        "sample": shortened(json.dumps(rollout.get("sample"), indent=2, ensure_ascii=False)),
    }


@dataclass(frozen=True)
class Column:
    """Held-out rollouts of an evaluation: its label, its file, and the media of its run."""

    label: str
    file: RolloutFile
    media: Media


def columns_to_compare(run: RunFiles, milestones: Sequence[Evaluation], media: Media) -> list[Column]:
    """The first and the last evaluations of a run that have rollouts, of a step the coolest."""
    by_step: dict[int, RolloutFile] = {}
    for file in run.files:  # the coolest of a step comes first
        if file.split == "held_out":
            by_step.setdefault(file.step, file)
    labels = {one.step: one.label for one in milestones}
    chosen = [file for step, file in by_step.items() if step in labels] or list(by_step.values())
    chosen = chosen[:1] + chosen[1:][1 - MAX_COMPARED_EVALUATIONS :]
    return [Column(labels.get(file.step) or f"step {file.step}", file, media) for file in chosen]


def compared_prompts(columns: Sequence[Column]) -> dict[str, Any]:
    """The first held-out prompts, each with its completion in each column."""
    # The first of several completions of a prompt is kept.
    tables = [{_key(line): line for line in reversed(read_rollouts(column.file.path)) if line} for column in columns]
    counts = Counter(prompt for table in tables for prompt in reversed(table))
    rows = []
    for prompt, _ in counts.most_common(MAX_COMPARED_PROMPTS):  # of equal counts, the first written comes first
        found = [table.get(prompt) for table in tables]
        place, first = next((place, line) for place, line in enumerate(found) if line)
        shapes = [column.media.shapes(one) if one else [] for one, column in zip(found, columns, strict=True)]
        has_areas = any(is_area(shape) for own in shapes for shape in own)
        cells = [
            one
            and {
                "panels": column.media.panels(one, own) if has_areas else [],
                "timeline": timeline([one], [own]),
                "rollout": _shown_rollout(one, column.media),
            }
            for one, own, column in zip(found, shapes, columns, strict=True)
        ]
        # Pictures that nothing is drawn on are shown once.
        panels = [] if has_areas else columns[place].media.panels(first)
        rows.append({"prompt": _shown_prompt(first), "panels": panels, "cells": cells})
    told = [(name_of(column.label), column.file.temperature or 0) for column in columns]
    return {"columns": told, "rows": rows, "num_prompts": len(counts)}


def _key(line: Record) -> tuple[str, str]:
    """What makes a prompt the same in two runs: its id and its text, for other tasks may have the same ids."""
    return str(line.get("prompt_id")), str(line.get("prompt"))


def training_steps(files: Sequence[RolloutFile], media: Media) -> list[dict[str, Any]]:
    """The first groups of a few training steps, spread evenly from the first written to the last."""
    written = [file for file in files if file.split == "train"]
    spread = min(MAX_TRAINING_STEPS, len(written)) - 1
    steps = []
    for file in (written[round(i * (len(written) - 1) / max(1, spread))] for i in range(spread + 1)):
        by_group: dict[str, list[Record]] = {}
        for rollout in read_rollouts(file.path):
            by_group.setdefault(str(rollout.get("group")), []).append(rollout)
        groups = [_training_group(group, media) for group in list(by_group.values())[:MAX_GROUPS_OF_STEP]]
        steps.append({"step": file.step, "num_groups": len(by_group), "groups": groups})
    return [step for step in steps if step["groups"]]


def _training_group(rollouts: Sequence[Record], media: Media) -> dict[str, Any]:
    """A group: one picture, or timeline, with the shapes of all completions, numbered as in the table beside it."""
    told = [_shown_rollout(rollout, media) for rollout in rollouts[:MAX_COMPLETIONS_OF_GROUP]]
    largest = max(abs(shown["advantage"] or 0.0) for shown in told)
    shapes: list[list[dict[str, Any]]] = []
    for number, (rollout, shown) in enumerate(zip(rollouts, told, strict=False), start=1):
        advantage = shown["advantage"] or 0.0
        shown["sign"] = "zero" if abs(advantage) < 1e-6 else "better" if advantage > 0 else "worse"
        shown["bar"] = round(50 * abs(advantage) / largest, 1) if largest else 0.0
        own = media.shapes(rollout)
        own = [shape for shape in own if number == 1 or shape["style"] != "gold"]  # the gold is the same for all
        marked = {"label": str(number), "style": shown["sign"]}
        shapes.append([{**shape, **marked} if shape["style"] == "predicted" else shape for shape in own])
    totals = [shown["total"] for shown in told if shown["total"] is not None]
    return {
        "stage": name_of(rollouts[0].get("stage", "")),
        "temperature": number_of(rollouts[0].get("temperature")),
        "prompt": _shown_prompt(rollouts[0]),
        "panels": media.panels(rollouts[0], [shape for own in shapes for shape in own]),
        "timeline": timeline(rollouts[: len(told)], shapes),
        "rollouts": told,
        "reward_names": list(dict.fromkeys(name for shown in told for name in shown["rewards"])),
        "is_made": all(shown["made"] or shown["film"] for shown in told),
        "has_advantages": any(shown["advantage"] is not None for shown in told),
        "num_left_out": len(rollouts) - len(told),
        "is_flat": len(totals) > 1 and max(totals) - min(totals) < 1e-6,
        "mean_total": sum(totals) / len(totals) if totals else None,
        "spread": max(totals) - min(totals) if totals else 0.0,
        "num_right": sum(shown["correct"] is True for shown in told),
        "num_judged": sum(shown["correct"] is not None for shown in told),
    }

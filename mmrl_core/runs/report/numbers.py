"""Tables and charts of the report: held-out metrics, and what training logged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl_core.runs.charts import Series, curve
from mmrl_core.runs.report.reading import Evaluation, Points, RunFiles
from mmrl_core.runs.report.text import SMALLEST_CHANGE, name_of, readable, visible

MAX_CHARTS = 36  # of a section
MAX_CURVES = 6  # of a chart
MAX_COUNTERS = 200

TRAINING, UPDATE, COMPLETIONS, OTHER = "Reward in training", "Update", "Completions and time", "Other numbers"

# (section, title, what it says, metrics and what their curves are called)
TRAINING_CHARTS: Sequence[tuple[str, str, str, Mapping[str, str]]] = (
    (TRAINING, "Total reward", "weighted sum of the rewards, mean of the step's completions", {"reward/total": ""}),
    (TRAINING, "Reward spread within a group", "standard deviation, mean over groups", {"reward/total_std": ""}),
    (TRAINING, "Flat groups", "share of groups whose rewards are all equal: nothing to learn", {"groups/flat": ""}),
    (TRAINING, "Size of advantages", "mean of |advantage| over trained tokens", {"advantage/abs_mean": ""}),
    (TRAINING, "Unscored", "share of completions without a reward", {"unscored": ""}),
    (UPDATE, "Gradient norm", "before clipping", {"grad_norm": ""}),
    (UPDATE, "KL to the reference policy", "how far training has moved, nats per token", {"kl_ref": ""}),
    (UPDATE, "KL to the sampling policy", "how far the step has moved, nats per token", {"kl_old": ""}),
    (UPDATE, "Entropy", "of the policy, nats per token", {"entropy": ""}),
    (UPDATE, "Mean ratio", "new over old probability of a token; 1 = unchanged", {"ratio_mean": ""}),
    (UPDATE, "Clip fraction", "share of tokens", {"clip_fraction_low": "low", "clip_fraction_high": "high"}),
    (UPDATE, "Learning rate", "", {"lr": ""}),
    (COMPLETIONS, "Completion length", "tokens", {"completion_tokens/mean": "mean", "completion_tokens/max": "max"}),
    (COMPLETIONS, "Truncated", "share of completions cut off at the token limit", {"truncated": ""}),
    (COMPLETIONS, "Time per step", "in seconds", {"seconds": ""}),
)
NOT_DRAWN = ("kind", "stage", "stage_kind", "step", "elapsed_s", "set_aside", "policy_loss")  # or shown elsewhere
COUNTER_PREFIXES = ("count/", "failures/", "restarts/")
# A rise of these is neither good nor bad. An accuracy is good, also where "count" is in its name.
NEUTRAL_METRIC = re.compile(
    r"^(?!.*accuracy)(?:outcome/|.*(?:truncated|tokens|length|seconds|entropy|count|unscored|_std$))"
)

_STEP_LABEL = re.compile(r"step \d+")


def counters_of(columns: Mapping[str, Points]) -> list[tuple[Any, ...]]:
    """(name, sum over steps, mean over the steps that logged it, last value) of each counter."""
    chosen = {key: list(points.values()) for key, points in sorted(columns.items()) if key.startswith(COUNTER_PREFIXES)}
    shown = list(chosen.items())[:MAX_COUNTERS]
    sums = [(key, (sum(v), sum(v) / len(v), v[-1])) for key, v in shown]
    return [(name_of(key.removeprefix("count/")), *map(_whole, told)) for key, told in sums]


def _whole(value: float) -> float:
    return int(value) if value.is_integer() else value


def milestones_of(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Evaluations before and after stages, and the newest one if it is later than those."""
    chosen = [one for one in evaluations if not _STEP_LABEL.fullmatch(one.label)] or list(evaluations[:1])
    if chosen and evaluations[-1].step > chosen[-1].step:
        chosen.append(evaluations[-1])
    return chosen


def _metrics_by_section(evaluations: Sequence[Evaluation]) -> dict[str, list[str]]:
    """Section -> held-out metrics in the order of reading; the total comes before the rewards that it sums up."""
    names = dict.fromkeys(metric for one in evaluations for metric, _ in one.values)
    sections: dict[str, list[str]] = {"Benchmark metrics": [], "Rewards": [], OTHER: []}
    for name in sorted(names, key=lambda name: name != "reward/total"):
        is_other = NEUTRAL_METRIC.search(name) is not None
        sections[OTHER if is_other else "Rewards" if _is_reward(name) else "Benchmark metrics"].append(name)
    return sections


def _is_reward(metric: str) -> bool:
    """Whether a held-out metric is a reward, of the task or of a mixture's part."""
    return "/reward/" in f"/{metric}"


def _temperatures(evaluations: Sequence[Evaluation], metric: str) -> list[str]:
    return list(dict.fromkeys(warmth for one in evaluations for name, warmth in one.values if name == metric))


def _held_out_titles(metrics: Sequence[str]) -> dict[str, str]:
    """Metric -> title of its chart; no two titles are equal.

    >>> _held_out_titles(["reward/iou", "iou"])
    {'reward/iou': 'Held-out iou reward', 'iou': 'Held-out iou'}
    """
    rewards = readable(filter(_is_reward, metrics))
    others = readable(metric for metric in metrics if not _is_reward(metric))
    titles = {metric: name if "reward" in name else f"{name} reward" for metric, name in rewards.items()} | others
    return {metric: f"Held-out {title}" for metric, title in titles.items()}


def held_out_table(milestones: Sequence[Evaluation]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(section, rows) pairs with a row for each metric at each temperature, and in it a cell for each milestone."""
    table = []
    for section, metrics in _metrics_by_section(milestones).items():
        names, rows = readable(metrics), []
        for metric in metrics:
            for warmth in _temperatures(milestones, metric):
                values = [one.values.get((metric, warmth)) for one in milestones]
                intervals = [one.intervals.get((metric, warmth)) for one in milestones]
                cells = [_cell(metric, *told) for told in zip(values, [None, *values], intervals, strict=False)]
                rows.append({"metric": names[metric], "temperature": warmth, "cells": cells})
        if rows:
            table.append((section, rows))
    return table


def _cell(
    metric: str, value: float | None, before: float | None, interval: tuple[float, float] | None
) -> dict[str, Any]:
    """A number, its interval, and how it moved; the trend is a CSS class."""
    change = None if value is None or before is None else value - before
    trend = ""
    if change is not None and abs(change) >= SMALLEST_CHANGE and not NEUTRAL_METRIC.search(metric):
        trend = "up" if change > 0 else "down"
    return {"value": value, "change": change, "trend": trend, "interval": interval}


def story_of(
    runs: Sequence[RunFiles], milestones: Sequence[Evaluation], charts: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """The first benchmark metric and the reward, from first to last. Their charts are taken out of `charts`.

    Args:
        milestones: of the one run, or the last of each of several.
    """
    sections, story = _metrics_by_section(milestones), []
    if len(runs) > 1:  # what only one has compares nothing
        had = [{metric for metric, _ in one.values} for one in milestones]
        sections = {name: [m for m in metrics if all(m in own for own in had)] for name, metrics in sections.items()}
    for metric in sections["Benchmark metrics"][:1] + sections["Rewards"][:1]:
        if metric not in charts:  # there were too many
            continue
        warmth = _temperatures(milestones, metric)[0]
        told = [(one, one.values[metric, warmth]) for one in milestones if (metric, warmth) in one.values]
        change = _cell(metric, told[-1][1], told[0][1] if len(told) > 1 else None, None)
        title = f"{charts[metric]['title']}, {warmth}"
        shown = [
            {"label": one.label, "value": value, "interval": one.intervals.get((metric, warmth)), "rows": one.num_rows}
            for one, value in told
        ]
        story.append({"title": title, "told": shown, "change": change, "chart": charts.pop(metric)})
    return story


def _chart(title: str, told: str, series: Sequence[Series], runs: Sequence[RunFiles]) -> dict[str, Any]:
    """A chart; "last" has the last number of each curve, "curves" is for the page's script."""
    last = [(line.label, line.values[-1]) for line in series]
    curves = [curve(line, runs[line.run].stages) for line in series]
    is_flat = all(line.is_flat for line in series) and all(len(line.steps) > 1 for line in series)
    return {"title": visible(title), "told": told, "last": last, "is_flat": is_flat, "curves": curves}


def _labelled(runs: Sequence[RunFiles], run: int, label: str) -> str:
    """A curve's name, with its run's where there are several."""
    return ": ".join(filter(None, [runs[run].name, label])) if len(runs) > 1 else label


def draw_held_out(runs: Sequence[RunFiles]) -> dict[str, dict[str, Any]]:
    """A chart for each held-out metric, with a curve for each temperature of each run."""
    charts = {}
    metrics = [
        name for names in _metrics_by_section([e for run in runs for e in run.evaluations]).values() for name in names
    ]
    titles = _held_out_titles(metrics)
    for metric in metrics[:MAX_CHARTS]:
        series = []
        for number, run in enumerate(runs):
            for warmth in _temperatures(run.evaluations, metric)[:MAX_CURVES]:
                found = {one.step: one for one in run.evaluations if (metric, warmth) in one.values}
                values = [one.values[metric, warmth] for one in found.values()]
                intervals = [one.intervals.get((metric, warmth)) for one in found.values()]
                label = _labelled(runs, number, warmth)
                series.append(Series(label, list(found), values, True, intervals, number))
        charts[metric] = _chart(titles[metric], "", series, runs)
    return charts


def draw_training(runs: Sequence[RunFiles]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(section, charts) pairs of the logged metrics. A metric without a known chart comes last, under its own name."""
    columns = list(dict.fromkeys(key for run in runs for key in run.columns))
    rewards = [key for key in columns if key.startswith("reward/") and key not in ("reward/total", "reward/total_std")]
    names = readable(rewards)
    parts = [rewards[first : first + MAX_CURVES] for first in range(0, len(rewards), MAX_CURVES)][:MAX_CHARTS]
    losses = [key for key in columns if key.startswith("loss (")][:MAX_CHARTS]
    charts = [
        *TRAINING_CHARTS[:1],
        *((TRAINING, "Each reward", "before its weight", {key: names[key] for key in part}) for part in parts),
        *((UPDATE, key.capitalize(), "", {key: ""}) for key in losses),
        *TRAINING_CHARTS[1:],
    ]
    known = {*NOT_DRAWN, *(key for *_, metrics in charts for key in metrics)}
    unknown = [key for key in columns if key not in known and not key.startswith(COUNTER_PREFIXES)]
    charts += [(OTHER, name_of(key), "", {key: ""}) for key in unknown[:MAX_CHARTS]]
    sections: dict[str, list[dict[str, Any]]] = {TRAINING: [], UPDATE: [], COMPLETIONS: [], OTHER: []}
    for section, title, told, metrics in charts:
        series = [
            Series(_labelled(runs, number, label), list(points), list(points.values()), run=number)
            for key, label in metrics.items()
            for number, run in enumerate(runs)
            if (points := run.columns.get(key))
        ]
        if series:
            sections[section].append(_chart(title, told, series, runs))
    return [(section, drawn) for section, drawn in sections.items() if drawn]

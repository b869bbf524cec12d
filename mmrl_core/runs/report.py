"""`mmrl view`: a run directory as one HTML file that needs no network, no script and nothing beside it.

What is read: config.yaml, metrics.jsonl, rollouts/, set_aside.jsonl. All of it may be missing, torn or unfinished, and
completions are untrusted: the template escapes everything, media are decoded and encoded again, and a content
security policy in the page forbids scripts and addresses.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
import yaml
from PIL import Image, ImageSequence

from mmrl_core.discovery import load_plugins
from mmrl_core.errors import MediaError, MMRLError
from mmrl_core.media import load_audio, load_image
from mmrl_core.runs.charts import Series, Stage, chart_uri, draw_chart, draw_spectrogram
from mmrl_core.runs.rollouts import (
    FILM_SUFFIX,
    FOLDER,
    MAX_MADE_FRAMES,
    MAX_SOUND_S,
    SOUND_SUFFIX,
    RolloutFile,
    encode_film,
    read_json_lines,
    read_rollouts,
    rollout_files,
    written_aside,
)

TEMPLATE = "report.html.j2"
MAX_COMPARED_PROMPTS = 6
MAX_COMPARED_EVALUATIONS = 4
MAX_TRAINING_STEPS = 4
MAX_GROUPS_OF_STEP = 2
MAX_COMPLETIONS_OF_GROUP = 32
MAX_PICTURES_OF_MESSAGE = 8
MAX_TURNS_OF_COMPLETION = 12
MAX_FACTS_OF_COMPLETION = 12
MAX_FACT_CHARS = 40
MAX_SHAPES_OF_COMPLETION = 100
MAX_SHOWN_CHARS = 8_000  # of a prompt or completion; a runaway one would hide all others
MAX_SET_ASIDE_ROWS = 200
MAX_CHARTS = 36  # of a section
MAX_CURVES = 6  # of a chart
MAX_PICTURE_SIDE = 640  # larger pictures are scaled down, so that a report of photographs stays a few megabytes
MAX_SMALL_SIDE = 256  # smaller pictures are shown with their pixels
SOUND_HZ = 16_000  # sounds are played, and drawn, as audio encoders hear them
MAX_PNG_BYTES = 32_000  # small pictures are kept exactly, but not where that would make a report of films huge

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
NOT_DRAWN = ("kind", "stage", "stage_kind", "step", "elapsed_s", "set_aside", "policy_loss")  # or told elsewhere
COUNTER_PREFIXES = ("count/", "failures/")
# A rise in these is neither good nor bad.
# Of which more is neither better nor worse; the accuracy of counting is.
NEUTRAL_METRIC = re.compile(
    r"^(?!.*accuracy)(?:outcome/|.*(?:truncated|tokens|length|seconds|entropy|count|unscored|_std$))"
)
SMALLEST_CHANGE = 5e-4  # less rounds to 0.000

_TEMPERATURE_METRIC = re.compile(r"(greedy|t[0-9][0-9.]*)/(.+)")
_STEP_LABEL = re.compile(r"step \d+")
_TAG = re.compile(r"(</?(?:think|tool_call|answer)>)")  # shown as written; what is between them is told apart
# What a browser would drop or choke on: control characters become symbols, lone surrogates a replacement mark.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)

Record = Mapping[str, Any]
Points = dict[int, float]  # step -> number


def write_report(run: Path) -> Path:
    """Write `report.html` into a run directory, from whatever the run has left so far.

    Returns:
        Path of the report.

    Raises:
        MMRLError: the directory holds neither a config nor metrics nor rollouts.
    """
    names = ("config.yaml", "metrics.jsonl", FOLDER)
    if not any((run / name).exists() for name in names):
        raise MMRLError(f"{run} is not a run directory: it has none of {', '.join(names)}.")
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=format_number, change=format_change, seconds=format_seconds, visible=_visible)
    html = environment.get_template(TEMPLATE).render(_contents(run))
    path = run / "report.html"
    with written_aside(path) as aside:
        aside.write_text(html, encoding="utf-8", errors="replace")
    return path


def format_number(value: Any) -> str:
    """A few significant digits for reading in a column; a dash for what is missing.

    >>> [format_number(value) for value in (0.57321, 12, 1234.5, 0.00002, None)]
    ['0.573', '12', '1,234', '2.0e-05', '–']
    """
    number = _finite(value)
    if number is None:
        return "–"
    size = abs(number)
    if isinstance(value, int) and size < 1e15:
        text = f"{value:,}"
    elif size >= 1e7 or 0 < size < 1e-3:
        text = f"{number:.1e}"
    else:
        text = f"{number:,.{3 if size < 100 else 1 if size < 1000 else 0}f}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def format_change(value: float | None) -> str:
    """A number with its sign always written.

    >>> [format_change(value) for value in (0.25, -0.5, 0.0, None)]
    ['+0.250', '−0.500', '±0.000', '–']
    """
    if value is not None and abs(value) < SMALLEST_CHANGE:
        return "±0.000"
    return f"+{format_number(value)}" if value is not None and value > 0 else format_number(value)


def format_seconds(value: float) -> str:
    """A time within a medium.

    >>> [format_seconds(value) for value in (0, 12.04, 3600.0, 1e9)]
    ['0.0 s', '12.0 s', '3600.0 s', '1.0e+09 s']
    """
    return f"{value:.1f} s" if abs(value) < 1e6 else f"{value:.1e} s"


def _contents(run: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    name = run.resolve().name
    config_text, config = _read_config(run / "config.yaml")
    steps, evaluations = _read_metrics(run / "metrics.jsonl")
    milestones, columns, stages = _milestones(evaluations), _columns(steps), _stages(steps)
    files = rollout_files(run)
    media = _Media(run / FOLDER, config)
    held_out_charts = _held_out_charts(evaluations, stages)
    set_aside = list(read_json_lines(run / "set_aside.jsonl"))
    return {
        "run_name": name,
        "task": str(_at(config, "name") or name),
        "description": str(_at(config, "description") or ""),
        "story": _story(milestones, held_out_charts),
        "facts": _facts(run, config, steps, stages),
        "command": f"mmrl train {shlex.quote(name + '/config.yaml')} --output {shlex.quote(name + '-again')}",
        "milestones": milestones,
        "table": _held_out_table(milestones),
        "held_out_charts": list(held_out_charts.values()),
        "chart_sections": _training_charts(columns, stages),
        "compared": _compared_prompts(files, milestones, media),
        "training": _training_steps(files, media),
        "media": media,
        "set_aside": set_aside[:MAX_SET_ASIDE_ROWS],
        "num_set_aside": len(set_aside),
        "counters": _counters(columns),
        "config_text": config_text,
    }


# What the run says of itself


def _read_config(path: Path) -> tuple[str, Any]:
    """The text, "" if there is none, and what it says, None if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        return text, yaml.safe_load(text)
    except OSError:
        return "", None
    except yaml.YAMLError:
        return text, None


def _at(tree: Any, *keys: str) -> Any:
    """The value under nested keys, None where a key is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def _numbers(record: Record) -> list[tuple[str, float]]:
    """Names and values of what is a finite number."""
    return [(key, number) for key, value in record.items() if (number := _finite(value)) is not None]


@dataclass(frozen=True)
class _Evaluation:
    """`values` are by (metric, "greedy" or a temperature)."""

    step: int
    label: str
    values: Mapping[tuple[str, str], float]


def _read_metrics(path: Path) -> tuple[list[Record], list[_Evaluation]]:
    """Step records and evaluations, by step. Of a repeated step or evaluation the last one counts."""
    steps: dict[int, Record] = {}
    evaluations: dict[tuple[int, str], _Evaluation] = {}
    for record in read_json_lines(path):
        step, label = record.get("step"), str(record.get("label", ""))
        if not isinstance(step, int):
            continue
        if record.get("kind") == "step":
            steps[step] = record
        elif record.get("kind") == "eval":
            numbers = {
                (match[2], match[1] if match[1] == "greedy" else f"T = {match[1][1:]}"): number
                for key, number in _numbers(record)
                if (match := _TEMPERATURE_METRIC.fullmatch(key))
            }
            evaluations[step, label] = _Evaluation(step, label, numbers)
    return [steps[step] for step in sorted(steps)], sorted(evaluations.values(), key=lambda one: one.step)


def _columns(steps: Sequence[Record]) -> dict[str, Points]:
    """Metric -> what was logged of it; the losses of different kinds of stages, which share no scale, apart."""
    columns: dict[str, Points] = {}
    for record in steps:
        for key, number in _numbers(record):
            name = f"loss ({record.get('stage_kind', '')})" if key == "loss" else key
            columns.setdefault(name, {})[record["step"]] = number
    return columns


def _counters(columns: Mapping[str, Points]) -> list[tuple[str, float, float, float]]:
    """(name, sum over steps, mean of the steps that logged it, last)."""
    chosen = {key: list(points.values()) for key, points in sorted(columns.items()) if key.startswith(COUNTER_PREFIXES)}
    return [(key.removeprefix("count/"), math.fsum(v), fmean(v), v[-1]) for key, v in chosen.items()]


def _stages(steps: Sequence[Record]) -> list[Stage]:
    by_name: dict[str, list[int]] = {}
    for record in steps:
        by_name.setdefault(_visible(str(record.get("stage", ""))), []).append(record["step"])
    return [Stage(name, numbers[0], numbers[-1]) for name, numbers in by_name.items()]


def _facts(run: Path, config: Any, steps: Sequence[Record], stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """(name, value) of what the run is and how far it came; without what is not known."""
    planned = [_at(stage, "steps") for stage in _at(config, "stages") or []] if steps else []
    progress = f"{len(steps):,}"
    if planned and all(isinstance(count, int) for count in planned):  # None where a stage counts in epochs
        progress = f"{steps[-1]['step']:,} of {sum(planned):,}"
    seconds = math.fsum(_finite(record.get("seconds")) or 0.0 for record in steps)
    checkpoints = [path.name for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    seed = _at(config, "seed")
    facts = {
        "Task": " version ".join(str(part) for part in (_at(config, "name"), _at(config, "version")) if part),
        "Model": _model(config),
        "Stages": ", then ".join(f"{stage.name} (steps {stage.first:,} to {stage.last:,})" for stage in stages),
        "Steps done": progress if steps else "",
        "Time in steps": f"{timedelta(seconds=round(seconds))} h, {seconds / len(steps):.2f} s a step" if steps else "",
        "Seed": "" if seed is None else str(seed),
        "Checkpoints": ", ".join(sorted(checkpoints, key=lambda name: int(name[5:]))),
    }
    return [(name, value) for name, value in facts.items() if value]


def _model(config: Any) -> str:
    model, build = _at(config, "model"), _at(config, "model", "build")
    policy = _at(model, "policy", "name") or _at(model, "policy")
    options = build.items() if isinstance(build, Mapping) else ()
    frozen = _at(model, "freeze")
    details = {
        "": _at(build, "name") or build or _at(model, "path"),
        "built with ": ", ".join(f"{key}={value}" for key, value in options if key != "name"),
        "policy ": "" if policy == "language_model" else policy,
        "revision ": _at(model, "revision"),
        "LoRA rank ": _at(model, "lora", "rank"),
        "frozen: ": ", ".join(map(str, frozen)) if isinstance(frozen, list) else frozen,
    }
    return "; ".join(f"{told}{value}" for told, value in details.items() if value)


# Held-out numbers


def _milestones(evaluations: Sequence[_Evaluation]) -> list[_Evaluation]:
    """Evaluations before and after stages, and the newest one if it is later than those."""
    chosen = [one for one in evaluations if not _STEP_LABEL.fullmatch(one.label)] or list(evaluations[:1])
    if chosen and evaluations[-1].step > chosen[-1].step:
        chosen.append(evaluations[-1])
    return chosen


def _metrics_by_section(evaluations: Sequence[_Evaluation]) -> dict[str, list[str]]:
    """Held-out metrics in the order of reading; the total comes before the rewards that it sums up."""
    names = dict.fromkeys(metric for one in evaluations for metric, _ in one.values)
    sections: dict[str, list[str]] = {"Benchmark metrics": [], "Rewards": [], OTHER: []}
    for name in sorted(names, key=lambda name: name != "reward/total"):
        is_other = NEUTRAL_METRIC.search(name) is not None
        sections[OTHER if is_other else "Rewards" if _is_reward(name) else "Benchmark metrics"].append(name)
    return sections


def _is_reward(metric: str) -> bool:
    """Whether a held-out metric is a reward, of the task or of a mixture's part."""
    return "/reward/" in f"/{metric}"


def _temperatures(evaluations: Sequence[_Evaluation], metric: str) -> list[str]:
    return list(dict.fromkeys(warmth for one in evaluations for name, warmth in one.values if name == metric))


def _readable(names: Iterable[str]) -> dict[str, str]:
    """Names without their plugin and underscores, where that leaves them distinct.

    >>> _readable(["reward/visual_rft/iou", "a/format", "b/format"])
    {'reward/visual_rft/iou': 'iou', 'a/format': 'a/format', 'b/format': 'b/format'}
    """
    ends = {name: _visible(name.rpartition("/")[2].replace("_", " ")) for name in names}
    counts = Counter(ends.values())
    return {name: end if counts[end] == 1 else _visible(name) for name, end in ends.items()}


def _held_out_titles(metrics: Sequence[str]) -> dict[str, str]:
    """Titles of charts, each metric's own.

    >>> _held_out_titles(["reward/iou", "iou"])
    {'reward/iou': 'Held-out iou reward', 'iou': 'Held-out iou'}
    """
    rewards = _readable(filter(_is_reward, metrics))
    others = _readable(metric for metric in metrics if not _is_reward(metric))
    titles = {metric: name if "reward" in name else f"{name} reward" for metric, name in rewards.items()} | others
    return {metric: f"Held-out {title}" for metric, title in titles.items()}


def _held_out_table(milestones: Sequence[_Evaluation]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(section, its rows): a row for each metric at each temperature, a cell for each milestone."""
    table = []
    for section, metrics in _metrics_by_section(milestones).items():
        names, rows = _readable(metrics), []
        for metric in metrics:
            for warmth in _temperatures(milestones, metric):
                values = [one.values.get((metric, warmth)) for one in milestones]
                cells = [_cell(metric, *pair) for pair in zip(values, [None, *values], strict=False)]
                rows.append({"metric": names[metric], "temperature": warmth, "cells": cells})
        if rows:
            table.append((section, rows))
    return table


def _cell(metric: str, value: float | None, before: float | None) -> dict[str, Any]:
    """A number and how it moved; the trend is a CSS class."""
    change = None if value is None or before is None else value - before
    trend = ""
    if change is not None and abs(change) >= SMALLEST_CHANGE and not NEUTRAL_METRIC.search(metric):
        trend = "up" if change > 0 else "down"
    return {"value": value, "change": change, "trend": trend}


def _story(milestones: Sequence[_Evaluation], charts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The first benchmark metric and the reward, from first to last; takes their charts out of `charts`."""
    sections, story = _metrics_by_section(milestones), []
    for metric in sections["Benchmark metrics"][:1] + sections["Rewards"][:1]:
        if metric not in charts:  # there were too many
            continue
        warmth = _temperatures(milestones, metric)[0]
        told = [(one.label, one.values[metric, warmth]) for one in milestones if (metric, warmth) in one.values]
        change = _cell(metric, told[-1][1], told[0][1] if len(told) > 1 else None)
        title = f"{charts[metric]['title']}, {warmth}"
        story.append({"title": title, "told": told, "change": change, "chart": charts.pop(metric)})
    return story


# Curves


def _chart(title: str, told: str, series: Sequence[Series], stages: Sequence[Stage]) -> dict[str, Any]:
    last = [(line.label, line.values[-1]) for line in series]
    return {"title": _visible(title), "told": told, "last": last, "uri": chart_uri(draw_chart(series, stages))}


def _held_out_charts(evaluations: Sequence[_Evaluation], stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """A chart for each held-out metric, with a curve for each temperature."""
    charts = {}
    metrics = [name for names in _metrics_by_section(evaluations).values() for name in names]
    titles = _held_out_titles(metrics)
    for metric in metrics[:MAX_CHARTS]:
        series = []
        for warmth in _temperatures(evaluations, metric)[:MAX_CURVES]:
            points = {one.step: one.values[metric, warmth] for one in evaluations if (metric, warmth) in one.values}
            series.append(Series(warmth, list(points), list(points.values()), is_measured=True))
        charts[metric] = _chart(titles[metric], "", series, stages)
    return charts


def _training_charts(columns: Mapping[str, Points], stages: Sequence[Stage]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(section, charts) of what was logged; what no chart is known for comes last, under its own name."""
    rewards = [key for key in columns if key.startswith("reward/") and key not in ("reward/total", "reward/total_std")]
    names = _readable(rewards)
    parts = [rewards[first : first + MAX_CURVES] for first in range(0, len(rewards), MAX_CURVES)]
    charts = [
        *TRAINING_CHARTS[:1],
        *((TRAINING, "Each reward", "before its weight", {key: names[key] for key in part}) for part in parts),
        *((UPDATE, key.capitalize(), "", {key: ""}) for key in columns if key.startswith("loss (")),
        *TRAINING_CHARTS[1:],
    ]
    known = {*NOT_DRAWN, *(key for *_, metrics in charts for key in metrics)}
    unknown = [key for key in columns if key not in known and not key.startswith(COUNTER_PREFIXES)]
    charts += [(OTHER, key, "", {key: ""}) for key in unknown[:MAX_CHARTS]]
    sections: dict[str, list[dict[str, Any]]] = {TRAINING: [], UPDATE: [], COMPLETIONS: [], OTHER: []}
    for section, title, told, metrics in charts:
        drawn = [(label, columns[key]) for key, label in metrics.items() if key in columns]
        if drawn:
            series = [Series(label, list(points), list(points.values())) for label, points in drawn]
            sections[section].append(_chart(title, told, series, stages))
    return [(section, drawn) for section, drawn in sections.items() if drawn]


# Rollouts


class _Media:
    """Media of a run, pictures embedded once each and shown by their id, and the view that draws shapes on them.

    A view that cannot be loaded, or fails, is told in `problem` and leaves pictures without shapes. `has_areas` and
    `has_spans` tell what it drew: on pictures, of time.
    """

    def __init__(self, root: Path, config: Any) -> None:
        self.embedded: list[dict[str, Any]] = []
        self.problem = ""
        self.has_areas = self.has_spans = False
        self._view: Callable[..., Any] | None = None
        self._root = root
        self._known: dict[str, dict[str, Any] | None] = {}
        self._sounds: dict[str, dict[str, Any] | None] = {}
        component = _at(config, "log", "view")
        component = {"name": component} if isinstance(component, str) else component
        if isinstance(component, Mapping):
            options = {str(key): value for key, value in component.items() if key != "name"}
            try:
                self._view = partial(load_plugins().registry.get("view", str(component.get("name"))).load(), **options)
            except Exception as error:  # a plugin that is missing or broken: the report stands without it
                self.problem = f"Nothing is drawn on the pictures: {error}"

    def picture(self, path: Any) -> dict[str, Any] | None:
        """id, width, height and uri of a picture; None if it cannot be read or lies outside of the rollouts folder."""
        if str(path) not in self._known:
            try:
                self._known[str(path)] = self._embed(load_image(str(path), root=self._root))
            except MediaError:
                self._known[str(path)] = None
        return self._known[str(path)]

    def sound(self, path: Any) -> dict[str, Any] | None:
        """uri, and the spectrogram as `picture`; None if it is no sound, or cannot be read."""
        if not isinstance(path, str) or not path.endswith(SOUND_SUFFIX):
            return None
        if path not in self._sounds:
            try:
                sound = load_audio(path, root=self._root, sampling_rate=SOUND_HZ, max_seconds=MAX_SOUND_S + 1)
            except MediaError:
                self._sounds[path] = None
            else:
                import soundfile

                buffer = io.BytesIO()
                soundfile.write(buffer, sound.samples, SOUND_HZ, format="MP3")
                uri = f"data:audio/mpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
                picture = self._embed(draw_spectrogram(sound.samples, SOUND_HZ))
                self._sounds[path] = {"uri": uri, "picture": picture}
        return self._sounds[path]

    def film(self, path: Any) -> dict[str, Any] | None:
        """width, height and uri of a video that the policy made; None if it is none, or cannot be read."""
        if not isinstance(path, str) or not path.endswith(FILM_SUFFIX):
            return None
        try:
            load_image(path, root=self._root)  # refuses what is no picture, too large, or elsewhere
            frames: list[Image.Image] = []
            with Image.open(self._root / path) as film:
                for frame in islice(ImageSequence.Iterator(film), MAX_MADE_FRAMES):
                    frames.append(frame.convert("RGB"))
                    frames[-1].thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE), Image.Resampling.LANCZOS)
            width, height = frames[0].size
            uri = f"data:image/webp;base64,{base64.b64encode(encode_film(frames)).decode()}"
        except Exception:  # format plugins raise anything on torn data
            return None
        return {"width": width, "height": height, "is_small": max(width, height) <= MAX_SMALL_SIDE, "uri": uri}

    def _embed(self, image: Image.Image) -> dict[str, Any]:
        # Shapes are drawn on a canvas whose longer side is 1000.
        width, height = (round(1000 * side / max(image.size), 1) for side in image.size)
        is_small = max(image.size) <= MAX_SMALL_SIDE
        image.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE), Image.Resampling.LANCZOS)
        buffer, kind = io.BytesIO(), "png"
        if is_small:
            image.save(buffer, format=kind)
        if not is_small or buffer.tell() > MAX_PNG_BYTES:
            buffer, kind = io.BytesIO(), "jpeg"
            image.save(buffer, format=kind, quality=88)
        uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
        name = f"picture-{len(self.embedded)}"
        self.embedded.append({"id": name, "width": width, "height": height, "is_small": is_small, "uri": uri})
        return self.embedded[-1]

    def shapes(self, rollout: Record) -> list[dict[str, Any]]:
        """Sound shapes for a rollout, as the template draws them: areas of pictures and spans of time."""
        if self._view is None or not isinstance(rollout.get("completion"), str):
            return []
        try:
            sample = {**_mapping(rollout, "sample"), **_mapping(rollout, "outcome")}
            found = list(self._view(rollout["completion"], sample))
        except Exception as error:  # third-party code on untrusted text
            self.problem = f"The view failed on a completion: {type(error).__name__}: {error}"
            return []
        sound = [_sound_span(shape) or _sound_area(shape) for shape in found[:MAX_SHAPES_OF_COMPLETION]]
        shapes = [shape for shape in sound if shape is not None]
        self.has_areas |= any(_is_area(shape) for shape in shapes)
        self.has_spans |= not all(_is_area(shape) for shape in shapes)
        return shapes

    def panels(self, message: Record, shapes: Sequence[dict[str, Any]] = ()) -> list[Any]:
        """The media of a prompt or turn with shapes on them, gold on top; None for one that cannot be read.

        A sound is shown by its spectrogram, with a player below it.
        """
        paths, times = _list(message, "media"), _list(message, "times_s")
        panels: list[Any] = []
        for position, path in enumerate(paths[:MAX_PICTURES_OF_MESSAGE]):
            drawn = [shape for shape in shapes if _is_area(shape) and shape["medium"] == position]
            drawn.sort(key=lambda shape: shape["style"] == "gold")
            sound = self.sound(path)
            picture = sound["picture"] if sound else self.picture(path)
            time_s = _finite(times[position]) if position < len(times) else None
            uri = sound and sound["uri"]
            panels.append(picture and {"picture": picture, "shapes": drawn, "time_s": time_s, "sound_uri": uri})
        return panels


def _mapping(record: Record, key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def _list(record: Record, key: str) -> list[Any]:
    value = record.get(key)
    return value if isinstance(value, list) else []


def _is_area(shape: Mapping[str, Any]) -> bool:
    return "medium" in shape


def _sound_area(shape: Any) -> dict[str, Any] | None:
    """A box or point per mille, with its edges in percent of the picture's sides; None if it is neither."""
    box, point, medium = _at(shape, "box"), _at(shape, "point"), _at(shape, "medium")
    values = point if box is None else box
    is_sound = isinstance(values, Sequence) and len(values) == (2 if box is None else 4)
    if not is_sound or any(_finite(value) is None for value in values):
        return None
    # A little beyond the edge stays visible as being beyond it; the rest would only be a long line.
    edges = [min(102.0, max(-2.0, value / 10)) for value in values]
    (left, *_, right), (top, *_, bottom) = sorted(edges[0::2] * 2), sorted(edges[1::2] * 2)
    return {
        "style": "gold" if _at(shape, "kind") == "gold" else "predicted",  # a CSS class
        "label": str(_at(shape, "label") or "")[:24],
        "medium": medium if isinstance(medium, int) else 0,  # position among the prompt's pictures
        "is_point": box is None,
        "x": round(left, 2),
        "y": round(top, 2),
        "width": round(max(0.4, right - left), 2),  # one without area stays visible
        "height": round(max(0.4, bottom - top), 2),
    }


def _sound_span(shape: Any) -> dict[str, Any] | None:
    """A stretch of time, with its edges in percent of the medium's length; None if it is none."""
    span, length_s = _at(shape, "span"), _finite(_at(shape, "length_s"))
    if length_s is None or length_s <= 0 or not isinstance(span, Sequence) or len(span) != 2:
        return None
    if any(_finite(value) is None for value in span):
        return None
    start_s, end_s = sorted(map(float, span))
    kind, label = _at(shape, "kind"), str(_at(shape, "label") or "")[:24]
    left, right = _percent(start_s, length_s), _percent(end_s, length_s)
    return {
        "style": kind if kind in ("gold", "call") else "predicted",  # a CSS class
        "told": f"{label} {format_seconds(start_s)[:-2]} to {format_seconds(end_s)}".strip(),
        "length_s": length_s,
        "x": min(left, 99.4),
        "width": round(max(0.6, right - left), 2),  # one without extent, or outside, stays visible
    }


def _percent(time_s: float, length_s: float) -> float:
    return round(min(100.0, max(0.0, 100 * (time_s / length_s))), 2)


def _timeline(rollouts: Sequence[Record], shapes: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any] | None:
    """Lanes over an axis of time, for the rollouts of a prompt and what is drawn of each; None if it is no time.

    The gold and the prompt's frames come first. Then one rollout has a lane for its calls, with the frames that they
    returned, and one for its answer; several have a lane each, named by their number.
    """
    spans = [[shape for shape in own if not _is_area(shape)] for own in shapes]
    if not any(spans):
        return None
    length_s = max(span["length_s"] for own in spans for span in own)

    def lane(
        name: str, told: Sequence[dict[str, Any]], under: Sequence[dict[str, Any]] = (), seen_in: Sequence[Any] = ()
    ) -> dict[str, Any]:
        """`told` lie over `under` and are written beside the lane; the frames of messages are marked."""
        messages = [message for message in seen_in if isinstance(message, Mapping)]
        times = [_finite(time) for message in messages for time in _list(message, "times_s")]
        return {
            "name": name,
            "spans": [*under, *told],
            "ticks": sorted({_percent(time, length_s) for time in times if time is not None}),
            "told": ", ".join(span["told"] for span in told[:3]),
        }

    gold = [span for span in spans[0] if span["style"] == "gold"]
    calls = [[span for span in own if span["style"] == "call"] for own in spans]
    answers = [[span for span in own if span["style"] not in ("gold", "call")] for own in spans]
    lanes = [lane("gold", gold), lane("frames", [], seen_in=rollouts[:1])]
    if len(rollouts) == 1:
        lanes += [lane("tool calls", calls[0], seen_in=_list(rollouts[0], "turns")), lane("predicted", answers[0])]
    lanes = [one for one in lanes if one["spans"] or one["ticks"]]
    if len(rollouts) > 1:
        numbered = enumerate(zip(answers, calls, strict=True), start=1)
        lanes += [lane(str(number), told, under) for number, (told, under) in numbered]
    return {"length": format_seconds(length_s), "lanes": lanes}


def _shown_rollout(rollout: Record, media: _Media) -> dict[str, Any]:
    """What is told of a rollout beside its prompt."""
    rewards, turns = _mapping(rollout, "rewards"), _list(rollout, "turns")
    made, text = rollout.get("completion_media"), rollout.get("completion")
    film = media.film(made)
    return {
        "completion": _told_apart(text if isinstance(text, str) else ""),
        "turns": [
            {
                "role": _visible(str(turn.get("role", ""))[:24]),
                "text": _told_apart(str(turn.get("text", ""))),
                "panels": media.panels(turn),
            }
            for turn in turns[:MAX_TURNS_OF_COMPLETION]
            if isinstance(turn, Mapping)
        ],
        "num_turns_left_out": max(0, len(turns) - MAX_TURNS_OF_COMPLETION),
        "outcome": _told_outcome(_mapping(rollout, "outcome")),
        "made": media.picture(made) if isinstance(made, str) and film is None else None,
        "film": film,
        "rewards": {name: _finite(rewards[key]) for key, name in _readable(rewards).items()},
        "total": _finite(rollout.get("total")),
        "advantage": _finite(rollout.get("advantage")),
        "truncated": rollout.get("truncated") is True,
        "num_tokens": rollout.get("num_tokens"),
    }


def _told_apart(text: str) -> list[tuple[str, str]]:
    """(CSS class, piece) of a completion: reasoning, calls and answers are styled; together the pieces are the text."""
    pieces, style = [], "plain"
    for piece in _TAG.split(_shortened(text)):
        if _TAG.fullmatch(piece) and piece[1] != "/":
            style = piece[1:-1]
        if piece:
            pieces.append((style, piece))
        if _TAG.fullmatch(piece) and piece[1] == "/":
            style = "plain"
    return pieces


def _told_outcome(outcome: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of facts, short."""

    def short(text: str) -> str:
        return _visible(text if len(text) <= MAX_FACT_CHARS else f"{text[:MAX_FACT_CHARS]}…")

    def told(value: Any) -> str:
        if _finite(value) is not None:
            return format_number(value)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    facts = list(outcome.items())[:MAX_FACTS_OF_COMPLETION]
    return [(short(name.replace("_", " ")), short(told(value))) for name, value in facts]


def _shown_prompt(rollout: Record) -> dict[str, str]:
    return {
        "id": str(rollout.get("prompt_id", "")),
        "text": _shortened(str(rollout.get("prompt", ""))),
        "answer": _shortened(str(rollout.get("answer") or "")),
        "sample": _shortened(json.dumps(rollout.get("sample"), indent=2, ensure_ascii=False)),
    }


def _shortened(text: str) -> str:
    left_out = len(text) - MAX_SHOWN_CHARS
    return _visible(text if left_out <= 0 else f"{text[:MAX_SHOWN_CHARS]}\n[{left_out:,} more characters]")


def _visible(text: str) -> str:
    """The text with symbols for control characters."""
    return text.translate(_VISIBLE)


def _compared_prompts(files: Sequence[RolloutFile], milestones: Sequence[_Evaluation], media: _Media) -> dict[str, Any]:
    """The first held-out prompts, each with what the policy made of it at the milestones."""
    by_step: dict[int, RolloutFile] = {}
    for file in files:  # the coolest of a step comes first
        if file.split == "held_out":
            by_step.setdefault(file.step, file)
    labels = {one.step: one.label for one in milestones}
    chosen = [file for step, file in by_step.items() if step in labels] or list(by_step.values())
    chosen = chosen[:1] + chosen[1:][1 - MAX_COMPARED_EVALUATIONS :]
    columns = [(labels.get(file.step) or f"step {file.step}", file.temperature or 0) for file in chosen]
    # Of several completions of a prompt the first is kept.
    tables = [
        {str(line.get("prompt_id")): line for line in reversed(read_rollouts(file.path)) if line} for file in chosen
    ]
    counts = Counter(prompt for table in tables for prompt in reversed(table))
    rows = []
    for prompt, _ in counts.most_common(MAX_COMPARED_PROMPTS):  # of equal counts, the first written comes first
        found = [table.get(prompt) for table in tables]
        first = next(filter(None, found))
        shapes = [media.shapes(one) if one else [] for one in found]
        has_areas = any(_is_area(shape) for own in shapes for shape in own)
        cells = [
            one
            and {
                "panels": media.panels(one, own) if has_areas else [],
                "timeline": _timeline([one], [own]),
                "rollout": _shown_rollout(one, media),
            }
            for one, own in zip(found, shapes, strict=True)
        ]
        # Pictures that nothing is drawn on are shown once.
        rows.append(
            {"prompt": _shown_prompt(first), "panels": [] if has_areas else media.panels(first), "cells": cells}
        )
    return {"columns": columns, "rows": rows, "num_prompts": len(counts)}


def _training_steps(files: Sequence[RolloutFile], media: _Media) -> list[dict[str, Any]]:
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


def _training_group(rollouts: Sequence[Record], media: _Media) -> dict[str, Any]:
    """One picture, or timeline, with what all completions name, numbered as in the table beside it."""
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
        "stage": str(rollouts[0].get("stage", "")),
        "temperature": _finite(rollouts[0].get("temperature")),
        "prompt": _shown_prompt(rollouts[0]),
        "panels": media.panels(rollouts[0], [shape for own in shapes for shape in own]),
        "timeline": _timeline(rollouts[: len(told)], shapes),
        "rollouts": told,
        "reward_names": list(dict.fromkeys(name for shown in told for name in shown["rewards"])),
        "is_made": all(shown["made"] or shown["film"] for shown in told),
        "has_advantages": any(shown["advantage"] is not None for shown in told),
        "num_left_out": len(rollouts) - len(told),
        "is_flat": len(totals) > 1 and max(totals) - min(totals) < 1e-6,
        "mean_total": fmean(totals) if totals else None,
    }

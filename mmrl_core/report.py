"""`mmrl view`: a run directory as one HTML file that needs no network, no script and nothing beside it.

What is read: config.yaml, metrics.jsonl, rollouts/, set_aside.jsonl. All of it may be missing, torn or unfinished, and
completions are untrusted: the template escapes everything, pictures are decoded and encoded again, and a content
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
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
import yaml
from PIL import Image

from mmrl_core.charts import Series, Stage, chart_uri, draw_chart
from mmrl_core.errors import MediaError, MMRLError
from mmrl_core.media import load_image
from mmrl_core.plugins import load_plugins
from mmrl_core.rollout_log import FOLDER, RolloutFile, read_json_lines, read_rollouts, rollout_files, written_aside

TEMPLATE = "report.html.j2"
MAX_COMPARED_PROMPTS = 6
MAX_COMPARED_EVALUATIONS = 4
MAX_TRAINING_STEPS = 4
MAX_GROUPS_OF_STEP = 2
MAX_COMPLETIONS_OF_GROUP = 32
MAX_PICTURES_OF_PROMPT = 8
MAX_SHAPES_OF_COMPLETION = 100
MAX_SHOWN_CHARS = 8_000  # of a prompt or completion; a runaway one would hide all others
MAX_SET_ASIDE_ROWS = 200
MAX_CHARTS = 36  # of a section
MAX_CURVES = 6  # of a chart
MAX_PICTURE_SIDE = 640  # larger pictures are scaled down, so that a report of photographs stays a few megabytes

TRAINING = "Reward in training"
UPDATE = "Update"
COMPLETIONS = "Completions and time"
OTHER = "Other numbers"

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
    (
        UPDATE,
        "Clip fraction",
        "share of tokens",
        {"clip_fraction_low": "from below", "clip_fraction_high": "from above"},
    ),
    (UPDATE, "Learning rate", "", {"lr": ""}),
    (
        COMPLETIONS,
        "Completion length",
        "tokens",
        {"completion_tokens/mean": "mean", "completion_tokens/max": "longest"},
    ),
    (COMPLETIONS, "Truncated", "share of completions cut off at the token limit", {"truncated": ""}),
    (COMPLETIONS, "Time per step", "in seconds", {"seconds": ""}),
)
NOT_DRAWN = ("kind", "stage", "stage_kind", "step", "elapsed_s", "set_aside", "policy_loss")  # or told elsewhere
COUNTER_PREFIXES = ("count/", "failures/")
# A rise in these is neither good nor bad.
NEUTRAL_METRIC = re.compile(r"truncated|tokens|length|seconds|entropy|count|unscored|readable|_std$")
SMALLEST_CHANGE = 5e-4  # less rounds to 0.000

_TEMPERATURE_METRIC = re.compile(r"(greedy|t[0-9][0-9.]*)/(.+)")
_STEP_LABEL = re.compile(r"step \d+")
# What a browser would drop or choke on: control characters become symbols, lone surrogates a replacement mark.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)

Record = Mapping[str, Any]


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
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format_number, change=format_change, visible=_visible)
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


def _contents(run: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    name = run.resolve().name
    config_text, config = _read_config(run / "config.yaml")
    steps, evaluations = _read_metrics(run / "metrics.jsonl")
    milestones = _milestones(evaluations)
    stages = _stages(steps)
    files = rollout_files(run)
    pictures = _Pictures(run / FOLDER)
    view = _View(config)
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
        "chart_sections": _training_charts(steps, stages),
        "compared": _compared_prompts(files, milestones, view, pictures),
        "training": _training_steps(files, view, pictures),
        "view_problem": view.problem,
        "has_view": view.is_loaded,
        "pictures": pictures.shown,
        "set_aside": [_set_aside_row(row) for row in set_aside[:MAX_SET_ASIDE_ROWS]],
        "num_set_aside": len(set_aside),
        "counters": _counters(steps),
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
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


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
    if isinstance(build, Mapping):
        options = "".join(f", {key}={value}" for key, value in build.items() if key != "name")
        name = f"{build.get('name')}{options} (built for the run)"
    else:
        name = str(build or _at(model, "path") or "")
    frozen = _at(model, "freeze")
    details = {
        "": name,
        "revision ": _at(model, "revision"),
        "LoRA rank ": _at(model, "lora", "rank"),
        "frozen: ": ", ".join(map(str, frozen)) if isinstance(frozen, list) else frozen,
    }
    return "; ".join(f"{told}{value}" for told, value in details.items() if value) if name else ""


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
        sections[OTHER if is_other else "Rewards" if name.startswith("reward/") else "Benchmark metrics"].append(name)
    return sections


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


def _held_out_title(metric: str) -> str:
    return f"Held-out {_readable([metric])[metric]}{' reward' if metric.startswith('reward/') else ''}"


def _held_out_table(milestones: Sequence[_Evaluation]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(section, its rows): a row for each metric at each temperature, a cell for each milestone."""
    table = []
    for section, metrics in _metrics_by_section(milestones).items():
        names, rows = _readable(metrics), []
        for metric, warmth in ((metric, warmth) for metric in metrics for warmth in _temperatures(milestones, metric)):
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
        warmth = _temperatures(milestones, metric)[0]
        told = [(one.label, one.values[metric, warmth]) for one in milestones if (metric, warmth) in one.values]
        change = _cell(metric, told[-1][1], told[0][1] if len(told) > 1 else None)
        title = f"{_held_out_title(metric)}, {warmth}"
        story.append({"title": title, "told": told, "change": change, "chart": charts.pop(metric)})
    return story


# Curves


def _chart(title: str, told: str, series: Sequence[Series], stages: Sequence[Stage]) -> dict[str, Any]:
    last = [(line.label, line.values[-1]) for line in series]
    return {"title": _visible(title), "told": told, "last": last, "uri": chart_uri(draw_chart(series, stages))}


def _held_out_charts(evaluations: Sequence[_Evaluation], stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """A chart for each held-out metric, with a curve for each temperature."""
    charts = {}
    for metric in [name for names in _metrics_by_section(evaluations).values() for name in names][:MAX_CHARTS]:
        series = []
        for warmth in _temperatures(evaluations, metric)[:MAX_CURVES]:
            points = {one.step: one.values[metric, warmth] for one in evaluations if (metric, warmth) in one.values}
            series.append(Series(warmth, list(points), list(points.values()), is_measured=True))
        charts[metric] = _chart(_held_out_title(metric), "", series, stages)
    return charts


def _training_charts(steps: Sequence[Record], stages: Sequence[Stage]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(section, charts) of what was logged; what no chart is known for comes last, under its own name."""
    columns: dict[str, dict[int, float]] = {}
    kinds = list(dict.fromkeys(str(record.get("stage_kind", "")) for record in steps))
    for record in steps:
        for key, number in _numbers(record):
            key = f"loss of {record.get('stage_kind', '')}" if key == "loss" else key
            columns.setdefault(key, {})[record["step"]] = number
    rewards = [key for key in columns if key.startswith("reward/") and key not in ("reward/total", "reward/total_std")]
    names = _readable(rewards)
    parts = [rewards[first : first + MAX_CURVES] for first in range(0, len(rewards), MAX_CURVES)]
    charts = [
        *TRAINING_CHARTS[:1],
        *((TRAINING, "Each reward", "before its weight", {key: names[key] for key in part}) for part in parts),
        # Losses of different kinds share no scale.
        *((UPDATE, f"Loss ({kind})" if len(kinds) > 1 else "Loss", "", {f"loss of {kind}": ""}) for kind in kinds),
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


class _Pictures:
    """Pictures of a run, embedded once each. What is shown refers to them by `id`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, dict[str, Any] | None] = {}
        self.shown: list[dict[str, Any]] = []

    def get(self, path: Any) -> dict[str, Any] | None:
        """id, width, height and uri of a picture; None if it cannot be read or lies outside of the rollouts folder."""
        key = str(path)
        if key not in self._known:
            self._known[key] = self._embed(key)
        return self._known[key]

    def _embed(self, path: str) -> dict[str, Any] | None:
        try:
            image = load_image(path, root=self._root)
        except MediaError:
            return None
        width, height = image.size
        image.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        is_small = max(width, height) <= 256
        kind = "png" if is_small else "jpeg"
        image.save(buffer, format=kind, quality=88)
        scale = 1000 / max(width, height)  # shapes are drawn on a canvas whose longer side is 1000
        picture = {
            "id": f"picture-{len(self.shown)}",
            "uri": f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}",
            "width": round(width * scale, 1),
            "height": round(height * scale, 1),
            "is_small": is_small,
        }
        self.shown.append(picture)
        return picture


class _View:
    """The view that the run's config names. One that cannot be loaded, or fails, leaves pictures without shapes."""

    def __init__(self, config: Any) -> None:
        component = _at(config, "log", "view")
        component = {"name": component} if isinstance(component, str) else component
        self.problem = ""
        self._function: Callable[..., Any] | None = None
        self._options: dict[str, Any] = {}
        if isinstance(component, Mapping):
            self._options = {str(key): value for key, value in component.items() if key != "name"}
            try:
                self._function = load_plugins().registry.get("view", str(component.get("name"))).load()
            except Exception as error:  # a plugin that is missing or broken: the report stands without it
                self.problem = f"Nothing is drawn on the pictures: {error}"

    @property
    def is_loaded(self) -> bool:
        return self._function is not None

    def shapes(self, rollout: Record) -> list[dict[str, Any]]:
        """Sound shapes for a rollout, as the template draws them."""
        if self._function is None or not isinstance(rollout.get("completion"), str):
            return []
        try:
            found = list(self._function(rollout["completion"], rollout.get("sample") or {}, **self._options))
        except Exception as error:  # third-party code on untrusted text
            self.problem = f"The view failed on a completion: {type(error).__name__}: {error}"
            return []
        shapes = [_sound_shape(shape) for shape in found[:MAX_SHAPES_OF_COMPLETION]]
        return [shape for shape in shapes if shape is not None]


def _sound_shape(shape: Any) -> dict[str, Any] | None:
    """A box or point per mille, with its edges in percent of the picture's sides; None if it is neither."""
    for kind, count in (("box", 4), ("point", 2)):
        values = _at(shape, kind)
        if (
            isinstance(values, Sequence)
            and len(values) == count
            and all(_finite(value) is not None for value in values)
        ):
            # A little beyond the edge stays visible as being beyond it; the rest would only be a long line.
            edges = [min(102.0, max(-2.0, value / 10)) for value in values]
            xs, ys = sorted(edges[0::2]), sorted(edges[1::2])
            medium = _at(shape, "medium")
            return {
                "style": "gold" if _at(shape, "kind") == "gold" else "predicted",  # a CSS class
                "label": str(_at(shape, "label") or "")[:24],
                "medium": medium if isinstance(medium, int) else 0,  # position among the prompt's pictures
                "is_point": kind == "point",
                "x": round(xs[0], 2),
                "y": round(ys[0], 2),
                "width": round(max(0.4, xs[-1] - xs[0]), 2),  # one without area stays visible
                "height": round(max(0.4, ys[-1] - ys[0]), 2),
            }
    return None


def _panels(rollout: Record, pictures: _Pictures, shapes: Sequence[dict[str, Any]]) -> list[Any]:
    """The prompt's pictures with shapes on them, gold on top; None for a picture that cannot be read."""
    media = rollout.get("media")
    panels: list[Any] = []
    for position, path in enumerate(media[:MAX_PICTURES_OF_PROMPT] if isinstance(media, list) else []):
        picture = pictures.get(path)
        drawn = sorted((s for s in shapes if s["medium"] == position), key=lambda s: s["style"] == "gold")
        panels.append(picture and {"picture": picture, "shapes": drawn})
    return panels


def _shown_rollout(rollout: Record, pictures: _Pictures) -> dict[str, Any]:
    """What is told of a rollout beside its prompt."""
    rewards = rollout.get("rewards")
    rewards = rewards if isinstance(rewards, Mapping) else {}
    made, text = rollout.get("completion_media"), rollout.get("completion")
    return {
        "completion": _shortened(text if isinstance(text, str) else ""),
        "made": pictures.get(made) if isinstance(made, str) else None,
        "rewards": {name: _finite(rewards[key]) for key, name in _readable(rewards).items()},
        "total": _finite(rollout.get("total")),
        "advantage": _finite(rollout.get("advantage")),
        "truncated": rollout.get("truncated") is True,
        "num_tokens": rollout.get("num_tokens"),
    }


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


def _compared_prompts(
    files: Sequence[RolloutFile], milestones: Sequence[_Evaluation], view: _View, pictures: _Pictures
) -> dict[str, Any]:
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
    tables = [{str(line.get("prompt_id")): line for line in reversed(read_rollouts(file.path))} for file in chosen]
    counts = Counter(prompt for table in tables for prompt in reversed(table))
    rows = []
    for prompt, _ in counts.most_common(MAX_COMPARED_PROMPTS):  # of equal counts, the first written comes first
        found = [table.get(prompt) for table in tables]
        example = next(rollout for rollout in found if rollout is not None)
        rows.append({"prompt": _shown_prompt(example), "cells": [_compared(one, view, pictures) for one in found]})
    return {"columns": columns, "rows": rows, "num_prompts": len(counts)}


def _compared(rollout: Record | None, view: _View, pictures: _Pictures) -> dict[str, Any] | None:
    if rollout is None:
        return None
    panels = _panels(rollout, pictures, view.shapes(rollout))
    return {"panels": panels, "rollout": _shown_rollout(rollout, pictures)}


def _training_steps(files: Sequence[RolloutFile], view: _View, pictures: _Pictures) -> list[dict[str, Any]]:
    """The first groups of a few training steps, spread evenly from the first written to the last."""
    written = [file for file in files if file.split == "train"]
    spread = min(MAX_TRAINING_STEPS, len(written)) - 1
    chosen = [written[round(i * (len(written) - 1) / max(1, spread))] for i in range(spread + 1)]
    steps = []
    for file in chosen:
        by_group: dict[str, list[Record]] = {}
        for rollout in read_rollouts(file.path):
            by_group.setdefault(str(rollout.get("group")), []).append(rollout)
        groups = list(by_group.values())
        if groups:
            steps.append(
                {
                    "step": file.step,
                    "stage": str(groups[0][0].get("stage", "")),
                    "temperature": _finite(groups[0][0].get("temperature")),
                    "num_groups": len(groups),
                    "groups": [_training_group(group, view, pictures) for group in groups[:MAX_GROUPS_OF_STEP]],
                }
            )
    return steps


def _training_group(rollouts: Sequence[Record], view: _View, pictures: _Pictures) -> dict[str, Any]:
    """One picture with the boxes of all completions, numbered as in the table beside it."""
    told = [_shown_rollout(rollout, pictures) for rollout in rollouts[:MAX_COMPLETIONS_OF_GROUP]]
    largest = max(abs(shown["advantage"] or 0.0) for shown in told)
    shapes: list[dict[str, Any]] = []
    for number, (rollout, shown) in enumerate(zip(rollouts, told, strict=False), start=1):
        advantage = shown["advantage"] or 0.0
        shown["sign"] = "zero" if abs(advantage) < 1e-6 else "better" if advantage > 0 else "worse"
        shown["bar"] = round(50 * abs(advantage) / largest, 1) if largest else 0.0
        for shape in view.shapes(rollout):
            if shape["style"] == "predicted":
                shapes.append({**shape, "label": str(number), "style": shown["sign"]})
            elif number == 1:  # the gold is the same for all
                shapes.append(shape)
    totals = [shown["total"] for shown in told if shown["total"] is not None]
    return {
        "prompt": _shown_prompt(rollouts[0]),
        "panels": _panels(rollouts[0], pictures, shapes),
        "rollouts": told,
        "reward_names": list(dict.fromkeys(name for shown in told for name in shown["rewards"])),
        "has_advantages": any(shown["advantage"] is not None for shown in told),
        "num_left_out": len(rollouts) - len(told),
        "is_flat": len(totals) > 1 and max(totals) - min(totals) < 1e-6,
        "mean_total": fmean(totals) if totals else None,
    }


# What else is told


def _set_aside_row(row: Record) -> tuple[str, str, str]:
    """(file, reason, everything else)."""
    others = ", ".join(f"{key}: {value}" for key, value in row.items() if key not in ("file", "reason"))
    return str(row.get("file", "")), str(row.get("reason", "")), others


def _counters(steps: Sequence[Record]) -> list[tuple[str, float, float, float]]:
    """(name, sum over steps, mean of the steps that logged it, last)."""
    columns: dict[str, list[float]] = {}
    for record in steps:
        for key, number in _numbers(record):
            if key.startswith(COUNTER_PREFIXES):
                columns.setdefault(key.removeprefix("count/"), []).append(number)
    return [(name, math.fsum(column), fmean(column), column[-1]) for name, column in sorted(columns.items())]

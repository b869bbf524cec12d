"""`mmrl view`: a run directory as one HTML file that needs no network, no script and nothing beside it.

What is read: config.yaml, metrics.jsonl, rollouts/, set_aside.jsonl. All of it may be missing, torn or unfinished, and
completions are untrusted: the template escapes everything, pictures are decoded and encoded again, and a content
security policy in the page forbids scripts and addresses.
"""

from __future__ import annotations

import base64
import bisect
import io
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml
from PIL import Image

from mmrl_core.errors import MediaError, MMRLError
from mmrl_core.media import load_image
from mmrl_core.plugins import load_plugins
from mmrl_core.rollout_log import FOLDER, RolloutFile, read_json_lines, read_rollouts, rollout_files, written_aside

TEMPLATE = "report.html.j2"
MAX_COMPARED_PROMPTS = 6
MAX_COMPARED_EVALS = 4
MAX_TRAINING_STEPS = 4
MAX_GROUPS_OF_STEP = 2
MAX_COMPLETIONS_OF_GROUP = 32
MAX_PICTURES_OF_PROMPT = 8
MAX_SHAPES_OF_COMPLETION = 100
MAX_SHOWN_CHARS = 8_000  # of a prompt or completion; a runaway one would hide all others
MAX_SET_ASIDE_ROWS = 200
MAX_HELD_OUT_CHARTS = 8
MAX_OTHER_CHARTS = 36
MAX_PICTURE_SIDE = 640  # larger pictures are scaled down, so that a report of photographs stays a few megabytes
MAX_POINTS = 400  # of a curve; longer ones are averaged over equal stretches
SMOOTHED_FROM = 40  # points from which on a moving average is drawn over the curve

TRAINING_CHARTS = {
    "loss": "Loss",
    "grad_norm": "Gradient norm",
    "kl": "KL to the reference policy",
    "entropy": "Entropy",
    "clip_fraction": "Clip fraction",
    "lr": "Learning rate",
    "completion_tokens/mean": "Completion length (tokens)",
    "truncated": "Truncated share",
    "groups/flat": "Flat groups (all rewards equal)",
    "advantage/abs_mean": "Mean |advantage|",
    "seconds": "Seconds per step",
}
RECORD_FIELDS = {"kind", "stage", "stage_kind", "step", "label", "elapsed_s", "time"}
COUNTER_PREFIXES = ("count/", "failures/", "unscored")
# A rise in these is neither good nor bad.
NEUTRAL_METRIC = re.compile(r"truncated|tokens|length|seconds|entropy|count|_std$")

_TEMPERATURE_METRIC = re.compile(r"(greedy|t[0-9][0-9.]*)/(.+)")
_STEP_LABEL = re.compile(r"step \d+")

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
    """Four significant digits for reading in a column; a dash for what is missing.

    >>> [format_number(value) for value in (0.57321, 12, 1234.5, 0.00002, None)]
    ['0.573', '12', '1,234', '2.0e-05', '–']
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    if value == 0 or (isinstance(value, int) and abs(value) < 1e15):
        text = f"{value:,.0f}" if isinstance(value, int) else "0.000"
    elif abs(value) >= 1e7 or abs(value) < 1e-3:
        text = f"{value:.1e}"
    elif abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
    return text.replace("-", "−") if text.startswith("-") else text


def format_change(value: float | None) -> str:
    """A number with its sign always written.

    >>> [format_change(value) for value in (0.25, -0.5, 0.0, None)]
    ['+0.250', '−0.500', '±0.000', '–']
    """
    if value is None:
        return "–"
    if abs(value) < 5e-4:
        return "±0.000"
    return format_number(value) if value < 0 else f"+{format_number(value)}"


def _contents(run: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    config_text = _read_text(run / "config.yaml")
    config = _parse_config(config_text)
    steps, evals = _read_metrics(run / "metrics.jsonl")
    stages = _stages(steps)
    files = rollout_files(run)
    pictures = _Pictures(run / FOLDER)
    view = _View(config)
    compared = _compared_prompts(files, evals, view, pictures)
    training = _training_steps(files, view, pictures)
    set_aside = list(read_json_lines(run / "set_aside.jsonl"))
    return {
        "run_name": run.resolve().name,
        "task": str(_at(config, "name") or run.resolve().name),
        "description": str(_at(config, "description") or ""),
        "facts": _facts(run, config, steps, stages),
        "command": f"mmrl train {shlex.quote(run.resolve().name + '/config.yaml')} "
        f"--output {shlex.quote(run.resolve().name + '-again')}",
        "headline": _headline(evals, steps),
        "tables": _held_out_tables(evals),
        "chart_groups": _chart_groups(steps, evals, stages),
        "compared": compared,
        "training": training,
        "view_problem": view.problem,
        "has_view": view.is_loaded,
        "pictures": pictures.shown,
        "set_aside": [_set_aside_row(row) for row in set_aside[:MAX_SET_ASIDE_ROWS]],
        "num_set_aside": len(set_aside),
        "counters": _counters(steps),
        "config_text": config_text,
        "num_steps": len(steps),
    }


# What the run says of itself


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _parse_config(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _at(tree: Any, *keys: str) -> Any:
    """The value under nested keys, None where a key is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _read_metrics(path: Path) -> tuple[list[Record], list[Record]]:
    """(step records by step, eval records by step). Of a repeated step or evaluation the last one counts."""
    steps: dict[int, Record] = {}
    evals: dict[tuple[int, str], Record] = {}
    for record in read_json_lines(path):
        step = record.get("step")
        if not isinstance(step, int):
            continue
        if record.get("kind") == "step":
            steps[step] = record
        elif record.get("kind") == "eval":
            evals[step, str(record.get("label"))] = record
    return [steps[step] for step in sorted(steps)], sorted(evals.values(), key=lambda record: record["step"])


@dataclass(frozen=True)
class _Stage:
    name: str
    kind: str
    first: int
    last: int


def _stages(steps: Sequence[Record]) -> list[_Stage]:
    stages: dict[str, _Stage] = {}
    for record in steps:
        name, step = str(record.get("stage", "")), record["step"]
        first = stages[name].first if name in stages else step
        stages[name] = _Stage(name, str(record.get("stage_kind", name)), first, step)
    return list(stages.values())


def _facts(run: Path, config: Any, steps: Sequence[Record], stages: Sequence[_Stage]) -> list[tuple[str, str]]:
    facts = []
    if name := _at(config, "name"):
        version = _at(config, "version")
        facts.append(("Task", f"{name}, version {version}" if version else str(name)))
    if model := _model(config):
        facts.append(("Model", model))
    if stages:
        facts.append(("Stages", ", then ".join(_stage_text(stage) for stage in stages)))
        if planned := _planned_steps(config):
            last = steps[-1]["step"]
            facts.append(("Progress", f"{last:,} of {planned:,} steps" if last < planned else f"all {planned:,} steps"))
    if (seed := _at(config, "seed")) is not None:
        facts.append(("Seed", str(seed)))
    dates = [_date(run / name) for name in ("config.yaml", "metrics.jsonl")]
    if any(dates):
        facts.append(("Started, last written", ", ".join(date for date in dates if date)))
    checkpoints = sorted(
        (path.name for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit()),
        key=lambda name: int(name[5:]),
    )
    if checkpoints:
        facts.append(("Checkpoints", ", ".join(checkpoints)))
    return facts


def _model(config: Any) -> str:
    build = _at(config, "model", "build")
    if isinstance(build, Mapping):
        options = ", ".join(f"{key}={value}" for key, value in build.items() if key != "name")
        name = f"{build.get('name')} (built for the run{': ' + options if options else ''})"
    else:
        name = str(build or _at(config, "model", "path") or "")
    details = [name]
    if revision := _at(config, "model", "revision"):
        details.append(f"revision {revision}")
    if rank := _at(config, "model", "lora", "rank"):
        details.append(f"LoRA rank {rank}")
    if frozen := _at(config, "model", "freeze"):
        details.append(f"frozen: {', '.join(map(str, frozen))}" if isinstance(frozen, list) else f"frozen: {frozen}")
    return "; ".join(details) if name else ""


def _stage_text(stage: _Stage) -> str:
    kind = "" if stage.kind == stage.name else f" ({stage.kind})"
    return f"{stage.name}{kind}: steps {stage.first:,} to {stage.last:,}"


def _planned_steps(config: Any) -> int | None:
    """Steps of all stages; None where a stage counts in epochs."""
    stages = _at(config, "stages")
    steps = [_at(stage, "steps") for stage in stages] if isinstance(stages, list) else []
    return sum(steps) if steps and all(isinstance(count, int) for count in steps) else None


def _date(path: Path) -> str | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except OSError:
        return None


def _numbers(record: Record) -> dict[str, float]:
    """The finite numbers of a record by metric name."""
    return {
        key: value
        for key, value in record.items()
        if key not in RECORD_FIELDS and _is_number(value) and math.isfinite(value)
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Held-out numbers


def _held_out(record: Record) -> dict[tuple[str, str], float]:
    """(metric, temperature) -> number, of an evaluation."""
    numbers = {}
    for key, value in _numbers(record).items():
        if match := _TEMPERATURE_METRIC.fullmatch(key):
            numbers[match.group(2), match.group(1)] = value
    return numbers


def _milestones(evals: Sequence[Record]) -> list[Record]:
    """Evaluations before and after stages, and the newest one if it is later than those."""
    if not evals:
        return []
    chosen = [record for record in evals if not _STEP_LABEL.fullmatch(str(record.get("label")))]
    if not chosen or evals[-1]["step"] > chosen[-1]["step"]:
        chosen = [*(chosen or evals[:1]), evals[-1]]
    return chosen if len(chosen) < 2 or chosen[-1] is not chosen[-2] else chosen[:-1]


def _temperature_text(name: str) -> str:
    return name if name == "greedy" else f"T = {name[1:]}"


def _unique(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Reward names without their plugin, where that leaves them distinct."""
    ends = [name.rpartition("/")[2] for name in names]
    return {name: end if ends.count(end) == 1 else name for name, end in zip(names, ends, strict=True)}


@dataclass(frozen=True)
class _Cell:
    """A number of the held-out table and how it moved; `trend` is "up", "down" or "" for colour."""

    value: float | None
    change: float | None
    trend: str


@dataclass(frozen=True)
class _Table:
    """`columns` are (metric, its temperatures); a row is (label, step, cells in the order of the columns)."""

    title: str
    columns: Sequence[tuple[str, Sequence[str]]]
    rows: Sequence[tuple[str, int, Sequence[_Cell]]]


def _held_out_tables(evals: Sequence[Record]) -> list[_Table]:
    milestones = _milestones(evals)
    rows = [_held_out(record) for record in milestones]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    rewards = [key for key in keys if key[0].startswith("reward/") and not key[0].endswith("_std")]
    rewards.sort(key=lambda key: key[0] != "reward/total")
    others = [key for key in keys if key not in rewards and NEUTRAL_METRIC.search(key[0])]
    metrics = [key for key in keys if key not in rewards and key not in others]
    tables = []
    for title, chosen in (("Benchmark metrics", metrics), ("Rewards", rewards), ("Other numbers", others)):
        if not chosen:
            continue
        names = _unique([metric for metric, _ in chosen])
        columns = [(name, sorted({key[1] for key in chosen if key[0] == name})) for name in names]
        table_rows = []
        for index, (record, row) in enumerate(zip(milestones, rows, strict=True)):
            before = rows[index - 1] if index else {}
            cells = [_cell(row, before, (name, warmth)) for name, warmths in columns for warmth in warmths]
            table_rows.append((str(record.get("label", "")), record["step"], cells))
        short = _short_names([name.removeprefix("reward/") for name in names])
        shown = [
            (short[name.removeprefix("reward/")], [_temperature_text(warmth) for warmth in warmths])
            for name, warmths in columns
        ]
        tables.append(_Table(title, shown, table_rows))
    return tables


def _cell(row: Mapping[Any, float], before: Mapping[Any, float], key: tuple[str, str]) -> _Cell:
    value, old = row.get(key), before.get(key)
    change = None if value is None or old is None else value - old
    trend = ""
    if change is not None and abs(change) >= 5e-4 and not NEUTRAL_METRIC.search(key[0]):
        trend = "up" if change > 0 else "down"
    return _Cell(value, change, trend)


def _headline(evals: Sequence[Record], steps: Sequence[Record]) -> list[dict[str, str]]:
    """A few numbers that say how the run went: first and last evaluation, and the time it took."""
    tiles = []
    milestones = _milestones(evals)
    if milestones:
        first, last = _held_out(milestones[0]), _held_out(milestones[-1])
        rewards = [key for key in last if key[0] == "reward/total"]
        metrics = [key for key in last if not key[0].startswith("reward/") and not NEUTRAL_METRIC.search(key[0])]
        for metric, warmth in metrics[:1] + rewards[:1]:
            value, old = last[metric, warmth], first.get((metric, warmth))
            moved = len(milestones) > 1 and old is not None
            tiles.append(
                {
                    "title": f"held-out {metric.removeprefix('reward/')}"
                    f"{' reward' if metric.startswith('reward/') else ''}, {_temperature_text(warmth)}",
                    "value": format_number(value),
                    "note": f"{format_change(value - old)} from {format_number(old)}"
                    if moved and old is not None
                    else "",
                }
            )
    if steps:
        tiles.append({"title": "steps", "value": f"{len(steps):,}", "note": ""})
        if seconds := math.fsum(_numbers(record).get("seconds", 0.0) for record in steps):
            tiles.append(
                {"title": "time in steps", "value": _duration(seconds), "note": f"{seconds / len(steps):.2f} s a step"}
            )
    return tiles


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# Curves

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 230, 50, 14, 24, 28
# Okabe and Ito: distinct for colour-blind readers. Dashes tell the curves apart without colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#8a4fbf", "#b07d00", "#3b8fc4", "#444444", "#c2185b")
DASHES = ("", "7 4", "2 3", "9 3 2 3", "", "7 4", "2 3", "9 3 2 3")

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class _Series:
    label: str
    points: Points
    band: Points = field(default_factory=list)  # (x, half width), at the same x as points
    smooth: bool = True
    markers: bool = False


def _chart_groups(
    steps: Sequence[Record], evals: Sequence[Record], stages: Sequence[_Stage]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """(heading, charts); charts without a point are left out, and so are groups without a chart."""
    tables = [(record["step"], _held_out(record)) for record in evals]
    names = _unique([metric for _, table in tables for metric, _ in table])
    warmths = sorted({warmth for _, table in tables for _, warmth in table})
    chosen = [name for name in names if name == "reward/total"]
    metrics = [name for name in names if not name.startswith("reward/")]
    chosen += sorted(metrics, key=lambda name: NEUTRAL_METRIC.search(name) is not None)
    held_out = []
    for name in chosen[:MAX_HELD_OUT_CHARTS]:
        series = [
            _Series(
                _temperature_text(warmth),
                [(step, table[name, warmth]) for step, table in tables if (name, warmth) in table],
                smooth=False,
                markers=True,
            )
            for warmth in warmths
        ]
        held_out.append(_chart(f"Held-out {'total reward' if name == 'reward/total' else name}", series, stages))

    columns: dict[str, Points] = {}
    kinds = _unique([stage.kind for stage in stages])
    for record in steps:
        kind = str(record.get("stage_kind", record.get("stage", "")))
        for key, value in _numbers(record).items():
            name = f"loss {kind}" if key == "loss" else key
            columns.setdefault(name, []).append((record["step"], value))

    def single(key: str, title: str) -> dict[str, Any] | None:
        return _chart(title, [_Series("", columns.pop(key, []), smooth=key != "lr")], stages)

    total = columns.pop("reward/total", [])
    spread = columns.pop("reward/total_std", [])
    label = "mean, band: ± 1 standard deviation" if spread else ""
    reward = _chart("Total reward", [_Series(label, total, band=spread if len(spread) == len(total) else [])], stages)
    components = sorted(key for key in columns if key.startswith("reward/") and not key.endswith("_std"))
    short = _short_names([key.removeprefix("reward/") for key in components])
    parts = [_Series(short[key.removeprefix("reward/")], columns.pop(key)) for key in components]
    part_charts = [
        _chart("Reward components", parts[first : first + len(COLOURS)], stages)
        for first in range(0, len(parts), len(COLOURS))
    ]
    shape = [single(key, TRAINING_CHARTS[key]) for key in ("advantage/abs_mean", "groups/flat")]
    losses = [single(f"loss {kind}", f"Loss ({kind})" if len(kinds) > 1 else "Loss") for kind in kinds]
    update = [single(key, TRAINING_CHARTS[key]) for key in ("grad_norm", "kl", "entropy", "clip_fraction", "lr")]
    rest = [single(key, TRAINING_CHARTS[key]) for key in ("completion_tokens/mean", "truncated", "seconds")]
    others = [key for key in sorted(columns) if not key.startswith(COUNTER_PREFIXES)]
    groups = [
        ("Held out", held_out),
        ("Reward in training", [reward, *part_charts, *shape]),
        ("Update", [*losses, *update]),
        ("Completions and time", rest),
        ("Other numbers", [single(key, key) for key in others[:MAX_OTHER_CHARTS]]),
    ]
    drawn = [(title, [chart for chart in charts if chart is not None]) for title, charts in groups]
    return [(title, charts) for title, charts in drawn if charts]


def _chart(title: str, series: Sequence[_Series], stages: Sequence[_Stage]) -> dict[str, Any] | None:
    """Paths and ticks of a line chart, in pixels of WIDTH x HEIGHT; None without a point."""
    series = [line for line in series if line.points]
    if not series:
        return None
    last = [(line.label, line.points[-1][1]) for line in series]
    series = [_binned(line) for line in series]
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    for line in series:
        ys += [y + sign * width for (_, y), (_, width) in zip(line.points, line.band, strict=False) for sign in (-1, 1)]
    x_low, x_high = _padded(min(xs), max(xs), 0.0)
    y_low, y_high = _padded(min(ys), max(ys), 0.06)
    if min(ys) >= 0 > y_low:
        y_low = 0.0
    to_x = _axis(x_low, x_high, LEFT, WIDTH - RIGHT)
    to_y = _axis(y_low, y_high, HEIGHT - BOTTOM, TOP)
    y_ticks, x_ticks = _ticks(y_low, y_high, 4), _ticks(x_low, x_high, 5, whole=True)
    return {
        "title": title,
        "last": last,
        "lines": [
            _line(line, index, to_x, to_y, [stage.last for stage in stages]) for index, line in enumerate(series)
        ],
        "x_ticks": [(round(to_x(tick), 1), f"{tick:,.0f}") for tick in x_ticks],
        "y_ticks": [(round(to_y(tick), 1), label) for tick, label in zip(y_ticks, _tick_labels(y_ticks), strict=True)],
        "stages": [
            (name, round(to_x(first), 1), round(to_x(end), 1)) for name, first, end in _spans(stages, x_low, x_high)
        ],
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
    }


def _line(
    line: _Series, index: int, to_x: Callable[[float], float], to_y: Callable[[float], float], ends: Sequence[int]
) -> dict[str, Any]:
    """One curve. Training curves are cut, and smoothed, by stage: what a stage logs may jump against the one before."""
    parts = [line.points] if line.markers else _by_stage(line.points, ends)
    smoothed = line.smooth and len(line.points) >= SMOOTHED_FROM
    means = [_moving_average(part) for part in parts] if smoothed else parts
    widths = _by_stage(line.band, ends)
    edges = []
    for mean, band in zip(means, [_moving_average(part) for part in widths] if smoothed else widths, strict=False):
        both = list(zip(mean, band, strict=True))
        edges.append(
            [(x, y + width) for (x, y), (_, width) in both] + [(x, y - width) for (x, y), (_, width) in both[::-1]]
        )

    def path(points: Points) -> str:
        return "M" + "L".join(f"{to_x(x):.1f} {to_y(y):.1f}" for x, y in points)

    marked = line.points if line.markers else [part[0] for part in parts if len(part) == 1]
    return {
        "label": line.label,
        "colour": COLOURS[index % len(COLOURS)],
        "dash": DASHES[index % len(DASHES)],
        "path": "".join(path(part) for part in means),
        "raw": "".join(path(part) for part in parts) if smoothed else "",
        "band": "".join(path(edge) + "Z" for edge in edges),
        "markers": [(round(to_x(x), 1), round(to_y(y), 1), f"step {x:,.0f}: {format_number(y)}") for x, y in marked],
    }


def _by_stage(points: Points, ends: Sequence[int]) -> list[Points]:
    """The points of each stage that has some; `ends` are the stages' last steps, in order."""
    parts: dict[int, Points] = {}
    for x, y in points:
        parts.setdefault(bisect.bisect_left(ends, x), []).append((x, y))
    return list(parts.values())


def _spans(stages: Sequence[_Stage], low: float, high: float) -> list[tuple[str, float, float]]:
    """(name, start, end) of the stages that show between two steps; a stage starts where the one before ended."""
    spans, start = [], 0
    for stage in stages:
        if stage.last > low and start < high:
            spans.append((stage.name, max(low, start), min(high, stage.last)))
        start = stage.last
    return spans


def _binned(line: _Series) -> _Series:
    size = math.ceil(len(line.points) / MAX_POINTS)
    if size <= 1:
        return line
    return _Series(line.label, _means(line.points, size), _means(line.band, size), line.smooth, line.markers)


def _means(points: Points, size: int) -> Points:
    bins = [points[first : first + size] for first in range(0, len(points), size)]
    return [(math.fsum(x for x, _ in part) / len(part), math.fsum(y for _, y in part) / len(part)) for part in bins]


def _moving_average(points: Points) -> Points:
    """Mean over a centred window of about a tenth of the points, cut off at the ends."""
    reach = max(1, len(points) // 20)
    averaged = []
    for index, (x, _) in enumerate(points):
        window = points[max(0, index - reach) : index + reach + 1]
        averaged.append((x, math.fsum(y for _, y in window) / len(window)))
    return averaged


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        return low - margin, high + margin
    margin = (high - low) * share
    return low - margin, high + margin


def _axis(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round numbers between two bounds, about `count` of them."""
    rough = (high - low) / count
    if not math.isfinite(rough) or rough <= 0:
        return []
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    step = max(1.0, math.ceil(step)) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels with as many decimals as tell the ticks apart."""
    if len(ticks) < 2:
        return [format_number(tick) for tick in ticks]
    step, largest = ticks[1] - ticks[0], max(abs(tick) for tick in ticks)
    if largest >= 1e6 or largest < 1e-3:
        return [f"{tick:.1e}".replace("e-0", "e-").replace("e+0", "e") if tick else "0" for tick in ticks]
    decimals = next((digits for digits in range(6) if abs(round(step, digits) - step) < step * 1e-3), 6)
    return [f"{tick + 0.0:,.{decimals}f}".replace("-", "−") for tick in ticks]


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
        if max(width, height) > MAX_PICTURE_SIDE:
            image.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        is_small = max(width, height) <= 256
        image.save(buffer, format="PNG" if is_small else "JPEG", quality=88)
        data = base64.b64encode(buffer.getvalue()).decode()
        scale = 1000 / max(width, height)  # overlays are drawn on a canvas whose longer side is 1000
        picture = {
            "id": f"picture-{len(self.shown)}",
            "uri": f"data:image/{'png' if is_small else 'jpeg'};base64,{data}",
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
        """Sound shapes for a rollout: kind, label, medium (position among the media), box or point per mille."""
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
    box = _coordinates(_at(shape, "box"), 4)
    point = _coordinates(_at(shape, "point"), 2)
    if box is None and point is None:
        return None
    medium = _at(shape, "medium")
    return {
        "kind": "gold" if _at(shape, "kind") == "gold" else "predicted",
        "label": str(_at(shape, "label") or "")[:24],
        "medium": medium if isinstance(medium, int) else 0,
        "box": box,
        "point": point,
    }


def _coordinates(values: Any, count: int) -> list[float] | None:
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        return None
    if not all(_is_number(value) and math.isfinite(value) for value in values):
        return None
    # A little beyond the edge stays visible as being beyond it; the rest would only be a long line.
    return [min(1020.0, max(-20.0, float(value))) for value in values]


def _placed(shape: Mapping[str, Any], picture: Record, label: str, style: str) -> dict[str, Any]:
    """A shape in the picture's canvas. `style` is a CSS class; gold is dashed by its own."""
    x_unit, y_unit = picture["width"] / 1000, picture["height"] / 1000
    placed: dict[str, Any] = {"label": label, "style": style}
    if shape["box"] is None:
        x, y = shape["point"]
        return placed | {"point": True, "x": round(x * x_unit, 1), "y": round(y * y_unit, 1)}
    x1, y1, x2, y2 = shape["box"]
    left, right, top, bottom = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    return placed | {
        "point": False,
        "x": round(left * x_unit, 1),
        "y": round(top * y_unit, 1),
        "width": round(max(4.0, (right - left) * x_unit), 1),  # one without area stays visible
        "height": round(max(4.0, (bottom - top) * y_unit), 1),
    }


def _panels(rollout: Record, pictures: _Pictures, shapes: Sequence[tuple[Mapping[str, Any], str, str]]) -> list[Any]:
    """The prompt's media with shapes (shape, label, style) drawn on them; None for a picture that cannot be read."""
    media = rollout.get("media")
    panels: list[Any] = []
    for position, path in enumerate(media[:MAX_PICTURES_OF_PROMPT] if isinstance(media, list) else []):
        picture = pictures.get(path)
        if picture is None:
            panels.append(None)
            continue
        drawn = [_placed(shape, picture, label, style) for shape, label, style in shapes if shape["medium"] == position]
        panels.append({"picture": picture, "shapes": sorted(drawn, key=lambda shape: shape["style"] == "gold")})
    return panels


def _shown_rollout(rollout: Record, pictures: _Pictures) -> dict[str, Any]:
    """What is told of a rollout beside its pictures."""
    rewards = rollout.get("rewards")
    rewards = rewards if isinstance(rewards, Mapping) else {}
    short = _short_names(list(rewards))
    made = rollout.get("completion_media")
    text = rollout.get("completion")
    return {
        "index": rollout.get("index", 0),
        "completion": _shortened(text if isinstance(text, str) else ""),
        "made": pictures.get(made) if isinstance(made, str) else None,
        "rewards": [(short[name], _finite(value)) for name, value in rewards.items()],
        "total": _finite(rollout.get("total")),
        "advantage": _finite(rollout.get("advantage")),
        "truncated": rollout.get("truncated") is True,
        "num_tokens": rollout.get("num_tokens"),
    }


def _shown_prompt(rollout: Record) -> dict[str, str]:
    sample = json.dumps(rollout.get("sample"), indent=2, ensure_ascii=False)
    return {
        "id": str(rollout.get("prompt_id", "")),
        "text": _shortened(str(rollout.get("prompt", ""))),
        "answer": _shortened(str(rollout.get("answer") or "")),
        "sample": _shortened(sample),
    }


def _finite(value: Any) -> float | None:
    return float(value) if _is_number(value) and math.isfinite(value) else None


def _shortened(text: str) -> str:
    text = _visible(text)
    if len(text) <= MAX_SHOWN_CHARS:
        return text
    return f"{text[:MAX_SHOWN_CHARS]}\n[{len(text) - MAX_SHOWN_CHARS:,} more characters]"


def _visible(text: str) -> str:
    """The text with control characters as symbols, which a browser would drop or choke on."""
    return "".join(
        chr(0x2400 + ord(char))
        if ord(char) < 32 and char not in "\n\t"
        else "\ufffd"
        if "\ud800" <= char <= "\udfff"
        else char
        for char in text
    )


def _compared_prompts(
    files: Sequence[RolloutFile], evals: Sequence[Record], view: _View, pictures: _Pictures
) -> dict[str, Any] | None:
    """The first held-out prompts, each with what the policy made of it at every milestone."""
    by_step: dict[int, RolloutFile] = {}
    for file in files:  # the coolest of a step comes first
        if file.split == "held_out":
            by_step.setdefault(file.step, file)
    labels = {record["step"]: str(record.get("label", "")) for record in _milestones(evals)}
    chosen = [step for step in by_step if step in labels] or list(by_step)
    if len(chosen) > MAX_COMPARED_EVALS:
        chosen = chosen[:1] + chosen[1 - MAX_COMPARED_EVALS :]
    columns: list[tuple[str, str, dict[str, Record]]] = []
    for step in chosen:
        first_of_prompt: dict[str, Record] = {}
        for line in read_rollouts(by_step[step].path):
            first_of_prompt.setdefault(str(line.get("prompt_id", "")), line)
        temperature = by_step[step].temperature
        warmth = f"T = {temperature:g}" if temperature else "greedy"
        at, label = f"step {step:,}", labels.get(step, "")
        is_named = bool(label) and not _STEP_LABEL.fullmatch(label)
        columns.append((label if is_named else at, f"{at}, {warmth}" if is_named else warmth, first_of_prompt))
    prompts = _unique([prompt for _, _, table in columns for prompt in table])
    prompts.sort(key=lambda prompt: -sum(prompt in table for _, _, table in columns))
    if not prompts:
        return None
    rows = []
    for prompt in prompts[:MAX_COMPARED_PROMPTS]:
        cells: list[Any] = []
        for _, _, table in columns:
            if prompt not in table:
                cells.append(None)
                continue
            rollout = table[prompt]
            shapes = [(shape, shape["label"], shape["kind"]) for shape in view.shapes(rollout)]
            cells.append({"panels": _panels(rollout, pictures, shapes), "rollout": _shown_rollout(rollout, pictures)})
        example = next(table[prompt] for _, _, table in columns if prompt in table)
        rows.append({"prompt": _shown_prompt(example), "cells": cells})
    return {"columns": [(label, note) for label, note, _ in columns], "rows": rows, "num_prompts": len(prompts)}


def _training_steps(files: Sequence[RolloutFile], view: _View, pictures: _Pictures) -> list[dict[str, Any]]:
    """The first groups of a few training steps, spread evenly from the first written to the last."""
    written = [file for file in files if file.split == "train"]
    spread = max(1, min(MAX_TRAINING_STEPS, len(written)) - 1)
    chosen = sorted({round(i * (len(written) - 1) / spread) for i in range(spread + 1)}) if written else []
    steps = []
    for position in chosen:
        by_group: dict[Any, list[Record]] = {}
        for rollout in read_rollouts(written[position].path):
            by_group.setdefault(str(rollout.get("group")), []).append(rollout)
        if by_group:
            shown = list(by_group.values())[:MAX_GROUPS_OF_STEP]
            steps.append(
                {
                    "step": written[position].step,
                    "stage": str(shown[0][0].get("stage", "")),
                    "temperature": _finite(shown[0][0].get("temperature")),
                    "num_groups": len(by_group),
                    "groups": [_training_group(rollouts, view, pictures) for rollouts in shown],
                }
            )
    return steps


def _training_group(rollouts: Sequence[Record], view: _View, pictures: _Pictures) -> dict[str, Any]:
    """One picture with the boxes of all completions, numbered as in the table beside it."""
    told = [_shown_rollout(rollout, pictures) for rollout in rollouts[:MAX_COMPLETIONS_OF_GROUP]]
    shapes: list[tuple[Mapping[str, Any], str, str]] = []
    for position, (rollout, shown) in enumerate(zip(rollouts, told, strict=False)):
        for shape in view.shapes(rollout):
            if shape["kind"] == "predicted":
                shapes.append((shape, str(position + 1), _sign(shown["advantage"])))
            elif position == 0:  # the gold is the same for all
                shapes.append((shape, shape["label"], "gold"))
    largest = max((abs(shown["advantage"] or 0.0) for shown in told), default=0.0)
    for number, shown in enumerate(told, start=1):
        shown["number"] = number
        shown["sign"] = _sign(shown["advantage"])
        shown["bar"] = round(50 * abs(shown["advantage"] or 0.0) / largest, 1) if largest else 0.0
    totals = [shown["total"] for shown in told if shown["total"] is not None]
    return {
        "prompt": _shown_prompt(rollouts[0]),
        "panels": _panels(rollouts[0], pictures, shapes),
        "rollouts": told,
        "reward_names": _unique([name for shown in told for name, _ in shown["rewards"]]),
        "has_advantages": any(shown["advantage"] is not None for shown in told),
        "num_left_out": len(rollouts) - len(told),
        "is_flat": len(totals) > 1 and max(totals) - min(totals) < 1e-6,
        "mean_total": math.fsum(totals) / len(totals) if totals else None,
    }


def _sign(advantage: float | None) -> str:
    if advantage is None or abs(advantage) < 1e-6:
        return "zero"
    return "better" if advantage > 0 else "worse"


# What else is told


def _set_aside_row(row: Record) -> tuple[str, str, str]:
    """(file, reason, everything else)."""
    rest = {key: value for key, value in row.items() if key not in ("file", "reason")}
    others = ", ".join(f"{key}: {value}" for key, value in rest.items())
    return str(row.get("file", "")), str(row.get("reason", "")), others


def _counters(steps: Sequence[Record]) -> list[tuple[str, float, float, float]]:
    """(name, sum over steps, mean of the steps that logged it, last)."""
    columns: dict[str, list[float]] = {}
    for record in steps:
        for key, value in _numbers(record).items():
            if key.startswith(COUNTER_PREFIXES):
                columns.setdefault(key.removeprefix("count/"), []).append(value)
    return [
        (name, math.fsum(values), math.fsum(values) / len(values), values[-1])
        for name, values in sorted(columns.items())
    ]

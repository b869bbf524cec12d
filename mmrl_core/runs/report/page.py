"""The page: everything that the template shows, put together."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from mmrl_core.errors import MMRLError
from mmrl_core.runs.report.answers import answer_table
from mmrl_core.runs.report.checkpoints import read_checkpoint_results
from mmrl_core.runs.report.differences import config_differences
from mmrl_core.runs.report.media import Media
from mmrl_core.runs.report.numbers import (
    counters_of,
    draw_held_out,
    draw_training,
    held_out_table,
    milestones_of,
    story_of,
)
from mmrl_core.runs.report.problems import problems_of, resumes_of
from mmrl_core.runs.report.reading import Evaluation, RunFiles, at, list_of, mapping_of, read_run
from mmrl_core.runs.report.samples import Column, columns_to_compare, compared_prompts, training_steps
from mmrl_core.runs.report.text import (
    format_change,
    format_interval,
    format_number,
    format_seconds,
    name_of,
    number_of,
    shortened,
    visible,
)
from mmrl_core.runs.rollouts import FOLDER, read_json_lines
from mmrl_core.support import need, writes_to, written_aside

FOLDER_OF_PAGE = Path(__file__).parent
TEMPLATE = "report.html.j2"
CHARTS = "vendor/uplot-1.6.32"  # as published on npm; see LICENSE beside it
SCRIPTS = ("charts.js", "answers.js", "page.js")
MAX_SET_ASIDE_ROWS = 200
MAX_STEP_S = 1e7  # of a step; more is not time, and a sum of it no date
MAX_STARTS = 20


def write_report(run: Path, other: Path | None = None, *, runs_files: bool = True) -> Path:
    """Write `report.html` into a run directory, from whatever the run has left so far.

    Args:
        run: the directory.
        other: that of a run to compare it with; the report is then `report-<name of the other>.html`.
        runs_files: load a view that the config names as `file.py:function`, which runs that file. Not for a directory
            from a stranger.

    Returns:
        Path of the report.

    Raises:
        MMRLError: a directory holds neither a config nor metrics nor rollouts, or a package of the extra `report` is
            missing.
    """
    html = report_html([run] if other is None else [run, other], runs_files=runs_files)
    path = run / ("report.html" if other is None else f"report-{other.resolve().name}.html")
    with writes_to(run, "the report"), written_aside(path) as aside:
        aside.write_text(html, encoding="utf-8", errors="replace")
    return path


def report_html(paths: Sequence[Path], *, runs_files: bool = True, version: str = "") -> str:
    """The page of a run, or of two side by side; see `write_report`.

    Args:
        version: of what a server shows while the run goes on, which the page asks for at `/version`; "" for a file.
    """
    names = ("config.yaml", "metrics.jsonl", FOLDER)
    for path in paths:
        if not any((path / name).exists() for name in names):
            raise MMRLError(f"{path} is not a run directory: it has none of {', '.join(names)}.")
    jinja2: Any = need("jinja2", "report", "the report")
    need("PIL", "report", "the report")
    loader = jinja2.FileSystemLoader(FOLDER_OF_PAGE)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=format_number, change=format_change, seconds=format_seconds, visible=visible)
    environment.filters |= {"name": name_of, "short": shortened, "interval": format_interval}
    # Ours, and what may run: the policy in the page names their hashes, so that nothing from a run is ever a script.
    scripts = [_own_file(name) for name in (f"{CHARTS}/uPlot.iife.min.js", *SCRIPTS)]
    styles = [_own_file(name) for name in (f"{CHARTS}/uPlot.min.css", "report.css")]
    runs = [read_run(path) for path in paths]
    if len({run.name for run in runs}) < len(runs):  # folders of two places may have one name
        runs = [replace(run, name=name_of("/".join(run.path.resolve().parts[-2:]))) for run in runs]
    contents = (_of_one if len(runs) == 1 else _of_two)(runs, runs_files)
    contents["data"]["live"] = version
    page = {"scripts": scripts, "styles": styles, "hashes": list(map(_hash, scripts)), "live": bool(version)}
    contents["data"] = _as_script(contents["data"])
    return environment.get_template(TEMPLATE).render(page | contents)


def _own_file(name: str) -> str:
    return (FOLDER_OF_PAGE / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _as_script(data: Any) -> str:
    """JSON that ends no script element and opens no comment, whatever its texts say."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _of_one(runs: Sequence[RunFiles], runs_files: bool) -> dict[str, Any]:
    """Everything that the template shows of a run."""
    (run,) = runs
    milestones = milestones_of(run.evaluations)
    media = Media(run.path / FOLDER, run.config, runs_files=runs_files)
    compared = compared_prompts(columns_to_compare(run, milestones, media))
    training = training_steps(run.files, media)
    set_aside = list(read_json_lines(run.path / "set_aside.jsonl"))
    return {
        "task": name_of(at(run.config, "name") or run.name),
        "description": shortened(str(at(run.config, "description") or "")),
        "problems": _problems(run, len(set_aside)),
        "training": training,
        "checkpoint_results": read_checkpoint_results(run.path),
        "set_aside": set_aside[:MAX_SET_ASIDE_ROWS],
        "num_set_aside": len(set_aside),
        "counters": counters_of(run.columns),
        "differences": [],
        **_shared(runs, [media], milestones, compared),
    }


def _of_two(runs: Sequence[RunFiles], runs_files: bool) -> dict[str, Any]:
    """Everything that the template shows of two runs side by side: their newest evaluations, curves and answers."""
    media = [Media(runs[0].path / FOLDER, runs[0].config, runs_files=runs_files)]
    media.append(Media(runs[1].path / FOLDER, runs[1].config, runs_files=runs_files, sheet=media[0].embedded))
    milestones, columns = [], list[Column]()
    for run, own in zip(runs, media, strict=True):
        if run.evaluations:
            last = run.evaluations[-1]
            label = f"{run.name}: {last.label}"
            milestones.append(Evaluation(last.step, label, last.values, last.intervals, last.num_rows))
        for column in columns_to_compare(run, run.evaluations[-1:], own)[-1:]:
            columns.append(Column(f"{run.name}: {column.label}", column.file, own))
    return {
        "task": f"{runs[0].name} and {runs[1].name}",
        "description": "Two runs side by side; a change is the second against the first.",
        "problems": [(style, f"{run.name}: {text}") for run in runs for style, text in _problems(run, 0)],
        "training": [],
        "checkpoint_results": [],
        "set_aside": [],
        "num_set_aside": 0,
        "counters": [],
        "differences": config_differences(runs[0].config, runs[1].config),
        **_shared(runs, media, milestones, compared_prompts(columns)),
    }


def _problems(run: RunFiles, num_set_aside: int) -> list[tuple[str, str]]:
    return problems_of(run.records, run.columns, num_set_aside, [run.unreadable] if run.unreadable else [])


def _shared(
    runs: Sequence[RunFiles], media: Sequence[Media], milestones: Sequence[Evaluation], compared: Mapping[str, Any]
) -> dict[str, Any]:
    """What a page of one run and of two have alike, and the data of its script."""
    held_out_charts = draw_held_out(runs)
    story = story_of(runs, milestones, held_out_charts)
    sections = draw_training(runs)
    drawn = [*(one["chart"] for one in story), *held_out_charts.values(), *(one for _, all in sections for one in all)]
    for number, chart in enumerate(drawn):
        chart["id"] = f"chart-{number}"
    answers = answer_table(runs, media)
    same_stages = all(run.stages == runs[0].stages for run in runs)
    data = {
        "charts": {chart["id"]: chart["curves"] for chart in drawn},
        "stages": [[stage.name, stage.first, stage.last] for stage in runs[0].stages] if same_stages else [],
        "answers": {"prompts": answers.prompts, "sets": answers.sets},
    }
    return {
        "runs": [_told(run) for run in runs],
        "story": story,
        "milestones": milestones,
        "table": held_out_table(milestones),
        "held_out_charts": list(held_out_charts.values()),
        "chart_sections": sections,
        "compared": compared,
        "answers": answers,
        "embedded": media[0].embedded,
        "has_areas": any(one.has_areas for one in media),
        "has_spans": any(one.has_spans for one in media),
        "view_problem": next((one.problem for one in media if one.problem), ""),
        "data": data,
    }


def _told(run: RunFiles) -> dict[str, Any]:
    """A run's name, what it is, and the command that repeats it."""
    again = f"mmrl train {shlex.quote(run.name + '/config.yaml')} --output {shlex.quote(run.name + '-again')}"
    return {
        "name": run.name,
        "facts": [*_facts(run), *_starts(run), *(("Resumed", line) for line in resumes_of(run.records))],
        "again": again if run.config_text else "",
        "config_text": run.config_text,
    }


def _starts(run: RunFiles) -> list[tuple[str, str]]:
    """(name, value) pairs of how the run was started, the newest time first, and of its code and machine."""
    if not run.starts:
        return []
    last = run.starts[-1]
    versions = ", ".join(f"{name} {number}" for name, number in mapping_of(last, "versions").items())
    gib, cpus, processes = (number_of(last.get(key)) for key in ("memory_gib", "num_cpus", "num_processes"))
    hardware = [
        ", ".join(map(str, list_of(last, "devices"))),
        str(last.get("cpu") or ""),
        f"{cpus:.0f} CPUs" if cpus else "",
        f"{gib:.0f} GiB of memory" if gib else "",
        f"{processes:.0f} processes" if processes and processes > 1 else "",
    ]
    facts = [("Started", name_of(start.get("time", ""))) for start in run.starts[:1]]
    facts += [("Went on", name_of(start.get("time", ""))) for start in run.starts[1:][:MAX_STARTS]]
    facts += [
        ("Command", str(last.get("command") or "")),
        ("Overrides", " ".join(map(str, list_of(last, "overrides")))),
        ("Commit", str(last.get("commit") or "")),
        ("mmrl's commit", str(last.get("mmrl_commit") or "")),
        ("Hardware", ", ".join(filter(None, hardware))),
        ("Platform", str(last.get("platform") or "")),
        ("Versions", versions),
    ]
    return [(name, shortened(value)) for name, value in facts if value]


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """(name, value) pairs that say what the run is and how far it came. Unknown values are left out."""
    steps, stages, config = run.steps, run.stages, run.config
    of_config = at(config, "stages")
    planned = [at(stage, "steps") for stage in of_config] if steps and isinstance(of_config, list) else []
    progress = f"{len(steps):,}"
    if planned and all(isinstance(count, int) for count in planned):  # None where a stage counts in epochs
        progress = f"{steps[-1]['step']:,} of {sum(planned):,}"
    measured = (number_of(record.get("seconds")) or 0.0 for record in steps)
    seconds = math.fsum(min(max(value, 0.0), MAX_STEP_S) for value in measured)
    checkpoints = [path.name for path in (run.path / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    seed = at(config, "seed")
    facts = {
        "Task": " version ".join(str(part) for part in (at(config, "name"), at(config, "version")) if part),
        "Model": _model(config),
        "Stages": ", then ".join(f"{stage.name} (steps {stage.first:,} to {stage.last:,})" for stage in stages),
        "Steps done": progress if steps else "",
        "Time in steps": f"{timedelta(seconds=round(seconds))} h, {seconds / len(steps):.2f} s a step" if steps else "",
        "Seed": "" if seed is None else str(seed),
        "Checkpoints": ", ".join(sorted(checkpoints, key=lambda name: int(name[5:]))),
    }
    return [(name, shortened(value)) for name, value in facts.items() if value]


def _model(config: Any) -> str:
    """The model of a config in one line; options of the policy are under `model.policy`, or in short form `model`."""
    model, build, policy = at(config, "model"), at(config, "model", "build"), at(config, "model", "policy")
    name = at(policy, "name") if isinstance(policy, Mapping) else policy
    options = build.items() if isinstance(build, Mapping) else ()
    frozen = at(policy, "freeze") or at(model, "freeze")
    details = {
        "": at(build, "name") or build or at(model, "path"),
        "built with ": ", ".join(f"{key}={value}" for key, value in options if key != "name"),
        "policy ": "" if name == "language_model" else name,
        "revision ": at(model, "revision"),
        "LoRA rank ": at(policy, "lora", "rank") or at(model, "lora", "rank"),
        "frozen: ": ", ".join(map(str, frozen)) if isinstance(frozen, list) else frozen,
    }
    return "; ".join(f"{before}{value}" for before, value in details.items() if value)

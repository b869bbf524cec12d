"""The page: everything that the template shows, put together."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from mmrl_core.errors import MMRLError
from mmrl_core.runs.charts import Stage
from mmrl_core.runs.report.checkpoints import read_checkpoint_results
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
from mmrl_core.runs.report.reading import Record, at, columns_of, read_config, sorted_records, stages_of
from mmrl_core.runs.report.samples import compared_prompts, training_steps
from mmrl_core.runs.report.text import (
    format_change,
    format_number,
    format_seconds,
    name_of,
    number_of,
    shortened,
    visible,
)
from mmrl_core.runs.rollouts import FOLDER, read_json_lines, rollout_files
from mmrl_core.support import need, writes_to, written_aside

TEMPLATE = "report.html.j2"
MAX_SET_ASIDE_ROWS = 200
MAX_STEP_S = 1e7  # of a step; more is not time, and a sum of it no date


def write_report(run: Path, *, runs_files: bool = True) -> Path:
    """Write `report.html` into a run directory, from whatever the run has left so far.

    Args:
        run: the directory.
        runs_files: load a view that the config names as `file.py:function`, which runs that file. Not for a directory
            from a stranger.

    Returns:
        Path of the report.

    Raises:
        MMRLError: the directory holds neither a config nor metrics nor rollouts, or a package of the extra `report` is
            missing.
    """
    names = ("config.yaml", "metrics.jsonl", FOLDER)
    if not any((run / name).exists() for name in names):
        raise MMRLError(f"{run} is not a run directory: it has none of {', '.join(names)}.")
    jinja2: Any = need("jinja2", "report", "the report")
    need("matplotlib", "report", "the report")  # which brings PIL
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=format_number, change=format_change, seconds=format_seconds, visible=visible)
    environment.filters |= {"name": name_of, "short": shortened}
    html = environment.get_template(TEMPLATE).render(_contents(run, runs_files))
    path = run / "report.html"
    with writes_to(run, "the report"), written_aside(path) as aside:
        aside.write_text(html, encoding="utf-8", errors="replace")
    return path


def _contents(run: Path, runs_files: bool) -> dict[str, Any]:
    """Everything that the template shows."""
    name = run.resolve().name
    config_text, config, unreadable = read_config(run / "config.yaml")
    records = list(read_json_lines(run / "metrics.jsonl"))
    steps, evaluations = sorted_records(records)
    milestones, columns, stages = milestones_of(evaluations), columns_of(steps), stages_of(steps)
    files = rollout_files(run)
    media = Media(run / FOLDER, config, runs_files=runs_files)
    held_out_charts = draw_held_out(evaluations, stages)
    set_aside = list(read_json_lines(run / "set_aside.jsonl"))
    return {
        "run_name": name,
        "task": name_of(at(config, "name") or name),
        "description": shortened(str(at(config, "description") or "")),
        "problems": problems_of(records, columns, len(set_aside), [unreadable] if unreadable else []),
        "story": story_of(milestones, held_out_charts),
        "facts": [*_facts(run, config, steps, stages), *(("Resumed", line) for line in resumes_of(records))],
        "command": f"mmrl train {shlex.quote(name + '/config.yaml')} --output {shlex.quote(name + '-again')}",
        "milestones": milestones,
        "table": held_out_table(milestones),
        "held_out_charts": list(held_out_charts.values()),
        "checkpoint_results": read_checkpoint_results(run),
        "chart_sections": draw_training(columns, stages),
        "compared": compared_prompts(files, milestones, media),
        "training": training_steps(files, media),
        "media": media,
        "set_aside": set_aside[:MAX_SET_ASIDE_ROWS],
        "num_set_aside": len(set_aside),
        "counters": counters_of(columns),
        "config_text": config_text,
    }


def _facts(run: Path, config: Any, steps: Sequence[Record], stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """(name, value) pairs that say what the run is and how far it came. Unknown values are left out."""
    of_config = at(config, "stages")
    planned = [at(stage, "steps") for stage in of_config] if steps and isinstance(of_config, list) else []
    progress = f"{len(steps):,}"
    if planned and all(isinstance(count, int) for count in planned):  # None where a stage counts in epochs
        progress = f"{steps[-1]['step']:,} of {sum(planned):,}"
    measured = (number_of(record.get("seconds")) or 0.0 for record in steps)
    seconds = math.fsum(min(max(value, 0.0), MAX_STEP_S) for value in measured)
    checkpoints = [path.name for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
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

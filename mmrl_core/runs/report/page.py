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
from mmrl_core.runs.report.reading import Record, at, columns_of, read_config, read_metrics, stages_of
from mmrl_core.runs.report.samples import compared_prompts, training_steps
from mmrl_core.runs.report.text import format_change, format_number, format_seconds, number_of, visible
from mmrl_core.runs.rollouts import FOLDER, read_json_lines, rollout_files
from mmrl_core.support import need, written_aside

TEMPLATE = "report.html.j2"
MAX_SET_ASIDE_ROWS = 200


def write_report(run: Path) -> Path:
    """Write `report.html` into a run directory, from whatever the run has left so far.

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
    html = environment.get_template(TEMPLATE).render(_contents(run))
    path = run / "report.html"
    with written_aside(path) as aside:
        aside.write_text(html, encoding="utf-8", errors="replace")
    return path


def _contents(run: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    name = run.resolve().name
    config_text, config = read_config(run / "config.yaml")
    steps, evaluations = read_metrics(run / "metrics.jsonl")
    milestones, columns, stages = milestones_of(evaluations), columns_of(steps), stages_of(steps)
    files = rollout_files(run)
    media = Media(run / FOLDER, config)
    held_out_charts = draw_held_out(evaluations, stages)
    set_aside = list(read_json_lines(run / "set_aside.jsonl"))
    return {
        "run_name": name,
        "task": str(at(config, "name") or name),
        "description": str(at(config, "description") or ""),
        "story": story_of(milestones, held_out_charts),
        "facts": _facts(run, config, steps, stages),
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
    planned = [at(stage, "steps") for stage in at(config, "stages") or []] if steps else []
    progress = f"{len(steps):,}"
    if planned and all(isinstance(count, int) for count in planned):  # None where a stage counts in epochs
        progress = f"{steps[-1]['step']:,} of {sum(planned):,}"
    seconds = math.fsum(number_of(record.get("seconds")) or 0.0 for record in steps)
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
    return [(name, value) for name, value in facts.items() if value]


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

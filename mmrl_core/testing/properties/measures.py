"""Properties of what measures and draws: metrics, views, tools."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from mmrl_core.config.options import REQUIRED
from mmrl_core.errors import MMRLError
from mmrl_core.plugins import Entry
from mmrl_core.plugins.hook_results import check_measured
from mmrl_core.testing.hostile import HOSTILE
from mmrl_core.testing.subject import NothingToCheck, Subject


def metrics_take_no_rows(subject: Subject) -> Iterator[str]:
    """What metrics make of an evaluation without rows."""
    for entry, target, options in _callable(subject, "metric"):
        if said := _said_of(entry, target, [], [], options):
            where = f"metric {entry.id} ({entry.target})"
            yield f"{where}: without rows it {said}. Return NaN where nothing defines a number."


def metrics_take_unscored_rows(subject: Subject) -> Iterator[str]:
    """What metrics make of rows without gold, of answers that say nothing, and of completions that are hostile."""
    for entry, target, options in _callable(subject, "metric"):
        reads = _completions(subject)
        if said := _said_of(entry, target, reads, [{} for _ in reads], options):
            yield (
                f"metric {entry.id} ({entry.target}): of rows without gold it {said}. Leave such rows out, count them "
                "as num_unscored, and return NaN where no row is left."
            )


def metrics_measure_gold_as_best(subject: Subject) -> Iterator[str]:
    """Metrics whose shares of right answers are above 1, or not finite, on gold answers."""
    tried = False
    own = {entry.id: (entry, target, options) for entry, target, options in _callable(subject, "metric")}
    for one in subject.shown:
        prompts = [prompt for prompt in one.prompts if prompt.answer]
        for component in one.section.part.metrics if prompts else ():
            if component.name not in own:
                continue
            tried = True
            entry, target, _ = own[component.name]
            completions = [prompt.with_prefix(prompt.answer) for prompt in prompts]
            samples = [dict(prompt.sample) for prompt in prompts]
            if said := _said_of(entry, target, completions, samples, component.options):
                yield f"{one.where}: metric {entry.id} {said} on gold answers. Correct it, or the gold."
                continue
            measured = target(completions, samples, **component.options)
            if all(math.isnan(float(value)) for name, value in measured.items() if "num_" not in name):
                yield (
                    f"{one.where}: metric {entry.id} can measure nothing on gold answers: all of its numbers are NaN. "
                    "It reads other columns than the source gives."
                )
    if not tried:
        raise NothingToCheck("no metric of it stands in a task whose data are here")


def _said_of(entry: Entry, target: Any, completions: list[Any], samples: list[Any], options: Mapping[str, Any]) -> str:
    """What is wrong with a measurement, as the end of a sentence; "" if nothing is."""
    try:
        check_measured(target(list(completions), list(samples), **options), "it")
    except MMRLError as error:
        return "" if str(error) and not str(error).startswith("it returned") else f"returns nonsense: {error}"
    except Exception as error:
        return f"raises {type(error).__name__}: {error}"
    return ""


def _completions(subject: Subject) -> list[Any]:
    """Texts, or what the plugin's policies make, of which some say nothing."""
    try:
        reads = {entry.details.get("reads", "text") for entry in subject.entries("reward")}
    except NothingToCheck:
        reads = {"text"}
    return [None, None] if reads <= {"image", "video"} else ["", *HOSTILE.values()]


def _callable(subject: Subject, kind: str) -> Iterator[tuple[Entry, Any, Mapping[str, Any]]]:
    """Entries with options to call them with; those that need some that no task sets are left out."""
    set_in_tasks = subject.options_in_tasks(kind)
    for entry, target in subject.loaded(kind):
        if not callable(target):
            continue
        options = set_in_tasks.get(entry.id, {})
        if all(o.default is not REQUIRED or o.name in options for o in entry.options().values()):
            yield entry, target, options


def views_draw_anything(subject: Subject) -> Iterator[str]:
    """What views make of gold answers and of hostile ones."""
    samples: list[Mapping[str, Any]] = [{}]
    with suppress(NothingToCheck):
        samples += [prompt.sample for one in subject.shown for prompt in one.prompts[:1]]
    for entry, target, options in _callable(subject, "view"):
        for name, completion in HOSTILE.items():
            for sample in samples:
                try:
                    shapes = list(target(completion, sample, **options))
                    said = "" if all(isinstance(shape, Mapping) for shape in shapes) else "draws what is no mapping"
                except MMRLError:
                    said = ""
                except Exception as error:
                    said = f"raises {type(error).__name__}: {error}"
                if said:
                    yield (
                        f"view {entry.id} ({entry.target}): on {name} it {said}. The report draws completions as the "
                        "policy wrote them: return an empty list where nothing can be read."
                    )
                    break
            else:
                continue
            break


def tools_describe_themselves(subject: Subject) -> Iterator[str]:
    """Tools that the policy could not be told of."""
    for entry, target in subject.loaded("tool"):
        try:
            made = target()
            schema = made.arguments.model_json_schema()
            said = "" if json.dumps(schema) and made.name and made.description else "has no name or no description"
        except Exception as error:
            said = f"raises {type(error).__name__}: {error}"
        if said:
            yield (
                f"tool {entry.id} ({entry.target}): made without options it {said}. A tool has `name`, `description` "
                "and `arguments`, a pydantic model."
            )

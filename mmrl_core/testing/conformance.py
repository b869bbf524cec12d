"""What a plugin has to keep, each property with a name, a sentence and a function: one list for `mmrl check PLUGIN` and
for pytest, see `mmrl_core.testing.pytest_plugin`. docs/conformance.md is written from it.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrl_core.plugins import Plugins, load_plugins
from mmrl_core.testing.properties import data, entries, measures, methods, package, rewards, tasks
from mmrl_core.testing.sections import Finding
from mmrl_core.testing.source_case import SourceCase
from mmrl_core.testing.subject import NothingToCheck, Subject


@dataclass(frozen=True)
class Property:
    """Something that holds for every sound plugin.

    Attributes:
        part: of a plugin, that it is about; the heading in docs/conformance.md.
        name: short, for the output and for ids of tests.
        sentence: what holds.
        problems: gives a sentence for each place where it does not; raises `NothingToCheck` where there is none to ask.
    """

    part: str
    name: str
    sentence: str
    problems: Callable[[Subject], Iterable[str]]


def _of(part: str, *properties: tuple[str, str, Callable[[Subject], Iterable[str]]]) -> tuple[Property, ...]:
    return tuple(Property(part, *found) for found in properties)


PROPERTIES: tuple[Property, ...] = (
    *_of(
        "The package",
        ("loads", "Its module is imported, and registers what it provides.", package.loads),
        ("light", "Importing it imports nothing heavy, so that `mmrl list` stays quick.", package.is_light),
        ("metadata", "It has a version, a summary and a README, and requires mmrl-core.", package.has_metadata),
        ("faces", "Of mmrl_core it imports public names only: the top, and what rooms name.", package.imports_faces),
        ("hooks", "Its hooks exist, are marked, and take what hooks are given.", package.implements_hooks),
    ),
    *_of(
        "What it registers",
        ("imports", "Every entry can be imported and called.", entries.can_be_imported),
        ("docstrings", "Every entry has a docstring.", entries.have_docstrings),
        ("descriptions", "Every entry is described in one line.", entries.are_described),
        ("option types", "Options have types, and values of others are refused.", entries.option_types_are_checked),
        (
            "option ranges",
            "Defaults are within type and range, and what lies outside is refused.",
            entries.option_ranges_are_true,
        ),
        ("options read", "Every option of a signature is read.", entries.options_are_read),
    ),
    *_of(
        "Tasks",
        ("tasks parse", "Every task definition is a sound config.", tasks.parse),
        ("tasks registered", "Every YAML in a folder `tasks` has its entry point.", tasks.are_registered),
        ("presets", "Every task can be extended with the core's presets of algorithms.", tasks.take_presets),
        ("gold answers", "Every task has gold answers, if a reward of it can prove them.", tasks.have_gold_answers),
    ),
    *_of(
        "Rows and prompts",
        ("rows repeat", "Sources give the same rows each time.", data.sources_repeat),
        ("rows pickle", "Rows can be given to another process.", data.rows_can_be_pickled),
        ("prompts", "Prompts of the first rows are rendered, with every medium.", data.prompts_are_rendered),
        ("modalities", "What tasks and rewards declare to show and read is there and known.", data.modalities_are_true),
        (
            "broken media",
            "A file that is missing, torn or no medium breaks its row by name.",
            data.broken_media_break_their_row,
        ),
        (
            "list columns",
            "A list that is written as the text of one is read as it, or refused in words.",
            data.list_columns_may_be_json,
        ),
    ),
    *_of(
        "Rewards",
        ("gold", "Gold answers score the maximum.", rewards.found_by("gold")),
        ("groups", "A group is scored as its completions one by one.", rewards.found_by("groups")),
        ("order", "The order of a group does not matter.", rewards.found_by("order")),
        ("determinism", "The same completion scores the same twice.", rewards.found_by("determinism")),
        ("hostile", "Empty and hostile completions neither raise nor overpay.", rewards.found_by("hostile")),
        ("time", "Hostile completions take no longer than the limit.", rewards.found_by("time")),
        ("rewards pickle", "Rewards and their results can cross to another process.", rewards.can_be_pickled),
        ("unscored", "A row without gold is unscored, and not wrong.", rewards.leave_rows_without_gold_unscored),
    ),
    *_of(
        "Metrics, views, tools",
        ("metrics without rows", "Metrics take an evaluation without rows.", measures.metrics_take_no_rows),
        ("metrics without gold", "Metrics take rows without gold.", measures.metrics_take_unscored_rows),
        ("metrics of gold", "Metrics can measure gold answers.", measures.metrics_measure_gold_as_best),
        ("views", "Views draw gold and hostile completions.", measures.views_draw_anything),
        ("tools", "Tools say their name, description and arguments.", measures.tools_describe_themselves),
    ),
    *_of(
        "The algorithm",
        (
            "losses",
            "Losses are finite, have the right shape and a gradient, and leave inputs alone.",
            methods.losses_can_be_trained,
        ),
        (
            "advantages",
            "Advantage stages are finite with unscored rows, and leave inputs alone.",
            methods.advantages_are_finite,
        ),
        ("state", "The state of a behaviour, saved and loaded, goes on as it was.", methods.state_goes_on),
    ),
)
"""In the order in which they are tried. If the first does not hold, the others are skipped."""


def property_findings(subject: Subject, tried: Property) -> list[Finding]:
    """What holds of a property: one finding that says so, or why nothing was tried, or one for each problem."""
    if subject.plugin.error is not None and tried.problems is not package.loads:
        return [_finding(tried, "the plugin does not load", skipped=True)]
    try:
        problems = list(tried.problems(subject))
    except NothingToCheck as reason:
        return [_finding(tried, str(reason), skipped=True)]
    except Exception as error:  # code of the plugin, where no property expects it to raise
        trace = "".join(traceback.format_exception(error, limit=-2)).strip()
        return [_finding(tried, f"it cannot be tried, since the plugin raised:\n{trace}", ok=False)]
    if not problems:
        return [_finding(tried, tried.sentence)]
    return [_finding(tried, problem, ok=False) for problem in dict.fromkeys(problems)]


def _finding(tried: Property, what: str, *, ok: bool = True, skipped: bool = False) -> Finding:
    return Finding(ok, f"{tried.name}: {what}", skipped=skipped, property=tried.name)


def check_plugin(
    name: str, plugins: Plugins | None = None, cases: Mapping[str, Sequence[SourceCase]] | None = None
) -> list[Finding]:
    """Try every property of `PROPERTIES` on an installed plugin. No hub is asked for data.

    Args:
        plugins: what is installed; default: `load_plugins()`.
        cases: id of a source -> data sets of one row in its form, which stand in for those that are not here.

    Raises:
        PluginError: no such plugin is installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory(prefix="mmrl-check-") as folder:
        subject = Subject(name, load_plugins() if plugins is None else plugins, Path(folder), cases)
        return [finding for tried in PROPERTIES for finding in property_findings(subject, tried)]

"""Properties of rewards. Most are what `mmrl check TASK` finds, by the property that a finding is about."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmrl_core.config import RewardConfig
from mmrl_core.config.options import REQUIRED
from mmrl_core.data import Template
from mmrl_core.errors import MMRLError
from mmrl_core.plugins import GOLD_COLUMNS, Entry
from mmrl_core.testing.hostile import READS, hostile_completions
from mmrl_core.testing.reward_checks import TOLERANCE
from mmrl_core.testing.subject import NothingToCheck, Shown, Subject


def found_by(name: str) -> Callable[[Subject], Iterator[str]]:
    """The findings of `reward_checks` that are about a property."""

    def problems(subject: Subject) -> Iterator[str]:
        findings = subject.reward_findings
        about = [finding for finding in findings if finding.property == name]
        if all(finding.skipped for finding in findings) or (about and all(finding.skipped for finding in about)):
            raise NothingToCheck((about or findings)[0].what)
        if name == "gold" and not about:
            raise NothingToCheck("no reward of its tasks reads text, which a gold answer is")
        yield from (finding.what for finding in about if not finding.ok)

    return problems


def can_be_pickled(subject: Subject) -> Iterator[str]:
    """Rewards, and results of them, that a process of their own could not be given or give back."""
    for entry, target in subject.loaded("reward"):
        try:
            same = pickle.loads(pickle.dumps(target)) is target
            said = "" if same else "is found under another name than the one that it was defined with"
        except Exception as error:  # whatever its class raises
            said = f"cannot be pickled: {type(error).__name__}: {error}"
        if said:
            yield (
                f"reward {entry.id} ({entry.target}): {said}. `isolate: true` runs it in a process of its own, which "
                "imports it: register a function at the top of a module, by its own name."
            )
            continue
        for result in _results(subject, entry, target):
            try:
                pickle.dumps(result)
            except Exception as error:
                yield (
                    f"reward {entry.id} ({entry.target}): its result cannot be pickled: {type(error).__name__}: "
                    f"{error}. Return plain numbers."
                )
                break


def _results(subject: Subject, entry: Entry, target: Any) -> Iterator[Any]:
    """What a reward returns for gold answers of its tasks."""
    for _, config, completion, sample, _ in _gold_rows(subject):
        if config.name == entry.id and not inspect.iscoroutinefunction(target):
            try:
                yield target([completion], [dict(sample)], **config.options)
            except Exception:  # other properties say so
                continue


def leave_rows_without_gold_unscored(subject: Subject) -> Iterator[str]:
    """What rewards say of a row without any column, of which nothing can be right or wrong."""
    told: set[str] = set()
    for entry, target in subject.loaded("reward"):
        options = _least_options(subject, entry)
        if options is None or not _can_be_called(target):
            continue
        for completion in list(hostile_completions(_reads(entry)).values())[:1] if _reads(entry) in READS else []:
            _, error = _called(target, completion, {}, options)
            if error is not None:
                told.add(entry.id)
                yield (
                    f"reward {entry.id} ({entry.target}): a row without any column makes it raise "
                    f"{type(error).__name__}: {error}. Read columns with sample.get(...), and return None where there "
                    "is no gold."
                )
    for where, config, completion, sample, golds in _gold_rows(subject):
        entry = subject.plugins.registry.get("reward", config.name)
        target = entry.load()
        if entry.id in told or not _can_be_called(target):
            continue
        rest = {column: value for column, value in sample.items() if column not in golds}
        gold, _ = _called(target, completion, sample, config.options)
        without, error = _called(target, completion, rest, config.options)
        if error is None and gold is not None and without is not None and abs(gold - without) > TOLERANCE:
            told.add(entry.id)
            yield (
                f"{where}: reward {entry.id} gives {without:g} for a row without {', '.join(sorted(golds))}, where "
                f"there is nothing to compare with ({gold:g} with it). Return None: unscored, and not wrong."
            )


def _reads(entry: Entry) -> str:
    return str(entry.details.get("reads", "text"))


def _can_be_called(target: Any) -> bool:
    return (
        callable(target)
        and not inspect.iscoroutinefunction(target)
        and "rollouts" not in inspect.signature(target).parameters
    )


def _least_options(subject: Subject, entry: Entry) -> dict[str, Any] | None:
    """Options to call an entry with: those of a task, or none; None if it needs some that no task sets."""
    set_in_task = subject.options_in_tasks(entry.kind).get(entry.id, {})
    missing = [o.name for o in entry.options().values() if o.default is REQUIRED and o.name not in set_in_task]
    return None if missing else set_in_task


def _called(
    target: Any, completion: Any, sample: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[float | None, Exception | None]:
    """The score of one completion, None if unscored or refused; and what it may not raise."""
    try:
        (value,) = target([completion], [dict(sample)], **options)
    except MMRLError:
        return None, None
    except Exception as error:
        return None, error
    return (float(value) if isinstance(value, int | float) else None), None


def _gold_rows(subject: Subject) -> Iterator[tuple[str, RewardConfig, str, Mapping[str, Any], set[str]]]:
    """A gold completion of each kind of rows, with each of its rewards that reads text, and the columns of the gold."""
    try:
        shown: Sequence[Shown] = subject.shown
    except NothingToCheck:
        return
    for one in shown:
        prompt = next((prompt for prompt in one.prompts if prompt.answer), None)
        if prompt is None:
            continue
        named = Template(one.section.part.prompt.answer, "prompt.answer").columns
        golds = {column for column in prompt.sample if column in named or column in GOLD_COLUMNS}
        for config in one.section.part.rewards:
            if _reads(subject.plugins.registry.get("reward", config.name)) == "text":
                yield one.where, config, prompt.with_prefix(prompt.answer), prompt.sample, golds

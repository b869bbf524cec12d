"""Properties of sources and of the prompts that tasks make of their rows."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmrl_core.errors import MMRLError
from mmrl_core.testing.hostile import READS
from mmrl_core.testing.source_case import SourceCase
from mmrl_core.testing.subject import NothingToCheck, Shown, Subject
from mmrl_core.types import Prompt

KINDS = ("image", "video", "audio")


def sources_repeat(subject: Subject) -> Iterator[str]:
    """Sources that raise what no source may raise, or give other rows the second time."""
    shown = subject.shown
    yield from subject.faults
    for one in shown:
        again = one.section.open(subject.plugins, one.split)
        for prompt in one.prompts:
            other = again.prompt(int(prompt.id.rpartition(":")[2]))
            if other is None or _content(prompt) != _content(other):
                yield (
                    f"{one.where}: source {one.source.name!r} gives another row {prompt.id} the second time. A resumed "
                    "run would not see what it saw: draw from random.Random(seed), and sort what you list."
                )
                break


def _content(prompt: Prompt) -> Any:
    texts = [part["text"] for message in prompt.messages for part in message["content"] if part["type"] == "text"]
    return repr(prompt.sample), prompt.answer, prompt.media_keys, texts


def rows_can_be_pickled(subject: Subject) -> Iterator[str]:
    """Rows that no other process could be given, as rewards with `isolate` are."""
    for one in subject.shown:
        for prompt in one.prompts:
            try:
                same = repr(pickle.loads(pickle.dumps(dict(prompt.sample)))) == repr(dict(prompt.sample))
                said = "" if same else "comes back as another"
            except Exception as error:  # whatever a column's class raises
                said = f"cannot be pickled: {type(error).__name__}: {error}"
            if said:
                yield (
                    f"{one.where}: row {prompt.id} {said}. Rewards in a process of their own get rows: keep to "
                    "numbers, texts, lists, dicts and arrays."
                )
                break


def prompts_are_rendered(subject: Subject) -> Iterator[str]:
    """Rows that are set aside, and marks of media that nothing replaces."""
    for one in subject.shown:
        for row in one.opened.set_aside:
            yield f"{one.where}: row {row.index}{f' ({row.file})' if row.file else ''}: {row.reason}"
        if one.opened.marks_off is not None:
            yield f"{one.where}: {one.opened.marks_off}"


def modalities_are_true(subject: Subject) -> Iterator[str]:
    """Media that a task declares and no row has, media of another kind, and rewards that read what nobody knows."""
    tried = False
    try:
        rewards = subject.entries("reward")
    except NothingToCheck:
        rewards = []
    for entry in rewards:
        tried = True
        if (reads := entry.details.get("reads", "text")) not in READS:
            yield f"reward {entry.id}: is declared to read {reads!r}. What a reward may read: {', '.join(READS)}."
    try:
        shown = subject.shown
    except NothingToCheck:
        shown = []
    for one in shown:
        prompt = one.section.part.prompt
        declared = {kind: bool(getattr(prompt, f"{kind}s")) for kind in KINDS}
        found = {part["type"] for p in one.prompts for message in p.messages for part in message["content"]}
        for kind in KINDS:
            tried = True
            if declared[kind] and one.prompts and kind not in found and not _another_has(shown, one, kind):
                yield (
                    f"{one.where}: prompt.{kind}s names columns that hold no {kind} in the first {len(one.prompts)} "
                    "rows. Correct the template, or the source."
                )
    if not tried:
        raise NothingToCheck("it has no reward, and no data of its tasks are here")


def _another_has(shown: list[Shown], one: Shown, kind: str) -> bool:
    """Whether the rows have media of another kind that the task declares: data sets may mix them."""
    prompt = one.section.part.prompt
    others = [other for other in KINDS if other != kind and getattr(prompt, f"{other}s")]
    return any(part["type"] in others for p in one.prompts for m in p.messages for part in m["content"])


# Cases


def _cases(subject: Subject) -> Iterator[tuple[str, int, SourceCase]]:
    if not subject.cases:
        raise NothingToCheck("its test gives no cases: data sets of one row in the form of its sources")
    for source, cases in subject.cases.items():
        for number, case in enumerate(cases):
            yield source, number, case


def broken_media_break_their_row(subject: Subject) -> Iterator[str]:
    """What happens where the file of a medium is missing, torn, or something else."""
    cases = [found for found in _cases(subject) if found[2].kind is not None]
    if not cases:
        raise NothingToCheck("no case has a medium")
    for source, number, case in cases:
        options = subject.written(source, number)
        file = subject.folder / source.replace("/", "-") / str(number) / case.medium
        sound = file.read_bytes()
        for state, content in (("missing", None), ("torn", sound[:40]), ("no medium", b"no medium\n" * 9)):
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_bytes(content)
            said = _faults_of(partial(_broken_reason, subject, source, case, options), file.stem)
            file.write_bytes(sound)
            if said:
                yield f"source {source}: a row whose {case.kind} is {state} {said}"


def _broken_reason(subject: Subject, source: str, case: SourceCase, options: Mapping[str, Any]) -> str | None:
    """Why the only row is set aside, with the file; None if it is read."""
    opened = case.reopen(subject.plugins, source, options)
    if opened.prompt(0) is not None:
        return None
    broken = next(iter(opened.set_aside))
    return f"{broken.file}: {broken.reason}"


def _faults_of(read: Callable[[], str | None], name: str) -> str:
    try:
        reason = read()
    except Exception as error:
        return f"ends the run: {type(error).__name__}: {error}. Raise a TaskDataError when the row is read."
    if reason is None:
        return "is read as if nothing were wrong. Let the core open it: return its path in the row."
    if "cannot read the row: " in reason:
        return f"is set aside by accident: {reason}. Raise a TaskDataError that says what is wrong with which file."
    return "" if name in reason else f"is set aside without the name of its file: {reason}"


def list_columns_may_be_json(subject: Subject) -> Iterator[str]:
    """What happens where a list in a JSONL file is the text of one, as cells of tables are."""
    tried = False
    for source, number, case in _cases(subject):
        options = subject.written(source, number)
        folder = subject.folder / source.replace("/", "-") / str(number)
        for file in sorted(folder.rglob("*.jsonl")):
            text = file.read_text(encoding="utf-8")
            for column in _list_columns(text):
                tried = True
                expected = _row(subject, source, case, options)
                _rewrite(file, text, column)
                said = _of_a_text(partial(_row, subject, source, case, options), expected)
                file.write_text(text, encoding="utf-8")
                if said:
                    yield f"source {source}: a row whose list {column!r} is written as the text of one {said}"
    if not tried:
        raise NothingToCheck("no case has a list in a JSONL file")


def _list_columns(text: str) -> list[str]:
    first = json.loads(text.splitlines()[0]) if text.strip() else {}
    return [column for column, value in first.items() if isinstance(value, list)] if isinstance(first, dict) else []


def _rewrite(file: Path, text: str, column: str) -> None:
    rows = [json.loads(line) for line in text.splitlines()]
    rows = [{**row, column: json.dumps(row[column])} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _row(subject: Subject, source: str, case: SourceCase, options: Mapping[str, Any]) -> Any:
    """What a row shows and is scored by; the reason, as an error, if it is set aside."""
    opened = case.reopen(subject.plugins, source, options)
    prompt = opened.prompt(0)
    if prompt is None:
        reason = next(iter(opened.set_aside)).reason
        raise (ValueError if reason.startswith("cannot read the row: ") else MMRLError)(reason)
    texts = [part["text"] for message in prompt.messages for part in message["content"] if part["type"] == "text"]
    return {key: _out_of_json(value) for key, value in prompt.sample.items()}, prompt.answer, texts


def _out_of_json(value: Any) -> Any:
    """A value, or the list or object that a text of it holds: rewards may read either."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _of_a_text(read: Callable[[], Any], expected: Any) -> str:
    try:
        found = read()
    except MMRLError:
        return ""  # refused, in words
    except Exception as error:
        return f"fails by accident: {error}. Read it with mmrl_core.data.read_options, or raise a TaskDataError."
    if repr(found) != repr(expected):
        return (
            "becomes another row without a word. Read such a column with mmrl_core.data.read_options or "
            "json.loads, or raise a TaskDataError that says what it has to hold."
        )
    return ""

r"""Data sources: problems with an answer that can be verified, from published records or own ones; reasoning-gym.

`problems` reads the records of GSM8K, MATH, MATH-500, AIME, AMC, Minerva, OlympiadBench and open-rs, which differ in
the names of a few columns, and makes rows of one schema, with whatever other columns a record has (level, subject):

    problem         text of the prompt: the question, and in which form to answer
    question        as asked
    answer          the gold answer, without box or "####"
    demonstration   a gold completion in the form that the prompt asks for, with the record's solution as the thinking
    form            which form that is; the format reward reads it

A record that does not fit is one broken row, named by file and line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl_core.data import Row, Rows, load_rows, parse_split
from mmrl_core.errors import MissingPackageError, TaskDataError, did_you_mean
from mmrl_core.scoring import gold_text, unusable_gold, unwrapped
from mmrl_text_reasoning import apart
from mmrl_text_reasoning.gym_sets import NOT_OFFERED, entry_text
from mmrl_text_reasoning.numbers import read_number
from mmrl_text_reasoning.parsing import final_answer, normalized
from mmrl_text_reasoning.prompts import asked, demonstration
from mmrl_text_reasoning.rewards import GOLD, Form, gold_answer

COLUMN_NAMES: Mapping[str, Sequence[str]] = {
    "question": ("problem", "question", "Problem", "Question"),
    "answer": ("answer", "final_answer", "Answer", "expected_answer"),
    "solution": ("solution", "Solution"),
}
"""Names that a file may use for each column, in the order in which they are looked for."""

_SPLITS = {"train": 0, "held_out": 1, "test": 2, "validation": 3}  # parts of the stream of a generator
MAX_GENERATED = 10_000_000  # rows of a generated split; the seeds of two splits lie that far apart
_CALCULATIONS = re.compile(r"<<[^<>]{0,200}>>")  # GSM8K's solutions mark what a calculator would do


def problems(
    split: str,
    *,
    path: str,
    subset: str | None = None,
    revision: str | None = None,
    columns: Mapping[str, str] | None = None,
    form: Form = "boxed",
    instruction: str | None = None,
) -> Rows:
    """Problems with a gold answer, by hub name or from local parquet, JSONL or CSV files of the same schema.

    Which columns are read says `COLUMN_NAMES`. The gold is the answer, or else what the solution ends with: its last
    box (MATH), what follows "####" (GSM8K). Several final answers (OlympiadBench) are one, with commas between them.

    Args:
        split: of the data set, maybe with a range: "train[:90%]".
        path, subset, revision: whatever `mmrl_core.data.load_rows` opens.
        columns: names that the file uses, by ours, where they are none of COLUMN_NAMES: {question: task_text}.
        form: in which the prompt asks to answer: `boxed`, `tags` or `open_rs`, see the reward `format`.
        instruction: in place of the form's own; "" asks for nothing.

    Returns:
        Rows of the schema above; reading a broken one raises TaskDataError.

    Raises:
        TaskDataError: as `load_rows`, or an unknown name in `columns`, or an unknown form.
    """
    for name in columns or {}:
        if name not in COLUMN_NAMES:
            raise TaskDataError(f"columns: unknown name {name!r}.{did_you_mean(name, COLUMN_NAMES)}")
    asked("", form)
    rows = load_rows(path, split=split, revision=revision, subset=subset)
    return Rows([_Problems(rows, dict(columns or {}), form, instruction)], media_root=rows.media_root)


def gym(
    split: str,
    *,
    puzzle: str,
    num_rows: int = 1000,
    difficulty: int | None = None,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    form: Form = "tags",
    instruction: str | None = None,
) -> Rows:
    """Generated problems of a set of reasoning-gym, made when they are read; the same ones for the same options.

    Args:
        split: "train", "held_out", "test" or "validation", maybe with a range: each draws from a stream of its own.
            Small sets have few different questions, so that two splits may share some.
        puzzle: name of the set, such as "countdown" or "spell_backward".
        num_rows: of the split.
        difficulty: level of the set's own curriculum, from 0; default: the set's default configuration.
        config: options of the set, over those of the difficulty.
        seed: another seed gives other problems.
        form, instruction: as for `problems`; reasoning-gym's scorers read the answer block first.

    Returns:
        Rows with `problem`, `question`, `answer` and `demonstration` (None where a set knows only how to score one),
        `form`, `set`, and `entry`, which the reward `text_reasoning/gym` reads.

    Raises:
        TaskDataError: an unknown set, split, level or option, or one that runs generated programs.
        MissingPackageError: reasoning-gym is not installed.

    Source: reasoning-gym, arXiv:2505.24760.
    """
    part, *ends = parse_split(split)
    if part not in _SPLITS:
        raise TaskDataError(f"split {part!r}: splits here are {', '.join(_SPLITS)}")
    if not 0 < num_rows <= MAX_GENERATED:
        raise TaskDataError(f"num_rows is {num_rows}, and has to lie between 1 and {MAX_GENERATED}")
    asked("", form)
    first = (seed * len(_SPLITS) + _SPLITS[part]) * MAX_GENERATED
    options = {**_level(puzzle, difficulty), **(config or {}), "seed": first, "size": num_rows}
    apart.prepare_gym()
    generated = _Generated(puzzle, options, form, instruction)
    return Rows([generated]).select_range(*ends)


class _Problems:
    """Rows under our column names, checked."""

    def __init__(self, rows: Rows, columns: Mapping[str, str], form: Form, instruction: str | None) -> None:
        self.rows, self.columns, self.form, self.instruction = rows, columns, form, instruction

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return self.rows.where(index)

    def read(self, index: int) -> Row:
        record, where = self.rows[index], self.where(index)
        found = {name: self._value(record, name) for name in COLUMN_NAMES}
        question = found["question"]
        if not isinstance(question, str) or not question.strip():
            raise TaskDataError(f"{where} has no question; {self._looked_for(record, 'question')}")
        try:
            answer = _gold(found["answer"], found["solution"])
            if answer is None:
                raise TaskDataError(f"no gold answer; {self._looked_for(record, 'answer', 'solution')}")
            gold = demonstration(answer, _thinking(found), self.form)
        except TaskDataError as error:
            raise TaskDataError(f"{where}: {error}") from error
        read = final_answer(gold, untagged=False)
        if read is None or normalized(read) != normalized(answer):
            raise TaskDataError(f"{where}: the answer {answer!r:.200} cannot be written in a box: look at its braces")
        return {
            **record,
            "problem": asked(question.strip(), self.form, self.instruction),
            "question": question.strip(),
            "answer": answer,
            "demonstration": gold,
            "form": self.form,
        }

    def _value(self, row: Row, name: str) -> Any:
        names = (self.columns[name],) if name in self.columns else COLUMN_NAMES[name]
        return next((row[other] for other in names if unwrapped(row.get(other)) not in (None, "")), None)

    def _looked_for(self, row: Row, *names: str) -> str:
        others = [
            other for name in names for other in ([self.columns[name]] if name in self.columns else COLUMN_NAMES[name])
        ]
        return (
            f"looked for: {', '.join(others)}. Columns here: {', '.join(map(str, row))}. "
            f"Where it goes by another name, set columns: {{{names[0]}: ...}}"
        )


def _gold(answer: Any, solution: Any) -> str | None:
    several = unwrapped(answer)
    if isinstance(several, list | tuple):
        texts = [gold_text(item, "answer", GOLD) for item in several]
        return ", ".join(text.strip("$") for text in texts if text) or None
    if answer is not None:
        return gold_answer({"answer": answer})
    text = gold_text(unwrapped(solution), "solution", GOLD)
    is_bare = text is None or (text.startswith("$") and text.endswith("$")) or read_number(text) is not None
    if not is_bare and final_answer(text, untagged=False) is None:  # a short proof is no answer
        raise unusable_gold(solution, "solution", GOLD)
    return gold_answer({"solution": text})


def _thinking(found: Mapping[str, Any]) -> str:
    """The solution of a record as thinking; of GSM8K, whose answer holds it, without the marks for a calculator."""
    for name in ("solution", "answer"):
        text = unwrapped(found[name])
        if isinstance(text, list | tuple):  # OlympiadBench lists solutions
            text = next((item for item in text if isinstance(item, str)), None)
        if isinstance(text, str) and (name == "solution" or "####" in text):
            return _CALCULATIONS.sub("", text.partition("####")[0]).strip()
    return ""


class _Generated:
    """Problems of a set of reasoning-gym."""

    def __init__(self, name: str, options: Mapping[str, Any], form: Form, instruction: str | None) -> None:
        self.name, self.options, self.form, self.instruction = name, options, form, instruction
        self.dataset = _made(name, options)

    def __len__(self) -> int:
        return int(self.options["size"])

    def where(self, index: int) -> str:
        return f"reasoning-gym {self.name} {index}"

    def read(self, index: int) -> Row:
        try:
            made = self.dataset[index]
            entry = {key: made[key] for key in ("question", "answer", "metadata")}
            stored = entry_text({"set": self.name, "options": self.options, **entry})
        except Exception as error:  # the generators are foreign code
            raise TaskDataError(f"{self.where(index)}: the generator raised {type(error).__name__}: {error}") from error
        question = str(entry["question"]).strip()
        answer = None if entry["answer"] is None else str(entry["answer"])  # some sets know only how to score one
        return {
            "problem": asked(question, self.form, self.instruction),
            "question": question,
            "answer": answer,
            "demonstration": None if answer is None else demonstration(answer, "", self.form),
            "form": self.form,
            "set": self.name,
            "entry": stored,
        }


def _gym() -> Any:
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import reasoning_gym.factory
    except ImportError as error:
        raise MissingPackageError(
            f"problems of reasoning-gym need the package reasoning-gym ({error}). "
            "Try: pip install 'mmrl-text-reasoning[gym]'"
        ) from error
    return reasoning_gym.factory


def _level(name: str, difficulty: int | None) -> dict[str, Any]:
    """The options of a level of a set's curriculum."""
    factory = _gym()
    if name in NOT_OFFERED:
        raise TaskDataError(f"reasoning-gym's {name!r} is not offered: {NOT_OFFERED[name]}")
    if name not in factory.DATASETS:
        raise TaskDataError(f"reasoning-gym has no set {name!r}.{did_you_mean(name, factory.DATASETS)}")
    if difficulty is None:
        return {}
    if not factory.has_curriculum(name):
        raise TaskDataError(f"reasoning-gym's {name!r} has no levels; set config: {{...}} instead of difficulty")
    curriculum = factory.create_curriculum(name)
    top = max(len(attribute.levels) for attribute in curriculum.attributes.values()) - 1
    if not 0 <= difficulty <= top:
        raise TaskDataError(f"difficulty is {difficulty}, and {name!r} has levels 0 to {top}")
    curriculum.set_global_level(difficulty)
    made, default = curriculum.generate_configuration(), factory.DATASETS[name][1]()
    return {key: value for key, value in vars(made).items() if value != getattr(default, key)}


def _made(name: str, options: Mapping[str, Any]) -> Any:
    try:
        return _gym().create_dataset(name, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise TaskDataError(
            f"reasoning-gym's {name!r} does not take these options: {error}. Given: {options}"
        ) from error

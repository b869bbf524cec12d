"""Data sources: HRVQA-VL, one row a question with an optional reasoning text, and HRVQA as published in two files.

Both give rows {image, question, problem, answer, question_type, reasoning, options, unit}, checked, with what else the
file holds. A row without image, question or gold answer, or of an unknown type, is broken; a run sets it aside.

The data are HRVQA's (arXiv:2301.09460, hrvqa.nl): 53,512 aerial images of 1024 x 1024 pixels with 1,070,240 questions
made from templates and map data, so that answers are noisy and skewed ("no" and 0 are frequent). `max_per_answer` evens
that out. A part of them is held out by image, never by question: questions about one image tell of each other.
"""

from __future__ import annotations

import difflib
import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmrl_core.data import Row, RowPart, Rows, load_rows, parse_split, read_options, read_texts
from mmrl_core.errors import TaskDataError
from mmrl_core.scoring import gold_text
from mmrl_uav_vqa.parsing import (
    ANSWER_TAGS,
    QUESTION_TYPES,
    answer_text,
    is_option,
    normalized_label,
    question_type_of,
)
from mmrl_uav_vqa.rewards import GOLD, gold_kind

Part = Literal["all", "train", "held_out"]

# Names that a file may use for each column, in the order in which they are looked for.
COLUMN_NAMES: Mapping[str, Sequence[str]] = {
    "image": ("image", "image_path", "image_name"),
    "question": ("question", "problem"),
    "answer": ("answer", "solution", "multiple_choice_answer"),
    "question_type": ("question_type", "task", "type"),
    "reasoning": ("reasoning", "think", "thinking"),
}
OPTION_COLUMNS = ("options", "choices")
REPLAY_SEED = 0  # of which rows of earlier stages are replayed


def hrvqa_vl(
    split: str,
    *,
    path: str,
    revision: str | None = None,
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    need_reasoning: bool = False,
    question_types: Sequence[str] | None = None,
    replay_types: Sequence[str] = (),
    replay_share: float = 0.1,
    part: Part = "all",
    held_out_share: float = 0.05,
    max_per_answer: int | None = None,
) -> Rows:
    """Rows with one question each: HRVQA-VL, or your own images in the same schema, by hub name or from local files.

    Choosing rows by type, part or answer reads every row once when the data are opened.

    Args:
        split: of the data set, maybe with a range. A range cuts between questions; for training and held-out rows from
            one split use `part`.
        path: whatever `mmrl_core.data.load_rows` opens.
        revision, subset: of a hub set.
        columns: names that the file uses, by ours, where they are none of COLUMN_NAMES: {question_type: kind}.
        need_reasoning: a row without a reasoning text is broken; for supervised stages.
        question_types: keep only these; default: all.
        replay_types: of earlier stages. Rows of these are mixed in, drawn once for all, so that they are
            `replay_share` of the whole, or as many as there are.
        replay_share: 0..1, below 1.
        part: "train" and "held_out" split the images in two, by a hash of the image's id or name.
        held_out_share: share of the images in "held_out", 0..1.
        max_per_answer: keep at most so many rows of each type and answer, the first ones.

    Returns:
        Rows; beside what the file holds: question; problem (the question, with choices and unit if it has them);
        answer (text); question_type (one of `parsing.QUESTION_TYPES`; without a type in the file, by the answer);
        reasoning, options, unit (empty where there are none). Options, of a column `options` or `choices`, are a list
        or the text of one, see `mmrl_core.data.read_options`; anything else breaks the row.

    Raises:
        TaskDataError: as `load_rows`; an unknown question type; a share out of range; or nothing is left.
    """
    rows = load_rows(path, split=split, revision=revision, subset=subset)
    typed = _Typed(rows, dict(columns or {}), need_reasoning)
    chosen = select_rows(
        typed,
        question_types=question_types,
        replay_types=replay_types,
        replay_share=replay_share,
        part=part,
        held_out_share=held_out_share,
        max_per_answer=max_per_answer,
    )
    return Rows([chosen], media_root=rows.media_root)


def hrvqa(
    split: str,
    *,
    path: str,
    images: str = "images/{split}/{image_id}.png",
    question_types: Sequence[str] | None = None,
    replay_types: Sequence[str] = (),
    replay_share: float = 0.1,
    part: Part = "all",
    held_out_share: float = 0.05,
    max_per_answer: int | None = None,
) -> Rows:
    """HRVQA as published: `<split>_question.json` and `<split>_answer.json`, in the VQA format.

    The files hold {"questions": [{question_id, image_id, question, question_type}]} and {"annotations": [{question_id,
    multiple_choice_answer}]}. The answers of the test split are not published. A question without an answer is broken.

    Args:
        split: "train" or "val", maybe with a range, which cuts between questions.
        path: folder of the two files, and of what `images` starts from.
        images: where an image lies; braces name `split` and columns of a question. Where the published archives put
            them is not documented.
        question_types, replay_types, replay_share, part, held_out_share, max_per_answer: as `hrvqa_vl`.

    Returns:
        Rows as those of `hrvqa_vl`, with question_id and image_id.

    Raises:
        TaskDataError: a file is missing or of another schema, or as `hrvqa_vl`.
    """
    name, *ends = parse_split(split)
    folder = Path(path).expanduser()
    questions = load_rows(folder / f"{name}_question.json", split="questions")
    answers = load_rows(folder / f"{name}_answer.json", split="annotations")
    annotations = {str(row.get("question_id")): row for row in answers}
    joined = _Joined(questions, annotations, images, name)
    chosen = select_rows(
        _Typed(Rows([joined]).select_range(*ends), {}, need_reasoning=False),
        question_types=question_types,
        replay_types=replay_types,
        replay_share=replay_share,
        part=part,
        held_out_share=held_out_share,
        max_per_answer=max_per_answer,
    )
    return Rows([chosen], media_root=folder)


def select_rows(
    rows: RowPart,
    *,
    question_types: Sequence[str] | None = None,
    replay_types: Sequence[str] = (),
    replay_share: float = 0.1,
    part: Part = "all",
    held_out_share: float = 0.05,
    max_per_answer: int | None = None,
) -> RowPart:
    """Some of the rows, in their order; see `hrvqa_vl`. Rows that cannot be read stay, so that a run reports them.

    Args:
        rows: with question_type and answer; with image_id or image where `part` is not "all".

    Raises:
        TaskDataError: an unknown question type, a share out of range, or nothing is left.
    """
    asked, replayed = _known_types(question_types), _known_types(replay_types) or frozenset()
    if not (0 <= replay_share < 1 and 0 <= held_out_share <= 1):
        raise TaskDataError(
            f"replay_share is {replay_share} and held_out_share {held_out_share}; shares lie in 0..1, a replay below 1"
        )
    if part not in ("all", "train", "held_out"):
        raise TaskDataError(f"part is {part!r}, none of all, train, held_out")
    if asked is None and part == "all" and max_per_answer is None:
        return rows
    kept: list[int] = []
    earlier: list[int] = []
    counts: Counter[tuple[str, str]] = Counter()
    for index in range(len(rows)):
        try:
            row = rows.read(index)
        except TaskDataError:  # raised again when the run reads it
            kept.append(index)
            continue
        question_type = row["question_type"]
        is_asked = asked is None or question_type in asked
        if not is_asked and question_type not in replayed:
            continue
        if part != "all" and (_image_share(row, rows.where(index)) < held_out_share) != (part == "held_out"):
            continue
        answer = (question_type, normalized_label(row["answer"]))
        counts[answer] += 1
        if max_per_answer is None or counts[answer] <= max_per_answer:
            (kept if is_asked else earlier).append(index)
    num_replayed = min(len(earlier), round(len(kept) * replay_share / (1 - replay_share)))
    kept += random.Random(REPLAY_SEED).sample(earlier, num_replayed)
    if not kept:
        raise TaskDataError(
            f"no row is left of {len(rows)}: question_types {sorted(asked) if asked else 'all'}, part {part!r}"
        )
    return _Chosen(rows, sorted(kept))


class _Typed:
    """Rows under our column names, checked, with their type."""

    def __init__(self, rows: Rows, columns: Mapping[str, str], need_reasoning: bool) -> None:
        for name in columns:
            if name not in COLUMN_NAMES:
                raise TaskDataError(f"columns: unknown name {name!r}. Names: {', '.join(COLUMN_NAMES)}")
        self.rows = rows
        self.columns = columns
        self.need_reasoning = need_reasoning

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return self.rows.where(index)

    def read(self, index: int) -> Row:
        row, where = self.rows[index], self.rows.where(index)
        found = {name: self._value(row, name) for name in COLUMN_NAMES}
        for name in ("image", "question", "answer"):
            if found[name] in (None, ""):
                looked_for = self.columns.get(name) or ", ".join(COLUMN_NAMES[name])
                raise TaskDataError(
                    f"{where} has no {name} (looked for: {looked_for}). Columns here: {', '.join(map(str, row))}. "
                    f"Where it goes by another name, set columns: {{{name}: ...}}"
                )
        try:
            answer = gold_text(found["answer"], "the answer", GOLD) or ""
            options = self._options(row)
            aliases = read_texts(row.get("aliases"), "aliases")
        except TaskDataError as error:
            raise TaskDataError(f"{where}: {error}") from error
        if ANSWER_TAGS[0] in answer:
            answer = answer_text(answer) or ""
        if not answer.strip():
            raise TaskDataError(f"{where}: the answer is blank")
        if options and not is_option(answer, options):
            raise TaskDataError(f"{where}: the answer {answer!r} names none of the options {options}")
        reasoning = str(found["reasoning"] or "").strip()
        if self.need_reasoning and not reasoning:
            raise TaskDataError(f"{where} has no reasoning text, which need_reasoning asks for")
        unit = str(row.get("unit") or "")
        question = str(found["question"]).strip()
        return {
            **row,
            "image": found["image"],
            "question": question,
            "problem": _problem(question, options, unit),
            "answer": answer.strip(),
            "question_type": _type(found["question_type"], answer.strip(), where),
            "reasoning": reasoning,
            "options": options,
            "unit": unit,
            **({"aliases": aliases} if aliases else {}),
        }

    @staticmethod
    def _options(row: Row) -> list[str]:
        """Of the column options or choices, as `mmrl_core.data.read_options` reads it."""
        column = next((name for name in OPTION_COLUMNS if row.get(name) not in (None, "")), OPTION_COLUMNS[0])
        return read_options(row.get(column), column) or []

    def _value(self, row: Row, name: str) -> Any:
        names = (self.columns[name],) if name in self.columns else COLUMN_NAMES[name]
        return next((row[other] for other in names if row.get(other) is not None), None)


class _Joined:
    """HRVQA's questions with their answers and the paths of their images."""

    def __init__(self, questions: Rows, annotations: Mapping[str, Row], images: str, split: str) -> None:
        self.questions = questions
        self.annotations = annotations
        self.images = images
        self.split = split

    def __len__(self) -> int:
        return len(self.questions)

    def where(self, index: int) -> str:
        return self.questions.where(index)

    def read(self, index: int) -> Row:
        question = self.questions[index]
        annotation = self.annotations.get(str(question.get("question_id")))
        if annotation is None:
            raise TaskDataError(f"{self.where(index)}: no answer to question_id {question.get('question_id')!r}")
        try:
            image = self.images.format_map({**question, "split": self.split})
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise TaskDataError(
                f"{self.where(index)}: images {self.images!r} cannot be filled in: {error}. "
                f"Names: split, {', '.join(map(str, question))}"
            ) from error
        return {**annotation, **question, "image": image}


class _Chosen:
    """Rows at some positions."""

    def __init__(self, rows: RowPart, indices: Sequence[int]) -> None:
        self.rows = rows
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Row:
        return self.rows.read(self.indices[index])

    def where(self, index: int) -> str:
        return self.rows.where(self.indices[index])


def _problem(question: str, options: Sequence[str], unit: str) -> str:
    choices = f"\nChoices: {'; '.join(options)}." if options else ""
    return question + choices + (f"\nUnit: {unit}." if unit else "")


def _type(name: object, answer: str, where: str) -> str:
    if name in (None, ""):
        kind = gold_kind(answer, None)
        return "other" if kind == "label" else kind
    return _known_type(name, f"{where}: ")


def _known_types(names: Sequence[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(_known_type(name) for name in names)


def _known_type(name: object, where: str = "") -> str:
    question_type = question_type_of(name)
    if question_type is None:
        near = difflib.get_close_matches(str(name).lower(), QUESTION_TYPES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TaskDataError(f"{where}question type {name!r} is unknown.{hint} Types: {', '.join(QUESTION_TYPES)}")
    return question_type


def _image_share(row: Row, where: str) -> float:
    """A number in 0..1 that depends on the image alone."""
    image = row.get("image_id", row["image"])
    if isinstance(image, Mapping):
        image = image.get("path") or image.get("bytes")
    if not isinstance(image, (str, bytes, int)):
        raise TaskDataError(f"{where}: part tells images by image_id or file name; this row has neither")
    key = image if isinstance(image, bytes) else str(image).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64

"""Data sources of R1-AQA: questions about sounds with options, from AVQA's and MMAU's records.

Both give rows of one schema, with whatever other columns a record has (id, task, difficulty, ...):

    audio           the sound as stored; decoded where it was cut
    problem         text of the prompt
    question        as asked
    choices         the options
    answer          text of the right option; None where it is hidden
    solution        the same in answer tags
    demonstration   the gold completion, with thinking if the prompt asks for it
    thinking        whether it does; the format reward reads this

A record that does not fit is one broken row, named by file, line and id. (quirk of the published code: a row of another
data set gets no prompt, and fails later.)

AVQA publishes questions, not sounds: extract the sound of each video that is still there into a file. A sound that is
missing breaks its row; raise `data.max_broken` to the share that you lack.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmrl_audio_aqa.parsing import chosen_option
from mmrl_audio_aqa.prompts import Style, gold_completion, listed_options, question_prompt
from mmrl_core.data import Row, Rows, Template, load_rows, read_options, value_of
from mmrl_core.errors import TaskDataError
from mmrl_core.media import inline_bytes, load_audio
from mmrl_core.scoring import gold_text, unwrapped

logger = logging.getLogger(__name__)


class Question(NamedTuple):
    """What is asked of a record: the question, its options, and the text of the right one, None where it is hidden."""

    text: str
    choices: list[str]
    answer: str | None


def avqa(
    split: str,
    *,
    path: str,
    audio: str = "{audio_path}",
    audio_folder: str | None = None,
    style: Style = "list",
    thinking: bool = False,
    cut_to_s: float | None = None,
    cut_from: Literal["start", "middle"] = "start",
    revision: str | None = None,
    subset: str | None = None,
) -> Rows:
    """AVQA's questions about videos, asked about their sound: "video" becomes "audio" in the question, as published.

    Records: question_text, multi_choice (options), answer (position among them, from 0), audio_path; those of AVQA's
    own train_qa.json have a video_name instead, for `audio: "{video_name}.wav"`.

    Args:
        split: "train"; ranges such as "train[:90%]" work.
        path: JSON lines or whatever else `mmrl_core.data.load_rows` opens.
        audio: columns that make the path of the sound; a single column may also hold the sound itself.
        audio_folder: that paths start from; default: the folder of the records.
        style: how the prompt writes options, see `prompts.question_prompt`; published is "list".
        thinking: ask for thinking: prompt, gold completion and format reward follow.
        cut_to_s: longer sounds are cut to so many seconds, with a warning; default: none is, and
            `prompt.max_audio_s` sets longer ones aside. Qwen2-Audio hears 30 s; its own processor keeps the start.
        cut_from: which part is kept.
        revision, subset: of a hub set.

    Returns:
        Rows of the schema above; reading a broken one raises TaskDataError.

    Raises:
        TaskDataError: as `load_rows`, or an option has a wrong value.

    Source: AVQA, Yang et al., ACM Multimedia 2022; columns dataset_name and audio_path added by R1-AQA.
    """
    form = _Form(style, thinking, Template(audio, "audio"), audio_folder, cut_to_s, cut_from)
    return _rows(load_rows(path, split=split, revision=revision, subset=subset), avqa_question, form)


def mmau(
    split: str,
    *,
    path: str,
    audio: str = "{audio_id}",
    audio_folder: str | None = None,
    style: Style = "list",
    thinking: bool = False,
    cut_to_s: float | None = None,
    cut_from: Literal["start", "middle"] = "start",
    revision: str | None = None,
    subset: str | None = None,
) -> Rows:
    """MMAU's questions (arXiv:2410.19168): test-mini, 1000 rows, and the full test, 9000, whose answers are hidden.

    Records: question, choices, answer (text of the option, missing or null where it is hidden), audio_id (path), task
    (sound, music, speech), difficulty, category, sub-category.

    Args:
        split: "train" for the one file that each part is, or part of the file's name ("test" of mmau-test-mini.json).
        path, audio, audio_folder, style, thinking, cut_to_s, cut_from, revision, subset: as for `avqa`.

    Returns:
        Rows of the schema above; rows without an answer can be answered, but not scored.

    Raises:
        TaskDataError: as `avqa`.
    """
    form = _Form(style, thinking, Template(audio, "audio"), audio_folder, cut_to_s, cut_from)
    return _rows(load_rows(path, split=split, revision=revision, subset=subset), mmau_question, form)


def avqa_question(record: Row) -> Question:
    """The question of an AVQA record.

    Raises:
        TaskDataError: it is of another data set, or a column is missing or of another kind.
    """
    if record.get("dataset_name", "AVQA") != "AVQA":
        raise TaskDataError(f"dataset_name is {record['dataset_name']!r}, and this source reads AVQA")
    choices, answer = _choices(record, "multi_choice"), unwrapped(record.get("answer"))
    if isinstance(answer, str) and answer.strip().isdecimal():  # of a table, whose cells are texts
        answer = int(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise TaskDataError(f"answer is {answer!r}, not a position among the {len(choices)} options")
    return Question(_text(record, "question_text").replace("video", "audio"), choices, choices[answer])


def mmau_question(record: Row) -> Question:
    """The question of an MMAU record.

    Raises:
        TaskDataError: a column is missing or of another kind.
    """
    answer = gold_text(record.get("answer"), "answer", "the text of an option")
    choices = _choices(record, "choices")
    # Rows whose answer names no option stay as they are: MMAU's own rule compares words.
    if answer is not None and (named := chosen_option(answer, choices)) is not None:
        answer = choices[named]
    return Question(_text(record, "question"), choices, answer)


@dataclass(frozen=True)
class _Form:
    """How records become rows; the options of the sources."""

    style: Style
    thinking: bool
    audio: Template
    audio_folder: str | None
    cut_to_s: float | None
    cut_from: str

    def __post_init__(self) -> None:
        listed_options([], self.style)
        if self.cut_from not in ("start", "middle"):
            raise TaskDataError(f"cut_from is 'start' or 'middle', not {self.cut_from!r}")
        if self.cut_to_s is not None and not self.cut_to_s > 0:
            raise TaskDataError(f"cut_to_s is {self.cut_to_s}, not a length in seconds")


def _rows(records: Rows, question_of: Callable[[Row], Question], form: _Form) -> Rows:
    folder = records.media_root
    if form.audio_folder is not None:
        folder = Path(form.audio_folder).expanduser().absolute()
        if not folder.is_dir():
            raise TaskDataError(f"audio_folder: {folder} is no folder")
    return Rows([_QuestionRows(records, question_of, form, folder)], media_root=folder)


class _QuestionRows:
    def __init__(self, records: Rows, question_of: Callable[[Row], Question], form: _Form, folder: Path | None) -> None:
        self.records, self.question_of, self.form, self.folder = records, question_of, form, folder

    def __len__(self) -> int:
        return len(self.records)

    def where(self, index: int) -> str:
        return self.records.where(index)

    def read(self, index: int) -> Row:
        record, form = self.records[index], self.form
        where = f"{self.where(index)} (id {record.get('id')!r})"
        try:
            question = self.question_of(record)
            row: dict[str, Any] = {
                **record,
                "audio": self._audio(record, where),
                "problem": question_prompt(question.text, question.choices, style=form.style, thinking=form.thinking),
                "question": question.text,
                "choices": question.choices,
                "answer": question.answer,
                "solution": None,
                "demonstration": None,
                "thinking": form.thinking,
            }
        except TaskDataError as error:
            raise TaskDataError(f"{where}: {error}") from error
        if question.answer is not None:
            row["solution"] = f"<answer>{question.answer}</answer>"
            row["demonstration"] = gold_completion(row["solution"], thinking=form.thinking)
        return row

    def _audio(self, record: Row, where: str) -> Any:
        """The sound as stored, or samples of the part that is kept."""
        template, cut_to_s = self.form.audio, self.form.cut_to_s
        column = template.only_column
        audio = template.render(record) if column is None else value_of(record, column, template.key)
        if not audio:
            raise TaskDataError(f"{column} is {audio!r}, not a sound or its path")
        if isinstance(audio, str) and self.folder is not None and inline_bytes(audio, "audio") is None:
            audio = str(self.folder / audio)
        if cut_to_s is None:
            return audio
        sound = load_audio(audio, root=self.folder or Path.cwd())
        if sound.seconds <= cut_to_s:
            return audio
        logger.warning("%s: a sound of %.1f s is cut to %g s", where, sound.seconds, cut_to_s)
        count = int(cut_to_s * sound.sampling_rate)
        first = (len(sound.samples) - count) // 2 if self.form.cut_from == "middle" else 0
        return {"array": sound.samples[first : first + count], "sampling_rate": sound.sampling_rate}


def _text(record: Mapping[str, Any], column: str) -> str:
    text = value_of(record, column, "record")
    if not isinstance(text, str) or not text.strip():
        raise TaskDataError(f"{column} is {text!r}, not a text")
    return text


def _choices(record: Mapping[str, Any], column: str) -> list[str]:
    choices = read_options(value_of(record, column, "record"), column)
    if choices is None:
        raise TaskDataError(f"{column} holds no options, and a question needs two or more")
    return choices

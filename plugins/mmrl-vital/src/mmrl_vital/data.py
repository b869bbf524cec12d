"""Data sources of VITAL: its published training records, and the annotations of the benchmarks it is measured on.

All give rows with the same columns:

============== ===================================================================================================
`video`        absolute path of the video file; None for an image
`image`        absolute path of the image; None for a video
`problem`      the whole user text, see `prompts.user_prompt`
`answer`       a completion that is right: the published reasoning, or the gold answer behind a placeholder of it
`ground_truth` what rewards read: [start, end] in seconds, {"span": ..., "answer": ...}, a letter, number or text
`task`         which reward scores the row, a name in `rewards.TASKS`
`duration`     of the video in seconds; None if nothing says it
`id`           as in the annotations
============== ===================================================================================================

and more where it exists, such as `options`.

Data licences differ from the code's: the published records are CC BY-NC-SA 4.0, and the videos are their owners'.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl_core.data import Row, Rows, load_rows, parse_split, read_options
from mmrl_core.errors import TaskDataError
from mmrl_core.scoring import gold_text, unusable_gold, unwrapped
from mmrl_vital.parsing import answer_text, parse_spans
from mmrl_vital.prompts import (
    LETTERS,
    choice_question,
    gold_completion,
    grounded_choice_question,
    grounded_text,
    grounding_question,
    span_text,
    user_prompt,
)
from mmrl_vital.rewards import TASKS

logger = logging.getLogger(__name__)

DATA_SOURCES = {
    "charades": "temporal_grounding",
    "charades_cutreward": "temporal_grounding_short",
    "actnet": "temporal_grounding",
    "actnet_cutreward": "temporal_grounding_short",
    "vidchapter": "temporal_grounding_chapters",
    "vidchapter_cutreward": "temporal_grounding_chapters",
    "nextgqa": "grounded_qa",
    "nextgqa_cutreward": "grounded_qa_short",
    "rextime": "grounded_qa",
    "rextime_cutreward": "grounded_qa_short",
    "video_r1/multiple_choice": "multiple_choice",
    "video_r1/numerical": "numerical",
    "video_r1/regression": "regression",
    "video_r1/OCR": "ocr",
    "video_r1/free_form": "free_form",
}
"""`data_source` of the published records -> the reward that the published code scores them with."""

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")


# Published records


def published(
    split: str,
    *,
    path: str,
    part: str | None = None,
    files: Sequence[str] | None = None,
    media: str | None = None,
    data_sources: Mapping[str, str] | None = None,
    max_tool_calls: int = 0,
    revision: str | None = None,
) -> Rows:
    """Records of MTVR-CoT-72k and MTVR-RL-110k, or your own in their schema.

    A record has `id`, `video` or `image` (path), `duration` (seconds), `text` (question), `solution`, `data_source`,
    and sometimes `video_kwargs`, which stays a column and changes nothing here. Records for imitation have their
    reasoning, in think and answer blocks, as `solution` (with tool calls: a list of turns) and the gold as `answer`;
    the other way round is understood too.

    Args:
        split: "train", maybe with a range such as "train[:90%]"; there is no other.
        path: hub name (zhang9302002/MultiTaskVideoReasoning), a folder of JSON or JSONL files, or one such file.
        part: sub-folder of it: MTVR_CoT, MTVR_RL, MTVR_Tool_CoT, MTVR_Tool_RL.
        files: names of files without suffix, such as charades; default all, in order of their names.
        media: folder that the records' paths start from; "{file}" in it is the name of the JSON file without suffix.
            Default: the folder of that file. Published records name whole videos, which come from their own sources.
        data_sources: further values of `data_source`, each with its `task`; they win over `DATA_SOURCES`.
        max_tool_calls: calls that the rollout allows (`max_calls` of the environment `tools`), for the prompt.
        revision: of the hub set.

    Returns:
        Rows as above, with the other columns of the record; the turns of a reasoning with tool calls stand in `answer`
        one after another. A row without medium or gold is broken, and a missing file breaks its row when it is read.
        Records whose span ends before or where it starts are left out; how many is logged.

    Raises:
        TaskDataError: nothing there, a file that is not there, a `data_source` that no table knows in a record that has
            to be scored, or media that are folders of extracted frames.
    """
    name, *ends = parse_split(split)
    if name != "train":
        raise TaskDataError(
            f"the published records have no split {name!r}, only 'train' and ranges such as train[:90%]"
        )
    table = DATA_SOURCES | dict(data_sources or {})
    if unknown := sorted(set(table.values()) - set(TASKS)):
        raise TaskDataError(f"data_sources: no reward scores {unknown[0]!r}; the tasks are: {', '.join(TASKS)}")
    root = _published_folder(path, part, revision)
    parts = [
        _published_file(file, _media_folder(file, media), table, max_tool_calls)
        for file in _published_files(root, files)
    ]
    folders = [_media_folder(file, media) for file in _published_files(root, files)]
    return Rows(parts, media_root=Path(os.path.commonpath(folders))).select_range(*ends)


def _media_folder(file: Path, media: str | None) -> Path:
    return _absolute(media.replace("{file}", file.stem)) if media else file.parent


def _published_folder(path: str, part: str | None, revision: str | None) -> Path:
    root = _absolute(path)
    if not root.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
        # The parts differ in their columns, which `load_dataset` would refuse; so the files are read as local ones.
        from huggingface_hub import snapshot_download

        try:
            pattern = f"{part or '*'}/*.json*"
            root = Path(snapshot_download(path, repo_type="dataset", revision=revision, allow_patterns=pattern))
        except Exception as error:  # network, names, tokens: the hub's client raises anything
            cause = next(iter(str(error).splitlines()), "")
            raise TaskDataError(
                f"{path}: no such file or folder, nor a hub data set that can be read: {cause}"
            ) from error
    root = root / (part or "")
    if not root.exists():
        raise TaskDataError(f"{root}: no such file or folder")
    return root


def _published_files(root: Path, names: Sequence[str] | None) -> list[Path]:
    if root.is_file():
        return [root]
    found = {file.stem: file for file in sorted(root.iterdir()) if file.suffix in (".json", ".jsonl")}
    if missing := [name for name in names or () if name not in found]:
        raise TaskDataError(
            f"{root} has no file {missing[0]!r}; it has: {', '.join(found) or 'no JSON or JSONL files'}"
        )
    if not found:
        raise TaskDataError(f"{root} holds no JSON or JSONL files")
    return [found[name] for name in names] if names is not None else list(found.values())


def _published_file(file: Path, media: Path, table: Mapping[str, str], max_tool_calls: int) -> _Records:
    """The records of one file that are not left out; each is looked at once."""
    records = load_rows(file)
    kept: list[int] = []
    for index in range(len(records)):
        try:
            record = records[index]
            gold, turns = _gold_and_turns(record)
        except (TaskDataError, KeyError):  # raised again when the row is used
            kept.append(index)
            continue
        if not turns and _source_name(record) not in table:
            raise TaskDataError(
                f"{records.where(index)}: unknown data_source {record.get('data_source')!r}, so no reward is known for "
                f"it. Name one: data_sources: {{{_source_name(record)}: multiple_choice}}. Known: {', '.join(table)}"
            )
        if not (_is_span(gold) and gold[0] >= gold[1]):
            kept.append(index)
    if len(kept) < len(records):
        logger.warning("%s: %d of %d records left out: start >= end", file, len(records) - len(kept), len(records))

    def build(index: int) -> Row:
        return _published_row(records[index], media, table, max_tool_calls)

    part = _Records(kept, build, lambda index: records.where(index))
    if kept:
        try:
            first = part.read(0)
        except TaskDataError:  # one broken row
            return part
        _refuse_frames(first, part.where(0))
    return part


def _published_row(record: Row, media: Path, table: Mapping[str, str], max_tool_calls: int) -> Row:
    gold, turns = _gold_and_turns(record)
    task = table.get(_source_name(record))
    video, image = (str(media / record[name]) if record.get(name) else None for name in ("video", "image"))
    if (video is None) == (image is None):
        raise TaskDataError("a record has either a 'video' or an 'image'")
    if gold in (None, ""):
        raise TaskDataError("the record has no gold answer")
    options = read_options(record.get("options"))
    duration = None if video is None else float(record["duration"])
    return {
        **record,
        "video": video,
        "image": image,
        "problem": user_prompt(record["text"], duration_s=duration, image=video is None, max_tool_calls=max_tool_calls),
        "answer": "\n".join(turns) or gold_completion(_gold_text(gold)),
        "ground_truth": gold,
        "task": task,
        "duration": duration,
        **({} if options is None else {"options": options}),
    }


def _source_name(record: Row) -> str:
    return str(record.get("data_source")).removeprefix("./data/")


def _gold_and_turns(record: Row) -> tuple[Any, list[str]]:
    """(gold answer, the assistant's turns of a published reasoning; empty if the record has none)."""
    solution, answer = record["solution"], record.get("answer")
    if turns := _reasoning(solution):
        gold = answer if answer is not None else answer_text(turns[-1])
    else:
        gold, turns = solution, _reasoning(answer)
    gold = unwrapped(gold)
    if isinstance(gold, str):
        gold = answer_text(gold)
        try:
            values = json.loads(gold or "")
        except (ValueError, RecursionError):
            return gold, turns
        return (values if _is_span(values) else gold), turns
    if isinstance(gold, list | Mapping) and not parse_spans(gold) and not _is_span(gold):
        raise unusable_gold(gold, "solution", "a text, a number, a span [start, end] or several")
    return gold, turns


def _reasoning(value: Any) -> list[str]:
    turns = [value] if isinstance(value, str) else value
    is_text = isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns)
    return list(turns) if is_text and "<think>" in turns[0] else []


def _is_span(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(end) in (int, float) for end in value)


def _gold_text(gold: Any) -> str:
    if isinstance(gold, Mapping) and "answer" in gold:
        return grounded_text(parse_spans(gold)[0], gold_text(gold["answer"], "the answer") or "")
    if isinstance(gold, list | Mapping):
        return span_text(parse_spans(gold)[0])
    return str(gold)


def _refuse_frames(row: Row, where: str) -> None:
    if row["video"] is None:
        return
    path = Path(row["video"])
    folder = next((place for place in (path, path.parent / path.stem) if place.is_dir()), None)
    if folder is not None and not path.is_file():
        raise TaskDataError(
            f"{where}: {folder} is a folder of extracted frames, and videos are read from their files here, with the "
            f"true time of each frame. Put the video itself at {path}, or set 'media' to the folder of the videos"
        )


# Benchmarks


def charades_sta(
    split: str,
    *,
    annotations: str,
    videos: str,
    durations: str | None = None,
    max_tool_calls: int = 0,
) -> Rows:
    """Temporal grounding on Charades-STA: a row for each line "VIDEO start end##sentence".

    Args:
        split: replaces "{split}" in the three paths; a range such as "test[:500]" takes part of the rows.
        annotations: the text file, charades_sta_{split}.txt.
        videos: folder of the videos.
        durations: Charades_v1_{split}.csv of Charades itself, whose columns `id` and `length` (seconds) give durations;
            without it the prompt names none.
        max_tool_calls: as in `published`.

    Raises:
        TaskDataError: a file or folder is missing. A line in another form, or a video that the durations lack, is one
            broken row.

    Source of the format: TALL, arXiv:1705.02101.
    """
    split, *ends = parse_split(split)
    file, folder = _split_path(annotations, split), _videos(videos, split)
    lines = [(number, line) for number, line in enumerate(_read_text(file).splitlines(), start=1) if line.strip()]
    length_of = None
    if durations is not None:
        length_of = {row["id"]: row["length"] for row in load_rows(_split_path(durations, split))}

    def build(entry: tuple[int, str]) -> Row:
        number, line = entry
        head, _, sentence = line.partition("##")
        video, start, end = head.split()
        duration = None if length_of is None else float(length_of[video])
        row = _grounding_row(folder, video, sentence, (start, end), duration, max_tool_calls)
        return row | {"id": f"{video}:{number}"}

    return Rows([_Records(lines, build, lambda entry: f"{file}:{entry[0]}")], media_root=folder).select_range(*ends)


def activitynet(split: str, *, annotations: str, videos: str, max_tool_calls: int = 0) -> Rows:
    """Temporal grounding on ActivityNet Captions: a row for each sentence.

    Args:
        split: replaces "{split}" in the paths; "val_1" and "val_2" are the usual ones. A range takes part of the rows.
        annotations: JSON {video id: {"duration", "timestamps": [[start, end], ...], "sentences": [...]}}, in seconds.
        videos: folder of the videos, named by their ids.
        max_tool_calls: as in `published`.

    Raises:
        TaskDataError: a file or folder is missing, or no such JSON.

    Source of the format: ActivityNet Captions, arXiv:1705.00754.
    """
    split, *ends = parse_split(split)
    file, folder = _split_path(annotations, split), _videos(videos, split)
    content = _load_object(file)
    try:
        entries = [(video, number) for video, item in content.items() for number in range(len(item["sentences"]))]
    except (KeyError, TypeError) as error:
        raise TaskDataError(f"{file}: each video needs 'duration', 'timestamps' and 'sentences'") from error

    def build(entry: tuple[str, int]) -> Row:
        video, number = entry
        item = content[video]
        sentence, span = item["sentences"][number], item["timestamps"][number]
        row = _grounding_row(folder, video, sentence, span, float(item["duration"]), max_tool_calls)
        return row | {"id": f"{video}:{number}"}

    part = _Records(entries, build, lambda entry: f"{file} {entry[0]} sentence {entry[1]}")
    return Rows([part], media_root=folder).select_range(*ends)


def nextgqa(
    split: str, *, questions: str, spans: str, videos: str, video_map: str | None = None, max_tool_calls: int = 0
) -> Rows:
    """Grounded question answering on NExT-GQA: five options, and one or several spans of evidence.

    Args:
        split: "val" or "test", replaces "{split}" in the paths; a range takes part of the rows.
        questions: {split}.csv with video_id, question, answer (text of the right option), qid, type, a0 .. a4.
        spans: gsub_{split}.json, {video id: {"duration", "location": {qid: [[start, end], ...]}}}, in seconds.
        videos: folder of the videos, named by their ids.
        video_map: map_vid_vidorID.json, {video id: path below `videos` without suffix}, for videos stored as in VidOR.
        max_tool_calls: as in `published`.

    Returns:
        Rows with `options`, `question_type`, and in `ground_truth` all spans; `answer` gives the first.

    Raises:
        TaskDataError: a file or folder is missing. A question without spans is one broken row.

    Source of the format: NExT-GQA, arXiv:2309.01327.
    """
    split, *ends = parse_split(split)
    folder = _videos(videos, split)
    records = load_rows(_split_path(questions, split))
    located = _load_object(_split_path(spans, split))
    stems = {} if video_map is None else _load_object(_absolute(video_map))

    def build(index: int) -> Row:
        record = records[index]
        video, options = record["video_id"], [record[f"a{number}"] for number in range(5)]
        row = _grounded_choice_row(
            folder,
            str(stems.get(video, video)),
            record["question"],
            options,
            LETTERS[options.index(record["answer"])],
            located[video]["location"][record["qid"]],
            float(located[video]["duration"]),
            max_tool_calls,
        )
        return row | {"id": f"{video}:{record['qid']}", "question_type": record["type"]}

    return Rows([_Records(range(len(records)), build, records.where)], media_root=folder).select_range(*ends)


def rextime(split: str, *, annotations: str, videos: str, max_tool_calls: int = 0) -> Rows:
    """Grounded question answering on ReXTime: four options, one span of evidence.

    Args:
        split: of the set ("validation"; the public test split has no gold); replaces "{split}" in `videos`. A range
            takes part of the rows.
        annotations: hub name (ReXTime/ReXTime) or local file with qid, vid, duration (seconds), question, options, ans
            (letter), span [start, end], category. The file on GitHub has query and relevant_windows for question and
            span, which are read, but no options: its rows break, unless you add them.
        videos: folder with the videos of both origins, ActivityNet and QVHighlights, named by `vid`.
        max_tool_calls: as in `published`.

    Raises:
        TaskDataError: as `load_rows`, or a folder is missing. A record without these columns is one broken row.

    Source of the format: ReXTime, arXiv:2406.19392.
    """
    records = load_rows(annotations, split=split)
    folder = _videos(videos, parse_split(split)[0])

    def build(index: int) -> Row:
        record = records[index]
        row = _grounded_choice_row(
            folder,
            record["vid"],
            record["question"] if "question" in record else record["query"],
            _options(record),
            _letter(record["ans"]),
            [record["span"]] if "span" in record else record["relevant_windows"],
            float(record["duration"]),
            max_tool_calls,
        )
        return row | {"id": record["qid"], "category": record.get("category")}

    return Rows([_Records(range(len(records)), build, records.where)], media_root=folder)


def video_mme(
    split: str = "test",
    *,
    videos: str,
    annotations: str = "lmms-lab/Video-MME",
    duration_class: str | None = None,
    max_tool_calls: int = 0,
) -> Rows:
    """Multiple-choice questions of Video-MME, without subtitles.

    Args:
        split: "test", maybe with a range.
        videos: folder of the videos, named by `videoID`.
        annotations: hub name or local parquet or JSONL with videoID, question_id, question, options, answer (letter),
            duration (short, medium or long), domain, task_type.
        duration_class: keep only the questions about short, medium or long videos.
        max_tool_calls: as in `published`.

    Returns:
        Rows with `duration_class`, `domain` and `task_type`; `duration` is None, since nothing says it in seconds.

    Raises:
        TaskDataError: as `load_rows`; a folder is missing; or no question is of the class.

    Source of the format: Video-MME, arXiv:2405.21075.
    """
    records = load_rows(annotations, split=split)
    folder = _videos(videos, parse_split(split)[0])
    indices: Sequence[int] = range(len(records))
    if duration_class is not None:
        classes = [record.get("duration") for record in records]
        indices = [index for index in indices if classes[index] == duration_class]
        if not indices:
            there = ", ".join(sorted(set(map(str, classes))))
            raise TaskDataError(f"{annotations}: no question about a {duration_class!r} video; there are: {there}")

    def build(index: int) -> Row:
        record = records[index]
        options, letter = _options(record), _letter(record["answer"])
        _check_letter(letter, options)
        return {
            "video": _video_file(folder, record["videoID"]),
            "image": None,
            "problem": user_prompt(choice_question(record["question"], options), max_tool_calls=max_tool_calls),
            "answer": gold_completion(letter),
            "ground_truth": letter,
            "task": "multiple_choice",
            "duration": None,
            "id": record["question_id"],
            "options": options,
            "duration_class": record["duration"],
            "domain": record.get("domain"),
            "task_type": record.get("task_type"),
        }

    return Rows([_Records(indices, build, records.where)], media_root=folder)


def _grounding_row(
    folder: Path, video: str, sentence: str, span: Sequence[Any], duration: float | None, max_tool_calls: int
) -> dict[str, Any]:
    gold = _span(span)
    return {
        "video": _video_file(folder, video),
        "image": None,
        "problem": user_prompt(grounding_question(sentence), duration_s=duration, max_tool_calls=max_tool_calls),
        "answer": gold_completion(span_text(gold)),
        "ground_truth": gold,
        "task": "temporal_grounding",
        "duration": duration,
    }


def _grounded_choice_row(
    folder: Path,
    video: str,
    question: str,
    options: Sequence[str],
    letter: str,
    spans: Sequence[Sequence[Any]],
    duration: float,
    max_tool_calls: int,
) -> dict[str, Any]:
    _check_letter(letter, options)
    gold_spans = [_span(span) for span in spans]
    problem = grounded_choice_question(question, options)
    return {
        "video": _video_file(folder, video),
        "image": None,
        "problem": user_prompt(problem, duration_s=duration, max_tool_calls=max_tool_calls),
        "answer": gold_completion(grounded_text(gold_spans[0], letter)),
        "ground_truth": {"span": gold_spans, "answer": letter},
        "task": "grounded_qa",
        "duration": duration,
        "options": list(options),
    }


# Shared


class _Records:
    """Rows made of records when they are read; a record that lacks something is one broken row."""

    def __init__(self, records: Sequence[Any], build: Callable[[Any], Row], where: Callable[[Any], str]) -> None:
        self._records, self._build, self._where = records, build, where

    def __len__(self) -> int:
        return len(self._records)

    def where(self, index: int) -> str:
        return self._where(self._records[index])

    def read(self, index: int) -> Row:
        try:
            return self._build(self._records[index])
        except TaskDataError as error:
            where = self.where(index)
            raise error if where in str(error) else TaskDataError(f"{where}: {error}") from error
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise TaskDataError(f"{self.where(index)}: unusable record: {type(error).__name__}: {error}") from error


def _options(record: Row) -> list[str]:
    options = read_options(record.get("options"))
    if options is None:
        raise TaskDataError(f"the record has no 'options', and is a question with options. It has: {', '.join(record)}")
    return options


def _letter(value: Any) -> str:
    return gold_text(value, "the answer", "the letter of an option") or ""


def _check_letter(letter: Any, options: Sequence[str]) -> None:
    if letter not in LETTERS[: len(options)]:
        raise TaskDataError(f"the gold answer {letter!r} is none of the {len(options)} options")


def _span(values: Sequence[Any]) -> list[float]:
    """Start and end in seconds; a span may be an instant, but not end before it starts."""
    start, end = (float(value) for value in values)
    if not (math.isfinite(start) and math.isfinite(end)):
        raise TaskDataError(f"the span {[start, end]} is not finite")
    if end < start:
        raise TaskDataError(f"the span {[start, end]} ends before it starts; the order of its ends is in doubt")
    return [start, end]


def _video_file(folder: Path, stem: str) -> str:
    """Path of a video whose suffix is not known; one that is missing breaks its row when it is read."""
    candidates = [folder / f"{stem}{suffix}" for suffix in VIDEO_SUFFIXES]
    return str(next((path for path in candidates if path.is_file()), candidates[0]))


def _videos(path: str, split: str) -> Path:
    folder = _split_path(path, split)
    if not folder.is_dir():
        raise TaskDataError(f"{folder}: no such folder of videos")
    return folder


def _split_path(path: str, split: str) -> Path:
    return _absolute(path.replace("{split}", split))


def _absolute(path: str) -> Path:
    """Absolute, so that media paths in rows hold whatever folder they are later read from."""
    return Path(path).expanduser().absolute()


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise TaskDataError(f"{file}: {error.strerror or error}") from error


def _load_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise TaskDataError(f"{file}: broken JSON: {error}") from error
    if not isinstance(content, dict):
        raise TaskDataError(f"{file}: expected an object with an entry for each video, not {type(content).__name__}")
    return content

"""Data sources of viewpoint learning: its training sets, views with camera poses, and the sets it is measured on.

All give rows with the same columns:

=============== ================================================================================================
`images`        list of images, as stored (see `mmrl_core.media.load_image`)
`problem`       the whole user text: the question with the marks of its images, and its options one a line
`options`       texts of the options in order; None for open questions
`ground_truth`  what rewards read: the gold option's letter, or the answer
`answer`        a completion that is right: the gold answer behind a placeholder of the reasoning
`target`        what a supervised stage imitates: the answer as the data have it
`question_type` what accuracies are reported by; None if nothing says it
`id`            as in the data, else the row's number
=============== ================================================================================================

Marks `<image>` in a text stay there: each stands for the next image, as the tasks say with `prompt.marks`. Their number
has to be that of the images; a text without any comes after its images.

Data licences differ from the code's.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mmrl_core.data import Row, Rows, load_rows, read_options, read_texts
from mmrl_core.errors import TaskDataError
from mmrl_core.scoring import gold_text
from mmrl_viewpoint.parsing import LETTERS, answer_text, is_formatted, lettered, option_letter
from mmrl_viewpoint.poses import HORIZONTAL_KINDS, answer_index, checked_pose, motion, object_centre, world_up
from mmrl_viewpoint.prompts import VIEWPOINT_QUESTIONS, gold_completion, question_text

MARK = "<image>"
SYSTEM_ROLES = ("system",)
ANSWER_ROLES = ("assistant", "gpt")
CIRCULAR_STEP = 1_000_000  # the rotations of item i in files of evaluation kits have the numbers i, i + 10^6, ...
PAIR_TRIES = 300
BenchmarkName = Literal["3dsrbench", "cv_bench", "blink", "mmsi", "spatial_eval", "omni3d"]


class _Built:
    """Rows that are made from a number when they are read."""

    def __init__(self, num_rows: int, build: Callable[[int], Row], where: Callable[[int], str]) -> None:
        self._num_rows = num_rows
        self._build = build
        self.where = where

    def __len__(self) -> int:
        return self._num_rows

    def read(self, index: int) -> Row:
        try:
            return self._build(index)
        except TaskDataError as error:
            where = self.where(index)
            raise error if where in str(error) else TaskDataError(f"{where}: {error}") from error


def make_row(
    images: Sequence[Any],
    question: str,
    options: Sequence[str] | None,
    ground_truth: str,
    *,
    question_type: str | None,
    id: Any,
    target: str | None = None,
) -> dict[str, Any]:
    """A row of the columns above.

    Raises:
        TaskDataError: no image, or an empty question or answer.
    """
    images = [image for image in images if image is not None]
    if not images or not question.strip() or not ground_truth.strip():
        raise TaskDataError("a row needs an image, a question and an answer; one of them is empty")
    return {
        "images": images,
        "problem": question_text(question, options or ()),
        "options": list(options) if options else None,
        "ground_truth": ground_truth.strip(),
        "answer": gold_completion(ground_truth.strip()),
        "target": target or f"<answer>{ground_truth.strip()}</answer>",
        "question_type": question_type,
        "id": id,
    }


# Published training rows


def published(
    split: str, *, path: str, reasoning: bool = False, revision: str | None = None, subset: str | None = None
) -> Rows:
    """Rows of Viewpoint-100K (INno0o/Viewpoint-100K), of the SAT of the second stage (INno0o/SAT), or your own.

    Three schemas are read, row by row. The fields of the published sets could not be seen when this was written; these
    are the ones that the public code reads.

    - verl: `prompt`, a list of {role, content}; `images`; `reward_model` with `ground_truth`; `extra_info`.
    - conversation, as the SFT framework reads it: `messages` of {role, content} or `conversations` of {from, value},
      the last turn being the answer; `images`.
    - plain: `question` (or `problem`), `options` (or `choices`; a list or its text, see `mmrl_core.data.read_options`;
      without such a column those that the question ends with), `answer` (or `ground_truth`, `gt_answer`; a letter, an
      option's text, or a whole completion), and `images`, `image` or `image_path`. Only here may the marks of images
      be left out.

    System turns are left out; the task has its own. `question_type` is that column, or in extra_info, or, for questions
    on cameras, which of ego_translation, ego_rotation and object_translation the wording asks for.

    Args:
        split: "train", "test", maybe with a range such as "train[:90%]".
        path: whatever `mmrl_core.data.load_rows` opens.
        reasoning: an answer that is not a think block and an answer block breaks its row: for the part of the hybrid
            cold start that reasons.
        revision, subset: of a hub set.

    Returns:
        Rows as above. A row of none of the schemas, without answer, with an answer that is none of its options, or
        with another number of marks than images is broken and raises TaskDataError when it is read.

    Raises:
        TaskDataError: as `load_rows`.
    """
    rows = load_rows(path, split=split, revision=revision, subset=subset)

    def build(index: int) -> Row:
        row = _published_row(rows[index], index)
        if reasoning and not is_formatted(row["target"]):
            raise TaskDataError("the answer has no think block in front of its answer block")
        return row

    return Rows([_Built(len(rows), build, rows.where)], media_root=rows.media_root)


def _published_row(row: Row, index: int) -> Row:
    extra = row.get("extra_info")
    extra = extra if isinstance(extra, Mapping) else {}
    question_type = row.get("question_type") or extra.get("question_type")
    images = _images(row)
    id = row.get("id", extra.get("index", index))
    if turns := row.get("prompt", row.get("messages", row.get("conversations"))):
        question, answered = _turns(turns)
        reward_model = row.get("reward_model")
        gold = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
        _check_marks(question, len(images))
        options = options_in(question)
        truth = _gold(gold if gold is not None else answered, options)
        built = make_row(images, question, None, truth, question_type=question_type, id=id, target=answered)
        built["options"] = options
    else:
        question = str(_first(row, "question", "problem"))
        if MARK in question:
            _check_marks(question, len(images))
        listed = _options(row, "options", "choices")
        answer = _first(row, "answer", "ground_truth", "gt_answer")
        target = answer if is_formatted(answer) else None
        options = listed or options_in(question)
        truth = _gold(answer, options)
        if listed and truth not in tuple(LETTERS[: len(listed)]):
            raise TaskDataError(f"the gold answer {truth!r} names none of the options {listed}")
        built = make_row(images, question, listed, truth, question_type=question_type, id=id, target=target)
        built["options"] = options
    built["question_type"] = question_type or viewpoint_kind(question)
    return built


def _turns(turns: Any) -> tuple[str, str | None]:
    """The text that asks, and the one that answers if there is any."""
    try:
        said = [(str(turn.get("role", turn.get("from"))), turn.get("content", turn.get("value"))) for turn in turns]
    except (TypeError, AttributeError) as error:
        raise TaskDataError("a conversation is a list of turns, each with role and content") from error
    said = [(role, text) for role, text in said if role not in SYSTEM_ROLES]
    if not said or not all(isinstance(text, str) for _, text in said):
        raise TaskDataError("a conversation has no turn, or one whose content is no text")
    answered = said.pop()[1] if said[-1][0] in ANSWER_ROLES else None
    if len(said) != 1:
        raise TaskDataError(f"a conversation is a question and maybe its answer; this one has {len(said)} questions")
    return said[0][1], answered


def _gold(value: Any, options: Sequence[str] | None) -> str:
    """The gold letter where the row has options that name it, else the answer's text."""
    text = gold_text(value, "the answer", "the letter or text of an option, or a number") or ""
    inside = answer_text(text)
    text = text if inside is None else inside
    if not text:
        raise TaskDataError("the row has no answer")
    return (option_letter(text, options) if options else None) or text


def _first(row: Row, *columns: str) -> Any:
    for column in columns:
        if row.get(column) is not None:
            return row[column]
    raise TaskDataError(f"the row has no {' or '.join(map(repr, columns))}. Columns: {', '.join(map(str, row))}")


def _as_list(value: Any) -> list[Any]:
    """The images of a column: one, several, or the text of a list of several."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)  # of base64, maybe, which is longer than any list of texts
        except (ValueError, RecursionError):
            value = read_texts(value, "images")
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _images(row: Row) -> list[Any]:
    column = next((name for name in ("images", "image", "image_path") if row.get(name) is not None), "images")
    return _as_list(row.get(column))


def _options(row: Row, *columns: str) -> list[str] | None:
    """The options of the first of these columns that has any, without labels in front of them."""
    for column in columns:
        if (options := read_options(row.get(column), column)) is not None:
            if len(options) > len(LETTERS):
                raise TaskDataError(f"{column} holds {len(options)} options, more than there are letters")
            return list(lettered(options).values())
    return None


def _check_marks(text: str, num_images: int) -> None:
    marks = text.count(MARK)
    if marks != num_images:
        raise TaskDataError(f"the text has {marks} marks {MARK} for {num_images} images")


def options_in(question: str) -> list[str] | None:
    """Texts of the options that a question ends with, as lines "A. ..." or "(A) ...", or in a line "A: ..., B: ...".

    >>> options_in("Which way? Options: A: left, B: right"), options_in("Why?")
    (['left', 'right'], None)
    """
    found = _option_starts(question)
    if len(found) < 2:
        return None
    ends = [start for start, _ in found[1:]] + [len(question)]
    return [question[text:end].strip().rstrip(",;").strip() for (_, text), end in zip(found, ends, strict=True)]


def _option_starts(question: str) -> list[tuple[int, int]]:
    """Where the label of each option starts and ends, for the last run of labels that starts with A."""
    for closing in (".", ":", ")"):
        found: list[tuple[int, int]] = []
        starts = _labels(question, f"A{closing}")[-1:]
        for letter in LETTERS:
            if found:
                starts = [start for start in _labels(question, f"{letter}{closing}") if start >= found[-1][1]]
            if not starts:
                break
            opening = starts[0] - 1 if question[starts[0] - 1 : starts[0]] == "(" else starts[0]
            found.append((opening, starts[0] + 2))
        if len(found) > 1:
            return found
    return []


def _labels(text: str, label: str) -> list[int]:
    """Where a label stands at the start of the text, or after a blank or bracket."""
    return [match.start() for match in re.finditer(rf"(?<![^\s(]){re.escape(label)}", text)]


def viewpoint_kind(question: str) -> str | None:
    """Which kind of `prompts.VIEWPOINT_QUESTIONS` a wording asks for; None if it is not about a camera's movement."""
    text = question.casefold()
    if "camera" not in text:
        return None
    if "rotat" in text or "orientation" in text:
        return "ego_rotation"
    if "object's perspective" in text or "as the object sees it" in text:
        return "object_translation"
    return "ego_translation" if "move" in text or "translation" in text else None


# SAT


def sat(
    split: str,
    *,
    path: str = "array/SAT",
    seed: int = 0,
    circular: bool = False,
    revision: str | None = None,
) -> Rows:
    """SAT (arXiv:2412.07755): questions on one or two images, with the options of each row in an order of its own.

    Rows have `image_bytes`, `question`, `answers`, `correct_answer`, `question_type`.

    Args:
        split: "train", "static", "val" or "test", maybe with a range.
        path: hub name, or local files of the same schema.
        seed: of the order of options; a row's order depends on it and on the row's number.
        circular: each row once for every rotation of its options, for `metrics.circular_accuracy`; reads all rows once.
        revision: of the hub set.

    Returns:
        Rows as above, and `circular_group`.

    Raises:
        TaskDataError: as `load_rows`.
    """
    rows = load_rows(path, split=split, revision=revision)

    def item(index: int) -> _Item:
        row = rows[index]
        options = _options(row, "answers")
        if options is None:
            raise TaskDataError("the row has no options: answers")
        truth = gold_text(_first(row, "correct_answer"), "correct_answer") or ""
        letter = option_letter(truth, options)  # before the shuffle: a stored letter is of the stored order
        order = list(range(len(options)))
        random.Random(f"{seed} {index}").shuffle(order)
        return _Item(
            _as_list(_first(row, "image_bytes", "images", "image")),
            str(_first(row, "question")),
            [options[place] for place in order],
            LETTERS[order.index(LETTERS.index(letter))] if letter else truth,
            row.get("question_type"),
            row.get("id", index),
        )

    return _items(rows, item, circular)


# Evaluation sets


@dataclass
class _Item:
    """A question of an evaluation set. `truth` is a letter, or the answer to an open question."""

    images: list[Any]
    question: str
    options: list[str] | None
    truth: str
    question_type: Any
    id: Any
    more: Mapping[str, Any] = field(default_factory=dict)

    def row(self, rotation: int) -> Row:
        if self.options is not None and self.truth not in tuple(LETTERS[: len(self.options)]):
            raise TaskDataError(f"the gold answer {self.truth!r} names none of the options {self.options}")
        options, truth = self.options, self.truth
        if rotation and options:
            place = LETTERS.index(truth)
            truth = LETTERS[(place - rotation) % len(options)]
            options = options[rotation:] + options[:rotation]
        kind = None if self.question_type is None else str(self.question_type)
        built = make_row(self.images, self.question, options, truth, question_type=kind, id=self.id)
        return {**built, "circular_group": _group(self.id), **self.more}


def _group(id: Any) -> str:
    text = str(id)
    return str(int(text) % CIRCULAR_STEP) if text.isascii() and text.isdigit() and len(text) < 20 else text


def _items(rows: Rows, item: Callable[[int], _Item], circular: bool, images: Path | None = None) -> Rows:
    """A row for each item, or for each rotation of each item; `images`: their folder, if it is not that of the rows."""
    places = list(_rotations(rows, item)) if circular else [(index, 0) for index in range(len(rows))]
    built = _Built(
        len(places),
        lambda number: item(places[number][0]).row(places[number][1]),
        lambda number: rows.where(places[number][0]),
    )
    return Rows([built], media_root=images or rows.media_root)


def _rotations(rows: Rows, item: Callable[[int], _Item]) -> Iterator[tuple[int, int]]:
    for index in range(len(rows)):
        try:
            num_options = len(item(index).options or ()) or 1
        except TaskDataError:  # raised again when the row is used
            num_options = 1
        for rotation in range(num_options):
            yield index, rotation


def benchmark(
    split: str,
    *,
    benchmark: BenchmarkName,
    path: str | None = None,
    images: str | None = None,
    subset: str | None = None,
    circular: bool = False,
    revision: str | None = None,
) -> Rows:
    """A published evaluation set, from the hub or from files of its schema.

    ============ ========================== ============================================================ =============
    benchmark    hub set, split             columns                                                      question_type
    ============ ========================== ============================================================ =============
    3dsrbench    ccvl/3DSRBench, test       index, question, A to D, answer, category, image_url         category
    cv_bench     nyu-visionx/CV-Bench, test idx, question, choices, answer "(A)", task, image            task
    blink        BLINK-Benchmark/BLINK, val idx, question, choices, answer "(A)", sub_task, image_1 to 4 sub_task
    mmsi         RunsenXu/MMSI-Bench, test  id, question with its options, answer, question_type, images question_type
    spatial_eval MilaWang/SpatialEval, test id, text with its options, oracle_option, image              start of id
    omni3d       dmarsili/Omni3D-Bench,     question, answer, answer_type, image_index, q_index, image   answer_type
                 train
    ============ ========================== ============================================================ =============

    3dsrbench names its images by internet addresses, which are not opened: download them, or use its TSV. TSV files of
    evaluation kits, with `image` in base64 and options in columns A to D, are read for all but omni3d, whose questions
    are open: see `metrics.omni3d`.

    Args:
        split: as in the table, maybe with a range; "train" for a single local file.
        benchmark: which one.
        path: local files; default the hub set.
        images: folder of images that are named by address, found by the last part of it.
        subset: of a hub set: BLINK's Multi-view_Reasoning, Relative_Depth, Spatial_Relation; SpatialEval's vqa, vtqa.
        circular: each item once for every rotation of its options, for `metrics.circular_accuracy`; reads all items
            once. Leave it out for files that hold the rotations already, numbered i, i + 1,000,000 and so on.
        revision: of a hub set.

    Returns:
        Rows as above, and `circular_group`; for omni3d also `answer_type`.

    Raises:
        TaskDataError: as `load_rows`; an unknown benchmark.
    """
    if benchmark not in get_args(BenchmarkName):
        raise TaskDataError(f"no benchmark {benchmark!r}; there are: {', '.join(get_args(BenchmarkName))}")
    hub, read = _BENCHMARKS[benchmark]
    rows = load_rows(path or hub, split=split, subset=subset, revision=revision)
    folder = None if images is None else Path(images).expanduser().absolute()
    return _items(rows, lambda index: read(rows[index], folder), circular, folder)


def _stored_images(row: Row, folder: Path | None) -> list[Any]:
    """The images of a row: paths, bytes, base64, a JSON list of base64, or files of addresses."""
    values = _images(row)
    if not values:
        values = [row.get(f"image_{number}") for number in range(1, 5)]
    if not any(value is not None for value in values) and row.get("image_url"):
        if folder is None:
            raise TaskDataError("the image is an internet address; download the images and name their folder: images")
        values = [folder / str(row["image_url"]).rpartition("/")[2]]
    return [value for value in values if value is not None]


def _column_options(row: Row) -> list[str] | None:
    """Options of the columns A, B, ...; evaluation kits leave those of shorter questions empty."""
    options = []
    for letter in LETTERS[:8]:
        text = str(row.get(letter) if row.get(letter) is not None else "").strip()
        if text.casefold() in ("", "nan"):
            break
        options.append(text)
    return options or None


def _choice_item(
    row: Row, folder: Path | None, *, question_type: str, question: str = "question", answer: str = "answer"
) -> _Item:
    """An item whose options are a column, columns A to D, or in the text."""
    text = str(_first(row, question))
    options = _options(row, "choices", "options") or _column_options(row)
    if options is None and (options := options_in(text)) is not None:
        text = text[: _option_starts(text)[0][0]].rstrip()
        for heading in ("Available options:", "Options:"):
            text = text.removesuffix(heading).rstrip()
    if options is None:
        raise TaskDataError("the question has no options")
    gold = gold_text(_first(row, answer, "answer"), answer, "the letter or text of an option") or ""
    truth = option_letter(gold, options) or gold
    kind = row.get(question_type, row.get("category"))
    return _Item(_stored_images(row, folder), text, options, truth, kind, _first(row, "index", "idx", "id"))


def _spatial_eval_item(row: Row, folder: Path | None) -> _Item:
    question = "text" if row.get("text") is not None else "question"
    item = _choice_item(row, folder, question_type="category", question=question, answer="oracle_option")
    item.question_type = item.question_type or str(item.id).partition(".")[0]
    return item


def _omni3d_item(row: Row, folder: Path | None) -> _Item:
    answer_type = str(_first(row, "answer_type"))
    return _Item(
        _stored_images(row, folder),
        str(_first(row, "question")),
        None,
        gold_text(_first(row, "answer"), "answer") or "",
        answer_type,
        f"{row.get('image_index')}-{row.get('q_index', row.get('question_index'))}",
        {"answer_type": answer_type},
    )


_BENCHMARKS: Mapping[str, tuple[str, Callable[[Row, Path | None], _Item]]] = {
    "3dsrbench": ("ccvl/3DSRBench", functools.partial(_choice_item, question_type="category")),
    "cv_bench": ("nyu-visionx/CV-Bench", functools.partial(_choice_item, question_type="task")),
    "blink": ("BLINK-Benchmark/BLINK", functools.partial(_choice_item, question_type="sub_task")),
    "mmsi": ("RunsenXu/MMSI-Bench", functools.partial(_choice_item, question_type="question_type")),
    "spatial_eval": ("MilaWang/SpatialEval", _spatial_eval_item),
    "omni3d": ("dmarsili/Omni3D-Bench", _omni3d_item),
}


# Views with camera poses


def posed_views(
    split: str,
    *,
    path: str,
    num_rows: int,
    kinds: Sequence[str] = HORIZONTAL_KINDS,
    min_angle_deg: float = 20.0,
    max_angle_deg: float = 100.0,
    shuffle_options: bool = False,
    up: Sequence[float] | None = None,
    seed: int = 0,
) -> Rows:
    """Viewpoint questions on pairs of views of your own objects, from the cameras' poses.

    This is how Viewpoint-100K was made from MVImgNet: two views of one object whose cameras stand 20 to 100 degrees
    apart around it, and a question on how the second camera moved. Kinds of questions take turns, and so do the right
    answers of each kind, so that left, right and no movement are equally frequent. Where nothing moved, the cameras may
    stand closer together than `min_angle_deg`.

    Args:
        split: of `path`, maybe with a range.
        path: rows, one for each view: `object`, `image`, and `camera_to_world`, a 4 x 4 matrix as lists, in the
            conventions of `poses`.
        num_rows: pairs to draw; an object may be in several.
        kinds: of `prompts.VIEWPOINT_QUESTIONS`.
        min_angle_deg, max_angle_deg: horizontal angle between the cameras, seen from the object.
        shuffle_options: an order of options for each row; published: always the same.
        up: vertical of the world, if all objects share one; default: `poses.world_up` of each object's views.
        seed: of the pairs and of the order of options.

    Returns:
        Rows as above, and `object`; after them a broken row for each view that no pair can be made with, so that it is
        set aside and counted. The same arguments give the same rows; all views are read once at the start.

    Raises:
        TaskDataError: an unknown kind, or no object has two views with poses.
    """
    if unknown := sorted(set(kinds) - set(VIEWPOINT_QUESTIONS)):
        raise TaskDataError(f"no kind of question {unknown[0]!r}; there are: {', '.join(VIEWPOINT_QUESTIONS)}")
    views = load_rows(path, split=split)
    objects, broken = _posed_objects(views, up)
    if not objects:
        raise TaskDataError(f"{path}: no object has two views" + (f": {broken[0][1]}" if broken else ""))
    names = sorted(objects)

    def build(index: int) -> Row:
        rng = random.Random(f"{seed} {split} {index}")
        kind = kinds[index % len(kinds)]
        wanted = index // len(kinds) % 3
        for _ in range(PAIR_TRIES):
            name = rng.choice(names)
            members, centre, vertical = objects[name]
            first, second = rng.sample(members, 2)
            try:
                change = motion(first["pose"], second["pose"], centre, vertical)
            except TaskDataError:  # a view from straight above, say: it has no left and right
                continue
            moves_sideways = kind in HORIZONTAL_KINDS and wanted != 1
            low = min_angle_deg if moves_sideways else 0.0
            if answer_index(kind, change) == wanted and low <= abs(change.angle_deg) <= max_angle_deg:
                images = [first["image"], second["image"]]
                return viewpoint_row(images, kind, wanted, id=index, order=rng if shuffle_options else None) | {
                    "object": name
                }
        raise TaskDataError(
            f"none of {PAIR_TRIES} pairs of views answers a question of the kind {kind!r} by "
            f"{VIEWPOINT_QUESTIONS[kind][1][wanted]!r}; leave the kind out, or allow other angles"
        )

    def refuse(index: int) -> Row:
        raise TaskDataError(broken[index][1])

    part = _Built(num_rows, build, lambda index: f"{path} pair {index}")
    rest = _Built(len(broken), refuse, lambda index: broken[index][0])
    return Rows([part, rest], media_root=views.media_root)


def _posed_objects(
    views: Rows, up: Sequence[float] | None
) -> tuple[dict[str, tuple[list[Row], Sequence[float], Sequence[float]]], list[tuple[str, str]]]:
    """Objects of several views with their centres and verticals; and where the other views are, with the reason."""
    by_object: dict[str, list[Row]] = defaultdict(list)
    broken: list[tuple[str, str]] = []
    for index in range(len(views)):
        try:
            view = views[index]
            pose = checked_pose(_first(view, "camera_to_world"))
            member = {"image": _first(view, "image"), "pose": pose, "where": views.where(index)}
            by_object[str(_first(view, "object"))].append(member)
        except TaskDataError as error:
            broken.append((views.where(index), str(error)))
    objects: dict[str, tuple[list[Row], Sequence[float], Sequence[float]]] = {}
    for name, members in by_object.items():
        poses = [view["pose"] for view in members]
        try:
            if len(members) > 1:
                objects[name] = members, object_centre(poses), world_up(poses) if up is None else up
        except TaskDataError as error:
            broken += [(view["where"], f"object {name!r}: {error}") for view in members]
    return objects, broken


def viewpoint_row(
    images: Sequence[Any], kind: str, answer: int, *, id: Any, order: random.Random | None = None
) -> dict[str, Any]:
    """A row that asks how the camera moved between two views.

    Args:
        images: the two views.
        kind, answer: of `prompts.VIEWPOINT_QUESTIONS`, and the index of the right option there.
        id: of the row.
        order: shuffles the options.
    """
    question, options = VIEWPOINT_QUESTIONS[kind]
    places = list(range(len(options)))
    if order is not None:
        order.shuffle(places)
    return make_row(
        images,
        question,
        [options[place] for place in places],
        LETTERS[places.index(answer)],
        question_type=kind,
        id=id,
    )

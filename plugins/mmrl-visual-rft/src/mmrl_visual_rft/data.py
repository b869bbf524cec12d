"""Data sources of Visual-RFT. Each gives rows {image, problem, solution, ...} for one split.

`image` stays as stored (see `mmrl_core.media.load_image`), `problem` is the prompt's text, `solution` the gold answer
in answer tags with boxes in thousandths of the image's sides. Rows that are made here from annotations also carry the
exact boxes (`boxes_px`, x1 y1 x2 y2 in pixels of the original image), its `width` and `height`, and what the metrics
need.

Data licences differ from the code's: the published sets are CC BY-NC 4.0.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmrl_core.data import (
    IMAGE_SUFFIXES,
    Frame,
    Placement,
    Row,
    Rows,
    load_rows,
    note_files,
    parse_split,
    picture_frame,
)
from mmrl_core.errors import MediaError, TaskDataError
from mmrl_core.scoring import unusable_gold
from mmrl_visual_rft.parsing import answer_text, parse_boxes, parse_detections
from mmrl_visual_rft.prompts import detection_prompt, grounding_prompt
from mmrl_visual_rft.rewards import solution_text

logger = logging.getLogger(__name__)

BoxPx = tuple[float, float, float, float]
PUBLISHED_COLUMNS = ("image", "problem", "solution")
OUTSIDE = 0.05  # how far a shape may reach over an edge, as a share of that side
NO_OBJECTS = "<answer>No Objects</answer>"


# Solutions


def per_mille_box(box_px: Sequence[float], width: float, height: float) -> tuple[int, int, int, int]:
    """Box x1, y1, x2, y2 in pixels -> integers 0..1000, each axis by its own side; never without area.

    Our choice: nearest integer, clipped to the image. (The published grounding data truncate.)

    Raises:
        ValueError: the box has no area, does not touch the image, or is not finite; or the image has no area.

    >>> per_mille_box((160, 120, 320, 240), width=640, height=480)
    (250, 250, 500, 500)
    """
    if not (width > 0 and height > 0):
        raise ValueError(f"image of {width} x {height} pixels")
    x1, y1, x2, y2 = box_px
    if not all(map(math.isfinite, box_px)) or x2 <= x1 or y2 <= y1:
        raise ValueError(f"box {list(box_px)} has no area")
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        raise ValueError(f"box {list(box_px)} lies outside the image of {width} x {height} pixels")
    left, right = _per_mille_span(x1, x2, width)
    top, bottom = _per_mille_span(y1, y2, height)
    return left, top, right, bottom


def _per_mille_span(low: float, high: float, side: float) -> tuple[int, int]:
    first, last = (min(1000, max(0, round(1000 * value / side))) for value in (low, high))
    if first == last:  # thinner than half a thousandth: keep it findable
        first, last = (first, last + 1) if last < 1000 else (first - 1, last)
    return first, last


def detection_solution(boxes: Iterable[Sequence[int]]) -> str:
    """Per-mille boxes in the published detection format; no boxes give "No Objects".

    >>> detection_solution([(254, 303, 291, 365)])
    "<answer>[{'Position': [254, 303, 291, 365], 'Confidence': 1}]</answer>"
    """
    items = ", ".join(f"{{'Position': {list(box)}, 'Confidence': 1}}" for box in boxes)
    return f"<answer>[{items}]</answer>" if items else NO_OBJECTS


def grounding_solution(boxes: Iterable[Sequence[int]]) -> str:
    """Per-mille boxes in the published grounding format; several are alternatives, any of which answers.

    >>> grounding_solution([(10, 20, 300, 400)])
    '<answer> (10,20),(300,400) </answer>'
    """
    return f"<answer> {' '.join(f'({x1},{y1}),({x2},{y2})' for x1, y1, x2, y2 in boxes)} </answer>"


# Published rows


def published(split: str, *, path: str, revision: str | None = None, subset: str | None = None) -> Rows:
    """Rows in the published schema image, problem, solution: a hub set such as laolao77/ViRFT_COCO, or local files.

    Also reads the published conversation form of the grounding set, `{"conversations": [{"value": "<img>path</img>
    text"}, {"value": "(x1,y1),(x2,y2)"}]}`.

    Args:
        split: "train" in all published sets; ranges such as "train[:90%]" work.
        path: whatever `mmrl_core.data.load_rows` opens.
        revision, subset: of a hub set.

    Returns:
        Rows as stored; a solution that is stored as a list or number becomes text. A row is broken and raises
        TaskDataError when read if it lacks these columns; if its solution is of another kind; or if its solution names
        boxes, its picture has an EXIF orientation, and no column says by its size which way up it was annotated.

    Raises:
        TaskDataError: as `load_rows`, or the first readable row has other columns.
    """
    rows = load_rows(path, split=split, revision=revision, subset=subset)
    part = _PublishedRows(rows)
    for index in range(len(rows)):
        try:
            row = rows[index]
        except TaskDataError:  # one broken row; the next one tells
            continue
        part.check_columns(row, path)
        break
    return Rows([part], media_root=rows.media_root)


class _PublishedRows:
    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return self.rows.where(index)

    def read(self, index: int) -> Row:
        row = self.rows[index]
        if "conversations" in row:
            return _from_conversation(row, self.where(index))
        self.check_columns(row, self.where(index))
        try:
            return {**row, "solution": self._solution(row)}
        except TaskDataError as error:
            raise TaskDataError(f"{self.where(index)}: {error}") from error

    def _solution(self, row: Row) -> str:
        """The solution as text; with boxes, in the frame of the picture as it is shown."""
        stored = row["solution"]
        text = solution_text(row)
        answer = answer_text(text)
        boxes = parse_boxes(answer) or [detection.box for detection in parse_detections(answer) or ()]
        if text is None or (not isinstance(stored, str | int | float) and "{" in text and not boxes):
            raise unusable_gold(stored, "solution", "a text: the answer in answer tags")
        if boxes:
            _upright(row["image"], self.rows.media_root)
        return text if "<answer>" in text or isinstance(stored, str) else f"<answer>{text}</answer>"

    def check_columns(self, row: Row, where: str) -> None:
        missing = [name for name in PUBLISHED_COLUMNS if name not in row]
        if missing and "conversations" not in row:
            raise TaskDataError(
                f"{where} has no column {missing[0]!r}; the published schema is {', '.join(PUBLISHED_COLUMNS)}. "
                f"Columns here: {', '.join(map(str, row))}"
            )


def _upright(image: Any, root: Path | None) -> None:
    """Refuse a picture that is shown turned: boxes in thousandths do not say of which frame they are.

    Raises:
        TaskDataError: its file has an EXIF orientation.
    """
    try:
        frame = picture_frame(image, root or Path.cwd())
    except MediaError:  # the run says so, when it loads the picture
        return
    frame.place(None)


def _from_conversation(row: Row, where: str) -> Row:
    try:
        question, answer = (str(turn["value"]) for turn in row["conversations"])
        image, closing, problem = question.partition("<img>")[2].partition("</img>")
    except (TypeError, KeyError, ValueError) as error:
        raise TaskDataError(f"{where}: a conversation is two turns, each with a 'value'") from error
    if not closing or not image.strip():
        raise TaskDataError(f"{where}: the first turn names no image in <img> tags")
    kept = {name: value for name, value in row.items() if name != "conversations"}
    return kept | {
        "image": image.strip(),
        "problem": problem.strip(),
        "solution": f"<answer> {answer.strip()} </answer>",
    }


# COCO and LVIS


def coco(
    split: str,
    *,
    annotations: str,
    images: str,
    categories: Sequence[str] | None = None,
    exist_map: str | None = None,
    negatives: int = 0,
    not_exhaustive: Literal["skip", "keep"] = "skip",
    thinking: bool = True,
    seed: int = 0,
) -> Rows:
    """Detection rows from a COCO or LVIS annotation file: one row for each image and category.

    Args:
        split: replaces "{split}" in `annotations` and `images`, such as "instances_{split}2017.json"; a range such as
            "train[:90%]" takes part of the rows. Without "{split}" there is only "train".
        annotations: the JSON file.
        images: folder of the images. LVIS names none; then the end of coco_url is looked for in it.
        categories: names to ask for; default all.
        exist_map: JSON {image id: [category names]}, as published for the benchmarks: the pairs that a baseline said
            are there, right or wrong. These pairs are then asked. A pair with objects that the map lacks stays as a
            row with `asked` False: `coco_ap` counts its objects as missed, as the published evaluation does.
        negatives: without exist_map, ask for this many categories per image that are not there, drawn with `seed`:
            LVIS's neg_category_ids; else any category without annotation in the image (COCO labels every category
            exhaustively) that the file annotates somewhere and that is no other category's supercategory. Nobody has
            looked for the others: exports of Roboflow begin with one that holds all the rest.
        not_exhaustive: LVIS lists categories of which an image may show unlabelled objects. "skip" leaves these rows
            out, because a right box would be punished; "keep" marks them `exhaustive` False (`coco_ap` then ignores
            surplus boxes, as LVIS does).
        thinking: of the prompt, see `prompts.detection_prompt`.
        seed: of the negatives.

    Returns:
        Rows with image {"path", "bytes": None}, problem, solution, image_id, category, category_id, width, height,
        boxes_px, crowd_boxes_px, exhaustive, asked; in the order of the file, categories by id. Crowd regions are in no
        solution; a pair of nothing but crowd is asked only by an exist_map. A row with an annotation without area is
        broken, and so is one whose picture is not of the shape that the file says; where it is stored turned (EXIF) and
        was annotated so, width, height and boxes are those of the picture as it is shown. Annotations of images that
        the file does not list are left out.

    Raises:
        TaskDataError: a file or folder is missing, is no COCO JSON, or names an unknown category.
    """
    split, *ends = parse_split(split)
    if "{split}" not in annotations and split != "train":
        raise TaskDataError(
            f"split {split!r} has no effect: write {{split}} in 'annotations' ({annotations}), or leave the split out"
        )
    file, folder = (_path(name.replace("{split}", split)) for name in (annotations, images))
    if not folder.is_dir():
        raise TaskDataError(f"{folder}: no such folder of images")
    content = _load_json(file)
    part = _CocoRows(file, folder, content, thinking)
    part.choose_pairs(categories, exist_map, negatives, not_exhaustive, seed)
    return Rows([part], media_root=folder).select_range(*ends)


class _CocoRows:
    def __init__(self, file: Path, folder: Path, content: Any, thinking: bool) -> None:
        try:
            self.images = {image["id"]: image for image in content["images"]}
            self.names = {category["id"]: str(category["name"]) for category in content["categories"]}
            parents = {category.get("supercategory") for category in content["categories"]}
            self.of_pair: dict[tuple[Any, Any], list[Mapping[str, Any]]] = defaultdict(list)
            for annotation in content["annotations"]:
                if annotation["image_id"] in self.images:
                    self.of_pair[annotation["image_id"], annotation["category_id"]].append(annotation)
        except (KeyError, TypeError) as error:
            raise TaskDataError(
                f"{file}: not a COCO or LVIS annotation file ({type(error).__name__}: {error}); it needs images, "
                "annotations and categories"
            ) from error
        unknown = {category_id for _, category_id in self.of_pair} - set(self.names)
        if unknown:
            raise TaskDataError(f"{file}: annotations name category id {min(unknown)}, which 'categories' lacks")
        annotated = {category_id for _, category_id in self.of_pair}
        groups = {
            category["id"]
            for category in content["categories"]
            if category["name"] in parents - {category.get("supercategory")}
        }
        self.searched = annotated - groups  # categories whose absence from an image means something
        self.file, self.folder, self.thinking = file, folder, thinking
        self.pairs: list[tuple[Any, Any, bool]] = []  # image id, category id, asked

    def choose_pairs(
        self,
        categories: Sequence[str] | None,
        exist_map: str | None,
        negatives: int,
        not_exhaustive: str,
        seed: int,
    ) -> None:
        """Fill `self.pairs`."""
        if not_exhaustive not in ("skip", "keep"):
            raise TaskDataError(f"not_exhaustive is 'skip' or 'keep', not {not_exhaustive!r}")
        if exist_map is not None and negatives:
            raise TaskDataError("exist_map and negatives exclude each other: the map already says what to ask")
        wanted = set(self.names) if categories is None else {self._category_id(name) for name in categories}
        asked_of = {} if exist_map is None else _load_json(_path(exist_map))
        if not isinstance(asked_of, dict):
            raise TaskDataError(f"{exist_map}: expected an object of image ids, each with a list of category names")
        if negatives and (unsearched := wanted - self.searched):
            names = ", ".join(sorted(self.names[category_id] for category_id in unsearched))
            logger.info("%s: no negatives but LVIS's own of: %s (not annotated, or a group)", self.file, names)
        present: dict[Any, set[Any]] = defaultdict(set)
        for (image_id, category_id), found in self.of_pair.items():
            if not all(annotation.get("iscrowd") for annotation in found):
                present[image_id].add(category_id)
        for image_id, image in self.images.items():
            with_objects = present[image_id] & wanted
            if exist_map is not None:
                asked = {self._category_id(name) for name in asked_of.get(str(image_id), [])} & wanted
            else:
                absent = self._absent(image_id, image, wanted - present[image_id])
                rng = random.Random(f"{seed}/{image_id}")
                asked = with_objects | set(rng.sample(absent, min(negatives, len(absent))))
            for category_id in sorted(asked | with_objects):
                if not_exhaustive == "keep" or self._is_exhaustive(image_id, category_id):
                    self.pairs.append((image_id, category_id, category_id in asked))

    def _absent(self, image_id: Any, image: Mapping[str, Any], candidates: set[Any]) -> list[Any]:
        """Categories that are known not to be in the image."""
        known = image.get("neg_category_ids")
        absent = candidates & (self.searched if known is None else set(known))
        return sorted(category_id for category_id in absent if (image_id, category_id) not in self.of_pair)

    def _is_exhaustive(self, image_id: Any, category_id: Any) -> bool:
        return category_id not in self.images[image_id].get("not_exhaustive_category_ids", ())

    def _category_id(self, name: str) -> Any:
        for category_id, known in self.names.items():
            if known == name:
                return category_id
        near = difflib.get_close_matches(str(name), self.names.values(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TaskDataError(f"{self.file} has no category {name!r}.{hint}")

    def __len__(self) -> int:
        return len(self.pairs)

    def where(self, index: int) -> str:
        image_id, category_id, _ = self.pairs[index]
        return f"{self.file} image {image_id} category {self.names[category_id]!r}"

    def read(self, index: int) -> Row:
        image_id, category_id, asked = self.pairs[index]
        image = self.images[image_id]
        boxes: list[BoxPx] = []
        crowds: list[BoxPx] = []
        try:
            path = self._image_path(image)
            placement = _placement(path, self.folder, image["width"], image["height"])
            width, height = placement.width, placement.height
            for annotation in self.of_pair.get((image_id, category_id), []):
                x, y, box_width, box_height = map(float, annotation["bbox"])
                box = placement.box(x, y, x + box_width, y + box_height)
                (crowds if annotation.get("iscrowd") else boxes).append(box)
            solution = detection_solution(per_mille_box(box, width, height) for box in boxes)
        except (KeyError, TypeError, ValueError) as error:
            raise TaskDataError(f"{self.where(index)}: unusable annotation: {error}") from error
        except TaskDataError as error:
            raise TaskDataError(f"{self.where(index)}: {error}") from error
        return {
            "image": {"path": str(path), "bytes": None},
            "problem": detection_prompt(self.names[category_id], thinking=self.thinking),
            "solution": solution,
            "image_id": image_id,
            "category": self.names[category_id],
            "category_id": category_id,
            "width": width,
            "height": height,
            "boxes_px": boxes,
            "crowd_boxes_px": crowds,
            "exhaustive": self._is_exhaustive(image_id, category_id),
            "asked": asked,
        }

    def _image_path(self, image: Mapping[str, Any]) -> Path:
        if "file_name" in image:
            return self.folder / image["file_name"]
        *_, set_name, name = str(image["coco_url"]).split("/")  # LVIS: .../train2017/000000391895.jpg
        in_set = self.folder / set_name / name
        return in_set if in_set.is_file() else self.folder / name


def _placement(path: Path, folder: Path, width: float, height: float) -> Placement:
    """How boxes of an annotation lie in the picture; as they are where there is no picture, which breaks the row later.

    Raises:
        TaskDataError: see `Frame.place`.
    """
    try:
        frame = picture_frame(str(path), folder)
    except MediaError:
        frame = Frame(round(width), round(height))
    return frame.place((width, height))


# LISA


def lisa(
    split: str,
    *,
    path: str,
    shapes: Literal["union", "all", "first"] = "union",
    instructions: Literal["all", "first"] = "all",
    thinking: bool = True,
) -> Rows:
    """Grounding rows from LISA's folders: image files, each with a JSON of the same name that holds text and polygons.

    Args:
        split: sub-folder of `path`, maybe with a range such as "train[:90%]"; "train" may also be `path` itself.
        path: the folder.
        shapes: which of an image's target polygons the gold box is about. "union": one box around all of them. "all":
            a box for each, any of which answers. "first": as published, which loses the others.
        instructions: a row for each instruction, or only for the first of an image, as the published test does.
        thinking: of the prompt, see `prompts.grounding_prompt`.

    Returns:
        Rows with image {"path", "bytes": None}, problem, solution, image_id (file name), instruction, width, height,
        boxes_px, polygons_px (target shapes, each [[x, y], ...]) and ignore_polygons_px (regions that do not count).
        A JSON that cannot be read, has no target shape or no image is one broken row, and so is one whose shapes reach
        out of the picture, or whose picture is of another shape than its imageWidth and imageHeight.

    Raises:
        TaskDataError: no such folder, or no JSON files in it.
    """
    if shapes not in ("union", "all", "first") or instructions not in ("all", "first"):
        raise TaskDataError(
            f"shapes is 'union', 'all' or 'first' and instructions 'all' or 'first': {shapes=}, {instructions=}"
        )
    split, *ends = parse_split(split)
    folder = _path(path)
    if (folder / split).is_dir():
        folder = folder / split
    elif not folder.is_dir() or split != "train":
        there = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
        raise TaskDataError(f"{folder / split}: no such folder. Folders there: {', '.join(there) or 'none'}")
    files = sorted(folder.glob("*.json"))
    if not files:
        raise TaskDataError(f"{folder} holds no JSON files; LISA's folders have one for each image")
    return Rows([_LisaRows(files, shapes, instructions, thinking)], media_root=folder).select_range(*ends)


class _LisaRows:
    def __init__(self, files: Sequence[Path], shapes: str, instructions: str, thinking: bool) -> None:
        self.shapes, self.thinking = shapes, thinking
        self.entries: list[tuple[Path, int]] = []  # file, number of the instruction
        for file in files:
            try:
                count = len(_lisa_texts(_load_json(file), file))
            except TaskDataError:  # raised again when its row is read
                count = 1
            self.entries += [(file, number) for number in range(min(count, 1) if instructions == "first" else count)]

    def __len__(self) -> int:
        return len(self.entries)

    def where(self, index: int) -> str:
        return str(self.entries[index][0])

    def read(self, index: int) -> Row:
        file, number = self.entries[index]
        content = _load_json(file)
        instruction = _lisa_texts(content, file)[number]
        targets, ignored = _lisa_polygons(content, file)
        image = next((p for p in map(file.with_suffix, IMAGE_SUFFIXES) if p.is_file()), None)
        if image is None:
            raise TaskDataError(f"{file}: no image of that name beside it")
        try:
            placement = picture_frame(str(image), file.parent).place(_lisa_size(content))
        except (MediaError, TaskDataError) as error:
            raise TaskDataError(f"{file}: {error}") from error
        width, height = round(placement.width), round(placement.height)
        targets, ignored = (
            [[list(placement.point(*p)) for p in shape] for shape in group] for group in (targets, ignored)
        )
        _check_inside(targets, width, height, file)
        chosen = targets[:1] if self.shapes == "first" else targets
        groups = [[polygon] for polygon in chosen] if self.shapes == "all" else [chosen]
        boxes = [_bounding_box(group) for group in groups]
        try:
            solution = grounding_solution(per_mille_box(box, width, height) for box in boxes)
        except ValueError as error:
            raise TaskDataError(f"{file}: unusable shape: {error}") from error
        return {
            "image": {"path": str(image), "bytes": None},
            "problem": grounding_prompt(instruction, thinking=self.thinking),
            "solution": solution,
            "image_id": file.stem,
            "instruction": instruction,
            "width": width,
            "height": height,
            "boxes_px": boxes,
            "polygons_px": chosen,
            "ignore_polygons_px": ignored,
        }


def _placed(shapes: Iterable[Iterable[Sequence[float]]], placement: Placement) -> list[Any]:
    return [[list(placement.point(x, y)) for x, y in shape] for shape in shapes]


def _lisa_size(content: Mapping[str, Any]) -> tuple[float, float] | None:
    """(width, height) that the annotation tool noted, where it did."""
    size = [content.get(name) for name in ("imageWidth", "imageHeight")]
    sides = [side for side in size if isinstance(side, int | float) and side > 0]
    return (sides[0], sides[1]) if len(sides) == 2 else None


def _check_inside(shapes: Iterable[Iterable[Sequence[float]]], width: int, height: int, file: Path) -> None:
    """Refuse shapes that reach far out of the picture: it was made smaller since they were drawn.

    Raises:
        TaskDataError: a point lies beyond a side by more than a twentieth of it.
    """
    for x, y in (point for shape in shapes for point in shape):
        if not (-OUTSIDE <= x / width <= 1 + OUTSIDE and -OUTSIDE <= y / height <= 1 + OUTSIDE):
            raise TaskDataError(
                f"{file}: the point {[x, y]} lies outside of the picture of {width} x {height} pixels; it was resized "
                "or cropped since its shapes were drawn"
            )


def _lisa_texts(content: Any, file: Path) -> list[str]:
    texts = content.get("text") if isinstance(content, dict) else None
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise TaskDataError(f"{file}: 'text' must hold one or more instructions")
    return texts


def _lisa_polygons(content: Mapping[str, Any], file: Path) -> tuple[list[Any], list[Any]]:
    """(target polygons, ignored polygons), each polygon [[x, y], ...] in pixels."""
    targets: list[Any] = []
    ignored: list[Any] = []
    try:
        for shape in content["shapes"]:
            label = str(shape.get("label", "target")).lower()
            if label == "flag":  # a mark of the annotation tool, without meaning
                continue
            points = [[float(x), float(y)] for x, y in shape["points"]]
            if len(points) == 2:  # a rectangle by two corners
                (x1, y1), (x2, y2) = points
                points = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
            if len(points) < 3:
                raise ValueError(f"a shape of {len(points)} points")
            (ignored if label == "ignore" else targets).append(points)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TaskDataError(f"{file}: 'shapes' must hold polygons with 'points' ({error})") from error
    if not targets:
        raise TaskDataError(f"{file}: no target shape")
    return targets, ignored


def _bounding_box(polygons: Iterable[Iterable[Sequence[float]]]) -> BoxPx:
    points = [point for polygon in polygons for point in polygon]
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    return min(xs), min(ys), max(xs), max(ys)


def _path(name: str) -> Path:
    """Absolute, so that image paths in rows hold whatever folder they are later read from."""
    return Path(name).expanduser().absolute()


def _load_json(file: Path) -> Any:
    note_files([file])
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TaskDataError(f"{file}: {error.strerror or error}") from error
    try:
        try:
            return json.loads(data.decode("utf-8-sig"))
        except UnicodeDecodeError:  # some of LISA's files
            return json.loads(data.decode("cp1252"))
    except (ValueError, RecursionError) as error:
        raise TaskDataError(f"{file}: broken JSON: {error}") from error

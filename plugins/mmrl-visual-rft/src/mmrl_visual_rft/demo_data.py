"""Rows for the demos: handwritten digits set into photographs, drawn on this machine without a download.

The pixels are real but small: 8 x 8 scans of handwritten digits (UCI, Alpaydin and Kaynak 1998) from scikit-learn, and
six photographs shipped inside scikit-learn and scikit-image. Each scan is cut to its ink, enlarged, and laid in light
ink over a darkened photograph.

Three splits share neither a digit scan nor any part of a photograph, so held-out scores measure generalisation:

    split      scans (of 1797)   photographs
    train      1300              left half
    few_shot   100               third quarter from the left
    held_out   397               right quarter

Who owns a scan does not depend on the seed. Rows have the columns of the published Visual-RFT sets (image, problem,
solution) and a second gold column, ``loose_solution``: what a hasty annotator would have written. A supervised cold
start on it leaves a policy that imitates those mistakes; the reward reads ``solution``, so GRPO can undo them.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mmrl_core.data import read_parquet, write_parquet
from mmrl_core.errors import TaskDataError
from mmrl_core.starting_model import cache_folder
from mmrl_core.testing import (
    CLASS_WORDS,
    MIN_DIGIT_WIDTH_PX,
    NUM_SCANS,
    ink_masks,
    photographs,
    scan_ids_by_class,
)

if TYPE_CHECKING:
    import pyarrow
    from PIL import Image

Split = Literal["train", "few_shot", "held_out"]
Task = Literal["detection", "classification"]
Box = tuple[int, int, int, int]

LOOK_ALIKES = (6, 7, 3, 2, 9, 8, 0, 1, 5, 4)  # the digit that the hasty annotator takes each digit for
DETECTION_PROBLEM = "detect every {category}"
CLASSIFICATION_PROBLEM = "which digit?"
NORMALIZED_SIDE = 1000  # boxes are integers 0..1000 along each axis, as in the published answers

FORMAT_VERSION = 2  # part of the cache key: raise it when the same options would give other rows
SCANS = {"train": (0, 1300), "few_shot": (1300, 1400), "held_out": (1400, NUM_SCANS)}  # ranges of the shuffled scans
PHOTO_SHARE = {"train": (0.0, 0.5), "few_shot": (0.5, 0.75), "held_out": (0.75, 1.0)}  # of the photograph's width
PHOTO_ZOOMS = (0.75, 1.0, 1.35)  # photograph pixels shown by one scene pixel
PLACEMENT_TRIES = 20


@dataclass(frozen=True)
class SceneOptions:
    """How scenes look and how loosely they are labelled. Sizes in pixels of the scene.

    Attributes:
        task: "detection" asks for the boxes of one class, "classification" for the name of the only digit.
        size_px: side of the square scene; a multiple of 28 reaches the model without being resized.
        digit_px: least and greatest height of a digit's ink.
        num_classes: digits 0..num_classes - 1 occur.
        max_digits: scenes hold 1..max_digits digits, as far as they fit without touching boxes.
        target_share: probability that a further digit is of the class asked for; otherwise its class is uniform.
        brightness: factor on the photograph, so that the ink stands out.
        looseness: detection: how far outwards the hasty annotator puts each side, as a share of the box's width or
            height. 0.2 widens a box by 40 %, to an IoU of 0.51.
        jitter: standard deviation around that, same unit.
        grid: coordinates of loose boxes are multiples of this, in 1/1000 of the side.
        wrong_label_share: classification: share of loose labels that name the digit's look-alike. Above 0.5 a policy
            that imitates them perfectly is wrong more often than right.
    """

    task: Task
    size_px: int
    digit_px: tuple[int, int]
    num_classes: int
    max_digits: int
    target_share: float
    brightness: float
    looseness: float
    jitter: float
    grid: int
    wrong_label_share: float


def digit_scenes(
    split: Split,
    *,
    num_rows: int,
    seed: int = 0,
    task: Task = "detection",
    size_px: int = 112,
    digit_px: tuple[int, int] = (28, 46),
    num_classes: int = 5,
    max_digits: int = 3,
    target_share: float = 0.4,
    brightness: float = 0.35,
    looseness: float = 0.2,
    jitter: float = 0.05,
    grid: int = 50,
    wrong_label_share: float = 0.6,
    cache_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Rows of one split, read from a parquet file that is written when first asked for.

    A row depends on (options, seed, split, its index) only, so a longer set starts with the rows of a shorter one.

    Args:
        split: "train", "few_shot" or "held_out". In "few_shot" the categories take turns: ``num_rows`` of k times
            ``num_classes`` gives k scenes of each class.
        num_rows: length of the set.
        seed: of the scenes and of the loose labels.
        task, size_px, digit_px, num_classes, max_digits, target_share, brightness, looseness, jitter, grid,
            wrong_label_share: see ``SceneOptions``.
        cache_dir: folder of the parquet files; default: the environment variable MMRL_CACHE, else ~/.cache/mmrl.
            Files are named by a hash of all options, written aside and renamed, so an interrupted or concurrent run
            leaves none half written.

    Returns:
        One dict per row:
            image: {"bytes": PNG file, "path": its name}.
            problem: prompt text, such as "detect every 3".
            solution: exact gold. Detection: "<answer>[{'Position': [x1, y1, x2, y2], 'Confidence': 1.0}]</answer>",
                integers 0..1000, boxes from left to right. Classification: "<answer>seven</answer>".
            loose_solution: the hasty annotator's version of it.
            grid_solution: the exact boxes rounded to the grid of the loose ones: what a perfect answer in the loose
                labels' vocabulary looks like. Equal to ``solution`` for classification.
            category: class asked for; "3", or "three" for classification.
            image_id: unique over splits and seeds.
            width, height: of the scene, pixels.
            boxes: every digit in the scene, whatever its class: {"class_id": int, "box_px": [x1, y1, x2, y2],
                "scan_id": index of the scan}.
            photo: where the background comes from: {"name": file, "box_px": [x1, y1, x2, y2]}.

    Raises:
        TaskDataError: unknown split or task, a value out of range, or a cache folder that cannot be written.
    """
    options = SceneOptions(
        task=task,
        size_px=size_px,
        digit_px=(digit_px[0], digit_px[1]),
        num_classes=num_classes,
        max_digits=max_digits,
        target_share=target_share,
        brightness=brightness,
        looseness=looseness,
        jitter=jitter,
        grid=grid,
        wrong_label_share=wrong_label_share,
    )
    _check(split, num_rows, options)
    path = _cache_path(cache_dir, split, num_rows, seed, options)
    if not path.is_file():
        rows = [draw_row(split, index, seed, options) for index in range(num_rows)]
        write_parquet(rows, path, schema=_schema())
    return read_parquet(path, schema=_schema(), remade=True)


def draw_row(split: Split, index: int, seed: int, options: SceneOptions) -> dict[str, Any]:
    """Draw one row; see ``digit_scenes`` for its columns."""
    rng = random.Random(f"{seed}/{split}/{index}")
    scene, photo = _background(split, options, rng)
    target_class = index % options.num_classes if split == "few_shot" else rng.randrange(options.num_classes)
    digits = _place_digits(scene, split, target_class, options, rng)
    gold_boxes = sorted(
        (_normalized(digit["box_px"], options.size_px) for digit in digits if digit["class_id"] == target_class),
        key=lambda box: (box[0] + box[2], box[1] + box[3]),
    )
    image_id = f"{split}-{seed}-{index}"
    file = io.BytesIO()
    scene.save(file, format="PNG", compress_type=zlib.Z_RLE)  # smaller and quicker here than the default
    row = {
        "image": {"bytes": file.getvalue(), "path": f"{image_id}.png"},
        "category": str(target_class) if options.task == "detection" else CLASS_WORDS[target_class],
        "image_id": image_id,
        "width": options.size_px,
        "height": options.size_px,
        "boxes": digits,
        "photo": photo,
    }
    if options.task == "classification":
        is_wrong = rng.random() < options.wrong_label_share
        loose_class = LOOK_ALIKES[target_class] if is_wrong else target_class
        solution = classification_solution(target_class)
        return row | {
            "problem": CLASSIFICATION_PROBLEM,
            "solution": solution,
            "loose_solution": classification_solution(loose_class),
            "grid_solution": solution,
        }
    return row | {
        "problem": DETECTION_PROBLEM.format(category=target_class),
        "solution": detection_solution(gold_boxes),
        "loose_solution": detection_solution([loose_box(box, options, rng) for box in gold_boxes]),
        "grid_solution": detection_solution([_on_grid(box, options.grid) for box in gold_boxes]),
    }


def detection_solution(boxes: Sequence[Box]) -> str:
    """Boxes, each side an integer 0..1000, in the published answer format.

    >>> detection_solution([(100, 50, 400, 600)])
    "<answer>[{'Position': [100, 50, 400, 600], 'Confidence': 1.0}]</answer>"
    """
    items = ", ".join(f"{{'Position': {list(box)}, 'Confidence': 1.0}}" for box in boxes)
    return f"<answer>[{items}]</answer>"


def classification_solution(class_id: int) -> str:
    """The class name in the published answer format.

    >>> classification_solution(7)
    '<answer>seven</answer>'
    """
    return f"<answer>{CLASS_WORDS[class_id]}</answer>"


def loose_box(box: Box, options: SceneOptions, rng: random.Random) -> Box:
    """What the hasty annotator draws: each side pushed outwards by about ``looseness``, then put on the grid.

    Args:
        box: x1, y1, x2, y2 in 1/1000 of the side.
        options: looseness, jitter and grid are read.
        rng: drawn from four times.

    Returns:
        The box in the same unit, within 0..1000, never empty.
    """
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    outwards = [rng.gauss(options.looseness, options.jitter) for _ in range(4)]
    sides = (x1 - outwards[0] * width, y1 - outwards[1] * height, x2 + outwards[2] * width, y2 + outwards[3] * height)
    return _on_grid(sides, options.grid)


def _on_grid(sides: Sequence[float], grid: int) -> Box:
    """Nearest multiples of ``grid`` within 0..1000, at least one step wide and high."""
    x1, y1, x2, y2 = (min(NORMALIZED_SIDE, max(0, round(side / grid) * grid)) for side in sides)
    x1, y1 = min(x1, NORMALIZED_SIDE - grid), min(y1, NORMALIZED_SIDE - grid)
    return x1, y1, max(x2, x1 + grid), max(y2, y1 + grid)


def _normalized(box_px: Sequence[int], size_px: int) -> Box:
    x1, y1, x2, y2 = (round(side * NORMALIZED_SIDE / size_px) for side in box_px)
    return x1, y1, x2, y2


def _background(split: Split, options: SceneOptions, rng: random.Random) -> tuple[Image.Image, dict[str, Any]]:
    """A crop of the split's part of a photograph, darkened and scaled to the scene; and where it was taken."""
    from PIL import Image

    name, pixels = rng.choice(photographs(options.brightness))
    photo = Image.fromarray(pixels)
    first, last = (round(share * photo.width) for share in PHOTO_SHARE[split])
    side = min(round(options.size_px * rng.choice(PHOTO_ZOOMS)), last - first, photo.height)
    left = first + rng.randrange(last - first - side + 1)
    top = rng.randrange(photo.height - side + 1)
    box_px = [left, top, left + side, top + side]
    scene = photo.crop((left, top, left + side, top + side)).resize(
        (options.size_px, options.size_px), Image.Resampling.BILINEAR
    )
    return scene, {"name": name, "box_px": box_px}


def _place_digits(
    scene: Image.Image, split: Split, target_class: int, options: SceneOptions, rng: random.Random
) -> list[dict[str, Any]]:
    """Paint the digits into the scene, the target class first; boxes do not overlap."""
    from PIL import Image

    scan_ids = scan_ids_by_class(*SCANS[split])
    num_digits = 1 if options.task == "classification" else rng.randint(1, options.max_digits)
    digits: list[dict[str, Any]] = []
    for number in range(num_digits):
        is_target = number == 0 or rng.random() < options.target_share
        class_id = target_class if is_target else rng.randrange(options.num_classes)
        scan_id = rng.choice(scan_ids[class_id])
        ink = ink_masks()[scan_id]
        colour = (rng.randint(200, 255), rng.randint(200, 255), rng.randint(200, 255))
        for _ in range(PLACEMENT_TRIES):
            height = rng.randint(*options.digit_px)
            width = max(MIN_DIGIT_WIDTH_PX, round(height * ink.width / ink.height))
            if max(width, height) > options.size_px:
                continue
            left, top = rng.randint(0, options.size_px - width), rng.randint(0, options.size_px - height)
            box_px = [left, top, left + width, top + height]
            if not any(_overlap(box_px, digit["box_px"]) for digit in digits):
                scene.paste(colour, (left, top), ink.resize((width, height), Image.Resampling.BICUBIC))
                digits.append({"class_id": class_id, "box_px": box_px, "scan_id": scan_id})
                break
    return digits


def _overlap(one: Sequence[int], other: Sequence[int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _check(split: str, num_rows: int, options: SceneOptions) -> None:
    smallest, largest = options.digit_px
    problems = {
        f"split {split!r} is none of {', '.join(PHOTO_SHARE)}": split not in PHOTO_SHARE,
        f"task {options.task!r} is neither 'detection' nor 'classification'": options.task not in get_args(Task),
        f"num_rows is {num_rows}, below 1": num_rows < 1,
        f"num_classes is {options.num_classes}, not within 2..10": not 2 <= options.num_classes <= 10,
        f"max_digits is {options.max_digits}, below 1": options.max_digits < 1,
        f"digit_px {options.digit_px} does not rise within {MIN_DIGIT_WIDTH_PX}..size_px": not (
            MIN_DIGIT_WIDTH_PX <= smallest <= largest <= options.size_px
        ),
        f"grid {options.grid} does not divide 1000": options.grid < 1 or NORMALIZED_SIDE % options.grid != 0,
    }
    wrong = [problem for problem, is_wrong in problems.items() if is_wrong]
    if wrong:
        raise TaskDataError(f"digit_scenes: {'; '.join(wrong)}.")


def _cache_path(cache_dir: str | Path | None, split: str, num_rows: int, seed: int, options: SceneOptions) -> Path:
    folder = Path(cache_dir or cache_folder()).absolute()
    key = {"version": FORMAT_VERSION, "split": split, "num_rows": num_rows, "seed": seed, **asdict(options)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder / "digit_scenes" / f"{options.task}-{split}-{digest}.parquet"


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    box = pa.list_(pa.int32())
    return pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "problem": pa.string(),
            "solution": pa.string(),
            "loose_solution": pa.string(),
            "grid_solution": pa.string(),
            "category": pa.string(),
            "image_id": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "boxes": pa.list_(pa.struct({"class_id": pa.int32(), "box_px": box, "scan_id": pa.int32()})),
            "photo": pa.struct({"name": pa.string(), "box_px": box}),
        }
    )

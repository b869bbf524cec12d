"""Rows for the demo: pairs of rendered views of a simple object, and a question on how the camera moved.

An object is a body with a nose at its front and a fin on top, of random sizes and colours, on a round base. Bodies,
noses and fins have three shapes each; the combinations are shared out over the two splits, so that held-out scores are
of objects whose like was never seen. Answers follow from the cameras' poses, by `poses`.

Two gold columns. `answer` reasons and is right. `target` is what a hasty annotator wrote, and what the cold start
imitates: about as often the bare answer as one with its reasoning in front (the hybrid cold start). The annotator sees
how the camera moved, but mostly reads the options from the bottom up, and so takes A for C and C for A. The reward
knows better.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mmrl_core.data import read_parquet, write_parquet
from mmrl_core.errors import TaskDataError
from mmrl_core.starting_model import cache_folder
from mmrl_viewpoint.data import viewpoint_row
from mmrl_viewpoint.parsing import LETTERS
from mmrl_viewpoint.poses import answer_index, look_at, motion
from mmrl_viewpoint.prompts import VIEWPOINT_QUESTIONS, gold_completion
from mmrl_viewpoint.render import Part, Vector, render

if TYPE_CHECKING:
    import pyarrow
    from numpy.typing import NDArray
    from PIL import Image

Split = Literal["train", "held_out"]

FORMAT_VERSION = 2  # part of the cache key: raise it when the same options would give other rows
SHAPES = {
    "body": ("box", "cylinder", "sphere"),
    "nose": ("cone", "box", "sphere"),
    "fin": ("box", "cone", "cylinder"),
}
UP: Vector = (0.0, 0.0, 1.0)
AZIMUTH_DEG = (-75.0, 75.0)  # 0 in front of the object, positive to the right of a camera there
ELEVATION_DEG = (8.0, 50.0)
DISTANCE = (3.4, 6.6)
ANGLE_DEG = (20.0, 100.0)  # between cameras where one moved sideways, as published
# What reasoning reads of a view: value * factor + offset, rounded to steps.
READINGS = {"azimuth_deg": (90, 1, 20), "elevation_deg": (0, 1, 10), "distance": (0, 10, 4)}
COMPARISONS = ("equal", "more", "less")
SIDEWAYS = ("right", "same", "left")
CONCLUSIONS = {"height": ("higher", "same", "lower"), "distance": ("closer", "same", "further")}
MIRRORED = (2, 1, 0)  # counted from the bottom up
TRIES = 1000


@dataclass(frozen=True)
class PairOptions:
    """How pairs are asked about, drawn and labelled.

    Attributes:
        kinds: of `prompts.VIEWPOINT_QUESTIONS`; they take turns.
        size_px: side of the square pictures; a multiple of 28 reaches the model without being resized.
        reasoning_share: probability that `target` reasons in front of its answer; published: 0.1.
        mirrored_share: probability that `target` takes its option from the opposite end. Above 0.5 a policy that
            imitates it perfectly is mostly wrong on movements.
    """

    kinds: tuple[str, ...]
    size_px: int
    reasoning_share: float
    mirrored_share: float


@dataclass(frozen=True)
class View:
    """A camera that looks at the object. Angles in degrees, distance in world units."""

    azimuth_deg: float
    elevation_deg: float
    distance: float

    def pose(self, centre: Vector) -> NDArray[Any]:
        azimuth, elevation = math.radians(self.azimuth_deg), math.radians(self.elevation_deg)
        across = self.distance * math.cos(elevation)
        x, y, z = centre
        place = (
            x + across * math.sin(azimuth),
            y - across * math.cos(azimuth),
            z + self.distance * math.sin(elevation),
        )
        return look_at(place, centre, UP)


def rendered_pairs(
    split: Split,
    *,
    num_rows: int,
    seed: int = 0,
    kinds: Sequence[str] = tuple(VIEWPOINT_QUESTIONS),
    size_px: int = 56,
    reasoning_share: float = 0.5,
    mirrored_share: float = 0.65,
    cache_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Rows of one split, read from a parquet file that is written when first asked for.

    A row depends on (options, seed, split, its index) only, so a longer set starts with the rows of a shorter one.
    Kinds of questions take turns, and the right answers of each kind too.

    Args:
        split: "train" or "held_out"; they share no combination of shapes.
        num_rows: length of the set.
        seed: of objects, cameras and the annotator's mistakes.
        kinds, size_px, reasoning_share, mirrored_share: see `PairOptions`.
        cache_dir: folder of the parquet files; default: the environment variable MMRL_CACHE, else ~/.cache/mmrl. Files
            are named by a hash of all options, written aside and renamed, so an interrupted or concurrent run leaves
            none half written.

    Returns:
        Rows as in `data`, with `answer` and `target` as above, and
            images: [{"bytes": PNG file, "path": its name}] * 2.
            object: the shapes, such as "box cone cylinder".
            views: [{"azimuth_deg": ..., "elevation_deg": ..., "distance": ...}] * 2.

    Raises:
        TaskDataError: an unknown split or kind, a value out of range, a cache folder that cannot be written, or a
            package that is missing.
    """
    options = PairOptions(tuple(kinds), size_px, reasoning_share, mirrored_share)
    check_options(split, num_rows, options)
    path = _cache_path(cache_dir, split, num_rows, seed, options)
    if not path.is_file():
        write_parquet([draw_row(split, index, seed, options) for index in range(num_rows)], path, schema=_schema())
    return read_parquet(path, schema=_schema(), remade=True)


def draw_row(split: Split, index: int, seed: int, options: PairOptions) -> dict[str, Any]:
    """Draw one row; see `rendered_pairs` for its columns."""
    rng = random.Random(f"{seed}/{split}/{index}")
    shapes = rng.choice(combinations(split))
    parts, centre, background = draw_object(shapes, rng)
    kind = options.kinds[index % len(options.kinds)]
    answer = index // len(options.kinds) % 3
    views = draw_views(kind, answer, rng)
    pictures = render(parts, [view.pose(centre) for view in views], size_px=options.size_px, background=background)
    id = f"{split}-{seed}-{index}"
    images = [{"bytes": _png(picture), "path": f"{id}-{name}.png"} for name, picture in enumerate(pictures, start=1)]
    reasoning = thinking(kind, views, answer)
    letter = LETTERS[MIRRORED[answer] if rng.random() < options.mirrored_share else answer]
    target = (
        gold_completion(letter, reasoning) if rng.random() < options.reasoning_share else f"<answer>{letter}</answer>"
    )
    return viewpoint_row(images, kind, answer, id=id) | {
        "answer": gold_completion(LETTERS[answer], reasoning),
        "target": target,
        "object": " ".join(shapes),
        "views": [asdict(view) for view in views],
    }


def combinations(split: str) -> list[tuple[str, str, str]]:
    """Body, nose and fin of the objects of a split: 18 for "train", the other 9 for "held_out"."""
    return [
        (body, nose, fin)
        for i, body in enumerate(SHAPES["body"])
        for j, nose in enumerate(SHAPES["nose"])
        for k, fin in enumerate(SHAPES["fin"])
        if ((i + j + k) % 3 == 0) == (split == "held_out")
    ]


def draw_object(shapes: tuple[str, str, str], rng: random.Random) -> tuple[list[Part], Vector, Vector]:
    """An object on its base, its centre, and a background colour."""
    body, nose, fin = shapes
    width, length, height = (rng.uniform(*span) for span in ((0.9, 1.3), (1.3, 1.8), (0.7, 1.0)))
    nose_width, nose_length = rng.uniform(0.4, 0.6), rng.uniform(0.5, 0.8)
    fin_width, fin_height = rng.uniform(0.3, 0.5), rng.uniform(0.4, 0.7)
    grey = rng.uniform(0.55, 0.8)

    def shade(red: float, green: float, blue: float) -> Vector:
        return (red + rng.uniform(-0.1, 0.1), green + rng.uniform(-0.1, 0.1), blue + rng.uniform(-0.1, 0.1))

    middle = height / 2
    parts = [
        Part("cylinder", (0, 0, -0.02), (3.2, 3.2, 0.04), shade(0.5, 0.55, 0.45)),
        Part(body, (0, 0, middle), (width, length, height), shade(grey, grey, grey), "y"),
        Part(
            nose,
            (0, -(length + nose_length) / 2 + 0.1, middle),
            (nose_width, nose_length, nose_width),
            shade(0.85, 0.3, 0.2),
            "y",
        ),
        Part(
            fin,
            (0, length / 4, height + fin_height / 2 - 0.1),
            (fin_width, fin_width, fin_height),
            shade(0.2, 0.35, 0.85),
        ),
    ]
    return parts, (0.0, 0.0, middle), (rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7))


def draw_views(kind: str, answer: int, rng: random.Random) -> list[View]:
    """Two views whose change has the wanted answer; the rest of the camera's movement is random."""
    for _ in range(TRIES):
        first, second = (
            View(rng.uniform(*AZIMUTH_DEG), rng.uniform(*ELEVATION_DEG), rng.uniform(*DISTANCE)) for _ in range(2)
        )
        if kind == "height":  # read off the elevation, as long as the distance stays the same
            second = replace(second, distance=first.distance)
        if answer == 1:  # too rare by chance: nothing of this kind changes
            second = replace(second, **{_measure(kind): getattr(first, _measure(kind))})
        change = motion(first.pose((0, 0, 0)), second.pose((0, 0, 0)), (0, 0, 0), UP)
        sideways = _measure(kind) == "azimuth_deg" and answer != 1
        if answer_index(kind, change) == answer and (
            not sideways or ANGLE_DEG[0] <= abs(change.angle_deg) <= ANGLE_DEG[1]
        ):
            before, after = readings(kind, [first, second])
            if (before == after) == (answer == 1):  # what is asked about is not lost in rounding
                return [first, second]
    raise AssertionError(f"no views for {kind} {answer}")


def thinking(kind: str, views: Sequence[View], answer: int) -> str:
    """Reasoning that reads both views, compares, and concludes.

    >>> thinking("height", [View(0, 12, 5), View(0, 38, 5)], 0)
    'from 10 to 40: more, so higher'
    """
    first, second = readings(kind, views)
    comparison = COMPARISONS[(second > first) - (second < first)]
    return f"from {first} to {second}: {comparison}, so {CONCLUSIONS.get(kind, SIDEWAYS)[answer]}"


def readings(kind: str, views: Sequence[View]) -> list[int]:
    """Of each view: degrees around the object or above the horizon, or tenths of a unit away from it."""
    offset, factor, step = READINGS[_measure(kind)]
    return [round((getattr(view, _measure(kind)) * factor + offset) / step) * step for view in views]


def _measure(kind: str) -> str:
    """Of a view: what a kind of question is about."""
    return {"height": "elevation_deg", "distance": "distance"}.get(kind, "azimuth_deg")


def check_options(split: str, num_rows: int, options: PairOptions) -> None:
    """Raise a TaskDataError that names every option that is out of range."""
    unknown = sorted(set(options.kinds) - set(VIEWPOINT_QUESTIONS))
    problems = {
        f"split {split!r} is none of {', '.join(get_args(Split))}": split not in get_args(Split),
        f"num_rows is {num_rows}, below 1": num_rows < 1,
        f"kinds {unknown} are none of {', '.join(VIEWPOINT_QUESTIONS)}": bool(unknown),
        "kinds is empty": not options.kinds,
        f"size_px is {options.size_px}, not within 28..448": not 28 <= options.size_px <= 448,
        f"reasoning_share is {options.reasoning_share}, not within 0..1": not 0 <= options.reasoning_share <= 1,
        f"mirrored_share is {options.mirrored_share}, not within 0..1": not 0 <= options.mirrored_share <= 1,
    }
    wrong = [problem for problem, is_wrong in problems.items() if is_wrong]
    if wrong:
        raise TaskDataError(f"rendered_pairs: {'; '.join(wrong)}.")


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG", compress_type=zlib.Z_RLE)  # quicker here than the default
    return file.getvalue()


def _cache_path(cache_dir: str | Path | None, split: str, num_rows: int, seed: int, options: PairOptions) -> Path:
    folder = Path(cache_dir or cache_folder()).absolute()
    key = {"version": FORMAT_VERSION, "split": split, "num_rows": num_rows, "seed": seed, **asdict(options)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder / "rendered_pairs" / f"{split}-{digest}.parquet"


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    return pa.schema(
        {
            "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": text})),
            **dict.fromkeys(("problem", "ground_truth", "answer", "target", "question_type", "id", "object"), text),
            "options": pa.list_(text),
            "views": pa.list_(pa.struct({"azimuth_deg": number, "elevation_deg": number, "distance": number})),
        }
    )

"""Rows for the demo: cars and a house seen from above, on real photographic texture, drawn without a download.

The ground is a crop of one of six photographs shipped inside scikit-learn and scikit-image. Cars and the house's roof
are drawn at four times the resolution, with shading, shadow and any rotation. A scene is a grid of 3 x 3 places, each
28 pixels wide, with at most one object, so that an object is a merged token of the model.

The splits share no part of a photograph: train takes the left three quarters, held_out the right one.

Rows have the columns of `data.hrvqa_vl` and a second gold column, ``loose_answer``: what a hasty annotator would have
said. She misses a car, takes a colour for another, overlooks a red car, and says left for top left. A supervised cold
start on it leaves a policy that imitates those mistakes; the reward reads ``answer``.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mmrl_core.data import read_parquet, write_parquet
from mmrl_core.errors import TaskDataError
from mmrl_core.starting_model import cache_folder
from mmrl_core.testing import TOKEN_PX, photographs
from mmrl_uav_vqa.data import select_rows

if TYPE_CHECKING:
    import pyarrow
    from PIL import Image

Split = Literal["train", "held_out"]
Colour = tuple[int, int, int]

FORMAT_VERSION = 3  # part of the cache key: raise it when the same options would give other rows
GRID = 3  # places along each side of a scene
SIZE_PX = GRID * TOKEN_PX
PHOTO_SHARE = {"train": (0.0, 0.75), "held_out": (0.75, 1.0)}  # of the photograph's width
PHOTO_ZOOMS = (0.75, 1.0, 1.35)  # photograph pixels shown by one scene pixel
SUPERSAMPLING = 4
OFF_CENTRE_PX = 3  # how far an object's middle may lie from that of its place, along each axis
CAR_PX = ((17, 21), (9, 11))  # range of length and width
ROOF_PX = ((22, 26), (16, 20))
SHADOW_PX = 2
MAX_CARS = 5
ASKED_COLOUR = "red"  # of the cars that yes_no asks for

COLOURS: dict[str, Colour] = {
    "red": (205, 45, 40),
    "blue": (50, 85, 205),
    "white": (235, 235, 230),
    "yellow": (235, 195, 45),
}
COLOUR_NAMES = tuple(COLOURS)  # the hasty annotator takes each for the next
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
QUESTION_TYPES = ("color", "number", "yes_no", "location")  # in turn
KINDS = ("car", "house")


@dataclass(frozen=True)
class SceneOptions:
    """How scenes look and how loosely they are labelled.

    Attributes:
        brightness: factor on the photograph, so that objects stand out.
        wrong_label_share: share of loose labels that are wrong where the annotator can err. Above 0.5 a policy that
            imitates them perfectly is wrong more often than right there.
    """

    brightness: float
    wrong_label_share: float


def aerial_scenes(
    split: Split,
    *,
    num_rows: int,
    seed: int = 0,
    brightness: float = 0.55,
    wrong_label_share: float = 0.55,
    question_types: Sequence[str] | None = None,
    replay_types: Sequence[str] = (),
    replay_share: float = 0.1,
    cache_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Rows of one split, read from a parquet file that is written when first asked for.

    A row depends on (options, seed, split, its index) only. Types of questions take turns: color, number, yes_no,
    location.

    Args:
        split: "train" or "held_out".
        num_rows: length of the set before `question_types` chooses from it.
        seed: of the scenes and of the loose labels.
        brightness, wrong_label_share: see ``SceneOptions``.
        question_types, replay_types, replay_share: as in ``data.hrvqa_vl``.
        cache_dir: folder of the parquet files; default: the environment variable MMRL_CACHE, else ~/.cache/mmrl.
            Files are named by a hash of all options, written aside and renamed.

    Returns:
        One dict per row:
            image: {"bytes": PNG file, "path": its name}, 84 x 84 pixels.
            question, question_type, answer: such as "how many cars?", "number", "3".
            loose_answer: the hasty annotator's answer.
            image_id: unique over splits and seeds.
            objects: {"kind": "car" or "house", "color": name, "place": 0..8 row by row, "box_px": [x1, y1, x2, y2]}.
            evidence: boxes of the objects that the answer rests on, in thousandths of the side.
            photo: where the ground comes from: {"name": file, "box_px": [x1, y1, x2, y2]}.

    Raises:
        TaskDataError: unknown split or type, a value out of range, or a cache folder that cannot be written.
    """
    if split not in get_args(Split):
        raise TaskDataError(f"aerial_scenes: split {split!r} is none of {', '.join(get_args(Split))}.")
    if num_rows < 1 or not 0 < brightness <= 1 or not 0 <= wrong_label_share <= 1:
        raise TaskDataError(
            f"aerial_scenes: num_rows {num_rows} is below 1, or brightness {brightness} or wrong_label_share "
            f"{wrong_label_share} not within 0..1."
        )
    options = SceneOptions(brightness, wrong_label_share)
    path = _cache_path(cache_dir, split, num_rows, seed, options)
    if not path.is_file():
        write_parquet([draw_row(split, index, seed, options) for index in range(num_rows)], path, schema=_schema())
    rows = _Drawn(read_parquet(path, schema=_schema(), remade=True))
    chosen = select_rows(rows, question_types=question_types, replay_types=replay_types, replay_share=replay_share)
    return [dict(chosen.read(index)) for index in range(len(chosen))]


def draw_row(split: Split, index: int, seed: int, options: SceneOptions) -> dict[str, Any]:
    """Draw one row; see ``aerial_scenes`` for its columns."""
    rng = random.Random(f"{seed}/{split}/{index}")
    question_type = QUESTION_TYPES[index % len(QUESTION_TYPES)]
    # Counts and answers are drawn first and the scene made to fit, so that no answer is much more frequent than others.
    num_cars = rng.randint(0, MAX_CARS)
    is_there = rng.random() < 0.5
    colours = [rng.choice(COLOUR_NAMES) for _ in range(num_cars)]
    if question_type == "yes_no":
        others = [name for name in COLOUR_NAMES if name != ASKED_COLOUR]
        colours = [rng.choice(others) for _ in range(max(1, num_cars))]
        if is_there:
            colours[0] = ASKED_COLOUR
    places = rng.sample(range(GRID**2), len(colours) + 1)
    house = ("house", rng.choice(COLOUR_NAMES), places.pop())
    things = [house, *(("car", name, place) for name, place in zip(colours, places, strict=True))]
    scene, photo = _ground(split, options, rng)
    objects = [_draw_object(scene, kind, colour, place, rng) for kind, colour, place in things]

    if question_type == "number":
        question, answer = "how many cars?", str(num_cars)
        wrong = str(max(0, num_cars - 1))
        evidence = objects[1:]
    elif question_type == "color":
        question, answer = "what color is the roof?", house[1]
        wrong = COLOUR_NAMES[(COLOUR_NAMES.index(answer) + 1) % len(COLOUR_NAMES)]
        evidence = objects[:1]
    elif question_type == "yes_no":
        question, answer = f"is there a {ASKED_COLOUR} car?", "yes" if is_there else "no"
        wrong = "no"
        evidence = [thing for thing in objects[1:] if thing["color"] == ASKED_COLOUR]
    else:
        question, answer = "where is the house?", PLACES[house[2]]
        wrong = answer.split()[-1]
        evidence = objects[:1]
    loose_answer = wrong if rng.random() < options.wrong_label_share else answer

    image_id = f"{split}-{seed}-{index}"
    file = io.BytesIO()
    scene.save(file, format="PNG", compress_type=zlib.Z_RLE)
    return {
        "image": {"bytes": file.getvalue(), "path": f"{image_id}.png"},
        "question": question,
        "question_type": question_type,
        "answer": answer,
        "loose_answer": loose_answer,
        "image_id": image_id,
        "objects": objects,
        "evidence": [[round(1000 * side / SIZE_PX) for side in thing["box_px"]] for thing in evidence],
        "photo": photo,
    }


class _Drawn:
    """Rows in memory, as ``data.select_rows`` takes them."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def where(self, index: int) -> str:
        return f"aerial_scenes row {index}"


def _ground(split: str, options: SceneOptions, rng: random.Random) -> tuple[Image.Image, dict[str, Any]]:
    """A crop of the split's part of a photograph, scaled to the scene; and where it was taken."""
    from PIL import Image

    name, pixels = rng.choice(photographs(options.brightness))
    photo = Image.fromarray(pixels)
    first, last = (round(share * photo.width) for share in PHOTO_SHARE[split])
    side = min(round(SIZE_PX * rng.choice(PHOTO_ZOOMS)), last - first, photo.height)
    left = first + rng.randrange(last - first - side + 1)
    top = rng.randrange(photo.height - side + 1)
    box_px = (left, top, left + side, top + side)
    scene = photo.crop(box_px).resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)
    return scene, {"name": name, "box_px": list(box_px)}


def _draw_object(scene: Image.Image, kind: str, colour: str, place: int, rng: random.Random) -> dict[str, Any]:
    """Paint a car or a roof into its place, turned by any angle; what was painted."""
    from PIL import Image

    (shortest, longest), (narrowest, widest) = CAR_PX if kind == "car" else ROOF_PX
    length, width = rng.randint(shortest, longest), rng.randint(narrowest, widest)
    middle_x = (place % GRID + 0.5) * TOKEN_PX + rng.uniform(-OFF_CENTRE_PX, OFF_CENTRE_PX)
    middle_y = (place // GRID + 0.5) * TOKEN_PX + rng.uniform(-OFF_CENTRE_PX, OFF_CENTRE_PX)
    light = rng.uniform(0.85, 1.1)
    picture = (_car if kind == "car" else _roof)(length, width, _lit(COLOURS[colour], light))
    angle = rng.uniform(0, 360)
    turned = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    size = (round(turned.width / SUPERSAMPLING), round(turned.height / SUPERSAMPLING))
    turned = turned.resize(size, Image.Resampling.LANCZOS)
    left, top = round(middle_x - size[0] / 2), round(middle_y - size[1] / 2)
    # The sun stands at the top left of every scene, whatever way an object is turned.
    shadow = Image.new("RGBA", size, (0, 0, 0, 0))
    shadow.putalpha(turned.getchannel("A").point(lambda alpha: alpha * 6 // 10))
    scene.paste(shadow, (left + SHADOW_PX, top + SHADOW_PX), shadow)
    scene.paste(turned, (left, top), turned)
    sine, cosine = abs(math.sin(math.radians(angle))), abs(math.cos(math.radians(angle)))
    reach_x, reach_y = (length * cosine + width * sine) / 2, (length * sine + width * cosine) / 2
    box = (middle_x - reach_x, middle_y - reach_y, middle_x + reach_x, middle_y + reach_y)
    box_px = [min(SIZE_PX, max(0, round(side))) for side in box]
    return {"kind": kind, "color": colour, "place": place, "box_px": box_px}


def _car(length: int, width: int, paint: Colour) -> Image.Image:
    """A car from above, pointing right: body, darker glass in front and behind, lighter roof."""
    picture, draw, scale = _canvas(length, width)
    draw.rounded_rectangle((0, 0, length * scale - 1, width * scale - 1), radius=3 * scale, fill=(*paint, 255))
    glass = (30, 36, 46, 255)
    draw.rectangle((0.60 * length * scale, scale, 0.74 * length * scale, (width - 1) * scale), fill=glass)
    draw.rectangle((0.14 * length * scale, scale, 0.24 * length * scale, (width - 1) * scale), fill=glass)
    draw.rectangle(
        (0.26 * length * scale, 2 * scale, 0.58 * length * scale, (width - 2) * scale), fill=(*_lit(paint, 1.12), 255)
    )
    return picture


def _roof(length: int, width: int, paint: Colour) -> Image.Image:
    """A pitched roof from above: a sunlit and a shaded side, rows of tiles, the ridge, a chimney."""
    picture, draw, scale = _canvas(length, width)
    ridge = width * scale / 2
    draw.rectangle((0, 0, length * scale - 1, ridge), fill=(*_lit(paint, 1.05), 255))
    draw.rectangle((0, ridge, length * scale - 1, width * scale - 1), fill=(*_lit(paint, 0.72), 255))
    for tile in range(2, length, 3):
        draw.line((tile * scale, 0, tile * scale, width * scale), fill=(*_lit(paint, 0.62), 255), width=2)
    draw.line((0, ridge, length * scale, ridge), fill=(*_lit(paint, 0.5), 255), width=scale)
    draw.rectangle((4 * scale, 2 * scale, 8 * scale, 6 * scale), fill=(70, 62, 58, 255))
    return picture


def _canvas(length: int, width: int) -> tuple[Image.Image, Any, int]:
    from PIL import Image, ImageDraw

    picture = Image.new("RGBA", (length * SUPERSAMPLING, width * SUPERSAMPLING), (0, 0, 0, 0))
    return picture, ImageDraw.Draw(picture), SUPERSAMPLING


def _lit(colour: Colour, light: float) -> Colour:
    red, green, blue = (min(255, round(value * light)) for value in colour)
    return red, green, blue


def _cache_path(cache_dir: str | Path | None, split: str, num_rows: int, seed: int, options: SceneOptions) -> Path:
    folder = Path(cache_dir or cache_folder()).absolute()
    key = {"version": FORMAT_VERSION, "split": split, "num_rows": num_rows, "seed": seed, **asdict(options)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder / "aerial_scenes" / f"{split}-{digest}.parquet"


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    box = pa.list_(pa.int32())
    thing = pa.struct({"kind": pa.string(), "color": pa.string(), "place": pa.int32(), "box_px": box})
    texts = ("question", "question_type", "answer", "loose_answer", "image_id")
    return pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            **{name: pa.string() for name in texts},
            "objects": pa.list_(thing),
            "evidence": pa.list_(box),
            "photo": pa.struct({"name": pa.string(), "box_px": box}),
        }
    )

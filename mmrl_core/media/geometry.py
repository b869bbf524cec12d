"""Boxes and points that carry the convention of their numbers.

Models disagree about coordinates: Qwen2-VL writes 0..1000 on each axis, Qwen2.5-VL writes pixels of the image as its
processor resized it, many data sets store fractions of a side. A box whose convention is only assumed makes an IoU
reward sit near 0 without an error. So a box says what its numbers mean, `convert` is the only way from one convention
to another, and comparing two conventions is refused.

The origin is the top-left corner, x runs right, y runs down. No torch here: rewards import this module.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar, final

# Beyond this the area of a box, or the union of two, may overflow to infinity and an IoU become NaN.
MAX_COORDINATE = 1e150


class BoxConvention(Enum):
    """What the numbers of a box or point are fractions of. The values are what a config writes."""

    ABSOLUTE_PX = "absolute_px"  # pixels of the image as the processor resized it (what the model saw)
    UNIT = "unit"  # 0..1, fraction of the image's width (x) or height (y)
    PER_MILLE = "per_mille"  # 0..1000, thousandths of the image's width (x) or height (y)


@final
@dataclass(frozen=True)
class Point:
    """A position. Not held to the image: a model may point outside it.

    Raises:
        ValueError: a coordinate is NaN, infinite, or beyond MAX_COORDINATE.
    """

    x: float
    y: float
    convention: BoxConvention

    def __post_init__(self) -> None:
        _check_coordinates(self.x, self.y)


@final
@dataclass(frozen=True)
class Box:
    """Top-left corner (x1, y1) and bottom-right corner (x2, y2).

    Held neither to the image nor to the order of its corners, because a model may write anything: an inverted box
    (x2 < x1 or y2 < y1) is kept as written and has no area.

    Raises:
        ValueError: a coordinate is NaN, infinite, or beyond MAX_COORDINATE.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    convention: BoxConvention

    def __post_init__(self) -> None:
        _check_coordinates(self.x1, self.y1, self.x2, self.y2)

    @property
    def is_inverted(self) -> bool:
        return self.x2 < self.x1 or self.y2 < self.y1


Shape = TypeVar("Shape", Box, Point)


def convert(shape: Shape, to: BoxConvention, width_px: float | None = None, height_px: float | None = None) -> Shape:
    """The same box or point in another convention, never rounded.

    Args:
        shape: a Box or a Point.
        to: the convention wanted.
        width_px: width of the resized image in pixels; needed when either convention is ABSOLUTE_PX.
        height_px: its height in pixels; likewise.

    Returns:
        A new shape of the same type, or `shape` itself where nothing changes.

    Raises:
        ValueError: the size is needed and missing, or not positive and finite; or the result leaves the range that a
            coordinate may have.

    >>> box = Box(250, 500, 500, 1000, BoxConvention.PER_MILLE)
    >>> convert(box, BoxConvention.ABSOLUTE_PX, width_px=640, height_px=80)
    Box(x1=160.0, y1=40.0, x2=320.0, y2=80.0, convention=<BoxConvention.ABSOLUTE_PX: 'absolute_px'>)
    """
    if shape.convention is to:
        return shape
    from_width, from_height = _sides(shape.convention, width_px, height_px)
    to_width, to_height = _sides(to, width_px, height_px)
    if isinstance(shape, Box):
        return replace(
            shape,
            x1=shape.x1 * to_width / from_width,
            y1=shape.y1 * to_height / from_height,
            x2=shape.x2 * to_width / from_width,
            y2=shape.y2 * to_height / from_height,
            convention=to,
        )
    return replace(shape, x=shape.x * to_width / from_width, y=shape.y * to_height / from_height, convention=to)


def box_area(box: Box) -> float:
    """Width times height, in the squared unit of the box's convention; 0.0 for an inverted box.

    >>> box_area(Box(0, 0, 20, 10, BoxConvention.ABSOLUTE_PX))
    200.0
    """
    return float(max(0.0, box.x2 - box.x1) * max(0.0, box.y2 - box.y1))


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union, in [0, 1]. 0.0 where either box has no area, and where the boxes only touch.

    Scaling both boxes along an axis leaves it unchanged, so every convention gives the same number, but both boxes
    have to use the same one.

    Raises:
        ValueError: the conventions differ.

    >>> box_iou(Box(0, 0, 10, 10, BoxConvention.UNIT), Box(0, 0, 10, 5, BoxConvention.UNIT))
    0.5
    """
    _check_same_convention(first, second)
    intersection, union = _intersection_and_union(first, second)
    return min(1.0, intersection / union) if union > 0 else 0.0


def box_giou(first: Box, second: Box) -> float:
    """Generalised IoU, in [-1, 1]: IoU less the share of the hull that neither box covers.

    With I the intersection, U the union and C the smallest box around both: I/U - (C - U)/C. It tells a near miss from
    a far one, where IoU is 0 for both. A term whose denominator is 0 (boxes without area) counts as 0; an inverted box
    counts as empty, its corners still widen the hull.

    Raises:
        ValueError: the conventions differ.

    Source: Rezatofighi et al., arXiv:1902.09630.

    >>> box_giou(Box(0, 0, 1, 1, BoxConvention.UNIT), Box(1, 0, 2, 1, BoxConvention.UNIT))  # touching: U = C
    0.0
    >>> box_giou(Box(0, 0, 1, 1, BoxConvention.UNIT), Box(3, 0, 4, 1, BoxConvention.UNIT))  # U = 2, C = 4
    -0.5
    """
    _check_same_convention(first, second)
    intersection, union = _intersection_and_union(first, second)
    iou = min(1.0, intersection / union) if union > 0 else 0.0
    xs = (first.x1, first.x2, second.x1, second.x2)
    ys = (first.y1, first.y2, second.y1, second.y2)
    hull = (max(xs) - min(xs)) * (max(ys) - min(ys))
    # Rounding may put the union a hair above the hull that holds it.
    return iou - max(0.0, hull - union) / hull if hull > 0 else iou


def _intersection_and_union(first: Box, second: Box) -> tuple[float, float]:
    width = min(first.x2, second.x2) - max(first.x1, second.x1)
    height = min(first.y2, second.y2) - max(first.y1, second.y1)
    intersection = float(width * height) if width > 0 and height > 0 else 0.0
    return intersection, box_area(first) + box_area(second) - intersection


def _sides(convention: BoxConvention, width_px: float | None, height_px: float | None) -> tuple[float, float]:
    """What a full width and a full height measure in this convention."""
    if convention is BoxConvention.UNIT:
        return 1.0, 1.0
    if convention is BoxConvention.PER_MILLE:
        return 1000.0, 1000.0
    if width_px is None or height_px is None:
        raise ValueError("converting from or to absolute pixels needs width_px and height_px of the resized image")
    if not (0 < width_px <= MAX_COORDINATE and 0 < height_px <= MAX_COORDINATE):
        raise ValueError(f"the image size must be positive and finite, got {width_px!r} x {height_px!r} pixels")
    return float(width_px), float(height_px)


def _check_same_convention(first: Box, second: Box) -> None:
    if first.convention is not second.convention:
        raise ValueError(
            f"boxes of different conventions cannot be compared: {first.convention.value} and "
            f"{second.convention.value}. Convert one of them first."
        )


def _check_coordinates(*values: float) -> None:
    for value in values:
        if not abs(value) <= MAX_COORDINATE:  # written so that NaN is refused too
            raise ValueError(f"a coordinate must be finite and at most {MAX_COORDINATE:g} in size, got {value!r:.40}")

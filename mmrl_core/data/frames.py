"""Which picture an annotation means: the file as stored, or as it is shown.

A photograph may be stored lying on its side with a tag that says how to turn it (EXIF orientation), and `load_image`
turns it. Boxes and points that were drawn on the stored pixels then belong to another frame. Sources with boxes or
points ask here, and get a frame in which these are right, or an error that breaks the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl_core.errors import TaskDataError
from mmrl_core.media import image_header

SWAPPING = (5, 6, 7, 8)  # orientations that swap the sides
SIZE_COLUMNS = (("img_size",), ("image_size",), ("width", "height"), ("img_width", "img_height"))


@dataclass(frozen=True)
class Frame:
    """A picture as it is shown.

    Attributes:
        width, height: in pixels, upright.
        orientation: the tag of the file, 1 to 8; 1 is upright.
    """

    width: int
    height: int
    orientation: int = 1

    def place(self, size: Sequence[float] | None) -> Placement:
        """How shapes that were drawn on a picture of this size lie in the picture that is shown.

        Args:
            size: (width, height) in pixels of the annotated picture; None where nothing says it.

        Raises:
            TaskDataError: the sizes are of different shapes, so the picture was cropped or stretched since; or the file
                has to be turned, and nothing tells whether the shapes mean it as stored or as shown.
        """
        shown = (self.width, self.height)
        stored = shown[::-1] if self.orientation in SWAPPING else shown
        if size is None:
            if self.orientation != 1:
                raise TaskDataError(self._ambiguous("no size of the annotated picture tells"))
            return Placement(*shown)
        width, height = size[0], size[1]
        means_shown, means_stored = (_is_alike((width, height), other) for other in (shown, stored))
        if self.orientation != 1 and means_shown and means_stored:
            raise TaskDataError(self._ambiguous(f"its size of {width:g} x {height:g} does not tell"))
        if means_shown:
            return Placement(width, height)
        if not means_stored:
            raise TaskDataError(
                f"the annotation is of a picture of {width:g} x {height:g} pixels, and the file holds one of "
                f"{self.width} x {self.height}: it was turned, cropped or stretched since. Put the annotated picture "
                "there, or adapt the annotation"
            )
        turned = (height, width) if self.orientation in SWAPPING else (width, height)
        return Placement(*turned, orientation=self.orientation)

    def _ambiguous(self, why: str) -> str:
        return (
            f"the picture is stored with the EXIF orientation {self.orientation}, and {why} whether its boxes mean the "
            "stored pixels or the picture as it is shown. Save it upright"
        )


@dataclass(frozen=True)
class Placement:
    """The frame in which placed shapes lie: the shown picture, in the pixels of the annotation.

    Attributes:
        width, height: in pixels of the annotation.
        orientation: by which shapes are turned; 1 leaves them as they are.
    """

    width: float
    height: float
    orientation: int = 1

    def point(self, x: float, y: float) -> tuple[float, float]:
        """A point of the annotation in the shown picture.

        >>> Placement(300, 400, orientation=6).point(0, 0)  # the stored top left is shown at the top right
        (300, 0)
        """
        width, height = self.width, self.height
        return {
            2: (width - x, y),
            3: (width - x, height - y),
            4: (x, height - y),
            5: (y, x),
            6: (width - y, x),
            7: (width - y, height - x),
            8: (y, height - x),
        }.get(self.orientation, (x, y))

    def box(self, x1: float, y1: float, x2: float, y2: float) -> tuple[float, float, float, float]:
        """A box of the annotation, by two corners, in the shown picture. Corners that are in order stay in order."""
        if self.orientation == 1:
            return x1, y1, x2, y2
        (a, b), (c, d) = self.point(x1, y1), self.point(x2, y2)
        return min(a, c), min(b, d), max(a, c), max(b, d)


def picture_frame(image: Any, root: Path | None) -> Frame:
    """The frame of a stored picture; only the head of its file is read.

    Args:
        image, root: as `mmrl_core.media.load_image`.

    Raises:
        MediaError: it is no picture that can be read.
    """
    width, height, orientation = image_header(image, root=root)
    return Frame(width, height, orientation)


def declared_size(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """(width, height) in pixels that a record says its picture has; None where it does not say so."""
    for names in SIZE_COLUMNS:
        values = [row.get(name) for name in names]
        if len(values) == 1:
            values = list(values[0]) if isinstance(values[0], list | tuple) else []
        sides = [value for value in values if isinstance(value, int | float) and value > 0]
        if len(sides) == len(values) == 2:
            return sides[0], sides[1]
    return None


def _is_alike(size: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether one is the other, maybe scaled as a whole and rounded to pixels."""
    return abs(size[0] * other[1] - size[1] * other[0]) <= max(*size, *other)

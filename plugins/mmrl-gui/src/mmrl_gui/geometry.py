"""Gold positions: a box where the data have one, else a point. See `mmrl_core.media.geometry` for conventions."""

from __future__ import annotations

from collections.abc import Sequence

from mmrl_core.media import Box, BoxConvention, Point, convert

Position = Box | Point
SLACK = 0.05  # how far beyond the edge a position in shares may reach; more is another convention


def position_of(numbers: Sequence[float] | None, convention: BoxConvention) -> Position | None:
    """Four numbers are a box, two a point; None for everything else."""
    if numbers is not None and len(numbers) == 4:
        return Box(numbers[0], numbers[1], numbers[2], numbers[3], convention)
    if numbers is not None and len(numbers) == 2:
        return Point(numbers[0], numbers[1], convention)
    return None


def converted(position: Position, to: BoxConvention, width_px: float | None, height_px: float | None) -> Position:
    """As `mmrl_core.media.convert`, for either kind."""
    if isinstance(position, Box):
        return convert(position, to, width_px, height_px)
    return convert(position, to, width_px, height_px)


def numbers_of(position: Position) -> list[float]:
    """x1, y1, x2, y2 of a box, x, y of a point."""
    if isinstance(position, Box):
        return [position.x1, position.y1, position.x2, position.y2]
    return [position.x, position.y]


def centre_of(position: Position) -> Point:
    """The centre of a box, or the point itself."""
    if isinstance(position, Box):
        return Point((position.x1 + position.x2) / 2, (position.y1 + position.y2) / 2, position.convention)
    return position

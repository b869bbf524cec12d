"""Boxes, points and their conventions. Every expected number is worked by hand beside its case."""

import doctest
import math
import subprocess
import sys
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl_core.media import geometry
from mmrl_core.media.geometry import MAX_COORDINATE, Box, BoxConvention, Point, box_area, box_giou, box_iou, convert

PX, UNIT, PER_MILLE = BoxConvention.ABSOLUTE_PX, BoxConvention.UNIT, BoxConvention.PER_MILLE

coordinates = st.floats(-MAX_COORDINATE, MAX_COORDINATE)
boxes = st.builds(Box, coordinates, coordinates, coordinates, coordinates, st.just(PX))
small = st.integers(-20, 20)
integer_boxes = st.builds(Box, small, small, small, small, st.just(PX))
points = st.builds(Point, st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.sampled_from(BoxConvention))


def px(x1: float, y1: float, x2: float, y2: float) -> Box:
    return Box(x1, y1, x2, y2, PX)


@pytest.mark.parametrize(
    ("first", "second", "iou", "giou"),
    [
        # The same box: I = U = C = 16.
        (px(0, 0, 4, 4), px(0, 0, 4, 4), 1.0, 1.0),
        # I = 2x2 = 4, U = 16 + 16 - 4 = 28, C = 6x6 = 36: 1/7 and 1/7 - 8/36 = 9/63 - 14/63.
        (px(0, 0, 4, 4), px(2, 2, 6, 6), 1 / 7, -5 / 63),
        # One inside the other: I = 4, U = C = 16.
        (px(0, 0, 4, 4), px(1, 1, 3, 3), 0.25, 0.25),
        # Side by side: they touch, I = 0, U = C = 8.
        (px(0, 0, 2, 2), px(2, 0, 4, 2), 0.0, 0.0),
        # Touching at a corner: I = 0, U = 8, C = 16: 0 - 8/16.
        (px(0, 0, 2, 2), px(2, 2, 4, 4), 0.0, -0.5),
        # Overlap in x only: I = 0, U = 8, C = 2x10 = 20: 0 - 12/20.
        (px(0, 0, 2, 2), px(0, 8, 2, 10), 0.0, -0.6),
        # Negative coordinates and halves: I = 1x1, U = 4 + 1 - 1 = 4, C = 4.
        (px(-1, -1, 1, 1), px(-0.5, -0.5, 0.5, 0.5), 0.25, 0.25),
        # A line has no area: I = 0, U = 16, C = 16.
        (px(0, 0, 4, 4), px(1, 1, 1, 3), 0.0, 0.0),
        # The same inverted box twice is empty twice: I = U = 0, C = 16: no IoU term, 0 - 16/16.
        (px(4, 4, 0, 0), px(4, 4, 0, 0), 0.0, -1.0),
        # Inverted in x only counts as empty as well: U = 16, C = 16.
        (px(0, 0, 4, 4), px(4, 0, 0, 4), 0.0, 0.0),
        # The same point twice: U = C = 0, neither term.
        (px(1, 1, 1, 1), px(1, 1, 1, 1), 0.0, 0.0),
    ],
)
def test_iou_and_giou_of_boxes_worked_by_hand(first: Box, second: Box, iou: float, giou: float) -> None:
    assert box_iou(first, second) == box_iou(second, first) == pytest.approx(iou, abs=1e-15)
    assert box_giou(first, second) == box_giou(second, first) == pytest.approx(giou, abs=1e-15)


def test_area_is_width_times_height_and_zero_for_inverted_boxes() -> None:
    assert box_area(px(1, 2, 4, 6)) == 12.0
    assert box_area(px(4, 2, 1, 6)) == 0.0
    assert box_area(px(4, 6, 1, 2)) == 0.0  # both sides negative: their product is not an area
    assert [box.is_inverted for box in (px(1, 2, 4, 6), px(4, 2, 1, 6), px(1, 6, 4, 2), px(1, 1, 1, 1))] == [
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("function", [box_iou, box_giou])
def test_boxes_of_different_conventions_are_refused(function: object) -> None:
    with pytest.raises(ValueError, match="absolute_px and unit"):
        function(px(0, 0, 1, 1), Box(0, 0, 1, 1, UNIT))  # type: ignore[operator]


# A picture of 640 x 80 pixels. x: 160 px = 1/4 = 250 per mille. y: 60 px = 3/4 = 750 per mille.
SAME_BOX = [Box(160, 0, 320, 60, PX), Box(0.25, 0, 0.5, 0.75, UNIT), Box(250, 0, 500, 750, PER_MILLE)]
SAME_POINT = [Point(160, 60, PX), Point(0.25, 0.75, UNIT), Point(250, 750, PER_MILLE)]


@pytest.mark.parametrize("same", [SAME_BOX, SAME_POINT])
def test_conversion_between_all_conventions_by_hand(same: list[Any]) -> None:
    for start in same:
        for end in same:
            assert convert(start, end.convention, width_px=640, height_px=80) == end


def test_conversion_never_rounds() -> None:
    assert convert(Point(1, 2, PX), PER_MILLE, 3, 3) == Point(1000 / 3, 2000 / 3, PER_MILLE)


def test_conversion_without_pixels_needs_no_image_size() -> None:
    assert convert(Box(0, 0.5, 1, 1, UNIT), PER_MILLE) == Box(0, 500, 1000, 1000, PER_MILLE)
    assert convert(Point(3, 4, PX), PX) == Point(3, 4, PX)


@pytest.mark.parametrize("size", [(None, 10), (10, None), (0, 10), (10, -1), (math.nan, 10), (10, math.inf)])
def test_conversion_of_pixels_refuses_a_bad_image_size(size: tuple[float | None, float | None]) -> None:
    with pytest.raises(ValueError, match=r"size|width_px"):
        convert(Point(0.5, 0.5, UNIT), PX, *size)


def test_conversion_refuses_a_result_that_no_box_can_have() -> None:
    with pytest.raises(ValueError, match="coordinate"):
        convert(Point(1e149, 0, UNIT), PER_MILLE)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e151, 10**400])
@pytest.mark.parametrize("place", range(4))
def test_coordinates_are_finite(bad: float, place: int) -> None:
    values = {name: bad if index == place else float(index) for index, name in enumerate(("x1", "y1", "x2", "y2"))}
    with pytest.raises(ValueError, match="coordinate"):
        Box(**values, convention=UNIT)
    with pytest.raises(ValueError, match="coordinate"):
        Point(bad, 0, UNIT)
    with pytest.raises(ValueError, match="coordinate"):
        Point(0, bad, UNIT)


def test_boxes_cannot_be_changed_and_compare_by_value() -> None:
    box = px(1, 2, 3, 4)
    with pytest.raises(AttributeError):
        box.x1 = 0  # type: ignore[misc]
    assert box == px(1.0, 2.0, 3.0, 4.0) and hash(box) == hash(px(1.0, 2.0, 3.0, 4.0))
    assert box != Box(1, 2, 3, 4, UNIT)


def test_convention_values_are_what_a_config_writes() -> None:
    assert [convention.value for convention in BoxConvention] == ["absolute_px", "unit", "per_mille"]


@settings(deadline=None)
@given(boxes, boxes)
def test_any_two_boxes_give_finite_values_in_range(first: Box, second: Box) -> None:
    assert 0.0 <= box_iou(first, second) <= 1.0
    assert -1.0 <= box_giou(first, second) <= box_iou(first, second)
    assert math.isfinite(box_area(first)) and box_area(first) >= 0.0
    assert box_iou(first, second) == box_iou(second, first)
    assert box_giou(first, second) == box_giou(second, first)


@settings(deadline=None)
@given(integer_boxes, integer_boxes)
def test_iou_and_giou_equal_the_definition_in_exact_fractions(first: Box, second: Box) -> None:
    def cells(box: Box) -> set[tuple[int, int]]:
        return {(x, y) for x in range(int(box.x1), int(box.x2)) for y in range(int(box.y1), int(box.y2))}

    union, both = len(cells(first) | cells(second)), len(cells(first) & cells(second))
    iou = Fraction(both, union) if union else Fraction(0)
    xs, ys = (first.x1, first.x2, second.x1, second.x2), (first.y1, first.y2, second.y1, second.y2)
    hull = int((max(xs) - min(xs)) * (max(ys) - min(ys)))
    giou = iou - (Fraction(hull - union, hull) if hull else 0)
    assert box_iou(first, second) == pytest.approx(float(iou), abs=1e-15)
    assert box_giou(first, second) == pytest.approx(float(giou), abs=1e-15)


@settings(deadline=None)
@given(points, st.sampled_from(BoxConvention), st.integers(1, 10_000), st.integers(1, 10_000))
def test_conversion_there_and_back_returns_the_point(point: Point, to: BoxConvention, width: int, height: int) -> None:
    back = convert(convert(point, to, width, height), point.convention, width, height)
    assert back.x == pytest.approx(point.x, rel=1e-14) and back.y == pytest.approx(point.y, rel=1e-14)


@settings(deadline=None)
@given(integer_boxes, integer_boxes, st.integers(1, 5000), st.integers(1, 5000))
def test_iou_and_giou_are_the_same_in_every_convention(first: Box, second: Box, width: int, height: int) -> None:
    for to in (UNIT, PER_MILLE):
        there = [convert(box, to, width, height) for box in (first, second)]
        assert box_iou(*there) == pytest.approx(box_iou(first, second), abs=1e-9)
        assert box_giou(*there) == pytest.approx(box_giou(first, second), abs=1e-9)


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(geometry)
    assert result.attempted > 0 and result.failed == 0


def test_importing_geometry_imports_no_torch() -> None:
    code = "import sys, mmrl_core.media.geometry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

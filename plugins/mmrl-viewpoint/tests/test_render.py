"""Rendered pictures show what the cameras' poses say, by where the colours lie in them."""

import numpy as np
import pytest

from mmrl_viewpoint.poses import look_at
from mmrl_viewpoint.render import Part, render

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
CUBE = (0.5, 0.5, 0.5)
FRONT = look_at((0, -6, 0), (0, 0, 0))  # looks along +y; +x is on its right


def shoot(parts, *poses, size_px=56):
    return [np.asarray(picture).astype(int) for picture in render(parts, poses, size_px=size_px)]


def where(picture, channel):
    """Mean row and column, and number, of the pixels in which one colour channel stands out."""
    others = [index for index in range(3) if index != channel]
    rows, columns = np.nonzero(picture[..., channel] > picture[..., others].max(-1) + 40)
    return rows.mean(), columns.mean(), len(rows)


def test_x_is_right_and_z_is_up_for_the_camera_in_front():
    (picture,) = shoot([Part("box", (1, 0, 0), CUBE, RED), Part("box", (0, 0, 1), CUBE, BLUE)], FRONT)
    red_row, red_column, _ = where(picture, 0)
    blue_row, blue_column, _ = where(picture, 2)
    assert abs(red_row - 27.5) < 1 and abs(blue_column - 27.5) < 1
    # A field of view of 40 degrees shows 2 * 6 * tan(20 degrees) = 4.37 units on 56 pixels at a distance of 6.
    assert red_column == pytest.approx(27.5 + 56 / 4.37, abs=1)
    assert blue_row == pytest.approx(27.5 - 56 / 4.37, abs=1)


def test_what_is_nearer_covers_what_is_behind_it_from_either_side():
    parts = [Part("box", (0, -1, 0), (1, 0.5, 0.5), RED), Part("sphere", (0, 1, 0), CUBE, BLUE)]
    front, back = shoot(parts, FRONT, look_at((0, 6, 0), (0, 0, 0)))
    assert where(front, 0)[2] > 50 and not (front[..., 2] > front[..., 0] + 40).any()
    assert where(back, 2)[2] > 20 and where(back, 0)[2] > 20  # the box is wider than the sphere before it


def test_twice_as_near_is_twice_as_large():
    far, near = shoot(
        [Part("box", (0, 0, 0), (1, 0.01, 1), RED)], look_at((0, -8, 0), (0, 0, 0)), look_at((0, -4, 0), (0, 0, 0))
    )
    assert where(near, 0)[2] / where(far, 0)[2] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("axis", ["y", "z"])
def test_a_cone_points_up_or_to_the_front(axis):
    side = look_at((6, 0, 0), (0, 0, 0))  # looks along -x; its right is +y
    picture = shoot([Part("cone", (0, 0, 0), (1, 1, 1), RED, axis)], side)[0]
    rows, columns = np.nonzero(picture[..., 0] > picture[..., 1] + 40)
    along = rows if axis == "z" else columns  # from its tip to its base: downwards, or from -y on the left to +y
    widths = np.bincount(along)[along.min() : along.max() + 1]
    assert widths[0] < widths[-1] / 3 and (np.diff(widths) >= -1).all()


def test_a_scene_leaves_nothing_behind_and_gives_the_same_picture_again():
    scene = [Part("cylinder", (0, 0, 0), CUBE, RED)]
    first = shoot(scene, FRONT)[0]
    empty = shoot([], FRONT)[0]
    assert (empty == empty[0, 0]).all()
    assert (shoot(scene, FRONT)[0] == first).all()
    assert shoot(scene, FRONT, size_px=112)[0].shape == (112, 112, 3)

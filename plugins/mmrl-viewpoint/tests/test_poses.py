"""Camera poses: which way is right, and what it answers."""

import math

import numpy as np
import pytest

from mmrl_core.errors import TaskDataError
from mmrl_viewpoint.poses import Motion, answer_index, look_at, motion, object_centre, world_up

ORIGIN = (0.0, 0.0, 0.0)
UP = (0.0, 0.0, 1.0)
FRONT = look_at((0, -4, 0), ORIGIN)  # looks along +y; its right is +x


def test_a_camera_is_a_rotation_with_x_right_y_down_z_forward():
    assert np.allclose(FRONT[:3, :3].T, [[1, 0, 0], [0, 0, -1], [0, 1, 0]])
    assert np.allclose(FRONT[:3, 3], [0, -4, 0])


def test_a_quarter_orbit_to_the_right_turns_left():
    # From (0, -4) to (4, 0): the camera goes 4 to its right and 4 forward, and turns left by 90 degrees.
    change = motion(FRONT, look_at((4, 0, 0), ORIGIN), ORIGIN, UP)
    assert change == Motion(
        *[pytest.approx(value, abs=1e-9) for value in (1.0, 0.0, 1.0)],
        turn_deg=pytest.approx(-90),
        angle_deg=pytest.approx(90),
        distance_ratio=pytest.approx(1.0),
    )
    answers = [answer_index(kind, change) for kind in ("ego_translation", "ego_rotation", "object_translation")]
    assert answers == [0, 2, 2]  # right; left; seen from the object, left


def test_the_mirrored_orbit_gives_the_mirrored_answers():
    change = motion(FRONT, look_at((-2, -2 * math.sqrt(3), 0), ORIGIN), ORIGIN, UP)  # 30 degrees to the left
    assert (change.angle_deg, change.turn_deg) == (pytest.approx(-30), pytest.approx(30))
    answers = [answer_index(kind, change) for kind in ("ego_translation", "ego_rotation", "object_translation")]
    assert answers == [2, 0, 0]


def test_a_turn_on_the_spot_is_no_translation():
    turned = look_at((0, -4, 0), (4, 0, 0))  # 45 degrees to the right
    change = motion(FRONT, turned, ORIGIN, UP)
    assert change.turn_deg == pytest.approx(45)
    assert [answer_index(kind, change) for kind in ("ego_translation", "ego_rotation", "height")] == [1, 0, 1]


@pytest.mark.parametrize(
    ("position", "kind", "expected"),
    [
        ((0, -4, 1), "height", 0),
        ((0, -4, -1), "height", 2),
        ((0, -4, 0.1), "height", 1),
        ((0, -4, 0.3), "height", None),  # 7.5 % of the distance: neither here nor there
        ((0, -3, 0), "distance", 0),
        ((0, -5, 0), "distance", 2),
        ((0, -4, 0), "distance", 1),
    ],
)
def test_height_and_distance(position, kind, expected):
    assert answer_index(kind, motion(FRONT, look_at(position, ORIGIN), ORIGIN, UP)) == expected


def test_answers_do_not_depend_on_the_world_frame():
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = 3 * rotation, [5, -7, 2]  # moved, turned and three times as large
    second = look_at((1, -3, 1), ORIGIN)

    def moved(pose):
        result = world @ pose
        result[:3, :3] /= 3
        return result

    before = motion(FRONT, second, ORIGIN, UP)
    after = motion(moved(FRONT), moved(second), world[:3, 3], rotation @ UP)
    assert [getattr(after, name) for name in Motion.__annotations__] == pytest.approx(
        [getattr(before, name) for name in Motion.__annotations__], abs=1e-9
    )


def test_the_vertical_is_found_from_upright_cameras():
    tilt = look_at((1, 2, 3), ORIGIN)  # any rotation
    up = tilt[:3, :3] @ UP
    ring = [look_at((3 * math.cos(angle), 3 * math.sin(angle), 2), ORIGIN) for angle in (0, 0.5, 1.2)]
    assert world_up([tilt @ pose for pose in ring]) == pytest.approx(up)
    assert world_up(ring[:1]) == pytest.approx(-ring[0][:3, 1])  # one camera says no more than its own up axis


def test_the_centre_is_where_the_axes_meet():
    poses = [look_at(position, (1, 2, 3)) for position in ((5, 0, 0), (0, 5, 1), (-3, -3, 4))]
    assert object_centre(poses) == pytest.approx([1, 2, 3])
    with pytest.raises(TaskDataError, match="parallel"):
        object_centre([FRONT, FRONT])


@pytest.mark.parametrize(
    "pose", [None, "x", [[1, 2], [3, 4]], np.full((4, 4), math.nan), np.zeros((4, 4)), np.diag([1, 1, -1, 1])]
)
def test_what_is_no_pose_is_said(pose):
    with pytest.raises(TaskDataError, match="pose"):
        motion(pose, FRONT, ORIGIN, UP)


def test_cameras_without_left_and_right_are_refused():
    with pytest.raises(TaskDataError, match="vertical"):
        look_at((0, 0, 5), ORIGIN)
    with pytest.raises(TaskDataError, match="stands in the centre"):
        motion(FRONT, FRONT, (0, -4, 0), UP)

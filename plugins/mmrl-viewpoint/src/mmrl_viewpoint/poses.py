"""Camera poses: how one camera moved against another, and which questions that answers.

A pose is a 4 x 4 matrix from camera to world coordinates. Camera axes are those of OpenCV and COLMAP: x right, y down,
z into the scene. World units are any; nothing here depends on them.

Movements are read in the levelled axes of the first camera: right is its x axis made horizontal, up is the vertical of
the world, forward is horizontal. "Right" is what the first camera sees on its right; for the object, which faces the
first camera, the same movement is one to the left.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import TaskDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

HORIZONTAL_KINDS = ("ego_translation", "ego_rotation", "object_translation")

# Movements between the two limits are called neither a movement nor none, and are not asked about.
STILL_BELOW_DEG, MOVED_FROM_DEG = 4.0, 10.0
STILL_BELOW, MOVED_FROM = 0.05, 0.12  # of the first camera's distance from the object
MIN_SPREAD = 0.1  # of x axes; below, a small roll of a camera would tip the vertical over


@dataclass(frozen=True)
class Motion:
    """From the first camera to the second.

    Attributes:
        right, up, forward: movement of the camera, as shares of the first camera's distance from the object.
        turn_deg: rotation about the vertical, -180..180, positive to the camera's right.
        angle_deg: horizontal angle between the two cameras as seen from the object, -180..180, positive where the
            camera moved to its right.
        distance_ratio: distance of the second camera from the object over that of the first.
    """

    right: float
    up: float
    forward: float
    turn_deg: float
    angle_deg: float
    distance_ratio: float


def motion(first: Any, second: Any, centre: Sequence[float], up: Sequence[float]) -> Motion:
    """How the second camera stands against the first.

    Args:
        first, second: poses, [4, 4] (the last row is not read).
        centre: of the object, world coordinates.
        up: the world's vertical, of any length.

    Raises:
        TaskDataError: a pose is no matrix of finite numbers, a camera stands in the centre, or looks straight up or
            down.
    """
    import numpy as np

    one, other = (checked_pose(pose) for pose in (first, second))
    vertical = _unit(np.asarray(up, dtype=float))
    right, _ = (_unit(np.cross(pose[:3, 2], vertical)) for pose in (one, other))
    forward = np.cross(vertical, right)
    start, end = (pose[:3, 3] - np.asarray(centre, dtype=float) for pose in (one, other))
    distance = float(np.linalg.norm(start))
    if not distance > 0 or not np.linalg.norm(end) > 0:
        raise TaskDataError("a camera stands in the centre of its object")
    shift = (end - start) / distance

    def heading(vector: NDArray[Any]) -> float:
        """Angle to the right of the first camera's forward axis."""
        return math.degrees(math.atan2(float(vector @ right), float(vector @ forward)))

    return Motion(
        right=float(shift @ right),
        up=float(shift @ vertical),
        forward=float(shift @ forward),
        turn_deg=_wrapped(heading(other[:3, 2]) - heading(one[:3, 2])),
        # Seen from the object, a camera that moves to its right goes round against the sense of headings.
        angle_deg=_wrapped(heading(start) - heading(end)),
        distance_ratio=float(np.linalg.norm(end)) / distance,
    )


def answer_index(kind: str, change: Motion) -> int | None:
    """Which option of `prompts.VIEWPOINT_QUESTIONS[kind]` is right: 0, 1 (no movement) or 2; None where it is unclear.

    >>> answer_index("ego_translation", Motion(0.5, 0, 0, -30, 30, 1))
    0
    """
    if kind == "ego_rotation":
        return _side(change.turn_deg, STILL_BELOW_DEG, MOVED_FROM_DEG)
    measure = {
        "ego_translation": change.right,
        "object_translation": -change.right,
        "height": change.up,
        "distance": 1 - change.distance_ratio,
    }[kind]
    return _side(measure, STILL_BELOW, MOVED_FROM)


def _side(value: float, still_below: float, moved_from: float) -> int | None:
    if abs(value) <= still_below:
        return 1
    if abs(value) < moved_from:
        return None
    return 0 if value > 0 else 2


def object_centre(poses: Sequence[Any]) -> list[float]:
    """The point nearest to the optical axes of all cameras, by least squares: the centre of what they look at.

    Raises:
        TaskDataError: as `motion`, or all axes are parallel.
    """
    import numpy as np

    total, right_side = np.zeros((3, 3)), np.zeros(3)
    for pose in map(checked_pose, poses):
        across = np.eye(3) - np.outer(pose[:3, 2], pose[:3, 2])  # projects onto the plane that the axis crosses
        total += across
        right_side += across @ pose[:3, 3]
    if np.linalg.matrix_rank(total, tol=1e-6 * max(1, len(poses))) < 3:
        raise TaskDataError("the optical axes of the cameras are parallel, so nothing says where the object is")
    return [float(value) for value in np.linalg.solve(total, right_side)]


def world_up(poses: Sequence[Any]) -> list[float]:
    """The vertical of a world that is known by its upright cameras alone, such as a COLMAP model: a unit vector.

    It is the direction that the cameras' x axes are most nearly at right angles to. Where these all point the same way,
    it is the mean of the cameras' own up axes.

    Raises:
        TaskDataError: as `motion`, or the cameras' up axes cancel out.
    """
    import numpy as np

    read = [checked_pose(pose) for pose in poses]
    own_up = _unit(-np.mean([pose[:3, 1] for pose in read], axis=0))
    _, spread, axes = np.linalg.svd(np.stack([pose[:3, 0] for pose in read] + [np.zeros(3)] * 2))
    vertical = axes[2] if spread[1] > MIN_SPREAD * spread[0] else own_up
    return [float(value) for value in vertical * np.sign(vertical @ own_up)]


def look_at(position: Sequence[float], target: Sequence[float], up: Sequence[float] = (0.0, 0.0, 1.0)) -> NDArray[Any]:
    """Pose [4, 4] of an upright camera at a position that looks at a target."""
    import numpy as np

    place = np.asarray(position, dtype=float)
    forward = _unit(np.asarray(target, dtype=float) - place)
    right = _unit(np.cross(forward, np.asarray(up, dtype=float)))
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(forward, right), forward, place
    return pose


def checked_pose(value: Any) -> NDArray[Any]:
    """A pose [4, 4] or [3, 4] with a proper rotation.

    Args:
        value: the matrix, as lists or in JSON, as a table of text holds it.

    Raises:
        TaskDataError: it is none.
    """
    import numpy as np

    try:
        value = json.loads(value) if isinstance(value, str) else value
        pose = np.asarray(value, dtype=float)
    except (TypeError, ValueError, RecursionError) as error:
        raise TaskDataError(f"a camera pose is no matrix of numbers: {str(value)[:80]}") from error
    if pose.shape not in ((4, 4), (3, 4)) or not np.isfinite(pose).all():
        raise TaskDataError(f"a camera pose is a finite 4 x 4 matrix; this one is {str(value)[:80]}")
    rotation = pose[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
        raise TaskDataError("a camera pose has no rotation in its first three rows and columns")
    return pose


def _unit(vector: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    length = float(np.linalg.norm(vector))
    if not length > 1e-9:
        raise TaskDataError("a camera looks along the vertical, so it has no left and right")
    return vector / length


def _wrapped(angle_deg: float) -> float:
    """The same angle within -180..180.

    >>> _wrapped(350.0)
    -10.0
    """
    return (angle_deg + 180.0) % 360.0 - 180.0

"""What the report draws on the screenshot of a rollout: the gold box or point, and where the completion points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl_core.media import BoxConvention
from mmrl_gui.geometry import Position, converted, numbers_of
from mmrl_gui.parsing import parse_actions
from mmrl_gui.rewards import gold_target


def actions(
    completion: str,
    sample: Mapping[str, Any],
    *,
    completion_convention: BoxConvention | str = BoxConvention.ABSOLUTE_PX,
    solution_convention: BoxConvention | str = BoxConvention.UNIT,
) -> list[dict[str, Any]]:
    """The gold position, then every point of the completion, in thousandths of the screenshot's sides.

    Reads with the parser of the rewards: what is drawn is what was scored. An action that points nowhere is not drawn.

    Args:
        completion: untrusted text.
        sample: a row with `gt_bbox`; `resized_width_px` and `resized_height_px` where numbers are in pixels.
        completion_convention, solution_convention: what the numbers mean, as in the rewards.

    Returns:
        A dict for each: "box" [x1, y1, x2, y2] or "point" [x, y], "label" (the name of the action), "kind" ("gold" or
        "predicted").

    Raises:
        ValueError: a convention is unknown.

    >>> actions("<answer>[{'action': 'click', 'point': [7, 14]}]</answer>",
    ...         {"resized_width_px": 28, "resized_height_px": 28})
    [{'point': [250.0, 500.0], 'label': 'click', 'kind': 'predicted'}]
    """
    shapes = []
    gold = gold_target(sample, BoxConvention(solution_convention), BoxConvention.PER_MILLE)
    if gold is not None:
        shapes.append(_shape(gold, str(sample.get("action") or ""), "gold"))
    for action in parse_actions(completion, BoxConvention(completion_convention)) or []:
        if action.point is None:
            continue
        try:
            size = sample.get("resized_width_px"), sample.get("resized_height_px")
            shown = converted(action.point, BoxConvention.PER_MILLE, *size)
        except (ValueError, TypeError):  # the sample lacks the size, or holds none
            continue
        shapes.append(_shape(shown, action.name, "predicted"))
    return shapes


def _shape(position: Position, label: str, kind: str) -> dict[str, Any]:
    numbers = [float(number) for number in numbers_of(position)]
    return {"box" if len(numbers) == 4 else "point": numbers, "label": label, "kind": kind}

"""What the report draws on the image of a rollout: gold boxes and those that the completion names."""

from collections.abc import Mapping
from typing import Any

from mmrl_core.media import Box, BoxConvention, convert
from mmrl_visual_rft.parsing import answer_text, parse_boxes, parse_detections


def boxes(
    completion: str,
    sample: Mapping[str, Any],
    *,
    completion_convention: BoxConvention | str = BoxConvention.PER_MILLE,
    solution_convention: BoxConvention | str = BoxConvention.PER_MILLE,
) -> list[dict[str, Any]]:
    """Gold boxes, then predicted ones, in thousandths of the image's sides.

    Reads detection answers, `{'Position': [...], 'Confidence': c}`, and grounding answers, `(x1,y1),(x2,y2)`, with the
    parsers that the rewards use: what is drawn is what was scored. Corners stay as written.

    Args:
        completion: untrusted text; nothing is drawn for what cannot be read.
        sample: `solution` is the gold answer; `resized_width_px` and `resized_height_px` where boxes are in pixels.
        completion_convention, solution_convention: what the numbers mean, as in the rewards.

    Returns:
        A dict for each box: "box" [x1, y1, x2, y2] per mille, "label" (the confidence as written, or ""), "kind"
        ("gold" or "predicted"). A box that needs the image size is left out where the sample lacks it.

    Raises:
        ValueError: a convention is unknown.

    >>> boxes("<answer>(100,100),(200,250)</answer>", {})
    [{'box': [100.0, 100.0, 200.0, 250.0], 'label': '', 'kind': 'predicted'}]
    """
    gold = _read(sample.get("solution"), BoxConvention(solution_convention))
    predicted = _read(completion, BoxConvention(completion_convention))
    shapes = []
    for kind, found in (("gold", gold), ("predicted", predicted)):
        for box, confidence in found:
            shown = _per_mille(box, sample)
            if shown is not None:
                label = f"{confidence:.2f}" if kind == "predicted" and confidence is not None else ""
                shapes.append({"box": [shown.x1, shown.y1, shown.x2, shown.y2], "label": label, "kind": kind})
    return shapes


def _read(text: object, convention: BoxConvention) -> list[tuple[Box, float | None]]:
    """Boxes with their confidences. A detection answer that its parser refuses is not read as a grounding one."""
    answer = answer_text(text)
    detections = parse_detections(answer, convention)
    if detections is not None:
        return [(detection.box, detection.confidence) for detection in detections]
    if answer is None or "Position" in answer:
        return []
    return [(box, None) for box in parse_boxes(answer, convention)]


def _per_mille(box: Box, sample: Mapping[str, Any]) -> Box | None:
    width, height = sample.get("resized_width_px"), sample.get("resized_height_px")
    try:
        return convert(box, BoxConvention.PER_MILLE, width, height)
    except (ValueError, TypeError):  # the sample lacks the size, or holds none
        return None

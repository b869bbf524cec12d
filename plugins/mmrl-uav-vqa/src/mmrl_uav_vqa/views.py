"""What the report draws on the image of a rollout: the objects that the gold answer rests on."""

from collections.abc import Mapping
from typing import Any


def evidence(completion: str, sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gold boxes, in thousandths of the image's sides. Answers name no boxes, so nothing is drawn of the completion.

    Args:
        completion: not read.
        sample: `evidence`, a list of [x1, y1, x2, y2] in thousandths; rows without it show the image alone.

    Returns:
        A dict for each box: "box", "label" (the gold answer on the first one), "kind" ("gold").

    >>> evidence("", {"evidence": [[0, 0, 500, 500]], "answer": "red"})
    [{'box': [0, 0, 500, 500], 'label': 'red', 'kind': 'gold'}]
    """
    boxes = sample.get("evidence") or []
    labels = [str(sample.get("answer", "")), *[""] * len(boxes)]
    return [{"box": list(box), "label": label, "kind": "gold"} for box, label in zip(boxes, labels, strict=False)]

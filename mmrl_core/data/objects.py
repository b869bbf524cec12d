"""Grounding rows of ms-swift: the column `objects`, whose names and boxes stand for marks in the messages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl_core.errors import TaskDataError

REF, BOX = "<ref-object>", "<bbox>"


def with_objects(messages: Sequence[Any], objects: Any) -> list[Any]:
    """Messages with names and boxes in place of their marks, the next of its kind for each mark.

    A box is written as `[x1, y1, x2, y2]`, a point as `[x, y]`, in the numbers of the row: pixels of the picture as it
    is stored (`bbox_type: real`, rounded), or shares of its sides (`norm1`, as they are). Nothing is scaled to what a
    model expects: for one that counts pixels of the resized picture, such as Qwen2.5-VL, store pictures at the size
    that its processor makes of them.

    Args:
        messages: `{"role": ..., "content": ...}`, or of `from` and `value`.
        objects: `{"ref": [...], "bbox": [[...], ...], "bbox_type": "real" or "norm1"}`, or the same as JSON. Its
            further keys are not read. What no mark asks for is left over.

    Raises:
        TaskDataError: `objects` is something else, or there are more marks than names or boxes.

    Source: ms-swift's documentation, custom datasets, grounding. Our choice: its templates scale boxes and write them
    in the form of their model, which is not known here.

    >>> with_objects([{"role": "user", "content": "Is <bbox> a <ref-object>?"}], {"ref": ["cat"], "bbox": [[1, 2.6]]})
    [{'role': 'user', 'content': 'Is [1, 3] a cat?'}]
    """
    objects = json.loads(objects) if isinstance(objects, str) else objects
    if not isinstance(objects, Mapping):
        raise TaskDataError(f"objects: expected a mapping with ref and bbox, this is {type(objects).__name__}")
    kind = objects.get("bbox_type") or "real"
    if kind not in ("real", "norm1"):
        raise TaskDataError(f"objects: bbox_type {kind!r} is not read; types: real, norm1")
    waiting = {
        REF: [str(name) for name in objects.get("ref") or ()],
        BOX: [_box(box, kind == "real") for box in objects.get("bbox") or ()],
    }
    return [_replaced(message, waiting) for message in messages]


def _box(box: Any, is_real: bool) -> str:
    if not isinstance(box, Sequence) or len(box) not in (2, 4) or not all(isinstance(n, int | float) for n in box):
        raise TaskDataError(f"objects: {box!r} is no box of 4 numbers and no point of 2")
    return str([round(number) for number in box] if is_real else list(box))


def _replaced(message: Any, waiting: Mapping[str, list[str]]) -> Any:
    """A message without marks, or a part of one; takes what it needs from `waiting`."""
    if isinstance(message, str):
        return re.sub(f"{REF}|{BOX}", lambda mark: _next(mark[0], waiting), message)
    if isinstance(message, list | tuple):
        return [_replaced(part, waiting) for part in message]
    if not isinstance(message, Mapping):
        return message
    texts = {key: _replaced(message[key], waiting) for key in ("content", "value", "text") if key in message}
    return {**message, **texts}


def _next(mark: str, waiting: Mapping[str, list[str]]) -> str:
    if not waiting[mark]:
        column = "ref" if mark == REF else "bbox"
        raise TaskDataError(f"objects: the messages have more marks {mark} than there are entries of {column}")
    return waiting[mark].pop(0)

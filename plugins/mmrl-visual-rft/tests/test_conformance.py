"""The plugin keeps every property of docs/conformance.md; CASES are data sets of one row for its sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrl_core.testing import MEDIUM, SourceCase, json_rows, write_json

PLUGIN = "visual_rft"

FLOWER = {"image": MEDIUM, "problem": "Which flower?", "solution": "<answer>rose</answer>"}
GROUNDING = {"image": MEDIUM, "problem": "Find the cat.", "solution": "<answer>[]</answer>"}


def _coco(folder: Path, medium: Any) -> dict[str, Any]:
    content = {
        "images": [{"id": 1, "file_name": medium, "width": 40, "height": 40}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 20, 20]}],
    }
    return {"annotations": write_json(folder / "annotations.json", content), "images": str(folder)}


def _lisa(folder: Path, medium: Any) -> dict[str, Any]:
    shapes = [{"label": "target", "points": [[1, 1], [20, 1], [20, 20]]}]
    write_json((folder / medium).with_suffix(".json"), {"text": ["the cat"], "shapes": shapes})
    return {"path": str(folder)}


CASES = {
    "visual_rft/coco": (SourceCase(_coco, inline=False),),
    "visual_rft/lisa": (SourceCase(_lisa, inline=False, names_files=False),),
    "visual_rft/published": (
        SourceCase(json_rows(GROUNDING)),
        SourceCase(json_rows(FLOWER), tasks=("visual_rft/classification",)),
    ),
}


def test_conformance(mmrl_property):
    mmrl_property()

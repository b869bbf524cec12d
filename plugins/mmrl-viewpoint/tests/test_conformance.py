"""The plugin keeps every property of docs/conformance.md; CASES are data sets of one row for its sources."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mmrl_core.testing import MEDIUM, SourceCase, json_rows, write_json

PLUGIN = "viewpoint"

CHOICE = {"id": 0, "idx": 0, "question": "Left or right?", "choices": ["left", "right"], "answer": "(A)", "task": "2D"}
PLAIN = {"question": "Left or right?", "options": ["left", "right"], "answer": "A", "images": MEDIUM}
SAT = {"image_bytes": MEDIUM, "question": "Where?", "answers": ["left", "right"], "correct_answer": "left"}


def _posed(folder: Path, medium: Any) -> dict[str, Any]:
    def pose(angle: float) -> list[list[float]]:
        """Camera to world of a camera on a circle that looks at its centre."""
        sine, cosine = math.sin(angle), math.cos(angle)
        return [[-sine, 0, -cosine, cosine], [cosine, 0, -sine, sine], [0, -1, 0, 0], [0, 0, 0, 1]]

    views = [{"object": "cup", "image": medium, "camera_to_world": pose(i * math.pi / 12)} for i in range(24)]
    return {"path": write_json(folder / "train.jsonl", views), "num_rows": 1}


CASES = {
    "viewpoint/benchmark": (SourceCase(json_rows({**CHOICE, "image": MEDIUM}, benchmark="cv_bench"), column="images"),),
    "viewpoint/posed_views": (SourceCase(_posed, column="images"),),
    "viewpoint/published": (SourceCase(json_rows(PLAIN), column="images"),),
    "viewpoint/sat": (SourceCase(json_rows(SAT), column="images"),),
}


def test_conformance(mmrl_property):
    mmrl_property()

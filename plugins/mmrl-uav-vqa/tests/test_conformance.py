"""The plugin keeps every property of docs/conformance.md; CASES are data sets of one row for its sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrl_core.testing import MEDIUM, SourceCase, json_rows, write_json

PLUGIN = "uav_vqa"


def _hrvqa(folder: Path, medium: Any) -> dict[str, Any]:
    question = {"question_id": 1, "image_id": medium, "question": "Is it?", "question_type": "Yes/No"}
    write_json(folder / "train_question.json", {"questions": [question]})
    write_json(folder / "train_answer.json", {"annotations": [{"question_id": 1, "multiple_choice_answer": "yes"}]})
    return {"path": str(folder), "images": "{image_id}"}


CASES = {
    "uav_vqa/hrvqa": (SourceCase(_hrvqa, inline=False),),
    "uav_vqa/hrvqa_vl": (SourceCase(json_rows({"image": MEDIUM, "question": "Is it?", "answer": "yes"})),),
}


def test_conformance(mmrl_property):
    mmrl_property()

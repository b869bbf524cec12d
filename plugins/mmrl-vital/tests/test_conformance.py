"""The plugin keeps every property of docs/conformance.md; CASES are data sets of one row for its sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrl_core.testing import MEDIUM, SourceCase, write_csv, write_json

PLUGIN = "vital"

REXTIME = {"qid": "1", "vid": MEDIUM, "duration": 1.0, "question": "When?", "options": ["a", "b", "c", "d"]}
VIDEO_MME = {"videoID": MEDIUM, "question_id": "1", "question": "What?", "options": ["A. a", "B. b"], "answer": "A"}


def _charades(folder: Path, medium: Any) -> dict[str, Any]:
    (folder / "charades_sta_test.txt").write_text(f"{_stem(medium)} 0.1 0.6##a cat jumps\n")
    return {"annotations": str(folder / "charades_sta_{split}.txt"), "videos": str(folder)}


def _activitynet(folder: Path, medium: Any) -> dict[str, Any]:
    content = {_stem(medium): {"duration": 1.0, "timestamps": [[0.1, 0.6]], "sentences": ["A cat jumps."]}}
    return {"annotations": write_json(folder / "val_1.json", content), "videos": str(folder)}


def _nextgqa(folder: Path, medium: Any) -> dict[str, Any]:
    options = {f"a{number}": f"option {number}" for number in range(5)}
    record = {"video_id": _stem(medium), "question": "Why?", "answer": "option 1", "qid": "0", "type": "CW", **options}
    spans = {_stem(medium): {"duration": 1.0, "location": {"0": [[0.1, 0.6]]}}}
    return {
        "questions": write_csv(folder / "val.csv", record),
        "spans": write_json(folder / "gsub_val.json", spans),
        "videos": str(folder),
    }


def _rextime(folder: Path, medium: Any) -> dict[str, Any]:
    row = {**REXTIME, "vid": _stem(medium), "ans": "A", "span": [0.1, 0.6]}
    return {"annotations": write_json(folder / "validation.jsonl", [row]), "videos": str(folder)}


def _video_mme(folder: Path, medium: Any) -> dict[str, Any]:
    row = {**VIDEO_MME, "videoID": _stem(medium), "duration": "short"}
    return {"annotations": write_json(folder / "test.jsonl", [row]), "videos": str(folder)}


def _vital(folder: Path, medium: Any) -> dict[str, Any]:
    record = {"id": 1, "video": medium, "duration": 1.0, "text": "When?", "solution": [0.1, 0.6]}
    return {"path": write_json(folder / "charades.json", [{**record, "data_source": "charades"}])}


def _choice(folder: Path, medium: Any) -> dict[str, Any]:
    record = {"id": 1, "video": medium, "text": "Which?", "options": ["left", "right"], "solution": "B"}
    record |= {"duration": 1.0, "data_source": "video_r1/multiple_choice"}
    return {"path": write_json(folder / "video_r1.jsonl", [record])}


def _stem(medium: Any) -> str:
    """Sources that name videos by their ids add the suffix."""
    return str(medium).removesuffix(".mp4")


VIDEO: dict[str, Any] = {"kind": "video", "column": "video", "inline": False}

CHOICE_TASKS = ("vital/tools", "vital/video_qa", "vital/grounded_qa")

CASES = {
    "vital/activitynet": (SourceCase(_activitynet, split="val_1", **VIDEO),),
    "vital/charades_sta": (SourceCase(_charades, split="test", **VIDEO),),
    "vital/nextgqa": (SourceCase(_nextgqa, split="val", **VIDEO),),
    "vital/published": (
        SourceCase(_vital, **VIDEO),
        SourceCase(_choice, tasks=CHOICE_TASKS, **VIDEO),
    ),
    "vital/rextime": (SourceCase(_rextime, split="validation", **VIDEO),),
    "vital/video_mme": (SourceCase(_video_mme, split="test", **VIDEO),),
}


def test_conformance(mmrl_property):
    mmrl_property()

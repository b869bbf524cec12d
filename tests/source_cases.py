"""A data set of one row in the form of every data source, so that one table holds what all of them have in common.

`CASES` has an entry for each registered source that reads files of media named by its rows; `WITHOUT_MEDIA_FILES` names
those that make their media themselves or have none. A test fails for an installed source that is in neither.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import soundfile
from PIL import Image

from mmrl_core.config.schema import DataConfig, PromptConfig, SourceConfig
from mmrl_core.data import PromptSource
from mmrl_core.plugins import Plugins

Kind = Literal["image", "audio", "video"]

SUFFIX: Mapping[str, str] = {"image": ".png", "audio": ".wav", "video": ".mp4"}


@dataclass(frozen=True)
class Case:
    """How a data set of one row is written in the form of a source.

    Attributes:
        write: (folder, medium as the row names it) -> options of the source. Files of media lie in the same folder.
        kind: of the medium.
        column: of the row that the source makes, that holds it.
        split: to ask for.
        inline: whether the row may hold the medium itself instead of its path.
        names_files: whether rows name the file; else it is found by the name of another.
    """

    write: Callable[[Path, Any], dict[str, Any]]
    kind: Kind = "image"
    column: str = "image"
    split: str = "train"
    inline: bool = True
    names_files: bool = True
    prompt: Mapping[str, Any] = field(default_factory=dict)

    def open(self, plugins: Plugins, source: str, folder: Path, medium: Any) -> PromptSource:
        """The prompts of the row, read as a run does that sets no `data.media_root`."""
        options = self.write(folder, medium)
        prompt = PromptConfig(text="Look.", **{f"{self.kind}s": [f"{{{self.column}}}"]}, **self.prompt)
        config = SourceConfig(name=source, split=self.split, **options)
        return PromptSource(plugins, config, prompt, DataConfig(max_broken=1.0), name="train")


def write_json(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content))
    return str(path)


def write_csv(path: Path, row: Mapping[str, Any]) -> str:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        writer.writeheader()
        writer.writerow(row)
    return str(path)


@functools.cache
def medium_bytes(kind: Kind) -> bytes:
    """A picture of 40 x 40 pixels, a tone of half a second, or a video of ten such pictures."""
    buffer = io.BytesIO()
    if kind == "image":
        Image.new("RGB", (40, 40), "red").save(buffer, "PNG")
    elif kind == "audio":
        soundfile.write(buffer, np.sin(np.arange(8000) / 6).astype(np.float32) / 2, 16000, format="WAV")
    else:
        return video_bytes(64, 10)
    return buffer.getvalue()


@functools.cache
def video_bytes(side: int, num_frames: int) -> bytes:
    """An mp4 of green squares."""
    buffer = io.BytesIO()
    frame = av.VideoFrame(side, side, "yuv420p")
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.height = stream.width = side
        stream.pix_fmt = "yuv420p"
        for number in range(num_frames):
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def _table(*rows: Mapping[str, Any], **options: Any) -> Callable[[Path, Any], dict[str, Any]]:
    """Writes rows to train.jsonl, the medium in place of MEDIUM."""

    def write(folder: Path, medium: Any) -> dict[str, Any]:
        filled = [{key: medium if value is MEDIUM else value for key, value in row.items()} for row in rows]
        return {"path": write_json(folder / "train.jsonl", filled), **options}

    return write


MEDIUM = object()
AVQA = {"question_text": "What is in the video?", "multi_choice": ["a cat", "a dog"], "answer": 0, "audio_path": MEDIUM}
MMAU = {"question": "What is it?", "choices": ["a cat", "a dog"], "answer": "a cat", "audio_id": MEDIUM}
GUI_R1 = {"image": MEDIUM, "instruction": "Tap.", "gt_action": "click", "gt_bbox": [0.1, 0.1, 0.5, 0.5]}
SCREENSPOT = {"img_filename": MEDIUM, "instruction": "Tap.", "bbox": [2, 2, 10, 10], "data_type": "text"}
UI_R1 = {"img_filename": MEDIUM, "instruction": "Tap.", "bbox": [2, 2, 12, 12]}
ANDROID = {"image": MEDIUM, "task": "Tap.", "gt": {"action": "click", "x": 4, "y": 4}}
CHOICE = {"id": 0, "idx": 0, "question": "Left or right?", "choices": ["left", "right"], "answer": "(A)", "task": "2D"}
PLAIN = {"question": "Left or right?", "options": ["left", "right"], "answer": "A", "images": MEDIUM}
SAT = {"image_bytes": MEDIUM, "question": "Where?", "answers": ["left", "right"], "correct_answer": "left"}
GROUNDING = {"image": MEDIUM, "problem": "Find the cat.", "solution": "<answer>[]</answer>"}
REXTIME = {"qid": "1", "vid": MEDIUM, "duration": 1.0, "question": "When?", "options": ["a", "b", "c", "d"]}
VIDEO_MME = {"videoID": MEDIUM, "question_id": "1", "question": "What?", "options": ["A. a", "B. b"], "answer": "A"}


def _hrvqa(folder: Path, medium: Any) -> dict[str, Any]:
    question = {"question_id": 1, "image_id": medium, "question": "Is it?", "question_type": "Yes/No"}
    write_json(folder / "train_question.json", {"questions": [question]})
    write_json(folder / "train_answer.json", {"annotations": [{"question_id": 1, "multiple_choice_answer": "yes"}]})
    return {"path": str(folder), "images": "{image_id}"}


def _posed(folder: Path, medium: Any) -> dict[str, Any]:
    def pose(angle: float) -> list[list[float]]:
        """Camera to world of a camera on a circle that looks at its centre."""
        sine, cosine = math.sin(angle), math.cos(angle)
        return [[-sine, 0, -cosine, cosine], [cosine, 0, -sine, sine], [0, -1, 0, 0], [0, 0, 0, 1]]

    views = [{"object": "cup", "image": medium, "camera_to_world": pose(i * math.pi / 12)} for i in range(24)]
    return {"path": write_json(folder / "train.jsonl", views), "num_rows": 1}


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


def _stem(medium: Any) -> str:
    """Sources that name videos by their ids add the suffix."""
    return str(medium).removesuffix(SUFFIX["video"])


VIDEO: dict[str, Any] = {"kind": "video", "column": "video", "inline": False}
AUDIO: dict[str, Any] = {"kind": "audio", "column": "audio"}

CASES: dict[str, Sequence[Case]] = {
    "core/rows": (
        Case(_table({"image": MEDIUM})),
        Case(_table({"audio": MEDIUM}), **AUDIO),
        Case(_table({"video": MEDIUM}), **VIDEO),
    ),
    "audio_aqa/avqa": (Case(_table(AVQA), **AUDIO), Case(_table(AVQA, cut_to_s=0.1), **AUDIO)),
    "audio_aqa/mmau": (Case(_table(MMAU), **AUDIO), Case(_table(MMAU, cut_to_s=0.1), **AUDIO)),
    "gui/androidcontrol": (Case(_table(ANDROID)),),
    "gui/gui_r1": (Case(_table(GUI_R1)),),
    "gui/screenspot": (Case(_table(SCREENSPOT)),),
    "gui/ui_r1": (Case(_table(UI_R1)),),
    "uav_vqa/hrvqa": (Case(_hrvqa, inline=False),),
    "uav_vqa/hrvqa_vl": (Case(_table({"image": MEDIUM, "question": "Is it?", "answer": "yes"})),),
    "viewpoint/benchmark": (Case(_table({**CHOICE, "image": MEDIUM}, benchmark="cv_bench"), column="images"),),
    "viewpoint/posed_views": (Case(_posed, column="images"),),
    "viewpoint/published": (Case(_table(PLAIN), column="images"),),
    "viewpoint/sat": (Case(_table(SAT), column="images"),),
    "visual_rft/coco": (Case(_coco, inline=False),),
    "visual_rft/lisa": (Case(_lisa, inline=False, names_files=False),),
    "visual_rft/published": (Case(_table(GROUNDING)),),
    "vital/activitynet": (Case(_activitynet, split="val_1", **VIDEO),),
    "vital/charades_sta": (Case(_charades, split="test", **VIDEO),),
    "vital/nextgqa": (Case(_nextgqa, split="val", **VIDEO),),
    "vital/published": (Case(_vital, **VIDEO),),
    "vital/rextime": (Case(_rextime, split="validation", **VIDEO),),
    "vital/video_mme": (Case(_video_mme, split="test", **VIDEO),),
}

WITHOUT_MEDIA_FILES = frozenset(
    {
        "audio_aqa/melodies",
        "find/prompts",
        "gui/widget_screens",
        "text_reasoning/gym",
        "text_reasoning/problems",
        "text_reasoning/sums",
        "text_reasoning/walks",
        "uav_vqa/aerial_scenes",
        "viewpoint/rendered_pairs",
        "visual_rft/digit_scenes",
        "vital/tool_videos",
    }
)
"""Sources whose rows name no file: they have no media, or make them on this machine."""

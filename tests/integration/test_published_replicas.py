"""Published data sets, rebuilt in their published forms with twenty rows each: through source, `mmrl check` and metric.

A replica writes its files, says which task reads them, and what a model that answers in a known way would reach. The
expected numbers are worked by hand, beside the answers.
"""

import csv
import io
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow
import pytest
import soundfile
from PIL import Image

from mmrl_core.config import RunConfig
from mmrl_core.data import write_parquet
from mmrl_core.errors import TaskDataError
from mmrl_core.plugins import load_plugins
from mmrl_core.scoring import RewardRunner
from mmrl_core.testing import check_task

NUM_ROWS = 20
LETTERS = "ABCD"
PLUGINS = load_plugins()
THINK = "<think>I looked.</think> "


@dataclass(frozen=True)
class Task:
    """What a replica is read with.

    Attributes:
        source: the data source, with its options.
        prompt: templates, the gold answer included.
        rewards: ids; the gold answer has to reach the maximum of each.
        metric: id.
        answer: number of the row and the row -> what the model says.
        expected: numbers of the metric, by hand.
        options: of the metric.
        num_broken: rows that are refused, and why.
    """

    source: Mapping[str, Any]
    prompt: Mapping[str, Any]
    rewards: Sequence[str]
    metric: str
    answer: Callable[[int, Mapping[str, Any]], Any]
    expected: Mapping[str, float]
    options: Mapping[str, Any] = field(default_factory=dict)
    num_broken: int = 0
    why: str = ""


REPLICAS: dict[str, Callable[[Path], Task]] = {}


def replica(make):
    REPLICAS[make.__name__] = make
    return make


@pytest.mark.parametrize("name", REPLICAS)
def test_a_published_set_passes_source_check_and_metric(name, tmp_path):
    task = REPLICAS[name](tmp_path)
    config = RunConfig(
        name="replica",
        data={"train": dict(task.source), "max_broken": 0.5},
        prompt=dict(task.prompt),
        rewards=[{"name": reward} for reward in task.rewards],
    )
    problems = [finding for finding in check_task(config, PLUGINS) if not finding.ok]
    assert all(finding.tolerable and task.why in finding.what for finding in problems), problems
    assert len(problems) == task.num_broken
    rows = sound_rows(task)
    assert len(rows) == NUM_ROWS - task.num_broken
    completions = [task.answer(number, row) for number, row in enumerate(rows)]
    found = PLUGINS.registry.get("metric", task.metric).load()(completions, rows, **task.options)
    assert {key: found[key] for key in task.expected} == pytest.approx(task.expected, abs=1e-6, nan_ok=True)


def sound_rows(task):
    options = {key: value for key, value in task.source.items() if key not in ("name", "split")}
    rows = PLUGINS.registry.get("source", task.source["name"]).load()(task.source.get("split", "train"), **options)
    found = []
    for index in range(len(rows)):
        try:
            found.append(rows[index])
        except TaskDataError as error:
            assert task.why and task.why in str(error)
    return found


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def cells(rows, delimiter=","):
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def picture(path, size=(200, 100)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "blue").save(path)


def clips(folder, names):
    """A second of video under each name."""
    first, *others = [folder / f"{name}.mp4" for name in names]
    for path in (first, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(first), "w") as file:
        stream = file.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for grey in (0, 80, 160, 240):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    for path in others:
        shutil.copyfile(first, path)


def said(text):
    return f"<think>I looked.</think><answer>{text}</answer>"


def span(start, end):
    return f"From {start} to {end} seconds"


# Sound


@replica
def mmau(folder):
    soundfile.write(folder / "a.wav", np.zeros(800, np.float32), 8000)
    choices = ["a dog barks", "rain falls", "two bells ring", "nobody speaks"]
    rows = [
        {
            **{"id": f"id-{i}", "audio_id": "./a.wav", "question": "What is heard?", "choices": choices},
            **{"answer": choices[i % 4], "dataset": "AudioSet", "task": ("sound", "music", "speech")[i % 3]},
            **{"split": "test-mini", "category": "Reasoning", "sub-category": "x", "difficulty": "easy"},
        }
        for i in range(NUM_ROWS)
    ]
    path = write(folder / "mmau-test-mini.json", rows)

    def answer(i, row):  # 10 by their text, 5 by the letter, 5 wrong
        right = row["choices"].index(row["answer"])
        return said(row["answer"] if i < 10 else LETTERS[right] if i < 15 else "a cat")

    return Task(
        {"name": "audio_aqa/mmau", "split": "test", "path": path},
        {"audios": ["{audio}"], "text": "{problem}", "answer": "{demonstration}"},
        ["audio_aqa/accuracy", "audio_aqa/format", "audio_aqa/mmau_match"],
        "audio_aqa/mmau",
        answer,
        {  # MMAU's rule wants the words. Rows 0, 3, ..., 18 are sound: 4 of 7 below 10; music 3 of 7; speech 3 of 6.
            **{"accuracy": 0.5, "option_accuracy": 0.75, "readable": 1.0, "num_unscored": 0.0},
            **{"accuracy/task/sound": 4 / 7, "accuracy/task/music": 3 / 7, "accuracy/task/speech": 3 / 6},
        },
    )


# Videos


VIDEO = {"videos": ["{video}"], "video": {"num_frames": 2}, "text": "{problem}", "answer": "{answer}"}


@replica
def charades_sta(folder):
    names = ["3MSZA", "AMT7R", "0A8ZT", "YHXDH"]
    clips(folder / "videos", names)
    text = "".join(f"{names[i % 4]} {i}.0 {i + 10}.0##person {i} turns on a light.\n" for i in range(NUM_ROWS))
    write(folder / "charades_sta_test.txt", text)
    lengths = [{"id": name, "subject": "S1", "scene": "Bedroom", "script": "a, b", "length": 60} for name in names]
    write(folder / "Charades_v1_test.csv", cells(lengths))

    def answer(i, _):
        if i < 8:
            return said(span(i, i + 10))  # IoU 1
        if i < 12:
            return said(span(i, i + 5))  # 5 of 10
        return said(span(i + 5, i + 15) if i < 16 else "I do not know")  # 5 of 15; none

    return Task(
        {
            **{"name": "vital/charades_sta", "split": "test", "annotations": f"{folder}/charades_sta_{{split}}.txt"},
            **{"durations": f"{folder}/Charades_v1_{{split}}.csv", "videos": f"{folder}/videos"},
        },
        VIDEO,
        ["vital/task", "vital/iou", "vital/format"],
        "vital/temporal_grounding",
        answer,
        {"mIoU": (8 + 4 / 2 + 4 / 3) / 20, "R@0.3": 0.8, "R@0.5": 0.6, "R@0.7": 0.4, "readable": 0.8},
    )


@replica
def activitynet(folder):
    names = [f"v_{i}" for i in range(5)]
    clips(folder / "videos", names)
    content = {
        name: {
            "duration": 40.5,
            "timestamps": [[4 * k, 4 * k + 8] for k in range(4)],
            "sentences": [f"A person does thing {k}." for k in range(4)],
        }
        for name in names
    }
    for name in names[:4]:  # the training split has four that end before they start
        content[name]["timestamps"][3] = [20.0, 12.5]
    write(folder / "train.json", content)

    def answer(i, row):  # of 16 rows, 8 exact and 8 twice as long: IoU 8 of 16
        start, end = row["ground_truth"]
        return said(span(start, end if i < 8 else end + 8))

    return Task(
        {"name": "vital/activitynet", "annotations": f"{folder}/{{split}}.json", "videos": f"{folder}/videos"},
        VIDEO,
        ["vital/task", "vital/format"],
        "vital/temporal_grounding",
        answer,
        {"mIoU": 0.75, "R@0.5": 1.0, "R@0.7": 0.5, "num_unscored": 0.0},
        num_broken=4,
        why="ends before it starts",
    )


@replica
def nextgqa(folder):
    names = [f"30{i}" for i in range(5)]
    stems = {name: f"1164/{name}" for name in names}
    clips(folder / "videos", stems.values())
    options = ["by foot", "by car", "by train", "by boat", "by bus"]
    rows = [
        {
            **{"video_id": names[i % 5], "frame_count": 900, "width": 32, "height": 32, "question": "how did he come"},
            **{"answer": options[i % 5], "qid": str(i), "type": "CH"},
            **{f"a{number}": option for number, option in enumerate(options)},
        }
        for i in range(NUM_ROWS)
    ]
    write(folder / "val.csv", cells(rows))
    located = {
        name: {
            "duration": 34,
            "location": {str(i): [[2.0, 6.0], [10.0, 14.0]] for i in range(NUM_ROWS) if i % 5 == number},
            "fps": 29.97,
        }
        for number, name in enumerate(names)
    }
    write(folder / "gsub_val.json", located)
    write(folder / "map_vid_vidorID.json", stems)

    def answer(i, row):
        letter = row["ground_truth"]["answer"]
        other = "A" if letter != "A" else "B"
        if i < 5:
            return said(f"{span(2, 6)}, {letter}")  # IoU 1, IoP 1
        if i < 10:
            return said(f"{span(3, 3)}, {letter}")  # an instant inside: IoU 0, IoP 1
        return said(f"{span(10, 18)}, {letter}" if i < 15 else f"{span(2, 6)}, {other}")  # IoU and IoP 4 of 8; 1 and 1

    return Task(
        {
            **{"name": "vital/nextgqa", "split": "val", "questions": f"{folder}/{{split}}.csv"},
            **{"spans": f"{folder}/gsub_{{split}}.json", "videos": f"{folder}/videos"},
            "video_map": f"{folder}/map_vid_vidorID.json",
        },
        VIDEO,
        ["vital/task", "vital/grounded_qa", "vital/format"],
        "vital/grounded_qa",
        answer,
        {
            **{"accuracy": 0.75, "mIoU": (5 + 0 + 2.5 + 5) / 20, "mIoP": (5 + 5 + 2.5 + 5) / 20},
            **{"IoP@0.3": 1.0, "IoP@0.5": 1.0, "R@0.3": 0.75, "R@0.5": 0.75, "R@0.7": 0.5},
            **{"accuracy_IoP@0.5": 0.75, "accuracy_IoU@0.5": 0.5, "num_unscored": 0.0},
        },
    )


def rextime_rows(on_github):
    options = ["by riding", "by swinging sticks", "by shouting", "by waiting"]
    for i in range(NUM_ROWS):
        common = {"qid": f"anet_val{i}", "duration": 55.15, "vid": "v_5R3h6lxne90", "ans": LETTERS[i % 4]}
        if on_github:
            yield common | {"query": "How do we score?", "relevant_windows": [[32, 52]]}
        else:
            yield common | {
                **{"question": "How do we score?", "answer": "From <s0> to <e0>, <option>.", "category": "means_end"},
                **{"source": "ActivityNet_val_2", "options": options, "span": [32, 52]},
            }


@replica
def rextime(folder):
    clips(folder / "videos", ["v_5R3h6lxne90"])
    path = write(folder / "rextime_val.jsonl", lines(rextime_rows(on_github=False)))

    def answer(i, row):  # 12 right, 4 right spans with a wrong letter, 4 right letters without a span
        letter = row["ground_truth"]["answer"]
        other = "A" if letter != "A" else "B"
        return said(f"{span(32, 52)}, {letter}" if i < 12 else f"{span(32, 52)}, {other}" if i < 16 else letter)

    return Task(
        {"name": "vital/rextime", "split": "val", "annotations": path, "videos": f"{folder}/videos"},
        VIDEO,
        ["vital/task", "vital/format"],
        "vital/grounded_qa",
        answer,
        {"accuracy": 0.8, "mIoU": 0.8, "R@0.5": 0.8, "accuracy_IoU@0.5": 0.6},
    )


def test_the_file_of_rextime_on_github_lacks_the_options_and_says_so(tmp_path):
    clips(tmp_path / "videos", ["v_5R3h6lxne90"])
    load = PLUGINS.registry.get("source", "vital/rextime").load()
    records = list(rextime_rows(on_github=True))
    path = write(tmp_path / "rextime_val.jsonl", lines(records))
    with pytest.raises(TaskDataError, match=r"rextime_val\.jsonl:1: the record has no 'options'"):
        load("val", annotations=path, videos=f"{tmp_path}/videos")[0]
    write(tmp_path / "rextime_val.jsonl", lines([record | {"options": "A. a\nB. b\nC. c\nD. d"} for record in records]))
    row = load("val", annotations=path, videos=f"{tmp_path}/videos")[1]
    assert row["ground_truth"] == {"span": [[32.0, 52.0]], "answer": "B"} and row["options"] == ["a", "b", "c", "d"]


@replica
def video_mme(folder):
    clips(folder / "videos", ["fFjv93ACGo8"])
    rows = [
        {
            **{"video_id": "001", "duration": ("short", "medium", "long")[i // 7], "domain": "Knowledge"},
            **{"sub_category": "History", "url": "x", "videoID": "fFjv93ACGo8", "question_id": f"001-{i}"},
            **{"task_type": "Counting Problem", "question": "How many?", "answer": LETTERS[i % 4]},
            "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
        }
        for i in range(NUM_ROWS)
    ]
    text = pyarrow.string()
    schema = pyarrow.schema([(name, pyarrow.list_(text) if name == "options" else text) for name in rows[0]])
    write_parquet(rows, folder / "test-00000-of-00001.parquet", schema=schema)
    return Task(
        {"name": "vital/video_mme", "split": "test", "annotations": str(folder), "videos": f"{folder}/videos"},
        VIDEO,
        ["vital/task", "vital/multiple_choice", "vital/format"],
        "vital/accuracy",
        lambda i, row: said(row["ground_truth"] if i % 2 == 0 else "I think none"),
        {  # rows 0..6 are short: 0, 2, 4, 6 right; 7..13 medium: 8, 10, 12; 14..19 long: 14, 16, 18
            **{"accuracy": 0.5, "accuracy/short": 4 / 7, "accuracy/medium": 3 / 7, "accuracy/long": 3 / 6},
        },
        options={"by": "duration_class"},
    )


# Screens


SCREEN = {"images": ["{image}"], "text": "{problem}", "answer": f"{THINK}{{answer}}"}


def click(x, y):
    return f"{THINK}<answer>[{{'action': 'click', 'point': [{x}, {y}], 'input_text': 'no input text'}}]</answer>"


def half_right(i, row):
    """The gold answer in even rows; else a click at the corner, where no box is."""
    return THINK + row["answer"] if i % 2 == 0 else click(0, 0)


@replica
def screenspot(folder):
    names = ["mobile"] * 8 + ["pc"] * 6 + ["web"] * 6
    for name in set(names):
        picture(folder / "images" / f"{name}_1.png")
    rows = [
        {
            **{"img_filename": f"{name}_1.png", "bbox": [20 + i, 30, 40, 10], "instruction": "close it"},
            **{"data_type": ("text", "icon")[i // 2 % 2], "data_source": "shop"},
        }
        for i, name in enumerate(names)
    ]
    for file in ("mobile", "pc", "web"):
        chosen = [row for row, name in zip(rows, names, strict=True) if name == file]
        write(folder / "annotations" / f"screenspot_{file.replace('pc', 'desktop')}.json", chosen)

    def answer(i, row):
        return half_right(round(row["gt_bbox"][0] * 200) - 20, row)  # its number, whatever the order of the files

    return Task(
        {"name": "gui/screenspot", "path": f"{folder}/annotations", "images": f"{folder}/images"},
        SCREEN,
        ["gui/gui_r1_accuracy", "gui/gui_r1_format", "gui/gui_r1"],
        "gui/grounding",
        answer,
        {
            **{"accuracy": 0.5, "accuracy/mobile": 0.5, "accuracy/desktop": 0.5, "accuracy/web": 0.5},
            **{"accuracy/text": 0.5, "accuracy/icon": 0.5, "macro_accuracy": 0.5, "readable": 1.0},
        },
    )


@replica
def screenspot_pro(folder):
    picture(folder / "images" / "cad" / "a.png", (400, 200))
    rows = [
        {
            **{"img_filename": "cad/a.png", "bbox": [20, 10, 60, 30], "instruction": "undo", "instruction_cn": "x"},
            **{"id": f"autocad_windows_{i}", "application": "autocad", "platform": "windows"},
            **{"img_size": [400, 200], "ui_type": ("text", "icon")[i % 2], "group": "CAD"},
        }
        for i in range(NUM_ROWS)
    ]
    write(folder / "annotations" / "autocad_windows.json", rows)

    def answer(i, row):  # (70, 35) of the original is in the box only if its corner is read as a size
        scale = row["resized_width_px"] / 400, row["resized_height_px"] / 200
        return THINK + row["answer"] if i < 4 else click(round(70 * scale[0]), round(35 * scale[1]))

    return Task(
        {"name": "gui/screenspot", "path": f"{folder}/annotations", "images": f"{folder}/images"},
        SCREEN,
        ["gui/gui_r1_accuracy", "gui/gui_r1_format"],
        "gui/grounding",
        answer,
        {"accuracy": 0.2, "accuracy/CAD": 0.2, "accuracy/CAD/text": 0.2, "accuracy/CAD/icon": 0.2},
        options={"by": ["group", "ui_type"]},
    )


@replica
def androidcontrol(folder):
    picture(folder / "a.png", (108, 240))
    golds = [
        *[{"action": "click", "x": 50 + i, "y": 120} for i in range(8)],
        *[{"action": "scroll", "direction": "down"}] * 4,
        *[{"action": "input_text", "text": "blue suede shoes"}] * 4,
        *[{"action": "open_app", "app_name": "Clock"}] * 2,
        *[{"action": "navigate_back"}] * 2,
    ]
    rows = [{"image": "a.png", "task": "do it", "gt": gold} for gold in golds]

    def answer(i, row):  # scrolls up where down is right, and types something else
        answer = row["answer"].replace("'down'", "'up'").replace("blue suede shoes", "red hats")
        return THINK + answer

    return Task(
        {"name": "gui/androidcontrol", "path": write(folder / "ac_test.json", rows)},
        SCREEN,
        ["gui/gui_r1_accuracy", "gui/gui_r1_format", "gui/gui_r1"],
        "gui/steps",
        answer,
        {"type": 1.0, "grounding": 1.0, "step_success": (8 + 0 + 0 + 2 + 2) / 20, "readable": 1.0},
    )


@replica
def os_atlas(folder):
    picture(folder / "images" / "a.png")
    rows = [
        {
            **{"img_filename": "a.png", "instruction": "menu", "data_type": "button"},
            "bbox": [0.1 + i / 100, 0.2, 0.3 + i / 100, 0.4],
        }
        for i in range(NUM_ROWS)
    ]
    return Task(
        {
            **{"name": "gui/screenspot", "path": write(folder / "uibert_raw.json", rows)},
            "images": f"{folder}/images",
        },
        SCREEN,
        ["gui/gui_r1_accuracy", "gui/gui_r1_format"],
        "gui/grounding",
        half_right,
        {"accuracy": 0.5, "accuracy/button": 0.5, "num_unscored": 0.0},
    )


@pytest.mark.parametrize("name", ["screenspot", "screenspot_pro", "androidcontrol", "os_atlas"])
def test_gold_of_every_gui_source_scores_1_without_options(name, tmp_path):
    rows = sound_rows(REPLICAS[name](tmp_path))
    for reward in ("gui/gui_r1", "gui/gui_r1_accuracy"):
        runner = RewardRunner(PLUGINS, RunConfig(name="x", rewards=[{"name": reward}]).rewards)
        judged = runner.judge(runner.keys[0], [THINK + row["answer"] for row in rows], rows)
        assert [judgement.value for judgement in judged] == [1.0] * NUM_ROWS


# Boxes


BOXES = {"images": ["{image}"], "text": "{problem}", "answer": f"{THINK}{{solution}}"}
DETECTION = ["visual_rft/iou", "visual_rft/confidence", "visual_rft/format"]


def detection(file, folder, **options):
    source = {"name": "visual_rft/coco", "annotations": str(file), "images": str(folder), **options}

    def task(answer, expected):
        return Task(source, BOXES, DETECTION, "visual_rft/coco_ap", answer, expected, options={"per_category": True})

    return task


def images(count, **more):
    return [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 100} | more for i in range(1, count + 1)]


def annotation(number, image_id, category_id, bbox, **more):
    area = bbox[2] * bbox[3]
    return {
        **{"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox, "area": area, "iscrowd": 0},
        **more,
    }


@replica
def coco(folder):
    for i in range(1, 11):
        picture(folder / "val2017" / f"{i}.jpg")
    content = {
        "images": images(10, license=1, coco_url="x"),
        "categories": [
            {"supercategory": "animal", "id": 17, "name": "cat"},
            {"supercategory": "animal", "id": 18, "name": "dog"},
        ],
        "annotations": [
            annotation(10 * i + k, i, category, [20 * k, 10, 60, 50], segmentation=[])
            for i in range(1, 11)
            for k, category in enumerate((17, 18), start=1)
        ],
    }
    file = write(folder / "instances_val2017.json", content)
    task = detection(file, folder / "val2017")
    # Every dog is found, and no cat: AP 1 and 0, and their mean.
    return task(
        lambda i, row: THINK + (row["solution"] if row["category"] == "dog" else "<answer>No Objects</answer>"),
        {"AP": 0.5, "AP50": 0.5, "AP/dog": 1.0, "AP/cat": 0.0, "readable": 1.0},
    )


@replica
def lvis(folder):
    for i in range(1, 11):
        picture(folder / "train2017" / f"{i:012d}.jpg")
    listed = [
        {
            **{"id": i, "width": 200, "height": 100, "license": 1, "flickr_url": "x", "date_captured": "x"},
            "coco_url": f"http://images.cocodataset.org/train2017/{i:012d}.jpg",
            **{"neg_category_ids": [3], "not_exhaustive_category_ids": []},
        }
        for i in range(1, 11)
    ]
    content = {
        "images": listed,
        "categories": [
            {"id": k, "name": name, "synset": f"{name}.n.01", "frequency": "f", "synonyms": [name], "def": "x"}
            for k, name in ((1, "cup"), (2, "lamp"), (3, "zebra"))
        ],
        "annotations": [annotation(i, i, 1 + i % 2, [20, 10, 60, 50]) for i in range(1, 11)],
    }
    file = write(folder / "lvis_v1_val.json", content)
    task = detection(file, folder, negatives=1)

    def answer(i, row):  # zebras nobody annotated were looked for in each of these images; five are seen all the same
        if row["category"] != "zebra" or row["image_id"] > 5:
            return THINK + row["solution"]
        return THINK + "<answer>[{'Position': [0, 0, 500, 500], 'Confidence': 1}]</answer>"

    # There is no zebra, so its AP is undefined and not in the mean.
    return task(answer, {"AP": 1.0, "AP/cup": 1.0, "AP/lamp": 1.0, "AP/zebra": math.nan})


@replica
def roboflow(folder):
    for i in range(1, 11):
        picture(folder / "train" / f"{i}.jpg")
    content = {
        "info": {"description": "Exported from roboflow.com"},
        "categories": [
            {"id": 0, "name": "objects", "supercategory": "none"},
            {"id": 1, "name": "pen", "supercategory": "objects"},
            {"id": 2, "name": "cup", "supercategory": "objects"},
            {"id": 3, "name": "unused", "supercategory": "objects"},
        ],
        "images": images(10, license=1, date_captured="2024-01-01T00:00:00+00:00"),
        "annotations": [annotation(i, i, 1 + i % 2, [20, 10, 60, 50], segmentation=[]) for i in range(1, 11)],
    }
    write(folder / "train" / "_annotations.coco.json", content)
    source = {"annotations": f"{folder}/{{split}}/_annotations.coco.json", "images": f"{folder}/{{split}}"}
    task = Task(
        {"name": "visual_rft/coco", "negatives": 1, **source},
        BOXES,
        DETECTION,
        "visual_rft/coco_ap",
        lambda i, row: THINK + row["solution"],
        {"AP": 1.0, "AP/pen": 1.0, "AP/cup": 1.0},
        options={"per_category": True},
    )
    # A picture with a pen has no cup, and the other way round; the group of all and what nobody uses are not asked for.
    assert {row["category"] for row in sound_rows(task)} == {"pen", "cup"}
    return task


@replica
def cvat(folder):
    for i in range(10):
        picture(folder / "images" / f"frame_{i:06d}.PNG")
    listed = [
        {
            **{"id": i + 1, "width": 200, "height": 100, "file_name": f"frame_{i:06d}.PNG", "license": 0},
            **{"flickr_url": "", "coco_url": "", "date_captured": 0},
        }
        for i in range(10)
    ]
    content = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": [{"id": k, "name": name, "supercategory": ""} for k, name in ((1, "car"), (2, "bus"))],
        "images": listed,
        "annotations": [
            annotation(2 * i + k, i, k, [20.5 * k, 10.25, 60.0, 50.0], attributes={"occluded": False}, segmentation=[])
            for i in range(1, 11)
            for k in (1, 2)
        ],
    }
    file = write(folder / "annotations" / "instances_default.json", content)
    task = detection(file, folder / "images")

    def answer(
        i, row
    ):  # every bus is answered by the left half of its box: IoU 0.5, which no threshold above 0.5 takes
        if row["category"] == "car":
            return THINK + row["solution"]
        x1, y1, x2, y2 = row["boxes_px"][0]
        half = [round(5 * x1), round(10 * y1), round(5 * (x1 + x2) / 2) - 1, round(10 * y2)]
        return THINK + f"<answer>[{{'Position': {half}, 'Confidence': 1}}]</answer>"

    return task(answer, {"AP/bus": 0.0, "AP50": 0.5})


@replica
def reasonseg(folder):
    for i in range(NUM_ROWS):
        picture(folder / "val" / f"{i}_1.jpg")
        x1, y1, x2, y2 = 20, 10, 100, 50
        shape = {
            **{"label": "target", "labels": ["target"], "shape_type": "polygon", "image_name": f"{i}_1.jpg"},
            **{"points": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]], "group_id": None, "group_ids": [None], "flags": {}},
        }
        content = {"text": ["the thing that one drinks from"], "is_sentence": True, "shapes": [shape]}
        write(folder / "val" / f"{i}_1.json", content)

    def answer(i, row):  # the box, 100..500 and 100..500 thousandths, or its left half
        return THINK + f"<answer>(100,100),({500 if i < 10 else 300},500)</answer>"

    return Task(
        {"name": "visual_rft/lisa", "split": "val", "path": str(folder)},
        BOXES,
        ["visual_rft/grounding_giou", "visual_rft/grounding_iou", "visual_rft/format"],
        "visual_rft/grounding",
        answer,
        {  # of each mask, of one area A: A of A, or A/2 of A; in sum 15 A of 20 A
            **{"box_iou": 0.75, "box_accuracy_50": 0.5, "mask_giou": 0.75, "mask_ciou": 0.75, "mask_share": 1.0},
        },
    )


# Questions about pictures


@replica
def hrvqa(folder):
    picture(folder / "images" / "val" / "7.png", (32, 32))
    kinds = [("numbers", "4"), ("yes no", "yes"), ("areas", "37.5m2"), ("location", "top left")]
    asked, answered = [], []
    for i in range(NUM_ROWS):
        kind, gold = kinds[i % 4]
        question = {"question_id": i, "image_id": 7, "question": "what?", "question_type": kind}
        asked.append(question)
        answered.append({"question_id": i, "image_id": 7, "multiple_choice_answer": gold, "question_type": kind})
    write(folder / "val_question.json", {"questions": asked})
    write(folder / "val_answer.json", {"annotations": answered})
    said_by_kind = {
        "number": "four",
        "yes_no": "yes, there is",
        "area": "between 10m2 and 100m2",
        "location": "left top",
    }
    return Task(
        {"name": "uav_vqa/hrvqa", "split": "val", "path": str(folder)},
        {"images": ["{image}"], "text": "{problem}", "answer": f"{THINK}<answer>{{answer}}</answer>"},
        ["uav_vqa/accuracy", "uav_vqa/format"],
        "uav_vqa/by_type",
        lambda i, row: said(said_by_kind[row["question_type"]]),
        {  # by HRVQA's own rule "four" is 4 and the class is right; a sentence and the other order are wrong
            **{"accuracy/number": 1.0, "accuracy/yes_no": 0.0, "accuracy/area": 1.0, "accuracy/location": 0.0},
            **{"accuracy": 0.5, "mean_type_accuracy": 0.5},
        },
        options={"rule": "hrvqa"},
    )


CHOICE = {
    **{"images": ["{images}"], "text": "{problem}", "marks": {"image": "<image>"}, "answer": "{answer}"},
}
CHOICE_REWARDS = ["viewpoint/accuracy", "viewpoint/format", "viewpoint/score"]


def three_of_four(i, row):
    """Three of four right, by letter, by text, and with the marks of another keyboard."""
    letter = row["ground_truth"]
    text = row["options"][LETTERS.index(letter)]
    wrong = "A" if letter != "A" else "B"
    return said((letter, text, f"【{letter}】。", wrong)[i % 4])


@replica
def viewspatial(folder):
    picture(folder / "scannetv2_val" / "a.jpg")
    kinds = ["Camera perspective - Relative Direction", "Person perspective - Object View Orientation"]
    texts = ["right", "left", "front", "back"]
    rows = [
        {
            **{"question_type": kinds[i // 10], "image_path": ["scannetv2_val/a.jpg"], "question": "Where is it?"},
            **{"answer": f"{LETTERS[i % 4]}. {texts[i % 4]}", "choices": "A. right\nB. left\nC. front\nD. back"},
        }
        for i in range(NUM_ROWS)
    ]
    path = write(folder / "ViewSpatial-Bench.json", rows)
    return Task(
        {"name": "viewpoint/published", "path": path},
        CHOICE,
        CHOICE_REWARDS,
        "viewpoint/accuracy",
        three_of_four,
        {  # rows 3, 7, 11, 15, 19 are wrong: two of the first ten, three of the others
            **{"accuracy": 0.75, f"accuracy/{kinds[0]}": 0.8, f"accuracy/{kinds[1]}": 0.7, "formatted": 1.0},
        },
    )


@replica
def mindcube(folder):
    for number in range(4):
        picture(folder / "other_all_image" / "around" / f"{number}.jpg", (32, 32))
    question = "From the viewpoint of image 1, what is behind me? A. Table B. Sofa C. Door D. Window"
    rows = [
        {
            **{"id": f"around_{i}", "category": ["perspective"], "type": "four_view", "meta_info": [["table"]]},
            **{"question": question, "images": [f"other_all_image/around/{number}.jpg" for number in range(4)]},
            "gt_answer": LETTERS[i % 4],
        }
        for i in range(NUM_ROWS)
    ]
    return Task(
        {"name": "viewpoint/published", "path": write(folder / "MindCube_tinybench.jsonl", lines(rows))},
        CHOICE,
        CHOICE_REWARDS,
        "viewpoint/accuracy",
        three_of_four,
        {"accuracy": 0.75, "num_unscored": 0.0},
    )


@replica
def blink(folder):
    picture(folder / "1.jpg")
    picture(folder / "2.jpg")
    rows = [
        {
            **{
                "idx": f"val_Multi-view_Reasoning_{i}",
                "sub_task": "Multi-view_Reasoning",
                "question": "Left or right?",
            },
            **{"image_1": "1.jpg", "image_2": "2.jpg", "image_3": None, "image_4": None, "choices": ["left", "right"]},
            **{"answer": f"({LETTERS[i % 2]})", "prompt": "Left or right? (A) left (B) right", "explanation": ""},
        }
        for i in range(NUM_ROWS)
    ]
    path = write(folder / "val.jsonl", lines(rows))
    return Task(
        {"name": "viewpoint/benchmark", "benchmark": "blink", "split": "val", "path": path},
        CHOICE,
        CHOICE_REWARDS,
        "viewpoint/circular_accuracy",
        lambda i, row: said("(A)"),  # half of the golds
        {"accuracy": 0.5, "circular_accuracy": 0.5, "num_questions": 20.0},
    )


# Problems with an answer that can be verified


def half_boxed(i, row):
    """Ten right, with the answer in another form than the gold's where it is a number; ten wrong."""
    return f"So \\boxed{{{row['answer']}}}." if i < 10 else "So \\boxed{-77}."


def mathematics(source, expected=None, num_broken=0, why=""):
    return Task(
        {"name": "text_reasoning/problems", **source},
        {"text": "{problem}", "answer": "{demonstration}"},
        ["text_reasoning/accuracy", "text_reasoning/format", "text_reasoning/cosine"],
        "text_reasoning/accuracy",
        half_boxed,
        {"accuracy": 0.5, "marked": 1.0, "num_unscored": 0.0, **(expected or {})},
        num_broken=num_broken,
        why=why,
    )


@replica
def gsm8k(folder):
    rows = [
        {
            "question": f"Tom has {i} bags of 1000 marbles and finds 7 more. How many marbles has he?",
            "answer": f"The bags hold {i}*1000=<<{i}*1000={1000 * i}>>{1000 * i}.\nWith 7 more: {1000 * i + 7}.\n"
            f"#### {1000 * i + 7:,}",
        }
        for i in range(NUM_ROWS)
    ]
    schema = pyarrow.schema([("question", pyarrow.string()), ("answer", pyarrow.string())])
    write_parquet(rows, folder / "main" / "train-00000-of-00001.parquet", schema=schema)
    task = mathematics({"path": str(folder / "main"), "form": "tags"})
    row = sound_rows(task)[3]
    assert row["answer"] == "3,007" and "<<" not in row["demonstration"] and "####" not in row["demonstration"]
    return task


@replica
def competition_math(folder):
    answers = ["\\frac{1}{2}", "(-\\infty, 3]", "\\text{Evelyn}", "x^2+1"]
    rows = [
        {
            **{"problem": "Find it.", "level": f"Level {1 + i // 10}", "type": "Algebra"},
            "solution": f"First \\boxed{{0}} is excluded. Hence it is $\\boxed{{{answers[i % 4]}}}$.",
        }
        for i in range(NUM_ROWS)
    ]
    return mathematics(
        {"path": write(folder / "train.jsonl", lines(rows))},
        {"accuracy/level/Level 1": 1.0, "accuracy/level/Level 2": 0.0, "accuracy/type/Algebra": 0.5},
    )


@replica
def aime(folder):
    rows = [
        {
            "id": i,
            "problem": "Find $n$.",
            "solution": f"It is {i:03d}.",
            "answer": f"{i:03d}",
            "url": "x",
            "year": "2024",
        }
        for i in range(NUM_ROWS)
    ]
    return mathematics({"path": write(folder / "aime24.json", rows)})


@replica
def amc(folder):
    rows = [{"id": i, "problem": "Find $n$.", "answer": float(i), "url": "x"} for i in range(NUM_ROWS)]
    kinds = [("id", pyarrow.int64()), ("problem", pyarrow.string()), ("answer", pyarrow.float64())]
    write_parquet(rows, folder / "train.parquet", schema=pyarrow.schema([*kinds, ("url", pyarrow.string())]))
    return mathematics({"path": str(folder / "train.parquet"), "form": "open_rs"})


@replica
def minerva(folder):
    answers = ["4.5e33", "\\frac{1}{1+x}", "2.45", "E=mc^2"]
    rows = [{"question": "What is it?", "answer": answers[i % 4]} for i in range(NUM_ROWS)]
    return mathematics({"split": "test", "path": write(folder / "test.jsonl", lines(rows))})


@replica
def olympiadbench(folder):
    golds = [["$\\frac{1}{2}$"], ["2", "3"], ["$[0,1)$"], None]
    rows = [
        {
            **{
                "id": i,
                "question": "Find all.",
                "solution": ["One sees it."],
                "final_answer": golds[i % 4],
                "context": None,
            },
            **{
                "image_1": None,
                "modality": "Text-only",
                "is_multiple_answer": i % 4 == 1,
                "unit": None,
                "subfield": "Algebra",
            },
            **{"answer_type": "Numerical", "error": None, "subject": "Math", "language": "English"},
        }
        for i in range(NUM_ROWS)
    ]
    # Of the fifteen with an answer (a proof has none), the first ten are right.
    return mathematics(
        {"path": write(folder / "train.jsonl", lines(rows))},
        {"accuracy": 10 / 15, "accuracy/subject/Math": 10 / 15},
        num_broken=5,
        why="the gold has to be",
    )


@replica
def open_rs(folder):
    rows = [
        {"problem": "Compute.", "solution": f"<think>hm</think> $\\boxed{{{i}}}$", "answer": str(i), "level": "Hard"}
        for i in range(NUM_ROWS)
    ]
    return mathematics(
        {"path": write(folder / "train.jsonl", lines(rows)), "form": "open_rs"}, {"accuracy/level/Hard": 0.5}
    )


# Prompts


@replica
def partiprompts(folder):
    rows = [
        {
            **{"Prompt": f'a "big" dog, number {i}', "Category": ("Animals", "Arts")[i % 2], "Challenge": "Basic"},
            "Note": "Biology-inspired, fine",
        }
        for i in range(NUM_ROWS)
    ]
    path = write(folder / "PartiPrompts.tsv", cells(rows, "\t"))
    return Task(
        {"name": "find/prompts", "prompts": path, "column": "Prompt"},
        {"text": "{prompt}"},
        ["find/brightness"],
        "find/reward_stats",
        lambda i, row: Image.new("RGB", (8, 8), "white" if i % 4 < 2 else "black"),
        {  # white is 1 and black 0; of either category half are white
            **{"find/brightness/mean": 0.5, "find/brightness/mean/Animals": 0.5, "find/brightness/mean/Arts": 0.5},
            "find/brightness/unscored": 0.0,
        },
        options={"reward": "find/brightness", "by": "Category"},
    )

"""Data sources on files of the published schemas, written here."""

import base64
import csv
import io
import json
import math
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmrl_core.config import load_config
from mmrl_core.data import PromptSource
from mmrl_core.errors import TaskDataError
from mmrl_core.media import load_image
from mmrl_core.plugins import load_plugins
from mmrl_viewpoint.data import (
    benchmark,
    options_in,
    posed_views,
    published,
    sat,
    viewpoint_kind,
)
from mmrl_viewpoint.poses import look_at
from mmrl_viewpoint.prompts import VIEWPOINT_QUESTIONS
from mmrl_viewpoint.rewards import score


def picture(shade=0, file_format="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (28, 28), (shade, shade, shade)).save(file, file_format)
    return file.getvalue()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def check_gold(rows):
    for row in rows:
        assert score([row["answer"]], [row]) == [1.0]
        assert all(load_image(image, root=None).size == (28, 28) for image in row["images"])


# Published training rows

QUESTION = (
    "<image>\n<image> From the camera's perspective, did the camera move?\nA: to the right\nB: no\nC: to the left"
)


def verl_row(index=0, question=QUESTION, images=2, truth="C"):
    return {
        "data_source": "sat",
        "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": question}],
        "images": [{"bytes": picture(shade)} for shade in range(images)],
        "reward_model": {"ground_truth": truth, "style": "rule"},
        "extra_info": {"index": index, "split": "train"},
    }


def test_verl_rows(tmp_path):
    rows = published(
        "train", path=write_parquet(tmp_path / "train.parquet", [verl_row(7), verl_row(8, truth="c: To the left")])
    )
    check_gold(rows)
    assert rows[0]["id"] == 7 and rows[0]["question_type"] == "ego_translation"
    assert rows[0]["problem"] == QUESTION
    assert rows[0]["options"] == ["to the right", "no", "to the left"]
    assert [row["ground_truth"] for row in rows] == ["C", "C"]
    assert rows[0]["target"] == "<answer>C</answer>"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "C"}]},
        {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": "<answer>C</answer>"}]},
    ],
)
def test_conversations(tmp_path, row):
    (tmp_path / "a.png").write_bytes(picture())
    rows = published("train", path=write(tmp_path / "train.jsonl", [row | {"images": ["a.png", "a.png"]}]))
    assert rows.media_root == tmp_path
    assert rows[0]["ground_truth"] == "C" and rows[0]["images"] == ["a.png", "a.png"]
    assert rows[0]["target"] in ("C", "<answer>C</answer>")  # as the data have it
    assert score([rows[0]["answer"]], [rows[0]]) == [1.0]


def test_plain_rows_need_no_marks(tmp_path):
    row = {
        "image": "a.png",
        "question": "Which way did the camera rotate?",
        "choices": ["left", "right"],
        "answer": "right",
    }
    rows = published(
        "train", path=write(tmp_path / "train.jsonl", [row, row | {"answer": "A", "question_type": "mine"}])
    )
    assert rows[0]["problem"] == "Which way did the camera rotate?\nA. left\nB. right"
    assert [(row["ground_truth"], row["question_type"]) for row in rows] == [("B", "ego_rotation"), ("A", "mine")]
    whole = "<think>It went right.</think> <answer>right</answer>"
    (row,) = published("train", path=write(tmp_path / "whole.jsonl", [row | {"answer": whole}]))
    assert (row["ground_truth"], row["target"]) == ("B", whole)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (verl_row(images=1), "2 marks <image> for 1 images"),
        (verl_row(question="no marks"), "0 marks <image> for 2 images"),
        (verl_row(truth=""), "no answer"),
        (verl_row() | {"prompt": [{"role": "system", "content": "x"}]}, "no turn"),
        (verl_row() | {"prompt": [{"role": "user", "content": QUESTION}] * 2}, "2 questions"),
        ({"prompt": "a text"}, "a conversation is a list of turns"),
        ({"image": "a.png", "question": "Why?"}, "no 'answer' or 'ground_truth'"),
        ({"question": "Why?", "answer": "A"}, "needs an image"),
    ],
)
def test_a_broken_row_says_where_and_why(tmp_path, row, message):
    row = json.loads(json.dumps(row, default=lambda value: value.hex()))
    rows = published("train", path=write(tmp_path / "train.jsonl", [row]))
    with pytest.raises(TaskDataError, match=rf"train\.jsonl:1: .*{message}"):
        rows[0]


def test_images_stand_where_the_text_marks_them(tmp_path):
    rows = [
        verl_row(question="Photo one: <image> and two: <image>. Which way?\nA: left\nB: right\nC: no", truth="B"),
        {"images": [{"bytes": picture(0)}, {"bytes": picture(1)}], "question": "Which way?", "answer": "left"},
    ]
    marked, unmarked = (write_parquet(tmp_path / f"{number}_train.parquet", [row]) for number, row in enumerate(rows))

    def content(path):
        config = load_config("viewpoint/choice", [f"data.train.path={path}", "model.path=none/none"])
        prompt = PromptSource(load_plugins(), config.data.train, config.prompt, config.data, name="train").prompt(0)
        return [part.get("text") or part["image"].getpixel((0, 0))[0] for part in prompt.messages[-1]["content"]]

    after = ". Which way?\nA: left\nB: right\nC: no"
    assert content(marked) == ["Photo one: ", 0, " and two: ", 1, after]
    assert content(unmarked) == [0, 1, "Which way?"]


def test_options_are_found_in_texts():
    assert options_in("Go?\n(A) left\n(B) right up.") == ["left", "right up."]
    assert options_in("At A. Smith's? Options: A: x, y, B: z") == ["x, y", "z"]
    assert options_in("Is A. or not?") is None


def test_kinds_are_known_from_the_wording_of_our_own_questions():
    for kind in ("ego_translation", "ego_rotation", "object_translation"):
        assert viewpoint_kind(VIEWPOINT_QUESTIONS[kind][0]) == kind
    assert viewpoint_kind("From the object's perspective, did the camera move?") == "object_translation"
    assert viewpoint_kind("How many chairs?") is None


def test_rows_that_should_reason_and_do_not_are_broken(tmp_path):
    turns = [{"role": "user", "content": "<image>camera"}]
    texts = ["<think>a</think><answer>B</answer>", "<answer>B</answer>"]
    records = [{"images": ["a.png"], "messages": [*turns, {"role": "assistant", "content": text}]} for text in texts]
    rows = published("train", path=write(tmp_path / "train.jsonl", records), reasoning=True)
    assert (rows[0]["target"], rows[0]["ground_truth"]) == (texts[0], "B")
    with pytest.raises(TaskDataError, match=r"train\.jsonl:2: .*no think block"):
        rows[1]


# SAT


def sat_row(index, answers=("left", "right", "none")):
    return {
        "image_bytes": [picture()] * (1 + index % 2),
        "question": f"Question {index}?",
        "answers": list(answers),
        "correct_answer": "right",
        "question_type": "action",
    }


def test_sat_options_are_shuffled_once_for_all(tmp_path):
    path = write_parquet(tmp_path / "SAT_val.parquet", [sat_row(index) for index in range(60)])
    rows = list(sat("val", path=path))
    check_gold(rows)
    assert rows == list(sat("val", path=path)) != list(sat("val", path=path, seed=1))
    counts = Counter(row["ground_truth"] for row in rows)
    assert set(counts) == set("ABC") and min(counts.values()) >= 10
    assert all(row["options"]["ABC".index(row["ground_truth"])] == "right" for row in rows)


@pytest.mark.parametrize("answer", ["right", "Right.", "B", "(b)", "B. right", ["right"]])
@pytest.mark.parametrize("labels", [("", "", ""), ("A. ", "B. ", "C. ")], ids=["plain", "labelled"])
def test_a_stored_letter_of_sat_is_one_of_the_stored_order(tmp_path, answer, labels):
    options = [label + text for label, text in zip(labels, ("left", "right", "neither"), strict=True)]
    record = {"image_bytes": [str(tmp_path)], "question": "Where?", "answers": options, "correct_answer": answer}
    rows = sat("train", path=write(tmp_path / "train.jsonl", [record] * 8))
    golds = {row["ground_truth"] for row in rows}
    assert golds == set("ABC") and all(row["options"]["ABC".index(row["ground_truth"])] == "right" for row in rows)


def test_sat_circular_has_every_rotation_once(tmp_path):
    rows = sat(
        "val",
        path=write_parquet(tmp_path / "SAT_val.parquet", [sat_row(0), sat_row(1, ["left", "right"])]),
        circular=True,
    )
    check_gold(rows)
    assert [row["circular_group"] for row in rows] == ["0", "0", "0", "1", "1"]
    assert sorted(row["ground_truth"] for row in rows[:3]) == ["A", "B", "C"]
    assert len({tuple(row["options"]) for row in rows[:3]}) == 3


def test_a_sat_answer_that_is_no_option_breaks_its_row(tmp_path):
    rows = sat("val", path=write_parquet(tmp_path / "SAT_val.parquet", [sat_row(0, ["left", "up"])]))
    with pytest.raises(TaskDataError, match="names none of the options"):
        rows[0]


# Evaluation sets

IMAGE = {"bytes": picture(), "path": None}
BENCHMARK_ROWS = {
    "cv_bench": (
        {"idx": 3, "task": "Depth", "image": IMAGE, "question": "Closer?", "choices": ["a", "b"], "answer": "(B)"},
        ("Closer?\nA. a\nB. b", "B", "Depth"),
    ),
    "blink": (
        {"idx": "val_1", "sub_task": "Multi-view_Reasoning", "question": "Left or right?", "choices": ["left", "right"]}
        | {"image_1": IMAGE, "image_2": IMAGE, "image_3": None, "image_4": None, "answer": "(A)"},
        ("Left or right?\nA. left\nB. right", "A", "Multi-view_Reasoning"),
    ),
    "mmsi": (
        {"id": 0, "images": [picture()] * 3, "question_type": "MSR", "answer": "D"}
        | {"question": "Where?\nOptions: A: front, B: back, C: left, far, D: right"},
        ("Where?\nA. front\nB. back\nC. left, far\nD. right", "D", "MSR"),
    ),
    "spatial_eval": (
        {"id": "mazenav.vqa.0.1", "image": IMAGE, "text": "Turns?\nAvailable options:\nA. 4\nB. 2\nC. 3\nD. 1."}
        | {"oracle_answer": "2", "oracle_option": "B", "oracle_full_answer": "B. 2"},
        ("Turns?\nA. 4\nB. 2\nC. 3\nD. 1.", "B", "mazenav"),
    ),
    "omni3d": (
        {
            "image_index": "ab",
            "q_index": 2,
            "image": IMAGE,
            "question": "How tall?",
            "answer_type": "float",
            "answer": 1.5,
        },
        ("How tall?", "1.5", "float"),
    ),
}


@pytest.mark.parametrize("name", BENCHMARK_ROWS)
def test_benchmarks_by_their_hub_columns(tmp_path, name):
    row, (problem, truth, kind) = BENCHMARK_ROWS[name]
    rows = benchmark("test", benchmark=name, path=write_parquet(tmp_path / "test.parquet", [row]))
    check_gold(rows)
    assert (rows[0]["problem"], rows[0]["ground_truth"], rows[0]["question_type"]) == (problem, truth, kind)
    assert len(rows[0]["images"]) == {"blink": 2, "mmsi": 3}.get(name, 1)


def write_tsv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_tsv_files_of_evaluation_kits_hold_their_images(tmp_path):
    noise = Image.effect_noise((300, 300), 90).convert("RGB")  # more base64 than csv's default field
    file = io.BytesIO()
    noise.save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    assert len(encoded) > 131_072
    item = {"question": "Higher?", "A": "cup", "B": "box", "C": "", "D": "", "answer": "A", "category": "height_higher"}
    rotated = item | {"index": 1_000_005, "A": "box", "B": "cup", "answer": "B", "image": encoded}
    pages = json.dumps([encoded, encoded])
    path = write_tsv(
        tmp_path / "test.tsv", [item | {"index": 5, "image": encoded}, rotated, item | {"index": 6, "image": pages}]
    )
    rows = benchmark("test", benchmark="3dsrbench", path=path)
    assert [row["circular_group"] for row in rows] == ["5", "5", "6"]
    assert rows[0]["options"] == ["cup", "box"] and rows[0]["question_type"] == "height_higher"
    assert [load_image(image, root=None).size for image in rows[2]["images"]] == [(300, 300)] * 2


def test_images_named_by_address_come_from_a_folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.jpg").write_bytes(picture())
    row = {"index": "x-0", "question": "Q", "A": "a", "B": "b", "C": None, "answer": "B", "category": "c"}
    path = write(tmp_path / "test.jsonl", [row | {"image_url": "http://example.org/coco/1.jpg"}])
    with pytest.raises(TaskDataError, match="download the images"):
        benchmark("test", benchmark="3dsrbench", path=path)[0]
    check_gold(benchmark("test", benchmark="3dsrbench", path=path, images=str(tmp_path / "pictures")))


def test_an_unknown_benchmark_is_an_error():
    with pytest.raises(TaskDataError, match="no benchmark 'vsi'"):
        benchmark("test", benchmark="vsi")


# Views with poses


def ring(name, num=24):
    """Cameras around an object at (1, 2, 0), all the way round."""
    angles = [2 * math.pi * index / num for index in range(num)]
    poses = [look_at((1 + 3 * math.cos(a), 2 + 3 * math.sin(a), 1), (1, 2, 0)).tolist() for a in angles]
    return [{"object": name, "image": f"{name}/{i}.png", "camera_to_world": pose} for i, pose in enumerate(poses)]


def test_pairs_of_posed_views_are_balanced_and_within_the_angles(tmp_path):
    path = write(tmp_path / "train.jsonl", ring("cup") + ring("shoe"))
    kinds = ("ego_translation", "object_translation", "ego_rotation")
    # 24 views stand 15 degrees apart, so none is a pair without movement: only moved pairs are asked for here.
    rows = posed_views("train", path=path, num_rows=90, kinds=kinds)
    moved = [row for index, row in ((i, rows[i]) for i in range(90) if i // 3 % 3 != 1)]
    with pytest.raises(
        TaskDataError, match="answers a question of the kind 'ego_translation' by 'Neither left nor right'"
    ):
        rows[3]
    assert Counter((row["question_type"], row["ground_truth"]) for row in moved) == dict.fromkeys(
        ((kind, letter) for kind in kinds for letter in "AC"), 10
    )
    for row in moved:
        first, second = (int(path.split("/")[1][:-4]) for path in row["images"])
        step = (second - first + 12) % 24 - 12  # counter-clockwise from above: to the right of a camera that looks in
        assert 20 <= abs(15 * step) <= 100
        went_right = (row["ground_truth"] == "A") == (row["question_type"] == "ego_translation")
        assert (step > 0) == went_right
        assert row["object"] == row["images"][0].split("/")[0] == row["images"][1].split("/")[0]
    assert rows[0] == posed_views("train", path=path, num_rows=1, kinds=kinds)[0]


def test_shuffled_options_keep_the_answer(tmp_path):
    path = write(tmp_path / "train.jsonl", ring("cup"))
    rows = posed_views("train", path=path, num_rows=1, shuffle_options=True)
    orders = set()
    for seed in range(20):
        row = posed_views("train", path=path, num_rows=1, shuffle_options=True, seed=seed)[0]
        orders.add(tuple(row["options"]))
        assert row["options"]["ABC".index(row["ground_truth"])] == "To the right"
    assert len(orders) == 6 and len(rows) == 1


TURNED = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"camera_to_world": [[1, 0], [0, 1]]}, "a camera pose is a finite 4 x 4 matrix"),
        ({"camera_to_world": "unknown"}, "a camera pose is no matrix of numbers: unknown"),
        ({"camera_to_world": TURNED}, "a camera pose has no rotation"),
        ({"camera_to_world": [[float("nan")] * 4] * 4}, "a camera pose is a finite 4 x 4 matrix"),
        ({"camera_to_world": None}, "no 'camera_to_world'"),
        ({"image": None}, "no 'image'"),
        ({"object": None}, "no 'object'"),
    ],
)
def test_one_view_that_cannot_be_used_is_set_aside_and_the_others_are_paired(tmp_path, change, reason):
    views = ring("cup")
    views[3] |= change
    path = tmp_path / "train.jsonl"
    rows = posed_views("train", path=write(path, views), num_rows=3)
    assert len(rows) == 4 and all(rows[index]["object"] == "cup" for index in range(3))
    with pytest.raises(TaskDataError, match=re.escape(f"{path}:4: ") + f".*{reason}"):
        rows[3]
    assert rows.where(3) == f"{path}:4"


def test_a_view_from_straight_above_is_in_no_pair_and_breaks_no_row(tmp_path):
    above = look_at((1, 2, 3), (1, 2, 0), (0, 1, 0)).tolist()
    views = [{**view, "camera_to_world": json.dumps(view["camera_to_world"])} for view in ring("cup")]
    views.append({"object": "cup", "image": "above.png", "camera_to_world": above})
    path = write(tmp_path / "train.jsonl", views)
    rows = posed_views("train", path=path, num_rows=30, kinds=["ego_translation"], up=(0, 0, 1))
    for index in (index for index in range(30) if index % 3 != 1):  # without the questions about no movement
        assert "above.png" not in rows[index]["images"]


def test_posed_views_say_what_is_missing(tmp_path):
    with pytest.raises(TaskDataError, match="no object has two views"):
        posed_views("train", path=write(tmp_path / "train.jsonl", ring("cup", 1)), num_rows=1)
    with pytest.raises(TaskDataError, match="no 'camera_to_world'"):
        posed_views("train", path=write(tmp_path / "a_train.jsonl", [{"object": "a", "image": "x"}]), num_rows=1)
    with pytest.raises(TaskDataError, match="'cup': the optical axes of the cameras are parallel"):
        parallel = [{**ring("cup")[0], "image": name} for name in "ab"]
        posed_views("train", path=write(tmp_path / "b_train.jsonl", parallel), num_rows=1)
    with pytest.raises(TaskDataError, match="no kind of question 'roll'"):
        posed_views("train", path="x", num_rows=1, kinds=["roll"])

"""The demo's rows: honest splits, exact and loose gold answers, and a cache that can be trusted."""

import ast
import io
import random

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mmrl_core.errors import TaskDataError
from mmrl_core.testing import CLASS_WORDS
from mmrl_visual_rft.demo_data import (
    SceneOptions,
    classification_solution,
    detection_solution,
    digit_scenes,
    loose_box,
)

PUBLISHED_COLUMNS = {"image", "problem", "solution"}
SPLITS = ("train", "few_shot", "held_out")


def answer_boxes(solution):
    assert solution.startswith("<answer>") and solution.endswith("</answer>")
    return [tuple(item["Position"]) for item in ast.literal_eval(solution[len("<answer>") : -len("</answer>")])]


def iou(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def splits(cache_dir):
    return {split: digit_scenes(split, num_rows=300, seed=1, cache_dir=cache_dir) for split in SPLITS}


def test_rows_have_the_published_columns_and_pictures_of_the_stated_size(splits):
    for row in splits["train"][:20]:
        assert set(row) >= PUBLISHED_COLUMNS
        picture = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (row["width"], row["height"]))
        assert row["problem"] == f"detect every {row['category']}"


def test_no_two_splits_share_a_scan(splits):
    scans = [{digit["scan_id"] for row in rows for digit in row["boxes"]} for rows in splits.values()]
    assert all(len(ids) > 50 for ids in scans)
    assert len(set.union(*scans)) == sum(map(len, scans))


def test_no_two_splits_share_a_part_of_a_photograph(splits):
    columns = [
        {(row["photo"]["name"], x) for row in rows for x in range(row["photo"]["box_px"][0], row["photo"]["box_px"][2])}
        for rows in splits.values()
    ]
    assert len(set.union(*columns)) == sum(map(len, columns))


def test_every_split_shows_the_photographs_of_both_libraries(splits):
    photos = [{row["photo"]["name"] for row in rows} for rows in splits.values()]
    assert photos == [{"china.jpg", "flower.jpg", "astronaut", "cat", "coffee", "rocket"}] * 3


def test_splits_stay_apart_whatever_the_seed(splits, cache_dir):
    train_scans = {digit["scan_id"] for row in splits["train"] for digit in row["boxes"]}
    other = digit_scenes("held_out", num_rows=100, seed=99, cache_dir=cache_dir)
    assert not train_scans & {digit["scan_id"] for row in other for digit in row["boxes"]}


def test_every_digit_of_the_class_asked_for_is_in_the_solution_and_no_other(splits):
    for row in splits["train"]:
        wanted = [digit["box_px"] for digit in row["boxes"] if str(digit["class_id"]) == row["category"]]
        written = [[side * row["width"] / 1000 for side in box] for box in answer_boxes(row["solution"])]
        assert len(wanted) == len(written)
        for box in wanted:
            assert any(max(abs(a - b) for a, b in zip(box, other, strict=True)) < 0.06 for other in written)


def test_scenes_have_distractors_and_repeated_targets(splits):
    rows = splits["train"]
    counts = [len(answer_boxes(row["solution"])) for row in rows]
    assert {1, 2, 3} == set(counts)
    assert sum(len(row["boxes"]) > count for row, count in zip(rows, counts, strict=True)) > len(rows) / 4
    assert {row["category"] for row in rows} == set("01234")


def test_boxes_hold_the_scans_they_name(splits):
    labels = load_digits().target
    for digit in (digit for row in splits["held_out"] for digit in row["boxes"]):
        assert labels[digit["scan_id"]] == digit["class_id"]


def test_ink_is_where_the_boxes_are(splits):
    row = splits["train"][0]
    picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("L")
    brightest_in_boxes = [picture.crop(tuple(digit["box_px"])).getextrema()[1] for digit in row["boxes"]]
    for digit in row["boxes"]:
        picture.paste(0, tuple(digit["box_px"]))
    assert min(brightest_in_boxes) > 180 > picture.getextrema()[1]


def test_loose_boxes_are_on_the_grid_and_too_wide(splits):
    overlaps = []
    for row in splits["train"]:
        for exact, loose in zip(answer_boxes(row["solution"]), answer_boxes(row["loose_solution"]), strict=True):
            assert all(side % 50 == 0 and 0 <= side <= 1000 for side in loose)
            overlaps.append(iou(exact, loose))
    assert 0.45 < sum(overlaps) / len(overlaps) < 0.62


@pytest.mark.parametrize(
    ("exact", "loose"),
    [((400, 200, 600, 600), (350, 100, 650, 700)), ((0, 0, 400, 400), (0, 0, 500, 500))],
)
def test_loose_box_pushes_each_side_out_by_the_stated_share(exact, loose):
    options = SceneOptions(
        task="detection",
        size_px=112,
        digit_px=(28, 46),
        num_classes=5,
        max_digits=3,
        target_share=0.4,
        brightness=0.35,
        looseness=0.25,
        jitter=0.0,
        grid=50,
        wrong_label_share=0.0,
    )
    assert loose_box(exact, options, random.Random(0)) == loose


def test_grid_solution_rounds_the_exact_boxes(splits):
    for row in splits["train"][:50]:
        for exact, rounded in zip(answer_boxes(row["solution"]), answer_boxes(row["grid_solution"]), strict=True):
            assert all(side % 50 == 0 for side in rounded)
            assert max(abs(a - b) for a, b in zip(exact, rounded, strict=True)) <= 25


def test_solutions_are_written_as_published():
    assert detection_solution([(254, 303, 291, 365), (1, 2, 3, 4)]) == (
        "<answer>[{'Position': [254, 303, 291, 365], 'Confidence': 1.0}, "
        "{'Position': [1, 2, 3, 4], 'Confidence': 1.0}]</answer>"
    )
    assert classification_solution(7) == "<answer>seven</answer>"


def test_rows_depend_on_seed_split_and_index_only(cache_dir, tmp_path):
    short = digit_scenes("train", num_rows=5, seed=1, cache_dir=tmp_path)
    assert short == digit_scenes("train", num_rows=300, seed=1, cache_dir=cache_dir)[:5]
    assert short != digit_scenes("train", num_rows=5, seed=2, cache_dir=tmp_path)


def test_few_shot_rows_are_balanced_over_classes(splits):
    assert [row["category"] for row in splits["few_shot"][:7]] == list("0123401")


def test_classification_rows_name_the_only_digit(tmp_path):
    rows = digit_scenes(
        "train", num_rows=300, task="classification", num_classes=10, wrong_label_share=0.4, cache_dir=tmp_path
    )
    for row in rows:
        (digit,) = row["boxes"]
        assert row["category"] == CLASS_WORDS[digit["class_id"]]
        assert row["solution"] == f"<answer>{row['category']}</answer>"
    wrong = [(row["category"], row["loose_solution"]) for row in rows if row["loose_solution"] != row["solution"]]
    assert abs(len(wrong) / len(rows) - 0.4) < 0.1
    assert len(set(wrong)) == 10  # each digit is always taken for the same other one


def test_rows_are_read_back_from_the_file_that_was_written(tmp_path, monkeypatch):
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path))
    first = digit_scenes("train", num_rows=3)
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    written = file.stat().st_mtime_ns
    assert digit_scenes("train", num_rows=3) == first
    assert file.stat().st_mtime_ns == written
    digit_scenes("train", num_rows=3, brightness=0.5)
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 2


def test_a_broken_cache_file_is_named(tmp_path):
    digit_scenes("train", num_rows=2, cache_dir=tmp_path)
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    file.write_bytes(b"not parquet")
    with pytest.raises(TaskDataError, match=file.name):
        digit_scenes("train", num_rows=2, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"split": "validation"}, "validation"),
        ({"num_rows": 0}, "num_rows"),
        ({"task": "segmentation"}, "segmentation"),
        ({"num_classes": 11}, "num_classes"),
        ({"digit_px": [40, 20]}, "digit_px"),
        ({"grid": 30}, "grid"),
    ],
)
def test_wrong_arguments_are_named(arguments, named, tmp_path):
    with pytest.raises(TaskDataError, match=named):
        digit_scenes(**{"split": "train", "num_rows": 2, "cache_dir": tmp_path} | arguments)

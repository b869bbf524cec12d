"""The demo's rows: answers that follow from the cameras, splits that share nothing, and a hasty annotator."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mmrl_core.errors import TaskDataError
from mmrl_viewpoint.demo_data import View, combinations, rendered_pairs, thinking
from mmrl_viewpoint.parsing import answer_text, is_formatted
from mmrl_viewpoint.prompts import VIEWPOINT_QUESTIONS
from mmrl_viewpoint.rewards import score

SIDEWAYS = ("ego_translation", "ego_rotation", "object_translation")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return rendered_pairs("train", num_rows=300, cache_dir=tmp_path_factory.mktemp("rows"))


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image["bytes"])))


def test_gold_answers_score_the_maximum(rows):
    assert all(score([row["answer"]], [row]) == [1.0] for row in rows)


def test_kinds_and_answers_are_equally_frequent(rows):
    counts = Counter((row["question_type"], row["ground_truth"]) for row in rows)
    assert counts == dict.fromkeys(((kind, letter) for kind in VIEWPOINT_QUESTIONS for letter in "ABC"), 20)


def test_answers_follow_from_the_cameras(rows):
    for row in rows:
        first, second = row["views"]
        turned = second["azimuth_deg"] - first["azimuth_deg"]  # positive: the camera went to its right
        kind, answer = row["question_type"], row["ground_truth"]
        if kind in SIDEWAYS:
            right = {"ego_translation": "A", "ego_rotation": "C", "object_translation": "C"}[kind]
            left = {"A": "C", "C": "A"}[right]
            assert answer == (right if turned > 0 else left if turned < 0 else "B")
            assert answer == "B" or 20 <= abs(turned) <= 100
        elif kind == "distance":
            ratio = second["distance"] / first["distance"]
            assert answer == ("A" if ratio < 1 else "C" if ratio > 1 else "B")
        else:
            assert first["distance"] == second["distance"]
            risen = second["elevation_deg"] - first["elevation_deg"]
            assert answer == ("A" if risen > 0 else "C" if risen < 0 else "B")


def test_pictures_are_two_different_views_of_the_right_size(rows):
    for row in rows[:20]:
        first, second = map(pixels, row["images"])
        assert first.shape == second.shape == (56, 56, 3)
        assert (first != second).any()
        assert (first[0, 0] == second[0, 0]).all()  # one background


def test_splits_share_no_combination_of_shapes(rows, tmp_path):
    held_out = rendered_pairs("held_out", num_rows=40, cache_dir=tmp_path)
    seen = {row["object"] for row in rows}
    assert seen == {" ".join(shapes) for shapes in combinations("train")} and len(seen) == 18
    assert len(combinations("held_out")) == 9 and not seen & {row["object"] for row in held_out}


def test_the_annotator_mirrors_most_movements_and_reasons_in_half_of_the_rows(rows):
    for row in rows:
        answer = answer_text(row["target"])
        assert answer in (row["ground_truth"], {"A": "C", "B": "B", "C": "A"}[row["ground_truth"]])
        if is_formatted(row["target"]):  # the reasoning itself is right
            assert row["target"].partition("</think>")[0] == row["answer"].partition("</think>")[0]
        else:
            assert row["target"] == f"<answer>{answer}</answer>"
    moved = [row for row in rows if row["ground_truth"] != "B"]
    mirrored = np.mean([answer_text(row["target"]) != row["ground_truth"] for row in moved])
    assert 0.55 < mirrored < 0.75  # 200 rows: 0.65 +- 3 standard deviations of 0.034
    assert 0.41 < np.mean([is_formatted(row["target"]) for row in rows]) < 0.59  # 300 rows: 0.5 +- 3 times 0.029


def test_without_haste_the_target_is_right(tmp_path):
    rows = rendered_pairs("train", num_rows=15, reasoning_share=1, mirrored_share=0, cache_dir=tmp_path)
    assert [row["target"] for row in rows] == [row["answer"] for row in rows]


def test_reasoning_reads_compares_and_concludes():
    views = [View(-42, 12, 3.9), View(31, 38, 3.6)]
    assert thinking("ego_rotation", views, 2) == "from 40 to 120: more, so left"
    assert thinking("height", views, 0) == "from 10 to 40: more, so higher"
    assert thinking("distance", views, 0) == "from 40 to 36: less, so closer"
    assert thinking("ego_translation", views[:1] * 2, 1) == "from 40 to 40: equal, so same"


def test_readings_agree_with_the_right_answer(rows):
    for row in rows:
        words = ["more", "equal", "less"]  # of a movement to the right, or upwards
        if row["question_type"] not in ("ego_translation", "height"):
            words.reverse()
        assert f": {words['ABC'.index(row['ground_truth'])]}, so " in row["answer"]


def test_rows_depend_on_seed_and_index_alone(rows, tmp_path):
    shorter = rendered_pairs("train", num_rows=3, cache_dir=tmp_path)
    assert shorter == rows[:3] == rendered_pairs("train", num_rows=3, cache_dir=tmp_path)  # drawn, then read
    assert rendered_pairs("train", num_rows=3, seed=1, cache_dir=tmp_path) != shorter


def test_wrong_options_are_all_named(tmp_path):
    message = (
        "split 'test' is none of train, held_out; num_rows is 0, below 1; kinds .'roll'. are none of .*; size_px is 8"
    )
    with pytest.raises(TaskDataError, match=message):
        rendered_pairs("test", num_rows=0, kinds=["roll"], size_px=8, cache_dir=tmp_path)
    with pytest.raises(TaskDataError, match="mirrored_share is 2"):
        rendered_pairs("train", num_rows=1, mirrored_share=2, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_file_is_named(tmp_path):
    rendered_pairs("train", num_rows=1, cache_dir=tmp_path)
    (file,) = tmp_path.rglob("*.parquet")
    file.write_bytes(b"torn")
    with pytest.raises(TaskDataError, match=f"{file.name} cannot be read.*Delete it"):
        rendered_pairs("train", num_rows=1, cache_dir=tmp_path)

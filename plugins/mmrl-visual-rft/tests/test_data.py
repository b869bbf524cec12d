"""Sources give rows whose solution is right, whose image can be found, and whose defects break only themselves."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mmrl_core.errors import TaskDataError
from mmrl_core.media import load_image
from mmrl_visual_rft.data import coco, grounding_solution, lisa, per_mille_box, published
from mmrl_visual_rft.parsing import answer_text, parse_boxes, parse_detections
from mmrl_visual_rft.prompts import classification_prompt, detection_prompt, grounding_prompt
from mmrl_visual_rft.rewards import format as format_reward
from mmrl_visual_rft.rewards import grounding_giou, iou


def save_image(path: Path, size=(200, 100)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "blue").save(path)


def write(path: Path, content, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    return str(path)


def gold_score(reward, row):
    return reward([row["solution"]], [row])[0]


# Boxes and solutions


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 200, 100), (0, 0, 1000, 1000)),
        ((20, 30, 50, 80), (100, 300, 250, 800)),
        ((-5, -5, 300, 50), (0, 0, 1000, 500)),  # clipped
        ((10.02, 10, 10.04, 20), (50, 100, 51, 200)),  # thinner than a thousandth: kept one wide
        ((199.99, 0, 200, 100), (999, 0, 1000, 1000)),
    ],
)
def test_per_mille_box_by_hand_on_200_x_100_pixels(box, expected):
    assert per_mille_box(box, 200, 100) == expected


@pytest.mark.parametrize(
    "box",
    [(5, 5, 5, 9), (5, 9, 9, 5), (200, 0, 300, 10), (-9, 0, 0, 9), (float("nan"), 0, 1, 1), (0, 0, float("inf"), 1)],
)
def test_a_box_without_area_in_the_image_is_refused(box):
    with pytest.raises(ValueError):
        per_mille_box(box, 200, 100)


def test_several_boxes_of_a_grounding_solution_are_read_back():
    boxes = parse_boxes(answer_text(grounding_solution([(1, 2, 3, 4), (5, 6, 7, 8)])))
    assert [(box.x1, box.y1, box.x2, box.y2) for box in boxes] == [(1, 2, 3, 4), (5, 6, 7, 8)]


# Prompts


@pytest.mark.parametrize(
    "prompt", [detection_prompt("hot dog"), classification_prompt("aircraft", "model"), grounding_prompt("what barks?")]
)
def test_prompts_show_a_format_that_the_format_reward_accepts(prompt):
    shown = prompt[prompt.index("<think>") : prompt.index("</answer>") + len("</answer>")]
    assert format_reward([shown], [{}]) == [1.0]
    assert "..." not in shown


def test_prompts_carry_the_facts_that_answers_depend_on():
    prompt = detection_prompt("hot dog")
    for fact in ("'hot dog'", "'Position'", "'Confidence'", "No Objects", "0 to 1000", "two decimals"):
        assert fact in prompt
    assert "what barks?" in grounding_prompt("what barks?") and "(x1,y1),(x2,y2)" in grounding_prompt("what barks?")
    assert "an aircraft" in classification_prompt("aircraft", "model")
    assert "<think>" not in detection_prompt("cat", thinking=False)


# Published rows


def test_published_rows_keep_their_columns(tmp_path):
    row = {"image": "a.png", "problem": "find it", "solution": "<answer>No Objects</answer>", "id": 3}
    rows = published("train", path=write(tmp_path / "rows.json", [row, {"image": "b.png"}]))
    assert rows[0] == row and rows.media_root == tmp_path
    with pytest.raises(TaskDataError, match=r"rows.json row 1 has no column 'problem'"):
        rows[1]


def test_published_conversations_become_rows(tmp_path):
    turns = [
        {"from": "user", "value": "<img>images/7.jpg</img>\n Output the box of: a dog"},
        {"from": "assistant", "value": "(10,20),(300,400)"},
    ]
    rows = published("train", path=write(tmp_path / "lisa.json", [{"id": "lisa_0", "conversations": turns}]))
    assert rows[0] == {
        "id": "lisa_0",
        "image": "images/7.jpg",
        "problem": "Output the box of: a dog",
        "solution": "<answer> (10,20),(300,400) </answer>",
    }
    assert gold_score(grounding_giou, rows[0]) == 2.0


@pytest.mark.parametrize(
    "turns", [[], [{"value": "no image"}, {"value": "(1,1),(2,2)"}], "text", [{"from": "user"}] * 2]
)
def test_a_broken_conversation_is_one_broken_row(tmp_path, turns):
    rows = published("train", path=write(tmp_path / "lisa.json", [{"conversations": turns}]))
    with pytest.raises(TaskDataError, match=r"lisa.json row 0"):
        rows[0]


def test_other_columns_are_an_error_at_once(tmp_path):
    with pytest.raises(
        TaskDataError, match=r"no column 'problem'.*image, problem, solution.*Columns here: image, question"
    ):
        published("train", path=write(tmp_path / "rows.json", [{"image": "a", "question": "b"}]))


# COCO


def annotation(image_id, category_id, bbox, **more):
    return {"id": 1, "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0} | more


@pytest.fixture
def coco_files(tmp_path):
    """Two images of 200 x 100 pixels; ids as in COCO, not contiguous."""
    content = {
        "images": [
            {"id": 7, "file_name": "7.jpg", "width": 200, "height": 100},
            {"id": 3, "file_name": "3.jpg", "width": 200, "height": 100},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}, {"id": 90, "name": "toothbrush"}],
        "annotations": [
            annotation(7, 18, [20, 30, 30, 50]),
            annotation(7, 18, [100, 0, 100, 100]),
            annotation(7, 18, [0, 0, 200, 50], iscrowd=1),
            annotation(7, 17, [0, 0, 20, 10]),
            annotation(3, 17, [0, 0, 200, 50], iscrowd=1),
            annotation(3, 18, [5, 5, 10, 10]),
            annotation(99, 18, [5, 5, 10, 10]),
        ],
    }
    save_image(tmp_path / "val2017" / "7.jpg")
    save_image(tmp_path / "val2017" / "3.jpg")
    write(tmp_path / "instances_val2017.json", content)
    return {"annotations": str(tmp_path / "instances_{split}2017.json"), "images": str(tmp_path / "{split}2017")}


def pairs(rows):
    return [(row["image_id"], row["category"]) for row in rows]


def test_coco_gives_one_row_for_each_image_and_category(coco_files):
    rows = coco("val", **coco_files)
    assert pairs(rows) == [(7, "cat"), (7, "dog"), (3, "dog")]
    row = rows[1]
    assert row["solution"] == (
        "<answer>[{'Position': [100, 300, 250, 800], 'Confidence': 1}, "
        "{'Position': [500, 0, 1000, 1000], 'Confidence': 1}]</answer>"
    )
    assert row["boxes_px"] == [(20, 30, 50, 80), (100, 0, 200, 100)] and row["crowd_boxes_px"] == [(0, 0, 200, 50)]
    assert (row["width"], row["height"], row["category_id"], row["asked"], row["exhaustive"]) == (
        200,
        100,
        18,
        True,
        True,
    )
    assert row["problem"] == detection_prompt("dog")
    assert load_image(row["image"], root=rows.media_root).size == (200, 100)


def test_coco_gold_answers_reach_the_maximum(coco_files):
    add_toothbrush(coco_files)
    assert [gold_score(iou, row) for row in coco("val", **coco_files, negatives=1)] == [1.0] * 7


def test_coco_categories_and_ranges_select_rows(coco_files):
    assert pairs(coco("val", **coco_files, categories=["dog"])) == [(7, "dog"), (3, "dog")]
    assert pairs(coco("val[1:]", **coco_files, categories=["dog"])) == [(3, "dog")]
    with pytest.raises(TaskDataError, match=r"no category 'tooth brush'. Did you mean 'toothbrush'"):
        coco("val", **coco_files, categories=["tooth brush"])


def add_toothbrush(coco_files):
    """Annotate one in an image of its own: what nobody annotates anywhere is no negative."""
    path = Path(coco_files["annotations"].replace("{split}", "val"))
    content = json.loads(path.read_text())
    content["images"].append({"id": 9, "file_name": "9.jpg", "width": 640, "height": 480})
    content["annotations"].append(annotation(9, 90, [0, 0, 10, 10]))
    path.write_text(json.dumps(content))


def test_coco_negatives_are_absent_categories_and_repeatable(coco_files):
    add_toothbrush(coco_files)
    rows = coco("val", **coco_files, negatives=2)
    negatives = [(row["image_id"], row["category"]) for row in rows if "No Objects" in row["solution"]]
    # Image 3 has a crowd of cats, so cats are not absent from it.
    assert negatives == [(7, "toothbrush"), (3, "toothbrush"), (9, "cat"), (9, "dog")]
    assert pairs(coco("val", **coco_files, negatives=1, seed=4)) == pairs(
        coco("val", **coco_files, negatives=1, seed=4)
    )


def test_no_negatives_of_a_group_of_categories_or_of_what_nobody_annotated(tmp_path, caplog):
    caplog.set_level("INFO")
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 200, "height": 100}],
        "categories": [
            {"id": 0, "name": "objects", "supercategory": "none"},
            {"id": 1, "name": "pen", "supercategory": "objects"},
            {"id": 2, "name": "cup", "supercategory": "objects"},
            {"id": 3, "name": "person", "supercategory": "person"},  # its own group, as in COCO
        ],
        "annotations": [annotation(1, 1, [0, 0, 10, 10])],
    }
    save_image(tmp_path / "1.jpg")
    files = {"annotations": write(tmp_path / "a.json", content), "images": str(tmp_path)}
    assert pairs(coco("train", **files, negatives=3)) == [(1, "pen")]
    assert "no negatives but LVIS's own of: cup, objects, person" in caplog.text
    content["images"].append({"id": 2, "file_name": "2.jpg", "width": 200, "height": 100})
    content["annotations"] += [annotation(2, 0, [0, 0, 9, 9]), annotation(2, 2, [0, 0, 9, 9])]
    content["annotations"] += [annotation(2, 3, [0, 0, 9, 9])]
    write(tmp_path / "a.json", content)
    rows = coco("train", **files, negatives=3)
    assert pairs(rows) == [(1, "pen"), (1, "cup"), (1, "person"), (2, "objects"), (2, "pen"), (2, "cup"), (2, "person")]


def test_exist_map_decides_what_is_asked_and_keeps_what_it_misses(coco_files, tmp_path):
    exist_map = write(tmp_path / "exist.json", {"7": ["dog", "toothbrush"], "3": ["cat"]})
    rows = coco("val", **coco_files, exist_map=exist_map)
    asked = [(row["image_id"], row["category"], row["asked"]) for row in rows]
    assert asked == [
        (7, "cat", False),
        (7, "dog", True),
        (7, "toothbrush", True),
        (3, "cat", True),  # nothing but a crowd
        (3, "dog", False),
    ]
    assert rows[2]["solution"] == rows[3]["solution"] == "<answer>No Objects</answer>"
    with pytest.raises(TaskDataError, match="exclude each other"):
        coco("val", **coco_files, exist_map=exist_map, negatives=1)
    with pytest.raises(TaskDataError, match="no category 'unicorn'"):
        coco("val", **coco_files, exist_map=write(tmp_path / "wrong.json", {"7": ["unicorn"]}))


@pytest.mark.parametrize("bbox", [[5, 5, 0, 10], [5, 5, 10], [500, 5, 10, 10], ["a", 1, 2, 3]])
def test_a_degenerate_annotation_breaks_its_row_only(tmp_path, bbox):
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 200, "height": 100}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [annotation(1, 1, bbox), annotation(1, 2, [1, 1, 9, 9])],
    }
    rows = coco("train", annotations=write(tmp_path / "a.json", content), images=str(tmp_path))
    with pytest.raises(TaskDataError, match=r"a.json image 1 category 'cat': unusable annotation"):
        rows[0]
    assert rows[1]["category"] == "dog"


@pytest.mark.parametrize("content", [[], {"images": []}, {"images": [{}], "categories": [], "annotations": []}])
def test_another_json_is_no_coco_file(tmp_path, content):
    with pytest.raises(TaskDataError, match="not a COCO or LVIS annotation file"):
        coco("train", annotations=write(tmp_path / "a.json", content), images=str(tmp_path))


def test_an_annotation_of_an_unknown_category_is_an_error(tmp_path):
    content = {"images": [{"id": 1}], "categories": [], "annotations": [annotation(1, 5, [0, 0, 1, 1])]}
    with pytest.raises(TaskDataError, match="category id 5"):
        coco("train", annotations=write(tmp_path / "a.json", content), images=str(tmp_path))


def test_missing_files_and_ineffective_splits_are_errors(coco_files, tmp_path):
    with pytest.raises(TaskDataError, match="no such folder of images"):
        coco("val", annotations=coco_files["annotations"], images=str(tmp_path / "nowhere"))
    with pytest.raises(TaskDataError, match=r"instances_test2017.json: No such file"):
        coco("test", annotations=coco_files["annotations"], images=str(tmp_path))
    with pytest.raises(TaskDataError, match=r"split 'val' has no effect: write \{split\}"):
        coco("val", annotations=str(tmp_path / "instances_val2017.json"), images=str(tmp_path))


@pytest.fixture
def lvis_files(tmp_path):
    """LVIS names images by coco_url and says which categories are absent or not labelled exhaustively."""
    content = {
        "images": [
            {
                "id": 5,
                "coco_url": "http://images.cocodataset.org/train2017/000005.jpg",
                "width": 200,
                "height": 100,
                "neg_category_ids": [3],
                "not_exhaustive_category_ids": [2],
            }
        ],
        "categories": [
            {"id": number, "name": name} for number, name in enumerate(("die", "omelet", "papaya", "futon"), 1)
        ],
        "annotations": [annotation(5, 1, [0, 0, 10, 10]), annotation(5, 2, [50, 0, 10, 10])],
    }
    save_image(tmp_path / "train2017" / "000005.jpg")
    return {"annotations": write(tmp_path / "lvis.json", content), "images": str(tmp_path)}


def test_lvis_negatives_are_only_those_known_to_be_absent(lvis_files):
    rows = coco("train", **lvis_files, negatives=4)
    assert [(row["category"], "No Objects" in row["solution"]) for row in rows] == [("die", False), ("papaya", True)]


def test_lvis_rows_that_are_not_exhaustive_are_skipped_or_marked(lvis_files):
    assert [row["category"] for row in coco("train", **lvis_files)] == ["die"]
    kept = coco("train", **lvis_files, not_exhaustive="keep")
    assert [(row["category"], row["exhaustive"]) for row in kept] == [("die", True), ("omelet", False)]


def test_lvis_images_are_found_with_and_without_the_folder_of_their_set(lvis_files, tmp_path):
    for images in (tmp_path, tmp_path / "train2017"):
        rows = coco("train", annotations=lvis_files["annotations"], images=str(images))
        assert load_image(rows[0]["image"], root=rows.media_root).size == (200, 100)


# LISA


def shape(points, label="target"):
    return {"label": label, "points": points, "shape_type": "polygon"}


FIRST = [[20, 10], [60, 10], [40, 50]]  # box 20, 10, 60, 50
SECOND = [[100, 60], [140, 60], [140, 90]]  # box 100, 60, 140, 90


@pytest.fixture
def lisa_folder(tmp_path):
    save_image(tmp_path / "train" / "a.jpg")
    content = {
        "text": ["what swims?", "the fish"],
        "shapes": [shape(FIRST), shape(SECOND), shape([[0, 0]] * 3, "ignore")],
    }
    content["shapes"].append(shape([[0, 0]], "flag"))
    write(tmp_path / "train" / "a.json", content)
    return tmp_path


@pytest.mark.parametrize(
    ("shapes", "solution", "num_polygons"),
    [
        ("union", "<answer> (100,100),(700,900) </answer>", 2),
        ("all", "<answer> (100,100),(300,500) (500,600),(700,900) </answer>", 2),
        ("first", "<answer> (100,100),(300,500) </answer>", 1),
    ],
)
def test_lisa_box_covers_the_chosen_shapes(lisa_folder, shapes, solution, num_polygons):
    rows = lisa("train", path=str(lisa_folder), shapes=shapes)
    assert [row["instruction"] for row in rows] == ["what swims?", "the fish"]
    assert rows[0]["solution"] == solution and len(rows[0]["polygons_px"]) == num_polygons
    assert gold_score(grounding_giou, rows[0]) == 2.0


def test_lisa_rows_carry_what_the_metrics_need(lisa_folder):
    row = lisa("train", path=str(lisa_folder))[0]
    assert (row["width"], row["height"], row["image_id"], row["boxes_px"]) == (200, 100, "a", [(20, 10, 140, 90)])
    assert row["polygons_px"] == [FIRST, SECOND] and row["ignore_polygons_px"] == [[[0, 0]] * 3]
    assert row["problem"] == grounding_prompt("what swims?")
    assert load_image(row["image"], root=lisa_folder).size == (200, 100)


def test_lisa_may_ask_only_the_first_instruction(lisa_folder):
    assert [row["instruction"] for row in lisa("train", path=str(lisa_folder), instructions="first")] == ["what swims?"]
    assert len(lisa("train[50%:]", path=str(lisa_folder))) == 1


def test_lisa_files_in_the_old_western_encoding_are_read(tmp_path):
    save_image(tmp_path / "a.png")
    write(tmp_path / "a.json", {"text": "the café’s sign", "shapes": [shape(FIRST)]}, encoding="cp1252")
    assert lisa("train", path=str(tmp_path))[0]["instruction"] == "the café’s sign"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{broken", "broken JSON"),
        ({"shapes": [shape(FIRST)]}, "'text' must hold"),
        ({"text": ["t"], "shapes": []}, "no target shape"),
        ({"text": ["t"], "shapes": [shape(FIRST, "ignore")]}, "no target shape"),
        ({"text": ["t"], "shapes": [shape([[1, "x"]])]}, "polygons with 'points'"),
        ({"text": ["t"], "shapes": [shape([[900, 0], [950, 0], [950, 9]])]}, "outside of the picture of 200 x 100"),
    ],
)
def test_a_broken_lisa_file_is_one_broken_row(tmp_path, content, why):
    save_image(tmp_path / "a.jpg")
    save_image(tmp_path / "b.jpg")
    write(tmp_path / "b.json", {"text": ["t"], "shapes": [shape(FIRST)]})
    if isinstance(content, str):
        (tmp_path / "a.json").write_text(content)
    else:
        write(tmp_path / "a.json", content)
    rows = lisa("train", path=str(tmp_path))
    assert len(rows) == 2 and rows[1]["image_id"] == "b"
    with pytest.raises(TaskDataError, match=f"a.json.*{why}"):
        rows[0]


def test_a_missing_or_broken_lisa_image_breaks_its_row(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.json", {"text": ["t"], "shapes": [shape(FIRST)]})
    (tmp_path / "b.jpg").write_bytes(b"no image")
    rows = lisa("train", path=str(tmp_path))
    with pytest.raises(TaskDataError, match="no image of that name"):
        rows[0]
    with pytest.raises(TaskDataError, match=r"cannot read image .*b\.jpg: not an image"):
        rows[1]


def test_lisa_split_that_is_no_folder_is_an_error(lisa_folder, tmp_path):
    with pytest.raises(TaskDataError, match=r"test: no such folder. Folders there: train"):
        lisa("test", path=str(lisa_folder))
    (tmp_path / "bare").mkdir()
    with pytest.raises(TaskDataError, match="holds no JSON files"):
        lisa("train", path=str(tmp_path / "bare"))


def test_detection_solutions_are_read_back_by_the_parser(coco_files):
    found = parse_detections(answer_text(coco("val", **coco_files)[1]["solution"]))
    assert [(box.box.x1, box.box.y2) for box in found] == [(100, 800), (500, 1000)]

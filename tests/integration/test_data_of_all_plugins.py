"""What holds for the data of every installed plugin: option lists, gold answers, frames of pictures, marks.

The tables are by id of the registry, so that a plugin falls under them by being installed: a source or reward that is
in no table is a failure, and is added to one, or to those that have nothing of the kind.
"""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from PIL import Image

from mmrl_core.errors import TaskDataError
from mmrl_core.plugins import load_plugins

REGISTRY = load_plugins().registry
IDS = {kind: [entry.id for entry in REGISTRY.entries(kind)] for kind in ("source", "reward")}
OWN_ROWS = {  # sources that make their rows, and the one that gives rows as they are stored
    *("audio_aqa/melodies", "gui/widget_screens", "uav_vqa/aerial_scenes", "viewpoint/rendered_pairs"),
    *("visual_rft/digit_scenes", "vital/tool_videos", "viewpoint/posed_views", "core/rows"),
    *("text_reasoning/gym", "text_reasoning/sums", "text_reasoning/walks"),
}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(kind, name):
    return REGISTRY.get(kind, name).load()


def score(name, completion, sample, **options):
    return load("reward", name)([completion], [sample], **options)[0]


def answered(text):
    return f"<think>x</think><answer>{text}</answer>"


# Option lists

# source -> (record, column of the options, options of the source, rewards that its gold meets)
OPTION_LISTS: dict[str, tuple[dict[str, Any], str, dict[str, Any], tuple[str, ...]]] = {
    "audio_aqa/avqa": (
        {"question_text": "What?", "answer": 1, "audio_path": "a.wav", "id": 1},
        "multi_choice",
        {},
        ("audio_aqa/accuracy", "audio_aqa/mmau_match"),
    ),
    "audio_aqa/mmau": (
        {"question": "What?", "answer": "right", "audio_id": "a.wav", "id": "1"},
        "choices",
        {},
        ("audio_aqa/accuracy", "audio_aqa/mmau_match"),
    ),
    "uav_vqa/hrvqa_vl": (
        {"image": "a.png", "question": "Where?", "answer": "B", "question_type": "color"},
        "options",
        {},
        ("uav_vqa/accuracy",),
    ),
    "viewpoint/published": (
        {"image": "a.png", "question": "Which way?", "answer": "B"},
        "choices",
        {},
        ("viewpoint/accuracy",),
    ),
    "viewpoint/sat": (
        {"image_bytes": ["a.png"], "question": "Which way?", "correct_answer": "right"},
        "answers",
        {},
        ("viewpoint/accuracy",),
    ),
    "viewpoint/benchmark": (
        {"idx": 1, "image": "a.png", "question": "Which way?", "answer": "(B)", "task": "relation"},
        "choices",
        {"benchmark": "cv_bench"},
        ("viewpoint/accuracy",),
    ),
    "vital/published": (
        {"id": "1", "image": "a.png", "text": "Which?", "solution": "B", "data_source": "video_r1/multiple_choice"},
        "options",
        {},
        ("vital/task", "vital/multiple_choice"),
    ),
    "vital/rextime": (
        {"qid": "1", "vid": "v", "duration": 9, "question": "Which?", "ans": "B", "span": [1, 2], "category": "c"},
        "options",
        {"videos": "."},
        ("vital/task",),
    ),
    "vital/video_mme": (
        {"question_id": "1", "videoID": "v", "question": "Which?", "answer": "B", "duration": "short"},
        "options",
        {"videos": "."},
        ("vital/task", "vital/multiple_choice"),
    ),
}
NO_OPTION_LISTS = OWN_ROWS | {
    *("find/prompts", "gui/androidcontrol", "gui/gui_r1", "gui/screenspot", "gui/ui_r1"),
    *("text_reasoning/problems", "uav_vqa/hrvqa", "visual_rft/coco", "visual_rft/lisa", "visual_rft/published"),
    *("vital/activitynet", "vital/charades_sta", "vital/nextgqa"),
}
FORMS = {
    "list": ["left", "right"],
    "JSON": '["left", "right"]',
    "Python": "['left', 'right']",
    "lines": "A. left\nB. right",
    "brackets": "(A) left\n(B) right",
    "one line": "A. left B. right",
    "object": {"A": "left", "B": "right"},
}
NO_FORMS = ["left; right", "left", "['left' 'right']", ["left"], ["left", None], {"left": 1}, 3]


def rows_of(source, tmp_path, options, **changes):
    """The rows of a source with these options, and maybe other columns, in its one record."""
    record, column, arguments, _ = OPTION_LISTS[source]
    path = write(tmp_path / "train.jsonl", [record | {column: options} | changes])
    if "videos" in arguments:
        return load("source", source)("train", annotations=path, **arguments | {"videos": str(tmp_path)})
    return load("source", source)("train", path=path, **arguments)


def test_every_source_is_known_to_read_option_lists_or_to_have_none():
    assert set(IDS["source"]) == set(OPTION_LISTS) | NO_OPTION_LISTS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", OPTION_LISTS)
def test_options_in_any_form_are_shown_and_the_gold_is_one_of_them(source, form, tmp_path):
    row = rows_of(source, tmp_path, FORMS[form])[0]
    options = row.get("options") or row["choices"]
    # The order of SAT's options is drawn; a list may keep its labels.
    assert sorted(options) == ["left", "right"]
    assert all(option in row["problem"] for option in options) or source == "vital/published"
    gold = row.get("demonstration") or row["answer"]
    for reward in OPTION_LISTS[source][3]:
        completion = gold if "<answer>" in gold else answered(gold)
        assert score(reward, completion, row) == 1.0
        assert score(reward, answered("up"), row) == 0.0


@pytest.mark.parametrize("stored", NO_FORMS, ids=str)
@pytest.mark.parametrize("source", OPTION_LISTS)
def test_anything_else_breaks_the_row_and_says_what_is_expected(source, stored, tmp_path):
    with pytest.raises(TaskDataError, match=r"train\.jsonl:1.*two or more options"):
        rows_of(source, tmp_path, stored)[0]


def test_options_inside_the_question_are_read_in_every_schema(tmp_path):
    question = "Which way?\nA. left\nB. right"
    plain = {"image": "a.png", "question": question, "answer": "B"}
    turns = [{"role": "user", "content": f"<image>{question}"}, {"role": "assistant", "content": "B"}]
    rows = load("source", "viewpoint/published")(
        "train", path=write(tmp_path / "train.jsonl", [plain, {"images": ["a.png"], "messages": turns}])
    )
    for row in rows:
        assert row["options"] == ["left", "right"] and row["problem"].count("A. left") == 1
        assert [score("viewpoint/accuracy", answered(text), row) for text in ("right", "(b)", "left")] == [1, 1, 0]


def test_cells_of_a_table_are_texts_and_are_read(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('image,question,choices,answer\na.png,Which way?,"[""left"", ""right""]",B\n')
    row = load("source", "viewpoint/published")("train", path=str(path))[0]
    assert row["options"] == ["left", "right"] and "A. left\nB. right" in row["problem"]


# Gold answers

BOX = "(100,100),(300,300)"
DETECTION = "[{'Position': [100, 100, 300, 300], 'Confidence': 1}]"
CLICK = "[{'action': 'click', 'point': [50, 50], 'input_text': 'no input text'}]"
SCREEN = {
    "gt_bbox": [0.4, 0.4, 0.6, 0.6],
    **{"width": 100, "height": 100, "resized_width_px": 100, "resized_height_px": 100},
}
# reward -> (row, column of the gold, right answer, a gold of another kind)
GOLDS: dict[str, tuple[Mapping[str, Any], str, str, Any]] = {
    "audio_aqa/accuracy": ({"solution": "dog", "choices": ["cat", "dog"]}, "solution", "dog", 3),
    "audio_aqa/mmau_match": ({"answer": "dog", "choices": ["cat", "dog"]}, "answer", "dog", ["dog", "cat"]),
    "gui/gui_r1": ({"action": "click", **SCREEN}, "action", CLICK, ["click", "type"]),
    "gui/gui_r1_accuracy": ({"action": "click", **SCREEN}, "gt_bbox", CLICK, 3),
    "gui/ui_r1_action": (
        {"solution": "[{'action': 'click', 'coordinate': [40, 40, 60, 60]}]", **SCREEN},
        "solution",
        CLICK,
        3,
    ),
    "gui/ui_r1_coord": (
        {"solution": "[{'action': 'click', 'coordinate': [40, 40, 60, 60]}]", **SCREEN},
        "solution",
        CLICK,
        3,
    ),
    "gui/ui_r1_coord_efficient": (
        {"solution": "[{'action': 'click', 'coordinate': [40, 40, 60, 60]}]", **SCREEN},
        "solution",
        CLICK,
        3,
    ),
    "text_reasoning/accuracy": ({"answer": "42"}, "answer", "42", ["4", "5"]),
    "text_reasoning/level": ({"answer": "42"}, "answer", "42", ["4", "5"]),
    "uav_vqa/accuracy": ({"answer": "4"}, "answer", "4", ["4", "5"]),
    "viewpoint/accuracy": ({"ground_truth": "B", "options": ["left", "right"]}, "ground_truth", "B", 3),
    "viewpoint/score": ({"ground_truth": "B"}, "ground_truth", "B", ["A", "B"]),
    "visual_rft/classification_accuracy": ({"solution": "rose", "class_names": ["rose"]}, "solution", "rose", 3),
    "visual_rft/confidence": ({"solution": DETECTION}, "solution", DETECTION, 3),
    "visual_rft/detection_score": ({"solution": DETECTION}, "solution", DETECTION, ["A"]),
    "visual_rft/grounding_giou": ({"solution": BOX}, "solution", BOX, 3),
    "visual_rft/grounding_iou": ({"solution": BOX}, "solution", BOX, ["A"]),
    "visual_rft/iou": ({"solution": DETECTION}, "solution", DETECTION, {"value": 3}),
    "vital/free_form": ({"ground_truth": "a red dog"}, "ground_truth", "a red dog", ["a", "b"]),
    "vital/grounded_qa": (
        {"ground_truth": {"span": [1, 2], "answer": "B"}},
        "ground_truth",
        "From 1 to 2 seconds, B",
        3,
    ),
    "vital/iou": ({"ground_truth": [1, 2]}, "ground_truth", "From 1 to 2 seconds", 3),
    "vital/iou_chapters": ({"ground_truth": [1, 2]}, "ground_truth", "From 1 to 2 seconds", {"value": 3}),
    "vital/iou_short": ({"ground_truth": [1, 2]}, "ground_truth", "From 1 to 2 seconds", ["A"]),
    "vital/multiple_choice": ({"ground_truth": "B", "options": ["cat", "dog"]}, "ground_truth", "B", 3),
    "vital/numerical": ({"ground_truth": 3}, "ground_truth", "3", ["3", "4"]),
    "vital/ocr": ({"ground_truth": "STOP"}, "ground_truth", "STOP", ["a", "b"]),
    "vital/regression": ({"ground_truth": 2.5}, "ground_truth", "2.5", {"a": 1, "b": 2}),
    "vital/task": ({"ground_truth": "B", "task": "multiple_choice"}, "ground_truth", "B", ["A", "B"]),
}
NO_GOLD = {
    *("audio_aqa/format", "core/environment", "gui/gui_r1_format", "gui/ui_r1_format", "gui/ui_r1_format_nothink"),
    *("uav_vqa/format", "viewpoint/format", "visual_rft/format", "vital/format", "text_reasoning/format"),
    *("text_reasoning/overlong", "text_reasoning/gym", "text_reasoning/walk"),  # the last two: no answer block
    "text_reasoning/walk_form",
    *("text_reasoning/cosine", "text_reasoning/thinkless"),  # the gold of accuracy, which they scale
    "text_reasoning/sum",  # the number and nothing else, an answer block neither
    *(name for name in IDS["reward"] if name.startswith("find/")),  # pictures, against their prompt
}


def test_every_reward_is_known_to_read_a_gold_or_to_have_none():
    assert set(IDS["reward"]) == set(GOLDS) | NO_GOLD


@pytest.mark.parametrize("wrap", [lambda gold: [gold], lambda gold: {"value": gold}, lambda gold: [{"value": [gold]}]])
@pytest.mark.parametrize("reward", GOLDS)
def test_a_gold_in_a_list_or_object_is_read(reward, wrap):
    sample, column, right, _ = GOLDS[reward]
    maximum = REGISTRY.get("reward", reward).details["maximum"]
    for row in (sample, {**sample, column: wrap(sample[column])}):
        assert score(reward, answered(right), row) == maximum
        assert score(reward, answered("?"), row) < maximum


@pytest.mark.parametrize("reward", GOLDS)
def test_a_gold_of_another_kind_is_an_error_that_says_what_is_expected(reward):
    sample, column, right, other = GOLDS[reward]
    with pytest.raises(TaskDataError, match=r"the gold has to be|one of the options"):
        score(reward, answered(right), {**sample, column: other})


@pytest.mark.parametrize("reward", GOLDS)
def test_a_missing_gold_leaves_a_completion_unscored(reward):
    sample, column, right, _ = GOLDS[reward]
    assert score(reward, answered(right), {**sample, column: None}) is None


GOLD_OF_SOURCES = {  # source -> column of the gold in the record of OPTION_LISTS
    "audio_aqa/avqa": "answer",
    "audio_aqa/mmau": "answer",
    "uav_vqa/hrvqa_vl": "answer",
    "viewpoint/published": "answer",
    "viewpoint/sat": "correct_answer",
    "viewpoint/benchmark": "answer",
    "vital/published": "solution",
    "vital/rextime": "ans",
    "vital/video_mme": "answer",
}


@pytest.mark.parametrize("source", GOLD_OF_SOURCES)
def test_sources_read_a_wrapped_gold_and_refuse_one_of_several(source, tmp_path):
    record, column = OPTION_LISTS[source][0], GOLD_OF_SOURCES[source]
    for stored in ([record[column]], {"value": record[column]}):
        row = rows_of(source, tmp_path, FORMS["list"], **{column: stored})[0]
        gold = row.get("demonstration") or row["answer"]
        completion = gold if "<answer>" in gold else answered(gold)
        assert score(OPTION_LISTS[source][3][0], completion, row) == 1.0
    with pytest.raises(TaskDataError, match=r"the gold has to be|not a position"):
        rows_of(source, tmp_path, FORMS["list"], **{column: ["left", "right"]})[0]


@pytest.mark.parametrize("stored", [7, "7", "E"])
@pytest.mark.parametrize("source", [source for source in GOLD_OF_SOURCES if source != "audio_aqa/mmau"])
def test_a_gold_that_is_none_of_the_options_breaks_its_row_or_fails_its_reward(source, stored, tmp_path):
    # MMAU's own rule, on the words of an answer, does not mind such rows; the accuracy of audio_aqa does.
    with pytest.raises(TaskDataError):
        row = rows_of(source, tmp_path, FORMS["list"], **{GOLD_OF_SOURCES[source]: stored})[0]
        score(OPTION_LISTS[source][3][0], answered("A"), row)


@pytest.mark.parametrize("stored", ["left", " LEFT. ", "A", "(a)", "A. left", ["A"], {"answer": "left"}])
@pytest.mark.parametrize("source", [source for source in GOLD_OF_SOURCES if source != "audio_aqa/avqa"])  # a position
def test_a_gold_may_be_the_letter_or_the_text_of_an_option(source, stored, tmp_path):
    """Every reward that reads it pays the option that the file means, in whatever order it is shown."""
    try:
        row = rows_of(source, tmp_path, FORMS["list"], **{GOLD_OF_SOURCES[source]: stored})[0]
    except TaskDataError as error:
        assert source in ("vital/rextime", "vital/video_mme") and stored not in ("A", ["A"]), error  # letters alone
        return
    for reward in OPTION_LISTS[source][3]:
        right, wrong = (score(reward, answered(text), row) for text in ("left", "right"))
        assert right > wrong == 0.0, reward


# Full-width and other marks

CHOICES = ("audio_aqa/accuracy", "uav_vqa/accuracy", "viewpoint/accuracy", "vital/multiple_choice", "vital/task")
CHOICE_ROW = {
    **{"solution": "dog", "choices": ["cat", "dog"], "options": ["cat", "dog"]},
    **{"answer": "dog", "question_type": "transportation", "ground_truth": "B", "task": "multiple_choice"},
}


@pytest.mark.parametrize(
    "said",
    [
        *("B", "B.", "B。", "【B】", "（B）", "Ｂ", "Ｂ．", "「B」", "“B”", "B、", "dog。", "【dog】", "ｄｏｇ"),
        *(
            "B!",
            "B！",
            "{B}",
            "B；",
            "B. dog",
            "B.dog",
            "B．dog",
            "B：dog",
            "（B）dog",
            "【B】dog",
            "B、dog",
            "[B] dog",
        ),
    ],
)
@pytest.mark.parametrize("reward", CHOICES)
def test_marks_around_a_choice_do_not_matter(reward, said):
    assert score(reward, answered(said), CHOICE_ROW) == 1.0
    wrong = said.replace("B", "A").replace("Ｂ", "Ａ").replace("dog", "cat").replace("ｄｏｇ", "ｃａｔ")
    assert score(reward, answered(wrong), CHOICE_ROW) == 0.0


@pytest.mark.parametrize("said", ["4", "4.", "4。", "４", "４．", "【4】", "（４）", "٤"])
@pytest.mark.parametrize("reward", ["uav_vqa/accuracy", "vital/numerical", "vital/regression"])
def test_marks_around_a_number_do_not_matter(reward, said):
    row = {"answer": "4", "question_type": "number", "ground_truth": 4}
    assert score(reward, answered(said), row) == 1.0
    assert score(reward, answered(said), {**row, "answer": "40", "ground_truth": 40}) < 1.0


# Pictures and their annotations

STORED = (400, 300)  # width and height in pixels of the file
LYING = (40, 60, 120, 90)  # x1, y1, x2, y2 in the stored pixels
UPRIGHT = (300 - 90, 40, 300 - 60, 120)  # the same after a quarter turn to the right, in 300 x 400
SHARES = [UPRIGHT[0] / 300, UPRIGHT[1] / 400, UPRIGHT[2] / 300, UPRIGHT[3] / 400]


def coco_row(folder, size, box):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]},
        ],
    }
    (folder / "a.json").write_text(json.dumps(content))
    row = load("source", "visual_rft/coco")("train", annotations=str(folder / "a.json"), images=str(folder))[0]
    return [value / side for value, side in zip(row["boxes_px"][0], [row["width"], row["height"]] * 2, strict=True)]


def lisa_row(folder, size, box):
    x1, y1, x2, y2 = box
    declared = {} if size is None else {"imageWidth": size[0], "imageHeight": size[1]}
    shape = {"label": "target", "points": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]}
    (folder / "a.json").write_text(json.dumps({"text": ["the cat"], "shapes": [shape], **declared}))
    row = load("source", "visual_rft/lisa")("train", path=str(folder))[0]
    return [value / side for value, side in zip(row["boxes_px"][0], [row["width"], row["height"]] * 2, strict=True)]


def screen_row(source, **options):
    def make(folder, size, box):
        x1, y1, x2, y2 = box
        declared = {} if size is None else {"img_size": list(size)}
        record = {"image": "a.jpg", "instruction": "x", "task": "x", "bbox": list(box), "gt_bbox": list(box)}
        record |= {"gt_action": "click", "action": "click", "ui_type": "icon"}
        record |= {"gt": {"action": "click", "x": (x1 + x2) / 2, "y": (y1 + y2) / 2}}
        path = write(folder / "train.jsonl", [record | declared])
        return load("source", source)("train", path=path, **options)[0]["gt_bbox"]

    return make


BOXES = {
    "visual_rft/coco": coco_row,
    "visual_rft/lisa": lisa_row,
    "gui/gui_r1": screen_row("gui/gui_r1", boxes="xyxy_px"),
    "gui/ui_r1": screen_row("gui/ui_r1"),
    "gui/screenspot": screen_row("gui/screenspot"),
    "gui/androidcontrol": screen_row("gui/androidcontrol"),
}
NO_BOXES = OWN_ROWS | {
    *("visual_rft/published",),  # in thousandths and without a size, see below
    *("audio_aqa/avqa", "audio_aqa/mmau", "find/prompts", "text_reasoning/problems"),
    *("uav_vqa/hrvqa", "uav_vqa/hrvqa_vl", "viewpoint/published", "viewpoint/sat", "viewpoint/benchmark"),
    *(name for name in IDS["source"] if name.startswith("vital/")),
}


def save(folder, orientation=1, size=STORED):
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", size, "blue").save(folder / "a.jpg", exif=exif)


def expected(source):
    """The box, or of a source of points its centre, in shares of the sides of the upright picture."""
    x1, y1, x2, y2 = SHARES
    return [(x1 + x2) / 2, (y1 + y2) / 2] if source == "gui/androidcontrol" else SHARES


def test_every_source_is_known_to_have_boxes_or_none():
    assert set(IDS["source"]) == set(BOXES) | NO_BOXES


@pytest.mark.parametrize("source", BOXES)
def test_boxes_of_a_picture_that_is_stored_lying_are_turned_with_it(source, tmp_path):
    save(tmp_path, orientation=6)
    assert BOXES[source](tmp_path, STORED, LYING) == pytest.approx(expected(source))
    assert BOXES[source](tmp_path, STORED[::-1], UPRIGHT) == pytest.approx(expected(source))


@pytest.mark.parametrize("source", BOXES)
def test_a_picture_of_another_shape_than_its_annotation_breaks_the_row(source, tmp_path):
    for size in ((300, 300), (300, 400)):  # cropped, and turned without a tag
        save(tmp_path, size=size)
        with pytest.raises(TaskDataError, match="the file holds one of"):
            BOXES[source](tmp_path, STORED, LYING)


@pytest.mark.parametrize("source", BOXES)
def test_boxes_of_a_picture_that_was_made_smaller_as_a_whole_keep_their_shares(source, tmp_path):
    save(tmp_path, size=(150, 200))
    assert BOXES[source](tmp_path, (300, 400), UPRIGHT) == pytest.approx(expected(source))


@pytest.mark.parametrize("source", [source for source in BOXES if source != "visual_rft/coco"])  # which always says it
def test_where_nothing_tells_the_frame_a_turned_picture_breaks_its_row(source, tmp_path):
    save(tmp_path, orientation=6)
    with pytest.raises(TaskDataError, match=r"EXIF orientation 6.*Save it upright"):
        BOXES[source](tmp_path, None, LYING)


@pytest.mark.parametrize("solution", ["<answer>(1,2),(30,40)</answer>", [[1, 2, 30, 40]]])
def test_boxes_in_thousandths_of_a_turned_picture_break_their_row(solution, tmp_path):
    path = write(tmp_path / "train.jsonl", [{"image": "a.jpg", "problem": "?", "solution": solution}])
    rows = load("source", "visual_rft/published")("train", path=path)
    save(tmp_path, orientation=6)
    with pytest.raises(TaskDataError, match="EXIF orientation 6"):
        rows[0]
    save(tmp_path)
    assert score("visual_rft/grounding_iou", "<answer>(1,2),(30,40)</answer>", rows[0]) == 1.0

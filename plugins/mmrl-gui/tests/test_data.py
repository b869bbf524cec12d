"""Sources read files of the published schemas, and make every row mean the same to prompts, rewards and metrics."""

import io
import json

import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from mmrl_core.errors import TaskDataError
from mmrl_core.media import BoxConvention
from mmrl_gui import rewards
from mmrl_gui.data import androidcontrol, gui_r1, screenspot, ui_r1
from mmrl_gui.metrics import grounding, steps
from mmrl_gui.prompts import gui_r1_prompt, ui_r1_prompt

LIMITS = {"min_pixels": 3136, "max_pixels": 28 * 28 * 200}
HIGH = {"instruction": "book a room", "history": "None", "task_type": "high", "gt_bbox": [-0.1, -0.1]}


def png(width=1000, height=500, **options):
    file = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(file, format="PNG", **options)
    return file.getvalue()


def write_parquet(path, rows):
    from datasets import Dataset

    Dataset.from_list([{"image": {"bytes": png(), "path": "a.png"}, **row} for row in rows]).to_parquet(str(path))
    return str(path)


def write_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("mobile_1.png", "pc_1.png", "web_1.png", "image1.png"):
        (folder / name).write_bytes(png(2000, 1000))
    return str(folder)


def gold_score(reward, row, thinking="<think>x</think>", **options):
    return reward([thinking + row["answer"]], [row], **options)[0]


GUI_R1_ROWS = [
    HIGH | {"gt_action": "scroll", "gt_input_text": "UP"},
    HIGH | {"gt_action": "complete", "gt_input_text": "no input text", "history": "step 1: click"},
    HIGH | {"gt_action": "type", "gt_input_text": "it's here"},
    HIGH
    | {"gt_action": "click", "gt_bbox": [0.1, 0.2, 0.3, 0.4], "gt_input_text": "no input text", "task_type": "low"},
    HIGH | {"gt_action": "click", "gt_bbox": [0.5, 0.5], "gt_input_text": "no input text"},
]


def test_the_published_schema_of_gui_r1(tmp_path):
    rows = gui_r1("train", path=write_parquet(tmp_path / "train.parquet", GUI_R1_ROWS), **LIMITS)
    scroll, complete, typed, low, point = rows
    assert scroll["answer"] == "<answer>[{'action': 'scroll', 'point': [-100, -100], 'input_text': 'up'}]</answer>"
    assert "'step 1: click'" in complete["problem"]
    assert "close/delete" in scroll["problem"]
    assert "close/delete" not in low["problem"]
    height, width = smart_resize(500, 1000, min_pixels=3136, max_pixels=28 * 28 * 200)
    assert (low["resized_width_px"], low["resized_height_px"]) == (width, height) == (560, 280)
    assert low["gt_bbox"] == [0.1, 0.2, 0.3, 0.4]
    # the centre 0.2, 0.3 of 560 x 280
    assert low["answer"] == "<answer>[{'action': 'click', 'point': [112, 84], 'input_text': 'no input text'}]</answer>"
    assert point["gt_bbox"] == [0.5, 0.5]
    for row in rows:
        assert gold_score(rewards.gui_r1, row) == 1.0
    assert gold_score(rewards.gui_r1_accuracy, typed) == 1.0


@pytest.mark.parametrize("convention", list(BoxConvention))
def test_gold_answers_are_right_in_every_convention_and_form(tmp_path, convention):
    path = write_parquet(tmp_path / "train.parquet", GUI_R1_ROWS)
    for form in ("gui_r1", "ui_r1"):
        rows = gui_r1("train", path=path, form=form, only=["click"], completion_convention=convention, **LIMITS)
        assert len(rows) == 2
        box = rows[0]
        options = {"completion_convention": convention}
        assert gold_score(rewards.gui_r1_accuracy, box, **options) == 1.0
        assert gold_score(rewards.ui_r1_coord, box, **options) == 1.0
        assert grounding([box["answer"]], [box], **options)["accuracy"] == 1.0


def test_the_target_of_ui_r1_lies_in_pixels_of_the_original(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", GUI_R1_ROWS)
    row = gui_r1("train", path=path, form="ui_r1", only=["click"], **LIMITS)[0]
    assert row["solution"] == "<answer>[{'action': 'click', 'coordinate': [100.0, 100.0, 300.0, 200.0]}]</answer>"
    assert row["scale"] == [1000 / 560, 500 / 280]
    assert row["answer"] == "<answer>[{'action': 'click', 'coordinate': [112, 84]}]</answer>"


def test_clicks_on_points_are_left_out_if_asked_for(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", GUI_R1_ROWS)
    rows = gui_r1("train", path=path, form="ui_r1", only=["click"], only_boxes=True)
    assert [row["gt_bbox"] for row in rows] == [[0.1, 0.2, 0.3, 0.4]]


def test_test_files_hold_pixels_of_the_original(tmp_path):
    row = HIGH | {"gt_action": "long_press", "gt_bbox": [100.0, 100.0, 300.0, 200.0], "gt_input_text": ""}
    path = write_parquet(tmp_path / "omniact_web_test.parquet", [row | {"group": "web", "ui_type": "icon"}])
    read = gui_r1("test", path=path, boxes="xyxy_px", actions="androidcontrol", **LIMITS)[0]
    assert read["gt_bbox"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert (read["group"], read["ui_type"]) == ("web", "icon")
    with pytest.raises(TaskDataError, match="outside of the picture"):
        gui_r1("test", path=path, **LIMITS)[0]


def test_a_click_without_position_breaks_only_its_row(tmp_path):
    rows = [HIGH | {"gt_action": "click", "gt_input_text": ""}, GUI_R1_ROWS[3] | {"gt_input_text": ""}]
    read = gui_r1("train", path=write_parquet(tmp_path / "train.parquet", rows))
    with pytest.raises(TaskDataError, match="row 0: the action 'click' needs a box or point"):
        read[0]
    assert read[1]["action"] == "click"


def test_the_published_schema_of_ui_r1(tmp_path, images):
    rows = [
        {"img_filename": "image1.png", "bbox": [825, 72, 1673, 149], "instruction": "search bar"},
        {"img_filename": "image1.png", "action": "navigate_back", "instruction": "go back"},
    ]
    click, back = ui_r1("train", path=write_json(tmp_path / "train.json", rows), images=images)
    assert click["solution"] == "<answer>[{'action': 'click', 'coordinate': [825.0, 72.0, 1673.0, 149.0]}]</answer>"
    assert (click["width"], click["height"]) == (2000, 1000)
    assert "'search bar'" in click["problem"]
    assert back["answer"] == "<answer>[{'action': 'navigate_back'}]</answer>"
    for row in (click, back):
        for reward in (rewards.ui_r1_action, rewards.ui_r1_coord, rewards.ui_r1_format):
            assert gold_score(reward, row) == 1.0
    assert len(ui_r1("train", path=str(tmp_path / "train.json"), images=images, only=["click"])) == 1


def test_screenspot_tells_platform_and_type(tmp_path, images):
    rows = [
        {
            "img_filename": f"{name}_1.png",
            "bbox": [100, 200, 50, 20],
            "instruction": "ok",
            "data_type": "icon",
            "data_source": "shop",
        }
        for name in ("mobile", "pc", "web")
    ]
    read = list(screenspot("train", path=write_json(tmp_path / "screenspot_all.json", rows), images=images))
    assert [row["platform"] for row in read] == ["mobile", "desktop", "web"]
    assert read[0]["gt_bbox"] == pytest.approx([0.05, 0.2, 0.075, 0.22])
    assert read[0]["ui_type"] == "icon"
    pro = [{"img_filename": "image1.png", "bbox": [100, 200, 150, 220], "instruction": "ok", "ui_type": "text",
            "group": "CAD", "platform": "windows", "application": "autocad"}]  # fmt: skip
    row = screenspot("train", path=write_json(tmp_path / "pro" / "cad.json", pro), images=images)[0]
    assert row["gt_bbox"] == pytest.approx([0.05, 0.2, 0.075, 0.22])
    assert (row["group"], row["platform"], row["ui_type"]) == ("CAD", "windows", "text")


def test_screenspot_on_the_hub_holds_shares_and_names_its_source(tmp_path):
    row = {"file_name": "x.png", "bbox": [0.1, 0.2, 0.3, 0.4], "instruction": "ok", "data_type": "text"}
    path = write_parquet(tmp_path / "test.parquet", [row | {"data_source": "ios"}, row | {"data_source": "gitlab"}])
    ios, gitlab = screenspot("test", path=path)
    assert (ios["platform"], gitlab["platform"]) == ("mobile", "web")
    assert ios["gt_bbox"] == [0.1, 0.2, 0.3, 0.4]


def test_android_control_as_shipped(tmp_path, images):
    rows = [
        {"image": "image1.png", "task": "open it", "gt": {"action": "click", "x": 500, "y": 250}},
        {"image": "image1.png", "task": "go down", "gt": {"action": "scroll", "direction": "down"}},
        {"image": "image1.png", "task": "clock", "gt": {"action": "open_app", "app_name": "Clock"}},
        {"image": "image1.png", "task": "write", "gt": {"action": "input_text", "text": "hello"}},
    ]
    click, scroll, app, text = androidcontrol("test", path=write_json(tmp_path / "ac_test.json", rows), images=images)
    assert click["gt_bbox"] == [0.25, 0.25]
    assert [row["input_text"] for row in (scroll, app, text)] == ["down", "Clock", "hello"]
    assert text["answer"] == "<answer>[{'action': 'type', 'point': [-100, -100], 'input_text': 'hello'}]</answer>"
    rows = [click, scroll, app, text]
    assert [gold_score(rewards.gui_r1, row) for row in rows] == [1.0] * 4
    assert steps([row["answer"] for row in rows], rows)["step_success"] == 1.0
    assert len(androidcontrol("test", path=str(tmp_path / "ac_test.json"), images=images, only=["scroll", "type"])) == 2


def test_rows_of_another_schema_and_unknown_options_are_refused(tmp_path):
    path = write_json(tmp_path / "train.json", [{"question": "?", "image": "a.png"}])
    with pytest.raises(TaskDataError, match=r"not in the schema.*Columns here: question, image"):
        gui_r1("train", path=path)[0]
    for options in ({"form": "r1"}, {"actions": "ios"}, {"completion_convention": "px"}):
        with pytest.raises(TaskDataError):
            gui_r1("train", path=path, **options)
    with pytest.raises(TaskDataError, match="no such folder"):
        ui_r1("train", path=path, images=str(tmp_path / "none"))


def test_an_image_may_not_leave_its_folder_and_a_broken_one_breaks_its_row(tmp_path, images):
    rows = [{"img_filename": name, "bbox": [1, 2, 3, 4], "instruction": "x"} for name in ("../a.png", "none.png")]
    read = ui_r1("train", path=write_json(tmp_path / "train.json", rows), images=images)
    with pytest.raises(TaskDataError, match="leads out of"):
        read[0]
    with pytest.raises(TaskDataError, match=r"none\.png"):
        read[1]


def test_prompts_name_history_actions_and_units():
    text = gui_r1_prompt("book", actions=["click", "scroll"], history="clicked", convention="per_mille")
    for part in ("'book'", "'clicked'", "click, scroll", "0 to 1000", "<think>", "up, down, left, right"):
        assert part in text
    assert "whole pixels" in gui_r1_prompt("book", actions=["click"])
    assert "<think>" not in ui_r1_prompt("book", actions=["click"], thinking=False)
    assert "'coordinate'" in ui_r1_prompt("book", actions=["click"])

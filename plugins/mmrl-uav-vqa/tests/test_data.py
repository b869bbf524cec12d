"""Data sources on files of the published schemas, written here."""

import json

import pytest

from mmrl_core.errors import TaskDataError
from mmrl_uav_vqa.data import hrvqa, hrvqa_vl


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(number, task="color", answer="red", **more):
    return {"image": f"tile_{number // 4:05d}.png", "question": "What is it?", "answer": answer, "task": task, **more}


def test_a_row_gets_our_column_names_and_type(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [
            {
                "image": "tile_00042.png",
                "question": "How many vehicles?",
                "answer": 4,
                "task": "count",
                "think": " two rows ",
            }
        ],
    )
    (read,) = hrvqa_vl("train", path=path)
    assert read["image"] == "tile_00042.png"
    assert (read["answer"], read["question_type"], read["reasoning"]) == ("4", "number", "two rows")
    assert (read["options"], read["unit"], read["problem"]) == ([], "", "How many vehicles?")


def test_choices_and_unit_are_shown_in_the_problem(tmp_path):
    rows = [row(0, options=["red", "blue"]), row(1, task="area", answer="12", unit="m2")]
    choice, area = hrvqa_vl("train", path=write_jsonl(tmp_path / "a.jsonl", rows))
    assert choice["problem"] == "What is it?\nChoices: red; blue."
    assert area["problem"] == "What is it?\nUnit: m2."


def test_without_a_type_the_answer_decides(tmp_path):
    answers = {"yes": "yes_no", "4": "number", "12 m2": "area", "top left": "location", "red": "other"}
    rows = [{"image": "a.png", "question": "?", "answer": answer} for answer in answers]
    read = hrvqa_vl("train", path=write_jsonl(tmp_path / "a.jsonl", rows))
    assert [one["question_type"] for one in read] == list(answers.values())


def test_other_column_names_and_tagged_answers(tmp_path):
    rows = [{"img": "a.png", "problem": "?", "solution": "<answer> red </answer>", "kind": "Colour"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    (read,) = hrvqa_vl("train", path=path, columns={"image": "img", "question_type": "kind"})
    assert (read["image"], read["answer"], read["question_type"]) == ("a.png", "red", "color")
    with pytest.raises(TaskDataError, match="unknown name 'picture'"):
        hrvqa_vl("train", path=path, columns={"picture": "img"})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"image": None}, "has no image"),
        ({"question": ""}, "has no question"),
        ({"answer": None}, "has no answer"),
        ({"answer": "  "}, "blank"),
        ({"answer": "<answer>1</answer><answer>2</answer>"}, "blank"),
        ({"task": "colr"}, "Did you mean 'color'"),
    ],
)
def test_a_broken_row_says_where_and_what_and_leaves_the_others(tmp_path, broken, message):
    rows = hrvqa_vl("train", path=write_jsonl(tmp_path / "a.jsonl", [row(0), row(1) | broken]))
    assert rows[0]["answer"] == "red"
    with pytest.raises(TaskDataError, match=message) as caught:
        rows[1]
    assert "a.jsonl:2" in str(caught.value)


def test_reasoning_is_needed_only_if_asked(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [row(0)])
    assert hrvqa_vl("train", path=path)[0]["reasoning"] == ""
    with pytest.raises(TaskDataError, match="no reasoning"):
        hrvqa_vl("train", path=path, need_reasoning=True)[0]


def test_a_stage_keeps_its_types_and_a_share_of_earlier_ones(tmp_path):
    rows = [row(index, task="color" if index < 60 else "number", answer=str(index)) for index in range(78)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    only = hrvqa_vl("train", path=path, question_types=["count"])
    assert [one["answer"] for one in only] == [str(index) for index in range(60, 78)]
    mixed = hrvqa_vl("train", path=path, question_types=["number"], replay_types=["color"], replay_share=0.1)
    types = [one["question_type"] for one in mixed]
    assert (types.count("number"), types.count("color")) == (18, 2)  # 2 of 20
    again = hrvqa_vl("train", path=path, question_types=["number"], replay_types=["color"], replay_share=0.1)
    assert list(mixed) == list(again)


def test_a_broken_row_stays_where_types_are_chosen_so_that_it_is_reported(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [row(0), row(1, task="number"), row(2) | {"answer": ""}])
    rows = hrvqa_vl("train", path=path, question_types=["color"])
    assert len(rows) == 2
    with pytest.raises(TaskDataError, match=r"a\.jsonl:3"):
        rows[1]


def test_parts_share_no_image_and_are_everything(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [row(index, answer=str(index)) for index in range(400)])
    train = list(hrvqa_vl("train", path=path, part="train", held_out_share=0.25))
    held_out = list(hrvqa_vl("train", path=path, part="held_out", held_out_share=0.25))
    assert not {one["image"] for one in train} & {one["image"] for one in held_out}
    assert sorted(int(one["answer"]) for one in train + held_out) == list(range(400))
    assert 10 <= len({one["image"] for one in held_out}) <= 40  # about 25 of 100 images; sd 4.3


def test_frequent_answers_are_cut(tmp_path):
    rows = [row(index, task="number", answer="0") for index in range(9)] + [row(9, task="number", answer="7")]
    read = hrvqa_vl("train", path=write_jsonl(tmp_path / "a.jsonl", rows), max_per_answer=2)
    assert [one["answer"] for one in read] == ["0", "0", "7"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question_types": ["weather"]}, "'weather' is unknown"),
        ({"question_types": ["scene"]}, "no row is left"),
        ({"replay_share": 1.0}, "below 1"),
        ({"part": "test"}, "none of all, train, held_out"),
    ],
)
def test_a_wrong_choice_is_refused(tmp_path, options, message):
    path = write_jsonl(tmp_path / "a.jsonl", [row(0)])
    with pytest.raises(TaskDataError, match=message):
        hrvqa_vl("train", path=path, **options)


@pytest.fixture
def published(tmp_path):
    """HRVQA's files: questions in order, answers in another."""
    questions = [
        {"question_id": 1, "image_id": 7, "question": "How large is the roof?", "question_type": "Areas"},
        {"question_id": 2, "image_id": 7, "question": "Is there a pool?", "question_type": "Y/N"},
        {"question_id": 3, "image_id": 8, "question": "Where is it?", "question_type": "Locat."},
    ]
    annotations = [
        {"question_id": 2, "multiple_choice_answer": "no"},
        {"question_id": 1, "multiple_choice_answer": "37.5m2"},
    ]
    (tmp_path / "val_question.json").write_text(json.dumps({"info": "x", "questions": questions}))
    (tmp_path / "val_answer.json").write_text(json.dumps({"annotations": annotations, "data": []}))
    return tmp_path


def test_questions_meet_their_answers_and_images(published):
    rows = hrvqa("val", path=str(published), images="png/{split}_{image_id}.png")
    assert [rows[index]["answer"] for index in (0, 1)] == ["37.5m2", "no"]
    assert [rows[index]["question_type"] for index in (0, 1)] == ["area", "yes_no"]
    assert rows[0]["image"] == "png/val_7.png"
    assert rows.media_root == published
    with pytest.raises(TaskDataError, match="no answer to question_id 3"):
        rows[2]


def test_a_range_of_the_published_questions(published):
    assert [one["answer"] for one in hrvqa("val[1:2]", path=str(published))] == ["no"]


def test_a_wrong_image_template_names_what_there_is(published):
    with pytest.raises(TaskDataError, match="image_id"):
        hrvqa("val", path=str(published), images="{name}.png")[0]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TaskDataError, match=r"train_question\.json"):
        hrvqa("train", path=str(tmp_path))

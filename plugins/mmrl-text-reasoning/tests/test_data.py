"""Problems from records of many forms. Published forms are in tests/integration/test_published_replicas.py."""

import json

import pytest

from mmrl_core.errors import TaskDataError
from mmrl_text_reasoning.data import problems
from mmrl_text_reasoning.metrics import accuracy
from mmrl_text_reasoning.rewards import format


def rows_of(tmp_path, *records, **options):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return problems("train", path=str(path), **options)


@pytest.mark.parametrize("form", ["boxed", "tags", "open_rs"])
def test_one_option_sets_prompt_gold_and_format(form, tmp_path):
    row = rows_of(tmp_path, {"question": " 6 * 7? ", "answer": 42, "level": "easy"}, form=form)[0]
    assert row["question"] == "6 * 7?" and row["problem"].startswith("6 * 7?\n") and row["level"] == "easy"
    assert row["answer"] == "42" and format([row["demonstration"]], [row]) == [1.0]
    assert accuracy([row["demonstration"]], [row])["accuracy/level/easy"] == 1.0


def test_columns_and_instruction_can_be_named(tmp_path):
    record = {"task_text": "6 * 7?", "result": "42"}
    row = rows_of(tmp_path, record, columns={"question": "task_text", "answer": "result"}, instruction="")[0]
    assert row["problem"] == "6 * 7?" and row["answer"] == "42"
    with pytest.raises(TaskDataError, match=r"train.jsonl:1 has no question; looked for: problem, question"):
        rows_of(tmp_path, record)[0]
    with pytest.raises(TaskDataError, match="unknown name 'gold'"):
        rows_of(tmp_path, record, columns={"gold": "result"})
    with pytest.raises(TaskDataError, match="form is one of"):
        rows_of(tmp_path, record, form="xml")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "Why?"}, "no gold answer; looked for: answer, final_answer"),
        ({"question": "Why?", "answer": {"a": 1, "b": 2}}, "the gold has to be"),
        ({"question": "Why?", "answer": "}1{"}, "cannot be written in a box"),
        ({"question": "Why?", "solution": "One sees that it depends on many things. " * 10}, "the gold has to be"),
        ({"question": 3, "answer": "1"}, "no question"),
    ],
)
def test_a_record_that_does_not_fit_breaks_its_row(record, message, tmp_path):
    rows = rows_of(tmp_path, {"question": "6 * 7?", "answer": "42"}, record)
    assert rows[0]["answer"] == "42"
    with pytest.raises(TaskDataError, match=message):
        rows[1]


def test_thinking_in_a_solution_does_not_break_the_form(tmp_path):
    record = {
        "question": "6 * 7?",
        "solution": "<think>hm</think> so <answer>42</answer> or \\boxed{42}",
        "answer": "42",
    }
    for form in ("boxed", "tags", "open_rs"):
        row = rows_of(tmp_path, record, form=form)[0]
        assert format([row["demonstration"]], [row]) == [1.0]


def test_rows_without_a_gold_that_can_be_read_are_counted():
    numbers = accuracy(["1", "2", "3"], [{"answer": "1"}, {}, {"answer": ["1", "2"]}])
    assert numbers["accuracy"] == 1.0 and numbers["num_unscored"] == 2.0

"""The source of prompts."""

import doctest
import json

import pytest

from mmrl_core.errors import TaskDataError
from mmrl_find import data
from mmrl_find.data import BUILT_IN, prompts


def texts(rows):
    return [row["prompt"] for row in rows]


def test_docstring_examples():
    results = doctest.testmod(data)
    assert results.attempted >= 1 and results.failed == 0


def test_repeats_go_through_all_prompts_before_the_next_round():
    rows = prompts("train", prompts=["a cat", "a dog"], repeat=2)
    assert list(rows) == [
        {"prompt": "a cat", "category": None, "repeat": 0},
        {"prompt": "a dog", "category": None, "repeat": 0},
        {"prompt": "a cat", "category": None, "repeat": 1},
        {"prompt": "a dog", "category": None, "repeat": 1},
    ]
    assert rows.where(3) == "prompts[1]"


def test_a_range_takes_part_of_the_rows():
    options = {"prompts": ["a", "b", "c"], "repeat": 2}
    assert texts(prompts("train[1:4]", **options)) == ["b", "c", "a"]
    assert texts(prompts("train[50%:]", **options)) == ["a", "b", "c"]


def test_built_in_lists():
    # Four prompts each in the specification's comparison of images and of videos; eight for each of four skills.
    assert texts(prompts("train", prompts="comparison")) == [
        "A green dog is running on the grass",
        "A dog and a cat",
        "Four pandas",
        "A dog on the moon",
    ]
    assert [row["category"] for row in prompts("train", prompts="video")] == [
        "colour",
        "location",
        "direction",
        "behaviour",
    ]
    categories = [row["category"] for row in prompts("train", prompts="skills")]
    assert categories == ["colour"] * 8 + ["count"] * 8 + ["position"] * 8 + ["text"] * 8
    for records in BUILT_IN.values():
        assert len({prompt for _, prompt in records}) == len(records)


def test_text_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffein roter Würfel\r\n\r\n  four pandas \n".encode())
    rows = prompts("train", prompts=str(file))
    assert texts(rows) == ["ein roter Würfel", "four pandas"]
    assert rows.where(1) == f"{file}:3"
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(TaskDataError, match=r"prompts.txt: cannot be read as UTF-8"):
        prompts("train", prompts=str(file))


def test_files_with_columns(tmp_path):
    records = [{"prompt": "a red cube", "category": "colour", "colour": "red"}, {"prompt": "two cats"}]
    lines = tmp_path / "train.jsonl"
    lines.write_text("\n".join(map(json.dumps, records)))
    assert list(prompts("train", prompts=str(lines), repeat=2))[2:] == [
        {"prompt": "a red cube", "category": "colour", "colour": "red", "repeat": 1},
        {"prompt": "two cats", "category": None, "repeat": 1},
    ]
    table = tmp_path / "prompts_val.csv"
    table.write_text('caption,category\n"a cat, a dog",composition\n')
    (row,) = prompts("val", prompts=str(table), column="caption")
    assert (row["prompt"], row["category"], row["repeat"]) == ("a cat, a dog", "composition", 0)
    with pytest.raises(TaskDataError, match=r"prompts_val.csv:2: no column 'prompt', only caption, category"):
        prompts("val", prompts=str(table))
    with pytest.raises(TaskDataError, match="split 'test' is not part of its name"):
        prompts("test", prompts=str(table))


def test_broken_lines_are_named(tmp_path):
    lines = tmp_path / "train.jsonl"
    lines.write_text('{"prompt": "a cat"}\n{"prompt": 3}\n')
    with pytest.raises(TaskDataError, match=r"train.jsonl:2: 3 is no prompt"):
        prompts("train", prompts=str(lines))
    lines.write_text('{"prompt": "a cat"}\n{"prompt"\n')
    with pytest.raises(TaskDataError, match=r"train.jsonl:2: broken JSON"):
        prompts("train", prompts=str(lines))


@pytest.mark.parametrize("wrong", ["", "  ", None, 5, ["a"]])
def test_items_that_are_no_text_are_named(wrong):
    with pytest.raises(TaskDataError, match=r"prompts\[1\]: .* is no prompt"):
        prompts("train", prompts=["a cat", wrong])


@pytest.mark.parametrize("repeat", [0, -1, 1.5, "2", True])
def test_repeat_is_a_positive_number(repeat):
    with pytest.raises(TaskDataError, match=r"repeat is .* 1 or more"):
        prompts("train", prompts=["a cat"], repeat=repeat)


def test_missing_lists_and_splits_are_named(tmp_path):
    with pytest.raises(TaskDataError, match=r"'comparision' is neither .* Did you mean 'comparison'\?"):
        prompts("train", prompts="comparision")
    with pytest.raises(
        TaskDataError, match=r"neither a built-in list nor a file\. Built-in lists: comparison, ablation"
    ):
        prompts("train", prompts=str(tmp_path / "none.txt"))
    for listed in ("comparison", ["a cat"]):
        with pytest.raises(TaskDataError, match="a list has no split 'test'; write train"):
            prompts("test", prompts=listed)
    (tmp_path / "empty.txt").write_text("\n\n")
    for empty in ([], str(tmp_path / "empty.txt")):
        with pytest.raises(TaskDataError, match="holds none"):
            prompts("train", prompts=empty)

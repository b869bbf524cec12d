"""Procedural sets of reasoning-gym: seeded, by difficulty, scored by their own scorers without executing anything."""

import pytest

from mmrl_core.errors import TaskDataError
from mmrl_text_reasoning.data import gym
from mmrl_text_reasoning.metrics import accuracy
from mmrl_text_reasoning.rewards import gym as score


def answered(text):
    return f"<think>x</think><answer>{text}</answer>"


def test_rows_are_the_same_every_time_and_differ_between_splits_and_seeds():
    def questions(split="train", **options):
        return [row["question"] for row in gym(split, puzzle="countdown", num_rows=4, **options)]

    assert questions() == questions() != questions(seed=1)
    assert not set(questions()) & set(questions("held_out"))
    assert questions("train[2:]") == questions()[2:]


def test_difficulty_is_the_sets_own_and_config_goes_over_it():
    def numbers(**options):
        row = gym("train", puzzle="countdown", num_rows=1, **options)[0]
        return len([word for word in row["question"].replace(",", " ").split() if word.isdigit()])

    assert numbers(difficulty=0) < numbers(difficulty=3)
    assert numbers(difficulty=0, config={"min_numbers": 8, "max_numbers": 8}) > numbers(difficulty=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"puzzle": "countdwn"}, "Did you mean 'countdown'"),
        ({"puzzle": "codeio"}, "runs generated programs"),
        ({"puzzle": "countdown", "difficulty": 9}, "levels 0 to 4"),
        ({"puzzle": "countdown", "config": {"min_numbers": 0}}, "does not take these options"),
        ({"puzzle": "countdown", "config": {"colour": 1}}, "does not take these options"),
        ({"puzzle": "countdown", "form": "xml"}, "form is one of"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(TaskDataError, match=message):
        gym("train", **options)


def test_many_answers_may_be_right_and_code_is_not_executed(tmp_path):
    row = gym("train", puzzle="countdown", num_rows=1, config={"min_numbers": 2, "max_numbers": 2, "operators": ["+"]})[
        0
    ]
    first, _, second = row["answer"].partition("+")
    written = tmp_path / "written"
    code = [
        f"__import__('os').system('touch {written}')",
        f"open('{written}', 'w')",
        "().__class__",
        "9**9**9**9",
        "1" * 50_000,
    ]
    said = [row["answer"], f"{second} + {first}", f"{first} - {second}", *code]
    scores = score([answered(text) for text in said], [row] * len(said), answer_s=2.0)
    assert scores[:2] == [1.0, 1.0] and scores[2] < 0.1 and max(scores[3:]) < 0.1
    assert not written.exists()
    assert score(["42"], [{}]) == [None]


@pytest.mark.parametrize("puzzle", ["spell_backward", "string_insertion", "arc_agi", "simple_integration"])
def test_gold_scores_1(puzzle):
    rows = list(gym("train", puzzle=puzzle, num_rows=2, form="tags"))
    golds = [row["demonstration"] for row in rows]
    assert score(golds, rows) == [1.0, 1.0]
    assert accuracy(golds, rows, reward="gym")[f"accuracy/set/{puzzle}"] == 1.0


def test_lists_that_would_be_evaluated_are_plain():
    row = gym("train", puzzle="string_insertion", num_rows=1)[0]
    spelt = str(list(row["answer"]))
    # The set's own scorer gives a tenth for the right letters in a list.
    assert score([answered(spelt), answered("[open('x', 'w')]")], [row] * 2) == [0.1, 0.0]


def test_a_set_without_a_gold_gives_rows_to_score():
    row = gym("train", puzzle="graph_color", num_rows=1)[0]
    assert row["answer"] is row["demonstration"] is None and score([answered("{}")], [row])[0] < 1.0

"""MMAU's table."""

import json
import math

import pytest

from mmrl_audio_aqa.metrics import mmau
from mmrl_core.errors import TaskDataError


def row(task, difficulty, answer="dog", **columns):
    return {"choices": ["dog", "cat", "cow"], "answer": answer, "task": task, "difficulty": difficulty, **columns}


ROWS = [
    row("sound", "easy"),
    row("sound", "hard"),
    row("music", "easy"),
    row("speech", "hard"),
    row("speech", "hard", None),
]
COMPLETIONS = ["<answer>dog</answer>", "<answer>cat</answer>", "the dog", "<answer>A</answer>", "dog"]


def test_accuracy_over_all_rows_and_by_column():
    # Right by MMAU's rule: the first and the third; "A" holds no word of the answer. The last row is unscored.
    assert mmau(COMPLETIONS, ROWS) == {
        "accuracy": 2 / 4,
        "accuracy/task/sound": 1 / 2,
        "accuracy/task/music": 1.0,
        "accuracy/task/speech": 0.0,
        "accuracy/difficulty/easy": 1.0,
        "accuracy/difficulty/hard": 0.0,
        "option_accuracy": 2 / 4,  # the first and the fourth: a letter counts, text without tags does not
        "readable": 3 / 4,
        "num_unscored": 1.0,
    }


def test_any_column_can_be_asked_for():
    rows = [row("sound", "easy", **{"sub-category": "Acoustic"}), row("music", "easy")]
    numbers = mmau(["dog", "cat"], rows, by=["sub-category"])
    assert numbers["accuracy/sub-category/Acoustic"] == 1.0 and "accuracy/task/sound" not in numbers


def test_nothing_to_score_is_nan():
    numbers = mmau(["dog"], [row("sound", "easy", None)])
    assert math.isnan(numbers["accuracy"]) and numbers["num_unscored"] == 1.0


def test_predictions_are_written_for_the_benchmark(tmp_path):
    path = tmp_path / "new" / "predictions.json"
    mmau(COMPLETIONS, ROWS, predictions=str(path))
    written = json.loads(path.read_text())
    assert [one["model_output"] for one in written] == ["dog", "cat", "the dog", "A", "dog"]
    assert written[0]["task"] == "sound" and written[4]["answer"] is None
    mmau(COMPLETIONS, ROWS, predictions=str(path), prediction_key="model_prediction")
    assert "model_output" not in json.loads(path.read_text())[0]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(TaskDataError, match="predictions cannot be written"):
        mmau(COMPLETIONS, ROWS, predictions=str(tmp_path))

"""Records of the published schemas, written here, into rows and prompts."""

import json
import logging

import numpy as np
import pytest
import soundfile

from mmrl_audio_aqa.data import avqa, mmau
from mmrl_audio_aqa.rewards import accuracy, format
from mmrl_core.config import DataConfig, PromptConfig, SourceConfig
from mmrl_core.data import PromptSource
from mmrl_core.errors import TaskDataError
from mmrl_core.plugins import load_plugins

AVQA = {
    "id": 183,
    "video_name": "-HG3Omg_89c_000030",
    "video_id": 341,
    "question_text": "What happened in the video, or in other videos? Video",
    "multi_choice": ["motorboat", "Yacht consignment", "Sailboat set sail", "Consignment car"],
    "answer": 1,
    "question_relation": "View",
    "question_type": "Happening",
    "dataset_name": "AVQA",
    "audio_path": "wavs/one.wav",
}
MMAU = {
    "id": "3fe64f3d",
    "audio_id": "./wavs/one.wav",
    "question": "Which video game is heard?",
    "choices": ["Man's", "Woman", "Child", "Robot"],
    "answer": "Man's",
    "dataset": "Clotho",
    "task": "sound",
    "split": "test-mini",
    "category": "Reasoning",
    "sub-category": "Acoustic Source Inference",
    "difficulty": "hard",
}


@pytest.fixture
def folder(tmp_path):
    """A folder with a sound that rises from -0.5 to 0.5 within a second, 8000 samples on two equal channels."""
    (tmp_path / "wavs").mkdir()
    rising = np.arange(8000) / 8000 - 0.5
    soundfile.write(tmp_path / "wavs" / "one.wav", np.stack([rising, rising], 1), 8000, subtype="FLOAT")
    return tmp_path


@pytest.fixture
def write(folder):
    def lines(*records):
        path = folder / "records.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return lines


def test_an_avqa_record_becomes_a_row(folder, write):
    row = avqa("train", path=write(AVQA))[0]
    assert row["audio"] == str(folder / "wavs" / "one.wav")
    assert row["question"] == "What happened in the audio, or in other audios? Video"  # lower case only
    assert row["choices"] == AVQA["multi_choice"]
    assert row["answer"] == "Yacht consignment"
    assert row["solution"] == row["demonstration"] == "<answer>Yacht consignment</answer>"
    assert row["thinking"] is False
    assert row["question_type"] == "Happening" and row["id"] == 183
    options = "['motorboat', 'Yacht consignment', 'Sailboat set sail', 'Consignment car']"
    assert row["problem"].startswith(row["question"]) and options in row["problem"]
    assert "<answer>" in row["problem"] and "<think>" not in row["problem"]


def test_an_mmau_record_becomes_a_row(folder, tmp_path):
    (folder / "mmau-test-mini.json").write_text(json.dumps([MMAU, {**MMAU, "answer": None}]))
    rows = mmau("test", path=str(folder / "mmau-test-mini.json"))
    assert len(rows) == 2
    assert rows[0]["audio"] == str(folder / "wavs" / "one.wav")
    assert rows[0]["question"] == "Which video game is heard?"  # AVQA's alone are about videos
    assert rows[0]["solution"] == "<answer>Man's</answer>"
    assert rows[0]["sub-category"] == "Acoustic Source Inference"
    assert "[\"Man's\", 'Woman'" in rows[0]["problem"]
    assert rows[1]["solution"] is rows[1]["demonstration"] is rows[1]["answer"] is None


def test_thinking_is_one_setting(write):
    row = avqa("train", path=write(AVQA), thinking=True)[0]
    assert "<think>" in row["problem"]
    assert format([row["demonstration"]], [row]) == accuracy([row["demonstration"]], [row]) == [1.0]
    assert format([row["solution"]], [row]) == [0.0]


def test_lettered_options_stand_on_lines(write):
    row = avqa("train", path=write(AVQA), style="letters")[0]
    assert "\nA. motorboat\nB. Yacht consignment\n" in row["problem"]


def test_sounds_lie_where_the_options_say(folder, write):
    raw = {name: value for name, value in AVQA.items() if name not in ("dataset_name", "audio_path")}
    rows = avqa("train", path=write(raw), audio="{video_name}.wav", audio_folder=str(folder / "wavs"))
    assert rows[0]["audio"] == str(folder / "wavs" / "-HG3Omg_89c_000030.wav")
    stored = {"bytes": (folder / "wavs" / "one.wav").read_bytes(), "path": "one.wav"}
    (folder / "parquet").mkdir()
    from datasets import Dataset

    Dataset.from_list([{**MMAU, "sound": stored}]).to_parquet(str(folder / "parquet" / "test.parquet"))
    assert mmau("test", path=str(folder / "parquet"), audio="{sound}")[0]["audio"] == stored
    with pytest.raises(TaskDataError, match="nowhere is no folder"):
        avqa("train", path=write(AVQA), audio_folder=str(folder / "nowhere"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_name": "Clotho"}, "dataset_name is 'Clotho'"),
        ({"answer": 4}, "answer is 4, not a position among the 4 options"),
        ({"answer": -1}, "answer is -1"),
        ({"answer": True}, "answer is True"),
        ({"answer": "motorboat"}, "answer is 'motorboat'"),
        ({"multi_choice": "motorboat"}, "multi_choice is 'motorboat'"),
        ({"multi_choice": ["motorboat", None]}, "not two or more options"),
        ({"multi_choice": ["motorboat"]}, "not two or more options"),
        ({"question_text": ""}, "question_text is ''"),
        ({"audio_path": None}, "audio_path is None, not a sound"),
    ],
)
def test_a_record_that_does_not_fit_is_one_broken_row(write, change, message):
    rows = avqa("train", path=write(AVQA, {**AVQA, **change}))
    assert rows[0]["id"] == 183
    with pytest.raises(TaskDataError, match=message) as raised:
        rows[1]
    assert "records.jsonl:2 (id 183)" in str(raised.value)


def test_a_missing_column_is_named(write):
    with pytest.raises(TaskDataError, match="no column 'choices'"):
        mmau("train", path=write({name: value for name, value in MMAU.items() if name != "choices"}))[0]


@pytest.mark.parametrize(
    "options", [{"style": "roman"}, {"cut_to_s": 0}, {"cut_to_s": float("nan")}, {"cut_from": "end"}, {"audio": "{}"}]
)
def test_a_wrong_option_is_an_error_before_any_row_is_read(write, options):
    with pytest.raises(TaskDataError):
        avqa("train", path=write(AVQA), **options)


def test_long_sounds_are_cut_with_a_warning_if_asked_for(write, caplog):
    path = write(AVQA)
    assert isinstance(avqa("train", path=path, cut_to_s=1.0)[0]["audio"], str)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        start = avqa("train", path=path, cut_to_s=0.25)[0]["audio"]
    assert "a sound of 1.0 s is cut to 0.25 s" in caplog.text
    middle = avqa("train", path=path, cut_to_s=0.25, cut_from="middle")[0]["audio"]
    assert start["sampling_rate"] == 8000
    assert np.allclose(start["array"], np.arange(0, 2000) / 8000 - 0.5, atol=1e-6)
    assert np.allclose(middle["array"], np.arange(3000, 5000) / 8000 - 0.5, atol=1e-6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_prompts_hold_mono_sound_of_every_kind_of_file(folder, write, suffix):
    times = np.arange(8000) / 8000
    left, right = 0.5 * np.sin(2 * np.pi * 440 * times), 0.25 * np.sin(2 * np.pi * 660 * times)
    soundfile.write(folder / f"sound.{suffix}", np.stack([left, right], 1), 8000)
    source = SourceConfig(name="audio_aqa/avqa", path=write({**AVQA, "audio_path": f"sound.{suffix}"}))
    config = PromptConfig(audios=["{audio}"], text="{problem}", answer="{demonstration}")
    prompt = PromptSource(load_plugins(), source, config, DataConfig(train=source), name="train").prompt(0)
    sound = prompt.messages[0]["content"][0]
    assert sound["type"] == "audio" and sound["sampling_rate"] == 8000
    error = sound["audio"][:8000] - (left + right) / 2  # the mean of the channels, not the first
    assert np.abs(error)[500:-500].max() < (0.05 if suffix == "mp3" else 1e-4)  # mp3 loses some, a tenth of the peak
    assert prompt.answer == "<answer>Yacht consignment</answer>" and "audio" not in prompt.sample


def test_a_hidden_answer_is_an_unanswered_prompt(folder, write):
    source = SourceConfig(name="audio_aqa/mmau", path=write({**MMAU, "answer": None}))
    config = PromptConfig(audios=["{audio}"], text="{problem}", answer="{demonstration}")
    prompt = PromptSource(load_plugins(), source, config, DataConfig(train=source), name="train").prompt(0)
    assert prompt.answer == "" and accuracy(["<answer>Woman</answer>"], [prompt.sample]) == [None]

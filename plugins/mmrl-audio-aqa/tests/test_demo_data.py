"""The demo's melodies: what is asked is what is heard, and files are written once."""

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from mmrl_audio_aqa.demo_data import (
    ANSWERS,
    LENGTH_S,
    QUESTIONS,
    SAMPLING_RATE,
    Melody,
    Note,
    draw_melody,
    melodies,
    play,
)
from mmrl_audio_aqa.rewards import accuracy, format
from mmrl_audio_aqa.views import timeline
from mmrl_core.errors import TaskDataError
from mmrl_core.plugins import load_plugins


def strength_at(sound, hz, start_s=0.1, end_s=0.5):
    """Amplitude of one frequency in a part of a sound."""
    part = sound[round(start_s * SAMPLING_RATE) : round(end_s * SAMPLING_RATE)]
    times = np.arange(len(part)) / SAMPLING_RATE
    return 2 * abs(np.mean(part * np.hanning(len(part)) * 2 * np.exp(-2j * np.pi * hz * times)))


LONG_NOTE = Note(0.0, 0.6, 500.0)


def melody(instrument="flute", harmony="tone", notes=(LONG_NOTE,)):
    return Melody({"instrument": instrument, "harmony": harmony}, tuple(notes))


@pytest.mark.parametrize(
    ("instrument", "harmony", "heard", "silent"),
    [
        ("flute", "tone", [500], [750, 1000, 1500]),
        ("clarinet", "tone", [500, 1500, 2500], [1000, 2000]),
        ("organ", "tone", [500, 1000, 2000], [1500]),
        ("flute", "fifth", [500, 500 * 2 ** (7 / 12)], [500 * 2 ** (4 / 12), 500 * 2 ** (3 / 12)]),
        ("flute", "major", [500, 500 * 2 ** (4 / 12), 500 * 2 ** (7 / 12)], [500 * 2 ** (3 / 12)]),
        ("flute", "minor", [500, 500 * 2 ** (3 / 12), 500 * 2 ** (7 / 12)], [500 * 2 ** (4 / 12)]),
    ],
)
def test_the_frequencies_of_instrument_and_chord_sound(instrument, harmony, heard, silent):
    sound = play(melody(instrument, harmony), random.Random(0))
    assert min(strength_at(sound, hz) for hz in heard) > 5 * max(strength_at(sound, hz) for hz in silent)


def test_a_bell_dies_away():
    sound = play(melody("bell"), random.Random(0))
    # exp(-t / 0.08 s): a tenth of a second later 0.29 of it is left.
    assert strength_at(sound, 500, 0.12, 0.22) / strength_at(sound, 500, 0.02, 0.12) == pytest.approx(0.287, abs=0.05)


def test_notes_sound_when_they_say():
    sound = play(melody(notes=[Note(0.5, 0.7, 500.0), Note(1.0, 1.2, 600.0)]), random.Random(1))
    loud = np.abs(sound).reshape(-1, SAMPLING_RATE // 10).max(1) > 0.05  # in tenths of a second
    assert np.flatnonzero(loud).tolist() == [5, 6, 10, 11]
    assert len(sound) == LENGTH_S * SAMPLING_RATE and 0.2 < np.abs(sound).max() < 0.65


def test_a_melody_is_what_its_answers_say():
    counts = Counter()
    for seed in range(200):
        drawn = draw_melody(random.Random(seed))
        pitches = [note.pitch_hz for note in drawn.notes]
        assert len(pitches) == {"three": 3, "four": 4, "five": 5, "six": 6}[drawn.heard["count"]]
        steps = {np.sign(b - a) for a, b in pairwise(pitches)}
        turns = {np.sign(b - a) * np.sign(c - b) for a, b, c in zip(pitches, pitches[1:], pitches[2:], strict=False)}
        expected = {"rises": ({1}, {1}), "falls": ({-1}, {1}), "stays": ({0}, {0}), "zigzags": ({1, -1}, {-1})}
        assert (steps, turns) == expected[drawn.heard["melody"]]
        assert drawn.notes[0].start_s >= 0 and drawn.notes[-1].end_s <= LENGTH_S
        assert all(a.end_s < b.start_s for a, b in pairwise(drawn.notes))
        counts.update(drawn.heard.items())
    assert set(counts) == {(task, answer) for task, answers in ANSWERS.items() for answer in answers}
    assert min(counts.values()) > 25  # of 50


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return melodies("train", num_rows=80, cache_dir=tmp_path_factory.mktemp("rows"))


def test_rows_ask_each_question_about_each_sound(rows):
    assert [row["task"] for row in rows[:8]] == 2 * list(QUESTIONS)
    assert rows[0]["audio"] == rows[3]["audio"] != rows[4]["audio"]
    for row in rows:
        assert sorted(row["choices"]) == sorted(ANSWERS[row["task"]])
        assert row["question"] in row["problem"] and str(row["choices"]) in row["problem"]
    assert len({tuple(row["choices"]) for row in rows if row["task"] == "count"}) > 5


def test_sounds_are_wav_files(rows):
    about = soundfile.info(rows[0]["audio"])
    assert (about.samplerate, about.channels, about.frames, about.subtype) == (16_000, 1, 32_000, "PCM_16")


def test_solutions_are_right_and_half_of_the_hasty_ones_are_not(rows):
    assert set(accuracy([row["solution"] for row in rows], rows)) == {1.0}
    assert set(format([row["solution"] for row in rows], rows)) == {1.0}
    hasty = accuracy([row["hasty_solution"] for row in rows], rows)
    assert set(hasty) == {0.0, 1.0} and 25 <= sum(hasty) <= 55  # of 80, five standard deviations about 40 at most


def test_rows_depend_on_seed_split_and_index_alone(rows, tmp_path):
    def without_paths(some):
        return [{name: value for name, value in row.items() if name != "audio"} for row in some]

    again = melodies("train", num_rows=8, cache_dir=tmp_path)
    assert without_paths(again) == without_paths(rows[:8])
    assert soundfile.read(again[4]["audio"])[0].tolist() == soundfile.read(rows[4]["audio"])[0].tolist()
    for other in (
        melodies("held_out", num_rows=8, cache_dir=tmp_path),
        melodies("train", num_rows=8, seed=1, cache_dir=tmp_path),
    ):
        assert other[0]["notes"] != rows[0]["notes"] and other[0]["audio"] != again[0]["audio"]


def test_a_file_that_is_there_is_not_written_again(tmp_path):
    path = melodies("train", num_rows=1, cache_dir=tmp_path)[0]["audio"]
    with open(path, "wb") as file:
        file.write(b"kept")
    melodies("train", num_rows=1, cache_dir=tmp_path)
    with open(path, "rb") as file:
        assert file.read() == b"kept"


def test_wrong_options_are_all_named(tmp_path):
    with pytest.raises(TaskDataError, match=r"'test' is neither.*num_rows is 0.*wrong_share 2"):
        melodies("test", num_rows=0, wrong_share=2, cache_dir=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(TaskDataError, match="MMRL_CACHE"):
        melodies("train", num_rows=1, cache_dir=tmp_path / "file")


def test_the_timeline_shows_the_notes(rows):
    spans = timeline("whatever", rows[0])
    assert [span["span"] for span in spans] == [[note["start_s"], note["end_s"]] for note in rows[0]["notes"]]
    assert timeline("whatever", {"solution": "dog"}) == []
    assert load_plugins().registry.get("view", "audio_aqa/timeline").load() is timeline

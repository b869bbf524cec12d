"""The demo's rows: honest splits, real files, easy and hard questions as claimed, demonstrations that often miss."""

import ast
import hashlib
import itertools
import random
from pathlib import Path

import av
import numpy as np
import pytest
from sklearn.datasets import load_digits

from mmrl_core.errors import TaskDataError
from mmrl_core.testing import CLASS_WORDS
from mmrl_vital.demo_data import VideoOptions, draw_frames, hasty_window, tool_videos, video_events
from mmrl_vital.tools import ClipFrames

SPLITS = ("train", "held_out")
SMALL = dict(duration_s=48, num_classes=5, long_digits=1, short_digits=2)


def options(**changed):
    given = dict(duration_s=96, fps=2, size_px=56, digit_px=(36, 48), num_classes=5, prompt_frames=8)
    return VideoOptions(**given | dict(long_digits=1, short_digits=5, brightness=0.35) | changed)


def decode(path):
    with av.open(path) as file:
        frames = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
    return [time for time, _ in frames], np.stack([pixels for _, pixels in frames])


def window_of(demonstration):
    """(start, end) of the call, None without one; the demonstration's form is checked on the way."""
    *calls, final = demonstration.split("\n")
    assert final in [f"<think>Decide.</think><answer>{letter}</answer>" for letter in "ABCDE"]
    if not calls:
        return None
    (call,) = calls
    assert call.startswith("<think>Look closer.</think><tool_call>") and call.endswith("</tool_call>")
    content = ast.literal_eval(call[len("<think>Look closer.</think><tool_call>") : -len("</tool_call>")])
    assert content["name"] == ClipFrames.name
    clip = ClipFrames.arguments.model_validate(content["arguments"], strict=True)
    return clip.start_time, clip.end_time


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def splits(cache_dir):
    return {split: tool_videos(split, num_rows=60, seed=1, cache_dir=cache_dir) for split in SPLITS}


def test_videos_are_mp4_files_of_the_stated_size_rate_and_length(splits):
    row = splits["train"][0]
    with av.open(row["video"]) as file:
        stream = file.streams.video[0]
        assert file.format.name.startswith("mov,mp4")
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 56, 56)
        assert (stream.average_rate, stream.frames) == (2, 192)
    times, _ = decode(row["video"])
    assert times == [index / 2 for index in range(192)]
    assert row["duration"] == 96.0


def test_digits_are_in_the_file_when_the_row_says_so(splits):
    for row in splits["held_out"][::15]:
        times, frames = decode(row["video"])
        brightest = frames.min(axis=3).max(axis=(1, 2))  # of the darkest channel: light ink, not a colourful photograph
        is_shown = [any(e["start_s"] <= time < e["end_s"] for e in row["events"]) for time in times]
        assert brightest[is_shown].min() > 150 > brightest[np.logical_not(is_shown)].max()


def test_the_file_is_close_to_what_was_drawn(splits):
    row = splits["train"][0]
    drawn = draw_frames("train", 0, 1, video_events("train", 0, 1, options()), options())
    error = np.abs(decode(row["video"])[1].astype(float) - drawn)
    assert error.mean() < 3


def test_prompt_frames_are_spread_from_the_first_to_the_last():
    # 192 frames, 8 of them: every 191 / 7 = 27.29 frames, rounded: 0, 27, 55, 82, 109, 136, 164, 191; two a second.
    assert options().prompt_times_s == [0, 13.5, 27.5, 41, 54.5, 68, 82, 95.5]


def test_the_frames_of_the_prompt_show_the_digit_of_easy_questions_only(splits):
    times = options().prompt_times_s
    for row in (row for rows in splits.values() for row in rows):
        (event,) = [e for e in row["events"] if e["start_s"] <= row["asked_s"] < e["end_s"]]
        assert any(event["start_s"] <= time < event["end_s"] for time in times) is row["easy"]
        assert row["difficulty"] == ("easy" if row["easy"] else "hard")
        assert row["ground_truth"] == "ABCDE"[event["class_id"]]
        assert row["options"][event["class_id"]] == CLASS_WORDS[event["class_id"]]


def test_an_empty_slot_lies_between_digits(splits):
    for row in splits["train"]:
        events = row["events"]
        assert len(events) >= 5
        assert all(one["end_s"] + 4 <= other["start_s"] for one, other in itertools.pairwise(events))
        assert events[0]["start_s"] >= 0 and events[-1]["end_s"] <= 96


def test_questions_name_time_and_options(splits):
    row = splits["train"][0]
    assert row["problem"].splitlines() == [
        f"The video lasts 96.0 seconds. Which digit is shown at {row['asked_s']} seconds?",
        *["A. zero", "B. one", "C. two", "D. three", "E. four"],
    ]
    assert row["task"] == "multiple_choice"


def test_easy_share_is_kept(cache_dir):
    rows = tool_videos("train", num_rows=300, easy_share=0.7, cache_dir=cache_dir, **SMALL)
    assert abs(sum(row["easy"] for row in rows) / 300 - 0.7) < 0.1
    assert not any(row["easy"] for row in tool_videos("train", num_rows=50, easy_share=0, cache_dir=cache_dir, **SMALL))


def test_neighbouring_rows_share_a_video_and_ask_different_things(splits):
    rows = splits["train"]
    assert [row["video"] == rows[0]["video"] for row in rows[:6]] == [True] * 5 + [False]
    repeated = sum(rows[i]["asked_s"] == rows[i + 1]["asked_s"] for i in range(len(rows) - 1))
    assert repeated <= 2


def test_no_two_splits_share_a_scan(splits):
    scans = {split: {e["scan_id"] for row in rows for e in row["events"]} for split, rows in splits.items()}
    assert len(scans["train"]) > 30 and not scans["train"] & scans["held_out"]
    labels = load_digits().target
    for event in (event for row in splits["held_out"] for event in row["events"]):
        assert labels[event["scan_id"]] == event["class_id"]


def test_no_two_splits_show_the_same_part_of_a_photograph(monkeypatch):
    # A photograph that counts its columns: what a split draws shows which columns it uses.
    photo = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    monkeypatch.setattr("mmrl_vital.demo_data.photographs", lambda brightness: [("stripes", photo)])
    columns = {split: set() for split in SPLITS}
    for split in SPLITS:
        for number in range(40):
            columns[split] |= set(np.unique(draw_frames(split, number, 0, [], options())).tolist())
    assert columns["train"] <= set(range(100)) and columns["held_out"] <= set(range(100, 200))
    assert min(map(len, columns.values())) > 90


def test_exact_demonstrations_open_the_slot_that_holds_the_time(splits):
    for row in splits["train"]:
        start, end = window_of(row["exact_demonstration"])
        assert (start, end) == (row["asked_s"] - 2, row["asked_s"] + 2)
        assert row["exact_demonstration"].endswith(f"<answer>{row['ground_truth']}</answer>")
        assert window_of(row["demonstration_without_tools"]) is None


def test_hasty_demonstrations_often_miss_and_often_do_not_look(cache_dir):
    rows = tool_videos("train", num_rows=400, direct_share=0.4, cache_dir=cache_dir, **SMALL)
    windows = [window_of(row["demonstration"]) for row in rows]
    assert abs(windows.count(None) / 400 - 0.4) < 0.08
    hits = [w[0] <= row["asked_s"] < w[1] for row, w in zip(rows, windows, strict=True) if w is not None]
    assert 0.2 < sum(hits) / len(hits) < 0.45  # 1/5 of the narrow ones, 2/5 of the wide ones, more at the ends
    assert all(row["demonstration"].endswith(f"<answer>{row['ground_truth']}</answer>") for row in rows)


def test_hasty_windows_lie_within_the_video_and_are_off_by_whole_slots():
    rng = random.Random(0)
    narrow = {hasty_window(5, 24, 8, 0.0, rng) for _ in range(300)}
    assert narrow == {(12, 16), (16, 20), (20, 24), (24, 28), (28, 32)}
    assert {hasty_window(5, 24, 0, 1.0, rng) for _ in range(20)} == {(20, 28)}
    assert {hasty_window(23, 24, 8, 0.5, rng)[1] for _ in range(100)} <= {88, 92, 96}
    assert {hasty_window(0, 24, 4, 0.0, rng) for _ in range(100)} == {(0, 4), (4, 8)}


def test_rows_depend_on_seed_split_and_index_only(splits, tmp_path):
    short = tool_videos("train", num_rows=3, seed=1, cache_dir=tmp_path)
    without_path = [{name: value for name, value in row.items() if name != "video"} for row in splits["train"][:3]]
    assert [{name: value for name, value in row.items() if name != "video"} for row in short] == without_path
    assert Path(short[0]["video"]).read_bytes() == Path(splits["train"][0]["video"]).read_bytes()
    assert tool_videos("train", num_rows=3, seed=2, cache_dir=tmp_path)[0]["events"] != short[0]["events"]


def test_a_video_is_encoded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path))
    first = tool_videos("train", num_rows=2, **SMALL)
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert str(file) == first[0]["video"]
    state = file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).digest()
    assert tool_videos("train", num_rows=2, **SMALL) == first
    assert (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).digest()) == state
    tool_videos("train", num_rows=2, **SMALL | {"brightness": 0.5})
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"split": "validation"}, "validation"),
        ({"num_rows": 0}, "num_rows"),
        ({"duration_s": 50}, "duration_s 50"),
        ({"size_px": 252}, "size_px 252"),
        ({"num_classes": 11}, "num_classes"),
        ({"digit_px": [40, 20]}, "digit_px"),
        ({"prompt_frames": 1}, "prompt_frames"),
        ({"prompt_frames": 24}, "prompt_frames 24"),
        ({"aim_error_s": 6}, "aim_error_s 6"),
        ({"long_digits": 0, "short_digits": 0}, "short_digits"),
    ],
)
def test_wrong_arguments_are_named(arguments, named, tmp_path):
    with pytest.raises(TaskDataError, match=named):
        tool_videos(**{"split": "train", "num_rows": 2, "cache_dir": tmp_path} | arguments)

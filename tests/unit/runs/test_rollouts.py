"""Rollouts on disk: what is written comes back, once, whatever the rollouts hold."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from mmrl_core.media import content_hash
from mmrl_core.runs.rollouts import RolloutLog, json_safe, prompt_text, read_rollouts, rollout_files
from mmrl_core.types import Prompt, Rollout, RolloutGroup, Row, Scores


def picture(seed: int = 0, size: tuple[int, int] = (8, 6)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def image_prompt(image: Image.Image, *, sample: dict[str, Any] | None = None, name: str = "train:1") -> Prompt:
    content = [{"type": "image", "image": image}, {"type": "text", "text": "detect every 3"}]
    return Prompt(name, [{"role": "user", "content": content}], sample or {}, "gold", (content_hash(image),))


def rollout(completion: Any, num_tokens: int = 3, *, truncated: bool = False) -> Rollout:
    row = Row("train:1", "t", None, torch.zeros(num_tokens, dtype=torch.int64), num_tokens, truncated=truncated)
    return Rollout([row], completion)


def test_each_rollout_comes_back_as_a_line_with_its_own_numbers(tmp_path: Path):
    image = picture()
    first = replace(image_prompt(image, sample={"solution": "s"}), prefix="<think>")
    groups = [
        RolloutGroup(first, [rollout("a"), rollout("b", 5, truncated=True)]),
        RolloutGroup(image_prompt(image, name="train:2"), [rollout("c"), rollout("d")]),
    ]
    scores = Scores(
        torch.tensor([1.5, 0.5, math.nan, 0.25]),
        {"iou": torch.tensor([1.0, 0.0, math.nan, 0.25]), "brevity": torch.tensor([1.0, 2.0, math.nan, 0.0])},
        {"iou": 1.0, "brevity": 0.25},
        token_rewards={"brevity": [torch.tensor([0.125, 0.125]), torch.tensor([0.5]), torch.zeros(2), torch.zeros(1)]},
        reasons={"iou": [None, None, "KeyError: 'boxes'" + "x" * 5000, None]},
    )
    path = RolloutLog(tmp_path).write(120, "grpo", "train", groups, scores, [[0.5, -0.5], [0.0, math.nan]], 1.0)
    assert path == tmp_path / "rollouts" / "step-000120-train.jsonl"
    lines = read_rollouts(path)
    assert [(line["prompt_id"], line["group"], line["index"]) for line in lines] == [
        ("train:1", 0, 0),
        ("train:1", 0, 1),
        ("train:2", 1, 0),
        ("train:2", 1, 1),
    ]
    media = f"media/{content_hash(image)}.png"
    assert lines[1] == {
        "step": 120,
        "stage": "grpo",
        "split": "train",
        "temperature": 1.0,
        "prompt_id": "train:1",
        "group": 0,
        "prompt": "[image]\ndetect every 3",
        "prefix": "<think>",
        "media": [media],
        "times_s": [None],
        "answer": "gold",
        "sample": {"solution": "s"},
        "index": 1,
        "completion": "b",
        "completion_media": None,
        "turns": [],
        "outcome": {},
        "rewards": {"iou": 0.0, "brevity": 2.0},
        "failures": {},
        "total": 0.5,
        "advantage": -0.5,
        "truncated": True,
        "num_tokens": 5,
    }
    assert (lines[2]["total"], lines[2]["rewards"]["iou"], lines[3]["advantage"]) == (None, None, None)
    assert lines[2]["failures"]["iou"].startswith("KeyError: 'boxes'x") and len(lines[2]["failures"]["iou"]) == 1000
    assert [line["rewards"]["brevity"] for line in lines] == [1.0, 2.0, None, 0.0], (
        "before the weight, null if unscored"
    )
    assert [file.name for file in (tmp_path / "rollouts" / "media").iterdir()] == [f"{content_hash(image)}.png"]
    assert Image.open(tmp_path / "rollouts" / media).convert("RGB").tobytes() == image.tobytes()


def test_rewards_of_turns_and_tokens_are_written_before_their_weight(tmp_path: Path):
    # What a runner makes of a step reward of weight 0.5 that gives two rollouts [0.5, 1.5] and nothing.
    scores = Scores(
        torch.tensor([1.0, math.nan]),
        {"turns": torch.tensor([2.0, math.nan])},
        {"turns": 0.5},
        step_rewards={"turns": [[0.25, 0.75], [0.0]]},
    )
    group = RolloutGroup(Prompt("p", [], {}), [rollout("a"), rollout("b")])
    path = RolloutLog(tmp_path).write(1, "grpo", "train", [group], scores, None, 1.0)
    assert [line["rewards"] for line in read_rollouts(path)] == [{"turns": 2.0}, {"turns": None}]


def test_what_a_killed_run_left_half_written_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log, groups = RolloutLog(tmp_path), [RolloutGroup(image_prompt(picture()), [rollout("x")])]
    written = log.write(1, "grpo", "train", groups, None, None, 1.0)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # as if the process had ended here
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        log.write(2, "grpo", "train", [RolloutGroup(image_prompt(picture(1)), [rollout("y")])], None, None, 1.0)
    monkeypatch.undo()
    assert len(list(tmp_path.rglob(".*"))) == 1
    log.remove_unfinished()
    assert sorted(tmp_path.rglob("*")) == before and read_rollouts(written)


def test_a_sound_is_kept_once_and_no_longer_than_30_seconds(tmp_path: Path):
    samples = np.linspace(-1, 1, 31 * 8000, dtype=np.float32)
    part = {"type": "audio", "audio": samples, "sampling_rate": 8000}
    content = [{"type": "image", "image": picture()}, part, {"type": "text", "text": "what is heard"}]
    prompt = Prompt("train:1", [{"role": "user", "content": content}], {}, "", ("", "key of the sound"))
    path = RolloutLog(tmp_path).write(1, "grpo", "train", [RolloutGroup(prompt, [rollout("a")] * 2)], None, None, 1.0)
    (first, second) = read_rollouts(path)
    assert first["media"] == second["media"] and first["times_s"] == [None, None]
    assert first["prompt"] == "[image]\n[audio]\nwhat is heard"
    kept, rate = soundfile.read(tmp_path / "rollouts" / first["media"][1])
    assert rate == 8000 and len(kept) == 30 * 8000 and np.abs(kept - samples[: len(kept)]).max() < 1e-4
    assert len(list((tmp_path / "rollouts" / "media").iterdir())) == 2


def test_writing_a_step_again_replaces_it_and_leaves_nothing_aside(tmp_path: Path):
    log, prompt = RolloutLog(tmp_path), image_prompt(picture())
    for text in ("first", "second"):
        path = log.write(7, "grpo", "train", [RolloutGroup(prompt, [rollout(text)])], None, None, 1.0)
    assert [line["completion"] for line in read_rollouts(path)] == ["second"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["media", "step-000007-train.jsonl"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log, prompt = RolloutLog(tmp_path), image_prompt(picture())
    path = log.write(7, "grpo", "train", [RolloutGroup(prompt, [rollout("old")])], None, None, 1.0)

    def full_disk(*_: Any, **__: Any) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        log.write(7, "grpo", "train", [RolloutGroup(prompt, [rollout("new")])], None, None, 1.0)
    monkeypatch.undo()
    assert [line["completion"] for line in read_rollouts(path)] == ["old"]
    assert not list(path.parent.glob(".*"))


def test_files_are_listed_by_step_split_and_temperature(tmp_path: Path):
    log, groups = RolloutLog(tmp_path), [RolloutGroup(image_prompt(picture()), [rollout("x")])]
    log.write(20, "grpo", "held_out", groups, None, None, 1.0)
    log.write(20, "grpo", "held_out", groups, None, None, 0.0)
    log.write(20, "grpo", "train", groups, None, None, 0.9)
    log.write(3, "sft", "held_out", groups, None, None, 0.0)
    (tmp_path / "rollouts" / "step-4-held_out-t...jsonl").touch()
    (tmp_path / "rollouts" / "notes.jsonl").touch()
    files = [(file.step, file.split, file.temperature) for file in rollout_files(tmp_path)]
    assert files == [(3, "held_out", 0.0), (20, "train", None), (20, "held_out", 0.0), (20, "held_out", 1.0)]


def test_a_picture_as_completion_is_stored_as_media(tmp_path: Path):
    made = picture(5)
    path = RolloutLog(tmp_path).write(
        1, "grpo", "train", [RolloutGroup(image_prompt(picture()), [rollout(made)])], None, None, 1.0
    )
    (line,) = read_rollouts(path)
    assert line["completion"] is None
    assert Image.open(path.parent / line["completion_media"]).tobytes() == made.tobytes()


@pytest.mark.parametrize(("size", "off_by"), [((8, 6), 0), ((96, 72), 6)])  # small ones are kept without loss
def test_a_list_of_pictures_as_completion_is_stored_as_an_animation(tmp_path: Path, size: tuple[int, int], off_by: int):
    films = [[Image.new(mode, size, colour) for colour in ("black", "gray", "white")] for mode in ("RGB", "L")]
    rollouts = [rollout(films[0]), rollout(tuple(films[1])), rollout([picture(1, size)])]
    path = RolloutLog(tmp_path).write(1, "g", "train", [RolloutGroup(Prompt("p", [], {}), rollouts)], None, None, 1.0)
    lines = read_rollouts(path)
    assert [line["completion"] for line in lines] == [None] * 3
    assert lines[0]["completion_media"] == lines[1]["completion_media"], "equal pictures are stored once"
    with Image.open(path.parent / lines[0]["completion_media"]) as film:
        assert (film.n_frames, film.size, film.info["loop"]) == (3, size, 0)
        for index, level in enumerate((0, 128, 255)):
            film.seek(index)
            assert film.convert("L").getpixel((3, 3)) == pytest.approx(level, abs=off_by)
            assert film.info["duration"] == 125
    with Image.open(path.parent / lines[2]["completion_media"]) as film:
        assert film.n_frames == 1


def test_lists_that_are_not_pictures_are_written_as_text(tmp_path: Path):
    group = RolloutGroup(Prompt("p", [], {}), [rollout([]), rollout([picture(), "x"]), rollout([1.5])])
    lines = read_rollouts(RolloutLog(tmp_path).write(1, "g", "train", [group], None, None, 1.0))
    assert [line["completion_media"] for line in lines] == [None] * 3
    assert (lines[0]["completion"], lines[2]["completion"]) == ("[]", "[1.5]")


def test_video_is_stored_as_a_few_frames(tmp_path: Path):
    class Clip:
        frames = torch.arange(20, dtype=torch.uint8).reshape(20, 1, 1, 1).expand(20, 3, 4, 6)

    content = [{"type": "video", "video": Clip()}, {"type": "text", "text": "what happens?"}]
    prompt = Prompt("v", [{"role": "user", "content": content}], {}, media_keys=("0" * 64,))
    path = RolloutLog(tmp_path).write(1, "grpo", "train", [RolloutGroup(prompt, [rollout("x")])], None, None, 1.0)
    frames = [Image.open(path.parent / name) for name in read_rollouts(path)[0]["media"]]
    assert len(frames) == 8
    assert [frame.size for frame in frames] == [(6, 4)] * 8
    assert [frame.getpixel((0, 0))[0] for frame in (frames[0], frames[-1])] == [0, 19]


def clip(first: int, count: int) -> torch.Tensor:
    """uint8 [count, 3, 4, 6]: frame i is as bright as `first` + i."""
    return torch.arange(first, first + count, dtype=torch.uint8).reshape(count, 1, 1, 1).expand(count, 3, 4, 6)


def conversation(frames: torch.Tensor) -> Rollout:
    """A call, the frames that it brought (the file's frames 100, 105, ... at 10 a second), and an answer."""
    indices = list(range(100, 100 + 5 * len(frames), 5))
    returned = {"type": "video", "video": frames, "metadata": {"fps": 10.0, "frames_indices": indices}}
    messages = [
        {"role": "assistant", "content": [{"type": "text", "text": "call"}]},
        {"role": "tool", "content": [{"type": "text", "text": "Here it is: "}, returned]},
        {"role": "assistant", "content": "answer"},
    ]
    row = Row("p", "t", None, torch.zeros(2, dtype=torch.int64), 2)
    return Rollout([row, row], "call\nanswer", messages, {"valid_tool_calls": 1, "mean": math.nan, "names": {"b", "a"}})


def test_a_conversation_is_written_turn_by_turn_with_the_frames_that_came_back(tmp_path: Path):
    groups = [RolloutGroup(image_prompt(picture()), [conversation(clip(0, 3)), rollout("x")])]
    path = RolloutLog(tmp_path).write(1, "grpo", "train", groups, None, None, 1.0)
    spoken, single = read_rollouts(path)
    assert [(turn["role"], turn["text"]) for turn in spoken["turns"]] == [
        ("assistant", "call"),
        ("tool", "Here it is: [video]\n"),
        ("assistant", "answer"),
    ]
    assert [turn["times_s"] for turn in spoken["turns"]] == [[], [10.0, 10.5, 11.0], []]
    frames = [Image.open(path.parent / name) for name in spoken["turns"][1]["media"]]
    assert [frame.getpixel((0, 0)) for frame in frames] == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    assert spoken["outcome"] == {"valid_tool_calls": 1, "mean": None, "names": ["a", "b"]}
    assert (single["turns"], single["outcome"]) == ([], {})


def test_frames_that_several_rollouts_saw_are_stored_once(tmp_path: Path):
    seen_by_both, by_one = clip(0, 3), clip(2, 3)  # which share the frame 2
    rollouts = [conversation(seen_by_both), conversation(seen_by_both), conversation(by_one)]
    path = RolloutLog(tmp_path).write(1, "s", "train", [RolloutGroup(Prompt("p", [], {}), rollouts)], None, None, 1.0)
    assert len(list((path.parent / "media").iterdir())) == 5
    first, second, third = (line["turns"][1]["media"] for line in read_rollouts(path))
    assert first == second and first[2] == third[0]


def test_writing_a_conversation_twice_gives_the_same_bytes(tmp_path: Path):
    written = []
    for name in ("a", "b"):
        group = RolloutGroup(Prompt("p", [], {}), [conversation(clip(0, 20))])
        RolloutLog(tmp_path / name).write(1, "s", "train", [group], None, None, 1.0)
        files = sorted(file for file in (tmp_path / name).rglob("*") if file.is_file())
        written.append([(file.relative_to(tmp_path / name), file.read_bytes()) for file in files])
    assert written[0] == written[1] and len(written[0]) == 1 + 8


# Of 20 frames, those at round(i * 19 / 7) are kept: 0, 3, 5, 8, 11, 14, 16, 19. At 4 of the file's frames a second, and
# every second one sampled, frame i is at i / 2 seconds.
KEPT_S = [0.0, 1.5, 2.5, 4.0, 5.5, 7.0, 8.0, 9.5]


@pytest.mark.parametrize(
    ("told", "times_s"),
    [
        ({"metadata": {"fps": 4.0, "frames_indices": list(range(0, 40, 2))}}, KEPT_S),
        ({"metadata": {"fps": 4, "frames_indices": torch.arange(0, 40, 2)}}, KEPT_S),
        ({"times_s": [i / 2 for i in range(20)], "metadata": {"fps": 9.0, "frames_indices": [0] * 20}}, KEPT_S),
        ({"times_s": [1.0, 2.0]}, [None] * 8),  # of other frames
        ({"metadata": {"fps": 0.0, "frames_indices": list(range(20))}}, [None] * 8),
        ({"metadata": {"fps": 4.0}}, [None] * 8),
        ({"metadata": None}, [None] * 8),
        ({}, [None] * 8),
    ],
)
def test_frames_of_a_prompt_have_their_times_where_they_are_known(tmp_path: Path, told: dict[str, Any], times_s: list):
    content = [{"type": "image", "image": picture()}, {"type": "video", "video": clip(0, 20), **told}]
    group = RolloutGroup(Prompt("v", [{"role": "user", "content": content}], {}), [rollout("x")])
    path = RolloutLog(tmp_path).write(1, "grpo", "train", [group], None, None, 1.0)
    (line,) = read_rollouts(path)
    assert line["times_s"] == [None, *times_s] and len(line["media"]) == 9


def test_a_media_key_cannot_lead_out_of_the_folder(tmp_path: Path):
    prompt = Prompt("p", image_prompt(picture()).messages, {}, media_keys=("../../outside",))
    RolloutLog(tmp_path).write(1, "grpo", "train", [RolloutGroup(prompt, [rollout("x")])], None, None, 1.0)
    assert len(list((tmp_path / "rollouts" / "media").iterdir())) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["rollouts"]


@pytest.mark.parametrize(
    "text", ["", "line\nline\u2028line", "\ud800 lone surrogate", "\x00\x1b[31m", "</script><b>", "déjà vu 日本"]
)
def test_any_text_survives(tmp_path: Path, text: str):
    groups = [RolloutGroup(image_prompt(picture()), [rollout(text), rollout("next")])]
    path = RolloutLog(tmp_path).write(1, "grpo", "train", groups, None, None, 1.0)
    assert [line["completion"] for line in read_rollouts(path)] == [text, "next"]


def test_torn_last_line_is_left_out(tmp_path: Path):
    path = tmp_path / "step-000001-train.jsonl"
    path.write_text('{"index": 0}\n[1]\n{"index": 1, "comp')
    assert read_rollouts(path) == [{"index": 0}]


def test_sample_becomes_json():
    sample = {
        "number": np.float32(0.5),
        "nan": math.nan,
        "array": np.arange(3),
        "large": np.zeros((100, 100)),
        "tensor": torch.tensor([1, 2]),
        "bytes": b"abc",
        "image": picture(),
        "path": Path("a/b"),
        7: ({1}, None, True),
    }
    assert json.loads(json.dumps(json_safe(sample), allow_nan=False)) == {
        "number": 0.5,
        "nan": None,
        "array": [0, 1, 2],
        "large": "<array of shape (100, 100)>",
        "tensor": [1, 2],
        "bytes": "<3 bytes>",
        "image": "<image 8 x 6>",
        "path": "a/b",
        "7": [[1], None, True],
    }


def test_a_sample_that_holds_itself_ends():
    sample: dict[str, Any] = {}
    sample["self"] = sample
    assert "self" in json_safe(sample)


def test_prompt_text_names_roles_only_in_conversations():
    user = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    assert prompt_text(Prompt("p", [user], {})) == "hi"
    assert (
        prompt_text(Prompt("p", [{"role": "system", "content": "be brief"}, user], {}))
        == "system: be brief\n\nuser: hi"
    )


def test_scores_and_advantages_of_another_batch_are_refused(tmp_path: Path):
    log, groups = RolloutLog(tmp_path), [RolloutGroup(image_prompt(picture()), [rollout("x"), rollout("y")])]
    with pytest.raises(ValueError, match="3 scores for 2 rollouts"):
        log.write(1, "grpo", "train", groups, Scores(torch.zeros(3), {}, {}), None, 1.0)
    with pytest.raises(ValueError, match="advantages of"):
        log.write(1, "grpo", "train", groups, None, [[1.0]], 1.0)
    assert rollout_files(tmp_path) == []

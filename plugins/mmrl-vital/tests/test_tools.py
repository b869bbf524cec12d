"""The visual toolbox on real files: the frames of the clip that was asked for, and a clear word where there is none."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from mmrl_core.conversation import ToolContext, ToolEnvironment, schema, validated
from mmrl_core.errors import ConfigError, MediaError, ToolError
from mmrl_core.media import draw_timestamps
from mmrl_core.plugins import load_plugins
from mmrl_core.types import Prompt
from mmrl_vital.tools import Clip, ClipAnswer, ClipCaption, ClipFrames

BITS = 12  # of a frame's number, written as black and white stripes: a codec changes greys, but not these
TOOLS = [ClipFrames, ClipCaption, ClipAnswer]


def numbers_of(frames):
    """Numbers of pictures [n, 3, height, width], read in the middle of each stripe."""
    columns = [int((bit + 0.5) * frames.shape[3] / BITS) for bit in range(BITS)]
    stripes = np.asarray(frames, np.float64).mean((1, 2))[:, columns]
    return [sum(1 << bit for bit in range(BITS) if frame[bit] > 128) for frame in stripes]


def write_video(path, num_frames, rate, width=96, height=48):
    """Frame n shows n."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            row = np.repeat([(number >> bit & 1) * 255 for bit in range(BITS)], width // BITS).astype(np.uint8)
            picture = np.broadcast_to(row[None, :, None], (height, width, 3)).copy()
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return str(path)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """6 s at 10 frames per second."""
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", 60, 10)


@pytest.fixture(scope="module")
def unreadable(tmp_path_factory, film):
    """Files without frames: torn, a text, sound alone, none at all."""
    folder = tmp_path_factory.mktemp("unreadable")
    with open(film, "rb") as whole:
        content = whole.read()
    (folder / "torn.mp4").write_bytes(content[: len(content) // 2])
    (folder / "text.mp4").write_text("no video")
    with av.open(str(folder / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        file.mux([*stream.encode(frame), *stream.encode()])
    return [str(folder / f"{name}.mp4") for name in ("torn", "text", "sound", "none")]


def look(file, start, end, **options):
    """The video part and the line of text that the policy gets."""
    arguments = validated(ClipFrames(), {"start_time": start, "end_time": end})
    video, line = ClipFrames(**options).run(arguments, ToolContext({}, [("video", file)]))
    return video, line["text"]


@pytest.mark.parametrize(
    ("start", "end", "options", "numbers", "span"),
    [
        # Frames 20 to 50: 31 / 10 * 2 = 6.2 frames, 6 of them, 6 apart.
        (2, 5, {}, [20, 26, 32, 38, 44, 50], "2.00 to 5.00"),
        ("2.0", "5", {"max_frames": 4}, [20, 30, 40, 50], "2.00 to 5.00"),
        (2, 5, {"max_frames": 3}, [20, 50], "2.00 to 5.00"),
        (2, 5, {"fps": 4.0}, [20, 23, 25, 28, 31, 34, 36, 39, 42, 45, 47, 50], "2.00 to 5.00"),
        # Frames 21 to 31, ceil(20.3) and floor(31.9); at least four.
        (2.03, 3.19, {"fps": 0.5}, [21, 24, 28, 31], "2.03 to 3.19"),
        # A little past the end is the end: frames 40 to 59.
        (4, 6.4, {}, [40, 46, 53, 59], "4.00 to 6.00"),
        (0, 6, {"max_frames": 4}, [0, 20, 39, 59], "0.00 to 6.00"),
    ],
)
def test_the_frames_are_those_of_the_clip(film, start, end, options, numbers, span):
    video, line = look(film, start, end, timestamps=False, **options)
    assert video["type"] == "video" and numbers_of(video["video"]) == numbers
    assert video["times_s"] == pytest.approx([number / 10 for number in numbers], abs=1e-3)
    assert video["metadata"]["frames_indices"] == numbers and video["metadata"]["fps"] == pytest.approx(10)
    assert line == f"Frames of the video from {span} seconds."


def test_each_frame_carries_its_own_time_and_equal_calls_give_equal_frames(film):
    plain, _ = look(film, 2, 5, timestamps=False)
    stamped, _ = look(film, 2, 5)
    expected = draw_timestamps(plain["video"].numpy(), [2.0, 2.6, 3.2, 3.8, 4.4, 5.0])
    assert torch.equal(stamped["video"], torch.from_numpy(expected))
    assert not torch.equal(stamped["video"], plain["video"])
    assert torch.equal(stamped["video"], look(film, 2, 5)[0]["video"])


def test_the_size_of_frames_is_limited(film, tmp_path):
    # Sides are multiples of 28: 96 x 48 to 84 x 56, 4704 pixels; shrunk by sqrt(4608 / 3136) to 56 x 28.
    assert look(film, 2, 5)[0]["video"].shape == (6, 3, 56, 84)
    assert look(film, 2, 5, max_pixels=3136)[0]["video"].shape == (6, 3, 28, 56)
    # Grown by sqrt(12544 / 4608) to 158.4 x 79.2, rounded up.
    assert look(film, 2, 5, min_pixels=12544)[0]["video"].shape == (6, 3, 84, 168)
    # 480 x 240 is more than 64 * 28 * 28: shrunk by sqrt(115200 / 50176) to 316.8 x 158.4, rounded down.
    large = write_video(tmp_path / "large.mp4", 20, 10, 480, 240)
    assert look(large, 0, 2)[0]["video"].shape == (4, 3, 140, 308)


@pytest.mark.parametrize(
    ("start", "end", "why"),
    [
        (2, 6.6, "end_time: the video ends at 6.00 s"),
        (2, 1e300, "end_time: the video ends at 6.00 s"),
        (100, 200, "end_time: the video ends at 6.00 s"),
        (2, 2.9, "at least 1 s after start_time"),
        (3, 3, "at least 1 s after start_time"),
        (4, 2, "at least 1 s after start_time"),
        (2, -5, "at least 1 s after start_time"),
        (1e300, 6, "at least 1 s after start_time"),
        (5.5, 6.5, "at least 1 s after start_time"),  # half a second, as the end is moved to 6
        (-1, 3, "start_time: Input should be greater than or equal to 0"),
        ("nan", 3, "start_time: "),
        (2, "inf", "end_time: Input should be a finite number"),
        (2, None, "end_time: Input should be a valid number"),
    ],
)
def test_a_clip_that_is_not_in_the_video_is_refused(film, start, end, why):
    with pytest.raises(ToolError, match=why):
        look(film, start, end)


def test_the_shortest_clip_is_an_option(film):
    assert numbers_of(look(film, 2, 2.5, min_clip_s=0.5, timestamps=False)[0]["video"]) == [20, 22, 23, 25]
    with pytest.raises(ToolError, match=r"at least 2.5 s after"):
        look(film, 2, 4, min_clip_s=2.5)


def test_a_file_or_clip_without_frames_is_an_error(unreadable, tmp_path):
    for file in unreadable:
        with pytest.raises(MediaError):
            look(file, 2, 5)
    slow = write_video(tmp_path / "slow.mp4", 5, Fraction(1, 2))  # a frame every two seconds
    with pytest.raises(MediaError, match="no two frames"):
        look(slow, 1, 3)
    with pytest.raises(ToolError, match="no video file"):
        ClipFrames().run(Clip(start_time=2, end_time=5), ToolContext({}, [("video", None)]))


@pytest.mark.parametrize(
    "options",
    [{"max_frames": 1}, {"fps": 0.0}, {"min_clip_s": 0.0}, {"min_pixels": 0}, {"min_pixels": 9000, "max_pixels": 8999}],
)
def test_limits_that_no_clip_meets_are_refused(options):
    with pytest.raises(ConfigError, match="get_video_clip_frame: "):
        ClipFrames(**options)


def prompt(kind, file="film.mp4", count=1):
    parts = [{"type": kind, kind: object()}] * count
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "when?"}]}]
    return Prompt("train:0", messages, {}, media_files=(file,) * count)


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_are_offered_with_one_video_only(tool):
    assert tool().offered(prompt("video"))
    for other in (prompt("image"), prompt("video", count=2), prompt("text")):
        assert not tool().offered(other)


def test_the_policy_is_told_of_tools_by_the_published_names_of_their_arguments():
    told = {tool.name: schema(tool())["function"]["parameters"] for tool in TOOLS}
    clip = ["start_time", "end_time"]
    assert {name: parameters["required"] for name, parameters in told.items()} == {
        "get_video_clip_frame": clip,
        "get_video_clip_caption": clip,
        "ask_video_clip_question": [*clip, "question"],
    }
    entries = {entry.id for entry in load_plugins().registry.entries("tool")}
    assert entries >= {f"vital/{name}" for name in told}


def call(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_a_conversation_about_a_clip(film, unreadable):
    clip = {"start_time": 2, "end_time": 5}
    questions = []

    def ask(asked):
        questions.extend(asked)
        return ["a striped picture", "yes"]

    turns = [
        (film, call("get_video_clip_frame", **clip)),
        (film, call("get_video_clip_caption", **clip)),
        (film, call("ask_video_clip_question", **clip, question="Are there stripes?")),
        (film, call("ask_video_clip_question", **clip)),
        (film, call("get_video_clip_frame", **clip, question="?")),
        (film, call("get_video_clip_frame", start_time=2, end_time=9)),
        *((file, call("get_video_clip_frame", **clip)) for file in unreadable),
        (film, "<answer>2.0 to 5.0</answer>"),
    ]
    environment = ToolEnvironment([tool(timestamps=False) for tool in TOOLS], num_workers=1, timeout_s=120)
    try:
        prompts = [environment.prepare(prompt("video", file)) for file, _ in turns]
        assert [told["function"]["name"] for told in prompts[0].tools] == [tool.name for tool in TOOLS]
        assert environment.prepare(prompt("image")).tools == ()
        episodes = [environment.begin(item) for item in prompts]
        replies = environment.reply(episodes, [text for _, text in turns], ask)
    finally:
        environment.close()

    expected, line = look(film, 2, 5, timestamps=False)
    ((message,), *others) = [reply.messages for reply in replies[:-1]]
    assert message["role"] == "tool" and message["content"][1] == {"type": "text", "text": line}
    for video in (message["content"][0], *(question.messages[0]["content"][0] for question in questions)):
        assert torch.equal(video["video"], expected["video"]) and video["times_s"] == expected["times_s"]
        assert video["metadata"] == expected["metadata"]
    instructions = [question.messages[0]["content"][1]["text"] for question in questions]
    assert instructions[0].startswith("Describe") and instructions[1].endswith(": Are there stripes?")
    assert all(len(question.messages) == 1 and question.messages[0]["role"] == "user" for question in questions)
    assert [message["content"] for (message,) in others] == [
        [{"type": "text", "text": text}]
        for text in (
            "a striped picture",
            "yes",
            "Error: question: Field required.",
            "Error: arguments: Extra inputs are not permitted.",
            "Error: end_time: the video ends at 6.00 s.",
            *["Error: the file cannot be read."] * 4,
        )
    ]
    assert replies[-1] is None
    done = [environment.outcome(episode)["valid_tool_calls"] for episode in episodes]
    assert done == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]

"""Frames of a video by time, whatever the file; the frames a model is shown; and one clear MediaError for the rest."""

import importlib.util
import json
import sys
from fractions import Fraction
from typing import get_args

import av
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmrl_core.config.schema import DataConfig, PromptConfig, SourceConfig, VideoConfig
from mmrl_core.data.prompts import PromptSource
from mmrl_core.errors import MediaError, MissingPackageError
from mmrl_core.media import content_hash, draw_timestamps, load_video, media_file, open_video
from mmrl_core.media.frame_cache import FRAME_CACHE, FrameCache
from mmrl_core.media.video import DEFAULT_FPS
from mmrl_core.media.video_libraries import Reader
from mmrl_core.plugins import load_plugins

BITS = 12  # of a frame's number, written as black and white stripes: a codec changes greys, but not these


@pytest.fixture(autouse=True)
def empty_cache():
    FRAME_CACHE.clear()


def striped(number, width=96, height=48):
    """A picture [height, width, 3] that tells its number."""
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    row = np.repeat(np.array(bits, np.uint8) * 255, width // BITS)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def numbers_of(frames):
    """Numbers of pictures [n, 3, height, width]."""
    stripes = np.asarray(frames, np.float64).mean((1, 2)).reshape(len(frames), BITS, -1).mean(2)
    return [int(sum(1 << bit for bit in range(BITS) if frame[bit] > 128)) for frame in stripes]


def write_video(path, pictures, *, rate=10, codec="mpeg4", key_every=20, times_ms=None, rotation=0, **options):
    """A file of pictures [height, width, 3] at a rate, or at times of their own."""
    pictures = list(pictures)
    with av.open(str(path), "w", options=options) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", key_every
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """20 frames of 96 x 48 pixels at 10 frames per second."""
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", map(striped, range(20)))


# Frames by time


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.mp4", "libx264"), ("a.mkv", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.ts", "libx264")],
)
def test_the_frame_shown_at_a_time_is_found_in_every_container(tmp_path, name, codec):
    write_video(tmp_path / name, map(striped, range(60)), codec=codec)
    with open_video(tmp_path / name) as reader:
        assert (reader.num_frames, reader.width, reader.height) == (60, 96, 48)
        assert reader.average_fps == pytest.approx(10) and reader.duration_s == pytest.approx(6, abs=0.002)
        # A frame is shown until the next one; before the start the first, past the end the last; any order, repeated.
        frames, times = reader.frames_at([0.0, 5.1, 2.05, 2.099, -3.0, 99.0, 2.05, 0.3])
    assert frames.dtype == np.uint8 and frames.shape == (8, 3, 48, 96)
    assert numbers_of(frames) == [0, 51, 20, 20, 0, 59, 20, 3]
    assert times == pytest.approx([0.0, 5.1, 2.0, 2.0, 0.0, 5.9, 2.0, 0.3], abs=1e-3)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_long_file_is_decoded_from_the_nearest_key_frames_only(tmp_path, codec):
    path = write_video(tmp_path / "long.mp4", map(striped, range(3000)), codec=codec)  # 300 s, key frames 2 s apart
    with av.open(str(path)) as file:
        keys = [round(float(p.pts * p.time_base) * 10) for p in file.demux(video=0) if p.size and p.is_keyframe]
    assert len(keys) >= 150
    with open_video(path) as reader:
        assert reader.duration_s == pytest.approx(300)
        frames, times = reader.frames_at([250.5, 10.0, 131.9])
    assert numbers_of(frames) == [2505, 100, 1319] and times == pytest.approx([250.5, 10.0, 131.9])
    # One for the size, then each key frame, the frame asked for, and those between.
    steps = [number - max(key for key in keys if key <= number) + 1 for number in (2505, 100, 1319)]
    assert FRAME_CACHE.frames_decoded == 1 + sum(steps) and max(steps) <= 20


def test_neighbouring_frames_are_decoded_without_starting_again(tmp_path):
    path = write_video(tmp_path / "a.mp4", map(striped, range(60)))
    with open_video(path) as reader:
        assert numbers_of(reader.frames_at([number / 10 for number in range(60)])[0]) == list(range(60))
    assert FRAME_CACHE.frames_decoded == 1 + 60


def test_a_variable_frame_rate_follows_the_time_stamps(tmp_path):
    times_ms = [0, 100, 200, 1000, 5000, 5040, 5080, 9000]
    path = write_video(tmp_path / "vfr.mp4", map(striped, range(8)), rate=30, times_ms=times_ms)
    with open_video(path) as reader:
        assert reader.num_frames == 8 and 9.0 < reader.duration_s < 9.2
        assert reader.average_fps == pytest.approx(8 / reader.duration_s)
        frames, times = reader.frames_at([0.15, 0.99, 4.9, 5.05, 8.9, 9.0])
    assert numbers_of(frames) == [1, 2, 3, 5, 6, 7]
    assert times == pytest.approx([0.1, 0.2, 1.0, 5.04, 5.08, 9.0], abs=1e-4)
    # 9.04 s hold eight samples 1.13 s apart, at 0.57, 1.70, 2.83, 3.96, 5.09, 6.2, 7.3 and 8.5 s.
    video = load_video(path, num_frames=8)
    assert video.times_s == pytest.approx([0.2, 1.0, 1.0, 1.0, 5.08, 5.08, 5.08, 5.08], abs=1e-4)


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (-90, (0, 1))])
def test_frames_are_upright(tmp_path, rotation, corner):
    picture = np.zeros((48, 96, 3), np.uint8)
    picture[:24, :48] = 255  # top left; counter-clockwise it goes to the bottom left, the bottom right, the top right
    path = write_video(tmp_path / "turned.mp4", [picture] * 4, rotation=rotation)
    with open_video(path) as reader:
        assert (reader.width, reader.height) == ((48, 96) if rotation % 180 else (96, 48))
        frames, _ = reader.frames_at([0.1])
    height, width = frames.shape[2:]
    assert (width, height) == (reader.width, reader.height)
    quarters = frames[0].mean(0).reshape(2, height // 2, 2, width // 2).mean((1, 3))
    assert np.unravel_index(quarters.argmax(), (2, 2)) == corner and quarters.max() > 240
    assert np.sort(quarters.ravel())[2] < 10


def test_decord_shows_the_same_frames_and_refuses_what_it_gets_wrong(clip, tmp_path):
    times = [0.0, 0.55, 1.9]
    with open_video(clip) as ours, open_video(clip, reader="decord") as theirs:
        for one, other in zip(ours.frames_at(times), theirs.frames_at(times), strict=True):
            np.testing.assert_allclose(one, other, atol=2 if one.ndim == 4 else 1e-6)
        assert (ours.num_frames, ours.average_fps) == (theirs.num_frames, theirs.average_fps)
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n")
    turned = write_video(tmp_path / "turned.mp4", map(striped, range(4)), rotation=90)
    for path, why in ((tmp_path / "list.mp4", "not an mp4"), (turned, "cannot rotate")):
        with pytest.raises(MediaError, match=why):
            open_video(path, reader="decord")


@pytest.mark.parametrize("times", [[], [float("nan")], [0.0, float("inf")]])
def test_times_that_are_no_times_are_refused(clip, times):
    with open_video(clip) as reader, pytest.raises(ValueError, match="finite numbers of seconds"):
        reader.frames_at(times)


# Files that are no videos


def test_a_broken_video_is_a_media_error_with_its_cause(clip, tmp_path):
    data = clip.read_bytes()
    index_first = write_video(tmp_path / "f.mp4", map(striped, range(20)), movflags="faststart").read_bytes()
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n".encode()
    cases = {
        "torn.mp4": data[: len(data) // 2],
        "torn_index_first.mp4": index_first[: len(index_first) * 3 // 4],
        "header.mp4": data[:20],
        "text.mp4": b"no video" * 50,
        "playlist.mp4": playlist,  # names another file: must not be followed
        "concat.mp4": f"ffconcat version 1.0\nfile {clip}\n".encode(),
        "empty.mp4": b"",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=f"{name}.*torn or not a video"):
            load_video(name, root=tmp_path)
    for missing, why in (("missing.mp4", "no such file"), (".", "it is a folder")):
        with pytest.raises(MediaError, match=why):
            load_video(missing, root=tmp_path)
    for elsewhere, why in (("../a.mp4", "leads out"), ("http://host/a.mp4", "not fetched"), ({"bytes": data}, "files")):
        with pytest.raises(MediaError, match=why):
            load_video(elsewhere, root=tmp_path)


def test_damage_in_the_middle_breaks_only_the_frames_that_need_it(tmp_path):
    path = write_video(tmp_path / "a.mp4", map(striped, range(60)))
    with av.open(str(path)) as file:
        packets = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    position, size = packets[20]  # the second key frame
    data[position : position + size] = bytes(size)
    path.write_bytes(data)
    with open_video(path) as reader:
        assert numbers_of(reader.frames_at([0.5, 4.5])[0]) == [5, 45]
        with pytest.raises(MediaError, match=r"a\.mp4: torn"):
            reader.frames_at([2.5])


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_ends_in_frames_or_a_media_error(tmp_path, seed):
    rng = np.random.default_rng(seed)
    path = write_video(tmp_path / "a.mp4", map(striped, range(20)), codec=("mpeg4", "libx264")[seed % 2])
    data = bytearray(path.read_bytes())
    for place in rng.integers(0, len(data), 12):
        data[place] = rng.integers(256)
    path.write_bytes(data[: rng.integers(len(data) // 2, len(data) + 1)] if seed >= 6 else data)
    try:
        video = load_video(path)
    except MediaError as error:
        assert "a.mp4" in str(error)
    else:
        assert len(video.frames) >= 2


def test_sound_without_pictures_and_a_file_without_frames_are_media_errors(clip, tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    with pytest.raises(MediaError, match="it has no video stream"):
        load_video(tmp_path / "sound.mp4")
    with av.open(str(tmp_path / "none.mkv"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        file.start_encoding()
    with pytest.raises(MediaError, match=r"none\.mkv"):
        load_video(tmp_path / "none.mkv")
    write_video(tmp_path / "one.mp4", [striped(0)])
    with pytest.raises(MediaError, match="fewer than two frames"):
        load_video(tmp_path / "one.mp4")


def test_a_tag_that_is_not_unicode_does_not_hide_the_pictures(tmp_path):
    path = tmp_path / "tag.mkv"
    with av.open(str(path), "w") as file:
        file.metadata["title"] = "Cafe-"
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        for number in range(4):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(striped(number), format="rgb24")))
        file.mux(stream.encode())
    data = path.read_bytes()
    assert b"Cafe-" in data
    path.write_bytes(data.replace(b"Cafe-", "Café-".encode("latin-1")))
    assert len(load_video(path).frames) == 4


# What a model is shown


def test_video_frames_are_sampled_evenly_and_resized(clip):
    video = load_video(clip.name, root=clip.parent, fps=5, max_pixels=28 * 28 * 200)
    assert video.frames.dtype == torch.uint8 and video.frames.shape[:2] == (10, 3)
    # 96 x 48 pixels are raised to 128 tokens of 28 x 28 pixels: 16 x 8 of them.
    assert tuple(video.frames.shape[2:]) == (8 * 28, 16 * 28)
    assert video.metadata["frames_indices"] == [0, 2, 4, 6, 8, 11, 13, 15, 17, 19]
    assert video.metadata["fps"] == pytest.approx(10) and video.metadata["total_num_frames"] == 20
    assert video.sampled_fps == pytest.approx(5)
    assert video.times_s == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.1, 1.3, 1.5, 1.7, 1.9])
    small = load_video(clip, fps=5, min_pixels=28 * 28, max_pixels=28 * 28 * 4)
    with open_video(clip) as reader:
        assert numbers_of(reader.frames_at(video.times_s)[0]) == video.metadata["frames_indices"]
    assert small.frames.shape[2] * small.frames.shape[3] <= 28 * 28 * 4


OPTIONS = (
    {},
    {"fps": 5.0},
    {"fps": 1.3, "max_pixels": 28 * 28 * 150},
    {"min_frames": 6, "max_frames": 8},
    {"min_pixels": 4 * 28 * 28, "max_pixels": 224 * 224},
    {"start_s": 0.31, "end_s": 1.47, "fps": 6.0},
    {"start_s": 0.5},
    {"end_s": 0.9, "fps": 4.0},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("name", "rate"), [("a.mp4", 10), ("a.mkv", Fraction(30000, 1001))])
def test_frames_sizes_and_pixels_are_those_of_qwen_vl_utils(tmp_path, monkeypatch, name, rate, options):
    from qwen_vl_utils import vision_process

    monkeypatch.setattr(vision_process, "FORCE_QWENVL_VIDEO_READER", "decord")
    vision_process.get_video_reader_backend.cache_clear()
    path = write_video(tmp_path / name, [striped(i, 192, 108) for i in range(45)], rate=rate, codec="libx264")
    names = {"start_s": "video_start", "end_s": "video_end"}
    request = {"video": str(path)} | {names.get(key, key): value for key, value in options.items()}
    (frames, metadata), sampled_fps = vision_process.fetch_video(
        request, return_video_sample_fps=True, return_video_metadata=True
    )
    video = load_video(path, **options)
    assert video.metadata | {"video_backend": "decord"} == metadata
    assert video.sampled_fps == sampled_fps
    assert video.frames.shape == frames.shape
    assert (video.frames.float() - frames).abs().max() <= 2  # other builds of FFmpeg may round colours differently


@pytest.mark.parametrize(("num_frames", "expected"), [(8, 8), (9, 8), (20, 20), (64, 20)])
def test_num_frames_is_a_limit(clip, num_frames, expected):
    assert len(load_video(clip, num_frames=num_frames).frames) == expected


def test_a_range_is_clamped_and_an_empty_one_is_named(clip):
    # Frames 5 (0.5 s) to 12 (the last that starts before 1.25 s).
    video = load_video(clip, start_s=0.41, end_s=1.25, fps=10)
    assert video.times_s == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2])
    assert video.metadata["total_num_frames"] == 8 and video.sampled_fps == pytest.approx(10)
    assert load_video(clip, start_s=-5, end_s=500, fps=10).times_s == load_video(clip, fps=10).times_s
    for start, end, shown in ((1.0, 1.0, "1.00 s to 1.00 s"), (3, 9, "3.00 s to 9.00 s"), (1.5, 0.5, "1.50 s to 0.50")):
        with pytest.raises(MediaError, match=f"in the range {shown}.*lasts 2.00 s"):
            load_video(clip, start_s=start, end_s=end)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"fps": 2, "num_frames": 8}, "exclude each other"),
        ({"num_frames": 1}, "at least 2"),
        ({"max_frames": 1}, "at least 2"),
        ({"fps": float("inf")}, "must be positive"),
        ({"start_s": float("nan")}, "a range is finite"),
    ],
)
def test_contradicting_limits_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        load_video("v.mp4", **options)


def test_processor_takes_the_loaded_video(clip, tmp_path):
    from transformers import AutoProcessor

    from mmrl_core.testing import build_tiny

    build_tiny("qwen2_5_vl", tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    video = load_video(clip, fps=5)
    text = "<|vision_start|><|video_pad|><|vision_end|>"
    inputs = processor(
        text=[text], videos=[video.frames], video_metadata=[video.metadata], do_sample_frames=False, return_tensors="pt"
    )
    # Two frames make one temporal patch: 2 / 5 frames per second = 0.4 s.
    assert float(inputs["second_per_grid_ts"][0]) == pytest.approx(0.4)
    assert inputs["video_grid_thw"][0, 0] == 5


# Time stamps


def red(frame):
    """Pixels [height, width] whose colour is more than half on the way from black to red."""
    return (frame[0] > 128) & (frame[1] < 64) & (frame[2] < 64)


def test_the_time_stands_in_red_at_the_bottom_right():
    stamped = draw_timestamps(np.zeros((2, 3, 224, 224), np.uint8), [12.5, 12.5])
    assert stamped.dtype == np.uint8 and np.array_equal(stamped[0], stamped[1])
    rows, columns = np.nonzero(red(stamped[0]))
    # The letters are 40 * 224 / 336 = 27 pixels; a digit of DejaVu Sans Bold is 0.73 of that high and 0.70 wide.
    assert 18 <= np.ptp(rows) + 1 <= 22
    assert 27 * 0.7 * 4 < np.ptp(columns) + 1 < 27 * 0.7 * 6
    assert 224 - 10 - 8 <= rows.max() < 214 and 210 <= columns.max() < 214


@pytest.mark.parametrize(("width", "height"), [(28, 28), (56, 28), (28, 560), (560, 28), (4, 4)])
def test_the_time_fits_on_any_frame(width, height):
    stamped = draw_timestamps(np.zeros((1, 3, height, width), np.uint8), [12345.67])[0]
    assert stamped.shape == (3, height, width) and stamped[0].any()
    if min(width, height) >= 28:  # nothing touches the edges
        assert not np.concatenate([stamped[0, :, 0], stamped[0, :, -1], stamped[0, 0], stamped[0, -1]]).any()


def test_each_frame_shows_its_own_time(clip):
    plain = load_video(clip, start_s=0.41, fps=4)
    stamped = load_video(clip, start_s=0.41, fps=4, timestamps=True)
    # Frames 5 to 19, floor(15 / 10 * 4 / 2) * 2 = 6 of them: 5 + 14 / 5 * i, rounded.
    assert stamped.times_s == pytest.approx([0.5, 0.8, 1.1, 1.3, 1.6, 1.9])
    expected = draw_timestamps(plain.frames.numpy(), [0.5, 0.8, 1.1, 1.3, 1.6, 1.9])
    assert np.array_equal(stamped.frames, expected) and not torch.equal(stamped.frames, plain.frames)
    assert torch.equal(load_video(clip, start_s=0.41, fps=4).frames, plain.frames)  # kept frames have no time on them


# Kept frames


def test_overlapping_clips_decode_once(clip):
    first = load_video(clip, fps=10, start_s=0.0, end_s=0.9)  # frames 0 to 9
    decoded, reused = FRAME_CACHE.frames_decoded, FRAME_CACHE.frames_from_cache
    assert decoded > 0 and reused == 0
    again = load_video(clip, fps=10, start_s=0.0, end_s=0.9)
    assert torch.equal(again.frames, first.frames)
    assert FRAME_CACHE.frames_decoded == decoded and FRAME_CACHE.frames_from_cache == 10
    load_video(clip, fps=10, start_s=0.5, end_s=0.8)  # frames 5 to 8 were all shown
    assert FRAME_CACHE.frames_decoded == decoded and FRAME_CACHE.frames_from_cache == 14
    load_video(clip, fps=10, start_s=0.5, end_s=0.8, max_pixels=28 * 28 * 8)  # at another size they were not
    assert FRAME_CACHE.frames_decoded > decoded and FRAME_CACHE.frames_from_cache == 14


def test_a_changed_file_is_read_again(tmp_path):
    path = write_video(tmp_path / "a.mp4", map(striped, range(8)))
    with open_video(path) as reader:
        assert numbers_of(reader.frames_at([0.0])[0]) == [0]
    write_video(path, map(striped, range(100, 140)))
    with open_video(path) as reader:
        assert numbers_of(reader.frames_at([0.0])[0]) == [100] and reader.num_frames == 40


def test_the_cache_keeps_the_frames_used_last_within_its_bytes():
    cache = FrameCache(max_bytes=30)
    for number in range(3):
        cache.put((number,), np.full(10, number, np.uint8))
    assert cache.get((0,)) is not None
    cache.put((3,), np.full(10, 3, np.uint8))  # 1 was used longest ago
    assert [number for number in range(4) if cache.get((number,)) is not None] == [0, 2, 3]
    cache.put((4,), np.zeros(31, np.uint8))
    assert all(cache.get((number,)) is None for number in range(5))


# Prompts


def prompt_of(folder, rows, **prompt):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(name="rows", path=str(folder / "rows.jsonl"))
    config = PromptConfig.model_validate({"text": "{q}", "videos": ["{video}"], **prompt})
    made = PromptSource(load_plugins(), source, config, DataConfig(), name="train").prompt(0)
    assert made is not None
    return made


def test_a_prompt_shows_the_frames_that_the_config_asks_for(clip, tmp_path):
    (tmp_path / "v.mp4").write_bytes(clip.read_bytes())
    rows = [{"video": "v.mp4", "q": "What?"}]
    plain = prompt_of(tmp_path, rows)
    options = {"fps": 4, "max_frames": 6, "min_pixels": 28 * 28, "max_pixels": 28 * 28 * 8, "timestamps": True}
    asked = prompt_of(tmp_path, rows, video=options)
    part = asked.messages[0]["content"][0]
    expected = load_video(tmp_path / "v.mp4", **options)
    assert torch.equal(part["video"], expected.frames) and part["times_s"] == expected.times_s
    assert part["metadata"] == expected.metadata and len(part["video"]) == 6
    default = load_video(tmp_path / "v.mp4")
    assert torch.equal(plain.messages[0]["content"][0]["video"], default.frames)
    # Towers' features are kept under the key, and differ with the frames.
    assert plain.media_keys != asked.media_keys
    assert prompt_of(tmp_path, rows).media_keys == plain.media_keys
    assert plain.media_files == (str(tmp_path / "v.mp4"),)
    fewer = prompt_of(tmp_path, rows, video={"num_frames": 4, "min_frames": 2})
    assert len(fewer.messages[0]["content"][0]["video"]) == 4


def test_the_file_of_a_medium_is_its_path_where_it_has_one(tmp_path):
    assert media_file("a/../b.png", root=tmp_path) == str(tmp_path / "b.png")
    assert media_file({"path": "b.png", "bytes": None}, root=tmp_path) == str(tmp_path / "b.png")
    assert media_file({"path": "b.png", "bytes": b"x"}, root=tmp_path) is None
    assert media_file(b"x", root=None) is None
    assert media_file({"array": [0.0], "sampling_rate": 16000, "path": "a.wav"}, root=tmp_path) is None
    with pytest.raises(MediaError, match="leads out"):
        media_file("../b.png", root=tmp_path)


def test_the_hash_of_a_changed_file_changes(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    first = content_hash("a", root=tmp_path)
    (tmp_path / "a").write_bytes(b"three")
    assert content_hash("a", root=tmp_path) != first


@pytest.mark.parametrize(
    "options", [{"fps": 2, "num_frames": 8}, {"num_frames": 1}, {"min_pixels": 9, "max_pixels": 8}]
)
def test_video_options_that_contradict_each_other_are_refused(options):
    with pytest.raises(ValidationError):
        VideoConfig(**options)


def test_defaults_of_the_config_are_those_of_load_video():
    defaults = {key: field.default for key, field in VideoConfig.model_fields.items()}
    assert defaults == {key: load_video.__kwdefaults__[key] for key in defaults}
    assert get_args(VideoConfig.model_fields["reader"].annotation) == get_args(Reader)
    assert DEFAULT_FPS == 2.0


# The library that decodes


@pytest.fixture(scope="module")
def slow_start(tmp_path_factory):
    """60 frames with unequal times, the first of them 3.5 s after 0 by the clock of the file."""
    times_ms = [3500 + number * 100 + 7 * (number % 3) for number in range(60)]
    path = tmp_path_factory.mktemp("video") / "slow.mkv"
    return write_video(path, map(striped, range(60)), codec="libx264", times_ms=times_ms)


@pytest.mark.parametrize("reader", ["decord", "torchcodec"])
@pytest.mark.parametrize("video", ["clip", "slow_start"])
def test_every_reader_gives_the_same_frames_at_the_same_times(request, video, reader):
    path = request.getfixturevalue(video)
    asked = [0.0, 0.05, 0.31, 1.0, 1.85, 99.0]
    if reader == "torchcodec" and importlib.util.find_spec("torchcodec") is None:
        with pytest.raises(MissingPackageError) as caught:
            open_video(path, reader=reader)
        command = "pip install 'mmrl-core[torchcodec]'"
        assert str(caught.value) == f"reading videos with torchcodec needs the package torchcodec. Try: {command}"
        return
    with open_video(path) as ours, open_video(path, reader=reader) as theirs:
        assert (theirs.num_frames, theirs.width, theirs.height) == (ours.num_frames, ours.width, ours.height)
        (expected, expected_times), (frames, times) = ours.frames_at(asked), theirs.frames_at(asked)
    assert times == pytest.approx(expected_times, abs=1e-3)
    assert numbers_of(frames) == numbers_of(expected)
    assert np.abs(frames.astype(int) - expected).mean() < 3  # each library converts colours its own way


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_the_config_chooses_the_library_that_decodes(clip, tmp_path, reader):
    (tmp_path / "v.mp4").write_bytes(clip.read_bytes())
    prompt = prompt_of(tmp_path, [{"video": "v.mp4", "q": "What?"}], video={"reader": reader})
    part = prompt.messages[0]["content"][0]
    assert part["metadata"]["video_backend"] == reader
    assert torch.equal(part["video"], load_video(tmp_path / "v.mp4", reader=reader).frames)


def test_a_missing_package_stops_the_run_and_breaks_no_row(clip, tmp_path, monkeypatch):
    (tmp_path / "v.mp4").write_bytes(clip.read_bytes())
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError) as caught:
        prompt_of(tmp_path, [{"video": "v.mp4", "q": "What?"}])
    assert str(caught.value) == "reading video files needs the package av. Try: pip install 'mmrl-core[video]'"

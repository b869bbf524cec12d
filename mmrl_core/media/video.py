"""The frames of a video that a model is shown: which of them, how large, and the time drawn on each."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmrl_core.media.images import resized_size
from mmrl_core.media.video_libraries import Reader, video_error
from mmrl_core.media.video_reading import VideoReader, open_video
from mmrl_core.support import need

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor

DEFAULT_FPS = 2.0
FRAME_FACTOR = 2  # frames come in pairs: the models merge two into one temporal patch
MAX_DECODED_PIXELS = 768 * 3840 * 2160  # as many frames as the models take, of an ultra-high definition
# qwen_vl_utils: image tokens of a frame, and of all frames (0.9 of a context of 128000).
MIN_FRAME_TOKENS, MAX_FRAME_TOKENS, MAX_VIDEO_TOKENS = 128, 768, 115_200


@dataclass(frozen=True)
class Video:
    """Sampled frames of one video.

    Attributes:
        frames: uint8 [frames, 3, height, width], an even number of frames, sides multiples of 2 x patch size.
        metadata: "fps" (of the file), "total_num_frames" (of the range), "frames_indices" (of the sampled frames, at
            that fps from the start of the file), "video_backend".
            Processors take it as `video_metadata=[video.metadata], do_sample_frames=False`.
        sampled_fps: frames per second among the sampled frames.
        times_s: time of each frame in the file, in seconds after its first frame.
    """

    frames: Tensor
    metadata: dict[str, Any]
    sampled_fps: float
    times_s: list[float]


def load_video(
    path: str | Path,
    *,
    root: Path | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    fps: float | None = None,
    num_frames: int | None = None,
    min_frames: int = 4,
    max_frames: int = 768,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    patch_size: int = 14,
    timestamps: bool = False,
    reader: Reader = "pyav",
) -> Video:
    """Sample frames evenly over a video file or a range of it, resized as the Qwen models expect.

    At a constant frame rate the frames are those of `qwen_vl_utils.fetch_video`, resized with the same kernel. At a
    variable one they are spread evenly over time instead of over the numbers of the frames.

    Args:
        path: of the file; `root` as in `load_image`.
        start_s, end_s: range, in seconds after the first frame, clamped to the video; None: its start, its end.
        fps: sampled frames per second, default 2, kept within `min_frames` and `max_frames`.
        num_frames: this many frames instead, or all (an even number) if the range has fewer. Excludes `fps`.
        min_pixels, max_pixels: area limits of one frame in pixels; None leaves qwen_vl_utils' defaults (the smaller
            limit gives way if only the larger is given and below it). The models' processors have limits of their own.
        patch_size: of the vision tower, in pixels.
        timestamps: draw the time of each frame on it, see `draw_timestamps`.
        reader: as in `open_video`.

    Raises:
        MediaError: as `open_video`, or fewer than two frames in the video or in the range (which is named).
        ValueError: both `fps` and `num_frames` are given, or numbers out of their range.

    Source: `fetch_video` of qwen_vl_utils 0.0.14.
    """
    _check_options(fps, num_frames, max_frames, start_s, end_s)
    import torch

    with open_video(path, root=root, reader=reader) as video:
        first, last = _frame_range(video, start_s, end_s)
        total = last - first + 1
        if num_frames is None:
            count = total / video.average_fps * (DEFAULT_FPS if fps is None else fps)
            count = min(max(count, math.ceil(min_frames / FRAME_FACTOR) * FRAME_FACTOR), max_frames)
        else:
            count = num_frames
        count = math.floor(min(count, total) / FRAME_FACTOR) * FRAME_FACTOR
        if count < FRAME_FACTOR:
            raise video_error(video.name, "it has fewer than two frames to sample")
        indices = torch.linspace(first, last, count).round().long().tolist()
        _check_decoded(video, count)
        size = _frame_size(video, count, min_pixels, max_pixels, patch_size)
        # The middle of a frame's time, so that rounded time stamps find the same frame.
        frames, times = video.frames_at([(index + 0.5) / video.average_fps for index in indices], size=size)
    if timestamps:
        frames = draw_timestamps(frames, times.tolist())
    metadata = {
        "fps": video.average_fps,
        "total_num_frames": total,
        "frames_indices": indices,
        "video_backend": reader,
    }
    return Video(torch.from_numpy(frames), metadata, count / total * video.average_fps, times.tolist())


def _check_decoded(video: VideoReader, count: int) -> None:
    """As many frames of this size can be decoded in reasonable time."""
    if count * video.width * video.height > MAX_DECODED_PIXELS:
        why = f"{count} frames of {video.width} x {video.height} are more than {MAX_DECODED_PIXELS} pixels to decode; "
        raise video_error(video.name, f"{why}sample fewer of them, or scale it down with ffmpeg")


def _check_options(
    fps: float | None, num_frames: int | None, max_frames: int, start_s: float | None, end_s: float | None
) -> None:
    """Options of `load_video` that contradict each other or are out of their range raise a ValueError."""
    if fps is not None and num_frames is not None:
        raise ValueError("fps and num_frames exclude each other: give one")
    if (fps is not None and not 0 < fps < math.inf) or (num_frames is not None and num_frames < 2) or max_frames < 2:
        raise ValueError(
            f"fps must be positive, num_frames and max_frames at least 2: {fps=}, {num_frames=}, {max_frames=}"
        )
    if not all(math.isfinite(limit) for limit in (start_s, end_s) if limit is not None):
        raise ValueError(f"a range is finite: {start_s=}, {end_s=}")


def draw_timestamps(frames: np.ndarray, times_s: Sequence[float]) -> np.ndarray:
    """Write "12.50s" in bold red at the bottom right of each frame, as VITAL shows videos to its model.

    The letters are 40 * sqrt(height * width) / 336 pixels high, 10 pixels from the edges; both less on frames too small
    for that. The font is the one that matplotlib brings, so frames are the same on every machine.

    Args:
        frames: uint8 [n, 3, height, width].
        times_s: n times in seconds. VITAL writes index / fps, which drifts from the sampled frames; give their own.

    Returns:
        uint8 [n, 3, height, width], new.
    """
    import numpy as np

    need("matplotlib", "video", "drawing times on frames")
    need("PIL.Image", "vision", "drawing times on frames")
    from PIL import Image, ImageDraw

    height, width = frames.shape[2:]
    margin = min(10, min(height, width) // 8)
    size = max(1, round(40 * math.sqrt(height * width) / 336))
    stamped = []
    for frame, time_s in zip(frames, times_s, strict=True):
        text = f"{time_s:.2f}s"
        font = _bold_font(size)
        left, top, right, bottom = font.getbbox(text, anchor="rb")
        fit = min((width - 2 * margin) / (right - left), (height - 2 * margin) / (bottom - top))
        if fit < 1:
            font = _bold_font(max(1, int(size * fit)))
        image = Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0)))
        ImageDraw.Draw(image).text((width - margin, height - margin), text, (255, 0, 0), font, anchor="rb")
        stamped.append(np.asarray(image).transpose(2, 0, 1))
    return np.stack(stamped)


@functools.lru_cache(maxsize=16)
def _bold_font(size: int) -> Any:
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf"), size)


def _frame_range(video: VideoReader, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """First and last frame of a range, numbered at the average frame rate."""
    fps, last = video.average_fps, video.num_frames - 1
    if start_s is None and end_s is None:
        return 0, last
    longest = video.num_frames / fps
    first = 0 if start_s is None else math.ceil(min(max(start_s, 0.0), longest) * fps)
    last = last if end_s is None else min(last, math.floor(min(max(end_s, 0.0), longest) * fps))
    if first >= last:
        start, end = (0.0 if start_s is None else start_s), (longest if end_s is None else end_s)
        why = f"no two frames lie in the range {start:.2f} s to {end:.2f} s; the video lasts {video.duration_s:.2f} s"
        raise video_error(video.name, why)
    return first, last


def _frame_size(
    video: VideoReader, count: int, min_pixels: int | None, max_pixels: int | None, patch_size: int
) -> tuple[int, int]:
    """(width, height) at which each of `count` frames is shown."""
    factor = 2 * patch_size
    if min_pixels is None:
        min_pixels = MIN_FRAME_TOKENS * factor**2
        min_pixels = min_pixels if max_pixels is None else min(min_pixels, max_pixels)
    largest = min(MAX_FRAME_TOKENS, MAX_VIDEO_TOKENS / count * FRAME_FACTOR) * factor**2
    largest = max(int(largest), int(min_pixels * 1.05))
    if max_pixels is not None:
        largest = min(largest, max_pixels)
    return resized_size(video.width, video.height, min_pixels=min_pixels, max_pixels=largest, factor=factor)

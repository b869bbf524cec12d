"""Read videos: the frame shown at any time of a file, and the frames that a model is shown of it.

A file is indexed once (packets are listed, not decoded); then each frame is decoded from the key frame before it, so
that a clip of a long video costs what a short video does. Frames are kept, and clips that overlap decode them once.

Two libraries can decode. PyAV is the default: of a broken or hostile file it makes an exception. decord 0.6 is there to
be asked for by name and for trusted files alone, because it was found to take a text file for a playlist and read the
files named in it, to give rotated videos four scrambled channels, AVI files times of -9e17 s and MPEG-TS files wrong
frames; others report that it ends the process, or hangs, on damaged files (its issues 25, 154, 229). Neither library
notices all damage inside compressed pictures.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from mmrl_core.errors import MediaError
from mmrl_core.media.content import CONVERT, MAX_IMAGE_PIXELS, content_hash, media_file, resized_size

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor

Backend = Literal["pyav", "decord"]

DEFAULT_FPS = 2.0
FRAME_FACTOR = 2  # frames come in pairs: the models merge two into one temporal patch
# qwen_vl_utils: image tokens of a frame, and of all frames (0.9 of a context of 128000).
MIN_FRAME_TOKENS, MAX_FRAME_TOKENS, MAX_VIDEO_TOKENS = 128, 768, 115_200
CACHE_BYTES = 1 << 30
MAX_INDEXES = 64  # files whose index is kept; that of a two-hour film takes about 4 MB
TIME_TOLERANCE_S = 1e-6  # a time computed from a frame's own time must find that frame
DECODER_THREADS = 4  # FFmpeg's own choice is one for each core, and each decodes a frame ahead after every seek
# Other demuxers of FFmpeg take text for pictures, or open further files and addresses that a playlist names.
FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif"
MAGIC = (b"RIFF", b"\x1aE\xdf\xa3")  # AVI, Matroska; of MP4 the name of a box follows its length
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


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


class FrameCache:
    """Decoded, resized frames, up to a number of bytes; those used longest ago make room.

    Attributes:
        max_bytes: of all frames together.
        frames_decoded: how many frames any reader has decoded, those on the way from a key frame included.
        frames_from_cache: how many were found here instead.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Forget all frames and counts."""
        self.frames_decoded = self.frames_from_cache = self._bytes = 0
        self._frames: OrderedDict[tuple[Any, ...], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[Any, ...]) -> np.ndarray | None:
        with self._lock:
            frame = self._frames.get(key)
            if frame is not None:
                self._frames.move_to_end(key)
                self.frames_from_cache += 1
            return frame

    def put(self, key: tuple[Any, ...], frame: np.ndarray) -> None:
        with self._lock:
            if key not in self._frames:
                self._frames[key] = frame
                self._bytes += frame.nbytes
            while self._bytes > self.max_bytes:
                self._bytes -= self._frames.popitem(last=False)[1].nbytes

    def count_decoded(self) -> None:
        with self._lock:
            self.frames_decoded += 1


FRAME_CACHE = FrameCache(CACHE_BYTES)


class VideoReader:
    """Frames of one file, by time. A context manager; see `open_video`.

    Times are seconds after the first frame. The shape of pixels is taken to be square, as the models' own tools do.

    Attributes:
        duration_s: from the first frame to the end of the last.
        average_fps: frames per second.
        num_frames: frames that the file holds, counted.
        width, height: in pixels, as displayed: rotation applied.
    """

    def __init__(self, name: str, index: _Index, content_key: str, backend: Backend) -> None:
        self.name, self.backend = name, backend
        self.duration_s, self.average_fps, self.num_frames = index.duration_s, index.average_fps, len(index.times_s)
        self.width, self.height = index.width, index.height
        self._index, self._content_key = index, content_key
        self._file: _PyAVFile | _DecordFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def frames_at(
        self, seconds: Sequence[float], *, size: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The frames shown at some times, in any order; before the start the first, past the end the last.

        Args:
            seconds: n times.
            size: (width, height) to resize to (torchvision's bicubic with antialiasing); None: as displayed.

        Returns:
            uint8 [n, 3, height, width], and float64 [n]: when each of these frames starts, in seconds.

        Raises:
            MediaError: a frame cannot be decoded.
            ValueError: no time, or one that is not finite.
        """
        import numpy as np

        wanted = np.asarray(seconds, np.float64)
        if not wanted.size or not np.isfinite(wanted).all():
            raise ValueError(f"times must be finite numbers of seconds, at least one: {seconds!r}")
        times = self._index.times_s
        numbers = np.searchsorted(times, wanted + TIME_TOLERANCE_S, side="right") - 1
        numbers = numbers.clip(0, len(times) - 1).tolist()
        width, height = size or (self.width, self.height)
        frames: dict[int, np.ndarray] = {}
        missing = []
        with self._index.lock:  # who asks for the same clip at the same time waits, then finds it in the cache
            for number in sorted(set(numbers)):
                frame = FRAME_CACHE.get((self._content_key, number, width, height))
                if frame is None:
                    missing.append(number)
                else:
                    frames[number] = frame
            for number, rgb in zip(missing, self._decode(missing), strict=True):
                frames[number] = _resized(rgb, width, height)
                FRAME_CACHE.put((self._content_key, number, width, height), frames[number])
        return np.stack([frames[number] for number in numbers]), times[numbers]

    def _decode(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """RGB [height, width, 3] of each frame; numbers rise."""
        if not numbers:
            return
        if self._file is None:
            self._file = _open_file(self.name, self.backend)
        try:
            yield from self._file.decode(self._index, numbers)
        except MediaError:
            raise
        except Exception as error:  # of either library, and many kinds
            raise _video_error(self.name, f"torn: a frame cannot be decoded ({_reason(error)}). {CONVERT}") from error


def open_video(path: str | Path, *, root: Path | None = None, backend: Backend = "pyav") -> VideoReader:
    """Open a video file to look at frames by time.

    Args:
        path: of the file; `root` as in `load_image`.
        backend: the library that decodes; "decord" for trusted files only, see above.

    Raises:
        MediaError: missing, out of `root`, not a video, without frames, or torn.
    """
    name = media_file(path, root=root, what="video")
    if name is None:
        raise _video_error("of bytes in the row", "videos are read from files only; store it as one")
    try:
        stat = os.stat(name)
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise _video_error(name, why) from error
    if not os.path.isfile(name) or not stat.st_size:
        raise _video_error(name, "torn or not a video (it is empty)" if os.path.isfile(name) else "no such file")
    index = _index_of(name, stat.st_mtime_ns, stat.st_size, backend)
    return VideoReader(name, index, f"{backend} {content_hash(name)}", backend)


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
    backend: Backend = "pyav",
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
        backend: as in `open_video`.

    Raises:
        MediaError: as `open_video`, or fewer than two frames in the video or in the range (which is named).
        ValueError: both `fps` and `num_frames` are given, or numbers out of their range.

    Source: `fetch_video` of qwen_vl_utils 0.0.14.
    """
    if fps is not None and num_frames is not None:
        raise ValueError("fps and num_frames exclude each other: give one")
    if (fps is not None and not 0 < fps < math.inf) or (num_frames is not None and num_frames < 2) or max_frames < 2:
        raise ValueError(
            f"fps must be positive, num_frames and max_frames at least 2: {fps=}, {num_frames=}, {max_frames=}"
        )
    if not all(math.isfinite(limit) for limit in (start_s, end_s) if limit is not None):
        raise ValueError(f"a range is finite: {start_s=}, {end_s=}")
    import torch

    with open_video(path, root=root, backend=backend) as reader:
        first, last = _frame_range(reader, start_s, end_s)
        total = last - first + 1
        if num_frames is None:
            count = total / reader.average_fps * (DEFAULT_FPS if fps is None else fps)
            count = min(max(count, math.ceil(min_frames / FRAME_FACTOR) * FRAME_FACTOR), max_frames)
        else:
            count = num_frames
        count = math.floor(min(count, total) / FRAME_FACTOR) * FRAME_FACTOR
        if count < FRAME_FACTOR:
            raise _video_error(reader.name, "it has fewer than two frames to sample")
        indices = torch.linspace(first, last, count).round().long().tolist()
        size = _frame_size(reader, count, min_pixels, max_pixels, patch_size)
        # The middle of a frame's time, so that rounded time stamps find the same frame.
        frames, times = reader.frames_at([(index + 0.5) / reader.average_fps for index in indices], size=size)
    if timestamps:
        frames = draw_timestamps(frames, times.tolist())
    metadata = {
        "fps": reader.average_fps,
        "total_num_frames": total,
        "frames_indices": indices,
        "video_backend": backend,
    }
    return Video(torch.from_numpy(frames), metadata, count / total * reader.average_fps, times.tolist())


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


def _frame_range(reader: VideoReader, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """First and last frame of a range, numbered at the average frame rate."""
    fps, last = reader.average_fps, reader.num_frames - 1
    if start_s is None and end_s is None:
        return 0, last
    longest = reader.num_frames / fps
    first = 0 if start_s is None else math.ceil(min(max(start_s, 0.0), longest) * fps)
    last = last if end_s is None else min(last, math.floor(min(max(end_s, 0.0), longest) * fps))
    if first >= last:
        start, end = (0.0 if start_s is None else start_s), (longest if end_s is None else end_s)
        why = f"no two frames lie in the range {start:.2f} s to {end:.2f} s; the video lasts {reader.duration_s:.2f} s"
        raise _video_error(reader.name, why)
    return first, last


def _frame_size(
    reader: VideoReader, count: int, min_pixels: int | None, max_pixels: int | None, patch_size: int
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
    return resized_size(reader.width, reader.height, min_pixels=min_pixels, max_pixels=largest, factor=factor)


def _resized(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """[h, w, 3] -> [3, height, width]."""
    import numpy as np
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    frame = np.ascontiguousarray(rgb.transpose(2, 0, 1))
    if frame.shape[1:] == (height, width):
        return frame
    return resize(torch.from_numpy(frame), [height, width], InterpolationMode.BICUBIC, antialias=True).numpy()


def _video_error(name: str, why: str) -> MediaError:
    return MediaError(f"cannot read video {name}: {why}")


def _reason(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
    return text[0][:300] if text else type(error).__name__


# What a file holds, and how each library reads it


@dataclass(frozen=True)
class _Index:
    """Where the frames of a file are.

    Attributes:
        times_s: float64 [frames], rising from 0.
        pts: presentation time stamp of each frame, in the stream's unit; PyAV only, like the rest.
        key_pts, key_dts: presentation and decoding time stamps of the key frames, in order of the former.
        lock: held while frames are decoded.
    """

    times_s: np.ndarray
    duration_s: float
    average_fps: float
    width: int
    height: int
    pts: Sequence[int] = ()
    key_pts: Sequence[int] = ()
    key_dts: Sequence[int] = ()
    lock: threading.Lock = field(default_factory=threading.Lock)


@functools.lru_cache(maxsize=MAX_INDEXES)
def _index_of(name: str, mtime_ns: int, num_bytes: int, backend: Backend) -> _Index:
    """The index of a file; a file that has changed since has another key."""
    file = _open_file(name, backend)
    try:
        return file.index(num_bytes)
    except MediaError:
        raise
    except Exception as error:
        raise _video_error(name, f"torn or not a video ({_reason(error)}). {CONVERT}") from error
    finally:
        file.close()


def _open_file(name: str, backend: Backend) -> _PyAVFile | _DecordFile:
    try:
        return _PyAVFile(name) if backend == "pyav" else _DecordFile(name)
    except MediaError:
        raise
    except ImportError as error:
        library = "av" if backend == "pyav" else "decord"
        raise _video_error(name, f"reading videos needs {library} ({error}). Try: pip install {library}") from error
    except Exception as error:
        raise _video_error(name, f"torn or not a video ({_reason(error)}). {CONVERT}") from error


class _PyAVFile:
    def __init__(self, name: str) -> None:
        import av

        # A tag in another encoding is no reason to refuse the pictures; from 19 on PyAV sees to that itself.
        tags: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        self._name = name
        self._container: Any = av.open(name, options=options, **tags)
        # The first one may be a cover picture.
        self._stream: Any = self._container.streams.best("video")
        if self._stream is None:
            self.close()
            raise _video_error(name, "torn or not a video (it has no video stream)")
        self._stream.codec_context.thread_type = "AUTO"
        self._stream.codec_context.thread_count = DECODER_THREADS

    def close(self) -> None:
        self._container.close()

    def index(self, num_bytes: int) -> _Index:
        import numpy as np

        stream, unit_s = self._stream, float(self._stream.time_base)
        coded_width, coded_height = stream.codec_context.width, stream.codec_context.height
        if coded_width * coded_height > MAX_IMAGE_PIXELS:
            raise _video_error(
                self._name, f"{coded_width} x {coded_height} is more than {MAX_IMAGE_PIXELS} pixels a frame"
            )
        durations: dict[int, int] = {}
        keys: dict[int, int] = {}
        for packet in self._container.demux(stream):
            if not packet.size:
                continue
            pts = packet.dts if packet.pts is None else packet.pts
            if pts is None:
                raise _video_error(self._name, f"its frames have no time stamps. {CONVERT}")
            if packet.is_keyframe:
                keys[pts] = pts if packet.dts is None else packet.dts
            # Of those cut off by an edit list others may depend; corrupt is the last one of a torn file.
            if not packet.is_discard and not packet.is_corrupt:
                durations[pts] = packet.duration or 0
        first_key = min(keys, default=math.inf)
        # Those before the first key frame cannot be decoded.
        pts_of_frames = array("q", sorted(pts for pts in durations if pts >= first_key))
        if not pts_of_frames:
            raise _video_error(self._name, "torn or not a video (it holds no frame)")
        needed = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if needed > num_bytes:
            raise _video_error(self._name, f"torn or not a video (it holds {num_bytes} of {needed} bytes)")

        times = (np.array(pts_of_frames, np.int64) - pts_of_frames[0]) * unit_s
        fps = float(stream.average_rate or 0)
        duration = float(times[-1]) + (durations[pts_of_frames[-1]] * unit_s or (1 / fps if fps else 0.04))
        if not fps or abs(len(times) / fps - duration) > 1 / fps:  # what the header says is not so
            fps = len(times) / duration
        key_pts = sorted(keys)
        index = _Index(times, duration, fps, 0, 0, pts_of_frames, key_pts, [keys[pts] for pts in key_pts])
        height, width = next(self.decode(index, [0])).shape[:2]
        return replace(index, width=width, height=height)

    def decode(self, index: _Index, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """RGB [height, width, 3] of each frame, upright; numbers rise."""
        import numpy as np

        frames: Iterator[Any] = iter(())
        position: float = -math.inf
        for number in numbers:
            pts = index.pts[number]
            key = bisect_right(index.key_pts, pts) - 1
            frame = None
            if index.key_pts[key] <= position:
                frame = self._next(frames, pts)
            else:
                # Some containers seek past the key frame asked for, and some frames lean on the one before.
                for start in (index.key_pts[key], index.key_dts[max(key - 1, 0)], index.key_dts[max(key - 8, 0)]):
                    self._container.seek(start, stream=self._stream)
                    frames = self._container.decode(self._stream)
                    frame = self._next(frames, pts)
                    if frame is not None:
                        break
            if frame is None or frame.is_corrupt:
                why = f"torn: the frame at {index.times_s[number]:.2f} s cannot be decoded. {CONVERT}"
                raise _video_error(self._name, why)
            position = pts
            yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)

    def _next(self, frames: Iterator[Any], pts: int) -> Any:
        """The frame with a time stamp, or None if decoding comes past it."""
        for frame in frames:
            FRAME_CACHE.count_decoded()
            if frame.pts is not None and frame.pts >= pts:
                return frame if frame.pts == pts else None
        return None


class _DecordFile:
    def __init__(self, name: str) -> None:
        import decord

        with open(name, "rb") as file:
            head = file.read(8)
        if not head.startswith(MAGIC) and head[4:] not in MP4_BOXES:
            raise _video_error(name, "torn or not a video (not an mp4, mkv, webm or avi file)")
        self._name = name
        self._reader: Any = decord.VideoReader(name, num_threads=DECODER_THREADS)

    def close(self) -> None:
        self._reader = None

    def index(self, num_bytes: int) -> _Index:
        import numpy as np

        reader = self._reader
        starts, ends = np.asarray(reader.get_frame_timestamp(range(len(reader))), np.float64).T
        if (starts < 0).any() or (np.diff(starts) <= 0).any():
            raise _video_error(self._name, "decord gives its frames no rising time stamps")
        height, width, channels = reader[0].shape
        if channels != 3:
            raise _video_error(self._name, "decord cannot rotate it")
        return _Index(starts - starts[0], float(ends[-1] - starts[0]), float(reader.get_avg_fps()), width, height)

    def decode(self, index: _Index, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """RGB [height, width, 3] of each frame."""
        for number in numbers:
            FRAME_CACHE.count_decoded()  # decord does not tell of those on the way
            yield self._reader[number].asnumpy()

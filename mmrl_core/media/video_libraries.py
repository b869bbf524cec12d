"""Libraries that decode videos, behind one interface: which frames a file holds, and the pixels of some of them.

PyAV is the default: a broken or hostile file becomes an exception. decord 0.6 is for trusted files alone. It was found
to take a text file for a playlist and read the files named in it, and to give rotated videos four scrambled channels,
AVI files times of -9e17 s and MPEG-TS files wrong frames. Others report that it ends the process, or hangs, on damaged
files (its issues 25, 154, 229). torchcodec decodes what PyAV has listed and found sound. No library notices all damage
inside compressed pictures.
"""

from __future__ import annotations

import math
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mmrl_core.errors import MediaError, MMRLError
from mmrl_core.media.files import CONVERT
from mmrl_core.media.frame_cache import FRAME_CACHE
from mmrl_core.support import need

if TYPE_CHECKING:
    import numpy as np

Reader = Literal["pyav", "decord", "torchcodec"]

LARGEST_TIME_ERROR_S = 1e-3  # between the times that two libraries give one frame
MAX_FRAME_PIXELS = 8192 * 4320  # the largest format of cameras and encoders in use
MAX_FRAMES = 1 << 20  # of a file; almost five hours at 60 frames a second
DECODER_THREADS = 4  # FFmpeg's own choice is one for each core, and each decodes a frame ahead after every seek
# Other demuxers of FFmpeg take text for pictures, or open further files and addresses that a playlist names.
FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif"
MAGIC = (b"RIFF", b"\x1aE\xdf\xa3")  # AVI, Matroska; of MP4 the name of a box follows its length
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


@dataclass(frozen=True)
class FrameIndex:
    """Where the frames of a file are.

    Attributes:
        times_s: float64 [frames], rising from 0.
        pts: presentation time stamp of each frame, in the stream's unit; PyAV only, like the rest.
        key_pts, key_dts: presentation and decoding time stamps of the key frames, in order of the former.
        start_s: time of the first frame by the clock of the stream, in seconds.
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
    start_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class VideoFile(Protocol):
    """An open video file, as one library reads it."""

    def __init__(self, name: str) -> None:
        """Open a file by its path; anything may be raised for one that is not a video."""

    def index(self, num_bytes: int) -> FrameIndex:
        """Where the frames are; `num_bytes` is the size of the file."""

    def decode(self, index: FrameIndex, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """RGB [height, width, 3] of each frame, upright; numbers rise."""

    def close(self) -> None: ...


class PyAVFile:
    """Frames as PyAV decodes them."""

    def __init__(self, name: str) -> None:
        av: Any = need("av", "video", "reading video files")

        # A tag in another encoding is no reason to refuse the pictures; from 19 on PyAV sees to that itself.
        tags: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        self._name = name
        self._container: Any = av.open(name, options=options, **tags)
        # The first one may be a cover picture.
        self._stream: Any = self._container.streams.best("video")
        if self._stream is None:
            self.close()
            raise video_error(name, "torn or not a video (it has no video stream)")
        self._stream.codec_context.thread_type = "AUTO"
        self._stream.codec_context.thread_count = DECODER_THREADS

    def close(self) -> None:
        self._container.close()

    def index(self, num_bytes: int) -> FrameIndex:
        import numpy as np

        stream, unit_s = self._stream, float(self._stream.time_base)
        coded_width, coded_height = stream.codec_context.width, stream.codec_context.height
        check_frame_pixels(coded_width, coded_height, self._name)
        durations: dict[int, int] = {}
        keys: dict[int, int] = {}
        for packet in self._container.demux(stream):
            if not packet.size:
                continue
            pts = packet.dts if packet.pts is None else packet.pts
            if pts is None:
                raise video_error(self._name, f"its frames have no time stamps. {CONVERT}")
            if packet.is_keyframe:
                keys[pts] = pts if packet.dts is None else packet.dts
            # Of those cut off by an edit list others may depend; corrupt is the last one of a torn file.
            if not packet.is_discard and not packet.is_corrupt:
                durations[pts] = packet.duration or 0
            if len(durations) > MAX_FRAMES:
                raise video_error(self._name, f"it has more than {MAX_FRAMES} frames; cut it into parts")
        first_key = min(keys, default=math.inf)
        # Those before the first key frame cannot be decoded.
        pts_of_frames = array("q", sorted(pts for pts in durations if pts >= first_key))
        if not pts_of_frames:
            raise video_error(self._name, "torn or not a video (it holds no frame)")
        needed = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if needed > num_bytes:
            raise video_error(self._name, f"torn or not a video (it holds {num_bytes} of {needed} bytes)")

        times = (np.array(pts_of_frames, np.int64) - pts_of_frames[0]) * unit_s
        fps = float(stream.average_rate or 0)
        duration = float(times[-1]) + (durations[pts_of_frames[-1]] * unit_s or (1 / fps if fps else 0.04))
        if not fps or abs(len(times) / fps - duration) > 1 / fps:  # what the header says is not so
            fps = len(times) / duration
        key_pts = sorted(keys)
        index = FrameIndex(times, duration, fps, 0, 0, pts_of_frames, key_pts, [keys[pts] for pts in key_pts])
        index = replace(index, start_s=pts_of_frames[0] * unit_s)
        height, width = next(self.decode(index, [0])).shape[:2]
        return replace(index, width=width, height=height)

    def decode(self, index: FrameIndex, numbers: Sequence[int]) -> Iterator[np.ndarray]:
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
                raise video_error(self._name, why)
            position = pts
            yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)

    def _next(self, frames: Iterator[Any], pts: int) -> Any:
        """The frame with a time stamp, or None if decoding comes past it."""
        for frame in frames:
            FRAME_CACHE.count_decoded()
            if frame.pts is not None and frame.pts >= pts:
                return frame if frame.pts == pts else None
        return None


class DecordFile:
    """Frames as decord decodes them, of the containers that it gets right."""

    def __init__(self, name: str) -> None:
        decord: Any = need("decord", "video", "reading videos with decord")

        with open(name, "rb") as file:
            head = file.read(8)
        if not head.startswith(MAGIC) and head[4:] not in MP4_BOXES:
            raise video_error(name, "torn or not a video (not an mp4, mkv, webm or avi file)")
        self._name = name
        self._reader: Any = decord.VideoReader(name, num_threads=DECODER_THREADS)

    def close(self) -> None:
        self._reader = None

    def index(self, num_bytes: int) -> FrameIndex:
        import numpy as np

        reader = self._reader
        starts, ends = np.asarray(reader.get_frame_timestamp(range(len(reader))), np.float64).T
        if (starts < 0).any() or (np.diff(starts) <= 0).any():
            raise video_error(self._name, "decord gives its frames no rising time stamps")
        if len(reader) > MAX_FRAMES:
            raise video_error(self._name, f"it has more than {MAX_FRAMES} frames; cut it into parts")
        height, width, channels = reader[0].shape
        check_frame_pixels(width, height, self._name)
        if channels != 3:
            raise video_error(self._name, "decord cannot rotate it")
        return FrameIndex(starts - starts[0], float(ends[-1] - starts[0]), float(reader.get_avg_fps()), width, height)

    def decode(self, index: FrameIndex, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """RGB [height, width, 3] of each frame."""
        for number in numbers:
            FRAME_CACHE.count_decoded()  # decord does not count those on the way
            yield self._reader[number].asnumpy()


class TorchCodecFile:
    """Frames as torchcodec decodes them. PyAV lists them, so both readers number and time them alike."""

    def __init__(self, name: str) -> None:
        self._decoders: Any = need("torchcodec.decoders", "torchcodec", "reading videos with torchcodec")
        self._name = name
        self._decoder: Any = None

    def close(self) -> None:
        self._decoder = None

    def index(self, num_bytes: int) -> FrameIndex:
        file = PyAVFile(self._name)
        try:
            return file.index(num_bytes)
        finally:
            file.close()

    def decode(self, index: FrameIndex, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """RGB [height, width, 3] of each frame."""
        if self._decoder is None:
            options = {"dimension_order": "NHWC", "num_ffmpeg_threads": DECODER_THREADS}
            self._decoder = self._decoders.VideoDecoder(self._name, **options)
        for number in numbers:
            FRAME_CACHE.count_decoded()  # torchcodec does not count those on the way
            frame = self._decoder.get_frame_at(number)
            time_s = float(index.times_s[number])
            if abs(frame.pts_seconds - index.start_s - time_s) > LARGEST_TIME_ERROR_S:
                raise video_error(self._name, f"torchcodec finds no frame at {time_s:.2f} s")
            if tuple(frame.data.shape) != (index.height, index.width, 3):
                raise video_error(self._name, "torchcodec cannot rotate it")
            yield frame.data.numpy()


FILES: dict[Reader, type[VideoFile]] = {"pyav": PyAVFile, "decord": DecordFile, "torchcodec": TorchCodecFile}


def open_file(name: str, reader: Reader) -> VideoFile:
    """A video file, opened by a library.

    Raises:
        MediaError: the file is torn or not a video.
        MissingPackageError: the library is not installed.
    """
    try:
        return FILES[reader](name)
    except MMRLError:
        raise
    except Exception as error:
        raise video_error(name, f"torn or not a video ({short_reason(error)}). {CONVERT}") from error


def check_frame_pixels(width: int, height: int, name: str) -> None:
    """Raises a MediaError where a frame is too large to be decoded in reasonable time."""
    if width * height > MAX_FRAME_PIXELS:
        raise video_error(
            name, f"{width} x {height} is more than {MAX_FRAME_PIXELS} pixels a frame; scale it down with ffmpeg"
        )


def video_error(name: str, why: str) -> MediaError:
    return MediaError(f"cannot read video {name}: {why}")


def short_reason(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
    return text[0][:300] if text else type(error).__name__

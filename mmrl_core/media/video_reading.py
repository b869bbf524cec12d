"""Read frames of a video file by time.

A file is indexed once (packets are listed, not decoded); then each frame is decoded from the key frame before it, so
that a clip of a long video costs what a short video does. Frames are kept, and clips that overlap decode them once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

from mmrl_core.errors import MMRLError
from mmrl_core.media.files import CONVERT, regular_file
from mmrl_core.media.frame_cache import FRAME_CACHE
from mmrl_core.media.hashing import content_hash, media_file
from mmrl_core.media.video_libraries import (
    FrameIndex,
    Reader,
    VideoFile,
    open_file,
    short_reason,
    video_error,
)
from mmrl_core.support import need

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

TIME_TOLERANCE_S = 1e-6  # a time computed from a frame's own time must find that frame
MAX_INDEXES = 64  # files whose index is kept; that of a two-hour film takes about 4 MB


class VideoReader:
    """Frames of one file, by time. A context manager; see `open_video`.

    Times are seconds after the first frame. The shape of pixels is taken to be square, as the models' own tools do.

    Attributes:
        duration_s: from the first frame to the end of the last.
        average_fps: frames per second.
        num_frames: frames that the file holds, counted.
        width, height: in pixels, as displayed: rotation applied.
    """

    def __init__(self, name: str, index: FrameIndex, content_key: str, reader: Reader) -> None:
        self.name, self._reader = name, reader
        self.duration_s, self.average_fps, self.num_frames = index.duration_s, index.average_fps, len(index.times_s)
        self.width, self.height = index.width, index.height
        self._index, self._content_key = index, content_key
        self._file: VideoFile | None = None

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
            self._file = open_file(self.name, self._reader)
        try:
            yield from self._file.decode(self._index, numbers)
        except MMRLError:
            raise
        except Exception as error:  # of either library, and many kinds
            raise video_error(
                self.name, f"torn: a frame cannot be decoded ({short_reason(error)}). {CONVERT}"
            ) from error


def open_video(path: str | Path, *, root: Path | None = None, reader: Reader = "pyav") -> VideoReader:
    """Open a video file to look at frames by time.

    Args:
        path: of the file; `root` as in `load_image`.
        reader: the library that decodes; "decord" for trusted files only, see `video_libraries`.

    Raises:
        MediaError: missing, out of `root`, not a video, without frames, or torn.
        MissingPackageError: the library is not installed.
    """
    name = media_file(path, root=root, what="video")
    if name is None:
        raise video_error("of bytes in the row", "videos are read from files only; store it as one")
    found = regular_file(name, "video")
    if not found.st_size:
        raise video_error(name, "torn or not a video (it is empty)")
    index = _index_of(name, found.st_mtime_ns, found.st_size, reader)
    return VideoReader(name, index, f"{reader} {content_hash(name)}", reader)


@functools.lru_cache(maxsize=MAX_INDEXES)
def _index_of(name: str, mtime_ns: int, num_bytes: int, reader: Reader) -> FrameIndex:
    """The index of a file; a file that has changed since has another key."""
    file = open_file(name, reader)
    try:
        return file.index(num_bytes)
    except MMRLError:
        raise
    except Exception as error:
        raise video_error(name, f"torn or not a video ({short_reason(error)}). {CONVERT}") from error
    finally:
        file.close()


def _resized(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """[h, w, 3] -> [3, height, width]."""
    import numpy as np

    frame = np.ascontiguousarray(rgb.transpose(2, 0, 1))
    if frame.shape[1:] == (height, width):
        return frame
    need("torchvision", "vision", "resizing the frames of a video")
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    return resize(torch.from_numpy(frame), [height, width], InterpolationMode.BICUBIC, antialias=True).numpy()

"""Decoded frames kept in memory, so that clips that overlap decode them once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

CACHE_BYTES = 1 << 30


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

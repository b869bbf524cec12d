"""Identity of media by content, and the files that they are read from."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrl_core.media.audio import decoded_audio, is_decoded_audio
from mmrl_core.media.files import media_error, regular_file, shown, stored_bytes_or_path
from mmrl_core.media.images import decoded_image, is_picture

MAX_FILE_HASHES = 1 << 16  # about 20 MB


def content_hash(value: Any, *, root: Path | None = None) -> str:
    """Identity of one medium by content: the key of media caches.

    Args:
        value: whatever ``load_image`` or ``load_audio`` takes, a video path, or a sequence of such (frames). Files and
            bytes are hashed as stored, so a path and the bytes of that file agree; PIL images by their RGB pixels as
            ``load_image`` returns them, decoded audio by its mono samples and their rate.
        root: as in ``load_image``.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Raises:
        MediaError: as ``load_image`` does for paths, and for values of another type.
    """
    digest = hashlib.sha256()
    if is_picture(value):
        image = decoded_image(value, "<PIL image>", value.width * value.height)
        digest.update(f"RGB pixels {image.size}".encode())
        digest.update(image.tobytes())
        return digest.hexdigest()
    if is_decoded_audio(value):
        audio = decoded_audio(value)
        digest.update(f"audio samples at {audio.sampling_rate}".encode())
        digest.update(audio.samples.tobytes())
        return digest.hexdigest()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        digest.update(f"sequence of {len(value)}".encode())
        for item in value:
            digest.update(content_hash(item, root=root).encode())
        return digest.hexdigest()
    data, name = stored_bytes_or_path(value, root, "media file")
    if data is not None:
        digest.update(data)
        return digest.hexdigest()
    try:
        found = regular_file(name, "media file")
        return _file_hash(os.path.abspath(name), found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise media_error("media file", shown(name), error.strerror or str(error)) from error


@functools.lru_cache(maxsize=MAX_FILE_HASHES)
def _file_hash(name: str, mtime_ns: int, num_bytes: int) -> str:
    """SHA-256 of a file; one that has changed since has another key."""
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def media_file(value: Any, *, root: Path | None, what: str = "media file", must_exist: bool = False) -> str | None:
    """The file that a medium is read from, as an absolute path; None where the row holds bytes or a decoded object.

    Args:
        value: whatever ``load_image``, ``load_audio`` or ``load_video`` takes.
        root: as in ``load_image``.
        what: to call it in errors.
        must_exist: whether to look if it is there and a regular file.

    Raises:
        MediaError: as ``load_image`` does for paths, and for values of another type.
    """
    if is_picture(value) or is_decoded_audio(value):
        return None
    data, name = stored_bytes_or_path(value, root, what)
    if data is None and must_exist:
        regular_file(name, what)
    return os.path.abspath(name) if data is None else None

"""The door to media: bytes, base64, or a path that is held to a folder; whatever row or source they come from."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrl_core.errors import MediaError
from mmrl_core.media.inline import inline_bytes

CONVERT = "Convert it, for instance with ffmpeg"
SHOWN_BYTES_NAME = "<bytes in the row>"
MAX_FILE_BYTES = 512 << 20  # of an image or audio, which are read whole; videos are not
MAX_SHOWN = 200  # characters of a path in messages
MEDIUM_KEYS = ("bytes", "path", "url", "image_url", "image", "audio_url", "audio", "video_url", "video", "base64")
"""Keys of a mapping under which data sets keep a medium, the first that is not null counts."""


def media_error(what: str, where: str, why: str) -> MediaError:
    return MediaError(f"cannot read {what} {where}: {why}")


def reason(error: BaseException) -> str:
    """First line of an exception, with its type where the text alone says little."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def stored_bytes(value: Any, root: Path | None, what: str) -> tuple[bytes, str]:
    """(bytes of the file, name for messages)."""
    data, name = stored_bytes_or_path(value, root, what)
    if data is None:
        data = _read_file(name, what)
    if not data:
        raise media_error(what, name, "it is empty")
    return data, name


def stored_bytes_or_path(value: Any, root: Path | None, what: str) -> tuple[bytes | None, str]:
    """(bytes, name for messages), or (None, path as a string) after checking that the path stays in ``root``."""
    value, name = _unwrapped(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), name
    if not isinstance(value, str | Path) or not str(value):
        decoded = "a mapping with array and sampling_rate" if what == "audio" else "a PIL image"
        raise media_error(what, repr(value)[:80], f"expected a path, bytes, {decoded}, or a mapping with path or bytes")
    if isinstance(value, str):
        try:
            data = inline_bytes(value, what)
        except ValueError as error:
            raise media_error(what, value[:40], str(error)) from error
        if data is not None:
            return data, name
    if name != SHOWN_BYTES_NAME:  # the mapping says that this text is the file's content
        raise media_error(what, name, "its bytes are a text that is not base64; store bytes, base64 or a path")
    if "://" in str(value):
        raise media_error(what, str(value)[:MAX_SHOWN], "addresses are not fetched; download the file first")
    if "\0" in str(value):
        raise media_error(what, repr(value)[:MAX_SHOWN], "a path cannot hold a NUL character")
    return None, _path_inside(Path(value), root, what)


def regular_file(name: str | Path, what: str) -> os.stat_result:
    """What the file system says of a file, which is neither a folder nor a device, pipe or socket.

    Raises:
        MediaError: it is one of these, or missing, or cannot be reached.
    """
    try:
        found = os.stat(name)
    except FileNotFoundError as error:
        raise media_error(what, shown(name), "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: characters that no path has
        raise media_error(what, shown(name), getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, pipe or socket"
        raise media_error(what, shown(name), f"it is {kind}, and only regular files are read")
    return found


def shown(value: object) -> str:
    """A value in a message: short, and writable as UTF-8."""
    return str(value)[:MAX_SHOWN].encode("utf-8", "replace").decode()


def _unwrapped(value: Any) -> tuple[Any, str]:
    """The medium itself, out of the mappings around it, and the name that they give its bytes."""
    name = SHOWN_BYTES_NAME
    for _ in range(3):  # {"image_url": {"url": ...}} is the deepest that is in use
        if not isinstance(value, Mapping):
            break
        key = next((key for key in MEDIUM_KEYS if value.get(key) is not None), None)
        if key == "bytes":
            stored, path = value["bytes"], value.get("path")
            is_path = isinstance(path, str | Path) and str(path)
            # A number or list would become bytes too, and not those of a file.
            is_content = isinstance(stored, bytes | bytearray | memoryview | str)
            name = shown(path) if is_path else "<bytes of a mapping>" if isinstance(stored, str) else name
            return (stored if is_content else [stored]), name
        value = None if key is None else value[key]
    return value, name


def _path_inside(path: Path, root: Path | None, what: str) -> str:
    if root is None:
        return str(path)
    try:
        found, folder = (root / path).resolve(), root.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise media_error(what, shown(path), reason(error)) from error
    if leads_out(found, folder):
        why = f"the path leads out of the folder {root}; if its media lie elsewhere, name their folder: data.media_root"
        raise media_error(what, shown(path), why)
    return str(found)


def leads_out(found: Path, folder: Path) -> bool:
    """Whether a file lies outside of a folder; both without links on their way, as `Path.resolve` gives them.

    A snapshot in the hub's cache is made of links to the blobs beside it, which belong to it.
    """
    repository = next((place.parent for place in (folder, *folder.parents) if place.name == "snapshots"), None)
    is_blob = repository is not None and found.is_relative_to(repository / "blobs")
    return not is_blob and not found.is_relative_to(folder)


def _read_file(name: str, what: str) -> bytes:
    size = regular_file(name, what).st_size
    if size > MAX_FILE_BYTES:
        raise media_error(what, shown(name), f"it has {size} bytes, more than the limit of {MAX_FILE_BYTES}")
    try:
        with open(name, "rb") as file:
            return file.read(size)  # a limit above it would be made room for
    except OSError as error:
        raise media_error(what, shown(name), error.strerror or str(error)) from error

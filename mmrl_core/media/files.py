"""Media as rows store them: bytes, or a path that may be held to a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrl_core.errors import MediaError

CONVERT = "Convert it, for instance with ffmpeg"
SHOWN_BYTES_NAME = "<bytes in the row>"


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
        data = _read_file(Path(name), what)
    if not data:
        raise media_error(what, name, "it is empty")
    return data, name


def stored_bytes_or_path(value: Any, root: Path | None, what: str) -> tuple[bytes | None, str]:
    """(bytes, name for messages), or (None, path as a string) after checking that the path stays in ``root``."""
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return bytes(value["bytes"]), str(value.get("path") or SHOWN_BYTES_NAME)
        value = value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), SHOWN_BYTES_NAME
    if not isinstance(value, str | Path) or not str(value):
        decoded = "a mapping with array and sampling_rate" if what == "audio" else "a PIL image"
        raise media_error(what, repr(value)[:80], f"expected a path, bytes, {decoded}, or a mapping with path or bytes")
    if "://" in str(value) or str(value).startswith("data:"):
        raise media_error(what, str(value)[:200], "addresses are not fetched; download the file first")
    if "\0" in str(value):
        raise media_error(what, repr(value)[:200], "a path cannot hold a NUL character")
    path = Path(value)
    if root is None:
        return None, str(path)
    try:
        path = (root / path).resolve()
    except (OSError, RuntimeError) as error:
        raise media_error(what, str(value)[:200], reason(error)) from error
    if not path.is_relative_to(root.resolve()):
        raise media_error(what, str(value)[:200], f"the path leads out of the folder {root}")
    return None, str(path)


def _read_file(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise media_error(what, str(path), "no such file") from error
    except OSError as error:
        raise media_error(what, str(path), error.strerror or str(error)) from error

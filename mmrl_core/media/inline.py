"""Media that are written as text in a row: base64, plain or in a data URI, as chat data sets keep pictures."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

MIN_CHARACTERS = 64  # the smallest pictures and sounds take more
HEAD_CHARACTERS = 32
BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")

HEADS: dict[str, Callable[[bytes], bool]] = {
    "image": lambda head: (
        head.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")
        or (head.startswith(b"BM") and head[6:10] == bytes(4))
    ),
    "audio": lambda head: (
        head.startswith((b"fLaC", b"OggS", b"ID3")) or (head.startswith(b"RIFF") and head[8:12] == b"WAVE")
    ),
}
"""Kind of medium -> whether a file begins so."""


def inline_bytes(text: str, what: str) -> bytes | None:
    """The bytes of a medium that a text holds; None for a text that is none, such as a path.

    Args:
        text: a data URI with base64, or base64 that begins as a picture or sound does. Line breaks are left out, the
            alphabet of URLs is read, and padding may be missing.
        what: "image" or "audio" looks for these alone; anything else for both.

    Raises:
        ValueError: the text is a data URI or base64 of a medium, and broken.

    >>> inline_bytes("data:image/gif;base64,R0lGODlh", "image"), inline_bytes("images/1.png", "image")
    (b'GIF89a', None)
    """
    if text[:5].lower() == "data:":
        header, comma, body = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise ValueError("a data URI is read with base64 alone: data:image/png;base64,...")
        return _decoded(body)
    if len(text) < MIN_CHARACTERS:
        return None
    try:
        head = _decoded(text.lstrip()[:HEAD_CHARACTERS])
    except ValueError:
        return None
    begins_so = [begins for kind, begins in HEADS.items() if what not in HEADS or kind == what]
    if not any(begins(head) for begins in begins_so) or BASE64.fullmatch("".join(text.split())) is None:
        return None
    return _decoded(text)


def _decoded(text: str) -> bytes:
    joined = "".join(text.split()).rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(joined + "=" * (-len(joined) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"its base64 is broken ({error})") from error

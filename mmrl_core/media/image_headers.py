"""Sizes of images from their headers, where Pillow would decode or make room for the pixels to tell."""

from __future__ import annotations

import struct
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

ORIENTATION = 0x0112  # the tag of EXIF
ROTATED = (5, 6, 7, 8)  # its values under which width and height change places
PNG_HEAD = 8  # bytes of the signature, and of a chunk before its data
TEXT_CHUNKS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # of PNG, any of which may hold the orientation


def webp_size(head: bytes) -> tuple[int, int]:
    """(width, height) of a WebP file of which these are the first 64 bytes; (0, 0) where they do not say.

    Source: RFC 9649, sections 2.5 to 2.7.
    """
    kind, data = head[12:16], head[20:]
    if kind == b"VP8X" and len(data) >= 10:
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if kind == b"VP8L" and len(data) >= 5:
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(data) >= 10:
        width, height = struct.unpack("<HH", data[6:10])
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def upright_header(image: Image.Image) -> tuple[int, int, int]:
    """(width, height, orientation) of an opened image; the size is that once its EXIF rotation is applied.

    Of a file the pixels stay undecoded.
    """
    width, height = image.size
    orientation = _orientation(image)
    if orientation not in range(1, 9):
        orientation = 1
    # Of a TIFF Pillow gives the upright size, and keeps the tag until the pixels are decoded.
    is_turned = orientation in ROTATED and image.format != "TIFF"
    return (height, width, orientation) if is_turned else (width, height, orientation)


def _orientation(image: Image.Image) -> Any:
    from PIL import Image

    try:
        if image.format == "PNG" and not _has_text_behind_pixels(getattr(image, "fp", None)):
            return Image.Image.getexif(image).get(ORIENTATION)  # that of PNG images decodes the pixels first
        return image.getexif().get(ORIENTATION)
    except Exception:  # an unreadable tag: the pixels are sound, and viewers show them as stored
        return None


def _has_text_behind_pixels(file: IO[bytes] | None) -> bool:
    """Whether a PNG has metadata behind its pixels, which Pillow reads after them."""
    if file is None:  # decoded already
        return False
    before, seen = file.tell(), False
    try:
        file.seek(PNG_HEAD)
        while len(head := file.read(PNG_HEAD)) == PNG_HEAD:
            length, kind = struct.unpack(">I4s", head)
            seen = seen or kind == b"IDAT"
            if seen and kind in TEXT_CHUNKS:
                return True
            file.seek(length + 4, 1)  # its data and checksum
        return False
    finally:
        file.seek(before)

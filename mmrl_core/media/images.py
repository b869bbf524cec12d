"""Read images: any stored form in, RGB pixels or one clear `MediaError` out."""

from __future__ import annotations

import functools
import io
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from mmrl_core.media.files import media_error, reason, regular_file, shown, stored_bytes, stored_bytes_or_path
from mmrl_core.media.image_headers import ORIENTATION, upright_header, webp_size
from mmrl_core.support import need

if TYPE_CHECKING:
    from PIL import Image

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What Pillow may open. Of its other formats EPS runs a program on the file, and most have no limits of their own."""

MAX_IMAGE_PIXELS = (
    4 * 16384 * 28 * 28
)  # four times what the Qwen processors take at most; default of data.max_image_pixels
JPEG_SHRINK = 2  # a JPEG is decoded at half its sides where that brings it under the limit
MAX_ASPECT_RATIO = 200  # the limit of the Qwen vision processors
MAX_WEBP_PIXELS = 1 << 27  # whose header is read; Pillow makes room for them then
STRIP_PIXELS = 1 << 21  # converted at a time, since a conversion takes several times the memory of its pixels


def load_image(
    value: Any, *, root: Path | None, max_pixels: int = MAX_IMAGE_PIXELS, formats: Sequence[str] = ()
) -> Image.Image:
    """Decode one image to RGB, upright.

    Args:
        value: a PIL image; bytes of an image file; base64 of them, plain or as a data URI; a path (str or Path); or a
            mapping that has one of these under "bytes", "path", "url", "image_url" or "image" (bytes win).
        root: folder that relative paths start from, and that no path may leave, links included. None: paths are taken
            as they are, from a caller who vouches for them.
        max_pixels: larger images are refused by their header, before decoding. A JPEG of up to four times as many is
            decoded at half its width and height.
        formats: of Pillow, that are opened beside `IMAGE_FORMATS`.

    Returns:
        A new or the given PIL image of mode RGB. EXIF rotation is applied; transparency is laid over white; palette
        and CMYK are converted; 16-bit grey 0..65535 becomes 0..255 (PIL alone would clip it to white); of an animation
        the first frame.

    Raises:
        MediaError: not an image of these formats, truncated, missing, no regular file, out of ``root``, an internet
            address, or more than ``max_pixels``.
        MissingPackageError: Pillow is not installed.
    """
    if is_picture(value):
        _check_format(value, formats)
        return decoded_image(value, "<PIL image>", max_pixels)
    data, name = stored_bytes(value, root, "image")
    image = _opened(data, name, formats, max_pixels)
    width, height = image.size
    if width * height > max_pixels and image.format in ("JPEG", "MPO") and "progressive" not in image.info:
        image.draft(None, (width // JPEG_SHRINK, height // JPEG_SHRINK))
    return decoded_image(image, name, max_pixels)


def image_size(value: Any, *, root: Path | None, formats: Sequence[str] = ()) -> tuple[int, int]:
    """(width, height) in pixels of an image as `load_image` returns it; of a file only the header is read.

    Of a JPEG that is too large, which `load_image` halves, it is the size as stored.

    Args:
        value, root, formats: as in `load_image`.

    Raises:
        MediaError: as `load_image`, apart from what only decoding shows.
    """
    return image_header(value, root=root, formats=formats)[:2]


def image_header(value: Any, *, root: Path | None, formats: Sequence[str] = ()) -> tuple[int, int, int]:
    """(width, height, orientation): those of `image_size`, and the EXIF orientation of the file, 1 to 8.

    1 is upright, and so is an image in memory that `load_image` has returned. See `image_size` for the rest.
    """
    if is_picture(value):
        _check_format(value, formats)
        return upright_header(value)
    data, name = stored_bytes_or_path(value, root, "image")
    if data is None:
        regular_file(name, "image")
    try:
        with _opened(name if data is None else data, name, formats, MAX_WEBP_PIXELS) as image:
            return upright_header(image)
    except OSError as error:
        raise media_error("image", shown(name), reason(error)) from error


def _opened(file: bytes | str, name: str, formats: Sequence[str], max_webp_pixels: int) -> Image.Image:
    """An image whose header has been read. `file`: its content or its path."""
    need("PIL.Image", "vision", "reading images")
    from PIL import Image, UnidentifiedImageError

    head = file[:64] if isinstance(file, bytes) else _head(file, name)
    if head[8:12] == b"WEBP":  # Pillow would make room for the pixels when it opens it
        _check_pixels(*webp_size(head), name, max_webp_pixels)
    allowed = [*IMAGE_FORMATS, *formats]
    try:
        with warnings.catch_warnings():
            # Pillow's own limit warns or raises depending on size; ours is checked for every input.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=allowed)
    except Image.DecompressionBombError as error:
        raise media_error("image", name, f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels") from error
    except UnidentifiedImageError as error:
        why = f"not an image file of the formats {', '.join(allowed)} (starts with {head[:8]!r}); "
        raise media_error("image", name, f"{why}data.image_formats opens more") from error
    except Exception as error:  # format plugins raise anything on hostile headers
        raise media_error("image", name, reason(error)) from error


def _head(path: str, name: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(64)
    except OSError as error:
        raise media_error("image", shown(name), error.strerror or str(error)) from error


def _check_format(image: Image.Image, formats: Sequence[str]) -> None:
    """A PIL image may be a file that is not decoded yet."""
    known = (None, "MPO", *IMAGE_FORMATS, *formats)
    if image.format not in known:
        why = f"a file of the format {image.format} is not decoded; data.image_formats opens more than {IMAGE_FORMATS}"
        raise media_error("image", "<PIL image>", why)


def check_image_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image by its size as `image_size` gives it, more leniently than `load_image` does: as it does a JPEG.

    Raises:
        MediaError: it has too many pixels.
    """
    _check_pixels(width, height, "of the row", JPEG_SHRINK**2 * max_pixels)


def _check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        why = f"{width} x {height} is more than {max_pixels} pixels; shrink it, or raise data.max_image_pixels"
        raise media_error("image", name, why)


def is_picture(value: Any) -> TypeGuard[Image.Image]:
    """Whether a value is a PIL image. Pillow is not imported for it: who has such an image has imported it."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def resized_size(width: int, height: int, *, min_pixels: int, max_pixels: int, factor: int = 28) -> tuple[int, int]:
    """Size in pixels at which a Qwen vision processor shows an image to the model.

    Both sides become multiples of ``factor``, the area lies in ``min_pixels``..``max_pixels``, the aspect ratio is kept
    as nearly as that allows. A returned size is its own result, so a processor does not resize such an image again.

    Returns:
        (width, height).

    Raises:
        MediaError: one side is more than ``MAX_ASPECT_RATIO`` times the other, or a side is not positive.
        ValueError: limits out of order.

    Source: ``smart_resize`` of transformers' Qwen2-VL image processor. (qwen_vl_utils differs for sides below half a
    ``factor``; where the two differ, the processor decides what the model sees.)

    >>> resized_size(640, 480, min_pixels=3136, max_pixels=401408)
    (644, 476)
    """
    if not 0 < min_pixels <= max_pixels:
        raise ValueError(f"limits out of order: min_pixels {min_pixels}, max_pixels {max_pixels}")
    if min(width, height) < 1 or max(width, height) / min(width, height) > MAX_ASPECT_RATIO:
        why = f"the model takes sides of a ratio up to {MAX_ASPECT_RATIO} only"
        raise media_error("image", f"of {width} x {height} pixels", why)
    new_width, new_height = (round(side / factor) * factor for side in (width, height))
    if new_width * new_height > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        new_width, new_height = (max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height))
    elif new_width * new_height < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        new_width, new_height = (math.ceil(side * grow / factor) * factor for side in (width, height))
    return new_width, new_height


def decoded_image(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Pixels of an opened image as upright RGB."""
    _check_pixels(*image.size, name, max_pixels)
    try:
        image.load()
        upright = _apply_exif_rotation(image)
        return upright if upright.mode == "RGB" and "transparency" not in upright.info else _to_rgb(upright)
    except Exception as error:  # format plugins raise OSError, SyntaxError, struct.error, ... on torn data
        raise media_error("image", name, reason(error)) from error


def _apply_exif_rotation(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        is_turned = image.getexif().get(ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if is_turned else image  # of which it would make a copy
    except Exception:  # an unreadable tag: the pixels are sound, and viewers show them as stored
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, converted in strips."""
    from PIL import Image

    width, height = image.size
    convert = _converter(image)
    if width * height <= STRIP_PIXELS:
        return convert(image)
    rgb = Image.new("RGB", image.size)
    for box in _strips(width, height):
        rgb.paste(convert(image.crop(box)), box[:2])
    return rgb


def _strips(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of at most `STRIP_PIXELS` that cover an image."""
    wide = min(width, STRIP_PIXELS)
    high = max(1, STRIP_PIXELS // wide)
    for left in range(0, width, wide):
        for top in range(0, height, high):
            yield left, top, min(left + wide, width), min(top + high, height)


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What makes RGB of an image, or of a strip of it."""
    if image.mode.startswith("I"):
        return functools.partial(_grey_to_rgb, scale=1 / 257.0)  # 65535 / 257 = 255
    if image.mode == "F":
        import numpy as np

        strips = (np.asarray(image.crop(box)) for box in _strips(*image.size))
        highest = np.fmax.reduce([np.fmax.reduce(strip, axis=None) for strip in strips])  # of what is a number
        # Floating grey is 0..1 if nothing exceeds 1, else 0..255.
        return functools.partial(_grey_to_rgb, scale=1.0 if highest > 1.0 else 255.0)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _over_white
    return lambda strip: strip.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    with_alpha = image.convert("RGBA")
    white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, with_alpha).convert("RGB")


def _grey_to_rgb(image: Image.Image, scale: float) -> Image.Image:
    """Integer or floating grey; `scale` brings white to 255."""
    import numpy as np
    from PIL import Image

    grey = np.nan_to_num(np.asarray(image, np.float32))
    grey *= scale
    return Image.fromarray(np.rint(grey.clip(0, 255, out=grey), out=grey).astype(np.uint8)).convert("RGB")

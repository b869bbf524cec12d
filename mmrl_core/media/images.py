"""Read images: any stored form in, RGB pixels or one clear `MediaError` out."""

from __future__ import annotations

import io
import math
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from mmrl_core.media.files import media_error, reason, stored_bytes
from mmrl_core.support import need

if TYPE_CHECKING:
    from PIL import Image

MAX_IMAGE_PIXELS = 128_000_000  # a few kilobytes can unpack to terabytes; larger images are refused before decoding
MAX_ASPECT_RATIO = 200  # the limit of the Qwen vision processors


def load_image(value: Any, *, root: Path | None) -> Image.Image:
    """Decode one image to RGB, upright.

    Args:
        value: a PIL image; bytes of an image file; a path (str or Path); or a mapping with "bytes" and/or "path", as
            the datasets library stores undecoded images (bytes win when both are there).
        root: folder that relative paths start from, and that no path may leave, links included. None: paths are taken
            as they are.

    Returns:
        A new or the given PIL image of mode RGB. EXIF rotation is applied; transparency is laid over white; palette
        and CMYK are converted; 16-bit grey 0..65535 becomes 0..255 (PIL alone would clip it to white); of an animation
        the first frame.

    Raises:
        MediaError: not an image, truncated, missing, out of ``root``, an internet address, or more than
            ``MAX_IMAGE_PIXELS`` pixels.
        MissingPackageError: Pillow is not installed.
    """
    need("PIL.Image", "vision", "reading images")
    from PIL import Image, UnidentifiedImageError

    if is_picture(value):
        return decoded_image(value, "<PIL image>")
    data, name = stored_bytes(value, root, "image")
    try:
        with warnings.catch_warnings():
            # Pillow's own limit warns or raises depending on size; ours is checked in decoded_image for every input.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise media_error("image", name, f"more than {MAX_IMAGE_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise media_error("image", name, f"not an image file that Pillow knows (starts with {data[:8]!r})") from error
    except Exception as error:  # format plugins raise anything on hostile headers
        raise media_error("image", name, reason(error)) from error
    return decoded_image(image, name)


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


def decoded_image(image: Image.Image, name: str) -> Image.Image:
    """Pixels of an opened image as upright RGB."""
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise media_error("image", name, f"{width} x {height} is more than {MAX_IMAGE_PIXELS} pixels")
    try:
        image.load()
        upright = _apply_exif_rotation(image)
        return upright if upright.mode == "RGB" and "transparency" not in upright.info else _to_rgb(upright)
    except Exception as error:  # format plugins raise OSError, SyntaxError, struct.error, ... on torn data
        raise media_error("image", name, reason(error)) from error


def _apply_exif_rotation(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # an unreadable tag: the pixels are sound, and viewers show them as stored
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return _high_depth_grey_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return image.convert("RGB")


def _high_depth_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Integer grey is read as 0..65535; floating grey as 0..1 if nothing exceeds 1, else as 0..255."""
    import numpy as np
    from PIL import Image

    grey = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        grey = np.nan_to_num(grey)
        grey = grey * 255.0 if grey.max() <= 1.0 else grey
    else:
        grey = grey / 257.0  # 65535 / 257 = 255
    return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")

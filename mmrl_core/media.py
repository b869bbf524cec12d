"""Read images and videos: any stored form in, RGB pixels or one clear ``MediaError`` out.

Rows hold media as paths, bytes or decoded objects. The functions here are the only place that opens them, so that
a broken file is reported with its name and cause and breaks its row only.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from mmrl_core.errors import MediaError

if TYPE_CHECKING:
    from torch import Tensor

MAX_IMAGE_PIXELS = 128_000_000  # a few kilobytes can unpack to terabytes; larger images are refused before decoding
MAX_ASPECT_RATIO = 200  # the limit of the Qwen vision processors
SHOWN_BYTES_NAME = "<bytes in the row>"


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
    """
    if isinstance(value, Image.Image):
        return _decode(value, "<PIL image>")
    data, name = _stored_bytes_or_path(value, root, "image")
    if data is None:
        data = _read_file(Path(name), "image")
    if not data:
        raise _media_error("image", name, "it is empty")
    try:
        with warnings.catch_warnings():
            # Pillow's own limit warns or raises depending on size; ours is checked in _decode for every input.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise _media_error("image", name, f"more than {MAX_IMAGE_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise _media_error("image", name, f"not an image file that Pillow knows (starts with {data[:8]!r})") from error
    except Exception as error:  # format plugins raise anything on hostile headers
        raise _media_error("image", name, _reason(error)) from error
    return _decode(image, name)


def content_hash(value: Any, *, root: Path | None = None) -> str:
    """Identity of one medium by content: the key of media caches.

    Args:
        value: whatever ``load_image`` takes, a video path, or a sequence of such (frames). Files and bytes are hashed
            as stored, so a path and the bytes of that file agree; PIL images by their RGB pixels as
            ``load_image`` returns them.
        root: as in ``load_image``.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Raises:
        MediaError: as ``load_image`` does for paths, and for values of another type.
    """
    digest = hashlib.sha256()
    if isinstance(value, Image.Image):
        image = _decode(value, "<PIL image>")
        digest.update(f"RGB pixels {image.size}".encode())
        digest.update(image.tobytes())
        return digest.hexdigest()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        digest.update(f"sequence of {len(value)}".encode())
        for item in value:
            digest.update(content_hash(item, root=root).encode())
        return digest.hexdigest()
    data, name = _stored_bytes_or_path(value, root, "media file")
    if data is not None:
        digest.update(data)
        return digest.hexdigest()
    try:
        with open(name, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise _media_error("media file", name, error.strerror or str(error)) from error
    return digest.hexdigest()


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
        raise _media_error("image", f"of {width} x {height} pixels", why)
    new_width, new_height = (round(side / factor) * factor for side in (width, height))
    if new_width * new_height > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        new_width, new_height = (max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height))
    elif new_width * new_height < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        new_width, new_height = (math.ceil(side * grow / factor) * factor for side in (width, height))
    return new_width, new_height


def resize_image(image: Image.Image, min_pixels: int, max_pixels: int, factor: int = 28) -> Image.Image:
    """Resize (bicubic) to ``resized_size``; the same image if it has that size already.

    Raises:
        MediaError, ValueError: as ``resized_size``.
    """
    size = resized_size(*image.size, min_pixels=min_pixels, max_pixels=max_pixels, factor=factor)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Video:
    """Sampled frames of one video.

    Attributes:
        frames: uint8 [frames, 3, height, width], an even number of frames, sides multiples of 2 x patch size.
        metadata: "fps" (of the file), "total_num_frames" (of the file), "frames_indices" (of the sampled frames),
            "video_backend". Processors take it as ``video_metadata=[video.metadata], do_sample_frames=False``.
        sampled_fps: frames per second among the sampled frames.
    """

    frames: Tensor
    metadata: dict[str, Any]
    sampled_fps: float


def load_video(
    path: str | Path,
    *,
    root: Path | None = None,
    fps: float | None = None,
    num_frames: int | None = None,
    min_frames: int = 4,
    max_frames: int = 768,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    patch_size: int = 14,
) -> Video:
    """Sample frames evenly over a video file, resized as the Qwen models expect (qwen_vl_utils).

    Args:
        path: of the file; ``root`` as in ``load_image``.
        fps: sampled frames per second, default 2, kept within ``min_frames`` and ``max_frames``.
        num_frames: this many frames instead, or all (an even number) if the video has fewer. Excludes ``fps``.
        min_pixels, max_pixels: area limits of one frame in pixels; None leaves qwen_vl_utils' defaults.
        patch_size: of the vision tower, in pixels.

    Raises:
        MediaError: missing, out of ``root``, not a video, torn, fewer than two frames, or no decoder installed.
        ValueError: both ``fps`` and ``num_frames`` are given, or are not positive.
    """
    if fps is not None and num_frames is not None:
        raise ValueError("fps and num_frames exclude each other: give one")
    if (fps is not None and fps <= 0) or (num_frames is not None and num_frames < 2):
        raise ValueError(f"fps must be positive and num_frames at least 2: {fps=}, {num_frames=}")
    _, name = _stored_bytes_or_path(path, root, "video")
    if not Path(name).is_file():
        raise _media_error("video", name, "no such file")
    try:
        from qwen_vl_utils.vision_process import fetch_video
    except ImportError as error:
        why = f"reading videos needs qwen-vl-utils and a decoder ({error}). Try: pip install qwen-vl-utils decord"
        raise _media_error("video", name, why) from error

    request: dict[str, Any] = {"video": name, "min_frames": min_frames, "max_frames": max_frames}
    if num_frames is not None:
        # fps 0 makes the lower limit decide, which, unlike the key "nframes", accepts videos with fewer frames.
        request |= {"fps": 0.0, "min_frames": num_frames, "max_frames": num_frames}
    elif fps is not None:
        request["fps"] = fps
    request |= {k: v for k, v in (("min_pixels", min_pixels), ("max_pixels", max_pixels)) if v is not None}
    try:
        (frames, metadata), sampled_fps = fetch_video(
            request, image_patch_size=patch_size, return_video_sample_fps=True, return_video_metadata=True
        )
    except Exception as error:
        # After the decoder's own failure fetch_video tries torchvision, whose error only hides the cause.
        first: BaseException = error
        while first.__context__ is not None:
            first = first.__context__
        raise _media_error("video", name, _why_no_frames(first)) from error
    import torch

    metadata["frames_indices"] = [int(i) for i in metadata["frames_indices"]]
    return Video(frames.to(torch.uint8), metadata, float(sampled_fps))


def _media_error(what: str, where: str, why: str) -> MediaError:
    return MediaError(f"cannot read {what} {where}: {why}")


def _reason(error: BaseException) -> str:
    """First line of an exception, with its type where the text alone says little."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def _why_no_frames(error: BaseException) -> str:
    if "read_video" in str(error):
        return "no video decoder is installed. Try: pip install decord"
    if "nframes should in interval" in str(error):
        return "it has fewer than two frames to sample"
    return f"torn or not a video ({_reason(error)})"


def _stored_bytes_or_path(value: Any, root: Path | None, what: str) -> tuple[bytes | None, str]:
    """(bytes, name for messages), or (None, path as a string) after checking that the path stays in ``root``."""
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return bytes(value["bytes"]), str(value.get("path") or SHOWN_BYTES_NAME)
        value = value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), SHOWN_BYTES_NAME
    if not isinstance(value, str | Path) or not str(value):
        raise _media_error(
            what, repr(value)[:80], "expected a path, bytes, a PIL image, or a mapping with path or bytes"
        )
    if "://" in str(value) or str(value).startswith("data:"):
        raise _media_error(what, str(value)[:200], "addresses are not fetched; download the file first")
    if "\0" in str(value):
        raise _media_error(what, repr(value)[:200], "a path cannot hold a NUL character")
    path = Path(value)
    if root is None:
        return None, str(path)
    try:
        path = (root / path).resolve()
    except (OSError, RuntimeError) as error:
        raise _media_error(what, str(value)[:200], _reason(error)) from error
    if not path.is_relative_to(root.resolve()):
        raise _media_error(what, str(value)[:200], f"the path leads out of the folder {root}")
    return None, str(path)


def _read_file(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _media_error(what, str(path), "no such file") from error
    except OSError as error:
        raise _media_error(what, str(path), error.strerror or str(error)) from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Pixels of an opened image as upright RGB."""
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise _media_error("image", name, f"{width} x {height} is more than {MAX_IMAGE_PIXELS} pixels")
    try:
        image.load()
        upright = _apply_exif_rotation(image)
        return upright if upright.mode == "RGB" and "transparency" not in upright.info else _to_rgb(upright)
    except Exception as error:  # format plugins raise OSError, SyntaxError, struct.error, ... on torn data
        raise _media_error("image", name, _reason(error)) from error


def _apply_exif_rotation(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # an unreadable tag: the pixels are sound, and viewers show them as stored
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
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

    grey = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        grey = np.nan_to_num(grey)
        grey = grey * 255.0 if grey.max() <= 1.0 else grey
    else:
        grey = grey / 257.0  # 65535 / 257 = 255
    return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")

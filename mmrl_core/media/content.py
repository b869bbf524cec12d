"""Read images and audio: any stored form in, RGB pixels or mono sound or one clear ``MediaError`` out.

Rows hold media as paths, bytes or decoded objects. The functions here, and in video.py, are the only place that opens
them, so that a broken file is reported with its name and cause and breaks its row only.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from mmrl_core.errors import MediaError

if TYPE_CHECKING:
    import numpy as np

MAX_IMAGE_PIXELS = 128_000_000  # a few kilobytes can unpack to terabytes; larger images are refused before decoding
MAX_ASPECT_RATIO = 200  # the limit of the Qwen vision processors
MAX_AUDIO_SECONDS = 600.0
MIN_AUDIO_SECONDS = 0.025  # one spectrogram window; from less, an audio encoder makes no token
MAX_KERNEL_VALUES = 20_000_000  # rates with no large common factor, such as 44101 and 16000, need gigabytes to resample
UNKNOWN_LENGTH = 1 << 62  # libsndfile's frame count where a header gives none
CONVERT = "Convert it, for instance with ffmpeg"
MAX_FILE_HASHES = 1 << 16  # about 20 MB
SHOWN_BYTES_NAME = "<bytes in the row>"
SHOWN_ARRAY_NAME = "<array in the row>"


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
    data, name = _stored_bytes(value, root, "image")
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
    if isinstance(value, Image.Image):
        image = _decode(value, "<PIL image>")
        digest.update(f"RGB pixels {image.size}".encode())
        digest.update(image.tobytes())
        return digest.hexdigest()
    if _is_decoded_audio(value):
        audio = _decoded_audio(value)
        digest.update(f"audio samples at {audio.sampling_rate}".encode())
        digest.update(audio.samples.tobytes())
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
        stat = os.stat(name)
        return _file_hash(os.path.abspath(name), stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise _media_error("media file", name, error.strerror or str(error)) from error


@functools.lru_cache(maxsize=MAX_FILE_HASHES)
def _file_hash(name: str, mtime_ns: int, num_bytes: int) -> str:
    """SHA-256 of a file; one that has changed since has another key."""
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def media_file(value: Any, *, root: Path | None, what: str = "media file") -> str | None:
    """The file that a medium is read from, as an absolute path; None where the row holds bytes or a decoded object.

    Args:
        value: whatever ``load_image``, ``load_audio`` or ``load_video`` takes.
        root: as in ``load_image``.
        what: to call it in errors.

    Raises:
        MediaError: as ``load_image`` does for paths, and for values of another type.
    """
    if isinstance(value, Image.Image) or _is_decoded_audio(value):
        return None
    data, name = _stored_bytes_or_path(value, root, what)
    return os.path.abspath(name) if data is None else None


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
class Audio:
    """Sound with one channel.

    Attributes:
        samples: float32 [samples], full scale is -1..1.
        sampling_rate: samples per second.
    """

    samples: np.ndarray
    sampling_rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sampling_rate


def load_audio(
    value: Any, *, root: Path | None, sampling_rate: int | None = None, max_seconds: float = MAX_AUDIO_SECONDS
) -> Audio:
    """Decode one audio to mono; channels are averaged.

    Args:
        value: bytes of a wav, flac, mp3 or ogg file; a path (str or Path); or a mapping with "bytes" and/or "path", or
            with "array" ([samples] or [channels, samples]) and "sampling_rate", as the datasets library gives them.
        root: as in ``load_image``.
        sampling_rate: samples per second of the result; None keeps that of the file.
        max_seconds: longer audio is refused before decoding; nothing is cut.

    Raises:
        MediaError: not audio, torn, missing, out of ``root``, an internet address, longer than ``max_seconds``, shorter
            than ``MIN_AUDIO_SECONDS``, or samples that are not finite.
    """
    if _is_decoded_audio(value):
        name, audio = SHOWN_ARRAY_NAME, _decoded_audio(value)
    else:
        data, name = _stored_bytes(value, root, "audio")
        audio = _decode_audio(data, name, max_seconds)
    _check_length(audio.seconds, name, max_seconds)
    if audio.seconds < MIN_AUDIO_SECONDS:
        raise _media_error("audio", name, f"{audio.seconds:.3f} s is less than {MIN_AUDIO_SECONDS} s of sound")
    if sampling_rate is None or sampling_rate == audio.sampling_rate:
        return audio
    return Audio(resample_audio(audio.samples, audio.sampling_rate, sampling_rate), sampling_rate)


def resample_audio(samples: np.ndarray, sampling_rate: int, new_rate: int) -> np.ndarray:
    """Samples at another rate, float32 [samples * new_rate / sampling_rate, rounded up]; the same array at the same.

    Raises:
        MediaError: the rates have so small a common factor that resampling would take gigabytes.

    Source: ``torchaudio.functional.resample`` with its defaults (windowed sinc, Hann).
    """
    if sampling_rate == new_rate:
        return samples
    common = math.gcd(sampling_rate, new_rate)
    if sampling_rate // common * (new_rate // common) > MAX_KERNEL_VALUES:
        why = f"a rate of {sampling_rate} Hz cannot be resampled to {new_rate} Hz; convert the file to a usual rate"
        raise _media_error("audio", f"of {len(samples)} samples", why)
    import torch
    from torchaudio.functional import resample

    return resample(torch.from_numpy(samples), sampling_rate, new_rate).numpy()


def _media_error(what: str, where: str, why: str) -> MediaError:
    return MediaError(f"cannot read {what} {where}: {why}")


def _reason(error: BaseException) -> str:
    """First line of an exception, with its type where the text alone says little."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def _stored_bytes(value: Any, root: Path | None, what: str) -> tuple[bytes, str]:
    """(bytes of the file, name for messages)."""
    data, name = _stored_bytes_or_path(value, root, what)
    if data is None:
        data = _read_file(Path(name), what)
    if not data:
        raise _media_error(what, name, "it is empty")
    return data, name


def _stored_bytes_or_path(value: Any, root: Path | None, what: str) -> tuple[bytes | None, str]:
    """(bytes, name for messages), or (None, path as a string) after checking that the path stays in ``root``."""
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return bytes(value["bytes"]), str(value.get("path") or SHOWN_BYTES_NAME)
        value = value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), SHOWN_BYTES_NAME
    if not isinstance(value, str | Path) or not str(value):
        decoded = "a mapping with array and sampling_rate" if what == "audio" else "a PIL image"
        raise _media_error(
            what, repr(value)[:80], f"expected a path, bytes, {decoded}, or a mapping with path or bytes"
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


def _decode_audio(data: bytes, name: str, max_seconds: float) -> Audio:
    """Samples of an audio file."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the wheel brings no libsndfile for this system
        raise _media_error("audio", name, f"reading audio needs soundfile ({_reason(error)})") from error
    if data[:4] in (b"RIFF", b"RIFX"):
        _check_riff_size(data, name)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, promised = file.samplerate, len(file)
            if promised >= UNKNOWN_LENGTH:  # written to a pipe; libsndfile opens such a flac, but cannot read it
                raise _media_error("audio", name, f"its header does not say how long it is. {CONVERT}")
            _check_length(promised / rate, name, max_seconds)
            samples = file.read(dtype="float32", always_2d=True)
    except MediaError:
        raise
    except Exception as error:  # libsndfile raises its own errors, ValueError and RuntimeError
        why = f"torn or not a wav, flac, mp3 or ogg file ({_reason(error)}). {CONVERT}"
        raise _media_error("audio", name, why) from error
    if len(samples) < promised and file.format != "MP3":  # mp3 headers estimate
        raise _media_error("audio", name, f"torn: it holds {len(samples)} of {promised} samples")
    return _mono(samples.T, rate, name)


def _check_riff_size(data: bytes, name: str) -> None:
    """A wav that ends before its header says is torn; libsndfile would read what is left."""
    size = int.from_bytes(data[4:8], "little" if data[:4] == b"RIFF" else "big") + 8
    written_to_a_pipe = size >= 0xFFFFFF00
    if not written_to_a_pipe and size > len(data) + 1:  # + 1: some writers leave out the last padding byte
        raise _media_error("audio", name, f"torn: it holds {len(data)} of {size} bytes")


def _check_length(seconds: float, name: str, max_seconds: float) -> None:
    if seconds > max_seconds:
        why = f"{seconds:.1f} s is more than the limit of {max_seconds:g} s. Shorten it; nothing is cut"
        raise _media_error("audio", name, why)


def _is_decoded_audio(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("array") is not None


def _decoded_audio(value: Mapping[str, Any]) -> Audio:
    """A mapping with "array" and "sampling_rate"; integers are taken as full-scale samples."""
    import numpy as np

    rate = value.get("sampling_rate")
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or rate < 1:
        raise _media_error(
            "audio", SHOWN_ARRAY_NAME, f"its sampling_rate is {rate!r}, not a number of samples a second"
        )
    try:
        samples = np.asarray(value["array"])
        if np.issubdtype(samples.dtype, np.signedinteger):
            samples = samples / -float(np.iinfo(samples.dtype).min)
        samples = samples.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise _media_error("audio", SHOWN_ARRAY_NAME, f"its array holds no numbers ({_reason(error)})") from error
    if samples.ndim not in (1, 2):
        raise _media_error(
            "audio", SHOWN_ARRAY_NAME, f"its array has {samples.ndim} axes, not [samples] or [channels, samples]"
        )
    channels = np.atleast_2d(samples)
    if not len(channels):
        raise _media_error("audio", SHOWN_ARRAY_NAME, "it has no channel")
    return _mono(channels, int(rate), SHOWN_ARRAY_NAME)


def _mono(samples: np.ndarray, rate: int, name: str) -> Audio:
    """[channels, samples] -> their mean."""
    import numpy as np

    mono = np.ascontiguousarray(samples.mean(0) if len(samples) > 1 else samples[0])
    if not np.isfinite(mono).all():
        raise _media_error("audio", name, "it holds samples that are not finite")
    return Audio(mono, rate)

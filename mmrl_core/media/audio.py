"""Read audio: any stored form in, mono sound or one clear `MediaError` out."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import MediaError
from mmrl_core.media.files import CONVERT, media_error, reason, stored_bytes
from mmrl_core.support import need

if TYPE_CHECKING:
    import numpy as np

MAX_AUDIO_SECONDS = 600.0
MIN_AUDIO_SECONDS = 0.025  # one spectrogram window; from less, an audio encoder makes no token
MAX_KERNEL_VALUES = 20_000_000  # rates with no large common factor, such as 44101 and 16000, need gigabytes to resample
UNKNOWN_LENGTH = 1 << 62  # libsndfile's frame count where a header gives none
SHOWN_ARRAY_NAME = "<array in the row>"


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
        MissingPackageError: a package of the extra "audio" is not installed.
    """
    if is_decoded_audio(value):
        name, audio = SHOWN_ARRAY_NAME, decoded_audio(value)
    else:
        data, name = stored_bytes(value, root, "audio")
        audio = _decode_audio(data, name, max_seconds)
    _check_length(audio.seconds, name, max_seconds)
    if audio.seconds < MIN_AUDIO_SECONDS:
        raise media_error("audio", name, f"{audio.seconds:.3f} s is less than {MIN_AUDIO_SECONDS} s of sound")
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
        raise media_error("audio", f"of {len(samples)} samples", why)
    import torch

    functional: Any = need("torchaudio.functional", "audio", "resampling audio")
    return functional.resample(torch.from_numpy(samples), sampling_rate, new_rate).numpy()


def _decode_audio(data: bytes, name: str, max_seconds: float) -> Audio:
    """Samples of an audio file."""
    soundfile: Any = need("soundfile", "audio", "reading audio files")
    if data[:4] in (b"RIFF", b"RIFX"):
        _check_riff_size(data, name)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, promised = file.samplerate, len(file)
            if promised >= UNKNOWN_LENGTH:  # written to a pipe; libsndfile opens such a flac, but cannot read it
                raise media_error("audio", name, f"its header does not say how long it is. {CONVERT}")
            _check_length(promised / rate, name, max_seconds)
            samples = file.read(dtype="float32", always_2d=True)
    except MediaError:
        raise
    except Exception as error:  # libsndfile raises its own errors, ValueError and RuntimeError
        why = f"torn or not a wav, flac, mp3 or ogg file ({reason(error)}). {CONVERT}"
        raise media_error("audio", name, why) from error
    if len(samples) < promised and file.format != "MP3":  # mp3 headers estimate
        raise media_error("audio", name, f"torn: it holds {len(samples)} of {promised} samples")
    return _mono(samples.T, rate, name)


def _check_riff_size(data: bytes, name: str) -> None:
    """A wav that ends before its header says is torn; libsndfile would read what is left."""
    size = int.from_bytes(data[4:8], "little" if data[:4] == b"RIFF" else "big") + 8
    written_to_a_pipe = size >= 0xFFFFFF00
    if not written_to_a_pipe and size > len(data) + 1:  # + 1: some writers leave out the last padding byte
        raise media_error("audio", name, f"torn: it holds {len(data)} of {size} bytes")


def _check_length(seconds: float, name: str, max_seconds: float) -> None:
    if seconds > max_seconds:
        why = f"{seconds:.1f} s is more than the limit of {max_seconds:g} s. Shorten it; nothing is cut"
        raise media_error("audio", name, why)


def is_decoded_audio(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("array") is not None


def decoded_audio(value: Mapping[str, Any]) -> Audio:
    """A mapping with "array" and "sampling_rate"; integers are taken as full-scale samples."""
    import numpy as np

    rate = value.get("sampling_rate")
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or rate < 1:
        raise media_error("audio", SHOWN_ARRAY_NAME, f"its sampling_rate is {rate!r}, not a number of samples a second")
    try:
        samples = np.asarray(value["array"])
        if np.issubdtype(samples.dtype, np.signedinteger):
            samples = samples / -float(np.iinfo(samples.dtype).min)
        samples = samples.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise media_error("audio", SHOWN_ARRAY_NAME, f"its array holds no numbers ({reason(error)})") from error
    if samples.ndim not in (1, 2):
        raise media_error(
            "audio", SHOWN_ARRAY_NAME, f"its array has {samples.ndim} axes, not [samples] or [channels, samples]"
        )
    channels = np.atleast_2d(samples)
    if not len(channels):
        raise media_error("audio", SHOWN_ARRAY_NAME, "it has no channel")
    return _mono(channels, int(rate), SHOWN_ARRAY_NAME)


def _mono(samples: np.ndarray, rate: int, name: str) -> Audio:
    """[channels, samples] -> their mean."""
    import numpy as np

    mono = np.ascontiguousarray(samples.mean(0) if len(samples) > 1 else samples[0])
    if not np.isfinite(mono).all():
        raise media_error("audio", name, "it holds samples that are not finite")
    return Audio(mono, rate)

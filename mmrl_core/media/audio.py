"""Read audio: any stored form in, mono sound or one clear `MediaError` out."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import MediaError
from mmrl_core.media.files import CONVERT, media_error, reason, regular_file, stored_bytes, stored_bytes_or_path
from mmrl_core.support import need

if TYPE_CHECKING:
    import numpy as np

MAX_AUDIO_SECONDS = 600.0
MAX_VALUES_PER_S = 192_000  # of all channels: one at the highest rate in use, four at 48 kHz
BLOCK_FRAMES = 1 << 20  # decoded at a time, so that channels are never all in memory
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
        value: bytes of a wav, flac, mp3 or ogg file; base64 of them, plain or as a data URI; a path (str or Path); or
            a mapping that has one of these under "bytes", "path", "url", "audio_url" or "audio", or that has "array"
            ([samples] or [channels, samples]) and "sampling_rate", as the datasets library gives them. An array holds
            floats, full scale -1..1, or int8, int16 or int32 of full scale.
        root: as in ``load_image``.
        sampling_rate: samples per second of the result; None keeps that of the file.
        max_seconds: longer audio is refused before decoding; nothing is cut. So is audio of more than
            `max_seconds * MAX_VALUES_PER_S` samples, those of all channels counted.

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


def audio_seconds(value: Any, *, root: Path | None, max_seconds: float = MAX_AUDIO_SECONDS) -> float:
    """Length of an audio in seconds, from the header of its file; decoding may still show that the file is torn.

    Args:
        value, root, max_seconds: as in ``load_audio``.

    Raises:
        MediaError: as ``load_audio``, apart from what only decoding shows.
    """
    if is_decoded_audio(value):
        return decoded_audio(value).seconds
    data, name = stored_bytes_or_path(value, root, "audio")
    if data is None:
        regular_file(name, "audio")
    with _opened(name if data is None else io.BytesIO(data), name) as file:
        return _promised_length(file, name, max_seconds) / file.samplerate


def _decode_audio(data: bytes, name: str, max_seconds: float) -> Audio:
    """Samples of an audio file."""
    import numpy as np

    if data[:4] in (b"RIFF", b"RIFX"):
        _check_riff_size(data, name)
    with _opened(io.BytesIO(data), name) as file:
        rate, promised = file.samplerate, _promised_length(file, name, max_seconds)
        try:
            samples, found = np.empty(promised, np.float32), 0
            while len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
                if found + len(block) > len(samples):  # the header of an mp3 estimates
                    _check_length((found + len(block)) / rate, name, max_seconds)
                    samples.resize(found + len(block), refcheck=False)
                samples[found : found + len(block)] = _mono(block.T, rate, name).samples
                found += len(block)
        except MediaError:
            raise
        except Exception as error:
            raise _no_audio(error, name) from error
    if found < promised and file.format != "MP3":
        raise media_error("audio", name, f"torn: it holds {found} of {promised} samples")
    return Audio(samples[:found], rate)


def _opened(file: str | io.BytesIO, name: str) -> Any:
    soundfile: Any = need("soundfile", "audio", "reading audio files")
    try:
        return soundfile.SoundFile(file)
    except Exception as error:  # libsndfile raises its own errors, ValueError and RuntimeError
        raise _no_audio(error, name) from error


def _no_audio(error: Exception, name: str) -> MediaError:
    return media_error("audio", name, f"torn or not a wav, flac, mp3 or ogg file ({reason(error)}). {CONVERT}")


def _promised_length(file: Any, name: str, max_seconds: float) -> int:
    """Samples of each channel that the header promises, which are not too many."""
    promised, rate = len(file), file.samplerate
    if promised >= UNKNOWN_LENGTH:  # written to a pipe; libsndfile opens such a flac, but cannot read it
        raise media_error("audio", name, f"its header does not say how long it is. {CONVERT}")
    _check_length(promised / rate, name, max_seconds)
    if promised * file.channels > max_seconds * MAX_VALUES_PER_S:
        why = f"{promised} samples of {file.channels} channels at {rate} Hz are more than the limit of "
        why += f"{max_seconds * MAX_VALUES_PER_S:.0f} for {max_seconds:g} s. Make it mono, or lower its rate"
        raise media_error("audio", name, why)
    return promised


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
    except (TypeError, ValueError) as error:
        raise media_error("audio", SHOWN_ARRAY_NAME, f"its array holds no numbers ({reason(error)})") from error
    kind = samples.dtype
    if samples.size and not np.issubdtype(kind, np.floating) and kind not in (np.int8, np.int16, np.int32):
        why = "its array holds no numbers" if kind.kind in "OSU" else f"its array holds values of the type {kind}"
        what_to_do = "give floats of full scale -1..1, or int8, int16 or int32 of full scale"
        raise media_error("audio", SHOWN_ARRAY_NAME, f"{why}; {what_to_do}")
    scale = -float(np.iinfo(kind).min) if np.issubdtype(kind, np.integer) and samples.size else 1.0
    samples = (samples / scale).astype(np.float32)
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

"""What the report's charts show, as plain data for the library that draws them; and sounds as pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

SMOOTHED_FROM = 40  # points of a stage from which on a moving average is drawn over them
MAX_POINTS = 600  # of a curve; of more, neighbours are averaged
DIGITS = 5  # significant, of numbers in the page
SPECTROGRAM_PX = (480, 128)
SPECTROGRAM_WINDOW_S = 0.032
SPECTROGRAM_RANGE_DB = 70.0  # from black to bright
# From quiet to loud: black, violet, red, yellow, nearly white; even in lightness, as "magma" of matplotlib is.
LOUDNESS = ((0, 0, 4), (40, 17, 90), (100, 26, 128), (160, 48, 126), (222, 73, 104), (252, 137, 97), (254, 252, 191))


@dataclass(frozen=True)
class Stage:
    """A stage of training and its first and last step; steps count through all stages."""

    name: str
    first: int
    last: int


@dataclass(frozen=True)
class Series:
    """A curve: values over increasing steps, both of one length, finite.

    `is_measured` marks evaluations, few and far between: they get markers, and a line across stages. Other curves are
    cut, and smoothed, by stage, because what one stage logs may jump against what another does. `intervals` has for
    each value its low and high edge, or None. `run` is the position of the run among those that are compared.
    """

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    is_measured: bool = False
    intervals: Sequence[tuple[float, float] | None] = ()
    run: int = 0

    @property
    def is_flat(self) -> bool:
        """Whether all values are one, as far as the page would show."""
        return float(f"{max(self.values):.{DIGITS}g}") == float(f"{min(self.values):.{DIGITS}g}")


def curve(series: Series, stages: Sequence[Stage]) -> dict[str, Any]:
    """A curve as the page draws it.

    Args:
        stages: in order; a curve of training is cut after each.

    Returns:
        "label", "run", "measured"; "x" and "y" of equal length, null in `y` where the curve is cut; "smooth", the
        moving average at the same places, where the curve is long; "low" and "high", where there are intervals.
    """
    told: dict[str, Any] = {"label": series.label, "run": series.run, "measured": series.is_measured}
    if series.is_measured:
        told |= {"x": list(series.steps), "y": rounded(series.values)}
        if any(series.intervals):
            edges = [pair or (math.nan, math.nan) for pair in series.intervals]
            told |= {"low": rounded([low for low, _ in edges]), "high": rounded([high for _, high in edges])}
        return told
    steps, values = np.asarray(series.steps), np.asarray(series.values, dtype=float)
    cuts = np.searchsorted(steps, [stage.last for stage in stages], side="right")
    x: list[float] = []
    y: list[float] = []
    smooth: list[float] = []
    for part in np.split(np.arange(len(steps)), cuts):
        if not len(part):
            continue
        if x:
            x, y, smooth = [*x, x[-1] + 0.5], [*y, math.nan], [*smooth, math.nan]
        own = moving_average(values[part]) if len(part) >= SMOOTHED_FROM else values[part]
        share = math.ceil(len(steps) / MAX_POINTS)
        x += _averaged(steps[part], share)
        y += _averaged(values[part], share)
        smooth += _averaged(own, share)
    told |= {"x": [int(step) if step == int(step) else round(step, 1) for step in x], "y": rounded(y)}
    return told | ({"smooth": rounded(smooth)} if smooth != y else {})


def rounded(values: Sequence[float]) -> list[float | int | None]:
    """Numbers with as many digits as anyone reads; None for what is not finite.

    >>> rounded([3.0, 0.123456789, float("nan")])
    [3, 0.12346, None]
    """
    found: list[float | int | None] = []
    for value in values:
        number = float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
        found.append(int(number) if number is not None and number.is_integer() and abs(number) < 1e15 else number)
    return found


def moving_average(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Mean over a window of about a tenth of the values, narrower at both ends so that it stays centred.

    >>> moving_average([0.0, 3.0, 0.0, 3.0]).tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    index = np.arange(len(values))
    reach = np.minimum(max(1, len(values) // 20), np.minimum(index, index[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def _averaged(values: np.ndarray, share: int) -> list[float]:
    """Means of every `share` neighbours."""
    return [float(part.mean()) for part in np.split(values, range(share, len(values), share))]


def draw_spectrogram(samples: np.ndarray, sampling_rate: int) -> Image.Image:
    """A sound as a picture of `SPECTROGRAM_PX`: time to the right, frequency upwards on the mel scale, loud is bright.

    Args:
        samples: float [samples], at least one.
        sampling_rate: samples a second; the top of the picture is half of it, in hertz.
    """
    from PIL import Image

    width, height = SPECTROGRAM_PX
    size = max(2, round(SPECTROGRAM_WINDOW_S * sampling_rate))
    padded = np.pad(samples, (size // 2, size - size // 2))
    starts = np.linspace(0, len(samples), width, endpoint=False).astype(int)
    frames = padded[starts[:, None] + np.arange(size)] * np.hanning(size)  # [width, size]
    power = np.abs(np.fft.rfft(frames)) ** 2  # [width, bins]
    mels = np.linspace(0, _mel(sampling_rate / 2), height + 1)
    edges = 700 * (10 ** (mels / 2595) - 1) / sampling_rate * size  # of the rows, in bins
    rows = [power[:, int(low) : max(int(low) + 1, math.ceil(high))].max(1) for low, high in itertools.pairwise(edges)]
    level_db = 10 * np.log10(np.stack(rows[::-1]) + 1e-12)  # [height, width]
    shown = 1 + (level_db - max(level_db.max(), 0.0)) / SPECTROGRAM_RANGE_DB  # a silent sound stays black
    places = np.linspace(0, 1, len(LOUDNESS))
    colours = [np.interp(shown, places, channel) for channel in np.transpose(LOUDNESS)]  # clipped to 0..1
    return Image.fromarray(np.stack(colours, -1).astype(np.uint8))


def _mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)

"""Curves and sounds as pictures. matplotlib is imported by what draws, not by importing this module.

Drawn through the object API with fixed settings: the same numbers give the same bytes, whatever a user's matplotlibrc.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

SIZE_INCHES = (4.2, 2.3)  # about 400 CSS pixels wide: text stays readable from 0.8 to 1.5 times that
SMOOTHED_FROM = 40  # points of a stage from which on a moving average is drawn over them
POINTS_DPI = 200  # single points are a picture in the drawing: thousands as shapes would take megabytes
KEYS_OF_ROW = 3  # of the legend
ROUND_STEPS = (1, 2, 2.5, 5, 10)  # between ticks
SPECTROGRAM_PX = (480, 128)
SPECTROGRAM_WINDOW_S = 0.032
SPECTROGRAM_RANGE_DB = 70.0  # from black to bright

# Okabe and Ito, without yellow and with the light ones darker: distinct for colour-blind readers on white. Dashes tell
# curves apart without colour; as 7 and 4 share no factor, 28 curves differ.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#9a4f96", "#b07d00", "#2b8cc4", "#444444")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

STYLE = {
    "axes.edgecolor": "#b8bfca",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.ymargin": 0.07,
    "font.sans-serif": ["DejaVu Sans", "Segoe UI", "Helvetica Neue", "Arial"],  # the first comes with matplotlib
    "font.size": 8.5,
    "grid.color": "#e6e9ee",
    "grid.linewidth": 0.8,
    "legend.borderaxespad": 0,
    "legend.borderpad": 0.1,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.7,
    "svg.fonttype": "none",  # text stays text: small files, and the reader's fonts for what DejaVu lacks
    "svg.hashsalt": "mmrl",  # without it, ids differ from one drawing to the next
    "text.color": "#1c2330",
    "text.parse_math": False,  # a dollar sign in a metric's name is no formula
    "xtick.color": "#5d6675",
    "ytick.color": "#5d6675",
    "ytick.major.size": 0,
}


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
    cut, and smoothed, by stage, because what one stage logs may jump against what another does.
    """

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    is_measured: bool = False


def draw_chart(series: Sequence[Series], stages: Sequence[Stage]) -> Figure:
    """Curves over steps, with the stages that they span marked and named.

    Args:
        series: at least one, none empty. There is a legend if there are several.
        stages: in order.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    with _style():
        num_key_rows = math.ceil(len(series) / KEYS_OF_ROW) if len(series) > 1 else 0
        bottom = (20 + 14 * num_key_rows) / (72 * SIZE_INCHES[1])  # points of text under the axis
        figure = Figure(figsize=SIZE_INCHES)
        axes = figure.add_axes((0.12, bottom, 0.86, 0.9 - bottom))
        keys = [
            _draw_series(axes, line, stages, COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)])
            for index, line in enumerate(series)
        ]
        low, high = min(line.steps[0] for line in series), max(line.steps[-1] for line in series)
        margin = 0.02 * (high - low) or 1
        axes.set_xlim(low - margin, high + margin)
        least, most = min(min(line.values) for line in series), max(max(line.values) for line in series)
        if 0 <= least <= most / 2:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=ROUND_STEPS, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=ROUND_STEPS))
        formatter = ScalarFormatter(useOffset=False)
        formatter.set_powerlimits((-3, 6))
        axes.yaxis.set_major_formatter(formatter)
        _mark_stages(axes, stages)
        if num_key_rows:
            figure.legend(keys, [line.label for line in series], loc="lower center", ncols=KEYS_OF_ROW)
    return figure


def chart_uri(figure: Figure) -> str:
    """The drawing as SVG in a data URI, for an `img`."""
    buffer = io.BytesIO()
    with _style(), warnings.catch_warnings():
        # What DejaVu lacks is only measured with it; the browser draws it.
        warnings.filterwarnings("ignore", message="Glyph")
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", dpi=POINTS_DPI, metadata=metadata)
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def moving_average(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Mean over a window of about a tenth of the values, narrower at both ends so that it stays centred.

    >>> moving_average([0.0, 3.0, 0.0, 3.0]).tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    index = np.arange(len(values))
    reach = np.minimum(max(1, len(values) // 20), np.minimum(index, index[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def _style() -> AbstractContextManager[None]:
    import matplotlib.style

    return matplotlib.style.context(["default", STYLE])


def _draw_series(axes: Any, line: Series, stages: Sequence[Stage], colour: str, dash: Any) -> Any:
    """Draw one curve; returns its line for the legend."""
    style = {"color": colour, "linestyle": dash}
    if line.is_measured:
        (key,) = axes.plot(line.steps, line.values, marker="o", markersize=4, markerfacecolor="white", **style)
        return key
    steps, values = np.asarray(line.steps), np.asarray(line.values, dtype=float)
    cuts = np.searchsorted(steps, [stage.last for stage in stages], side="right")
    for part in np.split(np.arange(len(steps)), cuts):
        if len(part) >= SMOOTHED_FROM:
            points = {"linestyle": "", "marker": ".", "markersize": 3.6, "markeredgewidth": 0, "alpha": 0.45}
            axes.plot(steps[part], values[part], color=colour, rasterized=True, **points)
            (key,) = axes.plot(steps[part], moving_average(values[part]), **style)
        elif len(part):
            (key,) = axes.plot(steps[part], values[part], marker="o" if len(part) == 1 else "", markersize=4, **style)
    return key


def _mark_stages(axes: Any, stages: Sequence[Stage]) -> None:
    """A dashed line where a stage ends and another begins; each stage's name above it, where there is room."""
    low, high = axes.get_xlim()
    start = low
    for index, stage in enumerate(stages):
        end = high if stage is stages[-1] else min(stage.last, high)
        if end <= low or start >= high:
            continue
        if index % 2:
            axes.axvspan(start, end, color="#f1f5fa", zorder=0, linewidth=0)
        if start > low:
            axes.axvline(start, color="#8d97a6", linestyle=(0, (3, 3)), linewidth=1)
        if (end - start) / (high - low) > 0.02 * len(stage.name):
            axes.annotate(
                stage.name,
                ((start + end) / 2, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color="#5d6675",
            )
        start = end


def draw_spectrogram(samples: np.ndarray, sampling_rate: int) -> Image.Image:
    """A sound as a picture of `SPECTROGRAM_PX`: time to the right, frequency upwards on the mel scale, loud is bright.

    Args:
        samples: float [samples], at least one.
        sampling_rate: samples a second; the top of the picture is half of it, in hertz.
    """
    from matplotlib import colormaps
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
    return Image.fromarray((colormaps["magma"](np.clip(shown, 0, 1))[..., :3] * 255).astype(np.uint8))


def _mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)

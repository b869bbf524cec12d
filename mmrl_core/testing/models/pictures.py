"""Pictures of the demos: handwritten digits and photographs.

They are real but small: 8 x 8 scans of handwritten digits (UCI, Alpaydin and Kaynak 1998) from scikit-learn, and six
photographs shipped inside scikit-learn and scikit-image. The core does not depend on these two packages; a plugin
whose demo draws with them does.
"""

from __future__ import annotations

import functools
import importlib
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import TaskDataError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CLASS_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_SCANS = 1797
SCAN_SHUFFLE_SEED = 0
INK_THRESHOLD = 0.3  # share of full ink from which a scan's row or column counts as written on
MIN_DIGIT_WIDTH_PX = 8  # to which a one is widened


@functools.cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 8, 8], ink 0..255; int [1797], digit. Read from scikit-learn's files."""
    import numpy as np

    digits = _import("sklearn.datasets", "scikit-learn").load_digits()
    return np.clip(digits.images * (255.0 / 16.0), 0, 255).astype(np.uint8), digits.target


@functools.cache
def scan_ids_by_class(first: int, end: int) -> list[list[int]]:
    """Scans number ``first`` to ``end - 1`` in an order shuffled once for all, for each digit 0..9.

    Splits with ranges that do not overlap share no scan, whatever the seed of their pictures.
    """
    _, labels = _scans()
    shuffled = list(range(NUM_SCANS))
    random.Random(SCAN_SHUFFLE_SEED).shuffle(shuffled)
    return [[scan_id for scan_id in shuffled[first:end] if labels[scan_id] == digit] for digit in range(10)]


@functools.cache
def ink_masks() -> list[Image.Image]:
    """Opacity of each scan's ink, 0..255, cut to what is written on."""
    import numpy as np
    from PIL import Image

    masks = []
    for scan in _scans()[0]:
        is_ink = scan > INK_THRESHOLD * 255
        rows, columns = np.flatnonzero(is_ink.any(1)), np.flatnonzero(is_ink.any(0))
        masks.append(Image.fromarray(scan[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]))
    return masks


@functools.cache
def photographs(brightness: float) -> list[tuple[str, np.ndarray]]:
    """Name and pixels, uint8 [height, width, 3], of six colour photographs, 451 to 640 pixels wide.

    Args:
        brightness: factor 0..1 on the pixels.
    """
    import numpy as np

    samples = _import("sklearn.datasets", "scikit-learn").load_sample_images()
    data = _import("skimage.data", "scikit-image")
    photos = {Path(name).name: pixels for name, pixels in zip(samples.filenames, samples.images, strict=True)}
    photos |= {"astronaut": data.astronaut(), "cat": data.cat(), "coffee": data.coffee(), "rocket": data.rocket()}
    return [(name, (pixels * brightness).astype(np.uint8)) for name, pixels in photos.items()]


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TaskDataError(f"the demo's pictures come with {package} ({error}). Try: pip install {package}") from error

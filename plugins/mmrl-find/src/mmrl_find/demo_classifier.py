"""The demo's reward: which digit a picture shows, by either of two classifiers that share neither data nor method.

A policy trained on the one cannot have learnt to please the other, so that the other tells whether pictures became
better. Both know pictures that show no digit; an arg max over ten digits would find one in any picture.

    classifier    learns from                    method
    kernel        scans 0 to 799, and spoilt     logistic regression on features of a radial basis function kernel
                  pictures made from them
    neighbours    scans 800 to 1599              votes of the 5 nearest scans, if the nearest is as near as another
                                                 scan would be

The scans are numbered in the shuffled order of `mmrl_core.testing.scan_ids_by_class`. Scans from 1600 on are seen by
neither, nor by the demo's pipeline. Fitting takes about a second, once in each process, and is deterministic.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from mmrl_core.errors import RewardError
from mmrl_core.testing import CLASS_WORDS
from mmrl_find.demo_model import PICTURE_PX, scan_pictures
from mmrl_find.rewards import Completion, Sample, usable_pictures

Probabilities = Callable[[np.ndarray], np.ndarray]
"""Ink [N, 16 * 16] to the probabilities of the digits [N, 10], whose sum falls short of 1 by that of "no digit"."""

KERNEL_SCANS = (0, 800)
NEIGHBOUR_SCANS = (800, 1600)
FEATURE_PX = 16

KERNEL_FEATURES = 300
KERNEL_GAMMA = 0.05  # of the squared distance, which is mostly 4 to 17 between scans of one digit
INVERSE_PENALTY = 30.0
NUM_SPOILT = 100  # of each kind
SPOILT_SEED = 0

NUM_NEIGHBOURS = 5
FARTHEST = 2.5  # distance in units of ink; to 99 of 100 scans the nearest other one is nearer

_fitting = threading.Lock()  # rewards run in threads; they would all fit, and import scikit-learn into each other's way

_DIGIT_WORD = re.compile(rf"\b({'|'.join(CLASS_WORDS)}|\d+)\b", re.IGNORECASE)


def digit(
    completions: Sequence[Completion],
    samples: Sequence[Sample],
    *,
    classifier: Literal["kernel", "neighbours"] = "kernel",
    column: str = "prompt",
) -> list[float | None]:
    """Probability that a picture shows the digit which its prompt names, in [0, 1].

    Args:
        completions: B pictures of a digit in black ink on white paper, of any size; of a video, the mean over frames.
        samples: B rows; `column` holds the prompt, which names one digit, as a word or a numeral.
        classifier: "kernel" to train on, "neighbours" to check with.

    Returns:
        B values; None for what is no picture, is flagged, or holds values that are not finite.

    Raises:
        RewardError: unknown classifier, or a prompt that does not name exactly one digit.
    """
    if classifier not in _CLASSIFIERS:
        raise RewardError(f"digit: there is no classifier {classifier!r}; there are {' and '.join(_CLASSIFIERS)}.")
    wanted = [prompted_digit(str(sample.get(column, ""))) for sample in samples]
    rewards: list[float | None] = []
    for completion, sample, number in zip(completions, samples, wanted, strict=True):
        frames = usable_pictures(completion, sample)
        rewards.append(float(digit_probabilities(frames, classifier)[:, number].mean()) if frames else None)
    return rewards


def prompted_digit(prompt: str) -> int:
    """The digit that a prompt names.

    Raises:
        RewardError: it names none, or several.

    >>> prompted_digit("a handwritten three")
    3
    """
    words = {word.lower() for word in _DIGIT_WORD.findall(prompt)}
    numbers = {CLASS_WORDS.index(word) if word in CLASS_WORDS else int(word) for word in words}
    if len(numbers) != 1 or max(numbers) > 9:
        found = f"names {', '.join(sorted(words))}" if words else "names none"
        raise RewardError(
            f"digit: a prompt has to name one digit, zero to nine, and {prompt!r} {found}. Change the prompt, or set "
            "'column' to the column that holds it."
        )
    return numbers.pop()


def digit_probabilities(
    pictures: Sequence[Image.Image], classifier: Literal["kernel", "neighbours"] = "kernel"
) -> np.ndarray:
    """float64 [N, 10] for N pictures, at least one; what is missing to a sum of 1 is the probability of "no digit"."""
    with _fitting:
        probabilities = _CLASSIFIERS[classifier]()
    return probabilities(_ink(pictures))


def _ink(pictures: Sequence[Image.Image]) -> np.ndarray:
    """float64 [N, 16 * 16], 0 for white paper and 1 for full ink."""
    side = (PICTURE_PX, PICTURE_PX)
    small = [
        picture.convert("L").resize(side, Image.Resampling.BICUBIC).resize((FEATURE_PX,) * 2, Image.Resampling.BOX)
        for picture in pictures
    ]
    return 1.0 - np.stack([np.asarray(picture, dtype=np.float64).ravel() for picture in small]) / 255.0


@functools.cache
def _kernel() -> Probabilities:
    ink, digits = _scans(*KERNEL_SCANS)
    spoilt = _spoilt(ink, digits)
    model = make_pipeline(
        Nystroem(gamma=KERNEL_GAMMA, n_components=KERNEL_FEATURES, random_state=0),
        LogisticRegression(C=INVERSE_PENALTY, max_iter=300),
    )
    model.fit(np.concatenate([ink, spoilt]), np.concatenate([digits, np.full(len(spoilt), len(CLASS_WORDS))]))
    return lambda asked: model.predict_proba(asked)[:, : len(CLASS_WORDS)]


@functools.cache
def _neighbours() -> Probabilities:
    model = KNeighborsClassifier(NUM_NEIGHBOURS).fit(*_scans(*NEIGHBOUR_SCANS))

    def probabilities(asked: np.ndarray) -> np.ndarray:
        nearest = model.kneighbors(asked, 1)[0]  # [N, 1]
        return np.where(nearest <= FARTHEST, model.predict_proba(asked), 0.0)

    return probabilities


_CLASSIFIERS: Mapping[str, Callable[[], Probabilities]] = {"kernel": _kernel, "neighbours": _neighbours}


def _scans(first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    pictures, digits = scan_pictures(first, end)
    return _ink([Image.fromarray(picture) for picture in pictures]), digits


def _spoilt(ink: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """Pictures of no digit: two different ones overlaid, halves exchanged, blots, plain paper of any grey.

    Without the overlaid ones the classifier is sure of what lies halfway between two digits.
    """
    rng = np.random.default_rng(SPOILT_SEED)
    spoilt: list[Any] = []
    while len(spoilt) < NUM_SPOILT:
        one, other = rng.choice(len(ink), 2)
        if digits[one] != digits[other]:
            spoilt.append((ink[one] + ink[other]) / 2)
    for scan in rng.choice(len(ink), NUM_SPOILT, replace=False):
        spoilt.append(np.roll(ink[scan], ink.shape[1] // 2))
    for _ in range(NUM_SPOILT):
        side = int(rng.choice([2, 4, 8, FEATURE_PX]))
        blots = rng.random((side, side)) * rng.random()
        spoilt.append(np.kron(blots, np.ones((FEATURE_PX // side,) * 2)).ravel())
    spoilt.extend(np.full(ink.shape[1], grey) for grey in rng.random(NUM_SPOILT))
    return np.stack(spoilt)

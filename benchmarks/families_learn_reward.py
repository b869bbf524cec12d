"""The reward of `families_learn.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def right(completions: Sequence[str], samples: Sequence[Mapping[str, Any]]) -> list[float]:
    """1.0 for the word that the picture or the sound asks for, 0.0 for any other completion."""
    return [float(said.strip() == sample["answer"]) for said, sample in zip(completions, samples, strict=True)]

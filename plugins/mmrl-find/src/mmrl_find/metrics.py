"""Metrics of generated pictures: completions and their rows in, named numbers out.

With the source `find/prompts` and `repeat`, an evaluation makes several pictures of each prompt; rows that share a
prompt belong together here. What rewards leave unscored (flagged, not finite, no picture) is left out. A number that
nothing defines is NaN.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrl_core.errors import RewardError
from mmrl_find.reward_models import Picture, clip_embeddings
from mmrl_find.rewards import Completion, Sample, usable_pictures


def diversity(
    completions: Sequence[Completion],
    samples: Sequence[Sample],
    *,
    column: str = "prompt",
    size_px: int = 32,
    path: str | None = None,
    device: str = "auto",
    batch_size: int = 16,
) -> dict[str, float]:
    """How much pictures of one prompt differ: mean distance over their pairs, and then over prompts.

    A policy that turns to one good picture loses diversity, whatever its reward says.

    Args:
        completions: N pictures or videos.
        samples: N rows; `column` tells which prompt.
        size_px: without `path`, pictures are shrunk to this many pixels each way; the distance is the mean absolute
            difference of their channels, in [0, 1]; of videos, over all frames.
        path: a CLIP model; the distance is one minus the cosine of the embeddings, in [0, 2]; of videos, of the sums of
            their frames' embeddings.

    Returns:
        "diversity"; "diversity/num_prompts", the prompts with at least two usable pictures, which it is the mean of.

    Raises:
        RewardError: no CLIP model at `path`, or without it videos of one prompt differ in their number of frames.
    """
    groups: dict[Any, list[list[Picture]]] = {}
    for completion, sample in zip(completions, samples, strict=True):
        if frames := usable_pictures(completion, sample):
            groups.setdefault(sample.get(column), []).append(frames)
    distances: list[float] = []
    for prompt, group in groups.items():
        if len(group) < 2:
            continue
        if path is not None:
            distances.append(_clip_distance(group, path, device, batch_size))
        elif len({len(frames) for frames in group}) > 1:
            raise RewardError(f"diversity: videos of {prompt!r} differ in their number of frames; set 'path'.")
        else:
            distances.append(_pixel_distance(group, size_px))
    return {"diversity": _mean(distances), "diversity/num_prompts": float(len(distances))}


def _clip_distance(group: Sequence[Sequence[Picture]], path: str, device: str, batch_size: int) -> float:
    pictures = [picture for frames in group for picture in frames]
    embeddings = clip_embeddings(pictures, path=path, device=device, batch_size=batch_size)
    sums = torch.stack([part.sum(dim=0) for part in embeddings.split([len(frames) for frames in group])])
    unit = torch.nn.functional.normalize(sums, dim=-1)
    first, second = torch.triu_indices(len(group), len(group), offset=1)
    return float(1.0 - (unit @ unit.T)[first, second].mean())


def _pixel_distance(group: Sequence[Sequence[Picture]], size_px: int) -> float:
    def small(picture: Picture) -> np.ndarray:
        return np.asarray(picture.resize((size_px, size_px), Image.Resampling.BOX), dtype=np.float64) / 255.0

    pixels = torch.from_numpy(np.stack([np.concatenate([small(frame) for frame in frames]) for frames in group]))
    return float(torch.pdist(pixels.flatten(1), p=1).mean()) / pixels[0].numel()


def reward_stats(
    completions: Sequence[Any],
    samples: Sequence[Sample],
    *,
    reward: str,
    options: Mapping[str, Any] | None = None,
    column: str = "prompt",
    by: str = "category",
) -> dict[str, float]:
    """What a reward says of the pictures of each prompt: mean, median and best, averaged over prompts.

    The best of n pictures from the unchanged model is the baseline that training of n pictures has to beat. The reward
    need not be one that is trained on, and a reward that is not guards against pictures that please only the other.

    Args:
        completions: N pictures or videos.
        samples: N rows; `column` tells which prompt, and `by` a kind of prompt (rows without it belong to none).
        reward: id of an installed reward, such as "find/clip_score", or file.py:function.
        options: of the reward.

    Returns:
        "<reward>/mean", "<reward>/median", "<reward>/best"; "<reward>/mean/<kind>" for each kind; "<reward>/unscored",
        the share of completions that it left unscored. All prompts count alike, whatever their number of pictures.

    Raises:
        PluginError: no plugin provides the reward.
        RewardError: the reward has no such option, or reads rollouts.
    """
    from mmrl_core.config import RewardConfig
    from mmrl_core.plugins import load_plugins
    from mmrl_core.scoring import RewardRunner

    runner = RewardRunner(load_plugins(), [RewardConfig.model_validate({**(options or {}), "name": reward})])
    (key,) = runner.keys
    scores: dict[Any, list[float]] = {}
    kinds: dict[Any, dict[Any, None]] = {}  # kind -> its prompts, in order
    num_scored = 0
    for value, sample in zip(runner.score_samples(key, completions, samples), samples, strict=True):
        if value is None:
            continue
        num_scored += 1
        prompt = sample.get(column)
        scores.setdefault(prompt, []).append(value)
        if sample.get(by) is not None:
            kinds.setdefault(sample[by], {})[prompt] = None

    def over(prompts: Sequence[Any], statistic: Callable[[Sequence[float]], float]) -> float:
        return _mean([statistic(scores[prompt]) for prompt in prompts])

    named: Mapping[str, Callable[[Sequence[float]], float]] = {"mean": _mean, "median": statistics.median, "best": max}
    result = {f"{key}/{name}": over(list(scores), statistic) for name, statistic in named.items()}
    result |= {f"{key}/mean/{kind}": over(list(prompts), _mean) for kind, prompts in kinds.items()}
    return result | {f"{key}/unscored": 1.0 - num_scored / len(samples) if samples else math.nan}


def win_rate(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    """Share of pairs in which the first is higher; a tie counts half.

    Args:
        first, second: N rewards each, those of a pair made from the same prompt and seed. A pair with a None or NaN is
            left out.

    Returns:
        0..1; NaN if no pair is left.

    Raises:
        ValueError: the lengths differ.

    >>> win_rate([1.0, 2.0, 3.0, None], [0.0, 2.0, 4.0, 0.0])
    0.5
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return _mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs if not (math.isnan(a) or math.isnan(b))])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan

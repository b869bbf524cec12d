"""Rewards on pictures: CLIP score, BLIP matching, aesthetic score, ImageReward, and some that need no model.

Every reward takes B completions and B samples and returns B numbers in the same order. A completion is a PIL image, or
a list of PIL images (the frames of a video), whose reward is the mean over its frames. None means unscored: the sample
says `flagged` (a safety checker blacked the picture out), a pixel is not finite, or the completion is no picture.
Transparency is dropped, as the models' own processors do.

Models are loaded when first needed, once for each path and device, and evaluated in float32, without gradient or
dropout, in batches; what else is in a batch changes a reward by rounding only. Nothing here draws random numbers.
`path` is a folder or hub name; `device: auto` is the GPU that the process uses, else the CPU.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from PIL import ImageColor

from mmrl_core.errors import RewardError
from mmrl_find.reward_models import (
    BlipRetrieval,
    Clip,
    ImageReward,
    LinearHead,
    Picture,
    check_file,
    check_model,
    clip_embeddings,
    find_weights,
    loaded,
    resolve_device,
)

Sample = Mapping[str, Any]
Completion = Picture | Sequence[Picture]

JPEG_QUALITY = 95


# Models of text and picture


def clip_score(
    completions: Sequence[Completion],
    samples: Sequence[Sample],
    *,
    path: str,
    column: str = "prompt",
    prefix: str = "",
    device: str = "auto",
    batch_size: int = 16,
) -> list[float | None]:
    """100 * max(cosine of CLIP's picture and text embeddings, 0), in [0, 100].

    Args:
        completions: B pictures or videos.
        samples: B rows; `column` holds the prompt. Longer prompts than the model takes (77 tokens) are cut.
        path: a CLIP model, such as openai/clip-vit-large-patch14.
        prefix: put before the prompt; CLIPScore as published has "A photo depicts ".

    Raises:
        RewardError: there is no CLIP model at `path`, or a row has no prompt.

    Source: CLIPScore, arXiv:2104.08718, which multiplies by 2.5. Our choice: 100, as torchmetrics and most tables of
    text-to-image papers do, and no prefix.
    """
    check_model(path, "clip")

    def score(pictures: Sequence[Picture], owners: Sequence[int]) -> list[float]:
        clip = loaded(Clip, path, resolve_device(device))
        texts = [prefix + _prompt(samples[owner], column) for owner in owners]
        cosines = (clip.embed_pictures(pictures, batch_size) * clip.embed_texts(texts, batch_size)).sum(dim=-1)
        return (100.0 * cosines.clamp(min=0.0)).tolist()

    return _score(completions, samples, score)


def blip_itm(
    completions: Sequence[Completion],
    samples: Sequence[Sample],
    *,
    path: str,
    head: Literal["itm", "itc"] = "itm",
    column: str = "prompt",
    device: str = "auto",
    batch_size: int = 16,
) -> list[float | None]:
    """BLIP's opinion of whether picture and prompt match.

    Args:
        completions: B pictures or videos.
        samples: B rows; `column` holds the prompt, of which the first 35 tokens count.
        path: a BLIP model with retrieval heads, such as Salesforce/blip-itm-base-coco.
        head: "itm", the probability in [0, 1] that they match, from cross attention; or "itc", the cosine of their
            contrastive embeddings, in [-1, 1].

    Raises:
        RewardError: unknown head; no such model at `path`; or a row has no prompt.

    Source: BLIP, arXiv:2201.12086.
    """
    if head not in ("itm", "itc"):
        raise RewardError(f"blip_itm: there is no head {head!r}; the heads are itm and itc.")
    check_model(path, "blip")

    def score(pictures: Sequence[Picture], owners: Sequence[int]) -> list[float]:
        blip = loaded(BlipRetrieval, path, resolve_device(device))
        texts = [_prompt(samples[owner], column) for owner in owners]
        return blip.match(pictures, texts, head, batch_size).tolist()

    return _score(completions, samples, score)


def aesthetic(
    completions: Sequence[Completion],
    samples: Sequence[Sample],
    *,
    path: str,
    head: str,
    device: str = "auto",
    batch_size: int = 16,
) -> list[float | None]:
    """Aesthetic score of LAION's improved predictor, about 1 to 10: linear layers on the unit CLIP embedding.

    Args:
        completions: B pictures or videos.
        samples: B rows.
        path: the CLIP model the head was trained on; for the public heads openai/clip-vit-large-patch14.
        head: local file of the head's weights (.safetensors, or .pth read without unpickling objects), keys
            `layers.<number>.weight` and `.bias`; its sizes are those of the weights (public: 768-1024-128-64-16-1).

    Raises:
        RewardError: no CLIP model at `path`, no such weights in `head`, or one does not fit the other.

    quirk, kept: the public head `sac+logos+ava1-l14-linearMSE` has no activations between its layers. A head that was
    trained with some would be scored wrongly; the weights cannot tell.

    Source: github.com/christophschuhmann/improved-aesthetic-predictor.
    """
    check_model(path, "clip")
    check_file(head)

    def score(pictures: Sequence[Picture], owners: Sequence[int]) -> list[float]:
        clip = loaded(Clip, path, resolve_device(device))
        return loaded(LinearHead, head)(clip.embed_pictures(pictures, batch_size)).tolist()

    return _score(completions, samples, score)


def image_reward(
    completions: Sequence[Completion],
    samples: Sequence[Sample],
    *,
    path: str,
    tokenizer: str | None = None,
    column: str = "prompt",
    clamp: bool = False,
    device: str = "auto",
    batch_size: int = 16,
) -> list[float | None]:
    """ImageReward: what people prefer for a prompt, about 0 on average with standard deviation 1.

    BLIP's picture encoder, its text encoder with cross attention on it, and linear layers on the [CLS] state;
    normalised by the published mean and standard deviation. Pictures are resized to the shorter side and cropped in the
    middle.

    Args:
        completions: B pictures or videos.
        samples: B rows; `column` holds the prompt, of which the first 35 tokens count.
        path: local weights in the form of the public ImageReward.pt: keys `blip.visual_encoder.*` (timm's names),
            `blip.text_encoder.*` (BERT's) and `mlp.layers.*`; a .safetensors file with these names; or a folder that
            holds one of either. All sizes are read from the weights; attention heads have 64 entries, as in every
            public BLIP. Objects are not unpickled.
        tokenizer: folder or hub name of the BERT tokenizer (public: bert-base-uncased); default: the weights' folder.
        clamp: negative rewards become 0.

    Raises:
        RewardError: no such weights or tokenizer, or a row has no prompt.

    Source: ImageReward, arXiv:2304.05977, and its public code (version 1.0).
    """
    file = find_weights(path)
    tokenizer_path = str(file.parent) if tokenizer is None else tokenizer

    def score(pictures: Sequence[Picture], owners: Sequence[int]) -> list[float]:
        model = loaded(ImageReward, str(file), tokenizer_path, resolve_device(device))
        texts = [_prompt(samples[owner], column) for owner in owners]
        rewards = model(pictures, texts, batch_size)
        return (rewards.clamp(min=0.0) if clamp else rewards).tolist()

    return _score(completions, samples, score)


# Rewards without a model


def colour(
    completions: Sequence[Completion],
    samples: Sequence[Sample],
    *,
    colour: str | None = None,
    column: str = "colour",
    tolerance: float = 1.0,
) -> list[float | None]:
    """How much of a picture has a colour: mean over pixels of max(0, 1 - d / tolerance), in [0, 1].

    d is the distance of a pixel from the colour in RGB, as a share of the distance from black to white. A small
    tolerance makes it the share of pixels of that very colour; 1 rewards every step towards it.

    Args:
        completions: B pictures or videos.
        samples: B rows; unless `colour` is given, `column` names it. A row without one is unscored.
        colour: a CSS name or "#rrggbb", for all rows.
        tolerance: above 0, up to 1.

    Raises:
        RewardError: tolerance out of range, or an unknown colour.

    >>> from PIL import Image
    >>> half_red = Image.new("RGB", (2, 1), "red")
    >>> half_red.putpixel((1, 0), (0, 0, 0))
    >>> colour([half_red], [{}], colour="#ff0000", tolerance=0.5)  # from black to red is 1 / sqrt(3) = 0.58
    [0.5]
    """
    if not 0.0 < tolerance <= 1.0:
        raise RewardError(f"colour: tolerance is {tolerance}; it must be above 0 and at most 1.")

    def closeness(picture: Picture, target: np.ndarray) -> float:
        distances = np.linalg.norm(_pixels(picture) - target, axis=-1) / math.sqrt(3.0)
        return float(np.maximum(0.0, 1.0 - distances / tolerance).mean())

    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        frames, name = usable_pictures(completion, sample), colour or sample.get(column)
        rewards.append(_mean([closeness(frame, _rgb(name)) for frame in frames]) if frames and name else None)
    return rewards


def brightness(completions: Sequence[Completion], samples: Sequence[Sample]) -> list[float | None]:
    """Mean luma (ITU-R 601: 0.299 R + 0.587 G + 0.114 B), from 0, black, to 1, white.

    >>> from PIL import Image
    >>> brightness([Image.new("RGB", (4, 4), "white"), Image.new("RGB", (4, 4))], [{}, {"flagged": True}])
    [1.0, None]
    """

    def luma(picture: Picture) -> float:
        return float(_pixels(picture).mean(axis=(0, 1)) @ [299, 587, 114]) / 1000

    return _score(completions, samples, _of_each(luma))


def incompressibility(completions: Sequence[Completion], samples: Sequence[Sample]) -> list[float | None]:
    """Size of the picture as JPEG of quality 95, in kilobytes (1000 bytes).

    It grows with the number of pixels, so compare pictures of one size.

    Source: DDPO, arXiv:2305.13301, section 5, and its public code.
    """
    return _score(completions, samples, _of_each(_jpeg_kilobytes))


def compressibility(completions: Sequence[Completion], samples: Sequence[Sample]) -> list[float | None]:
    """Minus `incompressibility`: negative, and the higher the simpler the picture."""
    return _score(completions, samples, _of_each(lambda picture: -_jpeg_kilobytes(picture)))


def video_consistency(
    completions: Sequence[Completion],
    samples: Sequence[Sample],
    *,
    path: str | None = None,
    device: str = "auto",
    batch_size: int = 16,
) -> list[float | None]:
    """How alike consecutive frames of a video are: the mean over its pairs of neighbours.

    With `path`, the cosine of their CLIP embeddings, in [-1, 1], which forgives motion. Without, one minus the mean
    absolute difference of their pixels, in [0, 1], which does not. A video that stands still has 1 either way, so this
    reward wants another beside it. A single picture or frame is unscored.

    Args:
        completions: B videos.
        samples: B rows.
        path: a CLIP model.

    Raises:
        RewardError: no CLIP model at `path`, or without one the frames of a video differ in size.

    In the manner of the frame consistency of Gen-1, arXiv:2302.03011.
    """
    if path is not None:
        check_model(path, "clip")
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        frames = usable_pictures(completion, sample)
        if len(frames) < 2:
            rewards.append(None)
        elif path is not None:
            embeddings = clip_embeddings(frames, path=path, device=device, batch_size=batch_size)
            rewards.append(min(1.0, float((embeddings[1:] * embeddings[:-1]).sum(dim=-1).mean())))
        elif len({frame.size for frame in frames}) > 1:
            raise RewardError("video_consistency: the frames of a video differ in size; set 'path' to a CLIP model.")
        else:
            pixels = [_pixels(frame) for frame in frames]
            rewards.append(1.0 - float(np.mean([np.abs(after - before).mean() for before, after in pairwise(pixels)])))
    return rewards


# Pictures


def usable_pictures(completion: Any, sample: Sample) -> list[Picture]:
    """The picture, or the frames, of a completion in RGB; none if it is to be left unscored (see the module)."""
    frames = [completion] if isinstance(completion, Picture) else completion
    if sample.get("flagged") or not isinstance(frames, list | tuple):
        return []
    if not all(isinstance(frame, Picture) and min(frame.size) > 0 and _is_finite(frame) for frame in frames):
        return []
    return [frame.convert("RGB") for frame in frames]


def _is_finite(picture: Picture) -> bool:
    return picture.mode != "F" or bool(np.isfinite(np.asarray(picture)).all())


def _score(
    completions: Sequence[Completion],
    samples: Sequence[Sample],
    score: Callable[[Sequence[Picture], Sequence[int]], Sequence[float]],
) -> list[float | None]:
    """Rewards from a function of all pictures and, for each, the index of its completion; the mean over frames."""
    frames = [usable_pictures(completion, sample) for completion, sample in zip(completions, samples, strict=True)]
    pictures = [picture for group in frames for picture in group]
    owners = [index for index, group in enumerate(frames) for _ in group]
    values = iter(score(pictures, owners) if pictures else [])
    return [_mean([next(values) for _ in group]) if group else None for group in frames]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _of_each(function: Callable[[Picture], float]) -> Callable[[Sequence[Picture], Sequence[int]], list[float]]:
    return lambda pictures, _: [function(picture) for picture in pictures]


def _pixels(picture: Picture) -> np.ndarray:
    """Float64 [height, width, 3] in 0..1."""
    return np.asarray(picture, dtype=np.float64) / 255.0


def _rgb(name: Any) -> np.ndarray:
    try:
        return np.array(ImageColor.getrgb(name)[:3]) / 255.0
    except (ValueError, AttributeError, TypeError) as error:
        raise RewardError(f"colour: {name!r} is no colour. Give a CSS name such as 'teal', or '#rrggbb'.") from error


def _jpeg_kilobytes(picture: Picture) -> float:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.tell() / 1000


def _prompt(sample: Sample, column: str) -> str:
    prompt = sample.get(column)
    if not isinstance(prompt, str):
        raise RewardError(
            f"the row has no prompt in column {column!r}; set the reward's 'column' to the one that has it."
        )
    return prompt

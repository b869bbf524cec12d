"""Prompts and conversations as vLLM takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmrl_core.language_model.encoder import media_of
from mmrl_core.language_model.engines.base import Sampler
from mmrl_core.language_model.observations import Continuation, Observation, whole
from mmrl_core.media import resample_audio
from mmrl_core.types import Prompt


class Converted:
    """Media in the form that vLLM takes, each converted once and the same object in all conversations.

    The keys are `id`s, since arrays cannot be keys. The prompts hold the media, so an id stays that of its medium for a
    whole rollout.
    """

    def __init__(self, rate_hz: int | None) -> None:
        """
        Args:
            rate_hz: sampling rate that audio is converted to.
        """
        self.rate_hz = rate_hz
        self._arrays: dict[int, np.ndarray] = {}

    def frames(self, frames: Any) -> np.ndarray:
        """uint8 [frames, 3, height, width] -> [frames, height, width, 3]."""
        if id(frames) not in self._arrays:
            self._arrays[id(frames)] = torch.as_tensor(frames).movedim(1, -1).numpy()
        return self._arrays[id(frames)]

    def samples(self, samples: Any, rate_hz: int) -> np.ndarray:
        """float32 mono samples at the rate of the model."""
        assert self.rate_hz is not None  # the encoder has refused audio for a model that takes none
        if id(samples) not in self._arrays:
            self._arrays[id(samples)] = np.asarray(resample_audio(samples, rate_hz, self.rate_hz))
        return self._arrays[id(samples)]


def inputs_of(policy: Sampler, prompt: Prompt, observation: Observation, converted: Converted) -> dict[str, Any]:
    """The input of vLLM for an observation: tokens, or with media one placeholder for each medium and the media.

    A prompt with media is given as text, which vLLM tokenises as the trainer did. A conversation is given as tokens,
    since the text of sampled tokens may be split into others.
    """
    messages: list[Mapping[str, Any]] = []
    turn = observation
    while isinstance(turn, Continuation):
        messages = [*turn.messages, *messages]
        turn = turn.before
    images, videos, audios = media_of([*prompt.messages, *messages])
    input_ids = whole(observation).input_ids.tolist()
    if not images and not videos and not audios:
        return {"prompt_token_ids": input_ids}
    media: dict[str, list[Any]] = {}
    if images:
        media["image"] = images
    if videos:  # frames as uint8 [frames, height, width, 3]
        media["video"] = [
            (converted.frames(frames), {**metadata, "do_sample_frames": False}) for frames, metadata in videos
        ]
    if audios:
        media["audio"] = [(converted.samples(*audio), converted.rate_hz) for audio in audios]
    inputs: dict[str, Any] = {"multi_modal_data": media}
    if isinstance(observation, Continuation):
        placeholders = policy.model.banned_ids.tolist()  # one stands for as many as the medium has tokens
        inputs["prompt_token_ids"] = [
            token
            for token, before in zip(input_ids, [None, *input_ids[:-1]], strict=True)
            if token not in placeholders or token != before
        ]
    else:
        inputs["prompt"] = policy.encoder.render(prompt)
    return inputs | ({"mm_processor_kwargs": {"do_sample_frames": False}} if videos else {})

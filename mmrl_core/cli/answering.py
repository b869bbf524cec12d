"""A checkpoint that answers chat messages, for evaluation frameworks that bring their own tasks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmrl_core.cli.evaluated import config_of, find_evaluated, model_overrides
from mmrl_core.cli.opening import open_policy
from mmrl_core.config import RunConfig, load_config
from mmrl_core.errors import MMRLError
from mmrl_core.plugins import load_plugins
from mmrl_core.types import Prompt, Sampling


@dataclass(frozen=True)
class Request:
    """Chat messages to answer.

    Attributes:
        messages: as in `Prompt.messages`.
        sampling: how; requests that are sampled alike are answered together.
        stop: texts that end the answer, and are no part of it.
    """

    messages: Sequence[Mapping[str, Any]]
    sampling: Sampling
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What the policy said.

    Attributes:
        num_prompt_tokens: 0 of a policy without tokens.
        truncated: it ended at `max_tokens`, and not by itself or at a stop text.
    """

    text: str
    num_prompt_tokens: int
    num_tokens: int
    truncated: bool


@dataclass
class Answerer:
    """The policy of a checkpoint. It is loaded with the first answer; `close` it after the last.

    Args:
        checkpoint: as `mmrl eval --checkpoint` takes it.
        overrides: config values to change, such as `model.max_pixels=100000`.
        batch_size: requests answered together.
    """

    checkpoint: str
    overrides: Sequence[str] = ()
    batch_size: int = 16
    _policy: Any = field(default=None, repr=False)

    @property
    def config(self) -> RunConfig:
        """The config that says what the model is: that of its run, or one of nothing else.

        Raises:
            MMRLError: there is no such checkpoint, or an override is wrong.
        """
        evaluated = find_evaluated(self.checkpoint)
        if evaluated.run is not None:
            return config_of(evaluated, None, self.overrides)[0]
        with tempfile.TemporaryDirectory() as folder:
            alone = Path(folder) / "model.yaml"
            alone.write_text("name: model\n", encoding="utf-8")
            return load_config(str(alone), [*model_overrides(evaluated), *self.overrides])

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """An answer to each request, in order.

        Raises:
            MMRLError: the checkpoint cannot be loaded, or the model refuses the messages.
        """
        if self._policy is None:
            evaluated = find_evaluated(self.checkpoint)
            self._policy = open_policy(self.config, evaluated.weights, load_plugins())
        answers: dict[int, Answer] = {}
        for batch in _alike(requests, self.batch_size):
            prompts = [Prompt(f"request:{place}", requests[place].messages, {}) for place in batch]
            groups = self._policy.rollout(prompts, 1, requests[batch[0]].sampling)
            for place, group in zip(batch, groups, strict=True):
                answers[place] = self._answer(requests[place], group)
        return [answers[place] for place in range(len(requests))]

    def _answer(self, request: Request, group: Any) -> Answer:
        (rollout,) = group.rollouts
        if not isinstance(rollout.completion, str):
            raise MMRLError(f"{self.checkpoint} makes {type(rollout.completion).__name__}; a task of text needs text.")
        ends = [at for stop in request.stop if stop and (at := rollout.completion.find(stop)) >= 0]
        text = rollout.completion[: min(ends)] if ends else rollout.completion
        length = self._policy.prompt_length(group.prompt) or 0
        return Answer(text, length, rollout.num_actions, rollout.truncated and not ends)

    def close(self) -> None:
        """Release what the policy holds."""
        if self._policy is not None:
            self._policy.close()
            self._policy = None


def _alike(requests: Sequence[Request], size: int) -> Iterator[list[int]]:
    """Places of requests that are sampled alike, at most `size` at a time."""
    of_sampling: dict[Sampling, list[int]] = {}
    for place, request in enumerate(requests):
        of_sampling.setdefault(request.sampling, []).append(place)
    for places in of_sampling.values():
        for start in range(0, len(places), size):
            yield places[start : start + size]


def image_part(value: Any) -> dict[str, Any]:
    """A picture as a part of a message: a PIL image, a path, bytes, base64 or a data URI.

    Raises:
        MediaError: it is none, or an address of the internet.
    """
    from mmrl_core.media import load_image

    return {"type": "image", "image": load_image(value, root=None)}


def audio_part(value: Any) -> dict[str, Any]:
    """A sound as a part of a message; as `image_part`, or samples with their rate as the datasets library has them."""
    from mmrl_core.media import load_audio

    audio = load_audio(value, root=None)
    return {"type": "audio", "audio": audio.samples, "sampling_rate": audio.sampling_rate}


def video_part(value: Any) -> dict[str, Any]:
    """A video file as a part of a message."""
    from mmrl_core.media import load_video

    video = load_video(value)
    return {"type": "video", "video": video.frames, "metadata": video.metadata, "times_s": video.times_s}


def with_seed(sampling: Sampling, seed: int | None) -> Sampling:
    """Sampling with a seed, or as it is."""
    return sampling if seed is None else replace(sampling, seed=seed)

"""Observations of a language model: an encoded prompt, or a conversation that began with one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(eq=False)
class Encoded:
    """A prompt as the model sees it. Rows of a group share one, and it is equal to itself only.

    Attributes:
        key: content hash of text and media.
        media_key: content hash of the media alone; "" without media.
        input_ids: int64 [P].
        position_ids: int64 [axes, P], with 3 axes for M-RoPE, otherwise 1.
        next_position: position of the first completion token.
        media: processor outputs: pixel_values and image_grid_thw of images, input_features [audios, mel bins, frames]
            and feature_attention_mask [audios, frames] of audio, ...
        token_types: processor outputs int64 [P] that say what each token stands for, by name.
        features: tower outputs "image", "video", "audio", [media tokens, hidden], kept while the tower is frozen.
        image_sizes_px: (width, height) of each image as the model sees it.
    """

    key: str
    media_key: str
    input_ids: Tensor
    position_ids: Tensor
    next_position: int
    media: dict[str, Tensor] = field(default_factory=dict)
    token_types: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    image_sizes_px: list[tuple[int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_bytes(self) -> int:
        tensors = [self.input_ids, self.position_ids, *self.media.values(), *self.features.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(eq=False)
class Continuation:
    """Observation of a later turn: the observation of the turn before, the action of that turn, and the reply to it.

    Attributes:
        before: observation of the turn before.
        action: int64 [T], the tokens of that turn.
        reply: tokens and media between that turn and this one, with their positions in the whole conversation.
        messages: chat messages that the reply was encoded from.
    """

    before: Encoded | Continuation
    action: Tensor
    reply: Encoded
    messages: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.before) + len(self.action) + len(self.reply)

    @property
    def next_position(self) -> int:
        """Position of the first token of this turn."""
        return self.reply.next_position

    @cached_property
    def key(self) -> str:
        """Equal for conversations of equal content."""
        history = f"{self.before.key}\0{self.action.tolist()}\0{self.reply.key}"
        return hashlib.sha256(history.encode()).hexdigest()


Observation = Encoded | Continuation
"""Observation of a `Row`."""


class Stretch(NamedTuple):
    """A part of a conversation.

    Attributes:
        input_ids: int64 [S].
        position_ids: int64 [axes, S].
        parts: the encodings with media, in order.
        observed: bool [S]; False in actions, where an id of a media placeholder stands for itself and for no medium.
    """

    input_ids: Tensor
    position_ids: Tensor
    parts: list[Encoded]
    observed: Tensor


def root(observation: Observation) -> Encoded:
    """The prompt that a conversation began with."""
    while isinstance(observation, Continuation):
        observation = observation.before
    return observation


def segments(observation: Observation) -> list[Encoded | Tensor]:
    """The encodings and int64 [T] actions that a conversation is made of, in order."""
    parts: list[Encoded | Tensor] = []
    while isinstance(observation, Continuation):
        parts += [observation.reply, observation.action]
        observation = observation.before
    return [observation, *reversed(parts)]


def tail(observation: Observation, action: Tensor | None = None) -> Stretch:
    """A conversation without its prompt, followed by an action if one is given."""
    ids, positions, parts, observed = [], [], [], []
    axes = len(root(observation).position_ids)
    if action is not None:
        ids.append(action)
        observed.append(torch.zeros(len(action), dtype=torch.bool))
        positions.append(_following(observation.next_position, len(action), axes))
    while isinstance(observation, Continuation):
        ids += [observation.reply.input_ids, observation.action]
        observed += [torch.ones(len(observation.reply), dtype=torch.bool)]
        observed += [torch.zeros(len(observation.action), dtype=torch.bool)]
        positions.append(observation.reply.position_ids)
        positions.append(_following(observation.before.next_position, len(observation.action), axes))
        parts.append(observation.reply)
        observation = observation.before
    if not ids:
        nothing = torch.zeros(axes, 0, dtype=torch.long)
        return Stretch(nothing[0], nothing, [], nothing[0].bool())
    return Stretch(torch.cat(ids[::-1]), torch.cat(positions[::-1], 1), parts[::-1], torch.cat(observed[::-1]))


def whole(observation: Observation) -> Stretch:
    """A conversation with its prompt."""
    start, rest = root(observation), tail(observation)
    return Stretch(
        torch.cat([start.input_ids, rest.input_ids]),
        torch.cat([start.position_ids, rest.position_ids], 1),
        [start, *rest.parts],
        torch.cat([torch.ones(len(start), dtype=torch.bool), rest.observed]),
    )


def _following(start: int, count: int, axes: int) -> Tensor:
    """Positions [axes, count] of text from `start` on."""
    return torch.arange(start, start + count).expand(axes, -1)

"""Prompts as a language model sees them: chat template, tokens, positions, processed images, videos and audio."""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mmrl_core.errors import MissingPackageError, PolicyError, TaskDataError, UnfitPromptError
from mmrl_core.language_model.chat import ChatTemplate, policy_turn
from mmrl_core.language_model.observations import Continuation, Encoded, Observation
from mmrl_core.media import content_hash, resample_audio
from mmrl_core.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CACHE_BYTES = 2 << 30
"""Encoded prompts kept between steps, in bytes."""

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
"""Processor outputs that say of each token what it stands for: text, an image, a video."""

PROCESSOR_PARTS = {"images": "image_processor", "videos": "video_processor", "audios": "feature_extractor"}
"""The part of a processor that each kind of medium needs. Without it, the media would be ignored in silence."""


class PromptMedia(NamedTuple):
    """Decoded media of a prompt, each kind in the order of the messages.

    Attributes:
        images: PIL images.
        videos: (uint8 frames [frames, 3, height, width], metadata) of each video.
        audios: (float32 mono samples, sampling rate of those) of each audio.
    """

    images: list[Any]
    videos: list[tuple[Any, dict[str, Any]]]
    audios: list[tuple[Any, int]]


def _content_key(medium: Any) -> str:
    """Content hash of a decoded medium: a picture, (frames, metadata) or (samples, rate)."""
    if not isinstance(medium, tuple):
        return content_hash(medium)
    values, about = medium
    array = values.numpy() if isinstance(values, Tensor) else values
    return hashlib.sha256(f"{array.shape} {about}".encode() + array.tobytes()).hexdigest()


class PromptEncoder:
    """Chat template, tokenizer, and image, video and audio processors of a model."""

    def __init__(self, processor: Any, model: PreTrainedModel | None, max_tokens: int) -> None:
        """
        Args:
            processor: processor of transformers, or the tokenizer of a text model.
            model: computes positions of prompts with media. Without it they count up.
            max_tokens: longer prompts are refused.
        """
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self._model = model
        self.max_tokens = max_tokens
        self.chat = ChatTemplate(processor)
        self._cache: OrderedDict[str, Encoded] = OrderedDict()
        self.blind: dict[str, str] = {}  # kinds of media whose content changes nothing -> why they are refused
        self._grown = False  # since the cache was last trimmed
        self._lock = threading.Lock()  # of the cache: prompts are also encoded ahead, in another thread

    @property
    def audio_rate_hz(self) -> int | None:
        """Sampling rate that the model hears audio at, or None if it takes none."""
        return getattr(getattr(self.processor, "feature_extractor", None), "sampling_rate", None)

    def takes(self, kind: str) -> bool:
        """Whether the processor takes media of a kind: image, video or audio."""
        return getattr(self.processor, PROCESSOR_PARTS[f"{kind}s"], None) is not None

    def stop_ids(self) -> set[int]:
        """The token that ends a turn as the chat template writes it, if any: what was taught ends a rollout."""
        return set(self.tokenizer(self.chat.turn_end, add_special_tokens=False)["input_ids"][-1:])

    def render(self, prompt: Prompt) -> str:
        """The prompt's text with the chat template applied and placeholders for media."""
        return self.chat.render(prompt)

    def tokens(self, text: str) -> list[int]:
        """Tokens of a rendered prompt with media, each placeholder as the chat template wrote it: not yet expanded."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=not self._is_opened(text))["input_ids"]
        return ids

    def _is_opened(self, text: str) -> bool:
        opening = self.tokenizer.bos_token
        return opening is not None and text.startswith(opening)

    def encode(self, prompt: Prompt) -> Encoded:
        """Tokenise a prompt and process its media. The same content gives the same object while it is cached.

        Raises:
            UnfitPromptError: the prompt is longer than `model.max_prompt_tokens`, or an audio than the model's window
                (prompts are never cut), or template or processor refuse it.
            TaskDataError: the model does not take such media.
        """
        text = self.render(prompt)
        media = media_of(prompt.messages)
        media_keys = list(prompt.media_keys)
        if len(media_keys) != sum(map(len, media)):
            media_keys = [_content_key(medium) for kind in media for medium in kind]
        return self._encode_once(prompt.id, text, media, media_keys)

    def encode_reply(
        self,
        prompt: Prompt,
        before: Observation,
        action: Tensor,
        messages: Sequence[Mapping[str, Any]],
        *,
        ended: bool,
    ) -> Continuation:
        """Continue a conversation by the messages that answer an action.

        Args:
            prompt: prompt that the conversation began with.
            before: observation that the action followed.
            action: int64 [T].
            messages: chat messages, of tools or of a user.
            ended: the action's last token ends a turn. Otherwise the template's end of turn belongs to the reply.

        Returns:
            The conversation, which may be longer than `model.max_prompt_tokens`.

        Raises:
            UnfitPromptError: an audio is longer than the model's window, or template or processor refuse the messages.
            TaskDataError: the model does not take such media.
        """
        earlier: list[Mapping[str, Any]] = []
        observation = before
        while isinstance(observation, Continuation):
            earlier = [policy_turn(), *observation.messages, *earlier]
            observation = observation.before
        text = self.chat.after_turn(prompt, earlier, messages)
        if ended:
            last = self.tokenizer.decode(action[-1:])
            text = text.removeprefix(self.chat.turn_end if self.chat.turn_end.endswith(last) else last)
        media = media_of(messages)
        media_keys = [_content_key(medium) for kind in media for medium in kind]
        reply = self._encode_once(prompt.id, text, media, media_keys, continues=True)
        start = before.next_position + len(action)
        # What is computed of the media goes into the same mappings, for all conversations that get this reply.
        placed = replace(reply, position_ids=reply.position_ids + start, next_position=reply.next_position + start)
        return Continuation(before, action, placed, messages)

    def _encode_once(
        self, name: str, text: str, media: PromptMedia, media_keys: Sequence[str], *, continues: bool = False
    ) -> Encoded:
        """Encode a text with media unless that was done before and is still cached."""
        media_key = hashlib.sha256("\0".join(media_keys).encode()).hexdigest() if media_keys else ""
        key = hashlib.sha256(f"{continues}\0{text}\0{media_key}".encode()).hexdigest()
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        encoded = self._encode(name, text, media, key, media_key, continues=continues)
        with self._lock:
            self._grown = True
            return self._cache.setdefault(key, encoded)

    def trim_cache(self) -> None:
        """Drop the prompts used longest ago until the cache fits. Called when a batch's features are computed."""
        with self._lock:
            if not self._grown:
                return
            self._grown = False
            total = sum(encoded.num_bytes for encoded in self._cache.values())
            while total > CACHE_BYTES:
                total -= self._cache.popitem(last=False)[1].num_bytes

    def clear_cache(self) -> None:
        with self._lock:
            self._cache.clear()

    def _encode(
        self, name: str, text: str, media: PromptMedia, key: str, media_key: str, *, continues: bool
    ) -> Encoded:
        """Tokens, positions and media of a prompt, or of a text that continues a conversation."""
        arguments: dict[str, Any] = {"text": [text], "return_tensors": "pt"}
        for kind, part in PROCESSOR_PARTS.items():
            if getattr(media, kind) and getattr(self.processor, part, None) is None:
                raise TaskDataError(f"prompt {name!r} holds {kind}, but the model takes none. Take out prompt.{kind}.")
            if getattr(media, kind) and kind[:-1] in self.blind:
                raise PolicyError(
                    f"{self.blind[kind[:-1]]}. The template may leave them out, or weights be unfinished. Take another "
                    "model, or set model.blind_check to off."
                )
        if self.tokenizer is self.processor or continues or self._is_opened(text):
            arguments["add_special_tokens"] = False  # the chat template wrote them
        outputs = self._process(name, media, arguments)
        input_ids = outputs.pop("input_ids")[0]
        outputs.pop("attention_mask", None)
        token_types = {name: outputs.pop(name)[0] for name in TOKEN_TYPES if name in outputs}
        if not continues and len(input_ids) > self.max_tokens:
            raise UnfitPromptError(
                f"prompt {name!r} has {len(input_ids)} tokens, over model.max_prompt_tokens={self.max_tokens}. "
                "Raise the limit, shorten the prompt, or lower model.max_pixels; prompts are never cut."
            )
        position_ids, next_position = self._positions(input_ids, outputs, token_types.get("mm_token_type_ids"))
        sizes = self._image_sizes(outputs)
        return Encoded(
            key, media_key, input_ids, position_ids, next_position, outputs, token_types, image_sizes_px=sizes
        )

    def _process(self, name: str, media: PromptMedia, arguments: dict[str, Any]) -> dict[str, Any]:
        """Outputs of the processor for a text with media.

        Raises:
            UnfitPromptError: it refuses a medium, such as a picture 200 times as wide as high, or an audio is too long.
        """
        if media.images:
            arguments["images"] = media.images
        if media.videos:
            arguments["videos"] = [frames for frames, _ in media.videos]
            arguments["video_metadata"] = [metadata for _, metadata in media.videos]
            arguments["do_sample_frames"] = False
        try:
            if media.audios:
                arguments["audio"] = self._resampled(name, media.audios)
                arguments["sampling_rate"] = self.processor.feature_extractor.sampling_rate
            return dict(self.processor(**arguments))
        except (MissingPackageError, MemoryError, UnfitPromptError):
            raise
        except Exception as error:  # a processor is foreign code
            reason = str(error) if isinstance(error, TaskDataError) else f"{type(error).__name__}: {error}"
            sizes = [f"{width} x {height} px" for width, height in (image.size for image in media.images)]
            shown = f" (pictures: {', '.join(sizes)})" if sizes else ""
            raise UnfitPromptError(f"prompt {name!r}: the model's processor refuses it{shown}: {reason}") from error

    def _resampled(self, name: str, audios: list[tuple[Any, int]]) -> list[Any]:
        """Samples of each audio at the rate that the model was trained on."""
        extractor = self.processor.feature_extractor
        resampled = [resample_audio(samples, rate, extractor.sampling_rate) for samples, rate in audios]
        longest = max(map(len, resampled))
        if longest > getattr(extractor, "n_samples", longest):  # the extractor would cut what is beyond its window
            window_s = extractor.n_samples / extractor.sampling_rate
            raise UnfitPromptError(
                f"prompt {name!r} holds an audio of {longest / extractor.sampling_rate:.1f} s, and the model hears "
                f"{window_s:g} s. Shorten it; prompts are never cut. prompt.max_audio_s of {window_s:g} would find "
                "such files by their headers."
            )
        return resampled

    def _image_sizes(self, media: dict[str, Any]) -> list[tuple[int, int]]:
        """Width and height of images as the processor resized them, from its grid of patches."""
        if "image_grid_thw" not in media:
            return []
        patch_px = self.processor.image_processor.patch_size
        return [(width * patch_px, height * patch_px) for _, height, width in media["image_grid_thw"].tolist()]

    def _positions(self, input_ids: Tensor, media: dict[str, Any], token_types: Tensor | None) -> tuple[Tensor, int]:
        """Positions of the prompt [axes, P], and of what follows it."""
        length = len(input_ids)
        backbone: Any = next(
            (part for part in (getattr(self._model, "model", None), self._model) if hasattr(part, "get_rope_index")),
            None,
        )
        if backbone is None:
            return torch.arange(length)[None], length
        if not media:
            return torch.arange(length).expand(3, -1), length
        if token_types is None:
            assert self._model is not None
            token_types = torch.zeros_like(input_ids)
            for kind, name in ((1, "image_token_id"), (2, "video_token_id")):
                token_types[input_ids == getattr(self._model.config, name, -1)] = kind
        arguments = {
            **media,
            "mm_token_type_ids": token_types[None],
            "attention_mask": torch.ones_like(input_ids)[None],
        }
        if "second_per_grid_ts" in media:
            arguments["second_per_grid_ts"] = torch.as_tensor(media["second_per_grid_ts"])
        if "video_second_per_grid" in media:
            arguments["second_per_grids"] = torch.as_tensor(media["video_second_per_grid"])
        if "feature_attention_mask" in media:
            arguments["audio_seqlens"] = media["feature_attention_mask"].sum(-1)
        accepted = inspect.signature(backbone.get_rope_index).parameters
        arguments = {name: value for name, value in arguments.items() if name in accepted}
        position_ids, delta = backbone.get_rope_index(input_ids[None], **arguments)
        return position_ids[:, 0].long(), length + int(delta.flatten()[0])


def media_of(messages: Sequence[Mapping[str, Any]]) -> PromptMedia:
    """The decoded media of chat messages."""
    media = PromptMedia([], [], [])
    for message in messages:
        for part in message["content"] if not isinstance(message["content"], str) else ():
            if part["type"] == "image":
                media.images.append(part["image"])
            elif part["type"] == "video":
                media.videos.append((part["video"], part["metadata"]))
            elif part["type"] == "audio":
                media.audios.append((part["audio"], part["sampling_rate"]))
    return media

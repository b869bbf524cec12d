"""The sections `data` and `prompt` of the schema: where rows come from, and how a row becomes a prompt."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from mmrl_core.config.component import Component, Registered, Strict
from mmrl_core.config.numbers import Count, FrameRate, Frames, Seconds, Share


class SourceConfig(Component):
    """Where rows come from: a data source and its options."""

    name: str = Field("rows", description="registered data source, or path/to/file.py:function")
    split: str = Field("train", description="split of the source")
    limit: Count | None = Field(None, description="use only the first rows")
    layout: Literal["plain", "trl", "sharegpt", "llama_factory", "swift", "verl", "easyr1"] | None = Field(
        None,
        description="layout of the rows, which fills in what `prompt` leaves out; default: recognised where `prompt` "
        "sets neither text nor messages; plain: none",
    )


Source = Annotated[SourceConfig, Registered("source")]


class DataConfig(Strict):
    train: Annotated[SourceConfig, Registered("source")] | None = Field(None, description="rows that are trained on")
    held_out: Annotated[SourceConfig, Registered("source")] | None = Field(
        None, description="rows that `eval` scores; never trained on"
    )
    media_root: str | None = Field(
        None,
        description="folder that media paths are relative to, and may not leave; default: that of the data file, or "
        "the one that the source's options name",
    )
    max_image_pixels: int = Field(
        51_380_224,
        ge=1,
        le=178_956_970,
        description="larger images break their row before they are decoded; a JPEG of up to four times as many is "
        "decoded at half its sides",
    )
    image_formats: list[Literal["AVIF", "ICO", "JPEG2000", "PCX", "PPM", "TGA"]] = Field(
        [], description="formats that are opened beside PNG, JPEG, WebP, GIF, BMP and TIFF"
    )
    max_broken: Share = Field(0.05, description="share of rows that may be set aside as broken")
    on_long: Literal["set_aside", "error"] = Field(
        "set_aside",
        description="rows too long for the model, with media it refuses or (sft) no answer: as broken, or an error",
    )


class VideoConfig(Strict):
    """Which frames of a video the model is shown, and how large."""

    fps: FrameRate | None = Field(None, description="frames per second; default 2")
    num_frames: Frames | None = Field(None, description="this many frames instead, or all if the video has fewer")
    min_frames: Count = Field(4, description="at least so many frames, if the video has them")
    max_frames: Frames = Field(768, description="at most so many frames, spread over the whole video")
    min_pixels: Count | None = Field(None, description="frames are scaled up to this many pixels")
    max_pixels: Count | None = Field(None, description="frames are scaled down to this many pixels")
    timestamps: bool = Field(False, description="draw its time in seconds on each frame")
    reader: Literal["pyav", "decord", "torchcodec"] = Field(
        "pyav", description="library that decodes; decord for trusted files only"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.fps is not None and self.num_frames is not None:
            raise ValueError("'fps' and 'num_frames' are both set; set one")
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}")
        return self


MediumOrText = Literal["text", "image", "video", "audio"]


class PromptConfig(Strict):
    """How a row becomes a prompt; braces name data columns.

    What reads like a control token of the model (`<|im_end|>`, `<|image_pad|>`) gets a blank after its first character:
    the chat template alone writes those, and `prefix`, which is no data.

    With a `prefix` such as `"<think>\\n"` each turn of the policy begins with this text. It is a part of what the
    policy is given: never sampled, never trained. Whoever reads a completion finds it at its beginning: rewards,
    metrics, environments, rollout files and `mmrl eval`. A gold completion may hold it or leave it out; what is learnt
    begins after it. If the chat template ends with the very text, as some do with `<think>`, it is not written twice,
    and completions begin with it all the same.
    """

    system: str | list[dict[MediumOrText, str]] = Field(
        "",
        description="system message, if any: text, or parts such as [{text: 'A map:'}, {image: '{map}'}]",
    )
    template: dict[str, Any] = Field(
        {},
        description="options of the model's chat template, such as {enable_thinking: false}; one that it does not read "
        "is an error",
    )
    prefix: str = Field("", description="text that each turn of the policy begins with, as it stands; no columns")
    images: list[str] = Field([], description="image columns, such as '{image}'")
    videos: list[str] = Field([], description="video columns")
    video: VideoConfig = Field(VideoConfig(), description="which frames of a video the model is shown")
    audios: list[str] = Field([], description="audio columns")
    max_audio_s: Seconds = Field(600.0, description="longer audio breaks its row; nothing is cut; in seconds")
    text: str = Field("{problem}", description="user message, after the media")
    messages: str = Field(
        "",
        description="column of the messages of a chat, such as '{messages}', in place of text; a last one of the "
        "assistant is the gold completion",
    )
    marks: dict[Literal["image", "video", "audio"], str] = Field(
        {},
        description="the text's mark for each medium, such as {image: '<image>'}; without: media first",
    )
    answer: str = Field("", description="gold completion: trained on by sft stages, checked by `mmrl check`")

    @field_validator("system", mode="before")
    @classmethod
    def _text_or_parts(cls, system: Any) -> Any:
        kinds = get_args(MediumOrText)
        parts = (
            [[*part.items()] if isinstance(part, dict) else [] for part in system] if isinstance(system, list) else [[]]
        )
        fit = all(len(part) == 1 and part[0][0] in kinds and isinstance(part[0][1], str) for part in parts)
        if not fit and not isinstance(system, str):
            raise ValueError(
                "'system' is a text, or a list of parts, each a mapping of text, image, video or audio to a text, as "
                "[{text: 'A map:'}, {image: '{map}'}]"
            )
        return system

    @model_validator(mode="after")
    def _text_or_messages(self) -> Self:
        if self.messages and self.text != type(self).model_fields["text"].default:
            raise ValueError("'text' and 'messages' are both set; set one")
        return self

    @field_validator("template")
    @classmethod
    def _finite(cls, template: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(template, allow_nan=False, default=str)
        except ValueError:
            raise ValueError("'template' holds a number that is not finite") from None
        return template

    @field_validator("prefix")
    @classmethod
    def _more_than_blanks(cls, prefix: str) -> str:
        if prefix and not prefix.strip():
            raise ValueError("'prefix' is blanks alone; templates end with some, so it would not be seen")
        return prefix

"""The media of a row: which columns hold them, and reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.data.media_folders import located
from mmrl_core.data.templates import Template, value_of
from mmrl_core.media import (
    audio_seconds,
    check_image_pixels,
    content_hash,
    image_size,
    load_audio,
    load_image,
    load_video,
    media_file,
)

if TYPE_CHECKING:
    from mmrl_core.config import DataConfig, PromptConfig
    from mmrl_core.media import Video
    from mmrl_core.types import Prompt


@dataclass(frozen=True)
class Medium:
    """A part of a message's content, the key of its features, and the file that it was read from."""

    part: dict[str, Any]
    key: str
    file: str | None

    @property
    def kind(self) -> str:
        return str(self.part["type"])


class RowMedia:
    """Reads the media that the templates of a prompt name.

    Attributes:
        templates: of the images, then the videos, then the audios.
        columns: those that hold media and nothing else.
    """

    def __init__(self, prompt: PromptConfig, at: str, data: DataConfig) -> None:
        """
        Args:
            prompt: the templates, and how much of a video or an audio is read.
            at: config key of what holds the templates, such as "prompt", for messages.
            data: the folder that paths start from and may not leave, and which images are opened.

        Raises:
            TaskDataError: a template is malformed.
        """
        named = {"image": prompt.images, "video": prompt.videos, "audio": prompt.audios}
        self._templates = {kind: [Template(text, f"{at}.{kind}s") for text in texts] for kind, texts in named.items()}
        self._video = prompt.video
        self._max_audio_s = prompt.max_audio_s
        self._root = Path(data.media_root).expanduser() if data.media_root is not None else None
        self._max_image_pixels, self._image_formats = data.max_image_pixels, data.image_formats
        self.templates = [template for templates in self._templates.values() for template in templates]
        self.columns = {template.only_column for template in self.templates}

    def read(self, row: Mapping[str, Any], folder: Path | None, reading: list[Any]) -> list[Medium]:
        """The media of a row: images, videos, audios.

        Args:
            row: a row of the data.
            folder: that the source keeps media in, which no path may leave unless `data.media_root` names another.
            reading: holds the medium that is being read, as the row gives it; empty at the end.

        Raises:
            MediaError: a medium cannot be read; it is in `reading`.
            TaskDataError: the row lacks a column.
        """
        media = [self.load(kind, value, folder, reading) for kind, value in self._values(row)]
        reading.clear()
        return media

    def load(self, kind: str, value: Any, folder: Path | None, reading: list[Any]) -> Medium:
        """One medium, as a row gives it; see `read`."""
        reading[:] = [value]
        value, root = self._located(value, folder)
        if kind == "image":
            image = load_image(value, root=root, max_pixels=self._max_image_pixels, formats=self._image_formats)
            return self._medium(value, root, {"type": "image", "image": image})
        if kind == "video":
            video = self._load_video(value, root)
            part = {"type": "video", "video": video.frames, "metadata": video.metadata, "times_s": video.times_s}
            return self._medium(value, root, part, key=self._video_key(value, root))
        audio = load_audio(value, root=root, max_seconds=self._max_audio_s)
        heard = {"type": "audio", "audio": audio.samples, "sampling_rate": audio.sampling_rate}
        return self._medium(value, root, heard)

    def look(self, row: Mapping[str, Any], folder: Path | None) -> None:
        """Read no more of a row's media than their headers, and raise what they show; see `read`."""
        for kind, value in self._values(row):
            self.look_at(kind, value, folder)

    def look_at(self, kind: str, value: Any, folder: Path | None) -> None:
        """Read no more of one medium than its header."""
        value, root = self._located(value, folder)
        if kind == "image":
            width, height = image_size(value, root=root, formats=self._image_formats)
            check_image_pixels(width, height, self._max_image_pixels)
        elif kind == "video":
            media_file(value, root=root, what="video", must_exist=True)
        else:
            audio_seconds(value, root=root, max_seconds=self._max_audio_s)

    def _located(self, value: Any, folder: Path | None) -> tuple[Any, Path]:
        """A medium, with the folder that it may not leave."""
        return (value, self._root) if self._root is not None else located(value, folder)

    def _medium(self, value: Any, root: Path, part: dict[str, Any], key: str | None = None) -> Medium:
        return Medium(part, key or content_hash(value, root=root), media_file(value, root=root))

    def _load_video(self, value: Any, root: Path) -> Video:
        options = self._video
        return load_video(
            value,
            root=root,
            fps=options.fps,
            num_frames=options.num_frames,
            min_frames=options.min_frames,
            max_frames=options.max_frames,
            min_pixels=options.min_pixels,
            max_pixels=options.max_pixels,
            timestamps=options.timestamps,
            reader=options.reader,
        )

    def _video_key(self, value: Any, root: Path) -> str:
        """Hash of what the model is shown of a video: other frames of the same file have other features."""
        shown = f"{content_hash(value, root=root)} {self._video.model_dump_json()}"
        return hashlib.sha256(shown.encode()).hexdigest()

    def _values(self, row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Kind of each medium, and the medium as the row gives it."""
        for kind, templates in self._templates.items():
            for template in templates:
                if template.only_column is None:
                    yield kind, template.render(row)  # a path made of columns
                    continue
                value = value_of(row, template.only_column, template.key)
                for item in value if isinstance(value, list | tuple) else [] if value is None else [value]:
                    yield kind, item


def decoded_bytes(prompt: Prompt) -> int:
    """Bytes of a prompt's decoded media, and an allowance for the rest."""
    total = 4096
    for message in prompt.messages:
        for part in message["content"]:
            if part["type"] == "image":
                total += 3 * part["image"].width * part["image"].height
            elif part["type"] == "video":
                total += part["video"].numel() * part["video"].element_size()
            elif part["type"] == "audio":
                total += part["audio"].nbytes
    return total

"""The media of a row: which columns hold them, reading them, and their places in the prompt."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.data.media_folders import located
from mmrl_core.data.templates import Template, value_of
from mmrl_core.errors import TaskDataError
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
        self._images = [Template(text, f"{at}.images") for text in prompt.images]
        self._videos = [Template(text, f"{at}.videos") for text in prompt.videos]
        self._audios = [Template(text, f"{at}.audios") for text in prompt.audios]
        self._video = prompt.video
        self._max_audio_s = prompt.max_audio_s
        self._root = Path(data.media_root).expanduser() if data.media_root is not None else None
        self._max_image_pixels, self._image_formats = data.max_image_pixels, data.image_formats
        self.templates = [*self._images, *self._videos, *self._audios]
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
        media: list[Medium] = []
        for value, root in self._located(self._images, row, folder, reading):
            media.append(self._medium(value, root, {"type": "image", "image": self._load_image(value, root)}))
        for value, root in self._located(self._videos, row, folder, reading):
            video = self._load_video(value, root)
            part = {"type": "video", "video": video.frames, "metadata": video.metadata, "times_s": video.times_s}
            media.append(self._medium(value, root, part, key=self._video_key(value, root)))
        for value, root in self._located(self._audios, row, folder, reading):
            audio = load_audio(value, root=root, max_seconds=self._max_audio_s)
            heard = {"type": "audio", "audio": audio.samples, "sampling_rate": audio.sampling_rate}
            media.append(self._medium(value, root, heard))
        reading.clear()
        return media

    def look(self, row: Mapping[str, Any], folder: Path | None) -> None:
        """Read no more of a row's media than their headers, and raise what they show; see `read`."""
        reading: list[Any] = []
        for value, root in self._located(self._images, row, folder, reading):
            width, height = image_size(value, root=root, formats=self._image_formats)
            check_image_pixels(width, height, self._max_image_pixels)
        for value, root in self._located(self._videos, row, folder, reading):
            media_file(value, root=root, what="video", must_exist=True)
        for value, root in self._located(self._audios, row, folder, reading):
            audio_seconds(value, root=root, max_seconds=self._max_audio_s)

    def _located(
        self, templates: Sequence[Template], row: Mapping[str, Any], folder: Path | None, reading: list[Any]
    ) -> Iterator[tuple[Any, Path]]:
        """Each medium, with the folder that it may not leave; it stands in `reading` meanwhile."""
        for value in self._values(templates, row):
            reading[:] = [value]
            yield (value, self._root) if self._root is not None else located(value, folder)

    def _medium(self, value: Any, root: Path, part: dict[str, Any], key: str | None = None) -> Medium:
        return Medium(part, key or content_hash(value, root=root), media_file(value, root=root))

    def _load_image(self, value: Any, root: Path) -> Any:
        return load_image(value, root=root, max_pixels=self._max_image_pixels, formats=self._image_formats)

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

    def _values(self, templates: Sequence[Template], row: Mapping[str, Any]) -> Iterator[Any]:
        """Each medium as the row gives it."""
        for template in templates:
            if template.only_column is None:
                yield template.render(row)  # a path made of columns
                continue
            value = value_of(row, template.only_column, template.key)
            if value is not None:
                yield from value if isinstance(value, list | tuple) else [value]


def place_media(media: Sequence[Medium], text: str, kinds: Mapping[str, str]) -> list[Medium | str]:
    """Media and stretches of text in the order of the prompt.

    Args:
        media: those of a kind in the order in which they are marked.
        text: in which marks stand for media. Media of kinds that it has no mark of come first.
        kinds: mark -> kind of medium.

    Raises:
        TaskDataError: the text marks more or fewer media of a kind than there are.
    """
    stretches = re.split("(" + "|".join(map(re.escape, kinds)) + ")", text) if kinds else [text]
    marked = Counter(kinds[stretch] for stretch in stretches[1::2])
    waiting = {kind: [medium for medium in media if medium.kind == kind] for kind in marked}
    for kind, number in marked.items():
        if number != (found := len(waiting[kind])):
            raise TaskDataError(f"prompt.marks: the text marks {number} media of kind {kind}, the row has {found}")
    placed: list[Medium | str] = [medium for medium in media if medium.kind not in marked]
    for place, stretch in enumerate(stretches):
        if place % 2:
            placed.append(waiting[kinds[stretch]].pop(0))
        elif stretch:
            placed.append(stretch)
    return placed


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

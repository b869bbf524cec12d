"""A data set of one row in the form of a source, which tests write: what holds for all sources is tried on it."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmrl_core.config.schema import DataConfig, PromptConfig, SourceConfig
from mmrl_core.data import PromptSource
from mmrl_core.plugins import Plugins
from mmrl_core.support import need

MediumKind = Literal["image", "audio", "video"]

SUFFIX: Mapping[str, str] = {"image": ".png", "audio": ".wav", "video": ".mp4"}


@dataclass(frozen=True)
class SourceCase:
    """How a data set of one row is written in the form of a source.

    Attributes:
        write: (folder, medium as the row names it) -> options of the source. Files of media lie in the same folder.
        kind: of the medium.
        column: of the row that the source makes, that holds it.
        split: to ask for.
        inline: whether the row may hold the medium itself instead of its path.
        names_files: whether rows name the file; else it is found by the name of another.
        prompt: keys of the section `prompt`.
    """

    write: Callable[[Path, Any], dict[str, Any]]
    kind: MediumKind = "image"
    column: str = "image"
    split: str = "train"
    inline: bool = True
    names_files: bool = True
    prompt: Mapping[str, Any] = field(default_factory=dict)

    @property
    def medium(self) -> str:
        """Name of the file of the medium, for `write`."""
        return f"medium{SUFFIX[self.kind]}"

    def open(self, plugins: Plugins, source: str, folder: Path, medium: Any) -> PromptSource:
        """The prompts of the row, read as a run does that sets no `data.media_root`."""
        options = self.write(folder, medium)
        return self.reopen(plugins, source, options)

    def reopen(self, plugins: Plugins, source: str, options: Mapping[str, Any]) -> PromptSource:
        """The prompts of a row that was written, with the options that `write` returned."""
        prompt = PromptConfig(text="Look.", **{f"{self.kind}s": [f"{{{self.column}}}"]}, **self.prompt)
        config = SourceConfig(name=source, split=self.split, **options)
        return PromptSource(plugins, config, prompt, DataConfig(max_broken=1.0), name="train")


@functools.cache
def medium_bytes(kind: MediumKind) -> bytes:
    """A picture of 40 x 40 pixels, a tone of half a second, or a video of ten pictures of 64 x 64."""
    if kind == "video":
        return video_bytes(64, 10)
    buffer = io.BytesIO()
    if kind == "image":
        need("PIL.Image", "vision", "writing a picture").new("RGB", (40, 40), "red").save(buffer, "PNG")
        return buffer.getvalue()
    import numpy as np

    tone = np.sin(np.arange(8000) / 6).astype(np.float32) / 2
    need("soundfile", "audio", "writing a sound").write(buffer, tone, 16000, format="WAV")
    return buffer.getvalue()


@functools.cache
def video_bytes(side: int, num_frames: int) -> bytes:
    """An mp4 of green squares, 10 of them a second."""
    av = need("av", "video", "writing a video")
    buffer = io.BytesIO()
    frame = av.VideoFrame(side, side, "yuv420p")
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.height = stream.width = side
        stream.pix_fmt = "yuv420p"
        for number in range(num_frames):
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()

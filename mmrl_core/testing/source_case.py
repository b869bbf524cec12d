"""A data set of one row in the form of a source, which tests write: what holds for all sources is tried on it."""

from __future__ import annotations

import csv
import functools
import io
import json
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
        kind: of the medium; None of a source without media, whose `write` is given a name that it does not use.
        column: of the row that the source makes, that holds it.
        split: to ask for.
        inline: whether the row may hold the medium itself instead of its path.
        names_files: whether rows name the file; else it is found by the name of another.
        prompt: keys of the section `prompt`.
        tasks: ids of the tasks that its row fits; empty for all that no other case is meant for.
    """

    write: Callable[[Path, Any], dict[str, Any]]
    kind: MediumKind | None = "image"
    column: str = "image"
    split: str = "train"
    inline: bool = True
    names_files: bool = True
    prompt: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()

    @property
    def medium(self) -> str:
        """Name of the file of the medium, for `write`."""
        return f"medium{SUFFIX.get(self.kind or '', '')}"

    def open(self, plugins: Plugins, source: str, folder: Path, medium: Any) -> PromptSource:
        """The prompts of the row, read as a run does that sets no `data.media_root`."""
        options = self.write(folder, medium)
        return self.reopen(plugins, source, options)

    def reopen(self, plugins: Plugins, source: str, options: Mapping[str, Any]) -> PromptSource:
        """The prompts of a row that was written, with the options that `write` returned."""
        media = {f"{self.kind}s": [f"{{{self.column}}}"]} if self.kind is not None else {}
        prompt = PromptConfig(text="Look.", **media, **self.prompt)
        config = SourceConfig(name=source, split=self.split, **options)
        return PromptSource(plugins, config, prompt, DataConfig(max_broken=1.0), name="train")


MEDIUM = object()
"""Stands for the medium in rows that `json_rows` writes."""


def json_rows(*rows: Mapping[str, Any], **options: Any) -> Callable[[Path, Any], dict[str, Any]]:
    """A `write` of rows to train.jsonl, the medium in place of MEDIUM; `options` go to the source beside the path."""

    def write(folder: Path, medium: Any) -> dict[str, Any]:
        filled = [{key: medium if value is MEDIUM else value for key, value in row.items()} for row in rows]
        return {"path": write_json(folder / "train.jsonl", filled), **options}

    return write


def write_json(path: Path, content: Any) -> str:
    """Write JSON, of a `.jsonl` each item as a line; returns the path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content))
    return str(path)


def write_csv(path: Path, row: Mapping[str, Any]) -> str:
    """Write a table of one row; returns the path as text."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        writer.writeheader()
        writer.writerow(row)
    return str(path)


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

"""The system message of a row: text, or parts of which some are media."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.data.row_media import Medium, RowMedia
from mmrl_core.data.templates import Template

if TYPE_CHECKING:
    from mmrl_core.config import DataConfig, PromptConfig


class SystemMessage:
    """`prompt.system`, read for one row after another.

    Attributes:
        templates: of all parts.
        columns: those that hold media and nothing else.
    """

    def __init__(self, prompt: PromptConfig, at: str, data: DataConfig) -> None:
        """
        Args:
            prompt: holds the message, and how much of a video or an audio is read.
            at: config key of `prompt`, for messages.
            data: the folder that paths start from and may not leave, and which images are opened.

        Raises:
            TaskDataError: a template is malformed.
        """
        parts = [{"text": prompt.system}] if isinstance(prompt.system, str) else prompt.system
        self._parts: list[Template | RowMedia] = []
        for kind, text in (item for part in parts for item in part.items()):
            if kind == "text":
                self._parts.append(Template(text, f"{at}.system"))
            else:
                alone: dict[str, list[str]] = {"images": [], "videos": [], "audios": []} | {f"{kind}s": [text]}
                self._parts.append(RowMedia(prompt.model_copy(update=alone), f"{at}.system", data))
        self._media = [part for part in self._parts if isinstance(part, RowMedia)]
        self.columns = {column for media in self._media for column in media.columns}

    @property
    def templates(self) -> Iterator[Template]:
        for part in self._parts:
            yield from [part] if isinstance(part, Template) else part.templates

    def read(self, row: Mapping[str, Any], folder: Path | None, reading: list[Any]) -> list[Medium | str]:
        """The parts for a row, in order, texts that are empty left out; see `RowMedia.read`."""
        parts: list[Medium | str] = []
        for part in self._parts:
            if isinstance(part, RowMedia):
                parts += part.read(row, folder, reading)
            elif text := part.render(row):
                parts.append(text)
        return parts

    def look(self, row: Mapping[str, Any], folder: Path | None) -> None:
        """Read no more of its media than their headers; see `RowMedia.look`."""
        for media in self._media:
            media.look(row, folder)

"""Marks of media in the text of a row that nobody told the run of."""

from __future__ import annotations

import logging
from collections.abc import Collection

logger = logging.getLogger(__name__)

USUAL_MARKS = {"image": "<image>", "video": "<video>", "audio": "<audio>"}
"""What data sets write in place of a medium; ms-swift and LLaMA-Factory both do."""


class MarksOff:
    """Says once when texts hold marks of a kind of medium that `prompt.marks` leaves out.

    Attributes:
        found: the sentence, once there is one.
    """

    def __init__(self, name: str, marks: Collection[str]) -> None:
        """
        Args:
            name: of the source.
            marks: the kinds of media that `prompt.marks` has.
        """
        self.found: str | None = None
        self._name = name
        self._unknown = {kind: mark for kind, mark in USUAL_MARKS.items() if kind not in marks}

    def look(self, index: int, text: str, kinds: Collection[str]) -> None:
        """Look at the text of a row that has media of some kinds."""
        kind = None if self.found else next((kind for kind, mark in self._unknown.items() if mark in text), None)
        if kind is None:
            return
        mark = self._unknown[kind]
        comes = f"behind the {kind}" if kind in kinds else f"and the row has no {kind}"
        self.found = (
            f"{self._name}:{index}: the text holds {mark!r} and marks are off, so the model reads it as text, {comes}. "
            f"Set prompt.marks to {{{kind}: '{mark}'}}" + ("" if kind in kinds else f", and prompt.{kind}s")
        )
        logger.warning(self.found)

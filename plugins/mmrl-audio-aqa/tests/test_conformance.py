"""The plugin keeps every property of docs/conformance.md; CASES are data sets of one row for its sources."""

from __future__ import annotations

from typing import Any

from mmrl_core.testing import MEDIUM, SourceCase, json_rows

PLUGIN = "audio_aqa"

AVQA = {"question_text": "What is in the video?", "multi_choice": ["a cat", "a dog"], "answer": 0, "audio_path": MEDIUM}
MMAU = {"question": "What is it?", "choices": ["a cat", "a dog"], "answer": "a cat", "audio_id": MEDIUM}

AUDIO: dict[str, Any] = {"kind": "audio", "column": "audio"}

CASES = {
    "audio_aqa/avqa": (SourceCase(json_rows(AVQA), **AUDIO), SourceCase(json_rows(AVQA, cut_to_s=0.1), **AUDIO)),
    "audio_aqa/mmau": (SourceCase(json_rows(MMAU), **AUDIO), SourceCase(json_rows(MMAU, cut_to_s=0.1), **AUDIO)),
}


def test_conformance(mmrl_property):
    mmrl_property()

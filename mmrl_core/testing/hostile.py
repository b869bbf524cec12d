"""Completions that a policy may make at its worst, for the checks of rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl_core.support import need

HOSTILE: Mapping[str, str] = {
    "an empty completion": "",
    "white space": " \n\t ",
    "garbage Unicode": "\x00\ufffd\u202e\u0301\U0001f9ff\ud7ff ﬀ ١٢٣ [１, ２] \u200b" * 20,
    "a lone surrogate": "\ud800 <answer>\udfff</answer>",
    "nested tags": "<think>" * 500 + "<answer>" * 500 + "1" + "</answer>" * 500 + "</think>" * 500,
    "tags never closed": "<think><answer>" * 2000,
    "100 kB of one letter": "a" * 100_000,
    "100 kB of white space in tags": "<think>" + " \n" * 50_000 + "</answer>",
    "100 kB of open brackets": "<think>x</think><answer>" + "[" * 100_000 + "</answer>",
    "NaN": "<think>x</think><answer>NaN</answer>",
    "boxes of NaN and infinity": (
        "<think>x</think><answer>[{'Position': [NaN, Infinity, -Infinity, 1e999], 'Confidence': NaN}]</answer>"
    ),
    "a huge number": f"<think>x</think><answer>{'9' * 5000}</answer>",
    "boxes of huge numbers": (
        "<think>x</think><answer>[{'Position': [-1e308, -1e308, 1e308, 1e308], 'Confidence': 1e308}]</answer>"
    ),
    "broken JSON": '<think>x</think><answer>[{"Position": [1, 2, 3, "Confidence": }, {]</answer>',
    "JSON of wrong types": '<think>x</think><answer>[{"Position": {"a": null}, "Confidence": []}, null, [[]]]</answer>',
    "code": "<think>x</think><answer>__import__('os').getcwd()</answer>",
}
"""What a model may write at its worst, by description. No reward may raise, hang or overpay on any of it."""

READS = ("text", "image", "video")
"""What a reward may read, by the detail `reads` that it is registered with; "text" where it has none."""


def hostile_completions(reads: str) -> Mapping[str, Any]:
    """Completions by description: text, pictures, or videos as lists of pictures.

    Args:
        reads: one of `READS`.
    """
    if reads == "text":
        return HOSTILE
    pictures = _pictures()
    if reads == "image":
        return pictures
    videos = {f"three frames of {name}": [picture] * 3 for name, picture in pictures.items()}
    return {**videos, "a single frame": [pictures["a black picture"]]}


def _pictures() -> dict[str, Any]:
    Image = need("PIL.Image", "vision", "checking a reward that reads pictures")

    return {
        "a black picture": Image.new("RGB", (64, 64)),
        "a white picture": Image.new("RGB", (64, 64), "white"),
        "a picture of one pixel": Image.new("RGB", (1, 1), "red"),
        "a very wide picture": Image.new("RGB", (600, 3), "red"),
        "a grey picture": Image.new("L", (64, 64), 128),
        "a transparent picture": Image.new("RGBA", (64, 64)),
    }

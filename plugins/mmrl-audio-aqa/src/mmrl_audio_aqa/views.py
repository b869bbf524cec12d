"""What the report draws of a rollout over a melody of the demo: when its notes sound."""

from collections.abc import Mapping
from typing import Any


def timeline(completion: str, sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Spans of time in which notes sound.

    Args:
        completion: not looked at: answers name no times.
        sample: `notes`, dicts with start_s, end_s and pitch_hz, and `length_s` of the sound; a row without them, such
            as one of AVQA or MMAU, has no timeline.

    Returns:
        A dict for each note: "span" [start, end] and "length_s", in seconds, "label" (the pitch) and "kind" "gold".

    >>> timeline("", {"notes": [{"start_s": 0.5, "end_s": 0.75, "pitch_hz": 440.0}], "length_s": 2.0})
    [{'span': [0.5, 0.75], 'length_s': 2.0, 'label': '440 Hz', 'kind': 'gold'}]
    """
    return [
        {
            "span": [note["start_s"], note["end_s"]],
            "length_s": sample["length_s"],
            "label": f"{note['pitch_hz']:.0f} Hz",
            "kind": "gold",
        }
        for note in sample.get("notes") or []
    ]

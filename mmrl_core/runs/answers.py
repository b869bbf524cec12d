"""Held-out answers: a line for every completion of an evaluation, with small copies of its pictures.

    rollouts/step-000120-answers.jsonl       all held-out prompts after step 120, greedy
    rollouts/step-000120-answers-t1.jsonl    the same at temperature 1
    rollouts/media/<content hash>-small.jpg  pictures of prompts and completions, at most SMALL_SIDE pixels on a side
    eval/<result>.jsonl                      those of `mmrl eval`, without pictures

A line holds prompt_id, temperature, prompt, prefix, answer (the gold completion), sample, media (paths from rollouts/),
completion (null if it is no text), completion_media (path of a picture that a policy made, or of the middle of a video,
else null), correct, said, gold (see `rightness`), rewards, failures, total, truncated and num_tokens, as in a line of
rollouts. Pictures are kept of the first MAX_PICTURED prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.media import content_hash, is_picture
from mmrl_core.runs.rightness import Rightness, scored_rollouts
from mmrl_core.runs.rollouts import FOLDER, RolloutLog, file_stem, is_film, json_safe, media_parts, prompt_text
from mmrl_core.support import written_aside

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmrl_core.types import Prompt, RolloutGroup, Scores

SMALL_SIDE = 240
SMALL_QUALITY = 75
MAX_PICTURED = 1000
MAX_PICTURES_OF_PROMPT = 2


def answer_lines(
    groups: Sequence[RolloutGroup],
    scores: Scores,
    temperature: float,
    rightness: Rightness,
    save: Callable[[Image, str], str] | None = None,
) -> list[str]:
    """Each completion as a line.

    Args:
        scores: of exactly these rollouts.
        temperature: of sampling; 0 is greedy.
        save: keeps a picture small, given a key for it; returns its path. None: no pictures are kept.
    """
    lines, scored = [], iter(scored_rollouts(groups, scores, rightness))
    for place, group in enumerate(groups):
        keep = save if place < MAX_PICTURED else None
        shared = {
            "prompt_id": group.prompt.id,
            "temperature": temperature,
            "prompt": prompt_text(group.prompt),
            "prefix": group.prompt.prefix,
            "answer": group.prompt.answer,
            "sample": json_safe(group.prompt.sample),
            "media": [] if keep is None else _prompt_pictures(group.prompt, keep),
        }
        for rollout in group.rollouts:
            own = {
                "completion": rollout.completion if isinstance(rollout.completion, str) else None,
                "completion_media": None if keep is None else _made_picture(rollout.completion, keep),
                **next(scored),
                "truncated": rollout.truncated,
                "num_tokens": rollout.num_actions,
            }
            lines.append(json.dumps(shared | own, allow_nan=False) + "\n")
    return lines


def _prompt_pictures(prompt: Prompt, keep: Callable[[Image, str], str]) -> list[str]:
    """Paths of the first pictures of a prompt."""
    pictures = [
        (part["image"], prompt.media_keys[position] if position < len(prompt.media_keys) else "")
        for position, part in enumerate(media_parts(prompt.messages))
        if part["type"] == "image" and is_picture(part.get("image"))
    ]
    return [keep(image, key or content_hash(image)) for image, key in pictures[:MAX_PICTURES_OF_PROMPT]]


def _made_picture(completion: Any, keep: Callable[[Image, str], str]) -> str | None:
    """Path of a picture that a policy made, or of the middle of a video."""
    picture = completion[len(completion) // 2] if is_film(completion) else completion
    return keep(picture, content_hash(picture)) if is_picture(picture) else None


class AnswerLog:
    """Writes the held-out answers of a run."""

    def __init__(self, run: Path, rightness: Rightness) -> None:
        self._rollouts = RolloutLog(run)
        self._rightness = rightness
        self._media = run / FOLDER / "media"

    def write(self, step: int, groups: Sequence[RolloutGroup], scores: Scores, temperature: float) -> None:
        """Write every answer of an evaluation, in place of a file that was written for it before."""
        self._media.mkdir(parents=True, exist_ok=True)
        lines = answer_lines(groups, scores, temperature, self._rightness, self._save)
        self._rollouts.write_lines(step, "answers", temperature, lines)

    def _save(self, image: Image, key: str) -> str:
        path = self._media / f"{file_stem(key)}-small.jpg"
        if not path.exists():
            small = image.convert("RGB")
            small.thumbnail((SMALL_SIDE, SMALL_SIDE))
            with written_aside(path) as aside:
                small.save(aside, format="JPEG", quality=SMALL_QUALITY)
        return f"{self._media.name}/{path.name}"

"""Sampled completions on disk: a line for each rollout, each medium once.

    rollouts/step-000120-train.jsonl          training groups of step 120
    rollouts/step-000120-held_out.jsonl       held-out prompts after step 120, greedy
    rollouts/step-000120-held_out-t1.jsonl    the same at temperature 1
    rollouts/step-000120-answers.jsonl        every held-out answer after step 120, without media; see `answers`
    rollouts/media/<content hash>.png         pictures of prompts and conversations, and pictures that a policy made
    rollouts/media/<content hash>.webp        videos that a policy made, animated
    rollouts/media/<content hash>.flac        sounds of prompts and conversations, mono, 16 bit

A line holds step, stage, split, temperature, prompt_id, group (position in the step), index (position in the group),
prompt (text; media are written as [image]), prefix (that completion and turns begin with, given and not sampled), media
(paths from rollouts/), times_s (for each of the media the time of a video's frame, in seconds, or null), answer (the
gold completion), sample, completion (null if it is a picture or a video), completion_media (its path, or null), turns
(of a conversation, in order: role, text, media, times_s; empty for a single turn), outcome (facts of the conversation),
correct, said, gold (see `rightness`), rewards (name -> number before its weight, null = unscored), failures (name of a
reward that failed -> why), total (weighted), advantage, truncated, num_tokens. Of a prompt's video up to MAX_FRAMES
frames are kept, of one that was made the first MAX_MADE_FRAMES, of a sound the first MAX_SOUND_S seconds. Numbers that
are not finite are null.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from mmrl_core.media import content_hash, is_picture
from mmrl_core.runs.rightness import Rightness, scored_rollouts
from mmrl_core.support import finite, need, remove_unfinished, written_aside

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmrl_core.types import Prompt, Rollout, RolloutGroup, Scores

Split = Literal["train", "held_out", "answers"]

FOLDER = "rollouts"
MAX_FRAMES = 8  # frames kept of a video: enough to see what happens, without storing the data set again
MAX_MADE_FRAMES = 64  # frames kept of a video that a policy made
FRAME_MS = 125  # time for which a frame of such a video is shown
FILM_SUFFIX = ".webp"
MAX_SOUND_S = 30  # seconds kept of a sound, as much as the audio encoders of the field hear
SOUND_SUFFIX = ".flac"
MAX_LOSSLESS_SIDE = 64  # side of a film in pixels; in small ones every pixel is seen
MAX_LINE_BYTES = 64 << 20  # of a line that is read: a completion of millions of tokens has room
MAX_FILE_BYTES = 1 << 30  # of a file that is read
MAX_DEPTH = 12  # depth of a sample; deeper values are written as text
MAX_ARRAY_ITEMS = 1024  # longer arrays in a sample are named by their shape

_FILE_NAME = re.compile(r"step-(\d+)-(train|held_out|answers)(?:-t([0-9.e+-]+))?\.jsonl")


@dataclass(frozen=True)
class RolloutFile:
    """A file of rollouts. `temperature` is that of a held-out file, 0 for greedy; None for training."""

    path: Path
    step: int
    split: Split
    temperature: float | None


class RolloutLog:
    """Writes the rollouts of a run. A file is written aside and renamed: a kill leaves the old or the new one."""

    def __init__(self, run: Path, rightness: Rightness | None = None) -> None:
        self._rightness = rightness
        self._folder = run / FOLDER
        self._media = self._folder / "media"

    def remove_unfinished(self) -> None:
        """Delete the files that a killed run left half written."""
        remove_unfinished(self._folder)

    def write(
        self,
        step: int,
        stage: str,
        split: Literal["train", "held_out"],
        groups: Sequence[RolloutGroup],
        scores: Scores | None,
        advantages: Sequence[Sequence[float]] | None,
        temperature: float,
    ) -> Path:
        """Write the rollouts of a step, in place of a file that was written for it before.

        Args:
            step, stage: counted over all stages, and the name of its stage.
            split: held-out rollouts have a file for each temperature.
            groups: prompts with their rollouts.
            scores: of exactly these rollouts, in the order of the groups; None if nothing scored them.
            advantages: for each group a number for each rollout, the mean over trained tokens; None outside training.
            temperature: of sampling; 0 is greedy.

        Returns:
            Path of the file.

        Raises:
            ValueError: scores or advantages are not of as many rollouts as the groups hold.
        """
        _check_sizes(groups, scores, advantages)
        self._media.mkdir(parents=True, exist_ok=True)
        scored = iter(scored_rollouts(groups, scores, self._rightness))
        lines = []
        for group_index, group in enumerate(groups):
            shared = {
                "step": step,
                "stage": stage,
                "split": split,
                "temperature": temperature,
                "prompt_id": group.prompt.id,
                "group": group_index,
                **_prompt_texts(group.prompt),
                **self._save_media(group.prompt.messages, group.prompt.media_keys),
                "answer": group.prompt.answer,
                "sample": json_safe(group.prompt.sample),
            }
            for index, rollout in enumerate(group.rollouts):
                own = {
                    "index": index,
                    **self._completion(rollout),
                    "turns": [self._turn(message) for message in rollout.messages],
                    "outcome": json_safe(rollout.outcome),
                    **next(scored),
                    "advantage": None if advantages is None else finite(float(advantages[group_index][index])),
                    "truncated": rollout.truncated,
                    "num_tokens": rollout.num_actions,
                }
                lines.append(json.dumps(shared | own) + "\n")
        return self.write_lines(step, split, temperature, lines)

    def write_lines(self, step: int, split: Split, temperature: float, lines: Sequence[str]) -> Path:
        """Write the lines of a step's file, in place of one that was written before."""
        suffix = f"-t{temperature:g}" if split != "train" and temperature > 0 else ""
        path = self._folder / f"step-{step:06d}-{split}{suffix}.jsonl"
        self._folder.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            aside.write_text("".join(lines), encoding="utf-8")
        return path

    def _completion(self, rollout: Rollout) -> dict[str, Any]:
        completion = rollout.completion
        if is_picture(completion):
            return {"completion": None, "completion_media": self._save_image(completion, content_hash(completion))}
        if is_film(completion):
            return {"completion": None, "completion_media": self._save_film(completion)}
        text = completion if isinstance(completion, str) else repr(completion)
        return {"completion": text, "completion_media": None}

    def _turn(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "role": str(message.get("role", "")),
            "text": _message_text(message),
            **self._save_media([message]),
        }

    def _save_media(self, messages: Sequence[Mapping[str, Any]], keys: Sequence[str] = ()) -> dict[str, list[Any]]:
        """Paths of the messages' pictures, video frames and sounds, in order, and the times of the frames."""
        paths: list[str] = []
        times: list[float | None] = []
        for position, part in enumerate(media_parts(messages)):
            kind = part["type"]
            medium = part.get(kind)
            if kind == "image" and is_picture(medium):
                key = keys[position] if position < len(keys) else ""
                paths.append(self._save_image(medium, key or content_hash(medium)))
                times.append(None)
            elif kind == "video":
                for frame, time in _frames(part):
                    paths.append(self._save_image(frame, content_hash(frame)))
                    times.append(time)
            elif kind == "audio" and medium is not None:
                key = keys[position] if position < len(keys) else ""
                paths.append(self._save_sound(medium, part["sampling_rate"], key))
                times.append(None)
        return {"media": paths, "times_s": times}

    def _save_sound(self, samples: Any, sampling_rate: int, key: str) -> str:
        """`samples` is an array of floats [samples], full scale -1..1."""
        key = key or content_hash({"array": samples, "sampling_rate": sampling_rate})
        path = self._media / f"{file_stem(key)}{SOUND_SUFFIX}"
        if not path.exists():
            soundfile: Any = need("soundfile", "audio", "writing the sounds of a run")
            with written_aside(path) as aside:
                soundfile.write(aside, samples[: MAX_SOUND_S * sampling_rate], sampling_rate, "PCM_16", format="FLAC")
        return f"{self._media.name}/{path.name}"

    def _save_image(self, image: Image, key: str) -> str:
        path = self._media / f"{file_stem(key)}.png"
        if not path.exists():
            writable = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
            with written_aside(path) as aside:
                writable.save(aside, format="PNG")
        return f"{self._media.name}/{path.name}"

    def _save_film(self, frames: Sequence[Image]) -> str:
        path = self._media / f"{content_hash(frames)}{FILM_SUFFIX}"
        if not path.exists():
            with written_aside(path) as aside:
                aside.write_bytes(encode_film(frames[:MAX_MADE_FRAMES]))
        return f"{self._media.name}/{path.name}"


def file_stem(key: str) -> str:
    if re.fullmatch(r"[0-9A-Za-z_-]{1,128}", key):
        return key
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def is_film(completion: Any) -> bool:
    """Whether a completion is a list of PIL images, the frames of a video."""
    is_list = isinstance(completion, list | tuple) and bool(completion)
    return is_list and all(map(is_picture, completion))


def encode_film(frames: Sequence[Image]) -> bytes:
    """Frames as an endless animated WebP, a seventh of the size of an animated PNG; small frames lose nothing."""
    first, *others = [frame.convert("RGB") for frame in frames]
    buffer = io.BytesIO()
    first.save(
        buffer,
        format="WEBP",
        save_all=True,
        append_images=others,
        duration=FRAME_MS,
        loop=0,
        quality=90,
        lossless=max(first.size) <= MAX_LOSSLESS_SIDE,
    )
    return buffer.getvalue()


def rollout_files(run: Path) -> list[RolloutFile]:
    """The rollout files of a run, by step; training before held-out, greedy before warmer."""
    found = []
    for path in (run / FOLDER).glob("step-*.jsonl"):
        if match := _FILE_NAME.fullmatch(path.name):
            step, split, temperature = match.groups()
            with contextlib.suppress(ValueError):  # a name of somebody else's, such as step-1-held_out-t...jsonl
                warmth = None if split == "train" else float(temperature or 0)
                found.append(RolloutFile(path, int(step), cast(Split, split), warmth))
    return sorted(found, key=lambda file: (file.step, file.split != "train", file.temperature or 0.0))


def read_rollouts(path: Path) -> list[dict[str, Any]]:
    """The rollouts of one file; lines that are no JSON object are left out."""
    return list(read_json_lines(path))


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """JSON objects of a file, none if it is missing or no regular file.

    Torn lines are left out, since a killed run may end in one; so are lines longer than `MAX_LINE_BYTES`, and what
    follows the first `MAX_FILE_BYTES` of a file.
    """
    if not path.is_file():  # a FIFO would be waited for, a device read, without end
        return
    try:
        with open(path, "rb") as file:
            is_rest = False  # of a line that is too long
            while (line := file.readline(MAX_LINE_BYTES)) and file.tell() <= MAX_FILE_BYTES:
                is_whole = line.endswith(b"\n") or len(line) < MAX_LINE_BYTES
                if is_whole and not is_rest and (record := _json_object(line)) is not None:
                    yield record
                is_rest = not is_whole
    except OSError:
        return


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def prompt_text(prompt: Prompt) -> str:
    """The text of a prompt, with [image] in place of a picture. Roles are named if there are several messages."""
    spoken = [(str(message.get("role", "")), _message_text(message)) for message in prompt.messages]
    if len(spoken) == 1:
        return spoken[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in spoken)


def _prompt_texts(prompt: Prompt) -> dict[str, str]:
    return {"prompt": prompt_text(prompt), "prefix": prompt.prefix}


def json_safe(value: Any, depth: int = 0) -> Any:
    """The value as JSON can hold it: arrays become lists, other objects text, numbers that are not finite null."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return finite(value)
    if depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            return {str(key): json_safe(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [json_safe(item, depth + 1) for item in value]
        if isinstance(value, set | frozenset):  # their order differs from process to process
            return sorted((json_safe(item, depth + 1) for item in value), key=json.dumps)
        if hasattr(value, "tolist"):  # numpy and torch
            if math.prod(getattr(value, "shape", ())) <= MAX_ARRAY_ITEMS:
                return json_safe(value.tolist(), depth + 1)
            return f"<array of shape {tuple(value.shape)}>"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if is_picture(value):
        return f"<image {value.width} x {value.height}>"
    return str(value)


def _check_sizes(
    groups: Sequence[RolloutGroup], scores: Scores | None, advantages: Sequence[Sequence[float]] | None
) -> None:
    sizes = [len(group.rollouts) for group in groups]
    if scores is not None and len(scores.totals) != sum(sizes):
        raise ValueError(f"{len(scores.totals)} scores for {sum(sizes)} rollouts")
    if advantages is not None and [len(row) for row in advantages] != sizes:
        raise ValueError(f"advantages of {[len(row) for row in advantages]} rollouts for groups of {sizes}")


def _message_text(message: Mapping[str, Any]) -> str:
    content = message.get("content", "")
    return content if isinstance(content, str) else "".join(_part_text(part) for part in content)


def _part_text(part: Mapping[str, Any]) -> str:
    kind = part.get("type", "text")
    return str(part.get("text", "")) if kind == "text" else f"[{kind}]\n"


def media_parts(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Every part that is not text."""
    for message in messages:
        content = message.get("content", "")
        yield from () if isinstance(content, str) else (part for part in content if part.get("type", "text") != "text")


def _frames(part: Mapping[str, Any]) -> list[tuple[Image, float | None]]:
    """Up to MAX_FRAMES evenly spaced pictures of a video part, and their times in seconds, None where unknown.

    The video is uint8 frames [frames, 3, height, width] or a list of pictures.
    """
    video: Any = part.get("video")
    frames = getattr(video, "frames", video)
    try:
        count = len(frames)
    except TypeError:
        return []
    need("PIL", "vision", "writing the frames of a video")
    from PIL import Image

    times = _frame_times_s(part)
    chosen = sorted({round(i * (count - 1) / max(1, MAX_FRAMES - 1)) for i in range(MAX_FRAMES)}) if count else []
    pictures = []
    for index in chosen:
        frame = frames[index]
        if not is_picture(frame):
            frame = Image.fromarray(frame.permute(1, 2, 0).cpu().numpy())  # [3, height, width] -> [height, width, 3]
        pictures.append((frame, times[index] if len(times) == count else None))
    return pictures


def _frame_times_s(part: Mapping[str, Any]) -> list[float | None]:
    """Time of every frame of a video part: its "times_s", or what its metadata say; empty if neither is there."""
    times = part.get("times_s")
    if times is None:
        metadata = part.get("metadata") or {}
        indices, fps = metadata.get("frames_indices"), metadata.get("fps")
        times = [] if indices is None or not fps else [index / fps for index in indices]
    return [finite(round(float(time), 3)) for time in times]

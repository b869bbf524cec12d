"""Small rows with media, made on the machine: enough that a tiny model learns what to answer in seconds."""

from __future__ import annotations

import json
import math
import random
import struct
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl_core.support import need

SPLITS = {"train": 24, "held_out": 8}  # name -> rows
SIDE_PX = 56  # of pictures and videos: four tokens of a Qwen model
NUM_FRAMES, FPS = 8, 4
RATE_HZ = 16_000

COLOURS = {"red": (220, 40, 40), "green": (40, 160, 70), "blue": (50, 80, 220), "yellow": (240, 210, 50)}
TONES = {"low": 200.0, "high": 2000.0}  # Hz
NUMBERS = ("zero", "one", "two", "three")
PHRASES = ("Write {} as a word.", "Which word is {}?", "{} in letters:", "Spell the number {}.")


@dataclass(frozen=True)
class Modality:
    """What the rows of a modality are, and what a task says of them.

    Attributes:
        tiny: kind of `mmrl tiny` that takes it.
        extra: extra of mmrl-core that reads it; "" for text.
        prompt: key of `prompt` for its media; "" for text.
        suffix: of its files.
        real: how a task takes a published model, as the end of a sentence.
        question, answers: of the rows; for text the rows have questions of their own.
        write: writes the medium that an answer belongs to.
    """

    tiny: str
    extra: str
    prompt: str
    suffix: str
    real: str
    question: str
    answers: Sequence[str]
    write: Callable[[Path, str, random.Random], None] | None = None

    @property
    def column(self) -> str:
        """Of the rows, with the file of the medium."""
        return self.prompt.removesuffix("s")

    @property
    def fields(self) -> dict[str, str]:
        """What templates put in for it."""
        return {
            "tiny": self.tiny,
            "extras": ",".join(filter(None, ["report", self.extra])),
            "media": f'  {self.prompt}: ["{{{self.column}}}"]\n' if self.prompt else "",
            "columns": ", ".join(filter(None, [self.column, "question", "answer"])),
            "answer": self.answers[0],
            "other": self.answers[1],
            "real": self.real,
        }


def write_rows(modality: str, folder: Path) -> None:
    """Write `<split>.jsonl` for each split, and the media beside them.

    Raises:
        MissingPackageError: pillow for pictures, or av for videos, is not installed.
    """
    folder.mkdir(parents=True)
    made = MODALITIES[modality]
    rng = random.Random(0)  # the same files on every machine
    for split, count in SPLITS.items():
        rows: list[dict[str, Any]] = []
        for number in range(count):
            answer = made.answers[number % len(made.answers)]
            row = {"question": made.question, "answer": answer}
            if made.write is None:
                phrases = PHRASES[-1:] if split == "held_out" else PHRASES[:-1]
                place = number % len(made.answers)
                row["question"] = phrases[number // len(made.answers) % len(phrases)].format(place)
            else:
                file = f"{split}_{number:02d}{made.suffix}"
                made.write(folder / file, answer, rng)
                row = {made.column: file, **row}
            rows.append(row)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def _picture(colour: str, rng: random.Random) -> Any:
    """A square of a colour, somewhere on white."""
    need("PIL", "vision", "making the pictures of the rows")
    from PIL import Image

    side = rng.randint(24, SIDE_PX - 4)
    left, top = rng.randint(0, SIDE_PX - side), rng.randint(0, SIDE_PX - side)
    picture = Image.new("RGB", (SIDE_PX, SIDE_PX), (250, 250, 250))
    picture.paste(COLOURS[colour], (left, top, left + side, top + side))
    return picture


def _write_image(path: Path, answer: str, rng: random.Random) -> None:
    _picture(answer, rng).save(path)


def _write_video(path: Path, answer: str, rng: random.Random) -> None:
    """A square that is at first of another colour."""
    av = need("av", "video", "making the videos of the rows")
    before = rng.choice([colour for colour in COLOURS if colour != answer])
    frames = [_picture(before, rng)] * (NUM_FRAMES // 4) + [_picture(answer, rng)] * (NUM_FRAMES * 3 // 4)
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=FPS)
        stream.width = stream.height = SIDE_PX
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # with more, the bytes of the file depend on the machine
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode(None))


def _write_audio(path: Path, answer: str, rng: random.Random) -> None:
    """Half a second of a tone, 16-bit mono."""
    pitch_hz, loudness = TONES[answer] * rng.uniform(0.9, 1.1), rng.uniform(0.4, 0.8)
    values = [loudness * math.sin(2 * math.pi * pitch_hz * n / RATE_HZ) for n in range(RATE_HZ // 2)]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(struct.pack(f"<{len(values)}h", *(round(value * 32767) for value in values)))


_COLOUR_NAMES = tuple(COLOURS)
MODALITIES = {
    "text": Modality("qwen2", "", "", "", "set `model: {path: Qwen/Qwen2.5-1.5B-Instruct}`", "", NUMBERS),
    "image": Modality(
        "qwen2_5_vl",
        "vision",
        "images",
        ".png",
        "put `model/qwen2_5_vl_3b` in front of `extends`",
        "Which colour is the square? One word.",
        _COLOUR_NAMES,
        _write_image,
    ),
    "video": Modality(
        "qwen2_5_vl",
        "video",
        "videos",
        ".mp4",
        "put `model/qwen2_5_vl_3b` in front of `extends`",
        "Which colour has the square at the end? One word.",
        _COLOUR_NAMES,
        _write_video,
    ),
    "audio": Modality(
        "qwen2_audio",
        "audio",
        "audios",
        ".wav",
        "put `model/qwen2_audio_7b` in front of `extends`",
        "Is the tone low or high? One word.",
        tuple(TONES),
        _write_audio,
    ),
}
"""Name -> what rows of it are."""

"""Rows for the demo: short melodies made on this machine, written as wav files, and questions about what is heard.

A melody is three to six notes in a little noise. Four things about it are asked, each with four answers:

    instrument   flute, clarinet, organ, bell: strength and decay of the overtones
    count        three, four, five, six notes
    melody       rises, falls, stays, zigzags
    harmony      tone, fifth, major, minor: what sounds at a time

Pitch, tempo, loudness and noise are drawn from continuous ranges, so no two sounds are alike; held-out scores measure
generalisation to new sounds of the same kinds.

Rows have a second gold column, ``hasty_solution``: what a hasty annotator would have written, who takes the right
answer for its neighbour in a share of the rows. A supervised cold start on it leaves a policy that imitates those
mistakes; the reward reads ``solution``, so GRPO can undo them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmrl_audio_aqa.prompts import question_prompt
from mmrl_core.data import ListedRows
from mmrl_core.errors import TaskDataError
from mmrl_core.starting_model import cache_folder
from mmrl_core.testing import write_aside

if TYPE_CHECKING:
    import numpy as np

Split = Literal["train", "held_out"]

ANSWERS = {
    "instrument": ("flute", "clarinet", "organ", "bell"),
    "count": ("three", "four", "five", "six"),
    "melody": ("rises", "falls", "stays", "zigzags"),
    "harmony": ("tone", "fifth", "major", "minor"),
}
"""What is asked -> its answers; the hasty annotator takes each for the next, and the last for the first."""

QUESTIONS = {
    "instrument": "Which instrument plays?",
    "count": "How many notes are played?",
    "melody": "What does the melody do?",
    "harmony": "What sounds at a time?",
}

SAMPLING_RATE = 16_000
LENGTH_S = 2.0
FORMAT_VERSION = 1  # part of the folder's name: raise it when the same seed would give other sounds

OVERTONES = {  # instrument -> (frequency over that of the tone, strength, seconds to fall to 1/e)
    "flute": ((1.0, 1.0, 9.0),),
    "clarinet": ((1.0, 1.0, 9.0), (3.0, 0.7, 9.0), (5.0, 0.5, 9.0)),
    "organ": ((1.0, 1.0, 9.0), (2.0, 0.9, 9.0), (4.0, 0.8, 9.0)),
    "bell": ((1.0, 1.0, 0.08), (2.76, 0.8, 0.04)),
}
CHORDS = {"tone": (0,), "fifth": (0, 7), "major": (0, 4, 7), "minor": (0, 3, 7)}  # semitones over the lowest tone
LOWEST_HZ = (500.0, 700.0)
STEP_SEMITONES = (3, 5)  # from note to note
BEAT_S = (0.2, 0.3)  # from note to note
SOUNDING_SHARE = 0.8  # of a beat
FADE_S = 0.01  # at both ends of a note, against clicks
LOUDNESS = (0.2, 0.6)  # of full scale, of the loudest sample
NOISE = 0.003  # standard deviation, of full scale


@dataclass(frozen=True)
class Note:
    """A note: when it sounds, and the frequency of its lowest tone."""

    start_s: float
    end_s: float
    pitch_hz: float


@dataclass(frozen=True)
class Melody:
    """What is heard: the right answer to each question, and the notes."""

    heard: Mapping[str, str]
    notes: tuple[Note, ...]


def melodies(
    split: Split, *, num_rows: int, seed: int = 0, wrong_share: float = 0.5, cache_dir: str | Path | None = None
) -> ListedRows:
    """Rows of one split: four for each sound, a wav file (2 s, 16 kHz, 16 bit, mono), written when first asked for.

    A row depends on (seed, split, its index) only, so a longer set starts with the rows of a shorter one.

    Args:
        split: "train" or "held_out".
        num_rows: length of the set.
        seed: of the sounds, the order of options and the hasty answers.
        wrong_share: share of hasty answers that are not the right one.
        cache_dir: folder of the files; default: the environment variable MMRL_CACHE, else ~/.cache/mmrl.

    Returns:
        One dict per row: audio (path), task (what is asked about), question, choices (shuffled), problem (the prompt's
        text), answer, solution (the same in answer tags), hasty_solution, notes (dicts with start_s, end_s, pitch_hz),
        length_s.

    Raises:
        TaskDataError: a value out of range, or a folder that cannot be written.
    """
    problems = {
        f"split {split!r} is neither 'train' nor 'held_out'": split not in ("train", "held_out"),
        f"num_rows is {num_rows}, below 1": num_rows < 1,
        f"wrong_share {wrong_share} is not within 0..1": not 0 <= wrong_share <= 1,
    }
    if wrong := [problem for problem, is_wrong in problems.items() if is_wrong]:
        raise TaskDataError(f"melodies: {'; '.join(wrong)}.")
    folder = Path(cache_dir or cache_folder()).absolute() / "melodies" / f"v{FORMAT_VERSION}-{split}-{seed}"
    rows = []
    for index in range(num_rows):
        number = index // len(QUESTIONS)
        path, name = folder / f"{number:05d}.wav", f"{seed}/{split}/{number}"
        melody = draw_melody(random.Random(name))
        if not path.is_file():
            _write_wav(play(melody, random.Random(f"{name}/sound")), path)
        rows.append(
            _row(path, melody, list(QUESTIONS)[index % len(QUESTIONS)], wrong_share, random.Random(f"{name}/{index}"))
        )
    return ListedRows(rows, media_root=folder)


def _row(path: Path, melody: Melody, task: str, wrong_share: float, rng: random.Random) -> dict[str, Any]:
    answers, right = ANSWERS[task], melody.heard[task]
    choices = rng.sample(answers, len(answers))
    hasty = answers[(answers.index(right) + (rng.random() < wrong_share)) % len(answers)]
    return {
        "audio": str(path),
        "task": task,
        "question": QUESTIONS[task],
        "choices": choices,
        "problem": question_prompt(QUESTIONS[task], choices),
        "answer": right,
        "solution": f"<answer>{right}</answer>",
        "hasty_solution": f"<answer>{hasty}</answer>",
        "notes": [vars(note) for note in melody.notes],
        "length_s": LENGTH_S,
    }


def draw_melody(rng: random.Random) -> Melody:
    """A melody; every answer to a question is equally likely."""
    heard = {task: rng.choice(answers) for task, answers in ANSWERS.items()}
    num_notes = 3 + ANSWERS["count"].index(heard["count"])
    beat_s = rng.uniform(*BEAT_S)
    start_s = rng.uniform(0.0, LENGTH_S - num_notes * beat_s)
    signs = {"rises": (1,), "falls": (-1,), "stays": (0,), "zigzags": rng.choice(((1, -1), (-1, 1)))}[heard["melody"]]
    heights = [0.0]  # semitones
    for number in range(num_notes - 1):
        heights.append(heights[-1] + signs[number % len(signs)] * rng.uniform(*STEP_SEMITONES))
    lowest_hz = rng.uniform(*LOWEST_HZ)
    notes = tuple(
        Note(
            round(start_s + number * beat_s, 3),
            round(start_s + (number + SOUNDING_SHARE) * beat_s, 3),
            round(lowest_hz * 2 ** ((height - min(heights)) / 12), 1),
        )
        for number, height in enumerate(heights)
    )
    return Melody(heard, notes)


def play(melody: Melody, rng: random.Random) -> np.ndarray:
    """The sound of a melody: float32 [samples] at 16 kHz, full scale is -1..1."""
    import numpy as np

    sound = np.zeros(round(LENGTH_S * SAMPLING_RATE))
    for note in melody.notes:
        first = round(note.start_s * SAMPLING_RATE)
        times = np.arange(round((note.end_s - note.start_s) * SAMPLING_RATE)) / SAMPLING_RATE
        tone = np.zeros_like(times)
        for semitones in CHORDS[melody.heard["harmony"]]:
            for ratio, strength, decay_s in OVERTONES[melody.heard["instrument"]]:
                hz = note.pitch_hz * 2 ** (semitones / 12) * ratio
                if hz < SAMPLING_RATE / 2:
                    tone += strength * np.exp(-times / decay_s) * np.sin(2 * np.pi * (hz * times + rng.random()))
        sound[first : first + len(times)] += tone * np.clip(np.minimum(times, times[::-1]) / FADE_S, 0, 1)
    sound *= rng.uniform(*LOUDNESS) / np.abs(sound).max()
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, NOISE, len(sound))
    return np.clip(sound + noise, -1, 1).astype(np.float32)


def _write_wav(samples: np.ndarray, path: Path) -> None:
    import soundfile

    with write_aside(path) as unfinished:
        soundfile.write(unfinished, samples, SAMPLING_RATE, format="WAV", subtype="PCM_16")

"""Walks: a proving ground for methods that train a policy to reason, where difficulty and length of a chain can vary.

Ten squares in a row have a wall at either end. Six buttons move by -3, -2, -1, 1, 2 and 3 squares, and a wall stops a
move. A problem is a square and a word of buttons, `3 FABE`, and asks for the square at the end. The walls make the
order matter, so that a small transformer errs on a long word; it writes squares on the way:

    F6AB1E3     after F the square is 6, after A and B it is 1, after E it is 3, which is the answer

One button a step is safe and long, two or three at once are short and err more often: the length of its chain is the
policy's own choice. The number of buttons is the difficulty. A chain may begin with a letter that says how long it will
be, for methods that learn when to reason at length: `tF6A3B1E3` thinks, `sFA3BE3` is short.
"""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl_core.data import Row, Rows, parse_split
from mmrl_core.errors import TaskDataError
from mmrl_core.scoring import gold_text

MOVES = {"A": -3, "B": -2, "C": -1, "D": 1, "E": 2, "F": 3}
BUTTONS = "".join(MOVES)
NUM_SQUARES = 10
SHORT, THINK = "s", "t"
"""What a chain of two buttons a step and one of one button a step begin with, in data of two modes."""

_CHAIN = re.compile(rf"[{SHORT}{THINK}]?([{BUTTONS}]+\d)+")


def walks(
    split: str,
    *,
    num_rows: int = 4000,
    length: Sequence[int] = (2, 8),
    strides: Sequence[float] = (2.0, 1.0, 1.0),
    seed: int = 0,
) -> Rows:
    """Problems of walks, the same ones for the same options.

    Args:
        split: any name; each draws from a stream of its own. Two splits hardly share a long word; words of up to three
            buttons are few, and are in all of them.
        num_rows: rows of the whole split; a range such as "train[:50]" takes some of them.
        length: fewest and most buttons; all lengths are equally frequent.
        strides: how often a step of the demonstration takes one, two and three buttons, as weights.
        seed: another seed gives other problems.

    Returns:
        Rows with `problem`, `solution` (the square at the end), `length` (of the word), `careful` (the chain of one
        button a step), `demonstration` (the chain of random strides), `two_modes` (a chain that begins with `t` and
        takes one button a step or, equally often, with `s` and takes two) and `hints` (by category, as Scaf-GRPO reads
        them: `solution` has the steps of `careful` in order, all but the last, whose square is the answer).

    Raises:
        TaskDataError: an option is out of range.
    """
    name, *ends = parse_split(split)
    if num_rows < 1 or len(length) != 2 or not 1 <= length[0] <= length[1]:
        raise TaskDataError(
            f"length is {list(length)} and num_rows {num_rows}; words have one button or more, fewest first"
        )
    if len(strides) != 3 or min(strides) < 0 or not sum(strides):
        raise TaskDataError(f"strides are {list(strides)}, and have to be three weights, not all of them 0")
    stream = f"walks/{seed}/{name}/{length[0]}-{length[1]}"
    return Rows([_Walks(stream, num_rows, (length[0], length[1]), strides)]).select_range(*ends)


def walked(square: int, word: str) -> int:
    """The square where a word of buttons ends.

    >>> walked(3, "FABE")
    3
    """
    for button in word:
        square = min(NUM_SQUARES - 1, max(0, square + MOVES[button]))
    return square


def chain(square: int, word: str, strides: Sequence[int]) -> str:
    """A right chain, whose steps take so many buttons each.

    >>> chain(3, "FABE", [1, 2, 1])
    'F6AB1E3'
    """
    steps, at = [], 0
    for stride in strides:
        part = word[at : at + stride]
        square = walked(square, part)
        steps.append(f"{part}{square}")
        at += stride
    return "".join(steps)


def right(completions: Sequence[str], samples: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """1.0 for a chain that spells the word of the problem and ends on the right square, else 0.0.

    The squares on the way are not compared: a chain may err twice and be right in the end. The letter of a mode in
    front is not compared either.

    Args:
        completions: B texts.
        samples: B rows of `walks`.

    Returns:
        B values, 0.0 or 1.0; None where `solution` is missing.

    Raises:
        TaskDataError: `solution` is no square.

    >>> right(["F6AB1E3", "F6A3B1E3", "FABE3", "F6E3"], [{"problem": "3 FABE", "solution": "3"}] * 4)
    [1.0, 1.0, 1.0, 0.0]
    """
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        gold = gold_text(sample.get("solution"), "solution", "the square at the end")
        rewards.append(None if gold is None else float(_ends_on(completion, str(sample.get("problem", "")), gold)))
    return rewards


def spelled(completions: Sequence[str], samples: Sequence[Mapping[str, Any]]) -> list[float]:
    """1.0 for a chain that spells the word of the problem, whatever square it ends on, else 0.0: the form of an answer.

    Args:
        completions: B texts.
        samples: B rows of `walks`.

    >>> spelled(["F6AB1E3", "FABE4", "F6E3"], [{"problem": "3 FABE"}] * 3)
    [1.0, 1.0, 0.0]
    """
    pairs = zip(completions, samples, strict=True)
    return [float(last_square(completion, sample) is not None) for completion, sample in pairs]


def last_square(completion: object, sample: Mapping[str, Any]) -> str | None:
    """The square that a chain ends on, for the vote of maj@k; None if it does not spell the word of the problem.

    >>> [last_square(text, {"problem": "3 FABE"}) for text in ("F6AB1E3", "FABE4", "F6E3", "")]
    ['3', '4', None, None]
    """
    text = completion.strip() if isinstance(completion, str) else ""
    return text[-1] if text and _ends_on(text, str(sample.get("problem", "")), text[-1]) else None


def walk_shares(completions: Sequence[str], samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of right chains in all and by length of the word, and how many steps they write for each button.

    Returns:
        "right", "right/07" for words of seven buttons, ..., "steps_per_button", 1 where each button is a step,
        "right_steps_per_button", the same over right chains, and "think", the share that begins with the letter of the
        long mode. Rows without gold are left out; a number that no row defines is NaN.
    """
    by_length: dict[int, list[float]] = defaultdict(list)
    steps, right_steps, thinks = [], [], []
    for completion, sample, score in zip(completions, samples, right(completions, samples), strict=True):
        if score is None or not sample.get("length"):
            continue
        by_length[int(sample["length"])].append(score)
        steps.append(len(re.findall(r"\d", completion)) / int(sample["length"]))
        right_steps.extend(steps[-1:] if score else [])
        thinks.append(float(completion.lstrip().startswith(THINK)))
    scores = [score for part in by_length.values() for score in part]
    return {
        "right": sum(scores) / len(scores) if scores else math.nan,
        "steps_per_button": sum(steps) / len(steps) if steps else math.nan,
        "right_steps_per_button": sum(right_steps) / len(right_steps) if right_steps else math.nan,
        "think": sum(thinks) / len(thinks) if thinks else math.nan,
        **{f"right/{length:02d}": sum(part) / len(part) for length, part in sorted(by_length.items())},
    }


class _Walks:
    """Rows that are made when they are read; a row depends on its stream and its number only."""

    def __init__(self, stream: str, num_rows: int, length: tuple[int, int], strides: Sequence[float]) -> None:
        self.stream, self.num_rows, self.length, self.strides = stream, num_rows, length, strides

    def __len__(self) -> int:
        return self.num_rows

    def where(self, index: int) -> str:
        return f"{self.stream} {index}"

    def read(self, index: int) -> Row:
        rng = random.Random(f"{self.stream}/{index}")
        square, word = rng.randrange(NUM_SQUARES), "".join(rng.choices(BUTTONS, k=rng.randint(*self.length)))
        taken: list[int] = []
        while (left := len(word) - sum(taken)) > 0:
            taken.append(min(left, rng.choices((1, 2, 3), self.strides)[0]))
        careful = chain(square, word, [1] * len(word))
        short = chain(square, word, [min(2, len(word) - at) for at in range(0, len(word), 2)])
        return {
            "problem": f"{square} {word}",
            "solution": str(walked(square, word)),
            "length": len(word),
            "careful": careful,
            "demonstration": chain(square, word, taken),
            "two_modes": rng.choice((f"{SHORT}{short}", f"{THINK}{careful}")),
            "hints": {"solution": re.findall(r"\D+\d", careful)[:-1]},
        }


def _ends_on(completion: object, problem: str, square: str) -> bool:
    text = completion.strip() if isinstance(completion, str) else ""
    if len(text) > 1000 or not _CHAIN.fullmatch(text):
        return False
    return text[-1] == square and re.sub(rf"[\d{SHORT}{THINK}]", "", text) == problem.partition(" ")[2]

"""Sums and differences, which a small instruct model half fails."""

from __future__ import annotations

import math
import random
import re
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl_core.data import Row, Rows, parse_split
from mmrl_core.errors import TaskDataError
from mmrl_core.scoring import gold_text

HELD_OUT = "held_out"
HELD_OUT_EVERY = 4
"""One question in so many is held out, by a hash of its text alone: no option and no seed moves it to training."""

DRAWS_PER_ROW = 50
"""Random questions drawn for each row that is asked for, before there are too few different ones."""


def sums(split: str, *, num_rows: int = 1500, digits: int = 2, seed: int = 0) -> Rows:
    """Sums and differences of two numbers, all of them different, the same ones for the same options.

    Args:
        split: "held_out", or any other name for training rows. No question is in both, whatever the other options.
        num_rows: rows of the whole split; a range such as "train[:50]" takes some of them.
        digits: most digits of a number; numbers of one digit, of two, ... are equally frequent.
        seed: another seed gives other questions, of the same split.

    Returns:
        Rows with `question`, `answer`, and `digits`, of both numbers together.

    Raises:
        TaskDataError: an option is out of range, or there are not so many different questions.

    >>> sums("train", num_rows=3)[0]
    {'question': '28 - 98', 'answer': '-70', 'digits': 4}
    """
    name, *ends = parse_split(split)
    if num_rows < 1 or digits < 1:
        raise TaskDataError(f"num_rows is {num_rows} and digits {digits}; both are 1 or more")
    rng = random.Random(f"sums/{seed}/{name}/{digits}")
    rows: dict[str, Row] = {}
    for _ in range(DRAWS_PER_ROW * num_rows):
        if len(rows) == num_rows:
            break
        first, second = (_number(rng, rng.randint(1, digits)) for _ in range(2))
        sign = rng.choice("+-")
        question = f"{first} {sign} {second}"
        if _is_held_out(question) == (name == HELD_OUT):
            answer = first + second if sign == "+" else first - second
            rows[question] = {"question": question, "answer": str(answer), "digits": len(f"{first}{second}")}
    if len(rows) < num_rows:
        raise TaskDataError(f"there are {len(rows)} questions of {digits} digits in {name}, fewer than {num_rows}")
    return Rows([_Sums(f"sums/{seed}/{name}", list(rows.values()))]).select_range(*ends)


def right(completions: Sequence[str], samples: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """1.0 for the number and nothing else, else 0.0.

    Args:
        completions: B texts.
        samples: B rows of `sums`.

    Returns:
        B values, 0.0 or 1.0; None where `answer` is missing.

    Raises:
        TaskDataError: `answer` is no text.

    >>> right(["46", " 46.", "12 + 34 = 46", "47"], [{"answer": "46"}] * 4)
    [1.0, 1.0, 0.0, 0.0]
    """
    golds = [gold_text(sample.get("answer"), "answer", "a number") for sample in samples]
    return [
        None if gold is None else float(_said(completion) == gold)
        for completion, gold in zip(completions, golds, strict=True)
    ]


def said_number(completion: object, sample: Mapping[str, Any]) -> str | None:
    """The number that a completion is, for the vote of maj@k; None for any other text.

    >>> [said_number(text, {}) for text in ("-46.", "12 + 34 = 46", "")]
    ['-46', None, None]
    """
    text = _said(completion)
    return text if re.fullmatch(r"-?[0-9]+", text) else None


def sum_shares(completions: Sequence[str], samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of right answers in all and by the digits of both numbers, and of completions that are a number at all.

    Returns:
        "right", "right/2" for two numbers of one digit, ..., and "number"; rows without gold are left out, and a number
        that no row defines is NaN.
    """
    shares: dict[str, list[float]] = defaultdict(list, {"right": [], "number": []})
    for completion, sample, score in zip(completions, samples, right(completions, samples), strict=True):
        if score is None:
            continue
        shares["right"].append(score)
        shares[f"right/{sample.get('digits')}"].append(score)
        shares["number"].append(float(said_number(completion, sample) is not None))
    return {name: sum(values) / len(values) if values else math.nan for name, values in sorted(shares.items())}


class _Sums:
    """Rows that were made when the split was."""

    def __init__(self, stream: str, rows: Sequence[Row]) -> None:
        self.stream, self.rows = stream, rows

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return f"{self.stream} {index}"

    def read(self, index: int) -> Row:
        return dict(self.rows[index])


def _number(rng: random.Random, num_digits: int) -> int:
    return rng.randrange(0 if num_digits == 1 else 10 ** (num_digits - 1), 10**num_digits)


def _is_held_out(question: str) -> bool:
    return zlib.crc32(question.encode()) % HELD_OUT_EVERY == 0


def _said(completion: object) -> str:
    return completion.strip().removesuffix(".") if isinstance(completion, str) else ""

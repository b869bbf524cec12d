"""Reading answers and options: tags, option letters, numbers.

A completion is untrusted text. Nothing here evaluates it or raises on it, every scan is linear in its length, and every
number read is finite.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmrl_core.scoring import bare_text, plain_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Options = Sequence[str] | Mapping[str, str]

_ANSWER_START = re.compile("<answer>", re.IGNORECASE)
_ANSWER_END = re.compile("</answer>", re.IGNORECASE)
_THINK_START = re.compile("<think>", re.IGNORECASE)
_THINK_TO_ANSWER = re.compile(r"</think>\s*<answer>", re.IGNORECASE)
_CLOSING = len("</answer>")
_LABELLED = re.compile(r"[(\[]?([a-z]) ?[.:),\]] ?(.+)", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,300}(?:\.[0-9]{0,300})?|\.[0-9]{1,300})")


def answer_text(completion: object) -> str | None:
    """What stands in the first answer block, without blanks around it; None where there is no such block.

    Tags in any case. As published, a block inside the thinking counts, and of nested blocks the text up to the first
    closing tag.

    quirk of the published code: a completion without answer block gives the text "None", which earns the reward where
    the gold answer is "None".

    >>> answer_text("<think>A?</think> <Answer> B </Answer>")
    'B'
    """
    if not isinstance(completion, str) or (start := _ANSWER_START.search(completion)) is None:
        return None
    end = _ANSWER_END.search(completion, start.end())
    return None if end is None else completion[start.end() : end.start()].strip()


def is_formatted(completion: object) -> bool:
    r"""Whether a completion, trimmed, is a think block and then an answer block, with nothing but blanks around them.

    The published rule, a full match of `<think>.*?</think>\s*<answer>.*?</answer>` in any case, in linear time: what
    stands inside the blocks, further tags included, does not matter.
    """
    if not isinstance(completion, str):
        return False
    text = completion.strip()
    last = len(text) - _CLOSING
    if _THINK_START.match(text) is None or last < 0 or _ANSWER_END.match(text, last) is None:
        return False
    middle = _THINK_TO_ANSWER.search(text, len("<think>"))
    return middle is not None and middle.end() <= last


def lettered(options: Any) -> dict[str, str]:
    """Options by their letters.

    Args:
        options: texts, lettered in order; texts that carry their letters in order, as in "A. left", "A: left" or
            "(A) left"; or a mapping from letters to texts. Anything else, and more than 26, has no letters.

    >>> lettered(["A: left", "B: right"]), lettered(["yes", "no"])
    ({'A': 'left', 'B': 'right'}, {'A': 'yes', 'B': 'no'})
    """
    if isinstance(options, Mapping):
        return {str(letter).strip().upper(): str(text).strip() for letter, text in options.items() if text is not None}
    if not isinstance(options, Sequence) or isinstance(options, str | bytes) or len(options) > len(LETTERS):
        return {}
    texts = [str(option).strip() for option in options]
    for opening, closing in (("", "."), ("", ":"), ("", ")"), ("(", ")")):
        labels = [f"{opening}{letter}{closing}" for letter in LETTERS[: len(texts)]]
        if all(text.startswith(label) for text, label in zip(texts, labels, strict=True)):
            texts = [text[len(label) :].strip() for text, label in zip(texts, labels, strict=True)]
            break
    return dict(zip(LETTERS, texts, strict=False))


def option_letter(text: str | None, options: Options) -> str | None:
    """The letter that an answer names: "B", "b", "(B)", "B.", "B. to the left", or the text of an option.

    Case, runs of blanks, full-width forms, and quotes or punctuation at the end do not matter. A letter in front of a
    text that is not its option's is no answer, and neither is a text that several options share.

    >>> options = ["right", "left"]
    >>> [option_letter(text, options) for text in ("(b)", "B: Left.", "right", "A or B", "A. left", "【B】", "B。")]
    ['B', 'B', 'A', None, None, 'B', 'B']
    """
    if not text:
        return None
    forms, plain = _forms(options), _plain(text)
    if letter := forms.get(plain) or forms.get(bare_text(text)):
        return letter
    if match := _LABELLED.fullmatch(plain):  # full-width marks have no blank after them
        letter = match[1].upper()
        return letter if _plain(match[2]) == _plain(lettered(options).get(letter, "")) else None
    return None


def _forms(options: Options) -> dict[str, str]:
    """Every way to name an option -> its letter."""
    by_letter = lettered(options)
    times = Counter(_plain(text) for text in by_letter.values())
    forms = {_plain(text): letter for letter, text in by_letter.items() if times[_plain(text)] == 1}
    for letter, text in by_letter.items():
        for label in (letter, f"({letter})", f"{letter}.", f"{letter}:", f"{letter})"):
            forms[_plain(f"{label} {text}")] = letter
        # A letter alone goes before an option whose text is another letter.
        forms |= dict.fromkeys((_plain(label) for label in (letter, f"({letter})", f"{letter}:", f"{letter})")), letter)
    return forms


def _plain(text: str) -> str:
    """A text with only what distinguishes it. Signs stay, and so do brackets, which labels have."""
    return " ".join(plain_text(text).casefold().split()).strip("\"'`*").rstrip(".,;!?").strip("\"'`*")


def numbers(text: str) -> Iterator[float]:
    """Finite decimal numbers in a text, in order.

    >>> list(numbers("1.5 m, or -2"))
    [1.5, -2.0]
    """
    for match in _NUMBER.finditer(plain_text(text)):
        value = float(match[0])
        if math.isfinite(value):
            yield value

"""The scorers of reasoning-gym: imported in a process of its own, see `apart`. Nothing else imports this module."""

from __future__ import annotations

import functools
import re
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import reasoning_gym

from mmrl_text_reasoning.confined import confine
from mmrl_text_reasoning.gym_sets import FORMULAS, LISTS, entry_text, read_entry

# Names that a formula may call or hold: all else that is not a single letter is refused, and with it Python's own.
_NAMES = frozenset(
    {
        *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "sec", "csc", "cot", "exp", "log", "ln"),
        *("sqrt", "pi", "Abs", "abs", "sign", "erf", "Ei", "Si", "Ci", "li"),
    }
)
_FORMULA = re.compile(r"[\w\s+\-*/^().,]*")


def score(entry: str, answer: str) -> float:
    """What the set's own scorer gives an answer, cut to 0..1; 0.0 for an answer that it must not see.

    Args:
        entry: as `gym_sets.entry_text` writes it: question, answer and metadata, and the set and its options.
        answer: without tags.
    """
    read = read_entry(entry)
    name, options = read.pop("set"), read.pop("options")
    if not may_be_evaluated(name, answer):
        return 0.0
    dataset = _dataset(name, entry_text(options))
    confine()
    try:
        return min(1.0, max(0.0, float(dataset.score_answer(answer=answer, entry=read))))
    except Exception:  # some scorers raise on an answer that they cannot read
        return 0.0


@functools.lru_cache(8)
def _dataset(name: str, options: str) -> Any:
    return reasoning_gym.create_dataset(name, **read_entry(options))


def may_be_evaluated(name: str, answer: str) -> bool:
    """Whether the scorer of a set may see an answer: those that evaluate it only see plain lists, or plain formulas.

    >>> [may_be_evaluated("countdown", text) for text in ("(1 + 2) * 3", "__import__('os')", "open(1)", "x.y")]
    [True, False, False, False]
    """
    if name in LISTS:
        return "__" not in answer and not set(answer) & set("(){}.@=:\\;`")
    if name in FORMULAS:
        words = re.findall(r"[^\W\d]\w*", answer)
        plain = all(len(word) == 1 or word in _NAMES for word in words) and "__" not in answer
        return plain and _FORMULA.fullmatch(answer) is not None and not re.search(r"\.\s*[^\W\d]", answer)
    return True

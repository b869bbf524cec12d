"""HRVQA's own rule for an answer, to compare with published numbers. Train on `rewards.accuracy` without it.

It is the VQA challenge's: the answer is normalised, the gold is not, and both have to be equal as texts. So these are
wrong: directions in the other order ("left top" for "top left"), a sentence around the answer, "yes, there is" for
"yes", a number word beyond ten, a synonym.

quirks, kept here because they make the number:
    The gold is not normalised: one with a capital, an article, a number word or a mark can never be met.
    An area is right by the name of its class alone, "between 10m2 and 100m2"; "37.5m2" is wrong for 37.5m2. "0m2" is
    right for every area up to 1000 m2, beside the class itself.
    Where a digit, a comma and a digit stand together, all marks are dropped; elsewhere a mark between two letters
    becomes a blank, so that "top-left" is "top left". Only the first 32 full stops are looked at.
    "none" is 0.

Left out: contractions ("dont" becomes "don't"), since no answer of HRVQA is one.

Source: HRVQA, arXiv:2301.09460, and its public evaluation code as of 2024 (github.com/lik1996/HRVQA, MIT).
"""

from __future__ import annotations

import re

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_DIGIT_GROUPS = re.compile(r"\d,\d")
_MAX_FULL_STOPS = 32
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS_OF_WORD = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_MERGED_SPORTS = ("fitness or soccer", "fitness or basketball", "tennis or soccer", "basketball or soccer")
_SPORT_OF_GOLD = {name.replace(" ", ""): name for name in _MERGED_SPORTS}
_AREA_CLASSES = (
    (0.0, 10.0, "between 0m2 and 10m2"),
    (10.0, 100.0, "between 10m2 and 100m2"),
    (100.0, 1000.0, "between 100m2 and 1000m2"),
    (1000.0, float("inf"), "more than 1000m2"),
)


def is_right(answer: str, gold: str) -> bool:
    """Whether HRVQA's evaluation takes an answer.

    Args:
        answer: as the model gave it.
        gold: `multiple_choice_answer` of the data.

    >>> [is_right(*pair) for pair in (("The top-left!", "top left"), ("left top", "top left"), ("Four", "4"))]
    [True, False, True]
    >>> is_right("0m2", "37.5m2"), is_right("between 10m2 and 100m2", "37.5m2"), is_right("37.5m2", "37.5m2")
    (True, True, False)
    """
    said = normalized(answer)
    if gold.endswith("m2"):
        try:
            area = float(gold[:-2])
        except ValueError:  # the published code ends here
            return False
        named = [name for low, high, name in _AREA_CLASSES if low < area <= high]
        return said in named or (area <= 1000.0 and said == "0m2")
    return said == _SPORT_OF_GOLD.get(gold, gold)


def normalized(answer: str) -> str:
    """The answer as the VQA evaluation normalises it.

    >>> normalized("Yes, there is."), normalized("1,200 cars"), normalized("None")
    ('yes there is', '1200 cars', '0')
    """
    text = plain = answer.replace("\n", " ").replace("\t", " ").strip()
    has_groups = _DIGIT_GROUPS.search(text) is not None
    for mark in _MARKS:
        is_beside_blank = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if is_beside_blank or has_groups else " ")
    plain = _FULL_STOP.sub("", plain, count=_MAX_FULL_STOPS)
    words = (_DIGITS_OF_WORD.get(word, word) for word in plain.lower().split())
    return " ".join(word for word in words if word not in _ARTICLES)

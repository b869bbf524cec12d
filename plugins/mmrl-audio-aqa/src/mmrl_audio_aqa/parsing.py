"""Reading answers out of completions, and which option of a question an answer names.

A completion is untrusted text. Nothing here evaluates it or raises on it, every pattern runs in linear time, and an
answer longer than MAX_ANSWER_CHARS names no option.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmrl_core.scoring import bare_text

MAX_ANSWER_CHARS = 4_096  # no option comes near this; folding a megabyte for each of its options would stall a batch
_LABEL = re.compile(r"([a-z])(?:[\s.,):\]-]+(.*))?", re.DOTALL)
_PRINTED_LABEL = re.compile(r"\W*\w\s*[.):\]．。）：】、]")  # "B. dog" or "(B) dog", but not "A dog"
_WORD = re.compile(r"\b\w+\b")


def answer_block(text: object) -> str | None:
    """What stands in the first answer block, without blanks around it; None where there is no whole block.

    As published, tags are case sensitive, the first of several blocks counts, and one inside the thinking is one too.

    quirk of the published code: its accuracy reward reads no block that spans lines, while its format reward pays for
    it. Here all that read answers use this function.

    >>> answer_block("<answer> dog\\n</answer> or <answer>cat</answer>")
    'dog'
    """
    if not isinstance(text, str):
        return None
    inside, closing, _ = text.partition("<answer>")[2].partition("</answer>")
    return inside.strip() if closing else None


def chosen_option(answer: str, choices: Sequence[str]) -> int | None:
    """Which option an answer names: by its text, its letter, or both.

    The text counts before the letter, so among the options B, A, C the answer "A" is the second. Case, Unicode form,
    blanks, full-width forms, and quotes or punctuation around the text do not matter unless two options differ in
    nothing else. Letters count from A; a text beside the letter has to be that of the same option. A letter that is
    printed in front of an option ("B. dog") is not part of its text.

    quirk of the published code: the letter of an option, its text in other case and its text with a full stop are wrong
    there.

    Args:
        answer: untrusted text.
        choices: the options, in the order in which they were shown.

    Returns:
        The first option with the text that is named; None if the answer names none, or more than one.

    >>> options = ["dog", "cat", "C#", "C"]
    >>> [chosen_option(answer, options) for answer in ("Cat.", "(b) cat", "B", "b: dog", "c", "c#", "dog or cat")]
    [1, 1, 1, None, 3, 2, None]
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return None
    if answer.strip() in choices:
        return choices.index(answer.strip())
    plain = bare_text(answer)
    named = [index for index, choice in enumerate(choices) if plain and plain in _forms(choice, index)]
    if named:
        return named[0] if len({choices[index] for index in named}) == 1 else None
    label = _LABEL.fullmatch(plain)
    index = ord(label[1]) - ord("a") if label else len(choices)
    if label is None or index >= len(choices):
        return None
    rest = bare_text(label[2] or "")
    return choices.index(choices[index]) if not rest or rest in _forms(choices[index], index) else None


def _forms(choice: str, index: int) -> set[str]:
    """An option, and what is left of it without its own letter in front."""
    plain = bare_text(choice)
    label = _LABEL.fullmatch(plain)
    forms = {plain}
    if label is not None and ord(label[1]) - ord("a") == index and _PRINTED_LABEL.match(choice):
        forms.add(bare_text(label[2] or ""))
    return forms - {""}


def words(text: str) -> set[str]:
    """The words of a text as MMAU's scorer takes them: lower case, split at everything but letters, digits and "_"."""
    return set(_WORD.findall(text.lower()))

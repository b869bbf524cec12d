r"""The answer of a text: what stands in its last box or answer block, after its last "####", or where it says so.

Completions are untrusted. Everything here reads a text once, in linear time, and never evaluates it; what an answer is
worth is decided elsewhere (`numbers`, `judging`).
"""

from __future__ import annotations

import re

from mmrl_core.scoring import plain_text

MAX_ANSWER_CHARS = 1_000
"""Longer ones are no final answers, and are compared with the gold letter by letter only."""

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[\s\S]|\{|\}")
_BOX_WITHOUT_BRACES = re.compile(r"\\(?:boxed|fbox)\s+([^\s\\{}$.,;]+)")
_SAYS_SO = re.compile(r"(?i)\banswer(?:\s+is)?\s?[:=]?\s?")
_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?\s?%?")
_SUPERSCRIPTS = {ord(mark): f"^{digit}" for digit, mark in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
# What people type for commands of LaTeX; the blank after a command keeps it apart from a letter.
_SYMBOLS = {
    "π": r"\pi ",
    "∞": r"\infty ",
    "√": r"\sqrt ",
    "×": r"\times ",
    "·": r"\cdot ",
    "÷": "/",
    "⁄": "/",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "°": r"^\circ ",
    "θ": r"\theta ",
}
_REPLACED = str.maketrans(_SYMBOLS) | _SUPERSCRIPTS
_UNSEEN = re.compile(r"\\(?:left|right|displaystyle|textstyle|[bB]igg?[lr]?)(?![a-zA-Z])|\\[!,;:> ]|~")
_BLANKS = re.compile(r"(?<!\d)\s+|\s+(?!\d)")  # "1 1/2" is not "11/2"
_AROUND = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))


def final_answer(completion: object, *, untagged: bool = True) -> str | None:
    r"""The answer that a completion gives; None if there is none.

    What comes before the last `</think>` is not looked at. Then, the first of these that there is: the last whole
    answer block, and the last box in it if it has one; the last whole box, the inner one of nested boxes; what follows
    the last "####" on its line; and, if `untagged`, what follows the last "answer is" or "answer:", the last formula
    between dollar signs, the last number.

    Args:
        completion: a text; anything else has no answer.
        untagged: read answers that are not marked by a box, an answer block or "####", too.

    >>> final_answer(r"<think>\boxed{1}</think> It is $\boxed{\frac{1}{2}}$, not \boxed{3")
    '\\frac{1}{2}'
    >>> final_answer("so she pays 6 * 7 = 42 dollars.\n#### 42"), final_answer("The answer is 7. Done.")
    ('42', '7')
    """
    if not isinstance(completion, str):
        return None
    text = completion.rpartition("</think>")[2]
    block = answer_block(text)
    if block is not None:
        boxed = last_box(block)
        return boxed if boxed is not None else _unwrapped(_said(block) or block)
    marked = last_box(text)
    if marked is None and "####" in text:
        marked = text.rpartition("####")[2].strip().partition("\n")[0]
    if marked is not None:
        return _unwrapped(marked)
    return _unwrapped(_loose(text)) if untagged else None


def answer_block(text: str) -> str | None:
    """What the last whole pair of answer tags holds.

    >>> answer_block("<answer>1</answer> or <answer> 2 </answer> <answer>")
    '2'
    """
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end].strip() if start >= 0 and end >= 0 else None


def last_box(text: str) -> str | None:
    r"""What the last whole `\boxed{}` or `\fbox{}` holds; of nested ones, the inner.

    A box without braces (`\boxed 5`) counts where no box with braces follows it.

    >>> last_box(r"\boxed{1} and \boxed{\boxed{\{2, 3\}}} and \boxed{4")
    '\\{2, 3\\}'
    """
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    opened: list[tuple[int, int] | None] = []  # where a box, and what is in it, starts; None for other braces
    found: tuple[int, str] | None = None
    for match in _BRACES.finditer(text):
        mark = match[0]
        if mark == "}":
            box = opened.pop() if opened else None
            if box is not None and (found is None or box[0] > found[0]):
                found = box[0], text[box[1] : match.start()]
        elif mark == "{":
            opened.append(None)
        elif mark.endswith("{") and len(mark) > 2:  # not an escaped brace
            opened.append((match.start(), match.end()))
    for match in _BOX_WITHOUT_BRACES.finditer(text):
        if found is None or match.start() > found[0]:
            found = match.start(), match[1]
    return found[1].strip() if found is not None else None


def normalized(answer: str) -> str:
    r"""An answer in one spelling: without blanks, dollar signs and marks that do not show; `\dfrac` is `\frac`.

    Two answers of one normal form are the same answer; others may be, too.

    >>> normalized(r"$\left( \dfrac{1}{2},\, ４\right)$."), normalized(r"\text{ Evelyn }")
    ('(\\frac{1}{2},4)', 'evelyn')
    """
    text = _unwrapped(readable(answer)) or ""
    text = _UNSEEN.sub("", text).replace("dfrac", "frac").replace("tfrac", "frac")
    for command in ("\\text{", "\\textbf{", "\\mathrm{", "\\mbox{"):
        if text.startswith(command) and text.endswith("}") and text.count("{") == 1:
            text = text[len(command) : -1]
    bare = _BLANKS.sub("", text.strip())
    return bare.casefold() if len(bare) > 1 and bare.isalpha() else bare  # "X" and "x" are two variables


def readable(answer: str) -> str:
    """An answer with full-width letters, other digits and signs of mathematics as LaTeX writes them.

    >>> readable("２π − x²")
    '2\\\\pi  - x^2'
    """
    return plain_text(answer.translate(_REPLACED)) if not answer.isascii() else answer


def _loose(text: str) -> str | None:
    """The answer of a text that marks none."""
    if (said := _said(text)) is not None:
        return said
    end = text.rfind("$")
    start = text.rfind("$", 0, end) if end > 0 else -1
    if start >= 0 and text[start + 1 : end].strip():
        return text[start + 1 : end]
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _said(text: str) -> str | None:
    """What follows the last "answer is" or "answer:", up to the end of the sentence, or the first formula in it."""
    last = None
    for match in _SAYS_SO.finditer(text):
        if "is" in match[0].lower() or ":" in match[0] or "=" in match[0]:
            last = match
    if last is None:
        return None
    rest = text[last.end() : last.end() + MAX_ANSWER_CHARS].lstrip(": ").partition("\n")[0]
    rest = rest.lstrip("*: ")
    if (opened := rest.find("$")) >= 0 and (closed := rest.find("$", opened + 1)) > opened + 1:
        before = rest[:opened].strip()
        if not any(char.isdigit() for char in before):
            return rest[opened + 1 : closed]
    return re.split(r"\.(?:\s|$)", rest, maxsplit=1)[0].strip() or None


def _unwrapped(text: str | None) -> str | None:
    """Without the marks around a formula, and the full stop after it."""
    if text is None:
        return None
    text = text.strip()
    for _ in range(4):
        before = text
        for opening, closing in _AROUND:
            inside = text[len(opening) : -len(closing)]
            is_around = text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing)
            if is_around and opening not in inside:
                text = inside.strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        if text == before:
            break
    return text or None

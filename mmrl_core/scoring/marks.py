"""One spelling for what keyboards and scripts write in many: full-width letters, digits of any script, quotes, dashes.

Readers of answers compare texts after this, so that "B。", "【B】" and "４" are "B.", "(B)" and "4" to all of them.
"""

from __future__ import annotations

import unicodedata

MAX_COMPOSED_CHARS = 4_096  # composing takes quadratic time on rows of combining marks; longer texts stay decomposed
# Marks of sentences, by what their Unicode name ends with.
_SENTENCE_MARKS = {
    "FULL STOP": ".",
    "DANDA": ".",
    "SEMICOLON": ";",
    "COLON": ":",
    "COMMA": ",",
    "QUESTION MARK": "?",
    "EXCLAMATION MARK": "!",
}
_PART_OF_AN_ANSWER = frozenset("#%&@/\\")  # punctuation by class, but "C#" is not "C" and "5%" not "5"


def plain_text(text: str) -> str:
    """A text with every character in its plainest form, by its Unicode class. Case and line breaks stay.

    Full-width and other compatibility forms become what they stand for, decimal digits of all scripts 0 to 9, dashes
    and the minus sign "-", brackets of all kinds "(" and ")" where ASCII has none of the kind, quotes "'" and '"',
    ideographic and other full stops, commas and colons those of ASCII, blanks " "; characters that only format are
    left out. Takes linear time.

    >>> plain_text("【Ｂ】。"), plain_text("“４，５”"), plain_text("−3\u00a0dB")
    ('(B).', '"4,5"', '-3 dB')
    """
    plain = text.translate(_FORMS)
    if plain.isascii() or len(plain) > MAX_COMPOSED_CHARS:
        return plain
    return unicodedata.normalize("NFC", plain)


def bare_text(text: str, *, fold: bool = True) -> str:
    """`plain_text` with blanks as one and without punctuation at either end: what distinguishes an answer.

    A sign or a mark that is part of an answer stays: "-6 dB", "C#", "5%".

    Args:
        fold: to lower case.

    >>> bare_text(" 【B】 "), bare_text("‘C#’。"), bare_text("-6  dB!"), bare_text("***")
    ('b', 'c#', '-6 db', '')
    """
    plain = " ".join(plain_text(text).split())
    plain = plain.casefold() if fold else plain
    start, end = 0, len(plain)
    while end > start and _is_around(plain[end - 1]):
        end -= 1
    while start < end and _is_around(plain[start]):
        start += 1
    return plain[start:end]


def _is_around(char: str) -> bool:
    if char in _PART_OF_AN_ANSWER or char in "-+":
        return False
    return char.isspace() or char in "`´" or unicodedata.category(char) in ("Po", "Ps", "Pe", "Pi", "Pf", "Pc")


class _Forms(dict[int, str]):
    """What each character becomes; found out when it is first met."""

    def __missing__(self, code: int) -> str:
        self[code] = form = _form(chr(code))
        return form


_FORMS = _Forms()


def _form(char: str) -> str:
    if ord(char) < 128:
        return char
    kind = unicodedata.category(char)
    if kind == "Cf":
        return ""
    if kind == "Nd":
        return str(unicodedata.digit(char))
    if kind == "Zs":
        return " "
    plain = unicodedata.normalize("NFKC", char)
    if plain != char and plain.isascii():
        return plain
    if kind == "Pd" or char == "−":
        return "-"
    if kind in ("Ps", "Pe"):
        return "(" if kind == "Ps" else ")"
    name = unicodedata.name(char, "")
    if kind in ("Pi", "Pf"):
        return "'" if "SINGLE" in name else '"'
    if kind == "Po":
        return next((mark for ending, mark in _SENTENCE_MARKS.items() if name.endswith(ending)), plain)
    return plain

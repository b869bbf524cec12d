"""Reading typed answers out of completions: yes or no, a count, an area, a place in the image, a label.

A completion is untrusted text. Nothing here evaluates it or raises on it; every pattern runs in linear time, and what
is read is bounded by MAX_ANSWER_CHARS and MAX_DIGITS. Full-width forms and digits of other scripts are read as what
they stand for, see `mmrl_core.scoring.plain_text`. `None` means that the
text is not of the type asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmrl_core.scoring import bare_text, plain_text

MAX_ANSWER_CHARS = 2_048  # answers are a word, a number or a short phrase
MAX_DIGITS = 15  # beyond these a number counts as unreadable; all that remain are exact as floats

THINK_TAGS = ("<think>", "</think>")
ANSWER_TAGS = ("<answer>", "</answer>")

# The ten types of HRVQA, and what data files call them. "other" is a label of unknown type.
QUESTION_TYPES = (
    "number",
    "yes_no",
    "area",
    "size",
    "location",
    "color",
    "shape",
    "sports",
    "transportation",
    "scene",
    "other",
)
_TYPE_NAMES = {
    "number": "count counting numbers quantity object_counting num",
    "yes_no": "yesno y_n yes_or_no judgement judgment presence existence",
    "area": "areas",
    "size": "sizes",
    "location": "locat locations position",
    "color": "colour colors colours",
    "shape": "shapes",
    "sports": "sport",
    "transportation": "trans transport transportation_recognition",
    "scene": "scenes scene_recognition spatial_scene_inference",
}
_TYPE_OF_NAME = {name: name for name in QUESTION_TYPES} | {
    name: question_type for question_type, names in _TYPE_NAMES.items() for name in names.split()
}

_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
# "none" is 0 in HRVQA's own evaluation, too.
_COUNT_OF_WORD = {word: count for count, word in enumerate(_NUMBER_WORDS.split())} | {"none": 0}
# Beyond twenty; a text with one of these says no number that is read here ("one hundred" is not 1).
_LARGE_NUMBERS = "thirty forty fifty sixty seventy eighty ninety dozen hundred thousand million"
_LARGE_NUMBER_WORDS = frozenset(_LARGE_NUMBERS.split())
_INTEGER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.0+)?")
_QUANTITY = re.compile(r"((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?)\s*([^\W\d].*)?", re.DOTALL)
_AROUND_WORDS = ".,;:!?()[]{}\"'`*"

# Square metres in one unit; "" is a number without unit. Spaces, dots and carets are dropped before the look-up.
_SQUARE, _METRES = ("sq", "square"), ("meter", "meters", "metre", "metres")
_M2_NAMES = ("m2", *(square + metre for square in _SQUARE for metre in ("m", *_METRES)))
_KM2_NAMES = ("km2", "sqkm", *(f"{square}kilo{metre}" for square in _SQUARE for metre in _METRES))
_UNITS_M2 = dict.fromkeys(_M2_NAMES, 1.0) | dict.fromkeys(_KM2_NAMES, 1e6)
_UNITS_M2 |= dict.fromkeys(("ha", "hectare", "hectares"), 1e4)

_YES, _NO = frozenset({"yes", "true"}), frozenset({"no", "false"})

_DIRECTIONS = {
    "top": "top",
    "upper": "top",
    "bottom": "bottom",
    "lower": "bottom",
    "left": "left",
    "right": "right",
    "center": "center",
    "centre": "center",
    "central": "center",
    "middle": "center",
}
_DIRECTION_PAIRS = {
    vertical + horizontal: frozenset({_DIRECTIONS[vertical], horizontal})
    for vertical in ("top", "upper", "bottom", "lower")
    for horizontal in ("left", "right")
}
_FILLERS = "in at on to of the a an and side part corner hand area region quadrant section image picture photo"
_AROUND_DIRECTIONS = frozenset(_FILLERS.split())

_WORD = re.compile(r"[^\W_]+")
_END_PUNCTUATION = " .,;:!?"
_AROUND_LABEL = " \"'`*()[]"
_ARTICLE = re.compile(r"(?:(?:a|an|the)\s+)+")

YesNo = Literal["yes", "no"]


@dataclass(frozen=True)
class Area:
    """An area; `square_metres` is in the unit as written where `has_unit` is False."""

    square_metres: float
    has_unit: bool


def question_type_of(name: object) -> str | None:
    """The type that a data file calls `name`, one of QUESTION_TYPES; None if unknown.

    >>> question_type_of("Yes/No"), question_type_of("Colour"), question_type_of("weather")
    ('yes_no', 'color', None)
    """
    if not isinstance(name, str):
        return None
    return _TYPE_OF_NAME.get("_".join(_WORD.findall(name.lower())))


def answer_text(completion: object, *, untagged: Literal["wrong", "whole_text"] = "wrong") -> str | None:
    """What stands in the only answer block, without blanks around it. Tags are case sensitive.

    The format need not hold otherwise: text around the block does not matter. No block, several, or a tag too many
    leave no answer.

    quirk of the family that this system is from: it takes the first of several blocks, and loses a block that spans
    lines.

    Args:
        untagged: "whole_text" takes the whole completion where it holds neither answer tag.

    Returns:
        The text, maybe empty; None where there is no answer, it is longer than MAX_ANSWER_CHARS, or `completion` is not
        a string.

    >>> answer_text("<think>cars</think><answer> 4 </answer>"), answer_text("4")
    ('4', None)
    """
    if not isinstance(completion, str):
        return None
    opening, closing = ANSWER_TAGS
    if completion.count(opening) == completion.count(closing) == 1:
        text, _, _ = completion.partition(opening)[2].partition(closing)
        if completion.index(opening) > completion.index(closing):
            return None
    elif untagged == "whole_text" and opening not in completion and closing not in completion:
        text = completion
    else:
        return None
    text = text.strip()
    return text if len(text) <= MAX_ANSWER_CHARS else None


def has_format(completion: object) -> bool:
    """One think block, then one answer block that is not blank, and nothing else but white space."""
    if not isinstance(completion, str) or any(completion.count(tag) != 1 for tag in THINK_TAGS + ANSWER_TAGS):
        return False
    text = completion.strip()
    if not (text.startswith(THINK_TAGS[0]) and text.endswith(ANSWER_TAGS[1])):
        return False
    before, _, answer = text.removesuffix(ANSWER_TAGS[1]).partition(ANSWER_TAGS[0])
    return before.rstrip().endswith(THINK_TAGS[1]) and bool(answer.strip())


def normalized_label(text: str) -> str:
    """`plain_text`, lower case, hyphens and underscores as single blanks, no leading article, no punctuation around it.

    >>> normalized_label("The Parking_lot."), normalized_label("【red】。")
    ('parking lot', 'red')
    """
    text = plain_text(text).lower().replace("-", " ").replace("_", " ")
    text = " ".join(text.split()).rstrip(_END_PUNCTUATION).strip(_AROUND_LABEL).rstrip(_END_PUNCTUATION)
    article = _ARTICLE.match(text)
    return text[article.end() :] if article else text


def parse_yes_no(text: str) -> YesNo | None:
    """The first word, if it is yes, no, true or false; None also where the text says both.

    >>> parse_yes_no("Yes, there is."), parse_yes_no("yes and no"), parse_yes_no("There is no car")
    ('yes', None, None)
    """
    words = _WORD.findall(plain_text(text).lower())
    said = _YES.intersection(words), _NO.intersection(words)
    if not words or all(said):
        return None
    return "yes" if words[0] in _YES else "no" if words[0] in _NO else None


def parse_count(text: str) -> int | None:
    """The one integer of a text: digits, with thousands commas, or a word from zero to twenty.

    Other words may stand around it. Two numbers, a fraction, a range, a number word beyond twenty, and digits glued to
    letters are no count.

    >>> parse_count("There are 1,200 cars."), parse_count("four"), parse_count("4 or 5"), parse_count("4.5")
    (1200, 4, None, None)
    """
    found = []
    for raw in plain_text(text).lower().split():
        word = raw.strip(_AROUND_WORDS)
        if not _LARGE_NUMBER_WORDS.isdisjoint(word.split("-")):
            return None
        if word in _COUNT_OF_WORD:
            found.append(_COUNT_OF_WORD[word])
        elif any(character.isdigit() for character in word):
            if not _INTEGER.fullmatch(word) or len(word) > MAX_DIGITS:
                return None
            found.append(int(word.partition(".")[0].replace(",", "")))
    return found[0] if len(found) == 1 else None


def parse_area(text: str) -> Area | None:
    """One number with an optional unit and nothing else: m2 ("sq m", "square meters"), km2 or hectares.

    >>> parse_area("1,250 sq. m"), parse_area("0.5 ha"), parse_area("12 cars")
    (Area(square_metres=1250.0, has_unit=True), Area(square_metres=5000.0, has_unit=True), None)
    """
    text = plain_text(text).lower().strip().rstrip(_END_PUNCTUATION)
    match = _QUANTITY.fullmatch(text)
    if match is None or len(match[1]) > MAX_DIGITS:
        return None
    number, unit = float(match[1].replace(",", "")), match[2]
    if unit is None:
        return Area(number, has_unit=False)
    factor = _UNITS_M2.get(re.sub(r"[\s.^]", "", unit))
    return None if factor is None else Area(number * factor, has_unit=True)


def parse_directions(text: str) -> frozenset[str] | None:
    """The set of directions in a text of nothing else: top, bottom, left, right, center; upper is top, and so on.

    >>> sorted(parse_directions("Upper-left corner")), parse_directions("left of the road")
    (['left', 'top'], None)
    """
    directions: set[str] = set()
    for word in _WORD.findall(plain_text(text).lower()):
        if word in _DIRECTIONS:
            directions.add(_DIRECTIONS[word])
        elif word in _DIRECTION_PAIRS:
            directions |= _DIRECTION_PAIRS[word]
        elif word not in _AROUND_DIRECTIONS:
            return None
    return frozenset(directions) or None


def chosen_option(text: str, options: Sequence[str]) -> str:
    """The option that a letter stands for, "B", "(b)" or "B. red"; the text itself where it is an option or names none.

    >>> [chosen_option(text, ["red", "blue"]) for text in ("(B)", "blue", "B。")]
    ['blue', 'blue', 'blue']
    """
    match = re.fullmatch(r"([a-z])(?:[\s.:)\],\"'*]+(.*))?", bare_text(text), re.DOTALL)
    if match is None or text.strip() in options:
        return text
    index = ord(match[1]) - ord("a")
    if index >= len(options) or (match[2] and normalized_label(match[2]) != normalized_label(options[index])):
        return text
    return options[index]


def is_option(text: str, options: Sequence[str]) -> bool:
    """Whether a text names an option, by letter or as a label.

    >>> is_option("B", ["red", "blue"]), is_option("Red.", ["red", "blue"]), is_option("1", ["red", "blue"])
    (True, True, False)
    """
    return normalized_label(chosen_option(text, options)) in {normalized_label(option) for option in options}

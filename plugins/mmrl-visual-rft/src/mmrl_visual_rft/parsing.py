"""Reading answers out of completions.

A completion is untrusted text. Nothing here evaluates it, decodes it recursively or raises on it; every pattern runs in
linear time, and what is read is bounded by MAX_ANSWER_CHARS and MAX_OBJECTS. Digits are ASCII only.

`None` means that no answer can be read, which differs from an answer that says there is nothing ("No Objects").
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

from mmrl_core.media import MAX_COORDINATE, Box, BoxConvention

# A thousand boxes fit in fewer characters; without a limit a rambling completion stalls the whole batch.
MAX_ANSWER_CHARS = 65_536
# Matching costs truths times predictions. LVIS, the densest of the data sets here, evaluates 300 boxes per image.
MAX_OBJECTS = 300
# No class name comes near this; longer answers are not normalised at all.
MAX_NAME_CHARS = 4_096

_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_NUMBER_ONLY = re.compile(_NUMBER)
_BRACE = re.compile(r"[{}]")
_KEY = re.compile(r"""['"]\s*:""")
# The list runs to the last bracket before the next quote, colon or brace, so each character is looked at once or twice.
_POSITION = re.compile(r"""['"]Position['"]\s*:\s*\[([^'"{}:]*)\]""")
_CONFIDENCE = re.compile(r"""['"]Confidence['"]\s*:\s*([^\s,{}\[\]]+)""")
# (1,2),(3,4)  [1,2,3,4]  [[1,2],[3,4]]  (1,2,3,4)  [1,2],[3,4] once blanks around punctuation are gone.
_CORNERS = re.compile(
    rf"[(\[]({_NUMBER}),({_NUMBER})(?:,|[)\]],?[(\[])({_NUMBER}),({_NUMBER})[)\]]",
)
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Detection:
    """One object of a detection answer.

    `confidence` is the finite number as written, maybe outside 0..1; None where it is missing or no number.
    """

    box: Box
    confidence: float | None


def answer_text(completion: object) -> str | None:
    """What stands in the answer block, without blanks around it. Tags are case sensitive.

    The first block after the end of the thinking is the answer: a draft in the thinking is not one, and a second block
    does not replace the first. Then, in this order: a block that lost its closing tag runs to the end of the text; a
    whole block before or inside the thinking counts if none follows; without any block, all text after the thinking
    counts. Thinking that never ends, with no whole answer block, leaves no answer.

    quirk of the published code: it takes the first block anywhere, draft included, loses a block that spans lines, and
    falls back to the whole text with its thinking.

    Returns:
        The text, maybe empty; None where there is no answer, the answer is longer than MAX_ANSWER_CHARS, or
        `completion` is not a string.

    >>> answer_text("<think>maybe <answer>cat</answer></think><answer> dog </answer>")
    'dog'
    """
    if not isinstance(completion, str):
        return None
    thinking, end_of_thinking, rest = completion.partition("</think>")
    choices: tuple[str | None, ...]
    if end_of_thinking:
        choices = (_block(rest), _open_block(rest), _block(thinking), rest)
    elif "<think>" in completion:
        choices = (_block(completion),)
    else:
        choices = (_block(completion), _open_block(completion), completion)
    answer = next((choice.strip() for choice in choices if choice is not None), None)
    return answer if answer is not None and len(answer) <= MAX_ANSWER_CHARS else None


def _block(text: str) -> str | None:
    """The first whole answer block."""
    inside, closing, _ = text.partition("<answer>")[2].partition("</answer>")
    return inside if closing else None


def _open_block(text: str) -> str | None:
    """An answer block without its closing tag."""
    _, opening, inside = text.partition("<answer>")
    return inside if opening else None


def parse_detections(answer: str | None, convention: BoxConvention = BoxConvention.PER_MILLE) -> list[Detection] | None:
    """The objects of a detection answer, `{'Position': [x1, y1, x2, y2], 'Confidence': number}`, in order of writing.

    Every complete object counts, whatever stands around it: prose, an ellipsis, a trailing comma, single or double
    quotes, apostrophes in extra strings, a missing final bracket, an object cut off at the end. Braces without a quoted
    key are prose. Of a repeated key the last one counts, as in JSON.

    As published, one object that is complete but has no Position of four numbers spoils the whole answer; so do
    coordinates that no box can have (NaN, infinity, beyond MAX_COORDINATE). Confidence spoils nothing here.

    quirk of the published code: it cuts at the last "}," and decodes as JSON, which loses answers with prose, a
    trailing comma or an ellipsis, and the last object where only the final bracket is missing. All are read here.

    Returns:
        Detections, exact repeats included; an empty list where the answer says so ("No Objects" or "[]"); None where it
        cannot be read, or has more than MAX_OBJECTS objects.

    >>> parse_detections("two: [{'Position': [1, 2, 3, 4], 'Confidence': 0.5}, {'Position': [5,")[0].confidence
    0.5
    """
    if answer is None:
        return None
    detections: list[Detection] = []
    for span in _braced(answer):
        if not _KEY.search(span):
            continue
        detection = _detection(span, convention)
        if detection is None or len(detections) == MAX_OBJECTS:
            return None
        detections.append(detection)
    if detections or _says_no_objects(answer):
        return detections
    return None


def _braced(text: str) -> Iterator[str]:
    """Each outermost {...}. Counts braces only, so a brace inside a string has to come in pairs."""
    depth = start = 0
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            if depth == 0:
                start = brace.start()
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                yield text[start : brace.end()]


def _detection(span: str, convention: BoxConvention) -> Detection | None:
    positions = _POSITION.findall(span)
    if not positions:
        return None
    # The published code reads "[[" as "[" and "]]" as "]", so a doubled bracket is fine here as well.
    numbers = positions[-1].strip("[] \t\r\n").removesuffix(",").split(",")
    if len(numbers) != 4:
        return None
    x1, y1, x2, y2 = (_coordinate(number.strip()) for number in numbers)
    if x1 is None or y1 is None or x2 is None or y2 is None:
        return None
    confidences = _CONFIDENCE.findall(span)
    return Detection(Box(x1, y1, x2, y2, convention), _number(confidences[-1]) if confidences else None)


def _says_no_objects(answer: str) -> bool:
    bare = "".join(answer.split()).strip(".`").casefold()
    return bare == "[]" or bare.strip("[]'\".") in {"noobjects", "noobject"}


def parse_boxes(answer: str | None, convention: BoxConvention = BoxConvention.PER_MILLE) -> list[Box]:
    """The boxes of a grounding answer in order of writing, corners as written.

    Reads `(x1,y1),(x2,y2)` and the same four numbers as `[x1, y1, x2, y2]`, `(x1, y1, x2, y2)` or
    `[[x1, y1], [x2, y2]]`, anywhere in the text. Numbers may have a sign and a fraction. A group with a number that no
    box can have is left out; at most MAX_OBJECTS boxes are read.

    quirk of the published code: only unsigned integers in round brackets count, full-width digits among them, and of
    several boxes it pairs the first two top-left corners. Here a box keeps its own corners.

    >>> parse_boxes("the cup: [1, 2.5, 30, 40]")
    [Box(x1=1.0, y1=2.5, x2=30.0, y2=40.0, convention=<BoxConvention.PER_MILLE: 'per_mille'>)]
    """
    if answer is None:
        return []
    text = " ".join(answer.split())
    for mark in ",()[]":
        text = text.replace(f" {mark}", mark).replace(f"{mark} ", mark)
    boxes: list[Box] = []
    for match in _CORNERS.finditer(text):
        x1, y1, x2, y2 = (_coordinate(number) for number in match.groups())
        if x1 is not None and y1 is not None and x2 is not None and y2 is not None:
            boxes.append(Box(x1, y1, x2, y2, convention))
        if len(boxes) == MAX_OBJECTS:
            break
    return boxes


def _number(text: str) -> float | None:
    """A finite decimal number, else None; `float` alone would take NaN, "1_0" and digits of any script."""
    if not _NUMBER_ONLY.fullmatch(text):
        return None
    value = float(text)
    return value if isfinite(value) else None


def _coordinate(text: str) -> float | None:
    value = _number(text)
    return value if value is not None and abs(value) <= MAX_COORDINATE else None


def normalised_name(text: str | None) -> str:
    """A class name with only what distinguishes it, for exact comparison.

    Unicode NFKC, case folded, without blanks, underscores, hyphens (dashes of any kind), invisible format characters
    and punctuation at either end. Empty where nothing is left or the text is longer than MAX_NAME_CHARS.

    >>> normalised_name("Garden_Phlox.") == normalised_name("garden phlox")
    True
    """
    if text is None or len(text) > MAX_NAME_CHARS:
        return ""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = [char for char in folded if not char.isspace() and unicodedata.category(char) not in {"Pc", "Pd", "Cf"}]
    start, end = 0, len(kept)
    while end > start and unicodedata.category(kept[end - 1]).startswith("P"):
        end -= 1
    while start < end and unicodedata.category(kept[start]).startswith("P"):
        start += 1
    return "".join(kept[start:end])


def name_words(text: str | None) -> tuple[str, ...]:
    """The words of a text in the same spirit: NFKC, case folded, split at everything but letters and digits.

    >>> name_words("It is a Desert-Rose!")
    ('it', 'is', 'a', 'desert', 'rose')
    """
    if text is None or len(text) > MAX_NAME_CHARS:
        return ()
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))

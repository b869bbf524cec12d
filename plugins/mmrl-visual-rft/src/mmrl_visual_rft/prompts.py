"""Prompt texts of the three tasks, for rows that are made here from annotations.

They ask for what the published prompts ask for, in our own words, and name the same answer formats; rows of the
published data sets bring their own texts. Models copy what a format line shows, so none shows an ellipsis inside the
answer and no bracket is left open.

All boxes are integers 0..1000, thousandths of the image's width (x) and height (y). Training and evaluation use the
same text. (quirk of the published code: grounding is tested with a system prompt that training never shows.)
"""

from __future__ import annotations

_BOX_UNITS = (
    "four integers x1, y1, x2, y2 from 0 to 1000: left, top, right and bottom side, in thousandths of the image's "
    "width and height"
)


def detection_prompt(category: str, *, thinking: bool = True) -> str:
    """Ask for all objects of one category, with confidences, or 'No Objects'.

    The answer is a list of `{'Position': [x1, y1, x2, y2], 'Confidence': number}`.

    Args:
        category: name as in the annotations; one category per prompt.
        thinking: ask for a think block before the answer, which the format reward looks for.
    """
    return (
        f"Find every object of the category '{category}' in this image. Describe each one by its box and by your "
        f"confidence that it is there. A box is {_BOX_UNITS}; a confidence lies between 0 and 1 and has two decimals. "
        f"If there is no '{category}' in the image, the answer is No Objects.\n"
        + _format_line("[{'Position': [x1, y1, x2, y2], 'Confidence': number}]", thinking)
        + " The list has one entry for each object."
    )


def classification_prompt(noun: str = "object", asks_for: str = "category", *, thinking: bool = True) -> str:
    """Ask for the class of what an image shows, as free text; the class list is not shown.

    Args:
        noun: what all images show: "flower", "aircraft", "car", "pet".
        asks_for: what distinguishes them: "species", "model", "breed".
        thinking: as in `detection_prompt`.
    """
    article = "an" if noun[:1].lower() in "aeiou" else "a"
    return (
        f"The image shows {article} {noun}. Name its {asks_for}, as precisely as you can, and nothing else in the "
        f"answer.\n" + _format_line(f"name of the {asks_for}", thinking)
    )


def grounding_prompt(instruction: str, *, thinking: bool = True) -> str:
    """Ask for the one box that an instruction is about. The answer is `(x1,y1),(x2,y2)`.

    Args:
        instruction: a phrase or question, as in the annotations.
        thinking: as in `detection_prompt`.
    """
    return (
        f"Find what the following instruction is about and give the box around it: {instruction}\nA box is "
        f"{_BOX_UNITS}.\n" + _format_line("(x1,y1),(x2,y2)", thinking)
    )


def _format_line(answer: str, thinking: bool) -> str:
    if thinking:
        return (
            f"Reason first, then answer, exactly in this form: <think>your reasoning</think> <answer>{answer}</answer>."
        )
    return f"Reply exactly in this form: <answer>{answer}</answer>."

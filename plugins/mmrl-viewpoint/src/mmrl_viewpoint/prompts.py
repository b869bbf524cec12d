"""Texts: questions with lettered options, the questions of viewpoint learning, and gold completions.

The questions ask for what the published ones ask for, in our own words. The system prompt is not here: training and
evaluation both read it from the task definition `viewpoint/choice`. (quirk of the published code: training adds stray
marks and line breaks to the system prompt that evaluation lacks.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmrl_viewpoint.parsing import LETTERS

GOLD_THINKING = "I compared the views."

_SETTING = "The object in these two photos did not move. Compare the camera of the second photo with that of the first."

VIEWPOINT_QUESTIONS: Mapping[str, tuple[str, tuple[str, str, str]]] = {
    "ego_translation": (
        f"{_SETTING} As the first camera sees it, which way did the camera move?",
        ("To the right", "Neither left nor right", "To the left"),
    ),
    "ego_rotation": (
        f"{_SETTING} Around its own vertical axis, which way did the camera rotate?",
        ("To the right", "It did not rotate", "To the left"),
    ),
    "object_translation": (
        f"{_SETTING} As the object sees it, facing the first camera, which way did the camera move?",
        ("To the right", "Neither left nor right", "To the left"),
    ),
    "height": (
        f"{_SETTING} Is the camera higher or lower than before?",
        ("Higher", "At the same height", "Lower"),
    ),
    "distance": (
        f"{_SETTING} Is the camera closer to the object or further away than before?",
        ("Closer", "At the same distance", "Further away"),
    ),
}
"""Kind of question -> question, and options. The first three are those of Viewpoint-100K, with its order of options."""


def question_text(question: str, options: Sequence[str]) -> str:
    """A question with its options, one a line.

    >>> print(question_text("Which way?", ["left", "right"]))
    Which way?
    A. left
    B. right
    """
    return "\n".join([question.strip(), *(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))])


def gold_completion(answer: str, thinking: str = GOLD_THINKING) -> str:
    """An answer in the form that the format reward looks for.

    >>> gold_completion("B")
    '<think>I compared the views.</think> <answer>B</answer>'
    """
    return f"<think>{thinking}</think> <answer>{answer}</answer>"

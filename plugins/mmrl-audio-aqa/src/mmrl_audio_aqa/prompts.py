"""Prompt texts: what R1-AQA asks for, in our own words, and gold completions in the form that they ask for.

One setting, `thinking`, is for the prompt, the gold completion and, through the row, the format reward. (quirk of the
published code: it has to be switched in three places.)

The published model finds its options in a Python list, `style="list"`. Lettered lines, `style="letters"`, keep options
with quotes or commas apart, and let the model answer by letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from mmrl_core.errors import TaskDataError

Style = Literal["list", "letters"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
GOLD_THINKING = "I listened for what the question asks about."


def question_prompt(question: str, choices: Sequence[str], *, style: Style = "list", thinking: bool = False) -> str:
    """The text after the sound.

    Args:
        question: as in the data.
        choices: the options, in the order in which they are shown; up to 26 for `style="letters"`.
        style: how options are written.
        thinking: ask for a think block before the answer.

    Raises:
        TaskDataError: unknown style, or more options than letters.

    >>> print(question_prompt("What is heard?", ["dog", "cat"]))
    What is heard? Choose one of these options: ['dog', 'cat']. Write the chosen option between <answer> and </answer>.
    >>> print(question_prompt("What is heard?", ["dog", "cat"], style="letters", thinking=True))
    What is heard? Choose one of these options:
    A. dog
    B. cat
    Write your reasoning between <think> and </think>, then the chosen option between <answer> and </answer>.
    """
    asked = f"{question.strip()} Choose one of these options:{listed_options(choices, style)}"
    if thinking:
        return (
            f"{asked}Write your reasoning between <think> and </think>, "
            "then the chosen option between <answer> and </answer>."
        )
    return f"{asked}Write the chosen option between <answer> and </answer>."


def listed_options(choices: Sequence[str], style: Style) -> str:
    """The options with what parts them from the text around them.

    >>> listed_options(["dog", "cat"], "letters")
    '\\nA. dog\\nB. cat\\n'
    """
    if style not in get_args(Style):
        raise TaskDataError(f"style is one of {', '.join(get_args(Style))}, not {style!r}")
    if style == "list":
        return f" {list(choices)}. "
    if len(choices) > len(LETTERS):
        raise TaskDataError(f"{len(choices)} options are more than there are letters; use style: list")
    return "\n" + "".join(f"{LETTERS[index]}. {choice.strip()}\n" for index, choice in enumerate(choices))


def gold_completion(solution: str, *, thinking: bool) -> str:
    """A completion that gives an answer, with a line of thinking if the prompt asks for it.

    >>> gold_completion("<answer>dog</answer>", thinking=True)
    '<think>I listened for what the question asks about.</think><answer>dog</answer>'
    """
    return f"<think>{GOLD_THINKING}</think>{solution}" if thinking else solution

r"""Prompt texts, in our own words, and gold completions in the form that they ask for."""

from __future__ import annotations

from typing import get_args

from mmrl_core.errors import TaskDataError
from mmrl_text_reasoning.rewards import Form

_ASKED_FOR = {
    "boxed": "Reason step by step, and put the final answer within \\boxed{}.",
    "tags": (
        "Write your reasoning between <think> and </think>, then the final answer between <answer> and </answer>."
    ),
    "open_rs": (
        "Think first, and close your thinking with </think> on a line of its own. "
        "Then put the final answer within \\boxed{}."
    ),
}
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def asked(question: str, form: Form, instruction: str | None = None) -> str:
    r"""The text of a prompt: the question and, on a new line, in which form to answer.

    Raises:
        TaskDataError: the form is unknown.

    >>> print(asked("What is 6 * 7?", "boxed"))
    What is 6 * 7?
    Reason step by step, and put the final answer within \boxed{}.
    """
    if form not in _ASKED_FOR:
        raise TaskDataError(f"form is one of {', '.join(get_args(Form))}, not {form!r}")
    how = _ASKED_FOR[form] if instruction is None else instruction
    return f"{question}\n{how}" if how else question


def demonstration(answer: str, thinking: str, form: Form) -> str:
    r"""A gold completion.

    Args:
        answer: without box.
        thinking: a solution; "" writes a line of ours.
        form: as for `asked`.

    >>> demonstration("42", "6 * 7 is 42.", "open_rs")
    '6 * 7 is 42.\n</think>\n\\boxed{42}'
    """
    for tag in _TAGS:
        thinking = thinking.replace(tag, "")
    thinking = thinking.strip() or "I worked it out."
    if form == "tags":
        return f"<think>\n{thinking}\n</think>\n<answer>\n{answer}\n</answer>"
    boxed = f"\\boxed{{{answer}}}"
    return f"{thinking}\n</think>\n{boxed}" if form == "open_rs" else f"{thinking}\n{boxed}"

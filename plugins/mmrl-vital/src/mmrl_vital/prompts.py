"""Prompt texts: what VITAL asks for, in our own words, and gold answers in the form that the prompts ask for.

Times are seconds with two decimals everywhere. The schemas of tools are written into the system message by the model's
chat template; the text here only says how often and when to call them, with the number that the run enforces. (quirk of
the published prompt: it allows one call where the rollout allows two and the reward pays for two.)

Models copy what a format line shows, so none shows an ellipsis inside a block.
"""

from __future__ import annotations

from collections.abc import Sequence

ANSWER_FORM = "<think>your reasoning</think><answer>your answer</answer>"
TOOL_FORM = "<think>your reasoning</think><tool_call>the call</tool_call>"
GOLD_THINKING = "I watched for what the question asks about."
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def user_prompt(question: str, *, duration_s: float | None = None, image: bool = False, max_tool_calls: int = 0) -> str:
    """The text after the video or image.

    Args:
        question: with whatever it says about the form of the answer.
        duration_s: of the video in seconds; None if it is not known.
        image: the medium is an image; then neither duration nor tools are mentioned.
        max_tool_calls: how many tool calls the rollout allows; 0 for none.

    >>> print(user_prompt("What falls?", duration_s=61.5))
    This video lasts 61.50 seconds.
    Think about the question step by step, then answer it. There is always an answer, and you have to give one. Write \
exactly in this form: <think>your reasoning</think><answer>your answer</answer>
    Question: What falls?
    """
    lines = []
    if image:
        lines.append("This is an image.")
    else:
        lines.append("This is a video." if duration_s is None else f"This video lasts {duration_s:.2f} seconds.")
    lines.append(
        "Think about the question step by step, then answer it. There is always an answer, and you have to give one. "
        f"Write exactly in this form: {ANSWER_FORM}"
    )
    if max_tool_calls and not image:
        calls = "one tool call" if max_tool_calls == 1 else f"{max_tool_calls} tool calls"
        lines.append(
            f"To see more before you answer, you may make at most {calls}, one at a time, in this form: {TOOL_FORM}\n"
            "When the result of a call arrives, weigh the new evidence against your first reasoning, think again, and "
            "answer in the form above."
        )
    return "\n".join([*lines, f"Question: {question.strip()}"])


def grounding_question(sentence: str) -> str:
    """Ask when an event happens. The answer is `span_text`."""
    return (
        f"When does this happen in the video: {sentence.strip()}\n"
        "Answer with the start and end in seconds, in the form: From 1.00 to 2.00 seconds"
    )


def choice_question(question: str, options: Sequence[str]) -> str:
    """Ask for the letter of an option.

    Args:
        options: texts in the order of their letters, with or without the letter in front ("A. a dog").

    >>> print(choice_question("What barks?", ["A. a dog", "a seal"]))
    What barks?
    A. a dog
    B. a seal
    Answer with the letter of the right option and nothing else.
    """
    return f"{question.strip()}\n{_listed(options)}\nAnswer with the letter of the right option and nothing else."


def grounded_choice_question(question: str, options: Sequence[str]) -> str:
    """Ask for the span of the evidence and the letter of an option. The answer is `grounded_text`."""
    return (
        f"{question.strip()}\n{_listed(options)}\n"
        "Answer with the start and end, in seconds, of the part of the video that shows the answer, then the letter of "
        "the right option, in the form: From 1.00 to 2.00 seconds, X"
    )


def span_text(span: Sequence[float]) -> str:
    """A span (start, end) in seconds as an answer.

    >>> span_text([3, 8.25])
    'From 3.00 to 8.25 seconds'
    """
    start, end = span
    return f"From {start:.2f} to {end:.2f} seconds"


def grounded_text(span: Sequence[float], answer: str) -> str:
    """A span with the letter or text that it is the evidence of.

    >>> grounded_text([3, 8.25], "B")
    'From 3.00 to 8.25 seconds, B'
    """
    return f"{span_text(span)}, {answer}"


def gold_completion(answer: str) -> str:
    """A completion that gives an answer, for rows that have a gold answer but no reasoning."""
    return f"<think>{GOLD_THINKING}</think><answer>{answer}</answer>"


def _listed(options: Sequence[str]) -> str:
    """One option a line, each behind its letter."""
    lines = []
    for number, option in enumerate(options):
        letter, text = LETTERS[number], option.strip()
        lines.append(text if text.startswith((f"{letter}.", f"{letter})")) else f"{letter}. {text}")
    return "\n".join(lines)

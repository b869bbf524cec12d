"""Rewards of R1-AQA: the right option of a question about a sound, in the form that was asked for.

Every reward takes the B completions and their B samples and returns B numbers in the same order. `None` means
unscored, because the sample holds no gold; one that is there and cannot be used is a TaskDataError. A completion that
cannot be read, or is no string, scores 0.0.

The published total is the plain sum of accuracy and format, 0..2.

quirk of the published code: it first hands the whole completion and the solution to a symbolic mathematics parser,
which pays 1.0 where one number of each agrees, so "Channel 2" equals "Track 2" and "at 3:00" equals "at 3:30". It is
not done here; numbers below mean the published rule without that step.

Source: R1-AQA, arXiv:2503.11197, and its public code as of 2025-03-29.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mmrl_audio_aqa.parsing import answer_block, chosen_option, words
from mmrl_core.data import read_options
from mmrl_core.scoring import gold_text, unusable_gold, unwrapped

Sample = Mapping[str, Any]


def accuracy(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    match: Literal["option", "text"] = "option",
    untagged: bool = False,
) -> list[float | None]:
    """1.0 where the first answer block names the gold option, else 0.0.

    Which option an answer names says `parsing.chosen_option`. Without the options of the question nothing tells which
    differences matter, so then, as published, the text has to be that of the solution, character by character.

    quirk of the published code: it never looks at the options; a text without answer tags earns the reward, too.

    Args:
        completions: B texts, completion only.
        samples: B rows; `solution` is the text of the right option, in answer tags or not; the options are `choices` or
            `multi_choice`.
        match: "text" takes only the text of the solution, as published, also where the options are known.
        untagged: a completion without a whole answer block is compared as a whole, as published.

    Returns:
        B values, 0.0 or 1.0; None where `solution` is missing or empty.

    Raises:
        ValueError: the lengths differ, or `match` is unknown.
        TaskDataError: `solution` is none of the options or no text, or the options are no list of texts.

    >>> row = {"solution": "<answer>dog</answer>", "choices": ["cat", "dog"]}
    >>> accuracy(["<answer>dog</answer>", "<answer>B</answer>", "<answer>cat</answer>", "dog"], [row] * 4)
    [1.0, 1.0, 0.0, 0.0]
    """
    if match not in ("option", "text"):
        raise ValueError(f"match is 'option' or 'text', not {match!r}")
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        gold = solution_text(sample)
        answer = answer_block(completion)
        if answer is None and untagged and isinstance(completion, str):
            answer = completion.strip()
        choices = options(sample) if match == "option" else None
        if not gold:
            rewards.append(None)
        elif choices is None:
            rewards.append(float(answer == gold))
        elif (right := chosen_option(gold, choices)) is None:
            raise unusable_gold(sample["solution"], "solution", f"one of the options {choices!r:.200}")
        else:
            rewards.append(float(answer is not None and chosen_option(answer, choices) == right))
    return rewards


def format(  # the published name
    completions: Sequence[str], samples: Sequence[Sample], *, thinking: bool | None = None
) -> list[float]:
    """1.0 for exactly one answer block, and with thinking one think block in front of it, and nothing else.

    Blanks around and between the blocks are free, blocks may span lines, and, as published, may be empty.

    quirks of the published code: a blank or line break before or after the blocks fails; several blocks and nested tags
    pass; the prompt and the reward are told separately whether to think. Here the row says it to both.

    Args:
        completions: B texts, completion only.
        samples: B rows; `thinking` says whether the prompt asks for thinking; rows without it do not.
        thinking: in place of the rows'.

    Returns:
        B values, 0.0 or 1.0.

    Raises:
        ValueError: the lengths differ.

    >>> format(["<answer>dog</answer>\\n", "<think>barks</think> <answer>dog</answer>", "dog"], [{}] * 3)
    [1.0, 0.0, 0.0]
    """
    rewards = []
    for completion, sample in zip(completions, samples, strict=True):
        thinks = bool(sample.get("thinking")) if thinking is None else thinking
        rewards.append(float(isinstance(completion, str) and _has_form(completion.strip(), thinks)))
    return rewards


def mmau_match(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """MMAU's own rule: all words of the answer are in the prediction, and no other word of a wrong option is.

    The prediction is the first answer block or, without one, the whole completion, as in the published evaluation. An
    option with the same words as the answer is not a wrong one. Word order and signs do not matter, so "major C" is
    "C major" and "C#" is "C"; where a wrong option has all its words in the answer, naming both passes. That is the
    benchmark's rule and is kept; train on `accuracy`.

    Args:
        completions: B texts.
        samples: B rows; `answer` is the text of the right option, its letter or its position; the options are `choices`
            or `multi_choice`.

    Returns:
        B values, 0.0 or 1.0; None where the answer or the options are missing.

    Raises:
        ValueError: the lengths differ.
        TaskDataError: the answer is neither a text nor a position, or the options are no list of texts.

    Source: string_match in the evaluation script of MMAU, arXiv:2410.19168.

    >>> row = {"answer": "dog bark", "choices": ["dog bark", "dog growl"]}
    >>> mmau_match(["It is the bark of a dog.", "a dog", "dog growl or bark"], [row] * 3)
    [1.0, 0.0, 0.0]
    """
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        choices, answer = options(sample), unwrapped(sample.get("answer"))
        is_position = isinstance(answer, int) and not isinstance(answer, bool)
        if choices is not None and is_position and 0 <= answer < len(choices):
            answer = choices[answer]
        right_text = gold_text(answer, "answer", "the text of an option or its position")
        if choices is None or not right_text:
            rewards.append(None)
            continue
        if (named := chosen_option(right_text, choices)) is not None:  # by its letter, say
            right_text = choices[named]
        right, said = words(right_text), words(prediction(completion))
        wrong = set[str]().union(*map(words, choices)) - right
        rewards.append(float(bool(said) and right <= said and not said & wrong))
    return rewards


def prediction(completion: object) -> str:
    """What the published evaluation hands to MMAU's scorer: the first answer block, or else the whole completion.

    >>> prediction("<think>barks</think><answer> dog </answer>"), prediction(" a dog\\n")
    ('dog', 'a dog')
    """
    answer = answer_block(completion)
    if answer is None:
        return completion.strip() if isinstance(completion, str) else ""
    return answer


def solution_text(sample: Sample) -> str:
    """The text of the right option, out of the answer tags of `solution`; "" if there is none.

    Raises:
        TaskDataError: `solution` is no text, such as a list of several.
    """
    solution = gold_text(sample.get("solution"), "solution", "the text of the right option") or ""
    answer = answer_block(solution)
    return solution if answer is None else answer


def options(sample: Sample) -> list[str] | None:
    """The options of a question, from `choices` or `multi_choice`; None if the row has none.

    Raises:
        TaskDataError: they are no list of texts, as `read_options` reads them.
    """
    column = "choices" if sample.get("choices") is not None else "multi_choice"
    return read_options(sample.get(column), column, least=1)


def _has_form(text: str, thinking: bool) -> bool:
    counts = [text.count(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    if thinking:
        if counts[:2] != [1, 1] or not text.startswith("<think>"):
            return False
        text = text.partition("</think>")[2].lstrip()
    return counts[2:] == [1, 1] and text.startswith("<answer>") and text.endswith("</answer>")

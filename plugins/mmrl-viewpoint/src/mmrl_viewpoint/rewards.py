"""Rewards of Actial (viewpoint learning): the right option, and the form of the answer.

Every reward takes the B completions and their B samples and returns B numbers in 0..1 in the same order. A sample's
`ground_truth` is the gold option's letter, or whatever the answer has to equal; `options`, if the row has them, are the
options in order. None means unscored: the sample has no `ground_truth`. One that is no text or number, such as a list
of several, is a TaskDataError. Completions are untrusted and only ever parsed.

Published total: 0.5 * accuracy + 0.5 * format.

Source: arXiv:2511.01618 and its public code as of 2025-12-27.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmrl_core.data import read_options
from mmrl_core.errors import RewardError
from mmrl_core.scoring import bare_text, gold_text, unusable_gold, unwrapped
from mmrl_viewpoint.parsing import answer_text, is_formatted, option_letter

Sample = Mapping[str, Any]


def accuracy(completions: Sequence[str], samples: Sequence[Sample], *, exact: bool = False) -> list[float | None]:
    """1.0 if the first answer block names the gold option, else 0.0.

    Where the row has `options`, letters and texts of options are one: "B", "(b)", "B. to the left" and "to the left"
    are the same answer. Otherwise the answer has to equal the gold one, but for blanks, full-width forms and
    punctuation around both. An empty answer gives 0.0.

    quirks of the published code: only a capital letter alone is right, so that "B." and "(B)" are wrong, see `exact`;
    blanks in the gold answer make every answer wrong; a completion without answer is right where the gold answer is
    "None".

    Args:
        completions: B texts.
        samples: B rows; `ground_truth`, and `options` if there are any.
        exact: look at no options and take the gold text alone, as published.

    >>> row = {"ground_truth": "B", "options": ["to the right", "to the left"]}
    >>> accuracy(["<answer>To the left</answer>", "<answer>A</answer>", "B"], [row] * 3)
    [1.0, 0.0, 0.0]
    """
    return [_accuracy(*pair, exact) for pair in zip(completions, samples, strict=True)]


def _accuracy(completion: str, sample: Sample, exact: bool) -> float | None:
    truth = sample.get("ground_truth")
    gold = gold_text(truth, "ground_truth", "the letter or text of an option, or a number")
    if gold is None:
        return None
    if not (answer := answer_text(completion)):
        return 0.0
    if exact:
        return float(answer == gold)
    options = sample.get("options")
    options = read_options(options) if isinstance(options, str) else options
    if options and (letter := option_letter(gold, options)) is not None:
        return float(option_letter(answer, options) == letter)
    if options and not isinstance(unwrapped(truth), str):
        raise unusable_gold(truth, "ground_truth", f"one of the options {options!r:.200}")
    return float(bare_text(answer, fold=False) == bare_text(gold, fold=False))


def format(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """1.0 for a think block and then an answer block, with nothing but blanks around them, else 0.0.

    Tags in any case; what the blocks hold does not matter, so it takes `accuracy` beside it.

    >>> format(["<think>hm</think> <answer>B</answer>", "<answer>B</answer>"], [{}, {}])
    [1.0, 0.0]
    """
    return [float(is_formatted(completion)) for completion, _ in zip(completions, samples, strict=True)]


def score(
    completions: Sequence[str], samples: Sequence[Sample], *, format_weight: float = 0.5, exact: bool = False
) -> list[float | None]:
    """The published total: (1 - format_weight) * accuracy + format_weight * format.

    quirk of the published weights: half of the reward is free once the form is learnt. A task can set another weight,
    or name `accuracy` and `format` with weights of their own.

    Args:
        completions: B texts.
        samples: B rows, as in `accuracy`.
        format_weight: 0..1.
        exact: as in `accuracy`.

    Raises:
        RewardError: `format_weight` is not within 0..1.

    >>> row = {"ground_truth": "B"}
    >>> score(["<think>hm</think><answer>B</answer>", "<think>hm</think><answer>A</answer>", "B"], [row] * 3)
    [1.0, 0.5, 0.0]
    """
    if not 0 <= format_weight <= 1:
        raise RewardError(f"viewpoint/score: format_weight is {format_weight}; give a number from 0 to 1.")
    parts = zip(accuracy(completions, samples, exact=exact), format(completions, samples), strict=True)
    return [
        None if right is None or formed is None else (1 - format_weight) * right + format_weight * formed
        for right, formed in parts
    ]

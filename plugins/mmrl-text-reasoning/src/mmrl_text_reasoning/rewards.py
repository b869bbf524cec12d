r"""Rewards of reasoning with an answer that can be verified.

Every reward takes the B completions and their B samples and returns B numbers in the same order. None means unscored,
because the sample has no gold; a gold that is there and cannot be used is a TaskDataError. A completion that cannot be
read, or takes too long to judge, scores as a wrong one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from mmrl_core.plugins import load_plugins
from mmrl_core.scoring import gold_text, unusable_gold, unwrapped
from mmrl_core.types import Rollout
from mmrl_text_reasoning import apart
from mmrl_text_reasoning.numbers import read_number, same_number
from mmrl_text_reasoning.parsing import MAX_ANSWER_CHARS, answer_block, final_answer, normalized, readable

Sample = Mapping[str, Any]
Form = Literal["tags", "open_rs", "boxed"]

ANSWER_S = 1.2
"""Limit on judging one answer, in seconds; nearly all take less than a hundredth of it."""

MAX_BARE_SOLUTION_CHARS = 200  # a solution without a mark of its answer that is longer is a text, not an answer
GOLD = r"a text or a number, in `answer`, or in a `solution` that ends with \boxed{...} or #### ..."
_TAGGED = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)


def accuracy(
    completions: Sequence[str], samples: Sequence[Sample], *, untagged: bool = True, answer_s: float = ANSWER_S
) -> list[float | None]:
    r"""1.0 where the final answer of a completion is the gold one, else 0.0.

    What the final answer is says `parsing.final_answer`: the last box, answer block or "####" after the thinking. Two
    answers are the same if they are written alike; if both are plain numbers, by their values, units left out, with
    percentages and rounded decimals as in `numbers.same_number`; and else by math-verify, which compares formulas,
    intervals, sets, tuples, matrices and equations. It runs in a process of its own, which is ended after `answer_s`.

    quirk of the published code (open-rs, after open-r1): a gold that cannot be parsed pays 1.0 to any completion. Here
    it is compared as text. quirk of math-verify: it looks for an answer anywhere, thinking included, stops itself by a
    signal that fails outside of the main thread, and computes a tower of powers for as long as it takes.

    Args:
        completions: B texts.
        samples: B rows. The gold is `answer` or, without it, the answer of `solution`: its last box, what follows its
            "####", or all of a short one.
        untagged: answers that are not marked count, too: after "the answer is", between dollar signs, the last number.
        answer_s: limit on judging one answer, in seconds; one that takes longer is wrong.

    Returns:
        B values, 0.0 or 1.0; None where there is no gold.

    Raises:
        ValueError: the lengths differ, or `answer_s` is no time.
        TaskDataError: the gold is no text or number, or a long solution without an answer.

    Source: Math-Verify; the answer forms are those of GSM8K (arXiv:2110.14168) and MATH (arXiv:2103.03874).

    >>> accuracy([r"\boxed{1,000}", "So 10 * 100 = 1000 m.", "1001"], [{"solution": "10 * 100 is\n#### 1000"}] * 3)
    [1.0, 1.0, 0.0]
    """
    if not 0 < answer_s < math.inf:
        raise ValueError(f"answer_s is {answer_s!r}, not a number of seconds above 0")
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        gold = gold_answer(sample)
        answer = final_answer(completion, untagged=untagged)
        rewards.append(None if gold is None else float(answer is not None and is_right(gold, answer, answer_s)))
    return rewards


def format(  # the published name
    completions: Sequence[str], samples: Sequence[Sample], *, form: Form | None = None
) -> list[float]:
    r"""1.0 for a completion in the form that the prompt asks for, else 0.0.

    - `tags`: a think block, then an answer block, and blanks around them; no tag twice.
    - `open_rs`: `</think>` once, on a line of its own. The opening tag is part of the prompt.
    - `boxed`: a whole box, after the thinking if there is any.

    quirk of the published code: nothing has to follow the closing tag, so a completion of thinking alone passes; kept,
    since accuracy does not pay it. A second `</think>` inside a line passes there or not, by place; here it fails.

    Args:
        completions: B texts.
        samples: B rows; `form` says what the prompt asks for.
        form: in place of the rows'; `tags` where neither says.

    Returns:
        B values, 0.0 or 1.0.

    Raises:
        ValueError: the lengths differ, or the form is unknown.

    Source: tags, DeepSeek-R1 (arXiv:2501.12948); open_rs, arXiv:2503.16219.

    >>> format(["a\n</think>\nb", "a</think>\nb", "a\n</think> b"], [{}] * 3, form="open_rs")
    [1.0, 0.0, 0.0]
    """
    return [
        float(isinstance(completion, str) and _has_form(completion, form or str(sample.get("form") or "tags")))
        for completion, sample in zip(completions, samples, strict=True)
    ]


def cosine(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    max_length: float = 1000,
    unit: Literal["characters", "tokens"] = "characters",
    right: Sequence[float] = (1.0, 0.5),
    wrong: Sequence[float] = (-1.0, -0.5),
    clamp: bool = True,
    untagged: bool = True,
    answer_s: float = ANSWER_S,
    reward: str | None = None,
    rollouts: Sequence[Rollout] | None = None,
) -> list[float | None]:
    """Accuracy scaled by length: a right answer is worth more if it is short, a wrong one less if it is long.

    With q = length / max_length: end + (start - end) / 2 * (1 + cos(pi * q)), which goes from start at length 0 to end
    at max_length.

    quirks of the published code: the length is in characters, with a maximum of 1000, while completions have up to
    3584 tokens, and q is not clamped, so that the reward of a completion swings with a period of 2 * max_length. Its
    recipe gives wrong answers 0.0 to -0.5, so that they lose more when they are longer, the opposite of what its
    documentation says (-1.0 to -0.5); the default here is the documented one. `wrong: [0.0, -0.5]` with `clamp: false`
    is the published run. A gold that cannot be parsed pays 1.0 there; see `accuracy`.

    Args:
        completions: B texts.
        samples: B rows, as for `accuracy`.
        max_length: from which on the reward no longer changes, in `unit`.
        unit: "tokens" counts the tokens that the policy sampled, which only a run knows.
        right: reward of a right answer of length 0, and of `max_length`.
        wrong: the same for a wrong one.
        clamp: longer completions are rewarded as those of max_length.
        untagged, answer_s: as for `accuracy`.
        reward: another reward that says what is right, see `judged`.
        rollouts: given by the run.

    Returns:
        B values between the lowest and highest of `right` and `wrong`; None where there is no gold.

    Raises:
        ValueError: the lengths differ, an option is out of range, or tokens are asked for outside of a run.
        TaskDataError: as `accuracy`.
        PluginError: no plugin provides `reward`.

    Source: open-rs, arXiv:2503.16219, section 3 and its public code; the form is that of arXiv:2502.03373.

    >>> rows = [{"answer": "1"}] * 3
    >>> [round(score, 6) for score in cosine(["1", "1".rjust(500), "1".rjust(2000)], rows)]
    [0.999999, 0.75, 0.5]
    """
    if len(right) != 2 or len(wrong) != 2 or not max_length > 0:
        raise ValueError("right and wrong are the rewards at length 0 and at max_length, which is above 0")
    if unit not in ("characters", "tokens"):
        raise ValueError(f"unit is 'characters' or 'tokens', not {unit!r}")
    if unit == "tokens":
        if rollouts is None:
            raise ValueError("unit: tokens counts what a policy has sampled, so it scores only within a run")
        lengths = [rollout.num_actions for rollout in rollouts]
    else:
        lengths = [len(completion) if isinstance(completion, str) else 0 for completion in completions]
    are_right = judged(completions, samples, reward=reward, untagged=untagged, answer_s=answer_s)
    rewards: list[float | None] = []
    for is_right, length in zip(are_right, lengths, strict=True):
        start, end = right if is_right else wrong
        share = length / max_length
        angle = math.pi * (min(share, 1.0) if clamp else share)
        rewards.append(None if is_right is None else end + (start - end) / 2 * (1 + math.cos(angle)))
    return rewards


def judged(
    completions: Sequence[str], samples: Sequence[Sample], *, reward: str | None, untagged: bool, answer_s: float
) -> list[bool | None]:
    """Whether completions are right, for rewards that pay more or less for it.

    Args:
        completions: B texts.
        samples: B rows, as the reward reads them.
        reward: id of an installed reward, or file.py:function, that is called with completions and samples alone; what
            it scores with 1 or more is right. None: `accuracy`.
        untagged, answer_s: options of `accuracy`.

    Returns:
        B values; None where the reward leaves a completion unscored.

    Raises:
        ValueError, TaskDataError: as the reward.
        PluginError: no plugin provides the reward.
    """
    if reward is None:
        scores = accuracy(completions, samples, untagged=untagged, answer_s=answer_s)
    else:
        scores = load_plugins().registry.get("reward", reward).call(completions, samples, options={})
    return [None if score is None else score >= 1.0 for score in scores]


def overlong(
    completions: Sequence[str],
    samples: Sequence[Sample],
    rollouts: Sequence[Rollout],
    *,
    max_length: int = 20480,
    cache: int = 4096,
) -> list[float]:
    """DAPO's soft punishment of long completions, to be added to the reward of the task.

    With n sampled tokens: 0 up to max_length - cache, then down by a straight line to -1 at max_length, and -1 beyond.

    Args:
        completions: B texts.
        samples: B rows.
        rollouts: given by the run.
        max_length: in tokens; `rollout.max_tokens`, or completions are cut before they are punished in full.
        cache: tokens before max_length in which the punishment grows.

    Returns:
        B values in -1..0.

    Raises:
        ValueError: the lengths differ, or `cache` is not between 1 and `max_length`.

    Source: DAPO, arXiv:2503.14476, equation 13.
    """
    if not 0 < cache <= max_length:
        raise ValueError(f"cache is {cache}, and has to lie between 1 and max_length, {max_length}")
    return [
        max(-1.0, min(0.0, (max_length - cache - rollout.num_actions) / cache))
        for _, _, rollout in zip(completions, samples, rollouts, strict=True)
    ]


def gym(
    completions: Sequence[str], samples: Sequence[Sample], *, untagged: bool = True, answer_s: float = 5.0
) -> list[float | None]:
    """What reasoning-gym's own scorer of a row gives for the final answer, 0..1; many sets pay a little for an attempt.

    The answer is the last answer block, or without one the last box or, if `untagged`, the whole text after the
    thinking. The scorer runs in a process of its own, which is ended after `answer_s`.

    quirk of the published code: the scorers of a dozen sets evaluate an answer as Python. Here answers to those sets
    that are not plain lists, or plain formulas, score 0.0 unread.

    Args:
        completions: B texts.
        samples: B rows of the source `text_reasoning/gym`; the column `entry`.
        untagged: a completion without answer block and box is the answer as a whole.
        answer_s: limit on scoring one answer, in seconds.

    Returns:
        B values in 0..1; None where the row has no entry.

    Raises:
        ValueError: the lengths differ.
        TaskDataError: `entry` is no text.
        RewardError: reasoning-gym is not installed (`pip install 'mmrl-text-reasoning[gym]'`).

    Source: reasoning-gym, arXiv:2505.24760.
    """
    rewards: list[float | None] = []
    for completion, sample in zip(completions, samples, strict=True):
        entry = sample.get("entry")
        if entry is None:
            rewards.append(None)
            continue
        if not isinstance(entry, str):
            raise unusable_gold(entry, "entry", "the JSON that the source text_reasoning/gym writes")
        answer = _whole_answer(completion, untagged)
        is_short = answer is not None and len(answer) <= 20 * MAX_ANSWER_CHARS
        rewards.append(apart.gym_score(entry, answer, answer_s) if answer and is_short else 0.0)
    return rewards


def gold_answer(sample: Sample) -> str | None:
    r"""The gold answer of a row: `answer`, or else that of `solution`; None where there is none.

    Raises:
        TaskDataError: it is no text or number, or a long solution without an answer.

    >>> gold_answer({"solution": r"Hence $\boxed{\frac{1}{2}}$."}), gold_answer({"answer": 42.0}), gold_answer({})
    ('\\frac{1}{2}', '42', None)
    """
    column = "answer" if unwrapped(sample.get("answer")) not in (None, "") else "solution"
    text = gold_text(sample.get(column), column, GOLD)
    if text is None:
        return None
    marked = final_answer(text, untagged=False)
    if marked is not None:
        return marked
    if column == "solution" and len(text) > MAX_BARE_SOLUTION_CHARS:
        raise unusable_gold(text, column, GOLD)
    return text


def said_answer(completion: object, sample: Sample) -> str | None:
    r"""What a completion answers, in one spelling, for the vote of maj@k; None if it gives no answer.

    Equal plain numbers are one answer, and equal texts without blanks and marks. Two formulas of one value may be two.

    >>> [said_answer(text, {}) for text in (r"\boxed{1,000}", "so 1000 m.", r"\boxed{\frac12}", "0.5", "50%", "")]
    ['1000', '1000', '1/2', '1/2', '50%', None]
    """
    answer = final_answer(completion)
    if answer is None or len(answer) > MAX_ANSWER_CHARS:
        return None
    number = read_number(readable(answer))
    if number is None:
        return normalized(answer)
    return f"{number.value}{'%' if number.is_percent else ''}"


def is_right(gold: str, answer: str, limit_s: float = ANSWER_S) -> bool:
    """Whether an answer is the gold one; see `accuracy`."""
    if len(answer) > max(MAX_ANSWER_CHARS, 2 * len(gold)):
        return False
    if normalized(gold) == normalized(answer):
        return True
    gold, answer = readable(gold), readable(answer)
    numbers = read_number(gold), read_number(answer)
    if numbers[0] is not None and numbers[1] is not None:
        return same_number(numbers[0], numbers[1])
    return apart.same_mathematics(gold, answer, limit_s)


def _has_form(text: str, form: str) -> bool:
    if form == "open_rs":
        return text.count("</think>") == 1 and "</think>" in text.split("\n")
    if form == "boxed":
        return final_answer(text.rpartition("</think>")[2], untagged=False) is not None and "\\boxed" in text
    if form != "tags":
        raise ValueError(f"form is one of {', '.join(get_args(Form))}, not {form!r}")
    found = _TAGGED.fullmatch(text)
    return found is not None and not any(
        tag in part for part in found.groups() for tag in ("<think>", "</think>", "<answer>", "</answer>")
    )


def _whole_answer(completion: object, untagged: bool) -> str | None:
    if not isinstance(completion, str):
        return None
    text = completion.rpartition("</think>")[2]
    block = answer_block(text)
    if block is not None:
        return block
    marked = final_answer(text, untagged=False)
    return marked if marked is not None or not untagged else text.strip()

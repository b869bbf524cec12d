"""Rewards that belong to one published method each, made of those in `rewards`."""

from __future__ import annotations

from collections.abc import Sequence

from mmrl_text_reasoning.parsing import final_answer
from mmrl_text_reasoning.rewards import ANSWER_S, Form, Sample, accuracy, format, judged

RIGHT, WRONG, UNREADABLE, OTHER_FORM = 0.0, -1.0, -2.0, -3.0


def thinkless(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    short: str = "<short>",
    think: str = "<think>",
    right_short: float = 1.0,
    right_think: float = 0.5,
    wrong: float = -1.0,
    untagged: bool = True,
    answer_s: float = ANSWER_S,
    reward: str | None = None,
) -> list[float | None]:
    """Thinkless: a right answer is worth more without long reasoning, and a wrong one costs the same either way.

    The control token is what a completion starts with. One that starts with neither is wrong (ours). The tokens have to
    be in the text of a completion, so a tokenizer must not call them special.

    Args:
        completions: B texts.
        samples: B rows, as for `accuracy`.
        short, think: texts of the control tokens.
        right_short, right_think, wrong: the rewards.
        untagged, answer_s: as for `accuracy`.
        reward: another reward that says what is right, see `rewards.judged`. It reads the control token, too.

    Returns:
        B values; None where there is no gold.

    Raises:
        ValueError, TaskDataError: as `accuracy`.
        PluginError: no plugin provides `reward`.

    Source: arXiv:2505.13379 and its code.

    >>> thinkless(["<short>7", "<think>3 + 4</think>7", "<short>8", "7"], [{"answer": "7"}] * 4)
    [1.0, 0.5, -1.0, -1.0]
    """
    are_right = judged(completions, samples, reward=reward, untagged=untagged, answer_s=answer_s)
    rewards: list[float | None] = []
    for completion, is_right in zip(completions, are_right, strict=True):
        text = completion.lstrip() if isinstance(completion, str) else ""
        if is_right is None:
            rewards.append(None)
        elif not is_right or not text.startswith((short, think)):
            rewards.append(wrong)
        else:
            rewards.append(right_short if text.startswith(short) else right_think)
    return rewards


def level(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    form: Form | None = None,
    answer_s: float = ANSWER_S,
) -> list[float | None]:
    """TRPA's preference levels as numbers of which the order counts: 0 is the best.

    0.0 the form and the answer are right; -1.0 the form is right, the answer wrong; -2.0 the form is right, but there
    is no answer in it; -3.0 the form is wrong. Use it with `algorithm/trpa` and `loss.best: 0`.

    quirk of the published code: of several gold answers only the first is compared, and a row without gold has level
    -2; here it is unscored.

    Args:
        completions: B texts.
        samples: B rows, as for `accuracy` and `format`.
        form: as for `format`.
        answer_s: as for `accuracy`.

    Returns:
        B values; None where there is no gold.

    Raises:
        ValueError, TaskDataError: as `accuracy` and `format`.

    Source: TRPA, arXiv:2504.04524 and its code, which numbers the levels 1 to 4.

    >>> said = ["<think>3 + 4</think><answer>%s</answer>" % answer for answer in ("7", "8", "")]
    >>> level([*said, "7"], [{"answer": "7"}] * 4)
    [0.0, -1.0, -2.0, -3.0]
    """
    scores = accuracy(completions, samples, untagged=False, answer_s=answer_s)
    forms = format(completions, samples, form=form)
    levels: list[float | None] = []
    for completion, score, has_form in zip(completions, scores, forms, strict=True):
        if score is None:
            levels.append(None)
        elif not has_form:
            levels.append(OTHER_FORM)
        elif score == 1.0:
            levels.append(RIGHT)
        else:
            levels.append(UNREADABLE if final_answer(completion, untagged=False) is None else WRONG)
    return levels

"""Forms, lengths and the scorers of reasoning-gym."""

import math
from types import SimpleNamespace

import pytest

from mmrl_core.errors import TaskDataError
from mmrl_text_reasoning.rewards import cosine, format, overlong

ROW = {"answer": "42"}


def of_length(answer, length):
    return answer.rjust(length)


def sampled(*lengths):
    return [SimpleNamespace(num_actions=length) for length in lengths]


@pytest.mark.parametrize(
    ("form", "text", "score"),
    [
        # open-rs: the cases of its rule, one closing tag on a line of its own
        ("open_rs", "a\n</think>\nb", 1.0),
        ("open_rs", "a</think>\nb", 0.0),
        ("open_rs", "a\n</think> b", 0.0),
        ("open_rs", "a\n</think>\nb\n</think>\nc", 0.0),
        ("open_rs", "a\n</think>\nb </think>", 0.0),
        ("open_rs", "a b", 0.0),
        ("tags", "<think>a</think><answer>b</answer>", 1.0),
        ("tags", " <think>\na\n</think>\n\n<answer>\nb\n</answer>\n", 1.0),
        ("tags", "<answer>b</answer>", 0.0),
        ("tags", "<think>a</think> so <answer>b</answer>", 0.0),
        ("tags", "<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        ("tags", "<think><think>a</think><answer>b</answer>", 0.0),
        ("boxed", "so \\boxed{1}", 1.0),
        ("boxed", "\\boxed{1}</think> so 1", 0.0),
        ("boxed", "so \\boxed{1", 0.0),
        ("boxed", "", 0.0),
    ],
)
def test_forms(form, text, score):
    assert format([text], [{"form": form}]) == format([text], [{}], form=form) == [score]


def test_the_form_is_the_rows_or_tags():
    assert format(["<think></think><answer></answer>", None], [{}, {}]) == [1.0, 0.0]
    with pytest.raises(ValueError, match="form is one of"):
        format(["a"], [{}], form="xml")


# Worked by hand from lo + (hi - lo) / 2 * (1 + cos(pi * length / 1000)), with the published numbers.
@pytest.mark.parametrize(
    ("answer", "options", "lengths", "expected"),
    [
        ("42", {"clamp": False}, [0, 500, 1000, 1500], [1, 0.75, 0.5, 0.75]),
        ("42", {}, [0, 500, 1000, 1500], [1, 0.75, 0.5, 0.5]),
        ("41", {"clamp": False, "wrong": (0.0, -0.5)}, [0, 500, 1000, 1500], [0, -0.25, -0.5, -0.25]),
        ("41", {}, [0, 500, 1000, 1500], [-1, -0.75, -0.5, -0.5]),
    ],
)
def test_the_cosine_reward_at_published_lengths(answer, options, lengths, expected):
    given = {"unit": "tokens", "rollouts": sampled(*lengths), **options}
    assert cosine([answer] * 4, [ROW] * 4, **given) == pytest.approx(expected, abs=1e-12)
    if lengths[1:]:  # in characters, the answer itself has two
        texts = [of_length(answer, length) for length in lengths[1:]]
        assert cosine(texts, [ROW] * 3, **options) == pytest.approx(expected[1:], abs=1e-12)


def test_unclamped_lengths_swing_with_twice_the_maximum():
    near, far = cosine([of_length("42", 300), of_length("42", 2300)], [ROW] * 2, clamp=False)
    assert near == pytest.approx(far, abs=1e-12) and near > 0.75


def test_the_cosine_reward_needs_a_gold_and_sound_options():
    assert cosine(["42"], [{}]) == [None]
    for options in ({"max_length": 0}, {"right": (1.0,)}, {"unit": "words"}, {"unit": "tokens"}):
        with pytest.raises(ValueError):
            cosine(["42"], [ROW], **options)
    with pytest.raises(TaskDataError):
        cosine(["42"], [{"answer": ["1", "2"]}])


def test_overlong_completions_are_punished_as_in_dapo():
    lengths = [100, 16384, 18432, 20480, 20481]
    assert overlong([""] * 5, [{}] * 5, sampled(*lengths)) == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert overlong(["", ""], [{}] * 2, sampled(7, 9), max_length=10, cache=4) == [-0.25, -0.75]
    assert all(math.isfinite(score) for score in overlong([""], [{}], sampled(0)))
    with pytest.raises(ValueError, match="cache"):
        overlong([""], [{}], sampled(1), max_length=10, cache=11)

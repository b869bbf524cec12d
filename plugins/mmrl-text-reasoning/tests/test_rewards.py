"""Forms, lengths and the scorers of reasoning-gym."""

import math
from types import SimpleNamespace

import pytest

from mmrl_core.errors import PluginError, TaskDataError
from mmrl_core.plugins import load_plugins
from mmrl_core.scoring import pass_metrics
from mmrl_text_reasoning.method_rewards import level, thinkless
from mmrl_text_reasoning.rewards import accuracy, cosine, format, overlong

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


def test_another_reward_may_say_what_is_right():
    """The last number of the second chain is the gold one, but it does not spell the word."""
    rows = [{"problem": "3 FABE", "solution": "3"}] * 4
    said = ["F6AB1E3", "E3", "FABE4", ""]
    given = {"max_length": 4, "right": (2.0, 2.0), "wrong": (0.0, 0.0)}
    assert cosine(said, rows, **given) == [2.0, 2.0, 0.0, 0.0]
    assert cosine(said, rows, **given, reward="text_reasoning/walk") == [2.0, 0.0, 0.0, 0.0]
    assert cosine(said[:1], [{"problem": "3 FABE"}], reward="text_reasoning/walk") == [None]
    modes = ["sFABE3", "tF6AB1E3", "sFABE4", "F6AB1E3"]
    paid = thinkless(modes, rows, short="s", think="t", reward="text_reasoning/walk")
    assert paid == [1.0, 0.5, -1.0, -1.0]
    with pytest.raises(PluginError, match="text_reasoning/walk"):
        cosine(said, rows, reward="text_reasoning/walked")


def test_overlong_completions_are_punished_as_in_dapo():
    lengths = [100, 16384, 18432, 20480, 20481]
    assert overlong([""] * 5, [{}] * 5, sampled(*lengths)) == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert overlong(["", ""], [{}] * 2, sampled(7, 9), max_length=10, cache=4) == [-0.25, -0.75]
    assert all(math.isfinite(score) for score in overlong([""], [{}], sampled(0)))
    with pytest.raises(ValueError, match="cache"):
        overlong([""], [{}], sampled(1), max_length=10, cache=11)


# Rewards of methods

WALK = "<think>6 * 7</think><answer>{}</answer>"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<short>42", 1.0),
        ("\n<short> so \\boxed{42}", 1.0),
        ("<think>6 * 7</think>42", 0.5),
        ("<think>42</think>", -1.0),  # nothing after the thinking
        ("<short>41", -1.0),
        ("<think>6 * 7</think>41", -1.0),
        ("42", -1.0),
        ("so <short>42", -1.0),
        ("<short>", -1.0),
        ("", -1.0),
        (None, -1.0),
    ],
)
def test_thinkless_pays_short_right_answers_most(completion, expected):
    assert thinkless([completion], [ROW]) == [expected]
    assert thinkless([completion], [{}]) == [None]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (WALK.format("42"), 0.0),
        (WALK.format("\\boxed{42}"), 0.0),
        (WALK.format("41"), -1.0),
        (WALK.format(" "), -2.0),
        ("<think>6 * 7</think> so <answer>42</answer>", -3.0),
        ("<answer>42</answer>", -3.0),
        ("42", -3.0),
        ("", -3.0),
        (None, -3.0),
    ],
)
def test_levels_of_trpa(completion, expected):
    assert level([completion], [ROW]) == [expected]
    assert level([completion], [{}]) == [None]


def test_levels_of_other_forms():
    assert level(["a\n</think>\n\\boxed{42}", "a\n</think>\nso"], [ROW] * 2, form="open_rs") == [0.0, -2.0]
    with pytest.raises(ValueError, match="form is one of"):
        level(["a"], [ROW], form="xml")


def test_pass_and_majority_of_answers_that_are_written_differently():
    """Right: 2 of 4, and the other 2 agree as well: pass@2 = 1 - 1/6, half a majority. Second prompt: 1 of 4."""
    said = [["\\boxed{1,000}", "so 1000 m.", "7", "\\boxed{7}"], ["x", "\\boxed{\\frac12}", "2", "no"]]
    golds = [{"answer": "1000"}, {"answer": "0.5"}]
    reward = load_plugins().registry.get("reward", "text_reasoning/accuracy")
    right = [[score == 1.0 for score in accuracy(texts, [row] * 4)] for texts, row in zip(said, golds, strict=True)]
    answer = reward.detail("answer")
    votes = [[answer(text, row) for text in texts] for texts, row in zip(said, golds, strict=True)]
    numbers = pass_metrics(right, votes)
    assert numbers["pass@1"] == (2 / 4 + 1 / 4) / 2 and numbers["pass@4"] == 1.0
    assert numbers["pass@2"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert numbers["maj@4"] == pytest.approx((1 / 2 + 1 / 2) / 2)  # of two answers that are said once, each a half

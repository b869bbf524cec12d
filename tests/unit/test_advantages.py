"""Advantages: golden numbers from golden/advantages.json, and the properties that hold for every input."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmrl_core import advantage_stages as S
from mmrl_core import advantages as A
from mmrl_core.errors import ConfigError
from mmrl_core.testing import make_reward_view

GOLDEN = json.loads((Path(__file__).parent / "golden" / "advantages.json").read_text())
NAN = float("nan")
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}  # float64; the golden numbers carry 13 digits


def f64(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


make_view = partial(make_reward_view, dtype=torch.float64)


def random_rewards(num_groups: int = 6, group_size: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(num_groups * group_size, generator=generator, dtype=torch.float64)
    return rewards, torch.arange(num_groups).repeat_interleave(group_size) * 10 - 7


# Golden numbers.


@pytest.mark.parametrize("case", GOLDEN["group_relative_advantages"]["cases"], ids=lambda case: case["name"])
def test_group_relative_golden(case):
    golden = GOLDEN["group_relative_advantages"]
    advantages = A.group_relative_advantages(
        f64(golden["rewards"]), torch.tensor(golden["group_ids"]), **case["options"]
    )
    torch.testing.assert_close(advantages, f64(case["advantages"]), **TOLERANCE)


def test_leave_one_out_golden():
    golden = GOLDEN["leave_one_out_advantages"]
    advantages = A.leave_one_out_advantages(f64(golden["rewards"]), torch.tensor(golden["group_ids"]))
    torch.testing.assert_close(advantages, f64(golden["advantages"]), **TOLERANCE)


def test_reinforce_plus_plus_baseline_golden():
    golden = GOLDEN["reinforce_plus_plus_baseline"]
    view = make_view(golden["rewards"], golden["group_ids"], mask=golden["mask"])
    advantages = S.whiten_stage(S.group_mean_stage(view.rewards, view), view)
    torch.testing.assert_close(advantages, f64(golden["advantages"]), **TOLERANCE)


@pytest.mark.parametrize("case", GOLDEN["discounted_returns"]["cases"], ids=lambda case: f"gamma {case['gamma']}")
def test_discounted_returns_golden(case):
    golden = GOLDEN["discounted_returns"]
    returns = A.discounted_returns(f64(golden["token_rewards"]), torch.tensor(golden["mask"]), gamma=case["gamma"])
    torch.testing.assert_close(returns, f64(case["returns"]), **TOLERANCE)


def test_normalise_each_reward_golden():
    golden = GOLDEN["normalise_each_reward"]
    view = make_view([0.0] * 4, golden["group_ids"], components=golden["components"], weights=golden["weights"])
    summed = S.normalise_each_reward_stage(view.rewards, view)
    torch.testing.assert_close(summed, f64(golden["summed"]), **TOLERANCE)
    advantages = S.normalise_over_batch_stage(summed, view)
    torch.testing.assert_close(advantages, f64(golden["then_over_batch"]), **TOLERANCE)


def test_overlong_penalty_golden():
    golden = GOLDEN["overlong_penalty"]
    penalties = A.overlong_penalty(torch.tensor(golden["lengths"]), golden["max_length"], golden["cache"])
    assert penalties.tolist() == golden["penalties"]


def test_varying_groups_golden():
    golden = GOLDEN["varying_groups"]
    varies = A.varying_groups(f64(golden["metric"]), torch.tensor(golden["group_ids"]))
    assert varies.tolist() == golden["varies"]


# Properties of comparisons within a group.

WITHIN_GROUPS = {
    "group_relative": A.group_relative_advantages,
    "batch_std": lambda *args: A.group_relative_advantages(*args, divide_by_std="batch"),
    "no_std": lambda *args: A.group_relative_advantages(*args, divide_by_std="none"),
    "leave_one_out": A.leave_one_out_advantages,
}
within_groups = pytest.mark.parametrize("function", WITHIN_GROUPS.values(), ids=WITHIN_GROUPS)


@within_groups
def test_advantages_of_a_group_sum_to_zero_and_keep_the_order_of_rewards(function):
    rewards, group_ids = random_rewards()
    advantages = function(rewards, group_ids).view(6, 5)
    torch.testing.assert_close(advantages.sum(-1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(advantages.argsort(-1), rewards.view(6, 5).argsort(-1))


@within_groups
def test_shuffled_rows_get_the_same_advantages(function):
    rewards, group_ids = random_rewards()
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(1))
    shuffled = function(rewards[order], group_ids[order])
    torch.testing.assert_close(shuffled, function(rewards, group_ids)[order], **TOLERANCE)


@within_groups
def test_adding_a_constant_to_a_group_changes_nothing(function):
    rewards, group_ids = random_rewards()
    batch_std = function is WITHIN_GROUPS["batch_std"]  # the std of the batch does see how far apart groups are
    shift = torch.full_like(rewards, 3.0) if batch_std else group_ids.double()
    torch.testing.assert_close(function(rewards + shift, group_ids), function(rewards, group_ids), **TOLERANCE)


@within_groups
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e8, 1e-9])
def test_flat_group_is_exactly_zero_beside_another(function, value):
    rewards = torch.tensor([value] * 7 + [0.0, 1.0])
    advantages = function(rewards, torch.tensor([1] * 7 + [2, 2]))
    assert advantages[:7].tolist() == [0.0] * 7
    assert advantages[8] > 0 > advantages[7]


def test_rounding_noise_in_a_flat_group_does_not_become_a_signal():
    noisy = torch.tensor([0.1 + 0.2, 0.3, 0.3 + 3e-8, 0.3])  # equal but for the last bits of float32
    assert len(noisy.unique()) > 1
    advantages = A.group_relative_advantages(noisy, torch.zeros(4, dtype=torch.int64), eps=0.0)
    assert advantages.tolist() == [0.0] * 4
    tiny = A.group_relative_advantages(torch.tensor([1e-9, 2e-9]), torch.zeros(2, dtype=torch.int64), eps=0.0)
    assert tiny[1] > 0.7  # small rewards are not noise


@within_groups
def test_group_of_one_gets_zero(function):
    advantages = function(torch.tensor([5.0, 1.0, 0.0]), torch.tensor([3, 8, 8]))
    assert advantages[0] == 0
    assert advantages[1] > 0


@within_groups
def test_unscored_completions_get_zero_and_do_not_count(function):
    rewards, group_ids = torch.tensor([1.0, NAN, 0.0, 0.0, NAN, 2.0]), torch.tensor([0, 0, 0, 0, 1, 1])
    advantages = function(rewards, group_ids)
    scored = ~rewards.isnan()
    torch.testing.assert_close(advantages[scored], function(rewards[scored], group_ids[scored]))
    assert advantages[~scored].tolist() == [0.0, 0.0]
    assert advantages[5] == 0  # its only sibling is unscored
    assert function(torch.tensor([NAN, NAN]), torch.tensor([0, 0])).tolist() == [0.0, 0.0]


@within_groups
def test_advantages_carry_no_gradient_and_keep_the_dtype(function):
    rewards = torch.tensor([1.0, 0.0], requires_grad=True)
    advantages = function(rewards, torch.tensor([0, 0]))
    assert not advantages.requires_grad
    assert advantages.dtype == torch.float32
    assert function(torch.tensor([1, 0]), torch.tensor([0, 0])).dtype == torch.float32


def test_dividing_by_std_makes_advantages_unitless_and_none_keeps_units():
    rewards, group_ids = random_rewards()
    relative = A.group_relative_advantages(rewards, group_ids, eps=0.0)
    torch.testing.assert_close(A.group_relative_advantages(rewards * 7, group_ids, eps=0.0), relative)
    torch.testing.assert_close(relative.view(6, 5).std(-1), torch.ones(6, dtype=torch.float64))
    in_units = A.group_relative_advantages(rewards, group_ids, divide_by_std="none")
    torch.testing.assert_close(A.group_relative_advantages(rewards * 7, group_ids, divide_by_std="none"), in_units * 7)


def test_leave_one_out_is_the_centred_reward_times_g_over_g_minus_1():
    rewards, group_ids = random_rewards()
    centred = A.group_relative_advantages(rewards, group_ids, divide_by_std="none")
    torch.testing.assert_close(A.leave_one_out_advantages(rewards, group_ids), centred * 5 / 4, **TOLERANCE)


def test_wrong_options_and_shapes_are_refused():
    with pytest.raises(ConfigError, match="divide_by_std is 'sigma'"):
        A.group_relative_advantages(torch.zeros(2), torch.zeros(2, dtype=torch.int64), divide_by_std="sigma")
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        A.leave_one_out_advantages(torch.zeros(3), torch.zeros(2, dtype=torch.int64))


def test_varying_groups_ignores_unscored_members_and_drops_groups_of_one():
    metric = torch.tensor([1.0, NAN, 1.0, 0.0, NAN, 1.0, 1.0, NAN])
    varies = A.varying_groups(metric, torch.tensor([0, 0, 0, 1, 1, 1, 2, 3]))
    assert varies.tolist() == [False, False, False, True, True, True, False, False]
    assert A.varying_groups(torch.tensor([True, False]), torch.tensor([0, 0])).tolist() == [True, True]


# Token level: returns and whitening.


def test_returns_equal_the_recursion_for_random_rewards():
    generator = torch.Generator().manual_seed(3)
    token_rewards = torch.randn(4, 13, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 13, generator=generator) < 0.7
    for gamma in (1.0, 0.97, 0.3):
        expected = torch.zeros(4, 13, dtype=torch.float64)
        for row in range(4):
            to_come = 0.0
            for t in reversed(range(13)):
                to_come = token_rewards[row, t] + (gamma if mask[row, t] else 1.0) * to_come
                expected[row, t] = to_come if mask[row, t] else 0.0
        torch.testing.assert_close(A.discounted_returns(token_rewards, mask, gamma=gamma), expected, **TOLERANCE)


def test_returns_pass_over_tool_text_and_padding():
    returns = A.discounted_returns(
        f64([[0.0, 0.0, 0.0, 1.0, 0.0]]), torch.tensor([[True, False, False, True, False]]), gamma=0.5
    )
    assert returns.tolist() == [[0.5, 0.0, 0.0, 1.0, 0.0]]


def test_returns_reach_earlier_rows_of_the_trajectory_and_no_other():
    returns = A.discounted_returns(
        f64([[0.0, 0.0], [0.0, 4.0], [0.0, 8.0], [2.0, 0.0]]),
        torch.tensor([[True, True], [True, True], [True, True], [True, False]]),
        gamma=0.5,
        trajectory_ids=torch.tensor([6, 2, 6, 6]),  # rows 0, 2, 3 are the turns of trajectory 6
    )
    assert returns.tolist() == [[1.125, 2.25], [2.0, 4.0], [4.5, 9.0], [2.0, 0.0]]


def test_returns_without_discount_are_the_outcome_on_every_token():
    mask = torch.arange(6) < torch.tensor([[6], [3], [1]])
    token_rewards = torch.zeros(3, 6)
    token_rewards[[0, 1, 2], [5, 2, 0]] = torch.tensor([1.0, -2.0, 3.0])
    expected = A.expand_to_tokens(torch.tensor([1.0, -2.0, 3.0]), mask)
    assert torch.equal(A.discounted_returns(token_rewards, mask), expected)


def test_whitened_values_have_mean_0_and_sample_variance_1():
    generator = torch.Generator().manual_seed(5)
    values = 3 + 2 * torch.randn(5, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 9, generator=generator) < 0.6
    whitened = A.whiten(values, mask, eps=0.0)
    torch.testing.assert_close(whitened[mask].mean(), f64(0.0), rtol=0, atol=1e-12)
    torch.testing.assert_close(whitened[mask].var(), f64(1.0), **TOLERANCE)
    assert (whitened[~mask] == 0).all()
    values[~mask] = NAN
    assert torch.equal(A.whiten(values, mask, eps=0.0), whitened)


def test_whitening_one_token_none_or_equal_ones_gives_zero():
    one = torch.tensor([[True, False]])
    assert A.whiten(torch.tensor([[5.0, 7.0]]), one).tolist() == [[0.0, 0.0]]
    assert A.whiten(torch.tensor([[5.0, 7.0]]), ~one & one).tolist() == [[0.0, 0.0]]
    equal = torch.full((1000, 1000), 0.1)
    assert (A.whiten(equal, equal > 0) == 0).all()
    assert (A.batch_normalised_advantages(equal.flatten()) == 0).all()


def test_batch_normalised_counts_each_trajectory_once():
    advantages = A.batch_normalised_advantages(f64([1.0, NAN, -1.0, 3.0]), eps=0.0)
    torch.testing.assert_close(advantages, f64([0.0, 0.0, -1.0, 1.0]), **TOLERANCE)


@pytest.mark.parametrize("statistic", ["whiten", "batch_normalised", "batch_std"])
def test_two_processes_get_the_statistics_of_the_whole_batch(statistic):
    rewards, group_ids = random_rewards()
    rewards = rewards + 5
    run = {
        "whiten": lambda part, **more: A.whiten(rewards[part], ~rewards[part].isnan(), **more),
        "batch_normalised": lambda part, **more: A.batch_normalised_advantages(rewards[part], **more),
        "batch_std": lambda part, **more: A.group_relative_advantages(
            rewards[part], group_ids[part], divide_by_std="batch", **more
        ),
    }[statistic]
    halves = [slice(0, 10), slice(10, 30)]

    def recorded(part, answers):
        """Run one process; its n-th reduction returns answers[n], or for want of one what it was given."""
        given = []

        def reduce_sum(tensor):
            given.append(tensor)
            return answers[len(given) - 1] if len(given) <= len(answers) else tensor

        return run(part, reduce_sum=reduce_sum), given

    answers = []
    for _ in range(2):  # each pass learns one more of the sums that both processes agree on
        sent = [recorded(part, answers)[1] for part in halves]
        answers.append(sent[0][len(answers)] + sent[1][len(answers)])
    both = torch.cat([recorded(part, answers)[0] for part in halves])
    torch.testing.assert_close(both, run(slice(0, 30)), **TOLERANCE)
    assert not torch.allclose(torch.cat([run(part) for part in halves]), both)


def test_expand_to_tokens_leaves_untrained_tokens_zero_even_if_nan():
    mask = torch.tensor([[True, False], [False, False]])
    assert A.expand_to_tokens(torch.tensor([2.0, NAN]), mask).tolist() == [[2.0, 0.0], [0.0, 0.0]]
    tokens = torch.tensor([[1.0, NAN], [NAN, NAN]])
    assert A.expand_to_tokens(tokens, mask).tolist() == [[1.0, 0.0], [0.0, 0.0]]


# Stages.


def test_a_trajectory_counts_once_however_many_rows_it_has():
    once = make_view([1.0, 0.0, 0.0], [5, 5, 5])
    rows = make_view([0.0, 1.0, 1.0, 1.0, 0.0], [5] * 5, trajectory_ids=[8, 3, 3, 3, 1])
    for stage in (S.group_relative_stage, S.group_mean_stage, S.leave_one_out_stage, S.normalise_over_batch_stage):
        expected = stage(once.rewards, once)[[1, 0, 0, 0, 2]]
        torch.testing.assert_close(stage(rows.rewards, rows), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("stage", "function"),
    [
        (S.group_relative_stage, A.group_relative_advantages),
        (S.leave_one_out_stage, A.leave_one_out_advantages),
        (S.group_mean_stage, lambda *args: A.group_relative_advantages(*args, divide_by_std="none")),
    ],
)
def test_stages_equal_their_function_on_single_turn_batches(stage, function):
    rewards, group_ids = random_rewards()
    view = make_view(rewards.tolist(), group_ids.tolist())
    assert torch.equal(stage(view.rewards, view), function(rewards, group_ids))


@pytest.mark.parametrize(
    ("stage", "function", "options"),
    [
        (S.group_relative_stage, A.group_relative_advantages, {"divide_by_std": "none"}),
        (S.group_relative_stage, A.group_relative_advantages, {"divide_by_std": "batch", "eps": 0.5}),
        (
            S.normalise_over_batch_stage,
            lambda rewards, _, **more: A.batch_normalised_advantages(rewards, **more),
            {"eps": 0.5},
        ),
        (
            S.whiten_stage,
            lambda rewards, _, **more: A.whiten(rewards, rewards.isfinite(), **more)[:, None],
            {"eps": 0.5},
        ),
    ],
)
def test_stages_pass_their_options_on(stage, function, options):
    rewards, group_ids = random_rewards()
    view = make_view(rewards.tolist(), group_ids.tolist())
    if "eps" in options:  # these have statistics over the batch
        options = {**options, "reduce_sum": lambda tensor: 2 * tensor}
    torch.testing.assert_close(stage(rewards, view, **options), function(rewards, group_ids, **options), **TOLERANCE)


def test_reinforce_plus_plus_whitens_returns_over_scored_tokens():
    view = make_view(
        [1.0, 0.0, NAN],
        [0, 1, 2],
        mask=[[True, True], [True, False], [True, True]],
        token_rewards=[[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]],
    )
    returns = S.discounted_returns_stage(view.rewards, view)
    assert returns.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    advantages = S.whiten_stage(returns, view)
    third = 1 / 3
    scale = (third + 1e-8) ** -0.5  # values 1, 1, 0: mean 2/3, sample variance 1/3
    expected = f64([[third * scale, third * scale], [-2 * third * scale, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(advantages, expected, **TOLERANCE)


def test_returns_stage_uses_the_turns_of_a_trajectory():
    view = make_view([1.0, 1.0], [0, 0], trajectory_ids=[4, 4], mask=[[True], [True]], token_rewards=[[0.0], [1.0]])
    assert S.discounted_returns_stage(view.rewards, view, gamma=0.5).tolist() == [[0.5], [1.0]]


def test_later_stages_do_not_count_the_zeros_of_unscored_trajectories():
    view = make_view([1.0, 0.0, NAN, 4.0, 0.0, NAN], [0, 0, 0, 1, 1, 1])
    scored = make_view([1.0, 0.0, 4.0, 0.0], [0, 0, 1, 1])
    for later in (S.normalise_over_batch_stage, S.leave_one_out_stage):
        advantages = later(S.group_mean_stage(view.rewards, view), view)
        expected = later(S.group_mean_stage(scored.rewards, scored), scored)
        torch.testing.assert_close(advantages[[0, 1, 3, 4]], expected, **TOLERANCE)
        assert advantages[[2, 5]].tolist() == [0.0, 0.0]


def test_an_unscored_component_adds_nothing():
    view = make_view(
        [1.0, 0.0, 5.0],
        [0, 0, 0],
        components={"accuracy": [1.0, 0.0, NAN], "format": [2.0, 2.0, 2.0]},
        weights={"accuracy": 2.0, "format": 1.0},
    )
    advantages = S.normalise_each_reward_stage(view.rewards, view, eps=0.0)
    torch.testing.assert_close(advantages, f64([2**0.5, -(2**0.5), 0.0]), **TOLERANCE)


def test_a_component_without_a_weight_is_named():
    """As a plugin may leave one: it would be added with a weight that nobody gave it, or left out in silence."""
    components = {"accuracy": [1.0, 0.0], "bonus": [0.0, 1.0]}
    view = make_view([1.0, 0.0], [0, 0], components=components, weights={"accuracy": 2.0})
    with pytest.raises(ConfigError, match=r"by their weights, and 'bonus' has none.*Scores\.with_component"):
        S.normalise_each_reward_stage(view.rewards, view)


@pytest.mark.parametrize("stage", [S.group_relative_stage, S.leave_one_out_stage, S.normalise_over_batch_stage])
def test_comparing_trajectories_after_token_stages_is_refused(stage):
    view = make_view([1.0, 0.0], [0, 0])
    with pytest.raises(ConfigError, match=r"shape \(2, 1\).*put it before"):
        stage(torch.zeros(2, 1), view)


def test_comparing_trajectories_whose_rows_differ_is_refused():
    view = make_view([1.0, 1.0, 0.0], [0, 0, 0], trajectory_ids=[0, 0, 1])
    with pytest.raises(ConfigError, match="rows of one trajectory different"):
        S.group_relative_stage(f64([1.0, 0.5, 0.0]), view)

"""What users of TRL and verl look for: losses and stages by worked numbers, values and gradients, and against TRL."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from mmrl_core.config import AlgorithmConfig, Component
from mmrl_core.errors import ConfigError
from mmrl_core.policy_loss import policy_loss
from mmrl_core.testing import make_loss_inputs, make_reward_view
from mmrl_core.types import LOSS_MASK, Batch, Row
from mmrl_text_reasoning.methods import menu
from mmrl_text_reasoning.methods.covariance import KL_COV, ClipCov, KLCov, covariances, kl_cov
from mmrl_text_reasoning.methods.remax import greedy_baseline

NAN = float("nan")
# Ratios are 1.349859, 1 for the good row, and 1, 0.818731 for the bad one.
LOGPROBS, OLD, ADVANTAGES = [[-0.5, -1.0], [-1.0, -0.7]], [[-0.8, -1.0], [-1.0, -0.5]], [1.0, -1.0]


def loss_of(surrogate, inputs, aggregate, unit="token", **options):
    """Value, gradient by logprob, metrics."""
    algorithm = AlgorithmConfig(loss=Component(name="x"), aggregate=aggregate)
    loss, metrics = policy_loss(inputs, algorithm, partial(surrogate, **options), unit=unit)
    (gradient,) = torch.autograd.grad(loss, inputs.logprobs)
    return loss.item(), gradient, metrics


def worked(**changes):
    logprobs = torch.tensor(LOGPROBS, dtype=torch.float64, requires_grad=True)
    inputs = make_loss_inputs(logprobs, old_logprobs=OLD, advantages=ADVANTAGES, dtype=torch.float64)
    return replace(inputs, **changes)


CASES = {
    # -A * 4 sigmoid(t (w - 1)) / t; its derivative by logprob is -A * 4 sigmoid (1 - sigmoid) w, so -A at w = 1.
    "sapo": (menu.sapo, "sequence_mean", {}, -0.179383, [[-0.327345, -0.25], [0.25, 0.202840]]),
    # exp(0.15) and exp(-0.1), halved over two tokens and again over two rows.
    "gmpo": (menu.gmpo, "sequence_mean", {}, -0.128498, [[-0.290458, -0.290458], [0.226209, 0.226209]]),
    # 0.3 is bounded to 0.2 and -0.2 to -0.1: exp(0.1), exp(-0.05), and those tokens have no gradient.
    "gmpo, bounded": (
        menu.gmpo,
        "sequence_mean",
        {"clip_low": 0.1, "clip_high": 0.2},
        -0.076971,
        [[0.0, -0.276293], [0.237807, 0.0]],
    ),
    # (-2 exp(0.15) + 2 exp(-0.1)) / 2; each token has half of its row's ratio times its two tokens, over two rows.
    "luspo": (
        menu.luspo,
        "sequence_mean",
        {"clip_low": 0.2, "clip_high": 0.28},
        -0.256997,
        [[-0.580917, -0.580917], [0.452419, 0.452419]],
    ),
    "luspo, published range": (menu.luspo, "sequence_mean", {}, -0.0007, [[0.0, 0.0], [0.0, 0.0]]),
    # Chances move by 0.157 and 0.110: the first token is left out. (1 * 1 - 1 * 1 - 0.818731 * 0.7) / 4.
    "dppo": (menu.dppo, "token_mean", {}, -0.143278, [[0.0, -0.25], [0.25, 0.204683]]),
    # KL of the chance and the rest: 0.0503 and 0.0244.
    "dppo, kl": (
        menu.dppo,
        "token_mean",
        {"divergence": "kl", "high": 0.05, "low": 0.025},
        -0.143278,
        [[0.0, -0.25], [0.25, 0.204683]],
    ),
    "dppo, both left out": (
        menu.dppo,
        "token_mean",
        {"divergence": "kl", "high": 0.05, "low": 0.024},
        0.0,
        [[0.0, -0.25], [0.25, 0.0]],
    ),
    "dppo, capped": (
        menu.dppo,
        "token_mean",
        {"high": 0.2, "ratio_cap": 0.9},
        (0.9 * 0.5 + 0.9 * 1.0 - 0.9 * 1.0 - 0.818731 * 0.7) / 4,
        [[-0.225, -0.225], [0.225, 0.204683]],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_worked_numbers_of_losses(name):
    surrogate, aggregate, options, value, gradient = CASES[name]
    unit = "row" if surrogate is menu.gmpo else "token"
    found, slopes, metrics = loss_of(surrogate, worked(), aggregate, unit, **options)
    assert found == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close(slopes, torch.tensor(gradient, dtype=torch.float64), rtol=0, atol=1e-6)
    assert all(math.isfinite(float(number)) for number in metrics.values())


def test_shares_of_bounded_and_left_out_tokens():
    assert float(loss_of(menu.gmpo, worked(), "sequence_mean", "row", clip_high=0.2)[2]["clipped"]) == 0.25
    assert float(loss_of(menu.dppo, worked(), "token_mean")[2]["masked"]) == 0.25


def test_padding_counts_for_nothing():
    """The rows with a third token that is not trained, whatever stands there."""
    mask = torch.tensor([[True, True, False]] * 2)
    for name, (surrogate, aggregate, options, value, _) in CASES.items():
        logprobs = torch.tensor([[*row, -9.0] for row in LOGPROBS], dtype=torch.float64, requires_grad=True)
        old = torch.tensor([[*row, -1.0] for row in OLD], dtype=torch.float64)
        inputs = make_loss_inputs(logprobs, old_logprobs=old, advantages=ADVANTAGES, mask=mask, dtype=torch.float64)
        unit = "row" if surrogate is menu.gmpo else "token"
        found, slopes, _ = loss_of(surrogate, inputs, aggregate, unit, **options)
        assert found == pytest.approx(value, abs=1e-6), name
        assert slopes[:, 2].tolist() == [0.0, 0.0], name


def test_a_loss_with_a_ratio_for_each_row_refuses_advantages_by_token():
    inputs = worked(advantages=torch.tensor([[1.0, 0.5], [-1.0, -1.0]], dtype=torch.float64))
    with pytest.raises(ConfigError, match="advantages that are equal over its tokens"):
        loss_of(menu.gmpo, inputs, "sequence_mean", "row")


# TRL


def test_losses_equal_those_of_trl(monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gmpo import GMPOTrainer

    from tests.unit.test_losses_against_trl import TOLERANCE, random_inputs, trl_loss

    temperatures = {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
    by_row = {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon_low": 0.1, "epsilon_high": 0.15}
    table = [
        (menu.sapo, {}, {"loss_type": "sapo", "args": temperatures}),
        (menu.luspo, {"clip_low": 0.1, "clip_high": 0.15}, by_row),
        (
            menu.gmpo,
            {"clip_low": 0.2, "clip_high": 0.25},
            {"trainer_class": GMPOTrainer, "epsilon_low": 0.2, "epsilon_high": 0.25},
        ),
    ]
    for surrogate, ours, theirs in table:
        inputs = random_inputs()
        value, gradient, _ = trl_loss(inputs, **theirs)
        given = replace(inputs, logprobs=inputs.logprobs.clone().requires_grad_())
        unit = "row" if surrogate is menu.gmpo else "token"
        found, slopes, _ = loss_of(surrogate, given, "sequence_mean", unit, **ours)
        assert found == pytest.approx(value.item(), rel=1e-6), surrogate.__name__
        torch.testing.assert_close(slopes, gradient, **TOLERANCE)
        assert gradient.abs().max() > 0


# Advantage stages


@pytest.mark.parametrize(
    ("rewards", "lengths", "expected"),
    [
        ([1.0, 0.0, 0.0, 1.0], [2, 3, 1, 4], [0.4, -0.6, -0.6, 0.4]),  # (2 + 4) / 10
        ([1.0, NAN, 0.0, 1.0], [2, 3, 1, 4], [1 / 7, 0.0, -6 / 7, 1 / 7]),  # (2 + 4) / 7
        ([1.0, 1.0, 1.0, 1.0], [2, 3, 1, 4], [0.0] * 4),
        ([1.0, 0.0, 0.0, 1.0], [3, 3, 3, 3], [0.5, -0.5, -0.5, 0.5]),  # of equal length: the mean
    ],
)
def test_the_optimal_baseline_weighs_by_length(rewards, lengths, expected):
    view = make_reward_view(rewards, mask=torch.arange(4) < torch.tensor(lengths)[:, None])
    found = menu.optimal_baseline(view.rewards, view)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    if not any(map(math.isnan, rewards)):
        assert float((found * torch.tensor(lengths)).sum()) == pytest.approx(0.0, abs=1e-5)


def test_the_optimal_baseline_counts_all_rows_of_a_trajectory():
    """Two rows of two tokens are one answer of four: baseline 4 / 5."""
    view = make_reward_view([1.0, 1.0, 0.0], trajectory_ids=[0, 0, 1], mask=[[True, True], [True, True], [True, False]])
    assert menu.optimal_baseline(view.rewards, view).tolist() == pytest.approx([0.2, 0.2, -0.8])


def test_pass_at_k_worked_numbers():
    """One of four is right, k = 2: m = 1 - 3/6, s = 1/2; a wrong one has (1/2 - 2/3) / s."""
    view = make_reward_view([1.0, 0.0, 0.0, 0.0])
    assert menu.pass_at_k(view.rewards, view, k=2).tolist() == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    for flat in ([0.0] * 4, [1.0, 1.0, 1.0, 0.0]):  # no pair is right, and every pair is
        view = make_reward_view(flat)
        assert menu.pass_at_k(view.rewards, view, k=2).tolist() == [0.0] * 4
    view = make_reward_view([1.0, NAN, 0.0, 0.0])
    assert menu.pass_at_k(view.rewards, view, k=1).tolist()[1] == 0.0
    with pytest.raises(ConfigError, match="3 scored answers, fewer than k=4"):
        menu.pass_at_k(view.rewards, view, k=4)


@pytest.mark.parametrize(("num_right", "k"), [(1, 2), (2, 3), (3, 2), (2, 5)])
def test_pass_at_k_is_the_mean_over_all_subsets_of_an_answer(num_right, k):
    rewards = [1.0] * num_right + [0.0] * (6 - num_right)
    subsets = list(itertools.combinations(range(6), k))
    paid = {subset: max(rewards[index] for index in subset) for subset in subsets}
    mean = sum(paid.values()) / len(paid)
    std = math.sqrt(mean * (1 - mean))
    view = make_reward_view(rewards)
    found = menu.pass_at_k(view.rewards, view, k=k).tolist()
    for index in range(6):
        mine = [(value - mean) / std for subset, value in paid.items() if index in subset] if std else [0.0]
        assert found[index] == pytest.approx(sum(mine) / len(mine), abs=1e-6)


def test_groups_that_vary_are_scaled_for_those_that_do_not():
    view = make_reward_view([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1, 2, 2])
    centred = torch.tensor([0.5, -0.5, 0.0, 0.0, 0.0, 0.0])
    assert menu.scaled_by_valid_groups(centred, view).tolist() == [1.5, -1.5, 0.0, 0.0, 0.0, 0.0]
    elsewhere = torch.tensor([4, 6])  # another process has six rows, four of them in groups that vary
    scaled = menu.scaled_by_valid_groups(centred, view, reduce_sum=lambda counts: counts + elsewhere)
    assert scaled.tolist() == [1.0, -1.0, 0.0, 0.0, 0.0, 0.0]
    flat = make_reward_view([1.0, 1.0], [0, 0])
    assert menu.scaled_by_valid_groups(torch.zeros(2), flat).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1.0, 0.0, 0.5, 0.0, 1.0, 1.0], [0.5, -0.5, 0.0, -1.0, 0.0, 0.0]),
        ([1.0, 0.0, NAN, NAN, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]),  # a baseline is missing; an answer is
    ],
)
def test_the_greedy_answer_is_the_baseline(rewards, expected):
    names = ["p/0", "p/1", "p/greedy", "q/0", "q/1", "q/greedy"]
    rows = [Row(name[0], name, None, torch.zeros(1), 1) for name in names]
    view = replace(make_reward_view(rewards, [0, 0, 0, 1, 1, 1]), rows=rows)
    assert greedy_baseline(view.rewards, view).tolist() == expected


# Covariances: (A - 0) * (logprob + 0.8) on each of four tokens: 0.3, -0.2; 0.2, -0.1.


def make_batch():
    return Batch(
        rows=[Row("p", str(index), None, torch.zeros(2), 2) for index in range(2)],
        group_ids=torch.zeros(2, dtype=torch.int64),
        trajectory_ids=torch.arange(2),
        masks={LOSS_MASK: torch.tensor([[True, True, False]] * 2)},
        advantages=torch.tensor([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0]]),
        rewards=torch.zeros(2),
        columns={"logprobs": torch.tensor([[*row, -50.0] for row in LOGPROBS])},
    )


def changed(call):
    next(call)
    with pytest.raises(StopIteration) as stop:
        call.send(make_batch())
    return stop.value.value


def run_at(step):
    return SimpleNamespace(config=SimpleNamespace(seed=0), state=SimpleNamespace(step=step), counts=Counter())


def test_covariances_are_centred_over_trained_tokens():
    expected = torch.tensor([[0.3, -0.2, 0.0], [0.2, -0.1, 0.0]])
    torch.testing.assert_close(covariances(make_batch()), expected)


def test_clip_cov_leaves_out_tokens_within_its_range():
    run = run_at(0)
    batch = changed(ClipCov(low=0.1, high=0.25).mmrl_batch(run, make_batch()))
    assert batch.mask.tolist() == [[True, True, False], [False, True, False]]
    assert batch.advantages.tolist() == [[1.0, 1.0, 0.0], [0.0, -1.0, 0.0]]
    assert run.counts["clip_cov"] == 1
    both = changed(ClipCov(share=0.5, low=0.1, high=1.0).mmrl_batch(run_at(0), make_batch()))
    assert int(both.mask.sum()) == 2
    drawn = {str(changed(ClipCov(low=0.1, high=1.0).mmrl_batch(run_at(s), make_batch())).mask) for s in range(9)}
    assert len(drawn) == 2  # one of the two, by the step
    none = changed(ClipCov(low=5.0, high=9.0).mmrl_batch(run_at(0), make_batch()))
    assert int(none.mask.sum()) == 4


@pytest.mark.parametrize(("share", "marked"), [(2e-4, [[1, 0, 0], [0, 0, 0]]), (0.5, [[1, 0, 0], [1, 0, 0]])])
def test_kl_cov_marks_the_highest(share, marked):
    batch = changed(KLCov(share=share).mmrl_batch(make_batch()))
    assert batch.columns[KL_COV].tolist() == marked and batch.mask.equal(make_batch().mask)


def test_kl_cov_worked_numbers():
    """(-1.349859 - 1 + 1 + 0.818731 + 2 * (0.3 + 0.2)) / 4 with the first and the last token marked."""
    inputs = worked(columns={KL_COV: torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)})
    value, gradient, _ = loss_of(kl_cov, inputs, "token_mean", weight=2.0)
    assert value == pytest.approx(0.117218, abs=1e-6)
    expected = torch.tensor([[0.162535, -0.25], [0.25, -0.295317]], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match="needs the behaviour text_reasoning/kl_cov"):
        loss_of(kl_cov, worked(), "token_mean")

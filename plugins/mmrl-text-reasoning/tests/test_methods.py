"""Published methods against the worked numbers of their sources, values and gradients."""

import itertools
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from mmrl_core.advantages import group_relative_advantages
from mmrl_core.config import AlgorithmConfig, Component
from mmrl_core.losses import clipped
from mmrl_core.methods import ScoreInputs
from mmrl_core.policy_loss import policy_loss
from mmrl_core.run import TrainState
from mmrl_core.testing import make_group, make_loss_inputs
from mmrl_core.types import LOSS_MASK, Batch, RewardView, Row, Scores
from mmrl_text_reasoning.methods.d3s import D3S, informative_tokens, most_varied
from mmrl_text_reasoning.methods.degrpo import degrpo
from mmrl_text_reasoning.methods.drpo import drpo
from mmrl_text_reasoning.methods.rec import rec, red_drop, shifted_baseline
from mmrl_text_reasoning.methods.trpa import trpa
from mmrl_text_reasoning.methods.unlikeliness import Unlikeliness, rank_shares

W_LOGPROBS = [[-0.5, -1.0], [-1.0, -0.7]]
W_OLD = [[-0.8, -1.0], [-1.0, -0.5]]


def score_inputs(scores, rewards, *, lengths=None, groups=None, old=None, reference=None):
    scores = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor(lengths or [1] * len(scores), dtype=torch.float64)
    groups = torch.tensor(groups or [0] * len(scores))
    rewards = torch.tensor(rewards, dtype=torch.float64)
    return ScoreInputs(
        scores=scores,
        lengths=lengths,
        group_ids=groups,
        rewards=rewards,
        components={"level": rewards},
        advantages=torch.zeros(len(scores)),
        old_scores=scores.detach() if old is None else torch.tensor(old, dtype=torch.float64),
        frozen_scores={"reference": torch.tensor(reference or [0.0] * len(scores), dtype=torch.float64)},
        num_groups=float(len(groups.unique())),
        num_trajectories=float(len(scores)),
        num_tokens=float(lengths.sum()),
    )


def gradient(loss, inputs):
    (found,) = torch.autograd.grad(loss, inputs.scores)
    return found.tolist()


# DRPO


def test_drpo_worked_numbers():
    inputs = score_inputs([-0.5, -1.0, -0.8], [1.0, 1.0, 0.0], lengths=[2, 4, 3])
    loss, metrics = drpo(inputs, max_length=10)
    assert loss.item() == pytest.approx(-0.240398, abs=1e-6)
    assert gradient(loss, inputs) == pytest.approx([-0.880797, -0.119203, 1.0], abs=1e-6)
    assert metrics["drpo_prompts"] == 1 and metrics["kl_guard"] == 0


def test_drpo_counts_all_prompts_and_has_no_gradient_for_one_sided_ones():
    inputs = score_inputs(
        [-0.5, -1.0, -0.8, -0.3, -0.4], [1, 1, 0, 1, 1], lengths=[2, 4, 3, 2, 2], groups=[0, 0, 0, 1, 1]
    )
    loss, _ = drpo(inputs, max_length=10)
    assert loss.item() == pytest.approx(-0.240398 / 2, abs=1e-6)
    assert gradient(loss, inputs)[3:] == [0.0, 0.0]


def test_drpo_never_pushes_a_right_answer_down():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        scores = (-torch.rand(6, generator=generator)).tolist()
        rewards = torch.randint(0, 2, (6,), generator=generator).tolist()
        lengths = torch.randint(1, 50, (6,), generator=generator).tolist()
        inputs = score_inputs(scores, [float(r) for r in rewards], lengths=lengths)
        loss, _ = drpo(inputs, max_length=50)
        assert all(slope <= 0 for slope, right in zip(gradient(loss, inputs), rewards, strict=True) if right)


def test_drpo_guard_is_a_hinge_on_the_drift():
    """K = (2 * 0.1 + 3 * 0) / 5 = 0.04 nats a token; w = 1000 * (0.04 - 1e-4) = 39.9; dK/ds = -n / 5."""
    inputs = score_inputs([-0.6, -0.8], [1.0, 1.0], lengths=[2, 3], old=[-0.5, -0.8])
    loss, metrics = drpo(inputs, max_length=10)
    assert float(metrics["kl_guard"]) == pytest.approx(39.9)
    assert loss.item() == pytest.approx(39.9 * 0.04)
    assert gradient(loss, inputs) == pytest.approx([-39.9 * 0.4, -39.9 * 0.6])


# TRPA


def test_trpa_worked_numbers():
    inputs = score_inputs([0.2, -0.1], [1.0, 0.0])
    loss, metrics = trpa(inputs)
    assert loss.item() == pytest.approx(0.656350, abs=1e-6) and metrics["pairs"] == 1
    assert gradient(loss, inputs) == pytest.approx([-0.120315, 0.120315], abs=1e-6)


def test_trpa_without_a_pair():
    loss, _ = trpa(score_inputs([0.2, -0.1], [1.0, 1.0]))
    assert loss.item() == pytest.approx((0.598139 + 0.744397) / 2, abs=1e-6)


def test_trpa_reads_levels_alone_and_subtracts_the_reference():
    levels, scores, reference = [0.0, -1.0, -3.0, -1.0], [-1.0, -0.5, -0.7, -0.2], [-0.8, -0.6, -0.7, -0.4]
    loss, _ = trpa(score_inputs(scores, levels, reference=reference), best=0.0)
    scaled, _ = trpa(score_inputs(scores, [level * 100 for level in levels], reference=reference), best=0.0)
    assert loss.item() == scaled.item()
    h = [score - ref for score, ref in zip(scores, reference, strict=True)]
    terms = []
    for i, j in itertools.permutations(range(4), 2):
        if levels[i] > levels[j]:
            margin = torch.tensor(0.1 * (2.5 if levels[i] == 0 else 1.0) * (h[i] - h[j]), dtype=torch.float64)
            terms.append(-torch.nn.functional.logsigmoid(margin).item())
    assert len(terms) == 5 and loss.item() == pytest.approx(sum(terms) / 5)


def test_trpa_leaves_unscored_answers_out():
    inputs = score_inputs([0.2, -0.1, 5.0], [1.0, 0.0, float("nan")])
    loss, _ = trpa(inputs)
    assert loss.item() == pytest.approx(0.656350, abs=1e-6) and gradient(loss, inputs)[2] == 0.0


# D3S


def test_d3s_keeps_the_rollouts_with_the_most_varied_advantages():
    values = torch.tensor([1.5, -0.5, -0.4, -0.6, 0.1, 0.2, -1.2, 0.9])
    kept = most_varied(values, 4)
    assert kept.tolist() == [0, 3, 6, 7]
    assert float(values[kept].var(correction=0)) == pytest.approx(1.1925)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("number", [1, 3, 5, 8])
def test_d3s_finds_what_trying_every_subset_finds(seed, number):
    values = torch.randn(8, generator=torch.Generator().manual_seed(seed))
    best = max(float(values[list(some)].var(correction=0)) for some in itertools.combinations(range(8), number))
    assert float(values[most_varied(values, number)].var(correction=0)) == pytest.approx(best)


def make_batch(advantages, entropy, lengths=None):
    width = len(entropy[0])
    lengths = lengths or [width] * len(entropy)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    rows = [Row("p", str(i), None, torch.zeros(n), n) for i, n in enumerate(lengths)]
    return Batch(
        rows=rows,
        group_ids=torch.zeros(len(rows), dtype=torch.int64),
        trajectory_ids=torch.arange(len(rows)),
        masks={LOSS_MASK: mask},
        advantages=torch.tensor(advantages)[:, None] * mask,
        rewards=torch.zeros(len(rows)),
        columns={"entropy": torch.tensor(entropy)},
    )


def test_d3s_keeps_the_most_informative_tokens():
    """Scores |A| H: 0.15, 1.35; 0.6, 0.24. Half of the four tokens are kept."""
    batch = informative_tokens(make_batch([1.5, -1.2], [[0.1, 0.9], [0.5, 0.2]]), 0.5)
    assert batch.mask.tolist() == [[False, True], [True, False]]
    assert batch.advantages[0, 0] == 0 and batch.advantages[0, 1] == 1.5


@pytest.mark.parametrize(("step", "rows", "tokens"), [(0, 2, 1), (24, 4, 3), (96, 8, 16), (200, 8, 16)])
def test_d3s_moves_from_few_to_all(step, rows, tokens):
    """At a quarter of the schedule 0.25 -> 1 gives 0.4375 of 8 rollouts, rounded up, and 0.05 -> 1 gives 0.2875."""
    method = D3S(samples_from=0.25, tokens_from=0.05, steps=96)
    batch = make_batch([1.5, -0.5, -0.4, -0.6, 0.1, 0.2, -1.2, 0.9], [[0.5, 0.3]] * 8)

    call = method.mmrl_batch(SimpleNamespace(state=TrainState(stage_step=step)), batch)
    next(call)
    with pytest.raises(StopIteration) as stop:
        call.send(batch)
    kept = stop.value.value
    assert len(kept) == rows
    assert int(kept.mask.sum()) == tokens


# Unlikeliness


def rollouts_with(logprobs):
    group = make_group(["x"] * len(logprobs), num_actions=[1] * len(logprobs))
    rollouts = [
        replace(rollout, rows=[replace(rollout.rows[0], sampler_logprobs=torch.tensor([value]))])
        for rollout, value in zip(group.rollouts, logprobs, strict=True)
    ]
    return replace(group, rollouts=rollouts)


def shaped(rewards, logprobs, **options):
    group = rollouts_with(logprobs)
    call = Unlikeliness(**options).mmrl_shape_rewards([group])
    next(call)
    with pytest.raises(StopIteration) as stop:
        call.send(Scores(torch.tensor(rewards), {"accuracy": torch.tensor(rewards)}, {"accuracy": 1.0}))
    return stop.value.value


@pytest.mark.parametrize(
    ("rewards", "logprobs", "paid", "advantages"),
    [
        (
            [1.0, 1.0, 0.0, 1.0],
            [-0.2, -1.5, -0.7, -0.4],
            [0.8125, 1, 0, 0.875],
            [0.309304, 0.721709, -1.477785, 0.446772],
        ),
        ([1.0] * 4, [-0.1, -0.2, -0.3, -0.4], [0.8125, 0.875, 0.9375, 1.0], [-1.161882, -0.387294, 0.387294, 1.161882]),
        ([0.0] * 4, [-0.1, -0.2, -0.3, -0.4], [0.0] * 4, [0.0] * 4),
    ],
)
def test_unlikeliness_worked_numbers(rewards, logprobs, paid, advantages):
    totals = shaped(rewards, logprobs).totals
    assert totals.tolist() == pytest.approx(paid)
    found = group_relative_advantages(totals, torch.zeros(4, dtype=torch.int64), eps=1e-6)
    assert found.tolist() == pytest.approx(advantages, abs=2e-5)


def test_unlikeliness_without_weight_changes_nothing_and_unscored_stays_unscored():
    assert shaped([1.0, 0.5], [-1.0, -2.0], beta=0.0).totals.tolist() == [1.0, 0.5]
    assert shaped([float("nan"), 1.0], [-1.0, -2.0]).totals.isnan().tolist() == [True, False]
    assert shaped([-1.0, -2.0], [-1.0, -2.0]).totals.tolist() == [-1.0, -2.0]


def test_the_least_likely_answer_has_rank_0():
    assert rank_shares(rollouts_with([-0.2, -1.5, -0.7, -0.4]).rollouts) == [0.75, 0.0, 0.25, 0.5]


# Thinkless, REC


def w(advantages=(1.0, -1.0)):
    logprobs = torch.tensor(W_LOGPROBS, dtype=torch.float64, requires_grad=True)
    old = torch.tensor(W_OLD, dtype=torch.float64)
    return make_loss_inputs(logprobs, old_logprobs=old, advantages=list(advantages), dtype=torch.float64), logprobs


def loss_of(surrogate, inputs, aggregate="token_mean", **options):
    algorithm = AlgorithmConfig(loss=Component(name="x"), aggregate=aggregate)
    loss, _ = policy_loss(inputs, algorithm, partial(surrogate, **options))
    return loss


def test_degrpo_worked_numbers():
    inputs, logprobs = w()
    loss = loss_of(degrpo, inputs)
    assert loss.item() == pytest.approx(-0.0907346, abs=2e-7)
    (found,) = torch.autograd.grad(loss, inputs.logprobs)
    expected = torch.tensor([[0.0, -0.5], [0.0005, 0.409365]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert logprobs.shape == (2, 2)


def test_degrpo_of_rows_with_one_token():
    inputs = make_loss_inputs([[-1.0], [-2.0]], advantages=[1.0, -1.0])
    assert loss_of(degrpo, inputs, alpha=0.5).item() == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("options", "expected"), [({"mask": "none"}, -0.05), ({"mask": "one_side"}, -0.175), ({"mask": "two_side"}, -0.175)]
)
def test_rec_worked_numbers(options, expected):
    inputs, _ = w()
    # (0.5 + 1.0 - 1.0 - 0.7) / 4; without the first token, whose ratio is 1.35, (1.0 - 1.0 - 0.7) / 4
    assert loss_of(rec, inputs, **options).item() == pytest.approx(expected)


def test_rec_weights_of_advantages():
    inputs, _ = w()
    e = torch.tensor(1.0).exp().item()
    assert loss_of(rec, inputs, mask="none", weight="advantage").item() == pytest.approx((1.5 * e - 1.7 / e) / 4)


@pytest.mark.parametrize("seed", range(5))
def test_one_side_with_ratios_has_the_gradient_of_the_clipped_loss(seed):
    generator = torch.Generator().manual_seed(seed)
    logprobs = -torch.rand(4, 6, generator=generator, dtype=torch.float64)
    old = logprobs + 0.5 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    advantages = torch.randn(4, generator=generator).tolist()
    gradients = []
    for surrogate, options in ((clipped, {}), (rec, {"mask": "one_side", "weight": "ratio"})):
        given = logprobs.clone().requires_grad_()
        inputs = make_loss_inputs(given, old_logprobs=old, advantages=advantages, dtype=torch.float64)
        (found,) = torch.autograd.grad(loss_of(surrogate, inputs, **options), inputs.logprobs)
        gradients.append(found)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_the_ring_keeps_what_is_far_on_the_other_side():
    ratios = torch.tensor([[1.0, 0.3, 3.5, 0.7]], dtype=torch.float64)
    for advantage, kept in ((1.0, [1, 1, 0, 0]), (-1.0, [1, 0, 1, 0])):
        logprobs = ratios.log().requires_grad_()
        inputs = make_loss_inputs(logprobs, old_logprobs=torch.zeros(1, 4), advantages=[advantage], dtype=torch.float64)
        (found,) = torch.autograd.grad(loss_of(rec, inputs, mask="ring"), inputs.logprobs)
        assert (found[0] != 0).int().tolist() == kept


def test_regularisers_of_rec():
    inputs, _ = w()
    plain = loss_of(rec, inputs, mask="none").item()
    squares = (0.3**2 + 0.2**2) / 4
    assert loss_of(rec, inputs, mask="none", k2=0.5).item() == pytest.approx(plain + 0.5 * squares)
    assert loss_of(rec, inputs, mask="none", forward_kl=0.1).item() == pytest.approx(plain + 0.1 * 3.2 / 4)
    assert loss_of(rec, inputs, mask="none", scale=0.5).item() == pytest.approx(plain / 2)


def one_group(rewards):
    values = torch.tensor(rewards)
    rows = [Row("p", str(i), None, torch.tensor([i]), 1) for i in range(len(rewards))]
    mask = torch.ones(len(rewards), 1, dtype=torch.bool)
    zeros = torch.zeros(len(rewards), dtype=torch.int64)
    return RewardView(values, {}, {}, values[:, None], zeros, torch.arange(len(rewards)), mask, rows)


@pytest.mark.parametrize(
    ("rewards", "options", "expected"),
    [
        ([1.0, 0.0, 0.0, 1.0], {}, [0.5, -0.5, -0.5, 0.5]),
        ([1.0, 0.0, 0.0, 1.0], {"baseline": "log_mean_exp"}, [0.379885, -0.620115, -0.620115, 0.379885]),
        ([1.0, 0.0, 0.0, 1.0], {"shift": -0.1}, [0.6, -0.4, -0.4, 0.6]),
        ([1.0] * 4, {"shift": -0.1}, [0.1] * 4),
        ([1.0, float("nan"), 0.0, 1.0], {}, [1 / 3, 0.0, -2 / 3, 1 / 3]),
    ],
)
def test_baselines_of_opmd_and_asymre(rewards, options, expected):
    given = one_group(rewards)
    assert shifted_baseline(given.rewards, given, **options).tolist() == pytest.approx(expected, abs=1e-6)


def test_red_drop_leaves_surplus_bad_answers_out():
    """2 good and 6 bad: 4 of the bad are dropped, the mean of the rest is 0.5."""
    given = one_group([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    found = red_drop(given.rewards, given)
    assert found[[0, 6]].tolist() == [0.5, 0.5]
    assert sorted(found[[1, 2, 3, 4, 5, 7]].tolist()) == [-0.5, -0.5, 0, 0, 0, 0]
    assert torch.equal(found, red_drop(given.rewards, given))
    others = {tuple(red_drop(given.rewards, given, seed=seed).tolist()) for seed in range(20)}
    assert len(others) > 3  # which ones are dropped is drawn
    assert red_drop(given.rewards, given, divide_by_std=True)[0] == pytest.approx(1.0, abs=1e-5)


def test_red_drop_drops_nothing_where_good_answers_are_as_many():
    given = one_group([1.0, 0.0, 1.0, 0.0])
    assert red_drop(given.rewards, given).tolist() == [0.5, -0.5, 0.5, -0.5]
    flat = one_group([0.3, 0.3])
    assert red_drop(flat.rewards, flat).tolist() == [0.0, 0.0]

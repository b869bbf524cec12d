"""Losses: golden values and gradients from golden/losses.json, and the properties that hold for every input."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmrl_core import losses
from mmrl_core.errors import ConfigError, HookResultError
from mmrl_core.loss_inputs import BatchTotals, LossInputs
from mmrl_core.testing import make_loss_inputs
from tests.algorithms import policy_loss

GOLDEN = json.loads((Path(__file__).parent / "golden" / "losses.json").read_text())
NAN = float("nan")
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}  # float64; the golden numbers carry 13 digits


def f64(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def totals_of(mask: Tensor) -> BatchTotals:
    return BatchTotals(num_tokens=float(mask.sum()), num_rows=float(len(mask)))


def golden_inputs(**replaced) -> LossInputs:
    return make_loss_inputs(**{**GOLDEN["batch"], **replaced}, dtype=torch.float64)


def random_inputs(num_rows: int = 6, num_tokens: int = 7) -> LossInputs:
    """Rows of different lengths, one of them empty, with tool text inside; every field filled in."""
    generator = torch.Generator().manual_seed(4)

    def normal(scale):
        return scale * torch.randn(num_rows, num_tokens, generator=generator, dtype=torch.float64)

    old_logprobs = -normal(1.0).abs() - 0.1
    lengths = torch.randint(2, num_tokens + 1, (num_rows, 1), generator=generator)
    lengths[2] = 0
    mask = (torch.arange(num_tokens) < lengths) & (torch.arange(num_tokens) != 1)
    return make_loss_inputs(
        old_logprobs + normal(0.3),
        old_logprobs=old_logprobs,
        advantages=normal(1.0)[:, 0],
        mask=mask,
        sampler_logprobs=old_logprobs + normal(0.2),
        ref_logprobs=old_logprobs + normal(0.4),
        entropy=normal(1.0).abs(),
        rewards=torch.arange(num_rows, dtype=torch.float64),
    )


def split(inputs: LossInputs, rows: slice) -> LossInputs:
    """Some rows of a batch, with the totals of all of it."""
    return replace(inputs, **{k: v[rows] for k, v in vars(inputs).items() if isinstance(v, Tensor)})


def value_and_gradient(inputs: LossInputs, **options) -> tuple[Tensor, Tensor]:
    logprobs = inputs.logprobs.detach().clone().requires_grad_()
    loss, _ = policy_loss(replace(inputs, logprobs=logprobs), **options)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.detach(), gradient


SURROGATES = {
    "clipped": {"surrogate": losses.clipped},
    "capped": {"surrogate": losses.clipped, "surrogate_options": {"ratio_cap": 1.5}},
    "dual_clip": {"surrogate": losses.clipped, "surrogate_options": {"dual_clip": 3.0}},
    "sequence_mean": {"surrogate": losses.clipped, "surrogate_options": {"ratio": "sequence_mean"}},
    "sequence_sum": {"surrogate": losses.clipped, "surrogate_options": {"ratio": "sequence_sum"}},
    "cispo": {"surrogate": losses.cispo, "surrogate_options": {"cap": 5.0}},
    "reinforce": {"surrogate": losses.reinforce},
    "nll": {"surrogate": losses.nll},
}
AGGREGATIONS = ["sequence_mean", "token_mean", "constant_length", "local_token_mean"]
EVERYTHING = {
    "kl_coefficient": 0.1,
    "kl_times_ratio": True,
    "entropy_coefficient": 0.01,
    "importance_level": "token",
    "importance_mode": "truncate",
    "off_policy_threshold": 0.05,
    "max_length": 9,
}
every_surrogate = pytest.mark.parametrize("options", SURROGATES.values(), ids=SURROGATES)


# Golden numbers.


@pytest.mark.parametrize("case", GOLDEN["policy_loss"], ids=lambda case: case["name"])
def test_policy_loss_golden(case):
    options = {**case["options"], "surrogate": getattr(losses, case["options"]["surrogate"])}
    loss, gradient = value_and_gradient(golden_inputs(**case.get("inputs", {})), **options)
    torch.testing.assert_close(loss, f64(case["loss"]), **TOLERANCE)
    torch.testing.assert_close(gradient, f64(case["gradient"]), **TOLERANCE)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3_straight_through"])
def test_kl_estimate_golden(estimator):
    golden = GOLDEN["kl_estimate"]
    logprobs = f64(golden["logprobs"]).requires_grad_()
    kl = losses.kl_estimate(logprobs, f64(golden["ref_logprobs"]), estimator)
    (gradient,) = torch.autograd.grad(kl.sum(), logprobs)
    torch.testing.assert_close(kl.detach(), f64(golden["values"][estimator]), **TOLERANCE)
    torch.testing.assert_close(gradient, f64(golden["gradients"][estimator]), **TOLERANCE)


@pytest.mark.parametrize(
    "case", GOLDEN["importance_weights"]["cases"], ids=lambda case: f"{case['level']} {case['mode']}"
)
def test_importance_weights_golden(case):
    golden = GOLDEN["importance_weights"]
    old, sampler = f64(golden["old_logprobs"]), f64(golden["sampler_logprobs"])
    options = {name: case[name] for name in ("level", "mode", "max_weight")}
    weights = losses.importance_weights(old, sampler, torch.ones_like(old, dtype=torch.bool), **options)
    torch.testing.assert_close(weights, f64(case["weights"]), **TOLERANCE)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_aggregate_golden(how):
    golden = GOLDEN["aggregate"]
    token_losses, mask = f64(golden["token_losses"]).requires_grad_(), torch.tensor(golden["mask"])
    loss = losses.aggregate(token_losses, mask, how, totals_of(mask), max_length=golden["max_length"])
    (gradient,) = torch.autograd.grad(loss, token_losses)
    torch.testing.assert_close(loss.detach(), f64(golden["losses"][how]), **TOLERANCE)
    torch.testing.assert_close(gradient, f64(golden["gradients"][how]), **TOLERANCE)


# What every loss must do.


@every_surrogate
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_masked_tokens_do_not_change_the_loss_even_if_nan(options, aggregation):
    inputs = random_inputs()
    options = {**options, **EVERYTHING, "aggregation": aggregation}
    loss, gradient = value_and_gradient(inputs, **options)
    fields = ("logprobs", "old_logprobs", "advantages", "sampler_logprobs", "ref_logprobs", "entropy")
    for filler in (NAN, -1e4, 3.0):
        filled = {name: torch.where(inputs.mask, getattr(inputs, name), filler) for name in fields}
        other_loss, other_gradient = value_and_gradient(replace(inputs, **filled), **options)
        assert torch.equal(other_loss, loss)
        assert torch.equal(other_gradient, gradient)
    assert (gradient[~inputs.mask] == 0).all()
    assert gradient[inputs.mask].abs().max() > 0


@every_surrogate
def test_surrogates_alone_ignore_masked_tokens(options):
    inputs = random_inputs()
    function, more = options["surrogate"], options.get("surrogate_options", {})
    token_losses, metrics = function(inputs, **more)
    others = replace(inputs, logprobs=torch.where(inputs.mask, inputs.logprobs, -3.0))
    other_losses, other_metrics = function(others, **more)
    assert torch.equal(token_losses[inputs.mask], other_losses[inputs.mask])
    assert metrics == other_metrics


@every_surrogate
@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant_length"])
def test_micro_batches_add_up_to_the_one_batch_loss(options, aggregation):
    inputs = random_inputs()
    options = {**options, **EVERYTHING, "aggregation": aggregation}
    loss, metrics = policy_loss(inputs, **options)
    _, gradient = value_and_gradient(inputs, **options)
    parts = [split(inputs, rows) for rows in (slice(0, 1), slice(1, 3), slice(3, 6))]
    pieces = [policy_loss(part, **options) for part in parts]
    torch.testing.assert_close(sum(piece[0] for piece in pieces), loss, **TOLERANCE)
    gradients = torch.cat([value_and_gradient(part, **options)[1] for part in parts])
    torch.testing.assert_close(gradients, gradient, **TOLERANCE)
    for name, value in metrics.items():
        torch.testing.assert_close(sum(piece[1][name] for piece in pieces), value, **TOLERANCE, msg=name)


def test_local_token_mean_of_equal_micro_batches_is_the_mean_of_their_means():
    inputs = random_inputs()
    options = {"surrogate": losses.clipped, "aggregation": "local_token_mean"}
    loss, _ = policy_loss(inputs, **options)
    halves = [split(inputs, slice(0, 3)), split(inputs, slice(3, 6))]
    own_means = [
        policy_loss(replace(half, totals=totals_of(half.mask)), **{**options, "aggregation": "token_mean"})[0]
        for half in halves
    ]
    added = sum(policy_loss(half, **options)[0] for half in halves)
    torch.testing.assert_close(added, sum(own_means) / 2, **TOLERANCE)
    assert not torch.allclose(added, loss)  # the cut matters, by definition


def test_local_token_mean_of_one_row_is_sequence_mean():
    inputs = split(random_inputs(), slice(0, 1))
    inputs = replace(inputs, totals=totals_of(inputs.mask))
    local = value_and_gradient(inputs, aggregation="local_token_mean")
    assert torch.equal(torch.stack(local[:1]), torch.stack(value_and_gradient(inputs, aggregation="sequence_mean")[:1]))
    torch.testing.assert_close(local[1], value_and_gradient(inputs, aggregation="sequence_mean")[1], **TOLERANCE)


def test_extras_reach_the_surrogate_and_nothing_of_them_where_not_trained():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    extra = f64([[1, 2, NAN], [4, NAN, NAN]]).requires_grad_()
    inputs = make_loss_inputs(torch.zeros(2, 3, dtype=torch.float64), mask=mask, extras={"prior_kl": extra})

    def surrogate(inputs):
        return inputs.extras["prior_kl"].square(), {}

    loss, _ = policy_loss(inputs, surrogate=surrogate)
    loss.backward()
    assert loss.item() == pytest.approx((1 + 4 + 16) / 3)
    # d/dx of the mean of x^2 over three tokens: 2 x / 3
    torch.testing.assert_close(extra.grad, f64([[2 / 3, 4 / 3, 0], [8 / 3, 0, 0]]))


@every_surrogate
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_batch_without_trained_tokens_gives_zero_not_nan(options, aggregation):
    inputs = replace(random_inputs(), mask=torch.zeros(6, 7, dtype=torch.bool), totals=BatchTotals(0, 0))
    loss, gradient = value_and_gradient(inputs, **{**options, **EVERYTHING, "aggregation": aggregation})
    assert loss == 0
    assert (gradient == 0).all()


@every_surrogate
def test_permuting_the_tokens_of_a_row_permutes_the_gradient(options):
    inputs, order = random_inputs(), torch.randperm(7, generator=torch.Generator().manual_seed(2))
    options = {**options, "aggregation": "sequence_mean"}
    permuted = replace(
        inputs, **{k: v[:, order] for k, v in vars(inputs).items() if isinstance(v, Tensor) and v.dim() == 2}
    )
    loss, gradient = value_and_gradient(inputs, **options)
    other_loss, other_gradient = value_and_gradient(permuted, **options)
    torch.testing.assert_close(other_loss, loss, **TOLERANCE)
    torch.testing.assert_close(other_gradient, gradient[:, order], **TOLERANCE)


@pytest.mark.parametrize("ratio", ["token", "sequence_mean"])
def test_on_policy_gradient_is_minus_advantage_over_length_and_rows(ratio):
    inputs = random_inputs()
    inputs = replace(inputs, logprobs=inputs.old_logprobs)
    expected = -inputs.advantages * inputs.mask / inputs.mask.sum(-1, keepdim=True).clamp(min=1) / len(inputs.mask)
    loss, gradient = value_and_gradient(inputs, aggregation="sequence_mean", surrogate_options={"ratio": ratio})
    torch.testing.assert_close(gradient, expected, **TOLERANCE)
    torch.testing.assert_close(loss, expected.sum(), **TOLERANCE)


def test_a_step_along_the_gradient_raises_good_tokens_and_lowers_bad_ones():
    inputs = random_inputs()
    inputs = replace(inputs, logprobs=inputs.old_logprobs)
    for options in SURROGATES.values():
        _, gradient = value_and_gradient(inputs, **options)
        if options["surrogate"] is losses.nll:
            assert (gradient[inputs.mask] < 0).all()
        else:
            assert torch.equal(-gradient.sign(), inputs.advantages.sign())


# Clipped surrogate.


def test_gradient_vanishes_exactly_where_clipping_says():
    inputs = random_inputs()
    _, gradient = value_and_gradient(inputs, surrogate_options={"clip_low": 0.1, "clip_high": 0.3})
    ratios = (inputs.logprobs - inputs.old_logprobs).exp()
    removed = ((ratios > 1.3) & (inputs.advantages > 0)) | ((ratios < 0.9) & (inputs.advantages < 0))
    assert (removed & inputs.mask).any()
    assert torch.equal(gradient == 0, removed | ~inputs.mask)


def test_clip_fractions_count_the_tokens_whose_gradient_is_removed():
    inputs = random_inputs()
    _, metrics = policy_loss(inputs, surrogate_options={"clip_low": 0.1, "clip_high": 0.3})
    ratios = (inputs.logprobs - inputs.old_logprobs).exp()
    high, low = (ratios > 1.3) & (inputs.advantages > 0), (ratios < 0.9) & (inputs.advantages < 0)
    torch.testing.assert_close(metrics["clip_fraction_high"], (high & inputs.mask).sum() / inputs.mask.sum().double())
    torch.testing.assert_close(metrics["clip_fraction_low"], (low & inputs.mask).sum() / inputs.mask.sum().double())
    torch.testing.assert_close(metrics["ratio_mean"], ratios[inputs.mask].mean())
    assert metrics["clip_fraction_high"] > 0
    assert metrics["clip_fraction_low"] > 0


def test_clipped_gradient_matches_finite_differences():
    inputs = random_inputs()
    options = {"surrogate_options": {"clip_low": 10.0, "clip_high": 10.0}, "aggregation": "sequence_mean"}
    _, gradient = value_and_gradient(inputs, **options)
    step = 1e-6
    for row, token in ((0, 0), (1, 2), (4, 0)):
        nudge = torch.zeros_like(inputs.logprobs)
        nudge[row, token] = step
        up, _ = policy_loss(replace(inputs, logprobs=inputs.logprobs + nudge), **options)
        down, _ = policy_loss(replace(inputs, logprobs=inputs.logprobs - nudge), **options)
        torch.testing.assert_close((up - down) / (2 * step), gradient[row, token], rtol=1e-6, atol=1e-9)


def test_gspo_gradient_is_constant_along_a_row_and_its_ratio_the_mean():
    inputs = random_inputs()
    options = {"ratio": "sequence_mean", "clip_low": 5.0, "clip_high": 5.0}
    _, gradient = value_and_gradient(inputs, aggregation="sequence_mean", surrogate_options=options)
    length = inputs.mask.sum(-1, keepdim=True).clamp(min=1)
    ratio = (((inputs.logprobs - inputs.old_logprobs) * inputs.mask).sum(-1, keepdim=True) / length).exp()
    torch.testing.assert_close(gradient, -inputs.advantages * ratio / length / len(inputs.mask), **TOLERANCE)


def test_gspo_with_advantages_by_token_gives_each_token_its_own():
    inputs = random_inputs()
    inputs = replace(inputs, advantages=torch.arange(42.0, dtype=torch.float64).view(6, 7) * inputs.mask + inputs.mask)
    options = {"ratio": "sequence_mean", "clip_low": 5.0, "clip_high": 5.0}
    _, gradient = value_and_gradient(inputs, aggregation="sequence_mean", surrogate_options=options)
    row = inputs.mask.sum(-1).argmax()
    per_advantage = (gradient / inputs.advantages)[row, inputs.mask[row]]
    assert len(per_advantage) > 2
    torch.testing.assert_close(per_advantage, per_advantage[:1].expand_as(per_advantage), **TOLERANCE)


def test_dual_clip_and_ratio_cap_bound_the_loss_of_bad_tokens():
    inputs = random_inputs()
    inputs = replace(inputs, logprobs=inputs.old_logprobs + 3, advantages=-1.0 * inputs.mask)
    for options, bound in (({"dual_clip": 3.0}, 3.0), ({"ratio_cap": 2.0}, 2.0)):
        token_losses, _ = losses.clipped(inputs, **options)
        torch.testing.assert_close(token_losses[inputs.mask].max(), f64(bound))
    assert losses.clipped(inputs)[0].max() > 20


@every_surrogate
def test_huge_log_ratios_stay_finite_in_float32(options):
    logprobs = torch.tensor([[-500.0, -0.1]])
    inputs = make_loss_inputs(
        logprobs,
        old_logprobs=logprobs.flip(-1),
        advantages=[[1.0, -1.0]],
        sampler_logprobs=logprobs,
        ref_logprobs=logprobs.flip(-1),
    )
    more = {
        "kl_coefficient": 0.1,
        "kl_times_ratio": True,
        "importance_level": "sequence",
        "importance_mode": "truncate",
    }
    loss, gradient = value_and_gradient(inputs, **options, **more)
    assert loss.isfinite()
    assert gradient.isfinite().all()


# CISPO.


def test_cispo_keeps_the_gradient_of_every_token():
    inputs = random_inputs()
    _, gradient = value_and_gradient(inputs, surrogate=losses.cispo, surrogate_options={"cap": 1.1})
    weight = (inputs.logprobs - inputs.old_logprobs).exp().clamp(max=1.1)
    torch.testing.assert_close(
        gradient, -weight * inputs.advantages * inputs.mask / inputs.totals.num_tokens, **TOLERANCE
    )
    assert torch.equal(gradient != 0, inputs.mask)


@pytest.mark.parametrize("options", [{"cap": 1.3}, {"clip_low": 0.1, "clip_high": 0.3}])
def test_cispo_clip_fractions_count_the_bounded_weights(options):
    inputs = random_inputs()
    _, metrics = policy_loss(inputs, surrogate=losses.cispo, surrogate_options=options)
    ratios = (inputs.logprobs - inputs.old_logprobs).exp()[inputs.mask]
    torch.testing.assert_close(metrics["clip_fraction_high"], (ratios > 1.3).double().mean())
    low = (ratios < 0.9) & ("clip_low" in options)
    torch.testing.assert_close(metrics["clip_fraction_low"], low.double().mean())
    torch.testing.assert_close(metrics["ratio_mean"], ratios.mean())
    assert metrics["clip_fraction_high"] > 0


@pytest.mark.parametrize("options", [{}, {"clip_high": 0.2}, {"cap": 5.0, "clip_low": 0.2, "clip_high": 0.2}])
def test_cispo_asks_which_convention_is_meant(options):
    with pytest.raises(ConfigError, match=r"either cap .* or both clip_low and clip_high"):
        losses.cispo(random_inputs(), **options)


# KL, importance weights, off-policy mask, entropy.


def test_k3_is_never_negative_and_zero_only_where_policies_agree():
    inputs = random_inputs()
    kl = losses.kl_estimate(inputs.logprobs, inputs.ref_logprobs)
    assert (kl > 0).all()
    assert (losses.kl_estimate(inputs.logprobs, inputs.logprobs) == 0).all()


def test_k1_and_k3_have_the_mean_of_the_exact_kl():
    policy, reference = f64([0.5, 0.3, 0.2]).log(), f64([0.2, 0.2, 0.6]).log()
    exact = (policy.exp() * (policy - reference)).sum()
    for estimator in ("k1", "k3"):
        mean = (policy.exp() * losses.kl_estimate(policy, reference, estimator)).sum()
        torch.testing.assert_close(mean, exact, **TOLERANCE)


def test_kl_term_pulls_towards_the_reference_whatever_the_advantages():
    inputs = random_inputs()
    inputs = replace(inputs, advantages=torch.zeros_like(inputs.advantages))
    for estimator in ("k2", "k3", "k3_straight_through"):
        _, gradient = value_and_gradient(inputs, kl_coefficient=0.5, kl_estimator=estimator)
        towards = (inputs.logprobs - inputs.ref_logprobs).sign() * inputs.mask
        assert torch.equal(gradient.sign(), towards)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_kl_term_is_averaged_like_the_policy_term(aggregation):
    inputs = random_inputs()
    inputs = replace(inputs, advantages=torch.zeros_like(inputs.advantages))
    loss, _ = policy_loss(inputs, kl_coefficient=0.5, aggregation=aggregation, max_length=9)
    kl = losses.kl_estimate(inputs.logprobs, inputs.ref_logprobs)
    expected = 0.5 * losses.aggregate(kl, inputs.mask, aggregation, inputs.totals, max_length=9)
    torch.testing.assert_close(loss, expected, **TOLERANCE)


def test_kl_times_ratio_weights_each_token():
    inputs = random_inputs()
    inputs = replace(inputs, advantages=torch.zeros_like(inputs.advantages))
    loss, _ = value_and_gradient(inputs, kl_coefficient=1.0, kl_times_ratio=True)
    kl = losses.kl_estimate(inputs.logprobs, inputs.ref_logprobs) * (inputs.logprobs - inputs.old_logprobs).exp()
    torch.testing.assert_close(loss, kl[inputs.mask].mean(), **TOLERANCE)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_equal_logprobs_give_weight_one(level, mode):
    inputs = random_inputs()
    weights = losses.importance_weights(inputs.old_logprobs, inputs.old_logprobs, inputs.mask, level=level, mode=mode)
    assert (weights == 1).all()
    assert not weights.requires_grad


def test_importance_weights_do_not_read_padding_and_take_unscored_tokens_as_equal():
    old, mask = f64([[-1.0, -1.0, -1.0]]), torch.tensor([[True, True, False]])
    sampler = f64([[-1.5, NAN, -1.3]])
    weights = losses.importance_weights(old, sampler, mask, level="sequence", mode="truncate")
    torch.testing.assert_close(weights, f64([[0.5, 0.5, 0.5]]).exp(), **TOLERANCE)
    weights = losses.importance_weights(old, sampler, mask, level="token", mode="mask")
    torch.testing.assert_close(weights, f64([[0.5, 0.0, 0.0]]).exp(), **TOLERANCE)


def test_importance_weights_have_a_lower_bound_too():
    old, sampler = f64([[-3.0, -1.0]]), f64([[-1.0, -1.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    options = {"level": "token", "min_weight": 0.5}
    assert losses.importance_weights(old, sampler, mask, mode="mask", **options).tolist() == [[0.0, 1.0]]
    assert losses.importance_weights(old, sampler, mask, mode="truncate", **options).tolist() == [[0.5, 1.0]]


def test_importance_weights_leave_the_kl_term_alone():
    inputs = random_inputs()
    inputs = replace(inputs, sampler_logprobs=inputs.old_logprobs - 10)  # every weight is masked
    loss, gradient = value_and_gradient(inputs, kl_coefficient=1.0, importance_level="token")
    only_kl = replace(inputs, advantages=torch.zeros_like(inputs.advantages))
    expected_loss, expected_gradient = value_and_gradient(only_kl, kl_coefficient=1.0)
    torch.testing.assert_close(loss, expected_loss, **TOLERANCE)
    torch.testing.assert_close(gradient, expected_gradient, **TOLERANCE)


def test_off_policy_mask_drops_bad_stale_rows_only():
    logprobs = f64([[-2.0, -2.0, -9.0], [-2.0, -2.0, -9.0], [-1.1, -1.1, -9.0]])
    mask = torch.tensor([[True, True, False]] * 3)
    advantages = f64([[-1.0] * 3, [1.0] * 3, [-1.0] * 3])
    keep = losses.off_policy_sequence_mask(logprobs, f64([[-1.0, NAN, -1.0]] * 3), advantages, mask, threshold=0.1)
    assert keep[:, 0].tolist() == [False, True, True]  # stale and bad; stale but good; bad but fresh (0.05)


def test_off_policy_mask_prefers_the_engine_to_the_old_policy():
    inputs = random_inputs()
    fresh = replace(inputs, sampler_logprobs=inputs.logprobs)
    _, metrics = policy_loss(fresh, off_policy_threshold=0.01)
    assert metrics["off_policy_dropped"] == 0
    _, metrics = policy_loss(replace(fresh, sampler_logprobs=None), off_policy_threshold=0.01)
    assert metrics["off_policy_dropped"] > 0


def test_entropy_bonus_rewards_entropy_and_not_by_aggregation():
    inputs = random_inputs()
    entropy = inputs.entropy.clone().requires_grad_()
    gradients = []
    for aggregation in ("sequence_mean", "token_mean", "constant_length"):
        loss, _ = policy_loss(
            replace(inputs, entropy=entropy), entropy_coefficient=0.5, aggregation=aggregation, max_length=9
        )
        gradients.append(torch.autograd.grad(loss, entropy)[0])
    for gradient in gradients:
        torch.testing.assert_close(gradient, -0.5 * inputs.mask.double() / inputs.totals.num_tokens, **TOLERANCE)


# Composition.


def test_doubling_padding_changes_nothing_and_doubling_max_length_halves_the_loss():
    inputs = random_inputs()
    padded = replace(
        inputs,
        **{
            name: torch.cat([value, torch.zeros_like(value)], dim=1)
            for name, value in vars(inputs).items()
            if isinstance(value, Tensor) and value.dim() == 2
        },
    )
    for aggregation in AGGREGATIONS:
        options = {**EVERYTHING, "aggregation": aggregation}
        torch.testing.assert_close(policy_loss(padded, **options)[0], policy_loss(inputs, **options)[0], **TOLERANCE)
    short, _ = policy_loss(inputs, aggregation="constant_length", max_length=9)
    long, _ = policy_loss(inputs, aggregation="constant_length", max_length=18)
    torch.testing.assert_close(long, short / 2, **TOLERANCE)


def test_rows_left_out_count_in_the_totals():
    inputs = random_inputs()
    some = split(inputs, slice(0, 2))
    for aggregation in ("sequence_mean", "constant_length"):
        alone = replace(some, totals=totals_of(some.mask))
        part, _ = policy_loss(some, aggregation=aggregation, max_length=9)
        whole, _ = policy_loss(alone, aggregation=aggregation, max_length=9)
        torch.testing.assert_close(part * 6, whole * 2, **TOLERANCE)


def test_metrics_report_the_means_over_trained_tokens():
    inputs = random_inputs()
    differentiable = {name: getattr(inputs, name).clone().requires_grad_() for name in ("logprobs", "entropy")}
    loss, metrics = policy_loss(replace(inputs, **differentiable), **EVERYTHING)
    assert all(value.dim() == 0 and not value.requires_grad for value in metrics.values())
    loss, mask = loss.detach(), inputs.mask
    log_ratio = (inputs.logprobs - inputs.old_logprobs)[mask]
    torch.testing.assert_close(metrics["kl_old"], (log_ratio.exp() - 1 - log_ratio).mean(), **TOLERANCE)
    d = (inputs.logprobs - inputs.ref_logprobs)[mask]
    torch.testing.assert_close(metrics["kl_ref"], ((-d).exp() - 1 + d).mean(), **TOLERANCE)
    torch.testing.assert_close(metrics["entropy"], inputs.entropy[mask].mean(), **TOLERANCE)
    weights = (inputs.old_logprobs - inputs.sampler_logprobs)[mask].exp().clamp(max=3)
    torch.testing.assert_close(metrics["importance_weight"], weights.mean(), **TOLERANCE)
    assert metrics["importance_zeroed"] == 0
    kl_term = 0.1 * (((-d).exp() - 1 + d) * log_ratio.exp()).mean()
    torch.testing.assert_close(metrics["policy_loss"], loss - kl_term + 0.01 * metrics["entropy"], **TOLERANCE)


def test_reported_reference_and_entropy_do_not_enter_the_loss_unasked():
    inputs = random_inputs()
    loss, gradient = value_and_gradient(inputs)
    bare_loss, bare_gradient = value_and_gradient(replace(inputs, ref_logprobs=None, entropy=None))
    assert torch.equal(loss, bare_loss)
    assert torch.equal(gradient, bare_gradient)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_coefficient": 0.1}, "kl.coefficient is set, but there is no reference policy"),
        ({"entropy_coefficient": 0.1}, "entropy_coefficient is set"),
        ({"importance_level": "token"}, "importance_correction is set"),
        ({"aggregation": "constant_length"}, "needs max_length"),
        ({"surrogate_options": {"ratio": "row"}}, "ratio is 'row'; it can be 'token'"),
    ],
)
def test_missing_inputs_and_unknown_options_are_refused(options, message):
    inputs = replace(random_inputs(), sampler_logprobs=None, ref_logprobs=None, entropy=None)
    with pytest.raises(ConfigError, match=message):
        policy_loss(inputs, **options)


def test_unknown_options_of_terms_are_refused():
    inputs = random_inputs()
    given = (inputs.old_logprobs, inputs.sampler_logprobs, inputs.mask)
    with pytest.raises(ConfigError, match="kl estimator is 'k4'"):
        losses.kl_estimate(inputs.logprobs, inputs.ref_logprobs, "k4")
    with pytest.raises(ConfigError, match="importance level is 'row'"):
        losses.importance_weights(*given, level="row")
    with pytest.raises(ConfigError, match="importance mode is 'drop'"):
        losses.importance_weights(*given, mode="drop")
    with pytest.raises(ConfigError, match="aggregation is 'mean'; it can be 'sequence_mean'"):
        losses.aggregate(inputs.logprobs, inputs.mask, "mean", inputs.totals)


def test_one_value_a_row_is_not_spread_over_the_tokens_in_silence():
    inputs = random_inputs()
    with pytest.raises(ValueError, match="one shape"):
        losses.kl_estimate(inputs.logprobs, inputs.ref_logprobs[:, :1])
    with pytest.raises(ValueError, match="one shape"):
        losses.aggregate(inputs.logprobs[:, :1], inputs.mask, "token_mean", inputs.totals)


@pytest.mark.parametrize("returned", ["scalar", "row", "no metrics"])
def test_a_surrogate_that_gives_no_token_losses_is_refused_by_name(returned):
    def wrong(inputs):
        values = inputs.logprobs
        found = {"scalar": (values.mean(), {}), "row": (values.mean(1), {}), "no metrics": values}
        return found[returned]

    with pytest.raises(HookResultError, match="loss 'clipped'"):
        policy_loss(random_inputs(), surrogate=wrong)


def test_a_plugin_can_bring_its_own_surrogate():
    def squared(inputs, *, scale):
        return scale * inputs.logprobs.square(), {"scale": torch.tensor(scale)}

    inputs = random_inputs()
    loss, metrics = policy_loss(inputs, surrogate=squared, surrogate_options={"scale": 2.0})
    torch.testing.assert_close(loss, 2 * inputs.logprobs[inputs.mask].square().mean(), **TOLERANCE)
    assert metrics["scale"] == 2.0

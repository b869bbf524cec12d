"""The loss of FIND against numbers worked by hand, closed-form gradients and torch.distributions."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from mmrl_core.config import AlgorithmConfig
from mmrl_core.errors import ConfigError
from mmrl_core.loss_inputs import LossInputs
from mmrl_core.policy_loss import policy_loss
from mmrl_core.testing import make_loss_inputs
from mmrl_find.losses import find

NAN = math.nan


def column(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def inputs(ratios, rewards, *, values=None, baselines=None, advantages=None, kl=None, quadratic=None) -> LossInputs:
    """One action a row, with the given ratios; everything else is 0 unless it is given."""
    zeros = [0.0] * len(ratios)
    given = torch.tensor(rewards, dtype=torch.float64)
    return make_loss_inputs(
        column([math.log(ratio) for ratio in ratios]).requires_grad_(),
        old_logprobs=column(zeros),
        advantages=given.nan_to_num() if advantages is None else column(advantages),
        rewards=given,
        extras={
            "prior_kl": column(kl or zeros),
            "prior_quadratic": column(quadratic or zeros),
            "value": column(values or zeros).requires_grad_(),
            "baseline": column(baselines or zeros),
        },
    )


def losses_of(given: LossInputs, **options) -> list[float]:
    return find(given, **options)[0][:, 0].tolist()


def policy_gradients(given: LossInputs, **options) -> list[float]:
    """d loss / d logprob of each action, which is -ratio * A where the bound leaves it, with reward_weight 1."""
    return torch.autograd.grad(find(given, **options)[0].sum(), given.logprobs)[0][:, 0].tolist()


def test_loss_by_hand():
    # A = 2 - 0.5 = 1.5; ratio 1: -1.5. KL 0.25 * 0.01; (0.75 - 2)^2 = 1.5625. Together 0.065.
    # Second: A = -1 - 0.5 = -1.5: 1.5 + 0.0025 + (0.75 + 1)^2 = 3.0625: 4.565.
    given = inputs([1, 1], [2.0, -1.0], values=[0.75, 0.75], baselines=[0.5, 0.5], kl=[0.25, 0.25], quadratic=[4, 4])
    assert losses_of(given) == pytest.approx([0.065, 4.565])
    # Published weights and distance: -10 * 1.5 + 0.01 * 4 + 1.5625, and 15 + 0.04 + 3.0625.
    published = {"reward_weight": 10.0, "clip": 0.2, "form": "published", "regulariser": "quadratic"}
    assert losses_of(given, **published) == pytest.approx([-13.3975, 18.1025])
    assert losses_of(given, value_weight=0.0, regulariser_weight=0.0) == pytest.approx([-1.5, 1.5])


def test_gradient_at_ratio_one_is_the_closed_form():
    """A * (z - mean) / std^2 / D, and A * ((z - mean)^2 / std^3 - 1 / std) / D, for logprobs that are means over D."""
    generator = torch.Generator().manual_seed(0)
    size = 5
    mean = torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
    std = (0.5 + torch.rand(size, generator=generator, dtype=torch.float64)).requires_grad_()
    latent = torch.randn(size, generator=generator, dtype=torch.float64)
    logprob = Normal(mean, std).log_prob(latent).mean().reshape(1, 1)
    given = inputs([1], [3.0], baselines=[1.0])
    given = replace(given, logprobs=logprob, old_logprobs=logprob.detach())
    found = torch.autograd.grad(-find(given)[0].sum(), [mean, std])  # what is maximised
    advantage = 3.0 - 1.0
    with torch.no_grad():
        torch.testing.assert_close(found[0], advantage * (latent - mean) / std**2 / size)
        torch.testing.assert_close(found[1], advantage * ((latent - mean) ** 2 / std**3 - 1 / std) / size)


@pytest.mark.parametrize(
    ("ratio", "reward", "gradient", "published"),
    [
        (1.1, 1.0, 0.0, 0.0),  # good and already more likely: no further
        (1.1, -1.0, 1.1, 0.0),  # bad but more likely: pulled back; the published form leaves it there
        (0.9, -1.0, 0.0, 0.0),  # bad and already less likely: no further
        (0.9, 1.0, -0.9, 0.0),  # good but less likely: pulled back
        (1.02, 1.0, -1.02, -1.02),  # inside the band: -ratio * A
        (0.98, -1.0, 0.98, 0.98),
    ],
)
def test_gradient_outside_the_band_only_leads_back(ratio, reward, gradient, published):
    given = inputs([ratio], [reward])
    assert policy_gradients(given) == pytest.approx([gradient])
    assert policy_gradients(given, form="published") == pytest.approx([published])
    given = inputs([ratio], [reward], advantages=[reward])
    assert policy_gradients(given, baseline="none") == pytest.approx([gradient])


def test_published_band_is_wider():
    given = inputs([1.1, 1.3], [1.0, 1.0])
    assert policy_gradients(given, clip=0.2) == pytest.approx([-1.1, 0.0])


def test_loss_is_the_clipped_one_of_the_core_where_only_the_policy_term_is_left():
    given = inputs([0.9, 1.02, 1.1, 1.1], [1.0, -2.0, 3.0, -1.0])
    clipped = AlgorithmConfig(loss={"name": "clipped", "clip_low": 0.05, "clip_high": 0.05})
    expected, _ = policy_loss(given, clipped)
    alone = AlgorithmConfig(loss={"name": "find/find", "value_weight": 0.0, "regulariser_weight": 0.0})
    found, metrics = policy_loss(given, alone, find)
    assert float(found.detach()) == pytest.approx(float(expected.detach()))
    # below 0.95 with A < 0: none; above 1.05 with A > 0: the third of four
    assert (float(metrics["clip_fraction_low"]), float(metrics["clip_fraction_high"])) == (0.0, 0.25)
    assert float(metrics["ratio_mean"]) == pytest.approx((0.9 + 1.02 + 1.1 + 1.1) / 4)


def test_unscored_action_moves_neither_policy_nor_value():
    given = inputs([1, 1], [NAN, 2.0], values=[5.0, 0.5], baselines=[5.0, 0.5], kl=[0.3, 0.3])
    token_losses, metrics = find(given)
    assert float(token_losses[0, 0].detach()) == pytest.approx(0.01 * 0.3)  # the regulariser does not need a reward
    of_policy, of_value = torch.autograd.grad(token_losses.sum(), [given.logprobs, given.extras["value"]])
    assert of_policy[:, 0].tolist() == pytest.approx([0.0, -1.5])
    assert of_value[:, 0].tolist() == pytest.approx([0.0, 2 * (0.5 - 2.0)])
    assert float(metrics["value_loss"]) == pytest.approx(1.5**2 / 2)


def test_reward_of_zero_is_a_reward():
    given = inputs([1], [0.0], values=[0.5], baselines=[0.5])
    assert policy_gradients(given) == pytest.approx([0.5])  # A = 0 - 0.5


def test_value_network_learns_at_the_row_and_is_no_part_of_the_policy_gradient():
    given = inputs([1, 1], [1.0, 1.0], values=[0.25, 0.5], baselines=[0.75, 0.75])
    (gradient,) = torch.autograd.grad(find(given, value_weight=2.0)[0].sum(), given.extras["value"])
    assert gradient[:, 0].tolist() == pytest.approx([2 * 2 * -0.75, 2 * 2 * -0.5])
    baselines = column([0.75, 0.75]).requires_grad_()
    extras = {**given.extras, "baseline": baselines}
    find(replace(given, extras=extras))[0].sum().backward()
    assert baselines.grad is None


def test_regularisers_of_one_gaussian():
    mean, std = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.8, 1.1], dtype=torch.float64)
    kl = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).mean()
    quadratic = (0.09 + 0.04 + 0.04 + 0.01) / 2  # mean^2 and (std - 1)^2 of both entries
    given = inputs([1], [0.0], kl=[float(kl)], quadratic=[quadratic])
    assert losses_of(given, regulariser_weight=2.0) == pytest.approx([2 * float(kl)])
    assert losses_of(given, regulariser_weight=2.0, regulariser="quadratic") == pytest.approx([0.18])


def test_metrics_of_micro_batches_add_up_to_those_of_the_step():
    whole = inputs([0.9, 1.0, 1.1, 1.2], [1.0, NAN, 2.0, -1.0], values=[0.5] * 4, baselines=[0.25] * 4, kl=[0.1] * 4)
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        tensors = {name: value[rows] for name, value in vars(whole).items() if isinstance(value, Tensor)}
        extras = {name: value[rows] for name, value in whole.extras.items()}
        parts.append(find(replace(whole, **tensors, extras=extras))[1])
    for name, value in find(whole)[1].items():
        assert float(sum(part[name] for part in parts)) == pytest.approx(float(value)), name
    # |1 - 0.25|, 0 for the unscored, |2 - 0.25|, |-1 - 0.25|
    assert float(find(whole)[1]["calibrated_advantage"]) == pytest.approx((0.75 + 1.75 + 1.25) / 4)
    assert float(find(whole)[1]["baseline"]) == pytest.approx(0.25)


def test_without_a_baseline_the_value_network_is_not_read():
    given = inputs([1], [1.0], advantages=[0.7])
    given = replace(given, extras={name: given.extras[name] for name in ("prior_kl", "prior_quadratic")})
    assert losses_of(given, baseline="none") == pytest.approx([-0.7])
    assert "value_loss" not in find(given, baseline="none")[1]


def test_baseline_on_advantages_that_have_one_already_is_refused():
    given = inputs([1, 1], [1.0, 3.0], advantages=[-1.0, 1.0])
    with pytest.raises(ConfigError, match=r"algorithm\.advantage to \[\]"):
        find(given)
    find(given, baseline="none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "max"}, "form is 'max'"),
        ({"regulariser": "l2"}, "regulariser is 'l2'"),
        ({"baseline": "group"}, "baseline is 'group'"),
        ({"clip": 0.0}, "clip"),
        ({"clip": 1.5}, "clip"),
    ],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        find(inputs([1], [1.0]), **options)

"""The optimiser: learning rates of groups of parameters, and what a resumed run finds."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from mmrl_core.config.schema import OptimizerConfig, StageConfig
from mmrl_core.errors import ConfigError
from mmrl_core.optimizer import make_optimizer, set_learning_rate


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(3))
        self.head, self.value = nn.Linear(2, 2), nn.Linear(2, 1)
        for parameter in self.parameters():
            parameter.data.fill_(1.0)


def stage(**optimizer):
    return StageConfig(kind="grpo", steps=4, optimizer=OptimizerConfig(**{"lr": 0.01, "eps": 1e-12, **optimizer}))


def step(module, optimizer, settings, index, gradient=1.0):
    set_learning_rate(optimizer, settings, index, total=4)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


def moved(module):
    return {name: float(1 - parameter.detach().flatten()[0]) for name, parameter in module.named_parameters()}


def test_factors_scale_the_learning_rate_through_the_schedule():
    """The first step of Adam moves each parameter by its learning rate, whatever the gradient's size."""
    settings = stage(lr_scale={r"^mean$": 10.0, "value": 0.5, "bias": 3.0}, warmup_steps=2)
    module = Parts()
    optimizer = make_optimizer(module, settings)
    step(module, optimizer, settings, 0)  # the first of two steps of warm-up: 0.005
    expected = {"mean": 0.05, "head.weight": 0.005, "head.bias": 0.015, "value.weight": 0.0025, "value.bias": 0.0025}
    assert moved(module) == pytest.approx(expected, rel=1e-4)
    set_learning_rate(optimizer, settings, 1, total=4)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([0.005, 0.005, 0.01, 0.03, 0.1])


def test_weight_decay_spares_vectors_in_every_group():
    optimizer = make_optimizer(Parts(), stage(lr_scale={"value": 0.5}, weight_decay=0.1))
    found = {
        (p.dim(), group["lr_scale"]): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert found == {(2, 1.0): 0.1, (1, 1.0): 0.0, (2, 0.5): 0.1, (1, 0.5): 0.0}


@pytest.mark.parametrize("scale", [{"maen": 2.0}, {"value": 2.0, "value.bias": 3.0}])
def test_an_expression_that_applies_to_nothing_is_refused(scale):
    with pytest.raises(
        ConfigError, match=r"optimizer.lr_scale: '(maen|value.bias)' applies to no .*Parameters: mean, "
    ):
        make_optimizer(Parts(), stage(lr_scale=scale))


def test_what_is_not_trained_takes_no_part():
    module = Parts()
    module.value.requires_grad_(False)
    with pytest.raises(ConfigError, match="'value' applies to no trained parameter"):
        make_optimizer(module, stage(lr_scale={"value": 2.0}))


def test_a_resumed_optimiser_goes_on_bit_for_bit():
    settings = stage(lr_scale={"bias": 3.0, "mean": 0.1}, weight_decay=0.1)
    whole, resumed = Parts(), Parts()
    optimizer = make_optimizer(whole, settings)
    step(whole, optimizer, settings, 0)
    resumed.load_state_dict(whole.state_dict())
    again = make_optimizer(resumed, settings)
    again.load_state_dict(deepcopy(optimizer.state_dict()))
    for module, own in ((whole, optimizer), (resumed, again)):
        step(module, own, settings, 1, gradient=-0.3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))

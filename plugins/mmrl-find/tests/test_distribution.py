"""Distributions of the initial latent start at N(0, I), keep their bound, and prompts do not touch each other's."""

import pytest
import torch

from mmrl_core.errors import PolicyError
from mmrl_find.distribution import AmortisedNoise, PerPromptNoise, SharedNoise, ValueNetwork
from mmrl_find.pipeline import PromptEmbedding

SHAPE = (2, 3, 4)


def embedding(text, seed=0):
    return PromptEmbedding(text, torch.randn(5, generator=torch.Generator().manual_seed(seed)), {})


A, B, C = (embedding(text, seed) for seed, text in enumerate("ABC"))


def make(kind, min_std=0.5):
    torch.manual_seed(0)
    if kind == "per_prompt":
        return PerPromptNoise(SHAPE, min_std, num_prompts=2)
    return SharedNoise(SHAPE, min_std) if kind == "shared" else AmortisedNoise(SHAPE, min_std, 5, 8)


@pytest.mark.parametrize("min_std", [0.0, 1e-4, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["per_prompt", "shared", "amortised"])
def test_training_starts_at_the_standard_normal(kind, min_std):
    mean, log_std = make(kind, min_std)(A)
    assert mean.shape == log_std.shape == SHAPE
    assert not mean.any()
    torch.testing.assert_close(log_std, torch.zeros(SHAPE), rtol=0, atol=1e-7)


@pytest.mark.parametrize("min_std", [0.0, 0.5])
def test_the_standard_deviation_is_bounded_and_keeps_a_gradient(min_std):
    """std = min + (1 - min) exp(raw), so d log_std / d raw = (std - min) / std."""
    distribution = SharedNoise(SHAPE, min_std).double()
    for value, exact in ((-3.0, 0.0497870683678639), (1.0, 2.718281828459045)):
        distribution.raw_std.data.fill_(value)
        distribution.raw_std.grad = None
        log_std = distribution(A)[1]
        log_std.sum().backward()
        std = min_std + (1 - min_std) * exact
        torch.testing.assert_close(log_std.exp(), torch.full(SHAPE, std, dtype=torch.float64))
        slope = torch.full(SHAPE, (std - min_std) / std, dtype=torch.float64)
        torch.testing.assert_close(distribution.raw_std.grad, slope)
    distribution.raw_std.data.fill_(-60.0)
    assert float(distribution(A)[1].exp().detach().min()) >= min_std


@pytest.mark.parametrize("min_std", [-0.1, 1.0])
def test_a_bound_that_excludes_the_start_is_refused(min_std):
    with pytest.raises(PolicyError, match=r"min_std is .* below 1"):
        SharedNoise(SHAPE, min_std)


def test_prompts_get_slots_in_the_order_they_are_trained():
    distribution = make("per_prompt")
    with torch.no_grad():  # evaluation
        distribution(C)
    assert distribution.slots == {}
    distribution(B)
    distribution(A)
    assert distribution.slots == {"B": 0, "A": 1}
    assert distribution(A)[0] is distribution.mean[1]
    with pytest.raises(PolicyError, match="no room for prompt 'C': num_prompts is 2"):
        distribution(C)
    with torch.no_grad():
        assert not distribution(C)[0].any()


def test_adamw_leaves_a_prompt_alone_that_is_not_in_the_step():
    """With momentum from its own step and with weight decay, which move any parameter that has a gradient, even 0."""
    distribution = make("per_prompt")
    optimizer = torch.optim.AdamW(distribution.parameters(), lr=0.1, weight_decay=0.1, fused=True)

    def step(prompt):
        mean, log_std = distribution(prompt)
        ((mean - 1).square().sum() + (log_std - 1).square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step(A)
    kept = [values.detach().clone() for values in (distribution.mean[0], distribution.raw_std[0])]
    assert all(values.all() for values in kept)
    for _ in range(3):
        step(B)
    assert torch.equal(distribution.mean[0], kept[0]) and torch.equal(distribution.raw_std[0], kept[1])
    assert distribution.mean[1].all()
    step(A)
    assert not torch.equal(distribution.mean[0], kept[0])


def test_amortised_noise_learns_a_gaussian_for_each_prompt():
    distribution = make("amortised")
    optimizer = torch.optim.Adam(distribution.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss = sum((distribution(prompt)[0] - goal).square().mean() for prompt, goal in ((A, 1.0), (B, -1.0)))
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.01


def test_networks_depend_on_the_torch_seed_alone():
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append((AmortisedNoise(SHAPE, 0.5, 5, 8), ValueNetwork(SHAPE, 5, 8)))
    for first, second in zip(*networks, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_value_network_has_the_published_size():
    """mean and std of 16384 entries and a CLIP embedding of 768, three hidden layers of 256, one number."""
    with torch.device("meta"):
        network = ValueNetwork((4, 64, 64), 768, 256)
    assert sum(p.numel() for p in network.parameters()) == (33536 * 256 + 256) + 2 * (256 * 256 + 256) + 257


def test_the_value_network_reads_mean_std_and_prompt():
    """All weights 1/10, no biases: each layer multiplies the sum by a tenth, and the next adds 4 equal units."""
    network = ValueNetwork((1, 1, 2), 3, 4)
    for parameter in network.parameters():
        parameter.data.fill_(0.1 if parameter.dim() > 1 else 0.0)
    mean, log_std = torch.tensor([[[[0.5, 1.5]]]]), torch.log(torch.tensor([[[[0.5, 2.0]]]]))
    value = network(mean, log_std, torch.tensor([[1.0, 2.0, 3.0]]))
    assert value.tolist() == pytest.approx([10.5 * 0.1 * 0.4**3])


def test_the_value_networks_gradient_is_that_of_its_function():
    torch.manual_seed(0)
    network = ValueNetwork((1, 2, 2), 3, 4).double()
    inputs = [torch.randn(2, *shape, dtype=torch.float64, requires_grad=True) for shape in ((1, 2, 2), (1, 2, 2), (3,))]
    assert torch.autograd.gradcheck(network, inputs)

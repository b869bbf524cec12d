"""Drawing tokens: numbers worked by hand, and frequencies of many draws."""

import math

import pytest
import torch

from mmrl_core.language_model import module
from mmrl_core.language_model.engines.hf import sample
from mmrl_core.types import Sampling

LOGITS = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()


def draws(count, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def frequencies(num_draws=20_000, *, banned=None, **settings):
    tokens, _ = sample(LOGITS.expand(num_draws, -1), Sampling(**settings), draws(num_draws), banned=banned)
    return (torch.bincount(tokens, minlength=4) / num_draws).tolist()


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 9}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),  # 0.4 + 0.3 fall short of 0.75, so the third is taken in
        ({"top_p": 0.7 - 1e-3}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),  # the likeliest is always left
        ({"top_k": 3, "top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),  # of the top three 4/9 fall short of 0.5
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(settings, expected):
    assert frequencies(**settings) == pytest.approx(expected, abs=0.012)  # 3.5 standard deviations of 20,000 draws
    for found, probability in zip(frequencies(**settings), expected, strict=True):
        assert (found == 0) == (probability == 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banned_tokens_are_never_drawn(temperature):
    found = frequencies(temperature=temperature, banned=torch.tensor([0, 3]))
    assert found == pytest.approx([0, 1, 0, 0] if temperature == 0 else [0, 0.6, 0.4, 0], abs=0.012)


@pytest.mark.parametrize(
    "settings, normed",
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2, "top_p": 0.5}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"temperature": 0.0}, [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_logprobs_are_of_the_whole_distribution_whatever_narrows_the_choice(settings, normed):
    tokens, logprobs = sample((LOGITS + 7).expand(50, -1), Sampling(**settings), draws(50), banned=torch.tensor([3]))
    assert logprobs.tolist() == pytest.approx([math.log(normed[token]) for token in tokens.tolist()], abs=1e-6)


def test_extreme_logits_draw_the_only_likely_token():
    logits = torch.tensor([[-1e4, 1e4, -torch.inf], [0.0, -torch.inf, -torch.inf]])
    tokens, logprobs = sample(logits, Sampling(top_p=0.9), draws(2))
    assert tokens.tolist() == [1, 0] and logprobs.tolist() == [0, 0]


def test_the_last_token_is_drawn_at_most():
    """A uniform number next to 1 must not point behind the vocabulary."""
    logits = torch.zeros(3, 3)
    logits[:, 2] = -torch.inf
    tokens, _ = sample(logits, Sampling(), torch.tensor([0.0, 1 - 2**-24, 1.0]))
    assert tokens.tolist() == [0, 1, 1]


def test_the_draw_depends_on_the_number_drawn_alone():
    logits = torch.randn(64, 11, generator=torch.Generator().manual_seed(9))
    first, again, other = (sample(logits, Sampling(), draws(64, seed))[0].tolist() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("wrong", [[math.nan] * 4, [0.0, math.nan, 0.0, 0.0], [math.inf, 0.0, 0.0, 0.0]])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 2, "top_p": 0.5}])
def test_logits_that_are_no_numbers_give_a_token_that_exists_and_no_logprob(wrong, settings):
    tokens, logprobs = sample(torch.tensor([wrong, [0.0] * 4]), Sampling(**settings), draws(2))
    assert 0 <= int(tokens[0]) < 4 and 0 <= int(tokens[1]) < 4
    assert logprobs[0].isnan() and logprobs[1].isfinite()


@pytest.mark.parametrize("num_rows", [1, 3, 7])
def test_watched_entropies_are_those_of_the_distribution(num_rows, monkeypatch):
    monkeypatch.setattr(module, "ENTROPY_TILE", 8)  # two rows at a time, and a rest
    normed = torch.randn(num_rows, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1).requires_grad_()
    expected = torch.distributions.Categorical(logits=normed.detach()).entropy()
    entropies = module._entropy(normed)
    assert not entropies.requires_grad
    torch.testing.assert_close(entropies, expected)

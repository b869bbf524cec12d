"""A model that runs its own forward computes a prompt, and its media, once for the completions of a group."""

from __future__ import annotations

import importlib
from contextlib import contextmanager

import pytest
import torch

from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.types import Sampling

own_forward = importlib.import_module("mmrl_core.language_model.own_forward")

GROUP = 4
TOWERS = {"gemma3": "vision_tower", "lfm2_vl": "vision_tower", "qwen3_5": "visual"}
"""Kinds with pictures that see both ways, with convolutions and with linear attention -> their tower."""


@contextmanager
def whole_rows(policy):
    reason, policy.model.cache_reason = policy.model.cache_reason, "a test"
    yield
    policy.model.cache_reason = reason


def runs_of(policy, tower):
    """Counts the calls of a tower from here on."""
    calls = []
    getattr(policy.model.base.model, tower).register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.fixture
def prompts(make_prompt, make_picture):
    """One with a picture, one longer than any window, one with two pictures; the first and the last are one batch."""
    return [
        make_prompt("a", "what is this", images=[make_picture(1)]),
        make_prompt("b", "and how many of these are there " * 4),
        make_prompt("c", "which", images=[make_picture(2), make_picture(3, 84, 56)]),
    ]


def rows_of(policy, prompts, max_tokens=12):
    sampling = Sampling(max_tokens=max_tokens, temperature=1.0, top_p=1.0, top_k=0, seed=0)
    return [rollout.rows[0] for group in policy.rollout(prompts, GROUP, sampling) for rollout in group.rollouts]


@pytest.mark.parametrize("kind", TOWERS)
def test_each_prompt_runs_once_with_the_values_and_gradients_of_whole_rows(kind, tiny_model, prompts):
    policy = LanguageModelPolicy(tiny_model(kind), precision="float32")
    assert policy.model.plain_reason is not None and policy.model.cache_reason is None
    assert policy.describe()[0].startswith("prompts run once for each group, in updates too, by its own forward: ")
    calls, counters = runs_of(policy, TOWERS[kind]), policy.counters
    rows = rows_of(policy, prompts)
    assert counters["media_encodes"] == 3 and len(calls) == 1
    parameters = {name: value for name, value in policy.module.named_parameters() if value.requires_grad}

    def passed():
        """Logprobs, gradients, media, calls of the tower and tokens of an update."""
        counters.clear()
        calls.clear()
        logprobs = policy.logprobs(rows).logprobs
        gradients = torch.autograd.grad(logprobs.sum(), list(parameters.values()), allow_unused=True)
        tokens = counters["update_tokens"] - counters["padding_tokens"]
        return logprobs.detach(), gradients, counters["media_encodes"], len(calls), tokens

    found, gradients, media, num_calls, tokens = passed()
    with whole_rows(policy):
        expected, whole_gradients, whole_media, _, whole_tokens = passed()
    assert (media, whole_media, num_calls) == (3, 3 * GROUP, 1)
    lengths = [len(row.observation) for row in rows[::GROUP]]
    assert whole_tokens - tokens == (GROUP - 1) * sum(lengths)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0.0)
    for place, row in enumerate(rows):
        torch.testing.assert_close(found[place, : row.num_actions], row.sampler_logprobs, atol=1e-5, rtol=0.0)
    size = torch.stack([value.norm() for value in whole_gradients if value is not None]).norm()
    for name, own, value in zip(parameters, gradients, whole_gradients, strict=True):
        assert (own is None) == (value is None), name
        if own is not None:  # of the whole gradient too: some parameters' own is what is left of large sums
            assert (own - value).norm() <= 1e-5 * value.norm() + 1e-6 * size, name


@pytest.mark.parametrize("kind", ["qwen3_5", "gemma4"])
def test_in_float64_nothing_is_left_of_what_gradients_differ_by(kind, tiny_model, prompts, monkeypatch):
    """In float32 some differ by up to 7e-5 of their own norm: A_log of linear attention is what is left of sums."""
    policy = LanguageModelPolicy(tiny_model(kind), precision="float32")
    rows = rows_of(policy, prompts)
    for name in ("float32", "float"):  # transformers casts to float32 by name
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    policy.module.double()
    for row in rows:
        media = row.observation.media
        media |= {name: value.double() for name, value in media.items() if value.is_floating_point()}
    parameters = {name: value for name, value in policy.module.named_parameters() if value.requires_grad}

    def passed():
        logprobs = policy.logprobs(rows).logprobs
        assert logprobs.dtype == torch.float64
        return logprobs.detach(), torch.autograd.grad(logprobs.sum(), list(parameters.values()), allow_unused=True)

    found, gradients = passed()
    with whole_rows(policy):
        expected, whole_gradients = passed()
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0.0)
    for name, own, value in zip(parameters, gradients, whole_gradients, strict=True):
        assert value is None or (own - value).norm() <= 1e-11 * value.norm(), name


@pytest.mark.parametrize("kind", ["qwen3_5", "lfm2_vl"])
@pytest.mark.parametrize("num_tokens", [1, 2])
def test_short_completions_are_no_exception(kind, num_tokens, tiny_model, prompts):
    """Models with a state take a single token for a step of decoding, which writes over the state."""
    policy = LanguageModelPolicy(tiny_model(kind), precision="float32")
    rows = rows_of(policy, prompts, max_tokens=num_tokens)
    found = policy.logprobs(rows).logprobs
    found.sum().backward()
    with whole_rows(policy):
        torch.testing.assert_close(found, policy.logprobs(rows).logprobs, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize(
    ("altered", "said"),
    [
        (lambda hidden: hidden * 2, "a prompt's cache changes logprobs by"),
        (lambda hidden: (hidden + hidden.detach()) / 2, "a prompt's cache changes the gradient of"),
    ],
)
def test_a_cache_that_does_not_fit_is_found_at_load(altered, said, tiny_model, monkeypatch):
    monkeypatch.setattr("mmrl_core.language_model.proof._proven", {})
    whole = own_forward.OwnForward.after_prompts

    def wrong(self, rows, on_pass):
        return [altered(hidden) for hidden in whole(self, rows, on_pass)]

    monkeypatch.setattr(own_forward.OwnForward, "after_prompts", wrong)
    policy = LanguageModelPolicy(tiny_model("lfm2_vl"), precision="float32")
    assert said in policy.model.cache_reason
    assert policy.describe()[0].startswith("prompts run once for each completion: it has layers of kind conv")


def test_recomputed_activations_leave_no_cache_to_go_on_from(tiny_model, prompts):
    policy = LanguageModelPolicy(tiny_model("lfm2_vl"), precision="float32", gradient_checkpointing=True)
    assert policy.model.cache_reason == "recomputing activations leaves no cache"
    rows = rows_of(policy, prompts)
    policy.counters.clear()
    policy.logprobs(rows).logprobs.sum().backward()
    assert policy.counters["media_encodes"] == 3 * GROUP

"""Rollout engines of the language-model policy: `hf` samples in process, `vllm` through vLLM.

An engine is registered under kind "engine" and made with the options of `rollout.engine` alone, so that making one is
cheap. It starts what it needs when it is first asked to generate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mmrl_core.language_model.encoder import PromptEncoder
from mmrl_core.language_model.module import LanguageModel
from mmrl_core.language_model.observations import Observation
from mmrl_core.language_model.options import LanguageModelOptions
from mmrl_core.types import Prompt, Sampling


@dataclass(frozen=True)
class Sampled:
    """One sampled completion.

    Attributes:
        tokens: int64 [T], with the stop token if it was reached.
        logprobs: float32 [T].
        truncated: a limit ended the completion.
    """

    tokens: Tensor
    logprobs: Tensor
    truncated: bool


OnFinished = Callable[[int, list[Sampled]], None]
"""Called with the index of a prompt and its completions as soon as all of them are done."""


class Sampler(Protocol):
    """The policy as an engine sees it: what it may read, and nothing that trains.

    Attributes:
        path: folder or hub name that the policy started from. The weights there are not the present ones.
        options: of the policy.
    """

    path: str | Path
    options: LanguageModelOptions

    @property
    def model(self) -> LanguageModel:
        """The present weights, the ids that stop, and those that are never sampled. `count` counts work."""
        ...

    @property
    def encoder(self) -> PromptEncoder:
        """Template, tokenizer and processor."""
        ...

    def autocast(self) -> torch.autocast:
        """The precision that forward passes run in."""
        ...


class Engine(Protocol):
    """Samples completions for the language-model policy."""

    def generate(
        self,
        policy: Sampler,
        prompts: Sequence[Prompt],
        observations: Sequence[Observation],
        num_samples: int,
        sampling: Sampling,
        on_finished: OnFinished,
    ) -> None:
        """Complete each observation `num_samples` times.

        Logprobs are those of the model's whole distribution at the sampling temperature (at 1 when greedy), also where
        top-p, top-k or the ban on media placeholders narrowed the choice: they are what the trainer computes. Media
        placeholders are never sampled.

        Args:
            policy: policy whose model is sampled from.
            prompts: N prompts.
            observations: N observations to complete: encoded prompts, or conversations that began with them.
            num_samples: completions of each.
            sampling: limits, temperature, truncation, seed. Equal seeds and weights give equal completions.
            on_finished: called once for each prompt when its completions are done, in any order.
        """
        ...

    def weights_changed(self, policy: Sampler) -> None:
        """Take over the policy's weights, which have changed since the last call."""
        ...

    def close(self) -> None:
        """Release what the engine holds: processes, memory, ports. May be called more than once."""
        ...


@runtime_checkable
class OtherProgram(Protocol):
    """An engine that computes with a program of its own: it is held against the trainer before a run relies on it."""

    def start(self, policy: Sampler, max_tokens: int) -> None:
        """Start with the present weights, for completions of at most `max_tokens` tokens.

        Raises:
            PolicyError: it does not start.
        """
        ...

    def forced_logprobs(
        self, policy: Sampler, prompt: Prompt, observation: Observation, token: int, num_tokens: int
    ) -> Tensor:
        """Logprobs float32 [num_tokens], at temperature 1, of the completion that is this token again and again.

        Computed as completions are sampled, so that the media, the prompt and each sampled token pass the same way.

        Raises:
            PolicyError: the engine does not take the prompt; it can be used for others.
        """
        ...

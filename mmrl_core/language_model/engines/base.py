"""What a rollout engine of the language-model policy is: `hf` samples in process, `vllm` through vLLM.

An engine is registered under kind "engine" and made with the options of `rollout.engine` alone, so that making one is
cheap; it starts what it needs when it is first asked to generate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from mmrl_core.types import Prompt, Sampling

if TYPE_CHECKING:
    from mmrl_core.language_model.encoder import Observation
    from mmrl_core.language_model.policy import LanguageModelPolicy


@dataclass(frozen=True)
class Sampled:
    """One sampled completion: `tokens` int64 [T] with the stop token if it was reached, `logprobs` float32 [T]."""

    tokens: Tensor
    logprobs: Tensor
    truncated: bool


OnFinished = Callable[[int, list[Sampled]], None]
"""Told the index of a prompt and its completions as soon as all of them are done."""


class Engine(Protocol):
    """Samples completions for the language-model policy."""

    def generate(
        self,
        policy: LanguageModelPolicy,
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
            policy: whose model, prompt encoder, config and starting path the engine may read.
            prompts: N prompts.
            observations: what is completed: each prompt as the policy encoded it, or a conversation that it began.
            num_samples: completions of each.
            sampling: limits, temperature, truncation, seed; equal seeds and weights give equal completions.
            on_finished: called once for each prompt when its completions are done, in any order.
        """
        ...

    def weights_changed(self, policy: LanguageModelPolicy) -> None:
        """The policy's weights are other than those the engine was last told of; it takes them over now."""
        ...

    def close(self) -> None:
        """Give back what the engine holds: processes, memory, ports. May be called more than once."""
        ...

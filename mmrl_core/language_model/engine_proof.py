"""What an engine of another program shows before a run relies on it: that it sees media, and agrees with the trainer.

The same prompts as in `proof.py` are used, with one medium or none. The completion is one token repeated, so that it is
the same whatever the engine would sample. A kind of media that the engine refuses is noted and ends no run without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmrl_core.errors import NotFiniteError, PolicyError
from mmrl_core.language_model.engines.base import OtherProgram, Sampler
from mmrl_core.language_model.engines.vllm_weights import computed_dtype
from mmrl_core.language_model.observations import Encoded
from mmrl_core.language_model.proof import (
    BLIND,
    LIMITS,
    completions,
    largest,
    named,
    proof_prompt,
    undisturbed,
    unseen,
)
from mmrl_core.types import Prompt, Row

NUM_TOKENS = 4
"""Length of the completion."""

TEXT = "text"
"""What a prompt without media is called here."""


@dataclass
class EngineProof:
    """What was found.

    Attributes:
        limit: largest difference of a logprob that is rounding.
        difference: kind of media, or "text" -> largest difference between a logprob of the engine and the trainer's.
        seen: kind of media -> how far another medium moves the engine's logprobs.
        blind: kinds of media that the engine does not see -> a clause that says so, and what was tried.
        refused: kinds of media that the engine does not take -> why.
    """

    limit: float
    difference: dict[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    blind: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def numbers(self) -> dict[str, float]:
        """For metrics.jsonl."""
        found = {f"engine/seen/{kind}": moved for kind, moved in self.seen.items()}
        return found | {f"engine/difference/{kind}": value for kind, value in self.difference.items()}

    def lines(self) -> list[str]:
        """For a dry run, and the start of a run."""
        told = []
        if self.seen:
            moved = ", ".join(f"{kind} {value:.1g}" for kind, value in self.seen.items())
            told.append(f"in the rollout engine it moves a logprob by: {moved}")
        if self.difference:
            differs = ", ".join(f"{kind} {value:.1g}" for kind, value in self.difference.items())
            told.append(f"logprobs of the rollout engine and the trainer differ by: {differs}")
        for kind, value in self.difference.items():
            if not value <= self.limit:
                told.append(
                    f"warning: with {named(() if kind == TEXT else (kind,))} logprobs of the rollout engine are "
                    f"{value:.2g} away from the trainer's, where rounding explains {self.limit:g}: set "
                    "algorithm.importance_correction, or rollout.engine to hf"
                )
        return told + [f"the rollout engine takes no {kind}: {why}" for kind, why in self.refused.items()]


def prove_engine(policy: Sampler, engine: OtherProgram, kinds: Sequence[str]) -> EngineProof:
    """Hold a started engine against the trainer, with a prompt of text and one with each kind of media.

    Raises:
        PolicyError: the engine does not take a prompt of text.
        NotFiniteError: a logprob is NaN or infinite.
    """
    proof = EngineProof(LIMITS.get(computed_dtype(policy), 0.15))
    token = int(completions(policy.model)[0][0])

    def logprobs(prompt: Prompt) -> Tensor:
        return engine.forced_logprobs(policy, prompt, policy.encoder.encode(prompt), token, NUM_TOKENS)

    with undisturbed(policy.model, policy.encoder):
        prompt = proof_prompt(policy.encoder, ())
        proof.difference[TEXT] = largest([logprobs(prompt)], [_trainers(policy, prompt, token)])
        for kind in kinds:
            prompt, other = (proof_prompt(policy.encoder, (kind,), other=other) for other in (False, True))
            try:
                first, again, moved = logprobs(prompt), logprobs(prompt), logprobs(other)
            except NotFiniteError:
                raise
            except PolicyError as error:
                proof.refused[kind] = str(error)
                continue
            proof.difference[kind] = largest([first], [_trainers(policy, prompt, token)])
            proof.seen[kind] = largest([first], [moved])
            if proof.seen[kind] <= max(BLIND, largest([first], [again])):
                proof.blind[kind] = unseen("rollout engine", kind, proof.seen[kind])
    return proof


@torch.no_grad()
def _trainers(policy: Sampler, prompt: Prompt, token: int) -> Tensor:
    """Logprobs of the same completion as the trainer computes them."""
    observation: Encoded = policy.encoder.encode(prompt)
    row = Row(prompt.id, f"{prompt.id}/0", observation, torch.full((NUM_TOKENS,), token), NUM_TOKENS)
    with policy.autocast():
        return policy.model([row]).logprobs[0, :NUM_TOKENS].cpu()

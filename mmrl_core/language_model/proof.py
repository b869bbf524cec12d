"""What a model shows at load, with each kind of medium that it takes, before a run relies on it.

The truth is the model's own forward on the processor's outputs, one completion at a time, without padding, cache or
shared prompt. Against it are held, on two completions of a prompt with an image, two images, a video, an audio, and
without a medium, all in one batch:

    shared prompts    forward, gradient and sampling; what differs makes the model run its own forward
    a prompt's cache  of the own forward, with the same; what differs runs completions whole
    own forward       padded, and sampling from its cache; what differs refuses the model
    blindness         the same prompt with another medium must change the logprobs of its completion

In bfloat16 only differences above its rounding are seen. A process does this once for models of one configuration.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl_core.errors import PolicyError, TaskDataError
from mmrl_core.language_model.encoder import PromptEncoder
from mmrl_core.language_model.module import LanguageModel
from mmrl_core.language_model.observations import Encoded
from mmrl_core.types import Prompt, Row

MEDIA = ("image", "video", "audio")

LENGTHS = (5, 3)
"""Tokens of the two completions of each prompt."""

LIMITS = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Type of the weights -> largest difference of a logprob that is rounding; 0.15 for the shorter types."""

TIMES_NOISE = 10.0
"""A shared prompt may differ from the truth by this many times what padding and batching alone do."""

BLIND = 1e-7
"""A change of the medium that moves no logprob by more than this was not seen."""


@dataclass
class Proof:
    """What was found.

    Attributes:
        kinds: media of each prompt, such as ("image", "image"), that the model and its processor take.
        shared: kinds -> largest difference of a logprob with shared prompts.
        own: kinds -> the same with its own forward, in a batch.
        seen: kind -> how far another medium moves the logprobs.
    """

    kinds: list[tuple[str, ...]] = field(default_factory=list)
    shared: dict[tuple[str, ...], float] = field(default_factory=dict)
    own: dict[tuple[str, ...], float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)

    @property
    def blind(self) -> dict[str, str]:
        """Kinds of media that the model does not see -> a clause that says so, and what was tried."""
        return {kind: unseen("model", kind, moved) for kind, moved in self.seen.items() if moved <= BLIND}


def unseen(who: str, kind: str, moved: float) -> str:
    """A clause for the refusal of a kind of media: who does not see it, and what was tried."""
    return (
        f"the {who} does not see {kind}s: {named((kind,))} of noise in place of another, in the same prompt, moved the "
        f"logprobs of a completion by {moved:.1g}"
    )


_proven: dict[str, tuple[Proof, str | None, str | None]] = {}


def prove(model: LanguageModel, encoder: PromptEncoder) -> Proof:
    """Hold what the model will do against its own forward. It runs that itself where prompts cannot be shared.

    Raises:
        PolicyError: its own forward in a batch, or from its cache, gives other logprobs than alone.
    """
    if not any(encoder.takes(kind) for kind in MEDIA):
        return Proof()
    key = _configuration(model, encoder)
    if key not in _proven:
        with undisturbed(model, encoder):
            proof = _prove(model, encoder)
        _proven[key] = proof, model.plain_reason, model.cache_reason
    proof, model.plain_reason, model.cache_reason = _proven[key]
    return proof


def _configuration(model: LanguageModel, encoder: PromptEncoder) -> str:
    """Digest of all that decides how the model computes; of each weight the first numbers."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parts = [model.base.config.to_json_string(), type(model.base), type(model.model), _dtype(model), model.device]
    parts += [model.plain_reason, model.lean_decoding, _recomputes(model), trained, encoder.processor]
    plain = [weight.detach() for weight in model.parameters() if type(weight.data) is Tensor]  # not quantised ones
    parts += [weight.flatten()[:4].float().tolist() for weight in plain]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _recomputes(model: LanguageModel) -> bool:
    """Whether layers run again in the backward pass, which in training they do without a cache."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.base.modules())


def _prove(model: LanguageModel, encoder: PromptEncoder) -> Proof:
    proof = Proof()
    cases = list(_cases(encoder))
    proof.kinds = [kinds for kinds, _ in cases]
    if any(proof.kinds):
        truths = [_truth(model, observation) for _, observation in cases]
        _prove_own(model, encoder, proof, truths)
        if model.plain_reason is None:
            model.plain_reason = _reason(model, encoder, proof, truths, "a shared prompt", proof.shared)
        if model.plain_reason is not None:
            model.cache_reason = _cache_reason(model, encoder, proof, truths)
        for kind in dict.fromkeys(kind for kinds in proof.kinds for kind in kinds):
            truth = truths[proof.kinds.index((kind,))]
            proof.seen[kind] = largest(truth, _truth(model, _encoded(encoder, (kind,), other=True)))
    return proof


@contextmanager
def undisturbed(model: LanguageModel, encoder: PromptEncoder) -> Iterator[None]:
    """No dropout, no counting, temperature 1, prompts of any length, and nothing of it stays in caches."""
    counters, training, limit = dict(model.counters), model.training, encoder.max_tokens
    temperature, cache = model.temperature, model.feature_cache
    model.eval()
    model.temperature, model.feature_cache, encoder.max_tokens = 1.0, None, sys.maxsize
    try:
        yield
    finally:
        model.train(training)
        model.temperature, model.feature_cache, encoder.max_tokens = temperature, cache, limit
        model.counters.clear()
        model.counters.update(counters)
        encoder.clear_cache()


def _prove_own(model: LanguageModel, encoder: PromptEncoder, proof: Proof, truths: Sequence[list[Tensor]]) -> None:
    with _own(model):
        for case, difference in enumerate(_differences(model, encoder, proof.kinds, truths)):
            proof.own[proof.kinds[case]] = difference
            limit = LIMITS.get(_dtype(model), 0.15)
            if not difference < limit:
                raise PolicyError(
                    f"{type(model.base).__name__} cannot be trusted with {named(proof.kinds[case])}: in a batch, or "
                    f"from its cache, its forward gives logprobs that differ by {difference:.2g} from those it gives "
                    "alone."
                )


def _cache_reason(
    model: LanguageModel, encoder: PromptEncoder, proof: Proof, truths: Sequence[list[Tensor]]
) -> str | None:
    """Why its own forward cannot go on from a prompt's cache in the update."""
    if _recomputes(model):
        return "recomputing activations leaves no cache"
    model.cache_reason = None
    return _reason(model, encoder, proof, truths, "a prompt's cache", {})


def _reason(
    model: LanguageModel,
    encoder: PromptEncoder,
    proof: Proof,
    truths: Sequence[list[Tensor]],
    what: str,
    found: dict[tuple[str, ...], float],
) -> str | None:
    """Why prompts cannot be run as the model runs them now; None if everything agrees. Keeps differences in `found`."""
    try:
        differences = _differences(model, encoder, proof.kinds, truths)
        gradients = _gradients(model, _rows(encoder, proof.kinds, model))
    except Exception as error:  # whatever an unknown architecture raises, there is its own forward
        return f"its media do not fit {what} ({type(error).__name__}: {error})".splitlines()[0]
    noise = max(*proof.own.values(), 1e-6)
    if found is proof.shared:  # which was held against a plain forward without media before
        noise = max(noise, differences[proof.kinds.index(())])
    for kinds, difference in zip(proof.kinds, differences, strict=True):
        found[kinds] = difference
        if not difference <= TIMES_NOISE * noise:
            return f"with {named(kinds)} {what} changes logprobs by {difference:.1g}"
    with _own(model):
        expected = _gradients(model, _rows(encoder, proof.kinds, model))
    for name, own in expected.items():
        if name not in gradients:
            return f"{what} gives {name} no gradient"
        difference = float((gradients[name] - own).norm() / own.norm().clamp(min=1e-12))
        if not difference < (1e-3 if _dtype(model) == torch.float32 else 0.2):
            return f"{what} changes the gradient of {name} by {difference:.1g} of its size"
    return None


# Prompts


def _cases(encoder: PromptEncoder) -> Iterator[tuple[tuple[str, ...], Encoded]]:
    """Kinds of media of a prompt, and the prompt, for all that the processor takes."""
    media = [kind for kind in MEDIA if encoder.takes(kind)]
    pairs = [(kind, kind) for kind in media if kind == "image"]
    for kinds in [(), *((kind,) for kind in media), *pairs]:
        try:
            yield kinds, _encoded(encoder, kinds)
        except (TaskDataError, ValueError, TypeError, KeyError, IndexError, RuntimeError):
            if not kinds:
                raise  # the template takes no text; what it does with a medium is said where a run has one


def _encoded(encoder: PromptEncoder, kinds: Sequence[str], *, other: bool = False) -> Encoded:
    return encoder.encode(proof_prompt(encoder, kinds, other=other))


def proof_prompt(encoder: PromptEncoder, kinds: Sequence[str], *, other: bool = False) -> Prompt:
    """A short prompt with media of these kinds; with others of the same sizes where `other` is set."""
    parts: list[dict[str, Any]] = [_medium(kind, place, encoder, other) for place, kind in enumerate(kinds)]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]
    return Prompt(f"proof {kinds}", messages, {})


def _medium(kind: str, place: int, encoder: PromptEncoder, other: bool) -> dict[str, Any]:
    """A small medium of noise; the second is of another size, the other one of another content."""
    generator = torch.Generator().manual_seed(10 * place + other)
    if kind == "audio":
        rate = encoder.audio_rate_hz or 16000
        samples = torch.rand(rate - place * rate // 3, generator=generator) - 0.5
        return {"type": "audio", "audio": samples.numpy(), "sampling_rate": rate}
    width, height = (112, 84) if place == 0 else (84, 140)
    if kind == "image":
        from PIL import Image

        pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
        return {"type": "image", "image": Image.fromarray(pixels.numpy())}
    frames = torch.randint(0, 256, (4, 3, height, width), dtype=torch.uint8, generator=generator)
    about = {"fps": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3], "video_backend": "pyav"}
    return {"type": "video", "video": frames, "metadata": about}


def completions(model: LanguageModel) -> list[Tensor]:
    """Ordinary tokens, the same for each prompt."""
    special = {*model.banned_ids.tolist(), *model.stop_ids}
    ids = [index for index in range(model.base.get_input_embeddings().weight.shape[0]) if index not in special]
    tokens = torch.tensor(ids[:: max(1, len(ids) // 97)])
    return [tokens[7 + place : 7 + place + length] for place, length in enumerate(LENGTHS)]


def _rows(encoder: PromptEncoder, kinds: Sequence[tuple[str, ...]], model: LanguageModel) -> list[Row]:
    encoder.clear_cache()
    observations = [_encoded(encoder, item) for item in kinds]
    return [
        Row(str(case), f"{case}/{place}", observation, tokens, len(tokens))
        for case, observation in enumerate(observations)
        for place, tokens in enumerate(completions(model))
    ]


# Logprobs


@torch.no_grad()
def _truth(model: LanguageModel, observation: Encoded) -> list[Tensor]:
    """Logprobs of each completion by the model's own forward and head, alone."""
    found = []
    for tokens in completions(model):
        ids = torch.cat([observation.input_ids, tokens])[None].to(model.device)
        logits = model.own.logits(ids, observation, len(tokens))
        found.append(
            logits[0, len(observation) - 1 : -1].float().log_softmax(-1).cpu().gather(-1, tokens[:, None])[:, 0]
        )
    return found


def _differences(
    model: LanguageModel, encoder: PromptEncoder, kinds: Sequence[tuple[str, ...]], truths: Sequence[list[Tensor]]
) -> list[float]:
    """Largest difference of each prompt, of the update's logprobs and of the sampler's."""
    rows = _rows(encoder, kinds, model)
    with torch.no_grad():
        updated = model(rows).logprobs.cpu()
    sampled = _sampled(model, rows)
    found = []
    for case, truth in enumerate(truths):
        places = range(case * len(LENGTHS), (case + 1) * len(LENGTHS))
        differences = [largest(truth, [updated[row, : rows[row].num_actions] for row in places])]
        differences.append(largest([item[:2] for item in truth], [sampled[row] for row in places]))
        found.append(max(differences))
    return found


@torch.no_grad()
def _sampled(model: LanguageModel, rows: Sequence[Row]) -> Tensor:
    """Logprobs [B, 2] of the first tokens of each completion, as the sampler computes them."""
    decoding, hidden = model.start_decoding([row.observation for row in rows])
    tokens = torch.stack([row.action[:2] for row in rows]).to(model.device)
    logprobs = torch.zeros(len(rows) + 1, 2)  # the last row takes slots that only fill up
    order = decoding.rows
    for step in range(2):
        chosen = tokens[order.clamp(min=0), step]
        found = model.logits(hidden).float().log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
        logprobs[order.cpu(), step] = found.cpu()
        if step == 0:
            hidden = model.decode(decoding, chosen)
    return logprobs[:-1]


def _gradients(model: LanguageModel, rows: Sequence[Row]) -> dict[str, Tensor]:
    """Gradients of the summed logprobs for a first and a last trained parameter of each part of the model."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    parts: dict[str, list[str]] = {}
    for name, _ in named:
        parts.setdefault(".".join(name.split(".")[:4]), []).append(name)
    chosen = {name for names in parts.values() for name in (names[0], names[-1])}
    parameters = {name: parameter for name, parameter in named if name in chosen}
    with torch.enable_grad():
        total = model(rows).logprobs.sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {
        name: gradient.detach() for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None
    }


def largest(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    return max(float((first - second).abs().max()) for first, second in zip(one, two, strict=True))


@contextmanager
def _own(model: LanguageModel) -> Iterator[None]:
    """The model runs its own forward inside, each completion whole."""
    reasons = model.plain_reason, model.cache_reason
    model.plain_reason = model.cache_reason = "it is being proven"
    try:
        yield
    finally:
        model.plain_reason, model.cache_reason = reasons


def _dtype(model: LanguageModel) -> torch.dtype:
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else next(model.parameters()).dtype


def named(kinds: Sequence[str]) -> str:
    if not kinds:
        return "text alone"
    if len(kinds) > 1:
        return f"{len(kinds)} {kinds[0]}s"
    return f"{'an' if kinds[0][0] in 'ai' else 'a'} {kinds[0]}"

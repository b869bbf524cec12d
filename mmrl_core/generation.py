"""Rollout engine `hf`: samples with the training weights, in process.

Each prompt is prefilled once; its key/value cache is expanded to the group. Logprobs are kept as tokens are sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmrl_core.types import Sampling

if TYPE_CHECKING:
    from mmrl_core.language_model import LanguageModel
    from mmrl_core.prompt_encoder import Encoded


@dataclass(frozen=True)
class Sampled:
    """One sampled completion: `tokens` int64 [T] with the stop token if it was reached, `logprobs` float32 [T]."""

    tokens: Tensor
    logprobs: Tensor
    truncated: bool


class HFEngine:
    """Samples completions with the model that is trained."""

    def generate(
        self, model: LanguageModel, prompts: Sequence[Encoded], num_samples: int, sampling: Sampling
    ) -> list[list[Sampled]]:
        """Complete each prompt `num_samples` times.

        Args:
            model: the trained module.
            prompts: N encoded prompts.
            num_samples: completions of each.
            sampling: limits, temperature, truncation, seed.

        Returns:
            N lists of `num_samples` completions. Logprobs are those of the model's whole distribution at the
            sampling temperature (at 1 when greedy), also where top-p, top-k or the ban on media placeholders narrowed
            the choice: they are what the trainer computes.
        """
        device = model.device
        generator = torch.Generator(device=device).manual_seed(sampling.seed)
        training = model.training
        model.eval()  # layers that checkpoint their activations keep no cache while training
        try:
            with torch.no_grad():
                prefix = model.prefill(prompts)
                prefix.repeat(num_samples)
                hidden = prefix.last_hidden  # [N * G, hidden]
                tokens, logprobs, lengths = self._decode(model, prefix, hidden, sampling, generator)
        finally:
            model.train(training)
        model.count("decode_tokens", int(lengths.sum()))
        tokens, logprobs, lengths = tokens.cpu(), logprobs.cpu(), lengths.cpu()
        stops = torch.isin(tokens, torch.tensor(sorted(model.stop_ids)))
        samples = [
            Sampled(tokens[i, :n].clone(), logprobs[i, :n].clone(), truncated=not bool(stops[i, n - 1]))
            for i, n in enumerate(lengths.tolist())
        ]
        return [samples[i * num_samples : (i + 1) * num_samples] for i in range(len(prompts))]

    def _decode(
        self,
        model: LanguageModel,
        prefix: Prefix,
        hidden: Tensor,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample token by token; rows that have stopped leave the batch once they are half of it."""
        num_rows, device = hidden.shape[0], hidden.device
        tokens = torch.zeros(num_rows, sampling.max_tokens, dtype=torch.long, device=device)
        logprobs = torch.zeros(num_rows, sampling.max_tokens, device=device)
        lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
        stop_ids = torch.tensor(sorted(model.stop_ids), device=device)
        live = torch.arange(num_rows, device=device)  # which row each row of the cache is
        stopped = torch.zeros(num_rows, dtype=torch.bool, device=device)
        for step in range(sampling.max_tokens):
            chosen, chosen_logprobs = sample(model.logits(hidden), sampling, generator, banned=model.banned_ids)
            going = ~stopped
            tokens[live[going], step] = chosen[going]
            logprobs[live[going], step] = chosen_logprobs[going]
            lengths[live[going]] = step + 1
            stopped |= torch.isin(chosen, stop_ids)
            num_stopped = int(stopped.sum())
            if num_stopped == len(live) or step + 1 == sampling.max_tokens:
                break
            if 2 * num_stopped >= len(live):
                keep = (~stopped).nonzero()[:, 0]
                prefix.select(keep)
                live, chosen, stopped = live[keep], chosen[keep], stopped[keep]
            hidden = model.extend(prefix, chosen[:, None])[:, -1]
        return tokens, logprobs, lengths


class Prefix:
    """A prefilled batch of sequences, ready to be continued.

    Attributes:
        cache: transformers' key/value cache of all tokens so far, R rows.
        last_hidden: [R, hidden], the hidden state that predicts the first new token.
        next_position: int64 [R], position of the next token.
        mask: bool [R, tokens so far], False on padding; None where nothing is padded.
        num_axes: 3 with M-RoPE, otherwise 1.
    """

    def __init__(
        self, cache: Any, last_hidden: Tensor, next_position: Tensor, mask: Tensor | None, num_axes: int
    ) -> None:
        self.cache = cache
        self.last_hidden = last_hidden
        self.next_position = next_position
        self.mask = mask
        self.num_axes = num_axes

    def repeat(self, count: int) -> None:
        """Make `count` copies of each row, next to each other; gradients flow back to it."""
        if count > 1:
            self.cache.batch_repeat_interleave(count)
            self._apply(lambda tensor: tensor.repeat_interleave(count, 0))

    def select(self, rows: Tensor) -> None:
        """Make row i a copy of the present row `rows[i]` (int64 [R']); gradients flow back to it."""
        self.cache.batch_select_indices(rows)
        self._apply(lambda tensor: tensor[rows])

    def _apply(self, change: Callable[[Tensor], Tensor]) -> None:
        self.last_hidden = change(self.last_hidden)
        self.next_position = change(self.next_position)
        self.mask = None if self.mask is None else change(self.mask)


def sample(
    logits: Tensor, sampling: Sampling, generator: torch.Generator, *, banned: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one token for each row.

    Args:
        logits: [R, V].
        sampling: temperature 0 takes the likeliest token.
        generator: source of randomness, on the logits' device.
        banned: int64 ids that are never drawn.

    Returns:
        Tokens int64 [R], and float32 [R] their logprobs under softmax(logits / temperature) over all V tokens.
    """
    logits = logits.float()
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    log_norm = logits.logsumexp(-1)
    allowed = logits.clone()
    if banned is not None and len(banned):
        allowed[:, banned] = -torch.inf
    if sampling.temperature == 0:
        chosen = allowed.argmax(-1)
    else:
        allowed = _truncate(allowed, sampling.top_k, sampling.top_p)
        # One uniform number a row against the summed probabilities: exact, and cheaper than torch.multinomial.
        summed = allowed.softmax(-1).cumsum(-1)
        drawn = torch.rand(len(summed), 1, generator=generator, device=logits.device) * summed[:, -1:]
        drawn = torch.minimum(drawn, summed[:, -1:].nextafter(torch.zeros_like(drawn)))  # never past the last token
        chosen = torch.searchsorted(summed, drawn, right=True)[:, 0]
    return chosen, logits.gather(-1, chosen[:, None])[:, 0] - log_norm


def _truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set logits outside the top k, then outside the smallest set of probability top_p, to -inf."""
    if top_k:
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= top_p  # the first token is always kept
        logits = logits.masked_fill(outside.gather(-1, order.argsort(-1)), -torch.inf)
    return logits

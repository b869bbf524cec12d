"""Rollout engine `hf`: samples with the training weights, in process.

Each prompt runs once, and its completions share its keys and values. Logprobs are kept as tokens are sampled.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy

import torch
from torch import Tensor

from mmrl_core.errors import NotFiniteError
from mmrl_core.language_model.decoding import Decoding
from mmrl_core.language_model.engines.base import OnFinished, Sampled, Sampler
from mmrl_core.language_model.module import LanguageModel
from mmrl_core.language_model.observations import Observation
from mmrl_core.support import describe_weights
from mmrl_core.types import Prompt, Sampling

LOOK_EVERY = {"cpu": 1}
"""Steps between looks at which completions have ended. A look makes a GPU wait, so it is rarer there."""
LOOK_EVERY_DEFAULT = 8


class HFEngine:
    """Samples completions with the model that is trained, or with a copy of it.

    Attributes:
        copies: whether it is a copy.
    """

    def __init__(self, *, copy: bool = False) -> None:
        """
        Args:
            copy: sample with a copy of the model, which takes over the weights when they are published. Needed where
                the next step is sampled while this one trains (`rollout.steps_ahead`). It doubles the model's memory.
        """
        self.copies = copy
        self._own: LanguageModel | None = None

    def generate(
        self,
        policy: Sampler,
        prompts: Sequence[Prompt],
        observations: Sequence[Observation],
        num_samples: int,
        sampling: Sampling,
        on_finished: OnFinished,
    ) -> None:
        """See `Engine.generate`. Draws depend on the seed and the place of the completion, not on other completions."""
        model = self._model(policy)
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                decoding, hidden = model.start_decoding([item for item in observations for _ in range(num_samples)])
            completions = _Completions(model, len(prompts), num_samples, sampling, on_finished)
            with torch.inference_mode():
                _decode(model, decoding, hidden, sampling, completions)
        finally:
            model.train(training)
        completions.finish()

    def _model(self, policy: Sampler) -> LanguageModel:
        if not self.copies:
            return policy.model
        if self._own is None:
            self._own = deepcopy(policy.model)
            self._own.counters = policy.model.counters
        self._own.temperature = policy.model.temperature
        return self._own

    def weights_changed(self, policy: Sampler) -> None:
        """See `Engine.weights_changed`. Without a copy there is one set of weights."""
        if self._own is not None:
            with torch.no_grad():
                for own, trained in zip(self._own.parameters(), policy.model.parameters(), strict=True):
                    own.copy_(trained)

    def close(self) -> None:
        self._own = None


def _decode(
    model: LanguageModel, decoding: Decoding, hidden: Tensor, sampling: Sampling, completions: _Completions
) -> None:
    """Sample token by token. Ended slots leave the batch once they are half of it."""
    device = hidden.device
    generator = torch.Generator(device=device).manual_seed(sampling.seed)
    num_rows = int(decoding.rows.max()) + 1
    draws = torch.rand(sampling.max_tokens, num_rows + 1, generator=generator, device=device)
    rows = decoding.rows.masked_fill(decoding.rows < 0, num_rows)  # of each slot; num_rows where it has ended
    look_every = LOOK_EVERY.get(device.type, LOOK_EVERY_DEFAULT)
    for step in range(sampling.max_tokens):
        tokens, logprobs = sample(model.logits(hidden), sampling, draws[step, rows], banned=model.banned_ids)
        stops = completions.add(step, rows, tokens, logprobs)
        rows = rows.masked_fill(stops, num_rows)
        if step + 1 == sampling.max_tokens:
            break
        if (step + 1) % look_every == 0:
            live = rows < num_rows
            num_live = completions.look(live, rows)
            if num_live == 0:
                break
            if 2 * num_live <= len(rows):
                index = decoding.compact(live)
                rows = torch.where(index < 0, num_rows, rows[index])
                tokens = tokens[index]
        hidden = model.decode(decoding, tokens)


class _Completions:
    """Tokens and logprobs sampled so far, for N prompts x G completions."""

    def __init__(
        self,
        model: LanguageModel,
        num_prompts: int,
        num_samples: int,
        sampling: Sampling,
        on_finished: OnFinished,
    ) -> None:
        shape = (num_prompts * num_samples + 1, sampling.max_tokens)  # the last row takes what ended slots sample on
        self._model = model
        self._num_samples = num_samples
        self._tokens = torch.zeros(shape, dtype=torch.long, device=model.device)
        self._logprobs = torch.zeros(shape, device=model.device)
        self._stop_ids = torch.tensor(sorted(model.stop_ids), device=model.device, dtype=torch.long)
        self._on_finished = on_finished
        self._finished: set[int] = set()

    def add(self, step: int, rows: Tensor, tokens: Tensor, logprobs: Tensor) -> Tensor:
        """Keep the tokens of a step. Returns which of them end their completion, bool like `rows`."""
        self._tokens[rows, step] = tokens
        self._logprobs[rows, step] = logprobs
        return (tokens[:, None] == self._stop_ids).any(1)

    def look(self, live: Tensor, rows: Tensor) -> int:
        """Report the prompts that are done, and return how many completions have not ended."""
        going = {row // self._num_samples for row in rows[live].tolist()}
        self.finish(going)
        return int(live.sum())

    def finish(self, going: Collection[int] = ()) -> None:
        """Report all prompts that were not reported yet, except those that go on."""
        for prompt in range((len(self._tokens) - 1) // self._num_samples):
            if prompt not in going and prompt not in self._finished:
                self._finish(prompt)

    @torch.inference_mode(False)  # tensors that are trained on later must not come from inference mode
    @torch.no_grad()
    def _finish(self, prompt: int) -> None:
        of_prompt = slice(prompt * self._num_samples, (prompt + 1) * self._num_samples)
        tokens, logprobs = self._tokens[of_prompt].cpu(), self._logprobs[of_prompt].cpu()
        refuse_not_finite(logprobs, self._model)  # they are here now, so that looking makes no device wait
        stops = torch.isin(tokens, self._stop_ids.cpu())
        samples = []
        for index in range(self._num_samples):
            ends = stops[index].nonzero()[:, 0]
            length = int(ends[0]) + 1 if len(ends) else tokens.shape[1]
            samples.append(Sampled(tokens[index, :length].clone(), logprobs[index, :length].clone(), len(ends) == 0))
        self._model.count("decode_tokens", sum(len(sample.tokens) for sample in samples))
        self._finished.add(prompt)
        self._on_finished(prompt, samples)


def refuse_not_finite(logprobs: Tensor, model: LanguageModel) -> None:
    """Raises NotFiniteError if a sampled token has no logprob, which says where the first number fails."""
    if bool(logprobs.isfinite().all()):
        return
    place = int((~logprobs.isfinite()).any(0).nonzero()[0])
    raise NotFiniteError(
        f"the logits of sampled token {place + 1} are NaN or infinite, and {describe_weights(model.base)}. If training "
        "made them so, lower optimizer.lr and go on from a checkpoint before; if not, the model folder is broken, or "
        "needs another model.precision."
    )


def sample(logits: Tensor, sampling: Sampling, draws: Tensor, *, banned: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draw one token for each row.

    Args:
        logits: [R, V].
        sampling: temperature 0 takes the likeliest token.
        draws: float32 [R], uniform in 0..1.
        banned: int64 ids that are never drawn.

    Returns:
        Tokens int64 [R], and float32 [R] their logprobs under softmax(logits / temperature) over all V tokens. A row
        of logits that holds NaN or infinity gives a token without meaning, and NaN as its logprob.
    """
    logits = logits.float()
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    highest = logits.amax(-1, keepdim=True)
    weights = (logits - highest).exp()
    norm = weights.sum(-1, keepdim=True)
    if sampling.temperature == 0:
        allowed = logits if banned is None else logits.index_fill(1, banned, -torch.inf)
        chosen = allowed.argmax(-1, keepdim=True)
    else:
        if banned is not None:
            weights.index_fill_(1, banned, 0.0)
        weights = _truncate(weights, sampling.top_k, sampling.top_p)
        # One uniform number a row against the summed weights: exact, and cheaper than torch.multinomial.
        summed = weights.cumsum(-1)
        total = summed[:, -1:]
        drawn = torch.minimum(draws[:, None] * total, total.nextafter(torch.zeros_like(total)))  # never past the last
        chosen = torch.searchsorted(summed, drawn, right=True)
        chosen = chosen.clamp(max=logits.shape[-1] - 1)  # of NaN it is past the last, and its logprob says so below
    return chosen[:, 0], (logits.gather(-1, chosen) - highest - norm.log())[:, 0]


def _truncate(weights: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set weights outside the top k, then outside the smallest set that holds the share top_p, to 0."""
    if top_k:
        kth = weights.topk(min(top_k, weights.shape[-1]), dim=-1).values[:, -1:]
        weights = weights.masked_fill(weights < kth, 0.0)
    if top_p < 1.0:
        ordered, order = weights.sort(dim=-1, descending=True)
        shares = ordered / ordered.sum(-1, keepdim=True)
        outside = shares.cumsum(-1) - shares >= top_p  # the first token is always kept
        weights = weights.masked_fill(outside.gather(-1, order.argsort(-1)), 0.0)
    return weights

"""The module that is trained: a transformers model whose forward gives logprobs of rows.

A prompt's media features are computed once while their tower is frozen, and its forward runs once for all completions
of its group.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmrl_core.errors import PolicyError
from mmrl_core.language_model.attention import PackedAttention, run_decoder
from mmrl_core.language_model.decode_step import DecodeStep
from mmrl_core.language_model.decoding import Decoding, LayerStep, SharedDecoding
from mmrl_core.language_model.observations import Encoded, Observation, Stretch, root, segments, tail
from mmrl_core.language_model.own_forward import JoinedDecoding, OwnDecoding, OwnForward, alike, collate
from mmrl_core.language_model.packing import Packing, Sequences, each_once
from mmrl_core.language_model.router import RouterBalance
from mmrl_core.language_model.towers import FeatureCache, encode_media, num_media, placeholder_id, towers_frozen
from mmrl_core.loss_inputs import Statistic, TokenStats
from mmrl_core.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel


LOGIT_CHUNK = 1 << 25
"""Logits that exist at one time: 128 MiB in float32, whatever the vocabulary and the length."""

ENTROPY_TILE = 1 << 18
"""Numbers that stay in a CPU's cache while entropies are summed up."""


MEDIA_MARKS = re.compile(r"(image|video|audio|vision|bo[iav]|eo[iav])_(start_|end_)?token_(id|index)")
"""Config attributes with ids of media: placeholders and their brackets. A completion may hold none of them."""


class LanguageModel(nn.Module):
    """The module that is trained: a transformers model whose forward gives logprobs of rows.

    Attributes:
        temperature: logits are divided by it before the softmax, in rollout and update alike.
        plain_reason: why completions run whole, each with its prompt, or None where a group shares its prompt.
        cache_reason: why its own forward runs a prompt for each completion, or None where it goes on from its cache.
        lean_decoding: sampling runs the decoder by a `DecodeStep`.
        feature_cache: where features of frozen towers are kept on disk, if anywhere.
        router: computes the routers' auxiliary loss, where it is asked for.
        counters: work done since the trainer last looked: media encodes, prefill, decode and update tokens.
        own: the model's own forward.
    """

    banned_ids: Tensor

    def __init__(self, model: PreTrainedModel, *, plain_reason: str | None = None, lean_decoding: bool = False) -> None:
        super().__init__()
        self.model = model
        self.temperature = 1.0
        self.plain_reason = plain_reason
        self.cache_reason: str | None = "it is not proven"
        self.lean_decoding = lean_decoding
        self.feature_cache: FeatureCache | None = None
        self.router: RouterBalance | None = None
        self.counters: Counter[str] = Counter()
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # inside a LoRA wrapper
        self._base = [base]  # in a list: it must not be registered as a second submodule
        config = base.config
        text_config = config.get_text_config()
        generation = base.generation_config
        eos = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
        self.stop_ids = {eos} if isinstance(eos, int) else set(eos or [])
        marks = {value for name, value in config.to_dict().items() if MEDIA_MARKS.fullmatch(name) and value is not None}
        self.register_buffer("banned_ids", torch.tensor(sorted(marks), dtype=torch.long), persistent=False)
        self.own = OwnForward(base, marks)
        self._softcap = getattr(text_config, "final_logit_softcapping", None)
        self._logit_scale = getattr(text_config, "logit_scale", None)
        if (scaling := getattr(text_config, "logits_scaling", None)) is not None:
            self._logit_scale = 1.0 / scaling

    @property
    def base(self) -> Any:
        """The transformers model, without a LoRA wrapper around it."""
        return self._base[0]

    @property
    def device(self) -> torch.device:
        return self.banned_ids.device  # weights that are sharded may wait elsewhere

    def count(self, name: str, amount: int) -> None:
        self.counters[name] += amount

    # Logprobs of rows

    def forward(self, rows: Sequence[Row], needs: Collection[str | Statistic] = ()) -> TokenStats:
        """Logprobs [B, T] of the rows' actions, entropies, and statistics as extras. See `Policy.logprobs`.

        Entropies have a gradient if `needs` names them. While training they come anyway, without one: what they are
        made of has just been computed for the logprobs.
        """
        statistics = [need for need in needs if isinstance(need, Statistic)]
        if unknown := {need for need in needs if isinstance(need, str)} - {"entropy"}:
            raise PolicyError(f"the language-model policy cannot compute {', '.join(sorted(unknown))}.")
        watched_router = self.router if torch.is_grad_enabled() else None
        with nullcontext() if watched_router is None else watched_router.watch():
            hidden = self._packed_hidden(rows) if self.plain_reason is None else self._own_hidden(rows)
            penalties = {} if watched_router is None else {"router_aux_loss": watched_router.loss()}
        tokens = torch.cat([row.action for row in rows]).to(self.device)
        watched: Literal["none", "value", "gradient"] = "value" if torch.is_grad_enabled() else "none"
        found = self._token_stats(hidden, tokens, "gradient" if "entropy" in needs else watched, statistics)
        lengths = [row.num_actions for row in rows]
        pad = lambda values: nn.utils.rnn.pad_sequence(values.split(lengths), batch_first=True)  # noqa: E731
        extras = {name: pad(values) for name, values in found.extras.items()}
        entropy = None if found.entropy is None else pad(found.entropy)
        return TokenStats(pad(found.logprobs), entropy, extras, penalties)

    def _packed_hidden(self, rows: Sequence[Row]) -> Tensor:
        """Hidden states [tokens, hidden] that predict the actions of all rows. Each prompt and each turn runs once."""
        sequences = Sequences(rows)
        prompts = sequences.prompts
        packing = Packing(list(map(len, prompts)), sequences.lengths, sequences.prompt_of, self.device)
        tails = [tail(row.observation, row.action[:-1]) for row in sequences.last]
        hidden = self._run_packed(PackedAttention(packing), prompts, tails)
        self._count_pass(packing.num_tokens, 0)
        if self.router is not None:
            self.router.weigh(packing.num_uses())
        sources = []  # the first action is predicted by the token before it, any other by the action before it
        for row, (sequence, offset) in zip(rows, sequences.places, strict=True):
            prompt, start = sequences.prompt_of[sequence], packing.row_starts[sequence] + offset
            before = start - 1 if offset else packing.prompt_starts[prompt] + len(prompts[prompt]) - 1
            sources.append(torch.tensor([before]))
            sources.append(torch.arange(start, start + row.num_actions - 1))
        return hidden.index_select(0, torch.cat(sources).to(self.device))

    def _run_packed(self, attention: PackedAttention, prompts: Sequence[Encoded], tails: Sequence[Stretch]) -> Tensor:
        """Hidden states [S, hidden] of prompts and their tails, in the layout of the packing."""
        prompts = [prompts[i] for i in attention.packing.prompt_order]
        tails = [tails[i] for i in attention.packing.row_order]
        parts: list[Encoded | Stretch] = [*prompts, *tails]
        input_ids = torch.cat([part.input_ids for part in parts])[None].to(self.device)
        positions = torch.cat([part.position_ids for part in parts], 1)[:, None].to(self.device)
        observed = [torch.ones(sum(map(len, prompts)), dtype=torch.bool), *(item.observed for item in tails)]
        with_media = [*prompts, *(part for item in tails for part in item.parts)]
        embeddings, besides = self._with_media(input_ids, torch.cat(observed)[None], with_media)
        return run_decoder(self.base.get_decoder(), embeddings, _positions(positions), attention, **besides)[0]

    def _own_hidden(self, rows: Sequence[Row]) -> Tensor:
        """The same by the model's own forward, with prompts run for each completion if `cache_reason` says why."""
        observations, _ = each_once([row.observation for row in rows])
        once = self.cache_reason is None and len(observations) < len(rows)
        hidden = (self.own.after_prompts if once else self.own.whole_rows)(rows, self._count_own_pass)
        self._count_own_media(observations if once else [row.observation for row in rows])
        return torch.cat(hidden)

    def _count_own_pass(self, num_rows: Tensor) -> None:
        self._count_pass(num_rows.numel(), int((num_rows == 0).sum()))
        if self.router is not None:
            self.router.weigh(num_rows.flatten())

    def _count_own_media(self, observations: Sequence[Observation]) -> None:
        parts = [part for item in observations for part in segments(item) if isinstance(part, Encoded)]
        self.count("media_encodes", sum(num_media(part.media) for part in parts))

    def _count_pass(self, num_tokens: int, num_padding: int) -> None:
        kind = "update" if torch.is_grad_enabled() else "score"
        self.count(f"{kind}_tokens", num_tokens)
        self.count("padding_tokens", num_padding)

    # Sampling

    def start_decoding(self, observations: Sequence[Observation]) -> tuple[Decoding, Tensor]:
        """Run the beginnings of R sequences without gradient, each prompt once.

        Args:
            observations: R prompts, or conversations so far. Several samples of one are the same object.

        Returns:
            What `decode` continues, and hidden states [slots, hidden] that predict the first token of each slot.
        """
        if self.plain_reason is not None:
            return self._start_own_decoding(observations)
        prompts, prompt_of = each_once([root(item) for item in observations])
        tails = [tail(item) for item in observations]
        lengths, tail_lengths = list(map(len, prompts)), [len(item.input_ids) for item in tails]
        packing = Packing(lengths, tail_lengths, prompt_of, self.device)
        attention = PackedAttention(packing, keep_keys=True)
        self.count("prefill_tokens", packing.num_tokens)
        hidden = self._run_packed(attention, prompts, tails)
        last = [
            packing.row_starts[row] + length - 1 if length else packing.prompt_starts[prompt] + lengths[prompt] - 1
            for row, (length, prompt) in enumerate(zip(tail_lengths, prompt_of, strict=True))
        ]
        decoder = self.base.get_decoder()
        step = DecodeStep(decoder) if self.lean_decoding else LayerStep(decoder)
        decoding = SharedDecoding(attention, self._starts(observations), step, self._embed_tokens)
        return decoding, hidden[torch.tensor(last, device=self.device)[decoding.rows.clamp(min=0)]]

    def _start_own_decoding(self, observations: Sequence[Observation]) -> tuple[Decoding, Tensor]:
        from transformers import DynamicCache

        distinct, prompt_of = each_once(observations)
        sequences = [segments(item) for item in distinct]
        parts, hidden = [], []
        for batch in alike(sequences):
            cache = DynamicCache(config=self.base.config.get_text_config())
            found, mask = self.own.padded([sequences[index] for index in batch], left=True, cache=cache)
            rows = [row for row, index in enumerate(prompt_of) if index in batch]
            slots = torch.tensor([batch.index(prompt_of[row]) for row in rows], device=self.device)
            parts.append(OwnDecoding(self.own, cache, torch.tensor(rows, device=self.device), slots, found, mask))
            hidden.append(found.hidden[:, -1][slots])
        self.count("prefill_tokens", sum(map(len, distinct)))
        self._count_own_media(distinct)
        return JoinedDecoding(parts), torch.cat(hidden)

    def _starts(self, observations: Sequence[Observation]) -> Tensor:
        """Position of the first token that follows each, int64."""
        return torch.tensor([item.next_position for item in observations], device=self.device)

    def decode(self, decoding: Decoding, tokens: Tensor) -> Tensor:
        """Append one token to each completion, int64 [R]. Returns hidden states [R, hidden] that predict the next."""
        return decoding.advance(tokens)

    # Parts of the above

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> [..., V], as the model's own forward computes them."""
        logits = self.base.get_output_embeddings()(hidden)
        if self._logit_scale is not None:
            logits = logits * self._logit_scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    def _token_stats(
        self,
        hidden: Tensor,
        tokens: Tensor,
        entropies_with: Literal["none", "value", "gradient"],
        statistics: Sequence[Statistic],
    ) -> TokenStats:
        """Logprobs, entropies and statistics [n] from n hidden states. LOGIT_CHUNK logits exist at one time."""

        def chunk(hidden: Tensor, tokens: Tensor) -> list[Tensor]:
            logits = self.logits(hidden)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if self.temperature != 1.0:
                logits = logits / self.temperature
            normed = logits.log_softmax(-1)
            found = [-nn.functional.nll_loss(normed, tokens, reduction="none")]
            if entropies_with != "none":
                found.append(_entropy(normed) if entropies_with == "value" else -(normed.exp() * normed).sum(-1))
            with torch.no_grad():
                return found + [_values_of(statistic, logits.detach(), tokens) for statistic in statistics]

        parts: list[list[Tensor]] = []
        size = max(1, LOGIT_CHUNK // self.base.config.get_text_config().vocab_size)
        for piece, ids in zip(hidden.split(size), tokens.split(size), strict=True):
            if torch.is_grad_enabled() and len(tokens) > size:
                parts.append(checkpoint(chunk, piece, ids, use_reentrant=False))
            else:
                parts.append(chunk(piece, ids))
        logprobs, *others = (torch.cat(of_chunks) for of_chunks in zip(*parts, strict=True))
        entropy = others.pop(0) if entropies_with != "none" else None
        return TokenStats(
            logprobs, entropy, {item.name: values for item, values in zip(statistics, others, strict=True)}
        )

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        return self.base.get_input_embeddings()(tokens)

    def _with_media(
        self, input_ids: Tensor, observed: Tensor, prompts: Sequence[Encoded]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Embeddings [1, S, hidden] of tokens, features in the places of the placeholders that were `observed`.

        With them what the decoder gets besides, where a tower's features enter several of its layers (DeepStack).
        """
        observed = observed.to(input_ids.device)
        embeddings = self._embed_tokens(input_ids)
        hidden = embeddings.shape[-1]
        levels: Tensor | None = None  # [1, S, levels * hidden]
        is_media: Tensor = torch.zeros_like(input_ids, dtype=torch.bool)
        for kind, values in self._features(prompts).items():
            places = torch.eq(input_ids, placeholder_id(self.base.config, kind) or -1) & observed
            if int(places.sum()) != len(values):
                raise PolicyError(f"{int(places.sum())} placeholders for {len(values)} features of kind {kind}.")
            embeddings = embeddings.masked_scatter(places[..., None], values[:, :hidden].to(embeddings.dtype))
            if values.shape[-1] > hidden:
                if levels is None:
                    levels = embeddings.new_zeros(*embeddings.shape[:-1], values.shape[-1] - hidden)
                levels = levels.masked_scatter(places[..., None], values[:, hidden:].to(levels.dtype))
                is_media |= places
        if levels is None:
            return embeddings, {}
        return embeddings, {"visual_pos_masks": is_media, "deepstack_visual_embeds": levels[is_media].split(hidden, -1)}

    def _features(self, prompts: Sequence[Encoded]) -> dict[str, Tensor]:
        """Tower outputs of all prompts' media in order: kind -> [media tokens, hidden].

        While the tower is frozen each prompt's features are computed by themselves and kept with it, so that they do
        not depend on the other prompts of a batch. A resumed run then gets the same bits.
        """
        with_media = [prompt for prompt in prompts if prompt.media or prompt.features]
        if not with_media:
            return {}
        if towers_frozen(self.base):
            for prompt in with_media:
                if not prompt.features:
                    prompt.features.update(self._frozen_features(prompt))
                    prompt.media.clear()
            kinds = sorted({kind for prompt in with_media for kind in prompt.features})
            return {
                kind: torch.cat([prompt.features[kind] for prompt in with_media if kind in prompt.features])
                for kind in kinds
            }
        return self._encode_media(collate([prompt.media for prompt in with_media]))

    def _frozen_features(self, prompt: Encoded) -> dict[str, Tensor]:
        kept = None if self.feature_cache is None else self.feature_cache.read(prompt.media_key)
        if kept is not None:
            return {kind: values.to(self.device) for kind, values in kept.items()}
        with torch.no_grad():
            features = self._encode_media(prompt.media)
        if self.feature_cache is not None:
            self.feature_cache.write(prompt.media_key, features)
        return features

    def _encode_media(self, media: dict[str, Any]) -> dict[str, Tensor]:
        self.count("media_encodes", num_media(media))
        on_device = {
            name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in media.items()
        }
        return encode_media(self.base, on_device)


def _values_of(statistic: Statistic, logits: Tensor, tokens: Tensor) -> Tensor:
    """[n], one for each token."""
    values = statistic.function(logits, tokens)
    if not isinstance(values, Tensor) or values.shape != tokens.shape or not values.is_floating_point():
        got = f"a tensor {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise PolicyError(f"statistic {statistic.name!r} returned {got}; expected floating {tuple(tokens.shape)}.")
    return values


@torch.no_grad()
def _entropy(normed: Tensor) -> Tensor:
    """[n, V] logprobs of all tokens -> [n] entropies in nats, without gradient.

    On a CPU a few rows at a time in one buffer: new memory for all rows costs three times the arithmetic.
    """
    num_rows = max(1, ENTROPY_TILE // normed.shape[1]) if normed.device.type == "cpu" else len(normed)
    buffer = torch.empty_like(normed[:num_rows])
    tiles = normed.split(num_rows)
    parts = [torch.exp(tile, out=buffer[: len(tile)]).mul_(tile).sum(-1) for tile in tiles]
    return -torch.cat(parts) if parts else normed.sum(-1)


def _positions(positions: Tensor) -> Tensor:
    """[axes, b, s] as models take them: without the axis where there is one."""
    return positions if positions.shape[0] > 1 else positions[0]

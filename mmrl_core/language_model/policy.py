"""The language-model policy: text, image and video models of transformers.

`LanguageModelPolicy` is the `Policy`; `LanguageModel` the module that is trained, whose forward gives logprobs of rows;
`PromptEncoder` turns a prompt into tokens and pixels. A prompt is encoded once, its media features are computed once
while their tower is frozen, and its forward runs once for all completions of its group.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmrl_core.config import ModelConfig
from mmrl_core.errors import PolicyError
from mmrl_core.language_model.decoding import DecodeStep, steps_alike
from mmrl_core.language_model.encoder import (
    Continuation,
    Encoded,
    Observation,
    PromptEncoder,
    Stretch,
    root,
    tail,
    whole,
)
from mmrl_core.language_model.engines.base import Engine, Sampled
from mmrl_core.language_model.engines.hf import Decoding, HFEngine, PlainDecoding
from mmrl_core.language_model.loading import load_model, load_processor
from mmrl_core.language_model.packing import LayerStep, Packing, SharedDecoding, run_decoder, share_prefix
from mmrl_core.language_model.towers import (
    TOWER_MODULES,
    FeatureCache,
    encode_media,
    freeze_parameters,
    num_media,
    project_patches,
    towers_frozen,
)
from mmrl_core.types import ACTION_MASK, FORCED_MASK, Prompt, Rollout, RolloutGroup, Row, Sampling, TokenStats

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Item = TypeVar("Item")

LOGIT_CHUNK = 1 << 25
"""Logits that exist at one time: 128 MiB in float32, whatever the vocabulary and the length."""

MEDIA_TOKENS = ("image_token_id", "video_token_id", "audio_token_id", "vision_start_token_id", "vision_end_token_id")
"""Config attributes with placeholder ids; a completion may not hold them, since no medium stands behind them."""


class LanguageModel(nn.Module):
    """The module that is trained: a transformers model whose forward gives logprobs of rows.

    Attributes:
        temperature: logits are divided by it before the softmax, in rollout and update alike.
        plain_reason: why completions run whole, each with its prompt; None where a group shares its prompt.
        lean_decoding: sampling runs the decoder by a `DecodeStep`.
        feature_cache: where features of frozen towers are kept on disk, if anywhere.
        counters: work done since the trainer last looked: media encodes, prefill, decode and update tokens.
    """

    banned_ids: Tensor

    def __init__(self, model: PreTrainedModel, *, plain_reason: str | None = None, lean_decoding: bool = False) -> None:
        super().__init__()
        self.model = model
        self.temperature = 1.0
        self.plain_reason = plain_reason
        self.lean_decoding = lean_decoding
        self.feature_cache: FeatureCache | None = None
        self.counters: Counter[str] = Counter()
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # inside a LoRA wrapper
        self._base = [base]  # in a list: it must not be registered as a second submodule
        config = base.config
        text_config = config.get_text_config()
        generation = base.generation_config
        eos = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
        self.stop_ids = {eos} if isinstance(eos, int) else set(eos or [])
        placeholders = [getattr(config, name, None) for name in MEDIA_TOKENS]
        self.register_buffer(
            "banned_ids", torch.tensor([i for i in placeholders if i is not None], dtype=torch.long), persistent=False
        )
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
        return self.base.get_input_embeddings().weight.device

    def count(self, name: str, amount: int) -> None:
        self.counters[name] += amount

    # Logprobs of rows

    def forward(self, rows: Sequence[Row], needs: Collection[str] = ()) -> TokenStats:
        """Logprobs [B, T] of the rows' actions, and what else is asked for; see `Policy.logprobs`."""
        if unknown := set(needs) - {"entropy"}:
            raise PolicyError(f"the language-model policy cannot compute {', '.join(sorted(unknown))}.")
        hidden = self._packed_hidden(rows) if self.plain_reason is None else self._plain_hidden(rows)
        tokens = torch.cat([row.action for row in rows]).to(self.device)
        logprobs, entropy = self._token_stats(hidden, tokens, "entropy" in needs)
        lengths = [row.num_actions for row in rows]
        pad = lambda values: nn.utils.rnn.pad_sequence(values.split(lengths), batch_first=True)  # noqa: E731
        return TokenStats(pad(logprobs), None if entropy is None else pad(entropy))

    def _packed_hidden(self, rows: Sequence[Row]) -> Tensor:
        """Hidden states [tokens, hidden] that predict the actions of all rows; each prompt and each turn runs once."""
        sequences = _Sequences(rows)
        prompts = sequences.prompts
        packing = Packing(list(map(len, prompts)), sequences.lengths, sequences.prompt_of, self.device)
        tails = [tail(row.observation, row.action[:-1]) for row in sequences.last]
        hidden = self._run_packed(packing, prompts, tails)
        self._count_pass(packing.num_tokens, 0)
        sources = []  # the first action is predicted by the token before it, any other by the action before it
        for row, (sequence, offset) in zip(rows, sequences.places, strict=True):
            prompt, start = sequences.prompt_of[sequence], packing.row_starts[sequence] + offset
            before = start - 1 if offset else packing.prompt_starts[prompt] + len(prompts[prompt]) - 1
            sources.append(torch.tensor([before]))
            sources.append(torch.arange(start, start + row.num_actions - 1))
        return hidden.index_select(0, torch.cat(sources).to(self.device))

    def _run_packed(self, packing: Packing, prompts: Sequence[Encoded], tails: Sequence[Stretch]) -> Tensor:
        """Hidden states [S, hidden] of prompts and what follows them, laid out as the packing says."""
        prompts = [prompts[i] for i in packing.prompt_order]
        tails = [tails[i] for i in packing.row_order]
        parts: list[Encoded | Stretch] = [*prompts, *tails]
        input_ids = torch.cat([part.input_ids for part in parts])[None].to(self.device)
        positions = torch.cat([part.position_ids for part in parts], 1)[:, None].to(self.device)
        embeddings = self._with_media(input_ids, [*prompts, *(part for item in tails for part in item.parts)])
        return run_decoder(self.base.get_decoder(), embeddings, _positions(positions), packing)[0]

    def _plain_hidden(self, rows: Sequence[Row]) -> Tensor:
        """The same, each completion running whole behind its prompt, padded to the longest."""
        observations = [row.observation for row in rows]
        embeddings, positions, prompt_mask = self._padded(observations)
        tokens = nn.utils.rnn.pad_sequence([row.action for row in rows], batch_first=True).to(self.device)  # [B, T]
        lengths = torch.tensor([row.num_actions for row in rows], device=self.device)
        steps = torch.arange(tokens.shape[1], device=self.device)
        mask = steps < lengths[:, None]
        following = (self._starts(observations)[:, None] + steps[:-1]).expand(positions.shape[0], -1, -1)
        width = embeddings.shape[1]
        whole_mask = torch.cat([prompt_mask, mask[:, :-1]], 1)
        output = self.base.get_decoder()(
            inputs_embeds=torch.cat([embeddings, self._embed_tokens(tokens[:, :-1])], 1),
            position_ids=_positions(torch.cat([positions, following], 2)),
            attention_mask=whole_mask,
            use_cache=False,
        )
        self._count_pass(whole_mask.numel(), whole_mask.numel() - int(whole_mask.sum()))
        return output.last_hidden_state[:, width - 1 :][mask]

    def _count_pass(self, num_tokens: int, num_padding: int) -> None:
        kind = "update" if torch.is_grad_enabled() else "score"
        self.count(f"{kind}_tokens", num_tokens)
        self.count("padding_tokens", num_padding)

    # Sampling

    def start_decoding(self, observations: Sequence[Observation]) -> tuple[Decoding, Tensor]:
        """Run what R sequences begin with, without gradient; each prompt once.

        Args:
            observations: R prompts, or conversations so far; the same object again for several samples of it.

        Returns:
            What `decode` continues, and hidden states [slots, hidden] that predict the first token of each slot.
        """
        if self.plain_reason is not None:
            return self._start_plain_decoding(observations)
        prompts, prompt_of = _distinct([root(item) for item in observations])
        tails = [tail(item) for item in observations]
        lengths, tail_lengths = list(map(len, prompts)), [len(item.input_ids) for item in tails]
        packing = Packing(lengths, tail_lengths, prompt_of, self.device, keep_keys=True)
        self.count("prefill_tokens", packing.num_tokens)
        hidden = self._run_packed(packing, prompts, tails)
        last = [
            packing.row_starts[row] + length - 1 if length else packing.prompt_starts[prompt] + lengths[prompt] - 1
            for row, (length, prompt) in enumerate(zip(tail_lengths, prompt_of, strict=True))
        ]
        decoder = self.base.get_decoder()
        step = DecodeStep(decoder) if self.lean_decoding else LayerStep(decoder)
        decoding = SharedDecoding(packing, lengths, tail_lengths, prompt_of, self._starts(observations), step)
        return decoding, hidden[torch.tensor(last, device=self.device)[decoding.rows.clamp(min=0)]]

    def _start_plain_decoding(self, observations: Sequence[Observation]) -> tuple[Decoding, Tensor]:
        from transformers import DynamicCache

        distinct, index = _distinct(observations)
        rows = torch.tensor(index, device=self.device)
        embeddings, positions, mask = self._padded(distinct)
        self.count("prefill_tokens", sum(map(len, distinct)))
        cache = DynamicCache(config=self.base.config.get_text_config())
        output = self.base.get_decoder()(
            inputs_embeds=embeddings,
            position_ids=_positions(positions),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        return PlainDecoding(
            self.base.get_decoder(), cache, rows, self._starts(distinct), mask
        ), output.last_hidden_state[:, -1][rows]

    def _starts(self, observations: Sequence[Observation]) -> Tensor:
        """Position of the first token that follows each, int64."""
        return torch.tensor([item.next_position for item in observations], device=self.device)

    def decode(self, decoding: Decoding, tokens: Tensor) -> Tensor:
        """Append one token to each completion, int64 [R]; hidden states [R, hidden] that predict the next."""
        return decoding.advance(self._embed_tokens(tokens[:, None]))[:, 0]

    # Parts of the above

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> [..., V], as the model's own forward computes them."""
        logits = self.base.get_output_embeddings()(hidden)
        if self._logit_scale is not None:
            logits = logits * self._logit_scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    def _token_stats(self, hidden: Tensor, tokens: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """Logprobs, and entropies, of n tokens from n hidden states; LOGIT_CHUNK logits exist at a time."""

        def chunk(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
            logits = self.logits(hidden)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if self.temperature != 1.0:
                logits = logits / self.temperature
            logprobs = -nn.functional.cross_entropy(logits, tokens, reduction="none")
            if not with_entropy:
                return logprobs, None
            normed = logits.log_softmax(-1)
            return logprobs, -(normed.exp() * normed).sum(-1)

        parts: list[tuple[Tensor, Tensor | None]] = []
        size = max(1, LOGIT_CHUNK // self.base.config.get_text_config().vocab_size)
        for piece, ids in zip(hidden.split(size), tokens.split(size), strict=True):
            if torch.is_grad_enabled() and len(tokens) > size:
                parts.append(checkpoint(chunk, piece, ids, use_reentrant=False))
            else:
                parts.append(chunk(piece, ids))
        entropies = [entropy for _, entropy in parts if entropy is not None]
        return torch.cat([logprobs for logprobs, _ in parts]), torch.cat(entropies) if with_entropy else None

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        return self.base.get_input_embeddings()(tokens)

    def _padded(self, observations: Sequence[Observation]) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [N, P, hidden], positions [axes, N, P], mask [N, P]; padded on the left."""
        items = [whole(item) for item in observations]
        width = max(len(item.input_ids) for item in items)
        pad = lambda tensor: nn.functional.pad(tensor, (width - tensor.shape[-1], 0))  # noqa: E731
        input_ids = torch.stack([pad(item.input_ids) for item in items]).to(self.device)
        positions = torch.stack([pad(item.position_ids) for item in items], 1).to(self.device)
        mask = torch.stack([pad(torch.ones_like(item.input_ids, dtype=torch.bool)) for item in items])
        embeddings = self._with_media(input_ids, [part for item in items for part in item.parts])
        return embeddings, positions, mask.to(self.device)

    def _with_media(self, input_ids: Tensor, prompts: Sequence[Encoded]) -> Tensor:
        """Embeddings of the prompts' tokens, features in the places of their placeholders."""
        embeddings = self._embed_tokens(input_ids)
        for kind, values in self._features(prompts).items():
            places = (input_ids == getattr(self.base.config, f"{kind}_token_id"))[..., None]
            embeddings = embeddings.masked_scatter(places, values.to(embeddings.dtype))
        return embeddings

    def _features(self, prompts: Sequence[Encoded]) -> dict[str, Tensor]:
        """Tower outputs of all prompts' media in order: kind -> [media tokens, hidden].

        While the tower is frozen each prompt's features are computed by themselves and kept with it, so that they do
        not depend on which prompts stand beside it; a run that is resumed then gets the same bits.
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
        names = sorted({name for prompt in with_media for name in prompt.media})
        return self._encode_media(
            {name: torch.cat([p.media[name] for p in with_media if name in p.media]) for name in names}
        )

    def _frozen_features(self, prompt: Encoded) -> dict[str, Tensor]:
        kept = None if self.feature_cache is None else self.feature_cache.read(prompt.media_key)
        if kept is not None:
            return {kind: values.to(self.device) for kind, values in kept.items()}
        with torch.no_grad():
            features = self._encode_media(prompt.media)
        if self.feature_cache is not None:
            self.feature_cache.write(prompt.media_key, features)
        return features

    def _encode_media(self, media: dict[str, Tensor]) -> dict[str, Tensor]:
        self.count("media_encodes", num_media(media))
        return encode_media(self.base, {name: values.to(self.device) for name, values in media.items()})


def _positions(positions: Tensor) -> Tensor:
    """[axes, b, s] as models take them: without the axis where there is one."""
    return positions if positions.shape[0] > 1 else positions[0]


def _distinct(items: Sequence[Item]) -> tuple[list[Item], list[int]]:
    """Each object once, and which of them each item is."""
    places: dict[int, int] = {}
    distinct: list[Item] = []
    for item in items:
        if id(item) not in places:
            places[id(item)] = len(distinct)
            distinct.append(item)
    return distinct, [places[id(item)] for item in items]


class _Sequences:
    """Rows as sequences behind their prompts; the turns of a conversation stand in one.

    Attributes:
        prompts: each once.
        last: the last row of each sequence.
        lengths: tokens of each behind its prompt, without the last action token, which nothing follows.
        prompt_of: of each sequence.
        places: of each row, its sequence and where in it, counted from the prompt's end, its action starts.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        inside = set()  # turns that a later turn at hand continues
        for row in rows:
            observation = row.observation
            while isinstance(observation, Continuation):
                inside.add((id(observation.before), id(observation.action)))
                observation = observation.before
        self.last = [row for row in rows if (id(row.observation), id(row.action)) not in inside]
        self.prompts, self.prompt_of = _distinct([root(row.observation) for row in self.last])
        self.lengths = [_behind_prompt(row) + row.num_actions - 1 for row in self.last]
        sequence_of: dict[tuple[int, int], int] = {}
        for sequence, row in enumerate(self.last):
            observation, action = row.observation, row.action
            sequence_of[id(observation), id(action)] = sequence
            while isinstance(observation, Continuation):
                action, observation = observation.action, observation.before
                sequence_of[id(observation), id(action)] = sequence
        self.places = [(sequence_of[id(row.observation), id(row.action)], _behind_prompt(row)) for row in rows]


def _behind_prompt(row: Row) -> int:
    """Tokens between the prompt of a row's conversation and its action."""
    return len(row.observation) - len(root(row.observation))


def _row(prompt_id: str, trajectory_id: str, observation: Observation, item: Sampled, *, forced: bool = False) -> Row:
    """A decision of the policy, or one that the data made for it."""
    num_actions = len(item.tokens)
    no, yes = torch.zeros(num_actions, dtype=torch.bool), torch.ones(num_actions, dtype=torch.bool)
    return Row(
        prompt_id=prompt_id,
        trajectory_id=trajectory_id,
        observation=observation,
        observation_key=observation.key,
        action=item.tokens,
        num_actions=num_actions,
        sampler_logprobs=None if forced else item.logprobs,
        masks={ACTION_MASK: no, FORCED_MASK: yes} if forced else {},
        truncated=item.truncated,
    )


def _with_image_size(prompt: Prompt, observation: Encoded) -> Prompt:
    """The prompt of one image with its size as the model sees it, for rewards that read pixels."""
    if len(observation.image_sizes_px) != 1:
        return prompt
    width, height = observation.image_sizes_px[0]
    return replace(prompt, sample={**prompt.sample, "resized_width_px": width, "resized_height_px": height})


class LanguageModelPolicy:
    """A transformers model as a `Policy`."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        path: str | Path,
        device: torch.device | str = "cpu",
        engine: Engine | None = None,
    ) -> None:
        """Load model and processor.

        Args:
            config: the `model` section.
            path: model folder or hub name.
            device: where the model goes.
            engine: rollout engine; default `HFEngine`.

        Raises:
            PolicyError: the model cannot be loaded, or the config does not fit it.
        """
        self.config = config
        on_gpu = torch.device(device).type != "cpu"
        precision = config.precision if config.precision != "auto" else "bfloat16_mixed" if on_gpu else "float32"
        self._mixed = precision == "bfloat16_mixed"
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)
        model = load_model(config, path, dtype)
        plain_reason = share_prefix(model)
        lean_decoding = plain_reason is None and steps_alike(model)
        project_patches(model)
        freeze_parameters(model, config.freeze)
        if config.lora is not None:
            model = _add_lora(model, config)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise PolicyError(f"model.freeze={config.freeze} leaves nothing to train.")
        model.train()
        _disable_dropout(model)
        if not on_gpu:
            _lay_out_by_columns(model)
        self.model = LanguageModel(model, plain_reason=plain_reason, lean_decoding=lean_decoding).to(device)
        self.module: nn.Module = self.model  # the trainer puts accelerate's wrapper around it here
        self.encoder = PromptEncoder(load_processor(config, path), self.model.base, config.max_prompt_tokens)
        if config.feature_cache is not None:
            if not towers_frozen(self.model.base):
                raise PolicyError(
                    "model.feature_cache keeps what media towers compute, but they are trained here. "
                    "Freeze them (model.freeze: [vision, audio, projector]) or take model.feature_cache out."
                )
            self.model.feature_cache = FeatureCache(
                config.feature_cache, self.model.base, self.encoder.processor, precision
            )
        self.path = path
        self.engine = engine or HFEngine()
        self._frozen: dict[str, dict[str, Tensor]] = {}

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self.encoder.encode(prompt)

    def publish_weights(self) -> None:
        self.engine.weights_changed(self)

    def rollout(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        sampling: Sampling,
        on_group: Callable[[RolloutGroup], None] | None = None,
    ) -> list[RolloutGroup]:
        """Sample completions; see `Policy.rollout`. The completion is text without special tokens.

        Samples of prompts with one image gain `resized_width_px` and `resized_height_px`, as the model saw it.
        """
        groups: dict[int, RolloutGroup] = {}
        observations = [self.encoder.encode(prompt) for prompt in prompts]

        def finish(index: int, samples: Sequence[Sampled]) -> None:
            groups[index] = self._group(prompts[index], samples)
            if on_group is not None:
                on_group(groups[index])

        with self.autocast():
            self.engine.generate(self, prompts, observations, group_size, sampling, finish)
        self.encoder.trim_cache()
        return [groups[index] for index in range(len(prompts))]

    def _group(self, prompt: Prompt, samples: Sequence[Sampled]) -> RolloutGroup:
        observation = self.encoder.encode(prompt)
        rollouts = [
            Rollout([_row(prompt.id, f"{prompt.id}/{index}", observation, item)], self.decode(item.tokens))
            for index, item in enumerate(samples)
        ]
        return RolloutGroup(_with_image_size(prompt, observation), rollouts)

    def observe(self, prompt: Prompt, rollout: Rollout, messages: Sequence[Mapping[str, Any]]) -> Continuation | None:
        """See `Policy.observe`; the whole conversation has to fit into `model.max_prompt_tokens`."""
        row = rollout.rows[-1]
        ended = int(row.action[-1]) in self.model.stop_ids
        observation = self.encoder.encode_reply(prompt, row.observation, row.action, messages, ended=ended)
        return observation if len(observation) <= self.config.max_prompt_tokens else None

    def act(
        self,
        prompts: Sequence[Prompt],
        rollouts: Sequence[Rollout],
        observations: Sequence[Any],
        sampling: Sampling,
        answers: Sequence[str] | None = None,
    ) -> list[tuple[Row, str]]:
        """See `Policy.act`."""
        samples: dict[int, Sampled] = {}

        def finish(index: int, sampled: Sequence[Sampled]) -> None:
            (samples[index],) = sampled

        if answers is None:
            with self.autocast():
                self.engine.generate(self, prompts, observations, 1, sampling, finish)
        else:
            samples = dict(enumerate(self._forced(answers)))
        decisions = []
        for index, (rollout, observation) in enumerate(zip(rollouts, observations, strict=True)):
            last = rollout.rows[-1]
            row = _row(last.prompt_id, last.trajectory_id, observation, samples[index], forced=answers is not None)
            row = replace(row, step_index=last.step_index + 1, parent_row=last.step_index)
            decisions.append((row, self.decode(row.action)))
        return decisions

    def demonstrate(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[RolloutGroup]:
        """Rows whose tokens are the answers and the end-of-turn token; see `Policy.demonstrate`."""
        groups = []
        for prompt, answer, item in zip(prompts, answers, self._forced(answers), strict=True):
            row = _row(prompt.id, f"{prompt.id}/0", self.encoder.encode(prompt), item, forced=True)
            groups.append(RolloutGroup(prompt, [Rollout([row], answer)]))
        self.encoder.trim_cache()
        return groups

    def _forced(self, answers: Sequence[str]) -> list[Sampled]:
        """Answers of the data as if they had been sampled, with the end-of-turn token."""
        tokenizer = self.encoder.tokenizer
        answer_ids = tokenizer(list(answers), add_special_tokens=False)["input_ids"]
        tokens = [torch.tensor([*ids, tokenizer.eos_token_id]) for ids in answer_ids]
        return [Sampled(ids, torch.zeros(len(ids)), truncated=False) for ids in tokens]

    def decode(self, tokens: Tensor) -> str:
        return self.encoder.tokenizer.decode(tokens, skip_special_tokens=True)

    def describe(self) -> list[str]:
        """How the work will be done, for a dry run."""
        frozen = towers_frozen(self.model.base)
        return [
            "prompts run once for each group"
            if self.model.plain_reason is None
            else f"prompts run once for each completion: {self.model.plain_reason}",
            "media features are computed once for each prompt"
            if frozen
            else "media features are computed in each pass",
        ]

    def num_tokens(self, rows: Sequence[Row]) -> int:
        sequences = _Sequences(rows)
        return sum(map(len, sequences.prompts)) + sum(sequences.lengths) + len(sequences.lengths)

    def prompt_length(self, prompt: Prompt) -> int | None:
        """Tokens of a prompt, media included."""
        return len(self.encoder.encode(prompt))

    def set_temperature(self, temperature: float) -> None:
        """Logprobs are taken at the temperature that is sampled at."""
        self.model.temperature = temperature

    def take_counters(self) -> dict[str, int]:
        """Work done since the last call."""
        return {name: self.model.counters.pop(name) for name in list(self.model.counters)}

    def logprobs(self, rows: Sequence[Row], *, needs: Collection[str] = (), frozen: str | None = None) -> TokenStats:
        """See `Policy.logprobs`."""
        if frozen is None:
            with self.autocast():
                return self.module(rows, needs)
        with self._frozen_weights(frozen), torch.no_grad(), self.autocast():
            return self.model(rows, needs)

    def freeze(self, name: str) -> None:
        """Keep a copy of the trained parameters; what is not trained is shared."""
        self._frozen[name] = {key: value.detach().clone() for key, value in self._trained()}

    def refresh(self, name: str, decay: float) -> None:
        with torch.no_grad():
            for key, value in self._trained():
                self._frozen[name][key].lerp_(value, 1.0 - decay) if decay else self._frozen[name][key].copy_(value)

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, value) for name, value in self.model.model.named_parameters() if value.requires_grad)

    @contextmanager
    def _frozen_weights(self, name: str) -> Iterator[None]:
        """The frozen weights stand in for the trained ones; nothing is copied."""
        if name not in self._frozen:
            raise PolicyError(f"there is no frozen policy {name!r} (there are: {', '.join(self._frozen) or 'none'}).")
        trained = {key: value.data for key, value in self._trained()}
        try:
            for key, value in self._trained():
                value.data = self._frozen[name][key]
            yield
        finally:
            for key, value in self._trained():
                value.data = trained[key]

    def autocast(self) -> torch.autocast:
        """The precision that forward passes run in."""
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self._mixed)

    def save(self, directory: Path) -> None:
        """Model (or LoRA adapter) and processor in transformers' own formats, weights as safetensors."""
        self.model.model.save_pretrained(directory)
        self.encoder.processor.save_pretrained(directory)

    def save_frozen(self, directory: Path) -> None:
        from safetensors.torch import save_file

        for name, weights in self._frozen.items():
            save_file({key: value.contiguous() for key, value in weights.items()}, directory / f"{name}.safetensors")

    def load(self, directory: Path) -> None:
        """Restore weights written by `save`, bit for bit, and frozen policies beside them if there are."""
        if self.config.lora is not None:
            from peft import load_peft_weights, set_peft_model_state_dict

            set_peft_model_state_dict(self.model.model, load_peft_weights(str(directory), device="cpu"))
        else:
            dtype = next(self.model.model.parameters()).dtype
            loaded = type(self.model.base).from_pretrained(directory, dtype=dtype)
            self.model.model.load_state_dict(loaded.state_dict())
        self.encoder.clear_cache()

    @staticmethod
    def needs_base(directory: Path) -> bool:
        """Whether a LoRA adapter was saved there, and not a whole model."""
        return (directory / "adapter_config.json").is_file()

    def load_frozen(self, directory: Path) -> None:
        from safetensors.torch import load_file

        self._frozen = {}
        for path in sorted(directory.glob("*.safetensors")):
            saved = load_file(path, device=str(self.model.device))
            # Laid out like the trained ones: in another layout a product may round otherwise.
            self._frozen[path.stem] = {key: torch.empty_like(like).copy_(saved[key]) for key, like in self._trained()}

    def close(self) -> None:
        self.engine.close()


def _add_lora(model: Any, config: ModelConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    assert config.lora is not None
    modules = [name for name, _ in model.named_modules()]
    lora = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        target_modules=config.lora.target_modules,
        exclude_modules=TOWER_MODULES if any(re.fullmatch(TOWER_MODULES, name) for name in modules) else None,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise PolicyError(f"model.lora: {error}") from error


def _lay_out_by_columns(model: nn.Module) -> None:
    """Store matrices column by column: with few rows, as in decoding, a CPU multiplies by them 1.4 times as fast."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and type(module.weight) is nn.Parameter:  # not a quantised one
            module.weight.data = module.weight.data.t().contiguous().t()


def _disable_dropout(model: nn.Module) -> None:
    """Dropout would make the logprobs of rollout and update differ for equal weights."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010

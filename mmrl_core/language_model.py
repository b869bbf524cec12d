"""The language-model policy: text, image and video models of transformers.

`LanguageModelPolicy` is the `Policy`; `LanguageModel` the module that is trained, whose forward gives logprobs of rows;
`PromptEncoder` turns a prompt into tokens and pixels. A prompt is encoded once, its media features are computed once
while their tower is frozen, and its forward runs once for all completions of its group.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmrl_core.config import ModelConfig
from mmrl_core.errors import PolicyError
from mmrl_core.generation import HFEngine, Prefix
from mmrl_core.model_loading import load_model, load_processor
from mmrl_core.prompt_encoder import Encoded, PromptEncoder
from mmrl_core.types import ACTION_MASK, FORCED_MASK, Prompt, Rollout, RolloutGroup, Row, Sampling, TokenStats

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_CHUNK = 4096
"""Tokens whose logits exist at one time; bounds memory at LOGIT_CHUNK x vocabulary."""

TOWERS = {
    "vision": ("*visual.*", "*vision_tower.*", "*vision_model.*"),
    "audio": ("*audio_tower.*",),
    "projector": ("*visual.merger.*", "*multi_modal_projector.*", "*connector.*"),
    "language": ("*language_model.*", "lm_head.*"),
}
"""Names in `model.freeze` -> patterns of parameter names."""

TOWER_MODULES = r".*(visual|vision_tower|vision_model|audio_tower)\..*"
"""Module names of media towers, which LoRA leaves alone."""

MEDIA_TOKENS = ("image_token_id", "video_token_id", "audio_token_id", "vision_start_token_id", "vision_end_token_id")
"""Config attributes with placeholder ids; a completion may not hold them, since no medium stands behind them."""


class LanguageModel(nn.Module):
    """The module that is trained: a transformers model whose forward gives logprobs of rows.

    Attributes:
        temperature: logits are divided by it before the softmax, in rollout and update alike.
        counters: work done since the trainer last looked: media encodes, prefill, decode and update tokens.
    """

    banned_ids: Tensor

    def __init__(self, model: PreTrainedModel, *, shared_prefix: bool = True) -> None:
        super().__init__()
        self.model = model
        self.temperature = 1.0
        self.shared_prefix = shared_prefix
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

    def tower_frozen(self) -> bool:
        """No parameter of a media tower is trained, so that its features may be kept."""
        patterns = TOWERS["vision"] + TOWERS["audio"]
        return not any(
            parameter.requires_grad and any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
            for name, parameter in self.base.named_parameters()
        )

    def forward(self, rows: Sequence[Row], needs: Collection[str] = ()) -> TokenStats:
        """Logprobs [B, T] of the rows' actions, and what else is asked for; see `Policy.logprobs`."""
        if unknown := set(needs) - {"entropy"}:
            raise PolicyError(f"the language-model policy cannot compute {', '.join(sorted(unknown))}.")
        prompts, index = _distinct_observations(rows)
        lengths = torch.tensor([row.num_actions for row in rows], device=self.device)
        tokens = nn.utils.rnn.pad_sequence([row.action for row in rows], batch_first=True).to(self.device)  # [B, T]
        mask = torch.arange(tokens.shape[1], device=self.device) < lengths[:, None]
        hidden = self._hidden(prompts, index.to(self.device), tokens, mask)
        logprobs, entropy = self._token_stats(hidden[mask], tokens[mask], "entropy" in needs)
        self.count("update_tokens" if torch.is_grad_enabled() else "score_tokens", int(mask.sum()))
        scatter = lambda values: torch.zeros_like(tokens, dtype=torch.float32).masked_scatter(mask, values)  # noqa: E731
        return TokenStats(scatter(logprobs), None if entropy is None else scatter(entropy))

    def _hidden(self, prompts: Sequence[Encoded], index: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [B, T, hidden] that predict each action; row b follows prompt index[b]."""
        if self.shared_prefix and len(prompts) < len(tokens):
            prefix = self.prefill(prompts)
            copies, rest = divmod(len(tokens), len(prompts))
            in_order = torch.arange(len(prompts), device=self.device).repeat_interleave(copies)
            if rest == 0 and torch.equal(index, in_order):
                prefix.repeat(copies)  # the same as selecting, with a cheaper backward pass
            else:
                prefix.select(index)
            first = prefix.last_hidden[:, None]
            if tokens.shape[1] == 1:
                return first
            return torch.cat([first, self.extend(prefix, tokens[:, :-1], mask[:, :-1])], 1)
        embeddings, positions, prompt_mask, starts = self._prompt_batch(prompts)
        num_axes, width = positions.shape[0], embeddings.shape[1]
        embeddings = torch.cat([embeddings[index], self._embed_tokens(tokens[:, :-1])], 1)
        steps = torch.arange(tokens.shape[1] - 1, device=self.device)
        following = (starts[index][:, None] + steps).expand(num_axes, -1, -1)
        positions = torch.cat([positions[:, index], following], 2)
        output = self._decoder(embeddings, positions, torch.cat([prompt_mask[index], mask[:, :-1]], 1))
        return output.last_hidden_state[:, width - 1 :]

    def prefill(self, prompts: Sequence[Encoded]) -> Prefix:
        """Run the prompts, N rows, keeping keys and values (with their graph where gradients are on)."""
        from transformers import DynamicCache

        embeddings, positions, mask, next_position = self._prompt_batch(prompts)
        self.count("prefill_tokens", int(mask.sum()))
        cache = DynamicCache(config=self.base.config.get_text_config())
        output = self._decoder(embeddings, positions, mask, cache)
        padded = None if bool(mask.all()) else mask
        return Prefix(cache, output.last_hidden_state[:, -1], next_position, padded, positions.shape[0])

    def extend(self, prefix: Prefix, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Continue the prefix by tokens [R, t], mask False on padding at the end; hidden states [R, t, hidden]."""
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        positions = (prefix.next_position[:, None] + steps).expand(prefix.num_axes, -1, -1)
        if prefix.mask is not None:
            added = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
            prefix.mask = torch.cat([prefix.mask, added], 1)
        # Padding at the end needs no mask: what comes before it never attends to it.
        output = self._decoder(self._embed_tokens(tokens), positions, prefix.mask, prefix.cache)
        prefix.next_position = prefix.next_position + tokens.shape[1]
        return output.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> [..., V], as the model's own forward computes them."""
        logits = self.base.get_output_embeddings()(hidden)
        if self._logit_scale is not None:
            logits = logits * self._logit_scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    def _token_stats(self, hidden: Tensor, tokens: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """Logprobs, and entropies, of n tokens from n hidden states; logits exist for LOGIT_CHUNK tokens at a time."""

        def chunk(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
            logits = self.logits(hidden).float() / self.temperature
            log_norm = logits.logsumexp(-1)
            logprobs = logits.gather(-1, tokens[:, None])[:, 0] - log_norm
            if not with_entropy:
                return logprobs, None
            return logprobs, log_norm - (logits.softmax(-1) * logits).sum(-1)

        parts: list[tuple[Tensor, Tensor | None]] = []
        for piece, ids in zip(hidden.split(LOGIT_CHUNK), tokens.split(LOGIT_CHUNK), strict=True):
            if torch.is_grad_enabled() and len(tokens) > LOGIT_CHUNK:
                parts.append(checkpoint(chunk, piece, ids, use_reentrant=False))
            else:
                parts.append(chunk(piece, ids))
        entropies = [entropy for _, entropy in parts if entropy is not None]
        return torch.cat([logprobs for logprobs, _ in parts]), torch.cat(entropies) if with_entropy else None

    def _decoder(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: Any = None) -> Any:
        """The text decoder on embeddings [R, t, hidden]; positions [axes, R, t]; mask over all tokens so far."""
        if mask is not None and bool(mask.all()):
            mask = None
        return self.base.get_decoder()(
            inputs_embeds=embeddings,
            position_ids=positions if positions.shape[0] > 1 else positions[0],
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        return self.base.get_input_embeddings()(tokens)

    def _prompt_batch(self, prompts: Sequence[Encoded]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings [N, P, hidden], positions [axes, N, P], mask [N, P], next positions [N]; padded on the left."""
        features = self._features(prompts)
        width = max(map(len, prompts))
        pad = lambda tensor, prompt: nn.functional.pad(tensor, (width - len(prompt), 0))  # noqa: E731
        input_ids = torch.stack([pad(prompt.input_ids, prompt) for prompt in prompts]).to(self.device)
        embeddings = self._embed_tokens(input_ids)
        for kind, values in features.items():
            places = (input_ids == getattr(self.base.config, f"{kind}_token_id"))[..., None]
            embeddings = embeddings.masked_scatter(places, values.to(embeddings.dtype))
        positions = torch.stack([pad(prompt.position_ids, prompt) for prompt in prompts], 1).to(self.device)
        ones = [pad(torch.ones(len(prompt), dtype=torch.bool), prompt) for prompt in prompts]
        starts = torch.tensor([prompt.next_position for prompt in prompts], device=self.device)
        return embeddings, positions, torch.stack(ones).to(self.device), starts

    def _features(self, prompts: Sequence[Encoded]) -> dict[str, Tensor]:
        """Tower outputs of all prompts' media in order: kind -> [media tokens, hidden].

        While the tower is frozen each prompt's features are computed by themselves and kept with it, so that they do
        not depend on which prompts stand beside it; a run that is resumed then gets the same bits.
        """
        with_media = [prompt for prompt in prompts if prompt.media or prompt.features]
        if not with_media:
            return {}
        if self.tower_frozen():
            for prompt in with_media:
                if not prompt.features:
                    with torch.no_grad():
                        prompt.features = self._encode_media(prompt.media)
                    prompt.media = {}
            kinds = sorted({kind for prompt in with_media for kind in prompt.features})
            return {
                kind: torch.cat([prompt.features[kind] for prompt in with_media if kind in prompt.features])
                for kind in kinds
            }
        names = sorted({name for prompt in with_media for name in prompt.media})
        return self._encode_media(
            {name: torch.cat([p.media[name] for p in with_media if name in p.media]) for name in names}
        )

    def _encode_media(self, media: dict[str, Tensor]) -> dict[str, Tensor]:
        """Run the towers: kind -> [media tokens, hidden]."""
        features = {}
        for kind, values, grid in (
            ("image", "pixel_values", "image_grid_thw"),
            ("video", "pixel_values_videos", "video_grid_thw"),
        ):
            if values not in media:
                continue
            encode = getattr(self.base.model, f"get_{kind}_features")
            output = encode(media[values].to(self.device), media[grid].to(self.device))
            parts = getattr(output, "pooler_output", output)
            features[kind] = torch.cat(list(parts)) if not isinstance(parts, Tensor) else parts
            self.count("media_encodes", len(media[grid]))
        return features


def _distinct_observations(rows: Sequence[Row]) -> tuple[list[Encoded], Tensor]:
    """The prompts of rows, each once, and int64 [B] which of them each row follows."""
    places: dict[int, int] = {}
    prompts: list[Encoded] = []
    for row in rows:
        if id(row.observation) not in places:
            places[id(row.observation)] = len(prompts)
            prompts.append(row.observation)
    return prompts, torch.tensor([places[id(row.observation)] for row in rows])


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
        engine: Any = None,
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
        self.autocast = precision == "bfloat16_mixed"
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        model = load_model(config, path, dtype)
        freeze_parameters(model, config.freeze)
        if config.lora is not None:
            model = _add_lora(model, config)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise PolicyError(f"model.freeze={config.freeze} leaves nothing to train.")
        model.train()
        _disable_dropout(model)
        # Checkpointed layers keep no cache, so that the prompt cannot be shared; each completion is run whole.
        self.model = LanguageModel(model, shared_prefix=not config.gradient_checkpointing).to(device)
        self.module: nn.Module = self.model  # the trainer puts accelerate's wrapper around it here
        self.encoder = PromptEncoder(load_processor(config, path), self.model.base, config.max_prompt_tokens)
        self.engine = engine or HFEngine()
        self._frozen: dict[str, dict[str, Tensor]] = {}

    def rollout(self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling) -> list[RolloutGroup]:
        """Sample completions; see `Policy.rollout`. The completion is text without special tokens.

        Samples of prompts with one image gain `resized_width_px` and `resized_height_px`, as the model saw it.
        """
        encoded = [self.encoder.encode(prompt) for prompt in prompts]
        with self._autocast():
            sampled = self.engine.generate(self.model, encoded, group_size, sampling)
        groups = []
        for prompt, observation, samples in zip(prompts, encoded, sampled, strict=True):
            rollouts = []
            for index, item in enumerate(samples):
                row = Row(
                    prompt_id=prompt.id,
                    trajectory_id=f"{prompt.id}/{index}",
                    observation=observation,
                    observation_key=observation.key,
                    action=item.tokens,
                    num_actions=len(item.tokens),
                    sampler_logprobs=item.logprobs,
                    truncated=item.truncated,
                )
                rollouts.append(Rollout([row], self.decode(item.tokens)))
            groups.append(RolloutGroup(_with_image_size(prompt, observation), rollouts))
        self.encoder.trim_cache()
        return groups

    def demonstrate(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[RolloutGroup]:
        """Rows whose tokens are the answers and the end-of-turn token; see `Policy.demonstrate`."""
        tokenizer = self.encoder.tokenizer
        answer_ids = tokenizer(list(answers), add_special_tokens=False)["input_ids"]
        groups = []
        for prompt, answer, ids in zip(prompts, answers, answer_ids, strict=True):
            observation = self.encoder.encode(prompt)
            tokens = torch.tensor([*ids, tokenizer.eos_token_id])
            row = Row(
                prompt_id=prompt.id,
                trajectory_id=f"{prompt.id}/0",
                observation=observation,
                observation_key=observation.key,
                action=tokens,
                num_actions=len(tokens),
                masks={
                    ACTION_MASK: torch.zeros(len(tokens), dtype=torch.bool),
                    FORCED_MASK: torch.ones(len(tokens), dtype=torch.bool),
                },
            )
            groups.append(RolloutGroup(prompt, [Rollout([row], answer)]))
        self.encoder.trim_cache()
        return groups

    def decode(self, tokens: Tensor) -> str:
        return self.encoder.tokenizer.decode(tokens, skip_special_tokens=True)

    def describe(self) -> list[str]:
        """How the work will be done, for a dry run."""
        frozen = self.model.tower_frozen()
        return [
            "prompts run once for each group"
            if self.model.shared_prefix
            else "prompts run once for each completion, because gradient_checkpointing keeps no cache",
            "media features are computed once for each prompt"
            if frozen
            else "media features are computed in each pass",
        ]

    def prompt_length(self, prompt: Prompt) -> int | None:
        """Tokens of a prompt, media included."""
        return len(self.encoder.encode(prompt))

    def set_temperature(self, temperature: float) -> None:
        """Logprobs are taken at the temperature that is sampled at."""
        self.model.temperature = temperature

    def take_counters(self) -> dict[str, int]:
        """Work done since the last call."""
        counters = dict(self.model.counters)
        self.model.counters.clear()
        return counters

    def logprobs(self, rows: Sequence[Row], *, needs: Collection[str] = (), frozen: str | None = None) -> TokenStats:
        """See `Policy.logprobs`."""
        if frozen is None:
            with self._autocast():
                return self.module(rows, needs)
        with self._frozen_weights(frozen), torch.no_grad(), self._autocast():
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

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.autocast)

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

    def load_frozen(self, directory: Path) -> None:
        from safetensors.torch import load_file

        self._frozen = {
            path.stem: load_file(path, device=str(self.model.device))
            for path in sorted(directory.glob("*.safetensors"))
        }


def freeze_parameters(model: nn.Module, names: Sequence[str]) -> None:
    """Stop training the parameters that `names` select: keys of `TOWERS` or patterns such as '*.layers.0.*'.

    Raises:
        PolicyError: a name selects no parameter.
    """
    for name in names:
        patterns = TOWERS.get(name, (name,))
        selected = [
            parameter
            for key, parameter in model.named_parameters()
            if any(fnmatch.fnmatch(key, pattern) for pattern in patterns)
        ]
        if not selected:
            raise PolicyError(
                f"model.freeze: {name!r} selects no parameter. Towers: {', '.join(TOWERS)}; or a pattern of names "
                f"such as {next(iter(model.state_dict()))!r}."
            )
        for parameter in selected:
            parameter.requires_grad_(False)


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


def _disable_dropout(model: nn.Module) -> None:
    """Dropout would make the logprobs of rollout and update differ for equal weights."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010

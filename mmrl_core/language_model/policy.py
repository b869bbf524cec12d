"""The language-model policy: text, image, video and audio models of transformers.

`LanguageModelPolicy` is the `Policy`. `LanguageModel` (`module.py`) is the module that is trained, `PromptEncoder`
(`encoder.py`) turns a prompt into tokens and processed media, an engine (`engines/`) samples. A prompt is encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmrl_core.errors import PolicyError, UnfitPromptError
from mmrl_core.language_model.adapter import adapters_in_words, restore_adapter
from mmrl_core.language_model.encoder import PromptEncoder
from mmrl_core.language_model.engine_proof import EngineProof, prove_engine
from mmrl_core.language_model.engines.base import Engine, OtherProgram, Sampled
from mmrl_core.language_model.engines.hf import HFEngine
from mmrl_core.language_model.loading import base_and_adapter, base_is_missing, check_adapter, load_processor
from mmrl_core.language_model.module import LanguageModel
from mmrl_core.language_model.observations import Continuation, Encoded, Observation
from mmrl_core.language_model.options import LanguageModelOptions, check_trainable
from mmrl_core.language_model.packing import Sequences
from mmrl_core.language_model.preparing import chosen_precision, prepared_model
from mmrl_core.language_model.preview import PromptPreview
from mmrl_core.language_model.proof import prove
from mmrl_core.language_model.saving import save_whole
from mmrl_core.language_model.sharing import share_model
from mmrl_core.language_model.sizes import model_sizes
from mmrl_core.language_model.support_row import SUPPORT_COLUMNS, support_row
from mmrl_core.language_model.towers import FeatureCache, towers_frozen
from mmrl_core.loss_inputs import Statistic, TokenStats
from mmrl_core.policy import PolicyBase
from mmrl_core.support import Processes, gathered, load_whole, refuse_broken, sharing_in_words
from mmrl_core.types import ACTION_MASK, FORCED_MASK, Prompt, Rollout, RolloutGroup, Row, Sampling

if TYPE_CHECKING:
    from mmrl_core.config.schema import ShardingConfig


class LanguageModelPolicy(PolicyBase):
    """A transformers model as a `Policy`.

    Attributes:
        path: model folder or hub name that it started from; for an adapter, of the model that it adapts.
        options: the policy's options.
        precision: `options.precision`, with "auto" decided.
        engine: samples the completions.
        model: the module that is trained. `module` is the same, or accelerate's wrapper around it.
        encoder: turns prompts into tokens and processed media.
        support_columns: column of docs/models.md -> what stands in it.
    """

    Options = LanguageModelOptions
    support_columns = SUPPORT_COLUMNS
    sizes = staticmethod(model_sizes)

    def __init__(
        self,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        engine: Engine | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> None:
        """Load model and processor.

        Args:
            path: model folder, folder of a LoRA adapter, or hub name.
            device: where the model goes.
            engine: rollout engine, by default `HFEngine`.
            revision: of the hub's model.
            options: fields of `LanguageModelOptions`.

        Raises:
            PolicyError: the model cannot be loaded, or the options do not fit it.
        """
        self.options = LanguageModelOptions(**options)
        self.path, adapter = base_and_adapter(path)
        self.engine = engine or HFEngine()
        if self.options.quantization is not None and isinstance(self.engine, OtherProgram):
            raise PolicyError(
                "model.quantization: another program would sample with other weights. Set rollout.engine to hf."
            )
        device = torch.device(device)
        self.precision = chosen_precision(self.options, device)
        self._mixed = self.precision == "bfloat16_mixed"
        self.model = prepared_model(self.path, self.options, device, revision=revision, adapter=adapter)
        processor = load_processor(self.path, self.options, revision=revision)
        self.encoder = PromptEncoder(processor, self.model.base, self.options.max_prompt_tokens)
        self.model.stop_ids |= self.encoder.stop_ids()
        try:
            with self.autocast():
                self.proof = prove(self.model, self.encoder)
        except PolicyError:
            refuse_broken(self.model, self.path)
            raise
        if self.options.blind_check == "on":
            self.encoder.blind = dict(self.proof.blind)
        self.engine_proof: EngineProof | None = None
        if self.options.feature_cache is not None:
            self.model.feature_cache = _feature_cache(self.options.feature_cache, self.model, processor, self.precision)
        super().__init__(self.model, self.model.model)
        self.counters = self.model.counters

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self.encoder.encode(prompt)

    def shard(self, settings: ShardingConfig) -> None:
        """See `share_model`."""
        computed = torch.bfloat16 if self._mixed else None
        self._tower_use = share_model(self.model, self.options, self.engine, computed, settings.processes)

    def acting(self) -> AbstractContextManager[None]:
        """Each process has all weights inside, unless the engine has its own."""
        return nullcontext() if isinstance(self.engine, OtherProgram) else super().acting()

    def before_update(self, processes: Processes) -> None:
        if processes.sharded:
            self._tower_use.drop_unused(processes)

    def publish_weights(self) -> None:
        self.engine.weights_changed(self)

    def rollout(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        sampling: Sampling,
        on_group: Callable[[RolloutGroup], None] | None = None,
    ) -> list[RolloutGroup]:
        """Sample completions. See `Policy.rollout`. Completions are text, without special tokens but those of a prefix.

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
            Rollout(
                [_row(prompt.id, f"{prompt.id}/{index}", observation, item)], self.decode(item.tokens, prompt.prefix)
            )
            for index, item in enumerate(samples)
        ]
        return RolloutGroup(_with_image_size(prompt, observation), rollouts)

    def observe(self, prompt: Prompt, rollout: Rollout, messages: Sequence[Mapping[str, Any]]) -> Continuation | None:
        """See `Policy.observe`. The whole conversation has to fit into `model.max_prompt_tokens`.

        None, too, where the model's processor refuses a medium of the messages.
        """
        row = rollout.rows[-1]
        ended = int(row.action[-1]) in self.model.stop_ids
        try:
            observation = self.encoder.encode_reply(prompt, row.observation, row.action, messages, ended=ended)
        except UnfitPromptError:  # such as a picture cut by a tool into a thread
            return None
        return observation if len(observation) <= self.options.max_prompt_tokens else None

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
            samples = dict(enumerate(self._forced(prompts, answers)))
        decisions = []
        for index, (rollout, observation) in enumerate(zip(rollouts, observations, strict=True)):
            last = rollout.rows[-1]
            row = _row(last.prompt_id, last.trajectory_id, observation, samples[index], forced=answers is not None)
            row = replace(row, step_index=last.step_index + 1)
            decisions.append((row, self.decode(row.action, prompts[index].prefix)))
        return decisions

    def demonstrate(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[RolloutGroup]:
        """Rows whose tokens are the answers behind the prefix, and the end-of-turn token. See `Policy.demonstrate`."""
        groups = []
        for prompt, answer, item in zip(prompts, answers, self._forced(prompts, answers), strict=True):
            row = _row(prompt.id, f"{prompt.id}/0", self.encoder.encode(prompt), item, forced=True)
            groups.append(RolloutGroup(prompt, [Rollout([row], prompt.with_prefix(answer))]))
        self.encoder.trim_cache()
        return groups

    def _forced(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Sampled]:
        """Answers of the data as if they had been sampled, with the end of a turn as the chat template writes it."""
        chat, tokenizer = self.encoder.chat, self.encoder.tokenizer
        begun = [answer.removeprefix(prompt.prefix) for prompt, answer in zip(prompts, answers, strict=True)]
        texts = [chat.neutral(answer) + chat.turn_end for answer in begun]
        tokens = [torch.tensor(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        return [Sampled(ids, torch.zeros(len(ids)), truncated=False) for ids in tokens]

    def decode(self, tokens: Tensor, prefix: str = "") -> str:
        """The text of a turn: the prefix as it stands, then the tokens behind it, special ones left out."""
        tokenizer = self.encoder.tokenizer
        if not prefix:
            return tokenizer.decode(tokens, skip_special_tokens=True)
        # Some tokenizers drop a blank before the first token that they are given.
        before = tokenizer(prefix, add_special_tokens=False)["input_ids"]
        start = len(tokenizer.decode(before, skip_special_tokens=True))
        return prefix + tokenizer.decode([*before, *tokens.tolist()], skip_special_tokens=True)[start:]

    def check_start(self, max_tokens: int) -> dict[str, float]:
        """How far another medium moves logprobs of model and engine, and these two apart. See `Policy.check_start`."""
        found = {f"seen/{kind}": moved for kind, moved in self.proof.seen.items()}
        if not max_tokens or not isinstance(self.engine, OtherProgram):
            return found
        self.engine.start(self, max_tokens)
        kinds = [kind for kind in self.proof.seen if kind not in self.encoder.blind]
        with gathered(self.model):
            self.engine_proof = prove_engine(self, self.engine, kinds)
        if self.options.blind_check == "on":
            self.encoder.blind |= self.engine_proof.blind
        return found | self.engine_proof.numbers()

    def describe(self) -> list[str]:
        """How the work will be done, for a dry run."""
        reason, own = self.model.plain_reason, self.model.cache_reason
        runs = "prompts run once for each "
        lines = [
            f"{runs}group"
            if reason is None
            else f"{runs}group, in updates too, by its own forward: {reason}"
            if own is None
            else f"{runs}completion: {reason}"
        ]
        kept = reason is None and towers_frozen(self.model.base)
        lines.append(f"media features are computed {'once for each prompt' if kept else 'in each pass'}")
        lines += sharing_in_words(self.model)
        if self.options.lora is not None:
            lines.append(adapters_in_words(self.model.model))
        if self.proof.seen:
            moved = ", ".join(f"{kind} {value:.1g}" for kind, value in self.proof.seen.items())
            lines.append(f"another medium in a prompt moves a logprob by: {moved}")
        return lines + (self.engine_proof.lines() if self.engine_proof is not None else [])

    def support(self) -> dict[str, str]:
        """What the model does here: the cells of its row in docs/models.md, by column."""
        return support_row(self.model, self.proof)

    def num_tokens(self, rows: Sequence[Row]) -> int:
        sequences = Sequences(rows)
        return sum(map(len, sequences.prompts)) + sum(sequences.lengths) + len(sequences.lengths)

    def prompt_length(self, prompt: Prompt) -> int | None:
        """Tokens of a prompt, media included. What is encoded for it is kept as far as the cache goes."""
        length = len(self.encoder.encode(prompt))
        self.encoder.trim_cache()
        return length

    def set_temperature(self, temperature: float) -> None:
        """Set the sampling temperature, which logprobs are taken at too."""
        self.model.temperature = temperature

    def logprobs(
        self, rows: Sequence[Row], *, needs: Collection[str | Statistic] = (), frozen: str | None = None
    ) -> TokenStats:
        """See `Policy.logprobs`."""
        if frozen is None:
            with self.autocast():
                return self.module(rows, needs)
        with self.frozen_weights(frozen), torch.no_grad(), self.autocast():
            return self.model(rows, needs)

    def autocast(self) -> torch.autocast:
        """The precision that forward passes run in."""
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self._mixed)

    def save(self, directory: Path) -> None:
        """Model (or LoRA adapter) and processor in transformers' own formats, weights as safetensors."""
        save_whole(self.model.model, self.encoder.processor, directory)

    def load(self, directory: Path) -> None:
        """Restore weights written by `save`, bit for bit.

        Raises:
            PolicyError: they are of a whole model where this one has an adapter, or of another adapter.
        """
        check_adapter(directory, self.options.lora)
        if self.options.lora is not None:
            restore_adapter(self.model.model, directory)
        else:
            dtype = next(self.model.model.parameters()).dtype
            loaded = type(self.model.base).from_pretrained(directory, dtype=dtype)
            load_whole(self.model.model, loaded.state_dict())
        self.encoder.clear_cache()

    @classmethod
    def check_trainable(cls, options: Mapping[str, Any]) -> None:
        """Refuse float16 weights, and quantised ones without adapters. See `Policy.check_trainable`."""
        check_trainable(options)

    @classmethod
    def preview(cls, path: str | Path, *, revision: str | None = None, **options: Any) -> PromptPreview:
        """Texts and lengths of prompts without the model's weights. The arguments are those of the policy."""
        return PromptPreview(base_and_adapter(path)[0], LanguageModelOptions(**options), revision=revision)

    @staticmethod
    def needs_base(directory: Path) -> bool:
        """Whether a LoRA adapter was saved there, and the model that it names is not here any more."""
        return base_is_missing(directory)

    def close(self) -> None:
        self.engine.close()


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


def _feature_cache(folder: str, model: LanguageModel, processor: Any, precision: str) -> FeatureCache:
    if model.plain_reason is not None:
        raise PolicyError(
            "model.feature_cache keeps what media towers compute, but this model runs its own forward, which computes "
            f"it anew: {model.plain_reason}. Take model.feature_cache out."
        )
    if not towers_frozen(model.base):
        raise PolicyError(
            "model.feature_cache keeps what media towers compute, but they are trained here. "
            "Freeze them (model.freeze: [vision, audio, projector]) or take model.feature_cache out."
        )
    return FeatureCache(folder, model.base, processor, precision)

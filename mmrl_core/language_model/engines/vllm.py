"""Rollout engine `vllm`: samples through vLLM, which takes over the trained weights when they are published."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmrl_core.config.numbers import Count, PositiveFactor
from mmrl_core.errors import ConfigError, MMRLError, PolicyError
from mmrl_core.language_model.encoder import media_of
from mmrl_core.language_model.engines.base import OnFinished, Sampled, Sampler
from mmrl_core.language_model.engines.hf import refuse_not_finite
from mmrl_core.language_model.engines.vllm_host import (
    Answer,
    AnyHost,
    Host,
    Job,
    Request,
    ServerLostError,
    Start,
    Weights,
    first_line,
    num_processes,
)
from mmrl_core.language_model.engines.vllm_weights import computed_dtype, held_weights, model_files, sent_weights
from mmrl_core.language_model.observations import Continuation, Observation, whole
from mmrl_core.media import resample_audio
from mmrl_core.types import Prompt, Sampling

MODES = ("colocated", "server")
TRANSFERS = {"gloo": "mmrl_gloo", "nccl": "nccl", "ipc": "ipc"}
"""Our name of a way that weights take -> vLLM's name of the backend."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Largest ranks that vLLM can be started for."""


class VLLMEngine:
    """Samples completions through vLLM, which starts with the run, or else with the first rollout."""

    def __init__(
        self,
        *,
        mode: Literal["colocated", "server"] = "colocated",
        memory_gib: PositiveFactor = 4.0,
        max_length: Count | None = None,
        sleep: bool = False,
        gpus: str | None = None,
        address: str | Sequence[str] | None = None,
        transfer: Literal["gloo", "nccl", "ipc"] | None = None,
        sync: Literal["merged", "adapter"] = "merged",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            mode: "colocated" runs vLLM in the training process and on its device; "server" samples through
                `vllm serve`. One that the run has started is started again once if it ends while it samples.
            memory_gib: memory for keys and values of what is being sampled, GiB. The weights come on top.
            max_length: longest prompt with its completion, tokens. Default: model.max_prompt_tokens and the most
                max_tokens of the run.
            sleep: give vLLM's GPU memory back between rollouts. Its weights wait in the machine's memory. GPU only.
            gpus: GPUs of the server that is started, as in CUDA_VISIBLE_DEVICES. Default: those of the training.
            address: "host:port" of a server that runs already, or a list of them, see docs/vllm.md. Default: one is
                started.
            transfer: how weights get to the servers: "gloo" through the machine's memory, "nccl" between GPUs that
                are not shared, "ipc" on one GPU. Default: "nccl" from a GPU to `gpus` or `address`, else "gloo".
            sync: with `model.lora`, "merged" sends all weights, adapters merged into copies; "adapter" sends the
                adapter alone to servers on this machine or with its folder of temporary files.
            arguments: more arguments of `vllm.LLM`, which overrule ours, such as {tensor_parallel_size: 2}.

        Raises:
            ConfigError: an unknown mode, or an option that its mode does not have.
        """
        if mode not in MODES:
            raise ConfigError(f"rollout engine vllm has no mode {mode!r}; modes: {', '.join(MODES)}.")
        addresses = [address] if isinstance(address, str) else list(address or ())
        if mode == "colocated" and (gpus is not None or addresses or transfer is not None or sync != "merged"):
            raise ConfigError("rollout engine vllm: 'gpus', 'address', 'transfer' and 'sync' belong to mode 'server'.")
        for given in addresses:
            if not re.fullmatch(r".+:\d+", given):
                raise ConfigError(f"rollout engine vllm: address {given!r} must be host:port, such as 127.0.0.1:8000.")
        if gpus is not None and addresses:
            raise ConfigError("rollout engine vllm: a server at 'address' has its own GPUs; leave 'gpus' out.")
        self._mode = mode
        self._memory_gib = memory_gib
        self._max_length = max_length
        self._sleep = sleep
        self._gpus = gpus
        self._addresses = addresses
        self._transfer = transfer
        self._sync = sync
        self._arguments = dict(arguments or {})
        self._host: AnyHost | None = None
        self._asleep: set[str] = set()  # parts whose memory is given back

    def generate(
        self,
        policy: Sampler,
        prompts: Sequence[Prompt],
        observations: Sequence[Observation],
        num_samples: int,
        sampling: Sampling,
        on_finished: OnFinished,
    ) -> None:
        """See `Engine.generate`. Logprobs are vLLM's own, and differ from the trainer's by rounding.

        Raises:
            PolicyError: vLLM does not start, sees a prompt as other tokens than the trainer, or its server ended twice.
            NotFiniteError: a sampled token has no logprob.
        """
        converted = _Converted(policy.encoder.audio_rate_hz)
        requests = [
            Request(index, self._inputs(policy, prompt, observation, converted), sampling.seed + index * num_samples)
            for index, (prompt, observation) in enumerate(zip(prompts, observations, strict=True))
        ]
        tokenizer = policy.encoder.tokenizer
        banned = tokenizer.convert_ids_to_tokens(policy.model.banned_ids.tolist())
        stop_ids = sorted(policy.model.stop_ids)
        num_drawn = 1 if sampling.temperature == 0 else num_samples  # greedy completions are all the same
        self._check_length(policy, max(map(len, observations)), sampling.max_tokens)
        continues = any(isinstance(observation, Continuation) for observation in observations)
        done: set[int] = set()

        def run(host: AnyHost) -> None:
            missing = [request for request in requests if request.index not in done]
            with closing(host.generate(Job(missing, num_drawn, sampling, stop_ids, banned, continues))) as answers:
                for answer in answers:
                    _check_prompt(prompts[answer.index], observations[answer.index], answer)
                    policy.model.count("decode_tokens", sum(map(len, answer.tokens)))
                    done.add(answer.index)
                    on_finished(answer.index, _samples(policy, answer) * (num_samples // num_drawn))

        with torch.autocast(policy.model.device.type, enabled=False):
            try:
                run(self._awake(policy))
            except ServerLostError as error:
                self._report_lost(error)
                try:
                    run(self._awake(policy))
                except ServerLostError as second:
                    self.close()
                    raise PolicyError(f"the vLLM server ended twice in one rollout; {second}") from second
        self._rest()

    def start(self, policy: Sampler, max_tokens: int) -> None:
        """See `OtherProgram.start`."""
        self._check_length(policy, 0, max_tokens)
        with self._running(policy):
            pass

    def forced_logprobs(
        self, policy: Sampler, prompt: Prompt, observation: Observation, token: int, num_tokens: int
    ) -> Tensor:
        """See `OtherProgram.forced_logprobs`."""
        self._check_length(policy, len(observation), num_tokens)
        inputs = self._inputs(policy, prompt, observation, _Converted(policy.encoder.audio_rate_hz))
        job = Job([Request(0, inputs, 0)], 1, Sampling(num_tokens, temperature=0.0), (), forced=token)
        with self._running(policy) as host:
            (answer,) = host.generate(job)
        _check_prompt(prompt, observation, answer)
        (sampled,) = _samples(policy, answer)
        if sampled.tokens.tolist() != [token] * num_tokens:
            raise PolicyError(
                f"vLLM was to sample token {token} {num_tokens} times; it gave {sampled.tokens.tolist()}."
            )
        return sampled.logprobs

    def _inputs(
        self, policy: Sampler, prompt: Prompt, observation: Observation, converted: _Converted
    ) -> dict[str, Any]:
        inputs = _inputs(policy, prompt, observation, converted)
        if self._mode == "server" and "prompt" in inputs:  # a server takes tokens alone
            inputs["prompt_token_ids"] = policy.encoder.tokens(inputs.pop("prompt"))
        return inputs

    @contextmanager
    def _running(self, policy: Sampler) -> Iterator[AnyHost]:
        """vLLM for what is asked beside rollouts. What breaks it closes it, and it starts anew when it is needed."""
        try:
            with torch.autocast(policy.model.device.type, enabled=False):
                yield self._awake(policy)
            self._rest()
        except MMRLError:
            raise
        except Exception as error:
            self.close()
            lost = isinstance(error, ServerLostError)
            why = f"the vLLM server has ended; {error}" if lost else f"vLLM fails: {first_line(error)}"
            raise PolicyError(why) from error

    def _rest(self) -> None:
        if self._sleep and self._host is not None:
            self._host.sleep()
            self._asleep = {"weights", "kv_cache"}

    def weights_changed(self, policy: Sampler) -> None:
        """See `Engine.weights_changed`. Before the first rollout there is nothing to do: vLLM starts with them."""
        if self._host is None:
            return
        try:
            self._wake("weights")
            self._host.load_weights(self._weights(policy))
        except ServerLostError as error:
            self._report_lost(error)

    def close(self) -> None:
        """End vLLM, and its server if it is ours. The next rollout starts it anew."""
        if self._host is not None:
            self._host.close()
        self._host, self._asleep = None, set()

    def _report_lost(self, error: ServerLostError) -> None:
        """A server that is not ours to start, or that other processes sample through, ends the run.

        Raises:
            PolicyError: it is one of those.
        """
        self.close()
        if self._addresses or num_processes() > 1:
            raise PolicyError(f"the vLLM server has ended; {error}") from error
        print(f"the vLLM server is started again: {str(error).splitlines()[0]}", flush=True)

    def _awake(self, policy: Sampler) -> AnyHost:
        """vLLM with the last published weights, started if it was not yet."""
        if self._host is None:
            weights = self._weights(policy)
            if self._mode == "colocated":
                self._host = Host(Start(model_files(policy), self._llm_arguments(policy)), weights)
            else:
                self._host = self._remote_host(policy, weights)
        self._wake("weights")
        self._wake("kv_cache")
        return self._host

    def _weights(self, policy: Sampler) -> Weights:
        """A server gets the weights from one process, so they are gathered before; else each process takes them all."""
        return partial(sent_weights, policy, held=held_weights(policy) if self._mode == "server" else None)

    def _wake(self, part: str) -> None:
        if self._host is not None and part in self._asleep:
            self._host.wake(part)
            self._asleep.remove(part)

    def _check_length(self, policy: Sampler, longest_prompt: int, max_tokens: int) -> None:
        if self._max_length is None:
            self._max_length = policy.options.max_prompt_tokens + max_tokens
            positions = getattr(policy.model.base.config.get_text_config(), "max_position_embeddings", None)
            self._max_length = min(self._max_length, positions or self._max_length)
        if longest_prompt + max_tokens > self._max_length:
            raise PolicyError(
                f"a prompt of {longest_prompt} tokens and a completion of {max_tokens} do not fit into the "
                f"{self._max_length} tokens that vLLM was started for: set rollout.engine.max_length, or sample less."
            )

    def _llm_arguments(self, policy: Sampler) -> dict[str, Any]:
        on_cpu = policy.model.device.type == "cpu"
        several = self._mode == "colocated" and num_processes() > 1
        return {
            "generation_config": "vllm",  # no sampling defaults of the model's
            "dtype": str(computed_dtype(policy)).removeprefix("torch."),
            "trust_remote_code": policy.options.trust_remote_code,
            "max_model_len": self._max_length,
            "kv_cache_memory_bytes": int(self._memory_gib * 2**30),
            "gpu_memory_utilization": 0.01,  # only checked at the start, where the trainer's memory would count
            "enable_prefix_caching": True,
            "skip_mm_profiling": True,
            "mm_processor_cache_gb": 1,  # conversations of a group show their prompt's media again, in each turn
            "enable_chunked_prefill": not on_cpu,  # vLLM fails there on a seeded request whose prompt it splits
            "enforce_eager": on_cpu,
            "enable_sleep_mode": self._sleep,
            "distributed_executor_backend": "external_launcher" if several else None,
            **self._arguments,
        }

    def _remote_host(self, policy: Sampler, weights: Weights) -> AnyHost:
        from mmrl_core.language_model.engines.vllm_server import RemoteHost

        if num_processes() > 1 and (self._sleep or self._transfer == "ipc"):
            raise PolicyError("rollout engine vllm: several processes share a server; leave out 'sleep' and 'ipc'.")
        start = Start(model_files(policy), self._server_arguments(policy))
        if self._sync == "merged":
            return RemoteHost(start, weights, self._addresses, self._gpus)
        if policy.options.lora is None:
            raise PolicyError("rollout.engine.sync 'adapter' sends a LoRA adapter: set model.lora, or leave it out.")
        save_adapter = policy.model.model.save_pretrained
        frozen: Weights = partial(sent_weights, policy, adapters=False)
        return RemoteHost(start, frozen, self._addresses, self._gpus, save_adapter)

    def _server_arguments(self, policy: Sampler) -> dict[str, Any]:
        elsewhere = policy.model.device.type == "cuda" and (self._gpus is not None or self._addresses)
        transfer = self._transfer or ("nccl" if elsewhere else "gloo")
        one_process = policy.model.device.type == "cpu" and self._arguments.get("tensor_parallel_size", 1) == 1
        arguments = self._llm_arguments(policy)
        if self._sync == "adapter" and policy.options.lora is not None:
            rank = next((size for size in LORA_RANKS if size >= policy.options.lora.rank), policy.options.lora.rank)
            arguments |= {"enable_lora": True, "max_lora_rank": rank}
        if one_process:  # of the engine, and not another one of its worker, which takes ten seconds to start
            arguments = arguments | {"distributed_executor_backend": "uni"}
        return {
            "load_format": "mmrl_empty",  # weights are sent
            "weight_transfer_config": {"backend": TRANSFERS[transfer]},
            "worker_extension_cls": "mmrl_core.language_model.engines.vllm_plugin.WorkerExtension",
            "enable_scale_out": True,  # the endpoint that takes tokens
            "api_server_count": 1,  # with data parallelism there would be more, of which one hears of new weights
            "disable_uvicorn_access_log": True,
            **arguments,
            **self._arguments,
        }


class _Converted:
    """Media in the form that vLLM takes, each converted once and the same object in all conversations.

    The keys are `id`s, since arrays cannot be keys. The prompts hold the media, so an id stays that of its medium for a
    whole rollout.
    """

    def __init__(self, rate_hz: int | None) -> None:
        """
        Args:
            rate_hz: sampling rate that audio is converted to.
        """
        self.rate_hz = rate_hz
        self._arrays: dict[int, np.ndarray] = {}

    def frames(self, frames: Any) -> np.ndarray:
        """uint8 [frames, 3, height, width] -> [frames, height, width, 3]."""
        if id(frames) not in self._arrays:
            self._arrays[id(frames)] = torch.as_tensor(frames).movedim(1, -1).numpy()
        return self._arrays[id(frames)]

    def samples(self, samples: Any, rate_hz: int) -> np.ndarray:
        """float32 mono samples at the rate of the model."""
        assert self.rate_hz is not None  # the encoder has refused audio for a model that takes none
        if id(samples) not in self._arrays:
            self._arrays[id(samples)] = np.asarray(resample_audio(samples, rate_hz, self.rate_hz))
        return self._arrays[id(samples)]


def _inputs(policy: Sampler, prompt: Prompt, observation: Observation, converted: _Converted) -> dict[str, Any]:
    """The input of vLLM for an observation: tokens, or with media one placeholder for each medium and the media.

    A prompt with media is given as text, which vLLM tokenises as the trainer did. A conversation is given as tokens,
    since the text of sampled tokens may be split into others.
    """
    messages: list[Mapping[str, Any]] = []
    turn = observation
    while isinstance(turn, Continuation):
        messages = [*turn.messages, *messages]
        turn = turn.before
    images, videos, audios = media_of([*prompt.messages, *messages])
    input_ids = whole(observation).input_ids.tolist()
    if not images and not videos and not audios:
        return {"prompt_token_ids": input_ids}
    media: dict[str, list[Any]] = {}
    if images:
        media["image"] = images
    if videos:  # frames as uint8 [frames, height, width, 3]
        media["video"] = [
            (converted.frames(frames), {**metadata, "do_sample_frames": False}) for frames, metadata in videos
        ]
    if audios:
        media["audio"] = [(converted.samples(*audio), converted.rate_hz) for audio in audios]
    inputs: dict[str, Any] = {"multi_modal_data": media}
    if isinstance(observation, Continuation):
        placeholders = policy.model.banned_ids.tolist()  # one stands for as many as the medium has tokens
        inputs["prompt_token_ids"] = [
            token
            for token, before in zip(input_ids, [None, *input_ids[:-1]], strict=True)
            if token not in placeholders or token != before
        ]
    else:
        inputs["prompt"] = policy.encoder.render(prompt)
    return inputs | ({"mm_processor_kwargs": {"do_sample_frames": False}} if videos else {})


def _check_prompt(prompt: Prompt, observation: Observation, answer: Answer) -> None:
    """Completions of other tokens than the trainer sees would be off-policy without a sign of it."""
    ours = whole(observation).input_ids.tolist()
    if answer.prompt_ids != ours:
        raise PolicyError(
            f"prompt {prompt.id!r} has {len(ours)} tokens in training and {len(answer.prompt_ids)} in vLLM"
            f"{', not the same ones' if len(ours) == len(answer.prompt_ids) else ''}. If it has images or videos, set "
            "model.min_pixels and model.max_pixels so that no medium is resized, or use rollout.engine=hf."
        )


def _samples(policy: Sampler, answer: Answer) -> list[Sampled]:
    """Raises NotFiniteError where weights have no meaning: vLLM samples on, whatever its logits are."""
    samples = [
        Sampled(torch.tensor(tokens), torch.tensor(logprobs), truncated)
        for tokens, logprobs, truncated in zip(answer.tokens, answer.logprobs, answer.truncated, strict=True)
    ]
    for sampled in samples:
        refuse_not_finite(sampled.logprobs[None], policy.model)
    return samples

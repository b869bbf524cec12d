"""vLLM in this process: its start, its requests and its answers.

Weights are loaded under transformers' names, and logprobs are those that the trainer computes.
"""

from __future__ import annotations

import gc
import os
import random
import tempfile
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mmrl_core.errors import PolicyError
from mmrl_core.types import Sampling

Weights = Callable[[], Iterable[tuple[str, Tensor]]]
"""Gives the present weights, named as transformers saves them, one at a time."""

_KEPT: list[Any] = []
"""Closed engines of a run with several processes: an engine that goes takes the trainer's process group with it."""


@dataclass(frozen=True)
class Request:
    """One prompt: `inputs` as vLLM takes them. Sample g is drawn with seed + g."""

    index: int
    inputs: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class Answer:
    """All samples of a request: token ids, their logprobs, and whether each was cut at the limit."""

    index: int
    prompt_ids: list[int]
    tokens: list[list[int]]
    logprobs: list[list[float]]
    truncated: list[bool]


@dataclass(frozen=True)
class Start:
    """Start of vLLM: files of the model's folder without weights, and arguments of `vllm.LLM`."""

    files: Mapping[str, bytes]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """Requests that are sampled in one way.

    `banned` are token texts that are never sampled. Requests that continue conversations use the keys and values that
    earlier turns computed. `forced` is a token that every sampled one is, with its logprob among all.
    """

    requests: Sequence[Request]
    num_samples: int
    sampling: Sampling
    stop_ids: Sequence[int]
    banned: Sequence[str] = field(default=())
    continues: bool = False
    forced: int | None = None


class AnyHost(Protocol):
    """Where vLLM runs."""

    def load_weights(self, weights: Weights) -> None:
        """Replace the weights, and forget what was computed with the old ones."""
        ...

    def generate(self, job: Job) -> Generator[Answer]:
        """Answers as they are finished."""
        ...

    def sleep(self) -> None:
        """Give back the device memory of weights and cache. The weights are kept elsewhere."""
        ...

    def wake(self, part: str) -> None:
        """Take the device memory of "weights" or "kv_cache" back."""
        ...

    def close(self) -> None: ...


class ServerLostError(Exception):
    """The server's process has ended, or its connection broke. The text is the end of its log."""


class Host:
    """vLLM in this process.

    Raises:
        PolicyError: vLLM is not installed, or does not start with these arguments or weights.
    """

    def __init__(self, start: Start, weights: Weights) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights and hooks reach the model only in this process
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        self._temperature = 1.0
        self._folder = tempfile.TemporaryDirectory(prefix="mmrl-vllm-")  # vLLM reads some files at the first prompt
        write_files(start.files, Path(self._folder.name))
        with _process_settings_kept():
            try:
                from vllm import LLM

                self._llm = LLM(model=self._folder.name, load_format=_load_format(weights), **start.arguments)
            except ImportError as error:
                raise PolicyError(not_installed(error)) from error
            except Exception as error:
                raise PolicyError(f"vLLM does not start: {first_line(error)}") from error
        self._llm.apply_model(self._divide_logits_by_temperature)

    def _divide_logits_by_temperature(self, model: torch.nn.Module) -> None:
        """vLLM itself samples at 1. Its raw logprobs, taken before top-k, top-p and bans, are then those we need."""
        for module in model.modules():
            if type(module).__name__ == "LogitsProcessor":
                module.register_forward_hook(lambda module, inputs, logits: logits.float() / self._temperature)

    def load_weights(self, weights: Weights) -> None:
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights())})
        self._llm.apply_model(repack_tied_layers)
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()
        self._llm.reset_prefix_cache()

    def generate(self, job: Job) -> Generator[Answer]:
        engine = self._llm.llm_engine
        if not job.continues:
            # Which prompts were seen before must not decide how a prompt is computed, and so the last bits of it.
            self._llm.reset_prefix_cache()
        self._temperature = job.sampling.temperature or 1.0
        names = [str(request.index) for request in job.requests]
        try:
            for name, request in zip(names, job.requests, strict=True):
                try:
                    engine.add_request(name, request.inputs, _sampling_params(job, request.seed))
                except Exception as error:
                    raise PolicyError(f"vLLM refuses a prompt: {first_line(error)}") from error
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        yield _answer(output)
        finally:
            if engine.has_unfinished_requests():
                engine.abort_request(names)

    def sleep(self) -> None:
        self._llm.sleep(level=1)

    def wake(self, part: str) -> None:
        self._llm.wake_up(tags=[part])

    def close(self) -> None:
        if (llm := self.__dict__.pop("_llm", None)) is None:
            return
        if num_processes() > 1:
            _KEPT.append(llm)
            return
        llm.llm_engine.engine_core.shutdown()
        self._folder.cleanup()
        del llm
        gc.collect()


def repack_tied_layers(model: torch.nn.Module) -> None:
    """Pack output layers anew that share the embedding's weights, after these have changed.

    On a CPU vLLM computes with a packed copy, which it makes when weights of the layer itself are loaded.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "cpu_linear") and hasattr(layer, "num_embeddings"):
            layer.quant_method.process_weights_after_loading(layer)


def not_installed(error: ImportError) -> str:
    """What to do where vLLM cannot be imported."""
    return f"rollout engine vllm needs vLLM ({error}). docs/vllm.md says how to install it."


def num_processes() -> int:
    """Number of training processes. (vLLM itself makes a process group too, of one.)"""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files, named relative to the folder, which is made."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def sampling_fields(job: Job, seed: int) -> dict[str, Any]:
    """Fields of vLLM's `SamplingParams` for a request. The temperature is that of the job."""
    return {
        "n": job.num_samples,
        "temperature": job.sampling.temperature,
        "top_p": job.sampling.top_p,
        "top_k": job.sampling.top_k,
        "max_tokens": job.sampling.max_tokens,
        "seed": seed,
        "stop_token_ids": list(job.stop_ids),
        "ignore_eos": True,  # only these stop ids count
        "bad_words": list(job.banned),
        "allowed_token_ids": None if job.forced is None else [job.forced],
        "logprobs": 0,
        "detokenize": False,
    }


def _sampling_params(job: Job, seed: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    temperature = 0.0 if job.sampling.temperature == 0 else 1.0  # the logits are divided before
    fields = sampling_fields(job, seed) | {"temperature": temperature}
    return SamplingParams(**fields, output_kind=RequestOutputKind.FINAL_ONLY)


def _answer(output: Any) -> Answer:
    samples = output.outputs
    return Answer(
        index=int(output.request_id),
        prompt_ids=list(output.prompt_token_ids),
        tokens=[list(sample.token_ids) for sample in samples],
        logprobs=[
            [step[token].logprob for step, token in zip(sample.logprobs, sample.token_ids, strict=True)]
            for sample in samples
        ],
        truncated=[sample.finish_reason != "stop" for sample in samples],
    )


def _load_format(weights: Weights) -> str:
    """A load format that takes these weights. (With "dummy" some models' buffers would be filled with noise.)"""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    @register_model_loader("mmrl")
    class PolicyLoader(BaseModelLoader):
        def download_model(self, model_config: Any) -> None:
            pass

        def load_weights(self, model: Any, model_config: Any) -> None:
            loaded = model.load_weights(iter(weights()))
            missing = sorted({name for name, _ in model.named_parameters()} - (loaded or set()))
            if loaded is not None and missing:
                raise ValueError(f"the policy has no weights for {', '.join(missing[:3])} ({len(missing)} in all)")

    return "mmrl"


@contextmanager
def _process_settings_kept() -> Iterator[None]:
    """vLLM seeds every generator of the process and, on a CPU, replaces `torch.set_num_threads`."""
    import numpy as np

    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(num_threads)


def first_line(error: BaseException) -> str:
    """What an error says; of one that is no sentence, such as `KeyError: 'x'`, also where it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = ": ".join(lines[:3] if lines and "validation error" in lines[0] else lines[:1])
    if said and not isinstance(error, AssertionError | AttributeError | LookupError | NameError | TypeError):
        return said
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
    return f"{type(error).__name__}{': ' if said else ''}{said}{where}"

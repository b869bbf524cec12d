"""vLLM itself: `Host` runs it in this process, `RemoteHost` in another one, which runs this module.

Both load weights under transformers' names and sample with the logprobs that the trainer computes. What passes between
the processes is pickled, so both ends must prove that they know the same key before anything is read.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mmrl_core.errors import PolicyError
from mmrl_core.types import Sampling

KEY = "MMRL_VLLM_KEY"
"""Environment variable with the key that trainer and server share."""

START_TIMEOUT_S = 120.0
"""How long a server may take until it answers; vLLM is started later, without limit."""

LOG_LINES = 15
"""Lines of a server's log that are shown when it has ended."""

_KEPT: list[Any] = []
"""Closed engines of a run with several processes: an engine that goes takes the trainer's process group with it."""


@dataclass(frozen=True)
class Request:
    """One prompt: `inputs` as vLLM takes them; sample g is drawn with seed + g."""

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
    """What vLLM is started with: files of the model's folder without weights, and arguments of `vllm.LLM`."""

    files: Mapping[str, bytes]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """Requests that are sampled in one way.

    `banned` are token texts that are never sampled. Requests that continue conversations find what the turns before
    have computed.
    """

    requests: Sequence[Request]
    num_samples: int
    sampling: Sampling
    stop_ids: Sequence[int]
    banned: Sequence[str] = field(default=())
    continues: bool = False


class AnyHost(Protocol):
    """Where vLLM runs."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights, named as transformers saves them, and forget what was computed with the old ones."""
        ...

    def generate(self, job: Job) -> Iterator[Answer]:
        """Answers as they are finished."""
        ...

    def sleep(self) -> None:
        """Give back the device memory of weights and cache; the weights are kept elsewhere."""
        ...

    def wake(self, part: str) -> None:
        """Take the device memory of "weights" or "kv_cache" back."""
        ...

    def close(self) -> None: ...


class ServerLostError(Exception):
    """The server's process has ended, or its connection broke; the text is the end of its log."""


class Host:
    """vLLM in this process.

    Raises:
        PolicyError: vLLM is not installed, or does not start with these arguments or weights.
    """

    def __init__(self, start: Start, weights: Iterable[tuple[str, Tensor]]) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights and hooks reach the model only in this process
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        self._temperature = 1.0
        with tempfile.TemporaryDirectory(prefix="mmrl-vllm-") as folder, _process_settings_kept():
            for name, content in start.files.items():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).write_bytes(content)
            try:
                from vllm import LLM

                self._llm = LLM(model=folder, load_format=_load_format(weights), **start.arguments)
            except ImportError as error:
                why = f"rollout engine vllm needs vLLM ({error}). docs/vllm.md says how to install it."
                raise PolicyError(why) from error
            except Exception as error:
                raise PolicyError(f"vLLM does not start: {_first_line(error)}") from error
        self._llm.apply_model(self._divide_logits_by_temperature)

    def _divide_logits_by_temperature(self, model: torch.nn.Module) -> None:
        """vLLM itself samples at 1. Its raw logprobs, taken before top-k, top-p and bans, are then those we need."""
        for module in model.modules():
            if type(module).__name__ == "LogitsProcessor":
                module.register_forward_hook(lambda module, inputs, logits: logits.float() / self._temperature)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()
        self._llm.reset_prefix_cache()

    def generate(self, job: Job) -> Iterator[Answer]:
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
                    raise PolicyError(f"vLLM refuses a prompt: {_first_line(error)}") from error
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
        del llm
        gc.collect()


class RemoteHost:
    """A `Host` in another process.

    Raises:
        PolicyError: there is no server at the address, it has another key, or vLLM does not start in it.
        ServerLostError: from any method.
    """

    def __init__(
        self,
        start: Start,
        weights: Iterable[tuple[str, Tensor]],
        address: str | None = None,
        gpus: str | None = None,
    ) -> None:
        """Start a server and connect to it.

        Args:
            start, weights: what vLLM is started with.
            address: "host:port" of a server that runs already; its key is in the environment.
            gpus: GPUs of the server that is started, as in CUDA_VISIBLE_DEVICES; None: those of this process.
        """
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="mmrl-vllm-")
        self._log = Path(self._folder.name) / "log"
        try:
            self._connection = self._connect(address) if address is not None else self._launch(gpus)
            self._send_weights("start", start, weights)
        except BaseException:
            self.close()
            raise

    def _launch(self, gpus: str | None) -> Connection:
        socket, key = str(Path(self._folder.name) / "socket"), secrets.token_hex(32)
        environment = {"VLLM_LOGGING_LEVEL": "INFO", **os.environ, KEY: key}
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)  # the server is no process of the training
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mmrl_core.language_model.engines.vllm_server", socket, "--once"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the trainer, which closes the server
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                return Client(socket, "AF_UNIX", authkey=key.encode())
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.05)
        raise ServerLostError(self._last_lines())

    def _connect(self, address: str) -> Connection:
        try:
            return Client(_host_and_port(address), "AF_INET", authkey=_key())
        except Exception as error:  # a wrong key raises AuthenticationError, a broken one EOFError, or OSError
            raise PolicyError(f"no vLLM server can be used at {address}: {_first_line(error)}") from error

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            raise ServerLostError(self._last_lines()) from error

    def _call(self, name: str, argument: Any = None) -> None:
        with self._watched():
            self._connection.send((name, argument))
            self._result()

    def _result(self) -> Any:
        kind, value = self._connection.recv()
        if kind == "error":
            raise PolicyError(value)
        return value

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self._send_weights("load_weights", None, weights)

    def _send_weights(self, call: str, argument: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
        with self._watched():
            self._connection.send((call, argument))
            for name, tensor in weights:
                self._connection.send((name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)))
                self._connection.send_bytes(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            self._connection.send(None)
            self._result()

    def generate(self, job: Job) -> Iterator[Answer]:
        with self._watched():
            self._connection.send(("generate", job))
            answer = self._result()
        try:
            while answer is not None:
                yield answer
                with self._watched():
                    answer = self._result()
        except GeneratorExit:  # the caller failed: what is still to come must not answer the next call
            while answer is not None:
                with self._watched():
                    answer = self._result()
            raise

    def sleep(self) -> None:
        self._call("sleep")

    def wake(self, part: str) -> None:
        self._call("wake", part)

    def close(self) -> None:
        if connection := self.__dict__.pop("_connection", None):
            connection.close()
        if self._process is not None:
            try:
                self._process.wait(timeout=10)  # it ends when its connection does
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._folder.cleanup()

    def _last_lines(self) -> str:
        """How the server ended, and the last lines of its log."""
        if self._process is None:
            return "the connection to it broke; its log is where it was started"
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "the connection to it broke"
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        ended = f"it was ended by signal {-status}" if status < 0 else f"it ended with status {status}"
        return "\n".join([ended, *(lines or ["(its log is empty)"])])


def num_processes() -> int:
    """Of the training. (vLLM itself makes a group too, of one.)"""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _sampling_params(job: Job, seed: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=job.num_samples,
        temperature=0.0 if job.sampling.temperature == 0 else 1.0,
        top_p=job.sampling.top_p,
        top_k=job.sampling.top_k,
        max_tokens=job.sampling.max_tokens,
        seed=seed,
        stop_token_ids=list(job.stop_ids),
        ignore_eos=True,  # only these stop ids count
        bad_words=list(job.banned),
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


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


def _load_format(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A load format that takes these weights. (With "dummy" some models' buffers would be filled with noise.)"""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    @register_model_loader("mmrl")
    class PolicyLoader(BaseModelLoader):
        def download_model(self, model_config: Any) -> None:
            pass

        def load_weights(self, model: Any, model_config: Any) -> None:
            loaded = model.load_weights(iter(weights))
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


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _key() -> bytes:
    if not (key := os.environ.get(KEY)):
        raise PolicyError(f"set {KEY} to the same secret text where the server and where the training runs.")
    return key.encode()


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise PolicyError(f"address {address!r} must be host:port, such as 127.0.0.1:8765.")
    return host, int(port)


# The server


def serve(connection: Connection) -> None:
    """Answer one trainer until it hangs up."""
    host: Host | None = None
    while True:
        try:
            name, argument = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if name == "start":
                with _received_weights(connection) as weights:
                    host = Host(argument, weights)
            elif name == "load_weights":
                assert host is not None
                with _received_weights(connection) as weights:
                    host.load_weights(weights)
            elif name == "generate":
                assert host is not None
                for answer in host.generate(argument):
                    connection.send(("answer", answer))
            else:
                assert name in ("sleep", "wake")
                getattr(host, name)(*([] if argument is None else [argument]))
        except (BrokenPipeError, ConnectionResetError):
            return
        except PolicyError as error:
            connection.send(("error", str(error)))
        else:  # any other error ends this process, and the trainer starts another one
            connection.send(("done", None))


@contextmanager
def _received_weights(connection: Connection) -> Iterator[Iterator[tuple[str, Tensor]]]:
    def received() -> Iterator[tuple[str, Tensor]]:
        while (header := connection.recv()) is not None:
            name, dtype, shape = header
            content = torch.frombuffer(bytearray(connection.recv_bytes()), dtype=torch.uint8)
            yield name, content.view(getattr(torch, dtype)).reshape(shape)

    weights = received()
    try:
        yield weights
    finally:
        for _ in weights:  # after an error the rest must not be taken for the next call
            pass


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mmrl_core.language_model.engines.vllm_server",
        description="Serve a training run whose rollout engine is {name: vllm, mode: server, address: ADDRESS}.",
        epilog=f"{KEY} must hold the same secret text here and there. Whoever knows it can run code in this process, "
        "and what is sent is not encrypted: bind to 127.0.0.1, or to a network that you trust.",
    )
    parser.add_argument("address", metavar="HOST:PORT", help="where to listen, such as 127.0.0.1:8765")
    parser.add_argument("--once", action="store_true", help="end with the first run, instead of waiting for the next")
    arguments = parser.parse_args()
    try:
        key = _key()
        local = arguments.address.startswith("/")
        address = arguments.address if local else _host_and_port(arguments.address)
    except PolicyError as error:
        sys.exit(f"error: {error}")
    with Listener(address, "AF_UNIX" if local else "AF_INET", authkey=key) as listener:
        while True:
            try:
                connection = listener.accept()
                break
            except Exception as error:  # a wrong key, or somebody who only knocked
                print(f"refused a connection: {_first_line(error)}", flush=True)
    serve(connection)
    if not arguments.once:  # a fresh process is the sure way to give all memory back
        os.execv(sys.executable, [sys.executable, "-m", __spec__.name, arguments.address])


if __name__ == "__main__":
    from mmrl_core.language_model.engines import (
        vllm_server,  # under this name the other end finds the classes that are sent
    )

    vllm_server.main()

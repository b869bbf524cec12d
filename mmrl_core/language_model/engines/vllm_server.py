"""vLLM behind HTTP: `RemoteHost` samples through one or several `vllm serve`, and sends them the weights.

Prompts go to vLLM's token endpoint, /inference/v1/generate, as token ids with the media beside them, so that no text is
tokenised twice; the other calls are vLLM's for reinforcement learning (pause, weight transfer, resume), which a server
has in its development mode.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import torch

from mmrl_core.errors import PolicyError
from mmrl_core.language_model.engines.vllm_host import (
    Answer,
    Job,
    Request,
    ServerLostError,
    Start,
    Weights,
    first_line,
    not_installed,
    num_processes,
)
from mmrl_core.language_model.engines.vllm_http import Server, Servers, answered, asked
from mmrl_core.language_model.engines.vllm_process import ServerProcess

Outcome = TypeVar("Outcome")


class RemoteHost:
    """A `Host` in other processes: servers that the first process of a training starts, or that run already.

    Only the first process sends weights. All of them send requests.

    Raises:
        PolicyError: there is no usable server at an address, or vLLM does not start.
        ServerLostError: from any method.
    """

    def __init__(
        self,
        start: Start,
        weights: Weights,
        addresses: Sequence[str] = (),
        gpus: str | None = None,
        save_adapter: Callable[[Path], None] | None = None,
    ) -> None:
        """Start a server or connect to those at the addresses, and send the weights.

        Args:
            start: of vLLM, for a server that is started; its transfer backend is also that of running ones.
            weights: see `Weights`.
            addresses: "host:port" of servers that run already.
            gpus: GPUs of the server that is started, as in CUDA_VISIBLE_DEVICES.
            save_adapter: writes a LoRA adapter into a folder. The weights are then those without it, which are sent
                once, and afterwards the adapter alone.
        """
        self._save_adapter, self._adapter = save_adapter, ""
        self._folder = tempfile.TemporaryDirectory(prefix="mmrl-vllm-")  # of the present adapter
        self._backend = start.arguments["weight_transfer_config"]["backend"]
        self._process: ServerProcess | None = None
        self._servers: list[Server] = []
        self._transfer: Any = None
        self._salt, self._num_jobs = secrets.token_hex(16), 0
        try:
            addresses = _on_first(lambda: self._addresses(start, addresses, gpus))
            self._servers = [Server(address) for address in addresses]
            _on_first(lambda: self._open(weights))
            _on_first(lambda: self._send(weights))
            _on_first(self._check_weights)
            if save_adapter is not None:
                self.load_weights(weights)
        except BaseException:
            self.close()
            raise

    def _addresses(self, start: Start, addresses: Sequence[str], gpus: str | None) -> list[str]:
        if addresses:
            return list(addresses)
        self._process = ServerProcess(start, gpus)
        _vllm_transfer()  # an import of some seconds, which the server takes too
        self._process.wait()
        return [self._process.address]

    def _open(self, weights: Weights) -> None:
        open_transfer = _vllm_transfer().open_transfer
        for server in self._servers:
            server.check()
        with self._watched():
            servers = Servers(self._servers)
            servers.all("/shutdown_weight_transfer_engine")  # the one of an earlier run, if any
            host = _own_address(self._servers[0].address)
            self._transfer = open_transfer(
                self._backend, host, _free_port(host), sum(servers.num_workers), servers, weights
            )

    def load_weights(self, weights: Weights) -> None:
        """See `AnyHost.load_weights`. Requests under way are finished with the old weights, new ones wait."""
        if num_processes() > 1:
            torch.distributed.barrier()  # another process may still sample with the old weights
        if self._save_adapter is None:
            _on_first(lambda: self._send(weights))
        else:
            self._adapter = _on_first(self._send_adapter)

    def _send_adapter(self) -> str:
        """Name of the adapter in the servers. Each has another name, so that nothing computed before is used again."""
        assert self._save_adapter is not None
        old, name = self._adapter, f"mmrl-{secrets.token_hex(8)}"
        folder = Path(self._folder.name) / name
        self._save_adapter(folder)
        with self._watched():
            servers = self._transfer.client
            servers.all("/pause", mode="wait", clear_cache="true")
            servers.load_adapter(name, str(folder))
            if old:
                servers.unload_adapter(old)
            servers.all("/resume")
        if old:
            shutil.rmtree(Path(self._folder.name) / old)
        return name

    def _send(self, weights: Weights) -> None:
        with self._watched():
            servers = self._transfer.client
            self._transfer.source.weights = weights
            servers.all("/pause", mode="wait", clear_cache="true")
            try:
                self._transfer.send_weights()
            except RuntimeError as error:  # of torch's communication
                raise ServerLostError(f"it takes no weights ({first_line(error)})") from error
            servers.all("/resume")

    def _check_weights(self) -> None:
        with self._watched():
            for server in self._servers:
                for found in server.call("/collective_rpc", {"method": "mmrl_missing"})["results"]:
                    if missing := found["missing"]:
                        few = ", ".join(missing[:3])
                        raise PolicyError(f"the policy has no weights for {few} ({len(missing)} in all)")

    def generate(self, job: Job) -> Generator[Answer]:
        """See `AnyHost.generate`. Requests are spread over the servers."""
        if not job.continues:
            # Which prompts were seen before must not decide how a prompt is computed, and so the last bits of it.
            self._num_jobs += 1
        names = [f"{self._salt}-{self._num_jobs}-{request.index}" for request in job.requests]
        with self._watched(), ThreadPoolExecutor(max(1, len(names))) as threads:
            answers = [
                threads.submit(self._ask, job, request, name) for name, request in zip(names, job.requests, strict=True)
            ]
            try:
                for answer in as_completed(answers):
                    yield answer.result()
            except BaseException:  # what is still to come is wanted no more
                for answer in answers:
                    answer.cancel()
                self._abort(names)
                raise

    def _ask(self, job: Job, request: Request, name: str) -> Answer:
        body = {**asked(job, request), "request_id": name, "cache_salt": f"{self._salt}-{self._num_jobs}"}
        if self._adapter:
            body["model"] = self._adapter
        server = self._servers[request.index % len(self._servers)]
        try:
            return answered(request.index, server.call("/inference/v1/generate", body))
        except PolicyError as error:
            raise PolicyError(f"vLLM refuses a prompt: {error}") from error

    def _abort(self, names: Sequence[str]) -> None:
        for server in self._servers:
            with contextlib.suppress(ServerLostError, PolicyError):
                server.call("/abort_requests", {"request_ids": [f"generate-tokens-{name}" for name in names]})

    def sleep(self) -> None:
        with self._watched():
            for server in self._servers:
                server.call("/sleep", level=1, mode="wait")

    def wake(self, part: str) -> None:
        with self._watched():
            for server in self._servers:
                server.call("/wake_up", tags=part)

    def close(self) -> None:
        if self._transfer is not None:
            if self._process is None:
                with contextlib.suppress(ServerLostError, PolicyError):
                    self._transfer.client.all("/shutdown_weight_transfer_engine")
            self._transfer.shutdown()
            self._transfer = None
        for server in self._servers:
            server.close()
        if self._process is not None:
            self._process.close()
        self._folder.cleanup()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Say how our server ended, where it is lost."""
        try:
            yield
        except ServerLostError as error:
            if self._process is None:
                raise ServerLostError(f"{error}; its log is where it was started") from error
            raise ServerLostError(self._process.ended()) from error


def _vllm_transfer() -> Any:
    try:
        from mmrl_core.language_model.engines import vllm_transfer
    except ImportError as error:
        raise PolicyError(not_installed(error)) from error
    return vllm_transfer


def _on_first(action: Callable[[], Outcome]) -> Outcome:
    """What an action gives that the first process alone takes, in all of them; or its error.

    Raises:
        PolicyError: in the others, for any error in the first process.
    """
    if num_processes() == 1:
        return action()
    given: list[Any] = [None, None]
    failure: Exception | None = None
    if torch.distributed.get_rank() == 0:
        try:
            given[0] = action()
        except Exception as error:
            given[1], failure = str(error) or first_line(error), error
    torch.distributed.broadcast_object_list(given, src=0)
    if failure is not None:
        raise failure
    if given[1] is not None:
        raise PolicyError(given[1])
    return given[0]


def _own_address(server: str) -> str:
    """The address of this machine that a server can reach."""
    if server.startswith("/"):
        return "127.0.0.1"
    host, _, port = server.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))  # sends nothing
        return str(probe.getsockname()[0])


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])

"""vLLM in another process: `RemoteHost` is the trainer's end, this module run as a program the server's.

Messages between the processes are pickled, so both ends must prove that they know the same key before anything is
read.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl_core.errors import PolicyError
from mmrl_core.language_model.engines.vllm_host import Answer, Host, Job, ServerLostError, Start, first_line

KEY = "MMRL_VLLM_KEY"
"""Environment variable with the key that trainer and server share."""

START_TIMEOUT_S = 120.0
"""How long a server may take until it answers. vLLM is started later, without limit."""

LOG_LINES = 15
"""Last lines of a server's log, which the error holds when the server has ended."""


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
            start, weights: start of vLLM, and the weights it loads.
            address: "host:port" of a server that runs already. Its key is in the environment.
            gpus: GPUs of the server that is started, as in CUDA_VISIBLE_DEVICES. None gives it those of this process.
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
            raise PolicyError(f"no vLLM server can be used at {address}: {first_line(error)}") from error

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
                print(f"refused a connection: {first_line(error)}", flush=True)
    serve(connection)
    if not arguments.once:  # a fresh process is the sure way to give all memory back
        os.execv(sys.executable, [sys.executable, "-m", __spec__.name, arguments.address])


if __name__ == "__main__":
    main()

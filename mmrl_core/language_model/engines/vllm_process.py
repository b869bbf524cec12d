"""A `vllm serve` that the run starts, and that ends with it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrl_core.errors import PolicyError
from mmrl_core.language_model.engines.vllm_host import ServerLostError, Start, write_files
from mmrl_core.language_model.engines.vllm_http import Server
from mmrl_core.support import kill_when_closed

LOG_LINES = 15
"""Last lines of a server's log, which the error holds when the server has ended."""


class ServerProcess:
    """A `vllm serve` of our own, at a socket in a folder that only this user can open. It ends with this process."""

    def __init__(self, start: Start, gpus: str | None) -> None:
        """Start it.

        Args:
            gpus: as in CUDA_VISIBLE_DEVICES. None gives it those of this process.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="mmrl-vllm-")
        folder = Path(self._folder.name)
        self.address, self._log = str(folder / "socket"), folder / "log"
        write_files(start.files, folder / "model")
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder / "model")]
        its_end, our_end = os.pipe()  # closed by the system when this process ends
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen(
                [*command, "--uds", self.address, *flags(start.arguments)],
                env=_environment(start.arguments, gpus),
                stdin=its_end,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the trainer, which closes the server
            )
        kill_when_closed(its_end, -self.popen.pid)
        os.close(its_end)
        self._our_end: int | None = our_end

    def wait(self) -> None:
        """Until it answers.

        Raises:
            PolicyError: it ends while it starts.
        """
        server = Server(self.address)
        try:
            while self.popen.poll() is None:
                try:
                    server.call("/health", method="GET")
                    return
                except (ServerLostError, PolicyError):
                    time.sleep(0.1)
        finally:
            server.close()
        raise PolicyError(f"vLLM does not start: {self._cause()}")

    def _cause(self) -> str:
        """The first error in its log, which later ones follow from."""
        for line in self._lines():
            error = re.search(r"\b(\w+Error: .+|.*error: .+|\d+ validation errors? for .+)", line)
            if error:
                return error[1]
        return self.ended()

    def _lines(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines()

    def ended(self) -> str:
        """How it ended, and the last lines of its log."""
        try:
            status = self.popen.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "the connection to it broke"
        ended = f"it was ended by signal {-status}" if status < 0 else f"it ended with status {status}"
        return "\n".join([ended, *(self._lines()[-LOG_LINES:] or ["(its log is empty)"])])

    def close(self) -> None:
        """End it with all processes that it has started. May be called more than once."""
        if self._our_end is None:
            return
        self.popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        os.close(self._our_end)
        self._our_end = None
        self._folder.cleanup()


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments of `vllm.LLM` as the command line of `vllm serve` has them.

    >>> flags({"enforce_eager": True, "max_model_len": 612, "limit_mm_per_prompt": {"image": 1}, "seed": None})
    ['--enforce-eager', '--max-model-len=612', '--limit-mm-per-prompt={"image": 1}']
    """
    given = []
    for key, value in arguments.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            given.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            given.append(f"--{name}={json.dumps(value) if isinstance(value, Mapping | list) else value}")
    return given


def _environment(arguments: Mapping[str, Any], gpus: str | None) -> dict[str, str]:
    environment = {
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_MEDIA_CONNECTOR": "mmrl",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a CPU then needs no third process, see `_server_arguments`
    }
    if arguments["weight_transfer_config"]["backend"] == "ipc":
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # handles of GPU memory are pickled
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    if arguments.get("enable_lora"):
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)  # the server is no process of the training
    return environment

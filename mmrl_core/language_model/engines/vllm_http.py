"""Calls to `vllm serve`: one server or several at once, and how a request and its answer look there."""

from __future__ import annotations

import base64
import math
import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np

from mmrl_core.errors import PolicyError
from mmrl_core.language_model.engines.vllm_host import (
    Answer,
    Job,
    Request,
    ServerLostError,
    first_line,
    sampling_fields,
)

NO_LOGPROB = -9999.0
"""What vLLM's server writes for a logprob that is NaN or below."""


class Server:
    """One `vllm serve`, at host:port or at a socket of this machine's."""

    def __init__(self, address: str) -> None:
        self.address = address
        local = address.startswith("/")
        # Any number of requests at once, each for as long as sampling takes, and each on a connection of its own: a
        # server closes one that was idle, or that an error went over, just when it is used again.
        limits = httpx.Limits(max_keepalive_connections=0)
        transport = httpx.HTTPTransport(uds=address if local else None, limits=limits)
        self._client = httpx.Client(
            transport=transport, base_url="http://localhost" if local else f"http://{address}", timeout=None
        )

    def call(self, path: str, body: Any = None, *, method: str = "POST", **query: Any) -> Any:
        """The answer to a call.

        Raises:
            PolicyError: the server refuses the call.
            ServerLostError: it does not answer, or its engine has ended.
        """
        try:
            response = self._client.request(method, path, json=body, params=query)
            if response.status_code >= 500 and self._client.get("/health").status_code != 200:
                raise ServerLostError("its engine has ended")
        except httpx.TransportError as error:
            raise ServerLostError(f"the connection to it broke ({first_line(error)})") from error
        if response.status_code != 200:
            raise PolicyError(_refusal(response))
        return response.json() if response.headers.get("content-type") == "application/json" else None

    def check(self) -> None:
        """Make sure that this is a server that we can use, and ready it.

        Raises:
            PolicyError: it is none, with what to start it with.
        """
        where = f"no vLLM server can be used at {self.address}"
        try:
            self.call("/health", method="GET")
            self.call("/version", method="GET")
        except (ServerLostError, PolicyError) as error:
            raise PolicyError(f"{where}: {first_line(error)}") from error
        try:
            self.call("/resume")  # a run that was killed may have left it paused
            for found in self.call("/collective_rpc", {"method": "mmrl_prepare"})["results"]:
                if "error" in found:
                    raise PolicyError(found["error"])
        except (ServerLostError, PolicyError) as error:
            raise PolicyError(
                f"{where}: {first_line(error)}. Start it as docs/vllm.md says: with VLLM_SERVER_DEV_MODE=1, in an "
                "environment that mmrl is installed in, and with our --worker-extension-cls."
            ) from error

    def close(self) -> None:
        self._client.close()


def _refusal(response: httpx.Response) -> str:
    """Why a server refuses a call, in a line."""
    try:
        told = response.json()
        told = told.get("error", told.get("detail", told))
        text = str(told.get("message", told) if isinstance(told, dict) else told)
    except (ValueError, AttributeError):
        text = response.text
    return f"{(text.strip().splitlines() or ['no reason given'])[0]} (HTTP {response.status_code})"


class Servers:
    """Calls to several servers at once, as vLLM's trainer side of a weight transfer makes them."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self.num_workers = [int(server.call("/get_world_size", method="GET")["world_size"]) for server in servers]

    def all(self, path: str, bodies: Sequence[Any] | None = None, **query: Any) -> list[Any]:
        """Call all servers at once: with one body for each, or with none."""
        bodies = bodies or [None] * len(self._servers)
        with ThreadPoolExecutor(len(self._servers)) as threads:
            calls = [
                threads.submit(server.call, path, body, **query)
                for server, body in zip(self._servers, bodies, strict=True)
            ]
            return [call.result() for call in calls]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Workers of later servers have the ranks after those of earlier ones."""
        offsets = [sum(self.num_workers[:index]) for index in range(len(self._servers))]
        infos = [dict(init_info) for _ in offsets]
        if "rank_offset" in init_info:
            infos = [init_info | {"rank_offset": init_info["rank_offset"] + offset} for offset in offsets]
        self.all("/init_weight_transfer_engine", [{"init_info": info} for info in infos])

    def start_weight_update(self) -> None:
        self.all("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        if handles := update_info.pop("ipc_handles", None):  # vLLM takes those of GPU memory pickled
            update_info["ipc_handles_pickled"] = base64.b64encode(pickle.dumps(handles)).decode()
        self.all("/update_weights", [{"update_info": update_info}] * len(self._servers))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.all("/finish_weight_update")

    def load_adapter(self, name: str, folder: str) -> None:
        self.all("/v1/load_lora_adapter", [{"lora_name": name, "lora_path": folder}] * len(self._servers))

    def unload_adapter(self, name: str) -> None:
        self.all("/v1/unload_lora_adapter", [{"lora_name": name}] * len(self._servers))


def asked(job: Job, request: Request) -> dict[str, Any]:
    """A request as the token endpoint takes it."""
    return {
        "token_ids": request.inputs["prompt_token_ids"],
        "content_parts": content_parts(request.inputs.get("multi_modal_data", {})) or None,
        "sampling_params": sampling_fields(job, request.seed),
        "return_token_ids": True,
    }


def content_parts(media: Mapping[str, Sequence[Any]]) -> list[dict[str, str]]:
    """Media of a prompt as vLLM's token endpoint takes them, by kind, in their order within a kind."""
    from mmrl_core.language_model.engines.vllm_plugin import encode_media

    parts = [
        {"type": "image_url", "url": encode_media(np.asarray(image.convert("RGB")))} for image in media.get("image", ())
    ]
    parts += [{"type": "video_url", "url": encode_media(*video)} for video in media.get("video", ())]
    return parts + [{"type": "audio_url", "url": encode_media(*audio)} for audio in media.get("audio", ())]


def answered(index: int, told: Mapping[str, Any]) -> Answer:
    """What the token endpoint told of a request."""
    choices = sorted(told["choices"], key=lambda choice: choice["index"])
    logprobs = [[token["logprob"] for token in choice["logprobs"]["content"]] for choice in choices]
    return Answer(
        index=index,
        prompt_ids=told["prompt_token_ids"],
        tokens=[choice["token_ids"] for choice in choices],
        logprobs=[[math.nan if value <= NO_LOGPROB else value for value in sample] for sample in logprobs],
        truncated=[choice["finish_reason"] != "stop" for choice in choices],
    )

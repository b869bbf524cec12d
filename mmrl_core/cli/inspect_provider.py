"""The model provider `mmrl` of inspect_ai: `inspect eval TASK --model mmrl/runs/first`, `mmrl eval --with inspect:`.

inspect_ai finds this module by its entry point, and imports it when a model of this provider is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_thread
from inspect_ai.model import (
    ChatMessage,
    Content,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from mmrl_core.cli.answering import Answer, Answerer, Request, audio_part, image_part, video_part, with_seed
from mmrl_core.errors import MMRLError
from mmrl_core.types import Sampling

MAX_TOKENS = 1024
"""Of an answer, where the task sets no limit."""

GATHERED_S = 0.05
"""How long a request waits for others, to be answered together."""


class MMRLModel(ModelAPI):
    """A checkpoint of mmrl. Images, sounds and video files in messages are shown to it; tools are refused.

    Args:
        model_name: what `mmrl eval --checkpoint` takes.
        overrides: config values to change, "key=value", or a list of them as JSON.
        batch_size: requests that are answered together.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        *,
        overrides: str | Sequence[str] = (),
        batch_size: int = 16,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        if isinstance(overrides, str):
            overrides = json.loads(overrides) if overrides.startswith("[") else [overrides]
        self._answerer = Answerer(model_name, list(overrides), batch_size)
        self._waiting: list[tuple[Request, anyio.Event, list[Answer | Exception]]] = []
        self._lock: anyio.Lock | None = None

    def max_connections(self) -> int:
        return self._answerer.batch_size

    def max_tokens(self) -> int | None:
        return MAX_TOKENS

    def close(self) -> None:
        self._answerer.close()

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        if tools:
            raise MMRLError(
                f"the task gives the model tools ({', '.join(tool.name for tool in tools)}), which mmrl's policies "
                "call in rollouts of their own only. Evaluate it on a task without tools."
            )
        messages = [_message(message) for message in input]
        answer = await self._answered(Request(messages, _sampling(config), tuple(config.stop_seqs or ())))
        output = ModelOutput.from_content(
            self.model_name, answer.text, stop_reason="max_tokens" if answer.truncated else "stop"
        )
        total = answer.num_prompt_tokens + answer.num_tokens
        output.usage = ModelUsage(
            input_tokens=answer.num_prompt_tokens, output_tokens=answer.num_tokens, total_tokens=total
        )
        return output

    async def _answered(self, request: Request) -> Answer:
        """The answer, computed together with those that are asked for at the same time."""
        done, found = anyio.Event(), list[Answer | Exception]()
        self._waiting.append((request, done, found))
        await anyio.sleep(GATHERED_S)
        self._lock = self._lock or anyio.Lock()
        async with self._lock:
            waiting, self._waiting = self._waiting, []
            if waiting:
                await self._answer_all(waiting)
        await done.wait()
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    async def _answer_all(self, waiting: list[tuple[Request, anyio.Event, list[Answer | Exception]]]) -> None:
        results: Sequence[Answer | Exception]
        try:
            results = await anyio.to_thread.run_sync(self._answerer.answer, [request for request, _, _ in waiting])
        except Exception as error:  # one of the requests is refused, and the others are not to fail with it
            if len(waiting) > 1:
                for one in waiting:
                    await self._answer_all([one])
                return
            results = [error]
        for (_, done, found), result in zip(waiting, results, strict=True):
            found.append(result)
            done.set()


def _sampling(config: GenerateConfig) -> Sampling:
    """Greedy unless the task asks for a temperature."""
    sampling = Sampling(
        max_tokens=config.max_tokens or MAX_TOKENS,
        temperature=config.temperature or 0.0,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
    )
    return with_seed(sampling, config.seed)


def _message(message: ChatMessage) -> dict[str, Any]:
    if message.role == "tool":
        raise MMRLError("the task shows the model results of tools, which mmrl answers in rollouts of their own only.")
    content = [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content
    parts = [part if isinstance(part, dict) else _part(part) for part in content]
    return {"role": message.role, "content": parts}


def _part(content: Content) -> dict[str, Any]:
    """A part of a message; sounds and pictures come as data URIs, videos as files."""
    if content.type == "text":
        return {"type": "text", "text": content.text}
    if content.type == "image":
        return image_part(content.image)
    if content.type == "audio":
        return audio_part(content.audio)
    if content.type == "video":
        return video_part(content.video)
    raise MMRLError(f"the task shows the model a part of type {content.type!r}; text, image, audio and video are read.")


@modelapi(name="mmrl")
def mmrl() -> type[ModelAPI]:
    """The provider."""
    return MMRLModel

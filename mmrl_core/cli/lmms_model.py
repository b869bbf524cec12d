"""A checkpoint as a model of lmms-eval, for `mmrl eval --with lmms:TASK`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from mmrl_core.cli.answering import Answerer, Request, audio_part, image_part, video_part
from mmrl_core.errors import MMRLError
from mmrl_core.types import Sampling

MAX_TOKENS = 1024
"""Of an answer, where the task sets no limit."""


class MMRLModel(lmms):
    """Answers chat messages of tasks that generate; tasks that compare likelihoods are refused."""

    is_simple = False  # tasks give it messages, and not a text with pictures beside it

    def __init__(self, answerer: Answerer) -> None:
        super().__init__()
        self._answerer = answerer

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """An answer to each request, in order."""
        found = self._answerer.answer([self._request(*request.args) for request in requests])
        return [
            GenerationResult(answer.text, TokenCounts(answer.num_prompt_tokens, answer.num_tokens)) for answer in found
        ]

    def _request(
        self, _: str, to_messages: Any, options: Mapping[str, Any], row: Any, task: str, split: str
    ) -> Request:
        messages = [_message(message) for message in to_messages(self.task_dict[task][split][row])]
        until = options.get("until") or ()
        sampled = options.get("do_sample", True) and float(options.get("temperature") or 0.0)
        sampling = Sampling(
            max_tokens=int(options.get("max_new_tokens") or MAX_TOKENS),
            temperature=float(sampled or 0.0),
            top_p=float(options.get("top_p") or 1.0),
            top_k=int(options.get("top_k") or 0),
        )
        return Request(messages, sampling, (until,) if isinstance(until, str) else tuple(until))

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        """Refused."""
        raise MMRLError("the task asks in several rounds; `mmrl eval --with lmms:` answers tasks of one round.")

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        """Refused."""
        raise MMRLError(
            "the task compares the likelihoods of answers; `mmrl eval --with lmms:` runs tasks that generate, of "
            "output type generate_until."
        )


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message["content"]
    content = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {"role": message["role"], "content": [_part(part) for part in content]}


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a message; pictures are PIL images, sounds as the datasets library has them, videos are files."""
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    read = {"image": image_part, "audio": audio_part, "video": video_part}
    if part["type"] not in read:
        raise MMRLError(f"the task shows the model a part of type {part['type']!r}; known: text, {', '.join(read)}.")
    return read[part["type"]](part.get("url", part.get(part["type"])))

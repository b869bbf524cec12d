"""What a tool is, and how a policy calls one.

A tool is a function that the policy may call in the middle of a rollout. A plugin registers a class under kind "tool";
tasks name it in `rollout.tools`, with options for its constructor. The policy calls it in the form that Qwen's models
were trained on, one call a turn:

    <tool_call>{"name": "get_frame", "arguments": {"time_s": 12.5}}</tool_call>
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ValidationError

from mmrl_core.errors import ToolError
from mmrl_core.types import Prompt

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
SPECIAL_START = "<|"
"""Special tokens of Qwen's and Llama's start so; in a question to the policy they would pass for turns or media."""
MAX_CALL_CHARACTERS = 20_000
MAX_PROBLEMS_SHOWN = 4

Part = Mapping[str, Any]
"""A part of a chat message, as in `Prompt.messages`: {"type": "text", "text": ...}, {"type": "image", "image": ...}."""


@dataclass(frozen=True)
class ToolContext:
    """What a tool may know of the conversation it is called in.

    Attributes:
        sample: the data row, without media.
        media: kind ("image", "video", "audio") and file of each medium of the prompt; None where it has no file.
        media_root: folder that no path may leave.
    """

    sample: Mapping[str, Any]
    media: Sequence[tuple[str, str | None]]
    media_root: str | None = None

    def file(self, kind: str) -> str:
        """The prompt's only file of a kind.

        Raises:
            ToolError: there is none, or more than one.
        """
        files = [file for medium, file in self.media if medium == kind]
        if len(files) != 1 or files[0] is None:
            raise ToolError(f"there is {'more than one' if len(files) > 1 else 'no'} {kind} file to look into.")
        return files[0]

    def path(self, name: str) -> str:
        """A path that the policy wrote, relative to `media_root`.

        Raises:
            ToolError: it leads out of the folder, or there is no folder.
        """
        if self.media_root is None:
            raise ToolError("there are no files to choose from.")
        root = Path(self.media_root).resolve()
        if "\0" in name or not (path := (root / name).resolve()).is_relative_to(root):
            raise ToolError("that path is outside the media folder.")
        return str(path)


@dataclass(frozen=True)
class Question:
    """What a tool wants the policy itself to answer, greedily, such as the caption of a clip; the text is its result.

    Attributes:
        messages: chat messages.
        max_tokens: of the answer.
    """

    messages: Sequence[Mapping[str, Any]]
    max_tokens: int = 128


class Tool(ABC):
    """A function that the policy may call. Tools run in processes of their own: an instance must be picklable.

    Attributes:
        name: what the policy calls it by.
        description: shown to the policy.
        arguments: pydantic model of its arguments; its descriptions and limits are shown to the policy.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    arguments: ClassVar[type[BaseModel]]

    def offered(self, prompt: Prompt) -> bool:
        """Whether it can be called in a conversation that starts with this prompt."""
        return True

    def start(self) -> None:
        """Called once in each process before its first call, outside the time limit: for imports that take seconds."""
        return None

    @abstractmethod
    def run(self, arguments: Any, context: ToolContext) -> Sequence[Part] | Question:
        """Do what the call asks for.

        Args:
            arguments: an instance of `arguments`.
            context: of the conversation.

        Returns:
            Text and media that the policy gets to see. Equal calls must give equal results.

        Raises:
            ToolError: the call cannot be done; the policy is told why.
        """


def schema(tool: Tool) -> dict[str, Any]:
    """A tool as chat templates take it: a JSON schema of its arguments, with titles left out.

    >>> class Arguments(BaseModel):
    ...     time_s: float
    >>> class Look(Tool):
    ...     name, description, arguments = "look", "Shows a moment.", Arguments
    ...     def run(self, arguments, context): return []
    >>> schema(Look())["function"]["parameters"]
    {'properties': {'time_s': {'type': 'number'}}, 'required': ['time_s'], 'type': 'object'}
    """
    parameters = _without_titles(tool.arguments.model_json_schema())
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def _without_titles(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _without_titles(item)
            for key, item in value.items()
            if key != "title" or not isinstance(item, str)  # an argument may be called so
        }
    return [_without_titles(item) for item in value] if isinstance(value, list) else value


def tool_call(text: str) -> tuple[str, Mapping[str, Any]] | None:
    """The first call in a turn of the policy; None if there is none.

    Raises:
        ToolError: the text between the marks is not a call.

    >>> tool_call('<tool_call>{"name": "look", "arguments": {"time_s": 3}}</tool_call>')
    ('look', {'time_s': 3})
    """
    _, start, rest = text.partition(CALL_START)
    if not start:
        return None
    body, end, _ = rest.partition(CALL_END)
    if not end:
        raise ToolError(f"the call has no {CALL_END}.")
    if len(body) > MAX_CALL_CHARACTERS:
        raise ToolError(f"the call is longer than {MAX_CALL_CHARACTERS} characters.")
    try:
        call = json.loads(body)
        strict = json.dumps(call, ensure_ascii=False, allow_nan=False)  # neither NaN nor 1e999 is JSON
        strict.encode()  # half of a surrogate pair is no text that a tokenizer takes
    except (ValueError, RecursionError):
        raise ToolError("the call is not valid JSON.") from None
    if SPECIAL_START in strict:
        raise ToolError("a call cannot hold special tokens.")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ToolError('a call is a JSON object with "name" and "arguments".')
    arguments = call.get("arguments")
    if not isinstance(arguments, dict):
        raise ToolError('"arguments" must be a JSON object.')
    return call["name"], arguments


def validated(tool: Tool, arguments: Mapping[str, Any]) -> BaseModel:
    """The arguments of a call.

    Raises:
        ToolError: they do not fit; says which and why.
    """
    try:
        made = tool.arguments.model_validate(arguments)
    except ValidationError as error:
        known = tool.arguments.model_json_schema().get("properties", {})
        problems = []
        for item in error.errors(include_url=False, include_input=False):
            name = next(iter(item["loc"]), None)  # deeper names, and those of no argument, are the policy's own words
            problems.append(f"{name if name in known else 'arguments'}: {item['msg']}")
        raise ToolError("; ".join(problems[:MAX_PROBLEMS_SHOWN]) + ".") from None
    for name, value in made.model_dump().items():
        try:  # "inf" is a number to pydantic
            json.dumps(value, allow_nan=False, skipkeys=True, default=str)
        except ValueError:
            raise ToolError(f"{name}: Input should be a finite number.") from None
    return made

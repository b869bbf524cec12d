"""A model's chat template: messages into text in which the template alone writes control tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from mmrl_core.errors import PolicyError, UnfitPromptError
from mmrl_core.language_model.template_options import STANDARD, check_options, variables_of
from mmrl_core.types import Prompt

TOOLS_SECTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
"""The section on tools in Qwen's chat templates, for their models whose template has none (Qwen2.5-VL)."""

_CALL_FORM = re.compile(r'<tool_call>\s*\{\s*"(?:name|arguments)"')
"""How a template shows calls in the form that `ToolEnvironment` reads."""

_ASSISTANT_TEXT = "turn-5f1c2ab07d"
"""Takes the place of the policy's words where they do not matter. No text holds it by chance."""

_OTHER_TEXT = "text-9b04c7e613-"
"""Stands in a message of the system or a tool, to see what a template makes of it."""

_MEDIA_TOKENS = ("image_token", "video_token", "audio_token", "audio_bos_token", "audio_eos_token")
"""Attributes of processors: placeholders that they replace in a text, whether the tokenizer knows them or not."""


class ChatTemplate:
    """The chat template of a processor, or of a text model's tokenizer.

    What data, tools and environments say may read like a control token: an end of turn, or the placeholder of a
    picture. A blank after its first character keeps it from being one, wherever it stands.
    """

    def __init__(self, processor: Any) -> None:
        """
        Args:
            processor: processor of transformers, or the tokenizer of a text model.
        """
        self._processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        control = {token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        self._media_tokens = {str(getattr(processor, name)) for name in _MEDIA_TOKENS if getattr(processor, name, None)}
        control |= self._media_tokens
        longest_first = sorted((token for token in control if len(token) > 1), key=len, reverse=True)
        self._forms: dict[tuple[str, tuple[str, ...], str], str] = {}
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"\b\B")

    def render(self, prompt: Prompt) -> str:
        """The prompt's text with the template applied and placeholders for media, and the prefix behind it.

        Raises:
            UnfitPromptError: the template refuses the messages, or leaves out what the system message says.
            PolicyError: the model has no template, or one that does not read an option of the prompt; or the prefix
                holds the placeholder of a medium.
        """
        tools = self._neutral(list(prompt.tools))
        return self._begun(prompt, self._with_tools(prompt, tools) if tools else self._apply(prompt, prompt.messages))

    def _with_tools(self, prompt: Prompt, tools: Sequence[Mapping[str, Any]]) -> str:
        """With a section on the tools: the template's, if it has one for calls that are read, or else our own."""
        messages = prompt.messages
        text, bare = self._apply(prompt, messages, tools=tools), self._apply(prompt, messages)
        names = [tool["function"]["name"] for tool in tools]
        if all(text.count(name) > bare.count(name) for name in names) and _CALL_FORM.search(text):
            return text
        try:
            return self._apply(prompt, _with_tools_section(messages, tools))
        except UnfitPromptError:  # its template knows no system message
            return self._apply(prompt, _before_the_question(_with_tools_section(messages, tools)))

    def _begun(self, prompt: Prompt, text: str) -> str:
        """A text that a turn of the policy follows, with the prefix of the turn, unless the template wrote it."""
        if found := [token for token in self._media_tokens if token in prompt.prefix]:
            raise PolicyError(f"prompt.prefix holds {found[0]!r}, which stands for a medium. Take it out.")
        return text if text.endswith(prompt.prefix) else text + prompt.prefix

    def after_turn(
        self, prompt: Prompt, earlier: Sequence[Mapping[str, Any]], said: Sequence[Mapping[str, Any]]
    ) -> str:
        """What stands between a turn of the policy and its next one: end of turn, messages, prefix of the next.

        Args:
            prompt: that the conversation began with.
            earlier: what was said since, up to the turn; where the policy spoke stands `policy_turn()`.
            said: messages that answer it.

        Raises:
            UnfitPromptError: the template refuses the messages.
        """
        # What the policy said does not matter to the template, and would not always give the tokens that were sampled.
        messages = [*prompt.messages, *earlier, policy_turn(), *said]
        return self._begun(prompt, self._apply(prompt, messages).rpartition(_ASSISTANT_TEXT)[2])

    @cached_property
    def turn_end(self) -> str:
        """What the template writes to end a turn of the policy; the tokenizer's end of text if it writes nothing.

        It is a control token, after blanks where the template has them.
        """
        try:
            whole = self._apply(Prompt("", [], {}), [_ASKED, policy_turn()], add_generation_prompt=False)
            rest = whole.rpartition(_ASSISTANT_TEXT)[2]
        except (PolicyError, UnfitPromptError):  # it is refused where a prompt is rendered
            rest = ""
        found = self._control.match(rest, len(rest) - len(rest.lstrip()))
        return rest[: found.end()] if found else str(self._tokenizer.eos_token or "")

    def neutral(self, text: str) -> str:
        """The text with a blank in everything that reads like a control token."""
        return self._control.sub(lambda found: f"{found[0][:1]} {found[0][1:]}", text)

    def _neutral(self, value: Any) -> Any:
        """The same for all texts in mappings and lists."""
        if isinstance(value, str):
            return self.neutral(value)
        if isinstance(value, Mapping):
            return {self._neutral(key): self._neutral(item) for key, item in value.items()}
        return [self._neutral(item) for item in value] if isinstance(value, list | tuple) else value

    def _neutral_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        others = {key: self._neutral(value) for key, value in message.items() if key not in ("role", "content")}
        if isinstance(message["content"], str):
            return {"role": message["role"], "content": self.neutral(message["content"]), **others}
        parts: list[Mapping[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "text":
                text, last = self.neutral(part["text"]), parts[-1] if parts else {}
                if self._control.search(last.get("text", "") + text):  # one that two parts make together
                    text = f" {text}"
                part = {**part, "text": text}
            parts.append(part)
        return {"role": message["role"], "content": parts, **others}

    def _apply(
        self, prompt: Prompt, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **given: Any
    ) -> str:
        """Messages as the template writes them, with the options of a prompt."""
        if not getattr(self._processor, "chat_template", None):
            raise PolicyError(
                "the model has no chat template, so prompts cannot be written for it. Use one that was trained on "
                "chats, or set model.chat_template to the one that it was trained with."
            )
        check_options(prompt, self.options if prompt.template else ())
        given = {**prompt.template, **given, "add_generation_prompt": add_generation_prompt}
        made = [self._neutral_message(message) for message in messages]
        try:
            return self._written([self._as_it_is_read(message, prompt.template) for message in made], given)
        except Exception as error:  # a template is foreign code, and refuses what it was not made for
            roles = ", ".join(str(message["role"]) for message in messages)
            raise UnfitPromptError(
                f"prompt {prompt.id!r}: the model's chat template refuses messages of the roles {roles}: {error}. "
                "Write it for roles that the template knows; some know no system message."
            ) from error

    def _written(self, messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> str:
        if self._tokenizer is self._processor:  # a text model's template expects plain strings
            messages = [{**message, "content": plain_text(message["content"])} for message in messages]
        return str(self._processor.apply_chat_template(list(messages), tokenize=False, **given))

    @cached_property
    def options(self) -> list[str]:
        """Variables that the template reads, those left out that each template is given.

        Raises:
            PolicyError: the template is malformed.
        """
        template = self._processor.chat_template
        sources = template.values() if isinstance(template, Mapping) else [template]
        return sorted(variables_of("\n".join(sources)) - {*STANDARD, *self._tokenizer.special_tokens_map})

    def _as_it_is_read(self, message: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """A message of the system or a tool with its content as the template reads it: parts, or one text.

        A tool's message that the template does not read whole becomes one of the user.

        Raises:
            ValueError: the template leaves a part of a system message out, or writes parts as Python does.
        """
        role, content = message["role"], message["content"]
        if role not in _PLACES:
            return message
        kinds = ("text",) if isinstance(content, str) else tuple(part["type"] for part in content)
        key = (role, kinds, repr(sorted(options.items())))
        if key not in self._forms:
            self._forms[key] = self._form(role, kinds, options)
        form = self._forms[key]
        if form == "parts":
            return message
        if form == "text":
            return {**message, "content": plain_text(content)}
        if role == "tool":
            return {**message, "role": "user"}
        raise ValueError(form)

    def _form(self, role: str, kinds: Sequence[str], options: Mapping[str, Any]) -> str:
        """How the template reads a message with parts of these kinds: "parts", "text", or why it does not."""
        texts = [f"{_OTHER_TEXT}{place}" for place in range(len(kinds))]
        parts = [
            {"type": kind, kind: text if kind == "text" else None} for kind, text in zip(kinds, texts, strict=True)
        ]
        said = [text for kind, text in zip(kinds, texts, strict=True) if kind == "text"]
        before, after = _PLACES[role]

        def written(content: Any) -> str:
            given = {**options, "add_generation_prompt": True}
            return self._written([*before, {"role": role, "content": content}, *after], given)

        def is_whole(text: str) -> bool:
            places = [text.find(word) for word in said]
            return -1 not in places and places == sorted(places) and not re.search(r"""['"]type['"]\s*:""", text)

        why = f"it leaves out a part of a {role} message with {', '.join(kinds)}"
        try:
            text = written(parts)
            media = [place for place, kind in enumerate(kinds) if kind != "text"]
            if is_whole(text) and all(written(parts[:at] + parts[at + 1 :]) != text for at in media):
                return "parts"
        except Exception as error:  # a template is foreign code; it may want a text
            why = str(error)
        try:
            return "text" if len(said) == len(kinds) and is_whole(written("".join(said))) else why
        except Exception as error:
            return str(error)


def policy_turn() -> dict[str, Any]:
    """A message in the place of a turn of the policy, whose tokens are those that were sampled."""
    return {"role": "assistant", "content": [{"type": "text", "text": _ASSISTANT_TEXT}]}


def plain_text(content: Any) -> str:
    """The text of a message's content, without its media."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _with_tools_section(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The messages with the tools described in the system message, in the form that Qwen's models were trained on."""
    section = TOOLS_SECTION.format("\n".join(map(json.dumps, tools)))
    system = next((plain_text(message["content"]) for message in messages if message["role"] == "system"), "")
    text = f"{system}\n\n{section}" if system else section
    others = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": [{"type": "text", "text": text}]}, *others]


def _before_the_question(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The messages with the first, of the system, as the beginning of the first message of the user."""
    system, *others = messages
    place = next((index for index, message in enumerate(others) if message["role"] == "user"), 0)
    content = others[place]["content"] if others else []
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    opening = {"type": "text", "text": f"{plain_text(system['content'])}\n\n"}
    others[place : place + 1] = [{"role": "user", "content": [opening, *parts]}]
    return others


_ASKED = {"role": "user", "content": [{"type": "text", "text": "?"}]}
_PLACES: dict[str, tuple[list[Any], list[Any]]] = {"system": ([], [_ASKED]), "tool": ([_ASKED, policy_turn()], [])}
"""Roles that templates read in different ways -> what stands before and after such a message."""

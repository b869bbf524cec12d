"""Environments, which answer the turns of a policy. The core's own lets it call tools.

A plugin registers other environments under kind "environment"; a task names one in `rollout.environment`. The strategy
`multi_turn` (see `rollout.py`) drives it.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from mmrl_core.config.numbers import Count, Seconds
from mmrl_core.conversation.tool_workers import Call, ToolWorkers
from mmrl_core.conversation.tools import CALL_END, Question, Tool, ToolContext, schema, tool_call, validated
from mmrl_core.errors import ConfigError, ToolError
from mmrl_core.types import Prompt

if TYPE_CHECKING:
    from mmrl_core.config import PartConfig, RolloutConfig
    from mmrl_core.plugins import Plugins

Message = Mapping[str, Any]
Ask = Callable[[Sequence[Question]], list[str]]
"""Has the policy answer questions, greedily."""


@dataclass(frozen=True)
class Reply:
    """What comes back for a turn of the policy.

    Attributes:
        messages: chat messages that the policy sees next; media in them need not be in the prompt.
        reward: of the turn alone, if the environment gives one.
    """

    messages: Sequence[Message]
    reward: float | None = None


class Environment(Protocol):
    """Answers the turns of a policy. An episode is its own record of one conversation, of whatever type."""

    def prepare(self, prompt: Prompt) -> Prompt:
        """The prompt with what the policy is told before its first turn, such as the tools it may call."""
        ...

    def begin(self, prompt: Prompt) -> Any:
        """A new episode."""
        ...

    def reply(self, episodes: Sequence[Any], texts: Sequence[str], ask: Ask) -> list[Reply | None]:
        """Answer a turn of each of several conversations.

        Args:
            episodes: what `begin` returned.
            texts: the policy's turns, without special tokens. They are not to be trusted.
            ask: has the policy itself answer something on the side.

        Returns:
            A reply for each; None where the conversation ends with this turn.
        """
        ...

    def outcome(self, episode: Any) -> Mapping[str, Any]:
        """Facts about a conversation that rewards and metrics find in the sample."""
        ...

    def split(self, prompt: Prompt, answer: str) -> list[str]:
        """Split a demonstration for a prompt, one text in the data, into the policy's turns."""
        ...

    def close(self) -> None:
        """Give back processes and memory. May be called more than once; the environment starts anew when needed."""
        ...


@dataclass
class _Episode:
    context: ToolContext
    tools: frozenset[str]  # offered here
    counts: Counter[str] = field(default_factory=Counter)


class ToolEnvironment:
    """A policy that may call tools; a turn without a call ends the conversation.

    A call that cannot be done (unknown tool, malformed, arguments out of range, too slow, one too many) is answered by
    a text that says why, and counted. Only the first call of a turn is done.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        media_root: str | None = None,
        *,
        max_calls: Count = 4,
        timeout_s: Seconds = 30.0,
        num_workers: Count = 2,
    ) -> None:
        """
        Args:
            tools: of different names.
            media_root: folder that paths in arguments may not leave.
            max_calls: calls of one conversation, those that could not be done included.
            timeout_s: seconds for one call.
            num_workers: processes that calls run in side by side.

        Raises:
            ConfigError: no tool, two of one name, or a limit that is not positive and finite.
        """
        if not tools:
            raise ConfigError("rollout.environment 'tools' has no tools: name some in rollout.tools.")
        names = [tool.name for tool in tools]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ConfigError(f"rollout.tools has two tools that are called {twice[0]!r}.")
        if max_calls < 1 or not 0 < timeout_s < math.inf or num_workers < 1:
            raise ConfigError("rollout.environment: max_calls, timeout_s and num_workers must be positive and finite.")
        self._tools = list(tools)
        self._places = {name: place for place, name in enumerate(names)}
        self._media_root = media_root
        self._max_calls = max_calls
        self._workers = ToolWorkers(tools, num_workers=num_workers, timeout_s=timeout_s)

    def prepare(self, prompt: Prompt) -> Prompt:
        """See `Environment.prepare`."""
        return replace(prompt, tools=tuple(schema(tool) for tool in self._tools if tool.offered(prompt)))

    def begin(self, prompt: Prompt) -> _Episode:
        """See `Environment.begin`."""
        kinds = [
            part["type"]
            for message in prompt.messages
            for part in (message["content"] if not isinstance(message["content"], str) else ())
            if part["type"] != "text"
        ]
        files = [*prompt.media_files, *[None] * (len(kinds) - len(prompt.media_files))]
        context = ToolContext(prompt.sample, list(zip(kinds, files, strict=True)), self._media_root)
        return _Episode(context, frozenset(tool.name for tool in self._tools if tool.offered(prompt)))

    def reply(self, episodes: Sequence[_Episode], texts: Sequence[str], ask: Ask) -> list[Reply | None]:
        """See `Environment.reply`."""
        results: dict[int, Any] = {}
        calls: dict[int, Call] = {}
        for index, (episode, text) in enumerate(zip(episodes, texts, strict=True)):
            try:
                call = self._call(episode, text)
                if call is not None:
                    calls[index] = call
            except ToolError as error:
                results[index] = error
        results |= self._run(calls)
        questions = {index: result for index, result in results.items() if isinstance(result, Question)}
        for index, answer in zip(questions, ask(list(questions.values())) if questions else (), strict=True):
            results[index] = [{"type": "text", "text": answer}]
        replies: list[Reply | None] = []
        for index, episode in enumerate(episodes):
            result = results.get(index)
            if isinstance(result, ToolError):
                episode.counts["tool_errors"] += 1
                result = [{"type": "text", "text": f"Error: {result}"}]
            elif result is not None:
                episode.counts["valid_tool_calls"] += 1
            replies.append(None if result is None else Reply([{"role": "tool", "content": list(result)}]))
        return replies

    def _run(self, calls: Mapping[int, Call]) -> dict[int, Any]:
        """Results of calls; equal ones, as the rollouts of a group often make, are done once."""
        keys = {
            index: (call.tool, call.arguments.model_dump_json(), id(call.context.sample))
            for index, call in calls.items()
        }
        distinct = {keys[index]: call for index, call in calls.items()}
        done = dict(zip(distinct, self._workers.run(list(distinct.values())), strict=True))
        return {index: done[key] for index, key in keys.items()}

    def _call(self, episode: _Episode, text: str) -> Call | None:
        call = tool_call(text)
        if call is None:
            return None
        if episode.counts["valid_tool_calls"] + episode.counts["tool_errors"] >= self._max_calls:
            raise ToolError("no calls are left; answer now.")
        name, arguments = call
        if name not in episode.tools:
            raise ToolError(f"there is no such tool; tools: {', '.join(sorted(episode.tools)) or 'none'}.")
        tool = self._places[name]
        return Call(tool, validated(self._tools[tool], arguments), episode.context)

    def outcome(self, episode: _Episode) -> Mapping[str, Any]:
        """`valid_tool_calls`: calls that were done; `tool_errors`: those that could not be."""
        return {name: episode.counts[name] for name in ("valid_tool_calls", "tool_errors")}

    def split(self, prompt: Prompt, answer: str) -> list[str]:
        """See `Environment.split`: a turn ends with its call."""
        *calls, last = answer.split(CALL_END)
        turns = [f"{text.lstrip()}{CALL_END}" for text in calls]
        return [*turns, last.lstrip()] if last.strip() or not turns else turns

    def close(self) -> None:
        """See `Environment.close`."""
        self._workers.close()


class PartEnvironments:
    """The environments of a mixture's parts as one: a conversation is with that of its prompt's part, if it has one.

    A part without an environment has its prompts as they are, and conversations of one turn.
    """

    def __init__(self, environments: Mapping[str, Environment]) -> None:
        """
        Args:
            environments: by name of the part.
        """
        self._of_part = dict(environments)

    def prepare(self, prompt: Prompt) -> Prompt:
        """See `Environment.prepare`."""
        environment = self._of_part.get(prompt.part)
        return prompt if environment is None else environment.prepare(prompt)

    def begin(self, prompt: Prompt) -> tuple[str, Any]:
        """See `Environment.begin`: the part, and the episode of its environment."""
        environment = self._of_part.get(prompt.part)
        return prompt.part, None if environment is None else environment.begin(prompt)

    def reply(self, episodes: Sequence[tuple[str, Any]], texts: Sequence[str], ask: Ask) -> list[Reply | None]:
        """See `Environment.reply`."""
        replies: list[Reply | None] = [None] * len(episodes)
        for part, environment in self._of_part.items():
            chosen = [index for index, (name, _) in enumerate(episodes) if name == part]
            of_part = [episodes[index][1] for index in chosen]
            said = environment.reply(of_part, [texts[index] for index in chosen], ask) if chosen else []
            for index, reply in zip(chosen, said, strict=True):
                replies[index] = reply
        return replies

    def outcome(self, episode: tuple[str, Any]) -> Mapping[str, Any]:
        """See `Environment.outcome`."""
        part, inner = episode
        return self._of_part[part].outcome(inner) if part in self._of_part else {}

    def split(self, prompt: Prompt, answer: str) -> list[str]:
        """See `Environment.split`."""
        environment = self._of_part.get(prompt.part)
        return [answer] if environment is None else environment.split(prompt, answer)

    def close(self) -> None:
        """See `Environment.close`."""
        for environment in self._of_part.values():
            environment.close()


def make_environment(rollout: RolloutConfig, parts: Sequence[PartConfig], plugins: Plugins) -> Environment | None:
    """The environment of a section's prompts; None if each has a single turn.

    Raises:
        ConfigError: the rollout strategy talks to no environment, or needs one and there is none.
    """
    strategy = plugins.registry.get("strategy", rollout.strategy.name).load()
    wants = "environment" in inspect.signature(strategy).parameters
    talking = [part for part in parts if part.environment is not None or part.tools]
    if not talking:
        if wants:
            raise ConfigError(f"rollout.strategy {rollout.strategy.name!r} needs rollout.tools or rollout.environment.")
        return None
    if not wants:
        raise ConfigError(
            f"rollout.strategy {rollout.strategy.name!r} acts once and calls no tools: set rollout.strategy to "
            "multi_turn, or take rollout.tools and rollout.environment out."
        )
    made = {part.name: _environment_of(part, plugins) for part in talking}
    return made[""] if "" in made else PartEnvironments(made)


def _environment_of(part: PartConfig, plugins: Plugins) -> Environment:
    component = part.environment
    name, options = (component.name, component.options) if component is not None else ("tools", {})
    tools = [plugins.registry.get("tool", tool.name).call(options=tool.options) for tool in part.tools]
    made = plugins.registry.get("environment", name).call(tools, part.data.media_root, options=options)
    return cast(Environment, made)

"""Rollout strategies: prompts -> groups of rollouts.

A strategy is a registered function `(policy, prompts, group_size, sampling, **options) -> groups`. If it has a
parameter `on_group`, it gets a function to call with each group as soon as it is finished, the very object that it
returns later: rewards then run while other groups are still being sampled. If it has a parameter `environment`, it gets
the one that the config names. A strategy begins with `policy.rollout` and goes on with `policy.observe` and
`policy.act`, once a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mmrl_core.config.numbers import Count
from mmrl_core.types import LOSS_MASK, Prompt, Rollout, RolloutGroup, Row, Sampling

if TYPE_CHECKING:
    from mmrl_core.conversation.environment import Environment, Reply
    from mmrl_core.conversation.tools import Question
    from mmrl_core.policy import Policy

SEED_STRIDE = 1_000_003
"""Between the seeds of turns; engines count up from a seed by completion."""


def single_turn(
    policy: Policy,
    prompts: Sequence[Prompt],
    group_size: int,
    sampling: Sampling,
    on_group: Callable[[RolloutGroup], None] | None = None,
) -> list[RolloutGroup]:
    """One decision for each rollout."""
    return policy.rollout(prompts, group_size, sampling, on_group=on_group)


def multi_turn(
    policy: Policy,
    prompts: Sequence[Prompt],
    group_size: int,
    sampling: Sampling,
    on_group: Callable[[RolloutGroup], None] | None = None,
    *,
    environment: Environment,
    max_turns: Count = 4,
    max_conversation_tokens: Count | None = None,
) -> list[RolloutGroup]:
    """Conversations with an environment, all of them a turn at a time.

    A conversation ends when the environment has no reply, with a turn that was cut at `max_tokens`, with the last turn
    that is allowed, or where the reply or the next turn would not fit; in the last case its last row is truncated.

    Args:
        sampling: of each turn; `max_tokens` is the limit of one.
        environment: answers the turns.
        max_turns: turns of the policy.
        max_conversation_tokens: longest conversation, prompt, replies and the next turn included; default: as long as
            the policy takes.
    """
    groups = policy.rollout(prompts, group_size, sampling)
    talks = [
        [_Talk(group.prompt, rollout, environment.begin(group.prompt)) for rollout in group.rollouts]
        for group in groups
    ]
    finished: dict[int, RolloutGroup] = {}
    ask = partial(_ask, policy, sampling)
    live = [talk for group in talks for talk in group if not talk.rollout.truncated]
    for turn in range(1, max_turns + 1):
        if turn < max_turns:
            live = _answered(policy, environment, live, ask, sampling.max_tokens, max_conversation_tokens)
        else:
            live = []
        for index, group in enumerate(talks):
            if index not in finished and not any(talk in live for talk in group):
                rollouts = [talk.finished(environment) for talk in group]
                finished[index] = replace(groups[index], rollouts=rollouts)
                if on_group is not None:
                    on_group(finished[index])
        if not live:
            break
        decisions = policy.act(
            [talk.prompt for talk in live],
            [talk.rollout for talk in live],
            [talk.observation for talk in live],
            replace(sampling, seed=sampling.seed + turn * SEED_STRIDE),
        )
        for talk, decision in zip(live, decisions, strict=True):
            talk.add(*decision)
        live = [talk for talk in live if not talk.rollout.truncated]
    return [finished[index] for index in range(len(groups))]


def demonstrate(
    policy: Policy,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    environment: Environment | None,
    set_aside: Callable[[Prompt, str], None],
) -> list[RolloutGroup]:
    """Groups of one rollout each whose turns are taken from data; what is between them comes from the environment.

    Args:
        answers: each all turns of a demonstration in one text; the environment knows where a turn ends.
        environment: None for answers of a single turn.
        set_aside: is told of a demonstration that cannot go on, and why: it is longer than the policy takes, or goes on
            where the environment has no reply. Its turns up to there come back untrained.
    """
    if environment is None:
        return policy.demonstrate(prompts, answers)
    turns = [environment.split(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    groups = policy.demonstrate(prompts, [first for first, *_ in turns])
    talks = [_Talk(group.prompt, group.rollouts[0], environment.begin(group.prompt)) for group in groups]
    ask = partial(_ask, policy, Sampling())
    stopped: set[int] = set()
    for turn in range(1, max(map(len, turns))):
        going = [index for index, texts in enumerate(turns) if len(texts) > turn and index not in stopped]
        live = _answered(policy, environment, [talks[index] for index in going], ask)
        for index in going:
            if talks[index] not in live:
                stopped.add(index)
                talks[index].leave_untrained()
                why = (
                    "its conversation is longer than model.max_prompt_tokens"
                    if talks[index].rollout.truncated
                    else ("the environment has no reply to it")
                )
                set_aside(prompts[index], f"the demonstration cannot go on after its turn {turn}: {why}")
        going = [index for index in going if index not in stopped]
        if not going:
            break
        decisions = policy.act(
            [talk.prompt for talk in live],
            [talk.rollout for talk in live],
            [talk.observation for talk in live],
            Sampling(),
            [turns[index][turn] for index in going],
        )
        for talk, decision in zip(live, decisions, strict=True):
            talk.add(*decision)
    return [replace(group, rollouts=[talk.finished(environment)]) for group, talk in zip(groups, talks, strict=True)]


@dataclass(eq=False)
class _Talk:
    """A conversation under way: its trajectory so far, the environment's episode, the observation of the next turn."""

    prompt: Prompt
    rollout: Rollout
    episode: Any
    observation: Any = None
    texts: list[str] = field(default_factory=list)
    messages: list[Mapping[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._said(self.rollout.completion)

    def _said(self, text: str) -> None:
        self.texts.append(text)
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})

    def answer(self, reply: Reply, observation: Any) -> None:
        last = replace(self.rollout.rows[-1], step_reward=reply.reward, done=observation is None)
        if observation is None:
            last = replace(last, truncated=True)
        else:
            self.messages += reply.messages
        self.rollout = replace(self.rollout, rows=[*self.rollout.rows[:-1], last])
        self.observation = observation

    def leave_untrained(self) -> None:
        import torch

        rows = [
            replace(row, masks={**row.masks, LOSS_MASK: torch.zeros(row.num_actions, dtype=torch.bool)})
            for row in self.rollout.rows
        ]
        self.rollout = replace(self.rollout, rows=rows)

    def add(self, row: Row, text: str) -> None:
        self.rollout = replace(self.rollout, rows=[*self.rollout.rows, row])
        self._said(text)

    def finished(self, environment: Environment) -> Rollout:
        outcome = {**environment.outcome(self.episode), "num_turns": len(self.texts)}
        return replace(self.rollout, completion="\n".join(self.texts), messages=self.messages, outcome=outcome)


def _answered(
    policy: Policy,
    environment: Environment,
    talks: Sequence[_Talk],
    ask: Callable[[Sequence[Question]], list[str]],
    max_tokens: int = 0,
    max_conversation_tokens: int | None = None,
) -> list[_Talk]:
    """The conversations that go on, each with the observation of its next turn."""
    replies = environment.reply([talk.episode for talk in talks], [talk.texts[-1] for talk in talks], ask)
    going = []
    for talk, reply in zip(talks, replies, strict=True):
        if reply is None:
            continue
        observation = policy.observe(talk.prompt, talk.rollout, reply.messages)
        if max_conversation_tokens is not None and observation is not None:
            observation = observation if len(observation) + max_tokens <= max_conversation_tokens else None
        talk.answer(reply, observation)
        if observation is not None:
            going.append(talk)
    return going


def _ask(policy: Policy, sampling: Sampling, questions: Sequence[Question]) -> list[str]:
    """The policy's own greedy answers."""
    prompts = [
        Prompt(id=f"question:{index}", messages=item.messages, sample={}) for index, item in enumerate(questions)
    ]
    longest = max(item.max_tokens for item in questions)
    groups = policy.rollout(prompts, 1, replace(sampling, temperature=0.0, max_tokens=longest))
    return [group.rollouts[0].completion for group in groups]

"""The reward `environment`: what an environment pays for a turn reaches the advantages of that turn."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from mmrl_core import Prompt, Reply, Rollout, RolloutGroup, Row, Sampling
from mmrl_core.config.schema import RewardConfig
from mmrl_core.plugins import Plugins
from mmrl_core.plugins.builtin import mmrl_register
from mmrl_core.plugins.registry import Registry
from mmrl_core.rewards import reward_view
from mmrl_core.scoring.runner import RewardRunner

NUM_TURNS = 3


def registry() -> Registry:
    made = Registry()
    mmrl_register(made)
    return made


def runner(*rewards: str | dict[str, Any], **parts: list[str]) -> RewardRunner:
    configs = [RewardConfig(**({"name": reward} if isinstance(reward, str) else reward)) for reward in rewards]
    by_part = {part: [RewardConfig(name=name) for name in names] for part, names in parts.items()}
    return RewardRunner(Plugins({}, registry(), {}), by_part or configs)


class Talker:
    """A policy that says "call" NUM_TURNS times, or once "answer" and then nothing, by the number of its rollout."""

    def row(self, prompt: Prompt, index: int, turn: int) -> Row:
        return Row(prompt.id, f"{prompt.id}/{index}", [0], torch.zeros(2, dtype=torch.int64), 2, step_index=turn)

    def rollout(self, prompts: list[Prompt], group_size: int, sampling: Sampling) -> list[RolloutGroup]:
        texts = ["answer" if index else "call" for index in range(group_size)]
        return [RolloutGroup(p, [Rollout([self.row(p, i, 0)], text) for i, text in enumerate(texts)]) for p in prompts]

    def observe(self, prompt: Prompt, rollout: Rollout, messages: Any) -> list[int]:
        return [0]

    def act(self, prompts: list[Prompt], rollouts: list[Rollout], observations: Any, sampling: Sampling) -> Any:
        return [(self.row(p, 0, len(r.rows)), "call") for p, r in zip(prompts, rollouts, strict=True)]


class PaysOnTheSecondTurn:
    """Replies to calls, and pays 5 for the second."""

    def begin(self, prompt: Prompt) -> dict[str, int]:
        return {"turn": 0}

    def reply(self, episodes: list[dict[str, int]], texts: list[str], ask: Any) -> list[Reply | None]:
        replies: list[Reply | None] = []
        for episode, text in zip(episodes, texts, strict=True):
            episode["turn"] += 1
            reward = 5.0 if episode["turn"] == 2 else None
            replies.append(Reply([{"role": "tool", "content": "ok"}], reward) if text == "call" else None)
        return replies

    def outcome(self, episode: dict[str, int]) -> dict[str, Any]:
        return {}


@pytest.fixture
def groups() -> list[RolloutGroup]:
    """One prompt: a rollout of three turns that is paid for its second, and one that ends at once."""
    multi_turn = registry().get("strategy", "multi_turn").load()
    environment = PaysOnTheSecondTurn()
    sampled = multi_turn(Talker(), [Prompt("p", [], {})], 2, Sampling(), environment=environment, max_turns=NUM_TURNS)
    assert [[row.step_reward for row in rollout.rows] for rollout in sampled[0].rollouts] == [[None, 5, None], [None]]
    return sampled


def test_pay_for_the_second_turn_is_a_reward_on_the_last_token_of_that_turn(groups: list[RolloutGroup]) -> None:
    scores = runner({"name": "environment", "weight": 0.5}).score(groups)
    assert scores.components["environment"].tolist() == [5.0, 0.0]
    assert scores.totals.tolist() == [2.5, 0.0]
    view = reward_view(scores, groups, torch.ones(4, 2, dtype=torch.bool))
    assert view.token_rewards.tolist() == [[0, 0], [0, 2.5], [0, 0], [0, 0]]


def test_pay_reaches_the_advantages_of_its_turn_and_those_before(groups: list[RolloutGroup]) -> None:
    # Worked by hand: 5 at the last token of the second turn, discounted by a half for each token before it.
    view = reward_view(runner("environment").score(groups), groups, torch.ones(4, 2, dtype=torch.bool))
    stage = registry().get("advantage", "discounted_returns").load()
    advantages = stage(view.rewards, view, gamma=0.5)
    assert advantages.tolist() == [[0.625, 1.25], [2.5, 5.0], [0.0, 0.0], [0.0, 0.0]]


def test_a_rollout_that_was_never_paid_earned_nothing_and_keeps_its_other_rewards(groups: list[RolloutGroup]) -> None:
    unpaid = [RolloutGroup(groups[0].prompt, groups[0].rollouts[1:])]
    assert runner("environment").score(unpaid).totals.tolist() == [0.0], "so that held-out means count it"


def test_pay_that_no_reward_reads_is_reported_once(
    groups: list[RolloutGroup], caplog: pytest.LogCaptureFixture
) -> None:
    blind = runner()
    blind.score(groups)
    blind.score(groups)
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING
    assert "the environment pays for turns (first seen in prompt p), but no reward reads it" in caplog.text
    assert "Add 'environment' to 'rewards'" in caplog.text


def test_pay_that_is_read_or_was_not_given_is_not_reported(
    groups: list[RolloutGroup], caplog: pytest.LogCaptureFixture
) -> None:
    runner({"name": "environment", "weight": 0.0, "label": "pay"}).score(groups)
    runner().score([RolloutGroup(groups[0].prompt, groups[0].rollouts[1:])])
    assert caplog.records == []


def test_the_reward_of_one_part_of_a_mixture_does_not_read_the_pay_of_another(
    groups: list[RolloutGroup], caplog: pytest.LogCaptureFixture
) -> None:
    of_part = {name: [RolloutGroup(Prompt(f"{name}:0", [], {}, part=name), groups[0].rollouts)] for name in ("a", "b")}
    mixed = runner(a=["environment"], b=[])
    assert mixed.score(of_part["a"]).components["a/environment"].tolist() == [5.0, 0.0]
    assert caplog.records == []
    mixed.score(of_part["b"])
    assert "(first seen in prompt b:0), but no reward of part 'b' reads it" in caplog.text

"""Scaf-GRPO (arXiv:2510.19807): a prompt that no rollout solves is asked again with hints, the weakest first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mmrl_core import hookimpl
from mmrl_core.config import RunConfig
from mmrl_core.config.numbers import Factor, FactorOrZero
from mmrl_core.errors import ConfigError, TaskDataError, UnfitPromptError
from mmrl_core.methods import Resampler
from mmrl_core.policy import Policy
from mmrl_core.run import Run, derive_seed
from mmrl_core.types import Prompt, Rollout, RolloutGroup, Row, Scores

Revised = tuple[Sequence[RolloutGroup], Scores]
CATEGORIES = ("knowledge", "planning", "solution")


@dataclass(frozen=True)
class Level:
    """Hints of one strength: the first ones of a category, and nothing of the categories before."""

    category: str
    hints: Sequence[str]


class ScafGRPO:
    """Put a hinted success in the place of one rollout of a group without success; ordinary GRPO learns from it.

    After the first steps of a stage, prompts none of whose rollouts is right are sampled once at each level of hints,
    the weakest first, until one is right. That rollout replaces one of its group, with the prompt that has the hints:
    the ratio has them in numerator and denominator. Where no level helps, the group stays as it is, without a gradient.
    The hints are a column of the data row: lists by category, such as {knowledge: [...], planning: [...], solution:
    [...]}, or one list. A level shows the first hints of one category. Rows without hints stay as they are.

    In the log of rollouts a hinted one has `hint_level`, from 1, and `hint` in its outcome; the prompt shown there is
    the group's. Metrics: count/hints_unsolved (prompts without success that have hints), count/hints_sampled (rollouts
    with a hint), count/hints_used (rollouts replaced) and outcome/hint_level (mean level of these).

    Args:
        exempt: below 1 the share of the stage's steps without hints, otherwise their number. Published: 0.15 in the
            paper, 50 in the code.
        slot: the rollout that is replaced; random in the paper, the first in the code.
        categories: in which order they are tried. quirk of the published code: it leaves planning out.
        column: of the data row.
        place: at the end of the question, as published; or as the beginning of the answer, which is given and never
            trained (ours). There hints may act as control tokens: use it with data that you made.
        train_under: the prompt that the success is trained under; "question", without hints, is a variant of the code,
            for answers of one turn.
        right_above: a rollout is right if its reward is above this.
        reward: the reward that tells; default: the total.

    Left out: the paper begins with hints when prompts without success stop being solved over the steps, here a number
    of steps decides; the code's two replacements in one group. The code samples all levels at once and takes the lowest
    right one, with as many samples for every prompt. Unverified: the wording before the hints, which is ours.

    Source: arXiv:2510.19807 and its code.
    """

    def __init__(
        self,
        *,
        exempt: FactorOrZero = 0.15,
        slot: Literal["random", "first"] = "random",
        categories: Sequence[str] = CATEGORIES,
        column: str = "hints",
        place: Literal["prompt", "prefix"] = "prompt",
        train_under: Literal["hint", "question"] = "hint",
        right_above: Factor = 0.5,
        reward: str | None = None,
    ) -> None:
        if place == "prefix" and train_under == "question":
            raise ConfigError("scaf_grpo: an answer that begins with its hints cannot be trained without them.")
        self._exempt = exempt
        self._slot = slot
        self._categories = categories
        self._column = column
        self._place = place
        self._train_under = train_under
        self._right_above = right_above
        self._reward = reward
        self._counts: Counter[str] = Counter()  # of groups that are not yet selected

    @hookimpl
    def mmrl_configure(self, config: RunConfig) -> None:
        for stage in config.stages:
            if stage.kind == "grpo":
                exempt_steps(self._exempt, stage.steps)
                if self._train_under == "question" and stage.rollout.strategy.name != "single_turn":
                    raise ConfigError("scaf_grpo: train_under: question is for the rollout strategy single_turn.")

    @hookimpl(wrapper=True)
    def mmrl_revise_groups(self, run: Run, resampler: Resampler) -> Generator[None, Revised, Revised]:
        groups, scores = yield
        if resampler.stage_step < exempt_steps(self._exempt, run.stage.steps):
            return groups, scores
        sizes = [len(group.rollouts) for group in groups]
        levels = {
            index: hint_levels(group.prompt, self._column, self._categories)
            for index, (group, rewards) in enumerate(zip(groups, self._rewards(scores).split(sizes), strict=True))
            if bool((~rewards.isnan()).any()) and not bool((rewards > self._right_above).any())
        }
        unsolved = {index: of for index, of in levels.items() if of}
        found = self._successes(run.policy, groups, unsolved, resampler)
        if not found:
            return groups, scores
        revised, chosen = list(groups), list(range(sum(sizes)))
        for number, (index, (rollout, _)) in enumerate(found.items()):
            seed = derive_seed(run.config.seed, "scaf_grpo", resampler.stage_step, groups[index].prompt.id)
            slot = seed % sizes[index] if self._slot == "random" else 0
            rollouts = list(groups[index].rollouts)
            if self._train_under == "question":
                rollout = unhinted(rollout, rollouts[0].rows[0])
            rollouts[slot] = rollout
            revised[index] = replace(groups[index], rollouts=rollouts)
            chosen[sum(sizes[:index]) + slot] = sum(sizes) + number
        joined = Scores.join([scores, *(part for _, part in found.values())])
        return revised, replace(joined.select(chosen), failures=scores.failures)

    @hookimpl(wrapper=True)
    def mmrl_shape_rewards(self, run: Run) -> Generator[None, Scores, Scores]:
        run.counts.update(self._counts)  # here and not where they arise, which may be another thread
        self._counts.clear()
        return (yield)

    def _rewards(self, scores: Scores) -> Tensor:
        if self._reward is None:
            return scores.totals
        if self._reward not in scores.components:
            raise ConfigError(f"scaf_grpo: no reward {self._reward!r}; rewards: {', '.join(scores.components)}.")
        return scores.components[self._reward]

    def _successes(
        self,
        policy: Policy,
        groups: Sequence[RolloutGroup],
        levels: Mapping[int, Sequence[Level]],
        resampler: Resampler,
    ) -> dict[int, tuple[Rollout, Scores]]:
        """Place of a group -> its rollout at the weakest level that gave a right one, and the scores of this one."""
        self._counts["hints_unsolved"] += len(levels)
        found: dict[int, tuple[Rollout, Scores]] = {}
        for number in range(max(map(len, levels.values()), default=0)):
            open_levels = {i: of[number] for i, of in levels.items() if number < len(of) and i not in found}
            asked = {
                index: prompt
                for index, level in open_levels.items()
                if fits(policy, prompt := hinted(groups[index].prompt, level, number + 1, self._place))
            }
            sampled = resampler.sample(list(asked.values()), 1)
            if not sampled:
                continue
            self._counts["hints_sampled"] += len(sampled)
            scores = resampler.score(sampled)
            for at, (index, reward) in enumerate(zip(asked, self._rewards(scores).tolist(), strict=True)):
                if reward > self._right_above:
                    (rollout,) = sampled[at].rollouts
                    said = {"hint_level": number + 1, "hint": hint_text(open_levels[index], self._place)}
                    marked = replace(rollout, outcome={**rollout.outcome, **said})
                    found[index] = marked, scores.select([at])
        self._counts["hints_used"] += len(found)
        return found


def exempt_steps(exempt: float, num_steps: int | None) -> int:
    """Steps of a stage without hints; a share is rounded up.

    Raises:
        ConfigError: it is a share of a stage whose steps are not set.

    >>> exempt_steps(0.15, 40), exempt_steps(50, None)
    (6, 50)
    """
    if exempt >= 1 or not exempt:
        return math.ceil(exempt)
    if num_steps is None:
        raise ConfigError(
            f"scaf_grpo: exempt {exempt:g} is a share of the stage's steps, and the stage has epochs. Set its steps, "
            "or exempt to a number of steps."
        )
    return math.ceil(round(exempt * num_steps, 6))


def hint_levels(prompt: Prompt, column: str, categories: Sequence[str]) -> list[Level]:
    """Levels of hints from the weakest to the strongest; none for a row without them.

    Raises:
        TaskDataError: the column holds something else.

    >>> row = {"hints": {"knowledge": ["K1", "K2"], "solution": ["S1"]}}
    >>> [tuple(level.hints) for level in hint_levels(Prompt("train:0", [], row), "hints", CATEGORIES)]
    [('K1',), ('K1', 'K2'), ('S1',)]
    """
    value: Any = prompt.sample.get(column)
    by_category = value if isinstance(value, Mapping) else {"": value}
    levels = []
    for category in categories if isinstance(value, Mapping) else [""]:
        hints = by_category.get(category)
        hints = [] if hints is None else hints
        if not isinstance(hints, list | tuple) or not all(isinstance(hint, str) for hint in hints):
            raise TaskDataError(
                f"row {prompt.id}: {column} holds {hints!r}, and has to be a list of texts, or such lists by category "
                f"({', '.join(categories)})."
            )
        levels += [Level(category, hints[:number]) for number in range(1, len(hints) + 1)]
    return levels


def hint_text(level: Level, place: Literal["prompt", "prefix"]) -> str:
    """What a level adds to the question, or begins the answer with."""
    if place == "prefix":
        return "".join(level.hints)
    label = f"{level.category} hints:".strip().capitalize()
    return "\n".join([label, *level.hints])


def hinted(prompt: Prompt, level: Level, number: int, place: Literal["prompt", "prefix"]) -> Prompt:
    """The prompt with the hints of a level, under an id of its own."""
    text, name = hint_text(level, place), f"{prompt.id}+hint-{number}"
    if place == "prefix":
        return replace(prompt, id=name, prefix=prompt.prefix + text)
    *before, last = prompt.messages
    content = last["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    asked = {**last, "content": [*parts, {"type": "text", "text": f"\n\n{text}"}]}
    return replace(prompt, id=name, messages=[*before, asked])


def fits(policy: Policy, prompt: Prompt) -> bool:
    """Whether the policy takes the prompt; with hints it may be too long."""
    try:
        policy.prepare([prompt])
    except UnfitPromptError:
        return False
    return True


def unhinted(rollout: Rollout, without: Row) -> Rollout:
    """A rollout of one turn as if it had answered what another row answered; its sampler's logprobs are not known."""
    (row,) = rollout.rows
    unknown = None if row.sampler_logprobs is None else torch.full_like(row.sampler_logprobs, math.nan)
    seen = {"observation": without.observation, "observation_key": without.observation_key}
    return replace(rollout, rows=[replace(row, prompt_id=without.prompt_id, sampler_logprobs=unknown, **seen)])

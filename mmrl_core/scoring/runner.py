"""Run the reward functions of a config and add up what they return.

A reward is a registered function `(completions, samples, **options)`, plain or `async def`, called once for each group:
`completions` are what the policy wrote, `samples` the data rows (without media) they belong to, all the same row within
a group. If it has a parameter `rollouts`, it gets the group's `Rollout` objects too; if it has one `prompts`, for each
completion the messages of the prompt, without media. It returns one result for each completion. The detail `shape` of
its registration says which (a function from a file has it as an attribute):

=============  =====================================================================================================
`completion`   a number for each completion (the default)
`step`         a list of numbers for each completion, one for each row of its rollout
`token`        a sequence of numbers for each completion, one for each action token over the rows of its rollout
`group`        a number for each completion, judged jointly: comparisons and pair judgements are made inside, and
               the completions of a group are never scored apart
=============  =====================================================================================================

A number is a score. None is "unscored": the reward has nothing to say, which differs from 0. Anything else (an
exception, a hang, NaN, text, a wrong length) is a *failure*: the completion is unscored, the failure is counted and its
reason kept. A failure ends a run only where the reward has `stop_on_failure`.

Rewards run side by side in threads. They should not draw from the global random generators: in which order threads
reach them is not fixed, and a resumed run would differ.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import RewardError
from mmrl_core.rewards import group_totals
from mmrl_core.scoring.call import Call, Reward
from mmrl_core.scoring.environment import environment, is_paid
from mmrl_core.scoring.reading import Judgement, num_parts
from mmrl_core.types import Prompt, RolloutGroup, Scores

if TYPE_CHECKING:
    from torch import Tensor

    from mmrl_core.config import RewardConfig
    from mmrl_core.plugins import Plugins

logger = logging.getLogger(__name__)

MAX_REASONS = 5  # different reasons kept for a reward; the counts go on


class RewardRunner:
    """Calls the rewards of a config, each group by itself, and keeps count of what fails.

    A group has `timeout_s` of its reward. A plain function that takes longer is abandoned: Python cannot end a thread,
    so it goes on in a daemon thread, which is never joined, not even at exit. (A call that never releases the
    interpreter lock, such as a regular expression that backtracks without end, cannot be abandoned either, and one that
    crashes takes the run with it. With `isolate` a reward has a process of its own, which is ended and replaced.)
    An async function is cancelled. A reward that raises for a group is called again for each of its completions, in
    what is left of the time, so that only the culprit is unscored. A reward that judges completions jointly is not
    called again.

    Rollouts may carry what an environment paid for their turns. The reward `environment` reads it. Where no reward of
    that kind is configured, the pay is in no total, and the first group that carries some is reported once.

    Attributes:
        failure_reasons: reward key -> the first few different reasons for which it failed.
    """

    def __init__(
        self, plugins: Plugins, configs: Sequence[RewardConfig] | Mapping[str, Sequence[RewardConfig]]
    ) -> None:
        """
        Args:
            configs: the rewards, with weight and options, or those of each part of a mixture, by its name. Then a group
                is scored by the rewards of its prompt's part, the others leave it unscored, and rewards are called
                `<part>/<name>`.

        Raises:
            PluginError: a reward is not provided by any installed plugin, or cannot be imported.
            RewardError: two rewards have one name, or a reward is declared wrongly or given a wrong option.
        """
        self.failure_reasons: dict[str, list[str]] = {}
        self._has_reported_pay = False
        self._reported_unscored: set[str] = set()
        self._told_restarts: Counter[str] = Counter()
        self._started: dict[int, tuple[RolloutGroup, dict[str, Future[list[Judgement]]]]] = {}
        self._rewards: dict[str, Reward] = {}
        by_part = configs if isinstance(configs, Mapping) else {None: configs}
        for part, rewards in by_part.items():
            for config in rewards:
                key = f"{part}/{config.key}" if part else config.key
                if key in self._rewards:
                    raise RewardError(f"two rewards are called {key!r}; give one of them a 'label'.")
                self._rewards[key] = Reward(plugins, config, part)

    @property
    def keys(self) -> list[str]:
        """Names of the rewards in metrics, in the order of the config."""
        return list(self._rewards)

    def maximum(self, key: str) -> float | None:
        """The highest score that a reward declares, see `Reward.maximum`."""
        return self._reward(key).maximum

    def function(self, key: str) -> Callable[..., Any]:
        """The function of a reward."""
        return self._reward(key).function

    def restarts(self, key: str) -> int:
        """How often the process of an isolated reward died or was ended, and was replaced."""
        isolated = self._reward(key).isolated
        return 0 if isolated is None else isolated.num_restarts

    def take_restarts(self) -> dict[str, int]:
        """The same for each isolated reward, since last asked; what a step logs as `restarts/<reward>`."""
        isolated = {key: reward.isolated.num_restarts for key, reward in self._rewards.items() if reward.isolated}
        since = {key: number - self._told_restarts[key] for key, number in isolated.items()}
        self._told_restarts.update(isolated)
        return since

    def scores_any(self, key: str, groups: Sequence[RolloutGroup]) -> bool:
        """Whether a reward is for any of the groups, of a mixture for its part; True for a name of no reward here."""
        reward = self._rewards.get(key)
        return reward is None or any(reward.is_for(group) for group in groups)

    def start(self, group: RolloutGroup) -> None:
        """Begin to score a group in the background, while others are still being sampled; `score` picks it up."""
        call = Call.of(group)
        own = {key: reward for key, reward in self._rewards.items() if reward.is_for(group)}
        self._started[id(group)] = group, {key: reward.submit(call) for key, reward in own.items()}

    def score(self, groups: Sequence[RolloutGroup]) -> Scores:
        """Score the rollouts of a step. Groups that were started are waited for, the others scored now.

        A total is the weighted sum of the components. A component that leaves a whole group unscored without failing
        (a reward for other tasks of a mixture) is left out there. Where it scores only some of a group, or fails, the
        totals of the others are unscored: totals within a group are always sums over the same components.

        Raises:
            RewardError: a reward failed that has stop_on_failure.
        """
        self._report_unread_pay(groups)
        for group in groups:
            if id(group) not in self._started:
                self.start(group)
        started = [self._started[id(group)][1] for group in groups]
        unscored = [_unscored(group) for group in groups]
        judged = self._collect(
            {key: [own.get(key, none) for own, none in zip(started, unscored, strict=True)] for key in self._rewards}
        )
        self._started.clear()
        self._report_unscored(groups, judged)
        return _scores(self._rewards, groups, judged)

    def score_samples(
        self, key: str, completions: Sequence[Any], samples: Sequence[Mapping[str, Any]]
    ) -> list[float | None]:
        """Score completions outside of a run, with one reward.

        Args:
            key: name of the reward, see `keys`.
            completions: N completions.
            samples: N data rows; neighbours with equal rows form a group, as in training.

        Returns:
            N scores, for step and token rewards the sums; None where unscored.

        Raises:
            RewardError: the reward needs rollouts, which only a run has, or it failed and has stop_on_failure.
        """
        return [judgement.value for judgement in self.judge(key, completions, samples)]

    def judge(
        self,
        key: str,
        completions: Sequence[Any],
        samples: Sequence[Mapping[str, Any]],
        prompt: Prompt | None = None,
    ) -> list[Judgement]:
        """The same as `score_samples`, with the numbers of steps and tokens, and the reason where the reward failed.

        Args:
            prompt: of them all, for rewards that read its messages.
        """
        reward = self._reward(key)
        if len(completions) != len(samples):
            raise ValueError(f"{len(completions)} completions, but {len(samples)} samples")
        if reward.needs_rollouts:
            raise RewardError(f"reward {reward.config.name!r} reads rollouts: it scores only within a run.")
        calls: list[Call] = []
        start = 0
        for end in range(1, len(samples) + 1):
            if end == len(samples) or samples[end] != samples[start]:
                calls.append(Call(list(completions[start:end]), list(samples[start:end]), prompt=prompt))
                start = end
        judged = self._collect({key: [reward.submit(call) for call in calls]})
        return [judgement for group in judged[key] for judgement in group]

    def _reward(self, key: str) -> Reward:
        if key not in self._rewards:
            raise RewardError(f"no reward is called {key!r}; rewards here: {', '.join(self._rewards) or 'none'}.")
        return self._rewards[key]

    def _collect(self, running: Mapping[str, Sequence[Future[list[Judgement]]]]) -> dict[str, list[list[Judgement]]]:
        """For each reward and each group, a judgement for each completion."""
        judged = {key: [future.result() for future in futures] for key, futures in running.items()}
        for key, groups in judged.items():
            for group in groups:
                for judgement in group:
                    if judgement.failure is not None:
                        self._note_failure(key, judgement.failure)
        return judged

    def _note_failure(self, key: str, reason: str) -> None:
        message = f"reward {self._rewards[key].config.name!r} failed: {reason}"
        if self._rewards[key].config.stop_on_failure:
            raise RewardError(message)
        reasons = self.failure_reasons.setdefault(key, [])
        if not reasons:
            logger.warning("%s. The completion is unscored; further failures are counted, not shown.", message)
        if reason not in reasons and len(reasons) < MAX_REASONS:
            reasons.append(reason)

    def _report_unscored(
        self, groups: Sequence[RolloutGroup], judged: Mapping[str, Sequence[Sequence[Judgement]]]
    ) -> None:
        """Warn once of each reward that leaves completions unscored without failing, as where it cannot read a gold.

        That may be meant, in data of several kinds, but the total of such a completion is the rest or nothing.
        """
        for key, reward in self._rewards.items():
            for group, judgements in zip(groups, judged[key], strict=True):
                num_unscored = sum(judgement.value is None and judgement.failure is None for judgement in judgements)
                if key in self._reported_unscored or not num_unscored or not reward.is_for(group):
                    continue
                self._reported_unscored.add(key)
                logger.warning(
                    "reward %r left %d of %d completions of prompt %s unscored (it returned None), so that totals are "
                    "made of the other rewards there. If that is not meant, see that it can read the gold of such a "
                    "row; unscored/%s in the metrics is the share of them.",
                    key, num_unscored, len(judgements), group.prompt.id, key,
                )  # fmt: skip

    def _report_unread_pay(self, groups: Sequence[RolloutGroup]) -> None:
        """Warn once where an environment pays and no reward reads it.

        It is not added to the totals by itself: `rewards` alone says what a total is made of, and a component that
        appears with the first pay would be missing in the steps, and processes, before it.
        """
        if self._has_reported_pay:
            return
        readers = [reward for reward in self._rewards.values() if reward.function is environment]
        unread = (group for group in groups if is_paid(group) and not any(reward.is_for(group) for reward in readers))
        if (group := next(unread, None)) is not None:
            self._has_reported_pay = True
            part = f" of part {group.prompt.part!r}" if group.prompt.part else ""
            logger.warning(
                "the environment pays for turns (first seen in prompt %s), but no reward%s reads it, so nothing is "
                "learnt from it. Add 'environment' to 'rewards', or {name: environment, weight: 0} to only report it.",
                group.prompt.id,
                part,
            )


def _unscored(group: RolloutGroup) -> Future[list[Judgement]]:
    """What the rewards of other parts of a mixture say of a group."""
    future: Future[list[Judgement]] = Future()
    future.set_result([Judgement(None)] * len(group.rollouts))
    return future


def _scores(
    rewards: Mapping[str, Reward], groups: Sequence[RolloutGroup], judged: Mapping[str, Sequence[Sequence[Judgement]]]
) -> Scores:
    """Scores of the rollouts of all groups from what each reward said of each group."""
    import torch

    totals: list[float] = []
    for place, group in enumerate(groups):
        of_group = {key: of_groups[place] for key, of_groups in judged.items()}
        counted = [key for key, judgements in of_group.items() if rewards[key].config.weight and _applies(judgements)]
        weights = [rewards[key].config.weight for key in counted]
        totals += group_totals(weights, [[j.value for j in of_group[key]] for key in counted], len(group.rollouts))
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    flat = {key: [judgement for of_group in of_groups for judgement in of_group] for key, of_groups in judged.items()}

    def components(key: str) -> Tensor:
        values = [math.nan if judgement.value is None else judgement.value for judgement in flat[key]]
        return torch.tensor(values, dtype=torch.float32)

    def weighted_parts(key: str, shape: str) -> list[list[float]]:
        """For each rollout its weighted numbers; zeros, which add nothing to tokens, where it is unscored."""
        weight = rewards[key].config.weight
        return [
            [number * weight for number in judgement.parts or [0.0] * num_parts(shape, rollout)]
            for judgement, rollout in zip(flat[key], rollouts, strict=True)
        ]

    of_shape = {shape: [key for key in judged if rewards[key].shape == shape] for shape in ("token", "step")}
    return Scores(
        totals=torch.tensor(totals, dtype=torch.float32),
        components={key: components(key) for key in judged},
        weights={key: rewards[key].config.weight for key in judged},
        token_rewards={
            key: [torch.tensor(numbers, dtype=torch.float32) for numbers in weighted_parts(key, "token")]
            for key in of_shape["token"]
        },
        step_rewards={key: weighted_parts(key, "step") for key in of_shape["step"]},
        failures={key: sum(j.failure is not None for j in judgements) for key, judgements in flat.items()},
        reasons={key: [j.failure for j in judged] for key, judged in flat.items() if any(j.failure for j in judged)},
    )


def _applies(judgements: Sequence[Judgement]) -> bool:
    """Whether a reward has something to do with a group: it scored one of its completions, or failed to."""
    return any(judgement.value is not None or judgement.failure is not None for judgement in judgements)

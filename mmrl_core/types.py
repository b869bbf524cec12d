"""What the stages of a step pass on to each other.

    prompts -> rollout -> score -> revise groups -> shape rewards -> select groups -> extend groups
            -> pack -> advantages -> logprobs -> policy loss -> update

Letters mean one thing everywhere: N trajectories, B rows, G rollouts of a prompt, T actions of a row (completion tokens
for a language model, 1 for a policy that acts once).

A *row* is one decision of the policy: the tokens, or the noise, sampled in one turn. A *rollout* is a trajectory of
rows with what came out of it. Answering once is the simplest case: a rollout with one row.

Worked example: two prompts, group size 2, the second prompt answered over two turns by its first rollout. That is
2 `RolloutGroup`, 4 `Rollout`, 5 `Row` with `step_index` 0, 0, 0, 1, 0; in a `Batch` B = 5, `group_ids` is
[0, 0, 1, 1, 1], `trajectory_ids` is [0, 1, 2, 2, 3].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ACTION_MASK = "action_mask"  # made by the policy
LOSS_MASK = "loss_mask"  # trained
FORCED_MASK = "forced_mask"  # taken from data: a supervised target, a resumed prefix
MASK_NAMES = (ACTION_MASK, LOSS_MASK, FORCED_MASK)

KL_WEIGHT = "kl_weight"  # column: factor of the KL penalty at each token; 1 where a row has none


@dataclass(frozen=True)
class Prompt:
    """What the policy is given, before any model has touched it.

    Attributes:
        id: names the data row, the same in every epoch and every run ("train:17").
        messages: chat messages; content is a list of parts such as {"type": "text", "text": ...} or
            {"type": "image", "image": PIL image}. Media are decoded objects, shared by everything that reads them.
        sample: the data row without media; rewards and metrics read it.
        answer: the gold completion, or "" when the task has none; supervised stages train on it.
        media_keys: content hash of each medium, in the order of the messages.
        media_files: file of each medium, None where the row held bytes or a decoded object; tools look into them again.
        tools: JSON schemas of the functions that the policy may call, as chat templates take them.
        part: name of the part of a mixture that it comes from; "" outside of mixtures.
        prefix: text that each turn of the policy begins with. It is observed, never sampled or trained, and may hold
            control tokens: no text of the data belongs here. A completion holds it.
        template: options of the model's chat template.
    """

    id: str
    messages: Sequence[Mapping[str, Any]]
    sample: Mapping[str, Any]
    answer: str = ""
    media_keys: tuple[str, ...] = ()
    media_files: tuple[str | None, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    part: str = ""
    prefix: str = ""
    template: Mapping[str, Any] = field(default_factory=dict)

    def with_prefix(self, answer: str) -> str:
        """A text of the data as the completion that it stands for: it may begin with the prefix, or after it."""
        return self.prefix + answer.removeprefix(self.prefix)


@dataclass(frozen=True)
class Sampling:
    """How a policy acts.

    Attributes:
        max_tokens: longest completion, in tokens.
        temperature: 0 is greedy.
        top_p, top_k: nucleus and top-k truncation; 1.0 and 0 switch them off.
        seed: makes the rollout repeatable; the trainer derives one for each step and process.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One decision of the policy.

    Attributes:
        prompt_id, trajectory_id: whose decision; a trajectory id is unique within a step.
        step_index: 0 for the first decision of its trajectory.
        observation: what the policy decided on, in its own form; rows of a group share one object, never copies.
        observation_key: equal for rows with equal observations; None if the policy gives no key.
        action: int64 [T] token ids, or whatever the policy samples (FIND: a latent).
        sampler_logprobs: float32 [T], as the rollout engine reported them; None for rows taken from data.
        masks: name -> bool [T], over actions; see MASK_NAMES. A mask that is absent is all False, except that
            absent action and loss masks are all True.
        columns: name -> float32 [T], numbers of each action that travel with it to the loss, such as KL_WEIGHT.
        step_reward: reward of this decision alone, if the environment gave one; the reward `environment` reads it.
        done: the trajectory ends here.
        truncated: it ended because a limit was hit, not because the policy ended it.
    """

    prompt_id: str
    trajectory_id: str
    observation: Any
    action: Tensor
    num_actions: int
    step_index: int = 0
    observation_key: str | None = None
    sampler_logprobs: Tensor | None = None
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    step_reward: float | None = None
    done: bool = True
    truncated: bool = False


@dataclass(frozen=True)
class Rollout:
    """A trajectory and its outcome.

    Attributes:
        rows: its decisions, in order.
        completion: what rewards read: text; a PIL image, or a list of them, the frames of a video, from a policy that
            makes pictures. Of a conversation, the policy's own turns, a line break between them; what tools or an
            environment answered is not in it. A text begins with `Prompt.prefix`, as does each turn of a conversation.
        messages: the conversation after the prompt, chat messages like `Prompt.messages`; empty for a single turn.
        outcome: what happened on the way (number of valid tool calls, ...); rewards and metrics find it in the sample.
    """

    rows: Sequence[Row]
    completion: Any
    messages: Sequence[Mapping[str, Any]] = ()
    outcome: Mapping[str, Any] = field(default_factory=dict)

    @property
    def truncated(self) -> bool:
        return any(row.truncated for row in self.rows)

    @property
    def num_actions(self) -> int:
        return sum(row.num_actions for row in self.rows)


@dataclass(frozen=True)
class RolloutGroup:
    """The rollouts of one prompt; rewards are compared within it."""

    prompt: Prompt
    rollouts: Sequence[Rollout]


@dataclass(frozen=True)
class Scores:
    """Rewards of the rollouts of a step, N in all, in the order of the groups.

    Attributes:
        totals: float32 [N], weighted sum of the components; NaN = unscored.
        components: name -> float32 [N], unweighted, NaN = unscored.
        weights: name -> weight.
        token_rewards: name -> one tensor for each rollout, float32 [actions of all its rows], for rewards given per
            token. They are weighted, 0 where unscored; their sum is part of totals. The component of the same name has
            the unweighted sum, NaN where unscored.
        step_rewards: name -> one list for each rollout, a number for each row. Likewise.
        failures: reward name -> how many rollouts it failed to score (raised, hung, returned nonsense).
        reasons: name of a reward that failed -> for each rollout why, None where it did not fail.
    """

    totals: Tensor
    components: Mapping[str, Tensor]
    weights: Mapping[str, float]
    token_rewards: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    step_rewards: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    def select(self, index: Sequence[int]) -> Scores:
        """Scores of the rollouts at `index`, in its order; failures, which are counts of all, are left out."""
        chosen = list(index)
        return Scores(
            totals=self.totals[chosen],
            components={name: values[chosen] for name, values in self.components.items()},
            weights=self.weights,
            token_rewards={name: [values[i] for i in chosen] for name, values in self.token_rewards.items()},
            step_rewards={name: [values[i] for i in chosen] for name, values in self.step_rewards.items()},
            reasons={name: [texts[i] for i in chosen] for name, texts in self.reasons.items()},
        )

    def split(self, groups: Sequence[RolloutGroup]) -> list[Scores]:
        """Scores of each group by itself; the failures stay with the first."""
        parts, start = [], 0
        for group in groups:
            part = self.select(range(start, start + len(group.rollouts)))
            parts.append(part if start else replace(part, failures=self.failures))
            start += len(group.rollouts)
        return parts

    @staticmethod
    def join(parts: Sequence[Scores]) -> Scores:
        """Scores of several groups, at least one, one after another; the inverse of `split`."""
        import torch

        first = parts[0]
        failures: dict[str, int] = {}
        for part in parts:
            for name, count in part.failures.items():
                failures[name] = failures.get(name, 0) + count
        failed = {name: None for part in parts for name in part.reasons}
        return Scores(
            totals=torch.cat([part.totals for part in parts]),
            components={name: torch.cat([part.components[name] for part in parts]) for name in first.components},
            weights=first.weights,
            token_rewards={
                name: [values for part in parts for values in part.token_rewards[name]] for name in first.token_rewards
            },
            step_rewards={
                name: [values for part in parts for values in part.step_rewards[name]] for name in first.step_rewards
            },
            failures=failures,
            reasons={
                name: [text for part in parts for text in part.reasons.get(name, [None] * len(part.totals))]
                for name in failed
            },
        )

    def with_component(self, name: str, values: Tensor, weight: float = 1.0) -> Scores:
        """With `weight * values` [N] added to the totals, and `values` kept as a component; unscored stays unscored."""
        return replace(
            self,
            totals=self.totals + weight * values,
            components={**self.components, name: values},
            weights={**self.weights, name: weight},
        )


@dataclass(frozen=True)
class RewardView:
    """What advantage stages read.

    Attributes:
        rewards: float32 [B], the trajectory's total reward, repeated on each of its rows; NaN = unscored.
        components: name -> [B], unweighted; NaN = unscored.
        weights: name -> weight in the total.
        token_rewards: float32 [B, T], every reward placed on tokens: completion rewards on the last trained token of
            the trajectory's last row, step rewards on the last trained token of their row, token rewards where they
            are. 0 where the trajectory is unscored.
        group_ids: int64 [B], equal for the completions of one prompt.
        trajectory_ids: int64 [B], equal for the rows of one trajectory.
        mask: bool [B, T], tokens that are trained.
        rows: B rows, with their actions and columns.
        prompts: B prompts, that of each row.
        stats: name -> float32 [B, T], what the stage's `needs` name, under the weights before the update.
    """

    rewards: Tensor
    components: Mapping[str, Tensor]
    weights: Mapping[str, float]
    token_rewards: Tensor
    group_ids: Tensor
    trajectory_ids: Tensor
    mask: Tensor
    rows: Sequence[Row] = ()
    prompts: Sequence[Prompt] = ()
    stats: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Rows of one update, padded to T, with everything the loss reads.

    Attributes:
        rows: B rows, those of a group next to each other.
        group_ids, trajectory_ids: int64 [B].
        masks: name -> bool [B, T]; False on padding.
        sampler_logprobs: float32 [B, T], 0 on padding; None if a row has none.
        advantages: float32 [B, T], 0 where not trained.
        rewards: float32 [B], total of the trajectory.
        old_logprobs: float32 [B, T] that ratios are taken to, see `algorithm.old_logprobs`; None while the update is
            on-policy, when they equal the current ones.
        frozen_logprobs: name of a frozen policy -> float32 [B, T].
        components: name of a reward -> float32 [B], unweighted, NaN = unscored.
        columns: name -> float32 [B, T], 0 on padding: the columns of the rows, and statistics that were asked for.
    """

    rows: Sequence[Row]
    group_ids: Tensor
    trajectory_ids: Tensor
    masks: Mapping[str, Tensor]
    advantages: Tensor
    rewards: Tensor
    sampler_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    frozen_logprobs: Mapping[str, Tensor] = field(default_factory=dict)
    components: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def mask(self) -> Tensor:
        """Bool [B, T], tokens that are trained."""
        return self.masks[LOSS_MASK]

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, index: torch.Tensor) -> Batch:
        """Rows at `index` (int64 [b]), as a batch of their own, padded no further than to the longest of them."""
        rows = [self.rows[i] for i in index.tolist()]
        width = max(row.num_actions for row in rows)

        def pick(tensor: Tensor) -> Tensor:
            return tensor[index, :width]

        return Batch(
            rows=rows,
            group_ids=self.group_ids[index],
            trajectory_ids=self.trajectory_ids[index],
            masks={name: pick(mask) for name, mask in self.masks.items()},
            advantages=pick(self.advantages),
            rewards=self.rewards[index],
            sampler_logprobs=None if self.sampler_logprobs is None else pick(self.sampler_logprobs),
            old_logprobs=None if self.old_logprobs is None else pick(self.old_logprobs),
            frozen_logprobs={name: pick(value) for name, value in self.frozen_logprobs.items()},
            components={name: value[index] for name, value in self.components.items()},
            columns={name: pick(value) for name, value in self.columns.items()},
        )

"""Checks of advantage stages and losses: each of a config's is called once, on a made step of its group size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mmrl_core.config import AlgorithmConfig, RunConfig, StageConfig, current, parts_of
from mmrl_core.plugins import CORE, Plugins
from mmrl_core.testing.makers import make_group, make_scores
from mmrl_core.testing.method_checks import Snapshot, changed, snapshot
from mmrl_core.testing.sections import Finding
from mmrl_core.types import Batch, Prompt, RolloutGroup, Scores

NUM_GROUPS = 2
LENGTHS = (4, 2, 3)  # tokens of the completions, in turn


def algorithm_findings(config: RunConfig, prompts: Sequence[Prompt], plugins: Plugins) -> Iterator[Finding]:
    """Call the advantage stages and the loss of each stage that trains by reward, as its first step would.

    The step is made: two groups of completions of different lengths, rewards that differ in one and are all equal in
    the other; and once more, with one completion unscored. What is returned is held against the same rules as in a
    run. Stages in which all parts are the core's are left out.

    Args:
        prompts: of the task, for stages that read them; without, there is nothing to call a stage with.
    """
    told: list[tuple[AlgorithmConfig, int]] = []
    for number, stage in enumerate(config.stages, start=1):
        algorithm = stage.algorithm
        if stage.kind != "grpo" or not prompts or (algorithm, stage.group_size) in told:
            continue
        told.append((algorithm, stage.group_size))
        named = [*(("advantage", part.name) for part in algorithm.advantage), ("loss", algorithm.loss.name)]
        foreign = [f"{kind} {name!r}" for kind, name in named if not _is_core(kind, name, plugins)]
        if not foreign:
            continue
        where = f"stage {stage.name or f'{stage.kind} {number}'}"
        if config.plugins:
            yield Finding(
                True, f"{where}: {', '.join(foreign)}: not called, since plugins of the run may change a step"
            )
            continue
        if wrong := _problem(stage, prompts, plugins, all_scored=True):
            yield Finding(False, f"{where}: {wrong}")
        elif wrong := _problem(stage, prompts, plugins, all_scored=False):
            what = f"{where}: as soon as a completion is unscored, the run would end: {wrong}"
            yield Finding(True, what, doubtful=True)
        else:
            yield Finding(True, f"{where}: {', '.join(foreign)}: sound on a made step")


def _is_core(kind: str, name: str, plugins: Plugins) -> bool:
    return plugins.registry.get(kind, name).id.startswith(f"{CORE}/")


def _problem(stage: StageConfig, prompts: Sequence[Prompt], plugins: Plugins, *, all_scored: bool) -> str:
    """What a made step fails with, and whose that is; "" if it does not."""
    from mmrl_core.errors import MMRLError
    from mmrl_core.support import blamed

    try:
        _made_step(stage, prompts, plugins, all_scored)
    except MMRLError as error:
        return str(error)
    except Exception as error:  # it is foreign code
        found = blamed(error)
        source = f"{found.source} raised " if found is not None and found.source is not None else ""
        return f"{source}{type(error).__name__}: {error}"
    return ""


def _made_step(stage: StageConfig, prompts: Sequence[Prompt], plugins: Plugins, all_scored: bool) -> None:
    """Advantages and loss of a made step, with all checks of a run."""
    from mmrl_core.batching import pack, with_advantages
    from mmrl_core.methods import score_weights
    from mmrl_core.plugins.hook_results import check_advantages
    from mmrl_core.rewards import reward_view

    groups, scores = _made_groups(stage, prompts, all_scored)
    batch = pack(groups)
    entries = [plugins.registry.get("advantage", part.name) for part in stage.algorithm.advantage]
    asked = {name for entry in entries for name in entry.details.get("needs", ())}
    batch = replace(batch, columns={**batch.columns, **{name: _values(batch, 0.5) for name in asked}})
    view = reward_view(scores, groups, batch.mask, batch.columns)
    advantages = view.rewards
    for part, entry in zip(stage.algorithm.advantage, entries, strict=True):
        options = current(part, 0).options
        before = snapshot((advantages, view))
        advantages = entry.call(advantages, view, options=options, reduce_sum=lambda tensor: tensor)
        _refuse_changes(before, f"advantage stage {part.name!r}")
        check_advantages(advantages, view, f"advantage stage {part.name!r}")
    batch = with_advantages(batch, advantages.nan_to_num(), view)

    loss = current(stage.algorithm.loss, 0)
    entry = plugins.registry.get("loss", loss.name)
    frozen = {name: _values(batch, -1.2) for name in entry.details.get("frozen", ())}
    batch = replace(batch, old_logprobs=_values(batch, -1.1), frozen_logprobs=frozen)
    if entry.details.get("unit") == "score":
        function = partial(entry.function(), **loss.options)
        reduction = entry.details.get("score", "mean")
        score_weights(batch, _values(batch, -1.0), function, reduction, lambda tensor: tensor, f"loss {loss.name!r}")
        return
    _made_loss(stage, batch, entry)


def _made_loss(stage: StageConfig, batch: Batch, entry: Any) -> None:
    """The loss of the whole batch, and its gradient.

    Raises:
        HookResultError: the loss, or its gradient, is no finite number.
    """
    import torch

    from mmrl_core.errors import HookResultError
    from mmrl_core.loss_inputs import BatchTotals, LossInputs
    from mmrl_core.policy_loss import policy_loss

    algorithm = stage.algorithm.model_copy(update={"loss": current(stage.algorithm.loss, 0)})
    logprobs = _values(batch, -1.0).requires_grad_()
    num_tokens = float(batch.mask.sum())
    inputs = LossInputs(
        logprobs=logprobs,
        old_logprobs=_values(batch, -1.1),
        advantages=batch.advantages,
        mask=batch.mask,
        totals=BatchTotals(num_tokens, float(len(batch)), num_tokens),
        sampler_logprobs=_values(batch, -1.1),
        ref_logprobs=_values(batch, -1.2),
        frozen_logprobs=batch.frozen_logprobs,
        entropy=_values(batch, 0.5).requires_grad_(),
        extras={name: _values(batch, 0.5) for name in entry.details.get("needs", ()) if name != "entropy"},
        rewards=batch.rewards,
        components=batch.components,
        columns=batch.columns,
    )
    max_length = algorithm.max_length or stage.rollout.max_tokens
    unit = entry.details.get("unit", "token")

    def surrogate(inputs: LossInputs, **options: Any) -> Any:
        before = snapshot(inputs)
        result = entry.function()(inputs, **options)
        _refuse_changes(before, f"loss {algorithm.loss.name!r}")
        return result

    value, _ = policy_loss(inputs, algorithm, surrogate, max_length=max_length, unit=unit)
    value.backward()
    sound = bool(torch.isfinite(value)) and logprobs.grad is not None and bool(torch.isfinite(logprobs.grad).all())
    if not sound:
        raise HookResultError(
            f"loss {algorithm.loss.name!r}: {float(value.detach())} on a made step, or its gradient is not finite."
        )


def _refuse_changes(before: Snapshot, source: str) -> None:
    """Raises HookResultError if a tensor that a stage or loss was given is not as it was."""
    from mmrl_core.errors import HookResultError

    if said := changed(before):
        raise HookResultError(f"{source} {said}")


def _made_groups(stage: StageConfig, prompts: Sequence[Prompt], all_scored: bool) -> tuple[list[RolloutGroup], Scores]:
    """Groups of the stage's size, and scores: from 0 to 1 in the first, 1 each in the second, but for its last one."""
    size = stage.group_size
    groups = []
    for number in range(NUM_GROUPS):
        lengths = [LENGTHS[place % len(LENGTHS)] for place in range(size)]
        prompt = prompts[number % len(prompts)]
        groups.append(make_group([prompt.with_prefix(prompt.answer)] * size, num_actions=lengths, prompt=prompt))
    rising = [place / max(1, size - 1) for place in range(size)]
    totals = [*rising, *[1.0] * (size - 1), 1.0 if all_scored else float("nan")]
    rewards = {reward.key: reward.weight for part in parts_of(stage) for reward in part.rewards}
    return groups, make_scores({name: totals for name in rewards}, totals=totals, weights=rewards)


def _values(batch: Batch, value: float) -> Any:
    """Float [B, T]: about the value on tokens, no two alike, and 0 on padding."""
    import torch

    spread = torch.linspace(0.0, 0.1, batch.mask.numel()).reshape(batch.mask.shape)
    return (value - spread) * batch.mask

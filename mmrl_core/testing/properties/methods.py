"""Properties of what changes the algorithm: losses, advantage stages, and the state of behaviours."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pluggy

from mmrl_core import hookspecs
from mmrl_core.config import RunConfig
from mmrl_core.config.options import REQUIRED
from mmrl_core.errors import MMRLError
from mmrl_core.hookspecs import hookimpl
from mmrl_core.plugins import CORE
from mmrl_core.run import TrainState
from mmrl_core.testing.makers import make_group, make_scores
from mmrl_core.testing.method_checks import method_problems
from mmrl_core.testing.subject import NothingToCheck, Subject
from mmrl_core.types import Prompt

NUM_STEPS = 2  # before the state is saved


def losses_can_be_trained(subject: Subject) -> Iterator[str]:
    """What is wrong with losses on small made inputs."""
    yield from _method_problems(subject, "loss")


def advantages_are_finite(subject: Subject) -> Iterator[str]:
    """What is wrong with advantage stages on small made inputs."""
    yield from _method_problems(subject, "advantage")


def _method_problems(subject: Subject, kind: str) -> Iterator[str]:
    for entry, _ in subject.loaded(kind):
        options = {o.name: 8 for o in entry.options().values() if o.default is REQUIRED and o.type == "Count"}
        options |= {o.name: 8 for o in entry.options().values() if o.default is REQUIRED and o.type == "int"}
        if all(o.default is not REQUIRED or o.name in options for o in entry.options().values()):
            is_first = "advantage.base" in entry.details.get("claims", ())
            for problem in method_problems(entry, options, is_first=is_first):
                yield f"{kind} {entry.id} ({entry.target}): {problem}"


# State


class _Core:
    """What the core answers last, so that wrappers have something to wrap."""

    @hookimpl
    def mmrl_revise_groups(self, groups: Any, scores: Any) -> Any:
        return groups, scores

    @hookimpl
    def mmrl_shape_rewards(self, scores: Any) -> Any:
        return scores

    @hookimpl
    def mmrl_select_groups(self, groups: Any) -> Any:
        return [True for _ in groups]

    @hookimpl
    def mmrl_extend_groups(self, groups: Any, scores: Any) -> Any:
        return groups, scores


def state_goes_on(subject: Subject) -> Iterator[str]:
    """Behaviours whose state, saved and loaded into a new object, is not the state that they had."""
    set_in_tasks = subject.options_in_tasks("behaviour")
    stateful = 0
    for entry, target in subject.loaded("behaviour"):
        name = f"behaviour {entry.id} ({entry.target})"
        has = {hook: hasattr(target, hook) for hook in ("mmrl_save_state", "mmrl_load_state")}
        if not any(has.values()):
            continue
        stateful += 1
        if not all(has.values()):
            (missing,) = [hook for hook, there in has.items() if not there]
            yield f"{name}: has no {missing}, so that a resumed run would not have its state. Add it."
            continue
        options = set_in_tasks.get(entry.id, {})
        if any(o.default is REQUIRED and o.name not in options for o in entry.options().values()):
            continue
        try:
            said = _state_problem(lambda target=target, options=options: target(**options))
        except Exception as error:  # a hook is foreign code
            said = f"raises {type(error).__name__}: {error}"
        if said:
            yield f"{name}: {said}"
    if not stateful:
        raise NothingToCheck("no behaviour of it has a state")


def _state_problem(make: Any) -> str:
    """What is wrong with the state of a behaviour, after some made steps; "" if nothing is."""
    import torch

    first, second = make(), make()
    for step in range(NUM_STEPS):
        _step(first, step)
    saved = first.mmrl_save_state()
    buffer = io.BytesIO()
    try:
        torch.save(saved, buffer)
        loaded = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        return (
            f"its state cannot be kept in a checkpoint: {type(error).__name__}: {reason}. Return numbers, texts, "
            "lists, dicts and tensors from mmrl_save_state."
        )
    second.mmrl_load_state(loaded)
    if not _equal(first.mmrl_save_state(), second.mmrl_save_state()):
        return "what it saves after loading is not what was loaded. Restore all of it in mmrl_load_state."
    told = [_step(behaviour, NUM_STEPS) for behaviour in (first, second)]
    if not _equal(*told) or not _equal(first.mmrl_save_state(), second.mmrl_save_state()):
        return "it goes on otherwise than without a stop. Save everything that its hooks read and change."
    return ""


def _step(behaviour: Any, step: int) -> Any:
    """Calls the hooks of a step on made rollouts; returns what they returned, None from one that needs a real run."""
    import torch

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(_Core(), name=CORE)
    manager.register(behaviour)
    prompts = [Prompt(f"train:{number}", [], {"answer": "a"}, answer="a") for number in (step, step + 1)]
    groups = [make_group(["a", f"step {step}"], num_actions=[3, 2], prompt=prompt) for prompt in prompts]
    scores = make_scores({"accuracy": [1.0, 0.0, 0.5 * step, 1.0]})
    state = TrainState(step=step, stage_step=step)
    config = RunConfig(name="made")
    run = SimpleNamespace(
        config=config, stage=config, state=state, counts=Counter(), reduce_sum=lambda tensor: tensor, environment=None
    )
    resampler = SimpleNamespace(stage_step=step)  # what samples is not made here
    calls: dict[str, dict[str, Any]] = {
        "mmrl_stage_start": {"run": run},
        "mmrl_revise_groups": {"run": run, "groups": groups, "scores": scores, "resampler": resampler},
        "mmrl_shape_rewards": {"run": run, "groups": groups, "scores": scores},
        "mmrl_select_groups": {"run": run, "groups": groups, "scores": scores},
        "mmrl_extend_groups": {"run": run, "groups": groups, "scores": scores},
        "mmrl_step_end": {"run": run, "metrics": {"reward/total": float(torch.nanmean(scores.totals))}},
    }
    told = {}
    for hook, arguments in calls.items():
        try:
            told[hook] = getattr(manager.hook, hook)(**arguments)
        except (MMRLError, AttributeError):  # it needs more than is made here
            told[hook] = None
    return _plain(told), dict(run.counts)


def _plain(value: Any) -> Any:
    """What of the results of hooks can be compared."""
    if hasattr(value, "totals"):
        return value.totals
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else repr(type(value))


def _equal(first: Any, second: Any) -> bool:
    import torch

    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first.nan_to_num(), second.nan_to_num())
    if isinstance(first, Mapping):
        same_keys = isinstance(second, Mapping) and list(first) == list(second)
        return same_keys and all(_equal(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        same = isinstance(second, list | tuple) and len(first) == len(second)
        return same and all(_equal(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)

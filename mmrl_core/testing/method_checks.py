"""Checks of a plugin's losses and advantage stages on small made inputs; those of a task: `algorithm_checks`.

A row of the inputs is unscored, some tokens are not trained, and once the policy has moved on since it sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import MMRLError
from mmrl_core.plugins import Entry
from mmrl_core.testing.makers import make_group, make_loss_inputs, make_reward_view
from mmrl_core.types import Prompt

if TYPE_CHECKING:
    from torch import Tensor

MASK = [[True, True, True], [True, True, False], [True, True, True], [True, False, False]]
ADVANTAGES = (1.0, -1.0, 0.5, -0.5)


def method_problems(entry: Entry, options: Mapping[str, Any], *, is_first: bool = True) -> Iterator[str]:
    """What is wrong with a loss or stage on small made inputs. One that says in words what it lacks is left alone.

    Args:
        is_first: of an advantage stage, whether it gets rewards, NaN where unscored, or advantages of another stage.
    """
    if entry.kind == "advantage":
        yield from _stage_problems(entry, options, is_first)
    elif entry.details.get("unit") == "score":
        yield from _score_loss_problems(entry, options)
    else:
        for is_off_policy in (False, True):
            if problems := list(_loss_problems(entry, options, is_off_policy)):
                yield from problems
                return


def _loss_problems(entry: Entry, options: Mapping[str, Any], is_off_policy: bool) -> Iterator[str]:
    import torch

    from mmrl_core.losses import zero_where_not_trained
    from mmrl_core.plugins.hook_results import check_token_losses

    logprobs = torch.linspace(-2.0, -0.1, 12).reshape(4, 3).requires_grad_()
    generator = torch.Generator().manual_seed(0)

    def drawn(gradient: bool = False) -> Tensor:
        return torch.rand(4, 3, generator=generator).requires_grad_(gradient)

    needs = [name for name in entry.details.get("needs", ()) if name not in ("logprobs", "entropy")]
    inputs = make_loss_inputs(
        logprobs,
        old_logprobs=logprobs.detach() - (0.3 * drawn() if is_off_policy else 0.0),
        advantages=torch.tensor(ADVANTAGES),
        mask=torch.tensor(MASK),
        sampler_logprobs=logprobs.detach() - 0.01,
        ref_logprobs=logprobs.detach() - 0.1 * drawn(),
        entropy=drawn(gradient="entropy" in entry.details.get("needs", ())),
        extras={name: drawn(gradient=True) for name in needs},
        rewards=[1.0, 0.0, 1.0, 0.0],
    )
    frozen = {name: logprobs.detach() - 0.1 * drawn() for name in entry.details.get("frozen", ())}
    inputs = zero_where_not_trained(replace(inputs, frozen_logprobs=frozen))
    where = "with a policy that has moved since it sampled" if is_off_policy else "on-policy"
    result, problem = _called(lambda: entry.load()(inputs, **options), inputs)
    if problem or result is None:
        yield from [f"{where}: {problem}"] if problem else []
        return
    unit = str(entry.details.get("unit", "token"))
    try:
        check_token_losses(result, inputs, "it", unit)
    except MMRLError as error:
        yield f"{where}: {error}"
        return
    losses = result[0]
    trained = losses if unit == "row" else losses.masked_fill(~inputs.mask, 0.0)
    if not bool(torch.isfinite(trained).all()):
        yield f"{where}: returned losses that are not finite. Keep ratios in a range, and never divide by a count of 0."
        return
    (gradient,) = torch.autograd.grad(trained.sum(), logprobs, allow_unused=True)
    if gradient is None or not bool(torch.isfinite(gradient).all()):
        what = "no gradient" if gradient is None else "a gradient that is not finite"
        yield f"{where}: has {what} at inputs.logprobs. Compute the loss from them, and detach nothing but weights."


def _score_loss_problems(entry: Entry, options: Mapping[str, Any]) -> Iterator[str]:
    import torch

    from mmrl_core.methods import ScoreInputs
    from mmrl_core.plugins.hook_results import check_score_loss

    scores = torch.tensor([-1.0, -2.0, -0.5, -1.5], requires_grad=True)
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0])
    inputs = ScoreInputs(
        scores=scores,
        lengths=torch.tensor([3.0, 2.0, 3.0, 1.0]),
        group_ids=torch.tensor([0, 0, 1, 1]),
        rewards=rewards,
        components={name: rewards for name in ("accuracy",)},
        advantages=torch.tensor(ADVANTAGES),
        old_scores=scores.detach() - 0.1,
        frozen_scores={name: scores.detach() - 0.2 for name in entry.details.get("frozen", ())},
        num_groups=2.0,
        num_trajectories=4.0,
        num_tokens=9.0,
    )
    result, problem = _called(lambda: entry.load()(inputs, **options), inputs)
    if problem or result is None:
        yield from [problem] if problem else []
        return
    try:
        check_score_loss(result, "it")
    except MMRLError as error:
        yield str(error)
        return
    (gradient,) = torch.autograd.grad(result[0], scores, allow_unused=True)
    if gradient is None or not bool(torch.isfinite(gradient).all()):
        what = "no gradient" if gradient is None else "a gradient that is not finite"
        yield f"has {what} at inputs.scores. Compute the loss from them."


def _stage_problems(entry: Entry, options: Mapping[str, Any], is_first: bool) -> Iterator[str]:
    import torch

    from mmrl_core.plugins.hook_results import check_advantages

    groups = [make_group(["a", "b", "c"], num_actions=[3, 2, 1], prompt=Prompt(str(n), [], {})) for n in range(2)]
    rows = [row for group in groups for rollout in group.rollouts for row in rollout.rows]
    rewards = [1.0, 0.0, 0.5, 0.0, 1.0, float("nan")]
    view = make_reward_view(
        rewards,
        [0, 0, 0, 1, 1, 1],
        components={"accuracy": rewards},
        mask=torch.tensor([[index < row.num_actions for index in range(3)] for row in rows]),
    )
    stats = {name: torch.full((6, 3), 0.5) for name in entry.details.get("needs", ())}
    view = replace(view, rows=rows, prompts=[group.prompt for group in groups for _ in group.rollouts], stats=stats)
    advantages = view.rewards.clone() if is_first else torch.tensor([0.5, -0.5, 0.0, -0.5, 0.5, 0.0])
    result, problem = _called(lambda: entry.load()(advantages, view, **options), (advantages, view))
    if problem or result is None:
        yield from [problem] if problem else []
        return
    try:
        check_advantages(result, view, "it")
    except MMRLError as error:
        yield f"on rewards of which one is unscored: {error}"


def _called(call: Callable[[], Any], given: Any) -> tuple[Any, str]:
    """The result, None where it says itself what it lacks; and what is wrong, "" if nothing is."""
    before = snapshot(given)
    try:
        result = call()
    except MMRLError:
        return None, ""
    except Exception as error:
        return None, f"raises {type(error).__name__}: {error}"
    if said := changed(before):
        return None, said
    return result, ""


Snapshot = list[tuple[str, "Tensor", "Tensor"]]


def snapshot(given: Any) -> Snapshot:
    """The tensors of what a function is given, as they are now; for `changed`."""
    return [(name, tensor, tensor.detach().clone()) for name, tensor in _tensors("", given)]


def changed(before: Snapshot) -> str:
    """Which tensor is not as it was, and what to do about it; "" if all are."""
    for name, tensor, copy in before:
        if not bool(((tensor == copy) | (tensor.isnan() & copy.isnan())).all()):
            return f"changes {name} in place. What comes after it would read that: make a new tensor."
    return ""


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a dataclass, mapping or tuple, with their names."""
    import torch

    if isinstance(value, torch.Tensor):
        yield name or "its first argument", value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(field.name, getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(f"{name}[{key!r}]", item)
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(name, item)

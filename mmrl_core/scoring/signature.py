"""How a reward function is called, and what in its parameters says that it expects to be called otherwise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from mmrl_core.errors import RewardError
from mmrl_core.plugins.registry import check_options

CALLED_AS = (
    "Rewards are called as (completions, samples, **options), for one prompt at a time: B completions, and B data rows "
    "as mappings. Return B numbers, or None where there is nothing to score."
)

TRL_ARGUMENTS = frozenset(
    ("prompts", "prompt_ids", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
)
"""What TRL passes to a reward by name, beside the columns of the data."""

GOLD_COLUMNS = frozenset(
    ("answer", "answers", "ground_truth", "label", "labels", "reference", "solution", "target", "targets")
)
"""What rewards for TRL often call the column that they compare with; the data here may call it otherwise."""


def check_signature(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a reward takes, and whether it needs, `rollouts`; refuses options, and signatures, that do not fit.

    Raises:
        PluginError: an option is wrong.
        RewardError: it cannot be called with completions and samples, or was written to be called by TRL.
    """
    if sign := sign_of_trl(function):
        raise RewardError(f"reward {name!r} {sign}: written for TRL? {CALLED_AS}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return False, False
    rollouts = signature.parameters.get("rollouts")
    given: dict[str, Any] = {"rollouts": []} if rollouts else {}
    try:
        signature.bind_partial([], [], **given)
    except TypeError as error:
        raise RewardError(f"reward {name!r} cannot be called: {error}. {CALLED_AS}") from error
    check_options("reward", name, function, options)
    try:
        signature.bind([], [], **options, **given)
    except TypeError as error:
        raise RewardError(f"reward {name!r} cannot be called: {error}. {CALLED_AS}") from error
    return rollouts is not None, rollouts is not None and rollouts.default is inspect.Parameter.empty


def sign_of_trl(function: Callable[..., Any], columns: Collection[str] = ()) -> str:
    """What in a reward's parameters says that it expects to be called by TRL; "" if nothing does.

    Args:
        columns: of the data rows. TRL passes each as an argument, so that a second parameter of such a name is one, as
            is one of the usual names for gold beside keywords.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ""
    names = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    if names[:1] == ["prompts"] or (names and names[0] != "completions" and "completions" in names):
        return f"takes {names[0]!r} before 'completions', and would get completions for it"
    if foreign := [name for name in names if name in TRL_ARGUMENTS]:
        return f"takes {foreign[0]!r}, which nobody passes here"
    if len(names) == 1 and len(parameters) > 1:
        return f"takes {names[0]!r} and keywords, and has no place for the data rows"
    if len(names) > 1 and names[1] in columns:
        return f"takes the column {names[1]!r} as its second argument, and would get whole data rows for it"
    if columns and len(parameters) > len(names) > 1 and names[1] in GOLD_COLUMNS:
        return f"takes {names[1]!r} as its second argument, beside keywords, and would get whole data rows for it"
    return ""

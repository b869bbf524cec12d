"""How a reward function is called, and what becomes of one that expects to be called otherwise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import PluginError, RewardError
from mmrl_core.plugins import PEERS, check_options, sign_of_style, styled

if TYPE_CHECKING:
    from mmrl_core.config import RewardConfig

CALLED_AS = (
    "Rewards are called as (completions, samples, **options), for one prompt at a time: B completions, and B data rows "
    "as mappings. Return B numbers, or None where there is nothing to score."
)


def advice(sign: tuple[str, str]) -> str:
    """What to do about a reward that was written for another framework, given what `sign_of_style` found."""
    return f"{sign[1]}: written for {PEERS[sign[0]]}? Set style: {sign[0]}. {CALLED_AS}"


def as_called_here(name: str, function: Callable[..., Any], config: RewardConfig) -> Callable[..., Any]:
    """A reward that is called as (completions, samples, **options), whatever style it was written in.

    Raises:
        RewardError: it cannot be called in the style that the config names, or was written in one that it does not.
    """
    if config.style is None:
        if sign := sign_of_style(function):
            raise RewardError(f"reward {name!r} {advice(sign)}")
        return function
    try:
        return styled(function, config.style, config.columns, config.result)
    except PluginError as error:
        raise RewardError(f"reward {name!r}: {error}") from error


def check_signature(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> tuple[set[str], bool]:
    """What a reward takes of `rollouts` and `prompts`, and whether it needs rollouts; refuses options that do not fit.

    Raises:
        PluginError: an option is wrong.
        RewardError: it cannot be called with completions and samples.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return set(), False
    rollouts = signature.parameters.get("rollouts")
    taken = {"rollouts", "prompts"} & signature.parameters.keys()
    given: dict[str, Any] = {key: [] for key in taken}
    try:
        signature.bind_partial([], [], **given)
    except TypeError as error:
        raise RewardError(f"reward {name!r} cannot be called: {error}. {CALLED_AS}") from error
    check_options("reward", name, function, options)
    try:
        signature.bind([], [], **options, **given)
    except TypeError as error:
        raise RewardError(f"reward {name!r} cannot be called: {error}. {CALLED_AS}") from error
    return taken, rollouts is not None and rollouts.default is inspect.Parameter.empty

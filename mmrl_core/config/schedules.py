"""Options that change over a stage: `clip_high: {from: 0.4, to: 0.2, steps: 100, kind: cosine}`."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from mmrl_core.config.component import Component, Strict
from mmrl_core.config.numbers import Count, Factor

SCHEDULED_KINDS = frozenset({"advantage", "loss"})
"""Kinds of components whose options may follow a schedule: they are called in each step."""


class Schedule(Strict):
    """A number that moves from one value to another over the first steps of a stage, and then stays."""

    start: Factor = Field(alias="from", description="value at the first step")
    to: Factor = Field(description="value after `steps` steps")
    steps: Count = Field(description="steps that it takes")
    kind: Literal["linear", "cosine", "step"] = Field("linear", description="step: jumps at the end")

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.start == self.to:
            raise ValueError(f"from and to are both {self.to:g}: write the number")
        return self

    def at(self, step: int) -> float:
        """The value in a step of the stage, 0 for the first.

        >>> [Schedule(**{"from": 1.0, "to": 0.0, "steps": 4}).at(step) for step in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
        """
        share = min(step / self.steps, 1.0)
        if self.kind == "cosine":
            share = (1.0 - math.cos(math.pi * share)) / 2.0
        elif self.kind == "step":
            share = math.floor(share)
        return self.start + (self.to - self.start) * share


def is_schedule(value: Any) -> bool:
    """Whether an option is written as a schedule, sound or not."""
    return isinstance(value, dict) and {"from", "to"} <= value.keys()


def read_schedule(value: Any) -> Schedule:
    """
    Raises:
        ValueError: says what is wrong with it.
    """
    try:
        return Schedule.model_validate(value)
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(map(str, found["loc"]))
        raise ValueError(f"{where}: {found['msg']}" if where else str(found["msg"])) from error


def current(component: Component, step: int) -> Component:
    """The component with its scheduled options as they are in a step of the stage, 0 for the first."""
    options = component.options
    moving = {key: read_schedule(value).at(step) for key, value in options.items() if is_schedule(value)}
    return component.model_copy(update=moving) if moving else component


def ends(options: dict[str, Any]) -> list[dict[str, Any]]:
    """The options at the start and the end of their schedules; the options alone where none has one.

    Raises:
        ValueError: a schedule is wrong; names the option.
    """
    moving = {}
    for key, value in options.items():
        if is_schedule(value):
            try:
                moving[key] = read_schedule(value)
            except ValueError as error:
                raise ValueError(f"schedule of option {key!r}: {error}") from error
    if not moving:
        return [options]
    return [
        options | {key: schedule.start for key, schedule in moving.items()},
        options | {key: schedule.to for key, schedule in moving.items()},
    ]

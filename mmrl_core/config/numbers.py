"""Numbers of the schema and of options: every one is finite and has a range in which it makes sense."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator

LARGEST = 1e12
"""Of factors: the square of a larger one, as a step computes it, may overflow float32."""

MOST = 1_000_000_000
"""Of what is counted. Ten digits are a slip of the keyboard, and sums of these counts stay in 64 bits."""

Count = Annotated[int, Ge(1), Le(MOST)]
CountOrZero = Annotated[int, Ge(0), Le(MOST)]
Factor = Annotated[float, Ge(-LARGEST), Le(LARGEST)]
PositiveFactor = Annotated[float, Gt(0.0), Le(LARGEST)]
FactorOrZero = Annotated[float, Ge(0.0), Le(LARGEST)]
Share = Annotated[float, Ge(0.0), Le(1.0)]
OneOrMore = Annotated[float, Ge(1.0), Le(LARGEST)]

Seconds = Annotated[float, Ge(0.001), Le(1e6)]
"""A time limit: a timer of less than a microsecond never fires, one of more than 292 years cannot be set."""

SamplingTemperature = Annotated[float, Ge(0.001), Le(1000.0)]
"""Logits are divided by it: by less they overflow, by more every token is as likely as any other."""


def _greedy_or_sampled(temperature: float) -> float:
    if 0.0 < temperature < 0.001:
        raise ValueError(f"a temperature is 0, which is greedy, or at least 0.001; got {temperature:g}")
    return temperature


EvaluationTemperature = Annotated[float, Ge(0.0), Le(1000.0), AfterValidator(_greedy_or_sampled)]

Beta = Annotated[float, Ge(0.0), Lt(1.0)]
"""A decay rate. At 1 an average forgets nothing and learns nothing."""

Epsilon = Annotated[float, Ge(1e-30), Le(1.0)]
"""Added to what is divided by. Less than 1e-30 is 0 in float32, with NaN for a parameter without a gradient."""

FrameRate = Annotated[float, Ge(1e-6), Le(1000.0)]
Frames = Annotated[int, Ge(2), Le(MOST)]
Epochs = Annotated[float, Gt(0.0), Le(1e6)]

Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
"""As large as numpy's generator takes it."""

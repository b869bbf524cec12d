"""95 % intervals of held-out numbers: how far they would move if other rows had been held out.

A mean over rows has Wilson's interval where all values are 0 or 1, else the mean plus and minus 1.96 standard errors. A
benchmark metric, such as an average precision, is no mean over rows: its interval is plus and minus 2.26 standard
errors of the delete-a-group jackknife, for which the metric is computed again with a tenth of the rows left out, ten
times (Shao and Wu 1989, Annals of Statistics 17).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from mmrl_core.config import RunConfig, parts_of
from mmrl_core.scoring import own_copy

if TYPE_CHECKING:
    from torch import Tensor

    from mmrl_core.config import PartConfig
    from mmrl_core.plugins import Entry, Registry
    from mmrl_core.types import RolloutGroup, Scores

Z = 1.959963984540054  # of the normal distribution, for 95 %
T = 2.262157162740992  # of Student's distribution with 9 degrees of freedom, one below the number of folds
NUM_FOLDS = 10
MIN_ROWS = 2 * NUM_FOLDS  # fewer say nothing about the spread of a metric
MAX_FOLD_S = 3.0
"""A metric that takes longer has no interval, for an evaluation would take ten times as long."""

Interval = tuple[float, float]


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Interval of the mean of finite values, one for each row; None for fewer than two.

    >>> [round(edge, 3) for edge in mean_interval([1.0] * 8 + [0.0] * 2)]
    [0.49, 0.943]
    """
    n = len(values)
    if n < 2:
        return None
    mean = fmean(values)
    if all(value in (0.0, 1.0) for value in values):
        scale, square = 1 / (1 + Z * Z / n), Z * Z / n
        centre = (mean + square / 2) * scale
        reach = Z * math.sqrt(mean * (1 - mean) / n + square / (4 * n)) * scale
        return (0.0 if mean == 0 else centre - reach), (1.0 if mean == 1 else centre + reach)
    reach = Z * stdev(values) / math.sqrt(n)
    return (mean - reach, mean + reach) if reach else None  # equal values: the spread is unknown


def metric_intervals(measure: Callable[[Sequence[int]], Mapping[str, float]], num_rows: int) -> dict[str, Interval]:
    """Intervals of metrics that are computed of all rows together.

    A metric has none where it is not finite, where leaving out rows moves it all one way, as it does a sum, or where a
    part of the rows cannot be measured.

    Args:
        measure: the metrics of some rows, given their positions.
    """
    if num_rows < MIN_ROWS:
        return {}
    rows, folds = range(num_rows), []
    try:
        whole = measure(rows)
        for fold in range(NUM_FOLDS):
            started = time.perf_counter()
            folds.append(measure([row for row in rows if row % NUM_FOLDS != fold]))
            if time.perf_counter() - started > MAX_FOLD_S:
                return {}
    except Exception:  # a metric need not stand every part of its rows
        return {}
    found = {}
    for name, value in whole.items():
        without = [float(metrics[name]) for metrics in folds if name in metrics]
        if len(without) < NUM_FOLDS or not all(map(math.isfinite, [value, *without])):
            continue
        if abs(fmean(without) - value) > 0.5 * abs(value) / NUM_FOLDS + 1e-9:
            continue  # a sum loses a tenth of itself
        if interval := _jackknifed(value, without, num_rows):
            found[name] = interval
    return found


def _jackknifed(value: float, without: Sequence[float], num_rows: int) -> Interval | None:
    """Of a metric that is `value`, and the numbers `without` each tenth of the rows; None if these are all the same.

    A metric that is a whole number of rows over all rows, also without each tenth, is a share, and has Wilson's
    interval. One that is never negative has no negative edge.
    """
    error = math.sqrt((NUM_FOLDS - 1) / NUM_FOLDS * sum((one - fmean(without)) ** 2 for one in without))
    if error <= 1e-12 * abs(value):  # the spread is unknown
        return None
    folds = [(num_rows - fold + NUM_FOLDS - 1) // NUM_FOLDS for fold in range(NUM_FOLDS)]  # rows left out
    counts = [value * num_rows, *(one * (num_rows - left) for one, left in zip(without, folds, strict=True))]
    if 0 <= value <= 1 and all(abs(count - round(count)) < 1e-6 for count in counts):
        right = round(counts[0])
        return mean_interval([1.0] * right + [0.0] * (num_rows - right))
    low, high = value - T * error, value + T * error
    return (max(low, 0.0) if min(value, *without) >= 0 else low), high


def held_out_intervals(
    config: RunConfig, registry: Registry, groups: Sequence[RolloutGroup], scores: Scores, temperature: float
) -> dict[str, Interval]:
    """Intervals of an evaluation, by the names that its metrics have: rewards, lengths and benchmark metrics.

    Several samples of a prompt are one row, with their mean.

    Args:
        groups: all held-out prompts with their rollouts.
        scores: of exactly these rollouts.
    """
    prefix = "greedy" if temperature == 0 else f"t{temperature:g}"
    apart, found = scores.split(groups), {}
    for part in parts_of(config):
        places = [place for place, group in enumerate(groups) if group.prompt.part == part.name]
        own, start = [groups[place] for place in places], f"{part.name}/" if part.name else ""
        columns = {"reward/total": [_mean_of(apart[place].totals) for place in places]}
        for reward in part.rewards:
            key = f"{start}{reward.key}"
            columns[f"reward/{reward.key}"] = [_mean_of(apart[place].components[key]) for place in places]
        columns["completion_tokens"] = [fmean(rollout.num_actions for rollout in group.rollouts) for group in own]
        for name, values in columns.items():
            interval = mean_interval([value for value in values if math.isfinite(value)])
            if interval is not None:
                found[f"{prefix}/{start}{name}"] = interval
        of_metrics = _benchmark_intervals(part, registry, own)
        found |= {f"{prefix}/{start}{name}": interval for name, interval in of_metrics.items()}
    return found


def _mean_of(values: Tensor) -> float:
    return float(values.nanmean())


def _benchmark_intervals(part: PartConfig, registry: Registry, groups: Sequence[RolloutGroup]) -> dict[str, Interval]:
    """Of the metrics of a part, which read the first rollout of each group."""
    found: dict[str, Interval] = {}
    for metric in part.metrics:
        measure = partial(_measured, registry.get("metric", metric.name), metric.options, groups)
        found |= metric_intervals(measure, len(groups))
    return found


def _measured(
    entry: Entry, options: Mapping[str, Any], groups: Sequence[RolloutGroup], rows: Sequence[int]
) -> Mapping[str, float]:
    """A metric of some rows, computed as an evaluation does."""
    chosen = [groups[row] for row in rows]
    completions = [group.rollouts[0].completion for group in chosen]
    samples = [{**group.prompt.sample, **group.rollouts[0].outcome} for group in chosen]
    return entry.call(own_copy(completions), own_copy(samples), options=options)

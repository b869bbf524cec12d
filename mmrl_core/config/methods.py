"""What the components of a stage have to agree on: who occupies which place, and what a group needs.

An entry may be registered with ``claims=("place", ...)``; two entries of a stage with the same claim would undo each
other. An advantage stage or loss with ``baseline="own"`` needs no group to compare with.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmrl_core.config.component import Component
from mmrl_core.config.schema import RunConfig, StageConfig
from mmrl_core.errors import MMRLError
from mmrl_core.plugins import Plugins, is_behaviour
from mmrl_core.plugins.registry import Entry


def method_problems(config: RunConfig, plugins: Plugins) -> Iterator[str]:
    """What is wrong with how the methods of a sound config go together, one line each."""
    for index, stage in enumerate(config.stages):
        if stage.kind != "grpo":
            continue
        try:
            entries = entries_in_order(config, stage, plugins)
        except MMRLError:  # an entry that is missing is reported by its name
            continue
        where = config.where("stages", index, "algorithm")
        yield from (f"{where}: {problem}" for problem in _conflicts(entries))
        loss = next(entry for entry in entries if entry.kind == "loss")
        algorithm = stage.algorithm
        if loss.details.get("unit") == "score":
            wrong = [name for name in ("importance_correction", "off_policy_threshold") if getattr(algorithm, name)]
            if wrong:
                yield (
                    f"{where}: loss {algorithm.loss.name!r} compares trajectories and has no ratios of tokens, so "
                    f"{' and '.join(wrong)} would do nothing. Set it to null."
                )
        if stage.group_size == 1 and not any(entry.details.get("baseline") == "own" for entry in entries):
            yield (
                f"{config.where('stages', index, 'group_size')}: group_size is 1: a group of one has no baseline, so "
                "every advantage would be 0. Set group_size to 2 or more, or choose an advantage stage that brings a "
                "baseline of its own."
            )


def entries_in_order(config: RunConfig, stage: StageConfig, plugins: Plugins) -> list[Entry]:
    """Behaviours, advantage stages and loss of a stage, in the order in which they are asked.

    Raises:
        PluginError: one is not installed.
    """
    named: list[tuple[str, Component]] = [("behaviour", item) for item in config.plugins if is_behaviour(item.name)]
    named += [("advantage", item) for item in stage.algorithm.advantage]
    named.append(("loss", stage.algorithm.loss))
    return [plugins.registry.get(kind, component.name) for kind, component in named]


def _conflicts(entries: list[Entry]) -> Iterator[str]:
    taken: dict[str, Entry] = {}
    for entry in entries:
        for place in entry.details.get("claims", ()):
            if (other := taken.setdefault(place, entry)) is not entry:
                yield (
                    f"{other.kind} {other.id!r} and {entry.kind} {entry.id!r} both decide {place!r}, so one would undo "
                    "the other. Take one of them out."
                )

"""What the checks and the preview share: findings, and the sections of a config that have data of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mmrl_core.config import PartConfig, RolloutConfig, RunConfig, StageConfig, check_components, parts_of
from mmrl_core.conversation import make_environment
from mmrl_core.data import PromptSource
from mmrl_core.errors import MMRLError
from mmrl_core.plugins import Plugins
from mmrl_core.scoring import RewardRunner

MAX_SHOWN = 5  # rows that one finding names

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        ok: whether it passed.
        what: the sentence that `mmrl check` prints.
        tolerable: whether a run could go on although it failed.
        doubtful: passed, but something that is often a fault; the sentence says what it does to a run.
        skipped: nothing was tried; the sentence says why.
        property: name of the property of `mmrl_core.testing.conformance` that it is about; "" of none.
    """

    ok: bool
    what: str
    tolerable: bool = False
    doubtful: bool = False
    skipped: bool = False
    property: str = ""


@dataclass(frozen=True)
class Section:
    """What is checked together: the task of a stage, of the evaluation, or of a config without stages.

    A mixture gives a section for each part; `parts` are all its parts.
    """

    name: str
    part: PartConfig
    splits: Sequence[Split]
    rollout: RolloutConfig
    parts: Sequence[PartConfig]

    def open(self, plugins: Plugins, split: Split) -> PromptSource:
        """The rows of a split; each broken one is looked at, however many there are."""
        data = self.part.data.model_copy(update={"max_broken": 1.0})
        environment = make_environment(self.rollout, self.parts, plugins)
        return PromptSource.of_part(plugins, self.part.model_copy(update={"data": data}), split, environment)


def sections(config: RunConfig) -> Iterator[Section]:
    """The training data of each stage, then the held-out data; of a config without stages its own."""
    if not config.stages:
        yield from _parts("", config, ("train", "held_out"))
        return
    for number, stage in enumerate(config.stages, start=1):
        yield from _parts(f"stage {stage.name or f'{stage.kind} {number}'}: ", stage, ("train",))
    if any(part.data.held_out is not None for part in parts_of(config)):  # evaluations read those of the top
        yield from _parts("", config, ("held_out",))


def _parts(name: str, section: RunConfig | StageConfig, splits: Sequence[Split]) -> Iterator[Section]:
    parts = parts_of(section)
    for part in parts:
        where = f"{name}part {part.name}: " if part.name else name
        own = tuple(split for split in splits if getattr(part.data, split) is not None)
        target = (part.target or section.target) if isinstance(section, StageConfig) and section.kind == "sft" else None
        if target is not None:
            # Its gold completion is one to imitate, not one that the rewards were made for.
            imitated = part.prompt.model_copy(update={"answer": target})
            part = part.model_copy(update={"prompt": imitated, "rewards": []})
        yield Section(where, part, own, section.rollout, parts)


def component_findings(config: RunConfig, plugins: Plugins) -> list[Finding]:
    """Whether everything that the config names is installed and takes its options; a finding for each problem."""
    try:
        check_components(config, plugins)
        for section in sections(config):
            RewardRunner(plugins, section.part.rewards)
    except MMRLError as error:
        return [Finding(False, line) for line in str(error).splitlines() if line.strip()]
    return [Finding(True, "everything that the config names is installed and takes its options")]


def some(ids: Sequence[str]) -> str:
    """The first `MAX_SHOWN` ids, and how many more there are."""
    more = f" and {len(ids) - MAX_SHOWN} more" if len(ids) > MAX_SHOWN else ""
    return ", ".join(ids[:MAX_SHOWN]) + more

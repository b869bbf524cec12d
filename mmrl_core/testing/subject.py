"""The plugin that is checked: its entries, files and tasks, and the rows of those whose data are here."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmrl_core.config import RunConfig, load_config, parts_of
from mmrl_core.config.schema import Component, SourceConfig
from mmrl_core.data import PromptSource
from mmrl_core.errors import MMRLError
from mmrl_core.plugins import KINDS, Entry, Plugin, Plugins, TaskEntry
from mmrl_core.testing.reward_checks import reward_findings
from mmrl_core.testing.sections import Finding, Section, Split, sections
from mmrl_core.testing.source_case import SourceCase, medium_bytes
from mmrl_core.types import Prompt

NUM_ROWS = 4  # read of each source, and made by one that has an option `num_rows`


class NothingToCheck(Exception):
    """A property has nothing to hold for; the message is why it is skipped."""


@dataclass(frozen=True)
class Shown:
    """Rows of a task that could be read: those that its source makes, or those of a case.

    Attributes:
        where: task, stage and split, for messages.
        source: the config of the source.
        opened: the source as a run opens it.
        prompts: those of the first rows that are sound.
    """

    where: str
    section: Section
    split: Split
    source: SourceConfig
    opened: PromptSource
    prompts: Sequence[Prompt]


class Subject:
    """A plugin and all that properties ask of it, each found once."""

    def __init__(
        self, name: str, plugins: Plugins, folder: Path, cases: Mapping[str, Sequence[SourceCase]] | None = None
    ) -> None:
        """
        Args:
            name: of an installed plugin.
            folder: empty, for the files of cases.
            cases: id of a source -> data sets of one row in its form.

        Raises:
            PluginError: no such plugin is installed.
        """
        if name not in plugins.plugins:
            plugins.require(name)  # raises, with the nearest name
        self.name = name
        self.plugins = plugins
        self.folder = folder
        self.cases = {key: tuple(found) for key, found in (cases or {}).items()}
        self.not_here: list[str] = []
        self.faults: list[str] = []

    @property
    def plugin(self) -> Plugin:
        return self.plugins.plugins[self.name]

    def entries(self, *kinds: str) -> list[Entry]:
        """What the plugin registers, of these kinds or of all.

        Raises:
            NothingToCheck: it registers nothing of these kinds.
        """
        found = [
            entry
            for kind in (kinds or KINDS)
            for entry in self.plugins.registry.entries(kind)
            if entry.id.partition("/")[0] == self.name
        ]
        if not found:
            raise NothingToCheck(f"it registers no {' or '.join(kinds) or 'entry'}")
        return found

    def loaded(self, *kinds: str) -> list[tuple[Entry, Any]]:
        """Entries with what they load; those that cannot be imported are left out, their own property says so."""
        found = []
        for entry in self.entries(*kinds):
            try:
                found.append((entry, entry.load()))
            except MMRLError:
                continue
        return found

    @functools.cached_property
    def package(self) -> Path | None:
        """Folder of the plugin's package, or its file; None of a module without one."""
        file = getattr(self.plugin.module, "__file__", None)
        if file is None:
            return None
        return Path(file).parent if Path(file).name == "__init__.py" else Path(file)

    @functools.cached_property
    def files(self) -> dict[Path, ast.Module]:
        """The plugin's Python files, parsed.

        Raises:
            NothingToCheck: its source is not there.
        """
        if self.package is None:
            raise NothingToCheck("its source is not there")
        paths = sorted(self.package.rglob("*.py")) if self.package.is_dir() else [self.package]
        return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}

    @functools.cached_property
    def tasks(self) -> list[TaskEntry]:
        """Its task definitions.

        Raises:
            NothingToCheck: it has none.
        """
        if not (found := [task for task in self.plugins.tasks.values() if task.plugin == self.name]):
            raise NothingToCheck("it has no task")
        return found

    @functools.cached_property
    def configs(self) -> dict[str, RunConfig]:
        """The configs of its tasks by id; those that do not load are left out, their own property says so."""
        found = {}
        for task in self.tasks:
            try:
                found[task.id] = load_config(str(task.path))
            except MMRLError:
                continue
        return found

    @functools.cached_property
    def shown(self) -> list[Shown]:
        """Rows of its tasks, each kind of rows once.

        `not_here` says which tasks have none on this machine, `faults` which raised what no source may raise.

        Raises:
            NothingToCheck: none of its tasks has data here.
        """
        found: list[Shown] = []
        seen: list[Any] = []
        self.not_here.clear()
        self.faults.clear()
        for task, config in self.configs.items():
            for section in sections(config):
                for split in section.splits:
                    source = self._source(task, getattr(section.part.data, split))
                    key = (source, section.part.prompt, section.part.rewards)
                    if key in seen:
                        continue
                    seen.append(key)
                    found += self._open(f"{task}: {section.name}data.{split}", section, split, source)
        if not found and not self.faults:
            raise NothingToCheck(f"no data of its tasks are here{self._why_none()}")
        return found

    def _why_none(self) -> str:
        return f" ({self.not_here[0]})" if self.not_here else ""

    def _source(self, task: str, config: SourceConfig) -> SourceConfig:
        """The source of a case instead, if there is one for the task; else no more rows than are read."""
        cases = list(enumerate(self.cases.get(config.name, ())))
        fitting = [found for found in cases if task in found[1].tasks] or [c for c in cases if not c[1].tasks]
        for number, case in fitting[:1]:
            return SourceConfig(name=config.name, split=case.split, **self.written(config.name, number))
        if isinstance(config.options.get("num_rows"), int):
            return config.model_copy(update={"num_rows": min(NUM_ROWS, config.options["num_rows"])})
        return config

    @functools.cache  # noqa: B019 - a subject lives as long as its check
    def written(self, source: str, number: int) -> dict[str, Any]:
        """Options of a source for the case of this number, whose files are written."""
        case = self.cases[source][number]
        folder = self.folder / source.replace("/", "-") / str(number)
        folder.mkdir(parents=True)
        if case.kind is not None:
            (folder / case.medium).write_bytes(medium_bytes(case.kind))
        return case.write(folder, case.medium)

    def _open(self, where: str, section: Section, split: Split, source: SourceConfig) -> Iterator[Shown]:
        part = section.part
        data = part.data.model_copy(update={split: source, "media_root": None})
        section = replace(section, part=part.model_copy(update={"data": data}))
        try:
            opened = section.open(self.plugins, split)
            found = [opened.prompt(index) for index in range(min(NUM_ROWS, len(opened)))]
        except MMRLError as error:
            self.not_here.append(f"{where}: {(str(error).splitlines() or [''])[0]}")
            return
        except Exception as error:  # a source is foreign code
            self.faults.append(f"{where}: source {source.name!r} raised {type(error).__name__}: {error}")
            return
        prompts = [prompt for prompt in found if prompt is not None]
        yield Shown(where, section, split, source, opened, prompts)

    @functools.cached_property
    def reward_findings(self) -> list[Finding]:
        """What `mmrl check` finds of the rewards of its tasks, on rows that could be read.

        Raises:
            NothingToCheck: no data are here, or no task has a reward.
        """
        found: list[Finding] = []
        for shown in self.shown:
            if shown.prompts and shown.section.part.rewards:
                named = replace(shown.section, name=f"{shown.where}: ")
                found += reward_findings(named, shown.prompts, self.plugins)
        if not found:
            raise NothingToCheck("no reward could be tried on rows of its tasks")
        return found

    def options_in_tasks(self, kind: str) -> dict[str, dict[str, Any]]:
        """Id of an entry -> options that one of its tasks sets; of rewards, metrics, views and behaviours."""
        found: dict[str, dict[str, Any]] = {}
        try:
            configs = list(self.configs.values())
        except NothingToCheck:
            return {}
        for config in configs:
            for component in _named(kind, config):
                found.setdefault(component.name, component.options)
        return found


def _named(kind: str, config: RunConfig) -> Iterator[Component]:
    """The components of a kind that a config names."""
    if kind == "behaviour":
        yield from config.plugins
    elif kind == "view":
        yield from [config.log.view] if config.log.view is not None else []
    else:
        for part in parts_of(config):
            yield from part.rewards if kind == "reward" else part.metrics

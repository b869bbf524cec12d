"""Properties of the task definitions that a plugin ships."""

from __future__ import annotations

from collections.abc import Iterator

from mmrl_core.config import RunConfig, load_config, parts_of
from mmrl_core.errors import MMRLError
from mmrl_core.plugins import presets
from mmrl_core.testing.subject import NothingToCheck, Subject

COMBINED = ("algorithm/grpo", "algorithm/dapo")
"""Presets that fit every policy, and that any task may be extended with."""


def parse(subject: Subject) -> Iterator[str]:
    """What is wrong with the YAML of each task."""
    for task in subject.tasks:
        try:
            load_config(str(task.path))
        except MMRLError as error:
            yield str(error)  # names the task, or file and line


def are_registered(subject: Subject) -> Iterator[str]:
    """YAML files in a folder `tasks` that no entry point names."""
    if subject.package is None or not subject.package.is_dir():
        raise NothingToCheck("its source is not there")
    files = sorted(subject.package.rglob("tasks/*.yaml"))
    if not files:
        raise NothingToCheck("it has no task")
    named = set()
    for task in subject.plugins.tasks.values():
        try:
            named.add(task.path.resolve())
        except MMRLError:  # `parse` says so
            continue
    for file in files:
        if file.resolve() not in named:
            yield (
                f"{file.relative_to(subject.package.parent)}: no entry point names it, so nobody can find it. Add "
                f'`{file.stem} = "..."` to [project.entry-points."mmrl.tasks"] in pyproject.toml, and install again.'
            )


def take_presets(subject: Subject) -> Iterator[str]:
    """Tasks that cannot be extended together with a preset of the core."""
    known = [name for name in COMBINED if name in presets()]
    for task in subject.configs:
        for preset in known:
            recipe = subject.folder / "recipe.yaml"
            recipe.write_text(f"extends: [{task}, {preset}]\nname: recipe\n", encoding="utf-8")
            try:
                load_config(str(recipe))
            except MMRLError as error:
                yield f"task {task} with preset {preset}: {error}"


def have_gold_answers(subject: Subject) -> Iterator[str]:
    """Tasks whose rewards could be proved on gold answers, and that have none."""
    if not subject.configs:
        raise NothingToCheck("none of its tasks loads")
    for task, config in subject.configs.items():
        for part in parts_of(config):
            if not part.prompt.answer and _pays_for_text(subject, config):
                yield (
                    f"task {task}: has no gold answer, so that nothing shows that its rewards pay for the right one. "
                    "Set prompt.answer to a template such as '{answer}'."
                )


def _pays_for_text(subject: Subject, config: RunConfig) -> bool:
    """Whether a reward of the task reads text and has a maximum, which a gold answer would score."""
    for part in parts_of(config):
        for reward in part.rewards:
            details = subject.plugins.registry.get("reward", reward.name).details
            if details.get("reads", "text") == "text" and details.get("maximum", 1.0) is not None:
                return True
    return False

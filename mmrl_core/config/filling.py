"""Inheritance between sections: stages from the top of the config, parts of a mixture from their tasks.

**Stages** inherit the sections `STAGE_SECTIONS` from the top of the config, under their own. **Parts** of a `mixture`
inherit what `PART_INHERITS` lists in the same way, from the task that their key `task` names, or else from the section
that has the mixture.
"""

from __future__ import annotations

from pathlib import Path

from mmrl_core.config.layers import PART_INHERITS, Layers
from mmrl_core.config.limits import MAX_SECTIONS
from mmrl_core.config.merge import PART, RUN, merge, short_name
from mmrl_core.config.nodes import Node, Problems, items_of
from mmrl_core.config.schema import STAGE_SECTIONS
from mmrl_core.errors import ConfigError


def refuse_too_many_sections(root: Node) -> None:
    """Raises ConfigError where filling would take minutes, before it begins."""
    stages, parts = (root.value.get(key) for key in ("stages", "mixture"))
    number = max(1, len(items_of(stages))) * (1 + len(items_of(parts)))
    if number > MAX_SECTIONS:
        at = stages if stages is not None else root
        raise ConfigError(f"{at.mark}: {number:,} stages and parts of mixtures are more than {MAX_SECTIONS:,}.")


def fill_stages(root: Node, problems: Problems) -> Node:
    """Give each stage the sections of the top, under its own."""
    stages = root.value.get("stages")
    if stages is None or not isinstance(stages.value, list):
        return root
    filled = []
    for stage in stages.value:
        if isinstance(stage.value, dict):
            top = {key: root.value[key] for key in STAGE_SECTIONS if key in root.value}
            filled.append(Node(merge(Node(top, stage.mark), stage, RUN, problems).value, stage.mark))
        else:
            filled.append(stage)
    return Node({**root.value, "stages": Node(filled, stages.mark)}, root.mark)


def fill_mixtures(root: Node, layers: Layers) -> Node:
    """Give each part of each mixture what it takes from its task, or from its section, under its own."""
    root = _fill_mixture(root, layers)
    stages = root.value.get("stages")
    if stages is None or not isinstance(stages.value, list):
        return root
    filled = [_fill_mixture(stage, layers) if isinstance(stage.value, dict) else stage for stage in stages.value]
    return Node({**root.value, "stages": Node(filled, stages.mark)}, root.mark)


def _fill_mixture(section: Node, layers: Layers) -> Node:
    mixture = section.value.get("mixture")
    if mixture is None or not isinstance(mixture.value, list):
        return section
    filled = [_fill_part(part, section, layers) if isinstance(part.value, dict) else part for part in mixture.value]
    parts = [part for part in filled if part is not None]
    return Node({**section.value, "mixture": Node(parts, mixture.mark)}, section.mark)


def _fill_part(part: Node, section: Node, layers: Layers) -> Node | None:
    """None if its task cannot be read, which is noted."""
    task = part.value.get("task")
    values = {**part.value, "task": Node(None, part.mark)}  # filled, it takes nothing from anywhere any more
    if task is not None and task.value is None:
        section = Node({}, task.mark)
    elif task is not None:
        path = layers.find(task, Path(task.mark.source), "task")
        if path is None:
            return None
        section = layers.read_file(path)
        if "mixture" in section.value:
            layers.problems.add_unreadable(task.mark, f"{task.value} is a mixture itself: name its parts instead.")
            return None
        values.setdefault("name", Node(short_name(task.value), task.mark))
    found = {key: section.find(place) for key, place in PART_INHERITS.items()}
    base = {key: node for key, (node, walked) in found.items() if walked == PART_INHERITS[key]}
    return merge(Node(base, part.mark), Node(values, part.mark), PART, layers.problems)

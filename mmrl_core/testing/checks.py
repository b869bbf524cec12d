"""Look at a task before a run does: `mmrl check TASK`.

No model is loaded. Only the processor of a model that lies on this machine is, to count the tokens of prompts.
"""

from __future__ import annotations

from typing import Any

from mmrl_core.config import RunConfig
from mmrl_core.data import PromptSource
from mmrl_core.errors import MMRLError
from mmrl_core.plugins import Plugins, load_plugins
from mmrl_core.testing.algorithm_checks import algorithm_findings
from mmrl_core.testing.prompt_cost import length_findings, load_preview
from mmrl_core.testing.reward_checks import reward_findings
from mmrl_core.testing.row_checks import further_row_findings
from mmrl_core.testing.sections import Finding, Section, Split, component_findings, sections, some
from mmrl_core.types import Prompt

NUM_ROWS = 32  # rows read of each source


def check_task(config: RunConfig, plugins: Plugins | None = None) -> list[Finding]:
    """Check a task without a model.

    The promise: everything that the config names exists and takes its options; the data sources load; the first
    `NUM_ROWS` rows of each can be read, with their media, and every one that cannot is named with file and reason; of
    the others, up to `row_checks.MAX_LOOKED` of them, nothing is broken that shows without decoding media; each
    reward gives the gold answer its maximum (the detail `maximum` of its registration, 1.0 if it declares none; None is
    "has none", which a function from a file has unless it has an attribute `maximum`); and on each completion in
    `HOSTILE` it gives, within its time, the same finite number twice, not above its maximum, or leaves it unscored, and
    does not raise. A reward that is registered with the detail `reads` gets hostile pictures or videos, see
    `hostile_completions`. Advantage stages and losses that are not the core's return what a step takes, on a made step
    with the group size of their stage; they are not called where the run has `plugins`, which may change a step. If the
    model is a language model and lies on this machine, the prompts read, and those of the others with the longest
    texts, are not longer than `model.max_prompt_tokens`, and its chat template reads the options in `prompt.template`.

    Args:
        config: the resolved config. The stages are checked, each where it differs from those before, and the held-out
            rows; a config without stages as it is.
        plugins: what is installed; default: `load_plugins()`.

    Returns:
        Findings, in that order. A task is sound if all are `ok`.
    """
    plugins = load_plugins() if plugins is None else plugins
    findings = component_findings(config, plugins)
    if any(not finding.ok for finding in findings):
        return findings  # what follows would only repeat it
    encoder = load_preview(config.model, plugins, findings)
    read: list[tuple[Any, list[Prompt]]] = []  # what makes the prompts of a source, and the prompts
    judged: list[Any] = []
    for section in sections(config):
        prompts: list[Prompt] = []
        part = section.part
        for split in section.splits:
            limits = (part.data.media_root, part.data.max_image_pixels, part.data.image_formats)
            made_of = (getattr(part.data, split), limits, part.prompt)
            if all(made_of != other for other, _ in read):
                read.append((made_of, _data_findings(section, split, plugins, encoder, findings)))
            prompts += next(known for other, known in read if made_of == other)
        if prompts and (section.splits, part.data, part.prompt, part.rewards) not in judged:
            judged.append((section.splits, part.data, part.prompt, part.rewards))
            findings += reward_findings(section, prompts, plugins)
    findings += algorithm_findings(config, [prompt for _, prompts in read for prompt in prompts], plugins)
    if not read:
        findings.append(Finding(False, "no data: set data.train, at the top or in a stage"))
    return findings


def _longest_prompts(source: PromptSource) -> list[Prompt]:
    """Prompts of the rows that were only looked at, those with the longest texts."""
    try:
        return [prompt for index in source.longest_looked if (prompt := source.prompt(index)) is not None]
    except MMRLError:  # too many of them are broken in their media; those read before have shown what is wrong
        return []


def _data_findings(
    section: Section,
    split: Split,
    plugins: Plugins,
    encoder: Any,
    findings: list[Finding],
) -> list[Prompt]:
    """The prompts of the first rows of a split; adds the findings about them to `findings`."""
    where = f"{section.name}data.{split}"
    prompts: list[Prompt] = []
    try:
        source = section.open(plugins, split)
        num_read = min(NUM_ROWS, len(source))
        prompts = [prompt for index in range(num_read) if (prompt := source.prompt(index)) is not None]
    except MMRLError as error:
        findings.append(Finding(False, f"{where}: {error}"))
        return []
    except Exception as error:  # a source is foreign code
        findings.append(Finding(False, f"{where}: the source raised {type(error).__name__}: {error}"))
        return []
    findings += [
        Finding(False, f"{where}: row {row.index}{f' ({row.file})' if row.file else ''}: {row.reason}", tolerable=True)
        for row in source.set_aside
    ]
    read = f"{len(prompts)} of the first {num_read} rows can be read ({len(source)} in all)"
    findings.append(Finding(bool(prompts), f"{where}: {read}"))
    if source.layout is not None:
        findings.append(Finding(True, f"{where}: {source.layout}"))
    findings += further_row_findings(where, source, num_read, section.part.data.max_broken)
    shown = section.part.prompt
    templates = [*shown.images, *shown.videos, *shown.audios]
    if without := [p.id for p in prompts if not p.media_keys] if templates else []:
        findings.append(Finding(True, f"{where}: {some(without)}: no media in prompt.images, videos and audios"))
    if encoder is not None and prompts:
        findings += length_findings(where, [*prompts, *_longest_prompts(source)], encoder, section.part.data)
    return prompts

"""Look at a task or a plugin before a run does: `mmrl check` and `mmrl preview`.

No model is loaded. Only the processor of a model that lies on this machine is, to count the tokens of prompts.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from mmrl_core.config import ModelConfig, PartConfig, RewardConfig, RolloutConfig, RunConfig, StageConfig, parts_of
from mmrl_core.conversation import make_environment
from mmrl_core.data import PromptSource
from mmrl_core.discovery import Plugins, TaskEntry, load_plugins
from mmrl_core.errors import ConfigError, MMRLError, PolicyError
from mmrl_core.registry import CORE, KINDS
from mmrl_core.scoring import Judgement, RewardRunner
from mmrl_core.starting_model import local_model
from mmrl_core.types import Prompt

NUM_ROWS = 32  # rows read of each source
NUM_HOSTILE_ROWS = 3  # rows whose samples meet the hostile completions
MAX_HOSTILE_S = 10.0  # a reward that needs longer for one completion would hold up a run, whatever its timeout_s
MAX_FRAMES = 8  # of a video, in a preview
MAX_SHOWN = 5  # rows that one finding names
TOLERANCE = 1e-6

HOSTILE: Mapping[str, str] = {
    "an empty completion": "",
    "white space": " \n\t ",
    "garbage Unicode": "\x00\ufffd\u202e\u0301\U0001f9ff\ud7ff ﬀ ١٢٣ [１, ２] \u200b" * 20,
    "a lone surrogate": "\ud800 <answer>\udfff</answer>",
    "nested tags": "<think>" * 500 + "<answer>" * 500 + "1" + "</answer>" * 500 + "</think>" * 500,
    "tags never closed": "<think><answer>" * 2000,
    "100 kB of one letter": "a" * 100_000,
    "100 kB of white space in tags": "<think>" + " \n" * 50_000 + "</answer>",
    "100 kB of open brackets": "<think>x</think><answer>" + "[" * 100_000 + "</answer>",
    "NaN": "<think>x</think><answer>NaN</answer>",
    "boxes of NaN and infinity": (
        "<think>x</think><answer>[{'Position': [NaN, Infinity, -Infinity, 1e999], 'Confidence': NaN}]</answer>"
    ),
    "a huge number": f"<think>x</think><answer>{'9' * 5000}</answer>",
    "boxes of huge numbers": (
        "<think>x</think><answer>[{'Position': [-1e308, -1e308, 1e308, 1e308], 'Confidence': 1e308}]</answer>"
    ),
    "broken JSON": '<think>x</think><answer>[{"Position": [1, 2, 3, "Confidence": }, {]</answer>',
    "JSON of wrong types": '<think>x</think><answer>[{"Position": {"a": null}, "Confidence": []}, null, [[]]]</answer>',
    "code": "<think>x</think><answer>__import__('os').getcwd()</answer>",
}
"""What a model may write at its worst, by description. No reward may raise, hang or overpay on any of it."""

HOSTILE_PICTURES: Mapping[str, Image.Image] = {
    "a black picture": Image.new("RGB", (64, 64)),
    "a white picture": Image.new("RGB", (64, 64), "white"),
    "a picture of one pixel": Image.new("RGB", (1, 1), "red"),
    "a very wide picture": Image.new("RGB", (600, 3), "red"),
    "a grey picture": Image.new("L", (64, 64), 128),
    "a transparent picture": Image.new("RGBA", (64, 64)),
}
"""What a policy that makes pictures may make at its worst, by description."""

HOSTILE_BY_KIND: Mapping[str, Mapping[str, Any]] = {
    "text": HOSTILE,
    "image": HOSTILE_PICTURES,
    "video": {
        **{f"three frames of {name}": [picture] * 3 for name, picture in HOSTILE_PICTURES.items()},
        "a single frame": [HOSTILE_PICTURES["a black picture"]],
    },
}
"""By the detail `reads` that a reward is registered with; "text" is meant where it has none."""


Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: whether it is well, what it is, and whether a run could go on all the same."""

    ok: bool
    what: str
    tolerable: bool = False


@dataclass(frozen=True)
class _Section:
    """What is checked together: the task of a stage, of the evaluation, or of a config without stages; of a mixture
    each part, with all `parts` that it stands among."""

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


def check_task(config: RunConfig, plugins: Plugins | None = None) -> list[Finding]:
    """Check a task without a model.

    What is promised: everything that the config names exists and takes its options; the data sources load; the first
    `NUM_ROWS` rows of each can be read, with their media, and every one that cannot is named with file and reason; each
    reward gives the gold answer its maximum (the detail `maximum` of its registration, 1.0 if it declares none; None
    stands for "has none"); and on each completion in `HOSTILE` it gives, within its time, the same finite number twice,
    not above its maximum, or leaves it unscored, and does not raise. What else than text a reward reads, the detail
    `reads` of its registration says, see `HOSTILE_BY_KIND`. If the model is a language model and lies on this machine,
    the prompts read are not longer than `model.max_prompt_tokens`.

    Args:
        config: the resolved config. The stages are checked, each where it differs from those before, and the held-out
            rows; a config without stages as it is.
        plugins: what is installed; default: `load_plugins()`.

    Returns:
        What was found, in that order. A task is sound if all are `ok`.
    """
    plugins = load_plugins() if plugins is None else plugins
    findings = _component_findings(config, plugins)
    if any(not finding.ok for finding in findings):
        return findings  # what follows would only repeat it
    encoder = _load_encoder(config.model, findings)
    read: list[tuple[Any, list[Prompt]]] = []  # what makes the prompts of a source, and the prompts
    judged: list[Any] = []
    for section in _sections(config):
        prompts: list[Prompt] = []
        part = section.part
        for split in section.splits:
            made_of = (getattr(part.data, split), part.data.media_root, part.prompt)
            if all(made_of != other for other, _ in read):
                read.append((made_of, _data_findings(section, split, plugins, encoder, config.model, findings)))
            prompts += next(known for other, known in read if made_of == other)
        if prompts and (section.splits, part.data, part.prompt, part.rewards) not in judged:
            judged.append((section.splits, part.data, part.prompt, part.rewards))
            findings += _reward_findings(section, prompts, plugins)
    if not read:
        findings.append(Finding(False, "no data: set data.train, at the top or in a stage"))
    return findings


def check_plugin(name: str, plugins: Plugins | None = None) -> list[Finding]:
    """Check an installed plugin: it loads, each entry that it registers imports and has a docstring, its tasks parse.

    Raises:
        PluginError: no such plugin is installed.
    """
    plugins = load_plugins() if plugins is None else plugins
    plugin = plugins.plugins.get(name)
    if plugin is None:
        plugins.require(name)  # raises, with the nearest name
    assert plugin is not None
    if plugin.error is not None:
        return [Finding(False, f"plugin {name!r} ({plugin.distribution}) failed to load:\n{plugin.error}")]
    findings = [Finding(True, f"plugin {name!r} ({plugin.distribution} {plugin.version}) loads")]
    for kind in KINDS:
        for entry in plugins.registry.entries(kind):
            if entry.id.partition("/")[0] != name:
                continue
            try:
                target = entry.load()
            except MMRLError as error:
                findings.append(Finding(False, str(error)))
                continue
            documented = bool(inspect.getdoc(target)) and callable(target)
            problem = "" if documented else ": has no docstring" if callable(target) else ": is not callable"
            findings.append(Finding(documented, f"{kind} {entry.id} ({entry.target}){problem}"))
    for task in plugins.tasks.values():
        if task.plugin == name:
            findings.append(_task_finding(task))
    return findings


def preview_task(config: RunConfig, num_prompts: int, output: str | Path, plugins: Plugins | None = None) -> str:
    """Show the first prompts as the model will see them.

    Args:
        config: the resolved config. The training rows of the first stage that has some are shown (without stages those
            of the top), or else held-out rows.
        num_prompts: prompts to show, of each part of a mixture; broken rows among them are named.
        output: folder for the media (PNG files) and the text (`preview.txt`); made if missing.
        plugins: what is installed; default: `load_plugins()`.

    Returns:
        The text: for each prompt its messages, its media files with their size, its gold answer, its sample; and if the
        model lies on this machine, the rendering of its chat template and the number of tokens.

    Raises:
        MMRLError: the task has no data, or they cannot be read; it names what is not installed; its model is missing.
    """
    plugins = load_plugins() if plugins is None else plugins
    findings = _component_findings(config, plugins)
    encoder = _load_encoder(config.model, findings)
    if wrong := [finding.what for finding in findings if not finding.ok]:
        raise ConfigError("\n".join(wrong))
    sections = [section for section in _sections(config) if section.splits]
    if not sections:
        raise ConfigError(f"task {config.name!r} has no data to preview: set data.train.")
    first = next((section for section in sections if "train" in section.splits), sections[0])
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for section in [section for section in sections if section.parts is first.parts]:
        source = section.open(plugins, section.splits[0])
        for index in range(min(num_prompts, len(source))):
            prompt = source.prompt(index)
            if prompt is None:
                reason = next(row.reason for row in source.set_aside if row.index == index)
                shown.append(f"=== {source.name}:{index}: broken, would be set aside: {reason}")
            else:
                shown.append(_preview(prompt, folder, encoder, config.model.max_prompt_tokens))
    text = "\n\n".join(shown) + "\n"
    (folder / "preview.txt").write_text(text, encoding="utf-8", errors="replace")
    return text


def _sections(config: RunConfig) -> Iterator[_Section]:
    if not config.stages:
        yield from _parts("", config, ("train", "held_out"))
        return
    for number, stage in enumerate(config.stages, start=1):
        yield from _parts(f"stage {stage.name or f'{stage.kind} {number}'}: ", stage, ("train",))
    if any(part.data.held_out is not None for part in parts_of(config)):  # evaluations read those of the top
        yield from _parts("", config, ("held_out",))


def _parts(name: str, section: RunConfig | StageConfig, splits: Sequence[Split]) -> Iterator[_Section]:
    parts = parts_of(section)
    for part in parts:
        where = f"{name}part {part.name}: " if part.name else name
        own = tuple(split for split in splits if getattr(part.data, split) is not None)
        target = (part.target or section.target) if isinstance(section, StageConfig) and section.kind == "sft" else None
        if target is not None:
            # Its gold completion is one to imitate, not one that the rewards were made for.
            imitated = part.prompt.model_copy(update={"answer": target})
            part = part.model_copy(update={"prompt": imitated, "rewards": []})
        yield _Section(where, part, own, section.rollout, parts)


def _component_findings(config: RunConfig, plugins: Plugins) -> list[Finding]:
    from mmrl_core.config import check_components

    try:
        check_components(config, plugins)
        for section in _sections(config):
            RewardRunner(plugins, section.part.rewards)
    except MMRLError as error:
        return [Finding(False, line) for line in str(error).splitlines() if line.strip()]
    return [Finding(True, "everything that the config names is installed and takes its options")]


def _task_finding(task: TaskEntry) -> Finding:
    from mmrl_core.config import load_config

    try:
        load_config(str(task.path))
    except MMRLError as error:
        return Finding(False, str(error))  # names the task, or file and line
    return Finding(True, f"task {task.id} parses")


# Data


def _data_findings(
    section: _Section,
    split: Split,
    plugins: Plugins,
    encoder: Any,
    model: ModelConfig,
    findings: list[Finding],
) -> list[Prompt]:
    """The prompts of the first rows; adds what there is to say about them."""
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
    shown = section.part.prompt
    templates = [*shown.images, *shown.videos, *shown.audios]
    if without := [p.id for p in prompts if not p.media_keys] if templates else []:
        findings.append(Finding(True, f"{where}: {_some(without)}: no media in prompt.images, videos and audios"))
    if encoder is not None and prompts:
        findings.append(_length_finding(where, prompts, encoder, model))
    return prompts


def _length_finding(where: str, prompts: Sequence[Prompt], encoder: Any, model: ModelConfig) -> Finding:
    try:
        lengths = {prompt.id: len(encoder.encode(prompt)) for prompt in prompts}
    except Exception as error:  # a processor is foreign code
        return Finding(False, f"{where}: the model's processor raised {type(error).__name__}: {error}")
    longest = max(lengths, key=lambda key: lengths[key])
    what = f"{where}: the longest prompt read, {longest}, has {lengths[longest]} tokens"
    if lengths[longest] <= model.max_prompt_tokens:
        return Finding(True, f"{what} (model.max_prompt_tokens: {model.max_prompt_tokens})")
    return Finding(
        False,
        f"{what}, more than model.max_prompt_tokens: {model.max_prompt_tokens}. Raise the limit, shorten the prompt, "
        "or lower model.max_pixels; prompts are never cut",
    )


# Rewards


def _reward_findings(section: _Section, prompts: Sequence[Prompt], plugins: Plugins) -> list[Finding]:
    findings = []
    for config in section.part.rewards:
        reads = plugins.registry.get("reward", config.name).details.get("reads", "text")
        # No picture can make a parser run for ever, and a network takes its time with the first one.
        limit_s = min(config.timeout_s, MAX_HOSTILE_S) if reads == "text" else config.timeout_s
        quick = config.model_copy(update={"timeout_s": limit_s})
        name = f"{section.name}reward {config.key!r}"
        runner = RewardRunner(plugins, [quick])
        try:
            runner.judge(config.key, [], [])
        except MMRLError as error:
            findings.append(Finding(True, f"{name}: skipped: {error}"))
            continue
        if reads not in HOSTILE_BY_KIND:
            findings.append(Finding(True, f"{name}: skipped: it reads {reads!r}; known: {', '.join(HOSTILE_BY_KIND)}"))
            continue
        if reads == "text":
            findings.append(_gold_finding(name, runner, config, prompts))
        findings += _hostile_findings(name, runner, quick, prompts[:NUM_HOSTILE_ROWS], HOSTILE_BY_KIND[reads])
    return findings


def _gold_finding(name: str, runner: RewardRunner, config: RewardConfig, prompts: Sequence[Prompt]) -> Finding:
    maximum = runner.maximum(config.key)
    answered = [prompt for prompt in prompts if prompt.answer]
    if not answered:
        return Finding(True, f"{name}: gold answer: skipped, the rows have none (prompt.answer)")
    if maximum is None:
        return Finding(True, f"{name}: gold answer: skipped, the reward declares no maximum")
    judgements: dict[str, Judgement] = {}
    for prompt in answered:  # one by one: neighbours with equal rows are no group here
        judgements[prompt.id] = runner.judge(config.key, [prompt.answer], [prompt.sample])[0]
    if failed := {key: j.failure for key, j in judgements.items() if j.failure is not None}:
        first = next(iter(failed))
        return Finding(False, f"{name}: gold answer: fails on {_some(list(failed))}; {first}: {failed[first]}")
    scored = {key: j.value for key, j in judgements.items() if j.value is not None}
    if not scored:
        return Finding(True, f"{name}: gold answer: skipped, it leaves the gold answers of all rows unscored")
    if wrong := [key for key, value in scored.items() if abs(value - maximum) > TOLERANCE * max(1.0, abs(maximum))]:
        first = wrong[0]
        answer = next(prompt.answer for prompt in answered if prompt.id == first)
        return Finding(
            False,
            f"{name}: gold answer: not the maximum {maximum:g} on {_some(wrong)}; "
            f"{first} scores {scored[first]:g} for {_shown(answer)}",
        )
    return Finding(True, f"{name}: gold answer: scores the maximum, {maximum:g}, on {len(scored)} rows")


def _hostile_findings(
    name: str, runner: RewardRunner, config: RewardConfig, prompts: Sequence[Prompt], hostile: Mapping[str, Any]
) -> Iterator[Finding]:
    maximum = runner.maximum(config.key)
    sound = True
    for description, completion in hostile.items():
        for prompt in prompts:
            start = time.monotonic()
            first = runner.judge(config.key, [completion], [prompt.sample])[0]
            elapsed_s = time.monotonic() - start
            too_slow = elapsed_s >= config.timeout_s
            # A call that never lets go of the interpreter, as regular expressions do, is late without being abandoned.
            problem = f"takes {elapsed_s:.1f} s" if too_slow and first.failure is None else first.failure or ""
            if not problem:
                second = runner.judge(config.key, [completion], [prompt.sample])[0]
                problem = _hostile_problem(first, second, maximum)
            if problem:
                sound = False
                yield Finding(False, f"{name}: {description}, on {prompt.id}: {problem}")
                if too_slow:  # the rest may take as long each
                    return
                break  # on one row is enough
    if sound:
        yield Finding(True, f"{name}: {len(hostile)} empty, garbage and hostile completions are safe")


def _hostile_problem(first: Judgement, second: Judgement, maximum: float | None) -> str:
    """What is wrong with what a reward said of one hostile completion, twice; "" if nothing is."""
    if second.failure:
        return f"the second time: {second.failure}"
    if first.value != second.value or first.parts != second.parts:
        return f"scores {_number(first.value)}, and the next time {_number(second.value)}"
    if first.value is not None and maximum is not None and first.value > maximum + TOLERANCE * max(1.0, abs(maximum)):
        return f"scores {first.value:g}, above the maximum {maximum:g} that the reward declares"
    return ""


def _number(value: float | None) -> str:
    return "unscored" if value is None else f"{value:g}"


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - MAX_SHOWN} more" if len(ids) > MAX_SHOWN else ""
    return ", ".join(ids[:MAX_SHOWN]) + more


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."


# What the model sees


def _load_encoder(config: ModelConfig, findings: list[Finding]) -> Any:
    """The `PromptEncoder` of a language model that lies on this machine, without the model; None if there is none."""
    is_language_model = config.policy.name.removeprefix(f"{CORE}/") == "language_model"
    try:
        path = None if config.path is None or not is_language_model else local_model(config.path)
    except PolicyError as error:
        findings.append(Finding(False, str(error)))
        return None
    if path is None:
        return None
    try:
        from types import SimpleNamespace

        from transformers import AutoConfig

        from mmrl_core.language_model import PromptEncoder, load_processor

        model_config = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        # Positions, for which the encoder would ask the model, are of no interest here, and no length is refused.
        encoder_model: Any = SimpleNamespace(config=model_config)
        return PromptEncoder(load_processor(config, path), encoder_model, max_tokens=sys.maxsize)
    except Exception as error:  # transformers raises anything on a broken folder
        findings.append(Finding(False, f"model.path: the processor of {config.path} cannot be loaded: {error}"))
        return None


def _preview(prompt: Prompt, folder: Path, encoder: Any, max_tokens: int) -> str:
    """One prompt as text; its media are written to the folder."""
    lines = [f"=== {prompt.id}"]
    number = 0
    for message in prompt.messages:
        lines.append(f"--- {message['role']}")
        for part in message["content"]:
            if part["type"] == "text":
                lines.append(part["text"])
                continue
            number += 1
            name = re.sub("[:/]", "-", f"{prompt.id}-{number}")
            if part["type"] == "audio":
                import soundfile

                soundfile.write(folder / f"{name}.wav", part["audio"], part["sampling_rate"])
                seconds = len(part["audio"]) / part["sampling_rate"]
                lines.append(f"[audio, {seconds:.1f} s at {part['sampling_rate']} Hz: {name}.wav]")
                continue
            name += ".png"
            image, what = (part["image"], "image") if part["type"] == "image" else _contact_sheet(part["video"])
            image.save(folder / name)
            lines.append(f"[{what}, {image.width} x {image.height} pixels: {name}]")
    if prompt.tools:
        lines += ["--- tools that may be called", *map(json.dumps, prompt.tools)]
    if prompt.answer:
        lines += ["--- gold answer", prompt.answer]
    lines += ["--- sample (what rewards read)", json.dumps(prompt.sample, ensure_ascii=False, default=str)]
    if encoder is not None:
        try:
            rendered, num_tokens = encoder.render(prompt), len(encoder.encode(prompt))
            over = f", MORE THAN model.max_prompt_tokens: {max_tokens}" if num_tokens > max_tokens else ""
            lines += [f"--- as the model sees it: {num_tokens} tokens{over}, placeholders of media expanded", rendered]
        except Exception as error:  # a processor is foreign code
            lines.append(f"--- the model's processor raised {type(error).__name__}: {error}")
    return "\n".join(lines)


def _contact_sheet(frames: Any) -> tuple[Image.Image, str]:
    """Up to `MAX_FRAMES` frames of a video, uint8 [frames, 3, height, width], side by side."""
    chosen = sorted({round(i * (len(frames) - 1) / (MAX_FRAMES - 1)) for i in range(MAX_FRAMES)})
    pictures = [Image.fromarray(frames[i].permute(1, 2, 0).cpu().numpy()) for i in chosen]  # [height, width, 3]
    sheet = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width
    return sheet, f"{len(pictures)} of {len(frames)} video frames"

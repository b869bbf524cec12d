"""The first prompts of a task as the model will see them: `mmrl preview`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mmrl_core.config import RunConfig
from mmrl_core.errors import ConfigError
from mmrl_core.plugins import Plugins, load_plugins
from mmrl_core.support import need
from mmrl_core.testing.prompt_cost import as_the_model_sees, load_preview
from mmrl_core.testing.sections import component_findings, sections
from mmrl_core.types import Prompt

MAX_FRAMES = 8  # of a video, in a preview


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
        MMRLError: the task has no data, or data that cannot be read; something that it names is not installed; its
            model is missing.
    """
    plugins = load_plugins() if plugins is None else plugins
    findings = component_findings(config, plugins)
    encoder = load_preview(config.model, plugins, findings)
    if wrong := [finding.what for finding in findings if not finding.ok]:
        raise ConfigError("\n".join(wrong))
    found = [section for section in sections(config) if section.splits]
    if not found:
        raise ConfigError(f"task {config.name!r} has no data to preview: set data.train.")
    first = next((section for section in found if "train" in section.splits), found[0])
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for section in [section for section in found if section.parts is first.parts]:
        source = section.open(plugins, section.splits[0])
        if source.layout is not None:
            shown.append(f"{source.name}: {source.layout}")
        for index in range(min(num_prompts, len(source))):
            prompt = source.prompt(index)
            if prompt is None:
                reason = next(row.reason for row in source.set_aside if row.index == index)
                shown.append(f"=== {source.name}:{index}: broken, would be set aside: {reason}")
            else:
                shown.append(_preview(prompt, folder, encoder))
    text = "\n\n".join(shown) + "\n"
    (folder / "preview.txt").write_text(text, encoding="utf-8", errors="replace")
    return text


def _preview(prompt: Prompt, folder: Path, encoder: Any) -> str:
    """One prompt as text. Its media are written to the folder."""
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
                need("soundfile", "audio", "a preview of audio").write(
                    folder / f"{name}.wav", part["audio"], part["sampling_rate"]
                )
                seconds = len(part["audio"]) / part["sampling_rate"]
                lines.append(f"[audio, {seconds:.1f} s at {part['sampling_rate']} Hz: {name}.wav]")
                continue
            name += ".png"
            image, what = (part["image"], "image") if part["type"] == "image" else _contact_sheet(part["video"])
            image.save(folder / name)
            lines.append(f"[{what}, {image.width} x {image.height} pixels: {name}]")
    if prompt.tools:
        lines += ["--- tools that may be called", *map(json.dumps, prompt.tools)]
    if prompt.template:
        lines += ["--- options of the chat template", json.dumps(prompt.template, ensure_ascii=False, default=str)]
    if prompt.prefix:
        lines += ["--- prefix: each turn of the policy begins with it, and it is not trained", prompt.prefix]
    if prompt.answer:
        lines += ["--- gold answer", prompt.answer]
    lines += ["--- sample (what rewards read)", json.dumps(prompt.sample, ensure_ascii=False, default=str)]
    lines += as_the_model_sees(prompt, encoder)
    return "\n".join(lines)


def _contact_sheet(frames: Any) -> tuple[Any, str]:
    """Up to `MAX_FRAMES` frames of a video, uint8 [frames, 3, height, width], side by side."""
    from PIL import Image

    chosen = sorted({round(i * (len(frames) - 1) / (MAX_FRAMES - 1)) for i in range(MAX_FRAMES)})
    pictures = [Image.fromarray(frames[i].permute(1, 2, 0).cpu().numpy()) for i in chosen]  # [height, width, 3]
    sheet = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width
    return sheet, f"{len(pictures)} of {len(frames)} video frames"

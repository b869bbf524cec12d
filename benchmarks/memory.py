"""What `mmrl train --dry-run` estimates a run to take in memory, against what it takes here.

    python benchmarks/memory.py                   # all cases, each in a process of its own; some minutes
    python benchmarks/memory.py --case audio-lora  # one of them
    python benchmarks/memory.py --sizes            # the estimates of docs/scale.md, from configs alone

Measured is the largest resident set while two steps run, less that of the same process after a run with a tiny model of
the same kind, so that libraries are loaded. Pages of files are left out: those of the weights' file stay while nobody
else wants the memory. glibc gives blocks above 256 KiB back at once (MALLOC_MMAP_THRESHOLD_), since what its heap keeps
is no memory that a step needs. Float32 on a CPU, random weights, one thread. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from step_model import photo_like

VOCABULARY = 8192
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "layer_types": ["full_attention"] * 8,
    "max_window_layers": 8,
}
VISION = {"depth": 8, "hidden_size": 512, "intermediate_size": 1376, "num_heads": 8, "out_hidden_size": 768}
AUDIO = {"d_model": 512, "encoder_layers": 8, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]}}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("qwen2", TEXT),
    "image": ("qwen2_5_vl", {"text_config": TEXT | ROPE, "vision_config": VISION}),
    "audio": ("qwen2_audio", {"text_config": TEXT, "audio_config": AUDIO}),
}
"""Medium -> kind of `mmrl tiny`, and what of its config is larger."""

OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"rank": 16}},
    "lora-checkpointing": {"lora": {"rank": 16}, "gradient_checkpointing": True},
}
QWEN25 = {
    "0.5B": (896, 24, 14, 2, 4864, 151936),
    "1.5B": (1536, 28, 12, 2, 8960, 151936),
    "3B": (2048, 36, 16, 2, 11008, 151936),
    "7B": (3584, 28, 28, 4, 18944, 152064),
    "14B": (5120, 48, 40, 8, 13824, 152064),
    "32B": (5120, 64, 40, 8, 27648, 152064),
}
"""Published Qwen2.5: width, layers, heads, heads of keys, width of the MLP, tokens. Up to 3B they tie embeddings."""

SETTINGS = {
    "one_gpu": ["hardware/one_gpu"],
    "eight_gpus": ["hardware/eight_gpus"],
    "eight_gpus with LoRA": ["hardware/eight_gpus", "hardware/one_gpu", "eight"],
    "fsdp2_eight_gpus": ["hardware/fsdp2_eight_gpus"],
    "fsdp2_two_nodes": ["hardware/fsdp2_two_nodes"],
}
LONG_PROMPT = 1000
"""Tokens of the prompts that the estimates of --sizes are of."""

CASES = [f"{medium}-{options}" for options in OPTIONS for medium in MODELS]
QUESTION = "Say what is there, and how many of each kind. " * 6


def build(medium: str, folder: Path) -> tuple[Path, Path]:
    """A tiny model of a kind, and one with its larger matrices and more tokens."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoProcessor,
        AutoTokenizer,
        GenerationConfig,
    )

    from mmrl_core.testing import build_tiny

    kind, larger = MODELS[medium]
    tiny, large = folder / "tiny", folder / "large"
    build_tiny(kind, tiny)
    settings = AutoConfig.from_pretrained(tiny).to_dict()
    for key, value in larger.items():
        settings[key] = {**settings[key], **value} if isinstance(value, Mapping) and key != "rope_parameters" else value
    config = AutoConfig.for_model(**settings)
    loader = {"text": AutoModelForCausalLM, "image": AutoModelForImageTextToText, "audio": AutoModelForMultimodalLM}
    model = loader[medium].from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig.from_pretrained(tiny)
    model.save_pretrained(large)
    processor = (AutoTokenizer if medium == "text" else AutoProcessor).from_pretrained(tiny)
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.add_tokens([f"<{number}>" for number in range(VOCABULARY - len(tokenizer))])
    processor.save_pretrained(large)
    return tiny, large


def write_task(medium: str, model: Path, folder: Path, options: Mapping[str, Any], steps: int) -> Path:
    prompt: dict[str, Any] = {"text": "{problem}"}
    if medium != "text":
        prompt[f"{medium}s"] = [f"{{{medium}}}"]
    lines = []
    for number in range(4):  # what is equal would be computed once
        row = {"problem": f"{QUESTION}{number}"}
        if medium == "image":
            row["image"] = f"{number}.png"
            photo_like(420, number).save(folder / row["image"])
        if medium == "audio":
            import numpy as np
            import soundfile

            row["audio"] = f"{number}.wav"
            noise = np.random.default_rng(number).normal(0, 0.1, 4 * 16000)
            soundfile.write(folder / row["audio"], noise, 16000)
        lines.append(json.dumps(row) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    stage = {"kind": "grpo", "steps": steps, "prompts_per_step": 2, "group_size": 4}
    task = {
        "name": "memory",
        "model": {"path": str(model), "precision": "float32", **options},
        "data": {"train": {"path": str(folder / "rows.jsonl")}},
        "prompt": prompt,
        "rewards": [f"{Path(__file__).with_name('step_model.py')}:even_digits"],
        "rollout": {"max_tokens": 48},
        "log": {"rollouts_every_steps": 1_000_000},
        "checkpoint": {"every_steps": None},
        "stages": [stage],
    }
    path = folder / f"{model.name}.yaml"
    path.write_text(json.dumps(task))
    return path


def resident_mib(key: str) -> float:
    """RssAnon, RssFile, or VmHWM: the peak of their sum since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def measure(task: Path, output: Path) -> float:
    """Peak of the resident set in the steps of a run, MiB, without pages of files."""
    from mmrl_core.config import load_config
    from mmrl_core.trainer import Trainer

    class Measured(Trainer):
        """Notes the peak after each update; what follows, such as a checkpoint, is not what is measured."""

        def optimize(self) -> float:
            norm = super().optimize()
            peaks.append(resident_mib("VmHWM") - resident_mib("RssFile"))
            return norm

    peaks: list[float] = []
    trainer = Measured(load_config(str(task)), output)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here: loading is not what is measured
    try:
        trainer.run(resume=False)
    finally:
        trainer.close()
    return peaks[-1]


def run_case(case: str) -> dict[str, Any]:
    """Estimate and measure a case in this process."""
    from mmrl_core.cli import estimate, longest_prompt, sizes_of
    from mmrl_core.config import load_config
    from mmrl_core.plugins import load_plugins

    medium, _, name = case.partition("-")
    with tempfile.TemporaryDirectory() as folder:
        tiny, large = build(medium, Path(folder))
        measure(write_task(medium, tiny, Path(folder), OPTIONS[name], 1), Path(folder, "first"))
        task = write_task(medium, large, Path(folder), OPTIONS[name], 2)
        config, plugins = load_config(str(task)), load_plugins()
        sizes = sizes_of(config, plugins, large)
        prompt = longest_prompt(config, config.stages[0], plugins, large)
        found = estimate(config, config.stages[0], sizes, prompt)
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        baseline = resident_mib("RssAnon")
        peak = measure(task, Path(folder, "run")) - baseline
    return {
        "case": case,
        "parameters": sizes.parameters,
        "prompt": prompt.tokens,
        "estimated_mib": found.peak / 2**20,
        "update_mib": found.update / 2**20,
        "rollout_mib": found.rollout / 2**20,
        "measured_mib": peak,
    }


def print_sizes() -> None:
    """GiB of one of 80 GB: 8 prompts of 1,000 tokens for each device, 8 completions of up to 512 tokens each."""
    from mmrl_core.cli import estimate, num_processes, sizes_of
    from mmrl_core.config import load_config
    from mmrl_core.plugins import load_plugins
    from mmrl_core.support import PromptSizes

    print("| Qwen2.5 |", " | ".join(f"`{name}`" for name in SETTINGS), "|")
    print("| --- |", " | ".join("---" for _ in SETTINGS), "|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "eight.yaml").write_text(json.dumps({"hardware": {"memory_gib": 80, "devices": 8}}))
        for size, (hidden, layers, heads, kv_heads, inner, vocabulary) in QWEN25.items():
            config = {
                "model_type": "qwen2",
                "architectures": ["Qwen2ForCausalLM"],
                "hidden_size": hidden,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": kv_heads,
                "intermediate_size": inner,
                "vocab_size": vocabulary,
                "tie_word_embeddings": hidden <= QWEN25["3B"][0],
            }
            (folder / "config.json").write_text(json.dumps(config))
            cells = []
            for presets in SETTINGS.values():
                extends = [f"{folder}/eight.yaml" if preset == "eight" else preset for preset in presets]
                task = {"name": "size", "extends": extends, "model": {"path": name}, "rollout": {"max_tokens": 512}}
                stage = {"kind": "grpo", "steps": 1, "prompts_per_step": 8, "group_size": 8}
                (folder / "task.yaml").write_text(json.dumps({**task, "stages": [stage]}))
                run = load_config(str(folder / "task.yaml"))
                prompts = 8 * num_processes(run)
                run = load_config(str(folder / "task.yaml"), [f"stages.0.prompts_per_step={prompts}"])
                found = estimate(run, run.stages[0], sizes_of(run, load_plugins(), folder), PromptSizes(LONG_PROMPT))
                limits = {"loading": found.loading, "rollout": found.rollout, "update": found.update}
                cells.append(f"{found.peak / 2**30:.0f} ({max(limits, key=lambda key: limits[key])})")
            print(f"| {size} |", " | ".join(cells), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="measure one case in this process, and print a JSON line")
    parser.add_argument("--sizes", action="store_true", help="print the estimates of docs/scale.md")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(arguments.case)))
        return
    if arguments.sizes:
        print_sizes()
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
    print("| model | parameters | trained | prompt | estimated, MiB | measured, MiB | estimated / measured |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        command = [sys.executable, __file__, "--case", case]
        line = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()[
            -1
        ]
        found = json.loads(line)
        medium, _, name = case.partition("-")
        ratio = found["estimated_mib"] / found["measured_mib"]
        print(
            f"| {MODELS[medium][0]} | {found['parameters'] / 1e6:.0f} M | {name} | {found['prompt']} | "
            f"{found['estimated_mib']:.0f} | {found['measured_mib']:.0f} | {ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

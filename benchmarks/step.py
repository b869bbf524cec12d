"""Time one GRPO step of mmrl, or of TRL's GRPOTrainer, on the same model, pictures, prompts and reward.

    python benchmarks/step.py --engine mmrl --model runs/step_model --image-size 560 --group 16 --completion 32 \
        --beta 0 --prompts 2 --steps 5

Prints one JSON line: seconds of each step and of its phases, samples per second, memory, tokens and media encodes. The
model is built if its folder does not exist. Both engines run on the CPU in float32, update once on each batch of
`prompts` groups in one forward and backward, and never sample a token that ends a completion or stands for a medium,
so that every completion has the same length. `compare.py` runs both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

from step_model import SETTINGS, build_model, even_digits, write_rows

PHASES = ("generation", "reference", "update")
"""Prompts to completions; logprobs under the reference policy; all the rest of the step, from reading data to logging.

What an engine does to images belongs to the phase in which it does it.
"""

BANNED = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
"""Config attributes with tokens that stand for media: scoring a completion with one in it would raise."""


@dataclass
class Step:
    """What one step took.

    Attributes:
        seconds: from the end of the step before to its own end.
        phases: seconds of each phase but the last, which is the rest.
        prompt_tokens, completion_tokens: of all rollouts; a prompt counts once for each of its completions.
        counters: work done: prefill, decode, score and update tokens, media encodes.
    """

    seconds: float = 0.0
    phases: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counters: Counter[str] = field(default_factory=Counter)

    def phase_seconds(self, phase: str) -> float:
        if phase == PHASES[-1]:
            return self.seconds - sum(self.phases.values())
        return self.phases[phase]


class Recorder:
    """Collects the steps of an engine whose methods it wraps; what they do stays as it is.

    Attributes:
        steps: those that have ended.
        current: the one that runs.
        phase: what it is doing.
        prompt_hash: of the tokens of the first prompt, the same for engines that were given the same.
        baseline_rss_mib: memory with everything loaded, when the first generation begins.
        peak_rss_mib: most memory so far, when the last step ended.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.current = Step()
        self.phase = PHASES[-1]
        self.prompt_hash = ""
        self.baseline_rss_mib = 0.0
        self.peak_rss_mib = 0.0
        self._mark = time.perf_counter()

    def time_method(
        self,
        owner: Any,
        method: str,
        phase: str,
        *,
        applies: Callable[..., bool] = lambda **_: True,
        see: Callable[[Any], None] = lambda _: None,
    ) -> None:
        """Count the time of `owner.method` to a phase, where its keyword arguments apply; `see` gets its result."""
        function = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            if not applies(**options):
                return function(*arguments, **options)
            if phase == "generation" and not self.baseline_rss_mib:
                self.baseline_rss_mib = rss_mib()
            before, self.phase = self.phase, phase
            started = time.perf_counter()
            result = function(*arguments, **options)
            self.current.phases[phase] += time.perf_counter() - started
            self.phase = before
            see(result)
            return result

        setattr(owner, method, timed)

    def see_rollouts(self, prompts: list[list[int]], completion_lengths: list[int]) -> None:
        """Count the tokens of a batch of rollouts."""
        self.current.prompt_tokens += sum(map(len, prompts))
        self.current.completion_tokens += sum(completion_lengths)
        self.prompt_hash = self.prompt_hash or hashlib.sha256(repr(prompts[0]).encode()).hexdigest()[:12]

    def end_step(self) -> None:
        now = time.perf_counter()
        self.current.seconds = now - self._mark
        self._mark = now
        self.peak_rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.steps.append(self.current)
        self.current = Step()


def run_mmrl(arguments: argparse.Namespace, rows: Path, output: Path, recorder: Recorder) -> None:
    """Train with mmrl's own trainer on a config of the defaults."""
    import torch
    import yaml

    from mmrl_core.config import load_config
    from mmrl_core.runs import read_metrics
    from mmrl_core.trainer import Trainer

    settings = {
        "name": "step",
        "model": {"path": str(arguments.model), "precision": "float32"},
        "data": {"train": {"path": str(rows)}},
        "prompt": {"images": ["{image}"], "text": "{problem}"},
        "rewards": [f"{Path(__file__).with_name('step_model.py')}:even_digits"],
        "rollout": {"max_tokens": arguments.completion},
        "algorithm": {"kl": {"coefficient": arguments.beta}},
        "log": {"rollouts_every_steps": 1_000_000},
        "checkpoint": {"every_steps": None},
        "stages": [
            {
                "kind": "grpo",
                "steps": arguments.warmup + arguments.steps,
                "prompts_per_step": arguments.prompts,
                "group_size": arguments.group,
            }
        ],
    }
    path = output / "step.yaml"
    path.write_text(yaml.safe_dump(settings))
    trainer = Trainer(load_config(str(path)), output / "run")
    model = trainer.policy.model
    model.banned_ids = torch.tensor(
        sorted({*model.banned_ids.tolist(), *banned_ids(model.base.config, model.base.generation_config)})
    )

    def see(groups: Any) -> None:
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        prompts = [rollout.rows[0].observation.input_ids.tolist() for rollout in rollouts]
        recorder.see_rollouts(prompts, [rollout.num_actions for rollout in rollouts])

    recorder.time_method(trainer.policy, "rollout", "generation", see=see)
    recorder.time_method(trainer.policy, "logprobs", "reference", applies=lambda frozen=None, **_: frozen is not None)
    write_step = trainer.recorder.step

    def end_step(*positional: Any, **options: Any) -> None:
        write_step(*positional, **options)
        recorder.end_step()

    trainer.recorder.step = end_step
    try:
        trainer.run(resume=False)
    finally:
        trainer.close()
    records = [record for record in read_metrics(output / "run") if record["kind"] == "step"]
    for step, record in zip(recorder.steps, records, strict=True):
        counters = {name: value for name, value in record.items() if name.startswith("count/")}
        step.counters.update({name.removeprefix("count/"): int(value) for name, value in counters.items()})


def run_trl(arguments: argparse.Namespace, rows: Path, output: Path, recorder: Recorder) -> None:
    """Train with TRL's GRPOTrainer; half precision and gradient checkpointing, its defaults, are off."""
    import torch
    from datasets import Dataset, Image
    from transformers import AutoConfig, GenerationConfig, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    banned = banned_ids(AutoConfig.from_pretrained(arguments.model), GenerationConfig.from_pretrained(arguments.model))
    data = [json.loads(line) for line in rows.read_text().splitlines()]
    dataset = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": row["problem"]}], "image": str(rows.parent / row["image"])}
            for row in data
        ]
    ).cast_column("image", Image())
    batch_rows = arguments.prompts * arguments.group
    config = GRPOConfig(
        output_dir=str(output / "run"),
        max_steps=arguments.warmup + arguments.steps,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        num_generations=arguments.group,
        per_device_train_batch_size=batch_rows,
        generation_batch_size=batch_rows,
        gradient_accumulation_steps=1,
        num_iterations=1,
        max_completion_length=arguments.completion,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=arguments.beta,
        loss_type="dapo",
        learning_rate=1e-6,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        dataloader_num_workers=0,
        disable_tqdm=True,
        generation_kwargs={"suppress_tokens": sorted(banned)},
    )

    def reward(completions: list[Any], **_: Any) -> list[float]:
        return even_digits([completion[0]["content"] for completion in completions])

    class StepEnd(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            recorder.end_step()

    trainer = GRPOTrainer(
        model=str(arguments.model), reward_funcs=reward, args=config, train_dataset=dataset, callbacks=[StepEnd()]
    )
    recorder.time_method(
        trainer,
        "_generate",
        "generation",
        see=lambda made: recorder.see_rollouts([list(ids) for ids in made[0]], [len(ids) for ids in made[1]]),
    )
    recorder.time_method(
        trainer,
        "_get_per_token_logps_and_entropies",
        "reference",
        applies=lambda **_: not torch.is_grad_enabled(),
    )
    for model in (trainer.model, trainer.ref_model):
        if model is not None:
            count_work(model, recorder)
    trainer.train()


def count_work(model: Any, recorder: Recorder) -> None:
    """Count tokens and media that pass through a transformers model under the names of mmrl's counters."""
    counters_of_phase = {"generation": "prefill_tokens", "reference": "score_tokens", "update": "update_tokens"}

    def text(module: Any, positional: Any, options: dict[str, Any]) -> None:
        num_rows, width = options["inputs_embeds"].shape[:2]
        counters = recorder.current.counters
        if recorder.phase == "generation":
            counters["decode_tokens"] += num_rows  # the prompts' pass gives the first token of each row
        if width > 1:
            counters[counters_of_phase[recorder.phase]] += num_rows * width

    def vision(module: Any, positional: Any, options: dict[str, Any]) -> None:
        recorder.current.counters["media_encodes"] += len(options["grid_thw"])

    model.model.language_model.register_forward_pre_hook(text, with_kwargs=True)
    model.model.visual.register_forward_pre_hook(vision, with_kwargs=True)


def banned_ids(config: Any, generation_config: Any) -> set[int]:
    """Tokens that neither engine may sample: those that end a completion, and placeholders of media."""
    end = generation_config.eos_token_id
    ends = [end] if isinstance(end, int) else list(end)
    return {*ends, *(getattr(config, name) for name in BANNED)}


def rss_mib() -> float:
    """Memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def check_work(arguments: argparse.Namespace, steps: list[Step]) -> None:
    """Every step must have done the work that was asked for, or the times of two engines mean nothing."""
    num_rollouts = arguments.prompts * arguments.group
    if len(steps) != arguments.warmup + arguments.steps:
        raise SystemExit(f"{len(steps)} steps ran instead of {arguments.warmup} + {arguments.steps}")
    for index, step in enumerate(steps):
        if step.completion_tokens != num_rollouts * arguments.completion:
            raise SystemExit(
                f"step {index + 1} has {step.completion_tokens} completion tokens instead of "
                f"{num_rollouts} x {arguments.completion}"
            )
        if step.prompt_tokens != steps[0].prompt_tokens or step.prompt_tokens % num_rollouts:
            raise SystemExit(f"step {index + 1} has {step.prompt_tokens} prompt tokens; all prompts must be as long")


def summary(arguments: argparse.Namespace, recorder: Recorder) -> dict[str, Any]:
    """The result: what was asked, what was done, and the measured steps without the warm-up."""
    num_rollouts = arguments.prompts * arguments.group
    measured = recorder.steps[arguments.warmup :]
    seconds = [step.seconds for step in measured]
    phases = {phase: [step.phase_seconds(phase) for step in measured] for phase in PHASES}
    libraries = (
        ("torch", "transformers", "trl") if arguments.engine == "trl" else ("torch", "transformers", "mmrl-core")
    )
    return {
        "engine": arguments.engine,
        "image_size": arguments.image_size,
        "group": arguments.group,
        "completion": arguments.completion,
        "beta": arguments.beta,
        "prompts": arguments.prompts,
        "warmup": arguments.warmup,
        "threads": arguments.threads,
        "prompt_tokens_each": measured[0].prompt_tokens // num_rollouts,
        "prompt_tokens": measured[0].prompt_tokens,
        "completion_tokens": measured[0].completion_tokens,
        "prompt_hash": recorder.prompt_hash,
        "seconds": seconds,
        "seconds_median": median(seconds),
        "phases": phases,
        "phases_median": {phase: median(values) for phase, values in phases.items()},
        "warmup_seconds": [step.seconds for step in recorder.steps[: arguments.warmup]],
        "samples_per_second": num_rollouts / median(seconds),
        "counters": {name: fmean(step.counters[name] for step in measured) for name in sorted(measured[0].counters)},
        "peak_rss_mib": recorder.peak_rss_mib,
        "baseline_rss_mib": recorder.baseline_rss_mib,
        "step_memory_mib": recorder.peak_rss_mib - recorder.baseline_rss_mib,
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in libraries}},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("mmrl", "trl"), required=True)
    parser.add_argument("--model", type=Path, default=Path("runs/step_model"), help="folder; built if it is missing")
    parser.add_argument("--kind", choices=sorted(SETTINGS), default="qwen2_5_vl", help="model that is built")
    parser.add_argument("--image-size", type=int, default=560, help="width and height, px; 28 x 28 px are one token")
    parser.add_argument("--group", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--completion", type=int, default=32, help="tokens of each completion")
    parser.add_argument("--beta", type=float, default=0.0, help="weight of the KL penalty; 0 needs no reference policy")
    parser.add_argument("--prompts", type=int, default=2, help="prompts of a step")
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them; the first includes loading")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (default: all cores)")
    arguments = parser.parse_args()
    if arguments.warmup < 1 or arguments.steps < 1:
        parser.error("--warmup and --steps must be 1 or more: the first step includes loading, so it is not measured")
    arguments.model = arguments.model.absolute()
    os.environ |= {
        "OMP_NUM_THREADS": str(arguments.threads),
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
    }
    import torch

    torch.set_num_threads(arguments.threads)
    recorder = Recorder()
    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        if not arguments.model.exists():
            build_model(arguments.model, kind=arguments.kind)
        rows = write_rows(Path(folder), arguments.prompts * (arguments.warmup + arguments.steps), arguments.image_size)
        run = run_mmrl if arguments.engine == "mmrl" else run_trl
        run(arguments, rows, Path(folder), recorder)
        check_work(arguments, recorder.steps)
    print(json.dumps(summary(arguments, recorder)))


if __name__ == "__main__":
    main()

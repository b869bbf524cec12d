"""What a small model of a family is held to: the same by transformers alone, on every path and with every option.

`tests/integration/test_families.py` holds the differences below their limits; `docs/model_table.py` writes them down.
The truth comes from transformers, peft and a processor's outputs: a prompt, its completion appended, one forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.types import Prompt, Row, Sampling

IMAGES, VIDEOS, SOUNDS = ("image",), ("image", "video"), ("image", "video", "audio")
FAMILIES = {
    "qwen2_vl": VIDEOS,
    "qwen2_5_vl": VIDEOS,
    "qwen2_audio": ("audio",),
    "qwen3_vl": VIDEOS,
    "qwen3_vl_moe": VIDEOS,
    "qwen3_5": VIDEOS,
    "qwen2_5_omni": SOUNDS,
    "qwen3_omni": SOUNDS,
    "glm46v": VIDEOS,
    "gemma3": IMAGES,
    "gemma4": SOUNDS,
    "internvl": VIDEOS,
    "smolvlm": VIDEOS,
    "llava": IMAGES,
    "llava_onevision": VIDEOS,
    "mistral3": IMAGES,
    "lfm2_vl": IMAGES,
}
"""Kind of tiny model -> the media that it takes."""

OPTIONS = ("shared prompt", "kept features", "decode step", "LoRA", "checkpointing", "save and load", "later medium")
"""What `Family.check` looks at beside the media."""

Expected = tuple[list[Tensor], dict[str, Tensor]]
"""Logprobs of rows, and the gradients of their sum by the parameters' names."""

RATE_HZ = 16000
SIZES_PX = ((112, 84), (60, 140), (84, 84))
"""(width, height) of the first, second and third medium of a prompt."""


@dataclass(frozen=True)
class Difference:
    """Largest difference from the truth.

    Attributes:
        logprobs: absolute.
        gradients: of a parameter, relative to its norm; 0.0 where none was taken.
    """

    logprobs: float
    gradients: float = 0.0


def medium(kind: str, place: int) -> dict[str, Any]:
    """Noise of a kind, of another size in each place."""
    numbers = np.random.default_rng(place)
    width, height = SIZES_PX[place]
    if kind == "image":
        return {"type": "image", "image": Image.fromarray(numbers.integers(0, 255, (height, width, 3), dtype=np.uint8))}
    if kind == "audio":
        samples = numbers.standard_normal(RATE_HZ // 2 - 2000 * place).astype("f")
        return {"type": "audio", "audio": samples, "sampling_rate": RATE_HZ}
    frames = torch.from_numpy(numbers.integers(0, 255, (4, 3, height, width), dtype=np.uint8))
    about = {"fps": 2.0, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
    return {"type": "video", "video": frames, "metadata": {**about, "video_backend": "pyav"}}


def question(kinds: Sequence[str], text: str = "What is it?", start: int = 0) -> dict[str, Any]:
    parts = [medium(kind, start + place) for place, kind in enumerate(kinds)]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def prompts_of(media: Sequence[str]) -> dict[str, Prompt]:
    """No medium, one of each kind, and two pictures of unequal sizes, by name; every second one with a prefix."""
    cases = {"text": (), **{kind: (kind,) for kind in media}}
    if "image" in media:
        cases["two images"] = ("image", "image")
    return {
        name: Prompt(name, [question(kinds, f"Q {name}?")], {}, prefix="<think>\n" if place % 2 else "")
        for place, (name, kinds) in enumerate(cases.items())
    }


class Family:
    """A small model here, and by transformers alone."""

    def __init__(self, kind: str, folder: Path, scratch: Path) -> None:
        """
        Args:
            kind: of `FAMILIES`.
            folder: of the model.
            scratch: folder for what is saved on the way.
        """
        self.kind, self.folder, self.scratch, self.media = kind, folder, scratch, FAMILIES[kind]
        self.policy = self.made()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.prompts = prompts_of(self.media)

    @property
    def shared(self) -> bool:
        return self.policy.model.plain_reason is None

    def plain_model(self, folder: Path | None = None) -> Any:
        loader = AutoModelForMultimodalLM if "audio" in self.media else AutoModelForImageTextToText
        return loader.from_pretrained(folder or self.folder, dtype=torch.float32).eval()

    @cached_property
    def rows(self) -> list[Row]:
        """Two completions of each prompt, sampled."""
        sampling = Sampling(max_tokens=5, temperature=1.0, top_p=1.0, top_k=0, seed=3)
        groups = self.policy.rollout(list(self.prompts.values()), 2, sampling)
        return [rollout.rows[0] for group in groups for rollout in group.rollouts]

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def inputs(self, messages: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, Any]:
        """Outputs of the processor for messages and the beginning of a turn."""
        of = lambda kind: [part for message in messages for part in message["content"] if part["type"] == kind]  # noqa: E731
        text = self.render(messages) + prefix
        media = {"images": [part["image"] for part in of("image")], "videos": [part["video"] for part in of("video")]}
        opening = self.processor.tokenizer.bos_token
        options: dict[str, Any] = {}
        if opening is not None and text.startswith(opening):
            options["add_special_tokens"] = False  # as transformers does where it applies the template itself
        if of("video"):
            options |= {"video_metadata": [part["metadata"] for part in of("video")], "do_sample_frames": False}
        if of("audio"):
            options |= {"audio": [part["audio"] for part in of("audio")], "sampling_rate": RATE_HZ}
        media = {name: values for name, values in media.items() if values}
        return dict(self.processor(text=[text], return_tensors="pt", **media, **options))

    def truth(self, model: Any, messages: Sequence[Mapping[str, Any]], action: Tensor, prefix: str = "") -> Tensor:
        """Logprobs [T] of a completion by transformers alone."""
        outputs = self.inputs(messages, prefix)
        length = outputs["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in outputs:
                tails = {"input_ids": action, "attention_mask": torch.ones_like(action)}
                outputs[name] = torch.cat([outputs[name], tails.get(name, torch.zeros_like(action))[None]], 1)
        logits = model(**outputs, use_cache=False).logits[0, length - 1 : -1]
        return logits.log_softmax(-1).gather(-1, action[:, None])[:, 0]

    def truths(self, model: Any, rows: Sequence[Row]) -> list[Tensor]:
        """Of each row of `rows`, whose prompts are this family's. The sum's gradients are left in the model."""
        prompts = [self.prompts[row.prompt_id] for row in rows]
        found = [
            self.truth(model, prompt.messages, row.action, prompt.prefix)
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        torch.cat(found).sum().backward()
        return [values.detach() for values in found]

    @cached_property
    def expected(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Logprobs of `rows`, and the gradients of their sum, by transformers alone."""
        model = self.plain_model()
        return self.truths(model, self.rows), gradients_of(model)

    def made(self, **options: Any) -> LanguageModelPolicy:
        return LanguageModelPolicy(self.folder, precision="float32", **options)

    def rows_of(self, policy: LanguageModelPolicy) -> list[Row]:
        """`rows` as another policy encodes them: what it computes of media stays its own."""
        encode = policy.encoder.encode
        return [replace(row, observation=encode(self.prompts[row.prompt_id])) for row in self.rows]

    def compared(
        self, policy: LanguageModelPolicy, rows: Sequence[Row], expected: Expected | None = None
    ) -> Difference:
        """Logprobs of rows by a policy, and the gradients of their sum; `expected` is by default that of `rows`."""
        expected = expected or self.expected
        found = policy.logprobs(rows).logprobs
        found.sum().backward()
        worst = gradient_difference(policy.model.model, expected[1])
        by_row = [values[: row.num_actions].detach() for values, row in zip(found, rows, strict=True)]
        return Difference(largest(by_row, expected[0]), worst)

    def check(self, option: str) -> Difference | str:
        """The largest difference seen with one of `OPTIONS`, or why there is nothing to compare."""
        checks = (
            *(self.shared_prompt, self.kept_features, self.decode_step, self.lora),
            *(self.gradient_checkpointing, self.saved, self.later_medium),
        )
        return dict(zip(OPTIONS, checks, strict=True))[option]()

    @cached_property
    def batch(self) -> dict[str, Difference]:
        """Of each prompt by its name, in one batch, which the gradients are of; "sampled" of what was sampled."""
        logprobs, gradients = self.expected
        found = self.policy.logprobs(self.rows).logprobs
        found.sum().backward()
        worst = gradient_difference(self.policy.model.base, gradients)
        differences: dict[str, Difference] = {}
        for values, row, own in zip(found.detach(), self.rows, logprobs, strict=True):
            before = differences.get(row.prompt_id, Difference(0.0)).logprobs
            differences[row.prompt_id] = Difference(max(before, largest([values[: row.num_actions]], [own])), worst)
        sampled = [row.sampler_logprobs for row in self.rows if row.sampler_logprobs is not None]
        return {**differences, "sampled": Difference(largest(sampled, logprobs))}

    def shared_prompt(self) -> Difference | str:
        if self.policy.model.plain_reason is not None:
            return self.policy.model.plain_reason.split(" (")[0]
        return Difference(max(item.logprobs for item in self.batch.values()), self.batch["text"].gradients)

    def decode_step(self) -> Difference | str:
        if not self.shared:
            return "own forward"
        return self.batch["sampled"] if self.policy.model.lean_decoding else "layers with experts"

    def kept_features(self) -> Difference | str:
        """Frozen towers, in a second pass, which finds the features of the first."""
        if not self.shared:
            return "own forward"
        towers = ["vision"] * ("image" in self.media) + ["audio"] * ("audio" in self.media)
        frozen = self.made(freeze=[*towers, "projector"])
        rows = self.rows_of(frozen)
        with torch.no_grad():
            frozen.logprobs(rows)
        frozen.counters.clear()
        found = self.compared(frozen, rows)
        if frozen.counters["media_encodes"]:
            raise AssertionError(f"features were computed again: {frozen.counters}")
        return found

    def lora(self) -> Difference:
        """Adapters of random weights, against those that peft reads from the saved ones."""
        import peft

        adapted = self.made(lora={"rank": 2, "alpha": 4})
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in adapted.module.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.1, generator=generator)
        adapted.save(made(self.scratch / "adapter"))
        model = peft.PeftModel.from_pretrained(self.plain_model(), str(self.scratch / "adapter"), is_trainable=True)
        expected = self.truths(model, self.rows)
        if not largest(expected, self.expected[0]) > 1e-3:
            raise AssertionError("the adapters change nothing")
        return self.compared(adapted, self.rows_of(adapted), (expected, gradients_of(model)))

    def gradient_checkpointing(self) -> Difference:
        """Activations that are computed again in the backward pass."""
        again = self.made(gradient_checkpointing=True)
        model = self.policy.model
        cached, model.cache_reason = model.cache_reason, "rows run whole, as they do with checkpointing"
        runs = [self.layer_runs(self.policy), self.layer_runs(again)]
        model.cache_reason = cached
        if not runs[1] == 2 * runs[0] > 0:
            raise AssertionError(f"a layer runs {runs[0]} times without and {runs[1]} times with checkpointing")
        return self.compared(again, self.rows)

    def layer_runs(self, policy: LanguageModelPolicy) -> int:
        """How often a layer of the decoder is computed for an update. Its own hooks see the first time only."""
        rows, runs = self.rows_of(policy), []
        part = next(policy.model.base.get_decoder().layers[-1].children())
        handle = part.register_forward_pre_hook(lambda *_: runs.append(None))
        policy.logprobs(rows).logprobs.sum().backward()
        handle.remove()
        policy.module.zero_grad()
        return len(runs)

    def saved(self) -> Difference:
        """After an update: saved, read by transformers, and loaded into the model that it came from."""
        moved = self.made()
        moved.logprobs(self.rows).logprobs.sum().backward()
        torch.optim.SGD(moved.module.parameters(), lr=1e-3).step()
        moved.module.zero_grad()
        moved.save(made(self.scratch / "saved"))
        plain = self.plain_model(self.scratch / "saved")
        found = self.compared(moved, self.rows, (self.truths(plain, self.rows), gradients_of(plain)))
        weights = {name: values.clone() for name, values in moved.module.state_dict().items()}
        moved.load(self.folder)
        if all(torch.equal(values, weights[name]) for name, values in moved.module.state_dict().items()):
            raise AssertionError("the update moved no weight")
        moved.load(self.scratch / "saved")
        if not all(torch.equal(values, weights[name]) for name, values in moved.module.state_dict().items()):
            raise AssertionError("what is loaded is not what was saved")
        return found

    def later_medium(self) -> Difference:
        """Two conversations whose second turn follows a medium that a tool returned."""
        kind = self.media[0]
        prompt = Prompt("talk", [question([kind])], {})
        reply = {"role": "tool", "content": question([kind], "this was found", start=1)["content"]}
        answers = ["a red dog", "no"]
        said = [{"role": "assistant", "content": [{"type": "text", "text": answer}]} for answer in answers]
        talks = [[*prompt.messages, turn, reply] for turn in said]
        rollouts = [group.rollouts[0] for group in self.policy.demonstrate([prompt, prompt], answers)]
        for rollout, talk, answer in zip(rollouts, talks, answers, strict=True):
            rest = self.render(talk).partition(answer)[2]
            rollout.rows[0].action[-1] = self.processor.tokenizer(rest, add_special_tokens=False)["input_ids"][0]
        observations = [self.policy.observe(prompt, rollout, [reply]) for rollout in rollouts]
        sampling = Sampling(max_tokens=4, temperature=1.0, top_p=1.0, top_k=0, seed=0)
        later = [row for row, _ in self.policy.act([prompt, prompt], rollouts, observations, sampling)]
        rows = [*(rollout.rows[0] for rollout in rollouts), *later]
        model = self.plain_model()
        expected = [
            self.truth(model, talk, row.action)
            for talk, row in zip([prompt.messages, prompt.messages, *talks], rows, strict=True)
        ]
        torch.cat(expected).sum().backward()
        found = self.compared(self.policy, rows, (expected, gradients_of(model)))
        sampled = largest([row.sampler_logprobs for row in later], expected[2:])
        return replace(found, logprobs=max(found.logprobs, sampled))


def gradients_of(module: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def gradient_difference(module: Any, expected: Mapping[str, Tensor]) -> float:
    """Largest of a trained parameter, relative to the norm of the expected one. The module's are then cleared."""
    worst = 0.0
    for name, parameter in module.named_parameters():
        own = expected.get(name)
        if parameter.requires_grad and own is not None and float(own.norm()) > 1e-6:
            found = torch.zeros_like(own) if parameter.grad is None else parameter.grad
            worst = max(worst, float((found - own).norm() / own.norm()))
    module.zero_grad()
    return worst


def largest(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(one, two, strict=True))


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder

"""Tiny models that vLLM's CPU build takes, and policies that sample through it.

`make test-vllm` runs these tests in an environment of their own. `make test` does not collect them: a test that is
skipped where vLLM is missing would pass there too if vLLM had failed to install.
"""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl_core.conversation import Reply, multi_turn
from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.support import laid_out_like
from mmrl_core.testing import build_tiny
from mmrl_core.types import Prompt, Sampling


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory):
    """One thread, here and in servers, and a cache of our own."""
    threads, environment = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(1)
    os.environ |= {"MMRL_CACHE": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """`tiny_model(kind)` -> folder of a tiny model with larger matrices, that stops at every sixth token.

    Heads are 32 wide, the smallest that vLLM's attention takes on a CPU.
    """
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("models")

    def model(kind):
        if not (folder / kind).exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("mmrl_core.testing.models.sizes.NUM_HEADS", 2)
                patch.setattr("mmrl_core.testing.models.sizes.HEAD_DIM", 32)
                patch.setattr("mmrl_core.testing.models.sizes.AUDIO_WINDOW_S", 30)  # vLLM takes no other
                build_tiny(kind, folder / kind)
            weights = load_file(folder / kind / "model.safetensors")
            for name, weight in weights.items():
                if weight.dim() > 1 and "embed" not in name:
                    weight *= 3.0
            save_file(weights, folder / kind / "model.safetensors", metadata={"format": "pt"})
            generation = json.loads((folder / kind / "generation_config.json").read_text())
            generation["eos_token_id"] += range(0, 480, 6)
            (folder / kind / "generation_config.json").write_text(json.dumps(generation))
        return folder / kind

    return model


@pytest.fixture(scope="session")
def make_policy(tiny_model):
    """`make_policy(kind, engine, **options)` -> policy in float32."""

    def policy(kind, engine, **options):
        return LanguageModelPolicy(tiny_model(kind), engine=engine, **options)

    return policy


def picture(seed, width=56, height=56):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def clip(seed, num_frames=4):
    """Frames and metadata of a video, two frames a second.

    It is no longer than wide, in tokens: from there on transformers 5 counts positions otherwise.
    """
    frames = np.random.default_rng(seed).integers(0, 255, (num_frames, 3, 56, 84), dtype=np.uint8)
    indices = list(range(0, 12 * num_frames, 12))
    metadata = {"fps": 24.0, "total_num_frames": 12 * num_frames, "frames_indices": indices, "video_backend": "decord"}
    return torch.from_numpy(frames), metadata


def sound(seed, seconds):
    samples = np.random.default_rng(seed).standard_normal(round(seconds * 16000)).astype(np.float32) * 0.1
    return samples, 16000


def part(value):
    """A part of a chat message: a text, a picture, (frames, metadata) or (samples, rate)."""
    if isinstance(value, str):
        return {"type": "text", "text": value}
    if isinstance(value, Image.Image):
        return {"type": "image", "image": value}
    values, about = value
    if isinstance(about, int):
        return {"type": "audio", "audio": values, "sampling_rate": about}
    return {"type": "video", "video": values, "metadata": about}


def make_prompt(name, text, images=(), videos=(), audios=()):
    """A prompt of one user message; videos are (frames, metadata), audios (samples, rate)."""
    content = [*map(part, images), *map(part, videos), *map(part, audios), part(text)]
    keys = tuple(f"{name}-{index}" for index in range(len(content) - 1))
    return Prompt(name, [{"role": "user", "content": content}], {"name": name}, "", keys)


@pytest.fixture(scope="session")
def prompts():
    """`prompts(kind)` -> three of unequal lengths; of a vision model with one, two and no images."""

    def of_kind(kind):
        images = [[picture(1, 84, 56)], [picture(2), picture(3, 112, 84)], []] if "vl" in kind else [[], [], []]
        texts = ["What is this?", "Compare " + "really " * 9 + "the two.", "Which colour is the circle on the left?"]
        return [
            make_prompt(f"{kind}-{index}", text, media)
            for index, (text, media) in enumerate(zip(texts, images, strict=True))
        ]

    return of_kind


def rows_of(groups):
    return [row for group in groups for rollout in group.rollouts for row in rollout.rows]


def generate(policy, prompts, num_samples, sampling, on_finished):
    """The engine by itself, for prompts."""
    observations = [policy.encoder.encode(prompt) for prompt in prompts]
    policy.engine.generate(policy, prompts, observations, num_samples, sampling, on_finished)


def told(policy, prompts, num_samples, sampling):
    """What the engine tells: indices of prompts and their completions, in the order of telling."""
    heard = []
    generate(policy, prompts, num_samples, sampling, lambda *finished: heard.append(finished))
    return heard


class Answers:
    """An environment that answers the first turns of conversations by given parts, of each another number of turns."""

    def __init__(self, *replies):
        self.replies = replies
        self.num_begun = 0

    def prepare(self, prompt):
        return prompt

    def begin(self, prompt):
        self.num_begun += 1
        return {"num_answered": 0, "num_answers": self.num_begun % (len(self.replies) + 1)}

    def reply(self, episodes, texts, ask):
        answers = []
        for episode in episodes:
            turn = episode["num_answered"]
            if turn == episode["num_answers"]:
                answers.append(None)
            else:
                episode["num_answered"] += 1
                answers.append(Reply([{"role": "tool", "content": list(self.replies[turn])}]))
        return answers

    def outcome(self, episode):
        return {}

    def close(self):
        pass


def converse(policy, prompts, replies, sampling, group_size=4):
    """Conversations that are told the replies, with the weights of now."""
    policy.set_temperature(sampling.temperature or 1.0)
    policy.publish_weights()
    return multi_turn(policy, prompts, group_size, sampling, environment=Answers(*replies))


def trainer_logprobs(policy, rows):
    """Logprobs of each row's tokens, as the trainer computes them."""
    with torch.no_grad():
        logprobs = policy.logprobs(rows).logprobs
    return [logprobs[index, : row.num_actions] for index, row in enumerate(rows)]


def largest_difference(policy, rows):
    """Between sampler and trainer, over all tokens."""
    trainer = trainer_logprobs(policy, rows)
    return max(float((row.sampler_logprobs - own).abs().max()) for row, own in zip(rows, trainer, strict=True))


def change_weights(policy, scale=0.05, seed=0):
    """Add noise to every trained parameter; of media towers too, but not where the tiny model keeps a constant."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += scale * laid_out_like(noise, parameter)


def told_of_rank(policy, rank):
    """Completions of the prompt of a process, and how far their logprobs are from the trainer's."""
    prompt = make_prompt(f"{rank}", "What is this?", [picture(rank, 84, 56)])
    rows = rows_of(policy.rollout([prompt], 4, Sampling(12, seed=7 + rank)))
    return [row.action.tolist() for row in rows], largest_difference(policy, rows)


class Helpers:
    change_weights = staticmethod(change_weights)
    clip = staticmethod(clip)
    converse = staticmethod(converse)
    generate = staticmethod(generate)
    largest_difference = staticmethod(largest_difference)
    make_prompt = staticmethod(make_prompt)
    picture = staticmethod(picture)
    part = staticmethod(part)
    rows_of = staticmethod(rows_of)
    sound = staticmethod(sound)
    told = staticmethod(told)
    told_of_rank = staticmethod(told_of_rank)
    trainer_logprobs = staticmethod(trainer_logprobs)


@pytest.fixture(scope="session")
def helpers():
    return Helpers

"""The trainer knows a protocol: policies without tokens and strategies of several turns train through it unchanged."""

import json
import shutil

import pytest
import torch

from mmrl_core.metrics import read_metrics

GAUSSIAN = """
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmrl_core import hookimpl
from mmrl_core.errors import PolicyError
from mmrl_core.types import Rollout, RolloutGroup, Row, TokenStats

DIM, STD, OPTIMUM = 4, 0.5, torch.tensor([1.0, -1.0, 0.5, 2.0])

@hookimpl
def mmrl_register(registry):
    registry.add("policy", "gaussian", "probe_gaussian:GaussianPolicy", "a Gaussian over latents, one mean for all")
    registry.add("policy", "pictures", "probe_gaussian:PicturePolicy", "the same, seen as grey pictures")
    registry.add("model", "origin", "probe_gaussian:build", "mean at the origin")
    registry.add("reward", "near", "probe_gaussian:near", "minus the squared distance to the optimum", maximum=0.0)
    registry.add("reward", "image", "probe_gaussian:image", "brightness of the picture")

def near(completions, samples):
    return [-float((completion - OPTIMUM).square().sum()) for completion in completions]

def image(completions, samples):
    return [sum(completion.getpixel((0, 0))) / 765 for completion in completions]

def build(directory, *, seed=0):
    directory.mkdir()
    save_file({"mean": torch.zeros(DIM)}, directory / "gaussian.safetensors")

class Gaussian(nn.Module):
    def __init__(self, mean):
        super().__init__()
        self.mean = nn.Parameter(mean)

    def forward(self, rows, needs=()):
        actions = torch.stack([row.action for row in rows])  # [B, dim]
        density = torch.distributions.Normal(self.mean, STD)
        return TokenStats(density.log_prob(actions).sum(-1, keepdim=True))  # [B, 1]

class GaussianPolicy:
    def __init__(self, config, *, path, device="cpu", engine=None):
        self.module = Gaussian(load_file(Path(path) / "gaussian.safetensors")["mean"]).to(device)
        self.frozen = {}

    def prepare(self, prompts): ...

    def publish_weights(self): ...

    def rollout(self, prompts, group_size, sampling, on_group=None):
        generator = torch.Generator().manual_seed(sampling.seed)
        mean, groups = next(self.module.parameters()).detach(), []
        for prompt in prompts:
            rollouts = []
            for index in range(group_size):
                noise = torch.randn(DIM, generator=generator)
                latent = mean + (STD if sampling.temperature else 0.0) * noise
                row = Row(prompt.id, f"{prompt.id}/{index}", observation=prompt.id, action=latent, num_actions=1)
                rollouts.append(Rollout([row], self.decode(latent)))
            groups.append(RolloutGroup(prompt, rollouts))
            if on_group is not None:
                on_group(groups[-1])
        return groups

    def num_tokens(self, rows):
        return len(rows)

    def close(self): ...

    def decode(self, latent):
        return latent

    def demonstrate(self, prompts, answers):
        raise PolicyError("a Gaussian cannot be shown answers.")

    def logprobs(self, rows, *, needs=(), frozen=None):
        if frozen is None:
            return self.module(rows, needs)
        with torch.no_grad():
            return Gaussian(self.frozen[frozen])(rows, needs)

    def freeze(self, name):
        self.frozen[name] = next(self.module.parameters()).detach().clone()

    def refresh(self, name, decay):
        self.frozen[name].lerp_(next(self.module.parameters()).detach(), 1 - decay)

    def set_temperature(self, temperature): ...

    def describe(self):
        return ["acts once"]

    def prompt_length(self, prompt):
        return None

    def take_counters(self):
        return {}

    def save(self, directory):
        save_file({"mean": next(self.module.parameters()).detach()}, directory / "gaussian.safetensors")

    def load(self, directory):
        next(self.module.parameters()).data.copy_(load_file(directory / "gaussian.safetensors")["mean"])

    def save_frozen(self, directory):
        save_file(self.frozen, directory / "frozen.safetensors") if self.frozen else None

    def load_frozen(self, directory):
        path = directory / "frozen.safetensors"
        self.frozen = load_file(path) if path.exists() else {}

class PicturePolicy(GaussianPolicy):
    def decode(self, latent):
        from PIL import Image

        level = int((latent[:3].sigmoid().mean() * 255).round())
        return Image.new("RGB", (4, 4), (level, level, level))
"""


@pytest.fixture
def gaussian_config(install, data_files, monkeypatch, tmp_path):
    """`gaussian_config(steps)` -> plain config; the data are prompts without media."""
    install("probe_gaussian", GAUSSIAN)
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    source = {"name": "rows", "path": str(data_files / "text.jsonl")}

    def config(steps=40, policy="probe_gaussian/gaussian", reward="probe_gaussian/near"):
        return {
            "name": "test/gaussian",
            "model": {"policy": policy, "build": "probe_gaussian/origin"},
            "data": {"train": source, "held_out": {**source, "limit": 2}},
            "prompt": {"text": "{question}"},
            "rewards": [reward],
            "checkpoint": {"every_steps": 5},
            "log": {"rollouts_every_steps": 5},
            "optimizer": {"lr": 0.1},
            "algorithm": {"kl": {"coefficient": 1e-3}, "updates_per_rollout": 2},
            "stages": [{"kind": "grpo", "steps": steps, "prompts_per_step": 4, "group_size": 8}],
        }

    return config


def test_a_gaussian_over_latents_is_trained_to_a_known_optimum(make_trainer, gaussian_config):
    """The mean moves to [1, -1, 0.5, 2]; then the expected reward is -4 * 0.25, and that of the mean itself 0."""
    trainer = make_trainer(gaussian_config())
    trainer.run(resume=False)
    records = read_metrics(trainer.output)
    rewards = [record["reward/total"] for record in records if record["kind"] == "step"]
    assert rewards[0] == pytest.approx(-7.25, abs=1.5)  # at the origin: -(1 + 1 + 0.25 + 4) - 1
    assert sum(rewards[-5:]) / 5 == pytest.approx(-1, abs=0.4)
    held_out = [record["greedy/reward/probe_gaussian/near"] for record in records if record["kind"] == "eval"]
    assert held_out[0] == -6.25 and held_out[1] > -0.2
    torch.testing.assert_close(
        next(trainer.policy.module.parameters()).detach(), torch.tensor([1.0, -1.0, 0.5, 2.0]), rtol=0, atol=0.3
    )


def test_a_gaussian_is_saved_and_resumed_bit_for_bit(make_trainer, gaussian_config, tmp_path, without_times):
    whole = make_trainer(gaussian_config(steps=8))
    whole.run(resume=False)
    resumed_folder = tmp_path / "resumed"
    shutil.copytree(whole.output, resumed_folder)
    shutil.rmtree(resumed_folder / "checkpoints" / "step-8")
    resumed = make_trainer(gaussian_config(steps=8), resumed_folder)
    resumed.run(resume=True)
    assert torch.equal(resumed.policy.module.mean, whole.policy.module.mean)
    kept = [[without_times(record) for record in read_metrics(run.output)] for run in (whole, resumed)]
    assert kept[0] == kept[1] and len(kept[0]) == 10  # 8 steps, 2 evaluations


def test_completions_may_be_pictures(make_trainer, gaussian_config):
    trainer = make_trainer(gaussian_config(6, "probe_gaussian/pictures", "probe_gaussian/image"))
    trainer.run(resume=False)
    rollouts = [json.loads(line) for line in (trainer.output / "rollouts/step-000001-train.jsonl").open()]
    assert all(rollout["completion"] is None and rollout["num_tokens"] == 1 for rollout in rollouts)
    assert all((trainer.output / "rollouts" / rollout["completion_media"]).exists() for rollout in rollouts)
    rewards = [record["reward/total"] for record in read_metrics(trainer.output) if record["kind"] == "step"]
    assert rewards[-1] > rewards[0]


TWO_TURNS = """
from dataclasses import replace

from mmrl_core import hookimpl
from mmrl_core.types import Rollout, RolloutGroup

BATCHES, CONVERSATIONS, VIEWS = [], {}, []

@hookimpl
def mmrl_register(registry):
    registry.add("strategy", "two_turns", "probe_turns:two_turns", "asks again, with a hint, unless told not to")

def two_turns(policy, prompts, group_size, sampling, *, hint="look again"):
    first = policy.rollout(prompts, group_size, sampling)
    going = [(group.prompt, rollout) for group in first for rollout in group.rollouts if goes_on(rollout)]
    conversations = [conversation(prompt, rollout.completion, hint) for prompt, rollout in going]
    answers = policy.rollout(conversations, 1, replace(sampling, seed=sampling.seed + 1)) if going else []
    second = {rollout.rows[0].trajectory_id: answer for (_, rollout), answer in zip(going, answers, strict=True)}
    groups = []
    for group in first:
        rollouts = []
        for rollout in group.rollouts:
            row = rollout.rows[0]
            if row.trajectory_id not in second:
                rollouts.append(rollout)
                continue
            answer = second[row.trajectory_id]
            CONVERSATIONS[row.trajectory_id] = answer.prompt
            turn = replace(answer.rollouts[0].rows[0], trajectory_id=row.trajectory_id, step_index=1, parent_row=0)
            rows = [replace(row, done=False, truncated=False), turn]
            rollouts.append(Rollout(rows, answer.rollouts[0].completion))
        groups.append(RolloutGroup(group.prompt, rollouts))
    return groups

def goes_on(rollout):
    return rollout.num_actions % 2 == 0

def conversation(prompt, completion, hint):
    said = {"role": "assistant", "content": [{"type": "text", "text": completion}]}
    environment = {"role": "user", "content": [{"type": "text", "text": hint}]}
    return replace(prompt, messages=[*prompt.messages, said, environment])

@hookimpl(wrapper=True)
def mmrl_compute_advantages(view):
    VIEWS.append(view)
    return (yield)

@hookimpl
def mmrl_after_update(batch):
    second_turns = [row.trajectory_id for row in batch.rows if row.step_index]
    BATCHES.append((batch, {name: CONVERSATIONS[name] for name in second_turns}))
    CONVERSATIONS.clear()
"""


@pytest.fixture
def two_turns(install, make_trainer, base_config, rewards_file):
    """The trainer after two steps of two-turn rollouts, and the probe module."""
    install("probe_turns", TWO_TURNS)
    base = base_config("qwen2_vl")
    config = {
        **base,
        "plugins": ["probe_turns"],
        "rewards": [f"{rewards_file}:spread"],
        "rollout": {"max_tokens": 6, "strategy": {"name": "probe_turns/two_turns", "hint": "which color"}},
        "data": {**base["data"], "held_out": {**base["data"]["train"], "limit": 4}},
        "algorithm": {"updates_per_rollout": 2},
        "log": {"rollouts_every_steps": 1, "rollouts_per_step": 4},
        "optimizer": {"lr": 1e-3},
        "stages": [{"kind": "grpo", "steps": 2, "prompts_per_step": 4, "group_size": 4, "micro_batch_rows": 5}],
    }
    trainer = make_trainer(config)
    trainer.run(resume=False)
    import probe_turns

    return trainer, probe_turns


def test_two_turns_make_trajectories_of_two_rows(two_turns, plain_model, tiny_model):
    trainer, probe = two_turns
    plain = plain_model(tiny_model("qwen2_vl"))
    batch, conversations = probe.BATCHES[0]
    sizes = [int((batch.trajectory_ids == n).sum()) for n in range(16)]
    assert sorted(set(sizes)) == [1, 2] and sum(sizes) == len(batch.rows) == len(batch)
    for name in conversations:
        rows = [row for row in batch.rows if row.trajectory_id == name]
        assert [(row.step_index, row.parent_row, row.done) for row in rows] == [(0, None, False), (1, 0, True)]
    assert batch.step_index.tolist() == [row.step_index for row in batch.rows]
    assert batch.group_ids.tolist() == [n // 4 for n in batch.trajectory_ids.tolist()]

    # Logprobs of a second turn are those of a plain forward over the whole conversation, pictures included.
    with torch.no_grad():
        for index, row in enumerate(batch.rows):
            prompt = trainer.train_source.prompt(int(row.prompt_id.split(":")[1]))
            given = conversations[row.trajectory_id] if row.step_index else prompt
            expected = plain.logprobs(given, row.action)
            for found in (row.sampler_logprobs, batch.old_logprobs[index, : row.num_actions]):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_advantages_count_a_trajectory_once_however_many_rows_it_has(two_turns):
    _, probe = two_turns
    for (batch, _), view in zip(probe.BATCHES, probe.VIEWS, strict=True):
        rewards = {n: float(batch.rewards[batch.trajectory_ids == n][0]) for n in range(16)}
        for group in range(4):
            members = [rewards[n] for n in range(4 * group, 4 * group + 4)]
            mean = sum(members) / 4
            std = (sum((reward - mean) ** 2 for reward in members) / 3) ** 0.5
            for n in range(4 * group, 4 * group + 4):
                expected = (rewards[n] - mean) / (std + 1e-4)
                of_rows = batch.advantages[batch.trajectory_ids == n]
                masks = batch.mask[batch.trajectory_ids == n]
                assert of_rows[masks].tolist() == pytest.approx([expected] * int(masks.sum()), abs=1e-4)
                assert not of_rows[~masks].any()
                # The reward of a trajectory stands once, on its last token.
                placed = view.token_rewards[view.trajectory_ids == n]
                assert placed.sum() == pytest.approx(rewards[n]) and (placed != 0).sum() <= 1


def test_written_rollouts_and_evaluation_are_of_whole_trajectories(two_turns):
    trainer, _ = two_turns
    rollouts = [json.loads(line) for line in (trainer.output / "rollouts/step-000001-train.jsonl").open()]
    assert len(rollouts) == 16 and max(rollout["num_tokens"] for rollout in rollouts) > 6
    held_out = [json.loads(line) for line in (trainer.output / "rollouts/step-000002-held_out.jsonl").open()]
    assert len(held_out) == 4 and max(rollout["num_tokens"] for rollout in held_out) > 6

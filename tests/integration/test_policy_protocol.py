"""The trainer knows a protocol: policies without tokens and strategies of several turns train through it unchanged."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from mmrl_core.batching import pack
from mmrl_core.cli import evaluate_checkpoint
from mmrl_core.cli.dry_run import check_run
from mmrl_core.errors import ConfigError, PolicyError
from mmrl_core.loss_inputs import BatchTotals
from mmrl_core.runs import read_metrics
from mmrl_core.step import micro_batch_loss
from mmrl_core.types import Rollout, RolloutGroup, Row

GAUSSIAN = """
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmrl_core import hookimpl
from mmrl_core.errors import PolicyError
from mmrl_core.policy import PolicyBase
from mmrl_core.loss_inputs import TokenStats
from mmrl_core.types import Rollout, RolloutGroup, Row, Scores

DIM, STD, OPTIMUM = 4, 0.5, torch.tensor([1.0, -1.0, 0.5, 2.0])
LOSSES, BATCHES = [], []  # (step, mean, inputs) of each policy loss; (step, batch) of each update

@hookimpl
def mmrl_register(registry):
    registry.add("policy", "gaussian", "probe_gaussian:GaussianPolicy", "a Gaussian over latents, one mean for all")
    registry.add("policy", "pictures", "probe_gaussian:PicturePolicy", "the same, seen as grey pictures")
    registry.add("policy", "films", "probe_gaussian:FilmPolicy", "the same, seen as grey films")
    registry.add("policy", "shifted", "probe_gaussian:ShiftedPolicy", "the same, saved as the shift from its start")
    registry.add("behaviour", "replay", "probe_gaussian:Replay", "adds earlier rollouts of the same prompt")
    registry.add("loss", "with_prior", "probe_gaussian:with_prior", "pulled to the origin", needs=("prior_kl",))
    registry.add("model", "origin", "probe_gaussian:build", "mean at the origin")
    registry.add("reward", "near", "probe_gaussian:near", "minus the squared distance to the optimum", maximum=0.0)
    registry.add("reward", "image", "probe_gaussian:image", "brightness of the picture", reads="image")

def near(completions, samples):
    return [-float((completion - OPTIMUM).square().sum()) for completion in completions]

def image(completions, samples):
    return [sum(completion.convert("RGB").getpixel((0, 0))) / 765 for completion in completions]

def build(directory, *, seed=0):
    directory.mkdir()
    save_file({"mean": torch.zeros(DIM)}, directory / "gaussian.safetensors")

def with_prior(inputs, *, weight=0.1):
    kl = inputs.extras["prior_kl"]
    return -inputs.advantages * inputs.logprobs + weight * kl, {}

class Replay:
    def __init__(self, *, per_prompt: int = 2):
        self.per_prompt, self.kept = per_prompt, {}  # prompt id -> [(step, action, sampler_logprobs, reward)]

    @hookimpl
    def mmrl_extend_groups(self, run, groups, scores):
        extended, totals = [], []
        parts = scores.totals.split([len(group.rollouts) for group in groups])
        for group, part in zip(groups, parts, strict=True):
            earlier = self.kept.get(group.prompt.id, [])
            rows = [Row(group.prompt.id, f"from {s}", None, a, 1, sampler_logprobs=lp) for s, a, lp, _ in earlier]
            extended.append(replace(group, rollouts=[*group.rollouts, *(Rollout([r], r.action) for r in rows)]))
            totals += [part, torch.tensor([reward for *_, reward in earlier])]
            first = zip((g.rows[0] for g in group.rollouts[: self.per_prompt]), part.tolist(), strict=False)
            self.kept[group.prompt.id] = [(run.state.step, r.action, r.sampler_logprobs, reward) for r, reward in first]
        return extended, Scores(torch.cat(totals), {}, {})

    @hookimpl(wrapper=True)
    def mmrl_policy_loss(self, run, inputs):
        LOSSES.append((run.state.step, run.policy.module.mean.detach().clone(), inputs))
        return (yield)

    @hookimpl
    def mmrl_after_update(self, run, batch):
        BATCHES.append((run.state.step, batch))

    @hookimpl
    def mmrl_save_state(self):
        return self.kept

    @hookimpl
    def mmrl_load_state(self, state):
        self.kept = state

class Gaussian(nn.Module):
    def __init__(self, mean, std=STD):
        super().__init__()
        self.mean, self.std = nn.Parameter(mean), std

    def forward(self, rows, needs=()):
        if unknown := set(needs) - {"prior_kl"}:
            raise PolicyError(f"a Gaussian cannot compute {unknown}.")
        actions = torch.stack([row.action for row in rows])  # [B, dim]
        density = torch.distributions.Normal(self.mean, self.std)
        kl = (self.mean.square().sum() / 2).expand(len(rows), 1)  # but for a constant
        return TokenStats(
            density.log_prob(actions).sum(-1, keepdim=True),  # [B, 1]
            extras={"prior_kl": kl} if needs else {},
        )

class GaussianPolicy(PolicyBase):
    def __init__(self, path, *, device="cpu", std: float = STD, tells_logprobs: bool = True):
        super().__init__(Gaussian(load_file(Path(path) / "gaussian.safetensors")["mean"], std).to(device))
        self.std, self.tells_logprobs = std, tells_logprobs

    def rollout(self, prompts, group_size, sampling, on_group=None):
        generator = torch.Generator().manual_seed(sampling.seed)
        mean, groups = self.weights.mean.detach(), []
        for prompt in prompts:
            rollouts = []
            for index in range(group_size):
                noise = torch.randn(DIM, generator=generator)
                latent = mean + (self.std if sampling.temperature else 0.0) * noise
                logprob = torch.distributions.Normal(mean, self.std).log_prob(latent).sum()[None]
                row = Row(prompt.id, f"{prompt.id}/{index}", observation=prompt.id, action=latent, num_actions=1)
                if self.tells_logprobs:
                    row = replace(row, sampler_logprobs=logprob)
                rollouts.append(Rollout([row], self.decode(latent)))
            groups.append(RolloutGroup(prompt, rollouts))
            if on_group is not None:
                on_group(groups[-1])
        return groups

    def decode(self, latent):
        return latent

    def logprobs(self, rows, *, needs=(), frozen=None):
        if frozen is None:
            return self.module(rows, needs)
        with self.frozen_weights(frozen), torch.no_grad():
            return self.weights(rows, needs)

    def describe(self):
        return [f"acts once, std {self.std:g}"]

    def save(self, directory):
        save_file({"mean": self.weights.mean.detach()}, directory / "gaussian.safetensors")

    def load(self, directory):
        self.weights.mean.data.copy_(load_file(directory / "gaussian.safetensors")["mean"])

class PicturePolicy(GaussianPolicy):
    def decode(self, latent):
        from PIL import Image

        level = int((latent[:3].sigmoid().mean() * 255).round())
        return Image.new("RGB", (4, 4), (level, level, level))

class FilmPolicy(PicturePolicy):
    def decode(self, latent):
        return [super(FilmPolicy, self).decode(latent + step) for step in (-1, 0, 1)]

class ShiftedPolicy(GaussianPolicy):
    def __init__(self, path, *, device="cpu"):
        super().__init__(path, device=device)
        self.start = self.module.mean.detach().clone()

    def save(self, directory):
        save_file({"shift": self.module.mean.detach() - self.start}, directory / "shift.safetensors")

    def load(self, directory):
        self.module.mean.data.copy_(self.start + load_file(directory / "shift.safetensors")["shift"])

    @staticmethod
    def needs_base(directory):
        return (directory / "shift.safetensors").exists()
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


@pytest.mark.parametrize("given", [{"prefix": "<think>"}, {"template": {"quiet": True}}])
def test_a_policy_without_a_chat_template_refuses_what_is_said_to_one(given, make_trainer, gaussian_config):
    config = gaussian_config(steps=1)
    config["prompt"] |= given
    with pytest.raises(
        PolicyError, match=rf"GaussianPolicy has no chat template\. Take prompt\.{next(iter(given))} out"
    ):
        make_trainer(config).run(resume=False)


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


def test_films_that_a_policy_makes_are_written(make_trainer, gaussian_config):
    trainer = make_trainer(gaussian_config(1, "probe_gaussian/films", f"{__file__}:number_of_frames"))
    trainer.run(resume=False)
    rollouts = [json.loads(line) for line in (trainer.output / "rollouts/step-000001-held_out.jsonl").open()]
    assert [rollout["total"] for rollout in rollouts] == [3.0, 3.0]
    assert all((trainer.output / "rollouts" / rollout["completion_media"]).exists() for rollout in rollouts)


def number_of_frames(completions, samples):
    return [float(len(completion)) for completion in completions]


def test_a_policy_is_made_with_the_options_of_the_config(make_trainer, gaussian_config):
    trainer = make_trainer(gaussian_config(1, {"name": "probe_gaussian/gaussian", "std": 2.0}))
    trainer.run(resume=False)
    # the mean starts at the origin: the expected reward is -(1 + 1 + 0.25 + 4) - 4 * 2^2
    reward = next(r["reward/total"] for r in read_metrics(trainer.output) if r["kind"] == "step")
    assert reward == pytest.approx(-22.25, abs=6)  # the mean of 32 draws, whose deviation is about 2
    with pytest.raises(ConfigError, match=r"policy 'probe_gaussian/gaussian': no option 'sdt'. Did you mean 'std'\?"):
        make_trainer(gaussian_config(1, {"name": "probe_gaussian/gaussian", "sdt": 2.0}))


def test_a_dry_run_makes_policy_and_behaviours_with_their_options(make_config, gaussian_config):
    values = gaussian_config(1, {"name": "probe_gaussian/pictures", "std": 2.0}, "probe_gaussian/image")
    lines = check_run(make_config({**values, "plugins": [{"name": "probe_gaussian/replay", "per_prompt": 2}]}))
    assert "acts once, std 2" in lines
    with pytest.raises(ConfigError, match=r"behaviour 'probe_gaussian/replay': no option 'per_promt'"):
        check_run(make_config({**values, "plugins": [{"name": "probe_gaussian/replay", "per_promt": 2}]}))


@pytest.mark.parametrize("policy", ["gaussian", "shifted"])
def test_a_checkpoint_is_evaluated_whole_or_over_its_start(make_trainer, make_config, gaussian_config, policy):
    values = gaussian_config(5, f"probe_gaussian/{policy}")
    trainer = make_trainer(values)
    trainer.run(resume=False)
    last = [record for record in read_metrics(trainer.output) if record["kind"] == "eval"][-1]
    found = evaluate_checkpoint(make_config(values), trainer.output)
    measured = {name: value for name, value in found.items() if not name.startswith("memory/")}
    assert "greedy/reward/probe_gaussian/near" in found and measured == {name: last[name] for name in measured}


# Quantities of a policy's own in the loss


def batch_of(trainer, actions, advantages):
    rows = [Row("p", str(index), None, torch.tensor(action), 1) for index, action in enumerate(actions)]
    batch = pack([RolloutGroup(None, [Rollout([row], None) for row in rows])])
    return replace(batch, advantages=torch.tensor(advantages)[:, None])


def test_a_loss_gets_what_it_needs_of_the_policy_with_gradient(make_trainer, gaussian_config):
    """Two rows with advantages 1 and -2, and 0.1 * |mean|^2 / 2, each a mean over the rows.

    d/dmean of -A * logprob is -A * (action - mean) / 0.25. With mean [1, 0, 0, 2]:
      row 1, action [2, 0, 1, 2]: -1 * [1, 0, 1, 0] / 0.25 = [-4, 0, -4, 0]
      row 2, action [1, 1, 0, 1]:  2 * [0, 1, 0, -1] / 0.25 = [0, 8, 0, -8]
      mean of both [-2, 4, -2, -4], plus 0.1 * mean = [0.1, 0, 0, 0.2]
    """
    values = gaussian_config()
    values["algorithm"] = {"loss": "probe_gaussian/with_prior"}
    trainer = make_trainer(values)
    trainer.policy.module.mean.data.copy_(torch.tensor([1.0, 0.0, 0.0, 2.0]))
    batch = batch_of(trainer, [[2.0, 0.0, 1.0, 2.0], [1.0, 1.0, 0.0, 1.0]], [1.0, -2.0])
    totals = BatchTotals(num_tokens=2.0, num_rows=2.0)
    for part in [batch.select(torch.tensor([0])), batch.select(torch.tensor([1]))]:
        micro_batch_loss(trainer, part, totals)[0].backward()
    expected = torch.tensor([-1.9, 4.0, -2.0, -3.8])
    torch.testing.assert_close(trainer.policy.module.mean.grad, expected, rtol=1e-6, atol=1e-6)


def test_what_a_loss_needs_and_the_policy_does_not_give_is_named(make_trainer, gaussian_config, monkeypatch):
    values = gaussian_config()
    values["algorithm"] = {"loss": "probe_gaussian/with_prior"}
    trainer = make_trainer(values)
    batch, logprobs = batch_of(trainer, [[0.0] * 4] * 2, [1.0, 1.0]), trainer.policy.logprobs
    for wrong in ({}, {"prior_kl": torch.zeros(2)}):
        answer = replace(logprobs(batch.rows, needs={"prior_kl"}), extras=wrong)
        monkeypatch.setattr(trainer.policy, "logprobs", lambda rows, answer=answer, **_: answer)
        with pytest.raises(PolicyError, match=r"loss 'probe_gaussian/with_prior' needs prior_kl, .* as \(2, 1\)"):
            micro_batch_loss(trainer, batch, BatchTotals(2.0, 2.0))


# Rollouts of earlier steps


@pytest.fixture
def replay_config(gaussian_config):
    """`replay_config(**algorithm)`: 4 groups of 8 rollouts a step; when a prompt comes again, 2 earlier ones are added.

    There are 16 prompts, so that those of the steps 0 to 3 come again in each four steps, in another order.
    """

    def config(**algorithm):
        values = gaussian_config(12)
        values["stages"][0]["micro_batch_rows"] = 7
        return {
            **values,
            "plugins": [{"name": "probe_gaussian/replay", "per_prompt": 2}],
            "log": {"rollouts_every_steps": 1},
            "optimizer": {"lr": 0.05, "lr_scale": {"^mean$": 2.0}},
            "algorithm": {"old_logprobs": "sampler", **algorithm},
        }

    return config


def test_replayed_rollouts_have_the_ratio_to_the_policy_that_sampled_them(make_trainer, replay_config):
    """log ratio = sum of ((a - mean when sampled)^2 - (a - mean now)^2) / (2 * 0.5^2)."""
    make_trainer(replay_config()).run(resume=False)
    import probe_gaussian

    means = {step: mean for step, mean, _ in probe_gaussian.LOSSES}
    assert len(means) == 12 and not torch.equal(means[0], means[11])
    for step, batch in probe_gaussian.BATCHES:
        parts = [inputs for at, _, inputs in probe_gaussian.LOSSES if at == step]
        ratios = torch.cat([(part.logprobs - part.old_logprobs).exp() for part in parts])[:, 0].tolist()
        assert len(parts) > 1 and len(ratios) == len(batch.rows) == (32 if step < 4 else 40)
        replayed = 0
        for row, ratio in zip(batch.rows, ratios, strict=True):
            if not row.trajectory_id.startswith("from "):
                assert ratio == pytest.approx(1.0, abs=1e-5)
                continue
            replayed += 1
            before, now = means[int(row.trajectory_id.removeprefix("from "))], means[step]
            log_ratio = float((row.action - before).square().sum() - (row.action - now).square().sum()) / (2 * 0.25)
            assert ratio == pytest.approx(math.exp(log_ratio), rel=1e-4) and abs(log_ratio) > 1e-3
        assert replayed == (0 if step < 4 else 8)


def test_ratios_to_the_sampler_need_no_pass(make_trainer, replay_config, monkeypatch):
    for old_logprobs, without_gradient in (("sampler", 0), ("trainer", 12)):
        values = replay_config(old_logprobs=old_logprobs, updates_per_rollout=2)
        values["stages"][0]["micro_batch_rows"] = None
        trainer = make_trainer(values)
        passes, logprobs = [], trainer.policy.logprobs

        def counted(rows, passes=passes, logprobs=logprobs, **options):
            passes.append(torch.is_grad_enabled())
            return logprobs(rows, **options)

        monkeypatch.setattr(trainer.policy, "logprobs", counted)
        trainer.run(resume=False)
        assert (passes.count(True), passes.count(False)) == (24, without_gradient)


def test_what_is_told_of_rollouts_is_of_those_of_the_step(make_trainer, replay_config):
    trainer = make_trainer(replay_config())
    trainer.run(resume=False)
    import probe_gaussian

    steps = [record for record in read_metrics(trainer.output) if record["kind"] == "step"]
    for record, (step, batch) in zip(steps, probe_gaussian.BATCHES, strict=True):
        path = trainer.output / f"rollouts/step-{step + 1:06d}-train.jsonl"
        lines = [json.loads(line) for line in path.open()]
        assert len(lines) == 32
        assert record["reward/total"] == pytest.approx(sum(line["total"] for line in lines) / 32, rel=1e-5)
        assert record["completion_tokens/mean"] == 1.0 and record["lr"] == 0.05
        for group in range(4):  # advantages are those trained with: relative to the replayed ones too
            rewards = batch.rewards[batch.group_ids == group].double()
            expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
            own = [line for line in lines if line["group"] == group]
            assert [line["total"] for line in own] == pytest.approx(rewards[:8].tolist())
            assert [line["advantage"] for line in own] == pytest.approx(expected[:8].tolist(), abs=1e-4)


def test_a_behaviour_with_state_is_resumed_bit_for_bit(make_trainer, replay_config, tmp_path, without_times):
    values = replay_config(updates_per_rollout=2)
    whole = make_trainer(values)
    whole.run(resume=False)
    resumed_folder = tmp_path / "resumed"
    shutil.copytree(whole.output, resumed_folder)
    shutil.rmtree(resumed_folder / "checkpoints" / "step-12")
    resumed = make_trainer(values, resumed_folder)
    resumed.run(resume=True)
    assert torch.equal(resumed.policy.module.mean, whole.policy.module.mean)
    kept = [[without_times(record) for record in read_metrics(run.output)] for run in (whole, resumed)]
    assert kept[0] == kept[1] and len(kept[0]) == 14  # 12 steps, 2 evaluations


def test_ratios_to_the_sampler_need_its_logprobs(make_trainer, replay_config):
    values = replay_config()
    values["model"]["policy"] = {"name": "probe_gaussian/gaussian", "tells_logprobs": False}
    with pytest.raises(PolicyError, match="old_logprobs is 'sampler', but rollouts came without the logprobs"):
        make_trainer(values).run(resume=False)


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
            turn = replace(answer.rollouts[0].rows[0], trajectory_id=row.trajectory_id, step_index=1)
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
        assert [(row.step_index, row.done) for row in rows] == [(0, False), (1, True)]
    assert batch.group_ids.tolist() == [n // 4 for n in batch.trajectory_ids.tolist()]

    # Logprobs of a second turn are those of a plain forward over the whole conversation, pictures included.
    with torch.no_grad():
        for index, row in enumerate(batch.rows):
            prompt = trainer.sampler.source.sources[0].prompt(int(row.prompt_id.split(":")[1]))
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

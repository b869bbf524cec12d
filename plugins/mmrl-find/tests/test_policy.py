"""The noise policy: densities against torch.distributions, gradients against closed forms, and the policy protocol."""

import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from mmrl_core.errors import CheckpointError, PolicyError
from mmrl_core.types import Prompt, Sampling
from mmrl_find.pipeline import FrozenPipeline
from mmrl_find.policy import NoisePolicy

SHAPE, D = (4, 8, 8), 256
NEEDS = ("entropy", "prior_kl", "prior_quadratic", "value", "baseline")


def prompt(text, number=0):
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    return Prompt(id=f"train:{number}", messages=messages, sample={"prompt": text})


CAT, DOG, OWL = prompt("a red cat", 0), prompt("a blue dog", 1), prompt("an owl", 2)


@pytest.fixture(scope="module")
def make_policy(sd_folder):
    """`make_policy(**options)` -> a policy whose pictures take two steps."""

    def make(path=sd_folder, **options):
        torch.manual_seed(0)
        options = {"num_steps": 2, "hidden_size": 16, "num_prompts": 3, **options}
        return NoisePolicy(path, **options)

    return make


@pytest.fixture(scope="module")
def untrained(make_policy):
    """For tests that change nothing in it."""
    return make_policy()


def moved(policy):
    """The policy, away from where training starts; CAT and DOG have slots."""
    policy.logprobs(rows_of(policy.rollout([CAT, DOG], 1, Sampling())))
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.module.distribution.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    policy.publish_weights()
    return policy


def rows_of(groups):
    return [row for group in groups for rollout in group.rollouts for row in rollout.rows]


def latents_of(groups):
    return torch.stack([row.action for row in rows_of(groups)])


def gaussian_of(policy, rows):
    """The same distributions of torch, float64 with gradient to the policy's parameters."""
    pairs = [policy.module.distribution(row.observation.embedding) for row in rows]
    mean, log_std = (torch.stack(values) for values in zip(*pairs, strict=True))
    return Independent(Normal(mean, log_std.exp()), 3)


# Densities.


@pytest.mark.parametrize(("logprob", "scale"), [("mean", 1 / D), ("sum", 1.0)])
@pytest.mark.parametrize("distribution", ["per_prompt", "shared", "amortised"])
def test_densities_and_distances_are_those_of_torch(make_policy, distribution, logprob, scale):
    policy = moved(make_policy(distribution=distribution, logprob=logprob))
    policy.module.double()
    rows = rows_of(policy.rollout([CAT, DOG], 2, Sampling()))
    stats = policy.logprobs(rows, needs=NEEDS)
    gaussian = gaussian_of(policy, rows)
    expected = {
        "logprobs": gaussian.log_prob(torch.stack([row.action for row in rows]).double()),
        "entropy": gaussian.entropy(),
        "prior_kl": kl_divergence(
            gaussian, Independent(Normal(torch.zeros(SHAPE).double(), 1.0).expand([4, *SHAPE]), 3)
        ),
    }
    parameters = [values for values in policy.module.distribution.parameters() if values.requires_grad]
    for name, values in expected.items():
        found = {"logprobs": stats.logprobs, "entropy": stats.entropy, **stats.extras}[name]
        assert found.shape == (4, 1) and found.dtype == torch.float64
        torch.testing.assert_close(found[:, 0], scale * values, rtol=1e-12, atol=1e-12)
        gradients = [
            torch.autograd.grad(v.sum(), parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            for v in (found, scale * values)
        ]
        assert any(gradient.any() for gradient in gradients[0])
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    mean, std = gaussian.base_dist.mean, gaussian.base_dist.stddev
    quadratic = (mean.square() + (std - 1).square()).flatten(1).mean(1)
    torch.testing.assert_close(stats.extras["prior_quadratic"][:, 0], quadratic, rtol=1e-12, atol=1e-12)


def test_the_score_functions_gradient_has_its_closed_form(make_policy):
    """At ratio 1: A (z - mean) / std^2 / D, and A ((z - mean)^2 / std^3 - 1 / std) / D, times std - 0.5 for raw."""
    policy = moved(make_policy())
    policy.module.double()
    row = rows_of(policy.rollout([DOG], 1, Sampling(seed=5)))[0]
    distribution, slot, advantage = policy.module.distribution, 1, -1.7
    logprob = policy.logprobs([row]).logprobs
    (advantage * (logprob - logprob.detach()).exp()).sum().backward()
    mean, std = (values.detach() for values in (distribution.mean[slot], 0.5 + 0.5 * distribution.raw_std[slot].exp()))
    z = row.action.double()
    torch.testing.assert_close(distribution.mean[slot].grad, advantage * (z - mean) / std**2 / D)
    by_std = advantage * ((z - mean) ** 2 / std**3 - 1 / std) / D
    torch.testing.assert_close(distribution.raw_std[slot].grad, by_std * (std - 0.5))
    assert distribution.mean[0].grad is None and distribution.raw_std[0].grad is None


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("logprob", ["mean", "sum"])
def test_logprobs_when_sampling_are_those_of_unchanged_weights(make_policy, logprob, temperature):
    policy = moved(make_policy(logprob=logprob))
    policy.set_temperature(temperature)
    rows = rows_of(policy.rollout([CAT, DOG, OWL], 2, Sampling(temperature=temperature)))
    sampled = torch.stack([row.sampler_logprobs for row in rows])
    with torch.no_grad():
        found = policy.logprobs(rows).logprobs
    assert sampled.shape == (6, 1)
    torch.testing.assert_close(sampled, found, rtol=1e-6, atol=1e-6)
    trained = rows[:4]  # the owl has no slot, and N(0, I)
    gaussian = gaussian_of(policy, trained).base_dist
    tempered = Independent(Normal(gaussian.mean, temperature * gaussian.stddev), 3)
    density = tempered.log_prob(torch.stack([row.action for row in trained])).detach()
    expected = density / D if logprob == "mean" else density
    torch.testing.assert_close(found[:4, 0].float(), expected, rtol=1e-5, atol=1e-5)


def test_the_value_network_sees_a_rows_own_distribution_and_the_baseline_the_present_one(make_policy):
    policy = moved(make_policy())
    rows = rows_of(policy.rollout([CAT], 2, Sampling()))
    before = policy.logprobs(rows, needs=("value", "baseline")).extras
    torch.testing.assert_close(before["value"], before["baseline"], rtol=1e-5, atol=1e-6)
    policy.module.distribution.mean[0].data += 1.0
    after = policy.logprobs(rows, needs=("value", "baseline")).extras
    assert torch.equal(before["value"], after["value"]) and (after["baseline"] - before["baseline"]).abs().min() > 1e-3
    assert not after["baseline"].requires_grad
    after["value"].sum().backward()
    assert all(parameter.grad is not None for parameter in policy.module.value.parameters())
    assert all(parameter.grad is None for parameter in policy.module.distribution.parameters())


def test_what_the_policy_cannot_compute_is_refused(untrained, make_policy):
    rows = rows_of(untrained.rollout([CAT], 1, Sampling()))
    with pytest.raises(PolicyError, match="cannot compute curiosity"):
        untrained.logprobs(rows, needs=("prior_kl", "curiosity"))
    with pytest.raises(PolicyError, match="needs value: set value_network"):
        make_policy(value_network=False).logprobs(rows, needs=("value",))


# Acting.


def test_an_untrained_policy_is_the_unchanged_pipeline(untrained, sd_folder):
    groups = untrained.rollout([CAT, DOG], 2, Sampling(seed=3))
    rows, latents = rows_of(groups), latents_of(groups)
    assert [row.trajectory_id for row in rows] == ["train:0/0", "train:0/1", "train:1/0", "train:1/1"]
    assert latents.dtype == torch.float32 and latents.shape == (4, *SHAPE)
    # Of 1024 standard normal numbers: mean within 4 / sqrt(1024), variance within 4 * sqrt(2 / 1024).
    assert abs(float(latents.mean())) < 0.125 and abs(float(latents.var()) - 1) < 0.18
    texts = ["a red cat"] * 2 + ["a blue dog"] * 2
    expected = FrozenPipeline(sd_folder, num_steps=2).generate(latents, texts, [0] * 4)
    found = [rollout for group in groups for rollout in group.rollouts]
    for rollout, output, latent in zip(found, expected, latents, strict=True):
        assert np.array_equal(np.asarray(rollout.completion), np.asarray(output.output))
        norm = pytest.approx(float(latent.norm()) / 16, rel=1e-5)
        assert rollout.outcome == {"flagged": False, "latent_norm": norm}


def test_noise_depends_on_seed_prompt_and_number_alone(make_policy):
    policy = moved(make_policy(batch_size=3))
    both = latents_of(policy.rollout([CAT, DOG], 3, Sampling(seed=3)))
    turned = latents_of(policy.rollout([DOG, CAT], 2, Sampling(seed=3)))
    assert torch.equal(both[[3, 4, 0, 1]], turned)
    assert not (both == latents_of(policy.rollout([CAT, DOG], 3, Sampling(seed=4)))).any()
    twice = policy.rollout([CAT, CAT], 2, Sampling(seed=3))
    assert torch.equal(latents_of(twice)[:3], both[:3]) and len({row.trajectory_id for row in rows_of(twice)}) == 4
    assert len({tuple(latent.flatten().tolist()) for latent in latents_of(twice)}) == 4


def test_temperature_scales_the_noise_and_0_is_the_mean(make_policy):
    policy = moved(make_policy())
    full, half, none = (policy.rollout([CAT], 2, Sampling(seed=3, temperature=t)) for t in (1.0, 0.5, 0.0))
    mean = policy.module.distribution.mean[0].detach()
    torch.testing.assert_close(latents_of(half) - mean, 0.5 * (latents_of(full) - mean), rtol=0, atol=1e-6)
    assert torch.equal(latents_of(none), mean.expand(2, *SHAPE))
    assert all(row.sampler_logprobs is None for row in rows_of(none))


def test_rollouts_act_with_the_published_weights(make_policy):
    policy = moved(make_policy())
    before = latents_of(policy.rollout([CAT], 1, Sampling()))
    policy.module.distribution.mean[0].data += 1.0
    assert torch.equal(latents_of(policy.rollout([CAT], 1, Sampling())), before)
    policy.publish_weights()
    after = policy.rollout([CAT], 1, Sampling())
    torch.testing.assert_close(latents_of(after), before + 1.0)
    assert torch.equal(rows_of(after)[0].observation.mean, policy.module.distribution.mean[0])


def test_groups_are_reported_as_they_are_finished(make_policy):
    """With 3 pictures at a time and groups of 2: the first group after the first batch, the others after the second."""
    policy = make_policy(batch_size=3)
    reported = []
    groups = policy.rollout(
        [CAT, DOG, OWL], 2, Sampling(), lambda group: reported.append((group, policy.pipeline.counters["images"]))
    )
    assert [count for _, count in reported] == [3, 6, 6]
    assert all(group is told for group, (told, _) in zip(groups, reported, strict=True))
    assert [group.prompt for group in groups] == [CAT, DOG, OWL]
    assert policy.take_counters() == {"images": 6, "denoiser_evals": 24}
    assert policy.take_counters() == {}


def test_flagged_pictures_are_in_the_outcome(make_policy):
    policy = moved(make_policy())
    policy.module.distribution.mean[0].data[0, 0, 0] = math.inf
    policy.publish_weights()
    groups = policy.rollout([CAT, DOG], 1, Sampling())
    assert [group.rollouts[0].outcome["flagged"] for group in groups] == [True, False]


def test_videos_are_lists_of_frames(make_policy, video_folder):
    policy = make_policy(video_folder, num_frames=3)
    rollout = policy.rollout([CAT], 1, Sampling())[0].rollouts[0]
    assert len(rollout.completion) == 3 and rollout.completion[0].size == (16, 16)
    assert rollout.rows[0].action.shape == (4, 3, 8, 8)
    assert policy.logprobs(rollout.rows, needs=NEEDS).extras["value"].shape == (1, 1)


def test_evaluation_takes_no_slots_and_training_no_more_than_there_are(make_policy):
    policy = make_policy(num_prompts=1)
    groups = policy.rollout([CAT, DOG], 1, Sampling())
    with torch.no_grad():
        policy.logprobs(rows_of(groups))
    assert policy.module.distribution.slots == {}
    policy.logprobs(rows_of(groups)[:1])
    with pytest.raises(PolicyError, match="no room for prompt 'a blue dog': num_prompts is 1"):
        policy.logprobs(rows_of(groups))


# Frozen policies and files.


def test_frozen_policies_keep_their_density_and_follow_by_decay(make_policy, tmp_path):
    policy = make_policy()
    rows = rows_of(policy.rollout([CAT, DOG], 1, Sampling()))
    policy.freeze("reference")
    at_start = policy.logprobs(rows, frozen="reference").logprobs
    moved(policy)
    assert torch.equal(policy.logprobs(rows, frozen="reference").logprobs, at_start)
    prior = Normal(0.0, 1.0).log_prob(torch.stack([row.action for row in rows])).flatten(1).mean(1, keepdim=True)
    torch.testing.assert_close(at_start, prior)
    policy.refresh("reference", 0.75)
    policy.save_frozen(tmp_path)
    other = make_policy()
    other.load_frozen(tmp_path)
    quarter = make_policy()
    moved(quarter)
    for parameter in quarter.module.distribution.parameters():
        parameter.data *= 0.25
    expected = quarter.logprobs(rows).logprobs.detach()
    for holder in (policy, other):
        found = holder.logprobs(rows, frozen="reference").logprobs
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert not found.requires_grad
    policy.refresh("reference", 0.0)
    assert torch.equal(policy.logprobs(rows, frozen="reference").logprobs, policy.logprobs(rows).logprobs)


@pytest.mark.parametrize("distribution", ["per_prompt", "amortised"])
def test_a_policy_is_saved_and_resumed_bit_for_bit(make_policy, tmp_path, distribution):
    def optimizer_of(policy):
        return torch.optim.AdamW(policy.module.parameters(), lr=0.01, fused=True)

    def train(policy, optimizer, steps, offset=0):
        for step in range(offset, offset + steps):
            policy.publish_weights()
            rows = rows_of(policy.rollout([DOG, CAT][: 1 + step % 2], 2, Sampling(seed=step)))
            stats = policy.logprobs(rows, needs=NEEDS)
            (stats.logprobs * torch.randn(len(rows), 1, generator=torch.Generator().manual_seed(step))).sum().backward()
            (stats.extras["value"] - 1).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    whole = make_policy(distribution=distribution)
    optimizer = optimizer_of(whole)
    train(whole, optimizer, 3)
    whole.save(tmp_path)
    optimizer_state = deepcopy(optimizer.state_dict())
    resumed = make_policy(distribution=distribution)
    torch.nn.init.normal_(next(resumed.module.parameters()))
    resumed.load(tmp_path)
    assert resumed.module.distribution.slots == whole.module.distribution.slots
    resumed_optimizer = optimizer_of(resumed)
    resumed_optimizer.load_state_dict(optimizer_state)
    train(whole, optimizer, 2, offset=3)
    train(resumed, resumed_optimizer, 2, offset=3)
    for first, second in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(first, second)
    assert NoisePolicy.needs_base(tmp_path)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"height": 24}, r"latent_shape=\[4, 8, 8\]; now it is \[4, 12, 8\]"),
        ({"distribution": "shared"}, "distribution='per_prompt'; now it is 'shared'"),
        ({"num_prompts": 4}, "num_prompts=3; now it is 4"),
        ({"min_std": 0.1}, "min_std=0.5; now it is 0.1"),
        ({"value_network": False}, "value_network=True; now it is False"),
    ],
)
def test_noise_of_another_kind_is_not_loaded(make_policy, untrained, tmp_path, options, problem):
    untrained.save(tmp_path)
    with pytest.raises(CheckpointError, match=problem):
        make_policy(**options).load(tmp_path)


def test_noise_made_with_another_sampler_is_loaded_with_a_warning(make_policy, untrained, tmp_path, caplog):
    untrained.save(tmp_path)
    make_policy(num_steps=4, scheduler="euler").load(tmp_path)
    assert [record.getMessage() for record in caplog.records if record.name == "mmrl_find.policy"] == [
        "noise that was trained with scheduler='DDIMScheduler' is used with 'EulerDiscreteScheduler'.",
        "noise that was trained with num_steps=2 is used with 4.",
    ]


def test_folders_without_noise_are_refused(untrained, tmp_path):
    with pytest.raises(CheckpointError, match="holds no noise policy"):
        untrained.load(tmp_path)
    untrained.save(tmp_path)
    weights = tmp_path / "noise.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="holds no noise policy"):
        untrained.load(tmp_path)


# What does not fit.


def test_prompts_are_text(untrained):
    several = replace(CAT, messages=[*CAT.messages, *DOG.messages])
    twice = untrained.rollout([several], 1, Sampling())
    assert rows_of(twice)[0].observation.embedding.text == "a red cat\na blue dog"
    picture = replace(CAT, messages=[{"role": "user", "content": [{"type": "image", "image": None}]}])
    with pytest.raises(PolicyError, match="prompt train:0 has a part of type 'image'"):
        untrained.rollout([picture], 1, Sampling())
    with pytest.raises(PolicyError, match="part of type 'image'"):
        untrained.prompt_length(picture)
    assert untrained.prompt_length(CAT) is None


def test_what_a_noise_policy_cannot_do_is_refused(untrained, sd_folder):
    rollout = untrained.rollout([CAT], 1, Sampling())[0].rollouts[0]
    with pytest.raises(PolicyError, match="acts once"):
        untrained.observe(CAT, rollout, [])
    with pytest.raises(PolicyError, match="acts once"):
        untrained.act([CAT], [rollout], [None], Sampling())
    with pytest.raises(PolicyError, match="cannot be shown answers"):
        untrained.demonstrate([CAT], ["a cat"])
    with pytest.raises(PolicyError, match="top_p and top_k"):
        untrained.rollout([CAT], 1, Sampling(top_k=5))
    for options in ({"distribution": "per_word"}, {"logprob": "max"}, {"num_prompts": 0}):
        with pytest.raises(PolicyError, match=next(iter(options))):
            NoisePolicy(sd_folder, num_steps=2, **options)


def test_a_dry_run_says_how_the_work_is_done(untrained):
    first, second = untrained.describe()
    assert first == (
        "initial noise: per_prompt for up to 3 prompts, latents 4x8x8, std at least 0.5, log densities are the mean "
        "over 256 entries"
    )
    assert second == (
        "pictures: StableDiffusionPipeline in float32, DDIMScheduler, 2 steps, guidance 7.5, eta 0, 8 at a time"
    )
    assert untrained.num_tokens(rows_of(untrained.rollout([CAT], 2, Sampling()))) == 2

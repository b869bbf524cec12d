"""DDPO on real pipelines of tiny size with random weights: diffusers' sampling, densities by hand, the real trainer."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention import BasicTransformerBlock

from mmrl_core.config import AlgorithmConfig, load_config
from mmrl_core.errors import CheckpointError, PolicyError
from mmrl_core.policy_loss import policy_loss
from mmrl_core.run import derive_seed
from mmrl_core.runs import read_metrics
from mmrl_core.testing import make_loss_inputs
from mmrl_core.trainer import Trainer
from mmrl_core.types import Prompt, Sampling
from mmrl_find.ddpo import DDPOPolicy
from mmrl_find.policy import NoisePolicy

STEPS, GUIDANCE = 4, 3.0
LORA = {"rank": 2, "alpha": 8.0, "target_modules": ["to_q", "to_v"]}


@pytest.fixture(autouse=True)
def one_thread():
    """Makes sums repeatable."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def with_scheduler(sd_folder, tmp_path):
    """`with_scheduler(name=value, ...)` -> folder of the tiny pipeline with another scheduler config."""

    def changed(**values):
        folder = shutil.copytree(sd_folder, tmp_path / "pipeline")
        path = folder / "scheduler/scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return folder

    return changed


@pytest.fixture(scope="module")
def make_policy(sd_folder):
    def policy(path=sd_folder, **options):
        settings = {"num_steps": STEPS, "guidance": GUIDANCE, "batch_size": 3, **options}
        return DDPOPolicy(path, **settings)

    return policy


@pytest.fixture(scope="module")
def plain_policy(make_policy):
    """For tests that leave it as it is."""
    return make_policy()


def prompts(*texts):
    return [
        Prompt(f"train:{n}", [{"role": "user", "content": [{"type": "text", "text": text}]}], {"text": text})
        for n, text in enumerate(texts)
    ]


def rows_of(groups):
    return [rollout.rows[0] for group in groups for rollout in group.rollouts]


def densities_by_hand(policy, rows, timesteps, prediction="epsilon", eta=1.0):
    """Log densities of the entries of each step, B lists of T: torch.distributions and DDIM's algebra, in float64.

    x0 = (x - sqrt(1 - a) e) / sqrt(a); x' ~ N(sqrt(a') x0 + sqrt(1 - a' - s^2) e, s^2),
    s^2 = eta^2 (1 - a') / (1 - a) (1 - a / a'); with v-prediction x0 = sqrt(a) x - sqrt(1 - a) v.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = torch.cumprod(1 - betas, 0).double()  # diffusers keeps them in float32
    pipe = policy.pipeline.pipe
    found = []
    for row in rows:
        text, empty = row.observation.conditioning["encoder_hidden_states"].double().flip(0).split(1)
        state, densities = row.observation.latent.double(), []
        for step, time in enumerate(timesteps):
            a = alphas[time]
            after = alphas[time - 1000 // STEPS] if time >= 1000 // STEPS else alphas[0]
            given = pipe.unet(state[None], time, text).sample[0]
            without = pipe.unet(state[None], time, empty).sample[0]
            predicted = without + GUIDANCE * (given - without)
            if prediction == "epsilon":
                e = predicted
                x0 = (state - (1 - a) ** 0.5 * e) / a**0.5
            else:
                x0 = a**0.5 * state - (1 - a) ** 0.5 * predicted
                e = (state - a**0.5 * x0) / (1 - a) ** 0.5
            s = eta * ((1 - after) / (1 - a) * (1 - a / after)) ** 0.5
            mean = after**0.5 * x0 + (1 - after - s**2) ** 0.5 * e
            state = row.action[step].double()
            densities.append(torch.distributions.Normal(mean, s).log_prob(state))
        found.append(densities)
    return found


def test_sampling_is_that_of_the_pipeline_called_with_the_same_noise(sd_folder, plain_policy):
    """The temperature multiplies eta."""
    texts, latents = ["a red book", "a red book", "a dog", "a dog"], []
    groups = plain_policy.rollout(prompts("a red book", "a dog"), 2, Sampling(seed=5, temperature=0.7))
    identities = [(5, "train:0", 0), (5, "train:0", 1), (5, "train:1", 0), (5, "train:1", 1)]
    pipe = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipe.set_progress_bar_config(disable=True)

    def keep(pipe, step, time, tensors):
        latents.append(tensors["latents"])
        return tensors

    generators = [torch.Generator().manual_seed(derive_seed(*identity)) for identity in identities]
    start = torch.stack([torch.randn(4, 8, 8, generator=generator) for generator in generators])
    generators = [torch.Generator().manual_seed(derive_seed(*identity, "denoising")) for identity in identities]
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "eta": 0.7}
    images = pipe(texts, latents=start, generator=generators, callback_on_step_end=keep, **options).images
    rows = rows_of(groups)
    assert torch.equal(torch.stack([row.observation.latent for row in rows]), start)
    torch.testing.assert_close(torch.stack([row.action for row in rows], 1), torch.stack(latents), rtol=0, atol=1e-5)
    for rollout, image in zip([rollout for group in groups for rollout in group.rollouts], images, strict=True):
        difference = np.asarray(rollout.completion, int) - np.asarray(image, int)
        assert abs(difference).max() <= 1 and rollout.outcome == {"flagged": False}
    assert [rollout.rows[0].trajectory_id for rollout in groups[1].rollouts] == ["train:1/0", "train:1/1"]


def test_initial_noise_is_that_of_the_untrained_noise_policy(sd_folder, plain_policy):
    noise = NoisePolicy(sd_folder, num_steps=1)
    asked = prompts("a red book", "a dog")
    found, expected = (rows_of(policy.rollout(asked, 2, Sampling(seed=7))) for policy in (plain_policy, noise))
    assert all(torch.equal(a.observation.latent, b.action) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("logprob", "scheduler", "timesteps"),
    [
        ("mean", {}, [751, 501, 251, 1]),
        ("sum", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, [999, 749, 499, 249]),
    ],
)
def test_logprobs_are_the_densities_of_the_formula(with_scheduler, make_policy, logprob, scheduler, timesteps):
    """Float64 throughout; the last alpha is that of step 0, as in Stable Diffusion 1.5."""
    policy = make_policy(with_scheduler(**scheduler), logprob=logprob, eta=0.8)
    rows = rows_of(policy.rollout(prompts("a red book", "a dog"), 2, Sampling(seed=1)))
    policy.module.double()
    prediction = scheduler.get("prediction_type", "epsilon")
    densities = densities_by_hand(policy, rows, timesteps, prediction=prediction, eta=0.8)
    expected = torch.stack([torch.stack([getattr(step, logprob)() for step in steps]) for steps in densities])
    stats = policy.logprobs(rows)
    assert stats.logprobs.dtype == torch.float64 and stats.logprobs.requires_grad
    torch.testing.assert_close(stats.logprobs, expected, rtol=1e-9, atol=1e-9)


def test_a_step_without_noise_is_masked_and_has_logprob_0(with_scheduler, make_policy):
    """With a final alpha of 1 nothing is uncertain about the last step: (1 - 1) / (1 - a) = 0."""
    folder = with_scheduler(set_alpha_to_one=True)
    policy = make_policy(folder)
    rows = rows_of(policy.rollout(prompts("a red book"), 2, Sampling()))
    logprobs = policy.logprobs(rows).logprobs
    for index, row in enumerate(rows):
        assert row.masks["loss_mask"].tolist() == [True, True, True, False]
        assert row.sampler_logprobs[3] == 0 and logprobs[index, 3] == 0 and logprobs[index, :3].abs().min() > 0
    assert row.num_actions == 4
    assert policy.describe()[0].startswith("a rollout is 4 denoising steps, 3 of them trained")
    with pytest.raises(PolicyError, match="none of the num_steps=1 denoising steps has noise"):
        make_policy(folder, num_steps=1)


@pytest.mark.parametrize(("options", "tolerance"), [({}, 1e-5), ({"guidance": 1.0, "logprob": "sum"}, 1e-2)])
def test_recomputed_logprobs_are_those_of_sampling(plain_policy, make_policy, options, tolerance):
    policy = make_policy(**options) if options else plain_policy
    rows = rows_of(policy.rollout(prompts("a red book", "a dog", "a cat"), 2, Sampling(seed=3)))
    whole = policy.logprobs(rows).logprobs
    sampled = torch.stack([row.sampler_logprobs for row in rows])
    assert sampled.std() > 0.1
    torch.testing.assert_close(whole.detach(), sampled, rtol=0, atol=tolerance)
    parts = torch.cat([policy.logprobs(rows[:1]).logprobs, policy.logprobs(rows[1:]).logprobs])
    torch.testing.assert_close(parts.detach(), sampled, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["sdxl", "video"])
def test_other_pipelines_are_sampled_and_recomputed_alike(request, make_policy, kind):
    """SDXL's denoiser reads a pooled embedding and sizes as well; a video's steps are taken frame by frame."""
    policy = make_policy(request.getfixturevalue(f"{kind}_folder"), num_frames=3)
    groups = policy.rollout(prompts("a dog", "a cat"), 2, Sampling(seed=3))
    rows = rows_of(groups)
    assert all(row.action.shape == (STEPS, *policy.pipeline.latent_shape) for row in rows)
    sampled = torch.stack([row.sampler_logprobs for row in rows])
    torch.testing.assert_close(policy.logprobs(rows).logprobs.detach(), sampled, rtol=0, atol=1e-5)
    conditioning = rows[0].observation.conditioning
    assert len(conditioning["encoder_hidden_states"]) == 2 and rows[1].observation.conditioning is conditioning
    if kind == "video":
        assert [len(rollout.completion) for group in groups for rollout in group.rollouts] == [3] * 4
    else:
        assert set(conditioning["added_cond_kwargs"]) == {"text_embeds", "time_ids"}


def test_the_gradient_of_a_grpo_loss_is_that_of_the_formula(make_policy):
    """On-policy the loss has gradient -sum_it A_i grad(logprob_it) / number of steps; in float64."""
    policy = make_policy(batch_size=5)
    rows = rows_of(policy.rollout(prompts("a red book"), 2, Sampling()))
    policy.module.double()
    advantages = torch.tensor([0.7, -1.3], dtype=torch.float64)
    densities = densities_by_hand(policy, rows, [751, 501, 251, 1])
    by_hand = -sum(a * step.mean() for a, steps in zip(advantages, densities, strict=True) for step in steps) / 8
    weight = policy.pipeline.pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_k.weight
    expected = torch.autograd.grad(by_hand, [weight, policy.pipeline.pipe.unet.conv_out.bias])
    logprobs = policy.logprobs(rows).logprobs
    loss, _ = policy_loss(make_loss_inputs(logprobs, advantages=advantages), AlgorithmConfig())
    found = torch.autograd.grad(loss, [weight, policy.pipeline.pipe.unet.conv_out.bias])
    for gradient, wanted in zip(found, expected, strict=True):
        assert wanted.abs().max() > 1e-5
        torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9 * float(wanted.abs().max()))


def test_neither_passes_nor_recomputation_change_the_gradient(make_policy):
    gradients = []
    for model, batch_size in (({}, 100), ({"gradient_checkpointing": True}, 3)):
        policy = make_policy(**model, batch_size=batch_size)
        rows = rows_of(policy.rollout(prompts("a red book", "a dog"), 2, Sampling()))
        policy.take_counters()
        policy.logprobs(rows).logprobs[:, 1].sum().backward()
        assert policy.take_counters() == {"denoiser_update_evals": 4 * 4 * 2}
        gradients.append(policy.pipeline.pipe.unet.conv_in.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max()))


def test_work_is_counted(plain_policy):
    """Samples through the denoiser: images x steps x 2 with guidance."""
    policy = plain_policy
    policy.take_counters()
    rows = rows_of(policy.rollout(prompts("a red book", "a dog"), 3, Sampling()))
    assert policy.num_tokens(rows) == 6 * 4
    assert policy.take_counters() == {"denoiser_evals": 6 * 4 * 2, "images": 6}
    with torch.no_grad():
        policy.logprobs(rows[:5])
    assert policy.take_counters() == {"denoiser_evals": 5 * 4 * 2}
    assert policy.take_counters() == {}


def test_logprobs_are_those_of_the_temperature_that_was_sampled_at(make_policy):
    policy = make_policy()
    rows = rows_of(policy.rollout(prompts("a red book"), 2, Sampling(temperature=0.5)))
    sampled = torch.stack([row.sampler_logprobs for row in rows])
    assert (policy.logprobs(rows).logprobs - sampled).abs().max() > 0.1
    policy.set_temperature(0.5)
    torch.testing.assert_close(policy.logprobs(rows).logprobs.detach(), sampled, rtol=0, atol=1e-5)
    greedy = rows_of(policy.rollout(prompts("a red book"), 1, Sampling(temperature=0.0)))[0]
    assert not greedy.masks["loss_mask"].any() and not greedy.sampler_logprobs.any()
    with pytest.raises(PolicyError, match="temperature is 0"):
        policy.set_temperature(0.0)


def test_frozen_weights_are_those_of_then(make_policy, tmp_path):
    policy = make_policy()
    rows = rows_of(policy.rollout(prompts("a red book"), 2, Sampling()))
    before = policy.logprobs(rows).logprobs.detach()
    policy.freeze("reference")
    with torch.no_grad():
        for value in policy.module.parameters():
            value += 0.05
    after = policy.logprobs(rows).logprobs.detach()
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(policy.logprobs(rows, frozen="reference").logprobs, before)
    policy.save_frozen(tmp_path)
    policy.refresh("reference", 0.0)
    assert torch.equal(policy.logprobs(rows, frozen="reference").logprobs, after)
    policy.load_frozen(tmp_path)
    assert torch.equal(policy.logprobs(rows, frozen="reference").logprobs, before)
    assert torch.equal(policy.logprobs(rows).logprobs, after)
    with torch.no_grad():
        policy.refresh("reference", 0.5)
        for value in policy.module.parameters():
            value -= 0.025
    torch.testing.assert_close(
        policy.logprobs(rows, frozen="reference").logprobs, policy.logprobs(rows).logprobs.detach(), rtol=0, atol=1e-4
    )


def test_an_adapter_is_trained_alone_and_can_be_used_without_mmrl(sd_folder, make_policy, tmp_path):
    policy = make_policy(lora=LORA)
    names = {name for name, value in policy.module.named_parameters() if value.requires_grad}
    blocks = [module for module in policy.module.modules() if isinstance(module, BasicTransformerBlock)]
    assert all("lora_" in name for name in names) and len(names) == 2 * 2 * 2 * len(blocks)  # A, B; q, v; attn1, attn2
    with torch.no_grad():
        for value in policy.module.parameters():
            if value.requires_grad:
                value += 0.1
    policy.save(tmp_path)
    rollout = policy.rollout(prompts("a dog"), 1, Sampling(temperature=0.0))[0].rollouts[0]
    pipe = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipe.set_progress_bar_config(disable=True)
    start = rollout.rows[0].observation.latent[None]
    options = {"latents": start, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"}
    without = pipe("a dog", **options).images[0]
    pipe.load_lora_weights(tmp_path)
    torch.testing.assert_close(pipe("a dog", **options).images[0], rollout.rows[0].action[-1], rtol=0, atol=1e-5)
    assert (without - rollout.rows[0].action[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("model", [{}, {"lora": LORA}], ids=["whole", "lora"])
def test_saved_weights_are_loaded_bit_for_bit(make_policy, tmp_path, model):
    policy, fresh = make_policy(**model), make_policy(**model)
    with torch.no_grad():
        for value in policy.module.parameters():
            value += torch.randn_like(value) * value.requires_grad
    policy.save(tmp_path)
    assert DDPOPolicy.needs_base(tmp_path)
    fresh.load(tmp_path)
    pairs = list(zip(policy.module.parameters(), fresh.module.parameters(), strict=True))
    assert all(torch.equal(a, b) and a.requires_grad == b.requires_grad for a, b in pairs)
    other = make_policy(**({} if model else {"lora": LORA}))
    with pytest.raises(CheckpointError, match=f"has lora {bool(model)}, but here it is {not model}"):
        other.load(tmp_path)
    with pytest.raises(CheckpointError, match="holds no denoiser"):
        other.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.0}, "eta is 0"),
        ({"eta": 1.5}, "eta times temperature is 1.5"),
        ({"logprob": "max"}, "logprob is 'max'"),
        ({"precision": "bfloat16"}, "precision bfloat16"),
        ({"lora": {**LORA, "target_modules": ["nothing"]}}, "model.lora"),
    ],
)
def test_what_does_not_fit_is_refused(make_policy, options, message):
    with pytest.raises(PolicyError, match=message):
        make_policy(**options)


def test_what_a_diffusion_policy_cannot_do_is_refused(plain_policy):
    policy = plain_policy
    rows = rows_of(policy.rollout(prompts("a dog"), 1, Sampling()))
    with pytest.raises(PolicyError, match="does not know entropy, prior_kl"):
        policy.logprobs(rows, needs=("prior_kl", "entropy"))
    with pytest.raises(PolicyError, match="cannot be shown answers"):
        policy.demonstrate(prompts("a dog"), ["a"])
    with pytest.raises(PolicyError, match="top_p"):
        policy.rollout(prompts("a dog"), 1, Sampling(top_p=0.9))
    with pytest.raises(PolicyError, match="no frozen policy 'reference'"):
        policy.logprobs(rows, frozen="reference")


REWARD = """
import numpy as np

def brightness(completions, samples):
    return [float(np.asarray(image).mean()) / 255 for image in completions]
"""


@pytest.fixture
def make_trainer(sd_folder, tmp_path):
    """`make_trainer(output, guidance, **stage)` -> Trainer on the reward brightness."""
    (tmp_path / "rewards.py").write_text(REWARD)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a dog", "a cat")))
    trainers = []

    def trainer(output, guidance=GUIDANCE, **stage):
        policy = {"name": "find/ddpo", "num_steps": STEPS, "guidance": guidance, "batch_size": 64}
        config = {
            "name": "test/ddpo",
            "model": {"path": str(sd_folder), "policy": policy},
            "data": {"train": {"name": "rows", "path": str(tmp_path / "prompts.jsonl")}},
            "prompt": {"text": "{text}"},
            "rewards": [f"{tmp_path / 'rewards.py'}:brightness"],
            "checkpoint": {"every_steps": 1},
            "stages": [{"kind": "grpo", "prompts_per_step": 2, "group_size": 4, **stage}],
        }
        (tmp_path / "task.yaml").write_text(json.dumps(config))
        made = Trainer(load_config(str(tmp_path / "task.yaml")), output)
        trainers.append(made)
        return made

    yield trainer
    for made in trainers:
        made.close()


def test_brightness_is_learnt_in_a_few_steps(make_trainer, tmp_path):
    """Pictures of the untrained pipeline differ by 0.005 in brightness, so the mean of 144 is good to 0.0004."""
    stage = {"steps": 10, "prompts_per_step": 1, "group_size": 48, "optimizer": {"lr": 5e-3}}
    make_trainer(tmp_path / "run", guidance=1.0, **stage).run(resume=False)
    records = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "step"]
    rewards = [record["reward/brightness"] for record in records]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.003
    assert records[0]["count/denoiser_evals"] == records[0]["count/denoiser_update_evals"] == 48 * STEPS
    assert all(record["sampler_gap"] < 1e-5 for record in records)


def test_a_resumed_run_is_bit_for_bit_the_one_that_was_not_stopped(make_trainer, tmp_path):
    stage = {
        "steps": 2,
        "optimizer": {"lr": 1e-3},
        "micro_batch_tokens": 3 * STEPS,
        "algorithm": {"updates_per_rollout": 2, "kl": {"coefficient": 0.1}},
    }
    whole = make_trainer(tmp_path / "whole", **stage)
    whole.run(resume=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/step-2")
    resumed = make_trainer(tmp_path / "resumed", **stage)
    resumed.run(resume=True)
    pairs = list(zip(whole.policy.module.parameters(), resumed.policy.module.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)

"""Advantages, importance weights and losses against TRL's own code, values and gradients.

TRL's trainers are made without ``__init__``: only the attributes that the two methods under comparison read are set,
and their forward pass and generation are replaced by given numbers.
"""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl")
from accelerate import Accelerator
from trl import GRPOTrainer, RLOOTrainer

from mmrl_core import advantage_stages as S
from mmrl_core import advantages as A
from mmrl_core import losses
from mmrl_core.loss_inputs import BatchTotals, LossInputs
from mmrl_core.types import RewardView
from tests.algorithms import policy_loss

NAN = float("nan")
B, T, GROUP_SIZE, MAX_LENGTH = 8, 6, 4, 9
TOLERANCE = {"rtol": 1e-6, "atol": 1e-9}  # float64 on our side, float32 advantages inside TRL


def random_inputs(seed: int = 0) -> LossInputs:
    """Two groups of four, rows of different lengths, log-ratios far enough from 0 for every kind of clipping."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale):
        return scale * torch.randn(B, T, generator=generator, dtype=torch.float64)

    old_logprobs = -normal(1.0).abs() - 0.1
    mask = torch.arange(T) < torch.tensor([6, 3, 1, 5, 2, 6, 4, 3])[:, None]
    rewards = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 2.0, 0.0])
    group_ids = torch.arange(B) // GROUP_SIZE
    return LossInputs(
        logprobs=old_logprobs + normal(0.3),
        old_logprobs=old_logprobs,
        advantages=A.expand_to_tokens(A.group_relative_advantages(rewards.double(), group_ids), mask),
        mask=mask,
        totals=BatchTotals(num_tokens=float(mask.sum()), num_rows=float(B)),
        sampler_logprobs=old_logprobs + normal(0.5),
        ref_logprobs=old_logprobs + normal(0.4),
        entropy=normal(1.0).abs(),
        rewards=rewards,
    )


def bare_trainer(trainer_class, forward, **attributes):
    """A TRL trainer in training mode on one CPU process; `forward` stands for its model."""
    trainer = object.__new__(trainer_class)
    defaults = {
        "accelerator": Accelerator(cpu=True),
        "model": SimpleNamespace(training=True, is_gradient_checkpointing=False),
        "args": SimpleNamespace(
            delta=None,
            use_bias_correction_kl=False,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            per_device_train_batch_size=B,
            gradient_checkpointing_kwargs=None,
            report_to=[],
        ),
        "aux_loss_enabled": False,
        "beta": 0.0,
        "current_gradient_accumulation_steps": 1,
        "entropy_coef": 0.0,
        "_entropy_bonus_enabled": False,
        "environment_factories": None,
        "environments": None,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "importance_sampling_level": "token",
        "log_multimodal": False,
        "loss_type": "dapo",
        "mask_truncated_completions": False,
        "max_completion_length": MAX_LENGTH,
        "multi_objective_aggregation": "sum_then_normalize",
        "normalize_advantages": False,
        "num_generations": GROUP_SIZE,
        "num_iterations": 1,
        "off_policy_mask_threshold": None,
        "pad_to_multiple_of": None,
        "ref_model": "reference",
        "reward_clip_range": None,
        "scale_rewards": "group",
        "state": SimpleNamespace(global_step=0),
        "_step": 0,
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "tools": None,
        "top_entropy_quantile": 1.0,
        "use_adaptive_entropy": False,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "_metrics": {"train": defaultdict(list)},
        "_logs": {"prompt": [], "completion": [], "advantages": [], "rewards": defaultdict(list), "extra": {}},
        "_pending_extra_logs": {},
        "_pending_metrics": {},
        "_get_per_token_logps_and_entropies": forward,
    }
    for name, value in {**defaults, **attributes}.items():
        object.__setattr__(trainer, name, value)
    return trainer


def trl_loss(inputs: LossInputs, trainer_class=GRPOTrainer, *, args=None, batch=None, **attributes):
    """Value, gradient and metrics of the loss as TRL computes it."""
    logprobs = inputs.logprobs.clone().requires_grad_()
    trainer = bare_trainer(trainer_class, lambda *args, **kwargs: (logprobs, inputs.entropy, None), **attributes)
    vars(trainer.args).update(args or {})
    no_tokens = torch.zeros(len(inputs.mask), 1, dtype=torch.int64)
    loss = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": no_tokens,
            "prompt_mask": no_tokens,
            "completion_ids": inputs.mask.long(),
            "completion_mask": inputs.mask.long(),
            "advantages": inputs.advantages[:, 0],
            "old_per_token_logps": inputs.old_logprobs,
            "old_logps": (inputs.old_logprobs * inputs.mask).sum(-1),
            "ref_per_token_logps": inputs.ref_logprobs,
            "num_items_in_batch": inputs.mask.sum(),
            **(batch or {}),
        },
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.detach(), gradient, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def our_loss(inputs: LossInputs, **options):
    logprobs = inputs.logprobs.clone().requires_grad_()
    loss, metrics = policy_loss(replace(inputs, logprobs=logprobs), **options)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.detach(), gradient, metrics


GSPO = {"ratio": "sequence_mean", "clip_low": 0.1, "clip_high": 0.15}
LOSSES = {
    "grpo": ({"loss_type": "grpo"}, {"aggregation": "sequence_mean"}),
    "bnpo": ({"loss_type": "bnpo"}, {"aggregation": "local_token_mean"}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"aggregation": "constant_length", "max_length": MAX_LENGTH}),
    "dapo": (
        {"loss_type": "dapo", "epsilon_high": 0.28},
        {"aggregation": "token_mean", "surrogate_options": {"clip_low": 0.2, "clip_high": 0.28}},
    ),
    "delta": (
        {"loss_type": "dapo", "args": {"delta": 1.25}},
        {"aggregation": "token_mean", "surrogate_options": {"ratio_cap": 1.25}},
    ),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.3},
        {"aggregation": "token_mean", "surrogate": losses.cispo, "surrogate_options": {"cap": 1.3}},
    ),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.1, "epsilon_high": 0.15},
        {"aggregation": "sequence_mean", "surrogate_options": GSPO},
    ),
    "gspo, token mean": (
        {"loss_type": "dapo", "importance_sampling_level": "sequence", "epsilon_low": 0.1, "epsilon_high": 0.15},
        {"aggregation": "token_mean", "surrogate_options": GSPO},
    ),
}
EXTRAS = {
    "alone": ({}, {}),
    "kl": ({"beta": 0.04}, {"kl_coefficient": 0.04}),
    "kl times ratio": (
        {"beta": 0.04, "args": {"use_bias_correction_kl": True}},
        {"kl_coefficient": 0.04, "kl_times_ratio": True},
    ),
    "entropy": ({"_entropy_bonus_enabled": True, "entropy_coef": 0.01}, {"entropy_coefficient": 0.01}),
    "off-policy mask": ({"off_policy_mask_threshold": 0.05}, {"off_policy_threshold": 0.05}),
}


@pytest.mark.parametrize(
    ("name", "extra"),
    # With the row's ratio TRL also weights the KL by row; we always take the token's.
    [(name, extra) for name in LOSSES for extra in EXTRAS if "gspo" not in name or extra != "kl times ratio"],
)
def test_loss_and_gradient_equal_grpo_trainer(name, extra):
    inputs = random_inputs()
    (trl_options, our_options), (trl_extra, our_extra) = LOSSES[name], EXTRAS[extra]
    args = {**trl_options.get("args", {}), **trl_extra.get("args", {})}
    batch = {"sampling_per_token_logps": inputs.sampler_logprobs}
    loss, gradient, _ = trl_loss(inputs, **{**trl_options, **trl_extra, "args": args, "batch": batch})
    our_value, our_gradient, _ = our_loss(inputs, **our_options, **our_extra)
    torch.testing.assert_close(our_value, loss, **TOLERANCE)
    torch.testing.assert_close(our_gradient, gradient, **TOLERANCE)
    assert gradient.abs().max() > 0


def test_metrics_equal_grpo_trainer():
    inputs = random_inputs()
    _, _, trl_metrics = trl_loss(inputs, beta=0.04)
    _, _, metrics = our_loss(inputs, kl_coefficient=0.04)
    for ours, theirs in {
        "clip_fraction_low": "clip_ratio/low_mean",
        "clip_fraction_high": "clip_ratio/high_mean",
        "kl_ref": "kl",
        "entropy": "entropy",
    }.items():
        assert metrics[ours].item() == pytest.approx(trl_metrics[theirs], rel=1e-6), ours
        assert metrics[ours] > 0


def test_accumulated_micro_batches_equal_grpo_trainer():
    """TRL divides by its number of accumulation steps; our totals do the same without knowing of steps."""
    inputs = random_inputs()
    for trl_options, our_options in LOSSES.values():
        ours, theirs = 0.0, 0.0
        for rows in (slice(0, 4), slice(4, 8)):
            part = replace(inputs, **{k: v[rows] for k, v in vars(inputs).items() if isinstance(v, Tensor)})
            batch = {"num_items_in_batch": inputs.mask.sum()}
            args = {"steps_per_generation": 2, **trl_options.get("args", {})}
            options = {**trl_options, "args": args, "batch": batch, "current_gradient_accumulation_steps": 2}
            theirs += trl_loss(part, **options)[0]
            ours += our_loss(part, **our_options)[0]
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_loss_and_gradient_equal_rloo_trainer():
    inputs = random_inputs()
    loss, gradient, _ = trl_loss(inputs, RLOOTrainer, epsilon_low=0.2, epsilon_high=0.3)
    ours, our_gradient, _ = our_loss(
        inputs,
        aggregation="sequence_mean",
        surrogate_options={"ratio": "sequence_sum", "clip_low": 0.2, "clip_high": 0.3},
    )
    torch.testing.assert_close(ours, loss, **TOLERANCE)
    torch.testing.assert_close(our_gradient, gradient, **TOLERANCE)


# Advantages and importance weights: what TRL makes of rollouts with given rewards.

REWARDS = {
    "mixed": [[1.0], [0.0], [0.5], [1.0], [0.0], [0.0], [2.0], [0.0]],
    "one flat group": [[1.0], [0.0], [0.5], [1.0], [0.25], [0.25], [0.25], [0.25]],
    "unscored completions": [[1.0], [NAN], [0.5], [0.0], [NAN], [0.0], [2.0], [NAN]],
    "two rewards": [[1.0, 3.0], [0.0, NAN], [0.5, -2.0], [1.0, 0.0], [0.0, 5.0], [NAN, NAN], [2.0, 1.0], [0.0, 1.0]],
}
WEIGHTS = [1.0, 0.5]
rewards_of_every_kind = pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS)


def trl_rollouts(trainer_class, rewards, *, inputs=None, **attributes):
    """What TRL hands to its loss for completions that got these rewards [B, number of rewards]."""
    inputs = random_inputs() if inputs is None else inputs
    rewards = torch.tensor(rewards)
    lengths = inputs.mask.sum(-1).tolist()
    completion_ids = [[1] * length for length in lengths]
    sampler = [row[:length].tolist() for row, length in zip(inputs.sampler_logprobs, lengths, strict=True)]

    def forward(model, *args, **kwargs):
        return (inputs.ref_logprobs if model == "reference" else inputs.old_logprobs), inputs.entropy, None

    def generate(prompts):
        prompt_ids, completions = [[1]] * B, ["text"] * B
        if trainer_class is RLOOTrainer:
            return prompt_ids, completion_ids, completions
        return prompt_ids, completion_ids, None, completions, sampler, {}, None, None

    names = [f"reward {i}" for i in range(rewards.shape[1])]
    trainer = bare_trainer(
        trainer_class,
        forward,
        _generate=generate,
        _calculate_rewards=lambda *args: rewards,
        reward_weights=torch.tensor(WEIGHTS[: len(names)]),
        reward_funcs=names,
        reward_func_names=names,
        **attributes,
    )
    return trainer._generate_and_score_completions([{"prompt": "text"}] * B)


def view_of(rewards, inputs: LossInputs | None = None) -> RewardView:
    inputs = random_inputs() if inputs is None else inputs
    rewards = torch.tensor(rewards)
    weighted = rewards * torch.tensor(WEIGHTS[: rewards.shape[1]])
    return RewardView(
        rewards=weighted.nansum(-1).masked_fill(rewards.isnan().all(-1), NAN),
        components={f"reward {i}": column for i, column in enumerate(rewards.T)},
        weights={f"reward {i}": weight for i, weight in enumerate(WEIGHTS)},
        token_rewards=torch.zeros(B, T),
        group_ids=torch.arange(B) // GROUP_SIZE,
        trajectory_ids=torch.arange(B),
        mask=inputs.mask,
    )


@rewards_of_every_kind
@pytest.mark.parametrize("divide_by_std", ["group", "batch", "none"])
def test_group_relative_advantages_equal_grpo_trainer(rewards, divide_by_std):
    theirs = trl_rollouts(GRPOTrainer, rewards, scale_rewards=divide_by_std)["advantages"]
    view = view_of(rewards)
    ours = S.group_relative_stage(view.rewards, view, divide_by_std=divide_by_std)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@rewards_of_every_kind
def test_each_reward_normalised_equals_grpo_trainer(rewards):
    theirs = trl_rollouts(GRPOTrainer, rewards, multi_objective_aggregation="normalize_then_sum")["advantages"]
    view = view_of(rewards)
    ours = S.normalise_over_batch_stage(S.normalise_each_reward_stage(view.rewards, view), view)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@rewards_of_every_kind
@pytest.mark.parametrize("over_batch", [False, True])
def test_leave_one_out_advantages_equal_rloo_trainer(rewards, over_batch):
    theirs = trl_rollouts(RLOOTrainer, rewards, normalize_advantages=over_batch)["advantages"]
    view = view_of(rewards)
    ours = S.leave_one_out_stage(view.rewards, view)
    if over_batch:
        ours = S.normalise_over_batch_stage(ours, view)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("minimum", [None, 0.5])
def test_importance_weights_and_corrected_loss_equal_grpo_trainer(level, mode, minimum):
    inputs = random_inputs()
    unscored = inputs.sampler_logprobs.clone()
    unscored[0, 1] = NAN
    inputs = replace(inputs, sampler_logprobs=unscored)
    correction = {
        "use_vllm": True,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": f"{level}_{mode}",
        "vllm_importance_sampling_clip_max": 1.5,
        "vllm_importance_sampling_clip_min": minimum,
    }
    output = trl_rollouts(GRPOTrainer, REWARDS["mixed"], inputs=inputs, **correction)
    theirs = output["importance_sampling_ratio"].expand(B, T)
    options = {"level": level, "mode": mode, "max_weight": 1.5, "min_weight": minimum or 0.0}
    ours = losses.importance_weights(inputs.old_logprobs, inputs.sampler_logprobs, inputs.mask, **options)
    torch.testing.assert_close(ours[inputs.mask], theirs[inputs.mask].double(), **TOLERANCE)
    assert len(ours.unique()) > 2

    loss, gradient, _ = trl_loss(inputs, beta=0.04, batch={"importance_sampling_ratio": ours}, **correction)
    our_value, our_gradient, metrics = our_loss(
        inputs,
        kl_coefficient=0.04,
        importance_level=level,
        importance_mode=mode,
        importance_max=1.5,
        importance_min=minimum or 0.0,
    )
    torch.testing.assert_close(our_value, loss, **TOLERANCE)
    torch.testing.assert_close(our_gradient, gradient, **TOLERANCE)
    torch.testing.assert_close(metrics["importance_weight"], ours[inputs.mask].mean(), **TOLERANCE)


def test_the_whole_way_from_rewards_to_loss_equals_grpo_trainer():
    inputs = random_inputs()
    output = trl_rollouts(GRPOTrainer, REWARDS["two rewards"], inputs=inputs, beta=0.04, scale_rewards="group")
    loss, gradient, _ = trl_loss(inputs, beta=0.04, loss_type="grpo", batch=output)
    view = view_of(REWARDS["two rewards"], inputs)
    advantages = A.expand_to_tokens(S.group_relative_stage(view.rewards, view), view.mask).double()
    ours, our_gradient, _ = our_loss(
        replace(inputs, advantages=advantages), aggregation="sequence_mean", kl_coefficient=0.04
    )
    torch.testing.assert_close(ours, loss.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(our_gradient, gradient.double(), rtol=1e-6, atol=1e-6)

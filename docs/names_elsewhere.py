"""What losses, advantage estimators and options of TRL and verl are called here; a section of algorithms.md."""

from __future__ import annotations

TEXT = """What users of TRL's `GRPOConfig` and of verl look for. Presets are named under `extends`. "=" says that a test
holds value and gradient (or the advantages) equal to TRL's own code: `tests/unit/test_losses_against_trl.py`, and for
the plugin `text_reasoning` its `tests/test_menu.py`. The rest is held by numbers worked by hand from the sources that
each entry names; verl's code was not run against it."""

HEAD = ("TRL", "verl", "here", "")
LOSSES = [
    ("`loss_type: grpo`", "`vanilla`, `seq-mean-token-mean`", "loss `clipped`, `aggregate: sequence_mean`", "="),
    ("`loss_type: bnpo`", "", "`aggregate: local_token_mean`; `algorithm/bnpo`", "="),
    ("`loss_type: dr_grpo`", "`seq-mean-token-sum-norm`", "`aggregate: constant_length`; `algorithm/dr_grpo`", "="),
    ("`loss_type: dapo`", "`token-mean`", "`aggregate: token_mean`, the default; `algorithm/dapo`", "="),
    ("`loss_type: cispo`, `epsilon_high` is the cap", "", "loss `cispo`, `cap`; `algorithm/cispo`", "="),
    ("", "`cispo`, `clip_ratio_low`, `clip_ratio_high`", "loss `cispo`, `clip_low`, `clip_high`", ""),
    ("`importance_sampling_level: sequence`", "`gspo`", "`ratio: sequence_mean`; `algorithm/gspo`", "="),
    ("`loss_type: sapo`", "`sapo`", "loss `text_reasoning/sapo`; `algorithm/sapo`", "="),
    (
        "`loss_type: luspo`",
        "",
        "loss `text_reasoning/luspo`; `algorithm/luspo`; a KL is a mean over rows here",
        "=",
    ),
    ("`GMPOTrainer`", "`geo_mean`", "loss `text_reasoning/gmpo`; `algorithm/gmpo`", "="),
    ("`loss_type: vespo`", "", "none", ""),
    ("", "`gpg`", "loss `reinforce`; with its advantages `algorithm/gpg`", ""),
    ("", "`clip_cov`, `kl_cov`", "`algorithm/clip_cov`, `algorithm/kl_cov`; covariances over a whole step", ""),
    ("", "`dppo_tv`, `dppo_kl`", "loss `text_reasoning/dppo`, `divergence`; `algorithm/dppo`", ""),
    ("`RLOOTrainer`", "`rloo`", "`algorithm/rloo`", "="),
]
ADVANTAGES = [
    ("`scale_rewards: group`, `batch`, `none`", "`grpo`", "`group_relative`, `divide_by_std`; verl's eps is 1e-6", "="),
    ("`multi_objective_aggregation: normalize_then_sum`", "`gdpo`", "`algorithm/gdpo`", "="),
    ("", "`reinforce_plus_plus`", "`algorithm/reinforce_pp`", ""),
    ("", "`reinforce_plus_plus_baseline`", "`algorithm/reinforce_pp_baseline`", ""),
    ("", "`remax`", "`algorithm/remax`", ""),
    ("", "`opo`", "`algorithm/opo`", ""),
    ("", "`gpg`", "`group_mean`, `text_reasoning/scaled_by_valid_groups`; `algorithm/gpg`", ""),
    ("", "`grpo_passk`: the best answer against the second", "none; `algorithm/pass_at_k` is pass@k training", ""),
    ("", "`gae`", "none for tokens: there is no value network", ""),
]
OPTIONS = [
    ("`epsilon`, `epsilon_high`", "`clip_ratio_low`, `clip_ratio_high`", "`loss.clip_low`, `loss.clip_high`", "="),
    ("`delta`", "", "`loss.ratio_cap`", "="),
    ("", "`clip_ratio_c`", "`loss.dual_clip`", ""),
    ("`beta`", "`kl_loss_coef`, `kl_loss_type`", "`kl.coefficient`, `kl.estimator`", "="),
    ("`use_bias_correction_kl`", "", "`kl.times_ratio`", "="),
    ("`RLOOConfig.beta`", "`use_kl_in_reward`", "`kl.place: reward`", ""),
    ("`entropy_coef`", "`entropy_coeff`", "`entropy_coefficient`", "="),
    ("`off_policy_mask_threshold`", "", "`off_policy_threshold`", "="),
    (
        "`vllm_importance_sampling_mode`, `_clip_max`",
        "`rollout_is`, `rollout_is_threshold`",
        "`importance_correction`",
        "=",
    ),
    ("`mask_truncated_completions`", "", "`mask_truncated`", ""),
    ("", "`filter_groups`", "`dynamic_sampling`", ""),
    ("`get_soft_overlong_punishment`", "`overlong_buffer`", "`overlong`, or reward `text_reasoning/overlong`", ""),
    ("`num_generations`", "`rollout.n`", "`group_size` of a stage", ""),
    ("`num_iterations`", "`ppo_epochs`", "`epochs_per_rollout`", ""),
    ("`steps_per_generation`", "`ppo_mini_batch_size`", "`updates_per_rollout`, the number of parts", ""),
    ("`sync_ref_model`, `ref_model_sync_steps`", "", "`frozen_policies.reference`", ""),
]

"""What losses, advantage estimators and options of TRL and verl are called here.

A section of algorithms.md shows the tables, and `mmrl import-config` reads them: names in backticks of the first two
columns are values of a config, and `means` is what stands for them in the section `algorithm`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

TEXT = """What users of TRL's `GRPOConfig` and of verl look for. Presets are named under `extends`. "=" says that a test
holds value and gradient (or the advantages) equal to TRL's own code: `tests/unit/test_losses_against_trl.py`, and for
the plugin `text_reasoning` its `tests/test_menu.py`. The rest is held by numbers worked by hand from the sources that
each entry names; verl's code was not run against it."""

HEAD = ("TRL", "verl", "here", "")


class Named(NamedTuple):
    """A row of a table: what something is called by TRL, by verl and here; "=" where a test holds the two equal.

    Attributes:
        means: keys of the section `algorithm`; None where it takes more than those, or there is no counterpart.
    """

    trl: str
    verl: str
    here: str
    proven: str
    means: Mapping[str, Any] | None = None


def meaning(table: Sequence[Named], peer: str, value: str) -> Mapping[str, Any] | None:
    """What stands for a value of a config; None if nothing does.

    >>> meaning(LOSSES, "trl", "loss_type: bnpo")
    {'aggregate': 'local_token_mean'}
    """
    rows = (row for row in table if value in re.findall("`([^`]+)`", row.trl if peer == "trl" else row.verl))
    return next((row.means for row in rows if row.means is not None), None)


LOSSES = [
    Named(
        "`loss_type: grpo`",
        "`vanilla`, `seq-mean-token-mean`",
        "loss `clipped`, `aggregate: sequence_mean`",
        "=",
        {"aggregate": "sequence_mean"},
    ),
    Named(
        "`loss_type: bnpo`",
        "",
        "`aggregate: local_token_mean`; `algorithm/bnpo`",
        "=",
        {"aggregate": "local_token_mean"},
    ),
    Named(
        "`loss_type: dr_grpo`",
        "`seq-mean-token-sum-norm`",
        "`aggregate: constant_length`; `algorithm/dr_grpo`",
        "=",
        {"aggregate": "constant_length"},
    ),
    Named(
        "`loss_type: dapo`",
        "`token-mean`",
        "`aggregate: token_mean`, the default; `algorithm/dapo`",
        "=",
        {"aggregate": "token_mean"},
    ),
    Named(
        "`loss_type: cispo`, `epsilon_high` is the cap",
        "",
        "loss `cispo`, `cap`; `algorithm/cispo`",
        "=",
        {"loss": {"name": "cispo"}, "aggregate": "token_mean"},
    ),
    Named(
        "",
        "`cispo`, `clip_ratio_low`, `clip_ratio_high`",
        "loss `cispo`, `clip_low`, `clip_high`",
        "",
        {"loss": {"name": "cispo"}},
    ),
    Named(
        "`importance_sampling_level: sequence`",
        "`gspo`",
        "`ratio: sequence_mean`; `algorithm/gspo`",
        "=",
        {"loss": {"name": "clipped", "ratio": "sequence_mean"}},
    ),
    Named(
        "`loss_type: sapo`",
        "`sapo`",
        "loss `text_reasoning/sapo`; `algorithm/sapo`",
        "=",
        {"loss": {"name": "text_reasoning/sapo"}, "aggregate": "sequence_mean"},
    ),
    Named(
        "`loss_type: luspo`",
        "",
        "loss `text_reasoning/luspo`; `algorithm/luspo`; a KL is a mean over rows here",
        "=",
        {"loss": {"name": "text_reasoning/luspo"}, "aggregate": "sequence_mean"},
    ),
    Named(
        "`GMPOTrainer`",
        "`geo_mean`",
        "loss `text_reasoning/gmpo`; `algorithm/gmpo`",
        "=",
        {"loss": {"name": "text_reasoning/gmpo"}, "aggregate": "sequence_mean"},
    ),
    Named("`loss_type: vespo`", "", "none", ""),
    Named("", "`gpg`", "loss `reinforce`; with its advantages `algorithm/gpg`", "", {"loss": {"name": "reinforce"}}),
    Named("", "`clip_cov`, `kl_cov`", "`algorithm/clip_cov`, `algorithm/kl_cov`; covariances over a whole step", ""),
    Named("", "`dppo_tv`, `dppo_kl`", "loss `text_reasoning/dppo`, `divergence`; `algorithm/dppo`", ""),
    Named("`RLOOTrainer`", "`rloo`", "`algorithm/rloo`", "=", {"advantage": ["leave_one_out"]}),
]
ADVANTAGES = [
    Named(
        "`scale_rewards: group`, `batch`, `none`",
        "`grpo`",
        "`group_relative`, `divide_by_std`; verl's eps is 1e-6",
        "=",
        {"advantage": [{"name": "group_relative", "eps": 1e-06}]},
    ),
    Named(
        "`multi_objective_aggregation: normalize_then_sum`",
        "`gdpo`",
        "`algorithm/gdpo`",
        "=",
        {"advantage": ["normalise_each_reward", "normalise_over_batch"]},
    ),
    Named("", "`reinforce_plus_plus`", "`algorithm/reinforce_pp`", "", {"advantage": ["discounted_returns", "whiten"]}),
    Named(
        "",
        "`reinforce_plus_plus_baseline`",
        "`algorithm/reinforce_pp_baseline`",
        "",
        {"advantage": ["group_mean", "whiten"]},
    ),
    Named("", "`remax`", "`algorithm/remax`", "", {"advantage": ["text_reasoning/greedy_baseline"]}),
    Named("", "`opo`", "`algorithm/opo`", "", {"advantage": ["text_reasoning/optimal_baseline"]}),
    Named(
        "",
        "`gpg`",
        "`group_mean`, `text_reasoning/scaled_by_valid_groups`; `algorithm/gpg`",
        "",
        {"advantage": ["group_mean", "text_reasoning/scaled_by_valid_groups"]},
    ),
    Named("", "`grpo_passk`: the best answer against the second", "none; `algorithm/pass_at_k` is pass@k training", ""),
    Named("", "`gae`", "none for tokens: there is no value network", ""),
]
OPTIONS = [
    Named("`epsilon`, `epsilon_high`", "`clip_ratio_low`, `clip_ratio_high`", "`loss.clip_low`, `loss.clip_high`", "="),
    Named("`delta`", "", "`loss.ratio_cap`", "="),
    Named("", "`clip_ratio_c`", "`loss.dual_clip`", ""),
    Named("`beta`", "`kl_loss_coef`, `kl_loss_type`", "`kl.coefficient`, `kl.estimator`", "="),
    Named("`use_bias_correction_kl`", "", "`kl.times_ratio`", "="),
    Named("`RLOOConfig.beta`", "`use_kl_in_reward`", "`kl.place: reward`", ""),
    Named("`entropy_coef`", "`entropy_coeff`", "`entropy_coefficient`", "="),
    Named("`off_policy_mask_threshold`", "", "`off_policy_threshold`", "="),
    Named(
        "`vllm_importance_sampling_mode`, `_clip_max`",
        "`rollout_is`, `rollout_is_threshold`",
        "`importance_correction`",
        "=",
    ),
    Named("`mask_truncated_completions`", "", "`mask_truncated`", ""),
    Named("", "`filter_groups`", "`dynamic_sampling`", ""),
    Named("`get_soft_overlong_punishment`", "`overlong_buffer`", "`overlong`, or reward `text_reasoning/overlong`", ""),
    Named("`num_generations`", "`rollout.n`", "`group_size` of a stage", ""),
    Named("`num_iterations`", "`ppo_epochs`", "`epochs_per_rollout`", ""),
    Named("`steps_per_generation`", "`ppo_mini_batch_size`", "`updates_per_rollout`, the number of parts", ""),
    Named("`sync_ref_model`, `ref_model_sync_steps`", "", "`frozen_policies.reference`", ""),
]

"""Runs of the trainer: what is counted, what is learnt, what is refused, and when plugins are asked."""

import json
import math
import shutil

import pytest
import torch

from mmrl_core.errors import HookResultError, MMRLError, TaskDataError
from mmrl_core.runs import read_metrics


@pytest.fixture
def grpo(base_config, rewards_file):
    """`grpo(reward, kind=..., stage={...}, **config)` -> plain config of one GRPO stage, 2 steps of 4 x 4."""

    def config(*rewards, kind="qwen2_vl", stage=None, **settings):
        return {
            **base_config(kind),
            "rewards": [f"{rewards_file}:{name}" if isinstance(name, str) else name for name in rewards],
            "stages": [{"kind": "grpo", "steps": 2, "prompts_per_step": 4, "group_size": 4, **(stage or {})}],
            **settings,
        }

    return config


def weights_of(trainer):
    return [parameter.detach().clone() for parameter in trainer.policy.module.parameters()]


def rollouts_of(trainer):
    files = sorted((trainer.output / "rollouts").glob("step-*-train.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


# Work


def test_a_prompt_is_prefilled_once_a_group_and_a_picture_encoded_once_in_a_run(run, grpo, data_files):
    """16 rows in steps of 4: steps 5 to 8 see again what steps 1 to 4 saw."""
    trainer, steps = run(grpo("spread", stage={"steps": 8}, log={"rollouts_every_steps": 1, "rollouts_per_step": 4}))
    first, *others = read_metrics(trainer.output)
    assert first["kind"] == "start" and all(record["kind"] != "start" for record in others)
    assert {name for name in first if "/" in name} == {"seen/image", "seen/video"} and first["seen/image"] > 1e-3
    encodes = [record.get("count/media_encodes", 0) for record in steps]
    assert sum(encodes[:4]) == len(list(data_files.glob("*.png"))) == 13 and encodes[4:] == [0, 0, 0, 0]
    for record, rollouts in zip(steps, rollouts_of(trainer), strict=True):
        prompts = {rollout["prompt_id"] for rollout in rollouts}
        assert len(prompts) == 4 and len(rollouts) == 16
        lengths = [
            trainer.policy.prompt_length(trainer.sampler.source.sources[0].prompt(int(p.split(":")[1])))
            for p in prompts
        ]
        # Once in the rollout and once in the update, which is on-policy and needs no pass for old logprobs.
        assert record["count/prefill_tokens"] == sum(lengths)
        tokens = sum(rollout["num_tokens"] for rollout in rollouts)
        assert record["count/decode_tokens"] == tokens
        assert record["count/rows_skipped"] == 0
        assert record["count/update_tokens"] == sum(lengths) + tokens - 16  # nothing follows a last token
        assert record["count/padding_tokens"] == 0 and "count/score_tokens" not in record
        assert record["completion_tokens/mean"] == tokens / 16


def test_metrics_are_means_over_what_was_written(run, grpo):
    trainer, steps = run(
        grpo("spread", "sometimes_flat", log={"rollouts_every_steps": 1, "rollouts_per_step": 4}, stage={"steps": 1})
    )
    (rollouts,) = rollouts_of(trainer)
    for name in ("spread", "sometimes_flat"):
        values = [rollout["rewards"][name] for rollout in rollouts]
        assert steps[0][f"reward/{name}"] == pytest.approx(sum(values) / 16, rel=1e-6)
    assert steps[0]["reward/total"] == pytest.approx(sum(rollout["total"] for rollout in rollouts) / 16, rel=1e-6)
    assert steps[0]["truncated"] == sum(rollout["truncated"] for rollout in rollouts) / 16
    for group in range(4):
        members = [rollout for rollout in rollouts if rollout["group"] == group]
        assert sum(rollout["advantage"] for rollout in members) == pytest.approx(0, abs=1e-5)
    assert steps[0]["policy_loss"] == pytest.approx(steps[0]["loss"])


# What is learnt


def test_groups_of_equal_rewards_teach_nothing(run, make_trainer, grpo):
    before = weights_of(make_trainer(grpo("flat")))
    trainer, steps = run(grpo("flat"))
    for old, new in zip(before, weights_of(trainer), strict=True):
        assert torch.equal(old, new)
    assert [(r["loss"], r["grad_norm"], r["groups/flat"], r["advantage/abs_mean"]) for r in steps] == [(0, 0, 1, 0)] * 2


def test_dynamic_sampling_draws_until_the_step_is_full_of_groups_that_vary(run, grpo):
    config = grpo("sometimes_flat", algorithm={"dynamic_sampling": {"max_rounds": 10}}, stage={"steps": 3})
    trainer, steps = run({**config, "log": {"rollouts_every_steps": 1, "rollouts_per_step": 9}})
    for record, rollouts in zip(steps, rollouts_of(trainer), strict=True):
        assert record["groups/flat"] == 0
        assert len(rollouts) == 16 and all(rollout["sample"]["number"] % 2 == 0 for rollout in rollouts)
    assert trainer.state.position == 0 and trainer.state.stage == 1


def test_dynamic_sampling_stops_after_max_rounds(make_trainer, grpo, install):
    install("probe_position", POSITION)
    config = grpo("flat", algorithm={"dynamic_sampling": {"max_rounds": 3}}, plugins=["probe_position"])
    trainer = make_trainer(config)
    trainer.run(resume=False)
    import probe_position

    assert probe_position.positions == [3 * 4, 6 * 4]  # three rounds of four prompts in each of two steps
    assert [record["loss"] for record in read_metrics(trainer.output) if record["kind"] == "step"] == [0, 0]


def test_dynamic_sampling_that_finds_fewer_groups_than_updates_makes_fewer_updates(run, grpo, install):
    """It goes on with what there is, as it says: here with none that varies, and then with one."""
    install("probe_batches", BATCHES)
    few = {"dynamic_sampling": {"max_rounds": 1}, "updates_per_rollout": 4}
    _, steps = run(grpo("sometimes_flat", algorithm=few, stage={"steps": 3}, plugins=["probe_batches"]))
    import probe_batches

    numbers = [len(batch.group_ids.unique()) for batch in probe_batches.BATCHES]
    assert len(steps) == 3 and min(numbers) < 4


POSITION = """
from mmrl_core import hookimpl

positions = []

@hookimpl
def mmrl_step_end(run):
    positions.append(run.state.position)
"""

BATCHES = """
from mmrl_core import hookimpl

BATCHES, SCORES, REFERENCE = [], [], []

@hookimpl(wrapper=True)
def mmrl_shape_rewards(run, groups, scores):
    shaped = yield
    rows = [rollout.rows[0] for group in groups for rollout in group.rollouts]
    if "reference" in run.policy._frozen:
        REFERENCE.append((run.policy.logprobs(rows).logprobs.detach(), run.policy.logprobs(rows, frozen="reference")))
    SCORES.append((scores, shaped))
    return shaped

@hookimpl
def mmrl_after_update(batch):
    BATCHES.append(batch)
"""


def test_kl_in_the_reward_is_summed_over_the_tokens_of_a_rollout(run, grpo, install):
    install("probe_batches", BATCHES)
    kl = {"coefficient": 0.5, "estimator": "k1", "place": "reward"}
    run(grpo("spread", algorithm={"kl": kl}, plugins=["probe_batches"], optimizer={"lr": 1e-2}))
    import probe_batches

    for (scores, shaped), (policy, reference), batch in zip(
        probe_batches.SCORES, probe_batches.REFERENCE, probe_batches.BATCHES, strict=True
    ):
        penalty = torch.stack(
            [
                -0.5 * (policy[i, : row.num_actions] - reference.logprobs[i, : row.num_actions]).sum()
                for i, row in enumerate(batch.rows)
            ]
        )
        torch.testing.assert_close(shaped.components["kl"], penalty, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(shaped.totals, scores.totals + shaped.components["kl"])
        assert batch.frozen_logprobs == {}  # the penalty is not in the loss too
    assert probe_batches.SCORES[0][1].components["kl"].abs().max() == 0  # the reference starts as the policy
    assert probe_batches.SCORES[1][1].components["kl"].abs().min() > 1e-3


def test_overlong_completions_are_penalised_linearly(run, grpo, install):
    install("probe_batches", BATCHES)
    run(grpo("spread", algorithm={"overlong": {"cache": 4}}, plugins=["probe_batches"]))
    import probe_batches

    lengths = []
    for (scores, shaped), batch in zip(probe_batches.SCORES, probe_batches.BATCHES, strict=True):
        expected = [min(0.0, (6 - 4 - row.num_actions) / 4) for row in batch.rows]
        assert shaped.components["overlong"].tolist() == pytest.approx(expected)
        assert (shaped.totals - scores.totals).tolist() == pytest.approx(expected, abs=1e-6)
        lengths += [row.num_actions for row in batch.rows]
    assert min(lengths) <= 2 and max(lengths) == 6, "the test needs short and long completions"


def test_truncated_completions_are_left_out_of_the_loss_and_its_normaliser(run, grpo, install):
    install("probe_batches", BATCHES)
    _, steps = run(grpo("spread", algorithm={"mask_truncated": True}, plugins=["probe_batches"], stage={"steps": 1}))
    import probe_batches

    (batch,) = probe_batches.BATCHES
    truncated = torch.tensor([row.truncated for row in batch.rows])
    assert 0 < truncated.sum() < 16
    assert not batch.mask[truncated].any() and not batch.advantages[truncated].any()
    assert batch.mask[~truncated].sum() == sum(row.num_actions for row in batch.rows if not row.truncated)
    # On-policy the ratio is 1, so that the loss is minus the mean advantage of the trained tokens.
    assert steps[0]["loss"] == pytest.approx(-float(batch.advantages[batch.mask].mean()), abs=1e-6)


def test_several_updates_on_a_rollout_use_the_logprobs_it_was_sampled_with(run, grpo, install):
    install("probe_batches", BATCHES)
    algorithm = {"updates_per_rollout": 2, "epochs_per_rollout": 2}
    _, steps = run(grpo("spread", algorithm=algorithm, plugins=["probe_batches"], stage={"steps": 1}))
    import probe_batches

    (batch,) = probe_batches.BATCHES
    torch.testing.assert_close(batch.old_logprobs, batch.sampler_logprobs, rtol=0, atol=1e-5)
    tokens = steps[0]["count/prefill_tokens"] + int(batch.mask.sum()) - len(batch)  # nothing follows a last token
    assert steps[0]["kl_old"] > 1e-6 and steps[0]["count/score_tokens"] == tokens
    assert steps[0]["count/update_tokens"] == 2 * tokens


FROZEN = """
from mmrl_core import hookimpl

HISTORY = []

@hookimpl
def mmrl_step_end(run):
    name, weight = next((n, p) for n, p in run.policy.module.model.named_parameters() if "q_proj.weight" in n)
    frozen = {policy: weights[name].clone() for policy, weights in run.policy._frozen.items()}
    HISTORY.append((weight.detach().clone(), frozen))
"""


def test_frozen_policies_follow_by_their_rules(run, grpo, install):
    install("probe_frozen", FROZEN)
    rules = {
        "never": {"rule": "never"},
        "every": {"rule": "every", "every_steps": 2},
        "average": {"rule": "moving_average", "decay": 0.75},
    }
    run(grpo("spread", algorithm={"frozen_policies": rules}, plugins=["probe_frozen"], stage={"steps": 4}))
    import probe_frozen

    trained = [weight for weight, _ in probe_frozen.HISTORY]
    start = average = probe_frozen.HISTORY[0][1]["never"]
    assert not torch.equal(start, trained[0])
    for index, (weight, frozen) in enumerate(probe_frozen.HISTORY):
        average = 0.75 * average + 0.25 * weight
        assert torch.equal(frozen["never"], start)
        torch.testing.assert_close(frozen["average"], average)
        # "every 2 steps" takes over the weights after steps 2 and 4
        expected = start if index == 0 else trained[1] if index < 3 else trained[3]
        assert torch.equal(frozen["every"], expected), f"after step {index + 1}"


def test_a_supervised_step_is_hand_written_cross_entropy(run, base_config, plain_model, tiny_model, install):
    install("probe_batches", BATCHES)
    stage = {"kind": "sft", "steps": 2, "prompts_per_step": 4, "micro_batch_rows": 3, "target": "It is {answer}."}
    settings = {"lr": 1e-2, "eps": 1e-2, "max_grad_norm": None}
    config = {**base_config("qwen2_vl"), "optimizer": settings, "stages": [stage], "plugins": ["probe_batches"]}
    config["prompt"]["prefix"] = "It is"
    trainer, steps = run(config)
    import probe_batches

    plain = plain_model(tiny_model("qwen2_vl"))
    for name, parameter in plain.model.named_parameters():
        parameter.requires_grad_("visual" not in name)
    optimizer = torch.optim.AdamW((p for p in plain.model.parameters() if p.requires_grad), lr=1e-2, eps=1e-2)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    tokenizer = plain.processor.tokenizer
    for record, batch in zip(steps, probe_batches.BATCHES, strict=True):
        logits, targets = [], []
        for row in batch.rows:
            prompt = trainer.sampler.source.sources[0].prompt(int(row.prompt_id.split(":")[1]))
            ids = tokenizer(f" {prompt.sample['answer']}.<|im_end|>", return_tensors="pt")["input_ids"][0]
            assert row.action.tolist() == ids.tolist()
            logits.append(plain.logits(prompt, ids))
            targets.append(ids)
        loss = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in plain.model.parameters() if p.grad is not None])
        optimizer.step()
        assert record["loss"] == pytest.approx(float(loss.detach()), abs=2e-6)
        assert record["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    expected = dict(plain.model.named_parameters())
    for name, parameter in trainer.policy.model.base.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-6)


def test_learning_rates_follow_the_schedule(run, base_config):
    stage = {"kind": "sft", "steps": 6, "prompts_per_step": 1}
    optimizer = {"lr": 1e-3, "warmup_steps": 2, "schedule": "linear", "final_lr_ratio": 0.1}
    _, steps = run({**base_config("qwen2"), "optimizer": optimizer, "stages": [stage]})
    assert [record["lr"] for record in steps] == pytest.approx([5e-4, 1e-3, 1e-3, 7.75e-4, 5.5e-4, 3.25e-4])


# What goes wrong


@pytest.mark.parametrize(
    "reward, why, sampling",
    [
        ("raises", "raised ZeroDivisionError", None),
        ("hangs", "took longer than 0.3 s", None),
        ("not_a_number", "nan", {"max_rounds": 2}),
    ],
)
def test_a_failing_reward_leaves_completions_unscored_and_the_run_alive(run, grpo, rewards_file, reward, why, sampling):
    """Odd rows score, or fail; 2 x 4 x 4 completions in all. Their lines say why."""
    component = {"name": f"{rewards_file}:{reward}", "weight": 0.5, "timeout_s": 0.3}
    config = grpo("spread", component, algorithm={"dynamic_sampling": sampling}, kind="qwen2")
    trainer, steps = run({**config, "log": {"rollouts_every_steps": 1, "rollouts_per_step": 9}})
    assert len(steps) == 2
    failing = 0 if reward == "raises" else 1
    for record, rollouts in zip(steps, rollouts_of(trainer), strict=True):
        failed = [rollout for rollout in rollouts if rollout["sample"]["number"] % 2 == failing]
        for rollout in rollouts:
            assert (rollout["rewards"][reward] is None) == (rollout["total"] is None) == (rollout in failed)
            assert rollout["rewards"]["spread"] is not None
            assert why in rollout["failures"][reward] if rollout in failed else rollout["failures"] == {}
            assert rollout in failed or rollout["total"] == pytest.approx(rollout["rewards"]["spread"] + 0.5, abs=1e-6)
        assert all(rollout["advantage"] == 0 for rollout in failed)
        if sampling is None:
            assert record[f"failures/{reward}"] == len(failed) and record["unscored"] == len(failed) / 16
        else:  # groups that fail are left out, and what failed is counted all the same
            assert not failed and record[f"failures/{reward}"] > 0 and record["unscored"] == 0


def test_a_broken_picture_is_set_aside_with_its_file_and_the_run_goes_on(run, grpo, data_files, tmp_path):
    data = shutil.copytree(data_files, tmp_path / "data")
    (data / "picture-2.png").write_bytes((data / "picture-2.png").read_bytes()[:100])
    source = {"name": "rows", "path": str(data / "pictures.parquet")}
    trainer, steps = run(grpo("spread", data={"train": source}, stage={"steps": 4}))
    (record,) = [json.loads(line) for line in (trainer.output / "set_aside.jsonl").read_text().splitlines()]
    assert (record["id"], record["index"], record["stage"]) == ("train:2", 2, "grpo")
    assert record["file"].endswith("picture-2.png") and "cannot read image" in record["reason"]
    assert steps[-1]["set_aside"] == 1 and len(steps) == 4


def test_an_overlong_prompt_stops_the_run_with_its_name_and_what_to_do(make_trainer, grpo):
    config = grpo("spread")
    config["model"] |= {"max_prompt_tokens": 10}
    with pytest.raises(TaskDataError, match=r"prompt 'train:\d+' has \d+ tokens, over model.max_prompt_tokens=10"):
        make_trainer(config).run(resume=False)


BAD_LOSS = """
import torch

def infinite(inputs):
    return inputs.logprobs * float("inf"), {}

class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("nan")

def bad_gradient(inputs):
    return BadGradient.apply(inputs.logprobs), {}
"""


@pytest.mark.parametrize(
    "loss, message",
    [("infinite", "the loss is -?inf at step 1"), ("bad_gradient", "the gradient's norm is nan at step 1")],
)
def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(make_trainer, grpo, tmp_path, loss, message):
    (tmp_path / "bad.py").write_text(BAD_LOSS)
    trainer = make_trainer(grpo("spread", kind="qwen2", algorithm={"loss": f"{tmp_path / 'bad.py'}:{loss}"}))
    before = weights_of(trainer)
    with pytest.raises(HookResultError, match=f"{message}; training stops before the update"):
        trainer.run(resume=False)
    for old, new in zip(before, weights_of(trainer), strict=True):
        assert torch.equal(old, new)


# Hooks

ORDER = """
from mmrl_core import hookimpl, hookspecs

CALLS = []

def record(name):
    def call():
        CALLS.append(name)
    call.__name__ = name
    return hookimpl(tryfirst=True)(call)

for name in vars(hookspecs):
    if name.startswith("mmrl_") and name != "mmrl_register":
        globals()[name] = record(name)
"""


def test_the_hooks_of_enabled_plugins_fire_in_the_documented_order_and_no_others(run, grpo, install):
    install("probe_order", ORDER)
    install("probe_silent", ORDER)
    config = grpo("spread", kind="qwen2", stage={"steps": 2, "prompts_per_step": 16, "group_size": 2})
    held_out = {**config["data"]["train"], "limit": 2}
    run({**config, "plugins": ["probe_order"], "data": {**config["data"], "held_out": held_out}})
    import probe_order
    import probe_silent

    assert probe_silent.CALLS == []
    step = [
        "mmrl_save_state",  # kept in case the step fails
        "mmrl_prompts",
        "mmrl_rollout",
        "mmrl_score",
        "mmrl_revise_groups",
        "mmrl_shape_rewards",
        "mmrl_select_groups",
        "mmrl_extend_groups",
        "mmrl_compute_advantages",
        "mmrl_batch",
        "mmrl_policy_loss",
        "mmrl_after_update",
        "mmrl_step_end",
    ]
    assert [
        "mmrl_configure",
        "mmrl_evaluated",
        "mmrl_stage_start",
        *step,
        *step,
        "mmrl_save_state",  # kept in case the end of the stage fails
        "mmrl_stage_end",
        "mmrl_evaluated",
        "mmrl_save_state",
    ] == probe_order.CALLS


def test_a_plugin_that_is_not_installed_is_refused_by_name(make_trainer, grpo):
    with pytest.raises(MMRLError, match="plugin 'absent' is not installed"):
        make_trainer(grpo("spread", plugins=["absent"]))


WRAPPER = """
from dataclasses import replace
from mmrl_core import hookimpl

@hookimpl(wrapper=True)
def mmrl_score(groups):
    scores = yield
    return replace(scores, totals=scores.totals * 0 + 7.0, components={"seven": scores.totals * 0 + 7.0}, weights={})

@hookimpl(wrapper=True)
def mmrl_policy_loss():
    loss, metrics = yield
    return loss * 3 + 1, {**metrics, "tripled": loss.detach() * 0 + 1}
"""


def test_wrappers_change_what_others_return(run, grpo, install):
    install("probe_wrapper", WRAPPER)
    _, steps = run(grpo("spread", kind="qwen2", plugins=["probe_wrapper"]))
    for record in steps:
        assert (record["reward/total"], record["reward/seven"], record["tripled"]) == (7, 7, 1)
        assert record["loss"] == 1 and "reward/spread" not in record  # the advantages of equal totals are 0


@pytest.mark.parametrize(
    "hook, result, message",
    [
        ("mmrl_rollout(run, prompts)", "[]", "mmrl_rollout of plugin 'probe_wrong' returned 0 groups for 4 prompts"),
        ("mmrl_score(groups)", "[1.0]", "mmrl_score of plugin 'probe_wrong' returned a list of 1; expected Scores"),
        (
            "mmrl_shape_rewards(scores)",
            "replace(scores, totals=torch.zeros(3))",
            r"mmrl_shape_rewards of plugin 'probe_wrong' returned 'totals' of shape \(3,\); expected \(16,\)",
        ),
        (
            "mmrl_select_groups(groups)",
            "[True]",
            "mmrl_select_groups of plugin 'probe_wrong' returned 1 choices for 4 groups",
        ),
        ("mmrl_select_groups(groups)", "[False] * 4", "mmrl_select_groups of plugin 'probe_wrong' selected no group"),
        (
            "mmrl_compute_advantages(view)",
            "torch.zeros(5)",
            r"mmrl_compute_advantages of plugin 'probe_wrong' returned \(5,\); expected a tensor \(16,\) or \(16, 6\)",
        ),
        (
            "mmrl_compute_advantages(view)",
            "view.rewards / 0",
            "mmrl_compute_advantages of plugin 'probe_wrong' returned numbers",
        ),
        (
            "mmrl_compute_advantages(view)",
            "view.group_ids",
            "mmrl_compute_advantages of plugin 'probe_wrong' returned numbers",
        ),
        (
            "mmrl_policy_loss(inputs)",
            "inputs.logprobs, {}",
            "mmrl_policy_loss of plugin 'probe_wrong' returned the loss a tensor .*expected a scalar with a gradient",
        ),
        ("mmrl_policy_loss(inputs)", "inputs.logprobs.sum()", "mmrl_policy_loss of plugin 'probe_wrong' .* a pair"),
        ("mmrl_policy_loss(inputs)", "torch.tensor(1.0), {}", "'probe_wrong' returned the loss .* without a gradient"),
    ],
)
def test_a_hook_that_returns_the_wrong_thing_is_named(hook, result, message, make_trainer, grpo, install):
    source = f"""
        import torch
        from dataclasses import replace
        from mmrl_core import hookimpl

        @hookimpl
        def {hook}:
            return {result}
    """
    install("probe_wrong", source)
    with pytest.raises(HookResultError, match=message):
        make_trainer(grpo("spread", kind="qwen2", plugins=["probe_wrong"])).run(resume=False)


def test_post_update_logprobs_are_those_of_the_new_weights(run, grpo, install):
    install(
        "probe_post",
        """
        from mmrl_core import hookimpl

        SEEN = []

        @hookimpl
        def mmrl_after_update(run, batch, post_update):
            SEEN.append((batch.sampler_logprobs, post_update().logprobs, run.policy.logprobs(batch.rows).logprobs))
        """,
    )
    run(grpo("spread", kind="qwen2", plugins=["probe_post"], stage={"steps": 1}))
    import probe_post

    ((sampled, after, again),) = probe_post.SEEN
    assert torch.equal(after, again.detach()) and not after.requires_grad
    assert math.isfinite(float(after.sum())) and (after - sampled).abs().max() > 1e-3


# Trackers


def test_trackers_of_accelerate_get_config_and_metrics(run, grpo):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer, steps = run(grpo("spread", kind="qwen2", log={"trackers": ["tensorboard"]}))
    trainer.close()
    folders = {path.parent for path in trainer.output.rglob("events.out.tfevents.*")}
    events = [EventAccumulator(str(folder)).Reload() for folder in folders]
    logged = [
        event.value
        for log in events
        if "reward/total" in log.Tags()["scalars"]
        for event in log.Scalars("reward/total")
    ]
    assert logged == pytest.approx([record["reward/total"] for record in steps])


def test_a_tracker_that_is_not_installed_is_refused(make_trainer, grpo):
    with pytest.raises(MMRLError, match=r"log.trackers: accelerate has no tracker 'tensorbord'"):
        make_trainer(grpo("spread", kind="qwen2", log={"trackers": ["tensorbord"]}))

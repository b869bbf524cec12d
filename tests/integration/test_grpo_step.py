"""GRPO steps of the trainer against the same steps written out by hand with plain transformers and torch."""

import pytest
import torch

from mmrl_core.runs import read_metrics

PROBE = """
from mmrl_core import hookimpl

BATCHES, UPDATES = [], []  # UPDATES: prompt ids, loss parts and gradients of each optimiser step
parts, passed = [], []

@hookimpl
def mmrl_stage_start(run):
    names = {id(parameter): name for name, parameter in run.policy.module.named_parameters()}

    def record(optimizer, *arguments):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = {names[id(p)].removeprefix("model."): p.grad.clone() for p in parameters if p.grad is not None}
        UPDATES.append({"parts": list(parts), "gradients": gradients})
        parts.clear()

    run.optimizer.register_step_pre_hook(record)
    logprobs = run.policy.logprobs

    def watched(rows, **options):
        passed[:] = sorted({row.prompt_id for row in rows})
        return logprobs(rows, **options)

    run.policy.logprobs = watched

@hookimpl(wrapper=True)
def mmrl_policy_loss(inputs):
    loss, metrics = yield
    parts.append((list(passed), float(loss.detach()), inputs.totals.num_tokens))
    return loss, metrics

@hookimpl
def mmrl_after_update(run, batch):
    BATCHES.append((batch, {prompt.id: prompt for prompt in PROMPTS}))
    PROMPTS.clear()

PROMPTS = []

@hookimpl(wrapper=True)
def mmrl_prompts():
    prompts = yield
    PROMPTS.extend(prompts)
    return prompts
"""

CLIP_LOW, CLIP_HIGH, KL, TEMPERATURE, LR, EPS, MAX_NORM = 0.2, 0.28, 0.3, 0.9, 1e-2, 1e-3, 0.5


def config(base_config, rewards_file, kind, micro_batch_rows, freeze):
    base = base_config(kind)
    base["model"] |= {"freeze": freeze}
    return {
        **base,
        "seed": 1,
        "plugins": ["probe_step"],
        "rewards": [f"{rewards_file}:spread"],
        "rollout": {"max_tokens": 6, "temperature": TEMPERATURE},
        "algorithm": {
            "loss": {"name": "clipped", "clip_low": CLIP_LOW, "clip_high": CLIP_HIGH},
            "kl": {"coefficient": KL, "estimator": "k3"},
            "aggregate": "token_mean",
            "updates_per_rollout": 2,
        },
        # A large eps: gradients that are zero but for rounding (key biases) stay without influence on the weights.
        "optimizer": {"lr": LR, "eps": EPS, "weight_decay": 0.1, "max_grad_norm": MAX_NORM},
        "stages": [
            {
                "kind": "grpo",
                "steps": 2,
                "prompts_per_step": 4,
                "group_size": 4,
                "micro_batch_rows": micro_batch_rows,
            }
        ],
    }


def spread(text):
    return sum(map(ord, text)) % 97 / 96


def group_advantages(rewards):
    mean = sum(rewards) / len(rewards)
    std = (sum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1)) ** 0.5
    return [(reward - mean) / (std + 1e-4) if max(rewards) > min(rewards) else 0.0 for reward in rewards]


def check_against_hand_written_steps(plain_model, path, freeze, probe):
    """Asserts that loss, gradients and weights of every recorded update are those of the code below."""
    plain, start = plain_model(path), plain_model(path)
    for name, parameter in plain.model.named_parameters():
        parameter.requires_grad_(not ("vision" in freeze and "visual" in name))
    trained = {name: p for name, p in plain.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained.values() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in trained.values() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=LR,
        eps=EPS,
    )
    updates = iter(probe.UPDATES)
    clipped = 0
    for batch, prompts in probe.BATCHES:
        rows = list(batch.rows)
        texts = [plain.processor.decode(row.action, skip_special_tokens=True) for row in rows]
        advantages = []
        for start_row in range(0, len(rows), 4):
            advantages += group_advantages([spread(text) for text in texts[start_row : start_row + 4]])
        with torch.no_grad():
            old = [plain.logprobs(prompts[row.prompt_id], row.action, TEMPERATURE) for row in rows]
            reference = [start.logprobs(prompts[row.prompt_id], row.action, TEMPERATURE) for row in rows]
        seen = []
        for _ in range(2):
            update = next(updates)
            prompt_ids = {name for names, _, _ in update["parts"] for name in names}
            chosen = {index // 4 for index, row in enumerate(rows) if row.prompt_id in prompt_ids}
            assert len(chosen) == 2 and not chosen & set(seen)
            seen += chosen
            members = [index for index in range(len(rows)) if index // 4 in chosen]
            num_tokens = sum(len(rows[index].action) for index in members)
            loss = torch.zeros(())
            for index in members:
                logprobs = plain.logprobs(prompts[rows[index].prompt_id], rows[index].action, TEMPERATURE)
                ratio = (logprobs - old[index]).exp()
                limited = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
                surrogate = torch.minimum(ratio * advantages[index], limited * advantages[index])
                clipped += int((surrogate < ratio * advantages[index]).sum())
                to_reference = reference[index] - logprobs
                kl = to_reference.exp() - to_reference - 1
                loss = loss + (-surrogate + KL * kl).sum() / num_tokens
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), MAX_NORM)
            assert sum(part for _, part, _ in update["parts"]) == pytest.approx(float(loss.detach()), abs=2e-6)
            assert {total for _, _, total in update["parts"]} == {num_tokens}
            for name, parameter in trained.items():
                if parameter.grad is None:  # no picture among the prompts of this update
                    assert name not in update["gradients"] or not update["gradients"][name].any()
                    continue
                difference = (update["gradients"][name] - parameter.grad).norm()
                assert difference <= 1e-5 * parameter.grad.norm().clamp(min=1e-2), name
            optimizer.step()
    assert clipped > 5, "the test needs tokens whose ratio is clipped"
    return plain.model


CASES = [
    ("qwen2", None, []),
    ("qwen2_vl", None, []),
    ("qwen2_vl", 3, []),
    ("qwen2_vl", 3, ["vision"]),
    ("qwen2_5_vl", None, ["vision"]),
]


@pytest.mark.parametrize("kind, micro_batch_rows, freeze", CASES)
def test_two_grpo_steps_equal_hand_written_ones(
    kind, micro_batch_rows, freeze, install, make_trainer, base_config, rewards_file, plain_model, tiny_model
):
    install("probe_step", PROBE)
    trainer = make_trainer(config(base_config, rewards_file, kind, micro_batch_rows, freeze))
    trainer.run(resume=False)
    import probe_step

    assert len(probe_step.BATCHES) == 2 and len(probe_step.UPDATES) == 4
    model = check_against_hand_written_steps(plain_model, tiny_model(kind), freeze, probe_step)
    expected = dict(model.named_parameters())
    for name, parameter in trainer.policy.model.base.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


FLIPPED = """
from mmrl_core.losses import clipped

def flipped(inputs, *, clip_low, clip_high):
    token_losses, metrics = clipped(inputs, clip_low=clip_low, clip_high=clip_high)
    return -token_losses, metrics
"""


def test_a_flipped_sign_is_noticed(install, make_trainer, base_config, rewards_file, plain_model, tiny_model, tmp_path):
    (tmp_path / "flipped.py").write_text(FLIPPED)
    install("probe_step", PROBE)
    settings = config(base_config, rewards_file, "qwen2", None, [])
    settings["algorithm"]["loss"]["name"] = f"{tmp_path / 'flipped.py'}:flipped"
    trainer = make_trainer(settings)
    trainer.run(resume=False)
    import probe_step

    with pytest.raises(AssertionError):
        check_against_hand_written_steps(plain_model, tiny_model("qwen2"), [], probe_step)


def test_micro_batches_change_no_metric_and_no_weight(install, make_trainer, base_config, rewards_file, without_times):
    """A step cut into micro-batches of 3 rows, which split the groups of 4, is the same step."""
    install("probe_step", PROBE)
    results = []
    for micro_batch_rows in (None, 3, 1):
        settings = config(base_config, rewards_file, "qwen2_vl", micro_batch_rows, ["vision"])
        settings["algorithm"] |= {"updates_per_rollout": 1, "epochs_per_rollout": 2, "entropy_coefficient": 0.01}
        settings["stages"][0]["steps"] = 1
        trainer = make_trainer(settings)
        trainer.run(resume=False)
        (record,) = [r for r in read_metrics(trainer.output) if r["kind"] == "step"]
        work = ("count/update_tokens", "count/score_tokens")  # a group that is split repeats its prompt
        record = without_times(record, *work)
        results.append((record, [p.detach().clone() for p in trainer.policy.module.parameters()]))
    (expected, weights), *others = results
    assert expected["clip_fraction_high"] + expected["clip_fraction_low"] > 0 and expected["entropy"] > 1
    for record, other_weights in others:
        assert record.keys() == expected.keys()
        for name in expected.keys() - {"kind", "stage", "stage_kind"}:
            assert record[name] == pytest.approx(expected[name], abs=2e-6, rel=1e-5), name
        for mine, theirs in zip(weights, other_weights, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)

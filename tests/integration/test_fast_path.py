"""What makes a step fast changes nothing that it computes, and does the work that it says."""

import copy
import re
import resource
import shutil
import threading
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from mmrl_core import step
from mmrl_core.config import LoraConfig, RewardConfig
from mmrl_core.errors import PolicyError
from mmrl_core.language_model import HFEngine, LanguageModel, LanguageModelPolicy
from mmrl_core.plugins import load_plugins
from mmrl_core.runs import read_metrics
from mmrl_core.scoring import RewardRunner
from mmrl_core.types import Prompt, Rollout, RolloutGroup, Row, Sampling

WAIT_S = 60
"""Where a thread is waited for; only a test that fails waits so long."""

OPTIMIZER = {"lr": 3e-3, "eps": 1e-3}
"""With a large epsilon AdamW does not blow differences of rounding up to steps of the learning rate."""

OVER_COMPUTED = ("ratio_mean", "clip_fraction_low", "clip_fraction_high", "kl_old", "sampler_gap")
"""Means over the rows that are computed, so that off-policy they depend on which rows these are."""


@pytest.fixture
def grpo(base_config, rewards_file):
    """`grpo(reward, kind=..., stage={...}, **config)` -> plain config of one GRPO stage, 2 steps of 4 x 4."""

    def config(*rewards, kind="qwen2", stage=None, **settings):
        return {
            **base_config(kind),
            "rewards": [f"{rewards_file}:{name}" for name in rewards or ("spread",)],
            "optimizer": OPTIMIZER,
            "stages": [{"kind": "grpo", "steps": 2, "prompts_per_step": 4, "group_size": 4, **(stage or {})}],
            **settings,
        }

    return config


@pytest.fixture
def run(make_trainer):
    """`run(plain config, output=None, resume=False)` -> the trainer after its run, and the records of its steps."""

    def finished(values, output=None, resume=False):
        trainer = make_trainer(values, output)
        trainer.run(resume)
        return trainer, steps_of(trainer)

    return finished


def steps_of(trainer):
    return [record for record in read_metrics(trainer.output) if record["kind"] == "step"]


def weights_of(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.policy.module.named_parameters()}


def assert_same_weights(found, expected):
    """But for the order of sums: 1e-7, and beside 1, where float32 is no finer, one step of it."""
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(
            found[name], weight, rtol=1.25e-7, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}"
        )


def assert_equal_weights(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == []


def assert_same_metrics(found, expected, without_times, *left_out):
    """All but times and counts of work."""
    assert len(found) == len(expected)
    for record, right in zip(found, expected, strict=True):
        record, right = (
            {name: value for name, value in without_times(values, *left_out).items() if not name.startswith("count/")}
            for values in (record, right)
        )
        assert record.keys() == right.keys()
        for name, value in right.items():
            wanted = value if isinstance(value, str) else pytest.approx(value, rel=1e-5, abs=1e-6)
            assert record[name] == wanted, name


def load(path, **settings):
    return LanguageModelPolicy(path, **settings)


def rows_of(groups):
    return [row for group in groups for rollout in group.rollouts for row in rollout.rows]


def actions_of(groups):
    return [row.action.tolist() for row in rows_of(groups)]


@pytest.fixture
def text_prompts(make_prompt):
    """`text_prompts(count)` -> prompts of unequal lengths."""
    return lambda count: [make_prompt(f"p{i}", "what is this" + " really" * (3 * i)) for i in range(count)]


@pytest.fixture
def picture_prompts(make_prompt, make_picture):
    """One picture, two, none: three media in all."""
    return lambda: [
        make_prompt("one", "what is this", [make_picture(1, 84, 56)]),
        make_prompt("two", "which of the two is left", [make_picture(2, 56, 112), make_picture(3)]),
        make_prompt("none", "a question without a picture, to stand beside those with one"),
    ]


# Rows without gradient


@pytest.mark.parametrize(
    "algorithm",
    [
        {"aggregate": "token_mean"},
        {"aggregate": "sequence_mean"},
        {"aggregate": "constant_length"},
        {"aggregate": "sequence_mean", "mask_truncated": True},
        {"updates_per_rollout": 2, "epochs_per_rollout": 2},
        {"loss": {"name": "cispo", "cap": 5.0}, "importance_correction": {"level": "token", "mode": "truncate"}},
    ],
    ids=lambda algorithm: " ".join(map(str, algorithm.values())),
)
def test_rows_without_advantage_are_left_out_and_nothing_changes(run, grpo, without_times, monkeypatch, algorithm):
    config = grpo("sometimes_flat", algorithm=algorithm)
    trainer, steps = run(config)
    monkeypatch.setattr(step, "_with_gradient", lambda run, batch: batch)
    whole, expected = run(config)
    off_policy = "updates_per_rollout" in algorithm
    assert_same_metrics(steps, expected, without_times, "entropy", *(OVER_COMPUTED if off_policy else ()))
    assert_same_weights(weights_of(trainer), weights_of(whole))
    for record, right in zip(steps, expected, strict=True):
        assert 0 < record["groups/flat"] < 1, "the test needs groups of both kinds"
        assert record["count/rows_skipped"] >= 4 * record["groups/flat"] * 4
        assert record["count/update_tokens"] < right["count/update_tokens"]
        assert record["grad_norm"] > 1e-3


def test_metrics_are_means_over_the_rows_that_are_computed(run, grpo):
    """On-policy each ratio is 1, and so is their mean, however many rows are left out."""
    _, steps = run(grpo("sometimes_flat"))
    for record in steps:
        assert record["count/rows_skipped"] >= 4 and record["ratio_mean"] == pytest.approx(1, abs=1e-6)


def test_one_row_is_computed_where_no_row_has_an_advantage(run, grpo):
    _, steps = run(grpo("flat"))
    for record in steps:
        prompt_and_row = record["count/update_tokens"]
        assert record["count/rows_skipped"] == 15 and 0 < prompt_and_row < record["count/prefill_tokens"]
        assert (record["loss"], record["grad_norm"]) == (0, 0)


LOSS = """
from mmrl_core import hookimpl

@hookimpl(wrapper=True)
def mmrl_policy_loss():
    return (yield)
"""

OWN_LOSS = """
def against_all(inputs):
    return -(inputs.advantages + 1) * inputs.logprobs, {}
"""


@pytest.mark.parametrize(
    "algorithm, plugins",
    [
        ({"kl": {"coefficient": 0.1}}, []),
        ({"entropy_coefficient": 0.01}, []),
        ({"aggregate": "local_token_mean"}, []),
        ({"loss": "own"}, []),  # nothing says that it does nothing at advantage 0
        ({}, ["probe_loss"]),
    ],
    ids=["kl", "entropy", "local mean", "a loss of one's own", "plugin"],
)
def test_rows_without_advantage_stay_where_they_may_have_a_gradient(
    run, grpo, install, tmp_path, monkeypatch, algorithm, plugins
):
    install("probe_loss", LOSS)
    (tmp_path / "loss.py").write_text(OWN_LOSS)
    if "loss" in algorithm:
        algorithm = {"loss": f"{tmp_path / 'loss.py'}:against_all"}
    config = grpo("sometimes_flat", algorithm=algorithm, plugins=plugins, stage={"steps": 1})
    trainer, (record,) = run(config)
    monkeypatch.setattr(step, "_with_gradient", lambda run, batch: batch)
    whole, (expected,) = run(config)
    assert record["groups/flat"] > 0 and record.get("count/rows_skipped", 0) == 0
    assert record["count/update_tokens"] == expected["count/update_tokens"] > 0
    assert_equal_weights(weights_of(trainer), weights_of(whole))


def test_a_penalty_in_the_reward_leaves_groups_out_that_it_leaves_flat(run, grpo):
    """In the first step reference and policy are the same, so that the penalty is 0; later it tells rollouts apart."""
    _, steps = run(grpo("sometimes_flat", algorithm={"kl": {"coefficient": 0.5, "place": "reward"}}))
    assert steps[0]["count/rows_skipped"] >= 4 and steps[0]["groups/flat"] > 0
    assert steps[1]["count/rows_skipped"] == 0 and steps[1]["groups/flat"] == 0


# The cost of a prompt


def test_the_cost_of_prompts_does_not_grow_with_the_group(run, grpo):
    costs = []
    for group_size in (4, 8, 16, 32):
        _, (record,) = run(grpo(kind="qwen2_vl", stage={"steps": 1, "group_size": group_size}))
        assert record["count/rows_skipped"] == 0
        of_completions = record["count/decode_tokens"] - 4 * group_size  # nothing follows a last token
        costs.append(
            (
                record["count/prefill_tokens"],
                record["count/media_encodes"],
                record["count/update_tokens"] - of_completions,
            )
        )
    assert len(set(costs)) == 1 and costs[0][0] == costs[0][2] > 0 and costs[0][1] > 0


# Logits in chunks


@pytest.fixture
def logit_rows(monkeypatch):
    """Rows of each call of `LanguageModel.logits`."""
    rows = []
    logits = LanguageModel.logits

    def recorded(self, hidden):
        rows.append(hidden.shape[:-1].numel())
        return logits(self, hidden)

    monkeypatch.setattr(LanguageModel, "logits", recorded)
    return rows


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("qwen2_vl", {"freeze": ["vision"]}),
        ("gemma2", {"attention": "eager"}),  # caps its logits
        ("qwen2", {"lora": LoraConfig(rank=4)}),
        ("qwen2", {"gradient_checkpointing": True}),
    ],
)
@pytest.mark.parametrize("chunk", [1, 5])
def test_chunks_of_logits_change_nothing_and_hold_no_more_than_they_may(
    kind, settings, chunk, tiny_model, text_prompts, monkeypatch, logit_rows
):
    torch.manual_seed(0)  # of the adapters' first weights
    policy = load(tiny_model(kind), **settings)
    policy.set_temperature(0.7)
    num_prompts = 1 if kind == "gemma2" else 3  # its attention overflows in float64 where prompts are padded
    rows = rows_of(policy.rollout(text_prompts(num_prompts), 9 // num_prompts, Sampling(max_tokens=8, temperature=0.7)))
    policy.module.double()  # sums of float32 in another order differ by more than what is looked for
    num_tokens = sum(row.num_actions for row in rows)
    vocabulary = policy.model.base.config.get_text_config().vocab_size
    factors = torch.rand(len(rows), max(row.num_actions for row in rows), generator=torch.Generator().manual_seed(2))

    def pass_over():
        """Logprobs, entropies, gradients, and how many logits are kept between forward and backward."""
        policy.module.zero_grad()
        logit_rows.clear()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
            stats = policy.logprobs(rows, needs={"entropy"})
        (stats.logprobs * factors - 0.3 * stats.entropy).sum().backward()
        gradients = [p.grad.clone() for p in policy.module.parameters() if p.grad is not None]
        return [stats.logprobs, stats.entropy, *gradients], [s for s in kept if s == (num_tokens, vocabulary)]

    expected, kept = pass_over()
    assert logit_rows == [num_tokens] and kept
    monkeypatch.setattr("mmrl_core.language_model.module.LOGIT_CHUNK", chunk * vocabulary + vocabulary - 1)
    found, kept = pass_over()
    assert max(logit_rows) == chunk and sum(logit_rows) == 2 * num_tokens, "once forward and once more backward"
    assert not kept
    assert len(found) == len(expected) > 2
    for value, right in zip(found, expected, strict=True):
        assert (value - right).abs().max() <= 1e-6 * right.abs().max()
    logit_rows.clear()
    with torch.no_grad():
        assert torch.equal(policy.logprobs(rows).logprobs, found[0])
    assert max(logit_rows) == chunk and sum(logit_rows) == num_tokens


def test_a_run_never_holds_more_logits_than_the_chunk_in_its_updates(run, grpo, monkeypatch, logit_rows, without_times):
    config = grpo(stage={"steps": 2}, algorithm={"kl": {"coefficient": 0.1}, "entropy_coefficient": 0.01})
    whole, expected = run(config)
    vocabulary = whole.policy.model.base.config.vocab_size
    monkeypatch.setattr("mmrl_core.language_model.module.LOGIT_CHUNK", 7 * vocabulary)
    seen = []
    update = step.update

    def watched(self, batch):
        logit_rows.clear()
        metrics = update(self, batch)
        seen.append(max(logit_rows))
        return metrics

    monkeypatch.setattr(step, "update", watched)
    trainer, steps = run(config)
    assert seen == [7, 7]
    assert_same_metrics(steps, expected, without_times)
    assert_same_weights(weights_of(trainer), weights_of(whole))


# Micro-batches


@pytest.mark.parametrize("limit", ["two groups", "some rows", "less than a row"])
def test_passes_stay_within_the_limit_of_tokens_and_add_up_to_the_same(
    run, make_trainer, grpo, without_times, monkeypatch, limit
):
    config = grpo(stage={"group_size": 6, "steps": 2})
    whole, expected = run(config)
    prompt, group = (max(record[f"count/{name}_tokens"] for record in expected) / 4 for name in ("prefill", "update"))
    limits = {"two groups": int(2.5 * group), "some rows": int(prompt + 0.6 * (group - prompt)), "less than a row": 3}
    config["stages"][0]["micro_batch_tokens"] = limits[limit]
    trainer = make_trainer(config)
    num_tokens, passes = trainer.policy.num_tokens, []
    logprobs = trainer.policy.logprobs

    def recorded(rows, **options):
        passes.append(list(rows))
        return logprobs(rows, **options)

    monkeypatch.setattr(trainer.policy, "logprobs", recorded)
    trainer.run(resume=False)
    assert_same_metrics(steps_of(trainer), expected, without_times)
    assert_same_weights(weights_of(trainer), weights_of(whole))
    assert sum(map(len, passes)) == 48 - sum(record["count/rows_skipped"] for record in expected)
    for rows in passes:
        assert num_tokens(rows) <= limits[limit] or len(rows) == 1
    for rows, following in pairwise(passes):
        if rows[-1].prompt_id == following[0].prompt_id:  # a group that was cut, which happens where it must
            assert limit != "two groups" and num_tokens([*rows, following[0]]) > limits[limit]
    sizes = {"two groups": {6, 12}, "less than a row": {1}}
    assert {len(rows) for rows in passes} <= sizes.get(limit, set(range(1, 13)))
    assert len({len(rows) for rows in passes}) > 1 or limit == "less than a row"


# Features on disk


def logprobs_of(policy, prompts):
    rows = rows_of(policy.rollout(prompts, 2, Sampling(max_tokens=4)))
    with torch.no_grad():
        return policy.logprobs(rows).logprobs


def encodes(policy):
    return policy.take_counters().get("media_encodes", 0)


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def with_other_weights(path, copy_path, pattern):
    """A copy of a model folder whose matrices of that name are larger."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(path, copy_path)
    weights = load_file(copy_path / "model.safetensors")
    chosen = [name for name in weights if pattern in name and weights[name].dim() > 1]
    assert chosen
    for name in chosen:
        weights[name] *= 1.01
    save_file(weights, copy_path / "model.safetensors", metadata={"format": "pt"})
    return copy_path


def test_features_on_disk_are_those_that_would_be_computed(tiny_model, picture_prompts, tmp_path):
    path, cache = tiny_model("qwen2_vl"), tmp_path / "cache"
    expected = logprobs_of(load(path, freeze=["vision"]), picture_prompts())
    first = load(path, freeze=["vision"], feature_cache=str(cache))
    assert torch.equal(logprobs_of(first, picture_prompts()), expected) and encodes(first) == 3
    assert len(files_in(cache)) == 2, "one for each prompt with media, nothing half written"
    second = load(path, freeze=["vision"], feature_cache=str(cache))
    assert torch.equal(logprobs_of(second, picture_prompts()), expected) and encodes(second) == 0
    adapters = load(path, feature_cache=str(cache), lora=LoraConfig(rank=2))
    assert torch.equal(logprobs_of(adapters, picture_prompts()), expected) and encodes(adapters) == 0
    assert len(files_in(cache)) == 2


def test_the_same_medium_behind_another_question_is_found(tiny_model, make_prompt, make_picture, tmp_path):
    settings = {"freeze": ["vision"], "feature_cache": str(tmp_path)}
    policy = load(tiny_model("qwen2_vl"), **settings)
    for text in ("what is this", "a longer question about the same picture"):
        policy.rollout([make_prompt("same", text, [make_picture(1)])], 2, Sampling(max_tokens=2))
    assert encodes(policy) == 1
    policy.rollout([make_prompt("other", "what is this", [make_picture(2)])], 2, Sampling(max_tokens=2))
    assert encodes(policy) == 1


@pytest.mark.parametrize(
    "change, num_encodes",
    [
        ("max_pixels", 3),
        ("visual.blocks", 3),
        ("visual.merger", 3),
        ("bfloat16_mixed", 3),
        (".self_attn.", 0),  # they come after the features
    ],
)
def test_features_are_found_by_the_same_towers_and_processor_only(
    tiny_model, picture_prompts, tmp_path, change, num_encodes
):
    path, settings = tiny_model("qwen2_vl"), {"freeze": ["vision"]}
    logprobs_of(load(path, **settings, feature_cache=str(tmp_path / "cache")), picture_prompts())
    if change == "max_pixels":
        settings["max_pixels"] = 28 * 28 * 6  # what is 56 x 112 becomes smaller
    elif change == "bfloat16_mixed":
        settings["precision"] = change
    else:
        path = with_other_weights(path, tmp_path / "model", change)
    expected = logprobs_of(load(path, **settings), picture_prompts())
    policy = load(path, **settings, feature_cache=str(tmp_path / "cache"))
    assert torch.equal(logprobs_of(policy, picture_prompts()), expected)
    assert encodes(policy) == num_encodes


@pytest.mark.parametrize("torn", ["empty", "half", "no header", "foreign"])
def test_a_torn_file_is_computed_anew_and_mended(tiny_model, picture_prompts, tmp_path, torn):
    settings = {"freeze": ["vision"], "feature_cache": str(tmp_path)}
    path = tiny_model("qwen2_vl")
    expected = logprobs_of(load(path, **settings), picture_prompts())
    whole = {file: file.read_bytes() for file in files_in(tmp_path)}
    file, content = next(iter(whole.items()))
    broken = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "no header": b"\xff" * len(content),
        "foreign": b"this is not a file of tensors",
    }
    file.write_bytes(broken[torn])
    policy = load(path, **settings)
    assert torch.equal(logprobs_of(policy, picture_prompts()), expected)
    assert encodes(policy) in (1, 2), "the media of one prompt"
    assert {file: file.read_bytes() for file in files_in(tmp_path)} == whole


@pytest.mark.parametrize("freeze", [[], ["language"], ["*visual.blocks.*"]])
def test_a_cache_for_towers_that_are_trained_is_refused(tiny_model, tmp_path, freeze):
    with pytest.raises(
        PolicyError, match=r"model\.feature_cache .* trained here\.\nFreeze|model\.feature_cache .*model"
    ):
        load(tiny_model("qwen2_vl"), freeze=freeze, feature_cache=str(tmp_path))


def test_a_folder_that_cannot_be_made_is_an_error_with_its_path(tiny_model, picture_prompts, tmp_path):
    (tmp_path / "file").write_text("in the way")
    policy = load(tiny_model("qwen2_vl"), freeze=["vision"], feature_cache=str(tmp_path / "file" / "cache"))
    with pytest.raises(PolicyError, match=rf"model\.feature_cache: {re.escape(str(tmp_path / 'file'))}.* be written"):
        policy.rollout(picture_prompts(), 2, Sampling(max_tokens=2))


def test_a_disk_that_is_full_is_an_error_with_its_path(tiny_model, picture_prompts, tmp_path):
    """As a limit on the size of files, under which writing fails as it does on a full disk."""
    import signal

    policy = load(tiny_model("qwen2_vl"), freeze=["vision"], feature_cache=str(tmp_path))
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        with pytest.raises(PolicyError, match=rf"model\.feature_cache: {re.escape(str(tmp_path))}.* be written"):
            policy.rollout(picture_prompts(), 2, Sampling(max_tokens=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_runs_that_write_the_same_features_at_once_do_not_disturb_each_other(tiny_model, tmp_path, monkeypatch):
    """Runs in containers often have the same process number, and share folders."""
    import safetensors.torch

    policies = [load(tiny_model("qwen2_vl"), freeze=["vision"], feature_cache=str(tmp_path)) for _ in range(2)]
    first, second = (policy.model.feature_cache for policy in policies)
    save_file, num_files = safetensors.torch.save_file, [0]

    def interleaved(*arguments):
        save_file(*arguments)
        num_files[0] += 1
        if num_files[0] == 1:
            second.write("key", {"image": torch.ones(2, 3)})

    monkeypatch.setattr(safetensors.torch, "save_file", interleaved)
    first.write("key", {"image": torch.ones(2, 3)})
    assert num_files == [2] and len(files_in(tmp_path)) == 1
    assert torch.equal(first.read("key")["image"], torch.ones(2, 3))


def test_a_run_with_features_on_disk_is_the_run_without(run, grpo, without_times, tmp_path):
    config = grpo(kind="qwen2_vl")
    whole, expected = run(config)
    for _ in range(2):
        config["model"] = {**config["model"], "feature_cache": str(tmp_path / "cache")}
        trainer, steps = run(config)
        compared = ("count/media_encodes",)
        assert [without_times(record, *compared) for record in steps] == [
            without_times(record, *compared) for record in expected
        ]
        assert_equal_weights(weights_of(trainer), weights_of(whole))
    assert expected[0]["count/media_encodes"] > 0 and steps[0].get("count/media_encodes", 0) == 0


# Sampling


@pytest.mark.parametrize("kind, settings", [("qwen2", {}), ("qwen2", {"attention": "eager"})])
def test_a_prompt_is_reported_once_and_as_soon_as_its_completions_are_done(
    kind, settings, tiny_model, text_prompts, monkeypatch
):
    policy = load(tiny_model(kind), **settings)
    num_decodes = [0]
    decode = LanguageModel.decode

    def counted(self, decoding, tokens):
        num_decodes[0] += 1
        return decode(self, decoding, tokens)

    monkeypatch.setattr(LanguageModel, "decode", counted)
    reported = {}

    def report(index, samples):
        assert index not in reported
        reported[index] = samples, num_decodes[0]

    sampling = Sampling(max_tokens=16, seed=2)
    prompts = text_prompts(6)
    policy.engine.generate(policy, prompts, list(map(policy.encoder.encode, prompts)), 2, sampling, report)
    assert sorted(reported) == list(range(6))
    longest = [max(len(sample.tokens) for sample in reported[index][0]) for index in range(6)]
    assert min(longest) < sorted(longest)[-2] <= max(longest), "the test needs prompts that end at different times"
    for index in range(6):
        assert reported[index][1] == longest[index] - 1, "the first token needs no decoding, and nothing comes after"
    assert num_decodes[0] == max(longest) - 1


def test_groups_are_told_of_as_they_are_returned(tiny_model, text_prompts):
    policy = load(tiny_model("qwen2"))
    told = []
    groups = policy.rollout(text_prompts(5), 3, Sampling(max_tokens=12, seed=1), told.append)
    assert sorted(map(id, told)) == sorted(map(id, groups)) and len(groups) == 5
    assert [group.prompt.id for group in groups] == [f"p{i}" for i in range(5)]
    assert [group.prompt.id for group in told] != [f"p{i}" for i in range(5)], "the test needs another order of ends"


VARIANTS = {
    "text": ("qwen2", {}),
    "adapters": ("qwen2", {"lora": LoraConfig(rank=4)}),
    "not shared": ("qwen2", {"attention": "eager"}),
    "frozen tower": ("qwen2_vl", {"freeze": ["vision"]}),
    "trained tower": ("qwen2_vl", {}),
}


def move_weights(policy):
    with torch.no_grad():
        for parameter in policy.module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter)))
                parameter.add_(0.05 * noise)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_copy_samples_with_the_weights_published_last(variant, tiny_model, text_prompts, picture_prompts):
    kind, settings = VARIANTS[variant]
    prompts = picture_prompts() if kind == "qwen2_vl" else text_prompts(3)
    sampling = Sampling(max_tokens=8, temperature=0.8, seed=4)

    def policy(**engine):
        torch.manual_seed(0)  # of the adapters' first weights
        made = load(tiny_model(kind), engine=HFEngine(**engine), **settings)
        made.set_temperature(0.8)
        return made

    def sampled(policy):
        return [(row.action.tolist(), row.sampler_logprobs) for row in rows_of(policy.rollout(prompts, 3, sampling))]

    def same(found, expected):
        return all(
            action == other and torch.equal(logprobs, others)
            for (action, logprobs), (other, others) in zip(found, expected, strict=True)
        )

    plain, copying = policy(), policy(copy=True)
    before = sampled(plain)
    assert same(sampled(copying), before)
    trained = {name: parameter.requires_grad for name, parameter in copying.module.named_parameters()}
    move_weights(plain)
    move_weights(copying)
    after = sampled(plain)
    assert not same(after, before)
    assert same(sampled(copying), before), "nothing was published"
    copying.publish_weights()
    assert same(sampled(copying), after)
    copying.publish_weights()
    assert same(sampled(copying), after)
    assert {name: parameter.requires_grad for name, parameter in copying.module.named_parameters()} == trained
    assert copying.module.training and copying.take_counters()["prefill_tokens"] > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_rollouts_of_a_copy_are_trained_on_as_others(variant, tiny_model, text_prompts, picture_prompts):
    """Above all where the tower is trained: what the copy makes of a picture must not stand in for it."""
    kind, settings = VARIANTS[variant]
    prompts = picture_prompts() if kind == "qwen2_vl" else text_prompts(3)
    torch.manual_seed(0)
    policy = load(tiny_model(kind), engine=HFEngine(copy=True), **settings)
    rows = rows_of(policy.rollout(prompts, 3, Sampling(max_tokens=8, seed=4)))
    sampled = torch.nn.utils.rnn.pad_sequence([row.sampler_logprobs for row in rows], batch_first=True)
    stats = policy.logprobs(rows)
    torch.testing.assert_close(stats.logprobs.detach(), sampled, rtol=0, atol=1e-5)
    stats.logprobs.sum().backward()
    without = [
        name
        for name, parameter in policy.model.base.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    assert not [name for name in without if "lora_A" not in name]  # lora_B starts at zero, and so does A's gradient
    move_weights(policy)
    policy.publish_weights()
    rows = rows_of(policy.rollout(prompts, 3, Sampling(max_tokens=8, seed=5)))
    sampled = torch.nn.utils.rnn.pad_sequence([row.sampler_logprobs for row in rows], batch_first=True)
    torch.testing.assert_close(policy.logprobs(rows).logprobs.detach(), sampled, rtol=0, atol=1e-5)


def test_closing_an_engine_gives_its_copy_back_and_it_can_be_used_again(tiny_model, text_prompts):
    policy = load(tiny_model("qwen2"), engine=HFEngine(copy=True))
    before = actions_of(policy.rollout(text_prompts(2), 3, Sampling(max_tokens=8)))
    policy.close()
    policy.close()
    assert actions_of(policy.rollout(text_prompts(2), 3, Sampling(max_tokens=8))) == before


# Rewards beside the rollout

EARLY = """
import threading

from mmrl_core import hookimpl

CALLS = []
STARTED = threading.Event()

@hookimpl
def mmrl_register(registry):
    registry.add("reward", "early", "probe_early:early", "for a test")
    registry.add("reward", "failing", "probe_early:failing", "for a test")

def early(completions, samples):
    CALLS.append(list(completions))
    STARTED.set()
    return [len(completion) / 100 for completion in completions]

def failing(completions, samples):
    return [1 / (len(completion) - 2) for completion in completions]
"""


def group_of(name, *completions):
    rows = [Row(name, f"{name}/{n}", None, torch.zeros(2, dtype=torch.int64), 2) for n in range(len(completions))]
    return RolloutGroup(Prompt(name, [], {}), [Rollout([row], c) for row, c in zip(rows, completions, strict=True)])


@pytest.mark.parametrize("started", [(), (0,), (2, 0), (0, 1, 2)])
def test_groups_started_early_are_scored_once_and_the_same(install, started):
    install("probe_early", EARLY)
    import probe_early

    configs = [RewardConfig(name="probe_early/early", weight=0.5), RewardConfig(name="probe_early/failing")]
    groups = [group_of("a", "x", "yyy"), group_of("b", "", "zz"), group_of("c", "wwww", "w")]
    runner = RewardRunner(load_plugins(), configs)
    for _ in range(2):  # the second step is as the first
        probe_early.CALLS.clear()
        for index in started:
            runner.start(groups[index])
        scores = runner.score(groups)
        assert sorted(probe_early.CALLS) == [["", "zz"], ["wwww", "w"], ["x", "yyy"]]
        early, failing = scores.components.values()
        assert early.tolist() == pytest.approx([0.01, 0.03, 0, 0.02, 0.04, 0.01])
        assert failing.nan_to_num(9).tolist() == pytest.approx([-1, 1, -0.5, 9, 0.5, -1])
        assert list(scores.failures.values()) == [0, 1]
        assert scores.totals.nan_to_num(9).tolist() == pytest.approx([-0.995, 1.015, -0.5, 9, 0.52, -0.995])


def test_rewards_of_a_group_begin_before_the_rollout_of_the_others_has_ended(make_trainer, grpo, install, monkeypatch):
    install("probe_early", EARLY)
    import probe_early

    config = grpo(stage={"steps": 1, "prompts_per_step": 8, "group_size": 2}, rollout={"max_tokens": 16})
    config["rewards"] = ["probe_early/early"]
    trainer = make_trainer(config)
    finished, waited = threading.Event(), []
    decode, group = LanguageModel.decode, LanguageModelPolicy._group

    def tell(self, prompt, samples):
        finished.set()
        return group(self, prompt, samples)

    def wait_for_reward(self, decoding, tokens):
        if finished.is_set() and not waited:
            waited.append(probe_early.STARTED.wait(WAIT_S))
        return decode(self, decoding, tokens)

    monkeypatch.setattr(LanguageModelPolicy, "_group", tell)
    monkeypatch.setattr(LanguageModel, "decode", wait_for_reward)
    trainer.run(resume=False)
    assert waited == [True], "the reward of the first group ran, and then others were sampled on"
    assert len(probe_early.CALLS) == 8


def test_a_step_scores_what_it_would_score_all_at_once(run, grpo, monkeypatch):
    trainer, steps = run(grpo("spread", "raises"))
    monkeypatch.setattr(RewardRunner, "start", start_all_late := StartLate(RewardRunner.start))
    late, expected = run(grpo("spread", "raises"))
    assert start_all_late.num_early > 0
    for record, right in zip(steps, expected, strict=True):
        assert {k: v for k, v in record.items() if k.startswith(("reward", "failures", "loss"))} == {
            k: v for k, v in right.items() if k.startswith(("reward", "failures", "loss"))
        }
    assert_equal_weights(weights_of(trainer), weights_of(late))


class StartLate:
    """`RewardRunner.start` that only `score` itself gets through to."""

    def __init__(self, start):
        self.start = start
        self.num_early = 0

    def __get__(self, runner, owner):
        def start(group):
            import sys

            if sys._getframe(1).f_code.co_name == "score":
                self.start(runner, group)
            else:
                self.num_early += 1

        return start


# Steps that fail

COUNTING = """
from mmrl_core import hookimpl

seen = {"groups": 0}

@hookimpl(wrapper=True)
def mmrl_shape_rewards(scores):
    shaped = yield
    seen["groups"] += 1
    shaped.totals.mul_(1 + seen["groups"] % 3)  # what a plugin remembers changes what is learnt
    return shaped

@hookimpl
def mmrl_save_state():
    return dict(seen)

@hookimpl
def mmrl_load_state(state):
    seen.update(state)
"""


def fail_in_update(trainer, error, monkeypatch):
    logprobs = trainer.policy.logprobs

    def failing(rows, **options):
        if trainer.state.step == 2:
            raise error
        return logprobs(rows, **options)

    monkeypatch.setattr(trainer.policy, "logprobs", failing)


def fail_in_backward(trainer, error, monkeypatch):
    """Gradients of the first micro-batch are there, those of the second are not."""
    backward, calls = trainer.accelerator.backward, []

    def failing(loss):
        calls.append(trainer.state.step)
        if calls.count(2) == 2:
            raise error
        backward(loss)

    monkeypatch.setattr(trainer.accelerator, "backward", failing)


def fail_in_sampling(trainer, error, monkeypatch):
    """Some groups are finished, and their rewards run."""
    decode, calls = LanguageModel.decode, []

    def failing(self, decoding, tokens):
        if trainer.state.step == 2:
            calls.append(1)
            if len(calls) == 4:
                raise error
        return decode(self, decoding, tokens)

    monkeypatch.setattr(LanguageModel, "decode", failing)


OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2 GiB"
NO_MEMORY_ON_CPU = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.mark.parametrize(
    "stages, fail, error",
    [
        (1, fail_in_update, torch.OutOfMemoryError(OUT_OF_MEMORY)),
        (2, fail_in_backward, torch.OutOfMemoryError(OUT_OF_MEMORY)),
        (1, fail_in_sampling, RuntimeError(NO_MEMORY_ON_CPU)),
        (1, fail_in_sampling, KeyboardInterrupt()),
        (1, fail_in_update, KeyError("a bug")),
    ],
    ids=["memory in forward", "memory in backward", "memory in sampling", "interrupt in sampling", "a bug"],
)
def test_a_step_that_fails_is_saved_before_it_and_gone_on_from(
    stages, fail, error, make_trainer, run, grpo, without_times, monkeypatch
):
    """With two stages the step that fails is the first of its stage, before which the stage's end was saved too."""
    settings = {"steps": 5, "micro_batch_rows": 8, "optimizer": {"schedule": "linear"}}
    config = grpo("spread", stage=settings, algorithm={"kl": {"coefficient": 0.1}})
    if stages == 2:
        config["stages"] = [{**config["stages"][0], "steps": 2}, {**config["stages"][0], "steps": 3}]
    whole, expected = run(config)
    out_of_memory = not isinstance(error, KeyboardInterrupt | KeyError)
    trainer = make_trainer(config)
    with monkeypatch.context() as patch:
        fail(trainer, error, patch)
        with pytest.raises(PolicyError if out_of_memory else type(error)) as raised:
            trainer.run(resume=False)
    if out_of_memory:
        message = str(raised.value)
        assert message.startswith(f"out of memory in step 3 ({str(error)[:20]}")
        for name, value in (("micro_batch_tokens", 16384), ("group_size", 4), ("prompts_per_step", 4)):
            assert f"{name} (now {value})" in message
        assert "rollout.max_tokens (now 6)" in message and "model.gradient_checkpointing" in message
    assert [path.name for path in sorted((trainer.output / "checkpoints").iterdir())] == ["step-2"]
    trainer.close()
    resumed, steps = run(config, trainer.output, resume=True)
    assert [without_times(record) for record in steps] == [without_times(record) for record in expected]
    assert_equal_weights(weights_of(resumed), weights_of(whole))


@pytest.mark.parametrize("fail", [fail_in_update, fail_in_sampling])
def test_what_a_plugin_remembers_of_a_step_that_failed_is_not_saved(
    fail, make_trainer, run, grpo, install, without_times, monkeypatch
):
    """The step runs again after the resume, so that the plugin would see it twice."""
    install("probe_counting", COUNTING)
    import probe_counting

    config = grpo(stage={"steps": 4}, plugins=["probe_counting"], algorithm={"advantage": ["group_mean"]})
    whole, expected = run(config)
    probe_counting.seen["groups"] = 0
    fail_at_step_3(make_trainer(config, whole.output.parent / "failed"), fail, monkeypatch)
    probe_counting.seen["groups"] = 0
    resumed, steps = run(config, whole.output.parent / "failed", resume=True)
    assert [without_times(record) for record in steps] == [without_times(record) for record in expected]
    assert_equal_weights(weights_of(resumed), weights_of(whole))


def test_a_step_that_failed_does_not_count_for_the_alarm_of_constant_rewards(make_trainer, run, grpo, monkeypatch):
    config = grpo("spread", "flat", stage={"steps": 4})
    whole, _ = run(config)
    fail_at_step_3(make_trainer(config, whole.output.parent / "failed"), fail_in_update, monkeypatch)
    resumed, _ = run(config, whole.output.parent / "failed", resume=True)
    assert resumed.recorder.alarms.state() == whole.recorder.alarms.state()


def fail_at_step_3(trainer, fail, monkeypatch):
    with monkeypatch.context() as patch:
        fail(trainer, torch.OutOfMemoryError(OUT_OF_MEMORY), patch)
        with pytest.raises(PolicyError):
            trainer.run(resume=False)
    trainer.close()


def test_nothing_is_saved_of_a_step_that_has_moved_the_weights(make_trainer, grpo, monkeypatch):
    """Between two updates on one rollout the weights belong to no step."""
    trainer = make_trainer(grpo(stage={"steps": 4}, algorithm={"updates_per_rollout": 2}))
    backward, calls = trainer.accelerator.backward, []

    def failing(loss):
        calls.append(trainer.state.step)
        if calls.count(2) == 2:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        backward(loss)

    monkeypatch.setattr(trainer.accelerator, "backward", failing)
    with pytest.raises(PolicyError, match="out of memory in step 3"):
        trainer.run(resume=False)
    assert not (trainer.output / "checkpoints").exists()


def test_nothing_is_saved_where_the_first_step_fails(make_trainer, grpo, monkeypatch):
    trainer = make_trainer(grpo())

    def failing(rows, **options):
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(trainer.policy, "logprobs", failing)
    with pytest.raises(PolicyError, match=r"out of memory in step 1 .*micro_batch_tokens"):
        trainer.run(resume=False)
    assert not (trainer.output / "checkpoints").exists()


# Prompts without keys


def without_keys(prompt):
    return replace(prompt, media_keys=())


def test_prompts_without_media_keys_are_known_by_their_content(tiny_model, make_prompt, make_picture):
    policy = load(tiny_model("qwen2_vl"), freeze=["vision"])
    encode = policy.encoder.encode
    first = encode(without_keys(make_prompt("a", "what is this", [make_picture(1)])))
    again = without_keys(make_prompt("b", "what is this", [copy.deepcopy(make_picture(1))]))
    assert encode(again) is first
    assert encode(without_keys(make_prompt("a", "what is that", [make_picture(1)]))) is not first
    other = encode(without_keys(make_prompt("a", "what is this", [make_picture(2)])))
    assert other is not first and other.key != first.key and other.media_key != first.media_key
    two = [make_picture(1), make_picture(2)]
    assert (
        encode(without_keys(make_prompt("a", "what is this", two))).media_key
        != encode(without_keys(make_prompt("a", "what is this", two[::-1]))).media_key
    )


def test_rows_of_a_prompt_without_media_keys_share_one_observation(tiny_model, make_prompt, make_picture):
    policy = load(tiny_model("qwen2_vl"), freeze=["vision"])
    prompts = [without_keys(make_prompt("a", "what is this", [make_picture(1)]))]
    rows = rows_of(policy.rollout(prompts, 4, Sampling(max_tokens=4)))
    assert len({id(row.observation) for row in rows}) == 1
    policy.take_counters()
    policy.logprobs(rows)
    length = policy.prompt_length(prompts[0])
    tokens = sum(row.num_actions - 1 for row in rows)
    assert policy.take_counters() == {"update_tokens": length + tokens, "padding_tokens": 0}


def test_videos_and_audios_without_keys_are_known_by_their_content(tiny_model, make_prompt):
    import numpy as np

    from mmrl_core.media import Audio

    policy = load(tiny_model("qwen2_audio"))
    sounds = [np.random.default_rng(seed).standard_normal(8000).astype(np.float32) / 4 for seed in (0, 0, 1)]
    encoded = [
        policy.encoder.encode(without_keys(make_prompt("a", "what is this", audios=[Audio(sound, 16000)])))
        for sound in sounds
    ]
    assert encoded[0] is encoded[1] and encoded[0] is not encoded[2]
    frames = [np.random.default_rng(seed).integers(0, 255, (4, 3, 56, 56), dtype=np.uint8) for seed in (0, 0, 1)]
    policy = load(tiny_model("qwen2_vl"))
    times = {"fps": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3], "duration": 2.0}
    encoded = [
        policy.encoder.encode(
            Prompt(
                "a",
                [{"role": "user", "content": [{"type": "video", "video": torch.from_numpy(video), "metadata": times}]}],
                {},
            )
        )
        for video in frames
    ]
    assert encoded[0] is encoded[1] and encoded[0] is not encoded[2]

"""Steps whose rollouts were sampled while the step before was trained, with weights one update old."""

import shutil
import threading

import pytest
import torch

from mmrl_core import step as step_module
from mmrl_core.errors import ConfigError, PolicyError
from mmrl_core.language_model import HFEngine
from mmrl_core.runs import read_metrics
from mmrl_core.sampling import GroupSampler

WAIT_S = 60
"""Where a thread is waited for; only a test that fails waits so long."""

CORRECTION = {"level": "token", "mode": "truncate", "maximum": 2.0}


@pytest.fixture
def ahead(base_config, rewards_file):
    """`ahead(kind=..., stage={...}, algorithm={...}, **config)` -> plain config, 7 steps, checkpoints after 3 and 6."""

    def config(kind="qwen2", stage=None, algorithm=None, rollout=None, **settings):
        return {
            **base_config(kind),
            "rewards": [f"{rewards_file}:spread"],
            "rollout": {"max_tokens": 6, "steps_ahead": 1, "engine": {"name": "hf", "copy": True}, **(rollout or {})},
            "algorithm": {"importance_correction": CORRECTION, **(algorithm or {})},
            "optimizer": {"lr": 3e-3, "eps": 1e-3},
            "checkpoint": {"every_steps": 3, "keep": 9},
            "log": {"rollouts_every_steps": 1},
            "stages": [{"kind": "grpo", "steps": 7, "prompts_per_step": 4, "group_size": 4, **(stage or {})}],
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


def rollouts_of(output):
    return {path.name: path.read_bytes() for path in (output / "rollouts").glob("step-*.jsonl")}


def assert_same_run(found, expected, without_times):
    """Metrics but for times and counts (a thread's work falls into the step that runs beside it), rollouts, weights."""
    trainer, steps = found
    whole, records = expected
    compared = [
        [{k: v for k, v in without_times(record).items() if not k.startswith("count/")} for record in part]
        for part in (steps, records)
    ]
    assert compared[0] == compared[1]
    assert rollouts_of(trainer.output) == rollouts_of(whole.output)
    right = weights_of(whole)
    assert [name for name, weight in weights_of(trainer).items() if not torch.equal(weight, right[name])] == []


@pytest.mark.parametrize("kind", ["qwen2", "qwen2_vl"])
def test_two_runs_are_equal_and_so_is_one_that_was_resumed(run, ahead, without_times, tmp_path, kind):
    whole = run(ahead(kind))
    assert_same_run(run(ahead(kind)), whole, without_times)
    output = shutil.copytree(whole[0].output, tmp_path / "stopped")
    for later in ("step-6", "step-7"):
        shutil.rmtree(output / "checkpoints" / later)
    assert_same_run(run(ahead(kind), output, resume=True), whole, without_times)


def test_a_resumed_run_that_had_not_sampled_ahead_evaluates_and_changes_stage_as_one_that_was_not_stopped(
    run, ahead, without_times, tmp_path
):
    def config():
        values = ahead(eval={"every_steps": 2, "temperatures": [0.0, 1.0]})
        values["data"]["held_out"] = {**values["data"]["train"], "limit": 3}
        stage = values["stages"][0]
        values["stages"] = [{"kind": "sft", "steps": 1, "prompts_per_step": 4}, {**stage, "steps": 4}, stage]
        return values

    whole = run(config())
    output = shutil.copytree(whole[0].output, tmp_path / "stopped")
    for later in ("step-5", "step-8", "step-11", "step-12"):
        shutil.rmtree(output / "checkpoints" / later)
    again = run(config(), output, resume=True)
    assert_same_run(again, whole, without_times)
    evaluations = [[r for r in read_metrics(t.output) if r["kind"] == "eval"] for t in (again[0], whole[0])]
    assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 8


def test_rollouts_are_one_update_old_but_for_the_first_and_those_after_a_pause(run, ahead):
    _, steps = run(ahead(optimizer={"lr": 1e-2, "eps": 1e-3}))
    gaps = {record["step"]: record["sampler_gap"] for record in steps}
    assert [step for step, gap in gaps.items() if gap < 1e-5] == [1, 4, 7], "the first, and those after checkpoints"
    assert all(gap > 1e-4 for step, gap in gaps.items() if step not in (1, 4, 7))


def test_rollouts_after_an_evaluation_are_new_and_evaluations_are_of_the_new_weights(run, ahead):
    config = ahead(checkpoint={"every_steps": None}, eval={"every_steps": 2}, stage={"steps": 5})
    config["data"]["held_out"] = {**config["data"]["train"], "limit": 8}
    trainer, steps = run(config)
    assert [record["step"] for record in steps if record["sampler_gap"] < 1e-5] == [1, 3, 5]
    label, shown = "after grpo", [r for r in read_metrics(trainer.output) if r["kind"] == "eval"]
    assert [record["label"] for record in shown] == ["untrained", "grpo step 2", "grpo step 4", label]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.policy, "engine", HFEngine())  # samples with the trained weights, whatever is published
        expected = trainer.evaluator.evaluate(trainer.policy)
    assert {name: value for name, value in shown[-1].items() if name in expected} == pytest.approx(expected)


WEIGHTS = """
import torch

from mmrl_core import hookimpl

SAMPLED, TRAINED = [], []

def weight(model):
    return next(p for n, p in model.named_parameters() if "q_proj.weight" in n).detach().clone()

@hookimpl(wrapper=True)
def mmrl_rollout(run, prompts):
    before = len(TRAINED)
    groups = yield
    engine = run.policy.engine
    SAMPLED.append(weight(engine._own))
    return groups

@hookimpl
def mmrl_step_end(run):
    TRAINED.append(weight(run.policy.module))
"""


def test_each_rollout_is_sampled_with_the_weights_of_exactly_one_update_before(run, ahead, install):
    install("probe_weights", WEIGHTS)
    config = ahead(plugins=["probe_weights"])
    trainer, _ = run(config)
    import probe_weights

    first = next(p for n, p in trainer.policy.module.named_parameters() if "q_proj.weight" in n)
    assert not torch.equal(first, probe_weights.SAMPLED[0])
    versions = [probe_weights.SAMPLED[0], *probe_weights.TRAINED]  # of the weights, after 0, 1, 2, ... updates
    sampled = [
        next(index for index, version in enumerate(versions) if torch.equal(version, weight))
        for weight in probe_weights.SAMPLED
    ]
    assert sampled == [0, 0, 1, 3, 3, 4, 6]  # without pauses step n + 1 has n - 1; after those of 3 and 6 all of them


def test_the_next_step_is_sampled_while_this_one_is_trained(make_trainer, ahead, monkeypatch):
    """Each update waits until the sampling of the next step has begun, which in turn ends after the update has."""
    trainer = make_trainer(ahead(checkpoint={"every_steps": None}, stage={"steps": 3}))
    begun, updated = [threading.Event() for _ in range(4)], [threading.Event() for _ in range(4)]
    threads = []
    update, sample = step_module.update, GroupSampler._sample

    def watched_update(run, batch):
        step = run.state.step
        assert step == 2 or begun[step + 1].wait(WAIT_S)
        metrics = update(run, batch)
        updated[step].set()
        return metrics

    def watched_sample(self, draw, prompts, step, round_index):
        threads.append(threading.get_ident())
        begun[step].set()
        sampled = sample(self, draw, prompts, step, round_index)
        assert step == 0 or updated[step - 1].wait(WAIT_S)
        return sampled

    monkeypatch.setattr(step_module, "update", watched_update)
    monkeypatch.setattr(GroupSampler, "_sample", watched_sample)
    trainer.run(resume=False)
    assert len(threads) == 3 and threads[0] == threading.get_ident() and threads[1] == threads[2] != threads[0]


def test_an_update_that_fails_leaves_nothing_saved_and_nothing_running(make_trainer, ahead, monkeypatch):
    """The rollout under way belongs to weights that a resumed run would not have."""
    trainer = make_trainer(ahead(checkpoint={"every_steps": None}))
    logprobs = trainer.policy.logprobs

    def failing(rows, **options):
        if trainer.state.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return logprobs(rows, **options)

    monkeypatch.setattr(trainer.policy, "logprobs", failing)
    with pytest.raises(PolicyError, match=r"out of memory in step 3 .*micro_batch_tokens"):
        trainer.run(resume=False)
    trainer.close()
    assert not (trainer.output / "checkpoints").exists()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("mmrl-sampler")]


def test_an_error_of_the_sampling_ahead_stops_the_run_with_its_message(make_trainer, ahead, monkeypatch):
    trainer = make_trainer(ahead(checkpoint={"every_steps": None}))
    generate, calls = trainer.policy.engine.generate, []

    def failing(*arguments):
        calls.append(threading.get_ident())
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return generate(*arguments)

    monkeypatch.setattr(trainer.policy.engine, "generate", failing)
    with pytest.raises(PolicyError, match=r"out of memory in step 3 .*group_size .now 4."):
        trainer.run(resume=False)
    assert len(steps_of(trainer)) == 2 and calls[2] != threading.get_ident()


EPOCHS = """
from mmrl_core import hookimpl

ENDED = []

@hookimpl
def mmrl_step_end(run):
    if run.state.epoch > len(ENDED):
        ENDED.append((run.state.epoch - 1, run.state.step))
"""


def test_an_epoch_ends_with_the_step_that_trains_its_last_rows(run, ahead, install):
    """16 rows are four steps, the next of which is drawn while the one before is trained."""
    install("probe_epochs", EPOCHS)
    run(ahead(plugins=["probe_epochs"], checkpoint={"every_steps": None}, stage={"steps": 9}))
    import probe_epochs

    assert probe_epochs.ENDED == [(0, 4), (1, 8)]


# The correction

INPUTS = """
from mmrl_core import hookimpl

SEEN = []

@hookimpl(wrapper=True)
def mmrl_policy_loss(inputs):
    loss, metrics = yield
    SEEN.append((inputs, loss.detach().clone(), dict(metrics)))
    return loss, metrics
"""


@pytest.mark.parametrize(
    "correction",
    [
        {"level": "token", "mode": "truncate", "maximum": 1.05, "minimum": 0.9},
        {"level": "token", "mode": "mask", "maximum": 1.05, "minimum": 0.9},
        {"level": "sequence", "mode": "truncate", "maximum": 1.1},
        {"level": "sequence", "mode": "mask", "maximum": 1.1},
    ],
    ids=lambda correction: f"{correction['level']} {correction['mode']}",
)
def test_old_rollouts_weigh_as_much_as_the_weights_now_would_sample_them(run, ahead, install, correction):
    """On one update a rollout the ratio is 1, so that -advantage * weight is the loss of a token."""
    install("probe_inputs", INPUTS)
    algorithm = {"importance_correction": correction}
    run(ahead(plugins=["probe_inputs"], stage={"steps": 3}, checkpoint={"every_steps": None}, algorithm=algorithm))
    import probe_inputs

    assert len(probe_inputs.SEEN) == 3
    bounded = []
    for inputs, loss, metrics in probe_inputs.SEEN:
        weights = torch.zeros(inputs.mask.shape)
        for row in range(len(weights)):
            num_tokens = int(inputs.mask[row].sum())
            gaps = [
                float(inputs.logprobs[row, t].detach() - inputs.sampler_logprobs[row, t]) for t in range(num_tokens)
            ]
            if correction["level"] == "sequence":
                gaps = [sum(gaps)] * num_tokens
            for t, gap in enumerate(gaps):
                weight = torch.tensor(gap).exp().item()
                low, high = correction.get("minimum", 0.0), correction["maximum"]
                bounded.append(not low <= weight <= high)
                if bounded[-1]:
                    weight = 0.0 if correction["mode"] == "mask" else min(max(weight, low), high)
                weights[row, t] = weight
        expected = -(weights * inputs.advantages)[inputs.mask].sum() / inputs.mask.sum()
        assert float(loss) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
        assert float(metrics["importance_weight"]) == pytest.approx(float(weights[inputs.mask].mean()), rel=1e-4)
    assert 0 < sum(bounded) < len(bounded), "the test needs weights within the bounds and beyond"
    first = probe_inputs.SEEN[0]
    assert float(first[2]["importance_weight"]) == pytest.approx(1, abs=1e-4), "what is sampled anew has weight 1"


# Configs


@pytest.mark.parametrize(
    "change, message",
    [
        ({"algorithm": {}}, r"rollout\.steps_ahead .*set algorithm\.importance_correction"),
        (
            {"algorithm": {"importance_correction": CORRECTION, "dynamic_sampling": {}}},
            r"rollout\.steps_ahead and dynamic_sampling exclude each other",
        ),
        ({"rollout": {"steps_ahead": 1}}, r"rollout\.steps_ahead .*set rollout\.engine to \{name: hf, copy: true\}"),
        (
            {"rollout": {"steps_ahead": 1, "engine": {"name": "hf", "copy": False}}},
            r"rollout\.steps_ahead .*set rollout\.engine to \{name: hf, copy: true\}",
        ),
        ({"rollout": {"steps_ahead": 2, "engine": {"name": "hf", "copy": True}}}, r"steps_ahead"),
    ],
    ids=["no correction", "dynamic sampling", "no copy", "copy off", "two steps"],
)
def test_a_config_that_cannot_sample_ahead_is_refused_with_the_key(make_config, ahead, change, message):
    with pytest.raises(ConfigError, match=message):
        make_config({**ahead(), **change})


def test_supervised_stages_need_nothing_for_it(make_config, ahead):
    config = ahead(stage={"kind": "sft", "steps": 1})
    make_config({**config, "algorithm": {}, "rollout": {"steps_ahead": 1}})

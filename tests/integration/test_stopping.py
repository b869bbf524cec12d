"""A run that a signal stops, wherever it is, has saved its last step and goes on as if it had not been stopped."""

import signal

import pytest

from mmrl_core.config import load_config
from mmrl_core.errors import CheckpointError, ConfigError, MMRLError, TaskDataError
from mmrl_core.runs import read_metrics
from mmrl_core.support import Interrupted, Stopping
from mmrl_core.trainer import Trainer
from tests.signals import signals_reach_the_run

PROBE = """
import os
from mmrl_core import hookimpl

plan, seen = {}, {}

def passed(moment):
    seen[moment] = seen.get(moment, 0) + 1
    if plan.get(moment) == seen[moment]:
        os.kill(os.getpid(), plan["signal"])

@hookimpl(wrapper=True)
def mmrl_rollout():
    passed("sampling")
    return (yield)

@hookimpl(wrapper=True)
def mmrl_policy_loss():
    passed("loss")
    return (yield)

@hookimpl
def mmrl_after_update():
    passed("after update")

@hookimpl
def mmrl_step_end():
    passed("step end")

@hookimpl
def mmrl_evaluated():
    passed("evaluated")

@hookimpl
def mmrl_stage_end():
    passed("stage end")

@hookimpl
def mmrl_save_state():
    passed("saving")
    return {"steps": seen.get("after update", 0)}

@hookimpl
def mmrl_load_state(state):
    seen["after update"] = state["steps"]
"""
NUM_STEPS = 4

pytestmark = pytest.mark.usefixtures(signals_reach_the_run.__name__)


MOMENTS = {  # which time of it, the signal, steps done and saved then
    "sampling": (3, signal.SIGINT, 2),
    "loss": (5, signal.SIGTERM, 2),  # of the first of two updates of step 3: its weights have not moved
    "loss of a later update": (6, signal.SIGHUP, 3),
    "after update": (3, signal.SIGUSR1, 3),
    "step end": (3, signal.SIGXCPU, 3),
    "evaluated": (2, signal.SIGTERM, 2),  # the first is of the untrained policy
    "saving": (6, signal.SIGINT, 4),  # what would be saved if the end of the stage failed
    "stage end": (1, signal.SIGTERM, 4),
}


@pytest.fixture
def probe(install):
    install("probe_signals", PROBE)
    import probe_signals

    return probe_signals


@pytest.fixture
def config(base_config, rewards_file, data_files):
    base = base_config("qwen2")
    return {
        **base,
        "plugins": ["probe_signals"],
        "data": {**base["data"], "held_out": {**base["data"]["train"], "limit": 2}},
        "rewards": [f"{rewards_file}:spread"],
        "eval": {"every_steps": 2},
        "checkpoint": {"every_steps": None},
        "algorithm": {"updates_per_rollout": 2},
        "stages": [{"kind": "grpo", "steps": NUM_STEPS, "prompts_per_step": 2, "group_size": 3}],
    }


@pytest.fixture
def train(make_config):
    def trained(values, output, resume=False):
        with Stopping() as stopping:
            trainer = Trainer(make_config(values), output, stopping)
            try:
                trainer.run(resume)
            finally:
                trainer.close()

    return trained


@pytest.fixture
def told(without_times):
    def compared(output):
        return [without_times(record) for record in read_metrics(output)]

    return compared


def weights(output, step=NUM_STEPS):
    return (output / f"checkpoints/step-{step}/model/model.safetensors").read_bytes()


def test_a_run_stopped_at_any_moment_goes_on_as_if_it_had_not_been(probe, config, train, told, tmp_path, capfd):
    train(config, tmp_path / "whole")
    expected = told(tmp_path / "whole")
    assert [record["step"] for record in expected if record["kind"] == "eval"] == [0, 2, 4]
    for moment, (time, number, saved) in MOMENTS.items():
        probe.seen.clear()
        probe.plan.clear()
        probe.plan.update({moment.split(" of ")[0]: time, "signal": number})
        output = tmp_path / moment.replace(" ", "-")
        with pytest.raises(Interrupted) as caught:
            train(config, output)
        assert caught.value.signal == number, moment
        out = capfd.readouterr().out
        assert f"saved step {saved}; go on from it with --resume" in out, moment
        assert [path.name for path in (output / "checkpoints").iterdir()] == [f"step-{saved}"], moment
        probe.plan.clear()
        train(config, output, resume=True)
        assert told(output) == expected, moment
        assert weights(output) == weights(tmp_path / "whole"), moment


def test_a_signal_in_the_first_step_leaves_nothing_to_go_on_from(probe, config, train, tmp_path, capfd):
    probe.plan.update({"sampling": 1, "signal": signal.SIGTERM})
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run")
    assert "saved step" not in capfd.readouterr().out and not (tmp_path / "run/checkpoints").exists()


def test_what_is_sampled_ahead_is_finished_and_the_step_saved(probe, config, train, tmp_path, capfd):
    values = {
        **config,
        "rollout": {"max_tokens": 6, "steps_ahead": 1, "engine": {"name": "hf", "copy": True}},
        "algorithm": {"old_logprobs": "sampler"},
        "eval": {},
    }
    probe.plan.update({"loss": 3, "signal": signal.SIGTERM})
    with pytest.raises(Interrupted):
        train(values, tmp_path / "run")
    assert "saved step 3;" in capfd.readouterr().out
    probe.plan.clear()
    train(values, tmp_path / "run", resume=True)
    steps = [record["step"] for record in read_metrics(tmp_path / "run") if record["kind"] == "step"]
    assert steps == list(range(1, NUM_STEPS + 1))


def test_a_complete_run_given_more_steps_equals_one_that_had_them_from_the_start(probe, config, train, told, tmp_path):
    longer = {**config, "stages": [{**config["stages"][0], "steps": 6, "micro_batch_rows": 100}]}
    train(longer, tmp_path / "long")
    train(config, tmp_path / "extended")
    train(config, tmp_path / "extended", resume=True)  # nothing is left to do
    assert len(told(tmp_path / "extended")) == NUM_STEPS + 3
    train(longer, tmp_path / "extended", resume=True)
    records = {name: told(tmp_path / name) for name in ("long", "extended")}
    steps = {name: [one for one in records[name] if one["kind"] == "step"] for name in records}
    assert steps["long"] == steps["extended"] and len(steps["long"]) == 6
    (note,) = [one for one in records["extended"] if one["kind"] == "resume"]
    assert note["step"] == NUM_STEPS and note["changes"] == [
        "stages.0.steps: 4 there, 6 here",
        "stages.0.micro_batch_rows: null there, 100 here",
    ]
    assert weights(tmp_path / "long", 6) == weights(tmp_path / "extended", 6)
    with pytest.raises(CheckpointError, match=r"\n  stages.0.group_size: 3 there, 4 here\n"):
        train({**longer, "stages": [{**longer["stages"][0], "group_size": 4}]}, tmp_path / "extended", resume=True)
    shorter = {**longer, "stages": [{**longer["stages"][0], "steps": 5}]}
    with pytest.raises(ConfigError, match="'grpo' has done 6 steps already, and its length is 5 now"):
        train(shorter, tmp_path / "extended", resume=True)


def test_a_checkpoint_with_one_bit_altered_is_passed_over_by_name(probe, config, train, told, tmp_path, capfd):
    values = {**config, "checkpoint": {"every_steps": 2, "keep": 2}}
    train(values, tmp_path / "run")
    expected, output = told(tmp_path / "run"), tmp_path / "run"
    path = output / "checkpoints/step-4/model/model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    capfd.readouterr()
    train(values, output, resume=True)
    out = capfd.readouterr().out
    assert "step-4 is torn: model/model.safetensors has changed since it was written" in out
    assert "resumed from step-2" in out
    assert told(output) == expected and path.read_bytes() == whole


def test_data_that_have_grown_since_are_refused_by_name(probe, config, train, tmp_path, data_files):
    data = tmp_path / "rows.jsonl"
    content = (data_files / "text.jsonl").read_text()
    data.write_text(content)
    values = {**config, "data": {"train": {"name": "rows", "path": str(data)}}, "eval": {}}
    probe.plan.update({"sampling": 2, "signal": signal.SIGTERM})
    with pytest.raises(Interrupted):
        train(values, tmp_path / "run")
    probe.plan.clear()
    data.write_text(content + content)
    with pytest.raises(TaskDataError, match=rf"{data} has changed \(bytes then and now: \d+ and \d+\)"):
        train(values, tmp_path / "run", resume=True)
    data.write_text(content)
    train(values, tmp_path / "run", resume=True)


def test_the_config_of_a_run_has_what_its_components_declare(probe, config, train, make_config, tmp_path):
    probe.plan.update({"sampling": 1, "signal": signal.SIGTERM})
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run")
    saved = load_config(str(tmp_path / "run/config.yaml"))
    assert saved.model.policy.options["max_prompt_tokens"] == 8192
    assert "max_prompt_tokens" not in make_config(config).model.policy.options


def test_a_folder_that_vanishes_or_a_full_disk_ends_the_run_in_one_sentence(probe, config, make_config, tmp_path):
    def vanish(trainer):
        (trainer.output / "metrics.jsonl").unlink()

    def fill(trainer):
        (trainer.output / "set_aside.jsonl").symlink_to("/dev/full")
        trainer.recorder._broken["grpo/0"] = {"id": "0", "reason": "it is broken"}

    for what, message in (
        (vanish, "metrics.jsonl cannot be written to .*: No such file or directory. It has vanished"),
        (fill, "set_aside.jsonl cannot be written to .*: No space left on device. Make room"),
    ):
        trainer = Trainer(make_config(config), tmp_path / what.__name__)
        write = trainer.recorder.step

        def spoilt(*arguments, trainer=trainer, what=what, write=write):
            what(trainer)
            write(*arguments)

        trainer.recorder.step = spoilt
        try:
            with pytest.raises(MMRLError, match=message):
                trainer.run(resume=False)
        finally:
            trainer.close()


def test_no_signal_is_taken_from_whoever_uses_the_trainer_from_python(make_config, config, probe, tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    trainer = Trainer(make_config(config), tmp_path / "run")
    trainer.close()
    assert before == {number: signal.getsignal(number) for number in before}

"""Checkpoints on disk: whole or not there, the newest kept, everything back bit for bit."""

import json
import multiprocessing
import os
import random
import signal

import numpy as np
import pytest
import torch

from mmrl_core.checkpoint import (
    PluginStates,
    check_space,
    find_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_newest,
    read_state,
    save_checkpoint,
    split_changes,
)
from mmrl_core.errors import CheckpointError, HookResultError
from mmrl_core.run import TrainState


class OneWeight:
    """The part of a policy that checkpoints use: one parameter and its frozen copies."""

    def __init__(self, value=0.0):
        self.weight = torch.nn.Parameter(torch.tensor([value, 0.1]))
        self.frozen = {}

    def save(self, directory):
        torch.save(self.weight.detach(), directory / "weight.pt")
        (directory / "tokenizer.json").write_text('{"vocabulary": ["a", "b"]}')

    def load(self, directory):
        self.weight.data.copy_(torch.load(directory / "weight.pt", weights_only=True))

    def save_frozen(self, directory):
        torch.save(self.frozen, directory / "frozen.pt")

    def load_frozen(self, directory):
        self.frozen = torch.load(directory / "frozen.pt", weights_only=True)


class Killed(OneWeight):
    """Its process ends without notice in the middle of writing weights."""

    def save(self, directory):
        (directory / "weight.pt").write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)


def save(run, step, policy=None, optimizer=None, plugins=None, keep=2):
    return save_checkpoint(run, TrainState(step=step), policy or OneWeight(step), optimizer, plugins or {}, keep=keep)


def steps(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_weights_optimiser_generators_and_plugin_state_come_back(tmp_path):
    policy = OneWeight(2.0)
    policy.frozen = {"reference": torch.tensor([5.0])}
    optimizer = torch.optim.AdamW([policy.weight], lr=0.1)
    policy.weight.square().sum().backward()
    optimizer.step()
    state = TrainState(
        stage=1, stage_step=3, step=7, position=28, epoch=2, elapsed_s=1.5, metrics_bytes=99, evaluated=["untrained"]
    )
    plugins = {"mine": {"count": 3, "values": torch.arange(3), "names": ["a", None]}}
    folder = save_checkpoint(tmp_path, state, policy, optimizer, plugins, keep=2)
    drawn = [torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]]
    random.gauss(0, 1)  # leaves a second number for the next call

    other = OneWeight()
    found, training = load_checkpoint(folder, other)
    assert found == state and torch.equal(other.weight, policy.weight)
    assert torch.equal(other.frozen["reference"], torch.tensor([5.0]))
    assert [torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]] == drawn
    assert training["plugins"]["mine"]["values"].tolist() == [0, 1, 2]
    assert training["plugins"]["mine"]["names"] == ["a", None]
    again = torch.optim.AdamW([other.weight], lr=0.1)
    again.load_state_dict(training["optimizer"])
    for each, weight in ((optimizer, policy.weight), (again, other.weight)):
        weight.grad = torch.tensor([0.3, -0.2])
        each.step()
    assert torch.equal(other.weight, policy.weight)


def test_only_the_newest_are_kept(tmp_path):
    for step in (2, 4, 10, 12):
        save(tmp_path, step)
    assert steps(tmp_path) == ["step-10", "step-12"]  # by number, not by name
    assert latest_checkpoint(tmp_path).name == "step-12"


def test_a_step_is_written_again_in_place(tmp_path):
    save(tmp_path, 4, OneWeight(1.0))
    save(tmp_path, 4, OneWeight(2.0))
    policy = OneWeight()
    load_checkpoint(find_checkpoint(tmp_path), policy)
    assert policy.weight[0] == 2 and steps(tmp_path) == ["step-4"]


def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path):
    save(tmp_path, 2)
    process = multiprocessing.get_context("fork").Process(target=save, args=(tmp_path, 4, Killed()))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    unfinished, kept = steps(tmp_path)
    assert unfinished.startswith(".step-4.") and unfinished.endswith(".unfinished") and kept == "step-2"
    assert latest_checkpoint(tmp_path).name == "step-2"
    save(tmp_path, 4)
    assert steps(tmp_path) == ["step-2", "step-4"]


def flip(path):
    """One bit of the byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_step(folder):
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"step": 4', '"step": 5'))


DAMAGE = {
    "a bit of the weights": lambda folder: flip(folder / "model/weight.pt"),
    "a bit of the optimiser": lambda folder: flip(folder / "training.pt"),
    "a bit of a frozen policy": lambda folder: flip(folder / "frozen/frozen.pt"),
    "a bit of the tokenizer": lambda folder: flip(folder / "model/tokenizer.json"),
    "a number of the state": other_step,
    "weights missing": lambda folder: (folder / "model/weight.pt").unlink(),
    "weights cut short": lambda folder: os.truncate(folder / "model/weight.pt", 100),
    "training missing": lambda folder: (folder / "training.pt").unlink(),
    "frozen missing": lambda folder: (folder / "frozen/frozen.pt").unlink(),
    "state missing": lambda folder: (folder / "state.json").unlink(),
    "state cut short": lambda folder: os.truncate(folder / "state.json", 60),
    "state of something else": lambda folder: (folder / "state.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_torn_checkpoint_is_passed_over_and_never_loaded(tmp_path, damage):
    save(tmp_path, 2)
    torn = save(tmp_path, 4)
    DAMAGE[damage](torn)
    assert latest_checkpoint(tmp_path).name == "step-2"
    with pytest.raises(CheckpointError, match="torn"):
        read_state(torn)
    with pytest.raises(CheckpointError, match="step-4"):
        load_checkpoint(torn, OneWeight())
    told = []
    directory, state, _ = load_newest(tmp_path, OneWeight(), told.append)
    assert directory.name == "step-2" and state.step == 2
    assert len(told) == 1 and told[0].startswith("passed over: ") and "step-4" in told[0]


@pytest.mark.parametrize("damage", ["a bit of the weights", "a bit of the tokenizer", "weights missing"])
def test_an_evaluation_passes_over_damaged_weights_by_name_and_asks_for_no_more(tmp_path, damage, caplog):
    save(tmp_path, 2)
    torn = save(tmp_path, 4)
    flip(torn / "training.pt")
    assert find_checkpoint(tmp_path) == find_checkpoint(torn) == torn, "the optimiser is not evaluated"
    DAMAGE[damage](torn)
    assert not caplog.messages
    assert find_checkpoint(tmp_path).name == "step-2"
    assert caplog.messages[0].startswith(f"passed over: {torn} is torn: model/")
    with pytest.raises(CheckpointError, match="torn"):
        find_checkpoint(torn)


def test_a_run_none_of_whose_checkpoints_is_whole_is_not_started_over(tmp_path):
    """Starting over would delete them, and a copy may yet bring one back."""
    assert load_newest(tmp_path, OneWeight(), pytest.fail) is None
    for step in (2, 4):
        flip(save(tmp_path, step) / "training.pt")
    told = []
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole(.|\n)*step-4.*(.|\n)*step-2"):
        load_newest(tmp_path, OneWeight(), told.append)
    assert len(told) == 2 and steps(tmp_path) == ["step-2", "step-4"]


def test_a_checkpoint_with_sizes_alone_still_loads(tmp_path):
    """As 0.1.0 wrote them."""
    folder = save(tmp_path, 4)
    values = json.loads((folder / "state.json").read_text())
    values["files"] = {name: told["bytes"] for name, told in values["files"].items()}
    for key in ("sha256", "sources", "ended"):
        del values[key]
    (folder / "state.json").write_text(json.dumps(values))
    policy = OneWeight()
    assert load_checkpoint(folder, policy)[0].step == 4 and policy.weight[0] == 4
    (folder / "training.pt").write_bytes(bytes((folder / "training.pt").stat().st_size))
    with pytest.raises(CheckpointError, match=r"training.pt cannot be read"):
        load_checkpoint(folder, policy)


def test_a_disk_without_room_for_one_checkpoint_is_refused_with_both_numbers(tmp_path):
    module = torch.nn.Linear(10, 10)
    check_space(tmp_path, module)
    with torch.device("meta"):  # takes no memory
        module = torch.nn.Linear(1 << 24, 1 << 24)
    with pytest.raises(CheckpointError, match=r"at least 3377\d\d\d\.\d GB, and .* has room for \d+\.\d GB"):
        check_space(tmp_path, module)


CHANGES = {
    "stages.0.steps": True,
    "stages.12.epochs": True,
    "stages.0.micro_batch_tokens": True,
    "stages.0.micro_batch_rows": True,
    "model.policy.gradient_checkpointing": True,
    "model.policy.max_prompt_tokens": True,
    "data.max_broken": True,
    "stages.0.mixture.1.data.max_broken": True,
    "rewards.0.timeout_s": True,
    "stages.0.rewards.2.stop_on_failure": True,
    "rollout.engine.memory_gib": True,
    "stages.1.rollout.engine.gpus": True,
    "checkpoint.every_steps": True,
    "log.view.name": True,
    "eval.every_steps": True,
    "seed": False,
    "eval.limit": False,
    "stages": False,
    "stages.0.group_size": False,
    "stages.0.prompts_per_step": False,
    "stages.0.rollout.environment.steps": False,
    "stages.0.optimizer.lr": False,
    "stages.0.optimizer.warmup_steps": False,
    "model.policy.max_pixels": False,
    "model.policy.lora.rank": False,
    "rewards.0.weight": False,
    "rollout.engine.name": False,
    "rollout.max_tokens": False,
    "logs.every": False,
}


@pytest.mark.parametrize("key", CHANGES)
def test_keys_that_change_nothing_computed_may_change_on_resume(key):
    line = f"{key}: 1 there, 2: two here"
    assert split_changes([line]) == (([line], []) if CHANGES[key] else ([], [line]))


def test_torn_checkpoints_of_later_steps_do_not_push_out_sound_ones(tmp_path):
    """A run that was resumed from before them writes them anew; until then it needs what it has."""
    for step in (2, 6, 8):
        save(tmp_path, step, keep=3)
    for step in (6, 8):
        (tmp_path / f"checkpoints/step-{step}/training.pt").unlink()
    save(tmp_path, 4, keep=2)
    assert steps(tmp_path) == ["step-2", "step-4"]
    assert latest_checkpoint(tmp_path).name == "step-4"


def test_a_run_without_checkpoint_says_so(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        find_checkpoint(tmp_path)
    folder = save(tmp_path, 3)
    assert find_checkpoint(folder) == folder == find_checkpoint(tmp_path)


def test_states_kept_for_a_failing_step_share_tensors_and_copy_containers():
    kept = [torch.zeros(3)]
    states = {"replay": {"kept": kept, "steps": [1, 2]}, "core": {"count": 1}}
    before = PluginStates(states)
    states["replay"]["steps"].append(3)
    kept.append(torch.ones(3))
    found = before.unchanged()
    assert found == {"replay": {"kept": [kept[0]], "steps": [1, 2]}, "core": {"count": 1}}
    assert found["replay"]["kept"][0] is kept[0], "100 MB of tensors must not be copied before each step"


def test_a_tensor_that_a_plugin_changed_in_place_is_noticed_and_not_saved():
    weights = torch.zeros(3)
    before = PluginStates({"critic": {"weights": weights}})
    weights.add_(1.0)
    with pytest.raises(HookResultError, match="plugin 'critic' changed a tensor in place"):
        before.unchanged()

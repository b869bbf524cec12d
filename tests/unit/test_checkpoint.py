"""Checkpoints on disk: whole or not there, the newest kept, everything back bit for bit."""

import multiprocessing
import os
import random
import signal

import numpy as np
import pytest
import torch

from mmrl_core.checkpoint import (
    PluginStates,
    TrainState,
    find_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from mmrl_core.errors import CheckpointError, HookResultError


class OneWeight:
    """The part of a policy that checkpoints use: one parameter and its frozen copies."""

    def __init__(self, value=0.0):
        self.weight = torch.nn.Parameter(torch.tensor([value, 0.1]))
        self.frozen = {}

    def save(self, directory):
        torch.save(self.weight.detach(), directory / "weight.pt")

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
    assert steps(tmp_path) == [".unfinished-step-4", "step-2"]
    assert latest_checkpoint(tmp_path).name == "step-2"
    save(tmp_path, 4)
    assert steps(tmp_path) == ["step-2", "step-4"]


DAMAGE = {
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
    assert latest_checkpoint(tmp_path).name == "step-2" and find_checkpoint(tmp_path).name == "step-2"
    with pytest.raises(CheckpointError, match="torn"):
        read_state(torn)
    with pytest.raises(CheckpointError, match="step-4"):
        load_checkpoint(torn, OneWeight())


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

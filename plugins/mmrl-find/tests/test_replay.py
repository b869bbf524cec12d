"""Replay: what is kept, what is added to whom, and that it is saved whole."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from mmrl_core.config import RunConfig
from mmrl_core.errors import ConfigError, PolicyError
from mmrl_core.run import TrainState
from mmrl_core.testing import make_group, make_scores
from mmrl_core.types import Prompt, Rollout, RolloutGroup, Row
from mmrl_find.pipeline import PromptEmbedding
from mmrl_find.policy import NoiseObservation
from mmrl_find.replay import Replay

SIZE = 3
NAN = float("nan")


def run_at(step, seed=0, stage=0):
    """What replay reads of a run."""
    return SimpleNamespace(
        config=SimpleNamespace(seed=seed), state=TrainState(step=step, stage=stage), counts=Counter()
    )


def group(text, first, count=2, prompt_id="train:0"):
    """Rollouts whose latents are `first`, `first` + 1, ..., and whose distribution has `first` for a mean."""
    prompt = Prompt(prompt_id, [{"role": "user", "content": [{"type": "text", "text": text}]}], {})
    seen = NoiseObservation(
        PromptEmbedding(text, torch.zeros(2), {}), torch.full((SIZE,), float(first)), torch.full((SIZE,), -0.5)
    )
    rows = [
        Row(
            prompt_id,
            f"{prompt_id}/{number}",
            observation=seen,
            action=torch.full((SIZE,), float(first + number)),
            num_actions=1,
            sampler_logprobs=torch.tensor([-float(first + number)]),
        )
        for number in range(count)
    ]
    return RolloutGroup(prompt, [Rollout([row], completion=f"picture {first}") for row in rows])


def scored(groups, totals=None):
    """The reward of a rollout is 10 times its latent, unless totals are given."""
    latents = [float(rollout.rows[0].action[0]) for item in groups for rollout in item.rollouts]
    rewards = torch.tensor([10 * latent for latent in latents] if totals is None else totals)
    return make_scores({"near": rewards, "other": rewards + 1}, weights={"near": 1.0, "other": 0.0})


def extend(replay, step, *groups, totals=None, seed=0):
    """Latents of each group after the hook, and the groups and scores."""
    extended, scores = replay.mmrl_extend_groups(run_at(step, seed), list(groups), scored(groups, totals))
    latents = [[float(rollout.rows[0].action[0]) for rollout in item.rollouts] for item in extended]
    return latents, extended, scores


def test_earlier_rollouts_of_the_same_prompt_join_with_their_own_rewards_and_densities():
    replay = Replay(per_prompt=2)
    first = extend(replay, 0, group("dog", 1), group("cat", 20))
    assert first[0] == [[1.0, 2.0], [20.0, 21.0]]  # nothing earlier, and nothing is added to itself
    fresh = group("cat", 30), group("dog", 5, prompt_id="train:9"), group("bird", 7, prompt_id="train:5")
    latents, groups, scores = extend(replay, 1, *fresh)
    assert [sorted(of_group) for of_group in latents] == [[20.0, 21.0, 30.0, 31.0], [1.0, 2.0, 5.0, 6.0], [7.0, 8.0]]
    everything = [rollout.rows[0] for item in groups for rollout in item.rollouts]
    for row, total, near, other in zip(
        everything, scores.totals, scores.components["near"], scores.components["other"], strict=True
    ):
        latent = float(row.action[0])
        assert (float(total), float(near), float(other)) == (10 * latent, 10 * latent, 10 * latent + 1)
        assert row.sampler_logprobs.tolist() == [-latent]
        drawn_at = {1: 1, 2: 1, 5: 5, 6: 5, 7: 7, 8: 7, 20: 20, 21: 20, 30: 30, 31: 30}[int(latent)]
        assert row.observation.mean.tolist() == [drawn_at] * SIZE
    dog = groups[1]
    assert all(rollout.rows[0].prompt_id == "train:9" for rollout in dog.rollouts)
    assert all(
        rollout.rows[0].observation.embedding is fresh[1].rollouts[0].rows[0].observation.embedding
        for rollout in dog.rollouts
    )
    assert len({row.trajectory_id for row in everything}) == 10
    assert dog.rollouts[0] is fresh[1].rollouts[0] and dog.rollouts[2].completion is None


def test_oldest_rollouts_go_first():
    replay = Replay(capacity=3, per_prompt=10)
    extend(replay, 0, group("dog", 1))
    extend(replay, 1, group("dog", 3))
    assert sorted(extend(replay, 2, group("dog", 5))[0][0][2:]) == [2.0, 3.0, 4.0]


def test_rollouts_of_too_many_steps_ago_are_dropped():
    replay = Replay(per_prompt=10, max_age=2)
    extend(replay, 0, group("dog", 1))
    extend(replay, 1, group("dog", 3))
    assert sorted(extend(replay, 2, group("dog", 5))[0][0][2:]) == [1.0, 2.0, 3.0, 4.0]
    assert sorted(extend(replay, 3, group("dog", 7))[0][0][2:]) == [3.0, 4.0, 5.0, 6.0]


def test_no_more_are_added_than_asked_for_and_none_twice():
    replay = Replay(per_prompt=4)
    run = run_at(0)
    groups = [group("dog", 1, count=8)]
    replay.mmrl_extend_groups(run, groups, scored(groups))
    assert run.counts["replayed"] == 0
    run = run_at(1)
    (extended,), _ = replay.mmrl_extend_groups(run, [group("dog", 50)], scored([group("dog", 50)]))
    added = [float(rollout.rows[0].action[0]) for rollout in extended.rollouts[2:]]
    assert len(set(added)) == 4 and set(added) <= set(range(1, 9)) and run.counts["replayed"] == 4


def test_choice_depends_on_seed_and_step_only():
    def chosen(seed, step):
        replay = Replay(per_prompt=3)
        extend(replay, 0, group("dog", 0, count=30))
        return extend(replay, step, group("dog", 90), seed=seed)[0][0][2:]

    assert chosen(0, 1) == chosen(0, 1)
    assert len({tuple(chosen(seed, step)) for seed in range(3) for step in (1, 2)}) == 6


def test_unscored_rollouts_are_not_kept():
    replay = Replay(per_prompt=10)
    extend(replay, 0, group("dog", 1, count=3), totals=[NAN, 0.0, NAN])
    latents, _, scores = extend(replay, 1, group("dog", 5))
    assert latents == [[5.0, 6.0, 2.0]]
    assert scores.totals.tolist() == [50.0, 60.0, 0.0]


def test_rewards_by_token_and_step_keep_their_totals():
    replay = Replay(per_prompt=1)
    for step in range(2):
        groups = [group("dog", step, count=1)]
        scores = scored(groups)
        scores.token_rewards["near"] = [torch.ones(1)]
        scores.step_rewards["near"] = [[2.0]]
        _, joined = replay.mmrl_extend_groups(run_at(step), groups, scores)
    assert joined.totals.tolist() == [10.0, 0.0]
    assert [values.tolist() for values in joined.token_rewards["near"]] == [[1.0], [0.0]]
    assert joined.step_rewards["near"] == [[2.0], [0.0]]


def test_saved_state_is_plain_and_restores_exactly(tmp_path):
    replay = Replay(capacity=5, per_prompt=3)
    for step in range(3):
        extend(replay, step, group("dog", 10 * step), group("cat", 10 * step + 5))
    torch.save(replay.mmrl_save_state(), tmp_path / "state.pt")
    restored = Replay(capacity=5, per_prompt=3)
    restored.mmrl_load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    restored.mmrl_stage_start(run_at(3))
    for step in range(3, 5):
        fresh = group("dog", 10 * step), group("cat", 10 * step + 5)
        kept, again = extend(replay, step, *fresh), extend(restored, step, *fresh)
        assert kept[0] == again[0] and torch.equal(kept[2].totals, again[2].totals)
        for one, other in zip(kept[1], again[1], strict=True):
            for left, right in zip(one.rollouts, other.rollouts, strict=True):
                row, same = left.rows[0], right.rows[0]
                assert torch.equal(row.observation.mean, same.observation.mean)
                assert torch.equal(row.observation.log_std, same.observation.log_std)
                assert torch.equal(row.sampler_logprobs, same.sampler_logprobs)
    assert sum(len(of_group) for of_group in again[0]) > 4  # some were replayed


def test_saved_state_is_not_changed_by_later_steps():
    replay = Replay()
    extend(replay, 0, group("dog", 1))
    state = replay.mmrl_save_state()
    extend(replay, 1, group("dog", 3))
    assert len(state["kept"]) == 2 and len(replay.mmrl_save_state()["kept"]) == 4


def test_new_stage_starts_with_nothing_and_a_resumed_one_does_not():
    replay = Replay()
    replay.mmrl_stage_start(run_at(0))
    extend(replay, 0, group("dog", 1))
    replay.mmrl_stage_start(run_at(1, stage=0))
    assert len(replay.mmrl_save_state()["kept"]) == 2
    replay.mmrl_stage_start(run_at(1, stage=1))
    assert replay.mmrl_save_state() == {"stage": 1, "kept": []}


def test_run_without_sampled_logprobs_is_refused():
    stage = {"kind": "grpo", "steps": 1}
    with pytest.raises(ConfigError, match=r"set algorithm\.old_logprobs to sampler"):
        Replay().mmrl_configure(RunConfig(name="run", stages=[stage]))
    Replay().mmrl_configure(RunConfig(name="run", stages=[{**stage, "algorithm": {"old_logprobs": "sampler"}}]))


def test_rollouts_of_another_policy_are_refused():
    groups = [make_group(["text"], num_actions=[2])]
    with pytest.raises(PolicyError, match="find/noise"):
        Replay().mmrl_extend_groups(run_at(0), groups, make_scores(totals=[1.0]))


@pytest.mark.parametrize("option", ["capacity", "per_prompt", "max_age"])
def test_options_are_positive(option):
    with pytest.raises(ConfigError, match=option):
        Replay(**{option: 0})

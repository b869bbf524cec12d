"""Conversations sampled through vLLM: every turn with the logprobs that the trainer computes for it."""

from collections import Counter

import pytest

from mmrl_core.language_model import Continuation, VLLMEngine
from mmrl_core.language_model.engines import vllm_host
from mmrl_core.types import Sampling

TOLERANCE = 1e-4  # as for single turns
SAMPLING = Sampling(12, temperature=0.9, seed=1)


@pytest.fixture(scope="module")
def cases(helpers):
    """kind -> prompts and replies. Media of a reply stand in another order than vLLM is given them, by kind."""
    make_prompt, picture, clip, sound = helpers.make_prompt, helpers.picture, helpers.clip, helpers.sound
    return {
        "qwen2": (
            [make_prompt("short", "What is this?"), make_prompt("long", "What is " + "really " * 40 + "this?")],
            [["this is what was found"], ["nothing more"]],
        ),
        "qwen2_5_vl": (
            [
                make_prompt("picture", "What is this?", [picture(1, 84, 56)]),
                make_prompt("video", "What moves here?", videos=[clip(2)]),
                make_prompt("text", "Which colour is the circle on the left?"),
            ],
            [[picture(3, 112, 84), picture(4), "two pictures"], ["look", clip(5), "and", picture(6, 84, 84)]],
        ),
        "qwen2_audio": (
            [make_prompt("sound", "What is heard?", audios=[sound(1, 0.5)]), make_prompt("text", "What is it then?")],
            [[sound(2, 0.4), "found"], [sound(3, 0.3), sound(4, 0.6)]],
        ),
    }


@pytest.fixture(scope="module", params=["qwen2", "qwen2_5_vl", "qwen2_audio"])
def talk(request, make_policy, cases, helpers):
    """`talk(sampling)` -> policy and its conversations; `talk.policy`."""
    policy = make_policy(request.param, VLLMEngine(memory_gib=0.05), max_prompt_tokens=600)
    prompts, replies = cases[request.param]
    parts = [list(map(helpers.part, reply)) for reply in replies]

    def conversations(sampling):
        return helpers.converse(policy, prompts, parts, sampling)

    conversations.policy = policy
    yield conversations
    policy.close()


def test_logprobs_of_all_turns_are_the_trainers(talk, helpers):
    """Their tokens too: a turn that vLLM sees as other tokens than the trainer ends the rollout."""
    groups = talk(SAMPLING)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = Counter(len(rollout.rows) for rollout in rollouts)
    assert lengths[1] and lengths[2] and lengths[3]
    rows = helpers.rows_of(groups)
    tokenizer = talk.policy.encoder.tokenizer
    split = [tokenizer(tokenizer.decode(row.action), add_special_tokens=False)["input_ids"] for row in rows]
    assert any(row.action.tolist() != ids for row, ids in zip(rows, split, strict=True)), "some text splits otherwise"
    assert helpers.largest_difference(talk.policy, rows) < TOLERANCE


def test_equal_seeds_converse_equally(talk, helpers):
    def actions(seed):
        rows = helpers.rows_of(talk(Sampling(12, temperature=0.9, seed=seed)))
        return [(row.action.tolist(), row.sampler_logprobs.tolist()) for row in rows]

    first = actions(5)
    assert first == actions(5) != actions(6)


def test_no_two_turns_draw_with_one_seed(talk, helpers, monkeypatch):
    seeds, original = [], vllm_host._sampling_params

    def params(job, seed):
        seeds.extend(range(seed, seed + job.num_samples))
        return original(job, seed)

    monkeypatch.setattr(vllm_host, "_sampling_params", params)
    rows = helpers.rows_of(talk(SAMPLING))
    assert len(set(seeds)) == len(seeds) == len(rows)


def test_later_turns_find_what_was_computed(make_policy, helpers, monkeypatch):
    """By vLLM's own count: all whole blocks of the turns before, and nothing of an earlier rollout."""
    block, seen, original = 128, [], vllm_host._answer  # tokens of a block on a CPU

    def answer(output):
        seen.append((len(output.prompt_token_ids), output.num_cached_tokens))
        return original(output)

    monkeypatch.setattr(vllm_host, "_answer", answer)
    policy = make_policy("qwen2_5_vl", VLLMEngine(memory_gib=0.05), max_prompt_tokens=900)
    prompts = [
        helpers.make_prompt(str(index), f"{index} " + "really " * 30, [helpers.picture(index, 336, 336)])
        for index in range(6)
    ]
    replies = [[helpers.part("really " * 50)], [helpers.part(helpers.picture(9, 336, 336))]]
    try:
        for _ in range(2):
            seen.clear()
            rows = helpers.rows_of(helpers.converse(policy, prompts, replies, SAMPLING, group_size=1))
            expected = []
            for observation in (row.observation for row in rows):
                computed = len(observation) - len(observation.reply) - 1 if isinstance(observation, Continuation) else 0
                expected.append((len(observation), computed // block * block))
            assert sorted(seen) == sorted(expected)
            assert {row.step_index for row in rows} == {0, 1, 2}
            assert helpers.largest_difference(policy, rows) < TOLERANCE
    finally:
        policy.close()

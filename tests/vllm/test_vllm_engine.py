"""vLLM in the training process samples what the trainer would, with the logprobs that the trainer computes."""

import random
from operator import itemgetter

import numpy as np
import pytest
import torch

from mmrl_core.errors import ConfigError, PolicyError
from mmrl_core.language_model import VLLMEngine, merged_weights
from mmrl_core.language_model.engines import vllm as vllm_engine
from mmrl_core.types import Sampling

TOLERANCE = 1e-4  # float32 on both sides; differences of 2e-6 were seen
SAMPLINGS = [Sampling(12, seed=1), Sampling(12, temperature=0.7, top_p=0.8, top_k=50, seed=2), Sampling(12, 0.0)]
IDS = ["at_1", "truncated_at_0.7", "greedy"]


def started(make_policy, kind, prompt, **config):
    """A policy whose engine runs, and that is closed at the end."""
    policy = make_policy(kind, VLLMEngine(memory_gib=0.05), max_prompt_tokens=600, **config)
    policy.rollout([prompt], 2, Sampling(12))
    return policy


@pytest.fixture(scope="module")
def text(make_policy, prompts):
    policy = started(make_policy, "qwen2", prompts("qwen2")[0])
    yield policy
    policy.close()


@pytest.fixture(scope="module")
def vision(make_policy, prompts):
    policy = started(make_policy, "qwen2_5_vl", prompts("qwen2_5_vl")[0])
    yield policy
    policy.close()


@pytest.fixture
def weights_restored(vision):
    before = {name: weight.clone() for name, weight in vision.model.state_dict().items()}
    yield
    vision.model.load_state_dict(before)


def roll_out(policy, prompts, sampling, group_size=4):
    policy.set_temperature(sampling.temperature or 1.0)
    policy.publish_weights()
    return policy.rollout(prompts, group_size, sampling)


def check_rows(policy, rows, sampling):
    for row in rows:
        tokens = row.action.tolist()
        assert 1 <= len(tokens) <= sampling.max_tokens == 12
        assert not policy.model.stop_ids & set(tokens[:-1])
        assert row.truncated == (tokens[-1] not in policy.model.stop_ids)
        assert row.sampler_logprobs.dtype == torch.float32


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=IDS)
def test_logprobs_of_text_are_the_trainers(text, prompts, sampling, helpers):
    rows = helpers.rows_of(roll_out(text, prompts("qwen2"), sampling))
    check_rows(text, rows, sampling)
    if sampling.temperature:
        assert len({row.num_actions for row in rows}) > 1 and any(not row.truncated for row in rows)
    assert helpers.largest_difference(text, rows) < TOLERANCE


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=IDS)
def test_logprobs_of_pictures_are_the_trainers(vision, prompts, sampling, helpers):
    """One picture, two, and none, in prompts of unequal lengths."""
    groups = roll_out(vision, prompts("qwen2_5_vl"), sampling)
    assert [len(group.rollouts) for group in groups] == [4, 4, 4]
    rows = helpers.rows_of(groups)
    check_rows(vision, rows, sampling)
    assert helpers.largest_difference(vision, rows) < TOLERANCE


def test_truncation_keeps_to_the_likeliest_tokens(text, prompts, helpers):
    rows = helpers.rows_of(roll_out(text, prompts("qwen2"), Sampling(12, temperature=1.5, top_k=3, seed=4), 8))
    for row in rows:
        ids = torch.cat([row.observation.input_ids, row.action])
        with torch.no_grad():
            likeliest = text.model.base(ids[None]).logits[0, -1 - row.num_actions : -1].topk(3).indices
        assert (likeliest == row.action[:, None]).any(1).all()


def test_equal_seeds_give_equal_completions(vision, prompts, helpers):
    first, second, other = (
        [row.action.tolist() for row in helpers.rows_of(roll_out(vision, prompts("qwen2_5_vl"), Sampling(12, seed=s)))]
        for s in (7, 7, 8)
    )
    assert first == second != other
    assert len({tuple(tokens) for tokens in first[:4]}) > 1  # a group's completions differ


def test_equal_prompts_get_different_completions(text, prompts, helpers):
    rows = helpers.rows_of(roll_out(text, [prompts("qwen2")[0]] * 2, Sampling(12, seed=3)))
    assert [row.action.tolist() for row in rows[:4]] != [row.action.tolist() for row in rows[4:]]


def test_prompts_of_more_tokens_than_vllm_takes_in_a_step(text, helpers):
    """On a CPU it takes 4096."""
    asked = [helpers.make_prompt(str(index), f"{index} " + "really " * 100) for index in range(12)]
    assert sum(map(text.prompt_length, asked)) > 4096
    assert helpers.largest_difference(text, helpers.rows_of(roll_out(text, asked, Sampling(12, seed=1)))) < TOLERANCE


def test_each_prompt_is_reported_once_with_its_completions(text, prompts, helpers):
    told = helpers.told(text, prompts("qwen2"), 4, Sampling(12, seed=9))
    assert sorted(index for index, _ in told) == [0, 1, 2]
    groups = text.rollout(prompts("qwen2"), 4, Sampling(12, seed=9))
    for index, samples in told:
        rows = helpers.rows_of([groups[index]])
        assert [sample.tokens.tolist() for sample in samples] == [row.action.tolist() for row in rows]


def test_a_failing_listener_leaves_nothing_behind(text, prompts, helpers):
    def fail(index, samples):
        raise LookupError

    with pytest.raises(LookupError):
        helpers.generate(text, prompts("qwen2"), 4, Sampling(12, seed=9), fail)
    rows = helpers.rows_of(roll_out(text, prompts("qwen2")[:1], Sampling(12, seed=1)))
    assert len(rows) == 4 and helpers.largest_difference(text, rows) < TOLERANCE


def test_changed_weights_are_followed(vision, weights_restored, prompts, helpers):
    """The vision tower's too, although the pictures were seen before."""
    asked, sampling = prompts("qwen2_5_vl"), Sampling(12, seed=1)
    before = helpers.rows_of(roll_out(vision, asked, sampling))
    helpers.change_weights(vision)
    assert helpers.largest_difference(vision, before) > 0.05
    stale = sorted(helpers.told(vision, asked, 4, sampling), key=itemgetter(0))  # not told yet
    assert [sample.tokens.tolist() for _, group in stale for sample in group] == [row.action.tolist() for row in before]
    after = helpers.rows_of(roll_out(vision, asked, sampling))
    assert helpers.largest_difference(vision, after) < TOLERANCE


@pytest.mark.parametrize("reset", [True, False])
def test_cached_prefixes_are_forgotten_with_the_weights(vision, weights_restored, helpers, monkeypatch, reset):
    """Prompts of more than two cache blocks of 128 tokens; without the reset the old keys and values would be used."""
    from vllm import LLM

    asked = [
        helpers.make_prompt("long", "really " * 80),
        helpers.make_prompt("seen", "a", [helpers.picture(5, 336, 336)]),
    ]
    roll_out(vision, asked, Sampling(12, seed=1))
    helpers.change_weights(vision)
    if not reset:
        monkeypatch.setattr(LLM, "reset_prefix_cache", lambda self: True)
    difference = helpers.largest_difference(vision, helpers.rows_of(roll_out(vision, asked, Sampling(12, seed=1))))
    assert difference < TOLERANCE if reset else difference > 100 * TOLERANCE


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_media_placeholders_are_never_sampled(vision, weights_restored, prompts, helpers, temperature):
    """Although they are made far likelier than all other tokens; the logprobs still are of the whole distribution."""
    with torch.no_grad():
        vision.model.base.get_output_embeddings().weight[vision.model.banned_ids, 0] = 2.0
    rows = helpers.rows_of(roll_out(vision, prompts("qwen2_5_vl"), Sampling(12, temperature, seed=1)))
    assert not torch.isin(torch.cat([row.action for row in rows]), vision.model.banned_ids).any()
    assert max(float(row.sampler_logprobs.max()) for row in rows) < -2.0
    assert helpers.largest_difference(vision, rows) < TOLERANCE


def test_a_prompt_that_vllm_sees_otherwise_is_an_error(text, prompts, monkeypatch):
    monkeypatch.setattr(
        vllm_engine,
        "inputs_of",
        lambda policy, prompt, encoded, converted: {"prompt_token_ids": [*encoded.input_ids.tolist(), 5]},
    )
    length = text.prompt_length(prompts("qwen2")[0])
    with pytest.raises(PolicyError, match=rf"'qwen2-0' has {length} tokens in training and {length + 1} in vLLM"):
        roll_out(text, prompts("qwen2")[:1], Sampling(12))


def test_what_does_not_fit_is_an_error(text, prompts):
    with pytest.raises(PolicyError, match=r"fit into the 612 tokens.*max_length"):
        roll_out(text, prompts("qwen2"), Sampling(600))


def test_pixel_limits_and_videos(make_policy, helpers):
    asked = [
        helpers.make_prompt("small", "What is this?", [helpers.picture(1, 224, 168)]),
        helpers.make_prompt("video", "What happens?", videos=[helpers.clip(3)]),
        helpers.make_prompt("both", "Compare.", [helpers.picture(2)], [helpers.clip(4)]),
    ]
    policy = started(make_policy, "qwen2_5_vl", asked[0], max_pixels=8 * 28 * 28)
    try:
        assert policy.encoder.encode(asked[0]).image_sizes_px == [(84, 56)]
        rows = helpers.rows_of(roll_out(policy, asked, Sampling(12, seed=1)))
        assert helpers.largest_difference(policy, rows) < TOLERANCE
    finally:
        policy.close()


def test_audio(make_policy, helpers):
    sounds = helpers.sound(1, 1.0), helpers.sound(2, 1.4)
    asked = [
        helpers.make_prompt("sound", "What is heard?", audios=sounds[:1]),
        helpers.make_prompt("two", "Compare them.", audios=sounds[::-1]),
        helpers.make_prompt("none", "Which colour is it?"),
    ]
    policy = started(make_policy, "qwen2_audio", asked[0])
    try:
        rows = helpers.rows_of(roll_out(policy, asked, Sampling(12, seed=1)))
        assert helpers.largest_difference(policy, rows) < TOLERANCE
    finally:
        policy.close()


def test_lora_is_merged_into_copies(make_policy, prompts, helpers):
    """Start, change and restart after `close`, with adapters that matter."""
    asked = prompts("qwen2_5_vl")
    policy = started(make_policy, "qwen2_5_vl", asked[0], lora={"rank": 4})
    try:
        before = helpers.rows_of(roll_out(policy, asked, Sampling(12, seed=1)))
        helpers.change_weights(policy, scale=0.1)
        weights = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
        rows = helpers.rows_of(roll_out(policy, asked, Sampling(12, seed=1)))
        assert helpers.largest_difference(policy, before) > 0.05
        assert helpers.largest_difference(policy, rows) < TOLERANCE
        for name, weight in policy.model.state_dict().items():
            assert torch.equal(weight, weights[name]), name
        policy.engine.close()
        policy.engine.close()
        again = helpers.rows_of(roll_out(policy, asked, Sampling(12, seed=1)))
        assert [row.action.tolist() for row in again] == [row.action.tolist() for row in rows]
    finally:
        policy.close()


def test_an_output_layer_that_is_the_embedding_follows_the_weights(make_policy, helpers):
    """On a CPU vLLM computes with a packed copy of it."""
    asked = [helpers.make_prompt("text", "What is this?")]
    policy = started(make_policy, "gemma3_text", asked[0])
    try:
        helpers.change_weights(policy)
        rows = helpers.rows_of(roll_out(policy, asked, Sampling(12, seed=1)))
        assert helpers.largest_difference(policy, rows) < TOLERANCE
    finally:
        policy.close()


def test_weights_have_the_names_they_are_saved_with(make_policy, tiny_model):
    from safetensors import safe_open

    for kind, lora in (("qwen2_5_vl", None), ("qwen2_5_vl", {"rank": 4}), ("gemma3_text", None)):  # the last ties two
        policy = make_policy(kind, VLLMEngine(), lora=lora)
        with safe_open(tiny_model(kind) / "model.safetensors", "pt") as saved:
            for name, weight in merged_weights(policy):
                assert torch.equal(weight, saved.get_tensor(name))
            assert {name for name, _ in merged_weights(policy)} == set(saved.keys())


def test_starting_vllm_leaves_the_process_as_it_was(make_policy, prompts):
    policy = make_policy("qwen2", VLLMEngine(memory_gib=0.05))
    threads, set_num_threads = torch.get_num_threads(), torch.set_num_threads
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    policy.engine._max_length = 612
    policy.engine._awake(policy)
    policy.close()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert torch.get_num_threads() == threads and torch.set_num_threads is set_num_threads


def test_what_vllm_cannot_start_with_is_an_error(make_policy, prompts):
    policy = make_policy("qwen2", VLLMEngine(arguments={"max_num_seqs": -1}))
    with pytest.raises(PolicyError, match="vLLM does not start"):
        policy.rollout(prompts("qwen2"), 2, Sampling(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "colocate"}, "no mode 'colocate'; modes: colocated, server"),
        ({"gpus": "1"}, "belong to mode 'server'"),
        ({"sync": "adapter"}, "belong to mode 'server'"),
        ({"mode": "server", "address": ["127.0.0.1:1", "here"]}, "address 'here' must be host:port"),
        ({"mode": "server", "gpus": "1", "address": "127.0.0.1:1"}, "leave 'gpus' out"),
    ],
)
def test_options_that_contradict_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        VLLMEngine(**options)

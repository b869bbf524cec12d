"""The language-model policy computes what a plain transformers forward of each completion computes."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrl_core.config import LoraConfig
from mmrl_core.errors import NotFiniteError, TaskDataError
from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.media import Audio
from mmrl_core.types import Rollout, Row, Sampling

KINDS = ("qwen2", "qwen2_vl", "qwen2_5_vl", "qwen2_audio", "gemma3_text")
TEXT_KINDS = ("qwen2", "qwen3", "llama", "gemma2", "gemma3_text")


@pytest.fixture(scope="session")
def video(noise_video):
    return noise_video(6, 84, 56, seed=5)


@pytest.fixture
def prompts(make_prompt, make_picture, video):
    """`prompts(kind)`: of unequal lengths; with vision: one image, several, none, and a video."""

    def of_kind(kind):
        if kind in TEXT_KINDS:
            return [make_prompt(f"p{i}", "what is this" + " really" * (3 * i)) for i in range(3)]
        if kind == "qwen2_audio":
            return [
                make_prompt("one", "what is this", audios=[noise(0.5)]),
                make_prompt("two", "which of the two is louder", audios=[noise(0.3, 1), noise(2.1, 2)]),
                make_prompt("none", "a question without a sound, to stand beside those with one"),
            ]
        return [
            make_prompt("one", "what is this", [make_picture(1, 84, 56)]),
            make_prompt("two", "which of the two is left", [make_picture(2, 56, 112), make_picture(3)]),
            make_prompt("none", "a question without a picture, to stand beside those with one"),
            make_prompt("video", "what moves", videos=[video]),
            make_prompt("both", "what moves in front of this", [make_picture(4)], [video]),
        ]

    return of_kind


def noise(seconds, seed=0):
    samples = np.random.default_rng(seed).standard_normal(round(seconds * 16000)).astype(np.float32) / 4
    return Audio(samples, 16000)


def load(path, **settings):
    return LanguageModelPolicy(path, **settings)


def rows_of(policy, prompts, sizes=(3, 1, 2, 3, 2)):
    """Rows of 1 to 9 random tokens, groups of unequal size."""
    generator = torch.Generator().manual_seed(1)
    groups = policy.rollout(prompts, 1, Sampling(max_tokens=1))
    rows = []
    for group, size in zip(groups, sizes, strict=False):
        for index in range(size):
            length = int(torch.randint(1, 10, (), generator=generator))
            rows.append(
                Row(
                    prompt_id=group.prompt.id,
                    trajectory_id=f"{group.prompt.id}/{index}",
                    observation=group.rollouts[0].rows[0].observation,
                    action=torch.randint(0, 500, (length,), generator=generator),
                    num_actions=length,
                )
            )
    return rows


def expected_stats(plain, rows, prompts, temperature=1.0):
    """Logprobs and entropies [B, T] from a forward for each row."""
    by_id = {prompt.id: prompt for prompt in prompts}
    logprobs, entropies = [], []
    for row in rows:
        normed = (plain.logits(by_id[row.prompt_id], row.action) / temperature).log_softmax(-1)
        logprobs.append(normed.gather(1, row.action[:, None])[:, 0])
        entropies.append(-(normed.exp() * normed).sum(-1))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(logprobs, batch_first=True), pad(entropies, batch_first=True)


VARIANTS = {
    "full": ({}, 1.0),
    "checkpointing": ({"gradient_checkpointing": True}, 0.7),
    "lora": ({"lora": LoraConfig(rank=4)}, 1.3),
    "lora and checkpointing": ({"lora": LoraConfig(rank=4), "gradient_checkpointing": True}, 1.0),
    "frozen vision": ({"freeze": ["vision"]}, 0.7),
    "frozen audio": ({"freeze": ["audio", "projector"]}, 0.7),
    "frozen language": ({"freeze": ["language"]}, 1.0),
    "not shared": ({"attention": "eager"}, 1.0),
}
COMMON = ("full", "checkpointing", "lora", "lora and checkpointing")
CASES = [
    *(("qwen2", variant) for variant in (*COMMON, "not shared")),
    *(("qwen2_vl", variant) for variant in (*COMMON, "frozen vision", "frozen language", "not shared")),
    *(("qwen2_5_vl", variant) for variant in (*COMMON, "frozen vision", "frozen language")),
    *(("qwen2_audio", variant) for variant in ("full", "lora and checkpointing", "frozen audio", "not shared")),
    *((kind, variant) for kind in ("qwen3", "llama", "gemma3_text") for variant in ("full", "lora and checkpointing")),
    ("gemma2", "not shared"),
]


@pytest.mark.parametrize("kind, variant", CASES)
def test_logprobs_entropy_and_gradients_equal_a_plain_forward_of_each_completion(
    kind, variant, tiny_model, plain_model, prompts
):
    settings, temperature = VARIANTS[variant]
    path = tiny_model(kind)
    torch.manual_seed(1)  # of the adapters' first weights
    policy = load(path, **settings)
    policy.set_temperature(temperature)
    if "lora" in variant:
        with torch.no_grad():
            for name, parameter in policy.model.model.named_parameters():
                if "lora_B" in name:  # starts at zero, where the adapter does nothing
                    parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    model = copy.deepcopy(policy.model.model)
    if "checkpointing" in variant:
        model.gradient_checkpointing_disable()
    plain = plain_model(path, model)
    rows = rows_of(policy, prompts(kind))

    assert (policy.model.plain_reason is None) == (variant != "not shared")

    stats = policy.logprobs(rows, needs={"entropy"})
    logprobs, entropy = expected_stats(plain, rows, prompts(kind), temperature)
    torch.testing.assert_close(stats.logprobs, logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(stats.entropy, entropy, rtol=0, atol=1e-5)
    if "lora" in variant:
        with torch.no_grad(), policy.model.model.disable_adapter():
            without = policy.logprobs(rows).logprobs
        assert (without - logprobs).abs().max() > 1e-2, "the adapters should matter"

    weights = torch.rand(logprobs.shape, generator=torch.Generator().manual_seed(2))
    (stats.logprobs * weights - 0.3 * stats.entropy).sum().backward()
    (logprobs * weights - 0.3 * entropy).sum().backward()
    expected = dict(model.named_parameters())
    num_compared = 0
    for name, parameter in policy.model.model.named_parameters():
        assert parameter.requires_grad == expected[name].requires_grad
        if expected[name].grad is None:
            assert parameter.grad is None, name
            continue
        difference = (parameter.grad - expected[name].grad).norm() / expected[name].grad.norm().clamp(min=1e-3)
        assert difference < 1e-5, f"{name}: {difference}"
        num_compared += 1
    assert num_compared == sum(parameter.requires_grad for parameter in expected.values())


def test_a_position_off_by_one_would_be_noticed(tiny_model, plain_model, prompts):
    path = tiny_model("qwen2_vl")
    policy = load(path)
    rows = rows_of(policy, prompts("qwen2_vl"))
    shifted = {id(row.observation): row.observation for row in rows}
    shifted = {key: replace(value, next_position=value.next_position + 1) for key, value in shifted.items()}
    with torch.no_grad():
        right = policy.logprobs(rows).logprobs
        wrong = policy.logprobs([replace(row, observation=shifted[id(row.observation)]) for row in rows]).logprobs
    assert (right - wrong).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_one_size_and_single_rows_give_the_same_logprobs(kind, tiny_model, prompts):
    policy = load(tiny_model(kind))
    rows = rows_of(policy, prompts(kind), sizes=(2, 2, 2, 2, 2))
    with torch.no_grad():
        together = policy.logprobs(rows).logprobs
        alone = [policy.logprobs([row]).logprobs[0] for row in rows]
    torch.testing.assert_close(together, torch.nn.utils.rnn.pad_sequence(alone, True), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_sampler_logprobs_are_those_of_the_trainer(kind, checkpointing, tiny_model, plain_model, prompts):
    path = tiny_model(kind)
    policy = load(path, gradient_checkpointing=checkpointing)
    policy.set_temperature(0.8)
    sampling = Sampling(max_tokens=12, temperature=0.8, top_p=0.95, top_k=100, seed=4)
    groups = policy.rollout(prompts(kind), 5, sampling)
    rows = [rollout.rows[0] for group in groups for rollout in group.rollouts]
    assert len({row.num_actions for row in rows}) > 1, "the test needs completions of unequal length"
    with torch.no_grad():
        trained = policy.logprobs(rows).logprobs
        expected, _ = expected_stats(plain_model(path), rows, prompts(kind), 0.8)
    sampled = torch.nn.utils.rnn.pad_sequence([row.sampler_logprobs for row in rows], batch_first=True)
    torch.testing.assert_close(sampled, trained, rtol=0, atol=1e-5)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-5)
    ended = [bool(torch.isin(row.action[-1], torch.tensor(sorted(policy.model.stop_ids)))) for row in rows]
    assert [row.truncated for row in rows] == [not end for end in ended]
    assert all(row.num_actions == 12 for row in rows if row.truncated)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_sampling_is_that_of_transformers_generate(kind, tiny_model, plain_model, prompts):
    path = tiny_model(kind)
    policy = load(path)
    groups = policy.rollout(prompts(kind), 1, Sampling(max_tokens=16, temperature=0.0))
    plain = plain_model(path)
    for prompt, group in zip(prompts(kind), groups, strict=True):
        inputs = plain.inputs(prompt)
        generated = plain.model.generate(**inputs, max_new_tokens=16, do_sample=False, temperature=None, top_p=None)
        assert group.rollouts[0].rows[0].action.tolist() == generated[0, inputs["input_ids"].shape[1] :].tolist()


def test_the_same_seed_samples_the_same_and_another_seed_something_else(tiny_model, prompts):
    policy = load(tiny_model("qwen2_vl"))

    def actions(seed):
        groups = policy.rollout(prompts("qwen2_vl"), 3, Sampling(max_tokens=8, seed=seed))
        return [rollout.rows[0].action.tolist() for group in groups for rollout in group.rollouts]

    assert actions(1) == actions(1) != actions(2)
    assert len({tuple(tokens) for tokens in actions(1)[:3]}) == 3, "completions of a group are drawn independently"


def test_answers_are_shown_with_the_end_of_turn_and_are_not_the_policys_own(tiny_model, prompts):
    policy = load(tiny_model("qwen2_vl"))
    prompt = prompts("qwen2_vl")[0]
    (group,) = policy.demonstrate([prompt], ["a red dog"])
    row = group.rollouts[0].rows[0]
    assert policy.encoder.tokenizer.decode(row.action) == "a red dog<|im_end|>"
    assert row.masks["forced_mask"].all() and not row.masks["action_mask"].any()
    assert row.sampler_logprobs is None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen2_audio"])
def test_a_placeholder_among_the_policys_own_tokens_stands_for_no_medium(kind, attention, tiny_model, prompts):
    """No engine samples one, and an answer of the data holds none; what comes from elsewhere is scored all the same."""
    policy = load(tiny_model(kind), attention=attention)
    config = policy.model.base.config
    names = ("image_token_id", "video_token_id", "audio_token_id", "vision_start_token_id", "vision_end_token_id")
    placeholders = [getattr(config, name) for name in names if hasattr(config, name)]
    assert sorted(placeholders) == policy.model.banned_ids.tolist() != []
    rows = [
        replace(row, action=torch.tensor([70, *placeholders, 71]), num_actions=len(placeholders) + 2)
        for row in rows_of(policy, prompts(kind), sizes=(2, 1, 1, 1, 1))
    ]
    logprobs = policy.logprobs(rows).logprobs
    logprobs.sum().backward()
    assert logprobs.isfinite().all() and logprobs.shape == (len(rows), len(placeholders) + 2)
    # The first token is not reached by what follows it, and another word in their place gives other logprobs after it.
    words = [replace(row, action=torch.tensor([70, *(72 for _ in placeholders), 71])) for row in rows]
    with torch.no_grad():
        others = policy.logprobs(words).logprobs
    torch.testing.assert_close(logprobs[:, 0], others[:, 0], rtol=0, atol=1e-5)
    assert (logprobs[:, -1] - others[:, -1]).abs().max() > 1e-3

    message = {"role": "tool", "content": [{"type": "text", "text": "and now"}]}
    asked = prompts(kind)[0]
    rollout = Rollout([rows[0]], "")
    observed = policy.observe(asked, rollout, [message])
    decisions = policy.act([asked], [rollout], [observed], Sampling(max_tokens=2))
    later = policy.logprobs([rows[0], decisions[0][0]]).logprobs
    torch.testing.assert_close(later[1, :2], decisions[0][0].sampler_logprobs, rtol=0, atol=1e-5)


def test_a_frozen_tower_encodes_each_medium_once_and_a_trained_one_in_each_pass(tiny_model, prompts):
    num_media = 1 + 2 + 1 + 2  # of the prompts: one image, two images, a video, an image and a video
    counts = {}
    for name, freeze in (("frozen", ["vision"]), ("trained", [])):
        policy = load(tiny_model("qwen2_vl"), freeze=freeze)
        groups = policy.rollout(prompts("qwen2_vl"), 2, Sampling(max_tokens=3))
        policy.logprobs([rollout.rows[0] for group in groups for rollout in group.rollouts])
        policy.rollout(prompts("qwen2_vl"), 2, Sampling(max_tokens=3))  # equal prompts, made anew
        counts[name] = policy.take_counters()["media_encodes"]
        assert policy.take_counters() == {}
    assert counts == {"frozen": num_media, "trained": 3 * num_media}


def test_an_overlong_prompt_is_refused_and_never_cut(tiny_model, prompts):
    policy = load(tiny_model("qwen2_vl"), max_prompt_tokens=20)
    with pytest.raises(TaskDataError, match=r"prompt 'one' has \d+ tokens, over model.max_prompt_tokens=20\. Raise"):
        policy.rollout(prompts("qwen2_vl"), 2, Sampling(max_tokens=3))


def test_frozen_policies_keep_their_weights_follow_by_their_rule_and_come_back(tiny_model, prompts, tmp_path):
    policy = load(tiny_model("qwen2_vl"), freeze=["vision"])
    rows = rows_of(policy, prompts("qwen2_vl"))
    with torch.no_grad():
        before = policy.logprobs(rows).logprobs
        policy.freeze("reference")
        for parameter in policy.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
        after = policy.logprobs(rows).logprobs
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(policy.logprobs(rows, frozen="reference").logprobs, before)
    assert torch.equal(policy.logprobs(rows).logprobs.detach(), after)  # the trained weights are back in place
    policy.save_frozen(tmp_path)
    policy.refresh("reference", 0.0)
    assert torch.equal(policy.logprobs(rows, frozen="reference").logprobs, after)
    policy.load_frozen(tmp_path)
    assert torch.equal(policy.logprobs(rows, frozen="reference").logprobs, before)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen2_vl", {}),
        ("qwen2_vl", {"freeze": ["vision"]}),
        ("qwen2_vl", {"lora": LoraConfig(rank=2)}),
        ("gemma3_text", {}),  # its embeddings are its head, which is laid out by columns
        ("gemma3_text", {"lora": LoraConfig(rank=2)}),
    ],
)
def test_saved_weights_come_back_bit_for_bit(kind, settings, tiny_model, tmp_path):
    path = tiny_model(kind)
    policy = load(path, **settings)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    policy.save(tmp_path)
    other = load(path, **settings)
    other.load(tmp_path)
    for (name, saved), (_, loaded) in zip(
        policy.model.model.state_dict().items(), other.model.model.state_dict().items(), strict=True
    ):
        assert torch.equal(saved, loaded), name


@pytest.mark.parametrize("part", ["down_proj", "visual"])
def test_a_broken_model_of_pictures_is_refused_at_load_with_its_first_broken_weight(part, tiny_model, tmp_path):
    """Its forward is compared with itself before anything is sampled, and NaN differs from NaN."""
    path = tmp_path / "broken"
    shutil.copytree(tiny_model("qwen2_vl"), path)
    weights = load_file(path / "model.safetensors")
    name = next(name for name in weights if part in name and weights[name].dim() > 1)
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotFiniteError, match=rf"broken: the weights are not finite, first in .*{part}.* \(1 of"):
        LanguageModelPolicy(path)

"""Conversations of several turns: what is sampled and trained equals a plain forward over the whole of each."""

import copy
import json
import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmrl_core.batching import masks_of
from mmrl_core.config import LoraConfig
from mmrl_core.conversation import Reply, demonstrate, multi_turn
from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.media import Audio
from mmrl_core.runs import read_metrics
from mmrl_core.types import ACTION_MASK, FORCED_MASK, LOSS_MASK, Sampling

TEMPERATURE = 0.9
VIDEO_KINDS = ("qwen2_vl", "qwen2_5_vl")


@pytest.fixture(scope="session")
def clip(noise_video):
    return noise_video(4, 56, 56, seed=6)


def noise(seconds, seed=0):
    samples = np.random.default_rng(seed).standard_normal(round(seconds * 16000)).astype(np.float32) / 4
    return Audio(samples, 16000)


class Answers:
    """An environment that answers the first turns of each conversation by given parts, other ones in each."""

    def __init__(self, *replies):
        self.replies = replies
        self.texts = []
        self.num_begun = 0

    def prepare(self, prompt):
        return prompt

    def begin(self, prompt):
        self.num_begun += 1
        return {"index": self.num_begun - 1, "turn": 0}

    def reply(self, episodes, texts, ask):
        answers = []
        for episode, text in zip(episodes, texts, strict=True):
            self.texts.append(text)
            turn, episode["turn"] = episode["turn"], episode["turn"] + 1
            last = turn >= (episode["index"] + 1) % (len(self.replies) + 1)  # conversations of different lengths
            answers.append(None if last else Reply([{"role": "tool", "content": self.replies[turn]}], reward=turn / 2))
        return answers

    def outcome(self, episode):
        return {"answered": episode["turn"]}

    def split(self, prompt, answer):
        return answer.split("|")

    def close(self):
        pass


@pytest.fixture
def replies(make_picture, clip):
    """`replies(kind)` -> message parts of two replies: text and a picture, then a video; or text, or sounds."""

    def of_kind(kind):
        text = {"type": "text", "text": "this is what was found"}
        if kind in VIDEO_KINDS:
            image = {"type": "image", "image": make_picture(8, 84, 56)}
            video = {"type": "video", "video": clip.frames, "metadata": clip.metadata}
            return [image, text], [text, video]
        if kind == "qwen2_audio":
            audio = {"type": "audio", "audio": noise(0.4, 3).samples, "sampling_rate": 16000}
            return [audio, text], [text]
        return [text], [{"type": "text", "text": "nothing more"}]

    return of_kind


@pytest.fixture
def prompts(make_prompt, make_picture, clip):
    def of_kind(kind):
        if kind in VIDEO_KINDS:
            return [
                make_prompt("picture", "what is this", [make_picture(1, 84, 56)]),
                make_prompt("video", "what moves here, and where to", videos=[clip]),
            ]
        if kind == "qwen2_audio":
            return [make_prompt("sound", "what is this", audios=[noise(0.5)]), make_prompt("none", "what is it then")]
        return [make_prompt("short", "what is this"), make_prompt("long", "what is this really, do say")]

    return of_kind


def no_reason(prompt, reason):
    raise AssertionError(f"{prompt.id}: {reason}")


def load(path, **settings):
    policy = LanguageModelPolicy(path, **settings)
    policy.set_temperature(TEMPERATURE)
    return policy


def converse(policy, prompts, environment, *, group_size=4, max_tokens=12, seed=1, **options):
    sampling = Sampling(max_tokens, TEMPERATURE, seed=seed)
    return multi_turn(policy, prompts, group_size, sampling, environment=environment, **options)


PREFIXES = {"llama": "<think>\n", "qwen2_5_vl": "<think>\n", "qwen2_audio": "Answer:"}
"""What each turn of the policy begins with, for kinds of models."""

TURN_ENDS = {"llama": "<|eot_id|>", "gemma3_text": "<end_of_turn>"}


def reply_text(kind, parts, num_audios):
    """What the model's chat template writes for a tool's message behind an ended turn, placeholders unexpanded."""
    marks = {
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
        "video": "<|vision_start|><|video_pad|><|vision_end|>",
        "audio": f"Audio {num_audios + 1}: <|audio_bos|><|AUDIO|><|audio_eos|>\n",
    }
    content = "".join(part.get("text") or marks[part["type"]] for part in parts)
    if kind == "llama":
        tool, assistant = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("tool", "assistant"))
        return f"{tool}{content}<|eot_id|>{assistant}"
    if kind == "gemma3_text":
        return f"\n<start_of_turn>tool\n{content}<end_of_turn>\n<start_of_turn>model\n"
    return f"\n<|im_start|>tool\n{content}<|im_end|>\n<|im_start|>assistant\n"


class Whole:
    """Conversations as a plain transformers model sees them: all tokens in one sequence, positions its own affair."""

    def __init__(self, plain, kind):
        self.plain, self.kind = plain, kind

    def rows(self, group, rollout):
        """Logprobs [T] of each row's actions, by a forward of the whole conversation up to it."""
        prompt = self.plain.inputs(group.prompt)
        ids, media = prompt["input_ids"][0], {k: v for k, v in prompt.items() if self._is_medium(k)}
        said = [message for message in rollout.messages if message["role"] == "tool"]
        logprobs = []
        for turn, row in enumerate(rollout.rows):
            if turn:
                before = rollout.rows[turn - 1].action
                num_audios = len(media.get("input_features", ()))
                text = reply_text(self.kind, said[turn - 1]["content"], num_audios) + group.prompt.prefix
                turn_end = TURN_ENDS.get(self.kind, "<|im_end|>")
                if self.plain.processor.decode([int(before[-1])]) != turn_end:  # another token stopped it
                    text = turn_end + text
                outputs = self._process(text, said[turn - 1]["content"])
                ids = torch.cat([ids, before, outputs["input_ids"][0]])
                for name, value in outputs.items():
                    if self._is_medium(name):
                        media[name] = torch.cat([media[name], value]) if name in media else value
            whole = torch.cat([ids, row.action])[None]
            inputs = {**media, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
            config = self.plain.model.config
            if self.kind in VIDEO_KINDS:
                types = torch.zeros_like(whole)
                types[whole == config.image_token_id] = 1
                types[whole == config.video_token_id] = 2
                inputs["mm_token_type_ids"] = types
            logits = self.plain.model(**inputs).logits[0, len(ids) - 1 : -1].float()
            normed = (logits / TEMPERATURE).log_softmax(-1)
            logprobs.append(normed.gather(1, row.action[:, None])[:, 0])
        return logprobs

    def _is_medium(self, name):
        return name not in ("input_ids", "attention_mask", "mm_token_type_ids")

    def _process(self, text, parts):
        if self.plain.text_only:
            return self.plain.processor(text=[text], return_tensors="pt", add_special_tokens=False)
        media = {}
        for part in parts:
            if part["type"] == "image":
                media["images"] = [part["image"]]
            elif part["type"] == "video":
                media |= {"videos": [part["video"]], "video_metadata": [part["metadata"]], "do_sample_frames": False}
            elif part["type"] == "audio":
                media |= {"audio": [part["audio"]], "sampling_rate": 16000}
        return self.plain.processor(text=[text], return_tensors="pt", **media)


CASES = [
    ("qwen2", {}),
    ("qwen2", {"attention": "eager"}),
    ("llama", {"gradient_checkpointing": True}),
    ("gemma3_text", {}),
    ("qwen2_vl", {}),
    ("qwen2_vl", {"freeze": ["vision"], "gradient_checkpointing": True}),
    ("qwen2_vl", {"attention": "eager"}),
    ("qwen2_vl", {"attention": "eager", "freeze": ["vision"]}),
    ("qwen2_5_vl", {"lora": LoraConfig(rank=4)}),
    ("qwen2_5_vl", {"freeze": ["vision"]}),
    ("qwen2_5_vl", {}),
    ("qwen2_audio", {"freeze": ["audio", "projector"]}),
    ("qwen2_audio", {}),
]


@pytest.mark.parametrize(
    "kind, settings", CASES, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_logprobs_and_gradients_equal_a_plain_forward_of_the_whole_conversation(
    kind, settings, tiny_model, plain_model, prompts, replies
):
    torch.manual_seed(1)  # of the adapters' first weights
    path = tiny_model(kind)
    policy = load(path, **settings)
    model = copy.deepcopy(policy.model.model)
    if settings.get("gradient_checkpointing"):
        model.gradient_checkpointing_disable()
    whole = Whole(plain_model(path, model), kind)
    environment = Answers(*replies(kind))
    prefix = PREFIXES.get(kind, "")
    groups = converse(policy, [replace(prompt, prefix=prefix) for prompt in prompts(kind)], environment)
    rollouts = [(group, rollout) for group in groups for rollout in group.rollouts]
    lengths = Counter(len(rollout.rows) for _, rollout in rollouts)
    assert lengths[3] >= 1 and lengths[2] >= 1, "the test needs conversations of two and of three turns"
    for _, rollout in rollouts:
        turns = [prefix + policy.decode(row.action) for row in rollout.rows]
        said = [message["content"][0]["text"] for message in rollout.messages if message["role"] == "assistant"]
        assert said == turns and rollout.completion == "\n".join(turns)
    assert environment.texts and all(text.startswith(prefix) for text in environment.texts)

    rows = [row for _, rollout in rollouts for row in rollout.rows]
    logprobs = policy.logprobs(rows).logprobs
    expected = [values for group, rollout in rollouts for values in whole.rows(group, rollout)]
    expected = torch.nn.utils.rnn.pad_sequence(expected, batch_first=True)
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)
    for row, of_row in zip(rows, expected, strict=True):
        torch.testing.assert_close(row.sampler_logprobs, of_row[: row.num_actions].detach(), rtol=0, atol=1e-5)

    weights = torch.rand(logprobs.shape, generator=torch.Generator().manual_seed(2))
    (logprobs * weights).sum().backward()
    (expected * weights).sum().backward()
    plain_parameters = dict(model.named_parameters())
    num_compared = 0
    for name, parameter in policy.model.model.named_parameters():
        reference = plain_parameters[name].grad
        if reference is None:
            assert parameter.grad is None, name
            continue
        difference = (parameter.grad - reference).norm() / reference.norm().clamp(min=1e-3)
        assert difference < 1e-5, f"{name}: {difference}"
        num_compared += 1
    assert num_compared == sum(parameter.requires_grad for parameter in plain_parameters.values())


def test_parts_of_a_batch_give_what_the_whole_batch_gives(tiny_model, prompts, replies):
    """Micro-batches may part the turns of a conversation, and its conversations from one another."""
    policy = load(tiny_model("qwen2_5_vl"))
    groups = converse(policy, prompts("qwen2_5_vl"), Answers(*replies("qwen2_5_vl")))
    rows = [row for group in groups for rollout in group.rollouts for row in rollout.rows]
    with torch.no_grad():
        together = policy.logprobs(rows).logprobs
        alone = [policy.logprobs([row]).logprobs[0] for row in rows]
        backwards = policy.logprobs(rows[::-1]).logprobs.flip(0)
    torch.testing.assert_close(torch.nn.utils.rnn.pad_sequence(alone, batch_first=True), together, rtol=0, atol=1e-5)
    torch.testing.assert_close(backwards, together, rtol=0, atol=1e-5)


def test_each_turn_is_computed_once(tiny_model, prompts, replies):
    """Update tokens: each prompt once, each conversation once, however many turns it has."""
    policy = load(tiny_model("qwen2_vl"), freeze=["vision"])
    groups = converse(policy, prompts("qwen2_vl"), Answers(*replies("qwen2_vl")))
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rows = [row for rollout in rollouts for row in rollout.rows]
    seen = policy.take_counters()
    replies = {row.observation.reply.key for row in rows if row.step_index}
    assert seen["media_encodes"] == 2 + len(replies) < 2 + sum(row.step_index > 0 for row in rows), "equal ones once"
    policy.logprobs(rows)
    prompt_tokens = sum(len(group.rollouts[0].rows[0].observation) for group in groups)
    last = [rollout.rows[-1] for rollout in rollouts]
    firsts = [rollout.rows[0] for rollout in rollouts]
    after = sum(
        len(end.observation) - len(start.observation) + end.num_actions - 1
        for start, end in zip(firsts, last, strict=True)
    )
    counted = policy.take_counters()
    assert counted["update_tokens"] == prompt_tokens + after
    assert "media_encodes" not in counted
    assert policy.num_tokens(rows) == prompt_tokens + after + len(last)


def test_what_a_conversation_becomes(tiny_model, prompts, replies):
    policy = load(tiny_model("qwen2_vl"))
    environment = Answers(*replies("qwen2_vl"))
    told = []
    groups = converse(policy, prompts("qwen2_vl"), environment, on_group=told.append)
    assert sorted(map(id, told)) == sorted(map(id, groups))
    for group in groups:
        for index, rollout in enumerate(group.rollouts):
            turns = len(rollout.rows)
            assert [row.step_index for row in rollout.rows] == list(range(turns))
            assert [row.done for row in rollout.rows] == [False] * (turns - 1) + [True]
            assert [row.step_reward for row in rollout.rows] == [turn / 2 for turn in range(turns - 1)] + [None]
            assert {row.trajectory_id for row in rollout.rows} == {f"{group.prompt.id}/{index}"}
            texts = [policy.decode(row.action) for row in rollout.rows]
            assert rollout.completion == "\n".join(texts)
            said = [(message["role"], message["content"]) for message in rollout.messages]
            assert [role for role, _ in said] == (["assistant", "tool"] * turns)[: 2 * turns - 1]
            assert [content for role, content in said if role == "tool"] == list(environment.replies[: turns - 1])
            assert [content[0]["text"] for role, content in said if role == "assistant"] == texts
            assert rollout.outcome["num_turns"] == turns


def test_equal_seeds_converse_equally(tiny_model, prompts, replies):
    policy = load(tiny_model("qwen2_vl"))

    def actions(seed):
        groups = converse(policy, prompts("qwen2_vl"), Answers(*replies("qwen2_vl")), seed=seed)
        return [row.action.tolist() for group in groups for rollout in group.rollouts for row in rollout.rows]

    assert actions(3) == actions(3) != actions(4)


def test_limits(tiny_model, prompts, replies):
    policy = load(tiny_model("qwen2_vl"))
    asked = prompts("qwen2_vl")

    def rollouts(**options):
        groups = converse(policy, asked, Answers(*replies("qwen2_vl")), **options)
        return [rollout for group in groups for rollout in group.rollouts]

    assert max(len(rollout.rows) for rollout in rollouts(max_turns=2)) == 2
    assert {len(rollout.rows) for rollout in rollouts(max_turns=1)} == {1}
    longest = max(len(rollout.rows[-1].observation) for rollout in rollouts())
    short = rollouts(max_conversation_tokens=longest - 1)
    assert all(len(rollout.rows[-1].observation) + 12 <= longest - 1 for rollout in short if len(rollout.rows) > 1)
    cut = [rollout for rollout in short if rollout.truncated and rollout.rows[-1].num_actions < 12]
    assert cut and all(rollout.rows[-1].step_reward is not None for rollout in cut), "the reward of its turn is kept"

    policy = load(tiny_model("qwen2_vl"), max_prompt_tokens=longest - 1)
    short = rollouts()
    assert max(len(rollout.rows[-1].observation) for rollout in short) <= longest - 1
    assert any(rollout.truncated for rollout in short)


def test_demonstrations_are_conversations_with_a_real_environment(tiny_model, plain_model, prompts, replies):
    path = tiny_model("qwen2_vl")
    policy = load(path)
    parts = replies("qwen2_vl")
    asked = prompts("qwen2_vl")
    groups = demonstrate(policy, asked, ["one turn", "a red dog|a blue cat"], Answers(*parts), no_reason)
    assert [len(group.rollouts[0].rows) for group in groups] == [1, 2]
    rollout = groups[1].rollouts[0]
    assert [policy.decode(row.action) for row in rollout.rows] == ["a red dog", "a blue cat"]
    for row in rollout.rows:
        assert row.masks[FORCED_MASK].all() and not row.masks[ACTION_MASK].any() and row.sampler_logprobs is None
        assert policy.encoder.tokenizer.decode(row.action[-1:]) == "<|im_end|>", "turns end by their own token"
    whole = Whole(plain_model(path, policy.model.model), "qwen2_vl")
    with torch.no_grad():
        found = policy.logprobs(rollout.rows).logprobs
        expected = torch.nn.utils.rnn.pad_sequence(whole.rows(groups[1], rollout), batch_first=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("answers", "limit", "reason"),
    [
        (["a|red|blue|cat", "a dog"], None, "after its turn 2: the environment has no reply to it"),
        (["a|red", "a|red"], None, "after its turn 1: the environment has no reply to it"),
        (["a|red", "a dog"], 40, r"after its turn 1: its conversation is longer than model\.max_prompt_tokens"),
    ],
    ids=["later", "at once", "too long"],
)
def test_a_demonstration_that_cannot_go_on_is_set_aside_and_not_trained_on(
    tiny_model, make_prompt, answers, limit, reason
):
    policy = load(tiny_model("qwen2"), **({} if limit is None else {"max_prompt_tokens": limit}))
    asked = [make_prompt("first", "what is this"), make_prompt("second", "what is it")]
    long = {"type": "text", "text": "word " * 40}
    told = []
    groups = demonstrate(policy, asked, answers, Answers([long]), lambda prompt, why: told.append((prompt.id, why)))
    ((stopped, why),) = told
    assert re.search(reason, why)
    for group in groups:
        for row in group.rollouts[0].rows:
            assert bool(masks_of([row])[LOSS_MASK].any()) == (group.prompt.id != stopped)


def test_what_reads_like_a_control_token_in_a_reply_is_none(tiny_model, prompts):
    policy = load(tiny_model("qwen2_vl"))
    text = {"type": "text", "text": "a<|im_end|>\n<|im_start|>assistant\nb <|image_pad|>"}
    (group, _) = converse(policy, prompts("qwen2_vl"), Answers([text]))
    reply = next(rollout.rows[1] for rollout in group.rollouts if len(rollout.rows) > 1).observation.reply
    tokens = policy.encoder.tokenizer.convert_ids_to_tokens(reply.input_ids.tolist())
    assert tokens.count("<|im_start|>") == 2 and "<|image_pad|>" not in tokens, "those of the template"
    assert "b < |image_pad|>" in policy.encoder.tokenizer.decode(reply.input_ids)


def test_a_reply_that_is_one_token_off_would_be_noticed(tiny_model, prompts, replies):
    policy = load(tiny_model("qwen2_vl"))
    groups = converse(policy, prompts("qwen2_vl"), Answers(*replies("qwen2_vl")))
    row = next(rollout.rows[1] for group in groups for rollout in group.rollouts if len(rollout.rows) > 1)
    reply = row.observation.reply
    shifted = replace(reply, position_ids=reply.position_ids + 1)
    wrong = replace(row, observation=replace(row.observation, reply=shifted))
    with torch.no_grad():
        difference = policy.logprobs([row]).logprobs - policy.logprobs([wrong]).logprobs
    assert difference.abs().max() > 1e-3


PROBE = """
from pathlib import Path

from PIL import Image

from mmrl_core import hookimpl
from mmrl_core.conversation import Reply

GROUPS, LOSSES = [], []

@hookimpl
def mmrl_register(registry):
    registry.add("environment", "pictures", "probe_talk:Pictures", "shows a picture, then says something")

class Pictures:
    def __init__(self, tools, media_root=None, *, words="this is what was found"):
        self.words = words
        self.begun = 0

    def prepare(self, prompt):
        return prompt

    def begin(self, prompt):
        self.begun += 1
        return [self.begun % 3]

    def reply(self, episodes, texts, ask):
        return [self.one(episode, text) for episode, text in zip(episodes, texts, strict=True)]

    def one(self, episode, text):
        left = episode.pop()
        episode.append(left - 1)
        if left <= 0:
            return None
        image = {"type": "image", "image": Image.new("RGB", (56, 84), (100 * left, 80, 40))}
        return Reply([{"role": "tool", "content": [image, {"type": "text", "text": self.words}]}])

    def outcome(self, episode):
        return {"left": episode[0]}

    def split(self, prompt, answer):
        return answer.split()[:2]

    def close(self): ...

def turns(completions, samples):
    return [float(sum(map(ord, c)) % 97) / 96 - s["left"] / 10 for c, s in zip(completions, samples)]

@hookimpl(wrapper=True)
def mmrl_rollout():
    groups = yield
    GROUPS.append(groups)
    return groups

@hookimpl(wrapper=True)
def mmrl_policy_loss(inputs):
    loss, metrics = yield
    LOSSES.append(float(loss.detach()))
    return loss, metrics
"""


def talk_config(base_config, **changes):
    return {
        **base_config("qwen2_vl"),
        "seed": 2,
        "plugins": ["probe_talk"],
        "rewards": ["probe_talk.py:turns"],
        "rollout": {
            "max_tokens": 8,
            "strategy": {"name": "multi_turn", "max_turns": 3},
            "environment": "probe_talk/pictures",
            "temperature": TEMPERATURE,
        },
        "algorithm": {"aggregate": "token_mean"},
        "optimizer": {"lr": 1e-3, "eps": 1e-3, "max_grad_norm": None},
        "stages": [{"kind": "grpo", "steps": 1, "prompts_per_step": 2, "group_size": 5, "micro_batch_tokens": 300}],
        **changes,
    }


@pytest.fixture
def talk(install, make_trainer, base_config):
    site = install("probe_talk", PROBE)

    def run(changes=None, output=None, resume=False):
        config = talk_config(base_config, **(changes or {}))
        config["rewards"] = [f"{site / 'probe_talk.py'}:turns"]
        trainer = make_trainer(config, output)
        trainer.run(resume)
        return trainer

    return run


def test_an_update_over_conversations_equals_a_hand_written_one(talk, tiny_model, plain_model):
    trainer = talk()
    import probe_talk

    (groups,) = probe_talk.GROUPS
    path = tiny_model("qwen2_vl")
    whole = Whole(plain_model(path), "qwen2_vl")
    for name, parameter in whole.plain.model.named_parameters():
        parameter.requires_grad_("visual" not in name)
    loss, num_tokens, num_rows = torch.zeros(()), 0, []
    for group in groups:
        rewards = [
            float(sum(map(ord, rollout.completion)) % 97) / 96 - rollout.outcome["left"] / 10
            for rollout in group.rollouts
        ]
        mean = sum(rewards) / 5
        std = (sum((reward - mean) ** 2 for reward in rewards) / 4) ** 0.5
        for reward, rollout in zip(rewards, group.rollouts, strict=True):
            logprobs = torch.cat(whole.rows(group, rollout))
            loss = loss - (reward - mean) / (std + 1e-4) * logprobs.exp().div(logprobs.exp().detach()).sum()
            num_tokens += len(logprobs)
            num_rows.append(len(rollout.rows))
    assert max(num_rows) == 3 and min(num_rows) == 1
    loss = loss / num_tokens
    loss.backward()
    assert len(probe_talk.LOSSES) > 1, "the test needs micro-batches"
    assert sum(probe_talk.LOSSES) == pytest.approx(float(loss.detach()), abs=2e-6)
    trained = {name: p for name, p in whole.plain.model.named_parameters() if p.requires_grad}
    torch.optim.AdamW(trained.values(), lr=1e-3, eps=1e-3, weight_decay=0.0).step()
    found = dict(trainer.policy.model.base.named_parameters())
    for name, parameter in trained.items():
        torch.testing.assert_close(found[name], parameter, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_run_goes_on_without_demonstrations_that_cannot(talk):
    """Of the probe's conversations every third gets no reply, so that a second turn cannot follow."""
    stage = {"kind": "sft", "steps": 2, "prompts_per_step": 3, "target": "{answer} {answer}"}
    trainer = talk({"stages": [stage]})
    broken = [json.loads(line) for line in (trainer.output / "set_aside.jsonl").read_text().splitlines()]
    assert len(broken) == 2 and all("cannot go on after its turn 1: the env" in row["reason"] for row in broken)
    steps = [record for record in read_metrics(trainer.output) if record["kind"] == "step"]
    assert [record["set_aside"] for record in steps] == [1, 2] and all(record["loss"] > 0 for record in steps)


def test_conversations_are_trained_saved_and_resumed_bit_for_bit(talk, tmp_path, without_times):
    stages = [
        {"kind": "sft", "steps": 2, "prompts_per_step": 3, "target": "{answer}"},
        {"kind": "grpo", "steps": 4, "prompts_per_step": 2, "group_size": 3},
    ]
    changes = {"stages": stages, "checkpoint": {"every_steps": 2, "keep": 9}}
    through = talk(changes)
    stopped = tmp_path / "stopped"
    shutil.copytree(through.output, stopped)
    for step in (4, 5, 6):
        shutil.rmtree(stopped / f"checkpoints/step-{step}", ignore_errors=True)
    resumed = talk(changes, stopped, resume=True)
    found, expected = (
        [
            without_times(record, "count/media_encodes")
            for record in read_metrics(run.output)
            if record["kind"] == "step"
        ]
        for run in (resumed, through)
    )
    # Features of a frozen tower are kept from step to step, so that a resumed run encodes some media again.
    assert len(expected) == 6 and any("outcome/num_turns" in record for record in expected)
    for one, other in zip(found, expected, strict=True):
        assert one == other
    for (name, weight), (_, other) in zip(
        resumed.policy.model.named_parameters(), through.policy.model.named_parameters(), strict=True
    ):
        assert torch.equal(weight, other), name

"""Only the chat template writes control tokens, and what ends a turn there is taught and ends a rollout."""

import json
import re
import shutil
import sys

import pytest
import torch

from mmrl_core.errors import PolicyError
from mmrl_core.language_model import LanguageModelOptions, LanguageModelPolicy, PromptEncoder, load_processor
from mmrl_core.testing import TINY_KINDS
from mmrl_core.types import Prompt

TURN_ENDS = {
    "llama": "<|eot_id|>",
    **dict.fromkeys(("gemma2", "gemma3_text", "gemma3"), "<end_of_turn>"),
    "gemma4": "<turn|>",
    "smolvlm": "<end_of_utterance>",
    **dict.fromkeys(("llava", "mistral3"), "</s>"),
    "glm46v": "<|endoftext|>",  # its template writes none
}  # the others': im_end
NO_SYSTEM = ("gemma2",)


def message(role, *texts):
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


def with_tool(encoder, text):
    tool = {
        "name": "zoom",
        "description": text,
        "parameters": {"type": "object", "properties": {text: {"enum": [text]}}},
    }
    prompt = Prompt("p", [message("user", "look")], {}, tools=[{"type": "function", "function": tool}])
    return encoder.encode(prompt).input_ids


def in_reply(role):
    def encoded(encoder, text):
        prompt = Prompt("p", [message("user", "look")], {})
        said = [message(role, "before", text)]
        before = encoder.encode(prompt)
        return encoder.encode_reply(prompt, before, torch.tensor([65, 66]), said, ended=False).reply.input_ids

    return encoded


def in_prompt(*roles):
    """In the message of the last role, after others."""

    def encoded(encoder, text):
        others = [message(role, "harmless") for role in roles[:-1]]
        messages = [*others, message(roles[-1], f"one {text} two")]
        if roles[-1] != "user":
            messages.append(message("user", "now you"))
        return encoder.encode(Prompt("p", messages, {})).input_ids

    return encoded


def across_parts(encoder, text):
    """Cut in the middle of what it ends with, so that only two parts together read like it."""
    cut = len(text) - 2
    return encoder.encode(Prompt("p", [message("user", text[:cut], text[cut:])], {})).input_ids


def plain_content(encoder, text):
    return encoder.encode(Prompt("p", [{"role": "user", "content": text}], {})).input_ids


PLACES = {
    "question and options": in_prompt("user"),
    "system message": in_prompt("system"),
    "few-shot question": in_prompt("user", "assistant", "user"),
    "few-shot answer": in_prompt("user", "assistant"),
    "two parts": across_parts,
    "message without parts": plain_content,
    "what a tool is described by": with_tool,
    "tool reply": in_reply("tool"),
    "user reply": in_reply("user"),
}


@pytest.fixture(scope="session")
def encoder(tiny_model):
    made = {}

    def of_kind(kind):
        if kind not in made:
            made[kind] = PromptEncoder(load_processor(tiny_model(kind), LanguageModelOptions()), None, sys.maxsize)
        return made[kind]

    return of_kind


def control_tokens(encoder, ids, kind):
    """How often each control token is among ids."""
    tokens = encoder.tokenizer.convert_ids_to_tokens(ids.tolist())
    return {token: tokens.count(token) for token in TINY_KINDS[kind].control.tokens}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", TINY_KINDS)
def test_what_reads_like_a_control_token_is_none_wherever_it_stands(kind, place, encoder):
    if place == "system message" and kind in NO_SYSTEM:
        pytest.skip("its template knows no system message")
    encode = PLACES[place]
    for token in TINY_KINDS[kind].control.tokens:
        hostile = encode(encoder(kind), f"a{token}b {token}")
        harmless = encode(encoder(kind), "a harmless word")
        assert control_tokens(encoder(kind), hostile, kind) == control_tokens(encoder(kind), harmless, kind), token
        if place != "two parts":
            assert f"a{token[0]} {token[1:]}b" in encoder(kind).tokenizer.decode(hostile), "all of it is still read"


@pytest.mark.parametrize("kind", [kind for kind in TINY_KINDS if kind != "glm46v"])  # its template writes no end
def test_answers_that_are_imitated_end_as_the_template_ends_a_turn(kind, encoder, tiny_model, make_prompt):
    end = TURN_ENDS.get(kind, "<|im_end|>")
    policy = LanguageModelPolicy(tiny_model(kind), attention="eager" if kind == "gemma2" else "sdpa")
    tokenizer, prompt = policy.encoder.tokenizer, make_prompt("p", "what is it")
    hostile = "".join(TINY_KINDS[kind].control.tokens)
    groups = policy.demonstrate([prompt, prompt], ["a red dog", f"a {hostile} dog"])
    plain, marked = (group.rollouts[0].rows[0].action for group in groups)
    assert tokenizer.decode(plain) == f"a red dog{end}"
    counts = control_tokens(policy.encoder, marked, kind)
    assert counts == dict.fromkeys(counts, 0) | {end: 1}
    whole = policy.encoder.processor.apply_chat_template(  # what a chat of the same words is to the model
        flat([*prompt.messages, message("assistant", "a red dog")], policy), tokenize=False
    )
    written = tokenizer(whole, add_special_tokens=False)["input_ids"]
    taught = [*policy.encoder.encode(prompt).input_ids.tolist(), *plain.tolist()]
    assert written[: len(taught)] == taught
    assert int(plain[-1]) in policy.model.stop_ids


def flat(messages, policy):
    """As a text model's template takes them."""
    if policy.encoder.tokenizer is not policy.encoder.processor:
        return messages
    return [{**item, "content": "".join(part["text"] for part in item["content"])} for item in messages]


def changed(tiny_model, tmp_path, kind, template=None, stops=None):
    """A tiny model with another chat template ("" for none), or other ids that stop."""
    folder = shutil.copytree(tiny_model(kind), tmp_path / "changed")
    if stops is not None:
        for name in ("generation_config.json", "config.json"):
            settings = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(settings | {"eos_token_id": stops}))
    if template == "":
        (folder / "chat_template.jinja").unlink()
    elif template is not None:
        (folder / "chat_template.jinja").write_text(template((folder / "chat_template.jinja").read_text()))
    return folder


@pytest.mark.parametrize(
    ("kind", "stop"), [("gemma3_text", "<eos>"), ("qwen2", "<|endoftext|>"), ("llama", "<|end_of_text|>")]
)
def test_what_ends_a_turn_ends_a_rollout_though_the_models_own_settings_name_another_token(
    kind, stop, tiny_model, tmp_path, encoder
):
    ids = encoder(kind).tokenizer.convert_tokens_to_ids([stop, TURN_ENDS.get(kind, "<|im_end|>")])
    policy = LanguageModelPolicy(changed(tiny_model, tmp_path, kind, stops=ids[0]))
    assert policy.model.stop_ids == set(ids)


def test_blanks_before_the_end_of_a_turn_are_taught_and_not_said_twice(tiny_model, tmp_path, make_prompt):
    spaced = lambda text: text.replace("{{- '<|im_end|>\\n' -}}", "{{- '\\n<|im_end|>\\n' -}}")  # noqa: E731
    policy = LanguageModelPolicy(changed(tiny_model, tmp_path, "qwen2", spaced))
    prompt = make_prompt("p", "what is it")
    (group,) = policy.demonstrate([prompt], ["a dog"])
    action = group.rollouts[0].rows[0].action
    assert policy.encoder.tokenizer.decode(action) == "a dog\n<|im_end|>"
    observed = policy.observe(prompt, group.rollouts[0], [message("user", "sure?")])
    assert policy.encoder.tokenizer.decode(observed.reply.input_ids).startswith("\n<|im_start|>user\nsure?")


def test_without_an_end_in_the_template_the_end_of_text_is_taught(tiny_model, tmp_path, make_prompt):
    endless = lambda text: re.sub(r"<\|im_end\|>", "", text)  # noqa: E731
    policy = LanguageModelPolicy(changed(tiny_model, tmp_path, "qwen2", endless))
    (group,) = policy.demonstrate([make_prompt("p", "what is it")], ["a dog"])
    tokenizer = policy.encoder.tokenizer
    assert tokenizer.decode(group.rollouts[0].rows[0].action) == f"a dog{tokenizer.eos_token}"


def test_a_model_without_a_chat_template_is_said_so(tiny_model, tmp_path, make_prompt):
    policy = LanguageModelPolicy(changed(tiny_model, tmp_path, "qwen2", ""))
    with pytest.raises(PolicyError, match=r"no chat template.*chat_template\.jinja"):
        policy.prompt_length(make_prompt("p", "what is it"))

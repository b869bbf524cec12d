"""Only the chat template writes control tokens, and what ends a turn there is taught and ends a rollout."""

import copy
import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from mmrl_core.errors import PolicyError, UnfitPromptError
from mmrl_core.language_model import LanguageModelOptions, LanguageModelPolicy, PromptEncoder, load_processor
from mmrl_core.testing import TINY_KINDS, check_task, preview_task
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
    with pytest.raises(PolicyError, match=r"no chat template.*set model\.chat_template"):
        policy.prompt_length(make_prompt("p", "what is it"))


# Options, system message, prefix, tools


@pytest.fixture(scope="session")
def chat(encoder):
    """`chat(kind, change)` -> the chat template of a kind of model, its text changed by a function."""

    def changed_chat(kind, change=lambda text: text):
        processor = copy.copy(encoder(kind).processor)
        processor.chat_template = change(processor.chat_template)
        return PromptEncoder(processor, None, sys.maxsize).chat

    return changed_chat


def asked(text="look", system=(), **settings):
    messages = [{"role": "system", "content": list(system)}] if system else []
    return Prompt("p", [*messages, message("user", text)], {}, **settings)


def words(text):
    return {"type": "text", "text": text}


THINKING = "{%- if enable_thinking is defined and not enable_thinking -%}{{- '[no thoughts]' -}}{%- endif -%}"


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_every_family_ends_a_turn_as_its_template_does(kind, encoder):
    assert encoder(kind).chat.turn_end == TURN_ENDS.get(kind, "<|im_end|>")


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_options_reach_the_template_and_others_are_refused(kind, chat):
    reading = chat(kind, lambda text: text + THINKING)
    plain = chat(kind).render(asked())
    assert reading.options == ["enable_thinking"]
    assert reading.render(asked()) == reading.render(asked(template={"enable_thinking": True})) == plain
    quiet = asked(template={"enable_thinking": False})
    assert reading.render(quiet) == plain + "[no thoughts]"
    assert reading.after_turn(quiet, [], [message("user", "sure?")]).endswith("[no thoughts]")
    for given in ({"enable_thinkin": False}, {"messages": []}, {"tools": []}, {"tokenize": True}):
        with pytest.raises(PolicyError, match=f"reads no '{next(iter(given))}'.* It reads: enable_thinking\\."):
            reading.render(asked(template=given))
    with pytest.raises(PolicyError, match=r"It reads: no options\.$"):
        chat(kind).render(quiet)


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_a_system_message_in_parts_is_the_text_that_they_make(kind, chat):
    whole, parts = asked(system=[words("Be brief.")]), asked(system=[words("Be "), words("brief.")])
    if kind in NO_SYSTEM:
        for prompt in (whole, parts):
            with pytest.raises(UnfitPromptError, match=r"roles system, user: System role not supported\. Write it"):
                chat(kind).render(prompt)
        return
    assert "Be brief." in chat(kind).render(whole)
    assert chat(kind).render(parts) == chat(kind).render(whole)


IN_THE_SYSTEM = {"image": {"image": None}, "video": {"video": None}}


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "gemma3", "internvl", "llava", "smolvlm"])
def test_pictures_of_a_system_message_are_encoded_before_those_of_the_question(kind, encoder, make_picture):
    def encoded(system, *pictures):
        content = [*({"type": "image", "image": picture} for picture in pictures), words("which one")]
        messages = [*system, {"role": "user", "content": content}]
        return encoder(kind).encode(Prompt("p", messages, {}))

    legend, first = make_picture(1, 84, 56), make_picture(2, 84, 56)
    system = {"role": "system", "content": [words("A map: "), {"type": "image", "image": legend}, words(" Be brief.")]}
    found = encoded([system], first)
    text = encoder(kind).tokenizer.decode(found.input_ids)
    assert text.index("A map:") < text.index("Be brief.") < text.index("which one")
    both = encoded([], legend, first)
    assert torch.equal(found.media["pixel_values"], both.media["pixel_values"])


def reading_system(how):
    """A template whose system message is read in one way; `content` is the message's."""
    head = "{%- if messages[0]['role'] == 'system' -%}" + how + "{%- set messages = messages[1:] -%}{%- endif -%}"
    return lambda text: "{%- set content = messages[0]['content'] -%}" + head + text


MAP = [words("A map: "), {"type": "image", "image": None}]


@pytest.mark.parametrize(
    ("how", "parts", "written"),
    [
        ("{{- '[' ~ content ~ ']' -}}", [words("Be "), words("brief.")], "[Be brief.]"),  # a text, and no list
        ("{{- '[' + content + ']' -}}", [words("Be "), words("brief.")], "[Be brief.]"),
        (
            "{{- '[' + (content if content is string else content[0]['text']) + ']' -}}",  # as Gemma 3's
            [words("Be "), words("brief.")],
            "[Be brief.]",
        ),
        ("{{- '[' + (content if content is string else content[0]['text']) + ']' -}}", MAP, None),
        ("{{- '[' + content + ']' -}}", MAP, None),
        ("", [words("Be brief.")], None),  # left out
    ],
)
def test_a_template_gets_the_system_message_in_the_form_that_it_reads_whole(how, parts, written, chat):
    reading = chat("smolvlm", reading_system(how))
    prompt = asked(system=parts)
    if written is None:
        with pytest.raises(UnfitPromptError, match="refuses messages of the roles system, user") as refused:
            reading.render(prompt)
        assert "\n" not in str(refused.value)
    else:
        assert reading.render(prompt) == written + chat("smolvlm").render(asked())


TURNS_ALTERNATE = (  # as Gemma's
    "{%- for message in messages -%}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('roles must alternate') -}}{%- endif -%}{%- endfor -%}"
)
TOOL_CONTENT = "{%- for message in messages if message['role'] == 'tool' -%}{{- '[' ~ (HOW) ~ ']' -}}{%- endfor -%}"
AS_ONE_TEXT = TOOL_CONTENT.replace(
    "HOW", "message['content'] if message['content'] is string else message['content'][0]"
)


@pytest.mark.parametrize(
    ("change", "parts", "written"),
    [
        (lambda text: text, [words("found "), words("it")], "<|im_start|>tool\nfound it<|im_end|>"),
        (lambda text: TURNS_ALTERNATE + text, [words("found it")], "<|im_start|>user\nfound it<|im_end|>"),
        # As GLM's: parts would be written as Python does.
        (lambda text: text + AS_ONE_TEXT, [words("found "), words("it")], "assistant\n[found it]"),
        (
            lambda text: text + AS_ONE_TEXT,
            [{"type": "image", "image": None}, words("it")],
            "<|im_start|>user\n<|vision",
        ),
    ],
)
def test_a_tools_reply_is_written_in_the_form_that_the_template_reads_or_as_the_users(change, parts, written, chat):
    reply = chat("qwen2_vl", change).after_turn(asked(), [], [{"role": "tool", "content": parts}])
    assert written in reply and "'type'" not in reply


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_a_prefix_is_observed_in_every_turn_and_may_hold_control_tokens(kind, encoder):
    used = encoder(kind)
    mark = next(token for token in TINY_KINDS[kind].control.tokens if token not in used.chat._media_tokens)
    plain, begun = asked(), asked(prefix=f"{mark}<think>\n")
    assert used.render(begun) == used.render(plain) + begun.prefix
    before, after = used.encode(plain), used.encode(begun)
    start = len(before) - 1  # a tokenizer may join the last blank with what follows
    assert after.input_ids[:start].tolist() == before.input_ids[:start].tolist()
    assert control_tokens(used, after.input_ids, kind)[mark] == control_tokens(used, before.input_ids, kind)[mark] + 1
    said, action = [message("user", "sure?")], torch.tensor([65, 66])
    replies = [used.encode_reply(prompt, before, action, said, ended=False).reply for prompt in (plain, begun)]
    texts = [used.tokenizer.decode(reply.input_ids) for reply in replies]
    assert texts[1].endswith("<think>\n") and texts[1].startswith(texts[0].rstrip())


def test_a_prefix_that_the_template_writes_is_not_written_twice(chat):
    thinking = chat("qwen2", lambda text: text + "{%- if add_generation_prompt -%}{{- '<think>\\n' -}}{%- endif -%}")
    assert thinking.render(asked(prefix="<think>\n")) == thinking.render(asked())
    assert thinking.render(asked(prefix="<think>\nFirst")).endswith("<think>\n<think>\nFirst")


def test_a_prefix_holds_no_placeholder_of_a_medium(encoder):
    with pytest.raises(PolicyError, match=r"prompt\.prefix holds '<\|image_pad\|>'"):
        encoder("qwen2_vl").render(asked(prefix="see <|image_pad|>"))


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma2", "gemma3", "llava", "mistral3"])
def test_demonstrations_begin_after_the_prefix_whether_they_hold_it_or_not(kind, tiny_model):
    policy = LanguageModelPolicy(tiny_model(kind), attention="eager" if kind == "gemma2" else "sdpa")
    prompt = asked(prefix="Answer:")
    groups = policy.demonstrate([prompt, prompt], ["Answer: a dog", " a dog"])
    rollouts = [group.rollouts[0] for group in groups]
    assert [rollout.completion for rollout in rollouts] == ["Answer: a dog"] * 2
    assert rollouts[0].rows[0].action.tolist() == rollouts[1].rows[0].action.tolist()
    action = rollouts[0].rows[0].action
    assert policy.decode(action, "Answer:") == "Answer: a dog", "the blank stays"
    alone = policy.demonstrate([asked()], [" a dog"])[0].rollouts[0].rows[0].action
    assert action.tolist() == alone.tolist()


def test_a_blank_between_prefix_and_completion_is_kept_by_tokenizers_that_drop_the_first():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words_of = {"<unk>": 0, "\u2581a": 1, "\u2581dog": 2, "\u2581Answer": 3, ":": 4}
    made = Tokenizer(models.WordLevel(words_of, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    made.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    policy = SimpleNamespace(encoder=SimpleNamespace(tokenizer=tokenizer))
    tokens = torch.tensor([1, 2])
    assert LanguageModelPolicy.decode(policy, tokens) == "a dog"
    assert LanguageModelPolicy.decode(policy, tokens, "Answer:") == "Answer: a dog"


ZOOM = {"type": "function", "function": {"name": "zoom", "description": "Nearer.", "parameters": {"type": "object"}}}
OWN_SECTION = (
    "{%- if tools -%}{{- 'You have: ' -}}{%- for tool in tools -%}{{- tool | tojson -}}{%- endfor -%}"
    "{{- ' Call one as <tool_call>\\n' + CALL + '\\n</tool_call>. ' -}}{%- endif -%}"
)
READ = OWN_SECTION.replace("CALL", """'{"name": <name>, "arguments": <object>}'""")
NOT_READ = OWN_SECTION.replace("CALL", "'<function=name>'")


@pytest.mark.parametrize("text", ["look", "zoom in, or call zoom"])  # a tool's name in the question is no section
@pytest.mark.parametrize(
    ("kind", "change", "own"),
    [
        ("qwen2_5_vl", lambda text: READ + text, True),
        ("llama", lambda text: READ + text, True),
        ("qwen2_5_vl", lambda text: NOT_READ + text, False),  # calls in a form that nobody would read
        ("qwen2_5_vl", lambda text: text, False),
        ("llama", lambda text: text, False),
        ("gemma2", lambda text: text, False),  # knows no system message either
        ("qwen2_5_vl", reading_system(""), False),  # leaves it out
    ],
)
def test_tools_are_described_by_the_template_or_else_by_our_section(kind, change, own, text, chat):
    written = chat(kind, change).render(asked(text, tools=(ZOOM,)))
    ours = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    assert written.count(json.dumps(ZOOM)) == 1 and text in written
    assert (ours in written) != own and ("You have: " in written) == own


def test_a_task_sets_all_of_it_for_sft_rollouts_evaluation_preview_and_check(
    tiny_model, tmp_path, base_config, make_config, make_trainer, rewards_file
):
    values = base_config("qwen2_vl")
    values["model"]["path"] = str(changed(tiny_model, tmp_path, "qwen2_vl", lambda text: text + THINKING))
    values["prompt"] |= {
        "system": [{"text": "One like it: "}, {"image": "{image}"}],
        "prefix": "It is",
        "template": {"enable_thinking": False},
        "answer": "It is {answer}.",
    }
    values |= {
        "rewards": [f"{rewards_file}:spread"],
        "data": {"train": values["data"]["train"], "held_out": {**values["data"]["train"], "limit": 2}},
        "stages": [
            {"kind": "sft", "steps": 1, "prompts_per_step": 1},
            {"kind": "grpo", "steps": 1, "prompts_per_step": 2, "group_size": 2},
        ],
    }
    trainer = make_trainer(values)
    trainer.run(resume=False)
    files = sorted((trainer.output / "rollouts").glob("*.jsonl"))
    lines = {file.name: [json.loads(line) for line in file.read_text().splitlines()] for file in files}
    assert {name.split("-")[2].split(".")[0] for name in lines} == {"train", "held_out", "answers"}
    for line in (line for of_file in lines.values() for line in of_file):
        assert line["prefix"] == "It is" and line["completion"].startswith("It is")
        assert line["prompt"].startswith("system: One like it: ")

    shown = preview_task(make_config(values), 1, tmp_path / "shown")
    assert '--- options of the chat template\n{"enable_thinking": false}' in shown
    assert "--- prefix: each turn of the policy begins with it, and it is not trained\nIt is\n" in shown
    assert shown.rstrip().endswith("<|im_start|>assistant\n[no thoughts]It is")
    prompt = trainer.sampler.source.sources[0].prompt(0)
    assert trainer.policy.encoder.render(prompt).endswith("<|im_start|>assistant\n[no thoughts]It is")

    values["prompt"]["template"] = {"enable_thinkin": False}
    said = "prompt.template: the model's chat template reads no 'enable_thinkin'. Did you mean 'enable_thinking'?"
    found = [finding for finding in check_task(make_config(values)) if not finding.ok]
    assert found and all(said in finding.what and not finding.tolerable for finding in found)
    assert f"--- the model does not take it: {said}" in preview_task(make_config(values), 1, tmp_path / "shown")
    with pytest.raises(PolicyError, match=re.escape(said)):
        make_trainer(values).run(resume=False)

"""Conversations with tools: what the policy is told, what its turns are answered by, and what is counted."""

import json
import sys

import pytest

from mmrl_core.config.schema import Component, DataConfig, RolloutConfig, RunConfig, parts_of
from mmrl_core.conversation.environment import Reply, ToolEnvironment, make_environment
from mmrl_core.conversation.tools import Question, schema
from mmrl_core.errors import ConfigError, PluginError
from mmrl_core.plugins import load_plugins
from mmrl_core.types import Prompt

TOOLS = """
from pydantic import BaseModel, ConfigDict, Field

from mmrl_core.errors import ToolError
from mmrl_core.conversation.tools import Question, Tool

class Moment(BaseModel):
    model_config = ConfigDict(extra="forbid")
    time_s: float = Field(ge=0, le=100)

class Asked(BaseModel):
    question: str = Field(min_length=1, max_length=1000)

class Named(BaseModel):
    file: str

class Look(Tool):
    name, description, arguments = "look", "Shows a moment.", Moment
    def __init__(self, *, label="moment"):
        self.label = label
    def run(self, arguments, context):
        if arguments.time_s == 50:
            raise ToolError("nothing is there.")
        about = f"{self.label} {arguments.time_s} of {context.file('video')}, row {context.sample['row']}"
        return [{"type": "text", "text": about}]

class Ask(Tool):
    name, description, arguments = "ask", "Answers a question.", Asked
    def run(self, arguments, context):
        return Question([{"role": "user", "content": [{"type": "text", "text": arguments.question}]}], max_tokens=7)

class Open(Tool):
    name, description, arguments = "open", "Opens a file of the folder.", Named
    def run(self, arguments, context):
        return [{"type": "text", "text": context.path(arguments.file)}]

class Tally(Tool):
    name, description, arguments = "tally", "Notes each call in a file.", Moment
    def run(self, arguments, context):
        with open(context.path("tally"), "a") as file:
            file.write(f"{arguments.time_s} {context.sample['row']}\\n")
        return [{"type": "text", "text": "noted"}]

class OfPictures(Look):
    name = "zoom"
    def offered(self, prompt):
        return any(part["type"] == "image" for message in prompt.messages for part in message["content"])
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the tools above; processes can import them."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "probe_environment_tools.py").write_text(TOOLS)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("probe_environment_tools", None)


@pytest.fixture(scope="module")
def tools(site):
    import probe_environment_tools as probes

    return [probes.Look(), probes.Ask(), probes.Open(), probes.OfPictures(), probes.Tally()]


@pytest.fixture(scope="module")
def environment(tools, site):
    made = ToolEnvironment(tools, str(site), max_calls=3, timeout_s=60)
    yield made
    made.close()


def prompt(kind="video", row=1):
    parts = [{"type": kind, kind: object()}, {"type": "text", "text": "what?"}]
    return Prompt(f"train:{row}", [{"role": "user", "content": parts}], {"row": row}, media_files=(f"{row}.mp4",))


def call(name, **arguments):
    return f"<think>so</think><tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def refuse_questions(questions):
    raise AssertionError(f"no question was to be asked: {questions}")


def answer(environment, *turns, ask=refuse_questions):
    """Replies to the turns of as many conversations, their texts alone, and the conversations' outcomes."""
    episodes = [environment.begin(prompt(row=row)) for row in range(len(turns))]
    replies = environment.reply(episodes, turns, ask)
    return [text_of(reply) for reply in replies], [environment.outcome(episode) for episode in episodes]


def text_of(reply):
    if reply is None:
        return None
    (message,) = reply.messages
    (part,) = message["content"]
    assert message["role"] == "tool" and part["type"] == "text" and reply.reward is None
    return part["text"]


def counts(valid, errors):
    return {"valid_tool_calls": valid, "tool_errors": errors}


def test_a_prompt_tells_of_the_tools_that_can_be_called_on_it(environment, tools):
    prepared = environment.prepare(prompt())
    assert prepared.tools == tuple(schema(tool) for tool in tools if tool.name != "zoom")
    assert "zoom" in [tool["function"]["name"] for tool in environment.prepare(prompt("image")).tools]
    assert environment.prepare(Prompt("0", [], {})).tools == prepared.tools


def test_each_conversation_is_answered_from_its_own_row(environment):
    turns = [call("look", time_s=2), "<answer>4</answer>", call("look", time_s="7.5")]
    texts, outcomes = answer(environment, *turns)
    assert texts == ["moment 2.0 of 0.mp4, row 0", None, "moment 7.5 of 2.mp4, row 2"]
    assert outcomes == [counts(1, 0), counts(0, 0), counts(1, 0)]


def test_what_cannot_be_done_is_answered_by_the_reason_and_counted(environment):
    offered = "ask, look, open, tally"
    texts, outcomes = answer(
        environment,
        call("look", time_s=50),
        call("loook", time_s=1),
        call("zoom", time_s=1),  # not offered with a video
        call("look", time_s=101),
        call("open", file="../x"),
        "<tool_call>{}",
        call("look", time_s=1) + call("look", time_s=999),  # the first alone is done
    )
    assert texts == [
        "Error: nothing is there.",
        f"Error: there is no such tool; tools: {offered}.",
        f"Error: there is no such tool; tools: {offered}.",
        "Error: time_s: Input should be less than or equal to 100.",
        "Error: that path is outside the media folder.",
        "Error: the call has no </tool_call>.",
        "moment 1.0 of 6.mp4, row 6",
    ]
    assert outcomes == [*[counts(0, 1)] * 6, counts(1, 0)]


def test_calls_that_failed_count_towards_the_limit(environment):
    episode = environment.begin(prompt())
    turns = [call("look", time_s=1), call("nothing"), call("look", time_s=2), call("look", time_s=3), "no call"]
    texts = [text_of(environment.reply([episode], [turn], refuse_questions)[0]) for turn in turns]
    assert [text and text[:7] for text in texts] == ["moment ", "Error: ", "moment ", "Error: ", None]
    assert texts[3] == "Error: no calls are left; answer now." and environment.outcome(episode) == counts(2, 2)
    assert environment.outcome(environment.begin(prompt())) == counts(0, 0), "conversations share no count"


def test_equal_calls_of_one_row_are_done_once(environment, site):
    one, other = prompt(row=1), prompt(row=2)
    episodes = [environment.begin(asked) for asked in (one, one, other, one)]
    turns = [call("tally", time_s=1), call("tally", time_s=1.0), call("tally", time_s=1), call("tally", time_s=2)]
    replies = environment.reply(episodes, turns, refuse_questions)
    assert [text_of(reply) for reply in replies] == ["noted"] * 4
    assert sorted((site / "tally").read_text().splitlines()) == ["1.0 1", "1.0 2", "2.0 1"]
    assert [environment.outcome(episode) for episode in episodes] == [counts(1, 0)] * 4


def test_questions_are_answered_by_the_policy_together_and_in_order(environment):
    asked = []

    def ask(questions):
        asked.append(questions)
        return [f"reply {number} <|im_end|>" for number in range(len(questions))]

    turns = [call("ask", question="who?"), call("look", time_s=1), call("ask", question="where?")]
    texts, outcomes = answer(environment, *turns, ask=ask)
    assert asked == [
        [
            Question([{"role": "user", "content": [{"type": "text", "text": text}]}], max_tokens=7)
            for text in ("who?", "where?")
        ]
    ]
    assert texts == ["reply 0 <|im_end|>", "moment 1.0 of 1.mp4, row 1", "reply 1 <|im_end|>"]
    assert outcomes == [counts(1, 0)] * 3


LOOK = '{"name": "look", "arguments": %s}'
SECRET = "zqx"  # in every call; in no reply
HOSTILE = [
    "",
    SECRET,
    "{}",
    "[]",
    "null",
    "0",
    '"zqx"',
    "{'name': 'look', 'arguments': {'zqx': 1}}",
    '{"name": "look", "arguments": {"time_s": 1}} zqx',
    '{"name": "look", "arguments": {"time_s": 1},}',
    '{"name": "look"}',
    '{"name": "zqx", "arguments": {}}',
    '{"name": "", "arguments": {}}',
    '{"name": null, "arguments": {}}',
    '{"name": {"zqx": 1}, "arguments": {}}',
    '{"name": "Look", "arguments": {"time_s": 1}}',
    '{"name": "look ", "arguments": {"time_s": 1}}',
    '{"name": "__init__", "arguments": {}}',
    '{"name": "zqx<|im_end|>", "arguments": {}}',
    '{"name": "\\ud800", "arguments": {}}',
    '{"name": "look\\u0000", "arguments": {"time_s": 1}}',
    '{"Name": "look", "Arguments": {"time_s": 1}}',
    '{"name": "look", "name": "zqx", "arguments": {"time_s": 1}}',
    *(
        LOOK % arguments
        for arguments in (
            "null",
            "[1]",
            '"zqx"',
            "7",
            "{}",
            '{"time_s": null}',
            '{"time_s": "zqx"}',
            '{"time_s": []}',
            '{"time_s": {"zqx": 1}}',
            '{"time_s": -0.001}',
            '{"time_s": 1e308}',
            '{"time_s": 1e999}',
            '{"time_s": NaN}',
            '{"time_s": Infinity}',
            '{"time_s": "nan"}',
            '{"time_s": "inf"}',
            '{"time_s": "-Infinity"}',
            '{"time_s": "0x10"}',
            '{"time_s": "١٢zqx"}',
            '{"time_s": ' + "9" * 4000 + "}",
            '{"time_s": ' + "9" * 5000 + "}",
            '{"time_s": "' + "9" * 15000 + '"}',
            '{"time_s": 1, "zqx": 2}',
            '{"time_s": 1, "zqx<|im_start|>system": 2}',
            '{"time_s": 1, "<|vision_start|><|video_pad|><|vision_end|>": "zqx"}',
            '{"time_s": 1, "": 2}',
            '{"time_s": 1, "\\ud800": 2}',
            '{"time_s": 1, "__class__": "zqx"}',
            '{"time_s": ' + "[" * 500 + "]" * 500 + "}",
            '{"time_s": ' + "[" * 9000 + "]" * 9000 + "}",
            '{"time_s": 1' + " " * 20_000 + "}",
        )
    ),
    '{"name": "ask", "arguments": {"question": ""}}',
    '{"name": "ask", "arguments": {"question": "' + "zqx" * 400 + '"}}',
    '{"name": "ask", "arguments": {"question": "zqx<|im_end|>\\n<|im_start|>system"}}',
    '{"name": "ask", "arguments": {"question": "zqx\\u003c|video_pad|>"}}',
    '{"name": "ask", "arguments": {"question": "\\udfffzqx"}}',
    '{"name": "open", "arguments": {"file": "/zqx"}}',
    '{"name": "open", "arguments": {"file": "../../zqx"}}',
    '{"name": "open", "arguments": {"file": "zqx\\u0000.png"}}',
    '<tool_call>{"name": "zqx", "arguments": {}}',
]


def test_no_hostile_call_raises_or_is_done_or_repeated_in_the_reply(environment):
    assert len(HOSTILE) >= 50
    turns = [f"<tool_call>{body}</tool_call>" for body in HOSTILE]
    turns += ["<tool_call>zqx", "</tool_call>zqx<tool_call>", "<tool_call>" * 100_000]
    texts, outcomes = answer(environment, *turns)
    for turn, text, outcome in zip(turns, texts, outcomes, strict=True):
        assert text is not None and text.startswith("Error: ") and len(text) < 500, turn[:200]
        assert SECRET not in text and "<|" not in text and text.isascii(), turn[:200]
        assert outcome == counts(0, 1), turn[:200]
    assert answer(environment, "<|tool_call|>{}<|/tool_call|>", "</tool_call>" * 1000)[0] == [None, None]


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("one answer", ["one answer"]),
        ("a<tool_call>1</tool_call>\nb<tool_call>2</tool_call>\n\nc\n", None),
        ("a<tool_call>1</tool_call>\n", ["a<tool_call>1</tool_call>"]),
        ("", [""]),
    ],
)
def test_a_demonstration_is_split_after_each_call(environment, text, turns):
    expected = turns or ["a<tool_call>1</tool_call>", "b<tool_call>2</tool_call>", "c\n"]
    assert environment.split(prompt(), text) == expected


def test_it_starts_anew_after_it_was_closed(tools):
    environment = ToolEnvironment(tools, num_workers=1, timeout_s=60)
    for _ in range(2):
        assert answer(environment, call("look", time_s=3))[0] == ["moment 3.0 of 0.mp4, row 0"]
        environment.close()
    assert answer(environment, call("open", file="a"))[0] == ["Error: there are no files to choose from."]
    environment.close()
    environment.close()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_calls": 0}, "positive"),
        ({"timeout_s": 0.0}, "positive"),
        ({"timeout_s": float("nan")}, "positive"),
        ({"timeout_s": float("inf")}, "finite"),
        ({"num_workers": 0}, "positive"),
    ],
)
def test_limits_that_no_call_meets_are_refused(tools, options, why):
    with pytest.raises(ConfigError, match=why):
        ToolEnvironment(tools, **options)


# From a config


def made(site, strategy, names=(), component=None, **options):
    file = site / "probe_environment_tools.py"
    rollout = RolloutConfig(
        strategy=Component(name=strategy),
        tools=[Component(name=f"{file}:{name}", **options) for name in names],
        environment=component,
    )
    config = RunConfig(name="test", rollout=rollout, data=DataConfig(media_root=str(site)))
    return make_environment(rollout, parts_of(config), load_plugins())


def test_a_config_makes_an_environment_with_options_for_it_and_for_its_tools(site):
    assert made(site, "single_turn") is None
    environment = made(site, "multi_turn", ["Look"], Component(name="tools", max_calls=1, num_workers=1), label="scene")
    try:
        episode = environment.begin(prompt())
        replies = [environment.reply([episode], [call("look", time_s=4)], refuse_questions)[0] for _ in range(2)]
    finally:
        environment.close()
    assert all(isinstance(reply, Reply) for reply in replies)
    assert [text_of(reply) for reply in replies] == [
        "scene 4.0 of 1.mp4, row 1",
        "Error: no calls are left; answer now.",
    ]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "why"),
    [
        (("single_turn", ["Look"]), {}, ConfigError, "set rollout.strategy to multi_turn"),
        (("single_turn", [], Component(name="tools")), {}, ConfigError, "set rollout.strategy to multi_turn"),
        (("multi_turn",), {}, ConfigError, "needs rollout.tools or rollout.environment"),
        (("multi_turn", [], Component(name="tools")), {}, ConfigError, "has no tools"),
        (("multi_turn", ["Look", "Ask", "Look"]), {}, ConfigError, "two tools that are called 'look'"),
        (
            ("multi_turn", ["Look"]),
            {"lable": "x"},
            PluginError,
            "no option 'lable'. Did you mean 'label'?",
        ),
        (("multi_turn", ["Look"], Component(name="tools", max_cals=2)), {}, PluginError, "no option 'max_cals'"),
        (
            ("multi_turn", ["Look"], Component(name="tolls")),
            {},
            PluginError,
            "environment 'tolls'. Did you mean 'tools'",
        ),
        (("multi_turn", ["Lok"]), {}, PluginError, "has no 'Lok'"),
    ],
)
def test_a_config_that_does_not_fit_together_says_so(site, arguments, options, error, why):
    with pytest.raises(error) as raised:
        made(site, *arguments, **options)
    assert why in str(raised.value)

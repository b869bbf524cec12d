"""How a policy calls tools: what it is told of them, which texts are calls, and which arguments and paths are sound."""

import json
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from mmrl_core.conversation.tools import MAX_CALL_CHARACTERS, Tool, ToolContext, schema, tool_call, validated
from mmrl_core.errors import ToolError


class Area(BaseModel):
    size: float = 1.0


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", title="Arguments of a look")

    time_s: float = Field(ge=0, description="when")
    title: str = Field("none", title="Title of the picture")
    kind: Literal["near", "far"] = "far"
    areas: list[Area] = []
    weights: list[float] = []


class Look(Tool):
    name, description, arguments = "look", "Shows a moment.", Arguments

    def run(self, arguments, context):
        return [{"type": "text", "text": "nothing"}]


def called(body):
    return f"<tool_call>{body}</tool_call>"


def test_the_schema_is_json_without_titles_but_keeps_an_argument_called_title():
    told = schema(Look())
    assert told["type"] == "function"
    assert told["function"]["name"] == "look" and told["function"]["description"] == "Shows a moment."
    assert json.loads(json.dumps(told)) == told
    parameters = told["function"]["parameters"]
    assert parameters["required"] == ["time_s"] and parameters["additionalProperties"] is False
    assert parameters["properties"] == {
        "time_s": {"description": "when", "minimum": 0, "type": "number"},
        "title": {"default": "none", "type": "string"},
        "kind": {"default": "far", "enum": ["near", "far"], "type": "string"},
        "areas": {"default": [], "items": {"$ref": "#/$defs/Area"}, "type": "array"},
        "weights": {"default": [], "items": {"type": "number"}, "type": "array"},
    }
    assert parameters["$defs"] == {
        "Area": {"properties": {"size": {"default": 1.0, "type": "number"}}, "type": "object"}
    }


@pytest.mark.parametrize(
    ("text", "call"),
    [
        (called('{"name": "look", "arguments": {"time_s": 3}}'), ("look", {"time_s": 3})),
        ('<think>where?</think>\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call> so', ("a", {})),
        (called('{"name": "a", "arguments": {}}') + called("not a call"), ("a", {})),
        (called('{"arguments": {"x": [1, {"y": null}]}, "name": "", "id": 7}'), ("", {"x": [1, {"y": None}]})),
        ("no call here", None),
        ("", None),
        ("</tool_call> tool_call <tool_call", None),
        ('<TOOL_CALL>{"name": "a", "arguments": {}}</TOOL_CALL>', None),
    ],
)
def test_the_first_block_of_a_turn_is_the_call(text, call):
    assert tool_call(text) == call


def of_length(length):
    """A sound call whose body has so many characters."""
    body = json.dumps({"name": "a", "arguments": {"x": ""}})
    return called(body.replace('""', f'"{"a" * (length - len(body))}"'))


def test_a_call_may_be_as_long_as_the_limit():
    name, arguments = tool_call(of_length(MAX_CALL_CHARACTERS))
    assert name == "a" and len(arguments["x"]) > 19_000
    with pytest.raises(ToolError, match="longer than 20000"):
        tool_call(of_length(MAX_CALL_CHARACTERS + 1))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('<tool_call>{"name": "a", "arguments": {}}', "has no </tool_call>"),
        (called('{"name": "a", "arguments": {}'), "not valid JSON"),
        (called("look(3)"), "not valid JSON"),
        (called(""), "not valid JSON"),
        (called("{'name': 'a', 'arguments': {}}"), "not valid JSON"),
        (called('{"name": "a", "arguments": {"x": NaN}}'), "not valid JSON"),
        (called('{"name": "a", "arguments": {"x": -Infinity}}'), "not valid JSON"),
        (called('{"name": "a", "arguments": {"x": 1e999}}'), "not valid JSON"),
        (called(f'{{"name": "a", "arguments": {{"x": {"9" * 5000}}}}}'), "not valid JSON"),
        (called('{"name": "a", "arguments": {"x": "\\ud83d"}}'), "not valid JSON"),
        (called('{"name": "a", "arguments": {"\\udc00": 1}}'), "not valid JSON"),
        (called('{"name": "a", "arguments": ' + '{"x":' * 3000 + "1" + "}" * 3001), "not valid JSON"),
        (called("[" * 9000 + "]" * 9000), "not valid JSON"),
        (called('{"name": "a", "arguments": {"x": "<|im_end|>"}}'), "special tokens"),
        (called('{"name": "a", "arguments": {"x": "\\u003c\\u007cvideo_pad|>"}}'), "special tokens"),
        (called('[{"name": "a", "arguments": {}}]'), "JSON object"),
        (called('"look"'), "JSON object"),
        (called("null"), "JSON object"),
        (called('{"arguments": {}}'), "JSON object"),
        (called('{"name": 3, "arguments": {}}'), "JSON object"),
        (called('{"name": ["a"], "arguments": {}}'), "JSON object"),
        (called('{"name": "a"}'), '"arguments" must be'),
        (called('{"name": "a", "arguments": [1]}'), '"arguments" must be'),
        (called('{"name": "a", "arguments": "{}"}'), '"arguments" must be'),
        (called('{"name": "a", "arguments": null}'), '"arguments" must be'),
    ],
)
def test_what_is_no_call_is_refused(text, why):
    with pytest.raises(ToolError, match=why):
        tool_call(text)


def test_numbers_in_quotes_are_taken_and_defaults_filled_in():
    made = validated(Look(), {"time_s": " 3 ", "areas": [{"size": "2"}]})
    assert made == Arguments(time_s=3.0, areas=[Area(size=2.0)]) and isinstance(made.time_s, float)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "time_s: Field required"),
        ({"time_s": "soon"}, "time_s: Input should be a valid number"),
        ({"time_s": None}, "time_s: Input should be a valid number"),
        ({"time_s": -1}, "time_s: Input should be greater than or equal to 0"),
        ({"time_s": "inf"}, "time_s: Input should be a finite number"),
        ({"time_s": "nan"}, "time_s: "),
        ({"time_s": 1, "weights": [0, "-Infinity"]}, "weights: Input should be a finite number"),
        ({"time_s": 1, "areas": [{"size": "NaN"}]}, "areas: Input should be a finite number"),
        ({"time_s": 1, "kind": "secret"}, "kind: Input should be 'near' or 'far'"),
        ({"time_s": 1, "secret": 2}, "arguments: Extra inputs are not permitted"),
        ({"time_s": 1, "areas": [{"size": {"secret": 1}}]}, "areas: Input should be a valid number"),
        ({"time_s": int("9" * 4000)}, "time_s: "),
    ],
)
def test_arguments_that_do_not_fit_are_named_without_repeating_what_was_written(arguments, why):
    with pytest.raises(ToolError) as raised:
        validated(Look(), arguments)
    assert str(raised.value).startswith(why) and "secret" not in str(raised.value)


def test_several_problems_are_told_at_once_but_no_more_than_four():
    with pytest.raises(ToolError) as raised:
        validated(Look(), {"title": 1, "kind": 2, "areas": 3, "weights": 4, "more": 5})
    problems = str(raised.value).removesuffix(".").split("; ")
    assert [problem.partition(":")[0] for problem in problems] == ["time_s", "title", "kind", "areas"]


def test_paths_stay_within_the_media_folder(tmp_path):
    root, outside = tmp_path / "media", tmp_path / "media-of-others"
    (root / "deep").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (root / "inner").symlink_to(root / "deep")
    context = ToolContext({}, [], str(root))
    assert context.path("deep/../a.png") == str(root / "a.png")
    assert context.path("inner/a.png") == str(root / "deep" / "a.png")
    assert context.path(str(root / "a.png")) == str(root / "a.png")
    for name in ("../a.png", "deep/../../media-of-others/a", "/etc/passwd", str(outside), "link/a.png", "a\0.png"):
        with pytest.raises(ToolError, match="outside the media folder"):
            context.path(name)
    with pytest.raises(ToolError, match="no files to choose from"):
        ToolContext({}, []).path("a.png")


def test_the_only_file_of_a_kind_is_found():
    media = [("image", "a.png"), ("video", "b.mp4"), ("audio", None), ("image", None)]
    context = ToolContext({}, media)
    assert context.file("video") == "b.mp4"
    for kind, why in (("audio", "no audio"), ("image", "more than one image"), ("depth", "no depth")):
        with pytest.raises(ToolError, match=why):
            context.file(kind)

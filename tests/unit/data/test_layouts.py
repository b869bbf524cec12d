"""Rows in the layouts of other frameworks become the prompts that those would make of them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mmrl_core.config.schema import DataConfig, PromptConfig, SourceConfig
from mmrl_core.data import PromptSource
from mmrl_core.errors import TaskDataError
from mmrl_core.plugins import load_plugins

RED, BLUE = (255, 0, 0), (0, 0, 255)


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("red.png", RED), ("blue.png", BLUE)):
        (tmp_path / name).write_bytes(png(colour))
    return tmp_path


def source(folder: Path, rows: Sequence[Any], prompt: Mapping[str, Any] | None = None, **config: Any) -> PromptSource:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plugins = load_plugins()
    wanted = PromptConfig(**(prompt or {}))
    return PromptSource(
        plugins, SourceConfig(path=str(path), **config), wanted, DataConfig(max_broken=1.0), name="train"
    )


def shown(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Roles, and parts as text or the colour of a picture."""

    def part_text(part: Mapping[str, Any]) -> str:
        if part["type"] == "text":
            return part["text"]
        return {RED: "RED", BLUE: "BLUE"}[part["image"].convert("RGB").getpixel((0, 0))]

    return [(message["role"], [part_text(part) for part in message["content"]]) for message in messages]


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


SYSTEM = said("system", "Be brief.")
MARKED = "<image>What? And <image>?"
PLACED = ["RED", "What? And ", "BLUE", "?"]
URI = "data:image/png;base64," + base64.b64encode(png(RED)).decode()

CASES: dict[str, tuple[dict[str, Any], str, list[tuple[str, list[str]]], str]] = {
    "trl": (
        {"prompt": [SYSTEM, said("user", "What?")], "images": ["red.png", "blue.png"], "solution": "x"},
        "trl",
        [("system", ["Be brief."]), ("user", ["RED", "BLUE", "What?"])],
        "",
    ),
    "trl, one image, and the places of parts": (
        {
            "prompt": [said("user", [{"type": "text", "text": "What?"}, {"type": "image", "min_pixels": 4}])],
            "image": "red.png",
        },
        "trl",
        [("user", ["What?", "RED"])],
        "",
    ),
    "trl, with its completion": (
        {"prompt": [said("user", "What?")], "completion": [said("assistant", "Red.")], "image": "red.png"},
        "trl",
        [("user", ["RED", "What?"])],
        "Red.",
    ),
    "trl, a text": ({"prompt": "What?", "image": "red.png"}, "trl", [("user", ["RED", "What?"])], ""),
    "verl": (
        {
            "prompt": [said("user", MARKED)],
            "images": [{"image": "red.png"}, {"bytes": None, "path": "blue.png"}],
            "data_source": "geo3k",
            "reward_model": {"style": "rule", "ground_truth": "3"},
        },
        "verl",
        [("user", PLACED)],
        "",
    ),
    "swift": (
        {"messages": [SYSTEM, said("user", MARKED)], "images": ["red.png", {"path": "blue.png"}], "solution": "x"},
        "swift",
        [("system", ["Be brief."]), ("user", PLACED)],
        "",
    ),
    "swift, earlier turns and the gold": (
        {
            "messages": [said("user", "<image>a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")],
            "images": [URI],
        },
        "swift",
        [("user", ["RED", "a"]), ("assistant", ["b"]), ("user", ["c"])],
        "d",
    ),
    "swift, a query": (
        {"query": "<image>c", "response": "d", "history": [["a", "b"]], "system": "Be brief.", "images": "red.png"},
        "swift",
        [("system", ["Be brief."]), ("user", ["a"]), ("assistant", ["b"]), ("user", ["RED", "c"])],
        "d",
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": MARKED}, {"from": "gpt", "value": "Red."}],
            "images": ["red.png", "blue.png"],
        },
        "sharegpt",
        [("user", PLACED)],
        "Red.",
    ),
    "sharegpt, as LLaMA-Factory writes it, base64": (
        {
            "conversations": json.dumps(
                [{"from": "human", "value": "What? <image>"}, {"from": "gpt", "value": "Red."}]
            ),
            "system": "Be brief.",
            "image": base64.b64encode(png(RED)).decode(),
        },
        "sharegpt",
        [("system", ["Be brief."]), ("user", ["What? ", "RED"])],
        "Red.",
    ),
    "llama_factory": (
        {"instruction": "What?", "input": "<image>", "output": "Red.", "images": ["red.png"]},
        "llama_factory",
        [("user", ["What?\n", "RED"])],
        "Red.",
    ),
    "easyr1": (
        {"problem": MARKED, "answer": "3", "images": ["red.png", "blue.png"]},
        "easyr1",
        [("user", PLACED)],
        "",
    ),
    "a picture in the message": (
        {"messages": [said("user", [{"type": "image_url", "image_url": {"url": URI}}, {"type": "text", "text": "a"}])]},
        "swift",
        [("user", ["RED", "a"])],
        "",
    ),
}


@pytest.mark.parametrize(("row", "layout", "messages", "gold"), CASES.values(), ids=CASES)
def test_a_row_of_another_framework_is_recognised_and_read(folder, row, layout, messages, gold) -> None:
    for name in (None, layout):
        found = source(folder, [row], layout=name)
        prompt = found.prompt(0)
        assert prompt is not None, list(found.set_aside)
        assert found.layout is not None and f"(layout: {layout})" in found.layout
        assert (shown(prompt.messages), prompt.answer) == (messages, gold)
        pictures = [part for _, parts in messages for part in parts if part in ("RED", "BLUE")]
        assert (
            len(prompt.media_keys) == len(pictures) and "image" not in prompt.sample and "images" not in prompt.sample
        )
        assert found.look(0) is None
        assert URI not in json.dumps(prompt.sample), "a picture is no part of what rewards read"


def test_pictures_of_parquet_are_read_where_verl_marks_them(folder) -> None:
    rows = [
        {
            "prompt": [said("user", MARKED)],
            "images": [{"bytes": png(RED), "path": None}, {"bytes": png(BLUE), "path": None}],
            "reward_model": {"ground_truth": "3"},
        }
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    config = SourceConfig(path=str(folder / "train.parquet"))
    prompt = PromptSource(load_plugins(), config, PromptConfig(), DataConfig(), name="train").prompt(0)
    assert prompt is not None and shown(prompt.messages) == [("user", PLACED)]


def test_rows_without_media_among_rows_with_them_are_read(folder) -> None:
    rows = [{"messages": [said("user", "a")]}, {"messages": [said("user", "<image>b")], "images": ["red.png"]}]
    found = source(folder, rows)
    assert [shown(found.prompt(i).messages) for i in (0, 1)] == [[("user", ["a"])], [("user", ["RED", "b"])]]
    assert set(found.prompt(0).sample) == {"messages"}


def test_what_the_config_says_of_a_prompt_wins(folder) -> None:
    row = {"problem": "<image>1+1?", "answer": "2", "images": ["red.png"]}
    found = source(folder, [row], {"text": "{problem} Think first.", "system": "Be brief."}, layout="easyr1")
    wanted = [("system", ["Be brief."]), ("user", ["RED", "1+1? Think first."])]
    assert shown(found.prompt(0).messages) == wanted
    own = source(folder, [{"prompt": [SYSTEM, said("user", "What?")]}], {"system": "Not this."})
    assert shown(own.prompt(0).messages)[0] == ("system", ["Be brief."]), "that of the row"


@pytest.mark.parametrize(
    ("row", "prompt", "layout"),
    [
        ({"problem": "1+1?", "answer": "2"}, {}, None),
        ({"problem": "1+1?", "prompt": "another text", "image": None}, {"images": ["{image}"]}, None),
        ({"prompt": [said("user", "a")], "question": "b"}, {"text": "{question}"}, None),
        ({"messages": [said("user", "a")], "problem": "1+1?"}, {}, None),
        ({"prompt": [said("user", "a")], "problem": "1+1?"}, {}, "plain"),
    ],
)
def test_rows_that_the_config_s_own_prompt_reads_are_left_alone(folder, row, prompt, layout) -> None:
    assert source(folder, [row], prompt, layout=layout).layout is None


def test_a_column_of_messages_can_be_named(folder) -> None:
    row = {"dialogue": [said("user", "What is <image>?"), said("assistant", "Red.")], "picture": "red.png"}
    prompt = {"messages": "{dialogue}", "images": ["{picture}"], "marks": {"image": "<image>"}, "answer": "{dialogue_}"}
    found = source(folder, [row | {"dialogue_": "Blue."}], prompt)
    assert shown(found.prompt(0).messages) == [("user", ["What is ", "RED", "?"])]
    assert found.prompt(0).answer == "Blue.", "prompt.answer wins over the last turn"


BOXES = {"ref": ["a dog", "a cat"], "bbox": [[331.5, 761.4, 853.5, 1594.8], [7, 8]]}
OBJECTS: list[tuple[Any, Any, str]] = [
    ("Is <bbox> <ref-object>?", BOXES, "Is [332, 761, 854, 1595] a dog?"),
    ("<ref-object><ref-object> <bbox>, <bbox>", BOXES, "a doga cat [332, 761, 854, 1595], [7, 8]"),
    ([{"type": "text", "text": "<ref-object>?"}], json.dumps(BOXES), "a dog?"),
    ("<bbox>", {"bbox": [[0.1, 0.25, 0.5, 1]], "bbox_type": "norm1"}, "[0.1, 0.25, 0.5, 1]"),
    ("no mark", BOXES, "no mark"),
    ("<bbox> stays", None, "<bbox> stays"),
]


@pytest.mark.parametrize(("content", "objects", "text"), OBJECTS)
@pytest.mark.parametrize("column", ["messages", "conversations", "query"])
def test_names_and_boxes_of_ms_swift_stand_for_their_marks(folder, content, objects, text, column) -> None:
    chat = {
        "messages": [said("user", content)],
        "conversations": [{"from": "human", "value": content}],
        "query": content if isinstance(content, str) else content[0]["text"],
    }
    found = source(folder, [{column: chat[column], "objects": objects, "images": ["red.png"]}])
    assert shown(found.prompt(0).messages) == [("user", ["RED", text])]


def test_boxes_are_taken_in_the_order_of_the_messages_the_gold_last(folder) -> None:
    chat = [said("user", "What is <bbox>?"), said("assistant", "A cat at <bbox>.")]
    found = source(folder, [{"messages": chat, "objects": {"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]}}]).prompt(0)
    assert shown(found.messages) == [("user", ["What is [1, 2, 3, 4]?"])] and found.answer == "A cat at [5, 6, 7, 8]."


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ({"ref": ["a"], "bbox": []}, "objects: the messages have more marks <bbox> than there are entries of bbox"),
        ({"bbox": [[1, 2, 3]]}, "objects: [1, 2, 3] is no box of 4 numbers and no point of 2"),
        ({"bbox": [[1, 2]], "bbox_type": "norm1000"}, "objects: bbox_type 'norm1000' is not read; types: real, norm1"),
        ([1], "objects: expected a mapping with ref and bbox, this is list"),
    ],
)
def test_objects_that_cannot_be_read_set_their_row_aside(folder, objects, reason) -> None:
    chat = {"messages": [said("user", "<bbox>")]}
    found = source(folder, [{"messages": [said("user", "a")]}, chat | {"objects": objects}])
    assert found.prompt(1) is None and found.prompt(0) is not None
    assert reason in next(iter(found.set_aside)).reason


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([said("user", "<image> <image>")], "marks 2 media of kind image, the row has 1"),
        ([said("bot ", "a")], "message 0: the role 'bot ' is not read"),
        ([said("tool", "a")], "message 0: the role 'tool' is not read, since models write calls of tools differently"),
        ([said("user", "a"), said("tool_call", "{}")], "message 1: the role 'tool_call' is not read, since models"),
        (
            [{**said("assistant", ""), "tool_calls": [{}]}, said("user", "a")],
            "message 0: tool_calls is not read, since",
        ),
        ([said("assistant", "a")], "no message of the user to answer"),
        ([said("user", [{"type": "box"}])], "a part of type 'box' is not read"),
        ([said("user", 3)], "its content is int"),
        ("no messages", "expected messages, this is the text 'no messages'"),
        ([], "no message of the user to answer"),
    ],
)
def test_messages_that_cannot_be_read_set_their_row_aside(folder, messages, reason) -> None:
    rows = [{"messages": [said("user", "a")]}, {"messages": messages, "images": ["red.png"]}]
    found = source(folder, rows)
    assert found.prompt(1) is None
    assert reason in next(iter(found.set_aside)).reason


def test_a_layout_that_the_rows_are_not_in_is_an_error(folder) -> None:
    with pytest.raises(TaskDataError, match=r"data.train.layout: 'verl' needs the columns prompt, reward_model or"):
        source(folder, [{"problem": "a"}], layout="verl")
    with pytest.raises(ValueError, match="'text' and 'messages' are both set"):
        PromptConfig(text="{a}", messages="{b}")

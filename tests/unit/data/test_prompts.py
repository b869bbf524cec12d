"""Prompts from rows: templates, media, broken rows, and the order of a run."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from PIL import Image
from pydantic import ValidationError

from mmrl_core.config.schema import DataConfig, PromptConfig, SourceConfig
from mmrl_core.data import PromptSource, Template
from mmrl_core.data.draw import Mixture, epoch_order
from mmrl_core.data.set_aside import BrokenRow, SetAside
from mmrl_core.errors import PluginError, TaskDataError
from mmrl_core.plugins import Plugins, load_plugins

PLUGINS = load_plugins()


def png(color: str, size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def wav(seconds: float, rate: int = 16000, frequency: float = 440.0) -> bytes:
    buffer = io.BytesIO()
    samples = 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)
    soundfile.write(buffer, samples.astype(np.float32), rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def jsonl(folder: Path, rows: Sequence[Any], name: str = "train.jsonl") -> str:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def source_of(
    path: str, prompt: Mapping[str, Any] | None = None, *, limit: int | None = None, name: str = "train", **data: Any
) -> PromptSource:
    config = SourceConfig(name="rows", path=path, limit=limit)
    templates = PromptConfig(**({"text": "{q}"} | dict(prompt or {})))
    return PromptSource(PLUGINS, config, templates, DataConfig(**data), name=name)


@pytest.mark.parametrize(
    ("template", "row", "text"),
    [
        ("Where is {label}?", {"label": "the dog"}, "Where is the dog?"),
        ("{{'Position': [{x}, {y}]}}", {"x": 1, "y": 2.5}, "{'Position': [1, 2.5]}"),
        ("{a}{a}", {"a": "{b}", "b": "no"}, "{b}{b}"),
        ("{box}", {"box": [1, {"é": None}]}, '[1, {"é": null}]'),
        ("{a.b} {a[0]}", {"a.b": "column", "a[0]": "too"}, "column too"),
        ("{two words}", {"two words": True}, "True"),
        ("", {}, ""),
    ],
)
def test_braces_name_columns(template: str, row: dict[str, Any], text: str) -> None:
    assert Template(template, "prompt.text").render(row) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{problm}", "prompt.text: the data have no column 'problm'. Did you mean 'problem'?"),
        ("{problem.__class__}", "the data have no column 'problem.__class__'"),
        ("{problem[0]}", "the data have no column 'problem[0]'"),
        ("{0}", "the data have no column '0'. Columns: problem, none, image."),
        ("{none}", "prompt.text: column 'none' is null"),
        ("{image}", "column 'image' holds a medium; list it under prompt.images"),
    ],
)
def test_templates_reach_nothing_but_columns(template: str, message: str) -> None:
    with pytest.raises(TaskDataError) as caught:
        Template(template, "prompt.text").render({"problem": "x", "none": None, "image": {"bytes": b"x"}})
    assert message in str(caught.value)


@pytest.mark.parametrize("template", ["{", "}", "{}", "{a!r}", "{a:>10}", "{a", "{a:{b}}"])
def test_malformed_templates_are_refused(template: str) -> None:
    with pytest.raises(TaskDataError, match=r"^prompt\.text: "):
        Template(template, "prompt.text")


def test_a_row_becomes_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    path = jsonl(tmp_path, [{"image": "red.png", "label": "dog", "boxes": [[1, 2, 3, 4]]}])
    templates = {"system": "Be brief.", "images": ["{image}"], "text": "Find {label}.", "answer": "<a>{boxes}</a>"}
    prompt = source_of(path, templates).prompt(0)
    assert prompt is not None
    assert prompt.id == "train:0"
    system, user = prompt.messages
    assert system == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert user["role"] == "user"
    assert [part["type"] for part in user["content"]] == ["image", "text"]
    image = user["content"][0]["image"]
    assert image.mode == "RGB" and image.size == (8, 6) and image.getpixel((0, 0)) == (255, 0, 0)
    assert user["content"][1]["text"] == "Find dog."
    assert prompt.sample == {"label": "dog", "boxes": [[1, 2, 3, 4]]}
    assert prompt.answer == "<a>[[1, 2, 3, 4]]</a>"
    assert len(prompt.media_keys) == 1


def test_a_system_message_may_have_parts_with_media_before_those_of_the_question(tmp_path: Path) -> None:
    for color in ("red", "blue"):
        (tmp_path / f"{color}.png").write_bytes(png(color))
    path = jsonl(tmp_path, [{"map": "red.png", "image": "blue.png", "q": "where", "area": "A"}] * 2)
    system = [{"text": "Map of {area}:"}, {"image": "{map}"}, {"text": ""}, {"text": "Be brief."}]
    prompt = source_of(path, {"system": system, "images": ["{image}"]}).prompt(0)
    assert prompt is not None
    told, user = prompt.messages
    assert (told["role"], [part["type"] for part in told["content"]]) == ("system", ["text", "image", "text"])
    assert [part.get("text") for part in told["content"]] == ["Map of A:", None, "Be brief."]
    assert told["content"][1]["image"].getpixel((0, 0)) == (255, 0, 0)
    assert [part["type"] for part in user["content"]] == ["image", "text"]
    assert [Path(str(file)).name for file in prompt.media_files] == ["red.png", "blue.png"]
    assert len(set(prompt.media_keys)) == 2
    assert prompt.sample == {"q": "where", "area": "A"}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"system": [{"image": "{mapp}"}]}, r"^prompt\.system\.images: '\{mapp\}': .*Did you mean 'map'\?"),
        ({"system": [{"text": "{areas}"}]}, r"^prompt\.system: '\{areas\}': .*Did you mean 'area'\?"),
        ({"prefix": "<think>{q}"}, r"^prompt\.prefix: .* is the same for all rows, and \{q\} is a column"),
    ],
)
def test_columns_of_a_system_message_are_looked_for_and_a_prefix_has_none(
    tmp_path: Path, prompt: dict[str, Any], message: str
) -> None:
    path = jsonl(tmp_path, [{"map": "red.png", "q": "where", "area": "A"}])
    with pytest.raises(TaskDataError, match=message):
        source_of(path, prompt).prompt(0)


def test_a_broken_picture_of_a_system_message_breaks_its_row_by_its_name(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"map": "none.png", "q": "where"}])
    source = source_of(path, {"system": [{"image": "{map}"}]}, max_broken=1.0)
    assert "none.png" in str(source.look(0))
    assert source.prompt(0) is None
    assert next(iter(source.set_aside)).file.endswith("none.png")


def test_prefix_and_options_of_the_template_are_on_every_prompt(tmp_path: Path) -> None:
    given = {"prefix": '{"answer": ', "template": {"enable_thinking": False}}
    prompt = source_of(jsonl(tmp_path, [{"q": "where"}]), given).prompt(0)
    assert prompt is not None
    assert {"prefix": prompt.prefix, "template": prompt.template} == given
    assert prompt.with_prefix("3}") == prompt.with_prefix('{"answer": 3}') == '{"answer": 3}'


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"prefix": " \n"}, "'prefix' is blanks alone"),
        *(
            (
                {"system": system},
                r"'system' is a text, or a list of parts, each a mapping of text, image, video or audio",
            )
            for system in (
                [{"text": "a", "image": "{b}"}],
                [{}],
                [{"picture": "{b}"}],
                [{"text": 3}],
                ["a"],
                7,
                {"text": "a"},
            )
        ),
        ({"template": {"a": [float("inf")]}}, "'template' holds a number that is not finite"),
        ({"template": "enable_thinking"}, "should be a valid dictionary"),
    ],
)
def test_what_cannot_be_a_prompt_is_refused(prompt: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PromptConfig(**prompt)


def test_images_in_parquet_and_several_in_a_column(tmp_path: Path) -> None:
    rows = {
        "image": [{"bytes": png("red"), "path": None}, {"bytes": png("blue"), "path": None}],
        "more": [[png("red"), png("lime")], []],
        "q": ["one", "two"],
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "train.parquet")
    source = source_of(str(tmp_path / "train.parquet"), {"images": ["{image}", "{more}"]})
    first, second = source.prompt(0), source.prompt(1)
    assert first is not None and second is not None
    colors = [part["image"].getpixel((0, 0)) for part in first.messages[0]["content"][:-1]]
    assert colors == [(255, 0, 0), (255, 0, 0), (0, 255, 0)]
    assert first.media_keys[0] == first.media_keys[1] != first.media_keys[2]  # content, not place
    assert len(second.media_keys) == 1
    assert first.sample == {"q": "one"}


MARKED = {
    "images": ["{images}"],
    "audios": ["{sound}"],
    "text": "{q}",
    "marks": {"image": "<image>", "audio": "<audio>"},
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<image> or <image>?", ["audio", "red", " or ", "blue", "?"]),  # no mark of the sound: it comes first
        ("<audio>\nAs in <image><image>", ["audio", "\nAs in ", "red", "blue"]),
        ("No marks.", ["red", "blue", "audio", "No marks."]),
        ("<images>", ["red", "blue", "audio", "<images>"]),
    ],
)
def test_media_stand_where_the_text_marks_them(tmp_path: Path, text: str, shown: list[str]) -> None:
    for colour in ("red", "blue"):
        (tmp_path / f"{colour}.png").write_bytes(png(colour))
    (tmp_path / "tone.wav").write_bytes(wav(0.1))
    path = jsonl(tmp_path, [{"q": text, "images": ["red.png", "blue.png"], "sound": "tone.wav"}])
    prompt = source_of(path, MARKED).prompt(0)
    assert prompt is not None
    (user,) = prompt.messages
    found = []
    for part in user["content"]:
        colour = {"image": lambda part: {(255, 0, 0): "red", (0, 0, 255): "blue"}[part["image"].getpixel((0, 0))]}
        found.append(colour.get(part["type"], lambda part: part.get("text", "audio"))(part))
    assert found == shown
    files = [Path(file).stem.replace("tone", "audio") for file in prompt.media_files if file is not None]
    assert files == [name for name in shown if name in ("audio", "red", "blue")] and len(set(prompt.media_keys)) == 3


def test_a_row_that_marks_more_media_than_it_has_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    rows = [{"q": "<image> <image>", "images": ["red.png"], "sound": None}, {"q": "?", "images": [], "sound": None}]
    source = source_of(jsonl(tmp_path, rows), MARKED)
    assert source.prompt(0) is None and source.prompt(1) is not None
    (broken,) = source.set_aside
    assert broken.reason == "prompt.marks: the text marks 2 media of kind image, the row has 1"


def test_audio_files_become_mono_samples_at_their_own_rate(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(0.5))
    (tmp_path / "b.wav").write_bytes(wav(0.25, 44100))
    (tmp_path / "red.png").write_bytes(png("red"))
    path = jsonl(tmp_path, [{"sound": ["a.wav", "b.wav"], "image": "red.png", "q": "What is louder?"}])
    prompt = source_of(path, {"images": ["{image}"], "audios": ["{sound}"]}).prompt(0)
    assert prompt is not None
    image, first, second, text = prompt.messages[0]["content"]
    assert [part["type"] for part in (image, first, second, text)] == ["image", "audio", "audio", "text"]
    assert (first["sampling_rate"], second["sampling_rate"]) == (16000, 44100)
    assert first["audio"].dtype == np.float32 and first["audio"].shape == (8000,)
    expected, _ = soundfile.read(tmp_path / "b.wav", dtype="float32")
    assert np.array_equal(second["audio"], expected)
    assert len(set(prompt.media_keys)) == 3
    assert prompt.sample == {"q": "What is louder?"}


def test_audio_in_parquet_and_decoded_audio(tmp_path: Path) -> None:
    data = [{"bytes": wav(0.5), "path": "x.wav"}, None]
    pyarrow.parquet.write_table(pyarrow.table({"sound": data, "q": ["one", "two"]}), tmp_path / "train.parquet")
    stored = source_of(str(tmp_path / "train.parquet"), {"audios": ["{sound}"]})
    first, second = stored.prompt(0), stored.prompt(1)
    assert first is not None and second is not None
    assert first.messages[0]["content"][0]["audio"].shape == (8000,) and first.sample == {"q": "one"}
    assert second.media_keys == () and len(second.messages[0]["content"]) == 1
    file = tmp_path / "mine.py"
    file.write_text(
        "def decoded(split):\n"
        "    return [{'sound': {'array': [0.0, 0.5] * 400, 'sampling_rate': 16000, 'path': None},"
        " 'other': {'array': [0.0], 'sampling_rate': 1}, 'q': 'a'}]\n"
    )
    plugins = Plugins({}, PLUGINS.registry, {})
    templates = PromptConfig(text="{q}", audios=["{sound}"])
    source = PromptSource(plugins, SourceConfig(name=f"{file}:decoded"), templates, DataConfig(), name="train")
    prompt = source.prompt(0)
    assert prompt is not None
    assert prompt.messages[0]["content"][0]["audio"][:2].tolist() == [0.0, 0.5]
    assert prompt.sample == {"q": "a"}  # decoded audio outside of media columns does not reach samples either


def test_audio_that_is_broken_or_too_long_or_outside_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "secret.wav").write_bytes(wav(0.5))
    (tmp_path / "media" / "good.wav").write_bytes(wav(0.5))
    (tmp_path / "media" / "long.wav").write_bytes(wav(1.5))
    (tmp_path / "media" / "torn.wav").write_bytes(wav(0.5)[:-40])
    names = ["good.wav", "long.wav", "torn.wav", "gone.wav", "../secret.wav"]
    path = jsonl(tmp_path, [{"n": name, "q": ""} for name in names])
    source = source_of(path, {"audios": ["{n}"], "max_audio_s": 1}, media_root=str(tmp_path / "media"))
    assert [source.prompt(index) is not None for index in range(5)] == [True] + [False] * 4
    reasons = [row.reason for row in source.set_aside]
    wanted = ["1.5 s is more than the limit of 1 s", "torn", "no such file", "leads out of the folder"]
    assert all(want in reason for want, reason in zip(wanted, reasons, strict=True)), reasons
    assert [row.file for row in source.set_aside] == names[1:]


def test_bytes_outside_of_media_columns_do_not_reach_samples(tmp_path: Path) -> None:
    rows = {"thumb": [{"bytes": png("red"), "path": None}], "raw": [b"x"], "q": ["one"]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "train.parquet")
    prompt = source_of(str(tmp_path / "train.parquet")).prompt(0)
    assert prompt is not None and prompt.sample == {"q": "one"}


def test_a_null_medium_is_none_and_a_null_answer_is_no_answer(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"image": None, "q": "a", "gold": None}])
    prompt = source_of(path, {"images": ["{image}"], "answer": "<a>{gold}</a>"}).prompt(0)
    assert prompt is not None
    assert prompt.answer == "" and prompt.media_keys == () and len(prompt.messages[0]["content"]) == 1


def test_paths_of_media_may_be_built_from_columns_and_stay_in_the_root(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "1.png").write_bytes(png("red"))
    (tmp_path / "secret.png").write_bytes(png("red"))
    path = jsonl(tmp_path, [{"n": 1, "q": ""}, {"n": "../secret", "q": ""}, {"n": str(tmp_path / "secret"), "q": ""}])
    source = source_of(path, {"images": ["{n}.png"]}, media_root=str(tmp_path / "media"))
    prompt = source.prompt(0)
    assert prompt is not None and prompt.sample["n"] == 1
    assert source.prompt(1) is None and source.prompt(2) is None
    assert all("leads out of the folder" in row.reason for row in source.set_aside)


def test_broken_rows_are_set_aside_with_file_and_reason(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(png("red"))
    (tmp_path / "torn.png").write_bytes(png("red", (64, 64))[:-40])
    rows = [
        {"image": "good.png", "q": "a"},
        {"image": "torn.png", "q": "b"},
        {"image": "gone.png", "q": "c"},
        '{"image": "good.png", "q',
        {"image": "good.png"},
        {"image": 17, "q": "d"},
    ]
    source = source_of(jsonl(tmp_path, rows), {"images": ["{image}"]})
    assert [source.prompt(index) is not None for index in range(6)] == [True] + [False] * 5
    assert source.prompt(1) is None  # and again
    assert len(source.set_aside) == 5 and source.set_aside.num_read == 6
    assert [row.id for row in source.set_aside] == [f"train:{index}" for index in range(1, 6)]
    files, reasons = [row.file for row in source.set_aside], [row.reason for row in source.set_aside]
    assert files[0].endswith("torn.png") and "torn.png" in reasons[0]
    assert files[1] == "gone.png" and "no such file" in reasons[1]
    assert files[2].endswith("train.jsonl:4") and "broken JSON" in reasons[2]
    assert files[3].endswith("train.jsonl:5") and "no column 'q'" in reasons[3]
    assert "cannot read image 17" in reasons[4]


def test_too_many_broken_rows_stop_the_run(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"q": None if index % 10 == 9 else "a"} for index in range(40)])
    tolerant = source_of(path, max_broken=0.1)
    assert sum(tolerant.prompt(index) is None for index in range(40)) == 4
    strict = source_of(path, max_broken=0.05)
    for index in range(19):
        strict.prompt(index)  # 1 of 19, and too few to judge by
    with pytest.raises(TaskDataError) as caught:
        strict.prompt(19)
    assert "2 of 20 rows of 'train' are broken, more than data.max_broken (0.05) allows" in str(caught.value)
    assert "train:9: prompt.text: column 'q' is null" in str(caught.value)


def test_a_row_read_again_counts_once() -> None:
    broken = SetAside("train", 0.1)
    for _ in range(100):
        broken.add(BrokenRow("train:0", 0, "", "torn"))
    assert broken.num_read == len(broken) == 1


def test_a_column_that_no_row_has_is_the_tasks_mistake(tmp_path: Path) -> None:
    source = source_of(jsonl(tmp_path, ["{", {"problem": "a", "image": None}]), {"text": "{problm}"})
    with pytest.raises(TaskDataError, match=r"prompt\.text: '\{problm\}': .* Did you mean 'problem'\?"):
        source.prompt(1)


def test_sources_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskDataError, match="no such file or folder"):
        source_of(str(tmp_path / "gone.jsonl"))
    with pytest.raises(TaskDataError, match="has no rows"):
        source_of(jsonl(tmp_path, []))
    with pytest.raises(PluginError, match="no option 'pth'"):
        PromptSource(PLUGINS, SourceConfig(name="rows", pth="x"), PromptConfig(), DataConfig(), name="train")
    file = tmp_path / "mine.py"
    file.write_text(
        "def missing(split): return open('nowhere.json')\n"
        "def nothing(split): return 3\n"
        "def odd(split): return ['text', {'q': 'a'}]\n"
    )

    def mine(name: str) -> PromptSource:
        config = SourceConfig(name=f"{file}:{name}")
        return PromptSource(Plugins({}, PLUGINS.registry, {}), config, PromptConfig(text="{q}"), DataConfig(), name="v")

    with pytest.raises(TaskDataError, match=r"data\.v.*nowhere\.json is missing"):
        mine("missing")
    with pytest.raises(TaskDataError, match="returned int, not a sequence of rows"):
        mine("nothing")
    odd = mine("odd")
    assert odd.prompt(0) is None and odd.prompt(1) is not None
    assert "the row is str, not a mapping" in next(iter(odd.set_aside)).reason


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"q": str(index)} for index in range(5)])
    assert len(source_of(path, limit=3)) == 3 and len(source_of(path, limit=30)) == 5
    with pytest.raises(IndexError):
        source_of(path, limit=3).prompt(3)


def test_epoch_orders_are_permutations_fixed_by_seed_and_epoch() -> None:
    assert sorted(epoch_order(100, 0, 0)) == list(range(100))
    assert epoch_order(100, 0, 0) == epoch_order(100, 0, 0)
    orders = [epoch_order(100, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))
    epoch_order(100, 0, 0).clear()  # a caller's list is its own
    assert len(epoch_order(100, 0, 0)) == 100
    # Recorded once: a change would silently change what resumed runs see.
    assert epoch_order(8, 0, 0) == [0, 6, 4, 3, 1, 7, 2, 5]


def numbered(tmp_path: Path, num_rows: int, broken: Sequence[int] = ()) -> PromptSource:
    rows = [{"q": None if index in broken else str(index), "i": index} for index in range(num_rows)]
    return source_of(jsonl(tmp_path, rows), max_broken=1.0)


def test_draws_go_through_epochs_and_resume_from_a_position(tmp_path: Path) -> None:
    source = numbered(tmp_path, 10)
    position, drawn, finished = 0, [], 0
    for _ in range(5):
        drawing = Mixture([source]).draw(position, 4, seed=3)
        position = drawing.position
        drawn += [prompt.sample["i"] for prompt in drawing.prompts]
        finished += drawing.epochs_finished
    assert drawn == epoch_order(10, 3, 0) + epoch_order(10, 3, 1)
    assert (position, finished) == (20, 2)
    resumed = Mixture([numbered(tmp_path, 10)]).draw(8, 4, seed=3)
    assert [prompt.sample["i"] for prompt in resumed.prompts] == drawn[8:12]
    assert resumed.epochs_finished == 1
    assert Mixture([source]).draw(0, 35, seed=3).epochs_finished == 3


@pytest.mark.parametrize("broken", [[], [0, 3, 4, 9, 11]])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_a_draw_and_advance_alike(tmp_path: Path, broken: list[int], world_size: int) -> None:
    whole = Mixture([numbered(tmp_path, 12, broken)]).draw(12, 6, seed=1)
    parts = [
        Mixture([numbered(tmp_path, 12, broken)]).draw(12, 6, seed=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    merged: list[Any] = [None] * 6
    for rank, part in enumerate(parts):
        assert part.position == whole.position == 18
        merged[rank::world_size] = [prompt.id for prompt in part.prompts]
    assert merged == [prompt.id for prompt in whole.prompts]
    assert broken or len(set(merged)) == 6


def test_a_broken_row_is_stood_in_for(tmp_path: Path) -> None:
    order = epoch_order(12, 1, 0)
    source = numbered(tmp_path, 12, [order[1], order[4]])  # the second, and the one three further on
    drawn = [prompt.sample["i"] for prompt in Mixture([source]).draw(0, 3, seed=1).prompts]
    assert drawn == [order[0], order[7], order[2]]


def test_one_sound_row_is_found_and_none_is_an_error(tmp_path: Path) -> None:
    one = numbered(tmp_path, 12, range(11))
    assert [prompt.sample["i"] for prompt in Mixture([one]).draw(5, 12, seed=0).prompts] == [11] * 12
    with pytest.raises(TaskDataError, match="none of the 12 rows of 'train' can be read"):
        Mixture([numbered(tmp_path, 12, range(12))]).draw(0, 2, seed=0)


# Texts


def test_halves_of_characters_in_data_become_replacement_characters(tmp_path: Path) -> None:
    text = '{"q": "a\\ud800b \\ud83d\\ude00", "list": [{"k\\udfff": "\\udc00"}], "gold": "\\ud812"}'
    prompt = source_of(jsonl(tmp_path, [text]), {"answer": "{gold}"}).prompt(0)
    assert prompt is not None
    assert prompt.messages[0]["content"][0]["text"] == "a\ufffdb \U0001f600"
    assert prompt.sample["list"] == [{"k\ufffd": "\ufffd"}] and prompt.answer == "\ufffd"
    json.dumps([prompt.messages, prompt.sample], ensure_ascii=False).encode()


def test_halves_of_characters_from_any_source_and_in_reasons_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def rows(split):\n"
        "    return [{'q': 'a\\ud800'}, {'q': None, 'image': '\\ud801.png'}, {'q': 'x', 'image': 5}]\n"
    )
    config = SourceConfig(name=f"{tmp_path}/own.py:rows")
    prompt = PromptConfig(text="{q}", images=["{image}"])
    source = PromptSource(PLUGINS, config, PromptConfig(text="{q}"), DataConfig(max_broken=1.0), name="train")
    first = source.prompt(0)
    assert first is not None and first.sample == {"q": "a\ufffd"}
    source = PromptSource(PLUGINS, config, prompt, DataConfig(max_broken=1.0), name="train")
    assert [source.prompt(index) for index in range(3)] == [None, None, None]
    for row in source.set_aside:
        (row.reason + row.file).encode()


@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_messages_of_a_chat_are_no_text(tmp_path: Path, keys: tuple[str, str]) -> None:
    turns = [dict(zip(keys, turn, strict=True)) for turn in (("user", "Why?"), ("assistant", "So."))]
    chats = [turns, turns[0], json.dumps(turns), json.dumps(turns[0])]  # cells of tables hold them as JSON
    texts = [[{"role": "x"}], json.dumps([{"role": "x"}]), '[{"role"', f"Who speaks? {json.dumps(turns)}"]
    source = source_of(jsonl(tmp_path, [{"q": value} for value in chats + texts]), max_broken=1.0)
    assert [source.prompt(index) is None for index in range(8)] == [True] * 4 + [False] * 4
    said = {row.reason.partition("; ")[0] for row in source.set_aside}
    assert {line.partition("column")[2] for line in said} == {" 'q' holds the messages of a chat, not a text"}


@pytest.mark.parametrize(
    ("row", "prompt", "said"),
    [
        (
            {"q": "<image>What?", "image": "a.png"},
            {"images": ["{image}"]},
            "the model reads it as text, behind the image",
        ),
        (
            {"q": "Hear <audio>", "image": None},
            {},
            "and the row has no audio. Set prompt.marks to {audio: '<audio>'}, and",
        ),
        ({"q": "<image>What?", "image": "a.png"}, {"images": ["{image}"], "marks": {"image": "<image>"}}, None),
        ({"q": "What?", "image": "a.png"}, {"images": ["{image}"]}, None),
    ],
)
def test_marks_that_nobody_set_are_noticed_once(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    row: dict[str, Any],
    prompt: dict[str, Any],
    said: str | None,
) -> None:
    (tmp_path / "a.png").write_bytes(png("red"))
    source = source_of(jsonl(tmp_path, [row, row]), prompt)
    assert source.prompt(0) is not None and source.prompt(1) is not None
    assert caplog.text.count("marks are off") == (said is not None)
    assert said is None or (source.marks_off is not None and said in source.marks_off)


def test_the_limits_of_images_are_keys(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png("red", (20, 10)))
    path = jsonl(tmp_path, [{"q": "x", "image": "a.png"}])
    source = source_of(path, {"images": ["{image}"]}, max_image_pixels=199, max_broken=1.0)
    assert source.prompt(0) is None
    assert "20 x 10 is more than 199 pixels" in next(iter(source.set_aside)).reason
    assert source_of(path, {"images": ["{image}"]}, max_image_pixels=200).prompt(0) is not None
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PPM")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert source_of(path, {"images": ["{image}"]}).prompt(0) is None
    assert source_of(path, {"images": ["{image}"]}, image_formats=["PPM"]).prompt(0) is not None


def test_a_path_from_the_working_folder_has_to_lead_into_that_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    for name in ("data/in.png", "out.png"):
        (tmp_path / name).write_bytes(png("red"))
    monkeypatch.chdir(tmp_path)
    source = source_of(
        jsonl(tmp_path / "data", [{"q": "x", "image": name} for name in ("data/in.png", "out.png")]),
        {"images": ["{image}"]},
        max_broken=1.0,
    )
    assert source.prompt(0) is not None and source.prompt(1) is None
    assert "leads out of the folder" in next(iter(source.set_aside)).reason


def test_rows_of_the_hub_reach_what_datasets_has_unpacked_and_no_other_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    cache, work = tmp_path / "cache", tmp_path / "work"
    for folder in (cache, work):
        folder.mkdir()
        (folder / "a.png").write_bytes(png("red"))
    (tmp_path / "a.png").write_bytes(png("red"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.chdir(work)
    images = [str(cache / "a.png"), {"path": "a.png", "bytes": None}, str(tmp_path / "a.png"), "../a.png"]
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([{"q": "x", "image": images[number]}])
    )
    for number, is_read in enumerate((True, True, False, False)):
        config = SourceConfig(name="rows", path="owner/name")
        prompt = PromptConfig(text="{q}", images=["{image}"])
        source = PromptSource(PLUGINS, config, prompt, DataConfig(max_broken=1.0), name="train")
        assert (source.prompt(0) is not None) == is_read, images[number]

"""What holds for the rows of every installed source: which files they reach, and what hostile files cost.

A source that is installed and not in the table of `tests.source_cases` fails here until it is.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from PIL import Image

from mmrl_core.plugins import load_plugins
from mmrl_core.testing import SUFFIX, SourceCase, medium_bytes, video_bytes
from tests.source_cases import CASES, WITHOUT_MEDIA_FILES

PLUGINS = load_plugins()
EVERY = [
    pytest.param(name, case, id=f"{name}-{i}")
    for name, cases in CASES.items()
    for i, case in enumerate(cases)
    if case.kind is not None
]

seen: list[tuple[str, str]] = []  # (event, its first argument) of the interpreter, while a test watches
watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if watching and event in ("open", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        seen.append((event, str(arguments[0])))


sys.addaudithook(_watch)


@pytest.fixture
def events() -> Iterator[list[tuple[str, str]]]:
    """What is opened and started from here on."""
    global watching
    seen.clear()
    watching = True
    yield seen
    watching = False


def broken(source: Any) -> str:
    """Why the only row of a source is set aside."""
    assert source.prompt(0) is None
    return next(iter(source.set_aside)).reason


def test_every_installed_source_is_in_the_table() -> None:
    installed = {entry.id for entry in PLUGINS.registry.entries("source")}
    assert installed == set(CASES) | WITHOUT_MEDIA_FILES, "add the source to tests/source_cases.py"


def test_sources_without_media_files_give_what_a_run_reads_without_a_root(tmp_path: Path) -> None:
    for name, kind in (("audio_aqa/melodies", "audio"), ("vital/tool_videos", "video")):
        case = SourceCase(lambda folder, _: {"num_rows": 1, "cache_dir": str(folder)}, kind=kind, column=kind)
        assert case.open(PLUGINS, name, tmp_path, None).prompt(0) is not None


# Which files are reached


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_a_medium_in_the_folder_of_the_data_is_read(name: str, case: SourceCase, tmp_path: Path) -> None:
    (tmp_path / f"a{SUFFIX[case.kind]}").write_bytes(medium_bytes(case.kind))
    prompt = case.open(PLUGINS, name, tmp_path, f"a{SUFFIX[case.kind]}").prompt(0)
    assert prompt is not None and prompt.messages[0]["content"][0]["type"] == case.kind
    if case.kind == "image":
        assert {part["image"].size for part in prompt.messages[0]["content"][:-1]} == {(40, 40)}


def _up(folder: Path, name: str) -> str:
    return f"../{name}"


def _absolute(folder: Path, name: str) -> str:
    return str(folder.parent / name)


def _inside_and_up(folder: Path, name: str) -> str:
    (folder / "x").mkdir()
    return f"x/../../{name}"


def _link(folder: Path, name: str) -> str:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder.parent / name)
    return name


def _linked_folder(folder: Path, name: str) -> str:
    (folder / "media").symlink_to(folder.parent)
    return f"media/{name}"


def _pipe(folder: Path, name: str) -> str:
    os.mkfifo(folder / name)
    return name


def _device(folder: Path, name: str) -> str:
    (folder / name).symlink_to("/dev/zero")
    return name


OUTSIDE = {
    "up": (_up, "leads out of"),
    "absolute": (_absolute, "leads out of"),
    "inside and up": (_inside_and_up, "leads out of"),
    "a link": (_link, "leads out of"),
    "a linked folder": (_linked_folder, "leads out of"),
    "a pipe": (_pipe, "only regular files are read|no such file|no image of that name"),
    "a device": (_device, "leads out of|no such file|no image of that name"),
}


REACHED = [
    pytest.param(*case.values, place, id=f"{case.id}-{place}")
    for case in EVERY
    for place in OUTSIDE
    if case.values[1].names_files or place in ("a link", "a pipe", "a device")
]


@pytest.mark.parametrize(("name", "case", "place"), REACHED)
def test_no_source_reaches_a_file_outside_of_its_folder(
    name: str, case: SourceCase, place: str, tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    make, why = OUTSIDE[place]
    (tmp_path / "data").mkdir()
    secret = tmp_path / f"secret{SUFFIX[case.kind]}"
    secret.write_bytes(medium_bytes(case.kind))
    events.clear()
    source = case.open(PLUGINS, name, tmp_path / "data", make(tmp_path / "data", secret.name))
    reason = broken(source)
    assert any(part in reason for part in why.split("|")), reason
    reached = {Path(argument).resolve() for event, argument in events if event == "open"}
    assert secret not in reached and Path("/dev/zero") not in reached


# Hostile files


def eps() -> bytes:
    """A picture in EPS, whose PostScript Pillow has Ghostscript run."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "EPS")
    return buffer.getvalue()


def large_png(width: int = 12_000, height: int = 12_000) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def long_flac() -> bytes:
    """Small, and by its header 8 channels of 599 s at 192 kHz."""
    buffer = io.BytesIO()
    soundfile.write(buffer, [[0.0] * 8] * 4096, 192_000, format="FLAC")
    data = bytearray(buffer.getvalue())
    data[21:26] = ((data[21] >> 4) << 36 | 599 * 192_000).to_bytes(5, "big")  # the low 36 bits of STREAMINFO's field
    return bytes(data)


HOSTILE: dict[str, dict[str, tuple[Callable[[], bytes], str]]] = {
    "another format": {
        "image": (eps, "not an image file of the formats PNG, JPEG, WEBP, GIF, BMP, TIFF"),
        "audio": (lambda: b"#!/bin/sh\necho\n" * 9, "not a wav, flac, mp3 or ogg file"),
        "video": (lambda: b"#EXTM3U\n/etc/passwd\n" * 9, "torn or not a video"),
    },
    "too large": {
        "image": (large_png, "12000 x 12000 is more than 51380224 pixels"),
        "audio": (long_flac, "115008000 samples of 8 channels at 192000 Hz are more than the limit of 115200000"),
        "video": (lambda: video_bytes(8000, 1), "8000 x 8000 is more than 35389440 pixels a frame"),
    },
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize(("name", "case"), EVERY)
def test_a_hostile_file_sets_its_row_aside_and_starts_nothing(
    name: str, case: SourceCase, what: str, tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    make, why = HOSTILE[what][case.kind]
    (tmp_path / f"a{SUFFIX[case.kind]}").write_bytes(make())
    assert why in broken(case.open(PLUGINS, name, tmp_path, f"a{SUFFIX[case.kind]}"))
    assert [event for event, _ in events if event != "open"] == []


# Media that a model cannot take


AUDIO = [case for case in EVERY if case.values[1].kind == "audio"]
IMAGES = [case for case in EVERY if case.values[1].kind == "image"]


@pytest.mark.parametrize(("name", "case"), AUDIO)
def test_audio_above_the_limit_of_the_task_sets_its_row_aside_unless_the_source_cuts_it(
    name: str, case: SourceCase, tmp_path: Path
) -> None:
    (tmp_path / "a.wav").write_bytes(medium_bytes("audio"))
    source = dataclasses.replace(case, prompt={"max_audio_s": 0.2}).open(PLUGINS, name, tmp_path, "a.wav")
    if "cut_to_s" in case.write(tmp_path, "a.wav"):
        assert source.prompt(0) is not None
    else:
        assert "0.5 s is more than the limit of 0.2 s" in broken(source)


@pytest.mark.parametrize(("name", "case"), IMAGES)
def test_a_picture_of_extreme_sides_ends_no_source(name: str, case: SourceCase, tmp_path: Path) -> None:
    Image.new("RGB", (9000, 40)).save(tmp_path / "a.png")
    source = case.open(PLUGINS, name, tmp_path, "a.png")
    if name.startswith("gui/"):  # which resizes as the model does
        assert "the model takes sides of a ratio up to 200 only" in broken(source)
    elif name == "visual_rft/coco":  # whose annotation is of 40 x 40
        assert "the file holds one of 9000 x 40" in broken(source)
    else:
        prompt = source.prompt(0)
        assert prompt is not None and prompt.messages[0]["content"][0]["image"].size == (9000, 40)


# Media in the row


def _uri(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


INLINE: dict[str, Callable[[bytes], Any]] = {
    "plain": lambda data: base64.b64encode(data).decode(),
    "with line breaks": lambda data: base64.encodebytes(data).decode(),
    "data URI": _uri,
    "bytes": lambda data: {"bytes": base64.b64encode(data).decode(), "path": None},
    "url": lambda data: {"url": _uri(data)},
}
INLINE_IMAGES = INLINE | {"image_url": lambda data: {"type": "image_url", "image_url": {"url": _uri(data)}}}


@pytest.mark.parametrize(("name", "case"), [case for case in EVERY if case.values[1].inline])
def test_base64_in_the_row_is_the_medium(name: str, case: SourceCase, tmp_path: Path) -> None:
    for form, write in (INLINE if case.kind == "audio" else INLINE_IMAGES).items():
        prompt = case.open(PLUGINS, name, tmp_path, write(medium_bytes(case.kind))).prompt(0)
        assert prompt is not None and prompt.messages[0]["content"][0]["type"] == case.kind, form


@pytest.mark.parametrize(("name", "case"), [case for case in EVERY if case.values[1].inline])
def test_what_is_neither_bytes_nor_path_is_refused(name: str, case: SourceCase, tmp_path: Path) -> None:
    for form in ({"bytes": "no base64"}, {"bytes": [137, 80]}, {"bytes": 5}, "data:image/png,abc", 7):
        assert "cannot read" in broken(case.open(PLUGINS, name, tmp_path, form))


def test_every_case_writes_what_json_can_hold(tmp_path: Path) -> None:
    """The options of a case are those of a YAML."""
    for cases in CASES.values():
        for number, case in enumerate(cases):
            folder = tmp_path / str(number)
            folder.mkdir(exist_ok=True)
            assert json.dumps(case.write(folder, case.medium))

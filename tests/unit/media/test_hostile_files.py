"""Files made to cost memory, to start programs or to lie about their size; and that nobody opens media but one room."""

from __future__ import annotations

import ast
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmrl_core.config.schema import DataConfig, VideoConfig
from mmrl_core.errors import MediaError, TaskDataError
from mmrl_core.language_model.options import LanguageModelOptions
from mmrl_core.media import (
    IMAGE_FORMATS,
    MAX_IMAGE_PIXELS,
    audio_seconds,
    content_hash,
    image_header,
    image_size,
    load_audio,
    load_image,
    load_video,
    media_file,
    video,
    video_libraries,
)
from mmrl_core.testing import video_bytes

ROOT = Path(__file__).parents[3]


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_the_default_of_the_config_is_the_limit_of_the_room() -> None:
    assert DataConfig().max_image_pixels == MAX_IMAGE_PIXELS


# Formats


@pytest.mark.parametrize("format", IMAGE_FORMATS)
def test_the_named_formats_are_read_whatever_the_file_is_called(format: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.eps"
    path.write_bytes(encoded(Image.new("RGB", (6, 4), "red"), format))
    assert load_image(path.name, root=tmp_path).size == image_size(path.name, root=tmp_path) == (6, 4)


@pytest.mark.parametrize("format", ["EPS", "PPM", "PCX", "TGA", "ICO", "PDF"])
def test_other_formats_are_refused_as_files_and_as_pictures_that_wait_to_be_decoded(format: str) -> None:
    data = encoded(Image.new("RGB", (16, 16), "red"), format)
    with pytest.raises(MediaError, match=r"not an image file of the formats PNG, .*data\.image_formats opens more"):
        load_image(data, root=None)
    if format != "PDF":  # which Pillow cannot open at all
        with pytest.raises(MediaError, match=f"a file of the format {format} is not decoded"):
            load_image(Image.open(io.BytesIO(data)), root=None)


def test_a_key_opens_more_formats() -> None:
    data = encoded(Image.new("RGB", (16, 16), "red"), "PPM")
    assert load_image(data, root=None, formats=["PPM"]).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(ValueError, match="image_formats"):
        DataConfig(image_formats=["EPS"])


# Sizes from headers


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_the_size_in_the_header_is_that_of_the_upright_picture(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.new("RGB", (6, 4), "red"), format, exif=exif)
    assert image_size(data, root=None) == load_image(data, root=None).size
    assert image_header(data, root=None)[2] == orientation


def test_an_orientation_behind_the_pixels_of_a_png_counts_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (6, 4), "red"), "PNG", exif=exif)
    start = data.index(b"eXIf") - 4
    length = int.from_bytes(data[start : start + 4], "big") + 12
    chunk, without = data[start : start + length], data[:start] + data[start + length :]
    end = without.rindex(b"IEND") - 4
    moved = without[:end] + chunk + without[end:]
    assert image_size(moved, root=None) == load_image(moved, root=None).size == (4, 6)


def test_a_png_is_not_decoded_to_learn_its_size() -> None:
    torn = encoded(Image.effect_noise((64, 64), 50), "PNG")[:500]  # its pixels cannot be decoded
    assert image_size(torn, root=None) == (64, 64)
    with pytest.raises(MediaError):
        load_image(torn, root=None)


def test_a_jpeg_over_the_limit_is_decoded_at_half_its_sides_and_other_formats_are_refused() -> None:
    picture = Image.new("RGB", (64, 48), "red")
    assert load_image(encoded(picture, "JPEG"), root=None, max_pixels=32 * 24).size == (32, 24)
    assert load_image(encoded(picture, "JPEG"), root=None, max_pixels=64 * 48).size == (64, 48)
    for data in (encoded(picture, "PNG"), encoded(picture, "JPEG", progressive=True)):
        with pytest.raises(MediaError, match="64 x 48 is more than 768 pixels"):
            load_image(data, root=None, max_pixels=32 * 24)
    with pytest.raises(MediaError, match="32 x 24 is more than 767 pixels"):
        load_image(encoded(picture, "JPEG"), root=None, max_pixels=767)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"quality": 50, "exif": b"Exif\0\0"}])
def test_a_webp_over_the_limit_is_refused_by_its_header(options: dict[str, object]) -> None:
    data = encoded(Image.new("RGB", (70, 30), "red"), "WEBP", **options)
    with pytest.raises(MediaError, match="70 x 30 is more than 2099 pixels"):
        load_image(data, root=None, max_pixels=2099)
    assert load_image(data, root=None, max_pixels=2100).size == (70, 30)


@pytest.mark.parametrize(
    ("mode", "pixel", "shown"),
    [("RGBA", (255, 0, 0, 0), (255, 255, 255)), ("I;16", 257 * 200, (200, 200, 200)), ("F", 0.2, (51, 51, 51))],
)
@pytest.mark.parametrize("size", [(1500, 1500), (1, 2_100_000), (2_100_000, 1)])
def test_strips_are_converted_as_the_whole(
    mode: str, pixel: object, shown: tuple[int, ...], size: tuple[int, int]
) -> None:
    picture = Image.new(mode, size, pixel)
    loaded = load_image(picture, root=None)
    assert loaded.size == size and loaded.getextrema() == tuple((level, level) for level in shown)


def test_a_float_picture_with_pixels_that_are_no_numbers_is_scaled_by_the_others() -> None:
    values = np.array([[np.nan, 51.0, 255.0, np.inf]], np.float32)
    loaded = load_image(Image.fromarray(values), root=None)
    assert [loaded.getpixel((x, 0))[0] for x in range(4)] == [0, 51, 255, 255]


# Audio


def flac(channels: int, rate: int, frames: int) -> bytes:
    """A short file whose header promises so many frames."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((8192, channels), np.float32), rate, format="FLAC")
    data = bytearray(buffer.getvalue())
    data[21:26] = (data[21] >> 4 << 36 | frames).to_bytes(5, "big")
    return bytes(data)


def test_audio_of_many_values_is_refused_by_its_header() -> None:
    data = flac(8, 192_000, 599 * 192_000)
    for read in (load_audio, audio_seconds):
        with pytest.raises(MediaError, match=r"8 channels at 192000 Hz are more than the limit of 115200000 for 600 s"):
            read(data, root=None)
    assert audio_seconds(flac(2, 48_000, 48_000), root=None) == 1.0


@pytest.mark.parametrize("kind", [np.complex64, np.uint8, np.int64, np.bool_])
def test_samples_of_a_type_without_a_full_scale_are_refused(kind: type) -> None:
    with pytest.raises(MediaError, match="give floats of full scale"):
        load_audio({"array": np.ones(900, kind), "sampling_rate": 16000}, root=None)


# What it costs


COSTS = """
import io, resource, sys
import numpy, soundfile, PIL.Image, PIL.PngImagePlugin, PIL.TiffImagePlugin, PIL.WebPImagePlugin
from mmrl_core.errors import MediaError, TaskDataError
from mmrl_core.language_model.options import LanguageModelOptions
from mmrl_core.media import load_audio, load_image
from pathlib import Path

load_image(PIL.Image.new("RGB", (8, 8)), root=None)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (260 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sorted(Path(sys.argv[1]).iterdir()):
    load = load_audio if path.suffix in (".flac", ".ogg") else load_image
    try:
        load(path, root=None)
        print(path.name, "read")
    except MediaError as error:
        print(path.name, "refused", error)
"""


def large_png(width: int, height: int) -> bytes:
    """By its header; there are almost no pixels in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def write_bombs(folder: Path) -> None:
    """Small files of many pixels or samples; those that are decoded have a quarter of the pixels that may be."""
    side = 3584
    (folder / "narrow.png").write_bytes(large_png(1, 1 << 27))
    Image.new("I;16", (side, side)).save(folder / "grey16.png", compress_level=1)
    Image.new("F", (side, side)).save(folder / "float.tiff", compression="tiff_adobe_deflate")
    Image.new("RGBA", (side, side)).save(folder / "clear.png", compress_level=1)
    header = b"RIFF" + (22).to_bytes(4, "little") + b"WEBPVP8L" + (10).to_bytes(4, "little") + b"\x2f"
    (folder / "wide.webp").write_bytes(header + (16383 | 16383 << 14).to_bytes(4, "little") + bytes(5))
    (folder / "long.flac").write_bytes(flac(8, 192_000, 599 * 192_000))
    with soundfile.SoundFile(folder / "decoded.ogg", "w", 48_000, 2, format="OGG") as file:
        for _ in range(60):  # libsndfile ends the process when it is given much at once
            file.write(np.zeros((48_000, 2), np.float32))


def test_small_files_do_not_cost_gigabytes(tmp_path: Path) -> None:
    write_bombs(tmp_path)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COSTS, str(tmp_path)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = {line.split()[0]: line.split(maxsplit=2)[1] for line in done.stdout.splitlines()}
    read, refused = ("clear.png", "decoded.ogg", "float.tiff", "grey16.png"), ("long.flac", "narrow.png", "wide.webp")
    assert outcome == dict.fromkeys(read, "read") | dict.fromkeys(refused, "refused"), done.stdout


def test_many_large_frames_of_a_video_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").write_bytes(video_bytes(64, 10))
    assert len(load_video("a.mp4", root=tmp_path, num_frames=10).frames) == 10
    monkeypatch.setattr(video, "MAX_DECODED_PIXELS", 9 * 64 * 64)
    with pytest.raises(MediaError, match="10 frames of 64 x 64 are more than 36864 pixels to decode; sample fewer"):
        load_video("a.mp4", root=tmp_path, num_frames=10)
    monkeypatch.setattr(video_libraries, "MAX_FRAMES", 9)
    (tmp_path / "b.mp4").write_bytes(video_bytes(64, 10))
    with pytest.raises(MediaError, match="it has more than 9 frames; cut it into parts"):
        load_video("b.mp4", root=tmp_path)


# One room opens media


OPENERS = {"Image.open", "soundfile.read", "soundfile.SoundFile", "soundfile.info", "av.open", "torchaudio.load"}
OPENING_ALLOWED = {
    "mmrl_core/cli/scaffold/rows.py",  # writes videos
    "mmrl_core/runs/report/media.py",  # the frames of a film of the run, after `load_image` has looked at it
    "mmrl_core/testing/source_case.py",  # writes videos
    "mmrl_core/testing/models/tower.py",  # pictures that it drew itself
    "plugins/mmrl-vital/src/mmrl_vital/demo_data.py",  # writes videos
}


VOUCHED = {
    "mmrl_core/cli/answering.py",  # reads what a task of another framework, whose code runs already, has put together
    "plugins/mmrl-vital/src/mmrl_vital/tools.py",  # reads what the prompt was read from, again
}


def _calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def test_nobody_but_the_media_room_opens_media_files() -> None:
    sources = [*ROOT.glob("mmrl_core/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")]
    opening, without_root = [], []
    for path in sources:
        place = str(path.relative_to(ROOT))
        if place.startswith("mmrl_core/media/"):
            continue
        for call in _calls(path):
            if ast.unparse(call.func) in OPENERS and place not in OPENING_ALLOWED:
                opening.append(f"{place}:{call.lineno}")
            roots = [word.value for word in call.keywords if word.arg == "root"]
            if ast.unparse(call.func) == "picture_frame":
                roots += call.args[1:]
            if ast.unparse(call.func) in ("load_video", "open_video") and not roots and place not in VOUCHED:
                without_root.append(f"{place}:{call.lineno}")
            if any(isinstance(root, ast.Constant) and root.value is None for root in roots) and place not in VOUCHED:
                without_root.append(f"{place}:{call.lineno}")
    assert opening == [], "read media with mmrl_core.media, which holds formats, sizes and folders"
    assert without_root == [], "give the folder that the path may not leave"


# Paths


@pytest.mark.parametrize("path", ["\ud800.png", "x" * 5000, "a\0b.png", "/proc/self/mem"])
def test_a_path_that_no_file_has_is_a_media_error(path: str, tmp_path: Path) -> None:
    for read in (load_image, load_audio, content_hash, image_size):
        with pytest.raises(MediaError):
            read(path, root=tmp_path)


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(MediaError, match="it has 1099511627776 bytes, more than the limit of 536870912"):
        load_image("sparse.png", root=tmp_path)


def test_a_snapshot_in_the_cache_of_the_hub_is_read_through_its_links(tmp_path: Path) -> None:
    repository = tmp_path / "datasets--a--b"
    snapshot, blob = repository / "snapshots" / "abc", repository / "blobs" / "123"
    snapshot.mkdir(parents=True)
    blob.parent.mkdir()
    blob.write_bytes(encoded(Image.new("RGB", (6, 4), "red"), "PNG"))
    (snapshot / "red.png").symlink_to("../../blobs/123")
    assert load_image("red.png", root=snapshot).size == (6, 4)
    assert media_file("red.png", root=snapshot, must_exist=True) == str(blob)
    (tmp_path / "secret.png").write_bytes(blob.read_bytes())
    with pytest.raises(MediaError, match="leads out"):
        load_image("../../../secret.png", root=snapshot)


# Limits out of order


def test_a_least_size_above_the_largest_is_refused_with_both_keys(tmp_path: Path) -> None:
    from mmrl_gui.data import gui_r1

    limits = {"min_pixels": 5000, "max_pixels": 4000}
    for section in (VideoConfig, LanguageModelOptions):
        with pytest.raises(ValueError, match="min_pixels 5000 is more than max_pixels 4000"):
            section(**limits)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(TaskDataError, match="min_pixels 5000 is more than max_pixels 4000"):
        gui_r1("train", path=str(tmp_path / "rows.jsonl"), **limits)

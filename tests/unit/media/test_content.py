"""Any stored form of an image or audio becomes upright RGB or mono sound, anything else a MediaError with its cause."""

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmrl_core.errors import MediaError
from mmrl_core.media import content_hash, load_audio, load_image, media_file, resample_audio, resized_size


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, **({"format": "PNG"} | options))
    return file.getvalue()


@pytest.fixture
def red():
    return Image.new("RGB", (6, 4), (255, 0, 0))


def test_every_stored_form_gives_the_same_pixels(red, tmp_path):
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "red.png"
    path.write_bytes(encoded(red))
    forms = [
        red,
        encoded(red),
        bytearray(encoded(red)),
        {"bytes": encoded(red), "path": None},
        {"bytes": encoded(red), "path": "elsewhere.png"},
        {"bytes": None, "path": "sub/red.png"},
        "sub/red.png",
        "./sub/../sub/red.png",
        str(path),
        path,
    ]
    for form in forms:
        image = load_image(form, root=tmp_path)
        assert image.mode == "RGB" and image.tobytes() == red.tobytes(), form
    assert load_image(str(path), root=None).tobytes() == red.tobytes()


def test_transparency_is_laid_over_white():
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert load_image(encoded(half), root=None).getpixel((0, 0)) == (255, 127, 127)
    clear = Image.new("LA", (1, 1), (0, 0))
    assert load_image(encoded(clear), root=None).getpixel((0, 0)) == (255, 255, 255)


def test_palette_with_transparent_colour_becomes_white_there():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    loaded = load_image(encoded(image, transparency=1), root=None)
    assert [loaded.getpixel((x, 0)) for x in range(2)] == [(255, 0, 0), (255, 255, 255)]


def test_16_bit_grey_is_scaled_and_not_clipped():
    values = np.array([[0, 257 * 200, 65535]], dtype=np.uint16)
    loaded = load_image(encoded(Image.fromarray(values)), root=None)
    assert [loaded.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (200, 200, 200), (255, 255, 255)]


def test_float_grey_in_0_to_1_is_scaled_to_255():
    loaded = load_image(Image.fromarray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32)), root=None)
    assert [loaded.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (51, 51, 51), (255, 255, 255)]


def test_cmyk_becomes_rgb():
    # Cyan absorbs red; JPEG moves a flat colour by at most a few levels.
    loaded = load_image(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), format="JPEG"), root=None)
    assert np.abs(np.array(loaded.getpixel((4, 4))) - (0, 255, 255)).max() <= 3


def test_exif_rotation_is_applied_once():
    image = Image.new("RGB", (4, 2), (0, 0, 0))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: turn 90 degrees clockwise to see it upright
    upright = load_image(encoded(image, exif=exif), root=None)
    assert upright.size == (2, 4) and upright.getpixel((1, 0)) == (255, 255, 255)
    assert load_image(upright, root=None).size == (2, 4)


def test_an_unreadable_exif_block_does_not_break_the_image(red):
    assert load_image(encoded(red, format="JPEG", exif=b"Exif\0\0garbage"), root=None).size == (6, 4)


def test_first_frame_of_an_animation_is_taken(red):
    blue = Image.new("RGB", (6, 4), (0, 0, 255))
    data = encoded(red, format="GIF", save_all=True, append_images=[blue])
    assert load_image(data, root=None).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("text.png", b"this is no image", "not an image file"),
        ("empty.png", b"", "empty"),
        ("torn.png", encoded(Image.effect_noise((64, 64), 50))[:500], "OSError"),
        ("torn.jpg", encoded(Image.effect_noise((64, 64), 50), format="JPEG")[:400], "truncated"),
        ("header.png", encoded(Image.new("L", (9, 9)))[:20], "cannot read"),
    ],
)
def test_a_broken_file_is_a_media_error_with_name_and_cause(tmp_path, name, data, why):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MediaError, match=why) as caught:
        load_image(name, root=tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(MediaError):
        load_image(data, root=None)


@pytest.mark.parametrize("path", ["missing.png", ".", "a\0b"])
def test_a_path_that_is_no_file_is_a_media_error(tmp_path, path):
    with pytest.raises(MediaError, match="cannot read image"):
        load_image(path, root=tmp_path)


@pytest.mark.parametrize("value", [None, 3, {}, {"bytes": None, "path": None}, "", [1, 2]])
def test_a_value_that_is_no_medium_is_a_media_error(value):
    with pytest.raises(MediaError, match="expected a path"):
        load_image(value, root=None)


@pytest.mark.parametrize("address", ["https://host/a.png", "file:///etc/hostname", {"url": "http://host/b"}])
def test_addresses_are_not_fetched(address):
    with pytest.raises(MediaError, match="not fetched"):
        load_image(address, root=None)


def test_no_path_leaves_the_root(red, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(red))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    for path in ("../secret.png", str(tmp_path / "secret.png"), "x/../../secret.png", "link.png"):
        with pytest.raises(MediaError, match="leads out of the folder"):
            load_image(path, root=root)
        with pytest.raises(MediaError, match="leads out of the folder"):
            content_hash(path, root=root)
        with pytest.raises(MediaError, match="leads out of the folder"):
            media_file(path, root=root)


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("side", "limit"), [(12_000, 51_380_224), (60_000, 178_956_970)])
def test_a_decompression_bomb_is_refused_before_decoding(side, limit):
    with pytest.raises(MediaError, match=f"more than {limit} pixels"):
        load_image(png_header(side, side), root=None)


def test_the_limit_also_holds_for_decoded_images(red):
    with pytest.raises(MediaError, match="6 x 4 is more than 20 pixels"):
        load_image(red, root=None, max_pixels=20)


# Content hashes


def test_hash_of_a_file_is_that_of_its_bytes(red, tmp_path):
    data = encoded(red)
    (tmp_path / "red.png").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    for form in (data, {"bytes": data, "path": "x"}, "red.png", {"path": "red.png", "bytes": None}):
        assert content_hash(form, root=tmp_path) == expected


def test_hash_of_a_pil_image_depends_on_its_pixels_only(red):
    assert content_hash(red) == content_hash(red.copy()) == content_hash(Image.open(io.BytesIO(encoded(red))))
    assert content_hash(red) == content_hash(red.convert("RGBA"))
    assert content_hash(red) != content_hash(red.transpose(Image.Transpose.ROTATE_90))
    assert content_hash(red) != content_hash(Image.new("RGB", (6, 4), (254, 0, 0)))


def test_hash_of_frames_depends_on_their_order(red):
    blue = Image.new("RGB", (6, 4), (0, 0, 255))
    assert content_hash([red, blue]) != content_hash([blue, red])
    assert content_hash([red]) != content_hash(red)


# Resizing


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((640, 480), (3136, 401408), (644, 476)),  # 640 / 28 = 22.9 -> 23, 480 / 28 = 17.1 -> 17
        ((1000, 1000), (3136, 401408), (616, 616)),  # 401408 = 633.6 squared, 22 x 28 = 616 fits
        ((10, 10), (3136, 401408), (56, 56)),  # scaled up to 56 x 56
        ((1000, 10), (3136, 401408), (560, 28)),  # 10 rounds to 0 rows, so the area limit decides
        ((84, 56), (3136, 401408), (84, 56)),
    ],
)
def test_resized_size_against_numbers_worked_by_hand(size, limits, expected):
    assert resized_size(*size, min_pixels=limits[0], max_pixels=limits[1]) == expected


def test_resized_size_agrees_with_the_processor_and_is_its_own_result():
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    rng = np.random.default_rng(0)
    for _ in range(300):
        width, height = (int(side) for side in np.exp(rng.uniform(np.log(8), np.log(3000), 2)))
        if max(width, height) / min(width, height) > 100:
            continue
        for factor, low, high in ((28, 3136, 401408), (32, 4096, 16384), (28, 50176, 50176)):
            new_height, new_width = smart_resize(height, width, factor, low, high)
            assert resized_size(width, height, min_pixels=low, max_pixels=high, factor=factor) == (
                new_width,
                new_height,
            )
            if low <= new_width * new_height <= high:
                again = resized_size(new_width, new_height, min_pixels=low, max_pixels=high, factor=factor)
                assert again == (new_width, new_height)


def test_extreme_aspect_ratio_is_a_media_error():
    with pytest.raises(MediaError, match="ratio up to 200"):
        resized_size(2010, 10, min_pixels=3136, max_pixels=401408)


def test_limits_out_of_order_are_refused():
    with pytest.raises(ValueError, match="out of order"):
        resized_size(6, 4, min_pixels=100, max_pixels=50)


# Audio


def tone(seconds=0.5, rate=16000, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def audio_bytes(samples, rate=16000, kind="WAV", **options):
    """A file of [samples] or [samples, channels]."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("WAV", {"subtype": "FLOAT"}, 0.0),
        # One step of the format: half of it for rounding, and the scales for writing and reading differ by up to one.
        ("WAV", {"subtype": "PCM_16"}, 2**-15),
        ("WAV", {"subtype": "PCM_24"}, 2**-23),
        ("WAV", {"subtype": "PCM_U8"}, 2**-7),
        ("FLAC", {}, 2**-15),
    ],
)
def test_samples_of_a_file_are_those_that_were_written(tmp_path, kind, options, tolerance):
    path = tmp_path / f"tone.{kind.lower()}"
    path.write_bytes(audio_bytes(tone(), kind=kind, **options))
    audio = load_audio(path.name, root=tmp_path)
    assert audio.sampling_rate == 16000 and audio.seconds == 0.5
    assert audio.samples.dtype == np.float32 and audio.samples.flags.c_contiguous
    np.testing.assert_allclose(audio.samples, tone(), rtol=0, atol=tolerance)


def test_an_mp3_sounds_as_what_was_written(tmp_path):
    (tmp_path / "tone.mp3").write_bytes(audio_bytes(tone(), kind="MP3"))
    audio = load_audio("tone.mp3", root=tmp_path)
    assert abs(audio.seconds - 0.5) < 0.1  # encoders add silence at both ends
    middle = audio.samples[2000:6000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() * 16000 / 4000 == pytest.approx(440, abs=4)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_every_stored_form_of_audio_gives_the_same_samples(tmp_path):
    data = audio_bytes(tone(), subtype="FLOAT")
    path = tmp_path / "sub" / "tone.wav"
    path.parent.mkdir()
    path.write_bytes(data)
    forms = [
        data,
        memoryview(data),
        {"bytes": data, "path": None},
        {"bytes": data, "path": "elsewhere.wav"},
        {"bytes": None, "path": "sub/tone.wav"},
        "sub/tone.wav",
        path,
        {"array": tone(), "sampling_rate": 16000},
        {"array": tone().astype(np.float64), "sampling_rate": np.int64(16000), "path": "gone.wav"},
        {"array": tone().tolist(), "sampling_rate": 16000},
    ]
    for form in forms:
        audio = load_audio(form, root=tmp_path)
        assert audio.sampling_rate == 16000 and np.array_equal(audio.samples, tone()), form


def test_channels_are_averaged():
    left, right = tone(hertz=440), tone(hertz=660)
    mean = (left + right) / 2
    stored = load_audio(audio_bytes(np.stack([left, right], 1), subtype="FLOAT"), root=None)
    decoded = load_audio({"array": np.stack([left, right]), "sampling_rate": 16000}, root=None)
    np.testing.assert_allclose(stored.samples, mean, atol=1e-7)
    np.testing.assert_allclose(decoded.samples, mean, atol=1e-7)


def test_integer_samples_are_scaled_to_full_scale():
    audio = load_audio({"array": np.array([-32768, 0, 16384] * 200, np.int16), "sampling_rate": 16000}, root=None)
    assert audio.samples[:3].tolist() == [-1.0, 0.0, 0.5]


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_pitch_and_length(rate):
    audio = load_audio(audio_bytes(tone(rate=rate), rate, subtype="FLOAT"), root=None, sampling_rate=16000)
    assert audio.sampling_rate == 16000 and len(audio.samples) == 8000
    inner = slice(200, -200)  # at its ends a tone is not a tone
    np.testing.assert_allclose(audio.samples[inner], tone()[inner], atol=5e-3)


def test_resampling_to_the_same_rate_changes_nothing():
    samples = tone()
    assert resample_audio(samples, 16000, 16000) is samples


def test_a_rate_that_takes_gigabytes_to_resample_is_a_media_error():
    with pytest.raises(MediaError, match="44101 Hz cannot be resampled to 16000 Hz"):
        resample_audio(tone(rate=44101), 44101, 16000)


def torn_flac():
    noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 8
    return audio_bytes(noise, kind="FLAC")[:9000]


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("text.wav", b"this is no audio" * 20, "torn or not a wav, flac, mp3 or ogg file"),
        ("empty.wav", b"", "it is empty"),
        ("silent.wav", audio_bytes(tone(0.0)), "less than 0.025 s"),
        ("short.wav", audio_bytes(tone(0.02)), r"0\.020 s is less than 0\.025 s"),
        ("torn.wav", audio_bytes(tone())[:9000], "torn: it holds 9000 of 16044 bytes"),
        ("header.wav", audio_bytes(tone())[:30], "torn"),
        ("torn.flac", torn_flac(), "torn"),
        ("nan.wav", audio_bytes(np.full(900, np.nan, np.float32), subtype="FLOAT"), "not finite"),
        ("long.wav", audio_bytes(tone(2.5)), r"2\.5 s is more than the limit of 2 s"),
    ],
)
def test_a_broken_audio_is_a_media_error_with_name_and_cause(tmp_path, name, data, why):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MediaError, match=why) as caught:
        load_audio(name, root=tmp_path, max_seconds=2)
    assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(MediaError):
        load_audio(data, root=None, max_seconds=2)


@pytest.mark.parametrize("data", [audio_bytes(tone(2.0)), audio_bytes(tone(2.0), kind="FLAC")])
def test_the_limit_itself_is_allowed(data):
    assert load_audio(data, root=None, max_seconds=2).seconds == 2


def test_a_wav_written_to_a_pipe_is_read_and_a_flac_without_length_says_so():
    wav = bytearray(audio_bytes(tone(), subtype="FLOAT"))
    wav[4:8] = b"\xff" * 4
    assert load_audio(wav, root=None).seconds == 0.5
    flac = bytearray(audio_bytes(tone(), kind="FLAC"))
    flac[21] &= 0xF0  # the low 36 bits of these hold the number of samples
    flac[22:26] = bytes(4)
    with pytest.raises(MediaError, match="does not say how long it is"):
        load_audio(flac, root=None)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "expected a path, bytes, a mapping with array and sampling_rate"),
        ({"array": None, "path": None}, "expected a path"),
        ({"array": tone()}, "its sampling_rate is None"),
        ({"array": tone(), "sampling_rate": 0}, "its sampling_rate is 0"),
        ({"array": ["a"], "sampling_rate": 16000}, "holds no numbers"),
        ({"array": np.zeros((1, 1, 900)), "sampling_rate": 16000}, "has 3 axes"),
        ({"array": [], "sampling_rate": 16000}, "less than 0.025 s"),
        ({"array": np.zeros((0, 900)), "sampling_rate": 16000}, "has no channel"),
        ({"array": [float("inf")] * 900, "sampling_rate": 16000}, "not finite"),
        ({"array": tone(2.5), "sampling_rate": 16000}, "limit of 2 s"),
        ("missing.wav", "no such file"),
        ("https://host/a.wav", "not fetched"),
    ],
)
def test_a_value_that_is_no_audio_is_a_media_error(value, why):
    with pytest.raises(MediaError, match=f"cannot read audio .*{why}"):
        load_audio(value, root=None, max_seconds=2)


def test_no_path_of_audio_leaves_the_root(tmp_path):
    (tmp_path / "tone.wav").write_bytes(audio_bytes(tone()))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.wav").symlink_to(tmp_path / "tone.wav")
    for path in ("../tone.wav", str(tmp_path / "tone.wav"), "link.wav", {"path": "../tone.wav", "bytes": None}):
        with pytest.raises(MediaError, match="leads out of the folder"):
            load_audio(path, root=tmp_path / "root")


def test_hash_of_audio_is_that_of_the_file_or_of_samples_and_rate(tmp_path):
    data = audio_bytes(tone())
    (tmp_path / "tone.wav").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    for form in (data, {"bytes": data, "path": "x"}, "tone.wav", {"path": "tone.wav", "bytes": None}):
        assert content_hash(form, root=tmp_path) == expected
    decoded = {"array": tone(), "sampling_rate": 16000}
    assert content_hash(decoded) == content_hash({"array": tone().tolist(), "sampling_rate": 16000, "path": "x"})
    assert content_hash(decoded) != content_hash({**decoded, "sampling_rate": 8000})
    assert content_hash(decoded) != content_hash({**decoded, "array": -tone()})

"""Building blocks of demos: model folders whole or not at all, a tower that sees what the processor makes, real ink."""

import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_images

from mmrl_core.errors import ConfigError, TaskDataError
from mmrl_core.testing.demo_files import write_aside
from mmrl_core.testing.models.demo import build_model, build_processor, split_pattern
from mmrl_core.testing.models.folder import new_model_folder
from mmrl_core.testing.models.pictures import CLASS_WORDS, NUM_SCANS, ink_masks, photographs, scan_ids_by_class
from mmrl_core.testing.models.templates import SHORT_CHAT_TEMPLATE
from mmrl_core.testing.models.tokenizer import UNSAMPLED_TOKENS, build_tokenizer, train_tokenizer
from mmrl_core.testing.models.tower import check_size_px, cut_patches, normalize_patches, pretrain_tower, tower_features

SIDE_PX = 84
SIZES = dict(hidden_size=32, num_layers=1, vision_size=32, vision_layers=2, num_heads=2)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(chat_template=SHORT_CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return build_processor(tokenizer, smallest_px=56, largest_px=SIDE_PX, max_frames=8)


@pytest.fixture
def model(tokenizer):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(tokenizer, SIDE_PX, **SIZES)


@pytest.fixture(scope="module")
def frames():
    """uint8 [3, 2, 84, 84, 3]: three pairs of frames."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 2, SIDE_PX, SIDE_PX, 3), dtype=np.uint8))


def processed_images(processor, frames):
    made = processor.image_processor(images=[frame.numpy() for frame in frames], return_tensors="pt")
    return made["pixel_values"], made["image_grid_thw"]


def processed_videos(processor, pairs):
    made = processor.video_processor(
        videos=list(pairs.permute(0, 1, 4, 2, 3)), do_sample_frames=False, return_tensors="pt"
    )
    return made["pixel_values_videos"], made["video_grid_thw"]


def test_the_model_is_the_published_class_and_writes_no_placeholders(model, tokenizer, processor):
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert processor.chat_template == SHORT_CHAT_TEMPLATE
    suppressed = model.generation_config.suppress_tokens
    assert tokenizer.convert_ids_to_tokens(suppressed) == list(UNSAMPLED_TOKENS)
    assert model.config.text_config.vocab_size == 512  # a multiple of 64 already


def test_pictures_between_the_stated_sides_are_not_resized(processor, frames):
    for side_px, num_patches in ((56, 4), (84, 6), (112, 6)):
        picture = torch.zeros(1, side_px, side_px, 3, dtype=torch.uint8)
        assert processed_images(processor, picture)[1].tolist() == [[1, num_patches, num_patches]]
    assert processed_videos(processor, frames)[1].tolist() == [[1, 6, 6]] * 3


def test_still_images_are_cut_and_scaled_as_the_processor_does(processor, frames):
    made, _ = processed_images(processor, frames[:, 0])
    ours = normalize_patches(cut_patches(frames[:, :1]), processor.image_processor)
    assert ours.shape == (3, 36, 3 * 14 * 14)
    both_slices = ours.reshape(3, 36, 3, 1, 14 * 14).expand(-1, -1, -1, 2, -1)
    assert torch.allclose(both_slices.reshape(made.shape), made, rtol=0, atol=1e-6)


def test_pairs_of_frames_are_cut_and_scaled_as_the_processor_does(processor, frames):
    made, _ = processed_videos(processor, frames)
    ours = normalize_patches(cut_patches(frames), processor.image_processor)
    assert ours.shape == (3, 36, 3 * 2 * 14 * 14)
    assert torch.allclose(ours.flatten(0, 1), made, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("process", "num_frames"), [(processed_images, 1), (processed_videos, 2)])
def test_the_fast_tower_equals_the_models_own(process, num_frames, model, processor, frames):
    shown = frames[:, :num_frames]
    pixels, grid = process(processor, shown[:, 0] if num_frames == 1 else shown)
    with torch.no_grad():
        own = model.model.visual(pixels, grid_thw=grid).pooler_output
        fast = tower_features(model.model.visual, normalize_patches(cut_patches(shown), processor.image_processor))
    assert fast.shape == (3, 9, 32)
    assert own.abs().mean() > 0.01
    assert torch.allclose(fast.flatten(0, 1), own, rtol=0, atol=1e-5)


def test_the_tower_and_its_head_are_trained_and_the_decoder_is_left_alone(model, processor, frames):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    patches = normalize_patches(cut_patches(frames), processor.image_processor)
    tower, head = model.model.visual, torch.nn.Linear(32, 1)
    lines = []

    def batch_loss(chosen):
        assert chosen.shape == (4,) and chosen.max() < 3
        loss = (head(tower_features(tower, patches[chosen])).mean((1, 2)) - chosen).square().mean()
        return loss, f"{loss:.6f}"

    pretrain_tower(tower, head, batch_loss, num_examples=3, steps=120, batch_size=4, lr=3e-3, on_progress=lines.append)
    assert [line.partition(": ")[0] for line in lines] == ["vision tower step 100/120", "vision tower step 120/120"]
    assert float(lines[-1].partition(": ")[2]) < 0.1  # answering 1 always: 2/3
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) != ("visual" in name), name


def test_the_learning_rate_rises_over_three_percent_and_falls_to_five():
    # Adam's first steps on a constant gradient are as long as the learning rate; without weight decay's part, which
    # is lr * 0.01 * weight, here of a weight near 0. 100 steps: step 1 has 1/3 of the peak less 0.95 %, step 3 the
    # peak less 2.85 %, step 50 less 47.5 %, step 100 less 95 %.
    head = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(head.weight)
    seen = []

    def batch_loss(chosen):
        seen.append(head.weight.item())
        return head.weight.sum() + head.bias.sum(), ""

    pretrain_tower(torch.nn.Identity(), head, batch_loss, num_examples=1, steps=100, batch_size=1, lr=1e-3)
    seen.append(head.weight.item())
    lengths = {step: (seen[step - 1] - seen[step]) / 1e-3 for step in (1, 3, 50, 100)}
    expected = {1: 0.9905 / 3, 3: 0.9715, 50: 0.525, 100: 0.05}
    assert lengths == pytest.approx(expected, abs=2e-3)


def test_a_model_folder_appears_whole_or_not_at_all(tmp_path):
    state = torch.random.get_rng_state()
    drawn = []
    for name in ("one", "two"):
        with new_model_folder(tmp_path / "models" / name, seed=5) as folder:
            assert not (tmp_path / "models" / name).exists()
            (folder / "file").write_text(name)
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn) and torch.equal(state, torch.random.get_rng_state())
    assert (tmp_path / "models" / "two" / "file").read_text() == "two"
    with pytest.raises(RuntimeError), new_model_folder(tmp_path / "models" / "three", seed=5) as folder:
        raise RuntimeError(folder.name)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["one", "two"]


def test_no_model_is_written_over_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    for taken in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ConfigError, match="not an empty folder"), new_model_folder(taken, seed=0):
            pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_sides_that_are_no_whole_tokens_are_named():
    check_size_px(84)
    with pytest.raises(ConfigError, match=r"size_px is 100.*28"):
        check_size_px(100)


def test_atoms_and_numbers_are_pieces_of_their_own():
    tokenizer = train_tokenizer(
        ["look at one and 12.5 then "] * 3,
        vocab_size=400,
        split_pattern=split_pattern("one|two"),
        chat_template=SHORT_CHAT_TEMPLATE,
        max_length=64,
    )
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("look at one and 12.5 then two")
    assert [piece.replace("Ġ", " ") for piece, _ in pieces] == ["look at ", "one", " and ", "12.5", " then ", "two"]
    assert [tokenizer.decode([token]) for token in tokenizer("one and 12.5")["input_ids"]] == ["one", " and ", "12.5"]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    with write_aside(path) as unfinished:
        unfinished.write_text("whole")
        assert not path.exists()
    with pytest.raises(RuntimeError), write_aside(path) as unfinished:
        unfinished.write_text("torn")
        raise RuntimeError
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TaskDataError, match=r"file/rows.*MMRL_CACHE"), write_aside(tmp_path / "file" / "rows"):
        pytest.fail("the block must not run")


def test_ranges_of_scans_hold_every_scan_once_under_its_digit():
    labels = load_digits().target
    parts = [scan_ids_by_class(*ends) for ends in ((0, 1300), (1300, 1400), (1400, NUM_SCANS))]
    assert [sum(map(len, part)) for part in parts] == [1300, 100, 397]
    assert sorted(scan_id for part in parts for ids in part for scan_id in ids) == list(range(len(labels)))
    for part in parts:
        assert len(part) == len(CLASS_WORDS) and all(len(ids) > 3 for ids in part)
        assert all(labels[scan_id] == digit for digit, ids in enumerate(part) for scan_id in ids)


def test_ink_is_cut_to_what_is_written_on():
    scans, masks = load_digits().images, ink_masks()
    assert len(masks) == NUM_SCANS
    for scan, mask in zip(scans[:50], masks, strict=False):
        rows, columns = np.nonzero(scan > 0.3 * 16)  # 16 is full ink
        ink = scan[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert np.abs(np.asarray(mask) - ink * 255 / 16).max() < 1


def test_photographs_are_darkened_and_come_from_both_libraries():
    photos = dict(photographs(0.5))
    assert set(photos) == {"china.jpg", "flower.jpg", "astronaut", "cat", "coffee", "rocket"}
    for pixels in photos.values():
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and 451 <= pixels.shape[1] <= 640
    assert (photos["china.jpg"] == load_sample_images().images[0] // 2).all()


@pytest.mark.parametrize(
    ("module", "package"), [("sklearn.datasets", "scikit-learn"), ("skimage.data", "scikit-image")]
)
def test_a_missing_package_is_named(module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TaskDataError, match=f"pip install {package}"):
        photographs(0.123)  # a brightness that no other test has asked for

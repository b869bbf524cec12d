"""Rewards against numbers worked by hand, PIL's own JPEG files, and transformers called directly on tiny models."""

import doctest
import math
import os
import pickle
import shutil
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

import mmrl_find
from mmrl_core.config import RewardConfig
from mmrl_core.errors import RewardError
from mmrl_core.plugins import Plugins
from mmrl_core.plugins.registry import Registry
from mmrl_core.scoring import RewardRunner
from mmrl_find import rewards
from mmrl_find.rewards import (
    aesthetic,
    blip_itm,
    brightness,
    clip_score,
    colour,
    compressibility,
    image_reward,
    incompressibility,
    video_consistency,
)

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,"
PROMPTS = ["a red dog", "", "two dogs. " * 50, "four pandas"]
SIDE = 16


def randomise(model, seed, std=0.3):
    """Weights large enough that every picture and text gets numbers of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or name.endswith("bias"):  # scales of norms stay 1
                parameter.normal_(std=std if parameter.dim() > 1 else 0.05, generator=generator)
    return model.eval()


def noise(seed, width=20, height=20):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PICTURES = [noise(0), noise(1, 30, 17), Image.new("RGB", (16, 16), "red"), noise(3, 9, 40)]
SAMPLES = [{"prompt": prompt} for prompt in PROMPTS]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    words = [*CHARACTERS, *(c + "</w>" for c in CHARACTERS), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[("r", "e"), ("re", "d</w>")])
    tower = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    tokens = {"vocab_size": len(words), "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(
        text_config={**tower, **tokens, "max_position_embeddings": 20},
        vision_config={**tower, "image_size": SIDE, "patch_size": 8},
        projection_dim=12,
    )
    randomise(CLIPModel(config), seed=0).save_pretrained(folder)
    crop = {"height": SIDE, "width": SIDE}
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop), tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, "red", "dog", *CHARACTERS, *("##" + c for c in CHARACTERS)]
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder


@pytest.fixture(scope="module")
def blip_config():
    tower = {"intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**tower, **special, "hidden_size": 32, "encoder_hidden_size": 24, "vocab_size": 83}
    return BlipConfig(
        text_config={**text, "max_position_embeddings": 40},
        vision_config={**tower, "hidden_size": 24, "image_size": SIDE, "patch_size": 8},
        image_text_hidden_size=10,
    )


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory, bert_folder, blip_config):
    folder = tmp_path_factory.mktemp("blip")
    randomise(BlipForImageTextRetrieval(blip_config), seed=1).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    BlipProcessor(images, BertTokenizer.from_pretrained(bert_folder)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def head_file(tmp_path_factory):
    """The public head's form, with other sizes: Linear, Dropout, Linear, Linear."""
    layers = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.2), nn.Linear(8, 4), nn.Linear(4, 1))
    module = randomise(nn.ModuleDict({"layers": layers}), seed=2)
    file = tmp_path_factory.mktemp("head") / "head.safetensors"
    save_file(module.state_dict(), file)
    return file


class ImageRewardParts:
    """transformers' own modules with random weights, and these weights under the names of the public checkpoint."""

    def __init__(self):
        # Two and three attention heads of 64.
        vision = BlipVisionConfig(
            hidden_size=192,
            intermediate_size=29,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=SIDE,
            patch_size=8,
            layer_norm_eps=1e-6,
        )
        text = BlipTextConfig(
            vocab_size=83,
            hidden_size=128,
            encoder_hidden_size=192,
            intermediate_size=31,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=40,
            bos_token_id=2,
            sep_token_id=3,
        )
        self.vision = randomise(BlipVisionModel(vision), seed=3, std=0.1)
        self.text = randomise(BlipTextModel(text, add_pooling_layer=False), seed=4, std=0.1)
        self.mlp = randomise(nn.Sequential(nn.Linear(128, 8), nn.Dropout(0.2), nn.Linear(8, 1)), seed=5)

    def public_weights(self):
        of = self.vision.state_dict()
        public = {
            "cls_token": of["embeddings.class_embedding"],
            "pos_embed": of["embeddings.position_embedding"],
            "patch_embed.proj.weight": of["embeddings.patch_embedding.weight"],
            "patch_embed.proj.bias": of["embeddings.patch_embedding.bias"],
            "norm.weight": of["post_layernorm.weight"],
            "norm.bias": of["post_layernorm.bias"],
        }
        names = {
            "norm1": "layer_norm1",
            "attn.qkv": "self_attn.qkv",
            "attn.proj": "self_attn.projection",
            "norm2": "layer_norm2",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        }
        for block in range(2):
            for theirs, ours in names.items():
                for kind in ("weight", "bias"):
                    public[f"blocks.{block}.{theirs}.{kind}"] = of[f"encoder.layers.{block}.{ours}.{kind}"]
        weights = {f"blip.visual_encoder.{name}": weight for name, weight in public.items()}
        weights |= {f"blip.text_encoder.{name}": weight for name, weight in self.text.state_dict().items()}
        weights |= {f"mlp.layers.{name}": weight for name, weight in self.mlp.state_dict().items()}
        # What else the public file holds, and the reward has no use for.
        weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
        weights["blip.vision_proj.weight"] = torch.zeros(3, 192)
        return {name: weight.clone() for name, weight in weights.items()}

    def score(self, picture, prompt, tokenizer):
        images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
        tokens = tokenizer(prompt, truncation=True, max_length=35, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            states = self.vision(images(picture, return_tensors="pt").pixel_values).last_hidden_state
            first = self.text(**tokens, encoder_hidden_states=states).last_hidden_state[:, 0]
            return ((self.mlp(first) - 0.16717362830052426) / 1.0333394966054072).item()


@pytest.fixture(scope="module")
def image_reward_parts():
    return ImageRewardParts()


@pytest.fixture(scope="module")
def image_reward_folder(tmp_path_factory, bert_folder, image_reward_parts):
    folder = tmp_path_factory.mktemp("image_reward")
    torch.save(image_reward_parts.public_weights(), folder / "ImageReward.pt")
    shutil.copy(bert_folder / "vocab.txt", folder)
    return str(folder)


@pytest.fixture(scope="module")
def every_reward(clip_folder, blip_folder, head_file, image_reward_folder):
    return {
        "clip_score": partial(clip_score, path=clip_folder),
        "blip_itm": partial(blip_itm, path=blip_folder),
        "blip_itc": partial(blip_itm, path=blip_folder, head="itc"),
        "aesthetic": partial(aesthetic, path=clip_folder, head=str(head_file)),
        "image_reward": partial(image_reward, path=image_reward_folder),
        "colour": partial(colour, colour="teal"),
        "brightness": brightness,
        "compressibility": compressibility,
        "incompressibility": incompressibility,
    }


def test_docstring_examples():
    results = doctest.testmod(rewards)
    assert results.attempted >= 4 and results.failed == 0


# Models, against transformers called directly


def test_clip_score_is_100_times_the_positive_cosine(clip_folder):
    processor, model = CLIPProcessor.from_pretrained(clip_folder), CLIPModel.from_pretrained(clip_folder)
    inputs = processor(text=PROMPTS, images=PICTURES, padding=True, truncation=True, max_length=20, return_tensors="pt")
    with torch.no_grad():
        cosines = (model(**inputs).logits_per_image / model.logit_scale.exp()).diagonal().tolist()
    assert min(cosines) < 0 < max(cosines)
    expected = [100 * max(cosine, 0) for cosine in cosines]
    assert clip_score(PICTURES, SAMPLES, path=clip_folder) == pytest.approx(expected, abs=1e-4)


def test_a_prefix_is_part_of_the_text(clip_folder):
    whole = clip_score(PICTURES[:1], [{"prompt": "a photo depicts a dog"}], path=clip_folder)
    assert (
        clip_score(PICTURES[:1], [{"text": "a dog"}], path=clip_folder, prefix="a photo depicts ", column="text")
        == whole
    )


@pytest.mark.parametrize("head", ["itm", "itc"])
def test_blip_itm(blip_folder, head):
    processor, model = (
        BlipProcessor.from_pretrained(blip_folder),
        BlipForImageTextRetrieval.from_pretrained(blip_folder),
    )
    expected = []
    for picture, prompt in zip(PICTURES, PROMPTS, strict=True):
        inputs = processor(images=picture, text=prompt, truncation=True, max_length=35, return_tensors="pt")
        with torch.no_grad():
            score = model(**inputs, use_itm_head=head == "itm").itm_score
        expected.append(score.softmax(-1)[0, 1].item() if head == "itm" else score.item())
    assert len({round(value, 3) for value in expected}) == 4
    assert blip_itm(PICTURES, SAMPLES, path=blip_folder, head=head) == pytest.approx(expected, abs=1e-5)


def test_aesthetic_is_linear_layers_on_the_unit_embedding(clip_folder, head_file, tmp_path):
    from safetensors.torch import load_file

    weights = load_file(head_file)
    images, model = CLIPImageProcessor.from_pretrained(clip_folder), CLIPModel.from_pretrained(clip_folder)
    expected = []
    for picture in PICTURES:
        with torch.no_grad():
            state = model.get_image_features(**images(picture, return_tensors="pt")).pooler_output[0]
        state = state / state.norm()
        for number in (0, 2, 3):
            state = weights[f"layers.{number}.weight"] @ state + weights[f"layers.{number}.bias"]
        expected.append(state.item())
    assert aesthetic(PICTURES, SAMPLES, path=clip_folder, head=str(head_file)) == pytest.approx(expected, abs=1e-4)
    torch.save(weights, tmp_path / "head.pth")
    assert aesthetic(PICTURES, SAMPLES, path=clip_folder, head=str(tmp_path / "head.pth")) == pytest.approx(
        expected, abs=1e-4
    )


def test_image_reward_in_the_form_of_the_public_checkpoint(image_reward_parts, image_reward_folder, bert_folder):
    tokenizer = BertTokenizer.from_pretrained(bert_folder)
    expected = [image_reward_parts.score(*pair, tokenizer) for pair in zip(PICTURES, PROMPTS, strict=True)]
    assert len({round(value, 3) for value in expected}) == 4
    assert image_reward(PICTURES, SAMPLES, path=image_reward_folder) == pytest.approx(expected, abs=1e-4)
    shift = [{"prompt": prompt} for prompt in PROMPTS]
    clamped = image_reward(PICTURES, shift, path=image_reward_folder, clamp=True)
    assert min(expected) < 0 < max(expected)
    assert clamped == pytest.approx([max(value, 0) for value in expected], abs=1e-4)


def test_image_reward_from_a_safetensors_file_and_a_tokenizer_of_its_own(
    image_reward_parts, image_reward_folder, bert_folder, tmp_path
):
    file = tmp_path / "weights.safetensors"
    save_file(image_reward_parts.public_weights(), file)
    whole = image_reward(PICTURES, SAMPLES, path=image_reward_folder)
    assert image_reward(PICTURES, SAMPLES, path=str(file), tokenizer=str(bert_folder)) == whole
    with pytest.raises(RewardError, match="has 5 tokens, and the model 83"):
        image_reward(PICTURES, SAMPLES, path=str(file))


# What all rewards promise


def test_a_reward_does_not_depend_on_its_company(every_reward):
    for name, reward in every_reward.items():
        alone = [reward([picture], [sample])[0] for picture, sample in zip(PICTURES, SAMPLES, strict=True)]
        assert reward(PICTURES, SAMPLES) == pytest.approx(alone, rel=1e-5, abs=1e-4), name
        assert reward(PICTURES[::-1], SAMPLES[::-1])[::-1] == pytest.approx(alone, rel=1e-5, abs=1e-4), name
        if "path" in getattr(reward, "keywords", {}):
            assert reward(PICTURES, SAMPLES, batch_size=3) == pytest.approx(alone, rel=1e-5, abs=1e-4), name


def test_a_video_has_the_mean_of_its_frames(every_reward):
    for name, reward in every_reward.items():
        frames = reward(PICTURES, [SAMPLES[0]] * 4)
        (video,) = reward([PICTURES], [SAMPLES[0]])
        assert video == pytest.approx(sum(frames) / 4, rel=1e-5, abs=1e-4), name


def test_what_is_no_sound_picture_is_unscored(every_reward):
    nan = Image.fromarray(np.array([[0.5, np.nan]], dtype=np.float32))
    assert nan.mode == "F"
    picture = PICTURES[0]
    completions = [
        picture,
        picture,
        nan,
        [picture, nan],
        "a text",
        None,
        [],
        ["text"],
        Image.new("RGB", (0, 3)),
        picture,
    ]
    samples = [{"prompt": "a dog", "flagged": index == 1} for index in range(len(completions))]
    for name, reward in every_reward.items():
        scores = reward(completions, samples)
        assert scores[0] == pytest.approx(scores[-1], abs=1e-4) and scores[1:-1] == [None] * 8, name
        assert reward([], []) == [], name
        with pytest.raises(ValueError):
            reward([picture], [])


def test_odd_pictures_and_prompts_have_finite_rewards(every_reward):
    pictures = [noise(5).convert(mode) for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "F")]
    pictures += [Image.new("RGB", (1, 1)), noise(6, 200, 1)]
    prompts = ["", " ", "\x00\ud7ff ﬀ ١٢٣", "a " * 10_000, "<|endoftext|>", "[SEP]", "x" * 5_000, "{}", "红"]
    samples = [{"prompt": prompt} for prompt in prompts]
    for name, reward in every_reward.items():
        scores = reward(pictures, samples)
        assert all(math.isfinite(score) for score in scores), name
        assert reward(pictures, samples) == scores, name


def test_transparency_is_dropped():
    clear_red = Image.new("RGBA", (3, 3), (255, 0, 0, 0))
    assert colour([clear_red], [{}], colour="red") == [1.0]


def test_models_draw_no_random_numbers_and_are_loaded_once(
    clip_folder, blip_folder, image_reward_folder, head_file, tmp_path
):
    for name, folder in (("clip", clip_folder), ("blip", blip_folder), ("image_reward", image_reward_folder)):
        shutil.copytree(folder, tmp_path / name)
    shutil.copy(head_file, tmp_path / "head.safetensors")

    def scores():
        return [
            clip_score(PICTURES, SAMPLES, path=str(tmp_path / "clip")),
            blip_itm(PICTURES, SAMPLES, path=str(tmp_path / "blip")),
            aesthetic(PICTURES, SAMPLES, path=str(tmp_path / "clip"), head=str(tmp_path / "head.safetensors")),
            image_reward(PICTURES, SAMPLES, path=str(tmp_path / "image_reward")),
        ]

    state = torch.get_rng_state()
    first = scores()
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("clip/model.safetensors", "blip/model.safetensors", "head.safetensors", "image_reward/ImageReward.pt"):
        (tmp_path / name).unlink()
        (tmp_path / name).touch()
    assert scores() == first


def test_threads_share_a_model(clip_folder, blip_folder):
    expected = [clip_score(PICTURES, SAMPLES, path=clip_folder), blip_itm(PICTURES, SAMPLES, path=blip_folder)]
    found = []

    def run():
        for _ in range(3):
            found.append(
                [clip_score(PICTURES, SAMPLES, path=clip_folder), blip_itm(PICTURES, SAMPLES, path=blip_folder)]
            )

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 12


# Errors


def test_wrong_models_are_named(clip_folder, blip_folder, blip_config, head_file, tmp_path):
    with pytest.raises(RewardError, match="there is no folder /nowhere/clip"):
        clip_score([], [], path="/nowhere/clip")
    with pytest.raises(RewardError, match="is a 'blip' model, and this reward needs one of type 'clip'"):
        clip_score([], [], path=blip_folder)
    with pytest.raises(RewardError, match="is a 'clip' model"):
        blip_itm([], [], path=clip_folder)
    with pytest.raises(RewardError, match="is a 'blip' model"):
        aesthetic([], [], path=blip_folder, head=str(head_file))
    with pytest.raises(RewardError, match="cannot load its"):
        video_consistency([PICTURES], [{}], path=str(tmp_path))
    BlipForConditionalGeneration(blip_config).save_pretrained(tmp_path / "captions")
    with pytest.raises(RewardError, match=r"not a whole BlipForImageTextRetrieval: \d+ of its weights are missing"):
        blip_itm(PICTURES, SAMPLES, path=str(tmp_path / "captions"))
    with pytest.raises(RewardError, match="no head 'itx'"):
        blip_itm([], [], path=blip_folder, head="itx")


def test_heads_that_do_not_fit_are_named(clip_folder, head_file, tmp_path):
    def score(weights):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_file(weights, file)
        return aesthetic(PICTURES, SAMPLES, path=clip_folder, head=str(file))

    first = {"layers.0.weight": torch.ones(4, 12), "layers.0.bias": torch.zeros(4)}
    last = {"layers.2.weight": torch.ones(1, 4), "layers.2.bias": torch.zeros(1)}
    assert all(math.isfinite(value) for value in score(first | last))
    with pytest.raises(RewardError, match="reads states of size 4, and the model's have size 12"):
        score(last)
    odd = first | last | {"layers.2.weight": torch.ones(1, 5)}
    without_bias = first | {"layers.2.weight": torch.ones(1, 4)}
    for weights in (first, odd, without_bias, {"a": torch.ones(1)}):
        with pytest.raises(RewardError, match="are not linear layers"):
            score(weights)
    with pytest.raises(RewardError, match="there is no file"):
        aesthetic([], [], path=clip_folder, head=str(tmp_path / "none.pth"))


class Hostile:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (Path(self.file),)


def test_objects_in_weights_are_never_unpickled(clip_folder, tmp_path):
    victim = tmp_path / "touched"
    pickle.loads(pickle.dumps(Hostile(str(victim))))
    assert victim.exists()  # the attack works where it is not fended off
    os.remove(victim)
    torch.save({"layers.0.weight": Hostile(str(victim))}, tmp_path / "head.pth")
    with pytest.raises(RewardError, match="objects are never unpickled"):
        aesthetic(PICTURES, SAMPLES, path=clip_folder, head=str(tmp_path / "head.pth"))
    assert not victim.exists()


def test_image_reward_weights_that_are_not_whole_are_named(image_reward_parts, bert_folder, tmp_path):
    def score(change):
        weights = image_reward_parts.public_weights()
        change(weights)
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.pt"
        torch.save(weights, file)
        return image_reward(PICTURES, SAMPLES, path=str(file), tokenizer=str(bert_folder))

    with pytest.raises(RewardError, match=r"not ImageReward's weights.*blip.visual_encoder.patch_embed"):
        score(lambda weights: weights.clear())
    with pytest.raises(RewardError, match="not a whole BlipVisionModel: 1 of its weights"):
        score(lambda weights: weights.pop("blip.visual_encoder.blocks.1.norm2.bias"))
    with pytest.raises(RewardError, match=r"BlipTextModel has no weights pooler\.weight"):
        score(lambda weights: weights.update({"blip.text_encoder.pooler.weight": torch.ones(2)}))
    with pytest.raises(RewardError, match="no BlipVisionModel can be made of its weights"):
        score(lambda weights: weights.update({"blip.visual_encoder.norm.bias": torch.ones(5)}))
    with pytest.raises(RewardError, match="reads states of size 7, and the model's have size 128"):
        score(lambda weights: weights.update({"mlp.layers.0.weight": torch.ones(8, 7)}))
    with pytest.raises(RewardError, match=r"mlp\.layers\.<number>\.weight"):
        score(lambda weights: weights.pop("mlp.layers.2.bias"))
    with pytest.raises(RewardError, match=r"expected one file of weights.*found none"):
        image_reward([], [], path=str(bert_folder))


def test_rows_without_a_prompt_are_an_error(clip_folder, blip_folder, image_reward_folder):
    for reward, path in ((clip_score, clip_folder), (blip_itm, blip_folder), (image_reward, image_reward_folder)):
        with pytest.raises(RewardError, match="no prompt in column 'caption'"):
            reward(PICTURES, SAMPLES, path=path, column="caption")


# Rewards without a model, by hand


def halves(left, right):
    picture = Image.new("RGB", (8, 4), left)
    picture.paste(right, (4, 0, 8, 4))
    return picture


@pytest.mark.parametrize(
    ("tolerance", "expected"),
    # Black is sqrt(1) / sqrt(3) = 0.57735 from red: its pixels have 1 - 0.57735 / tolerance, or 0.
    [(1.0, (1 + 0.4226497) / 2), (0.8, (1 + 0.2783122) / 2), (0.5, 0.5), (1e-6, 0.5)],
)
def test_colour_of_a_half_red_picture(tolerance, expected):
    for name in ("red", "#ff0000", "#F00", "rgb(255, 0, 0)"):
        assert colour([halves("red", "black")], [{}], colour=name, tolerance=tolerance) == [pytest.approx(expected)]


def test_colour_from_the_row():
    samples = [{"colour": "white"}, {"colour": "black"}, {}, {"colour": None}, {"colour": ""}]
    assert colour([Image.new("RGB", (2, 2), "white")] * 5, samples) == [1.0, pytest.approx(0.0), None, None, None]
    assert colour([Image.new("RGB", (2, 2), "white")], [{"tint": "white"}], column="tint") == [1.0]


@pytest.mark.parametrize("options", [{"colour": "reddish"}, {"colour": "red", "tolerance": 0.0}, {"tolerance": 1.5}])
def test_wrong_colours_and_tolerances(options):
    with pytest.raises(RewardError, match="colour: "):
        colour(PICTURES[:1], [{}], **options)
    with pytest.raises(RewardError, match="colour: 7 is no colour"):
        colour(PICTURES[:1], [{"colour": 7}])


def test_brightness_is_luma():
    pictures = [Image.new("RGB", (3, 2), name) for name in ("red", "lime", "blue", "white", "black")]
    pictures.append(halves("white", "red"))
    expected = [0.299, 0.587, 0.114, 1.0, 0.0, (1 + 0.299) / 2]
    assert brightness(pictures, [{}] * 6) == pytest.approx(expected)


def test_compressibility_is_the_size_of_the_jpeg_file(tmp_path):
    pictures = [noise(7, 64, 64), Image.new("RGB", (64, 64), "navy")]
    sizes = []
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / f"{index}.jpg", quality=95)
        sizes.append((tmp_path / f"{index}.jpg").stat().st_size / 1000)
    assert incompressibility(pictures, [{}] * 2) == sizes
    assert compressibility(pictures, [{}] * 2) == [-size for size in sizes]
    assert sizes[0] > 5 * sizes[1]


def test_video_consistency_of_pixels():
    black, white = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "white")
    # Differences of neighbours: 1 and 0; then 1 and 1; then half of the pixels differ by 1.
    videos = [[black, white, white], [black, white, black], [black, halves("black", "white").resize((4, 4), 0)]]
    assert video_consistency(videos, [{}] * 3) == pytest.approx([0.5, 0.0, 0.5])
    assert (
        video_consistency([[black], black, [black, "x"], [black, white]], [{}, {}, {}, {"flagged": True}]) == [None] * 4
    )
    with pytest.raises(RewardError, match="differ in size"):
        video_consistency([[black, noise(0)]], [{}])


def test_video_consistency_of_clip_embeddings(clip_folder):
    images, model = CLIPImageProcessor.from_pretrained(clip_folder), CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        vectors = [model.get_image_features(**images(p, return_tensors="pt")).pooler_output[0] for p in PICTURES]
    cosines = [torch.cosine_similarity(a, b, dim=0).item() for a, b in pairwise(vectors)]
    found = video_consistency([PICTURES, [PICTURES[0]] * 2], [{}] * 2, path=clip_folder)
    assert found == pytest.approx([sum(cosines) / 3, 1.0], abs=1e-5)
    assert found[1] <= 1.0


# Through the registry


def test_rewards_run_as_registered(clip_folder):
    registry = Registry()
    mmrl_find.mmrl_register(registry.registering("find"))
    plugins = Plugins({}, registry, {})
    configs = [
        RewardConfig(name="find/brightness"),
        RewardConfig.model_validate({"name": "find/clip_score", "path": clip_folder}),
        RewardConfig.model_validate({"name": "find/clip_score", "label": "missing", "path": "/nowhere"}),
    ]
    runner = RewardRunner(plugins, configs)
    samples = [*SAMPLES[:3], {"prompt": "a dog", "flagged": True}]
    luma = runner.score_samples("find/brightness", [*PICTURES[:2], "text", PICTURES[3]], samples)
    assert luma[:2] == brightness(PICTURES[:2], SAMPLES[:2]) and luma[2:] == [None, None]
    judged = runner.judge("find/clip_score", PICTURES, samples)
    assert [j.value for j in judged[:3]] == pytest.approx(
        clip_score(PICTURES[:3], SAMPLES[:3], path=clip_folder), abs=1e-4
    )
    assert judged[3].value is None and all(j.failure is None for j in judged)
    (missing,) = runner.judge("missing", PICTURES[:1], samples[:1])
    assert "there is no folder /nowhere" in missing.failure

"""Metrics against numbers worked by hand, and CLIP distances against transformers called directly."""

import doctest
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from mmrl_core.errors import PluginError, RewardError
from mmrl_find import metrics, rewards
from mmrl_find.metrics import diversity, reward_stats, win_rate

BRIGHTNESS = f"{rewards.__file__}:brightness"


def grey(level):
    return Image.new("RGB", (5, 7), (level, level, level))


def rows(*prompts, **more):
    return [{"prompt": prompt, "repeat": index, **more} for index, prompt in enumerate(prompts)]


def test_docstring_examples():
    results = doctest.testmod(metrics)
    assert results.attempted >= 1 and results.failed == 0


# Diversity


def test_diversity_is_the_mean_over_prompts_of_the_mean_over_pairs():
    # a: levels 0, 51, 255 differ by 51, 255, 204: mean 170 / 255. b: 0 and 51: 51 / 255.
    pictures = [grey(0), grey(0), grey(51), grey(51), grey(255)]
    found = diversity(pictures, rows("a", "b", "a", "b", "a"))
    assert found == {"diversity": pytest.approx((170 / 255 + 51 / 255) / 2), "diversity/num_prompts": 2.0}


def test_diversity_shrinks_pictures_of_any_size():
    left_white = Image.new("RGB", (64, 64))
    left_white.paste("white", (0, 0, 32, 64))
    # Differs from black in half of the pixels, and shrunk to one pixel by 127.5, of which pictures keep 128.
    pictures, samples = [left_white, Image.new("RGB", (9, 40))], rows("a", "a")
    assert diversity(pictures, samples)["diversity"] == pytest.approx(0.5)
    assert diversity(pictures, samples, size_px=1)["diversity"] == pytest.approx(128 / 255)


def test_unusable_pictures_and_lone_ones_are_left_out():
    pictures = [grey(0), grey(255), "text", grey(51), grey(9)]
    samples = rows("a", "a", "a", "a", "b")
    samples[1]["flagged"] = True
    assert diversity(pictures, samples) == {"diversity": pytest.approx(51 / 255), "diversity/num_prompts": 1.0}
    alone = diversity(pictures[:2], samples[:2])
    assert math.isnan(alone["diversity"]) and alone["diversity/num_prompts"] == 0.0
    assert math.isnan(diversity([], [])["diversity"])
    with pytest.raises(ValueError):
        diversity(pictures, samples[:1])


def test_diversity_of_videos_is_over_frames():
    # First frames differ by 51, second ones by 255.
    videos = [[grey(0), grey(0)], [grey(51), grey(255)]]
    assert diversity(videos, rows("a", "a"))["diversity"] == pytest.approx((51 + 255) / 2 / 255)
    assert diversity(videos, [{"text": "a"}] * 2, column="text")["diversity"] == pytest.approx(153 / 255)
    with pytest.raises(RewardError, match="videos of 'a' differ in their number of frames"):
        diversity([videos[0], videos[1][:1]], rows("a", "a"))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    vision = {**tower, "image_size": 16, "patch_size": 8}
    special = {"vocab_size": 9, "bos_token_id": 7, "eos_token_id": 8, "pad_token_id": 0}
    config = CLIPConfig(text_config={**tower, **special}, vision_config=vision, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


def test_diversity_of_clip_embeddings(clip_folder):
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(4)]
    images, model = CLIPImageProcessor.from_pretrained(clip_folder), CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        vectors = [model.get_image_features(**images(p, return_tensors="pt")).pooler_output[0] for p in pictures]
    distances = [1 - torch.cosine_similarity(a, b, dim=0).item() for a, b in combinations(vectors[:3], 2)]
    found = diversity(pictures, rows("a", "a", "a", "b"), path=clip_folder, batch_size=2)
    assert found == {"diversity": pytest.approx(sum(distances) / 3, abs=1e-5), "diversity/num_prompts": 1.0}
    assert sum(distances) > 1e-3

    first, second = (sum(vector / vector.norm() for vector in vectors[i : i + 2]) for i in (0, 2))
    of_videos = diversity([pictures[:2], pictures[2:]], rows("a", "a"), path=clip_folder)["diversity"]
    assert of_videos == pytest.approx(1 - torch.cosine_similarity(first, second, dim=0).item(), abs=1e-5)


# Reward statistics


def test_reward_stats_by_hand():
    # a has 0, 51, 255 (mean 102, median 51, best 255); b has 102 and 153; c, of another kind, 204.
    levels = {"a": [0, 51, 255], "b": [102, 153], "c": [204]}
    pictures = [grey(level) for of_prompt in levels.values() for level in of_prompt]
    samples = rows("a", "a", "a", "b", "b", category="colour") + rows("c", category="count")
    found = reward_stats(pictures, samples, reward=BRIGHTNESS)
    expected = {
        "brightness/mean": (102 + 127.5 + 204) / 3 / 255,
        "brightness/median": (51 + 127.5 + 204) / 3 / 255,
        "brightness/best": (255 + 153 + 204) / 3 / 255,
        "brightness/mean/colour": (102 + 127.5) / 2 / 255,
        "brightness/mean/count": 204 / 255,
        "brightness/unscored": 0.0,
    }
    assert found == pytest.approx(expected)


def test_unscored_pictures_are_counted_and_left_out():
    samples = rows("a", "a", "b", category=None)
    samples[0]["flagged"] = samples[2]["flagged"] = True
    found = reward_stats([grey(0), grey(51), grey(255)], samples, reward=BRIGHTNESS)
    assert found == pytest.approx(
        {"brightness/mean": 0.2, "brightness/median": 0.2, "brightness/best": 0.2, "brightness/unscored": 2 / 3}
    )
    none = reward_stats([], [], reward=BRIGHTNESS)
    assert list(none) == ["brightness/mean", "brightness/median", "brightness/best", "brightness/unscored"]
    assert all(math.isnan(value) for value in none.values())


def test_reward_stats_pass_options_and_group_by_any_column():
    colour = f"{rewards.__file__}:colour"
    samples = [{"text": "x", "set": 1}, {"text": "y", "set": 2}]
    found = reward_stats(
        [Image.new("RGB", (2, 2), "red")] * 2,
        samples,
        reward=colour,
        options={"colour": "red"},
        column="text",
        by="set",
    )
    assert (found["colour/mean"], found["colour/mean/1"], found["colour/mean/2"]) == (1.0, 1.0, 1.0)
    with pytest.raises(PluginError, match="no option 'color'"):
        reward_stats([grey(0)], samples[:1], reward=colour, options={"color": "red"})
    with pytest.raises(PluginError, match="no installed plugin provides reward 'nowhere/reward'"):
        reward_stats([grey(0)], samples[:1], reward="nowhere/reward")


# Win rate


def test_win_rate_counts_ties_half_and_leaves_unscored_pairs_out():
    first = [2.0, 1.0, 3.0, math.nan, None, 4.0]
    second = [1.0, 1.0, 5.0, 0.0, 0.0, math.nan]
    assert win_rate(first, second) == (1 + 0.5 + 0) / 3
    assert win_rate(second, first) == 1 - win_rate(first, second)
    assert math.isnan(win_rate([], [])) and math.isnan(win_rate([None], [1.0]))
    with pytest.raises(ValueError):
        win_rate([1.0], [])

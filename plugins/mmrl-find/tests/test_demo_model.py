"""The demo: words that are one token, a pipeline that loads and learns, two classifiers of real and spoilt scans."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl_core.config import component_problems, load_config
from mmrl_core.errors import ConfigError, RewardError
from mmrl_core.plugins import load_plugins
from mmrl_core.testing import CLASS_WORDS
from mmrl_find import demo_classifier
from mmrl_find.demo_classifier import (
    KERNEL_SCANS,
    NEIGHBOUR_SCANS,
    digit,
    digit_probabilities,
    prompted_digit,
)
from mmrl_find.demo_model import (
    LOOK_ALIKES,
    MODEL_SCANS,
    PHRASINGS,
    build_digits_pipeline,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
    draw_captions,
    name_digits,
    scan_pictures,
    train_denoiser,
    train_vae,
)
from mmrl_find.pipeline import FrozenPipeline

NUM_SCANS = 1797
CLASSIFIERS = ("kernel", "neighbours")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """With several, convolutions sum in an order of their own each time, and weights are not equal bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def built(one_thread, tmp_path_factory):
    """Folder of a pipeline that was trained for two steps, and the lines it reported."""
    directory = tmp_path_factory.mktemp("models") / "digits"
    lines = []
    build_digits_pipeline(directory, vae_steps=2, denoiser_steps=2, on_progress=lines.append)
    return directory, lines


@pytest.fixture(scope="module")
def unseen():
    """Pictures of the scans that neither a classifier nor the pipeline learns from, and their digits."""
    pictures, digits = scan_pictures(MODEL_SCANS[1], NUM_SCANS)
    return [Image.fromarray(picture) for picture in pictures], digits


# Captions


def test_each_word_of_a_caption_is_one_token_and_round_trips():
    tokenizer = build_tokenizer()
    for phrasing in PHRASINGS:
        for word in CLASS_WORDS:
            caption = phrasing.format(word)
            ids = tokenizer(caption).input_ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == caption
            assert len(ids) == len(caption.split()) + 2  # start and end of the text


def test_other_words_are_spelt_and_nothing_is_unknown():
    tokenizer = build_tokenizer()
    ids = tokenizer("Bär 42 ink!").input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "bär 4 2 ink !"  # as CLIP's: lower case, single digits


def test_the_tokenizer_is_the_same_every_time():
    assert build_tokenizer().get_vocab() == build_tokenizer().get_vocab()


def test_look_alikes_are_other_digits():
    assert len(LOOK_ALIKES) == 10 and all(other != digit for digit, other in enumerate(LOOK_ALIKES))


# The pipeline


def test_the_folder_is_laid_out_as_stable_diffusion(built):
    index = json.loads((built[0] / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline" and index["safety_checker"] == [None, None]
    expected = {
        *("model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json"),
        *("text_encoder/model.safetensors", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
        *("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    }
    assert {str(path.relative_to(built[0])) for path in built[0].rglob("*") if path.is_file()} == expected


def test_diffusers_itself_draws_with_it(built):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(built[0])
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    picture = pipe("a handwritten three", num_inference_steps=2, generator=generator).images[0]
    assert picture.size == (32, 32) and picture.mode == "RGB"


def test_it_is_an_environment_of_64_numbers_in_which_the_prompt_matters(built):
    pipeline = FrozenPipeline(built[0], num_steps=2, guidance=3.0)
    assert pipeline.latent_shape == (4, 4, 4)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    three, four = pipeline.generate(latents, ["a handwritten three", "a handwritten four"], [0, 0])
    assert np.asarray(three.output).tolist() != np.asarray(four.output).tolist()
    assert not torch.equal(pipeline.embed("a handwritten three").vector, pipeline.embed("a handwritten four").vector)


def test_same_seed_gives_the_same_weights(tmp_path, built):
    state = torch.get_rng_state()
    build_digits_pipeline(tmp_path / "same", vae_steps=2, denoiser_steps=2)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's is left as it was
    build_digits_pipeline(tmp_path / "other", seed=1, vae_steps=2, denoiser_steps=2)
    folders = (built[0], tmp_path / "same", tmp_path / "other")
    for part in ("unet", "vae"):
        file = Path(part) / "diffusion_pytorch_model.safetensors"
        first, same, other = ((folder / file).read_bytes() for folder in folders)
        assert first == same and first != other


def test_progress_is_reported(built):
    assert [line.partition(":")[0] for line in built[1]] == ["autoencoder step 2/2", "denoiser step 2/2"]


def test_latents_have_the_scale_of_the_noise():
    torch.manual_seed(0)
    pixels = torch.rand(64, 3, 32, 32) * 2 - 1
    vae = build_vae()
    train_vae(vae, pixels, steps=2, lr=1e-3)
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1.0, abs=0.1)


def test_the_denoiser_learns():
    """Of latents that are all 1, the noise can be computed from the noisy latent; an untrained denoiser predicts 0."""
    tokenizer, lines = build_tokenizer(), []
    torch.manual_seed(0)
    for steps in (1, 15):
        train_denoiser(
            build_unet(),
            build_text_encoder(tokenizer),
            tokenizer,
            build_scheduler(),
            torch.ones(20, 4, 4, 4),
            torch.zeros(20, 4, 4, 4),
            np.arange(20) % 10,
            steps=steps,
            lr=3e-3,
            wrong_captions=0.3,
            dropped_captions=0.1,
            on_progress=lines.append,
        )
    untrained, trained = (float(line.rpartition(" ")[2]) for line in lines)
    assert untrained > 0.9 and trained < 0.7


def test_a_share_of_captions_names_the_look_alike_and_a_share_is_empty():
    torch.manual_seed(0)
    digits = torch.arange(10).repeat(1000)
    assert torch.equal(name_digits(digits, 0.0), digits)
    assert name_digits(digits, 1.0)[:10].tolist() == list(LOOK_ALIKES)
    named = name_digits(digits, 0.3)
    assert (named != digits).float().mean().item() == pytest.approx(0.3, abs=0.02)  # 4 standard deviations of 10000
    captions = draw_captions(named.tolist(), 0.1)
    assert captions.count("") / len(captions) == pytest.approx(0.1, abs=0.012)  # likewise
    for caption, number in zip(captions, named.tolist(), strict=True):
        assert not caption or prompted_digit(caption) == number
    assert {caption.replace("zero", "{}") for caption in captions if "zero" in caption} == set(PHRASINGS)


def test_wrong_options_are_named_and_leave_nothing_behind(tmp_path):
    for options in ({"vae_steps": 0}, {"denoiser_steps": 0}, {"wrong_captions": 1.5}, {"dropped_captions": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            build_digits_pipeline(tmp_path / "model", **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        build_digits_pipeline(tmp_path / "full", vae_steps=1, denoiser_steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


# Pictures and classifiers


def test_pictures_are_black_ink_in_the_middle_of_white_paper():
    pictures, digits = scan_pictures(0, 100)
    assert pictures.shape == (100, 32, 32, 3) and pictures.dtype == np.uint8
    assert sorted(set(digits.tolist())) == list(range(10)) and (np.diff(digits) >= 0).all()
    assert (pictures[:, :4] == 255).all() and (pictures[:, -4:] == 255).all()  # 32 - 3 * 8 = 2 * 4 pixels of margin
    assert (pictures[:, 4:28].min(axis=(1, 2, 3)) < 40).all()


def test_the_classifiers_share_no_scan_and_leave_some_to_test_with():
    assert KERNEL_SCANS[1] <= NEIGHBOUR_SCANS[0] and NEIGHBOUR_SCANS[1] <= MODEL_SCANS[1] < NUM_SCANS


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_classifier_knows_scans_that_it_has_not_seen(classifier, unseen):
    pictures, digits = unseen
    probabilities = digit_probabilities(pictures, classifier)
    assert (probabilities.argmax(axis=1) == digits).mean() > 0.95  # found: 0.985 and 0.964
    assert probabilities[np.arange(len(digits)), digits].mean() > 0.8  # found: 0.87 and 0.94


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_picture_without_a_digit_has_none_of_the_ten(classifier, unseen):
    rng = np.random.default_rng(7)
    noise = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    plain = [Image.new("RGB", (32, 32), (grey,) * 3) for grey in (0, 90, 128, 200, 255)]
    assert digit_probabilities([noise, *plain], classifier).sum(axis=1).max() < 0.1
    halves = []
    for picture in unseen[0]:  # lower half above the upper one
        pixels = np.asarray(picture)
        halves.append(Image.fromarray(np.concatenate([pixels[16:], pixels[:16]])))
    assert digit_probabilities(halves, classifier).sum(axis=1).mean() < 0.1


def test_the_kernel_classifier_is_not_sure_of_what_lies_between_two_digits(unseen):
    pictures, digits = unseen
    zero, one = (np.asarray(pictures[int(np.flatnonzero(digits == number)[0])]).astype(int) for number in (0, 1))
    between = Image.fromarray(((zero + one) // 2).astype(np.uint8))
    assert digit_probabilities([between]).max() < 0.5


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_probabilities_are_those_of_at_most_one_digit_and_do_not_depend_on_the_batch(classifier, unseen):
    pictures = unseen[0][::20]
    probabilities = digit_probabilities(pictures, classifier)
    assert probabilities.shape == (len(pictures), 10)
    assert (probabilities >= 0).all() and (probabilities.sum(axis=1) <= 1 + 1e-9).all()
    alone = np.concatenate([digit_probabilities([picture], classifier) for picture in pictures])
    np.testing.assert_allclose(alone, probabilities, atol=1e-9)


def test_rewards_in_many_threads_fit_a_classifier_once(unseen):
    demo_classifier._neighbours.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: digit_probabilities(unseen[0][:1], "neighbours").tolist(), range(8)))
    assert demo_classifier._neighbours.cache_info().misses == 1
    assert found == [found[0]] * 8


def test_the_reward_is_the_probability_of_the_prompted_digit(unseen):
    pictures, digits = unseen
    picture, number = pictures[0], int(digits[0])
    expected = digit_probabilities([picture])[0]
    prompts = [f"a handwritten {word}" for word in CLASS_WORDS]
    rewards = digit([picture] * 10, [{"prompt": prompt} for prompt in prompts])
    assert rewards == pytest.approx(expected.tolist()) and int(np.argmax(rewards)) == number
    large = picture.resize((256, 256), Image.Resampling.BICUBIC)
    assert digit([large], [{"text": prompts[number]}], column="text")[0] == pytest.approx(rewards[number], abs=0.05)


def test_a_video_is_worth_the_mean_of_its_frames(unseen):
    frames, sample = [unseen[0][0], unseen[0][-1]], {"prompt": "zero"}
    alone = digit(frames, [sample, sample])
    assert alone[0] > 0.5 > 0.1 > alone[1]  # a zero and a nine
    assert digit([frames], [sample]) == pytest.approx([sum(alone) / 2])


def test_what_is_flagged_or_no_picture_is_unscored(unseen):
    picture, sample = unseen[0][0], {"prompt": "zero"}
    assert digit([picture, "zero"], [{**sample, "flagged": True}, sample]) == [None, None]


def test_a_prompt_names_one_digit_in_words_or_as_a_numeral():
    assert [prompted_digit(text) for text in ("the digit three", "Draw a SEVEN.", "number 4, please")] == [3, 7, 4]
    assert prompted_digit("a 5, that is, a five") == 5
    for prompt, found in {"a dog": "names none", "one or two": "names one, two", "the number 42": "names 42"}.items():
        with pytest.raises(RewardError, match=f"{prompt!r} {found}"):
            prompted_digit(prompt)
    with pytest.raises(RewardError, match="names none"):
        digit([Image.new("RGB", (32, 32))], [{"problem": "three"}])


def test_an_unknown_classifier_is_refused():
    with pytest.raises(RewardError, match="no classifier 'forest'"):
        digit([], [], classifier="forest")


# Tasks


@pytest.mark.parametrize("name", ["demo_digits", "demo_ddpo", "demo_amortised"])
def test_a_demo_trains_on_one_classifier_and_is_checked_by_the_other(name):
    config = load_config(f"find/{name}")
    assert component_problems(config, load_plugins()) == []
    trained, checked = config.rewards
    assert (trained.options.get("classifier", "kernel"), trained.weight) == ("kernel", 1.0)
    assert (checked.options["classifier"], checked.weight) == ("neighbours", 0.0)
    assert config.eval.temperatures == [1.0]
    prompts = {part: getattr(config.data, part).options["prompts"] for part in ("train", "held_out")}
    for texts in prompts.values():
        assert {prompted_digit(text) for text in texts} == set(range(10))
    assert not set(prompts["train"]) & set(prompts["held_out"]) or name != "demo_amortised"


def test_the_demos_to_compare_make_the_same_pictures_at_the_same_cost():
    ours, theirs = (load_config(f"find/{name}") for name in ("demo_digits", "demo_ddpo"))
    for key in ("num_steps", "guidance"):
        assert ours.model.policy.options[key] == theirs.model.policy.options[key]
    assert ours.model.build == theirs.model.build and ours.data == theirs.data and ours.rewards == theirs.rewards

"""The demo's starting model: short prompts and answers, the processor's spectrograms, a tower that learns."""

import random

import pytest
import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from mmrl_audio_aqa.demo_data import ANSWERS, SAMPLING_RATE, draw_melody, melodies, play
from mmrl_audio_aqa.demo_model import build_melody_listener, build_tokenizer, tower_examples
from mmrl_core.media import load_audio

SMALL = dict(tower_batch=8, num_melodies=16)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder of a model whose tower was trained for two steps, and the lines it reported."""
    directory, lines = tmp_path_factory.mktemp("models") / "listener", []
    build_melody_listener(directory, tower_steps=2, on_progress=lines.append, **SMALL)
    return directory, lines


@pytest.fixture(scope="module")
def model(built):
    return Qwen2AudioForConditionalGeneration.from_pretrained(built[0])


@pytest.fixture(scope="module")
def processor(built):
    return AutoProcessor.from_pretrained(built[0])


def encoded(processor, row):
    content = [{"type": "audio", "audio": None}, {"type": "text", "text": row["problem"]}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    samples = load_audio(row["audio"], root=None).samples
    return processor(text=text, audio=[samples], sampling_rate=SAMPLING_RATE, return_tensors="pt")


def test_the_model_is_small(model):
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


def test_a_prompt_has_a_token_for_each_option_and_25_for_each_second(processor, tmp_path):
    row = melodies("train", num_rows=1, cache_dir=tmp_path)[0]
    ids = encoded(processor, row)["input_ids"][0]
    pieces = [processor.tokenizer.decode([token]) for token in ids.tolist()]
    assert pieces.count("<|AUDIO|>") == 50
    assert [piece for piece in pieces if piece in ANSWERS["instrument"]] == row["choices"]
    assert len(ids) < 80


def test_answers_are_three_tokens_and_any_text_round_trips(processor):
    def pieces(text):
        ids = processor.tokenizer(text)["input_ids"]
        assert processor.tokenizer.decode(ids) == text
        return [processor.tokenizer.decode([token]) for token in ids]

    for answers in ANSWERS.values():
        for answer in answers:
            assert pieces(f"<answer>{answer}</answer>") == ["<answer>", answer, "</answer>"]
    pieces("Bär, 437.25 <|box|>\n")


def test_the_tokenizer_is_the_same_every_time():
    assert build_tokenizer().get_vocab() == build_tokenizer().get_vocab()


def test_the_tower_is_trained_on_the_spectrograms_that_the_processor_makes(processor):
    features, answers = tower_examples(processor.feature_extractor, 2, 7)
    rng = random.Random("7/tower/1")
    melody = draw_melody(rng)
    made = processor.feature_extractor(play(melody, rng), sampling_rate=SAMPLING_RATE, return_tensors="pt")
    assert torch.equal(features[1], made["input_features"][0]) and features.shape == (2, 80, 200)
    assert [known[i] for known, i in zip(ANSWERS.values(), answers[1].tolist(), strict=True)] == [
        *melody.heard.values()
    ]


def test_same_seed_gives_the_same_weights(tmp_path, model):
    build_melody_listener(tmp_path / "same", tower_steps=2, **SMALL)
    build_melody_listener(tmp_path / "other", tower_steps=2, seed=1, **SMALL)
    same, other = (Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("same", "other"))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name]), name
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_the_tower_is_trained_and_its_progress_reported(built, tmp_path, model):
    assert len(built[1]) == 1 and built[1][0].startswith("audio tower step 2/2: right on instrument ")
    build_melody_listener(tmp_path / "less", tower_steps=1, **SMALL)
    less = Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path / "less").state_dict()
    moved = {name.split(".")[1] for name, weight in model.state_dict().items() if not torch.equal(weight, less[name])}
    assert moved == {"audio_tower", "multi_modal_projector"}


def test_the_model_answers_a_prompt(model, processor, tmp_path):
    inputs = encoded(processor, melodies("train", num_rows=1, cache_dir=tmp_path)[0])
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] - inputs["input_ids"].shape[1] in (1, 2, 3)

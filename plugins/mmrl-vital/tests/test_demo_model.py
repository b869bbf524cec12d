"""The demo's starting model: short prompts and turns, right pairs of frames, and a tower that learns."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrl_core.conversation import schema
from mmrl_core.errors import ConfigError, TaskDataError
from mmrl_core.testing import CLASS_WORDS
from mmrl_vital.demo_data import VideoOptions, draw_frames, final_turn, problem, two_turns, video_events
from mmrl_vital.demo_model import PAIRS_PER_VIDEO, build_clip_reader, build_tokenizer, frame_pairs
from mmrl_vital.tools import ClipFrames

OPTIONS = VideoOptions(
    duration_s=96,
    fps=2,
    size_px=56,
    digit_px=(36, 48),
    num_classes=5,
    prompt_frames=8,
    long_digits=1,
    short_digits=5,
    brightness=0.35,
)
TOOL = {"type": "function", "function": {"name": "get_video_clip_frame", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder of a model whose tower was trained for a few steps, and the lines it reported."""
    directory = tmp_path_factory.mktemp("models") / "reader"
    lines = []
    build_clip_reader(directory, tower_steps=2, tower_batch=8, num_videos=4, on_progress=lines.append)
    return directory, lines


@pytest.fixture(scope="module")
def model(built):
    return AutoModelForImageTextToText.from_pretrained(built[0])


@pytest.fixture(scope="module")
def processor(built):
    return AutoProcessor.from_pretrained(built[0])


@pytest.fixture(scope="module")
def frames():
    """uint8 [8, 56, 56, 3], the frames of a prompt."""
    drawn = draw_frames("train", 0, 0, video_events("train", 0, 0, OPTIONS), OPTIONS)
    return drawn[[round(time * OPTIONS.fps) for time in OPTIONS.prompt_times_s]]


def process(processor, text, frames):
    metadata = {"fps": 2.0, "total_num_frames": 192, "frames_indices": list(range(len(frames)))}
    return processor(
        text=[text],
        videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )


def pieces(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    return [tokenizer.decode([token]) for token in ids]


def test_the_model_is_small(model):
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


def test_a_prompt_is_short_and_has_one_placeholder_for_each_token_of_the_video(processor, frames):
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": problem(96, 38, 2)}]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = process(processor, text, frames)["input_ids"][0]
    assert [processor.tokenizer.decode([token]) for token in ids] == [
        *["<|im_start|>", "user\n", "<|vision_start|>"],
        *["<|video_pad|>"] * 16,  # 8 frames in 4 pairs of 2 x 2 tokens
        "<|vision_end|>",
        *["The video lasts ", "96.0", " seconds. Which digit is shown at ", "38.0", " seconds?\n"],
        *["A", ". ", "zero", "\n", "B", ". ", "one"],
        *["<|im_end|>", "\n", "<|im_start|>", "assistant\n"],
    ]


def test_turns_are_few_tokens_and_round_trip(processor):
    call, answer = two_turns(36, 40, "D").split("\n")
    assert pieces(processor.tokenizer, call) == [
        '<think>Look closer.</think><tool_call>{"name": "get_video_clip_frame", "arguments": {"start_time": ',
        "36.0",
        ', "end_time": ',
        "40.0",
        "}}</tool_call>",
    ]
    assert pieces(processor.tokenizer, answer) == ["<think>Decide.</think><answer>", "D", "</answer>"]
    for letter, word in zip("ABCDEFGHIJ", CLASS_WORDS, strict=True):
        assert pieces(processor.tokenizer, final_turn(letter))[1] == letter
        assert pieces(processor.tokenizer, f"{letter}. {word}") == [letter, ". ", word]
    result = "Frames of the video from 36.00 to 40.00 seconds."
    assert pieces(processor.tokenizer, result) == ["Frames of the video from ", "36.00", " to ", "40.00", " seconds."]
    for time_s in range(0, 121, 2):
        assert pieces(processor.tokenizer, f"{float(time_s)}") == [f"{float(time_s)}"]
    pieces(processor.tokenizer, "Bär, 437.25 <|box|>\n")


def test_the_tool_is_described_in_few_tokens(processor):
    described = json.dumps(schema(ClipFrames()))
    messages = [{"role": "user", "content": ""}]
    begun = processor.apply_chat_template(messages, tools=[schema(ClipFrames())], tokenize=False)
    assert described in begun
    assert len(pieces(processor.tokenizer, begun)) <= 12


def test_the_tokenizer_is_the_same_every_time():
    assert build_tokenizer().get_vocab() == build_tokenizer().get_vocab()


def test_a_conversation_with_a_tool_has_qwens_form(processor):
    render = processor.apply_chat_template
    user = {"role": "user", "content": [{"type": "text", "text": "Look."}]}
    call = {"role": "assistant", "content": [{"type": "text", "text": "<tool_call>{}</tool_call>"}]}
    result = {"role": "tool", "content": [{"type": "video"}, {"type": "text", "text": "0.0 to 4.0 s"}]}
    begun = render([user], tools=[TOOL], tokenize=False, add_generation_prompt=True)
    assert begun == (
        "<|im_start|>system\n# Tools\n\n<tools>\n"
        '{"type": "function", "function": {"name": "get_video_clip_frame", "parameters": {"type": "object"}}}\n'
        "</tools>\n\nCall a tool within <tool_call></tool_call>.<|im_end|>\n"
        "<|im_start|>user\nLook.<|im_end|>\n<|im_start|>assistant\n"
    )
    whole = render([user, call, result], tools=[TOOL], tokenize=False, add_generation_prompt=True)
    assert whole == begun + (
        "<tool_call>{}</tool_call><|im_end|>\n"
        "<|im_start|>tool\n<|vision_start|><|video_pad|><|vision_end|>0.0 to 4.0 s<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_system_message_is_kept_with_and_without_tools(processor):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Look."}]
    with_tools = processor.apply_chat_template(messages, tools=[TOOL], tokenize=False)
    assert with_tools.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert with_tools.count("Be brief.") == 1 and with_tools.count("system") == 1
    without = processor.apply_chat_template(messages, tokenize=False)
    assert without == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nLook.<|im_end|>\n"


def test_frames_are_not_resized(processor, frames):
    assert process(processor, "<|video_pad|>", frames)["video_grid_thw"].tolist() == [[4, 4, 4]]
    image = Image.fromarray(frames[0])
    assert processor.image_processor(images=image, return_tensors="pt")["image_grid_thw"].tolist() == [[1, 4, 4]]


def test_pairs_are_frames_of_the_video_with_the_digits_they_show():
    patches, class_ids = frame_pairs(1, 0, OPTIONS)
    drawn = draw_frames("train", 0, 0, video_events("train", 0, 0, OPTIONS), OPTIONS)
    shown = np.full(len(drawn), len(CLASS_WORDS))
    for event in video_events("train", 0, 0, OPTIONS):
        shown[event.start_s * 2 : event.end_s * 2] = event.class_id
    assert patches.shape == (PAIRS_PER_VIDEO, 16, 3 * 2 * 14 * 14)
    for index in (0, 5, 11):
        # Undo the processor's order by hand to find the two frames.
        pair = patches[index].reshape(2, 2, 2, 2, 3, 2, 14, 14).permute(5, 0, 2, 6, 1, 3, 7, 4).reshape(2, 56, 56, 3)
        found = [int(np.flatnonzero((drawn == frame).all(axis=(1, 2, 3)))[0]) for frame in pair.numpy()]
        assert shown[found].tolist() == class_ids[index].tolist()


def test_most_pairs_show_a_digit_and_some_frames_show_none():
    _, class_ids = frame_pairs(10, 0, OPTIONS)
    is_digit = class_ids < len(CLASS_WORDS)
    assert is_digit.any(1).all() and 0.05 < 1 - is_digit.float().mean() < 0.5
    assert (class_ids[:, 0] != class_ids[:, 1]).float().mean() > 0.1


def test_same_seed_gives_the_same_weights(tmp_path, model):
    arguments = dict(tower_steps=2, tower_batch=8, num_videos=4)
    build_clip_reader(tmp_path / "same", **arguments)
    build_clip_reader(tmp_path / "other", seed=1, **arguments)
    same, other = (AutoModelForImageTextToText.from_pretrained(tmp_path / name) for name in ("same", "other"))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name]), name
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_the_tower_learns(tmp_path):
    lines = []
    arguments = dict(tower_batch=16, num_videos=2, on_progress=lines.append)
    build_clip_reader(tmp_path / "short", tower_steps=1, **arguments)
    build_clip_reader(tmp_path / "long", tower_steps=40, **arguments)
    shares = [float(line.partition("right in ")[2].partition("%")[0]) for line in lines]
    assert shares[1] > 60 > 30 > shares[0]


def test_progress_is_reported(built):
    assert len(built[1]) == 1 and built[1][0].startswith("vision tower step 2/2:")


def test_the_model_generates_from_a_video(model, processor, frames):
    text = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    inputs = process(processor, text, frames)
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] - inputs["input_ids"].shape[1] in (1, 2, 3)


def test_wrong_options_are_named_and_leave_nothing_behind(tmp_path):
    with pytest.raises(ConfigError, match="size_px is 60"):
        build_clip_reader(tmp_path / "model", videos={"size_px": 60})
    with pytest.raises(TaskDataError, match="num_classes is 11"):
        build_clip_reader(tmp_path / "model", videos={"num_classes": 11})
    with pytest.raises(ConfigError, match="size_pixels"):
        build_clip_reader(tmp_path / "model", videos={"size_pixels": 56})
    assert list(tmp_path.iterdir()) == []

"""The demo's starting model: a small Qwen2.5-VL whose vision tower can see digits and whose decoder is blank.

Class, file layout, control tokens and processor are those of the published model; only sizes differ. A published model
comes with a pretrained vision tower, so this one's tower is trained here, in about a minute, with a throw-away head
that names the digit in each of the two frames that a token is made of. The text decoder stays random: the recipe's
supervised stage teaches it to call the tool and to answer.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import ConfigError
from mmrl_core.tiny import UNSAMPLED_TOKENS, train_tokenizer
from mmrl_core.tools import schema
from mmrl_vital.demo_data import (
    CLASS_WORDS,
    LETTERS,
    VideoOptions,
    check_options,
    draw_frames,
    final_turn,
    problem,
    tool_videos,
    two_turns,
    video_events,
)
from mmrl_vital.tools import ClipFrames

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
    )

PATCH_PX = 14
MERGE = 2  # merged tokens are MERGE x MERGE patches
TOKEN_PX = PATCH_PX * MERGE
TEMPORAL_PATCH = 2  # frames in a token
PAIRS_PER_VIDEO = 16
ADAM_BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
WARMUP_SHARE = 0.03
FINAL_LR_RATIO = 0.05
PROGRESS_EVERY_STEPS = 100

# Numbers with their decimals, class words, option letters, and stretches between them.
_ATOMS = rf"{'|'.join(CLASS_WORDS)}|[{LETTERS}](?=\. |</answer>)"
SPLIT_PATTERN = rf"\p{{N}}{{1,4}}(?:\.\p{{N}}+)?|{_ATOMS}|(?:(?!{_ATOMS})[^\p{{N}}])+"
TIME_STEP_S = 2  # multiples of this, with one decimal, are one token each; other numbers are spelt in pieces
LAST_TIME_S = 128
MAX_VOCAB = 1500
VOCAB_MULTIPLE = 64

CALL_RULE = "Call a tool within <tool_call></tool_call>."
# Qwen's tool-call form, shortened: a system turn only where there are tools or a system message, tools as JSON schemas
# in <tools>, calls as JSON in <tool_call>, results in a turn of the role "tool".
CHAT_TEMPLATE = (
    "{%- macro text_of(content) -%}"
    "{%- if content is string -%}"
    "{{- content -}}"
    "{%- else -%}"
    "{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'video' -%}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif 'text' in part -%}"
    "{{- part['text'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- endmacro -%}"
    "{%- if tools -%}"
    "{{- '<|im_start|>system\\n' -}}"
    "{%- if messages[0]['role'] == 'system' -%}{{- text_of(messages[0]['content']) + '\\n\\n' -}}{%- endif -%}"
    "{{- '# Tools\\n\\n<tools>' -}}"
    "{%- for tool in tools -%}{{- '\\n' -}}{{- tool | tojson -}}{%- endfor -%}"
    "{{- '\\n</tools>\\n\\n" + CALL_RULE + "<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if not (tools and loop.first and message['role'] == 'system') -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + text_of(message['content']) + '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- endif -%}"
)


def build_clip_reader(
    directory: str | Path,
    *,
    seed: int = 0,
    tower_steps: int = 800,
    tower_batch: int = 64,
    tower_lr: float = 3e-3,
    num_videos: int = 500,
    videos: Mapping[str, Any] | None = None,
    hidden_size: int = 96,
    num_layers: int = 2,
    vision_size: int = 64,
    vision_layers: int = 3,
    num_heads: int = 4,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Write the demo's starting model with tokenizer, processor and generation config. Uses no network.

    Args:
        directory: made if missing; must be empty. It appears complete or not at all.
        seed: of the weights, the training videos and their order. The caller's random state is left as it was.
        tower_steps, tower_batch, tower_lr: AdamW steps of the vision tower, pairs of frames in each, peak learning rate
            (3 % linear warm-up, then linear decay to 5 %).
        num_videos: training videos of the tower: the first of ``tool_videos("train", seed=seed)``.
        videos: options of ``VideoOptions``; give the same as for the training rows.
        hidden_size, num_layers: of the text decoder.
        vision_size, vision_layers: of the vision tower.
        num_heads: attention heads of both.
        on_progress: called with one line of text every 100 steps and at the end.

    Raises:
        ConfigError: the directory is not empty, ``videos`` has an unknown key, or their side is no multiple of 28
            pixels.
        TaskDataError: an option of the videos is out of range.
    """
    import torch

    directory = Path(directory).absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not an empty folder, and nothing is overwritten. Name another.")
    options = _video_options(videos or {})
    check_options(options)
    if options.size_px % TOKEN_PX:
        raise ConfigError(
            f"size_px is {options.size_px}; the model sees squares of {TOKEN_PX} pixels: give a multiple."
        )

    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer, options.size_px)
    unfinished = directory.with_name(f".{directory.name}.unfinished-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_model(
                tokenizer,
                options.size_px,
                hidden_size=hidden_size,
                num_layers=num_layers,
                vision_size=vision_size,
                vision_layers=vision_layers,
                num_heads=num_heads,
            )
            patches, class_ids = frame_pairs(num_videos, seed, options)
            train_vision_tower(
                model,
                processor.image_processor,
                patches,
                class_ids,
                steps=tower_steps,
                batch_size=tower_batch,
                lr=tower_lr,
                on_progress=on_progress,
            )
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        os.replace(unfinished, directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _video_options(given: Mapping[str, Any]) -> VideoOptions:
    """The defaults of ``tool_videos``, with some replaced."""
    looks = {
        name: parameter.default
        for name, parameter in inspect.signature(tool_videos).parameters.items()
        if name in VideoOptions.__dataclass_fields__
    }
    unknown = sorted(set(given) - set(looks))
    if unknown:
        raise ConfigError(f"the demo's model: videos has the key {unknown[0]!r}. Keys: {', '.join(sorted(looks))}.")
    return VideoOptions(**looks | dict(given))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each time, class word, option letter and stretch of format is one token. Deterministic.

    Any text round-trips; text unlike the demo's takes up to one token per byte.
    """
    return train_tokenizer(
        _merge_corpus(),
        vocab_size=MAX_VOCAB,
        split_pattern=SPLIT_PATTERN,
        chat_template=CHAT_TEMPLATE,
        max_length=2048,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, size_px: int) -> Qwen2_5_VLProcessor:
    """Processor of the published kind that does not resize pictures of ``size_px`` x ``size_px`` pixels."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    size = {"shortest_edge": size_px**2, "longest_edge": size_px**2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size, min_frames=2, max_frames=64, cap_pixels_per_frame=True),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    size_px: int,
    *,
    hidden_size: int,
    num_layers: int,
    vision_size: int,
    vision_layers: int,
    num_heads: int,
) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL with random weights from torch's global generator.

    The attention window of the vision tower covers the whole picture, so that its layers differ in nothing else.
    """
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    token_id = tokenizer.convert_tokens_to_ids
    rotary_pairs = hidden_size // num_heads // 2  # shared out over time, height and width
    spatial_pairs = (rotary_pairs - rotary_pairs // 4) // 2
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=math.ceil(len(tokenizer) / VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_heads // 2,
            max_position_embeddings=2048,
            rms_norm_eps=1e-6,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [rotary_pairs - 2 * spatial_pairs, spatial_pairs, spatial_pairs],
            },
            tie_word_embeddings=False,
        ),
        vision_config=dict(
            depth=vision_layers,
            hidden_size=vision_size,
            intermediate_size=2 * vision_size,
            num_heads=num_heads,
            out_hidden_size=hidden_size,
            patch_size=PATCH_PX,
            spatial_merge_size=MERGE,
            temporal_patch_size=TEMPORAL_PATCH,
            tokens_per_second=2,
            window_size=size_px,
            fullatt_block_indexes=[vision_layers - 1],
        ),
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        suppress_tokens=token_id(list(UNSAMPLED_TOKENS)),
    )
    return model


def frame_pairs(num_videos: int, seed: int, options: VideoOptions) -> tuple[Tensor, Tensor]:
    """Pairs of frames from training videos, most with a digit in them, cut as the processor cuts them.

    Half of the pairs lie as far apart as frames of the prompt, half as frames of a clip: 0 to 2 s.

    Returns:
        uint8 [pairs, patches, 3 * 2 * 14 * 14] in the order of the processor (merged patches together); int64
        [pairs, 2], the digit in each frame, or 10 for none.
    """
    import numpy as np
    import torch

    far = round((options.num_frames - 1) / (options.prompt_frames - 1))
    pairs, class_ids = [], []
    for number in range(num_videos):
        rng = random.Random(f"{seed}/{number}/pairs")
        events = video_events("train", number, seed, options)
        frames = draw_frames("train", number, seed, events, options)
        shown = np.full(len(frames), len(CLASS_WORDS))
        for event in events:
            shown[event.start_s * options.fps : event.end_s * options.fps] = event.class_id
        for _ in range(PAIRS_PER_VIDEO):
            event = rng.choice(events)
            one = rng.randrange(event.start_s * options.fps, event.end_s * options.fps)
            apart = rng.choice((far, rng.randint(0, 2 * options.fps)))
            other = min(len(frames) - 1, one + apart) if rng.random() < 0.5 else max(0, one - apart)
            pair = sorted((one, other))
            pairs.append(frames[pair])
            class_ids.append(shown[pair])
    pixels = torch.from_numpy(np.stack(pairs))  # [pairs, 2, size, size, 3]
    num_tokens = options.size_px // TOKEN_PX  # along each side
    cut = pixels.reshape(len(pixels), TEMPORAL_PATCH, num_tokens, MERGE, PATCH_PX, num_tokens, MERGE, PATCH_PX, 3)
    patches = cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(len(pixels), -1, 3 * TEMPORAL_PATCH * PATCH_PX**2)
    return patches.contiguous(), torch.from_numpy(np.stack(class_ids))


def train_vision_tower(
    model: Qwen2_5_VLForConditionalGeneration,
    image_processor: Qwen2VLImageProcessor,
    patches: Tensor,
    class_ids: Tensor,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Train the vision tower in place; deterministic in torch's global generator.

    A linear head on each merged token predicts which digit each of the token's two frames shows, or none
    (cross-entropy). The head is thrown away.

    Args:
        model: its text decoder is left as it is.
        image_processor: of the model; the tower is trained on the pixels it would produce.
        patches, class_ids: of ``frame_pairs``.
        steps, batch_size, lr: as ``build_clip_reader``.
        on_progress: as ``build_clip_reader``.
    """
    import torch
    import torch.nn.functional as F

    tower = model.model.visual
    num_classes = len(CLASS_WORDS) + 1
    head = torch.nn.Linear(tower.config.out_hidden_size, TEMPORAL_PATCH * num_classes)
    trained = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=ADAM_BETAS, weight_decay=WEIGHT_DECAY)
    for step in range(1, steps + 1):
        chosen = torch.randint(len(patches), (batch_size,))
        features = tower_features(tower, normalize_patches(patches[chosen], image_processor))
        logits = head(features).unflatten(-1, (TEMPORAL_PATCH, num_classes))  # [B, tokens, 2, classes]
        gold = class_ids[chosen][:, None].expand(logits.shape[:-1])
        loss = F.cross_entropy(logits.flatten(0, 2), gold.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        for group in optimizer.param_groups:
            group["lr"] = lr * _schedule(step / steps)
        optimizer.step()
        if on_progress and (step % PROGRESS_EVERY_STEPS == 0 or step == steps):
            is_digit = gold < len(CLASS_WORDS)
            share = (logits.argmax(-1) == gold)[is_digit].float().mean()
            on_progress(f"vision tower step {step}/{steps}: digit right in {share:.0%} of frames")


def normalize_patches(patches: Tensor, image_processor: Qwen2VLImageProcessor) -> Tensor:
    """uint8 pixels 0..255 to the processor's scale; float32 of the same shape [B, patches, 3 * 2 * 14 * 14]."""
    import torch

    values = TEMPORAL_PATCH * PATCH_PX**2
    mean = torch.tensor(image_processor.image_mean).repeat_interleave(values)
    std = torch.tensor(image_processor.image_std).repeat_interleave(values)
    return (patches.float() * image_processor.rescale_factor - mean) / std


def tower_features(tower: Any, patches: Tensor) -> Tensor:
    """The vision tower on B pairs of square frames, several times faster than its own forward; equal to 1e-5.

    Attention runs over the batch at once instead of pair by pair.

    Args:
        tower: the ``visual`` module of a Qwen2.5-VL whose attention window covers the frame.
        patches: float32 [B, patches, 3 * 2 * 14 * 14], from ``normalize_patches``.

    Returns:
        float32 [B, tokens, hidden size of the text decoder], merged tokens row by row.
    """
    import torch
    import torch.nn.functional as F
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision, get_vision_position_ids

    batch_size, num_patches, _ = patches.shape
    side = math.isqrt(num_patches)
    hidden = F.linear(patches.flatten(0, 1), tower.patch_embed.proj.weight.flatten(1))
    cos, sin = tower.rotary_pos_emb(hidden, get_vision_position_ids(torch.tensor([[1, side, side]]), MERGE, kwargs={}))
    cos, sin = cos.repeat(batch_size, 1), sin.repeat(batch_size, 1)
    for block in tower.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden)).reshape(len(hidden), 3, attention.num_heads, -1)
        query, key, value = qkv.unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        query, key, value = (
            part.reshape(batch_size, num_patches, attention.num_heads, -1).transpose(1, 2)
            for part in (query, key, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(len(hidden), -1)
        hidden = hidden + attention.proj(mixed)
        hidden = hidden + block.mlp(block.norm2(hidden))
    return tower.merger(hidden).view(batch_size, num_patches // MERGE**2, -1)


def _schedule(progress: float) -> float:
    """Factor on the peak learning rate at a share 0..1 of the training."""
    return min(1.0, progress / WARMUP_SHARE) * (1.0 - (1.0 - FINAL_LR_RATIO) * progress)


def _merge_corpus() -> list[str]:
    """Texts whose stretches become tokens: every time as often as every other, prompts, the tool and both turns."""
    times = range(0, LAST_TIME_S + 1, TIME_STEP_S)
    tools = f"system\n# Tools\n\n<tools>\n{json.dumps(schema(ClipFrames()))}\n</tools>\n\n{CALL_RULE}"
    texts: list[str] = []
    for index, time_s in enumerate(times):
        letter = LETTERS[index % len(LETTERS)]
        texts.extend(two_turns(time_s, other, letter).partition("\n")[0] for other in times)
        texts.extend([problem(time_s, time_s, len(CLASS_WORDS)), final_turn(letter), tools])
        texts.append(f"Frames of the video from {time_s:.2f} to {time_s:.2f} seconds.")
        texts.extend(["user\n", "assistant\n", "tool\n", "\n"])
    return texts

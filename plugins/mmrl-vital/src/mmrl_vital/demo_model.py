"""The demo's starting model: a small Qwen2.5-VL whose vision tower can see digits and whose decoder is blank.

Class, file layout, control tokens and processor are those of the published model; only sizes differ. A published model
comes with a pretrained vision tower, so this one's tower is trained here, in about a minute, with a throw-away head
that names the digit in each of the two frames that a token is made of. The text decoder stays random: the recipe's
supervised stage teaches it to call the tool and to answer.
"""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.conversation import schema
from mmrl_core.errors import ConfigError
from mmrl_core.testing import (
    CLASS_WORDS,
    TEMPORAL_PATCH,
    build_model,
    build_processor,
    check_size_px,
    cut_patches,
    new_model_folder,
    normalize_patches,
    pretrain_tower,
    split_pattern,
    tower_features,
    train_tokenizer,
)
from mmrl_vital.demo_data import (
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
        Qwen2VLImageProcessor,
    )

PAIRS_PER_VIDEO = 16

ATOMS = rf"{'|'.join(CLASS_WORDS)}|[{LETTERS}](?=\. |</answer>)"  # class words and option letters
TIME_STEP_S = 2  # multiples of this, with one decimal, are one token each; other numbers are spelt in pieces
LAST_TIME_S = 128
MAX_VOCAB = 1500

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
    options = _video_options(videos or {})
    check_options(options)
    check_size_px(options.size_px)
    with new_model_folder(directory, seed=seed) as unfinished:
        tokenizer = build_tokenizer()
        size_px = options.size_px
        processor = build_processor(tokenizer, smallest_px=size_px, largest_px=size_px, max_frames=64)
        model = build_model(
            tokenizer,
            size_px,
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
        split_pattern=split_pattern(ATOMS),
        chat_template=CHAT_TEMPLATE,
        max_length=2048,
    )


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
    return cut_patches(torch.from_numpy(np.stack(pairs))), torch.from_numpy(np.stack(class_ids))


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

    def batch_loss(chosen: Tensor) -> tuple[Tensor, str]:
        features = tower_features(tower, normalize_patches(patches[chosen], image_processor))
        logits = head(features).unflatten(-1, (TEMPORAL_PATCH, num_classes))  # [B, tokens, 2, classes]
        gold = class_ids[chosen][:, None].expand(logits.shape[:-1])
        is_digit = gold < len(CLASS_WORDS)
        share = (logits.argmax(-1) == gold)[is_digit].float().mean()
        return F.cross_entropy(logits.flatten(0, 2), gold.flatten()), f"digit right in {share:.0%} of frames"

    pretrain_tower(
        tower,
        head,
        batch_loss,
        num_examples=len(patches),
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        on_progress=on_progress,
    )


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

"""The demo's starting model: a small Qwen2-Audio whose tower can hear melodies and whose decoder is blank.

Class, file layout, control tokens and processor are those of the published model; only sizes differ, and it hears two
seconds instead of thirty. A published model comes with a pretrained audio tower, so this one's is trained here, in
about a minute, with a throw-away head that answers all questions about a melody from each of its tokens. The text
decoder stays random: the recipe's supervised stage teaches it to answer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl_audio_aqa.demo_data import ANSWERS, LENGTH_S, QUESTIONS, SAMPLING_RATE, draw_melody, play
from mmrl_audio_aqa.prompts import question_prompt
from mmrl_core.testing import (
    AUDIO_CHAT_TEMPLATE,
    AUDIO_TOKENS_PER_S,
    QWEN_AUDIO_TOKENS,
    UNSAMPLED_AUDIO_TOKENS,
    VOCAB_MULTIPLE,
    new_model_folder,
    pretrain_tower,
    split_pattern,
    train_tokenizer,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

MAX_VOCAB = 800


def build_melody_listener(
    directory: str | Path,
    *,
    seed: int = 0,
    tower_steps: int = 900,
    tower_batch: int = 32,
    tower_lr: float = 2e-3,
    num_melodies: int = 4000,
    hidden_size: int = 96,
    num_layers: int = 2,
    audio_size: int = 64,
    audio_layers: int = 3,
    num_heads: int = 4,
    num_mel_bins: int = 80,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Write the demo's starting model with tokenizer, processor and generation config. Uses no network.

    Args:
        directory: made if missing; must be empty. It appears complete or not at all.
        seed: of the weights, and of the melodies that the tower hears, none of which is in the rows of `melodies`. The
            caller's random state is left as it was.
        tower_steps, tower_batch, tower_lr: AdamW steps of the audio tower, melodies in each, peak learning rate (3 %
            linear warm-up, then linear decay to 5 %).
        num_melodies: that the tower is trained on.
        hidden_size, num_layers: of the text decoder.
        audio_size, audio_layers: of the audio tower.
        num_heads: attention heads of both.
        num_mel_bins: frequency bands of the spectrogram.
        on_progress: called with one line of text every 100 steps and at the end.

    Raises:
        ConfigError: the directory is not empty.
    """
    from transformers import GenerationConfig, Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    with new_model_folder(directory, seed=seed) as unfinished:
        tokenizer = build_tokenizer()
        token_id = tokenizer.convert_tokens_to_ids
        processor = build_processor(tokenizer, num_mel_bins)
        config = Qwen2AudioConfig(
            audio_config=dict(
                model_type="qwen2_audio_encoder",
                d_model=audio_size,
                encoder_layers=audio_layers,
                encoder_attention_heads=num_heads,
                encoder_ffn_dim=2 * audio_size,
                num_mel_bins=num_mel_bins,
                max_source_positions=round(2 * AUDIO_TOKENS_PER_S * LENGTH_S),
            ),
            text_config=dict(
                model_type="qwen2",
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
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                tie_word_embeddings=False,
            ),
            audio_token_index=token_id("<|AUDIO|>"),
            tie_word_embeddings=False,
        )
        model = Qwen2AudioForConditionalGeneration(config)
        model.generation_config = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            bos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=token_id(list(QWEN_AUDIO_TOKENS.stops)),
            suppress_tokens=token_id(list(UNSAMPLED_AUDIO_TOKENS)),
        )
        train_audio_tower(
            model,
            processor.feature_extractor,
            num_melodies=num_melodies,
            seed=seed,
            steps=tower_steps,
            batch_size=tower_batch,
            lr=tower_lr,
            on_progress=on_progress,
        )
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each answer and each stretch of prompt between answers is one token. Deterministic.

    Any text round-trips; text unlike the demo's takes up to one token per byte.
    """
    corpus = ["system\n", "user\n", "assistant\n", "You are a helpful assistant.", "Audio ", ": ", "\n"]
    for task, answers in ANSWERS.items():
        corpus += [question_prompt(QUESTIONS[task], answers), *(f"<answer>{answer}</answer>" for answer in answers)]
    return train_tokenizer(
        corpus * 20,
        vocab_size=MAX_VOCAB,
        split_pattern=split_pattern("|".join(answer for answers in ANSWERS.values() for answer in answers)),
        chat_template=AUDIO_CHAT_TEMPLATE,
        max_length=2048,
        control=QWEN_AUDIO_TOKENS,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, num_mel_bins: int) -> Qwen2AudioProcessor:
    """Processor of the published kind that hears `LENGTH_S`."""
    from transformers import Qwen2AudioProcessor, WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(
        feature_size=num_mel_bins, sampling_rate=SAMPLING_RATE, chunk_length=round(LENGTH_S)
    )
    return Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=tokenizer, chat_template=tokenizer.chat_template)


def train_audio_tower(
    model: Qwen2AudioForConditionalGeneration,
    feature_extractor: WhisperFeatureExtractor,
    *,
    num_melodies: int,
    seed: int,
    steps: int,
    batch_size: int,
    lr: float,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Train the audio tower and its projector in place; deterministic in torch's global generator.

    A linear head on each audio token predicts the answers to all questions about the melody (cross-entropy, mean over
    tokens and questions). The head is thrown away.

    Args:
        model: its text decoder is left as it is.
        feature_extractor: of the model; the tower is trained on exactly the spectrograms it would produce.
        num_melodies, seed, steps, batch_size, lr, on_progress: as `build_melody_listener`.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    from mmrl_core.language_model import encode_media

    features, answers = tower_examples(feature_extractor, num_melodies, seed)
    tower = nn.ModuleList([model.model.audio_tower, model.model.multi_modal_projector])
    head = nn.Linear(model.config.text_config.hidden_size, sum(map(len, ANSWERS.values())))

    def batch_loss(chosen: Tensor) -> tuple[Tensor, str]:
        media = {
            "input_features": features[chosen],
            "feature_attention_mask": torch.ones(len(chosen), features.shape[-1], dtype=torch.long),
        }
        tokens = encode_media(model, media)["audio"].view(len(chosen), -1, head.in_features)
        loss, shares = torch.zeros(()), []
        parts = head(tokens).split([len(known) for known in ANSWERS.values()], dim=-1)
        for task, logits, gold in zip(ANSWERS, parts, answers[chosen].unbind(1), strict=True):
            of_tokens = gold[:, None].expand(-1, tokens.shape[1])
            loss = loss + F.cross_entropy(logits.flatten(0, 1), of_tokens.flatten()) / len(ANSWERS)
            shares.append(f"{task} {(logits.mean(1).argmax(-1) == gold).float().mean():.0%}")
        return loss, f"right on {', '.join(shares)}"

    def report(line: str) -> None:
        if on_progress is not None:
            on_progress("audio " + line.removeprefix("vision "))

    pretrain_tower(
        tower,
        head,
        batch_loss,
        num_examples=num_melodies,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        on_progress=report,
    )


def tower_examples(feature_extractor: WhisperFeatureExtractor, num_melodies: int, seed: int) -> tuple[Tensor, Tensor]:
    """Melodies that no row of `melodies` holds.

    Returns:
        float32 [N, mel bins, frames], spectrograms as the processor makes them; int64 [N, questions], the position of
        each right answer in `ANSWERS`.
    """
    import torch

    features, answers = [], []
    for number in range(num_melodies):
        rng = random.Random(f"{seed}/tower/{number}")
        melody = draw_melody(rng)
        made = feature_extractor(play(melody, rng), sampling_rate=SAMPLING_RATE, return_tensors="pt")
        features.append(made["input_features"][0])
        answers.append([known.index(melody.heard[task]) for task, known in ANSWERS.items()])
    return torch.stack(features), torch.tensor(answers)

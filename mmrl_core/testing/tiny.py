"""Small random-weight models of real architectures, with tokenizer and processor, built offline (``mmrl tiny``).

They exist for tests, demos and dry runs: everything but size and training is as in the published models. Classes,
file layout, control tokens and the chat template's mechanism (a default system turn, one placeholder per image, video
or audio) match, so code that works on a tiny model works on the real one. What only acts beyond a size (sliding
windows, softcaps) is set small enough to act.

``TINY_KINDS`` lists what can be built. Reading it imports neither torch nor transformers; builders import them inside.
"""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

IMAGE_FACTOR_PX = 28  # patch size 14 x spatial merge 2: one language-model token covers 28 x 28 pixels
HIDDEN_SIZE = 64
NUM_LAYERS = 2
NUM_HEADS = 4
HEAD_DIM = HIDDEN_SIZE // NUM_HEADS
INIT_STD = 0.02
VOCAB_SIZE = 512
CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# A random model would sample these now and then, and a placeholder without media makes every later forward pass raise.
UNSAMPLED_TOKENS = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
UNSAMPLED_AUDIO_TOKENS = ("<|im_start|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
AUDIO_WINDOW_S = 4  # the published model's is 30; audio is padded to it, and what is longer does not fit
AUDIO_TOKENS_PER_S = 25  # 100 frames a second, halved by a convolution and again by pooling
NUM_MEL_BINS = 32
SLIDING_WINDOW = 24  # tokens; shorter than most prompts
ATTENTION_SOFTCAP = 0.5  # as large as the attention logits of a random model; published: 50
LOGIT_SOFTCAP = 1.0  # published: 30

# The splitting rule of the Qwen2 tokenizers: words with their leading space, single digits, punctuation runs.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# What the merges are learnt from: words and marks of this project's prompts, so that tiny prompts stay short.
MERGE_CORPUS = """system
You are a helpful assistant. user
assistant
<think> the image shows a red circle and a blue square on the left </think>
<answer> [{'Position': [x1, y1, x2, y2], 'Confidence': 0.95}] </answer>
<answer>[{"action": "click", "point": [120, 80], "input_text": "no input text"}]</answer>
Detect all objects of the category 'dog' in this image. Give the bounding box of each object with coordinates and
confidence between zero and one. If there are none, answer No Objects. Answer with the box that the instruction names.
What is the answer to the question about the video? Choose one option: A, B, C or D. First think, then answer.
Describe the picture, the audio, the frames and the objects in it: count them, name the color, point to the text.
category model species flower aircraft car train bus cat bird person table chair cup book phone screen button
"""

# Same mechanism as Qwen2-VL's template: default system turn, then one placeholder for each image or video part.
_SYSTEM_TURN = (
    "{%- if loop.first and message['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}"
    "{%- endif -%}"
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}" + _SYSTEM_TURN + "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}"
    "{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'video' or 'video' in part -%}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif 'text' in part -%}"
    "{{- part['text'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- endif -%}"
)
SHORT_CHAT_TEMPLATE = CHAT_TEMPLATE.replace(_SYSTEM_TURN, "")  # without the default system turn

# Qwen2-Audio's numbers the audios of a conversation and ends each with a line break.
AUDIO_CHAT_TEMPLATE = (
    "{%- set audios = namespace(count=0) -%}"
    "{%- for message in messages -%}" + _SYSTEM_TURN + "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}"
    "{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'audio' or 'audio' in part or 'audio_url' in part -%}"
    "{%- set audios.count = audios.count + 1 -%}"
    "{{- 'Audio ' ~ audios.count ~ ': <|audio_bos|><|AUDIO|><|audio_eos|>\\n' -}}"
    "{%- elif 'text' in part -%}"
    "{{- part['text'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- endif -%}"
)
# Llama 3: every turn has a header, and the template writes the token that opens a text.
LLAMA_CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}"
    "{{- message['content'] | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}"
    "{%- endif -%}"
)
# Gemma has no system role: Gemma 2 refuses it, Gemma 3 puts the text before the first user message.
_GEMMA_TURNS = (
    "{%- for message in turns -%}"
    "{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}"
    "{{- opening if loop.first else '' -}}"
    "{{- message['content'] | trim + '<end_of_turn>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<start_of_turn>model\\n' -}}"
    "{%- endif -%}"
)
GEMMA2_CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}"
    "{%- set opening, turns = '', messages -%}" + _GEMMA_TURNS
)
GEMMA3_CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set opening, turns = messages[0]['content'] + '\\n\\n', messages[1:] -%}"
    "{%- else -%}"
    "{%- set opening, turns = '', messages -%}"
    "{%- endif -%}" + _GEMMA_TURNS
)


@dataclass(frozen=True)
class ControlTokens:
    """Control tokens of a model family.

    Attributes:
        tokens: all of them, in the order of their ids, which are the last of the vocabulary.
        stops: those that end a completion.
        eos, pad: as the tokenizer names them.
        bos: opens every text that is not a rendered chat template, if the family has such a token.
    """

    tokens: tuple[str, ...]
    stops: tuple[str, ...]
    eos: str
    pad: str
    bos: str | None = None


QWEN_TOKENS = ControlTokens(
    tokens=CONTROL_TOKENS, stops=("<|im_end|>", "<|endoftext|>"), eos="<|im_end|>", pad="<|endoftext|>"
)
QWEN_AUDIO_TOKENS = ControlTokens(
    tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
    stops=("<|im_end|>", "<|endoftext|>"),
    eos="<|im_end|>",
    pad="<|endoftext|>",
)
LLAMA_TOKENS = ControlTokens(
    tokens=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ),
    stops=("<|eot_id|>", "<|end_of_text|>"),
    eos="<|eot_id|>",
    pad="<|finetune_right_pad_id|>",
    bos="<|begin_of_text|>",
)
GEMMA_TOKENS = ControlTokens(
    tokens=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    stops=("<end_of_turn>", "<eos>"),
    eos="<eos>",
    pad="<pad>",
    bos="<bos>",
)


@dataclass(frozen=True)
class TinyKind:
    """One kind of tiny model.

    Attributes:
        description: one line for ``mmrl tiny --help``.
        control: its control tokens.
        build: writes model, tokenizer and processor files into an existing empty directory. Random numbers come from
            torch's global generator, which ``build_tiny`` seeds.
    """

    description: str
    control: ControlTokens
    build: Callable[[Path], None]


def build_tiny(kind: str, directory: Path, *, seed: int = 0) -> None:
    """Write a small random-weight model with its tokenizer, processor and generation config. Uses no network.

    Args:
        kind: a name in ``TINY_KINDS``.
        directory: made if missing; must be empty. It appears complete or not at all.
        seed: of the weights. The tokenizer does not depend on it. The caller's random state is left as it was.

    Raises:
        ConfigError: unknown kind, or the directory exists and is not empty.
    """
    directory = Path(directory)
    if kind not in TINY_KINDS:
        near = difflib.get_close_matches(kind, TINY_KINDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown kind of tiny model {kind!r}.{hint} Kinds: {', '.join(sorted(TINY_KINDS))}.")
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file. Name a directory that does not exist yet.")
    if directory.is_dir() and any(directory.iterdir()):
        raise ConfigError(
            f"{directory} exists and is not empty, and nothing is overwritten. Name another directory or empty it."
        )

    import torch

    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = directory.with_name(f".{directory.name}.unfinished-{os.getpid()}")
    unfinished.mkdir()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            TINY_KINDS[kind].build(unfinished)
        os.replace(unfinished, directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def build_tokenizer(
    control: ControlTokens = QWEN_TOKENS, chat_template: str = CHAT_TEMPLATE
) -> PreTrainedTokenizerFast:
    """Byte-level BPE of ``VOCAB_SIZE`` tokens, control tokens last; any text round-trips. Deterministic."""
    tokenizer = train_tokenizer(
        [MERGE_CORPUS],
        vocab_size=VOCAB_SIZE - len(control.tokens),
        split_pattern=SPLIT_PATTERN,
        chat_template=chat_template,
        max_length=32768,
        control=control,
    )
    if len(tokenizer) != VOCAB_SIZE:
        raise AssertionError(f"the merge corpus gave {len(tokenizer)} tokens instead of {VOCAB_SIZE}")
    return tokenizer


def train_tokenizer(
    corpus: Iterable[str],
    *,
    vocab_size: int,
    split_pattern: str,
    chat_template: str,
    max_length: int,
    control: ControlTokens = QWEN_TOKENS,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in the form of Qwen2's, learnt from a corpus. Any text round-trips. Deterministic.

    Args:
        corpus: what the merges are learnt from.
        vocab_size: at most so many tokens, to which the control tokens are added.
        split_pattern: regular expression of the pieces that merges stay within.
        chat_template: jinja template.
        max_length: what the tokenizer says of the model's context, tokens.
        control: control tokens of the family.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control.tokens])
    named = {"eos_token": control.eos, "pad_token": control.pad}
    if control.bos is not None:
        named["bos_token"] = control.bos
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{control.bos} $A",
            pair=f"{control.bos} $A {control.bos} $B",
            special_tokens=[(control.bos, tokenizer.token_to_id(control.bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        additional_special_tokens=[token for token in control.tokens if token not in named.values()],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        padding_side="left",
    )


def _build_qwen2(directory: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_tokenizer()
    model = Qwen2ForCausalLM(Qwen2Config(**_language_model_settings(tokenizer), tie_word_embeddings=False))
    _never_sample(UNSAMPLED_TOKENS, model, tokenizer)
    _save(model, tokenizer, QWEN_TOKENS, tokenizer, directory)


def _build_qwen3(directory: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = build_tokenizer(chat_template=SHORT_CHAT_TEMPLATE)
    settings = _language_model_settings(tokenizer) | {"head_dim": HEAD_DIM}
    model = Qwen3ForCausalLM(Qwen3Config(**settings, tie_word_embeddings=False))
    _never_sample(UNSAMPLED_TOKENS, model, tokenizer)
    _save(model, tokenizer, QWEN_TOKENS, tokenizer, directory)


def _build_llama(directory: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer(LLAMA_TOKENS, LLAMA_CHAT_TEMPLATE)
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    settings = _language_model_settings(tokenizer) | {"rope_parameters": rope}
    model = LlamaForCausalLM(LlamaConfig(**settings, tie_word_embeddings=False))
    _save(model, tokenizer, LLAMA_TOKENS, tokenizer, directory)


# What Gemma 2 and 3 share; every second layer attends to a window only.
_GEMMA_SETTINGS: dict[str, Any] = dict(
    head_dim=HEAD_DIM,
    query_pre_attn_scalar=HEAD_DIM,
    sliding_window=SLIDING_WINDOW,
    layer_types=["sliding_attention", "full_attention"] * (NUM_LAYERS // 2),
    tie_word_embeddings=True,
)


def _build_gemma2(directory: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tokenizer = build_tokenizer(GEMMA_TOKENS, GEMMA2_CHAT_TEMPLATE)
    softcaps = dict(attn_logit_softcapping=ATTENTION_SOFTCAP, final_logit_softcapping=LOGIT_SOFTCAP)
    model = Gemma2ForCausalLM(Gemma2Config(**_language_model_settings(tokenizer), **_GEMMA_SETTINGS, **softcaps))
    _save(model, tokenizer, GEMMA_TOKENS, tokenizer, directory)


def _build_gemma3_text(directory: Path) -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tokenizer = build_tokenizer(GEMMA_TOKENS, GEMMA3_CHAT_TEMPLATE)
    settings = _language_model_settings(tokenizer)
    settings["rope_parameters"] = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
    }
    model = Gemma3ForCausalLM(Gemma3TextConfig(**settings, **_GEMMA_SETTINGS))
    _save(model, tokenizer, GEMMA_TOKENS, tokenizer, directory)


def _build_qwen2_audio(directory: Path) -> None:
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = build_tokenizer(QWEN_AUDIO_TOKENS, AUDIO_CHAT_TEMPLATE)
    audio = dict(
        model_type="qwen2_audio_encoder",
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        num_mel_bins=NUM_MEL_BINS,
        max_source_positions=2 * AUDIO_TOKENS_PER_S * AUDIO_WINDOW_S,
    )
    config = Qwen2AudioConfig(
        audio_config=audio,
        text_config={"model_type": "qwen2", **_language_model_settings(tokenizer)},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        tie_word_embeddings=False,
    )
    model = Qwen2AudioForConditionalGeneration(config)
    _never_sample(UNSAMPLED_AUDIO_TOKENS, model, tokenizer)
    processor = Qwen2AudioProcessor(
        feature_extractor=WhisperFeatureExtractor(feature_size=NUM_MEL_BINS, chunk_length=AUDIO_WINDOW_S),
        tokenizer=tokenizer,
        chat_template=AUDIO_CHAT_TEMPLATE,
    )
    _save(model, tokenizer, QWEN_AUDIO_TOKENS, processor, directory)


def _build_qwen2_vl(directory: Path) -> None:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    tokenizer = build_tokenizer()
    vision = dict(
        depth=2,
        embed_dim=32,
        hidden_size=HIDDEN_SIZE,
        mlp_ratio=2,
        num_heads=2,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
    )
    config = Qwen2VLConfig(
        text_config=_multi_axis_settings(tokenizer), vision_config=vision, **_media_token_ids(tokenizer)
    )
    model = Qwen2VLForConditionalGeneration(config)
    _never_sample(UNSAMPLED_TOKENS, model, tokenizer)
    _save(model, tokenizer, QWEN_TOKENS, _vision_processor(Qwen2VLProcessor, tokenizer), directory)


def _build_qwen2_5_vl(directory: Path) -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    tokenizer = build_tokenizer()
    vision = dict(
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=2,
        out_hidden_size=HIDDEN_SIZE,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
        tokens_per_second=2,
        window_size=56,  # 2 x 2 merged tokens, so that images from 84 x 84 on have more than one window
        fullatt_block_indexes=[1],  # block 0 attends within windows, block 1 to the whole image, as in the real tower
    )
    config = Qwen2_5_VLConfig(
        text_config=_multi_axis_settings(tokenizer), vision_config=vision, **_media_token_ids(tokenizer)
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    _never_sample(UNSAMPLED_TOKENS, model, tokenizer)
    _save(model, tokenizer, QWEN_TOKENS, _vision_processor(Qwen2_5_VLProcessor, tokenizer), directory)


def _language_model_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Keyword arguments that all text configs share."""
    return dict(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS // 2,
        max_position_embeddings=32768,
        initializer_range=INIT_STD,
        rms_norm_eps=1e-6,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )


def _multi_axis_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Keyword arguments of a Qwen2-VL text config, whose rotary positions have three axes."""
    rotary_pairs = HEAD_DIM // 2  # 8, shared out over time, height and width
    settings = _language_model_settings(tokenizer)
    settings["rope_parameters"]["mrope_section"] = [rotary_pairs - 2 * (rotary_pairs * 3 // 8)] + [
        rotary_pairs * 3 // 8
    ] * 2
    return settings


def _media_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Top-level settings of the Qwen2-VL configs that must agree with the tokenizer."""
    ids = tokenizer.convert_tokens_to_ids
    return dict(
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def _vision_processor(processor_class: type, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Processor of a Qwen2-VL kind: images 56 x 56 to 448 x 448 pixels, videos up to 16 frames of 224 x 224."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    token_px = IMAGE_FACTOR_PX**2
    image_processor = Qwen2VLImageProcessor(size={"shortest_edge": 4 * token_px, "longest_edge": 256 * token_px})
    video_processor = Qwen2VLVideoProcessor(
        size={"shortest_edge": 4 * token_px, "longest_edge": 64 * token_px},
        min_frames=2,
        max_frames=16,
        fps=2.0,
        cap_pixels_per_frame=True,  # left unset, newer transformers warn on every call
    )
    return processor_class(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=video_processor,
        chat_template=CHAT_TEMPLATE,
    )


def _never_sample(tokens: Iterable[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give tokens logits near -30 through the weights, so that no sampler needs to know about them.

    Channel 0 of the residual stream is made constant: text embeddings and media features carry the same value there
    and no layer writes to it. The output rows of those tokens then read that channel only, with a negative weight.
    """
    import torch

    projectors = ("visual.merger.mlp.2", "multi_modal_projector.linear")
    writers = ("self_attn.o_proj.weight", "mlp.down_proj.weight", *(f"{name}.weight" for name in projectors))
    constant = INIT_STD * HIDDEN_SIZE**0.5  # as large as all other channels together: about 5.7 after the final norm
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("embed_tokens.weight"):
                weight[:, 0] = constant
            elif name.endswith(tuple(f"{projector}.bias" for projector in projectors)):
                weight[0] = constant
            elif name.endswith(writers) and ("visual" not in name or "merger" in name):
                weight[0] = 0.0
        output_rows = model.get_output_embeddings().weight
        for token in tokens:
            row = output_rows[tokenizer.convert_tokens_to_ids(token)]
            row.zero_()
            row[0] = -8.0


def _save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    control: ControlTokens,
    processor: Any,
    directory: Path,
) -> None:
    """Write weights (safetensors), configs, tokenizer and processor."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(control.stops)),
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


TINY_KINDS: dict[str, TinyKind] = {
    "qwen2": TinyKind("Qwen2 / Qwen2.5 language model, text only", QWEN_TOKENS, _build_qwen2),
    "qwen3": TinyKind("Qwen3 language model, text only", QWEN_TOKENS, _build_qwen3),
    "llama": TinyKind("Llama 3 language model, text only", LLAMA_TOKENS, _build_llama),
    "gemma2": TinyKind("Gemma 2: text only, with softcaps and a sliding window", GEMMA_TOKENS, _build_gemma2),
    "gemma3_text": TinyKind("Gemma 3: text only, with a sliding window", GEMMA_TOKENS, _build_gemma3_text),
    "qwen2_vl": TinyKind("Qwen2-VL: text, images and videos", QWEN_TOKENS, _build_qwen2_vl),
    "qwen2_5_vl": TinyKind(
        "Qwen2.5-VL: text, images and videos, with window attention", QWEN_TOKENS, _build_qwen2_5_vl
    ),
    "qwen2_audio": TinyKind("Qwen2-Audio: text and audio", QWEN_AUDIO_TOKENS, _build_qwen2_audio),
}

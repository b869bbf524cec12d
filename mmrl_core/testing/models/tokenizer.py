"""Tokenizers: control tokens of the model families, and byte-level BPE learnt on the spot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmrl_core.testing.models.templates import CHAT_TEMPLATE

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

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


@dataclass(frozen=True)
class ControlTokens:
    """Control tokens of a model family.

    Attributes:
        tokens: all of them, in the order of their ids, which are the last of the vocabulary.
        stops: those that end a completion.
        eos, pad: as the tokenizer names them.
        bos: opens every text that is not a rendered chat template, if the family has such a token.
        named: tokens by the names under which a processor asks its tokenizer for them, such as image_token.
    """

    tokens: tuple[str, ...]
    stops: tuple[str, ...]
    eos: str
    pad: str
    bos: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)


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
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = _byte_level_bpe(corpus, vocab_size=vocab_size, split_pattern=split_pattern)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control.tokens])
    named = {"eos_token": control.eos, "pad_token": control.pad}
    if control.bos is not None:
        named["bos_token"] = control.bos
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{control.bos} $A",
            pair=f"{control.bos} $A {control.bos} $B",
            special_tokens=[(control.bos, tokenizer.token_to_id(control.bos))],
        )
    others: Any = [token for token in control.tokens if token not in named.values()]
    special = {"extra_special_tokens": dict(control.named)} if control.named else {"additional_special_tokens": others}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        **special,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        padding_side="left",
    )


def _byte_level_bpe(corpus: Iterable[str], *, vocab_size: int, split_pattern: str) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

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
    return tokenizer

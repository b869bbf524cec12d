"""Small random-weight models of real architectures, with tokenizer and processor, built offline (``mmrl tiny``).

They exist for tests, demos and dry runs: everything but size and training is as in the published models. Classes,
file layout, control tokens and the chat template's mechanism (a default system turn, one placeholder per image, video
or audio) match, so code that works on a tiny model works on the real one. What only acts beyond a size (sliding
windows, softcaps) is set small enough to act.

``TINY_KINDS`` lists what can be built. Reading it imports neither torch nor transformers; builders import them inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmrl_core.errors import ConfigError, did_you_mean
from mmrl_core.testing.models import audio, families, gemma_vision, qwen3, text, vision
from mmrl_core.testing.models.folder import new_model_folder
from mmrl_core.testing.models.tokenizer import GEMMA_TOKENS, LLAMA_TOKENS, QWEN_AUDIO_TOKENS, QWEN_TOKENS, ControlTokens


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
        hint = did_you_mean(kind, TINY_KINDS)
        raise ConfigError(f"unknown kind of tiny model {kind!r}.{hint} Kinds: {', '.join(sorted(TINY_KINDS))}.")
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file. Name a directory that does not exist yet.")
    if directory.is_dir() and any(directory.iterdir()):
        raise ConfigError(
            f"{directory} exists and is not empty, and nothing is overwritten. Name another directory or empty it."
        )

    with new_model_folder(directory, seed=seed) as folder:
        TINY_KINDS[kind].build(folder)


TINY_KINDS: dict[str, TinyKind] = {
    "qwen2": TinyKind("Qwen2 / Qwen2.5 language model, text only", QWEN_TOKENS, text.build_qwen2),
    "qwen3": TinyKind("Qwen3 language model, text only", QWEN_TOKENS, text.build_qwen3),
    "llama": TinyKind("Llama 3 language model, text only", LLAMA_TOKENS, text.build_llama),
    "gemma2": TinyKind("Gemma 2: text only, with softcaps and a sliding window", GEMMA_TOKENS, text.build_gemma2),
    "gemma3_text": TinyKind("Gemma 3: text only, with a sliding window", GEMMA_TOKENS, text.build_gemma3_text),
    "qwen2_vl": TinyKind("Qwen2-VL: text, images and videos", QWEN_TOKENS, vision.build_qwen2_vl),
    "qwen2_5_vl": TinyKind(
        "Qwen2.5-VL: text, images and videos, with window attention", QWEN_TOKENS, vision.build_qwen2_5_vl
    ),
    "qwen2_audio": TinyKind("Qwen2-Audio: text and audio", QWEN_AUDIO_TOKENS, audio.build_qwen2_audio),
    "qwen3_vl": TinyKind("Qwen3-VL: text, images and videos, with DeepStack", QWEN_TOKENS, qwen3.build_qwen3_vl),
    "qwen3_vl_moe": TinyKind("Qwen3-VL with a decoder of experts", QWEN_TOKENS, qwen3.build_qwen3_vl_moe),
    "qwen3_5": TinyKind("Qwen3.5: text, images and videos, with linear attention", QWEN_TOKENS, qwen3.build_qwen3_5),
    "qwen2_5_omni": TinyKind(
        "thinker of Qwen2.5-Omni: text, images, videos and audio", qwen3.OMNI_TOKENS, qwen3.build_qwen2_5_omni
    ),
    "qwen3_omni": TinyKind(
        "thinker of Qwen3-Omni: the same, with experts and DeepStack", qwen3.OMNI_TOKENS, qwen3.build_qwen3_omni
    ),
    "glm46v": TinyKind("GLM-4.6V: text, images and videos", families.GLM_TOKENS, qwen3.build_glm46v),
    "gemma3": TinyKind("Gemma 3: text and images, seen both ways", families.GEMMA3_TOKENS, gemma_vision.build_gemma3),
    "gemma4": TinyKind("Gemma 4: text, images, videos and audio", families.GEMMA4_TOKENS, gemma_vision.build_gemma4),
    "internvl": TinyKind(
        "InternVL 3: text, images in tiles, videos", families.INTERNVL_TOKENS, families.build_internvl
    ),
    "smolvlm": TinyKind("SmolVLM2: text, images in tiles, videos", families.SMOLVLM_TOKENS, families.build_smolvlm),
    "llava": TinyKind("LLaVA 1.5: text and images", families.LLAVA_TOKENS, families.build_llava),
    "llava_onevision": TinyKind(
        "LLaVA-OneVision: text, images in tiles, videos", families.ONEVISION_TOKENS, families.build_llava_onevision
    ),
    "mistral3": TinyKind("Mistral 3: text and images", families.MISTRAL_TOKENS, families.build_mistral3),
    "lfm2_vl": TinyKind("LFM2-VL: text and images, with convolutions", families.LFM2_TOKENS, families.build_lfm2_vl),
}

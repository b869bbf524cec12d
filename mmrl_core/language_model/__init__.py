"""The policy over transformers models, and the rollout engines it samples with."""

from typing import TYPE_CHECKING

from mmrl_core.support import lazy_names

if TYPE_CHECKING:
    from mmrl_core.language_model.encoder import PromptEncoder, media_of
    from mmrl_core.language_model.engines.base import Engine, Sampled, Sampler
    from mmrl_core.language_model.engines.hf import HFEngine
    from mmrl_core.language_model.engines.vllm import VLLMEngine
    from mmrl_core.language_model.engines.vllm_weights import merged_weights
    from mmrl_core.language_model.loading import load_model, load_processor
    from mmrl_core.language_model.module import LanguageModel
    from mmrl_core.language_model.observations import Continuation
    from mmrl_core.language_model.options import LanguageModelOptions
    from mmrl_core.language_model.policy import LanguageModelPolicy
    from mmrl_core.language_model.proof import proof_prompt
    from mmrl_core.language_model.towers import encode_media

__all__ = [
    "Continuation",
    "Engine",
    "HFEngine",
    "LanguageModel",
    "LanguageModelOptions",
    "LanguageModelPolicy",
    "PromptEncoder",
    "Sampled",
    "Sampler",
    "VLLMEngine",
    "encode_media",
    "load_model",
    "load_processor",
    "media_of",
    "merged_weights",
    "proof_prompt",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Continuation": "observations",
        "Engine": "engines.base",
        "HFEngine": "engines.hf",
        "LanguageModel": "module",
        "LanguageModelOptions": "options",
        "LanguageModelPolicy": "policy",
        "PromptEncoder": "encoder",
        "Sampled": "engines.base",
        "Sampler": "engines.base",
        "VLLMEngine": "engines.vllm",
        "encode_media": "towers",
        "load_model": "loading",
        "load_processor": "loading",
        "media_of": "encoder",
        "merged_weights": "engines.vllm_weights",
        "proof_prompt": "proof",
    },
)

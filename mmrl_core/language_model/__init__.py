"""The policy over transformers models, and its rollout engines."""

from mmrl_core.language_model.encoder import Continuation, PromptEncoder, media_of
from mmrl_core.language_model.engines.hf import HFEngine
from mmrl_core.language_model.engines.vllm import VLLMEngine, merged_weights
from mmrl_core.language_model.loading import load_model, load_processor
from mmrl_core.language_model.policy import LanguageModel, LanguageModelPolicy
from mmrl_core.language_model.towers import encode_media

__all__ = [
    "Continuation",
    "HFEngine",
    "LanguageModel",
    "LanguageModelPolicy",
    "PromptEncoder",
    "VLLMEngine",
    "encode_media",
    "load_model",
    "load_processor",
    "media_of",
    "merged_weights",
]

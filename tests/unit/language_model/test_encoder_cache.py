"""What is encoded to learn a prompt's length does not pile up."""

from mmrl_core.language_model import encoder
from mmrl_core.language_model.policy import LanguageModelPolicy
from mmrl_core.testing import build_tiny
from mmrl_core.types import Prompt


def test_what_an_evaluation_encodes_does_not_pile_up(tmp_path, monkeypatch):
    build_tiny("qwen2", tmp_path / "model")
    policy = LanguageModelPolicy(tmp_path / "model")
    monkeypatch.setattr(encoder, "CACHE_BYTES", 2000)
    for index in range(20):
        content = [{"type": "text", "text": f"word {index} " * 20}]
        assert policy.prompt_length(Prompt(str(index), [{"role": "user", "content": content}], {})) > 20
        assert sum(item.num_bytes for item in policy.encoder._cache.values()) <= 2000

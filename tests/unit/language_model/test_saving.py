"""Whether a model can be saved is known before the first step."""

import pytest
import torch
from torch import nn

from mmrl_core.errors import PolicyError
from mmrl_core.language_model.loading import load_model
from mmrl_core.language_model.options import LanguageModelOptions
from mmrl_core.language_model.saving import check_writable
from mmrl_core.testing import TINY_KINDS, build_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """`model(kind)` -> a tiny model as transformers loads it."""
    folder = tmp_path_factory.mktemp("models")

    def loaded(kind):
        if not (folder / kind).exists():
            build_tiny(kind, folder / kind)
        return load_model(folder / kind, LanguageModelOptions(attention="eager"), torch.float32)

    return loaded


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_a_model_as_it_was_loaded_is_sound_in_whatever_layout(kind, model):
    loaded = model(kind)
    check_writable(loaded)
    for parameter in loaded.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.t().contiguous().t()
    check_writable(loaded)


def test_weights_that_are_shared_without_the_config_saying_so_are_refused(model):
    loaded = model("qwen2")
    loaded.lm_head.weight = loaded.model.embed_tokens.weight
    with pytest.raises(PolicyError, match=r"'lm_head.weight' shares its memory .* Set tie_word_embeddings"):
        check_writable(loaded)


def test_weights_that_the_config_does_not_know_are_refused(model):
    loaded = model("gemma3_text")
    loaded.model.layers[0].extra = nn.Linear(2, 2, bias=False)
    with pytest.raises(PolicyError, match=r"1 weights, first 'model.layers.0.extra.weight', are not those of its"):
        check_writable(loaded)
    del loaded.model.layers[0].extra
    loaded.model.norm.weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(PolicyError, match=r"first 'model.norm.weight'"):
        check_writable(loaded)

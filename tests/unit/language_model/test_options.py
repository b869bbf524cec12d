"""Options of the language-model policy are refused where they cannot be used, before anything is loaded."""

import pytest
from pydantic import ValidationError

from mmrl_core.errors import ConfigError
from mmrl_core.language_model import LanguageModelPolicy


@pytest.mark.parametrize(("key", "value"), [("quantization", "int8"), ("precision", "float16")])
def test_options_that_only_evaluation_can_use_cannot_be_trained_with(key, value):
    with pytest.raises(ConfigError, match=rf"model\.{key}: .*It is for `mmrl eval`"):
        LanguageModelPolicy.check_trainable({key: value})


def test_other_options_can_be_trained_with():
    LanguageModelPolicy.check_trainable({})
    LanguageModelPolicy.check_trainable({"quantization": None, "precision": "bfloat16", "lora": {"rank": 2}})
    LanguageModelPolicy.check_trainable({"quantization": "nf4", "lora": {"rank": 2}})


def test_unknown_options_are_refused_before_the_model_is_loaded():
    with pytest.raises(ValidationError, match="loraa"):
        LanguageModelPolicy("no/such/model", loraa={"rank": 2})

"""Whether llama.cpp's converter would take a folder is read from its files."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from mmrl_core.cli.gguf_ready import check_gguf_ready
from mmrl_core.errors import MMRLError


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["InternVLForConditionalGeneration"]}, "does not know InternVLForConditionalGeneration"),
        ({"architectures": ["SmolVLMForConditionalGeneration"], "text_config": {"architectures": ["Llama"]}}, None),
        ({"tokenizer": None}, "has neither tokenizer.json nor tokenizer.model"),
        ({"weights": torch.float64}, "weights of type F64 are not taken. Add --precision bfloat16"),
        ({}, None),
    ],
)
def test_a_folder_is_judged_by_its_files(changes, said, tmp_path):
    settings = {"architectures": ["Qwen2ForCausalLM"]} | changes
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "weights"}))
    save_file({"a": torch.zeros(2, dtype=changes.get("weights", torch.float16))}, tmp_path / "model.safetensors")
    if "tokenizer" not in changes:
        (tmp_path / "tokenizer.json").write_text("{}")
    if said is None:
        check_gguf_ready(tmp_path)
        return
    with pytest.raises(MMRLError, match=re.escape(said)):
        check_gguf_ready(tmp_path)

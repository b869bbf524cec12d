"""Every family of models with media: its logprobs and gradients are those of its own forward, on every path.

`tests/families.py` has the checks; `docs/models.md` is written from the same ones.
"""

from __future__ import annotations

import importlib
import re

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrl_core.errors import PolicyError
from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.testing import TINY_KINDS, build_tiny
from mmrl_core.types import Sampling
from tests.families import FAMILIES, OPTIONS, Difference, Family, prompts_of

FAST, OWN = 1e-5, 1e-4
"""Largest relative difference of a gradient, with shared prompts and by the model's own forward in a batch."""

NOT_SHARED = {
    "qwen3_5": "it has layers of kind linear_attention",
    "lfm2_vl": "it has layers of kind conv",
    "gemma3": r"with an image a shared prompt changes logprobs by 0\.\d+",
    "gemma4": "its media do not fit a shared prompt",
    "glm46v": "its media do not fit a shared prompt",
}
"""Kinds whose completions do not share their prompt, and why. Their features are not kept either."""

COSTLY, SOME = ("LoRA", "save and load"), ("qwen3_vl", "lfm2_vl", "qwen3_omni", "gemma3", "internvl")
"""Options that take as long as all others together, and the kinds that they are tried with here."""

EXPERTS = ("qwen3_vl_moe", "qwen3_omni")
"""Kinds with shared prompts whose tokens run the decoder's own layers."""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")

    def build(kind):
        if not (root / kind).exists():
            build_tiny(kind, root / kind)
        return root / kind

    return build


@pytest.fixture(scope="module")
def family(request, model_folder, tmp_path_factory):
    """Each family in turn, built once for all of its checks."""
    return Family(request.param, model_folder(request.param), tmp_path_factory.mktemp(request.param))


def holds(family, found):
    assert found.logprobs <= 1e-5 and found.gradients <= (FAST if family.shared else OWN), found


def expected_reason(kind, option):
    """Pattern of why a kind is without an option; None if it has it."""
    if kind in NOT_SHARED:
        reasons = {"shared prompt": NOT_SHARED[kind], "kept features": "own forward", "decode step": "own forward"}
        return reasons.get(option)
    return "layers with experts" if kind in EXPERTS and option == "decode step" else None


BATCH = "no option"
TRIED = [(kind, option) for kind in FAMILIES for option in (BATCH, *OPTIONS) if option not in COSTLY or kind in SOME]
"""What the suite has room for; `docs/model_table.py` runs every option with every kind."""


@pytest.mark.parametrize(("family", "option"), TRIED, indirect=["family"])
def test_logprobs_and_gradients_are_those_of_the_own_forward_with_every_medium_and_option(family, option):
    """Without option in one batch: no medium, each that the family takes, two pictures of unequal sizes."""
    if option == BATCH:
        found = family.batch
        assert set(found) >= {"text", *family.media, "sampled"} and family.shared == (family.kind not in NOT_SHARED)
        for difference in found.values():
            holds(family, difference)
        return
    found, reason = family.check(option), expected_reason(family.kind, option)
    if reason is not None:
        assert isinstance(found, str) and re.fullmatch(reason, found)
    else:
        assert isinstance(found, Difference), found
        holds(family, found)


def test_the_table_holds_every_family_with_media_that_can_be_built():
    text = {"qwen2", "qwen3", "llama", "gemma2", "gemma3_text"}
    assert set(FAMILIES) == set(TINY_KINDS) - text


# What is dropped is noticed


@pytest.fixture
def nothing_proven(monkeypatch):
    """A process proves models of one configuration once."""
    monkeypatch.setattr("mmrl_core.language_model.proof._proven", {})


def test_a_parameter_that_kept_features_would_not_train_ends_the_shared_prompt(
    model_folder, nothing_proven, monkeypatch
):
    monkeypatch.setattr("mmrl_core.language_model.module.towers_frozen", lambda model: True)
    policy = LanguageModelPolicy(model_folder("llava_onevision"), precision="float32", freeze=["vision"])
    assert re.fullmatch(r"a shared prompt gives model\.model\.\S+ no gradient", policy.model.plain_reason)


@pytest.mark.parametrize("levels", ["dropped", "zeroed"])
def test_features_that_do_not_reach_the_layers_end_the_shared_prompt(levels, model_folder, nothing_proven, monkeypatch):
    towers = importlib.import_module("mmrl_core.language_model.towers")
    whole = towers._flat

    def without_deepstack(output):
        features = whole(output)
        hidden, deep = features[:, :64], features[:, 64:]
        assert deep.abs().max() > 0
        return hidden if levels == "dropped" else torch.cat([hidden, torch.zeros_like(deep)], -1)

    monkeypatch.setattr(towers, "_flat", without_deepstack)
    policy = LanguageModelPolicy(model_folder("qwen3_vl"), precision="float32")
    assert policy.model.plain_reason.startswith("with an image a shared prompt changes logprobs by ")
    assert max(policy.proof.shared.values()) > 100 * max(policy.proof.own.values())


def test_a_model_that_does_not_see_is_refused_where_a_prompt_has_a_picture(model_folder, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(model_folder("gemma3"), dtype=torch.float32)
    with torch.no_grad():
        model.model.multi_modal_projector.mm_input_projection_weight.zero_()
    model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(model_folder("gemma3")).save_pretrained(tmp_path)
    text, picture = list(prompts_of(("image",)).values())[:2]
    sampling = Sampling(max_tokens=2, temperature=1.0, top_p=1.0, top_k=0, seed=0)
    policy = LanguageModelPolicy(tmp_path, precision="float32")
    assert len(policy.rollout([text], 2, sampling)) == 1
    with pytest.raises(PolicyError, match=r"does not see images.*set model\.blind_check to off"):
        policy.rollout([picture], 2, sampling)
    assert (
        len(LanguageModelPolicy(tmp_path, precision="float32", blind_check="off").rollout([picture], 2, sampling)) == 1
    )

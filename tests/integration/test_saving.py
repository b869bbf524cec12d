"""What a checkpoint holds can be read by plain transformers and peft, and trained on from, whatever the model.

`MMRL_WHOLE_SWEEP=1` runs the whole table; else each kind has one row, and all pairs of the other columns are there.
"""

import itertools
import os
import shutil
from collections import Counter

import pytest
import torch

from mmrl_core.checkpoint import load_checkpoint, save_checkpoint
from mmrl_core.config import LoraConfig
from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.run import TrainState
from mmrl_core.testing import TINY_KINDS

TRAINED = {
    "full": {},
    "lora": {"lora": LoraConfig(rank=2)},
    "frozen": {"freeze": ["*embed_tokens*", "*layers.0.*"]},  # tied embeddings are the head too
}
KINDS = tuple(TINY_KINDS)
NEVER_TIED = ("qwen2_audio",)  # transformers ties nothing of it, whatever its config says
TABLE = [
    row
    for row in itertools.product(KINDS, ("tied", "untied"), TRAINED, ("float32", "bfloat16"))
    if row[0] not in NEVER_TIED or row[1] == "untied"
]


def each_kind(table):
    """A row of each kind, which are as unlike as can be: other columns that have met the least so far."""
    seen = Counter()
    chosen = []
    for kind in dict.fromkeys(row[0] for row in table):
        rows = [row for row in table if row[0] == kind]
        chosen.append(min(rows, key=lambda row: sum(seen[pair] for pair in itertools.combinations(row[1:], 2))))
        seen.update(itertools.combinations(chosen[-1][1:], 2))
    return chosen


SEEING = KINDS[8:]  # whole models of float32 in the suite
SUITE = [*each_kind([row for row in TABLE if row[0] not in SEEING]), *((k, "tied", "full", "float32") for k in SEEING)]
CASES = TABLE if os.environ.get("MMRL_WHOLE_SWEEP") else SUITE


@pytest.fixture(scope="session")
def model_folder(tiny_model, tmp_path_factory):
    """`model_folder(kind, tied)` -> folder of a tiny model whose embeddings are its head, or are not."""
    from transformers import AutoConfig

    folder = tmp_path_factory.mktemp("tied")

    def model(kind, tied):
        made = folder / f"{kind}-{tied}"
        if not made.exists():
            config = AutoConfig.from_pretrained(tiny_model(kind))
            for part in (config, config.get_text_config()):
                part.tie_word_embeddings = tied == "tied"
            torch.manual_seed(0)
            shutil.copytree(tiny_model(kind), made)
            plain_class(config)(config).save_pretrained(made)
        return made

    return model


def plain_class(config):
    import transformers

    return getattr(transformers, config.architectures[0])


def read_plainly(folder, start, lora, dtype):
    """The model of a folder as the documentation of transformers and peft says."""
    from peft import PeftModel
    from transformers import AutoConfig

    whole = start if lora else folder
    model = plain_class(AutoConfig.from_pretrained(whole)).from_pretrained(whole, dtype=dtype)
    return PeftModel.from_pretrained(model, folder) if lora else model


def begin(path, kind, settings):
    torch.manual_seed(1)  # of the adapters' first weights
    policy = LanguageModelPolicy(path, attention="eager" if kind == "gemma2" else "sdpa", **settings)
    trained = [parameter for parameter in policy.module.parameters() if parameter.requires_grad]
    return policy, torch.optim.AdamW(trained, lr=1e-2)


def learn(policy, optimizer, prompt):
    """A step of imitating an answer."""
    rows = [group.rollouts[0].rows[0] for group in policy.demonstrate([prompt], ["a red dog"])]
    (-policy.logprobs(rows).logprobs.sum()).backward()
    optimizer.step()
    optimizer.zero_grad()


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("kind", "tied", "trained", "precision"), CASES)
def test_what_is_saved_is_read_back_and_trained_on(kind, tied, trained, precision, model_folder, make_prompt, tmp_path):
    path, prompt = model_folder(kind, tied), make_prompt("p", "what is this")
    settings = {**TRAINED[trained], "precision": precision}
    policy, optimizer = begin(path, kind, settings)
    policy.freeze("reference")
    learn(policy, optimizer, prompt)
    folder = save_checkpoint(tmp_path, TrainState(step=1), policy, optimizer, {}, keep=1)

    plain = read_plainly(folder / "model", path, trained == "lora", getattr(torch, precision))
    assert equal(plain, policy.model.model)
    base = plain.get_base_model() if trained == "lora" else plain
    assert (base.get_output_embeddings().weight is base.get_input_embeddings().weight) == (tied == "tied")

    resumed, its_optimizer = begin(path, kind, settings)
    _, training = load_checkpoint(folder, resumed)
    its_optimizer.load_state_dict(training["optimizer"])
    assert equal(resumed.model.model, policy.model.model)
    for one, its in ((policy, optimizer), (resumed, its_optimizer)):
        learn(one, its, prompt)
    assert equal(resumed.model.model, policy.model.model)
    assert not equal(plain, policy.model.model), "the step has moved the weights"


def test_the_suite_has_every_kind_and_every_pair_of_the_other_columns():
    assert len(TABLE) == 258 and {row[0] for row in TABLE} == set(TINY_KINDS)
    together = lambda rows: {pair for row in rows for pair in itertools.combinations(row[1:], 2)}  # noqa: E731
    assert {row[0] for row in SUITE} == set(TINY_KINDS) and together(SUITE) == together(TABLE)

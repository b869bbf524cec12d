"""The lean decoding step against transformers' own forward over whole sequences."""

import pytest
import torch

from mmrl_core.language_model.attention import PackedAttention, run_decoder, share_prefix
from mmrl_core.language_model.decode_step import ANGLES_AHEAD, DecodeStep, steps_alike
from mmrl_core.language_model.decoding import LayerStep, SharedDecoding
from mmrl_core.language_model.packing import Packing

SIZES = dict(
    vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8
)


def make(name, **settings):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, num_key_value_heads=2, **settings)
    return getattr(transformers, f"{name}ForCausalLM")._from_config(config, attn_implementation="sdpa").eval()


def perturb(model):
    """Norms and biases that are not what they are initialised to."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


class Continued:
    """Two prompts, two completions of each, continued by random tokens."""

    def __init__(self, model, step):
        self.embed = model.get_input_embeddings()
        prompts = [torch.randint(50, (length,)) for length in (6, 4)]
        packing = Packing([6, 4], [0] * 4, [0, 0, 1, 1], torch.device("cpu"))
        attention = PackedAttention(packing, keep_keys=True)
        positions = torch.cat([torch.arange(len(prompts[i])) for i in packing.prompt_order])
        ids = torch.cat([prompts[i] for i in packing.prompt_order])
        run_decoder(model.get_decoder(), self.embed(ids[None]), positions[None], attention)
        self.decoding = SharedDecoding(attention, torch.tensor([6, 6, 4, 4]), step, self.embed)
        self.texts = [prompts[0], prompts[0], prompts[1], prompts[1]]
        self.slots = [0, 1, 2, 3]

    def advance(self):
        tokens = torch.randint(50, (len(self.slots),))
        hidden = self.decoding.advance(tokens)
        for slot, text in enumerate(self.slots):
            self.texts[text] = torch.cat([self.texts[text], tokens[slot : slot + 1]])
        return hidden

    def end(self, live):
        self.slots = [self.slots[old] for old in self.decoding.compact(torch.tensor(live)).tolist()]


@torch.no_grad()
@pytest.mark.parametrize(
    "name, settings",
    [
        ("Llama", {}),
        ("Llama", {"attention_bias": True}),
        ("Mistral", {"sliding_window": 9}),
        ("Qwen2", {}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
        ("Qwen3", {}),
    ],
)
def test_each_token_is_that_of_the_whole_sequence(name, settings):
    model = perturb(make(name, **settings))
    assert share_prefix(model) is None and steps_alike(model)
    decoder = model.get_decoder()
    continued = Continued(model, DecodeStep(decoder))
    for step in range(2 * ANGLES_AHEAD + 5):
        if step == ANGLES_AHEAD - 3:
            continued.end([True, False, False, True])  # in the middle of the angles computed ahead
        hidden = continued.advance()
        for slot, text in enumerate(continued.slots):
            whole = decoder(input_ids=continued.texts[text][None], use_cache=False).last_hidden_state[0, -1]
            torch.testing.assert_close(hidden[slot], whole, rtol=1e-5, atol=2e-5)
    assert len(continued.slots) == 2


@torch.no_grad()
def test_adapters_take_part():
    from peft import LoraConfig, get_peft_model

    model = make("Qwen2")
    assert share_prefix(model) is None
    plain = DecodeStep(model.get_decoder())
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "o_proj", "up_proj"], init_lora_weights=False))
    decoder = adapted.get_base_model().get_decoder()
    found = []
    for step in (DecodeStep(decoder), LayerStep(decoder), plain):
        torch.manual_seed(1)
        continued = Continued(adapted.get_base_model(), step)
        found.append(torch.stack([continued.advance() for _ in range(3)]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], found[2], atol=1e-3)


@pytest.mark.parametrize(
    "name, settings",
    [
        ("Gemma3", {"_cls": "Gemma3ForCausalLM"}),  # norms behind attention and feed-forward too
        ("Granite", {"residual_multiplier": 0.5}),  # the parts of a Llama, put together in another way
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    ],
)
def test_another_form_of_decoder_runs_its_own_layers(name, settings):
    import transformers

    torch.manual_seed(0)
    if name == "Gemma3":
        config = transformers.Gemma3TextConfig(**SIZES, num_key_value_heads=2)
        model = transformers.Gemma3ForCausalLM._from_config(config, attn_implementation="sdpa")
    else:
        model = make(name, **settings)
    model.train()
    assert share_prefix(model) is None
    assert not steps_alike(model) and model.training


@torch.no_grad()
def test_weights_are_read_when_the_step_is_made():
    """A step is made anew for each rollout, since weights have moved."""
    model = make("Qwen2")
    assert share_prefix(model) is None
    decoder = model.get_decoder()
    for layer in decoder.layers:
        layer.self_attn.k_proj.weight.mul_(-1)
    torch.manual_seed(1)
    lean = Continued(model, DecodeStep(decoder)).advance()
    torch.manual_seed(1)
    torch.testing.assert_close(lean, Continued(model, LayerStep(decoder)).advance(), rtol=1e-5, atol=1e-5)

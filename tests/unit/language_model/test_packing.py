"""Attention over shared prompts against a dense softmax over each completion behind its own copy of the prompt."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from mmrl_core.language_model import attention as shared_prefix
from mmrl_core.language_model.attention import ATTENTION, PackedAttention, run_decoder, share_prefix
from mmrl_core.language_model.decoding import FIRST_CAPACITY, LayerStep, SharedDecoding
from mmrl_core.language_model.packing import Packing

CPU = torch.device("cpu")
EXACT = {"rtol": 0, "atol": 1e-12}  # of float64
ROUNDED = {"rtol": 0, "atol": 1e-6}  # the softmax of sampling is in float32, whatever comes in


def dense(query, key, value, scale, window=None):
    """Causal softmax attention [s, heads, d], each token seeing `window` tokens, itself among them."""
    key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
    places = torch.arange(len(query))
    back = places[:, None] - places
    sees = (back >= 0) & (back < (len(query) if window is None else window))
    scores = scale * torch.einsum("qhd,khd->hqk", query, key)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~sees, -torch.inf).softmax(-1), value)


# Packing

LAYOUTS = {
    "one prompt": ([5], [3, 1, 4], [0, 0, 0]),
    "equal prompts, equal groups": ([4, 4], [3, 3, 3, 3], [0, 0, 1, 1]),
    "equal prompts, unequal groups": ([4, 4, 4], [3, 2, 5, 1, 4], [0, 1, 1, 1, 2]),
    "unequal prompts, longest first": ([6, 2, 4], [3, 2, 5, 1], [0, 0, 1, 2]),
    "some prompts of one length": ([3, 6, 3, 1], [2, 4, 1, 3, 2], [0, 1, 2, 2, 3]),
    "rows in any order": ([3, 6, 3], [2, 4, 1, 3, 2, 5], [2, 0, 1, 2, 1, 0]),
    "a prompt without completions": ([3, 5, 3], [2, 4, 1], [0, 2, 2]),
    "only the longest has completions": ([3, 5], [2, 4], [1, 1]),
    "completions of no tokens": ([3, 5, 5], [2, 0, 0, 3, 0], [0, 0, 1, 2, 2]),
    "all completions without tokens": ([3, 3], [0, 0], [0, 1]),
    "no completions": ([3, 2], [], []),
}


@pytest.mark.parametrize("heads, kv_heads", [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 1, 3, "all but one", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_attention_and_its_gradients_are_those_of_whole_sequences(layout, window, heads, kv_heads):
    """A window of as many tokens as the longest sequence has does not bite, one of a token less does."""
    prompt_lengths, row_lengths, row_prompts = LAYOUTS[layout]
    if isinstance(window, str):
        wholes = [prompt_lengths[prompt] + length for prompt, length in zip(row_prompts, row_lengths, strict=True)]
        window = max([*prompt_lengths, *wholes]) - (window == "all but one")
    generator = torch.Generator().manual_seed(1)
    dim, scale = 4, 0.7

    def leaves(num_heads):
        """A tensor for each prompt, then for each completion, in the order given."""
        return [
            torch.randn(length, num_heads, dim, generator=generator, dtype=torch.float64).requires_grad_()
            for length in [*prompt_lengths, *row_lengths]
        ]

    parts = [leaves(heads), leaves(kv_heads), leaves(kv_heads)]
    packing = Packing(prompt_lengths, row_lengths, row_prompts, CPU)
    starts = [*packing.prompt_starts, *packing.row_starts]
    places = [torch.arange(start, start + len(part)) for start, part in zip(starts, parts[0], strict=True)]
    everywhere = torch.cat(places)
    assert sorted(everywhere.tolist()) == list(range(packing.num_tokens)), "each place holds one token"
    packed = [torch.cat(tensors)[everywhere.argsort()].transpose(0, 1)[None] for tensors in parts]
    (out,) = PackedAttention(packing).attend(0, *packed, scale, window)
    found = [out[place] for place in places]

    expected = []
    for index in range(len(prompt_lengths)):
        expected.append(dense(*(tensors[index] for tensors in parts), scale, window))
    for row, prompt in enumerate(row_prompts):
        whole = [torch.cat([tensors[prompt], tensors[len(prompt_lengths) + row]]) for tensors in parts]
        expected.append(dense(*whole, scale, window)[prompt_lengths[prompt] :])

    factors = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in expected]
    flat = [leaf for tensors in parts for leaf in tensors]
    gradients = []
    for values in (found, expected):
        loss = sum((value * factor).sum() for value, factor in zip(values, factors, strict=True))
        gradients.append(torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True))
    for value, right in zip([*found, *gradients[0]], [*expected, *gradients[1]], strict=True):
        torch.testing.assert_close(value, right, **EXACT)


def test_a_gradient_through_only_some_of_the_inputs_is_the_same():
    """Frozen weights and checkpointing ask for gradients of some inputs only."""
    prompt_lengths, row_lengths, row_prompts = LAYOUTS["rows in any order"]
    generator = torch.Generator().manual_seed(3)
    packing = Packing(prompt_lengths, row_lengths, row_prompts, CPU)
    shape = (1, 2, packing.num_tokens, 4)
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    every = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    PackedAttention(packing).attend(0, *every, 0.5, None).square().sum().backward()
    for index in range(3):
        some = [tensor.clone().requires_grad_(place == index) for place, tensor in enumerate((query, key, value))]
        PackedAttention(packing).attend(0, *some, 0.5, None).square().sum().backward()
        assert torch.equal(some[index].grad, every[index].grad)
        assert [tensor.grad is None for tensor in some].count(True) == 2


def test_prompts_stand_shortest_first_and_completions_in_the_order_of_their_prompts():
    packing = Packing([6, 2, 4], [3, 2, 5, 1], [0, 2, 1, 0], CPU)
    assert packing.prompt_order == [1, 2, 0] and packing.prompt_starts == [6, 0, 2]
    assert packing.row_order == [2, 1, 0, 3] and packing.row_starts == [19, 17, 12, 22]
    assert packing.num_tokens == 23


# Decoding


class Decoder:
    """Stands for a text decoder: layers beside one another that attend to the embeddings; remembers positions.

    Args:
        windows: of each layer.
    """

    def __init__(self, heads=4, kv_heads=2, dim=4, windows=(None,)):
        generator = torch.Generator().manual_seed(5)
        self.width, self.scale, self.windows = 6, 0.6, windows
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim
        self.weights = [
            torch.randn(self.width, (heads + 2 * kv_heads) * dim, generator=generator, dtype=torch.float64) / 3
            for _ in windows
        ]
        self.positions = None

    def parts(self, layer, embeddings):
        """[..., s, width] -> query, key, value [..., s, heads, d]."""
        product = (embeddings @ self.weights[layer]).unflatten(-1, (-1, self.dim))
        return product.split([self.heads, self.kv_heads, self.kv_heads], dim=-2)

    def __call__(self, *, inputs_embeds, position_ids, attention_mask, use_cache, layout):
        self.positions = position_ids
        out = []
        for layer, window in enumerate(self.windows):
            query, key, value = (part.transpose(1, 2) for part in self.parts(layer, inputs_embeds))
            out.append(layout.attend(layer, query, key, value, self.scale, window).flatten(2))
        return SimpleNamespace(last_hidden_state=torch.cat(out, -1))

    def whole(self, embeddings):
        """The same of one sequence [s, width] by dense attention."""
        out = [
            dense(*self.parts(layer, embeddings), self.scale, window).flatten(1)
            for layer, window in enumerate(self.windows)
        ]
        return torch.cat(out, -1)


class Sequences:
    """Completions that are being continued, and what each of them should be."""

    def __init__(self, decoder, prompt_lengths, num_samples, next_positions=None, tails=None):
        """`tails`: tokens that stand between the prompt and each completion."""
        self.decoder = decoder
        self.generator = torch.Generator().manual_seed(7)
        prompts = [self._tokens(length) for length in prompt_lengths]
        row_prompts = [index for index in range(len(prompts)) for _ in range(num_samples)]
        tail_lengths = tails or [0] * len(row_prompts)
        tails = [self._tokens(length) for length in tail_lengths]
        packing = Packing(prompt_lengths, tail_lengths, row_prompts, CPU)
        attention = PackedAttention(packing, keep_keys=True)
        parts = [*(prompts[i] for i in packing.prompt_order), *(tails[i] for i in packing.row_order)]
        hidden = run_decoder(
            decoder,
            torch.cat(parts)[None],
            torch.zeros(1, packing.num_tokens, dtype=torch.long),
            attention,
        )[0]
        for prompt, start in zip(prompts, packing.prompt_starts, strict=True):
            torch.testing.assert_close(hidden[start : start + len(prompt)], decoder.whole(prompt), **EXACT)
        self.starts = next_positions or [prompt_lengths[i] for i in row_prompts]
        self.decoding = SharedDecoding(attention, torch.tensor(self.starts), LayerStep(decoder), torch.Tensor.detach)
        self.num_samples = num_samples
        self.texts = [torch.cat([prompts[i], tails[row]]) for row, i in enumerate(row_prompts)]  # of each completion
        self.slots = list(range(len(self.texts)))  # the completion in each slot; None: its slot only fills up
        assert self.decoding.rows.tolist() == self.slots
        self.num_steps = 0

    def _tokens(self, count):
        return torch.randn(count, self.decoder.width, generator=self.generator, dtype=torch.float64)

    def step(self):
        tokens = self._tokens(len(self.slots))
        hidden = self.decoding.advance(tokens)
        assert len(hidden) == len(self.slots) and bool(torch.isfinite(hidden).all())
        for slot, completion in enumerate(self.slots):
            if completion is not None:
                self.texts[completion] = torch.cat([self.texts[completion], tokens[slot : slot + 1]])
                expected = self.decoder.whole(self.texts[completion])[-1]
                torch.testing.assert_close(hidden[slot], expected, **ROUNDED)
                position = self.starts[completion] + self.num_steps
                assert self.decoder.positions[slot].tolist() == [position]
        self.num_steps += 1

    def end(self, ended):
        """Compact the grid without the completions `ended`."""
        left = {completion for completion in self.slots if completion is not None} - set(ended)
        index = self.decoding.compact(torch.tensor([completion in left for completion in self.slots]))
        self.slots = [None if old < 0 else self.slots[old] for old in index.tolist()]
        assert sorted(completion for completion in self.slots if completion is not None) == sorted(left)
        sizes = Counter(completion // self.num_samples for completion in left)
        assert len(self.slots) == len(sizes) * max(sizes.values()), "as many slots for each prompt as one of them needs"


@pytest.mark.parametrize("heads, kv_heads", [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("windows", [(None,), (3,), (None, 5), (100, 1)])
@pytest.mark.parametrize("prompt_lengths", [[4], [4, 4], [5, 2, 7, 2]])
def test_each_step_is_that_of_the_whole_sequence(prompt_lengths, windows, heads, kv_heads):
    sequences = Sequences(Decoder(heads, kv_heads, windows=windows), prompt_lengths, 3)
    for _ in range(8):
        sequences.step()


def test_positions_go_on_from_those_that_are_given():
    """With pictures the next position is not the length of the prompt."""
    sequences = Sequences(Decoder(), [5, 2, 7], 2, next_positions=[3, 3, 11, 12, 4, 4])
    sequences.step()
    sequences.end([0, 1, 4])
    sequences.step()


@pytest.mark.parametrize("windows", [(None,), (3,), (None, 5)])
@pytest.mark.parametrize("tails", [[1, 1, 1, 1], [0, 3, 2, 9], [0, 0, 0, 40]])
def test_each_step_of_a_conversation_is_that_of_the_whole_sequence(windows, tails):
    """Turns and replies of different lengths stand between the prompt and what is sampled."""
    sequences = Sequences(Decoder(windows=windows), [5, 2], 2, tails=tails)
    for step in range(FIRST_CAPACITY + 2):
        sequences.step()
        if step == 1:
            sequences.end([1])


def test_conversations_of_one_prompt_need_not_be_as_many_as_those_of_another():
    decoder = Decoder()
    packing = Packing([4, 3], [2, 1, 1], [1, 0, 1], CPU)
    attention = PackedAttention(packing, keep_keys=True)
    tokens = torch.randn(11, decoder.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    run_decoder(decoder, tokens[None], torch.zeros(1, 11, dtype=torch.long), attention)
    decoding = SharedDecoding(attention, torch.tensor([5, 5, 4]), LayerStep(decoder), torch.Tensor.detach)
    assert decoding.rows.tolist() == [1, -1, 0, 2], "the prompt that has one fills up its line of the grid"
    new = torch.randn(4, decoder.width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hidden = decoding.advance(new)
    for slot, row in ((0, 1), (2, 0), (3, 2)):
        prompt = [1, 0, 1][row]
        start, first = packing.row_starts[row], packing.prompt_starts[prompt]
        past = [tokens[first : first + [4, 3][prompt]], tokens[start : start + [2, 1, 1][row]]]
        expected = decoder.whole(torch.cat([*past, new[slot : slot + 1]]))[-1]
        torch.testing.assert_close(hidden[slot], expected, **ROUNDED)


@pytest.mark.parametrize("windows", [(None,), (4, None)])
@pytest.mark.parametrize("seed", range(4))
def test_completions_go_on_unchanged_when_others_are_taken_out(seed, windows):
    """Each completion in turn ends at a random step; prompts lose their completions one by one, then all."""
    sequences = Sequences(Decoder(windows=windows), [5, 2, 7, 2], 4)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed)).tolist()
    sizes = [3, 1, 6, 1, 3, 1]  # of 16 completions one is left
    for size in sizes:
        sequences.step()
        sequences.end([order.pop() for _ in range(size)])
    sequences.step()


def test_a_prompt_without_living_completions_leaves_with_its_keys():
    sequences = Sequences(Decoder(windows=(None, 4)), [5, 7, 2], 2)
    sequences.step()
    sequences.end([2, 3])  # the longest prompt: what is left of its length is padding
    sequences.step()
    assert sequences.slots == [0, 1, 4, 5]
    sequences.end([0, 5])
    sequences.step()
    assert sequences.slots == [1, 4]


@pytest.mark.parametrize("windows", [(None,), (6,)])
def test_the_cache_grows_and_keeps_what_it_holds(windows):
    decoder = Decoder(heads=1, kv_heads=1, dim=2, windows=windows)
    sequences = Sequences(decoder, [3, 1], 2)
    for step in range(2 * FIRST_CAPACITY + 2):
        if step == FIRST_CAPACITY - 1:
            sequences.end([0])
        sequences.step()


# Models


@pytest.fixture
def make_model():
    """`make_model(attention)` -> a llama of two small layers; what tests register with transformers is undone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def model(attention="sdpa"):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            attn_implementation=attention,
        )
        return LlamaForCausalLM(config)

    yield model
    from transformers import AttentionInterface

    if ATTENTION in AttentionInterface._global_mapping:
        AttentionInterface.register(ATTENTION, PLAIN_ATTENTION)


PLAIN_ATTENTION = shared_prefix._attention


def test_a_prepared_model_computes_what_it_did_and_takes_layouts(make_model):
    model = make_model().train()
    ids = torch.arange(12)[None]
    expected = model(ids).logits
    assert share_prefix(model) is None
    assert model.config._attn_implementation == ATTENTION and model.training
    assert torch.equal(model(ids).logits, expected)
    packing = Packing([5, 4], [2, 3], [0, 0], CPU)  # the second prompt, which is shorter, comes first
    tokens = torch.cat([20 + torch.arange(4), torch.arange(5), torch.arange(5, 7), torch.arange(30, 33)])
    positions = torch.cat([torch.arange(4), torch.arange(5), 5 + torch.arange(2), 5 + torch.arange(3)])
    embeddings = model.get_input_embeddings()(tokens[None])
    hidden = run_decoder(model.get_decoder(), embeddings, positions[None], PackedAttention(packing))
    logits = model.lm_head(hidden)[0]
    torch.testing.assert_close(logits[4:11], model(torch.arange(7)[None]).logits[0], rtol=0, atol=1e-5)
    second = torch.cat([torch.arange(5), torch.arange(30, 33)])
    torch.testing.assert_close(logits[11:], model(second[None]).logits[0, 5:], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[:4], model(20 + torch.arange(4)[None]).logits[0], rtol=0, atol=1e-5)


def test_a_model_with_another_attention_is_left_as_it_was(make_model):
    model = make_model("eager")
    assert share_prefix(model) == "model.attention is 'eager', and prompts are shared with 'sdpa' only"
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("layer_types", ["full_attention", "linear_attention"], "it has layers of kind linear_attention"),
        ("layer_types", ["chunked_attention", "a", "sliding_attention"], "it has layers of kind a, chunked_attention"),
        ("attn_logit_softcapping", 50.0, "its attention caps logits"),
    ],
)
def test_a_model_whose_config_says_that_it_attends_otherwise_is_left_as_it_was(make_model, name, value, reason):
    model = make_model()
    setattr(model.config, name, value)
    assert share_prefix(model) == reason
    assert model.config._attn_implementation == "sdpa"


def test_a_model_with_attention_sinks_is_left_as_it_was(make_model):
    model = make_model()
    model.model.layers[1].self_attn.sinks = torch.nn.Parameter(torch.zeros(4))
    assert share_prefix(model) == "its attention has sinks"
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("training", [False, True])
def test_a_model_whose_results_would_change_is_left_as_it_was(make_model, monkeypatch, training):
    """As if its attention scaled scores in a way that layouts do not know."""

    def other_scale(module, query, key, value, mask, scaling=None, layout=None, **options):
        scaling = scaling if layout is None else 1.1 * scaling
        return PLAIN_ATTENTION(module, query, key, value, mask, scaling=scaling, layout=layout, **options)

    monkeypatch.setattr(shared_prefix, "_attention", other_scale)
    model = make_model().train(training)
    expected = model(torch.arange(9)[None]).logits
    reason = share_prefix(model)
    assert reason is not None and reason.startswith("a shared prompt changes its results (by ")
    assert model.config._attn_implementation == "sdpa" and model.training is training
    assert torch.equal(model(torch.arange(9)[None]).logits, expected)


def test_a_decoder_that_does_not_hand_the_layout_on_is_left_as_it_was(make_model, monkeypatch):
    model = make_model().train()
    forward = model.model.forward

    def strict(*, inputs_embeds, position_ids=None, attention_mask=None, use_cache=None):
        return forward(inputs_embeds=inputs_embeds, position_ids=position_ids, use_cache=use_cache)

    monkeypatch.setattr(model.model, "forward", strict)
    reason = share_prefix(model)
    assert reason is not None and reason.startswith("its decoder does not take a layout (TypeError: ")
    assert model.config._attn_implementation == "sdpa" and model.training


def test_a_decoder_that_swallows_the_layout_is_left_as_it_was(make_model, monkeypatch):
    """Its completions would see one another."""
    model = make_model()
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda *, layout=None, **options: forward(**options))
    reason = share_prefix(model)
    assert reason is not None and reason.startswith("a shared prompt changes its results (by ")
    assert model.config._attn_implementation == "sdpa"

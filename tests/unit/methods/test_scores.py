"""Losses of scores: the exact gradient, in however many micro-batches and processes."""

import math
import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from mmrl_core.errors import HookResultError
from mmrl_core.methods import ScoreInputs, score_weights
from mmrl_core.types import LOSS_MASK, Batch, Row

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}


def pairs(inputs: ScoreInputs, beta: float = 0.7):
    """Mean of -log sigmoid(beta * (s_i - s_j)) over the pairs of a group in which i has the higher reward."""
    better = (inputs.rewards[:, None] > inputs.rewards) & (inputs.group_ids[:, None] == inputs.group_ids)
    num_pairs = float(inputs.reduce_sum(better.sum().double()))
    margins = beta * (inputs.scores[:, None] - inputs.scores)
    return -(torch.nn.functional.logsigmoid(margins) * better).sum() / max(num_pairs, 1.0), {"pairs": num_pairs}


def make_batch(lengths, group_ids, trajectory_ids, rewards):
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    rows = [
        Row(f"p{g}", str(t), None, torch.zeros(n), n)
        for n, g, t in zip(lengths, group_ids, trajectory_ids, strict=True)
    ]
    return Batch(
        rows=rows,
        group_ids=torch.tensor(group_ids),
        trajectory_ids=torch.tensor(trajectory_ids),
        masks={LOSS_MASK: mask},
        advantages=torch.zeros(mask.shape),
        rewards=torch.tensor(rewards),
    )


# Three groups, the second of two-turn conversations; the last is flat.
BATCH = make_batch(
    [3, 5, 2, 4, 1, 2, 6, 3, 2],
    [0, 0, 0, 1, 1, 1, 1, 2, 2],
    [0, 1, 2, 3, 3, 4, 4, 5, 6],
    [1.0, 0.0, 2.0, 0.5, 0.5, 1.5, 1.5, 3.0, 3.0],
)


class Linear(torch.nn.Module):
    """Logprobs [B, T] of a small differentiable model, in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inputs = torch.randn(len(BATCH), BATCH.mask.shape[1], 8, dtype=torch.float64)
        self.layer = torch.nn.Linear(8, 4, dtype=torch.float64)

    def forward(self, index, width):
        return self.layer(self.inputs[index, :width]).log_softmax(-1)[..., 0]


def everything(tensor):
    return tensor


def gradient(module, loss):
    module.zero_grad()
    loss.backward()
    return module.layer.weight.grad.clone()


def direct(module, reduction):
    """The gradient of the loss of all rows at once, by autograd alone."""
    logprobs = module(torch.arange(len(BATCH)), BATCH.mask.shape[1]) * BATCH.mask
    lengths = torch.zeros(7, dtype=torch.float64).index_add(0, BATCH.trajectory_ids, BATCH.mask.sum(1).double())
    sums = torch.zeros(7, dtype=torch.float64).index_add(0, BATCH.trajectory_ids, logprobs.sum(1))
    scores = sums / lengths if reduction == "mean" else sums
    rewards, groups = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0, 3.0], [0, 0, 0, 1, 1, 2, 2]
    terms = [
        -torch.nn.functional.logsigmoid(0.7 * (scores[i] - scores[j]))
        for i in range(7)
        for j in range(7)
        if groups[i] == groups[j] and rewards[i] > rewards[j]
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("seed", range(4))
def test_any_split_into_micro_batches_has_the_gradient_of_the_whole(reduction, seed):
    module = Linear()
    expected = gradient(module, direct(module, reduction))
    with torch.no_grad():
        logprobs = module(torch.arange(len(BATCH)), BATCH.mask.shape[1])
    weighted, metrics = score_weights(BATCH, logprobs, pairs, reduction, everything, "loss")
    assert metrics["policy_loss"] == pytest.approx(direct(module, reduction).item(), abs=1e-12)
    assert metrics["pairs"] == 4

    order = list(range(len(BATCH)))
    random.Random(seed).shuffle(order)
    cuts = sorted(random.Random(seed + 100).sample(range(1, len(order)), 3))
    module.zero_grad()
    for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True):
        index = torch.tensor(order[start:end])
        part = weighted.select(index)
        (-(part.advantages * module(index, part.mask.shape[1])).sum()).backward()
    torch.testing.assert_close(module.layer.weight.grad, expected, **TOLERANCE)


def test_two_processes_have_the_gradient_of_one():
    module = Linear()
    expected = gradient(module, direct(module, "mean"))
    shares = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5, 6, 7, 8])]
    parts = [BATCH.select(index) for index in shares]
    # What both processes sum up, as `reduce_sum` gives it: counts of groups, trajectories and tokens, then of pairs.
    sums = [torch.tensor([3.0, 7.0, 28.0]), torch.tensor(4.0)]
    module.zero_grad()
    for index, part in zip(shares, parts, strict=True):
        calls = iter(sums)

        def reduce_sum(tensor, calls=calls):
            return next(calls)

        with torch.no_grad():
            logprobs = module(index, part.mask.shape[1])
        weighted, _ = score_weights(part, logprobs, pairs, "mean", reduce_sum, "loss")
        (-(weighted.advantages * module(index, part.mask.shape[1])).sum()).backward()
    torch.testing.assert_close(module.layer.weight.grad, expected, **TOLERANCE)


def test_trajectories_without_influence_have_weight_0():
    logprobs = -torch.arange(float(BATCH.mask.numel())).reshape(BATCH.mask.shape) / 50
    weighted, _ = score_weights(BATCH, logprobs, pairs, "sum", everything, "loss")
    moves = (weighted.advantages != 0).any(1)
    assert moves.tolist() == [True] * 7 + [False] * 2  # the flat group has no pair
    assert not bool((weighted.advantages != 0)[~BATCH.mask].any())


def test_the_weights_of_a_pair_worked_by_hand():
    """Two answers, scores 0.2 and -0.1: dL/ds = -/+ beta * sigmoid(-beta * 0.3)."""
    batch = make_batch([1, 1], [0, 0], [0, 1], [1.0, 0.0])
    logprobs = torch.tensor([[0.2], [-0.1]], dtype=torch.float64)
    weighted, _ = score_weights(batch, logprobs, partial(pairs, beta=0.25), "mean", everything, "loss")
    share = 0.25 / (1 + math.exp(0.25 * 0.3))
    torch.testing.assert_close(weighted.advantages.flatten(), torch.tensor([share, -share], dtype=torch.float64))


def test_old_and_frozen_scores_are_of_the_same_kind():
    seen = []

    def watching(inputs):
        seen.append(inputs)
        return inputs.scores.sum(), {}

    batch = make_batch([1, 2], [0, 0], [0, 1], [1.0, float("nan")])
    old = torch.tensor([[1.0, float("nan")], [2.0, 4.0]])  # nan: padding, or a token that could not be scored
    batch = replace(batch, old_logprobs=old, frozen_logprobs={"reference": 2 * old}, components={"iou": batch.rewards})
    score_weights(batch, torch.zeros(2, 2), watching, "mean", everything, "loss")
    assert seen[0].old_scores.tolist() == [1.0, 3.0] and seen[0].frozen_scores["reference"].tolist() == [2.0, 6.0]
    assert seen[0].lengths.tolist() == [1.0, 2.0] and seen[0].components["iou"][0] == 1.0
    assert (seen[0].num_groups, seen[0].num_trajectories, seen[0].num_tokens) == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda inputs: inputs.scores.sum(), "expected a pair"),
        (lambda inputs: (inputs.scores, {}), "expected a scalar"),
        (lambda inputs: (inputs.scores.detach().sum(), {}), "without a gradient"),
        (lambda inputs: (inputs.scores.sum() * math.nan, {}), "no finite number"),
        (lambda inputs: (torch.zeros(1, requires_grad=True).sum(), {}), "does not depend on inputs.scores"),
        (lambda inputs: ((inputs.scores - inputs.scores.detach()).abs().sqrt().sum(), {}), "not finite"),
    ],
)
def test_a_wrong_result_is_refused_with_its_source(loss, says):
    with pytest.raises(HookResultError, match=says) as caught:
        score_weights(BATCH, torch.zeros(BATCH.mask.shape), loss, "sum", everything, "loss 'mine'")
    assert "loss 'mine'" in str(caught.value)

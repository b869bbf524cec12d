"""What several samples of a prompt say: pass@k, and maj@k."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from math import comb

Right = Sequence[Sequence[bool | None]]


def pass_metrics(right: Right, answers: Sequence[Sequence[Hashable | None]] | None = None) -> dict[str, float]:
    """Means over prompts of pass@k and maj@k, for k = 1, 2, 4, ... and the number of samples n itself.

    Args:
        right: of P prompts, whether each of their n samples is right; None where it could not be scored, which is left
            out: a prompt then has fewer samples, and does not count for a larger k.
        answers: what each sample answered, in a form in which equal answers are equal; None: it gave none.

    Returns:
        `pass@k` and, with answers, `maj@k`.

    >>> pass_metrics([[True, False, False, False]])["pass@2"]
    0.5
    """
    num_samples = max((len(of_prompt) for of_prompt in right), default=0)
    sizes = sorted({num_samples} | {1 << power for power in range(num_samples.bit_length())})
    metrics: dict[str, float] = {}
    for k in sizes:
        scored = [[bool(item) for item in of_prompt if item is not None] for of_prompt in right]
        passes = [pass_at_k(len(of_prompt), sum(of_prompt), k) for of_prompt in scored if len(of_prompt) >= k > 0]
        if passes:
            metrics[f"pass@{k}"] = sum(passes) / len(passes)
        if answers is None:
            continue
        voted = [
            majority_at_k([(answer, bool(item)) for answer, item in zip(said, of_prompt, strict=True)], k)
            for said, of_prompt in zip(answers, right, strict=True)
            if len(of_prompt) >= k > 0
        ]
        if voted:
            metrics[f"maj@{k}"] = sum(voted) / len(voted)
    return metrics


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Chance that one of k samples is right, drawn without replacement from n of which c are: 1 - C(n-c, k) / C(n, k).

    Source: Codex, arXiv:2107.03374, section 2.1; unbiased for the chance over fresh samples.
    """
    return 1.0 - comb(num_samples - num_right, k) / comb(num_samples, k)


def majority_at_k(votes: Sequence[tuple[Hashable | None, bool]], k: int) -> float:
    """Chance that the most frequent answer of k samples is right: the mean over the disjoint runs of k among them.

    Each run is k independent samples, so the mean is unbiased. Samples without an answer have no vote. Of answers that
    are equally frequent each counts with its share. A run without any answer is wrong.

    >>> majority_at_k([("7", True), ("7", True), ("8", False), ("9", False)], 4)
    1.0
    """
    runs = [votes[start : start + k] for start in range(0, len(votes) - k + 1, k)]
    shares = []
    for run in runs:
        counts = Counter(answer for answer, _ in run if answer is not None)
        most = max(counts.values(), default=0)
        first = [answer for answer, count in counts.items() if count == most]
        is_right = {answer for answer, right in run if right}
        shares.append(sum(answer in is_right for answer in first) / len(first) if first else 0.0)
    return sum(shares) / len(shares)

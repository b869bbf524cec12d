"""What a model does here, in the words of `docs/models.md`, as its proof at load found it."""

from __future__ import annotations

from mmrl_core.language_model.module import LanguageModel
from mmrl_core.language_model.proof import Proof

SUPPORT_COLUMNS = {
    "model": "its class in transformers",
    "media": "what its processor takes",
    "path": "whether completions of a group share their prompt, or it runs its own forward, and why",
    "own decode step": "whether sampled tokens take a step of ours instead of its layers' own",
    "difference": "largest between a logprob on the path taken and one by transformers alone",
    "own": "the same of its own forward in a batch",
    "seen": "how far another medium of each kind moved a logprob of the same prompt",
}
"""Column of the table -> what stands in it. Where nothing was measured, as of a text model, a cell has a dash."""


def support_row(model: LanguageModel, proof: Proof) -> dict[str, str]:
    """The cells of a model, by the names of `SUPPORT_COLUMNS`."""
    shared = model.plain_reason is None
    differences = proof.shared if shared else proof.own
    cells = [
        type(model.base).__name__,
        ", ".join(proof.seen) or "text",
        "shared prompt" if model.plain_reason is None else f"own forward: {model.plain_reason.split(' (')[0]}",
        "yes" if model.lean_decoding and shared else "no",
        *(f"{max(values.values()):.0e}" if values else "–" for values in (differences, proof.own)),
        ", ".join(f"{value:.0e}" for value in proof.seen.values()) or "–",
    ]
    return dict(zip(SUPPORT_COLUMNS, cells, strict=True))

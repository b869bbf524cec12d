"""Writes docs/models.md: what each family of models does here, from a small model of it that is built and proven.

python docs/model_table.py        a few minutes; tests/integration/test_families.py holds the columns
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import transformers

from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.testing import TINY_KINDS, build_tiny

PAGE = Path(__file__).with_name("models.md")
HEAD = """# Models

Any model of transformers with text, images, videos or audio can be named in `model.path`. At load it is held against
its own forward, with each kind of medium that its processor takes (`mmrl_core/language_model/proof.py`): forward,
gradient and sampling. What agrees takes the fast path, where the completions of a group share their prompt and features
of frozen towers are kept. What does not agree runs its own forward, with the reason on the console and in `mmrl train
--dry-run`. A model that differs from itself in a batch is refused, and so is a kind of medium whose content moves no
logprob (`model.blind_check: off` goes on all the same).

The families below are built small by `mmrl tiny KIND`, with their real classes, processor and form of turns, random
weights, float32. *Difference* is the largest between a logprob on the path taken and one by transformers alone; *own*
is that of its own forward in a batch. *Seen* is how far another medium moved a logprob of the same prompt. Weights are
random: the numbers prove the code. `tests/integration/test_families.py` compares logprobs and gradients of every row.

| kind | model | media | path | own decode step | difference | own | seen |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
FOOT = """
Not in the table: Voxtral, whose processor refuses a text with a sound in it and takes what Mistral's own tokenizer made
(read, not run); Gemma 3n, which builds with the package timm, but whose smallest tower has 12 million parameters and
was not through the proof in six minutes on a busy CPU; Phi-4-multimodal, which builds, but whose processor is read back
without its template.

Written by `python docs/model_table.py` with transformers {version}.
"""
TEXT_KINDS = ("qwen2", "qwen3", "llama", "gemma2", "gemma3_text")


def row(kind: str, policy: LanguageModelPolicy) -> str:
    proof = policy.proof
    shared = policy.model.plain_reason is None
    media = ", ".join(proof.seen) or "text"
    path = "shared prompt" if shared else f"own forward: {policy.model.plain_reason.split(' (')[0]}"
    largest = max((proof.shared if shared else proof.own).values(), default=float("nan"))
    own = max(proof.own.values(), default=float("nan"))
    seen = ", ".join(f"{value:.0e}" for value in proof.seen.values()) or "–"
    step = "yes" if policy.model.lean_decoding and shared else "no"
    cells = [f"`{kind}`", type(policy.model.base).__name__, media, path, step, f"{largest:.0e}", f"{own:.0e}", seen]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in TINY_KINDS:
            if kind not in TEXT_KINDS:
                build_tiny(kind, Path(folder) / kind)
                lines.append(row(kind, LanguageModelPolicy(Path(folder) / kind, precision="float32")))
                print(lines[-1], flush=True)
    PAGE.write_text(HEAD + "\n".join(lines) + "\n" + FOOT.format(version=transformers.__version__), encoding="utf-8")


if __name__ == "__main__":
    main()

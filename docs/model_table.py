"""Writes docs/models.md: what each family of models does here, from a small model of it that is built and proven.

python docs/model_table.py        a few minutes; tests/integration/test_families.py holds the columns

What is compared in the tables below the first one is in tests/families.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import transformers

from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.testing import build_tiny
from tests.families import FAMILIES, OPTIONS, Difference, Family

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
CHECKED_HEAD = """
## Each medium, and each option

The same models, held against transformers alone (for LoRA: and peft): the processor's outputs of a prompt, its
completion appended, one forward. A cell has the largest difference of a logprob and, after a comma, of the gradient of
a parameter, relative to its norm. Prompts without a medium, with one of each kind and with two pictures of unequal
sizes stand in one batch, two completions each; *gradient* is of the whole batch. *–*: the family does not take it.

"""
OPTIONS_HEAD = """
*Kept features*: towers frozen, in a later pass, which finds what the first one computed. *Decode step*: logprobs of the
sampler's own step. *LoRA*: adapters of random weights, read by peft from where they were saved; without LoRA is the
table above. *Checkpointing*: activations computed again in the backward pass. *Save and load*: after an update, read by
transformers. *Later medium*: a conversation in which a tool returns a picture (or a sound) and the policy answers
again. Text instead of numbers is the reason why there is nothing to compare.

"""
CHECKED_FOOT = """
The suite holds differences of logprobs below 1e-5, and those of gradients below 1e-5 with shared prompts and below 1e-4
by the model's own forward, where small gradients feel the padding. It runs *LoRA* and *save and load* for five of the
families, and all other columns for all of them; this page is of all.
"""
MEDIA_COLUMNS = ("text", "image", "two images", "video", "audio")


def cell(found: Difference | str | None) -> str:
    """A difference in few digits, a reason, or a dash where there is nothing."""
    if not isinstance(found, Difference):
        return found or "–"
    return f"{found.logprobs:.0e}" + (f", {found.gradients:.0e}" if found.gradients else "")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def media_row(family: Family) -> list[str]:
    found = family.batch
    alone = [found[name].logprobs if name in found else None for name in MEDIA_COLUMNS]
    cells = ["–" if value is None else f"{value:.0e}" for value in alone]
    return [f"`{family.kind}`", *cells, f"{found['text'].gradients:.0e}"]


def options_row(family: Family) -> list[str]:
    reasons = {"shared prompt": "own forward"}  # the first table says why
    found = {option: family.check(option) for option in OPTIONS}
    cells = [reasons.get(option, value) if isinstance(value, str) else cell(value) for option, value in found.items()]
    return [f"`{family.kind}`", *cells]


def checked_section(families: Sequence[tuple[list[str], list[str]]]) -> str:
    """What was compared beside the proof at load, from `media_row` and `options_row` of each family."""
    media, options = zip(*families, strict=True)
    return (
        CHECKED_HEAD
        + table(("kind", *MEDIA_COLUMNS, "gradient"), media)
        + OPTIONS_HEAD
        + table(("kind", *OPTIONS), options)
        + CHECKED_FOOT
    )


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
    lines, checked = [], []
    with tempfile.TemporaryDirectory() as folder:
        for kind in FAMILIES:
            build_tiny(kind, Path(folder) / kind)
            family = Family(kind, Path(folder) / kind, Path(folder) / f"{kind}-saved")
            lines.append(row(kind, family.policy))
            checked.append((media_row(family), options_row(family)))
            print(lines[-1], *checked[-1], sep="\n", flush=True)
    page = HEAD + "\n".join(lines) + "\n" + FOOT.format(version=transformers.__version__) + checked_section(checked)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

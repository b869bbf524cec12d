"""Writes docs/models.md: what each family of models does here, from a small model of it that is built and proven.

python docs/model_table.py         a few minutes; tests/integration/test_families.py holds the columns
python docs/model_table.py --vllm  the section of the engine vllm alone, in its environment (`make install-vllm`);
                                   a quarter of an hour, or name KINDS to write their rows alone

What is compared in the tables between the first and the last one is in tests/families.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import torch
import transformers

from mmrl_core.errors import MMRLError
from mmrl_core.language_model import LanguageModelPolicy, VLLMEngine, proof_prompt
from mmrl_core.testing import TINY_KINDS, build_tiny
from mmrl_core.types import Sampling
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

`mmrl info model/NAME` prints the row of a model at hand: a kind, a folder, or a model in the hub's cache.

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

Where a group's completions go on from their prompt's cache, by the own forward, gradients in float32 differ from those
of whole rows by up to 7e-5 of a parameter's own norm (`A_log` and `dt_bias` of Qwen3.5's linear attention, whose
gradients are 1e-4 of the whole) and 2e-5 (Gemma 4). That is rounding: in float64 both are equal to 1e-11 (1e-13 was
seen; `tests/integration/test_prompt_cache.py`), and in float32 the cache was nearer to float64 than whole rows.
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
    return f"| {' | '.join([f'`{kind}`', *policy.support().values()])} |"


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
    PAGE.write_text(page + vllm_section(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


# With the engine vllm: a section of its own, which is kept when the rest of the page is written.

VLLM_TITLE = "\n## With the engine vllm\n"
VLLM_HEAD = """
The same small models, each started in vLLM's CPU build. *Difference* is the largest between a logprob of a token that
was sampled there and the trainer's, float32, over prompts without a medium, with one of each kind, and with two
pictures; what is above rounding is named and bold. *Seen* is how far another medium moved a logprob of vLLM's. Both are
looked at when a run starts, too: it says a difference above rounding, and refuses a kind of media that vLLM does not
see. Heads are 32 wide here, the smallest that vLLM's attention takes on a CPU, and matrices three times as large as
above, so that attention looks at something.

| kind | media | difference | seen |
| --- | --- | --- | --- |
"""
VLLM_FOOT = """
A reason in place of numbers is of vLLM with this small model. The published model may work where the reason is in the
small one's sizes or tokenizer, and may fail where it works here: `mmrl train --dry-run` shows which.

Written by `python docs/model_table.py --vllm` with vLLM {vllm} (CPU) and transformers {transformers}.
"""
MAX_TOKENS = 12
KIND_TIMEOUT_S = 300


def vllm_section(page: str) -> str:
    """The section as it stands on a page, from its title on; empty if there is none."""
    return page[page.index(VLLM_TITLE) :] if VLLM_TITLE in page else ""


def vllm_main(kinds: list[str]) -> None:
    """Try kinds, each in a process of its own: what breaks one must not reach the next."""
    rows = {} if not kinds else _rows(vllm_section(PAGE.read_text(encoding="utf-8")))
    for kind in kinds or TINY_KINDS:
        command = [sys.executable, __file__, "--vllm-kind", kind]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=KIND_TIMEOUT_S)
            line = next((one for one in done.stdout.splitlines() if one.startswith(f"| `{kind}`")), None)
            line = line or f"| `{kind}` | – | {(done.stderr.strip() or 'no output').splitlines()[-1]} | – |"
        except subprocess.TimeoutExpired:
            line = f"| `{kind}` | – | vLLM did not answer within {KIND_TIMEOUT_S} s | – |"
        rows[kind] = line
        print(line, flush=True)
    import vllm

    foot = VLLM_FOOT.format(vllm=vllm.__version__, transformers=transformers.__version__)
    page = PAGE.read_text(encoding="utf-8")
    lines = [rows[kind] for kind in TINY_KINDS if kind in rows]
    page = page.removesuffix(vllm_section(page)) + VLLM_TITLE + VLLM_HEAD + "\n".join(lines) + "\n" + foot
    PAGE.write_text(page, encoding="utf-8")


def _rows(section: str) -> dict[str, str]:
    """Kind -> its row of the table of a section."""
    return {line.split("`")[1]: line for line in section.splitlines() if line.startswith("| `")}


def vllm_row(kind: str) -> str:
    """What the engine vllm does with a kind; where it fails, why."""
    sizes = {"NUM_HEADS": 2, "HEAD_DIM": 32, "AUDIO_WINDOW_S": 30}  # vLLM takes no other window
    with tempfile.TemporaryDirectory() as folder, patch.multiple("mmrl_core.testing.models.sizes", **sizes):
        path = Path(folder) / kind
        build_tiny(kind, path)
        attention = "eager" if kind == "gemma2" else "sdpa"
        engine = VLLMEngine(memory_gib=0.1)
        try:
            options = {"precision": "float32", "max_prompt_tokens": 1500, "attention": attention}
            policy = LanguageModelPolicy(path, engine=engine, **options)
            with torch.no_grad():
                for name, weight in policy.model.base.named_parameters():
                    if weight.dim() > 1 and "embed" not in name:
                        weight *= 3.0
            policy.check_start(MAX_TOKENS)
            difference, reasons = _vllm_difference(policy)
        except MMRLError as error:
            return f"| `{kind}` | – | {_cell(str(error))} | – |"
        finally:
            engine.close()
    proof = policy.engine_proof
    assert proof is not None
    seen = ", ".join(f"{value:.0e}" for value in proof.seen.values()) or "–"
    reasons = {**{name: f"no {name}: {why}" for name, why in proof.refused.items()}, **reasons}
    told = "; ".join([difference, *map(_cell, reasons.values())])
    return f"| `{kind}` | {', '.join(proof.seen) or 'text'} | {told} | {seen} |"


def _vllm_difference(policy: LanguageModelPolicy) -> tuple[str, dict[str, str]]:
    """Largest difference of a sampled token's logprob, those above rounding apart; kinds that vLLM refuses -> why."""
    proof = policy.engine_proof
    assert proof is not None
    largest: dict[str, float] = {}
    reasons = {}
    for media in ((), *((kind,) for kind in proof.seen), *((kind, kind) for kind in proof.seen if kind == "image")):
        prompt = proof_prompt(policy.encoder, media)
        try:
            (group,) = policy.rollout([prompt], 4, Sampling(MAX_TOKENS, seed=1))
        except MMRLError as error:
            reasons[str(media)] = f"{len(media)} {media[0]}s: {error}" if media else str(error)
            continue
        rows = [rollout.rows[0] for rollout in group.rollouts]
        trainer = policy.logprobs(rows).logprobs.detach()
        for place, row in enumerate(rows):
            assert row.sampler_logprobs is not None
            difference = row.sampler_logprobs - trainer[place, : row.num_actions]
            name = f"{len(media)} {media[0]}s" if len(media) > 1 else "".join(media) or "text"
            largest[name] = max(largest.get(name, 0.0), float(difference.abs().max()))
    rounding = [value for value in largest.values() if value <= proof.limit]
    apart = [f"**{name} {value:.0e}**" for name, value in largest.items() if not value <= proof.limit]
    return ", ".join([*([f"{max(rounding):.0e}"] if rounding else []), *apart]), reasons


def _cell(reason: str) -> str:
    """A reason as a cell of the table: its first line, short, without marks of tables or folders of this machine."""
    line = re.sub(r"/\S*/", "", reason.splitlines()[0]).replace("|", "/")
    return line if len(line) <= MOST else line[: MOST - 3] + "..."


MOST = 160
"""Characters of a reason in the table."""


if __name__ == "__main__":
    if sys.argv[1:2] == ["--vllm"]:
        vllm_main(sys.argv[2:])
    elif sys.argv[1:2] == ["--vllm-kind"]:
        print(vllm_row(sys.argv[2]))
    else:
        main()

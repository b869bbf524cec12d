"""Pages for users of TRL, verl, EasyR1 and ms-swift: prose, and the tables that `mmrl import-config` goes by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmrl_core.peers import NAMES, TABLES, UNSET, Key, default_of

ALIKE = """\
Rows keep their columns: rewards read them by name. `mmrl check TASK` says what rows are taken for, `mmrl preview
TASK` shows the first prompts. Recognised is a layout where `prompt` sets neither text nor messages;
`data.train.layout` names one, and `plain` none. What a task writes under `prompt` wins over the layout: `text`,
`images`, `marks`, `system` (for rows without a system message of their own). A chat that ends with the assistant's
turn has it as gold completion: sft stages learn it, `mmrl check` scores it. A medium is a path (from the folder of
the data, which it may not leave), bytes, base64 or a data URI; files are JSONL, JSON, CSV, parquet, a folder of
them, tar shards of WebDataset, or several by a pattern: `data/*.parquet`, `shards/train-{000..009}.tar`. Rows are
read when they are drawn, in an order that follows from the position alone, so a resumed run sees the rows of one that
was not stopped."""

RULES = """\
The same rules hold as for rewards of ours: time limit, `isolate: true`, `async def`, None for what is not scored;
what a reward raises leaves its completion unscored and is counted. A parameter with a default is an option: `{name:
rewards.py:f, style: STYLE, its_option: 2}`. `columns: {solution: answer}` says what the data call a column. Where
the parameters of a reward show its style, `mmrl check` proposes it. `weight`, `label` and the rest are as for any
reward."""

DATA = {
    "trl": """| columns | become |
| --- | --- |
| `prompt`, messages; `image` or `images` | the chat; pictures at its parts of type image, else first in a turn |
| `prompt`, a text; `image` or `images` | a turn of the user, pictures first |
| `completion`, messages or a text | the gold completion |

Columns that a script makes of others, such as messages of a `problem`, are made by the task:
`prompt: {system: "...", text: "{problem}", images: ["{image}"]}`.""",
    "verl": """| columns | become |
| --- | --- |
| `prompt`, messages | the chat |
| `images`, `videos` | in place of `<image>` and `<video>` in the texts |
| `data_source`, `reward_model.ground_truth`, `extra_info` | what rewards are called with |""",
    "easyr1": """| columns | become |
| --- | --- |
| `problem` | a turn of the user |
| `images`, `videos` | in place of `<image>` and `<video>` in the text, else before it |
| `answer` | the gold that rewards are called with |

What `format_prompt` puts around a question is the template: `prompt: {text: "{problem} Think first."}` with
`data.train.layout: easyr1`. Other names of columns: `prompt: {text: "{question}", images: ["{photo}"],
marks: {image: "<image>"}}` and, of the reward, `columns: {ground_truth: ...}`.""",
    "swift": """| columns | become |
| --- | --- |
| `messages` | the chat |
| `conversations`, of ShareGPT, with `system` | the chat |
| `query`, `response`, `history`, `system`; `instruction`, `input`, `output` of LLaMA-Factory | the chat |
| `images`, `videos`, `audios` | in place of `<image>`, `<video>`, `<audio>`, else first in the first turn of the user |
| `solution` and others | what rewards are called with |

`objects`: names for `<ref-object>` and boxes for `<bbox>`, written as `[x1, y1, x2, y2]` in the numbers of the row
(`real` rounded, `norm1` as they are). Nothing is scaled for the model: where it counts pixels of the resized picture,
as Qwen2.5-VL does, store pictures at that size. Rows with turns of tools (`tool`, `tool_call`, `tool_response`,
`tool_calls`) are set aside, and the column `tools` is not shown to the model.""",
}

REWARDS = {
    "trl": """\
`style: trl` calls `(prompts, completions, **columns)` by name, with the columns of the rows. Prompts here are
chats, so completions are lists of messages, but where the row's `prompt` is a text; for texts throughout, `style:
trl_text`. `completion_ids` is passed to those that take it. A reward that reads `trainer_state` or `environments` is
refused; `log_metric` and `log_extra` are not passed, so give such a parameter a default. A dotted path of
`reward_funcs` is the function in a file here: `my_lib/rewards.py:accuracy`.""",
    "verl": """\
`style: verl` calls `compute_score(data_source, solution_str, ground_truth, extra_info)` for each completion, or
once for a group where its parameters are `data_sources`, `solution_strs`, ... A dict counts with its `score`, or
with what `result: acc` names; the same function a second time, with `weight: 0` and a `label`, reports another
entry. The rewards that verl has inside, by `data_source`, are not here: copy the function, or take
`text_reasoning/accuracy`.""",
    "easyr1": """\
`style: easyr1` calls `compute_score(reward_inputs)` with `response`, `response_length` and `ground_truth`, or with
one of them (`reward_input`), or the older `(predict_str, ground_truth)` and `(predicts, ground_truths)`. A dict
counts with its `overall`, or with what `result: accuracy` names; the same function a second time, with `weight: 0`
and a `label`, reports another entry. `response_length` exists in runs only, so a reward that reads it is skipped by
`mmrl check`.""",
    "swift": """\
`style: swift` makes an object of the class, once, with the options that its `__init__` takes (`args` has them as
attributes), and calls it as `(completions, **columns)`. Neither `swift` has to be installed nor the class be of
`ORM`: what a plugin's file imports of it is a stand-in. A function of the style of TRL whose completions are texts
is `style: trl_text`. Rewards that ms-swift has inside (`accuracy`, `format`, `cosine`, `repetition`) are not here;
`soft_overlong` is `algorithm.overlong`. A class that reads `trainer_state` is refused.""",
}

TASKS = {
    "trl": """name: from_trl
model: {path: Qwen/Qwen2.5-VL-3B-Instruct}
data: {train: {path: train.jsonl}}
rewards: [{name: rewards.py:accuracy_reward, style: trl}]
stages: [{kind: grpo, steps: 200, prompts_per_step: 8, group_size: 8}]""",
    "verl": """name: from_verl
model: {path: Qwen/Qwen2.5-VL-7B-Instruct}
data: {train: {path: train.parquet}}
rewards: [{name: rewards.py:compute_score, style: verl}]
stages: [{kind: grpo, steps: 200, prompts_per_step: 512, group_size: 5}]""",
    "easyr1": """name: from_easyr1
model: {path: Qwen/Qwen2.5-VL-7B-Instruct}
data: {train: {path: hiyouga/geometry3k}}
rewards: [{name: rewards.py:compute_score, style: easyr1}]
stages: [{kind: grpo, steps: 200, prompts_per_step: 512, group_size: 5}]""",
    "swift": """name: from_swift
model: {path: Qwen/Qwen2.5-VL-7B-Instruct, lora: {rank: 8, alpha: 32}}
data: {train: {path: train.jsonl}}
rewards: [{name: rewards.py:BoxAccuracy, style: swift}]
stages: [{kind: grpo, epochs: 1, prompts_per_step: 8, group_size: 8}]""",
}
"""A task for each, whose reward is in tests/data/peers."""

VERIFIED = {
    "trl": "Defaults of GRPO were compared with TRL's code, those of transformers' Trainer were not.",
    "verl": "The defaults are unverified: they were not compared with verl's code.",
    "easyr1": "Defaults of the actor were compared with EasyR1's code, the others were not.",
    "swift": "The defaults are unverified: they were not compared with ms-swift's code.",
}
COMMANDS = {
    "trl": "mmrl import-config config.yaml --processes 8 --rewards rewards.py --output my_task.yaml",
    "verl": "mmrl import-config run_grpo.sh --output my_task.yaml",
    "easyr1": "mmrl import-config config.yaml --output my_task.yaml",
    "swift": "mmrl import-config run_grpo.sh --output my_task.yaml",
}
READS = {
    "trl": "a YAML of `GRPOConfig` and the script's arguments, or a shell script of `trl grpo` or `accelerate launch`",
    "verl": "the YAML, or the overrides of a shell script of `verl.trainer.main_ppo`",
    "easyr1": "the YAML, or a shell script with `config=` and overrides",
    "swift": "a shell script of `swift rlhf`, or its YAML",
}

SIZES = {
    "trl": """\
TRL counts completions: `per_device_train_batch_size` x processes x `steps_per_generation` (by default
`gradient_accumulation_steps`) are sampled at once, of `num_generations` for each prompt. Here `prompts_per_step`
counts prompts, over all processes, and `group_size` the completions of each; a step is one such rollout batch.
Where TRL updates several times on it, that is `updates_per_rollout`, and its `max_steps`, `save_steps` and
`warmup_steps`, which count updates, are divided by it. Memory is bounded by `micro_batch_tokens`, not by the batch.""",
    "verl": """\
Both count prompts: `train_batch_size` is `prompts_per_step`, `rollout.n` is `group_size`, and `train_batch_size /
ppo_mini_batch_size` is `updates_per_rollout`. A step of verl is a step here. Memory is bounded by
`micro_batch_tokens`; there is no micro-batch size to set.""",
    "easyr1": """\
Both count prompts: `rollout_batch_size` is `prompts_per_step`, `rollout.n` is `group_size`, and `rollout_batch_size
/ global_batch_size` is `updates_per_rollout`. Memory is bounded by `micro_batch_tokens`; there are no micro-batch
sizes to set.""",
    "swift": """\
ms-swift counts completions, as TRL does: `per_device_train_batch_size` x `NPROC_PER_NODE` x `steps_per_generation`
(by default `gradient_accumulation_steps`) are sampled at once, `num_generations` of them for each prompt. Here
`prompts_per_step` counts prompts, over all processes.""",
}

OTHERWISE = {
    "trl": """\
- Without a KL (`beta: 0`, the default of both) there is no reference model. With LoRA the reference is the model
  without its adapters, as in TRL.
- The learning rate falls linearly in TRL and is constant here (`optimizer.schedule`); its checkpoints are 500 steps
  apart, ours 100.
- Adapters go on all linear layers of the text decoder unless `lora.target_modules` says otherwise.
- A reward that returns None for all of a group is left out of its total; for some of a group, those have no total.""",
    "verl": """\
- The KL is that of the loss or of the reward, as there; verl's `low_var_kl` is clamped, ours (`k3`) is not.
- verl bounds the loss of negative advantages (`clip_ratio_c`, `loss.dual_clip`), ours does not unless told.
- GRPO's advantages divide by std + 1e-4 by default; the import writes verl's 1e-6.
- `filter_groups` looks at one metric; `dynamic_sampling` looks at the total, or at the reward that `reward` names.""",
    "easyr1": """\
- EasyR1 clips higher (0.3), bounds the loss of negative advantages (`loss.dual_clip: 3`) and has a KL of 0.001; ours
  clips at 0.2, and neither bounds nor penalises unless told.
- EasyR1's `low_var_kl` is clamped, ours (`k3`) is not.
- `online_filtering` leaves out groups whose mean is outside a range; `dynamic_sampling` those whose rewards are all
  equal.
- GRPO's advantages divide by std + 1e-4 by default; the import writes 1e-6.""",
    "swift": """\
- ms-swift trains adapters, with a KL of 0.04, a cosine schedule, and sampling cut at `top_k` 50 and `top_p` 0.9; ours
  trains all weights, without a KL, at a constant rate, from the whole distribution.
- ms-swift takes data from ModelScope by default; a name here is one of the Hugging Face hub.
- It freezes the tower of a model that sees unless `freeze_vit` is false; here `model.freeze: [vision]` does, and
  adapters are on the text decoder alone unless `target_modules` names `vision` too.
- It cuts or drops rows that are longer than `max_length`; here they are set aside and named.""",
}


def coming_from_page(peer: str) -> list[str]:
    """Parts of the page for users of a framework, in Markdown."""
    name, table = NAMES[peer], TABLES[peer]
    return [
        f"# Coming from {name}",
        "Data and rewards come along as they are; a config is translated. A task of five lines:",
        f"```yaml\n{TASKS[peer]}\n```",
        f"```console\n$ {COMMANDS[peer]}\n$ mmrl train my_task.yaml --dry-run\n```",
        f"`import-config` reads {READS[peer]}. Defaults of {name} are written out where ours differ, so that the task "
        "does what the config did; comments say what has no counterpart and what to look at. " + VERIFIED[peer],
        "## Data",
        DATA[peer],
        " ".join(ALIKE.split()),
        "## Rewards",
        " ".join(REWARDS[peer].split()),
        " ".join(RULES.replace("STYLE", peer).split()),
        "## Sizes",
        " ".join(SIZES[peer].split()),
        "## What is otherwise",
        OTHERWISE[peer],
        "Defaults that differ, which matters to a task that you write yourself:",
        _table(("key", f"{name}", "here", "ours"), list(_differing(table))),
        "## What is not there",
        _table((f"{name}", "why"), [(f"`{key}`", entry.note) for key, entry in table.items() if _is_missing(entry)]),
        "## Keys",
        _table((name, "here", ""), [(f"`{key}`", _here(e), e.note) for key, e in table.items() if not _is_missing(e)]),
    ]


def _is_missing(key: Key) -> bool:
    return not key.here and key.counts


def _here(key: Key) -> str:
    names = [part.strip().replace("stage.", "stages.0.") for part in key.here.split(",")] if key.here else []
    return ", ".join(f"`{name}`" for name in names) or "not needed"


def _differing(table: Mapping[str, Key]) -> Iterator[tuple[str, str, str, str]]:
    """Keys whose value is a number or a bool of the same meaning in both, with other defaults."""
    for name, key in table.items():
        if key.default in (UNSET, None) or not key.direct or not key.here:
            continue
        ours = default_of(key.here)
        if ours is not None and ours != key.default:
            yield f"`{name}`", _value(key.default), _here(key), _value(ours)


def _value(value: Any) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

"""Configs of TRL and ms-swift, which share transformers' Trainer, as tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl_core.peers import shared
from mmrl_core.peers.files import find_path
from mmrl_core.peers.keys import MACHINERY
from mmrl_core.peers.names import ADVANTAGES, LOSSES, meaning
from mmrl_core.peers.task import Task

NEAR = {
    "accuracy": "text_reasoning/accuracy",
    "accuracy_reward": "text_reasoning/accuracy",
    "format": "text_reasoning/format",
    "think_format_reward": "text_reasoning/format",
}
"""Rewards that TRL and ms-swift have inside -> what judges the like here, of the plugin text_reasoning."""

OVERLONG = ("get_soft_overlong_punishment", "soft_overlong")
"""Names of a reward that is a part of the algorithm here."""


def translate(task: Task, folder: Path, rewards_file: Path | None, *, swift: bool) -> None:
    """Fill in a task from a config of TRL or ms-swift.

    Args:
        folder: of the config.
        rewards_file: in which the functions of `reward_funcs` are.
    """
    updates = _sizes(task)
    total = shared.length(
        task, task.get("max_steps"), task.get("num_train_epochs"), "num_train_epochs", updates=updates
    )
    shared.warm_up(task, task.get("warmup_steps"), task.get("warmup_ratio"), total, updates=updates)
    shared.schedule(task, task.get("lr_scheduler_type"), "lr_scheduler_type")
    kwargs = task.get("lr_scheduler_kwargs")
    if isinstance(kwargs, Mapping) and kwargs.get("min_lr_rate") is not None:
        task.set("optimizer.final_lr_ratio", kwargs["min_lr_rate"])
    betas = [task.get("adam_beta1"), task.get("adam_beta2")]
    task.set_from("optimizer.betas", betas, "adam_beta1", "adam_beta2")
    task.set_from("rollout.top_k", max(0, task.get("top_k") or 0), "top_k")
    _algorithm(task)
    _engine(task, updates)
    if task.get("save_strategy") == "steps":
        every = max(1, round(task.get("save_steps") / updates)) if task.get("save_steps") >= 1 else None
        task.set_from("checkpoint.every_steps", every, "save_steps")
    else:
        task.look.append(
            "checkpoint.every_steps: theirs saves by the epoch or never; the end of a stage is always saved"
        )
    task.set("checkpoint.keep", task.get("save_total_limit"))
    shared.trackers(task, task.get("report_to"))
    (_swift if swift else _trl)(task, folder)
    _rewards(task, folder, rewards_file, swift=swift)
    if task.get("eval_strategy") not in ("no", False, None):
        shared.every(task, "eval.every_steps", task.get("eval_steps"), updates=updates)
    task.remark_missing(MACHINERY)


def _sizes(task: Task) -> int:
    """Prompts and updates of a step; returns how many of their steps one of ours is."""
    per_device, processes = task.get("per_device_train_batch_size"), task.get("num_processes")
    accumulated, group = task.get("gradient_accumulation_steps"), task.get("num_generations")
    at_once = per_device * processes * accumulated  # completions of one update
    generated = per_device * processes * (task.get("steps_per_generation") or accumulated)
    generated = task.get("generation_batch_size") or generated
    if not task.is_given("num_processes"):
        task.look.append(
            "stages.0.prompts_per_step is for one process; with N of them it is N times as many: say --processes N"
        )
    if generated % group:
        task.look.append(f"stages.0.prompts_per_step: {generated} completions are no whole groups of {group}")
    task.set("stage.prompts_per_step", prompts := max(1, round(generated / group)))
    shared.parts_of_rollout(task, generated, at_once, "the completions of an update")
    parts = min(max(1, round(generated / at_once)), prompts)
    if task.get("loss_type") == "bnpo":
        task.set("stage.micro_batch_rows", per_device)
    return parts * int(task.get("num_iterations") or 1)


def _algorithm(task: Task) -> None:
    loss_type, level = str(task.get("loss_type")), str(task.get("importance_sampling_level"))
    means = meaning(LOSSES, "trl", f"loss_type: {loss_type}")
    if means is None:
        task.missing.append(f"loss_type: {loss_type} (the loss is clipped, token_mean)")
    loss = dict((means or {}).get("loss", {"name": "clipped"}))
    low, high = task.get("epsilon"), task.get("epsilon_high")
    if level == "sequence" and loss["name"] == "clipped":
        loss["ratio"] = "sequence_mean"
    elif level not in ("token", "sequence"):
        task.missing.append(f"importance_sampling_level: {level} (token or sequence)")
    if loss["name"] == "cispo":
        loss["cap"] = float(low if high is None else high)
    elif loss["name"] == "text_reasoning/sapo":
        loss |= {
            "positive": task.get("sapo_temperature_pos") or 1.0,
            "negative": task.get("sapo_temperature_neg") or 1.05,
        }
    elif loss["name"] == "text_reasoning/luspo":
        loss |= {"clip_low": low, "clip_high": low if high is None else high}
    else:
        shared.clipping(loss, low, high)
        loss |= {} if task.get("delta") is None else {"ratio_cap": task.get("delta")}
    shared.set_loss(task, loss, (means or {}).get("aggregate"))
    if not task.is_given("loss_type") and loss_type != "dapo":
        task.defaults.append(f"algorithm.aggregate is that of loss_type {loss_type}, as {task.peer} has it by default")
    _advantage(task)
    if task.get("kl_in_reward"):
        task.set("algorithm.kl.place", "reward")
    if task.get("sync_ref_model"):
        decay = round(1 - task.get("ref_model_mixup_alpha"), 6)
        rule = {"rule": "moving_average", "every_steps": task.get("ref_model_sync_steps"), "decay": decay}
        task.set("algorithm.frozen_policies", {"reference": rule})
    if task.get("dynamic_sample"):
        task.set("algorithm.dynamic_sampling", {"max_rounds": task.get("max_resample_times")})


def _advantage(task: Task) -> None:
    estimator = str(task.get("advantage_estimator") or "grpo")
    named = f"multi_objective_aggregation: {task.get('multi_objective_aggregation')}"
    if found := meaning(ADVANTAGES, "trl", named):
        task.set("algorithm.advantage", found["advantage"])
    elif estimator != "grpo":
        found = meaning(ADVANTAGES, "verl", estimator) or meaning(LOSSES, "verl", estimator)
        if found is None or "advantage" not in found:
            task.missing.append(f"advantage_estimator: {estimator} (the advantage is group_relative)")
        else:
            task.set("algorithm.advantage", found["advantage"])
    else:
        scale = {"True": "group", "False": "none"}.get(str(task.get("scale_rewards")), str(task.get("scale_rewards")))
        if scale in ("batch", "none"):
            task.set("algorithm.advantage", [{"name": "group_relative", "divide_by_std": scale}])
        elif scale != "group":
            task.missing.append(f"scale_rewards: {scale} (group, batch or none)")


def _engine(task: Task, updates: int) -> None:
    if not task.get("use_vllm"):
        return
    mode = {"colocate": "colocated", "server": "server"}.get(str(task.get("vllm_mode")), "colocated")
    task.set("rollout.engine", {"name": "vllm", "mode": mode})
    task.look.append("rollout.engine: memory_gib is for keys and values alone, where theirs is a share of the GPU")
    if task.get("vllm_importance_sampling_correction"):
        level, _, how = str(task.get("vllm_importance_sampling_mode")).partition("_")
        correction = {"level": level, "mode": how, "maximum": task.get("vllm_importance_sampling_cap")}
        task.set("algorithm.importance_correction", correction)
    if task.get("async_generate"):
        task.set("rollout.steps_ahead", 1)
        if not task.get("vllm_importance_sampling_correction"):
            task.set("algorithm.old_logprobs", "sampler")


def _trl(task: Task, folder: Path) -> None:
    task.set("name", _name(task.get("run_name") or task.get("dataset_name")))
    shared.precision(task, task.get("dtype") or task.get("torch_dtype"), "dtype", "torch_dtype")
    if task.get("use_peft"):
        shared.adapter(task, task.get("lora_r"), task.get("lora_alpha"), task.get("lora_target_modules"))
        if not task.is_given("lora_target_modules"):
            task.defaults.append("model.lora.target_modules is all-linear, where PEFT chooses by architecture")
    task.set("model.attention", task.get("attn_implementation"))
    task.set("model.max_prompt_tokens", task.get("max_prompt_length"))
    if (column := task.get("dataset_prompt_column")) is not None:
        task.set("prompt.text", f"{{{column}}}")
    if (name := task.get("dataset_name")) is None:
        task.look.append("data.train.path: the script loads the data; name their file or hub name")
        return
    path = shared.data_path(str(name), folder)
    task.set("data.train.path", path)
    if task.get("eval_strategy") not in ("no", False, None):
        task.set("data.held_out", {"path": path, "split": task.get("dataset_test_split")})


def _swift(task: Task, folder: Path) -> None:
    if task.get("rlhf_type") != "grpo":
        task.missing.append(f"rlhf_type: {task.get('rlhf_type')} (the stage is grpo)")
    names = _listed(task.get("dataset"))
    task.set("name", _name(names[0] if names else None))
    shared.precision(task, task.get("torch_dtype"), "torch_dtype")
    kind = task.get("tuner_type") or task.get("train_type")
    sees = task.is_given("freeze_vit", "freeze_aligner")
    frozen = task.get("freeze_vit") or task.get("freeze_aligner")
    if kind == "lora":
        if not task.is_given("train_type", "tuner_type"):
            task.defaults.append("model.lora: adapters are trained, as ms-swift does by default (ours: all weights)")
        targets = task.get("target_modules")
        targets = [*_listed(targets), "vision"] if sees and not frozen else targets
        shared.adapter(task, task.get("lora_rank"), task.get("lora_alpha"), targets)
    elif kind == "full":
        towers = (["vision"] if sees and frozen else []) + (["language"] if task.get("freeze_llm") else [])
        task.set("model.freeze", towers or None)
        if not sees:
            task.look.append("model.freeze: ms-swift freezes the tower of a model that sees; for one, set [vision]")
    else:
        task.missing.append(f"train_type: {kind} (lora or full)")
    task.set_from("optimizer.lr", task.get("learning_rate") or (1e-4 if kind == "lora" else 1e-5), "learning_rate")
    task.set("model.attention", task.get("attn_impl"))
    task.set("model.max_prompt_tokens", task.get("max_length"))
    system = task.get("system")
    if isinstance(system, str) and (found := find_path(system, folder)) is not None and found.is_file():
        system = found.read_text(encoding="utf-8-sig").strip()
    elif isinstance(system, str) and system.endswith(".txt"):
        task.look.append(f"prompt.system: there is no file {system} from here; write what it says")
        system = None
    task.set("prompt.system", system.replace("{", "{{").replace("}", "}}") if isinstance(system, str) else None)
    if len(names) > 1:
        task.look.append(f"data.train: one of {len(names)} data sets is taken; for all of them write a mixture")
    if names:
        task.set("data.train", train := _swift_data(names[0], folder))
        if held := _listed(task.get("val_dataset")):
            task.set("data.held_out", _swift_data(held[0], folder))
        elif ratio := task.get("split_dataset_ratio"):
            cut = round(100 * (1 - ratio))
            task.set("data.train.split", f"train[:{cut}%]")
            task.set("data.held_out", {**train, "split": f"train[{cut}%:]"})


def _swift_data(name: str, folder: Path) -> dict[str, Any]:
    """A data set as ms-swift names it: `path:subset#rows`."""
    name, _, limit = name.partition("#")
    name = name.removeprefix("hf::").removeprefix("ms::")
    path, _, subset = name.partition(":")
    found: dict[str, Any] = {"path": shared.data_path(path, folder)}
    return found | ({"subset": subset} if subset else {}) | ({"limit": int(limit)} if limit.isdecimal() else {})


def _rewards(task: Task, folder: Path, rewards_file: Path | None, *, swift: bool) -> None:
    file = rewards_file or task.get("external_plugins")
    weights = _listed(task.get("reward_weights"))
    rewards: list[dict[str, Any]] = []
    for place, name in enumerate(map(str, _listed(task.get("reward_funcs")))):
        if name in OVERLONG:
            limit, cache = task.get("soft_max_length") or 1280, task.get("soft_cache_length") or 256
            task.set("algorithm.overlong", {"cache": cache, "max_length": limit})
            continue
        found = _reward(task, name, file, folder, swift=swift)
        if found is not None:
            weight = weights[place] if place < len(weights) else 1.0
            rewards.append(found | ({} if weight == 1.0 else {"weight": float(weight)}))
    task.set("rewards", rewards or None)
    if not _listed(task.get("reward_funcs")):
        task.look.append(
            "rewards: the script names its functions itself; say in which file they are: --rewards FILE.py"
        )


def _reward(task: Task, name: str, file: Any, folder: Path, *, swift: bool) -> dict[str, Any] | None:
    module, dot, function = name.rpartition(".")
    if dot and not swift:
        return shared.reward(task, f"{module.replace('.', '/')}.py", function, "trl", folder)
    found = None if file is None else find_path(str(file), folder)
    defined = {} if found is None else shared.defined_in(found)
    match = next((defined[key] for key in (name, f"{name}_reward") if defined.get(key)), None)
    if match is None:
        where = f"{file} has no such name" if found is not None else "it is of the framework or its script"
        near = f" ({NEAR[name]} is near it)" if name in NEAR else ""
        task.look.append(
            f"rewards: {name!r} is left out{near}, since {where}; say which file has it: --rewards FILE.py"
        )
        return None
    return {"name": f"{shared.shown_path(found)}:{match}", "style": "swift" if swift else "trl"} if found else None


def _listed(value: Any) -> Sequence[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _name(text: Any) -> str:
    """A name of a run."""
    return re.sub(r"[^\w.-]+", "-", Path(str(text or "imported")).name.partition("#")[0]).strip("-") or "imported"

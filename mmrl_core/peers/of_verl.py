"""Configs of verl and EasyR1 as tasks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmrl_core.peers import shared
from mmrl_core.peers.files import find_path
from mmrl_core.peers.keys_of_verl import ACTOR, EASYR1_MACHINERY, ESTIMATORS, MODEL, ROLLOUT, VERL_MACHINERY
from mmrl_core.peers.names import ADVANTAGES, LOSSES, meaning
from mmrl_core.peers.task import Task

MARKS = {"image": "<image>", "video": "<video>"}


def translate_verl(task: Task, folder: Path) -> None:
    """Fill in a task from a config of verl; `folder` is that of the config."""
    task.set("name", task.get("trainer.experiment_name") or "imported")
    _verl_data(task, folder)
    shared.adapter(
        task, task.get(f"{MODEL}.lora_rank"), task.get(f"{MODEL}.lora_alpha"), task.get(f"{MODEL}.target_modules")
    )
    total = shared.length(
        task, task.get("trainer.total_training_steps"), task.get("trainer.total_epochs"), "trainer.total_epochs"
    )
    optim = f"{ACTOR}.optim"
    shared.warm_up(task, task.get(f"{optim}.lr_warmup_steps"), task.get(f"{optim}.lr_warmup_steps_ratio"), total)
    style = task.get(f"{optim}.warmup_style") or task.get(f"{optim}.lr_scheduler_type")
    shared.schedule(task, style, f"{optim}.lr_scheduler_type", f"{optim}.warmup_style")
    whole = task.get("data.train_batch_size")
    shared.parts_of_rollout(task, whole, task.get(f"{ACTOR}.ppo_mini_batch_size"), "ppo_mini_batch_size")
    _verl_loss(task)
    in_reward = bool(task.get("algorithm.use_kl_in_reward"))
    if in_reward or task.get(f"{ACTOR}.use_kl_loss"):
        keys = ("algorithm.kl_ctrl.kl_coef", "algorithm.kl_penalty") if in_reward else ()
        coefficient, name = keys or (f"{ACTOR}.kl_loss_coef", f"{ACTOR}.kl_loss_type")
        _kl(task, task.get(coefficient), name, in_reward=in_reward)
    _advantage(task)
    if task.get("algorithm.filter_groups.enable"):
        rounds = task.get("algorithm.filter_groups.max_num_gen_batches")
        task.set("algorithm.dynamic_sampling", {"max_rounds": rounds if rounds and rounds > 0 else 10})
    if task.get("reward_model.overlong_buffer.enable"):
        limit = task.get("reward_model.max_resp_len") or task.get("data.max_response_length")
        task.set("algorithm.overlong", {"cache": task.get("reward_model.overlong_buffer.len"), "max_length": limit})
        if task.get("reward_model.overlong_buffer.penalty_factor") not in (1, 1.0):
            task.missing.append("reward_model.overlong_buffer.penalty_factor (the largest penalty is 1)")
    _sampling(task, ROLLOUT, f"{ROLLOUT}.val_kwargs.temperature")
    _frequencies(task, "trainer.test_freq")
    if (file := task.get("custom_reward_function.path")) is None:
        task.look.append(
            "rewards: verl chooses a reward of its own by the column data_source; add {name: FILE.py:compute_score, "
            "style: verl} with a copy of it"
        )
    else:
        found = shared.reward(task, str(file), str(task.get("custom_reward_function.name")), "verl", folder)
        task.set("rewards", [found] if found else None)
    task.remark_missing(VERL_MACHINERY)


def _verl_data(task: Task, folder: Path) -> None:
    for split, key in (("train", "data.train_files"), ("held_out", "data.val_files")):
        files = task.get(key)
        listed = files if isinstance(files, list) else [files] if files is not None else []
        if len(listed) > 1:
            task.look.append(
                f"data.{split}.path: one of {len(listed)} files is taken; for all of them name their folder"
            )
        if listed:
            task.set(f"data.{split}.path", shared.data_path(str(listed[0]), folder))
    column = task.get("data.prompt_key")
    if column != "prompt":
        task.set("prompt.messages", f"{{{column}}}")
        task.set("prompt.marks", MARKS)
    _media(task, always=column != "prompt")
    if task.get("data.truncation") not in ("error", None):
        task.missing.append(f"data.truncation: {task.get('data.truncation')} (rows too long are set aside, never cut)")
    elif not task.get("data.filter_overlong_prompts"):
        task.set_from("data.on_long", "error", "data.truncation", "data.filter_overlong_prompts")


def _media(task: Task, *, always: bool) -> None:
    """The columns of media, where they are not called as data in verl's layout call them, or rows say nothing of it."""
    for kind in MARKS:
        column = task.get(f"data.{kind}_key")
        if column and (always or column != f"{kind}s") and task.is_given(f"data.{kind}_key"):
            task.set(f"prompt.{kind}s", [f"{{{column}}}"])


def _verl_loss(task: Task) -> None:
    mode, aggregate = str(task.get(f"{ACTOR}.policy_loss.loss_mode")), str(task.get(f"{ACTOR}.loss_agg_mode"))
    low, high = task.get(f"{ACTOR}.clip_ratio_low"), task.get(f"{ACTOR}.clip_ratio_high")
    both = task.get(f"{ACTOR}.clip_ratio")
    low, high = both if low is None else low, both if high is None else high
    if mode in ("clip_cov", "kl_cov"):
        task.set("extends", [f"algorithm/{mode}"])
        return
    means = {"loss": {"name": "clipped"}} if mode == "vanilla" else meaning(LOSSES, "verl", mode)
    if means is None or "loss" not in means:
        task.missing.append(f"{ACTOR}.policy_loss.loss_mode: {mode} (the loss is clipped)")
    loss = dict((means or {}).get("loss", {"name": "clipped"}))
    averaged = meaning(LOSSES, "verl", aggregate)
    if averaged is None or "aggregate" not in averaged:
        task.missing.append(f"{ACTOR}.loss_agg_mode: {aggregate} (it is token_mean)")
    if loss["name"] == "cispo":
        loss |= {"clip_low": float(low), "clip_high": float(high)}
    elif loss["name"] == "clipped":
        _clipped(task, loss, low, high, task.get(f"{ACTOR}.clip_ratio_c"), f"{ACTOR}.clip_ratio_c")
    shared.set_loss(task, loss, (averaged or {}).get("aggregate"))


def _clipped(task: Task, loss: dict[str, Any], low: Any, high: Any, dual: Any, key: str) -> None:
    loss.update(shared.clipping(loss, low, high, None if "ratio" in loss else dual))
    if "dual_clip" in loss and not task.is_given(key):
        task.defaults.append(f"algorithm.loss.dual_clip is {dual:g}, as {task.peer} has it by default (ours: none)")


def _kl(task: Task, coefficient: Any, key: str, *, in_reward: bool) -> None:
    name = str(task.get(key))
    task.set("algorithm.kl.coefficient", float(coefficient))
    if name not in ESTIMATORS:
        task.missing.append(f"{key}: {name} (it is k3; estimates: {', '.join(dict.fromkeys(ESTIMATORS.values()))})")
    else:
        task.set("algorithm.kl.estimator", ESTIMATORS[name])
    task.set("algorithm.kl.place", "reward" if in_reward else None)


def _advantage(task: Task) -> None:
    name = str(task.get("algorithm.adv_estimator"))
    if name == "gae":
        task.missing.append("algorithm.adv_estimator: gae (there is no value network; the advantage is group_relative)")
        return
    found = meaning(ADVANTAGES, "verl", name) or meaning(LOSSES, "verl", name)
    if found is None or "advantage" not in found:
        task.missing.append(f"algorithm.adv_estimator: {name} (the advantage is group_relative)")
        return
    stages = [dict(stage) if isinstance(stage, dict) else stage for stage in found["advantage"]]
    if name == "grpo" and task.get("algorithm.norm_adv_by_std_in_grpo") is False:
        stages[0]["divide_by_std"] = "none"
    if name == "reinforce_plus_plus" and task.get("algorithm.gamma") != 1.0:
        stages[0] = {"name": "discounted_returns", "gamma": task.get("algorithm.gamma")}
    task.set("algorithm.advantage", stages)
    if name == "remax":
        task.set("rollout.strategy", "text_reasoning/with_greedy")


def _sampling(task: Task, rollout: str, validation: str) -> None:
    task.set_from("rollout.top_k", max(0, task.get(f"{rollout}.top_k") or 0), f"{rollout}.top_k")
    engine = task.get(f"{rollout}.name")
    if engine == "vllm":
        task.set("rollout.engine", {"name": "vllm", "mode": "colocated"})
        task.look.append("rollout.engine: memory_gib is for keys and values alone, where theirs is a share of the GPU")
    elif engine not in ("hf", None):
        task.missing.append(f"{rollout}.name: {engine} (engines: hf, vllm)")
    if task.is_given(validation):
        task.set("eval.temperatures", [float(task.get(validation))])


def _frequencies(task: Task, evaluation: str) -> None:
    shared.every(task, "eval.every_steps", task.get(evaluation))
    shared.every(task, "checkpoint.every_steps", task.get("trainer.save_freq"))
    shared.trackers(task, task.get("trainer.logger"))


def translate_easyr1(task: Task, folder: Path) -> None:
    """Fill in a task from a config of EasyR1; `folder` is that of the config."""
    task.set("name", task.get("trainer.experiment_name") or "imported")
    for split, key in (("train", "data.train_files"), ("held_out", "data.val_files")):
        if (named := task.get(key)) is not None:
            path, _, part = str(named).partition("@")
            task.set(f"data.{split}", {"path": shared.data_path(path, folder)} | ({"split": part} if part else {}))
    _easyr1_prompt(task, folder)
    actor = "worker.actor"
    lora = f"{actor}.model.lora"
    shared.adapter(task, task.get(f"{lora}.rank"), task.get(f"{lora}.alpha"), task.get(f"{lora}.target_modules"))
    task.set("model.freeze", ["vision"] if task.get(f"{actor}.model.freeze_vision_tower") else None)
    epochs = task.get("trainer.total_episodes") or task.get("trainer.total_epochs")
    keys = ("trainer.total_epochs", "trainer.total_episodes")
    total = shared.length(task, task.get("trainer.max_steps"), epochs, *keys)
    optim = f"{actor}.optim"
    shared.warm_up(task, task.get(f"{optim}.lr_warmup_steps"), task.get(f"{optim}.lr_warmup_ratio"), total)
    shared.schedule(task, task.get(f"{optim}.lr_scheduler_type"), f"{optim}.lr_scheduler_type")
    whole, part = task.get("data.rollout_batch_size"), task.get(f"{actor}.global_batch_size")
    shared.parts_of_rollout(task, whole, part, "global_batch_size")
    _easyr1_loss(task, actor)
    if not task.get("algorithm.disable_kl") and task.get("algorithm.kl_coef"):
        in_reward = not task.get("algorithm.use_kl_loss")
        _kl(task, task.get("algorithm.kl_coef"), "algorithm.kl_penalty", in_reward=in_reward)
    _advantage(task)
    if task.get("algorithm.online_filtering"):
        task.set("algorithm.dynamic_sampling", {"max_rounds": max(1, task.get("trainer.max_try_make_batch") or 20)})
    _sampling(task, "worker.rollout", "worker.rollout.val_override_config.temperature")
    _frequencies(task, "trainer.val_freq")
    if (limit := task.get("trainer.save_limit")) is not None and limit > 0:
        task.set("checkpoint.keep", limit)
    _easyr1_reward(task, folder)
    task.remark_missing(EASYR1_MACHINERY)


def _easyr1_prompt(task: Task, folder: Path) -> None:
    """The prompt, with the columns and the text of the file that `format_prompt` names."""
    column = task.get("data.prompt_key")
    text = _formatted(task, f"{{{column}}}", folder)
    task.set("prompt.text", None if text == "{problem}" else text)
    if column == "problem" and all(task.get(f"data.{kind}_key") == f"{kind}s" for kind in MARKS):
        for split in task.values.get("data", {}):
            task.set(f"data.{split}.layout", "easyr1")  # rows without media need no such columns
        return
    for kind in MARKS:
        column = task.get(f"data.{kind}_key")
        if column and task.is_given(f"data.{kind}_key"):
            task.set(f"prompt.{kind}s", [f"{{{column}}}"])
            task.set(f"prompt.marks.{kind}", MARKS[kind])


def _formatted(task: Task, text: str, folder: Path) -> str:
    """What stands around the question, as a template of ours; a remark where it is more than text."""
    named = task.get("data.format_prompt")
    if not named:
        return text
    found = find_path(str(named), folder)
    is_there = found is not None and found.is_file()
    written = found.read_text(encoding="utf-8-sig").strip() if found is not None and is_there else str(named)
    filled = re.sub(r"\{\{\s*content\s*(?:\|\s*trim\s*)?\}\}", "\0", written)
    if "{{" in filled or "{%" in filled or "\0" not in filled:
        why = "which is more than text around the question" if is_there else "which is not there from here"
        task.look.append(f"prompt.text: write what {named} says, {why}")
        return text
    return filled.replace("{", "{{").replace("}", "}}").replace("\0", text)


def _easyr1_loss(task: Task, actor: str) -> None:
    mode = str(task.get(f"{actor}.loss_type"))
    low, high = task.get(f"{actor}.clip_ratio_low"), task.get(f"{actor}.clip_ratio_high")
    loss: dict[str, Any] = {"name": "cispo" if mode == "cispo" else "clipped"}
    if mode == "gspo":
        loss["ratio"] = "sequence_mean"
    elif mode not in ("default", "cispo"):
        task.missing.append(f"{actor}.loss_type: {mode} (the loss is clipped)")
    if mode == "cispo":
        loss |= {"clip_low": float(low), "clip_high": float(high)}
    else:
        _clipped(task, loss, low, high, task.get(f"{actor}.clip_ratio_dual"), f"{actor}.clip_ratio_dual")
        if not task.is_given(f"{actor}.clip_ratio_high"):
            task.defaults.append(f"algorithm.loss.clip_high is {high:g}, as EasyR1 has it by default (ours: 0.2)")
    averaged = {"token": "token_mean", "seq": "sequence_mean"}.get(str(task.get(f"{actor}.loss_avg_mode")))
    shared.set_loss(task, loss, averaged)


def _easyr1_reward(task: Task, folder: Path) -> None:
    named = task.get("worker.reward.reward_function")
    if named is None:
        task.look.append("rewards: none is named; add {name: FILE.py:compute_score, style: easyr1}")
        return
    file, _, function = str(named).partition(":")
    options = task.get("worker.reward.reward_function_kwargs") or {}
    column = task.get("data.answer_key")
    more = {} if column in ("answer", None) else {"columns": {"ground_truth": column}}
    found = shared.reward(task, file, function or "main", "easyr1", folder, **more, **options)
    task.set("rewards", [found] if found else None)

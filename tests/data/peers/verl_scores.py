"""A reward as verl's `custom_reward_function` names it: one answer at a time, told apart by where it is from."""

import re


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    if data_source == "openai/gsm8k":
        return last_number(solution_str, ground_truth, **kwargs)
    if data_source == "hiyouga/geometry3k":
        return boxed(solution_str, ground_truth, extra_info)
    raise NotImplementedError(f"no reward for {data_source!r}")


def last_number(solution_str, ground_truth, format_score=0.0):
    found = re.findall(r"#### (-?[0-9.,]+)", solution_str)
    if not found:
        return 0.0
    return 1.0 if found[-1].replace(",", "") == ground_truth else format_score


def boxed(solution_str, ground_truth, extra_info):
    """A dict: `score` is what is learnt from, the rest is for charts."""
    shape = re.fullmatch(r"<think>.*</think>.*\\boxed\{.*\}.*", solution_str, re.DOTALL)
    found = re.findall(r"\\boxed\{(.*?)\}", solution_str)
    acc = float(found[-1:] == [ground_truth])
    return {"score": 0.9 * acc + 0.1 * bool(shape), "acc": acc, "index": extra_info["index"]}


async def compute_score_elsewhere(data_source, solution_str, ground_truth, extra_info=None):
    return len(solution_str) / 10


def compute_score_batch(data_sources, solution_strs, ground_truths, extra_infos):
    return [float(text.endswith(gold)) for text, gold in zip(solution_strs, ground_truths, strict=True)]

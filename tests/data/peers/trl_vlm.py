"""Rewards as a script of TRL for pictures has them: conversational completions, columns by name, None for no score."""

import re


def text_of(completion):
    return completion[0]["content"]


def accuracy_reward(completions, solution, **kwargs):
    """1 if the answer, without its thoughts, is the solution; None where the row has none."""
    rewards = []
    for completion, gold in zip(completions, solution, strict=True):
        answer = text_of(completion).rpartition("</think>")[2].strip()
        rewards.append(None if gold is None else float(answer.lower() == gold.strip().lower()))
    return rewards


async def think_format_reward(prompts, completions, **kwargs):
    """1 if thoughts stand before the answer, as the system message asks for."""
    asked = ["<think>" in prompt[0]["content"] for prompt in prompts]
    right = [bool(re.fullmatch(r"<think>(?!.*<think>).*?</think>.*", text_of(c), re.DOTALL)) for c in completions]
    return [float(shape) if wanted else None for shape, wanted in zip(right, asked, strict=True)]

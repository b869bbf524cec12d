"""Rewards as open-r1 has them: some are made by a function of their options."""

import re


def accuracy_reward(completions: list[list[dict[str, str]]], solution: list[str], **kwargs) -> list[float | None]:
    """1 if what is in the last box is what is in that of the solution; None where the solution has no box."""
    rewards = []
    for (message,), gold in zip(completions, solution, strict=True):
        wanted, given = boxes(gold), boxes(message["content"])
        rewards.append(float(given[-1:] == wanted[-1:]) if wanted else None)
    return rewards


def boxes(text):
    return re.findall(r"\\boxed\{([^{}]*)\}", text)


def tag_count_reward(completions, **kwargs) -> list[float]:
    """A quarter for each tag that stands where it should."""
    tags = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
    return [sum(0.25 for tag in tags if message["content"].count(tag) == 1) for (message,) in completions]


def get_length_reward(max_length: int):
    def length_reward(completions, solution, **kwargs):
        return [max(0.0, 1 - len(message["content"]) / max_length) for (message,) in completions]

    return length_reward


length_reward = get_length_reward(max_length=100)

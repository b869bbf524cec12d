"""Rewards as EasyR1 calls them: all answers of a batch, one of them, or one in the older way."""

import re
from typing import Any

REWARD_NAME = "math"
REWARD_TYPE = "batch"


def format_reward(response: str) -> float:
    return 1.0 if re.fullmatch(r"<think>.*</think>.*\\boxed\{.*\}.*", response, re.DOTALL) else 0.0


def accuracy_reward(response: str, ground_truth: str) -> float:
    found = re.findall(r"\\boxed\{(.*?)\}", response)
    return 1.0 if found[-1:] == [ground_truth.strip()] else 0.0


def compute_score(reward_inputs: list[dict[str, Any]], format_weight: float = 0.1) -> list[dict[str, float]]:
    if not isinstance(reward_inputs, list):
        raise ValueError("this reward is of type batch")
    scores = []
    for item in reward_inputs:
        scores.append(score(item["response"], item["ground_truth"], format_weight))
    return scores


def score(response, ground_truth, format_weight):
    shape, right = format_reward(response), accuracy_reward(response, ground_truth)
    return {"overall": (1 - format_weight) * right + format_weight * shape, "format": shape, "accuracy": right}


def compute_score_of_one(reward_input: dict[str, Any], format_weight: float = 0.5) -> dict[str, float]:
    response = re.sub(r"\s*(<|>|/)\s*", r"\1", reward_input["response"])
    return score(response, reward_input["ground_truth"], format_weight)


def compute_score_as_before(predict_str: str, ground_truth: str) -> dict[str, float]:
    return score(predict_str, ground_truth, 0.1)


def compute_score_with_length(reward_inputs: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{"overall": -1.0 * item["response_length"]} for item in reward_inputs]

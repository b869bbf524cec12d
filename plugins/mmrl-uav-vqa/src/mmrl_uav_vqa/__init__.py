"""UAV-VL-R1 (arXiv:2508.11196): questions about aerial images, typed rewards, and stages by type of question."""

from mmrl_core import Registry, hookimpl


@hookimpl
def mmrl_register(registry: Registry) -> None:
    """Rewards, data sources, metrics, the demo's model, and the boxes that the report draws."""
    package = "mmrl_uav_vqa"
    add = registry.add
    add("reward", "accuracy", f"{package}.rewards:accuracy", "answer compared by type of question", maximum=1.0)
    add("reward", "format", f"{package}.rewards:format", "one think block, then one answer block", maximum=1.0)

    add("source", "hrvqa_vl", f"{package}.data:hrvqa_vl", "HRVQA-VL rows, or your own in its schema")
    add("source", "hrvqa", f"{package}.data:hrvqa", "HRVQA as published: questions and answers in two files")
    add("source", "aerial_scenes", f"{package}.demo_data:aerial_scenes", "cars and a house seen from above")

    add("metric", "by_type", f"{package}.metrics:by_type", "accuracy of each type of question, and its baselines")

    add("model", "aerial_reader", f"{package}.demo_model:build_aerial_reader", "small Qwen2.5-VL, tower trained")
    add("view", "evidence", f"{package}.views:evidence", "what the gold answer rests on")

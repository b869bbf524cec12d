"""Actial, viewpoint learning (arXiv:2511.01618): how a camera moved between two images of an object, and SAT."""

from mmrl_core import Registry, hookimpl


@hookimpl
def mmrl_register(registry: Registry) -> None:
    """Rewards, data sources, metrics and the demo's model."""
    package = "mmrl_viewpoint"
    add = registry.add
    add("reward", "accuracy", f"{package}.rewards:accuracy", "the right option", maximum=1.0)
    add("reward", "format", f"{package}.rewards:format", "one think block, then one answer block", maximum=1.0)
    add("reward", "score", f"{package}.rewards:score", "accuracy and format, half each", maximum=1.0)

    add("source", "published", f"{package}.data:published", "Viewpoint-100K, the SAT of stage 2, or your own rows")
    add("source", "sat", f"{package}.data:sat", "array/SAT, options shuffled for each row")
    add("source", "benchmark", f"{package}.data:benchmark", "3DSRBench, CV-Bench, BLINK, MMSI, SpatialEval, Omni3D")
    add("source", "posed_views", f"{package}.data:posed_views", "questions on pairs of your own views with poses")
    add("source", "rendered_pairs", f"{package}.demo_data:rendered_pairs", "rendered views of simple objects")

    add("metric", "accuracy", f"{package}.metrics:accuracy", "share of right answers, by type of question")
    add("metric", "circular_accuracy", f"{package}.metrics:circular_accuracy", "right under all rotations of options")
    add("metric", "omni3d", f"{package}.metrics:omni3d", "open answers of Omni3D-Bench, by kind")

    add("model", "pose_reader", f"{package}.demo_model:build_pose_reader", "small Qwen2.5-VL, tower trained on views")

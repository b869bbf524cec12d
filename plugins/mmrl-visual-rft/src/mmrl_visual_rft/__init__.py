"""Visual-RFT (arXiv:2503.01785): detection, fine-grained classification, reasoning grounding by verifiable reward."""

from mmrl_core import Registry, hookimpl


@hookimpl
def mmrl_register(registry: Registry) -> None:
    """Rewards, data sources, metrics, the demo's model, and the boxes that the report draws."""
    package = "mmrl_visual_rft"
    add = registry.add
    add("reward", "iou", f"{package}.rewards:iou", "IoU of matched boxes over the larger box count", maximum=1.0)
    add("reward", "confidence", f"{package}.rewards:confidence", "confidence high on hits, low on misses", maximum=1.0)
    add("reward", "format", f"{package}.rewards:format", "one think block, then one answer block", maximum=1.0)
    add(
        "reward",
        "classification_accuracy",
        f"{package}.rewards:classification_accuracy",
        "class name equal after normalisation",
        maximum=1.0,
    )
    add("reward", "grounding_giou", f"{package}.rewards:grounding_giou", "GIoU + 1 of the box", maximum=2.0)
    add("reward", "grounding_iou", f"{package}.rewards:grounding_iou", "plain IoU of the box", maximum=1.0)
    add("reward", "detection_score", f"{package}.rewards:detection_score", "share of boxes found", maximum=1.0)

    add("source", "published", f"{package}.data:published", "rows image, problem, solution: hub name or local files")
    add("source", "coco", f"{package}.data:coco", "COCO or LVIS annotations, a row for each image and category")
    add("source", "lisa", f"{package}.data:lisa", "LISA folders, a row for each instruction")
    add("source", "digit_scenes", f"{package}.demo_data:digit_scenes", "handwritten digits set into photographs")

    add("metric", "coco_ap", f"{package}.metrics:coco_ap", "COCO average precision")
    add("metric", "classification", f"{package}.metrics:classification", "accuracy, exact and by the published rule")
    add("metric", "grounding", f"{package}.metrics:grounding", "mean IoU, gIoU and cIoU")

    add("model", "digit_detector", f"{package}.demo_model:build_digit_detector", "small Qwen2.5-VL, tower trained")
    add("view", "boxes", f"{package}.views:boxes", "gold and predicted boxes")

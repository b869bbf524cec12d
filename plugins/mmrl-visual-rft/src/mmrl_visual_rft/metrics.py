"""Benchmark metrics of Visual-RFT: completions and their rows in, named numbers out.

A completion that cannot be read counts as no prediction, never as an error. Rows whose gold cannot be read are left out
and counted in `num_unscored`. A number that nothing in the data defines (no truth at all) is NaN. Shares are in 0..1;
papers often print them times 100.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl_core.media import Box, BoxConvention, convert
from mmrl_core.media import box_iou as iou_of
from mmrl_core.scoring import score_each
from mmrl_visual_rft.parsing import Detection, answer_text, parse_boxes, parse_detections
from mmrl_visual_rft.rewards import classification_accuracy, classification_substring, grounding_iou, solution_text

Sample = Mapping[str, Any]
BoxPx = tuple[float, float, float, float]

DEFAULT_SIDE_PX = 1000.0  # of images whose row has no width and height; AP and IoU do not depend on it
MAX_DETECTIONS = 100  # per image and category, COCO's rule
FAR_PX = 1e6  # boxes are clipped there: far outside of any image, small enough for pycocotools' arithmetic


def coco_ap(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    completion_convention: BoxConvention | str = BoxConvention.PER_MILLE,
    solution_convention: BoxConvention | str = BoxConvention.PER_MILLE,
    per_category: bool = False,
) -> dict[str, float]:
    """Average precision of detection answers, by pycocotools.

    Each row is one (image, category) pair, the unit in which COCO matches boxes; precision accumulates over the rows of
    a category, and every category with truth weighs the same. Rows are taken in order of `image_id` where these are
    numbers, because equal confidences keep that order.

    A box written twice counts once; a box without a usable confidence has confidence 1; a box without area, or with
    inverted corners (which pycocotools alone would ignore), is a false one.

    Args:
        completions: N texts.
        samples: N rows. Truth is `boxes_px` (x1, y1, x2, y2 in pixels of the original image) if there, else the boxes
            in `solution`. Optional: `category` (default: one for all), `width`, `height`, `image_id`,
            `crowd_boxes_px` (boxes in there count neither way), `exhaustive` (False: surplus boxes are ignored, LVIS's
            rule for images that are not labelled exhaustively) and `asked` (False: the answer is not read, truth counts
            as missed).
        completion_convention, solution_convention: what the numbers mean; absolute_px reads `resized_width_px` and
            `resized_height_px` from the rows.
        per_category: also give "AP/<category>".

    Returns:
        "AP" (mean over IoU 0.50:0.95), "AP50", "AP75", each averaged over categories; "readable" (share of answers
        that can be read), "num_unscored".

    >>> row = {"solution": "<answer>[{'Position': [0, 0, 100, 100], 'Confidence': 1}]</answer>"}
    >>> result = coco_ap(["<answer>[{'Position': [0, 0, 100, 80], 'Confidence': 0.9}]</answer>"], [row])
    >>> round(result["AP50"], 6), round(result["AP"], 6)  # IoU 0.8: right at 7 of the 10 thresholds
    (1.0, 0.7)
    """
    to, origin = BoxConvention(completion_convention), BoxConvention(solution_convention)
    truths: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    category_ids: dict[str, int] = {}
    num_read = num_asked = num_scored = 0
    for index in _order_by_image_id(samples):
        completion, sample = completions[index], samples[index]
        gold = _gold_boxes_px(sample, origin)
        if gold is None:
            continue
        num_scored += 1
        category = str(sample.get("category", "object"))
        pair = {"image_id": num_scored, "category_id": category_ids.setdefault(category, len(category_ids) + 1)}
        truths += [_annotation(pair, box) for box in gold]
        truths += [_annotation(pair, box, iscrowd=1) for box in sample.get("crowd_boxes_px") or ()]
        if not sample.get("exhaustive", True):
            # COCO ignores a box that lies within a crowd region and matches nothing else: a region around everything
            # turns that into LVIS's rule.
            truths.append(_annotation(pair, (-FAR_PX, -FAR_PX, FAR_PX, FAR_PX), iscrowd=1))
        if not sample.get("asked", True):
            continue
        num_asked += 1
        detections = parse_detections(answer_text(completion), to)
        if detections is not None:
            num_read += 1
            for box, score in _distinct(detections, sample):
                predictions.append(_annotation(pair, box) | {"score": score})
    precision = _coco_precision(truths, predictions, num_scored, len(category_ids))  # [10, 101, categories]
    by_category = {name: _mean_defined(precision[:, :, number - 1]) for name, number in category_ids.items()}
    defined = [value for value in by_category.values() if not math.isnan(value)]
    result = {
        "AP": _mean(defined),
        "AP50": _mean_defined(precision[0]),
        "AP75": _mean_defined(precision[5]),
        "readable": num_read / num_asked if num_asked else math.nan,
        "num_unscored": float(len(samples) - num_scored),
    }
    return result | ({f"AP/{name}": value for name, value in by_category.items()} if per_category else {})


def classification(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    aliases: Mapping[str, Sequence[str]] | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, float]:
    """Accuracy of class names: exact after normalisation, and by the published rule.

    Args:
        completions, samples, aliases, class_names: as in `rewards.classification_accuracy`.

    Returns:
        "accuracy" (the rule of the reward); "accuracy_published_substring" (one text contains the other: what published
        tables show, and inflated, since it also accepts an empty answer); "num_unscored".

    >>> row = {"solution": "<answer>garden phlox</answer>"}
    >>> classification(["<answer>phlox</answer>"], [row])
    {'accuracy': 0.0, 'accuracy_published_substring': 1.0, 'num_unscored': 0.0}
    """
    exact = score_each(classification_accuracy, completions, samples, aliases=aliases, class_names=class_names)
    substring = score_each(classification_substring, completions, samples)
    return {
        "accuracy": _mean([value for value in exact if value is not None]),
        "accuracy_published_substring": _mean([value for value in substring if value is not None]),
        "num_unscored": float(sum(value is None for value in exact)),
    }


def grounding(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    completion_convention: BoxConvention | str = BoxConvention.PER_MILLE,
    solution_convention: BoxConvention | str = BoxConvention.PER_MILLE,
) -> dict[str, float]:
    """Overlap of the answered box with what the instruction is about.

    The first box of the answer counts. No box, or an inverted one, scores 0.

    Two families, which are not the same number:
        Boxes. Answer against the gold box, by the rule of `rewards.grounding_iou`, where a box that reaches far out of
        the image scores 0 as well. Where the row has the exact `boxes_px`, these are the gold, and not the thousandths
        of `solution`, which are rounded.
        Masks, as in LISA. "mask_giou" is the mean of the items' mask IoU, "mask_ciou" is the sum of intersections over
        the sum of unions (large objects weigh more). The predicted mask is the *filled box* of the answer, within the
        image. The published numbers let SAM turn the box into a mask, which is not done here, so these are lower for
        objects that do not fill their box. The true mask is `polygons_px` or `mask_rle` of the row; a row with neither
        is compared with its filled gold box instead ("mask_share" says how many rows have true masks).

    Args:
        completions: N texts.
        samples: N rows with `solution`, and maybe `boxes_px`, several being alternatives; for masks also `polygons_px`
            (polygons [[x, y], ...] in pixels of the original image) or `mask_rle` (COCO's {"size": [height, width],
            "counts": ...}), `width`, `height`, and optionally `ignore_polygons_px`, whose pixels count neither way.
        completion_convention, solution_convention: as in `coco_ap`.

    Returns:
        "box_iou", "box_accuracy_50" (share of IoU above 0.5), "mask_giou", "mask_ciou", "mask_share", "num_unscored".

    >>> row = {"solution": "<answer> (0,0),(100,100) </answer>"}
    >>> grounding(["<answer>(0,0),(100,50)</answer>"], [row])["box_iou"]
    0.5
    """
    to, origin = BoxConvention(completion_convention), BoxConvention(solution_convention)
    ious = score_each(
        grounding_iou, completions, samples, completion_convention=to.value, solution_convention=origin.value
    )
    ious = [_exact_iou(*pair, to) for pair in zip(ious, completions, samples, strict=True)]
    scored = [index for index, value in enumerate(ious) if value is not None]
    box_ious = [value for value in ious if value is not None]
    masks: list[tuple[float, float]] = []
    num_true_masks = 0
    for index in scored:
        sample = samples[index]
        predicted = _first_box_px(answer_text(completions[index]), to, sample)
        gold_masks = _gold_masks(sample)
        num_true_masks += gold_masks is not None
        if gold_masks is not None:
            masks.append(_mask_overlap(predicted, *gold_masks))
        else:
            gold = _first_box_px(answer_text(solution_text(sample)), origin, sample)
            masks.append(_box_overlap(predicted, gold))
    return {
        "box_iou": _mean(box_ious),
        "box_accuracy_50": _mean([float(value > 0.5) for value in box_ious]),
        "mask_giou": _mean([intersection / union if union else 0.0 for intersection, union in masks]),
        "mask_ciou": _ratio(sum(pair[0] for pair in masks), sum(pair[1] for pair in masks)),
        "mask_share": num_true_masks / len(scored) if scored else math.nan,
        "num_unscored": float(len(samples) - len(scored)),
    }


# Boxes in pixels of the original image


def _exact_iou(value: float | None, completion: str, sample: Sample, convention: BoxConvention) -> float | None:
    """The IoU with the row's exact boxes, where it has them; 0 stays 0, which the rule of the reward may say."""
    exact = sample.get("boxes_px")
    if not value or not exact or not (sample.get("width") and sample.get("height")):
        return value
    boxes = parse_boxes(answer_text(completion), convention)
    predicted = _to_px(boxes[0], sample) if boxes else None
    if predicted is None:
        return value
    return max(iou_of(_in_px(predicted), _in_px(box)) for box in exact)


def _in_px(box: Sequence[float]) -> Box:
    x1, y1, x2, y2 = map(float, box)
    return Box(x1, y1, x2, y2, BoxConvention.ABSOLUTE_PX)


def _sides_px(sample: Sample) -> tuple[float, float]:
    width, height = sample.get("width"), sample.get("height")
    return (float(width), float(height)) if width and height else (DEFAULT_SIDE_PX, DEFAULT_SIDE_PX)


def _to_px(box: Box, sample: Sample) -> BoxPx | None:
    """Pixels of the original image, clipped far outside of it; None where the row lacks the resized size."""
    try:
        unit = convert(box, BoxConvention.UNIT, sample.get("resized_width_px"), sample.get("resized_height_px"))
    except (TypeError, ValueError):
        return None
    width, height = _sides_px(sample)
    x1, y1, x2, y2 = (
        min(FAR_PX, max(-FAR_PX, value))
        for value in (unit.x1 * width, unit.y1 * height, unit.x2 * width, unit.y2 * height)
    )
    return x1, y1, x2, y2


def _gold_boxes_px(sample: Sample, convention: BoxConvention) -> list[BoxPx] | None:
    exact = sample.get("boxes_px")
    if exact is not None:
        return [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in exact]
    detections = parse_detections(answer_text(solution_text(sample)), convention)
    if detections is None:
        return None
    boxes = [_to_px(detection.box, sample) for detection in detections]
    known = [box for box in boxes if box is not None]
    return known if len(known) == len(boxes) else None


def _distinct(detections: Sequence[Detection], sample: Sample) -> list[tuple[BoxPx, float]]:
    """(box, score) of each position written; of repeats the first."""
    scores: dict[Box, float] = {}
    for detection in detections:
        scores.setdefault(detection.box, 1.0 if detection.confidence is None else detection.confidence)
    in_px = [(_to_px(box, sample), score) for box, score in scores.items()]
    return [(box, score) for box, score in in_px if box is not None]


def _first_box_px(answer: str | None, convention: BoxConvention, sample: Sample) -> BoxPx | None:
    """The first box, clipped to the image; None if there is none or nothing of it is inside."""
    boxes = parse_boxes(answer, convention)
    box = _to_px(boxes[0], sample) if boxes else None
    if box is None:
        return None
    width, height = _sides_px(sample)
    x1, x2 = (min(width, max(0.0, value)) for value in (box[0], box[2]))
    y1, y2 = (min(height, max(0.0, value)) for value in (box[1], box[3]))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


# pycocotools


def _order_by_image_id(samples: Sequence[Sample]) -> list[int]:
    ids = [sample.get("image_id") for sample in samples]
    if all(isinstance(image_id, int) for image_id in ids):
        return sorted(range(len(samples)), key=lambda index: ids[index])  # type: ignore[arg-type, return-value]
    return list(range(len(samples)))


def _annotation(pair: Mapping[str, int], box: Sequence[float], iscrowd: int = 0) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    # A box without area stays: it matches nothing and counts as a wrong prediction.
    width, height = max(0.0, x2 - x1), max(0.0, y2 - y1)
    return {**pair, "bbox": [x1, y1, width, height], "area": width * height, "iscrowd": iscrowd}


def _coco_precision(
    truths: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]], num_images: int, num_categories: int
) -> Any:
    """Interpolated precision [IoU thresholds 10, recalls 101, categories]; -1 where a category has no truth."""
    import numpy as np
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not num_categories:
        return np.full((10, 101, 0), -1.0)
    header = {
        "images": [{"id": number} for number in range(1, num_images + 1)],
        "categories": [{"id": number} for number in range(1, num_categories + 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress there
        tables = []
        for annotations in (truths, predictions):
            table = COCO()
            # Ids start at 1: pycocotools takes a match with id 0 for no match.
            numbered = [annotation | {"id": number} for number, annotation in enumerate(annotations, start=1)]
            table.dataset = header | {"annotations": numbered}
            table.createIndex()
            tables.append(table)
        evaluation = COCOeval(*tables, iouType="bbox")
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.areaRng = [[0, math.inf]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 0]


# Masks


def _gold_masks(sample: Sample) -> tuple[Any, Any] | None:
    """(true mask, ignored mask or None), both as RLE; None if the row has no mask."""
    from pycocotools import mask as rle

    encoded, polygons = sample.get("mask_rle"), _areas(sample.get("polygons_px"))
    if encoded is not None:
        height, width = encoded["size"]
        # Uncompressed RLE has a list of counts.
        truth = rle.frPyObjects(encoded, height, width) if isinstance(encoded["counts"], list) else dict(encoded)
        if isinstance(truth["counts"], str):
            truth["counts"] = truth["counts"].encode()
    elif polygons and sample.get("width") and sample.get("height"):
        height, width = int(sample["height"]), int(sample["width"])
        truth = _polygon_mask(polygons, height, width)
    else:
        return None
    ignored = _areas(sample.get("ignore_polygons_px"))
    return truth, _polygon_mask(ignored, height, width) if ignored else None


def _areas(polygons: Any) -> list[Any]:
    """Polygons of three points or more; pycocotools reads two points as a box."""
    return [polygon for polygon in polygons or () if len(polygon) > 2]


def _polygon_mask(polygons: Sequence[Sequence[Sequence[float]]], height: int, width: int) -> Any:
    from pycocotools import mask as rle

    flat = [[float(value) for point in polygon for value in point] for polygon in polygons]
    return rle.merge(rle.frPyObjects(flat, height, width))


def _mask_overlap(predicted: BoxPx | None, truth: Any, ignored: Any | None) -> tuple[float, float]:
    """(intersection, union) in pixels of the filled predicted box and the true mask, without ignored pixels."""
    from pycocotools import mask as rle

    if predicted is None:
        return 0.0, _area_outside(truth, ignored)
    x1, y1, x2, y2 = predicted
    box = _polygon_mask([[(x1, y1), (x2, y1), (x2, y2), (x1, y2)]], *truth["size"])
    intersection, union = rle.merge([box, truth], intersect=True), rle.merge([box, truth])
    return _area_outside(intersection, ignored), _area_outside(union, ignored)


def _area_outside(mask: Any, ignored: Any | None) -> float:
    from pycocotools import mask as rle

    area = float(rle.area(mask))
    return area if ignored is None else area - float(rle.area(rle.merge([mask, ignored], intersect=True)))


def _box_overlap(first: BoxPx | None, second: BoxPx | None) -> tuple[float, float]:
    """(intersection, union) of two filled boxes in square pixels."""
    areas = [(box[2] - box[0]) * (box[3] - box[1]) if box else 0.0 for box in (first, second)]
    if first is None or second is None:
        return 0.0, sum(areas)
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    intersection = width * height if width > 0 and height > 0 else 0.0
    return intersection, sum(areas) - intersection


# Means


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _mean_defined(precision: Any) -> float:
    """Mean of an array without its -1 entries."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else math.nan


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan

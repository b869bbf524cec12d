"""Metrics against pycocotools called directly, and against numbers worked by hand."""

import contextlib
import io
import math
import random

import numpy as np
import pytest

from mmrl_visual_rft.metrics import classification, coco_ap, grounding

NO_OBJECTS = "<answer>No Objects</answer>"


def detections(*boxes):
    """Answer with boxes (x1, y1, x2, y2, confidence) in thousandths."""
    items = ", ".join(f"{{'Position': {list(box[:4])}, 'Confidence': {box[4]}}}" for box in boxes)
    return f"<think>...</think><answer>[{items}]</answer>"


def row(*boxes, **more):
    return {"solution": detections(*((*box, 1) for box in boxes)) if boxes else NO_OBJECTS} | more


BOX, OTHER, FAR = (0, 0, 100, 100), (500, 500, 600, 600), (800, 0, 900, 100)


# Detection, by hand


def ap(completions, rows, **options):
    return coco_ap(completions, rows, **options)


def test_all_found_is_one_and_nothing_found_is_zero():
    rows = [row(BOX, OTHER), row(OTHER)]
    found = ap([detections((*BOX, 0.9), (*OTHER, 0.8)), detections((*OTHER, 0.7))], rows)
    assert found["AP"] == found["AP50"] == found["AP75"] == pytest.approx(1.0)
    assert ap([NO_OBJECTS, NO_OBJECTS], rows)["AP"] == 0.0


def test_one_of_two_found_covers_51_of_101_recall_points():
    found = ap([detections((*BOX, 0.9)), NO_OBJECTS], [row(BOX), row(BOX)])
    assert found["AP"] == pytest.approx(51 / 101)


def test_a_false_box_above_the_true_one_halves_precision_and_below_it_costs_nothing():
    above = ap([detections((*FAR, 0.9), (*BOX, 0.5))], [row(BOX)])
    below = ap([detections((*FAR, 0.4), (*BOX, 0.5))], [row(BOX)])
    assert (above["AP"], below["AP"]) == (pytest.approx(0.5), pytest.approx(1.0))


def test_thresholds_run_from_50_to_95_in_steps_of_5():
    # Overlap 82 of 100: right at 0.50, 0.55, ..., 0.80, which are 7 of 10 thresholds.
    found = ap([detections((0, 0, 100, 82, 0.9))], [row(BOX)])
    assert (found["AP"], found["AP50"], found["AP75"]) == tuple(pytest.approx(value) for value in (0.7, 1.0, 1.0))
    # 60 of 100: right at 0.50, 0.55 and 0.60.
    found = ap([detections((0, 0, 100, 60.5, 0.9))], [row(BOX)])
    assert (found["AP"], found["AP50"], found["AP75"]) == tuple(pytest.approx(value) for value in (0.3, 1.0, 0.0))


def test_categories_weigh_the_same_whatever_their_size():
    rows = [row(BOX, category="cat"), row(BOX, category="cat"), row(BOX, category="dog")]
    answers = [detections((*BOX, 0.9)), detections((*BOX, 0.9)), NO_OBJECTS]
    found = ap(answers, rows, per_category=True)
    assert (found["AP"], found["AP/cat"], found["AP/dog"]) == tuple(pytest.approx(value) for value in (0.5, 1.0, 0.0))


def test_a_category_without_truth_does_not_count_but_its_false_boxes_do_in_categories_with_truth():
    rows = [row(BOX, category="cat"), row(category="dog"), row(category="cat")]
    answers = [detections((*BOX, 0.5)), detections((*BOX, 0.9)), detections((*BOX, 0.9))]
    found = ap(answers, rows, per_category=True)
    assert found["AP"] == pytest.approx(0.5) and math.isnan(found["AP/dog"])


def test_unreadable_answers_are_no_prediction_and_are_counted():
    found = ap(["gibberish", detections((*BOX, 0.9)), ""], [row(BOX)] * 3)
    assert found["AP50"] == pytest.approx(34 / 101)  # recall 1/3 reaches the recall points 0.00 to 0.33
    assert found["readable"] == pytest.approx(1 / 3) and found["num_unscored"] == 0


def test_repeats_count_once_and_a_missing_confidence_is_one():
    repeated = detections((*BOX, 0.9), (*BOX, 0.8))
    # The repeat would be a false box above the second truth.
    assert ap([repeated, detections((*BOX, 0.7))], [row(BOX), row(BOX)])["AP"] == pytest.approx(1.0)
    # The first confidence stays: the false box at 0.7 then comes first.
    assert ap([detections((*BOX, 0.5), (*BOX, 0.9), (*FAR, 0.7))], [row(BOX)])["AP"] == pytest.approx(0.5)
    without = "<answer>[{'Position': [800, 0, 900, 100]}]</answer>"
    assert ap([without, detections((*BOX, 0.99))], [row(), row(BOX)])["AP"] == pytest.approx(0.5)


def test_boxes_without_area_or_far_outside_are_false_boxes():
    for junk in (
        (50, 50, 50, 90, 0.9),
        (100, 100, 0, 0, 0.9),
        (100, 0, 0, 100, 0.9),
        (-1e150, -1e150, 1e150, 1e150, 0.9),
    ):
        assert ap([detections(junk, (*BOX, 0.5))], [row(BOX)])["AP"] == pytest.approx(0.5), junk


def test_boxes_in_a_crowd_region_are_ignored():
    pixels = {"width": 1000, "height": 1000}
    crowded = row(BOX, crowd_boxes_px=[(700, 0, 1000, 300)], **pixels)
    assert ap([detections((*FAR, 0.9), (*BOX, 0.5))], [crowded])["AP"] == pytest.approx(1.0)


def test_surplus_boxes_are_ignored_where_labels_are_not_exhaustive():
    answer = detections((*FAR, 0.9), (*OTHER, 0.8), (*BOX, 0.5))
    assert ap([answer], [row(BOX, exhaustive=False)])["AP"] == pytest.approx(1.0)
    assert ap([NO_OBJECTS], [row(BOX, exhaustive=False)])["AP"] == 0.0


def test_pairs_that_are_not_asked_count_as_missed():
    rows = [row(BOX), row(BOX, asked=False)]
    found = ap([detections((*BOX, 0.9))] * 2, rows)
    assert found["AP"] == pytest.approx(51 / 101) and found["readable"] == 1.0


def test_exact_boxes_are_preferred_to_the_rounded_solution():
    exact = row(BOX, boxes_px=[(0, 0, 32, 24)], width=320, height=480)  # per mille 0, 0, 100, 50
    assert ap([detections((0, 0, 100, 50, 0.9))], [exact])["AP"] == pytest.approx(1.0)


def test_absolute_pixels_of_the_resized_image_are_converted():
    sample = row(BOX, width=640, height=480, resized_width_px=280, resized_height_px=140)
    answer = detections((0, 0, 28, 14, 0.9))  # a tenth of each side
    assert ap([answer], [sample], completion_convention="absolute_px")["AP"] == pytest.approx(1.0)
    assert ap([answer], [sample])["AP"] == 0.0


def test_rows_without_readable_gold_are_left_out_and_counted():
    found = ap([detections((*BOX, 0.9))] * 2, [row(BOX), {"solution": "??"}])
    assert found["AP"] == pytest.approx(1.0) and found["num_unscored"] == 1


def test_no_rows_or_no_truth_is_undefined():
    assert math.isnan(ap([], [])["AP"]) and math.isnan(ap([NO_OBJECTS], [row()])["AP"])


def test_pycocotools_stays_silent(capsys):
    ap([detections((*BOX, 0.9))], [row(BOX)])
    assert capsys.readouterr() == ("", "")


# Detection, against pycocotools used as its own documentation shows


def random_case(seed):
    """Rows of 40 images and 3 categories with answers of varied quality; confidences often tie."""
    rng = random.Random(seed)
    rows, answers = [], []
    for image_id in rng.sample(range(1000), 40):
        width, height = rng.randint(100, 800), rng.randint(100, 800)
        for category in rng.sample(("cat", "dog", "bus"), rng.randint(1, 3)):
            truth, predicted = [], []
            for _ in range(rng.randint(0, 5)):
                x1, y1 = rng.randint(0, 700), rng.randint(0, 700)
                box = (x1, y1, x1 + rng.randint(40, 300), y1 + rng.randint(40, 300))
                truth.append(box)
                if rng.random() < 0.8:
                    shifted = (*(value + rng.randint(-15, 15) for value in box), round(rng.uniform(0.3, 1), 1))
                    predicted.append(shifted)
            for _ in range(rng.randint(0, 2)):
                x1, y1 = rng.randint(0, 700), rng.randint(0, 700)
                predicted.append((x1, y1, x1 + rng.randint(40, 300), y1 + rng.randint(40, 300), round(rng.random(), 1)))
            rng.shuffle(predicted)
            predicted = list({box[:4]: box for box in predicted[::-1]}.values())[::-1]
            crowd = [(0, 0, width / 2, height / 3)] if rng.random() < 0.2 else []
            px = [(b[0] * width / 1000, b[1] * height / 1000, b[2] * width / 1000, b[3] * height / 1000) for b in truth]
            more = {"image_id": image_id, "category": category, "width": width, "height": height}
            rows.append(row(*truth, boxes_px=px, crowd_boxes_px=crowd, **more))
            answers.append((rows[-1], predicted))
    return rows, answers


def reference(answers):
    """The twelve COCO numbers by COCO.loadRes and COCOeval.summarize, and AP by category."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = ["cat", "dog", "bus"]
    truth, results = [], []
    for sample, predicted in answers:
        ids = {"image_id": sample["image_id"], "category_id": names.index(sample["category"]) + 1}
        regions = [(box, 0) for box in sample["boxes_px"]] + [(box, 1) for box in sample["crowd_boxes_px"]]
        for (x1, y1, x2, y2), crowd in regions:
            shared = {"id": len(truth) + 1, "area": (x2 - x1) * (y2 - y1), "iscrowd": crowd}
            truth.append({**ids, **shared, "bbox": [x1, y1, x2 - x1, y2 - y1]})
        for x1, y1, x2, y2, score in predicted:
            box = [
                x1 / 1000 * sample["width"],
                y1 / 1000 * sample["height"],
                (x2 - x1) / 1000 * sample["width"],
                (y2 - y1) / 1000 * sample["height"],
            ]
            results.append({**ids, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        images = [{"id": image_id} for image_id in {sample["image_id"] for sample, _ in answers}]
        categories = [{"id": number + 1, "name": name} for number, name in enumerate(names)]
        coco.dataset = {"images": images, "categories": categories, "annotations": truth}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    by_category = {name: np.mean(precision[:, :, number]) for number, name in enumerate(names)}
    return evaluation.stats, by_category


@pytest.mark.parametrize("seed", range(4))
def test_coco_ap_equals_pycocotools(seed):
    rows, answers = random_case(seed)
    stats, by_category = reference(answers)
    found = coco_ap([detections(*predicted) for _, predicted in answers], rows, per_category=True)
    assert 0.05 < stats[0] < 0.95  # the case is not trivial
    assert found["AP"] == pytest.approx(stats[0], abs=1e-9)
    assert found["AP50"] == pytest.approx(stats[1], abs=1e-9)
    assert found["AP75"] == pytest.approx(stats[2], abs=1e-9)
    for name, value in by_category.items():
        assert found[f"AP/{name}"] == pytest.approx(value, abs=1e-9)


# Classification


def test_classification_accuracy_and_the_published_rule():
    rows = [{"solution": f"<answer>{name}</answer>"} for name in ("garden phlox", "rose", "2012 BMW 1 Series", "lily")]
    answers = ["<answer>Garden_Phlox</answer>", "<answer>tulip</answer>", "<answer>BMW</answer>", "<answer></answer>"]
    found = classification(answers, rows)
    # Exact: only the first. Substring: the first, "BMW" within its solution, and the empty answer.
    assert found == {"accuracy": 0.25, "accuracy_published_substring": 0.75, "num_unscored": 0.0}


def test_classification_options_reach_the_rule_and_broken_gold_is_left_out():
    rows = [{"solution": "<answer>rose</answer>"}, {"solution": None}]
    answers = ["<answer>rosa</answer>"] * 2
    assert classification(answers, rows)["accuracy"] == 0.0
    found = classification(answers, rows, aliases={"rose": ["rosa"]})
    assert found["accuracy"] == 1.0 and found["num_unscored"] == 1.0


# Grounding


def box_answer(*boxes):
    return "<answer>" + " ".join(f"({x1},{y1}),({x2},{y2})" for x1, y1, x2, y2 in boxes) + "</answer>"


def target(*boxes, **more):
    return {"solution": box_answer(*boxes), "width": 100, "height": 100} | more


def test_box_numbers_by_hand():
    rows = [target((0, 0, 500, 500)), target((0, 0, 1000, 1000)), target((0, 0, 500, 500)), target((0, 0, 500, 500))]
    answers = [box_answer((0, 0, 500, 250)), box_answer((0, 0, 1000, 900)), "none", box_answer((500, 500, 0, 0))]
    found = grounding(answers, rows)
    assert found["box_iou"] == pytest.approx((0.5 + 0.9 + 0 + 0) / 4)
    assert found["box_accuracy_50"] == 0.25  # 0.5 is not above 0.5
    # Filled boxes in pixels of 100 x 100: intersections 1250 + 9000, unions 2500 + 10000 + 2500 + 2500.
    assert found["mask_giou"] == pytest.approx((0.5 + 0.9) / 4)
    assert found["mask_ciou"] == pytest.approx(10250 / 17500)
    assert found["mask_share"] == 0.0


def test_polygon_masks_by_hand():
    square = [[10, 10], [50, 10], [50, 50], [10, 50]]  # 40 x 40 pixels
    other = [[60, 60], [80, 60], [80, 80], [60, 80]]  # 20 x 20 pixels
    rows = [
        target((100, 100, 500, 500), polygons_px=[square]),
        target((100, 100, 800, 800), polygons_px=[square, other]),
    ]
    answers = [box_answer((100, 100, 500, 300)), box_answer((100, 100, 500, 500))]
    found = grounding(answers, rows)
    # First: half of the square. Second: all of the square (1600) of square and other (2000).
    assert found["mask_giou"] == pytest.approx((800 / 1600 + 1600 / 2000) / 2)
    assert found["mask_ciou"] == pytest.approx((800 + 1600) / (1600 + 2000))
    assert found["mask_share"] == 1.0


def test_ignored_pixels_count_neither_way():
    square = [[10, 10], [50, 10], [50, 50], [10, 50]]
    right = [[50, 10], [90, 10], [90, 50], [50, 50]]
    sample = target((100, 100, 500, 500), polygons_px=[square], ignore_polygons_px=[right])
    assert grounding([box_answer((100, 100, 900, 500))], [sample])["mask_giou"] == pytest.approx(1.0)
    without = target((100, 100, 500, 500), polygons_px=[square])
    assert grounding([box_answer((100, 100, 900, 500))], [without])["mask_giou"] == pytest.approx(0.5)


def test_rle_masks_compressed_and_not():
    from pycocotools import mask as rle

    pixels = np.zeros((100, 100), dtype=np.uint8, order="F")
    pixels[10:50, 10:50] = 1
    packed = rle.encode(pixels)
    as_text = {"size": packed["size"], "counts": packed["counts"].decode()}
    columns = [10 * 100 + 10] + [40, 60] * 39 + [40]  # column by column: skip, then 40 set and 60 clear
    plain = {"size": [100, 100], "counts": [*columns, 10_000 - sum(columns)]}
    for encoded in (packed, as_text, plain):
        found = grounding([box_answer((100, 100, 500, 300))], [target((100, 100, 500, 500), mask_rle=encoded)])
        assert found["mask_giou"] == pytest.approx(0.5) and found["mask_share"] == 1.0


def test_unreadable_answers_add_to_the_union_only():
    square = [[10, 10], [50, 10], [50, 50], [10, 50]]
    rows = [target((100, 100, 500, 500), polygons_px=[square])] * 2
    found = grounding([box_answer((100, 100, 500, 500)), "none"], rows)
    assert found["mask_giou"] == pytest.approx(0.5) and found["mask_ciou"] == pytest.approx(0.5)


def test_grounding_converts_absolute_pixels():
    sample = target((0, 0, 500, 500), resized_width_px=280, resized_height_px=140)
    found = grounding([box_answer((0, 0, 140, 70))], [sample], completion_convention="absolute_px")
    assert found["box_iou"] == found["mask_giou"] == pytest.approx(1.0)


def test_grounding_without_gold_is_left_out_and_counted():
    found = grounding([box_answer((0, 0, 1, 1))], [{"solution": "nothing"}])
    assert found["num_unscored"] == 1 and math.isnan(found["box_iou"]) and math.isnan(found["mask_ciou"])


@pytest.mark.parametrize(
    "hostile", ["", "<answer>" * 1000, "(1,1),(2", "[{'Position': [1e999, 0, 1, 1]}]", "\0", "9" * 5000]
)
def test_hostile_answers_give_numbers_in_range(hostile):
    for metric, sample in ((coco_ap, row(BOX)), (grounding, target((0, 0, 500, 500)))):
        for name, value in metric([hostile], [sample]).items():
            assert 0.0 <= value <= 1.0, name


def test_the_box_iou_is_taken_with_the_exact_boxes_and_not_with_rounded_thousandths():
    # A box of 3 x 3 pixels at 10.4 in a picture of 2000 x 2000: 5.2..6.7 thousandths, rounded to 5..7. An answer of
    # 5..7, 10..14 pixels, is the rounded gold; the exact one fills 9 of its 16 square pixels.
    row = {"solution": "<answer> (5,5),(7,7) </answer>", "boxes_px": [(10.4, 10.4, 13.4, 13.4)]}
    row |= {"width": 2000, "height": 2000}
    found = grounding(["<answer>(5,5),(7,7)</answer>", "<answer>(900,900),(999,999)</answer>", "?"], [row] * 3)
    assert found["box_iou"] == pytest.approx(9 / 16 / 3)
    assert found["box_accuracy_50"] == pytest.approx(1 / 3)
    assert grounding(["<answer>(5,5),(7,7)</answer>"], [{"solution": row["solution"]}])["box_iou"] == 1.0
    far = grounding(["<answer>(5,5),(7,7000)</answer>"], [row])  # far out of the picture: 0 by the reward's rule
    assert far["box_iou"] == 0.0

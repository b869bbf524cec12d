"""Rewards of Visual-RFT against numbers worked by hand, and against the published rule written down a second time.

Gold boxes here are mostly G = (100, 100, 300, 300), 200 x 200 = 40,000. A prediction (100, 100, 300, 100 + h) lies
inside G, so its IoU is 200 h / 40,000 = h / 200: h = 160 gives 0.8, 120 gives 0.6, 100 gives exactly 0.5.
"""

import doctest
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl_core.errors import TaskDataError
from mmrl_core.scoring import score_each
from mmrl_visual_rft import rewards
from mmrl_visual_rft.rewards import (
    classification_accuracy,
    classification_substring,
    confidence,
    detection_score,
    grounding_giou,
    grounding_iou,
    iou,
)

Reward = Callable[..., list[float | None]]
DETECTION: list[Reward] = [iou, detection_score, confidence]
GROUNDING: list[Reward] = [grounding_giou, grounding_iou]
CLASSIFICATION: list[Reward] = [classification_accuracy, classification_substring]
UPPER = {grounding_giou: 2.0}


def objects(*items: Sequence[float]) -> str:
    """Each item: x1, y1, x2, y2, confidence."""
    return str([{"Position": list(item[:4]), "Confidence": item[4]} for item in items])


def answered(answer: str, thinking: str = "") -> str:
    return f"<think>{thinking}</think><answer>{answer}</answer>"


def gold(*boxes: Sequence[float]) -> dict[str, Any]:
    answer = objects(*([*box, 1] for box in boxes)) if boxes else "No Objects"
    return {"solution": f"<answer>{answer}</answer>"}


def one(reward: Reward, completion: Any, sample: Any, **options: Any) -> float | None:
    (value,) = reward([completion], [sample], **options)
    return value


G = (100, 100, 300, 300)
H = (500, 500, 700, 700)
NEAR_08, NEAR_06 = (100, 100, 300, 260), (100, 100, 300, 220)
JUNK = (800, 0, 900, 100)

# (predictions, gold boxes, iou, detection_score, confidence, confidence as published)
GOLDEN = {
    "exact": ([(*G, 1.0)], [G], 1.0, 1.0, 1.0, 1.0),
    "loose": ([(*NEAR_08, 0.9)], [G], 0.8, 1.0, 0.9, 0.9),
    "IoU of exactly one half is no match": ([(100, 100, 300, 200, 0.9)], [G], 0.0, 0.0, 0.0, 0.1),
    "IoU just above one half: 101/200": ([(100, 100, 300, 201, 0.9)], [G], 0.505, 1.0, 0.9, 0.9),
    # Partial overlap, half a box to the side: I = 100 x 200, U = 80,000 - 20,000: 1/3, no match.
    "miss": ([(200, 100, 400, 300, 0.3)], [G], 0.0, 0.0, 0.0, 0.7),
    "two found": ([(*NEAR_08, 0.9), (*H, 0.8)], [G, H], (0.8 + 1) / 2, 1.0, 0.85, 0.85),
    "one of two found: over the truths": ([(*NEAR_08, 0.9)], [G, H], 0.4, 0.5, 0.9, 0.9),
    # One hit of 0.9 and one miss of 0.1: the mean of 0.9 and 1 - 0.1.
    "one of two right: over the predictions": ([(*NEAR_08, 0.9), (*JUNK, 0.1)], [G], 0.4, 0.5, 0.9, 0.9),
    "sure miss beside a hit": ([(*NEAR_08, 0.6), (*JUNK, 0.8)], [G], 0.4, 0.5, (0.6 + 0.2) / 2, 0.4),
    "as many wrong as missed": ([(*G, 1.0), (*JUNK, 1.0)], [G, H], 0.5, 0.5, 0.5, 0.5),
    "a confident loose box takes the truth from a better one": (
        # 0.6 goes first and takes G; the exact box misses: 0.6 / 2; mean of 0.9 and 1 - 0.5.
        [(*G, 0.5), (*NEAR_06, 0.9)], [G], 0.3, 0.5, 0.7, 0.7,
    ),
    "equal confidences keep the order of writing": ([(*NEAR_06, 0.9), (*G, 0.9)], [G], 0.3, 0.5, 0.5, 0.5),
    "equal confidences, other order": ([(*G, 0.9), (*NEAR_06, 0.9)], [G], 0.5, 0.5, 0.5, 0.5),
    "each takes the truth of highest IoU": (
        # Truths: 200 and 160 high (IoU 0.8 of one another). 160 first takes its own, 200 its own.
        [(*NEAR_08, 0.9), (*G, 0.8)], [G, NEAR_08], 1.0, 1.0, 0.85, 0.85,
    ),
    "a taken truth leaves the next best": (
        # 0.9 takes NEAR_08 exactly; the same area again, 120 high, gets G: 0.6 (with NEAR_08 it had 0.75).
        [(*NEAR_08, 0.9), (*NEAR_06, 0.8)], [G, NEAR_08], 0.8, 1.0, 0.85, 0.85,
    ),
    "exact repeats count once, the first confidence stays": (
        [(*NEAR_08, 0.9), (*NEAR_08, 0.2), (*NEAR_08, 1.0)], [G], 0.8, 1.0, 0.9, 0.9,
    ),
    "near repeats count": ([(*NEAR_08, 0.9), (100, 100, 300, 259, 0.9)], [G], 0.4, 0.5, 0.5, 0.5),
    "no area": ([(100, 100, 100, 300, 0.4)], [G], 0.0, 0.0, 0.0, 0.6),
    "inverted": ([(300, 300, 100, 100, 0.4)], [G], 0.0, 0.0, 0.0, 0.6),
    "outside 0..1000 is only a bad box": ([(0, 0, 99999, 99999, 0.4)], [G], 0.0, 0.0, 0.0, 0.6),
    "farming: one junk box of confidence 0": ([(*JUNK, 0.0)], [G], 0.0, 0.0, 0.0, 1.0),
    "farming: many junk boxes of confidence 0": ([(*JUNK, 0.0), (1, 1, 2, 2, 0.0)], [G], 0.0, 0.0, 0.0, 1.0),
    # Below: the published rule scores 0 for each; no truth is mended.
    "no truth, none predicted": ([], [], 1.0, 1.0, 1.0, 1.0),
    "no truth, boxes predicted": ([(*G, 0.9), (*H, 0.2)], [], 0.0, 0.0, (0.1 + 0.8) / 2, 0.45),
    "truth, none predicted": ([], [G], 0.0, 0.0, 0.0, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_detection_rewards_worked_by_hand(name: str) -> None:
    predictions, truths, expected_iou, expected_score, expected_confidence, published_confidence = GOLDEN[name]
    completion = answered(objects(*predictions) if predictions else "No Objects")
    sample = gold(*truths)
    assert one(iou, completion, sample) == pytest.approx(expected_iou, abs=1e-12)
    assert one(detection_score, completion, sample) == pytest.approx(expected_score, abs=1e-12)
    assert one(confidence, completion, sample) == pytest.approx(expected_confidence, abs=1e-12)
    assert one(confidence, completion, sample, gate="none") == pytest.approx(published_confidence, abs=1e-12)


def test_published_data_row_scores_the_maximum_against_itself() -> None:
    row = {"solution": "<answer>[{'Position': [254, 303, 291, 365], 'Confidence': 1}]</answer>"}
    assert [one(reward, row["solution"], row) for reward in DETECTION] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("predictions", "truths", "expected"),
    [
        ([(100, 100, 300, 200, 0.9)], [G], 0.5),  # the half that the threshold refuses
        ([(200, 100, 400, 300, 0.9)], [G], 1 / 3),
        ([(*G, 1.0)], [G], 1.0),
        ([(*JUNK, 1.0)], [G], 0.0),
        # The best pair first: the exact box keeps its truth whatever the confidences; 1 / 2.
        ([(*G, 0.1), (*NEAR_06, 0.9)], [G], 0.5),
        ([(*NEAR_06, 0.9), (*G, 0.1)], [G], 0.5),
        # NEAR_06 is left with G (0.6) as NEAR_08 pairs with itself: (1 + 0.6) / 2.
        ([(*NEAR_06, 0.9), (*NEAR_08, 0.1)], [G, NEAR_08], 0.8),
        ([(*NEAR_08, 0.9)], [G, H], 0.4),
        ([(*NEAR_08, 0.9), (*NEAR_08, 0.9)], [G], 0.8),
        ([(*G, 0.9)], [], 0.0),
    ],
)
def test_dense_iou_credits_every_overlap_best_pairs_first(predictions: Any, truths: Any, expected: float) -> None:
    value = one(iou, answered(objects(*predictions)), gold(*truths), dense=True)
    assert value == pytest.approx(expected, abs=1e-12)


def test_dense_iou_of_correct_no_objects_is_one() -> None:
    assert one(iou, answered("No Objects"), gold(), dense=True) == 1.0


@pytest.mark.parametrize("reward", DETECTION)
def test_threshold_is_strict_and_checked(reward: Reward) -> None:
    at_08 = answered(objects((*NEAR_08, 1.0)))
    expected = {iou: 0.8}.get(reward, 1.0)
    assert one(reward, at_08, gold(G), threshold=0.79) == pytest.approx(expected)
    assert one(reward, at_08, gold(G), threshold=0.8) == 0.0
    assert one(reward, answered(objects((*JUNK, 1.0))), gold(G), threshold=0.0) == 0.0
    for bad in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="threshold"):
            one(reward, at_08, gold(G), threshold=bad)


@pytest.mark.parametrize("written", ["'high'", "'0.9'", "NaN", "Infinity", "-Infinity", "1e400", "None", "True", ""])
def test_a_bad_confidence_costs_the_confidence_reward_only(written: str) -> None:
    pair = f", 'Confidence': {written}" if written else ""
    completion = answered(f"[{{'Position': [100, 100, 300, 260]{pair}}}]")
    assert one(iou, completion, gold(G)) == pytest.approx(0.8)
    assert one(confidence, completion, gold(G)) == 0.0
    assert one(confidence, completion, gold(G), gate="none") == 0.0
    assert one(confidence, completion, gold()) == 0.0  # not even where every box is a miss
    # It orders as 1.0: before 0.9 if written after it, so 0.6 takes the truth: 0.6 / 2.
    both = answered(
        f"[{{'Position': [100, 100, 300, 300], 'Confidence': 0.9}}, {{'Position': [100, 100, 300, 220]{pair}}}]"
    )
    assert one(iou, both, gold(G)) == pytest.approx(0.3)


@pytest.mark.parametrize(("bad", "rank"), [(5, "first"), (95, "first"), (-3, "last"), (1.01, "first"), (-0.01, "last")])
def test_a_confidence_outside_0_to_1_counts_0_and_orders_as_written(bad: float, rank: str) -> None:
    assert one(confidence, answered(objects((*G, bad))), gold(G)) == 0.0
    assert one(confidence, answered(objects((*JUNK, bad))), gold(G), gate="none") == 0.0
    # Beside a hit of 0.8 it halves the mean.
    assert one(confidence, answered(objects((*G, 0.8), (*JUNK, bad))), gold(G)) == pytest.approx(0.4)
    value = one(iou, answered(objects((*G, 0.5), (*NEAR_06, bad))), gold(G))
    assert value == pytest.approx(0.3 if rank == "first" else 0.5)


def test_confidence_gates() -> None:
    # One hit of 0.8, one sure miss, two truths: mean (0.8 + 1.0) / 2 = 0.9, recall 1/2.
    padded, sample = answered(objects((*G, 0.8), (*JUNK, 0.0))), gold(G, H)
    assert one(confidence, padded, sample) == pytest.approx(0.9)
    assert one(confidence, padded, sample, gate="none") == pytest.approx(0.9)
    assert one(confidence, padded, sample, gate="recall") == pytest.approx(0.45)
    junk = answered(objects((*JUNK, 0.0)))
    assert [one(confidence, junk, gold(G), gate=gate) for gate in ("matched", "recall", "none")] == [0.0, 0.0, 1.0]
    assert [one(confidence, junk, gold(), gate=gate) for gate in ("matched", "recall", "none")] == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="Gates: matched, recall, none"):
        one(confidence, junk, gold(G), gate="iou")


GOOD = objects((*NEAR_08, 0.9))


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (answered(GOOD), 0.8),
        (GOOD, 0.8),  # no tags
        (f"<answer>{GOOD}", 0.8),
        (f"<think>t</think>\n<answer>\n{GOOD}\n</answer>\n", 0.8),  # published: a list on its own lines scores 0
        (answered(GOOD, thinking=f"<answer>{objects((*JUNK, 1.0))}</answer>"), 0.8),  # published: the draft counts
        (answered(GOOD + ", ..."), 0.8),
        (answered(GOOD[:-1] + ",]"), 0.8),
        (answered(GOOD[:-1] + ", ...]"), 0.8),
        (answered(GOOD[:-1]), 0.8),  # final bracket missing
        (answered(GOOD[:-1] + ", {'Position': [1, 2"), 0.8),
        (answered(f"I see one: {GOOD}. That's all."), 0.8),
        (answered(GOOD.replace("'", '"')), 0.8),
        # An object that is complete but unusable spoils the answer, as published.
        (answered(GOOD[:-1] + ", {'Position': [1, 2, 3], 'Confidence': 0.9}]"), 0.0),
        (answered(GOOD[:-1] + ", {'Confidence': 0.9}]"), 0.0),
        # What the symbolic step of the published code pays 1.0 for, and the rule proper does not.
        (answered("[100, 100, 200, 200]"), 0.0),
        (answered(objects((0, 100, 1000, 1000, 1.0))), 0.0),  # y1 equal, the rest wrong
        (answered(""), 0.0),
        ("", 0.0),
        (None, 0.0),
        (7, 0.0),
        ("<think>" + GOOD, 0.0),  # still thinking
    ],
)
def test_iou_reads_what_can_be_read(completion: Any, expected: float) -> None:
    assert one(iou, completion, gold(G)) == pytest.approx(expected)


@pytest.mark.parametrize("answer", ["No Objects", "no objects.", "[]", "'No Objects'"])
def test_no_objects_is_right_exactly_where_there_is_none(answer: str) -> None:
    assert [one(reward, answered(answer), gold()) for reward in DETECTION] == [1.0, 1.0, 1.0]
    assert [one(reward, answered(answer), gold(G)) for reward in DETECTION] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("garbage", ["", "nothing", "[5]", "{", "[{'Position': [1, 2"])
def test_garbage_is_not_taken_for_no_objects(garbage: str) -> None:
    assert [one(reward, answered(garbage), gold()) for reward in DETECTION] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "bad", ["nothing", "<answer>[{'Position': [1, 2]}]</answer>", 3, ["x"], {"value": 3}, [[1, 2, 3, 4]]]
)
def test_detection_gold_that_cannot_be_read_is_an_error(bad: Any) -> None:
    for reward in DETECTION:
        with pytest.raises(TaskDataError, match="the gold has to be detections"):
            one(reward, answered(GOOD), {"solution": bad})


@pytest.mark.parametrize("bad", ["", "<answer></answer>", None])
def test_detection_without_gold_is_unscored(bad: Any) -> None:
    for reward in DETECTION:
        assert reward([answered(GOOD), "", None], [{"solution": bad}] * 3) == [None, None, None]
        assert reward([answered(GOOD)] * 2, [{}, None]) == [None, None]


# A picture of 500 x 250 pixels: G = (100, 100, 300, 300) per mille is (50, 25, 150, 75) pixels.
@pytest.mark.parametrize("reward", [iou, detection_score, confidence, grounding_iou])
def test_boxes_in_pixels_are_compared_with_gold_in_per_mille(reward: Reward) -> None:
    answer = answered("(50,25),(150,75)" if reward is grounding_iou else objects((50, 25, 150, 75, 1.0)))
    solution = "<answer>(100,100),(300,300)</answer>" if reward is grounding_iou else gold(G)["solution"]
    sample = {"solution": solution, "resized_width_px": 500, "resized_height_px": 250}
    assert one(reward, answer, sample, completion_convention="absolute_px") == 1.0
    assert one(reward, answer, sample) == 0.0
    assert one(reward, solution, sample | {"solution": answer}, solution_convention="absolute_px") == 1.0
    unit = answered("(.1,.1),(.3,.3)" if reward is grounding_iou else objects((0.1, 0.1, 0.3, 0.3, 1.0)))
    assert one(reward, unit, {"solution": solution}, completion_convention="unit") == pytest.approx(1.0)
    # Both in pixels need no size; a needed size that is missing or silly leaves the row unscored.
    both = {"completion_convention": "absolute_px", "solution_convention": "absolute_px"}
    assert one(reward, answer, {"solution": answer}, **both) == 1.0
    for width in (None, 0, "500", math.nan):
        assert one(reward, answer, sample | {"resized_width_px": width}, completion_convention="absolute_px") is None
    with pytest.raises(ValueError, match="pixels"):
        one(reward, answer, sample, completion_convention="pixels")


# The published rule, written from its description a second time, without the symbolic step.


def published(answer: str, solution: str) -> tuple[float, float]:
    """(iou, confidence) for one-line JSON answers; exceptions are left out, as the answers fed here are valid."""
    predictions = json.loads(answer.replace("'", '"'))
    truths = [item["Position"] for item in json.loads(solution.replace("'", '"'))]
    distinct: list[dict[str, Any]] = []
    for item in predictions:
        if item["Position"] not in [other["Position"] for other in distinct]:
            distinct.append(item)
    pairs = []
    for item in sorted(distinct, key=lambda item: -item["Confidence"]):
        best, best_index = 0.0, None
        for index, (x1, y1, x2, y2) in enumerate(truths):
            a1, b1, a2, b2 = item["Position"]
            w, h = min(x2, a2) - max(x1, a1), min(y2, b2) - max(y1, b1)
            if truths[index] != [0, 0, 0, 0] and w > 0 and h > 0:
                overlap = w * h / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - w * h)
                if overlap > best:
                    best, best_index = overlap, index
        if best_index is not None and best > 0.5:
            truths[best_index] = [0, 0, 0, 0]
            pairs.append((best, item["Confidence"]))
        else:
            pairs.append((0.0, 1 - item["Confidence"]))
    count = max(len(truths), len(pairs))
    return sum(overlap for overlap, _ in pairs) / count, sum(score for _, score in pairs) / len(pairs)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[str, str]:
    """A solution and an ordinary valid answer: gold boxes, moved a little, some strays, some repeats."""
    corner, side = st.integers(0, 700), st.integers(20, 300)
    truths = draw(st.lists(st.tuples(corner, corner, side, side), min_size=1, max_size=4))
    truths = [(x, y, x + w, y + h) for x, y, w, h in truths]
    shift = st.integers(-40, 40)
    predictions = []
    for box in draw(st.lists(st.sampled_from([*truths, (0, 0, 90, 90)]), min_size=1, max_size=6)):
        moved = [side + draw(shift) for side in box] if draw(st.booleans()) else list(box)
        if moved[2] > moved[0] and moved[3] > moved[1]:
            predictions.append((*moved, draw(st.integers(0, 100)) / 100))
    predictions = predictions or [(*truths[0], 1.0)]
    return objects(*predictions), objects(*((*box, 1) for box in truths))


@settings(deadline=None, max_examples=200)
@given(scenes())
def test_ordinary_answers_score_as_published(scene: tuple[str, str]) -> None:
    answer, solution = scene
    sample = {"solution": f"<answer>{solution}</answer>"}
    expected_iou, expected_confidence = published(answer, solution)
    assert one(iou, answered(answer), sample) == pytest.approx(expected_iou, abs=1e-12)
    assert one(confidence, answered(answer), sample, gate="none") == pytest.approx(expected_confidence, abs=1e-12)
    # The gate changes nothing but answers that find nothing.
    gated = expected_confidence if expected_iou > 0 else 0.0
    assert one(confidence, answered(answer), sample) == pytest.approx(gated, abs=1e-12)


@settings(deadline=None)
@given(scenes())
def test_detection_rewards_keep_their_order(scene: tuple[str, str]) -> None:
    answer, solution = scene
    sample = {"solution": f"<answer>{solution}</answer>"}
    sharp, loose = one(iou, answer, sample), one(iou, answer, sample, dense=True)
    score = one(detection_score, answer, sample)
    assert sharp is not None and loose is not None and score is not None
    assert 0.0 <= sharp <= score <= 1.0
    assert loose <= 1.0
    assert one(iou, f"<answer>{solution}</answer>", {"solution": f"<answer>{answer}</answer>"}, dense=True) is not None
    (best,) = confidence([answer], [sample], gate="recall")
    (published_value,) = confidence([answer], [sample], gate="none")
    (default,) = confidence([answer], [sample])
    assert best is not None and published_value is not None and default is not None
    assert 0.0 <= best <= default <= published_value <= 1.0


# Format


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>t</think><answer>a</answer>", 1.0),
        ("<think></think><answer>a</answer>", 1.0),  # the thinking may be empty
        ("<think>t\nt</think>\n\n<answer>\na\n</answer>", 1.0),
        (" <think>t</think> <answer>a</answer>\n", 1.0),  # published: the trailing newline fails
        ("<think>t</think><answer></answer>", 0.0),  # published: passes
        ("<think>t</think><answer> \n</answer>", 0.0),
        ("<think>t</think><answer>a</answer><think>t</think><answer>a</answer>", 0.0),  # published: passes
        ("<think>t</think><answer>a</answer><answer>b</answer>", 0.0),  # published: passes
        ("<think>t<think>t</think></think><answer>a</answer>", 0.0),  # published: passes
        ("<think>t</think><answer><answer>a</answer></answer>", 0.0),
        ("<think>t <answer>d</answer></think><answer>a</answer>", 0.0),
        ("<think>t</think><answer>a <think></answer>", 0.0),
        ("<think>t</think> so <answer>a</answer>", 0.0),
        ("<think>t</think><answer>a</answer> done", 0.0),
        ("well <think>t</think><answer>a</answer>", 0.0),
        ("<answer>a</answer><think>t</think>", 0.0),
        ("<think>t<answer>a</think></answer>", 0.0),
        ("<answer>a</think><think>t</answer>", 0.0),
        ("<think>t</answer><answer>a</think>", 0.0),
        ("<Think>t</Think><Answer>a</Answer>", 0.0),
        ("<think>t</think><answer>a", 0.0),
        ("<answer>a</answer>", 0.0),
        ("a", 0.0),
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_format(completion: Any, expected: float) -> None:
    assert rewards.format([completion], [{}]) == [expected]


# Classification

PHLOX = {"solution": "<answer>garden phlox</answer>"}
BMW = {"solution": "<answer>2012 BMW 1 Series Convertible</answer>"}


@pytest.mark.parametrize(
    ("answer", "sample", "expected", "as_published"),
    [
        ("garden phlox", PHLOX, 1.0, 1.0),
        ("Garden Phlox", PHLOX, 1.0, 1.0),
        ("garden_phlox", PHLOX, 1.0, 1.0),
        ("gardenphlox", PHLOX, 1.0, 1.0),
        ("garden-phlox", PHLOX, 1.0, 0.0),
        ("garden phlox.", PHLOX, 1.0, 1.0),
        ("ｇａｒｄｅｎ phlox", PHLOX, 1.0, 0.0),
        # Published hacks: parts, lists, nothing at all.
        ("", PHLOX, 0.0, 1.0),
        ("a", PHLOX, 0.0, 1.0),
        ("phlox", PHLOX, 0.0, 1.0),
        ("BMW", BMW, 0.0, 1.0),
        ("rose or garden phlox or lily", PHLOX, 0.0, 1.0),
        ("it is a garden phlox", PHLOX, 0.0, 1.0),  # a phrase; counts once the class list is known
        ("rose", PHLOX, 0.0, 0.0),
        ("BMW 1 Series Convertible 2012", BMW, 0.0, 0.0),  # published: 1.0 by the shared number alone
        ("1", BMW, 0.0, 1.0),
    ],
)
def test_classification(answer: str, sample: dict[str, Any], expected: float, as_published: float) -> None:
    assert one(classification_accuracy, answered(answer), sample) == expected
    assert one(classification_substring, answered(answer), sample) == as_published


def test_classification_reads_the_answer_and_not_the_thinking() -> None:
    assert one(classification_accuracy, answered("\nrose\n", thinking="garden phlox"), PHLOX) == 0.0
    assert one(classification_accuracy, answered("\ngarden phlox\n", thinking="rose"), PHLOX) == 1.0
    # Published: an answer on its own lines is not found, and the whole text, thinking included, is searched.
    assert one(classification_substring, answered("\nrose\n", thinking="garden phlox"), PHLOX) == 1.0
    assert one(classification_substring, answered("rose", thinking="garden phlox"), PHLOX) == 0.0
    # The first block within one line: not the one that spans two.
    spanning = "<answer>garden\nphlox</answer> <answer>rose</answer>"
    assert one(classification_substring, spanning, PHLOX) == 0.0
    assert one(classification_substring, spanning, {"solution": "christmas rose"}) == 1.0
    assert one(classification_substring, "", PHLOX) == 1.0
    assert one(classification_accuracy, "", PHLOX) == 0.0
    assert one(classification_accuracy, "garden phlox", PHLOX) == 1.0
    assert one(classification_accuracy, "<think>garden phlox", PHLOX) == 0.0


FLOWERS = ["rose", "christmas rose", "desert-rose", "garden phlox", "lily", "lily of the valley"]
ROSE = {"solution": "<answer>rose</answer>"}


@pytest.mark.parametrize(
    ("answer", "sample", "expected"),
    [
        ("garden phlox", PHLOX, 1.0),
        ("gardenphlox", PHLOX, 1.0),
        ("It is a Garden Phlox, I think", PHLOX, 1.0),
        ("garden phlox, yes: garden-phlox", PHLOX, 1.0),
        ("garden phlox or rose", PHLOX, 0.0),
        ("rose, garden phlox", PHLOX, 0.0),
        ("phlox", PHLOX, 0.0),
        ("garden", PHLOX, 0.0),
        ("a tulip", PHLOX, 0.0),
        ("", PHLOX, 0.0),
        ("a christmas rose", ROSE, 0.0),
        ("a desert rose", ROSE, 0.0),
        ("a christmas rose or a rose", ROSE, 0.0),
        ("a rose", ROSE, 1.0),
        ("roses", ROSE, 0.0),
        ("a lily of the valley", {"solution": "lily"}, 0.0),
        ("a lily of the valley", {"solution": "lily of the valley"}, 1.0),
        ("primrose", ROSE, 0.0),
        ("a christmas rose", {"solution": "Christmas Rose"}, 1.0),
    ],
)
def test_classification_with_a_known_class_list_wants_exactly_one_class(
    answer: str, sample: dict[str, Any], expected: float
) -> None:
    assert one(classification_accuracy, answered(answer), sample, class_names=FLOWERS) == expected
    assert one(classification_accuracy, answered(answer), sample | {"class_names": FLOWERS}) == expected


def test_classification_with_a_class_list_without_the_solution_is_an_error() -> None:
    with pytest.raises(TaskDataError, match="the name of a class, of the list"):
        one(classification_accuracy, answered("tulip"), {"solution": "tulip"}, class_names=FLOWERS)


def test_classification_aliases() -> None:
    table = {"garden phlox": ["Phlox paniculata", "phlox"], "rose": ["rosa"], "tulip": ["lily"]}
    assert one(classification_accuracy, answered("phlox"), PHLOX, aliases=table) == 1.0
    assert one(classification_accuracy, answered("Phlox Paniculata."), PHLOX, aliases=table) == 1.0
    assert one(classification_accuracy, answered("rosa"), PHLOX, aliases=table) == 0.0
    assert one(classification_accuracy, answered("garden phlox"), {"solution": "phlox"}, aliases=table) == 1.0
    listed = {"aliases": table, "class_names": FLOWERS}
    assert one(classification_accuracy, answered("it is phlox paniculata"), PHLOX, **listed) == 1.0
    assert one(classification_accuracy, answered("phlox or rosa"), PHLOX, **listed) == 0.0
    # An alias spelled like a class of the list is that class.
    assert one(classification_accuracy, answered("lily"), {"solution": "lily"}, **listed) == 1.0
    # A row's own aliases: a list, one name, or a table; they replace the option.
    for own in (["phlox"], "phlox", {"Garden Phlox": ["phlox"]}):
        assert one(classification_accuracy, answered("phlox"), PHLOX | {"aliases": own}) == 1.0
        assert (
            one(classification_accuracy, answered("phlox paniculata"), PHLOX | {"aliases": own}, aliases=table) == 0.0
        )
    for bad in (None, [3], {3: [4]}, {"garden phlox": 5}):
        assert one(classification_accuracy, answered("garden phlox"), PHLOX | {"aliases": bad}) == 1.0


@pytest.mark.parametrize("bad", ["", "<answer></answer>", "<answer> </answer>", None])
@pytest.mark.parametrize("reward", CLASSIFICATION)
def test_classification_without_gold_is_unscored(reward: Reward, bad: Any) -> None:
    assert reward(["rose", ""], [{"solution": bad}, {}]) == [None, None]


# Grounding

LISA = {"solution": "<answer> (100,100),(300,300) </answer>"}


@pytest.mark.parametrize(
    ("answer", "giou", "plain"),
    [
        ("(100,100),(300,300)", 1.0, 1.0),
        (" (100, 100), (300, 300) ", 1.0, 1.0),
        # Inside G, half of it: I/U = 1/2, U = C.
        ("(100,100),(300,200)", 0.5, 0.5),
        # Half a box to the side: I = 20,000, U = C = 60,000.
        ("(200,100),(400,300)", 1 / 3, 1 / 3),
        # A quarter in the corner: I = 10,000, U = 70,000, C = 300 x 300: 1/7 - 2/9 = -5/63.
        ("(200,200),(400,400)", -5 / 63, 1 / 7),
        # Next door: I = 0, U = C.
        ("(300,100),(500,300)", 0.0, 0.0),
        # One box width away: U = 80,000, C = 600 x 200 = 120,000: -1/3.
        ("(500,100),(700,300)", -1 / 3, 0.0),
        # The whole image: 40,000 / 1,000,000, U = C. The shaping that plain IoU does not pay.
        ("(0,0),(1000,1000)", 0.04, 0.04),
        # A point far away: U = 40,000, C = 900 x 900: -(810,000 - 40,000) / 810,000 = -77/81.
        ("(1000,1000),(1000,1000)", -77 / 81, 0.0),
        # Spellings that the published pattern does not read.
        ("[100, 100, 300, 300]", 1.0, 1.0),
        ("(100.0,100.0),(300.0,300.0)", 1.0, 1.0),
        ("[[100,100],[300,300]]", 1.0, 1.0),
        # Over the edge by 50 of 1000, as written: I = 40,000, U = C = 350 x 350 = 122,500.
        ("(-50,-50),(300,300)", 40_000 / 122_500, 40_000 / 122_500),
        # Of several boxes the first counts. Published: (100,100) pairs with (0,0).
        ("(100,100),(300,300),(0,0),(10,10)", 1.0, 1.0),
        ("(0,0),(1000,1000),(100,100),(300,300)", 0.04, 0.04),
    ],
)
def test_grounding_worked_by_hand(answer: str, giou: float, plain: float) -> None:
    assert one(grounding_giou, answered(answer), LISA) == pytest.approx(giou + 1, abs=1e-12)
    assert one(grounding_iou, answered(answer), LISA) == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize(
    "completion",
    [
        "", None, 5, answered(""), answered("(100,100)"), answered("100,100,300,300"), "<think>(100,100),(300,300)",
        answered("nothing", thinking="(100,100),(300,300)"),
        answered("(300,300),(100,100)"),  # reversed; published: 2.0
        answered("(300,100),(100,300)"),
        answered("(100,300),(300,100)"),
        answered("(300,300),(100,100),(100,100),(300,300)"),  # the first box is the answer
        answered("(0,0),(99999,99999)"),  # no box of this image; published: about 1
        answered("(-200,100),(300,300)"),
        answered("(100,100),(300,1101)"),
        answered("(１００,１００),(３００,３００)"),  # published: read
        answered("(100,100),(300,1e400)"),
        answered("(100,100),(300,NaN)"),
    ],
)  # fmt: skip
def test_grounding_without_a_usable_box_is_zero(completion: Any) -> None:
    assert one(grounding_giou, completion, LISA) == one(grounding_iou, completion, LISA) == 0.0


def test_grounding_strict_refuses_several_boxes() -> None:
    several = answered("(100,100),(300,300),(0,0),(10,10)")
    assert one(grounding_giou, several, LISA, strict=True) == one(grounding_iou, several, LISA, strict=True) == 0.0
    single = answered("(100,100),(300,300)")
    assert one(grounding_giou, single, LISA, strict=True) == 2.0
    assert one(grounding_iou, single, LISA, strict=True) == 1.0


def test_grounding_overhang_is_a_tenth_of_the_side() -> None:
    assert one(grounding_iou, answered("(-100,-100),(1100,1100)"), LISA) == pytest.approx(40_000 / 1_440_000)
    assert one(grounding_iou, answered("(-101,-100),(1100,1100)"), LISA) == 0.0
    # 500 x 250 pixels: at most 550 and 275.
    sized = LISA | {"resized_width_px": 500, "resized_height_px": 250}
    gold_px = "(50,25),(150,75)"
    for answer, expected in [(gold_px, 1.0), ("(50,25),(550,275)", 0.04), ("(50,25),(551,275)", 0.0)]:
        value = one(grounding_iou, answered(answer), sized, completion_convention="absolute_px")
        assert value == pytest.approx(expected)  # 100 x 50 of 500 x 250


def test_grounding_with_several_truths_takes_the_best_fit() -> None:
    sample = {"solution": "<answer>(0,0),(50,50),(100,100),(300,300)</answer>"}
    assert one(grounding_giou, answered("(100,100),(300,300)"), sample) == 2.0
    assert one(grounding_iou, answered("(0,0),(50,50)"), sample) == 1.0


@pytest.mark.parametrize("bad", ["nothing", "<answer>the cup</answer>", "(300,300),(100,100)", 3, ["A"]])
def test_grounding_gold_that_cannot_be_read_is_an_error(bad: Any) -> None:
    for reward in GROUNDING:
        with pytest.raises(TaskDataError, match="one or more boxes"):
            one(reward, answered("(1,2),(3,4)"), {"solution": bad})


@pytest.mark.parametrize("bad", ["", None])
def test_grounding_without_gold_is_unscored(bad: Any) -> None:
    for reward in GROUNDING:
        assert reward([answered("(1,2),(3,4)"), bad], [{"solution": bad}, {}]) == [None, None]


# What holds for all of them

ALL: list[Reward] = [*DETECTION, *CLASSIFICATION, *GROUNDING, rewards.format]
SAMPLES: dict[Reward, dict[str, Any]] = {
    **dict.fromkeys(DETECTION, gold(G, H)),
    **dict.fromkeys(CLASSIFICATION, PHLOX),
    **dict.fromkeys(GROUNDING, LISA),
    rewards.format: {},
}


@pytest.mark.parametrize("reward", ALL)
def test_rewards_keep_order_and_length(reward: Reward) -> None:
    sample = SAMPLES[reward]
    right = answered(sample.get("solution", "<answer>x</answer>").removeprefix("<answer>").removesuffix("</answer>"))
    best = UPPER.get(reward, 1.0)
    assert reward([right, "wrong", right], [sample] * 3) == [best, 0.0, best]
    assert reward(["wrong", right], [sample] * 2) == [0.0, best]
    assert reward([], []) == []
    with pytest.raises(ValueError, match=r"shorter|longer"):
        reward([right, right], [sample])


PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "[", "]", "{", "}", "'", '"', ",", ":", " ", "\n", "'Position':",
    "'Confidence':", "[1, 2, 3, 4]", "(1,2),(3,4)", "(300,300),(100,100)", "1e308", "1e400", "-1e308", "NaN",
    "Infinity", "１", "99999", "0.5", "No Objects", objects((*G, 0.9)), objects((*JUNK, -3)), "garden phlox", "rose",
    "9" * 500, "\ud800", "\x00",
]  # fmt: skip
texts = st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
completions = texts | texts.map(answered) | st.none() | st.integers()
solutions = (
    st.sampled_from([gold(G, H)["solution"], gold()["solution"], "garden phlox", LISA["solution"]]) | completions
)
samples = st.none() | st.fixed_dictionaries(
    {"solution": solutions}, optional={"aliases": completions, "class_names": texts}
)
OPTIONS: list[tuple[Reward, dict[str, Any]]] = [
    *((reward, {}) for reward in ALL),
    (iou, {"dense": True}),
    (iou, {"threshold": 0.0}),
    (confidence, {"gate": "none"}),
    (confidence, {"gate": "recall"}),
    (iou, {"completion_convention": "unit"}),
    (grounding_giou, {"strict": True}),
    (grounding_giou, {"completion_convention": "absolute_px", "solution_convention": "absolute_px"}),
    (classification_accuracy, {"class_names": FLOWERS, "aliases": {"rose": ["rosa"]}}),
]


@settings(deadline=None)
@given(st.lists(st.tuples(completions, samples), max_size=3))
def test_any_input_scores_in_range_without_exception(rows: list[tuple[Any, Any]]) -> None:
    for reward, options in OPTIONS:
        values = score_each(reward, [completion for completion, _ in rows], [sample for _, sample in rows], **options)
        assert len(values) == len(rows)
        for value in values:
            assert value is None or (isinstance(value, float) and 0.0 <= value <= UPPER.get(reward, 1.0))


numbers = st.floats(-2e150, 2e150) | st.integers(-(10**160), 10**160) | st.integers(0, 1000)


@settings(deadline=None)
@given(
    st.lists(st.tuples(*[numbers] * 4, st.floats(0, 1)), min_size=1, max_size=4),
    st.lists(st.tuples(*[numbers] * 4), max_size=3),
)
def test_boxes_of_any_size_score_finite(predictions: list[Any], truths: list[Any]) -> None:
    for reward in DETECTION:
        (value,) = score_each(reward, [answered(objects(*predictions))], [gold(*truths)])
        assert value is None or 0.0 <= value <= 1.0
    for reward in GROUNDING:
        sample = {"solution": str(list(truths[0]) if truths else [])}
        (value,) = score_each(reward, [str(list(predictions[0][:4]))], [sample])
        assert value is None or 0.0 <= value <= UPPER.get(reward, 1.0)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["", "x", answered("No Objects"), answered(GOOD), answered(objects((*JUNK, 0.0)))])))
def test_a_completion_scores_the_same_in_any_company(batch: list[str]) -> None:
    for reward in DETECTION:
        assert reward(batch, [gold(G)] * len(batch)) == [one(reward, completion, gold(G)) for completion in batch]


HOSTILE = [
    "[", "{", "{'", "(", " ", "\n", "9", "<answer>", "<answer>\n", "<think>", "</think>", "<answer></answer>",
    "'Position': [", "(1,2),", "(1,2),(3,4)", "garden phlox ", "\ufdfa", objects((*G, 0.9)), objects((*G, 0.9))[:-2],
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.parametrize("size", [65_000, 1_000_000])
def test_hostile_text_scores_quickly(piece: str, size: int) -> None:
    garbage = piece * (size // len(piece))
    for text in (garbage, answered(garbage), f"<answer>{garbage}"):
        for reward in ALL:
            start = time.process_time()
            value = one(reward, text, SAMPLES[reward])
            assert time.process_time() - start < 0.2
            assert value is not None


def test_many_distinct_boxes_score_quickly() -> None:
    flood = answered("".join(objects((i, 0, 1000, 1000, 0.5)) for i in range(300)))
    many = gold(*((i, i, i + 100, i + 100) for i in range(0, 900, 9)))
    for reward, options in ((iou, {}), (iou, {"dense": True}), (confidence, {}), (detection_score, {})):
        start = time.process_time()
        assert one(reward, flood, many, **options) is not None
        assert time.process_time() - start < 0.2


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(rewards)
    assert result.attempted > 0 and result.failed == 0

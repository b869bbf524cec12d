"""Benchmark metrics: completions and their rows in, named numbers out.

The rows are those of this plugin's sources: `action`, `gt_bbox` in shares of the sides, `input_text`. Points are
compared in the convention of the completions, with the size that the processor showed. (quirk of published scripts:
they compare pixels of the resized picture with boxes in the original, or scale by one fixed screen.) An answer that
cannot be read is a wrong one. Rows without usable gold are left out and counted in `num_unscored`. A number that no row
defines is NaN. Shares are in 0..1; papers print them times 100.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl_core.errors import ConfigError, TaskDataError
from mmrl_core.media import Box, BoxConvention, Point, convert
from mmrl_core.scoring import gold_text
from mmrl_gui.actions import action_name, argument_of
from mmrl_gui.geometry import centre_of
from mmrl_gui.parsing import Action, coordinates, parse_actions, stated_text
from mmrl_gui.rewards import RADIUS, TEXT_THRESHOLD, gold_target, point_hits, screen_distance, text_f1

Sample = Mapping[str, Any]
Convention = BoxConvention | str


@dataclass(frozen=True)
class _Rule:
    """How a benchmark compares actions.

    Attributes:
        in_box: a point in the gold box counts; else, or besides, one near its centre.
        near: a point nearer than 0.14 to the gold point, or the centre of the gold box, counts. A gold that is a point
            is always compared in this way.
        grounding_of: rows whose points count for `grounding`: "click", those of every "pointing" action, or
            "click_named": clicks whose action name is right.
        text: "f1" above or at the threshold, "odyssey": one text in the other, or an edit similarity of at least 0.5.
        strict_f1: the F1 has to be above the threshold.
        only_arguments: step success is counted over rows with an argument but hotkeys, and without the name of the
            action.
        by_width: 0.14 of the screen's width in either direction; else of the side that a direction goes along.
    """

    in_box: bool
    near: bool
    grounding_of: str
    text: str
    strict_f1: bool = False
    only_arguments: bool = False
    by_width: bool = False


RULES = {
    "default": _Rule(in_box=True, near=False, grounding_of="pointing", text="f1"),
    "os_atlas": _Rule(in_box=False, near=True, grounding_of="click_named", text="f1", strict_f1=True),
    "gui_odyssey": _Rule(in_box=True, near=True, grounding_of="click_named", text="odyssey"),
    "gui_r1": _Rule(in_box=False, near=True, grounding_of="pointing", text="f1", only_arguments=True),
    "ui_r1": _Rule(in_box=False, near=True, grounding_of="click", text="f1", by_width=True),
}


def grounding(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    by: Sequence[str] = ("platform", "ui_type"),
    completion_convention: Convention = BoxConvention.ABSOLUTE_PX,
    solution_convention: Convention = BoxConvention.UNIT,
) -> dict[str, float]:
    """ScreenSpot, v2 and Pro: share of points in the gold box, edges included; the name of the action is not looked at.

    Args:
        completions: N texts.
        samples: N rows; `gt_bbox` is a box.
        by: columns, such as platform, ui_type and group: also give "accuracy/<value>" over the rows with each value,
            and "accuracy/<value>/<value>" over those with each pair of values of the first two.
        completion_convention, solution_convention: as in the rewards.

    Returns:
        "accuracy", "accuracy/<value>", "accuracy/<value>/<value>"; "macro_accuracy", the mean over the pairs, as papers
        average over columns of ScreenSpot; "readable", the share of answers with a point; "num_unscored".

    Source: ScreenSpot, arXiv:2401.10935: the point in the box, edges included. The published scripts of GUI-R1 leave
    the edges out. Pro, arXiv:2504.07981, averages over all rows: "accuracy".

    >>> row = {"action": "click", "gt_bbox": [0, 0, 0.5, 0.5], "resized_width_px": 56, "resized_height_px": 56}
    >>> grounding(["<answer>[{'action': 'click', 'point': [28, 28]}]</answer>"], [row])["accuracy"]
    1.0
    """
    to, origin = BoxConvention(completion_convention), BoxConvention(solution_convention)
    hits: dict[tuple[str, ...], list[float]] = defaultdict(list)
    num_read = 0
    for completion, sample in zip(completions, samples, strict=True):
        target = gold_target(sample, origin, to)
        if not isinstance(target, Box):
            continue
        point = _point(_first(completion, to))
        num_read += point is not None
        hit = float(point_hits(point, target, sample))
        values = [str(sample[column]) for column in by if sample.get(column) is not None]
        for key in {(), *((value,) for value in values), *((tuple(values[:2]),) if len(values) > 1 else ())}:
            hits[key].append(hit)
    pairs = [_mean(found) for key, found in hits.items() if len(key) == 2]
    num_scored = len(hits[()])
    return {
        "accuracy": _mean(hits[()]),
        "macro_accuracy": _mean(pairs),
        "readable": num_read / num_scored if num_scored else math.nan,
        "num_unscored": float(len(samples) - num_scored),
        **{"accuracy/" + "/".join(key): _mean(found) for key, found in sorted(hits.items()) if key},
    }


def steps(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    rule: str = "default",
    by: str | None = None,
    completion_convention: Convention = BoxConvention.ABSOLUTE_PX,
    solution_convention: Convention = BoxConvention.UNIT,
) -> dict[str, float]:
    """AndroidControl, GUI-Odyssey, GUI-Act and OmniAct: how many actions have the right name, place, and all of it.

    `rule` says what is right:

    default       a point in the gold box, or within 14 % of the sides of a gold point; text F1 of at least 0.5, equal
                  directions; grounding over all rows whose action points. Our choice.
    os_atlas      as OS-Atlas (arXiv:2410.23218) scores AndroidControl, GUI-Odyssey, GUI-Act and OmniAct, by the public
                  scripts: within 14 % of the point, or of the centre of the box; F1 above 0.5; grounding over clicks
                  whose name is right. Different here: the F1 reads the whole text, not its first word.
    gui_odyssey   as GUI-Odyssey (arXiv:2406.08451), after its public code: in the box or within 14 %; one text part of
                  the other, or an edit similarity of at least 0.5; names, directions and points make up its action
                  matching score, `step_success`.
    gui_r1        as the published scripts of GUI-R1: grounding over all rows whose action points, whatever the name;
                  step success over rows with a point, text or direction, hotkeys aside, whatever the name, so that it
                  is none. quirk: of a gold box they take the corner; here the centre.
    ui_r1         as UI-R1 scores AndroidControl: grounding over clicks, within 0.14 of the screen's width. quirk: there
                  151.2 pixels, of one width of 1080; here of each screenshot's own.

    Unverified: AndroidControl's own rule (arXiv:2406.03679), the click within the box of the element, which "default"
    follows where rows have boxes; GUI-Act's (arXiv:2406.11317) and OmniAct's (arXiv:2402.17553) own scores, for which
    the rules of OS-Atlas stand.

    Args:
        completions: N texts.
        samples: N rows with `action`, `gt_bbox`, `input_text`.
        rule: see above.
        by: column: also give "step_success/<value>".
        completion_convention, solution_convention: as in the rewards.

    Returns:
        "type": share of right names; "grounding"; "step_success"; "step_success/<value>"; "readable", the share of
        answers with an action; "num_unscored". An action of the answer beyond the first does not count.

    Raises:
        ConfigError: the rule is unknown.
    """
    if rule not in RULES:
        raise ConfigError(f"gui/steps: no rule is called {rule!r}; rules: {', '.join(RULES)}")
    chosen = RULES[rule]
    to, origin = BoxConvention(completion_convention), BoxConvention(solution_convention)
    found: dict[str, list[float]] = defaultdict(list)
    num_scored = num_read = 0
    for completion, sample in zip(completions, samples, strict=True):
        name, wanted = _gold(sample)
        argument = argument_of(name)
        target = gold_target(sample, origin, to)
        if name is None or (argument == "point" and target is None):
            continue
        action = _first(completion, to)
        num_scored += 1
        num_read += action is not None
        is_named = action is not None and action.name == name
        is_right = True
        if argument == "point" and target is not None:
            is_right = _is_near(_point(action), target, sample, chosen)
            if _counts_for_grounding(name, is_named, chosen):
                found["grounding"].append(float(is_right))
        if argument in ("text", "direction") and wanted is not None:
            text = (action.text if action is not None else None) or ""
            is_right = _is_same_text(text, wanted, argument == "direction", chosen)
        found["type"].append(float(is_named))
        if chosen.only_arguments:
            if argument is not None and name != "hotkey":
                found["step_success"].append(float(is_right))
            continue
        found["step_success"].append(float(is_named and is_right))
        if by is not None and sample.get(by) is not None:
            found[f"step_success/{sample[by]}"].append(float(is_named and is_right))
    return {
        **{key: _mean(found[key]) for key in ("type", "grounding", "step_success")},
        "readable": num_read / num_scored if num_scored else math.nan,
        "num_unscored": float(len(samples) - num_scored),
        **{key: _mean(values) for key, values in sorted(found.items()) if "/" in key},
    }


def _gold(sample: Sample) -> tuple[str | None, str | None]:
    """Name and text of the gold action; no name where either cannot be read."""
    try:
        name = action_name(gold_text(sample.get("action"), "action"))
        return name, stated_text(gold_text(sample.get("input_text"), "input_text"))
    except TaskDataError:
        return None, None


def _first(completion: object, convention: BoxConvention) -> Action | None:
    actions = parse_actions(completion, convention)
    return actions[0] if actions else None


def _point(action: Action | None) -> Point | None:
    return action.point if action is not None else None


def _is_near(point: Point | None, target: Box | Point, sample: Sample, rule: _Rule) -> bool:
    if point is None:
        return False
    if isinstance(target, Box) and rule.in_box and point_hits(point, target, sample):
        return True
    if isinstance(target, Box) and not rule.near:
        return False
    if rule.by_width:
        return _distance_in_widths(point, centre_of(target), sample) <= RADIUS
    distance, in_pixels = screen_distance(point, centre_of(target), sample)
    return not in_pixels and distance <= RADIUS


def _distance_in_widths(point: Point, target: Point, sample: Sample) -> float:
    """Distance of two points in widths of the screenshot; infinite where its size is unknown, or a point far away."""
    size = coordinates([sample.get("resized_width_px"), sample.get("resized_height_px")])
    if size is None or min(size) <= 0:
        return math.inf
    try:
        one, other = (convert(shape, BoxConvention.ABSOLUTE_PX, *size) for shape in (point, target))
    except ValueError:  # beyond the range of coordinates
        return math.inf
    return math.hypot(one.x - other.x, one.y - other.y) / size[0]


def _counts_for_grounding(name: str, is_named: bool, rule: _Rule) -> bool:
    if rule.grounding_of == "pointing":
        return True
    return name == "click" and (rule.grounding_of == "click" or is_named)


def _is_same_text(text: str, gold: str, is_direction: bool, rule: _Rule) -> bool:
    text, gold = text.strip().lower(), gold.strip().lower()
    if is_direction or text == gold:
        return text == gold
    if rule.text == "odyssey":
        return bool(text) and (text in gold or gold in text or _edit_similarity(text, gold) >= TEXT_THRESHOLD)
    score = text_f1(text, gold)
    return score > TEXT_THRESHOLD if rule.strict_f1 else score >= TEXT_THRESHOLD


def _edit_similarity(one: str, other: str) -> float:
    """1 - edit distance / length of the longer text; 0 for a text far longer than the other, without computing it."""
    longest = max(len(one), len(other))
    if min(len(one), len(other)) < longest * TEXT_THRESHOLD or longest > 1000:
        return 0.0
    distances = list(range(len(one) + 1))
    for row, char in enumerate(other, start=1):
        diagonal, distances[0] = distances[0], row
        for column, known in enumerate(one, start=1):
            change = diagonal + (char != known)
            diagonal = distances[column]
            distances[column] = min(change, diagonal + 1, distances[column - 1] + 1)
    return 1 - distances[-1] / longest


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan

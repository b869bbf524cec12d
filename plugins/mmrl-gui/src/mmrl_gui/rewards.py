"""Rewards of GUI-R1 and UI-R1: one action on a screenshot, compared with the gold one.

Every reward takes the B completions and their B samples and returns B numbers in the same order, each 0 or 1 unless
said otherwise. `None` means unscored: the sample holds no gold. A gold that is there and cannot be used is a
TaskDataError, which says what is expected. A completion that cannot be read scores 0.0.
Completions are untrusted and only ever parsed (see `parsing`).

Coordinates: a point is read in the `completion_convention` of its reward: "absolute_px" (the default, Qwen2.5-VL) are
pixels of the picture as the processor resized it, "per_mille" 0..1000 and "unit" 0..1 of its sides. GUI-R1's gold is
converted from its `solution_convention`, by default "unit" as in the published training file and in the rows of this
plugin's sources; UI-R1's lies in pixels of the original screenshot, to which the point is
scaled. The size of the resized picture is in the columns `resized_width_px` and `resized_height_px`, which a run fills
in with what the processor did; the size of the original is in `width` and `height`. So prompt, reward and metrics mean
the same point, whatever the pixel limits are. (quirk of the published code: it scales the gold to a size that the
processor then rounds again to multiples of 28, and drifts by up to 14 pixels.)

Several actions in one answer: the first counts, unless `several` is "reject". (quirk of the published code: it takes
the name of the first and the point of the last.)

Sources: GUI-R1, arXiv:2504.10458; UI-R1, arXiv:2503.21620; and their public code as of May and November 2025.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from mmrl_core.errors import TaskDataError
from mmrl_core.media import Box, BoxConvention, Point, convert
from mmrl_core.scoring import gold_text, unusable_gold, unwrapped
from mmrl_gui.actions import action_name, argument_of
from mmrl_gui.geometry import SLACK, Position, converted, numbers_of, position_of
from mmrl_gui.parsing import (
    Action,
    answer_text,
    coordinates,
    has_actions_format,
    has_block_format,
    parse_actions,
    parse_literal,
    stated_text,
)

Sample = Mapping[str, Any]
Convention = BoxConvention | str
Several = Literal["first", "reject"]

RADIUS = 0.14  # of each side of the screen: a click within it counts, see `point_hits`
RADIUS_PX = 140.0  # the same where the size is not known
TEXT_THRESHOLD = 0.5
GUI_R1_WEIGHTS = (0.8, 0.2)  # of accuracy and format

# Scripts without blanks between words, whose characters stand for words in `text_f1`: Thai to Khmer, kana, Han.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


# GUI-R1


def gui_r1_accuracy(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    mode: Literal["all", "sum"] = "all",
    radius: float = RADIUS,
    radius_px: float = RADIUS_PX,
    edges: Literal["inclusive", "strict"] = "inclusive",
    text_threshold: float = TEXT_THRESHOLD,
    several: Several = "first",
    completion_convention: Convention = BoxConvention.ABSOLUTE_PX,
    solution_convention: Convention = BoxConvention.UNIT,
) -> list[float | None]:
    """GUI-R1: 1.0 where the action's name, its point and its text are right, else 0.0.

    A point is right inside of a gold box, or near a gold point (see `point_hits`); a direction, if equal but for case;
    another text, if `text_f1` reaches the threshold. What the action does not take is not looked at, nor a text that
    the gold lacks.

    quirks of the published code, mended: a missing point counts as (0, 0), so that it hits targets near the corner;
    edges of boxes are a miss; directions are compared by F1, so that "upwards" is "up"; long_press, moveto,
    doubleclick, rightclick and open_app are right by their names alone; `close/delete` can never be right; JSON and
    actions over several lines are not read.

    Args:
        completions: B texts.
        samples: B rows; `action` a name, `gt_bbox` a box of four or a point of two numbers, `input_text` a text.
        mode: "all" as released. "sum", as the paper says: the share of right parts, of those that the gold action has
            (its name, and its point or text). Our choice: the sum is divided by their number, so that its maximum is 1.
        radius: how far from a gold point counts, as a share of each side (0.14 as in the published evaluation); it
            needs the size of the picture where the numbers are pixels.
        radius_px: the same in pixels, as in the published reward, for rows without that size.
        edges: whether the edge of a box belongs to it; "strict" as released.
        text_threshold: least F1 of a text.
        several: "first" or "reject" answers of several actions.
        completion_convention: what the numbers in completions mean.
        solution_convention: what the numbers in `gt_bbox` mean.

    Returns:
        B values in [0, 1]; None where the row names no action, or has no position for an action that needs one.

    Raises:
        ValueError: the lengths differ, or an option is unknown.
        TaskDataError: a gold action, position or text of another kind; a position outside of the picture, which is
            in another convention; or the size of the picture is missing that the conversion needs.

    >>> row = {"action": "click", "gt_bbox": [0, 0, 0.5, 0.5], "resized_width_px": 28, "resized_height_px": 28}
    >>> gui_r1_accuracy(["<think></think><answer>[{'action': 'click', 'point': [4, 9]}]</answer>"], [row])
    [1.0]
    """
    if mode not in ("all", "sum"):
        raise ValueError(f"mode is 'all' or 'sum', not {mode!r}")
    rewards: list[float | None] = []
    for action, sample in _read(completions, samples, completion_convention, several):
        parts = action_parts(
            action,
            sample,
            radius=radius,
            radius_px=radius_px,
            edges=edges,
            text_threshold=text_threshold,
            completion_convention=completion_convention,
            solution_convention=solution_convention,
        )
        if parts is None:
            rewards.append(None)
        elif mode == "all":
            rewards.append(float(all(parts.values())))
        else:
            rewards.append(sum(parts.values()) / len(parts))
    return rewards


def gui_r1_format(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """GUI-R1: 1.0 for thinking, then an answer of well-formed actions, and nothing else; else 0.0.

    See `parsing.has_actions_format` for the actions. Blanks around the blocks are fine.

    quirks of the published code, mended: it runs the answer to see whether it is a list; a line break at the end fails;
    several pairs of blocks, and answers without an action, pass; JSON passes here but not in the accuracy.

    Raises:
        ValueError: the lengths differ.
    """
    return [
        float(has_block_format(completion, thinking=True) and has_actions_format(completion))
        for completion, _ in zip(completions, samples, strict=True)
    ]


def gui_r1(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    weights: Sequence[float] = GUI_R1_WEIGHTS,
    mode: Literal["all", "sum"] = "all",
    radius: float = RADIUS,
    radius_px: float = RADIUS_PX,
    edges: Literal["inclusive", "strict"] = "inclusive",
    text_threshold: float = TEXT_THRESHOLD,
    several: Several = "first",
    completion_convention: Convention = BoxConvention.ABSOLUTE_PX,
    solution_convention: Convention = BoxConvention.UNIT,
) -> list[float | None]:
    """GUI-R1, as released: 0.8 times `gui_r1_accuracy` plus 0.2 times `gui_r1_format`.

    Args:
        weights: of accuracy and format.
        mode, radius, radius_px, edges, text_threshold, several, completion_convention, solution_convention: as in
            `gui_r1_accuracy`.

    Returns:
        B values; None where the accuracy is.

    Raises:
        ValueError: as `gui_r1_accuracy`, or there are not two weights.
    """
    of_accuracy, of_format = weights
    accuracies = gui_r1_accuracy(
        completions,
        samples,
        mode=mode,
        radius=radius,
        radius_px=radius_px,
        edges=edges,
        text_threshold=text_threshold,
        several=several,
        completion_convention=completion_convention,
        solution_convention=solution_convention,
    )
    formats = gui_r1_format(completions, samples)
    return [
        None if accuracy is None or form is None else of_accuracy * accuracy + of_format * form
        for accuracy, form in zip(accuracies, formats, strict=True)
    ]


def action_parts(
    action: Action | None,
    sample: Sample,
    *,
    radius: float = RADIUS,
    radius_px: float = RADIUS_PX,
    edges: Literal["inclusive", "strict"] = "inclusive",
    text_threshold: float = TEXT_THRESHOLD,
    completion_convention: Convention = BoxConvention.ABSOLUTE_PX,
    solution_convention: Convention = BoxConvention.UNIT,
) -> dict[str, bool] | None:
    """Which parts of an action are right: "action", and as the gold action has them "point" and "text".

    Args:
        action: as read from a completion; None: nothing could be read.
        sample, radius, radius_px, edges, text_threshold, completion_convention, solution_convention: as in
            `gui_r1_accuracy`.

    Returns:
        The parts; None where the row has no gold.

    Raises:
        TaskDataError: it has one that cannot be used.
    """
    gold_name = action_name(gold_text(sample.get("action"), "action", "the name of an action"))
    if gold_name is None:
        return None
    parts = {"action": action is not None and action.name == gold_name}
    argument = argument_of(gold_name)
    if argument == "point":
        target = gold_target(sample, BoxConvention(solution_convention), BoxConvention(completion_convention))
        if target is None:
            _refuse_position(sample, BoxConvention(solution_convention), BoxConvention(completion_convention))
            return None
        point = action.point if action is not None else None
        parts["point"] = point_hits(point, target, sample, radius=radius, radius_px=radius_px, edges=edges)
    wanted = stated_text(gold_text(sample.get("input_text"), "input_text", "a text"))
    if argument in ("text", "direction") and wanted is not None:
        text = (action.text if action is not None else None) or ""
        same = text.lower() == wanted.lower()
        parts["text"] = same if argument == "direction" else text_f1(text, wanted) >= text_threshold
    return parts


def gold_target(sample: Sample, origin: BoxConvention, to: BoxConvention) -> Position | None:
    """The gold position of a row in another convention; None where there is none that can be used.

    It cannot be used where the size for the conversion is missing, or where shares of the sides lie beyond 1.
    """
    position = position_of(coordinates(unwrapped(sample.get("gt_bbox"))), origin)
    try:
        if position is None or not _is_share(position):
            return None
        return converted(position, to, sample.get("resized_width_px"), sample.get("resized_height_px"))
    except (ValueError, TypeError):  # the sample lacks the size, or holds none
        return None


def _is_share(position: Position) -> bool:
    """Whether shares and thousandths of the sides lie within the picture, with some slack; pixels always do."""
    full = {BoxConvention.UNIT: 1.0, BoxConvention.PER_MILLE: 1000.0}.get(position.convention)
    return full is None or all(-SLACK * full <= number <= (1 + SLACK) * full for number in numbers_of(position))


def _refuse_position(sample: Sample, origin: BoxConvention, to: BoxConvention) -> None:
    """Say what is wrong with a gold position that cannot be used.

    Raises:
        TaskDataError: in any case but that of a row without position.
    """
    stored = sample.get("gt_bbox")
    position = position_of(coordinates(unwrapped(stored)), origin)
    if unwrapped(stored) is None:
        return
    if position is None:
        raise unusable_gold(stored, "gt_bbox", "a box of four numbers or a point of two")
    if not _is_share(position):
        raise TaskDataError(
            f"gt_bbox is {stored!r:.80}, beyond the picture in the convention {origin.value!r}; set "
            "solution_convention to what its numbers are"
        )
    raise TaskDataError(
        f"gt_bbox in {origin.value!r} cannot be compared with points in {to.value!r}: the row lacks the size of the "
        "picture, in the columns resized_width_px and resized_height_px, which a run fills in"
    )


def point_hits(
    point: Point | None,
    target: Position,
    sample: Sample,
    *,
    radius: float = RADIUS,
    radius_px: float = RADIUS_PX,
    edges: Literal["inclusive", "strict"] = "inclusive",
) -> bool:
    """Whether a point lies in the gold box, or nearer than the radius to the gold point.

    The distance is sqrt((dx / width)^2 + (dy / height)^2), in shares of the sides. Where the numbers are pixels and
    the row lacks the size, it is compared with `radius_px`.

    Args:
        point: of the completion, in the convention of the target; None hits nothing.
        target: gold box or point.
        sample: `resized_width_px`, `resized_height_px` are read.
        radius, radius_px, edges: as in `gui_r1_accuracy`.

    Raises:
        ValueError: `edges` is unknown.
    """
    if edges not in ("inclusive", "strict"):
        raise ValueError(f"edges is 'inclusive' or 'strict', not {edges!r}")
    if point is None:
        return False
    if isinstance(target, Box):
        if edges == "strict":
            return target.x1 < point.x < target.x2 and target.y1 < point.y < target.y2
        return target.x1 <= point.x <= target.x2 and target.y1 <= point.y <= target.y2
    distance, in_pixels = screen_distance(point, target, sample)
    return distance < (radius_px if in_pixels else radius)


def screen_distance(point: Point, target: Point, sample: Sample) -> tuple[float, bool]:
    """(distance of two points of one convention, whether it is in pixels: the row lacks the size; else shares)."""
    try:
        one, other = (
            convert(shape, BoxConvention.UNIT, sample.get("resized_width_px"), sample.get("resized_height_px"))
            for shape in (point, target)
        )
        in_pixels = False
    except (ValueError, TypeError):
        one, other, in_pixels = point, target, True
    return ((one.x - other.x) ** 2 + (one.y - other.y) ** 2) ** 0.5, in_pixels


def text_f1(predicted: str, gold: str) -> float:
    """F1 of the sets of words of two texts, in lower case and without square brackets.

    quirk of the published code: of two single words one that is part of the other counts as equal, so that one letter,
    or any part of a text in a script without blanks, is right. Here words are equal or not, and a character of such a
    script is a word.

    >>> text_f1("blue suede shoes", "Blue shoes")  # precision 2/3, recall 1
    0.8
    """
    one, other = _words(predicted), _words(gold)
    num_common = len(one & other)
    return 2 * num_common / (len(one) + len(other)) if num_common else 0.0


def _words(text: str) -> set[str]:
    spaced = _UNSPACED.sub(lambda match: f" {match.group()} ", text.replace("[", "").replace("]", "").lower())
    return set(spaced.split())


# UI-R1


def ui_r1_action(
    completions: Sequence[str], samples: Sequence[Sample], *, several: Several = "first"
) -> list[float | None]:
    """UI-R1: 1.0 where the action has the right name, else 0.0.

    quirk of the published code: names in double quotes, with blanks or capitals are not read.

    Args:
        completions: B texts.
        samples: B rows; `solution` like "<answer>[{'action': 'click', 'coordinate': [x1, y1, x2, y2]}]</answer>".
        several: "first" or "reject" answers of several actions.

    Returns:
        B values; None where `solution` is missing.

    Raises:
        ValueError: the lengths differ, or `several` is unknown.
        TaskDataError: `solution` names no action.
    """
    rewards: list[float | None] = []
    for action, sample in _read(completions, samples, BoxConvention.ABSOLUTE_PX, several):
        gold = _solution(sample)
        rewards.append(None if gold is None else float(action is not None and action.name == gold[0]))
    return rewards


def ui_r1_coord(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    several: Several = "first",
    completion_convention: Convention = BoxConvention.ABSOLUTE_PX,
) -> list[float | None]:
    """UI-R1: 1.0 where the action is right and, if it is a click, lies in the box, edges included; else 0.0.

    The point is scaled from the resized picture to the original screenshot, in which the box lies: by the sizes in the
    columns `width`, `height`, `resized_width_px` and `resized_height_px`, or else by the column `scale`.

    quirks of the published code, mended: a point is cut to whole pixels after scaling (kept as it is here); a missing
    one counts as (0, 0), a missing or fractional box as (0, 0, 0, 0); one of quoted numbers, or with blanks inside the
    brackets, is not read.

    Args:
        completions: B texts.
        samples: B rows; `solution` as in `ui_r1_action`, with the box in pixels of the original screenshot; `scale` is
            [original width / resized width, original height / resized height].
        several: "first" or "reject" answers of several actions.
        completion_convention: what the numbers in completions mean; all but absolute_px need `width` and `height`.

    Returns:
        B values; None where `solution` is missing.

    Raises:
        ValueError: the lengths differ, or an option is unknown.
        TaskDataError: `solution` names no action, or of a click no box; or nothing says the scale.
    """
    rewards: list[float | None] = []
    for action, sample in _read(completions, samples, completion_convention, several):
        gold = _solution(sample)
        if gold is None:
            rewards.append(None)
            continue
        name, box = gold
        if name != "click":
            rewards.append(float(action is not None and action.name == name))
            continue
        scale = original_scale(sample, BoxConvention(completion_convention))
        if box is None:
            raise unusable_gold(sample["solution"], "solution", "a click with the box 'coordinate': [x1, y1, x2, y2]")
        if scale is None:
            raise TaskDataError(
                "the scale of the screenshot is unknown: the row needs width, height, resized_width_px and "
                "resized_height_px, or scale"
            )
        if action is None or action.name != name or action.point is None:
            rewards.append(0.0)
        else:
            rewards.append(float(_lies_in(action.point, scale, box)))
    return rewards


def ui_r1_coord_efficient(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    completion_convention: Convention = BoxConvention.ABSOLUTE_PX,
) -> list[float | None]:
    """UI-R1-E: `ui_r1_coord` of an answer that is one action; answers of several actions score 0.0.

    quirk of the published code: of several points the efficient variant reads the last, the first variant the first.

    Args:
        completions, samples, completion_convention: as in `ui_r1_coord`.

    Returns:
        B values; None as in `ui_r1_coord`.

    Raises:
        ValueError: the lengths differ, or the convention is unknown.
    """
    return ui_r1_coord(completions, samples, several="reject", completion_convention=completion_convention)


def ui_r1_format(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """UI-R1: 1.0 for thinking that is not blank, then an answer with an action, and nothing else; else 0.0.

    quirks of the published code, mended: an empty block and several pairs of blocks pass, a line break at either end
    fails, and the answer is not looked at.

    Raises:
        ValueError: the lengths differ.
    """
    return [
        float(has_block_format(text, thinking=True, may_be_blank=False) and parse_actions(text) is not None)
        for text, _ in zip(completions, samples, strict=True)
    ]


def ui_r1_format_nothink(completions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
    """UI-R1-E, second stage: 1.0 for an answer with an action, without thinking and nothing else; else 0.0.

    Raises:
        ValueError: the lengths differ.
    """
    return [
        float(has_block_format(text, thinking=False) and parse_actions(text) is not None)
        for text, _ in zip(completions, samples, strict=True)
    ]


def _solution(sample: Sample) -> tuple[str, tuple[float, ...] | None] | None:
    """As `read_solution`; None where the row has none.

    Raises:
        TaskDataError: it names no action.
    """
    stored = sample.get("solution")
    found = read_solution(stored)
    is_missing = unwrapped(stored) is None or (isinstance(stored, str) and not stored.strip())
    if found is None and not is_missing:
        raise unusable_gold(stored, "solution", "an action, [{'action': 'click', 'coordinate': [x1, y1, x2, y2]}]")
    return found


def read_solution(solution: object) -> tuple[str, tuple[float, ...] | None] | None:
    """(action name, box in pixels of the original screenshot or None) of a UI-R1 target; None where it names none."""
    value: Any = unwrapped(solution) if isinstance(unwrapped(solution), str | Mapping) else solution
    if isinstance(value, str):
        try:
            value = parse_literal(answer_text(value) or value)
        except ValueError:
            return None
    if isinstance(value, list):
        value = value[0] if value else None
    name = action_name(value.get("action")) if isinstance(value, Mapping) else None
    if name is None:
        return None
    box = coordinates(value.get("coordinate"))
    is_box = box is not None and len(box) == 4 and box[0] < box[2] and box[1] < box[3]
    return name, tuple(box) if is_box and box is not None else None


def original_scale(sample: Sample, convention: BoxConvention) -> tuple[float, float] | None:
    """By what the numbers of a point are multiplied, for pixels of the original screenshot; None where it is unknown.

    The size that the processor made, if the row has it, comes before the column `scale`.
    """
    size = coordinates([sample.get("width"), sample.get("height")])
    full: list[float] | None
    if convention is BoxConvention.ABSOLUTE_PX:
        full = coordinates([sample.get("resized_width_px"), sample.get("resized_height_px")])
    else:
        full = [1.0, 1.0] if convention is BoxConvention.UNIT else [1000.0, 1000.0]
    if size is not None and full is not None and min(*size, *full) > 0:
        return size[0] / full[0], size[1] / full[1]
    scale = coordinates(sample.get("scale")) if convention is BoxConvention.ABSOLUTE_PX else None
    return (scale[0], scale[1]) if scale is not None and len(scale) == 2 and min(scale) > 0 else None


def _lies_in(point: Point, scale: tuple[float, float], box: Sequence[float]) -> bool:
    x, y = point.x * scale[0], point.y * scale[1]
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def _read(
    completions: Sequence[str], samples: Sequence[Sample], convention: Convention, several: Several
) -> Iterator[tuple[Action | None, Sample]]:
    """Each completion's action, None where it has none that counts, with its sample."""
    if several not in ("first", "reject"):
        raise ValueError(f"several is 'first' or 'reject', not {several!r}")
    for completion, sample in zip(completions, samples, strict=True):
        actions = parse_actions(completion, BoxConvention(convention))
        counts = actions is not None and (several == "first" or len(actions) == 1)
        yield actions[0] if actions is not None and counts else None, sample

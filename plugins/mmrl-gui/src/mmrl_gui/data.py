"""Data sources. Each gives rows of one form, whatever the file looked like, so that every reward and metric fits.

Columns of a row:

    image                                   as stored, see `mmrl_core.media.load_image`
    problem                                 the prompt's text
    instruction, history                    what it was made of
    action, input_text                      gold action; the filler where it has no text
    gt_bbox                                 box or point in shares of the sides, 0..1; None where the action has none
    solution                                UI-R1's target: the action, and a box in pixels of the original screenshot
    width, height                           size of the original, pixels
    resized_width_px, resized_height_px     size at which the processor shows it
    scale                                   [width / resized_width_px, height / resized_height_px]
    answer                                  gold completion, without thinking
    platform, ui_type, group                where the source has them

The resized size is computed from `min_pixels` and `max_pixels` as the processor does; a run overwrites it with what the
processor did. Give the same limits as in `model`: gold answers in pixels depend on them. Rewards and metrics do
not, since `gt_bbox` is in shares of the sides, which is their default.

Every source takes:

    form                    "gui_r1" or "ui_r1": which prompt and answer
    actions                 name of an entry of `actions.ACTION_SETS`, or a list of names, offered in the prompt
    only                    keep rows of these gold actions
    thinking                whether the prompt asks for it
    completion_convention   in what points are answered: absolute_px, per_mille or unit
    min_pixels, max_pixels  limits of the processor
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmrl_core.data import SWAPPING, Frame, Row, Rows, declared_size, load_rows, picture_frame
from mmrl_core.errors import MediaError, TaskDataError
from mmrl_core.media import BoxConvention, convert, resized_size
from mmrl_core.scoring import gold_text
from mmrl_gui.actions import ACTION_SETS, NO_TEXT, action_name, argument_of
from mmrl_gui.geometry import SLACK, Position, centre_of, converted, numbers_of, position_of
from mmrl_gui.parsing import action_answer, coordinates, stated_text
from mmrl_gui.prompts import gui_r1_prompt, ui_r1_prompt

Form = Literal["gui_r1", "ui_r1"]
Boxes = Literal["unit", "xyxy_px", "xywh_px"]

MIN_PIXELS = 3136
MAX_PIXELS = 12_845_056  # Qwen2.5-VL's own limits
PRO_COLUMNS = ("img_size", "application", "ui_type")  # that ScreenSpot-Pro's records have, and those before it lack
PLATFORMS = {"pc": "desktop", "mobile": "mobile", "web": "web"}  # by how ScreenSpot's files begin
PLATFORM_OF_SOURCE = {"ios": "mobile", "android": "mobile", "windows": "desktop", "macos": "desktop"}


@dataclass(frozen=True)
class _Form:
    """What rows are made into; see the module's documentation."""

    form: Form
    actions: Sequence[str]
    only: frozenset[str]
    thinking: bool
    convention: BoxConvention
    min_pixels: int
    max_pixels: int
    only_boxes: bool = False


@dataclass(frozen=True)
class _Gold:
    """What a source reads out of a stored row.

    Attributes:
        position: box or point, as stored; None where the action has none.
        boxes: what the numbers of the position mean.
        size: (width, height) in pixels of the annotated picture, where the record says it.
    """

    image: Any
    instruction: str
    action: str
    position: Sequence[float] | None
    boxes: Boxes
    text: str | None = None
    history: str = "None"
    kept: Mapping[str, Any] | None = None
    size: tuple[float, float] | None = None


def gui_r1(
    split: str,
    *,
    path: str,
    revision: str | None = None,
    subset: str | None = None,
    boxes: Boxes = "unit",
    only_boxes: bool = False,
    form: Form = "gui_r1",
    actions: str | Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    thinking: bool = True,
    completion_convention: BoxConvention | str = BoxConvention.ABSOLUTE_PX,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
) -> Rows:
    """Rows in the schema of GUI-R1: `image`, `instruction`, `history`, `task_type`, `gt_action`, `gt_bbox`,
    `gt_input_text`, and maybe `group` and `ui_type`; the hub set ritzzai/GUI-R1 or local files.

    Args:
        split: as `mmrl_core.data.load_rows`.
        path: a hub name, or a file such as train.parquet or androidcontrol_high_test.parquet.
        revision, subset: of a hub set.
        boxes: what `gt_bbox` means: "unit" in the published training file; "xyxy_px", pixels of the original, in its
            test files (inferred from the published evaluation: unverified).
        only_boxes: keep rows whose position is a box, as UI-R1-E does of the clicks; its rewards know no points.
        actions: default: those of training, by `task_type` ("high", or click alone).
        form, only, thinking, completion_convention, min_pixels, max_pixels: see the module's documentation.

    Returns:
        Rows as in the module's documentation, with `task_type`. A row whose action needs a position and has none is
        broken, and so is one whose position is of another convention.

    Raises:
        TaskDataError: as `load_rows`, or an option is unknown.
    """
    rows = load_rows(path, split=split, revision=revision, subset=subset)

    def read(row: Row) -> _Gold:
        position = coordinates(row["gt_bbox"])
        return _Gold(
            image=row["image"],
            instruction=str(row["instruction"]),
            action=gold_text(row["gt_action"], "gt_action", "the name of an action") or "",
            size=declared_size(row),
            position=position if position and min(position) >= -SLACK else None,
            boxes=boxes,
            text=gold_text(row.get("gt_input_text"), "gt_input_text", "a text"),
            history=str(row.get("history") or "None"),
            kept={name: row.get(name) for name in ("task_type", "group", "ui_type")},
        )

    made_into = _form(form, actions, only, thinking, completion_convention, min_pixels, max_pixels)
    return _made(rows, read, replace(made_into, only_boxes=only_boxes))


def ui_r1(
    split: str,
    *,
    path: str,
    images: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    form: Form = "ui_r1",
    actions: str | Sequence[str] | None = "ui_r1",
    only: Sequence[str] | None = None,
    thinking: bool = True,
    completion_convention: BoxConvention | str = BoxConvention.ABSOLUTE_PX,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
) -> Rows:
    """Rows in the schema of UI-R1: `img_filename` (or `image`), `instruction`, and `bbox` (x1, y1, x2, y2 in pixels of
    the original, of a click) or `action`; the hub set LZXzju/UI-R1-3B-Train or a JSON file.

    Args:
        split: as `mmrl_core.data.load_rows`.
        path: a hub name or a file.
        images: folder that `img_filename` lies in; default: that of the file.
        revision, subset: of a hub set.
        form, actions, only, thinking, completion_convention, min_pixels, max_pixels: see the module's documentation.

    Returns:
        Rows as in the module's documentation.

    Raises:
        TaskDataError: as `load_rows`, the folder is missing, or an option is unknown.
    """
    rows = load_rows(path, split=split, revision=revision, subset=subset)
    folder = _folder(images)

    def read(row: Row) -> _Gold:
        return _Gold(
            image=row["image"] if row.get("image") is not None else row["img_filename"],
            instruction=str(row["instruction"]),
            action=gold_text(row.get("action"), "action", "the name of an action") or "click",
            size=declared_size(row),
            position=coordinates(row.get("bbox")),
            boxes="xyxy_px",
        )

    made_into = _form(form, actions, only, thinking, completion_convention, min_pixels, max_pixels)
    return _made(rows, read, made_into, folder=folder)


def screenspot(
    split: str,
    *,
    path: str,
    images: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    boxes: Boxes | None = None,
    form: Form = "gui_r1",
    actions: str | Sequence[str] | None = "screenspot",
    only: Sequence[str] | None = None,
    thinking: bool = True,
    completion_convention: BoxConvention | str = BoxConvention.ABSOLUTE_PX,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
) -> Rows:
    """Rows of ScreenSpot, ScreenSpot-v2 and ScreenSpot-Pro: `img_filename` (or `image`), `instruction`, `bbox`, and
    `data_type` with `data_source`, or `ui_type` with `group`.

    Args:
        split: as `mmrl_core.data.load_rows`.
        path: a file of annotations, a folder of such, or a hub name.
        images: folder that `img_filename` lies in; default: that of the file.
        revision, subset: of a hub set.
        boxes: "xywh_px" as in the files of ScreenSpot and v2; "xyxy_px" as in those of Pro; "unit", shares of the
            sides, as in conversions on the hub. Default: told from each record, by the columns that only Pro has
            (`img_size`, `application`, `ui_type`), and shares by being none above 1.
        form, actions, only, thinking, completion_convention, min_pixels, max_pixels: see the module's documentation.

    Returns:
        Rows as in the module's documentation. `platform` is mobile, desktop or web, by how the file's name begins
        (mobile, pc, web), else by `data_source`, and of Pro what the row says; `ui_type` is text or icon.

    Raises:
        TaskDataError: as `load_rows`, the folder is missing, or an option is unknown.

    Source: ScreenSpot, arXiv:2401.10935; v2 of OS-Atlas, arXiv:2410.23218; Pro, arXiv:2504.07981.
    """
    rows = load_rows(path, split=split, revision=revision, subset=subset)
    folder = _folder(images)

    def read(row: Row) -> _Gold:
        name = str(row.get("img_filename") or row.get("file_name") or "")
        source = row.get("data_source")
        by_source = PLATFORM_OF_SOURCE.get(str(source), "web" if source is not None else None)
        kept = {
            "platform": row.get("platform") or PLATFORMS.get(Path(name).name.partition("_")[0], by_source),
            "ui_type": row.get("ui_type") or row.get("data_type"),
            "group": row.get("group"),
        }
        return _Gold(
            image=row["image"] if row.get("image") is not None else row["img_filename"],
            instruction=str(row["instruction"]),
            action="click",
            position=coordinates(row["bbox"]),
            boxes=boxes or _screenspot_boxes(row),
            kept=kept,
            size=declared_size(row),
        )

    made_into = _form(form, actions, only, thinking, completion_convention, min_pixels, max_pixels)
    return _made(rows, read, made_into, folder=folder)


def _screenspot_boxes(row: Row) -> Boxes:
    numbers = coordinates(row["bbox"])
    if numbers and max(numbers) <= 1:
        return "unit"
    return "xyxy_px" if any(row.get(column) is not None for column in PRO_COLUMNS) else "xywh_px"


def androidcontrol(
    split: str,
    *,
    path: str,
    images: str | None = None,
    form: Form = "gui_r1",
    actions: str | Sequence[str] | None = "androidcontrol",
    only: Sequence[str] | None = None,
    thinking: bool = True,
    completion_convention: BoxConvention | str = BoxConvention.ABSOLUTE_PX,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
) -> Rows:
    """Rows of the AndroidControl test file that UI-R1 ships: `image`, `task`, and `gt`, an object with the name of the
    action and x and y (click), direction (scroll), text (input_text) or app_name (open_app).

    Unverified: the key of the name in `gt`; "action" and "action_type" are read.

    Args:
        split: as `mmrl_core.data.load_rows`.
        path: the JSON file.
        images: folder that `image` lies in; default: that of the file.
        form: the prompt of "gui_r1" asks for the text and the direction that the metrics compare. quirk: that of UI-R1,
            form "ui_r1", asks for neither, so that its answers are right by name and point alone.
        actions, only, thinking, completion_convention, min_pixels, max_pixels: see the module's documentation.

    Returns:
        Rows as in the module's documentation; positions are points.

    Raises:
        TaskDataError: as `load_rows`, the folder is missing, or an option is unknown.

    Source: AndroidControl, arXiv:2406.03679.
    """
    rows = load_rows(path, split=split)
    folder = _folder(images)

    def read(row: Row) -> _Gold:
        gold = row["gt"]
        return _Gold(
            image=row["image"],
            instruction=str(row["task"]),
            action=gold_text(gold["action"] if "action" in gold else gold["action_type"], "the action") or "",
            size=declared_size(row),
            position=coordinates([gold.get("x"), gold.get("y")]),
            boxes="xyxy_px",
            text=next((gold_text(gold[key], key) for key in ("text", "direction", "app_name") if gold.get(key)), None),
        )

    made_into = _form(form, actions, only, thinking, completion_convention, min_pixels, max_pixels)
    return _made(rows, read, made_into, folder=folder)


def _form(
    form: Form,
    actions: str | Sequence[str] | None,
    only: Sequence[str] | None,
    thinking: bool,
    convention: BoxConvention | str,
    min_pixels: int,
    max_pixels: int,
) -> _Form:
    if form not in ("gui_r1", "ui_r1"):
        raise TaskDataError(f"form is 'gui_r1' or 'ui_r1', not {form!r}")
    if isinstance(actions, str):
        if actions not in ACTION_SETS:
            raise TaskDataError(f"no set of actions is called {actions!r}; there are: {', '.join(ACTION_SETS)}")
        actions = ACTION_SETS[actions]
    try:
        convention = BoxConvention(convention)
    except ValueError as error:
        names = ", ".join(known.value for known in BoxConvention)
        raise TaskDataError(f"completion_convention is one of {names}, not {convention!r}") from error
    if not 0 < min_pixels <= max_pixels:
        raise TaskDataError(f"min_pixels {min_pixels} is more than max_pixels {max_pixels}, or not positive")
    kept = frozenset(action_name(name) or "" for name in only or ())
    return _Form(form, actions or (), kept, thinking, convention, min_pixels, max_pixels)


def _folder(images: str | None) -> Path | None:
    if images is None:
        return None
    folder = Path(images).expanduser()
    if not folder.is_dir():
        raise TaskDataError(f"{images}: no such folder of images")
    return folder.absolute()


def _made(rows: Rows, read: Callable[[Row], _Gold], form: _Form, *, folder: Path | None = None) -> Rows:
    """The rows as a part whose rows are made when read; of `only` and `only_boxes`, others are left out."""
    root = folder or rows.media_root
    chosen = form.only or form.only_boxes
    kept = [index for index in range(len(rows)) if not chosen or _is_kept(rows, index, read, form)]
    return Rows([_GuiRows(rows, kept, read, form, root)], media_root=root)


def _is_kept(rows: Rows, index: int, read: Callable[[Row], _Gold], form: _Form) -> bool:
    try:
        gold = read(rows[index])
        is_asked = not form.only or action_name(gold.action) in form.only
        return is_asked and (not form.only_boxes or len(gold.position or ()) == 4)
    except (TaskDataError, KeyError, TypeError):  # broken; it is set aside when it is read
        return True


class _GuiRows:
    def __init__(
        self, rows: Rows, kept: Sequence[int], read: Callable[[Row], _Gold], form: _Form, root: Path | None
    ) -> None:
        self.rows, self.kept, self.read_gold, self.form, self.root = rows, kept, read, form, root

    def __len__(self) -> int:
        return len(self.kept)

    def where(self, index: int) -> str:
        return self.rows.where(self.kept[index])

    def read(self, index: int) -> Row:
        row = self.rows[self.kept[index]]
        try:
            gold = self.read_gold(row)
        except (KeyError, TypeError) as error:
            raise TaskDataError(
                f"{self.where(index)}: not in the schema of this source ({type(error).__name__}: {error}). "
                f"Columns here: {', '.join(map(str, row))}"
            ) from error
        except TaskDataError as error:
            raise TaskDataError(f"{self.where(index)}: {error}") from error
        try:
            return make_row(gold, self.form, self.root)
        except (MediaError, TaskDataError, ValueError) as error:
            raise TaskDataError(f"{self.where(index)}: {error}") from error


def make_row(gold: _Gold, form: _Form, root: Path | None) -> dict[str, Any]:
    """A row in the columns of this module.

    Raises:
        MediaError: the image cannot be read.
        ValueError: the position is missing, or of another convention.
        TaskDataError: the picture is not the one that was annotated, or nothing tells how it is to be turned.
    """
    frame = picture_frame(gold.image, root or Path.cwd())
    width, height = frame.width, frame.height
    resized = resized_size(width, height, min_pixels=form.min_pixels, max_pixels=form.max_pixels)
    name = action_name(gold.action) or ""
    position = _unit_position(gold, frame) if argument_of(name) == "point" else None
    text = stated_text(gold.text)
    if argument_of(name) == "direction" and text is not None:
        text = text.lower()
    actions = form.actions or ACTION_SETS["gui_r1_high" if _is_high(gold) else "gui_r1_low"]
    offered = next((other for other in actions if action_name(other) == name), name)  # as the prompt spells it
    centre = None if position is None else convert(centre_of(position), form.convention, *resized)
    point = None if centre is None else (centre.x, centre.y)
    pixels = None if position is None else converted(position, BoxConvention.ABSOLUTE_PX, width, height)
    box_px = [0.0] * 4 if pixels is None else [round(number, 2) for number in numbers_of(pixels)]
    row = {
        "image": gold.image,
        "instruction": gold.instruction,
        "history": gold.history,
        "action": name,
        "input_text": text or NO_TEXT,
        "gt_bbox": None if position is None else numbers_of(position),
        "solution": f"<answer>[{{'action': '{name}', 'coordinate': {box_px}}}]</answer>",
        "width": width,
        "height": height,
        "resized_width_px": resized[0],
        "resized_height_px": resized[1],
        "scale": [width / resized[0], height / resized[1]],
        **(gold.kept or {}),
    }
    options: dict[str, Any] = {"actions": actions, "convention": form.convention, "thinking": form.thinking}
    if form.form == "ui_r1":
        shown = f", 'coordinate': {_written(point, form.convention)}" if point is not None else ""
        row["problem"] = ui_r1_prompt(gold.instruction, **options)
        row["answer"] = f"<answer>[{{'action': '{offered}'{shown}}}]</answer>"
    else:
        row["problem"] = gui_r1_prompt(gold.instruction, history=gold.history, **options)
        decimals = 4 if form.convention is BoxConvention.UNIT else 0
        row["answer"] = f"<answer>{action_answer([(offered, point, text)], decimals=decimals)}</answer>"
    return row


def _is_high(gold: _Gold) -> bool:
    return (gold.kept or {}).get("task_type") == "high"


def _written(point: Sequence[float], convention: BoxConvention) -> list[float]:
    return [round(value, 4) if convention is BoxConvention.UNIT else round(value) for value in point]


def _unit_position(gold: _Gold, frame: Frame) -> Position:
    """The position in shares of the sides of the picture as it is shown."""
    numbers = list(gold.position or ())
    if gold.boxes == "xywh_px" and len(numbers) == 4:
        numbers = [numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3]]
    if len(numbers) not in (2, 4):
        raise ValueError(f"the action {gold.action!r} needs a box or point, and there is none")
    placement = frame.place(gold.size)
    # Of the annotated picture, whose sides are swapped where it is shown turned.
    sides = (placement.width, placement.height)
    if placement.orientation in SWAPPING:
        sides = sides[::-1]
    scale = sides if gold.boxes == "unit" else (1.0, 1.0)
    pixels = [number * scale[index % 2] for index, number in enumerate(numbers)]
    shown = placement.box(*pixels) if len(pixels) == 4 else placement.point(*pixels)
    stored = position_of(shown, BoxConvention.ABSOLUTE_PX)
    assert stored is not None
    width, height = placement.width, placement.height
    position = converted(stored, BoxConvention.UNIT, width, height)
    inside = numbers_of(position)
    if len(inside) == 4 and (inside[0] >= inside[2] or inside[1] >= inside[3]):
        raise ValueError(f"the box {numbers} has no area")
    if min(inside) < -SLACK or max(inside) > 1 + SLACK:
        raise ValueError(
            f"{numbers} is outside of the picture of {width:g} x {height:g} px; is boxes={gold.boxes!r} right?"
        )
    return position

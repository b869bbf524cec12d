"""Rows for the demo: small screens of a widget toolkit, drawn on this machine without a download or a display.

pygame-gui draws the widgets: labelled buttons, an entry line, a scroll bar, in a theme of colours. The gold boxes are
the rectangles that the toolkit gives them. A task is to press a button, which may be on the part of the page that is
not shown, or to write a word into the entry line, which takes two steps: a click, then the text. So the action follows
from the screen and from what was done before.

No theme is in both splits. Rows have the columns of `mmrl_gui.data` and a second answer, ``demonstration``: what a
hasty user would have done, who clicks below the widget, and at times clicks instead of scrolling. A supervised cold
start on it leaves a policy that imitates those mistakes; the reward reads the gold, so GRPO can undo them.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmrl_core.data import read_parquet, write_parquet
from mmrl_core.errors import TaskDataError
from mmrl_core.starting_model import cache_folder
from mmrl_core.testing import TOKEN_PX, check_size_px
from mmrl_gui.actions import NO_TEXT
from mmrl_gui.parsing import action_answer

if TYPE_CHECKING:
    import pyarrow

Split = Literal["train", "held_out"]
Kind = Literal["press", "scroll", "focus", "write"]
BoxPx = tuple[int, int, int, int]

LABELS = ("Save", "Open", "Find", "Help", "Mail", "Play", "Edit", "Stop")  # of buttons
WORDS = ("red", "blue", "green", "black", "white", "pink")  # to write
KINDS: tuple[Kind, ...] = ("press", "scroll", "focus", "write")
PROBLEM = "Task: {instruction}. Done: {history}."
FOCUSED = "click the field"  # history of a row whose entry line has been clicked
GRID_PX = 4  # demonstrated points are multiples of this

FORMAT_VERSION = 2  # part of the cache key: raise it when the same options would give other rows
NUM_THEMES = {"train": 24, "held_out": 8}
LAYOUT_PX = 14  # widgets lie on multiples of this, so that a label looks the same wherever its button is
BUTTON_PX = (56, 28)
FIELD_PX = (70, 28)
BAR_PX = 14
PLACEMENT_TRIES = 40


@dataclass(frozen=True)
class ScreenOptions:
    """How screens look, and how hasty the demonstrations are.

    Attributes:
        size_px: side of the square screen, pixels; a multiple of 28 reaches the model without being resized.
        max_buttons: a screen shows 2..max_buttons, as far as they fit.
        overshoot: how far below the centre of a widget the hasty user clicks, as a share of its height; the edge is at
            0.5.
        jitter: standard deviation around that, of both axes, same unit.
        wrong_scroll_share: share of the rows to scroll in which the hasty user clicks a button instead.
    """

    size_px: int
    max_buttons: int
    overshoot: float
    jitter: float
    wrong_scroll_share: float


@dataclass(frozen=True)
class Screen:
    """What was drawn.

    Attributes:
        png: the file.
        buttons: label -> box, pixels.
        field: box of the entry line, pixels.
        bar: box of the scroll bar, pixels.
        at_end: the scroll bar stands at the end of the page; else at its beginning.
    """

    png: bytes
    buttons: dict[str, BoxPx]
    field: BoxPx
    bar: BoxPx
    at_end: bool


def widget_screens(
    split: Split,
    *,
    num_rows: int,
    seed: int = 0,
    size_px: int = 112,
    max_buttons: int = 3,
    overshoot: float = 0.6,
    jitter: float = 0.25,
    wrong_scroll_share: float = 0.25,
    cache_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Rows of one split, read from a parquet file that is written when first asked for.

    A row depends on (options, seed, split, its index) only, so a longer set starts with the rows of a shorter one. Four
    kinds take turns: press a button, scroll to one that is not shown, click the entry line, write into it.

    Args:
        split: "train" or "held_out".
        num_rows: length of the set.
        seed: of screens, tasks and demonstrations.
        size_px, max_buttons, overshoot, jitter, wrong_scroll_share: see ``ScreenOptions``.
        cache_dir: folder of the parquet files; default: the environment variable MMRL_CACHE, else ~/.cache/mmrl.

    Returns:
        Rows with the columns of `mmrl_gui.data`: image, problem, instruction, history, action, input_text, gt_bbox,
        width, height, resized_width_px, resized_height_px, answer; and demonstration, kind, and the widgets: buttons
        {"label", "box_px"}, field_px, bar_px, at_end.

    Raises:
        TaskDataError: unknown split, a value out of range, a cache folder that cannot be written, or pygame-gui is
            missing.
    """
    options = ScreenOptions(size_px, max_buttons, overshoot, jitter, wrong_scroll_share)
    _check(split, num_rows, options)
    path = _cache_path(cache_dir, split, num_rows, seed, options)
    if not path.is_file():
        painter = Painter(options)
        rows = [make_row(split, index, seed, options, painter) for index in range(num_rows)]
        write_parquet(rows, path, schema=_schema())
    return read_parquet(path, schema=_schema(), remade=True)


def make_row(split: Split, index: int, seed: int, options: ScreenOptions, painter: Painter) -> dict[str, Any]:
    """Draw one row; see ``widget_screens`` for its columns."""
    rng = random.Random(f"{seed}/{split}/{index}")
    kind = KINDS[index % len(KINDS)]
    labels = list(LABELS)
    rng.shuffle(labels)
    screen = painter.draw(f"{split}/{rng.randrange(NUM_THEMES[split])}", labels, rng)
    shown = list(screen.buttons)
    word = rng.choice(WORDS)
    history = FOCUSED if kind == "write" else "None"
    box, text = None, None
    if kind in ("press", "scroll"):
        hidden = [label for label in LABELS if label not in shown]
        label = rng.choice(shown if kind == "press" else hidden)
        instruction = f"press {label}"
        box = screen.buttons.get(label)
        text = None if box else ("up" if screen.at_end else "down")
    else:
        instruction = f"write {word}"
        box = screen.field if kind == "focus" else None
        text = word if kind == "write" else None
    name = "click" if box else "scroll" if kind == "scroll" else "type"
    gold = (name, None if box is None else _centre(box), text)
    side = options.size_px
    return {
        "image": {"bytes": screen.png, "path": f"{split}-{seed}-{index}.png"},
        "problem": PROBLEM.format(instruction=instruction, history=history),
        "instruction": instruction,
        "history": history,
        "action": name,
        "input_text": text or NO_TEXT,
        "gt_bbox": None if box is None else [number / side for number in box],
        "width": side,
        "height": side,
        "resized_width_px": side,
        "resized_height_px": side,
        "answer": f"<answer>{action_answer([gold])}</answer>",
        "demonstration": f"<answer>{action_answer([_hasty(gold, box, screen, options, rng)])}</answer>",
        "kind": kind,
        "buttons": [{"label": label, "box_px": list(found)} for label, found in screen.buttons.items()],
        "field_px": list(screen.field),
        "bar_px": list(screen.bar),
        "at_end": screen.at_end,
    }


def _hasty(
    gold: tuple[str, Sequence[float] | None, str | None],
    box: BoxPx | None,
    screen: Screen,
    options: ScreenOptions,
    rng: random.Random,
) -> tuple[str, Sequence[float] | None, str | None]:
    """What the hasty user does instead of the gold action."""
    is_wrong = rng.random() < options.wrong_scroll_share
    if gold[0] == "scroll" and is_wrong:
        box = rng.choice(list(screen.buttons.values()))
    if box is None:
        return gold
    x, y = _centre(box)
    height = box[3] - box[1]
    point = (x + rng.gauss(0, options.jitter) * height, y + rng.gauss(options.overshoot, options.jitter) * height)
    last = options.size_px - 1
    return (
        "click",
        [min(last // GRID_PX * GRID_PX, max(0, round(number / GRID_PX) * GRID_PX)) for number in point],
        None,
    )


def _centre(box: BoxPx) -> tuple[int, int]:
    return (box[0] + box[2]) // 2, (box[1] + box[3]) // 2


class Painter:
    """Draws screens by pygame-gui, without a display.

    Raises:
        TaskDataError: pygame-gui is missing.
    """

    def __init__(self, options: ScreenOptions) -> None:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # without it, SDL looks for a screen
        try:
            import pygame
            import pygame_gui
        except ImportError as error:
            raise TaskDataError(
                f"the demo's screens are drawn by pygame-gui ({error}). Try: pip install pygame-ce pygame-gui"
            ) from error
        pygame.display.init()
        pygame.font.init()
        self.size = (options.size_px, options.size_px)
        pygame.display.set_mode(self.size)
        self.options = options
        self.pygame, self.gui = pygame, pygame_gui
        self.managers: dict[str, tuple[Any, Any]] = {}  # theme -> manager, colour of the background
        self.bars: dict[tuple[str, bool], Any] = {}

    def draw(self, theme: str, labels: Sequence[str], rng: random.Random) -> Screen:
        """A screen in the colours of a theme, with as many of the labels as fit, at most ``max_buttons``."""
        manager, background = self._manager(theme)
        elements, rect = self.gui.elements, self.pygame.Rect
        side = self.options.size_px
        at_end = rng.random() < 0.5
        bar = self._bar(theme, at_end)
        taken: list[Any] = []
        field_rect = self._free_place(FIELD_PX, taken, rng)
        assert field_rect is not None  # the first widget always fits
        field = elements.UITextEntryLine(field_rect, manager, placeholder_text="text")
        buttons = {}
        for label in labels[: rng.randint(2, self.options.max_buttons)]:
            place = self._free_place(BUTTON_PX, taken, rng)
            if place is not None:
                buttons[label] = elements.UIButton(place, label, manager)
        manager.update(0.01)
        surface = self.pygame.Surface(self.size)
        surface.fill(background)
        manager.draw_ui(surface)
        bar_rect = rect(side - BAR_PX, 0, BAR_PX, side)
        surface.blit(bar, bar_rect)
        screen = Screen(
            png=self._png(surface),
            buttons={label: _box(button.get_abs_rect()) for label, button in buttons.items()},
            field=_box(field.get_abs_rect()),
            bar=_box(bar_rect),
            at_end=at_end,
        )
        manager.clear_and_reset()
        return screen

    def _bar(self, theme: str, at_end: bool) -> Any:
        """The scroll bar of a theme; kept, since making one takes as long as all else on a screen.

        To be called while the manager has no elements.
        """
        if (theme, at_end) not in self.bars:
            manager, background = self._manager(theme)
            place = self.pygame.Rect(0, 0, BAR_PX, self.options.size_px)
            bar = self.gui.elements.UIVerticalScrollBar(place, 0.4, manager)
            bar.set_scroll_from_start_percentage(0.6 if at_end else 0.0)
            manager.update(0.01)
            surface = self.pygame.Surface(place.size)
            surface.fill(background)
            manager.draw_ui(surface)
            manager.clear_and_reset()
            self.bars[theme, at_end] = surface
        return self.bars[theme, at_end]

    def _free_place(self, size: tuple[int, int], taken: list[Any], rng: random.Random) -> Any | None:
        """A rectangle that touches none of those taken, to which it is added; None if none is found."""
        side = self.options.size_px
        for _ in range(PLACEMENT_TRIES):
            left = LAYOUT_PX * rng.randint(0, (side - BAR_PX - size[0]) // LAYOUT_PX)
            top = LAYOUT_PX * rng.randint(0, (side - size[1]) // LAYOUT_PX)
            place = self.pygame.Rect(left, top, *size)
            if place.collidelist(taken) < 0:
                taken.append(place)
                return place
        return None

    def _manager(self, theme: str) -> tuple[Any, Any]:
        if theme not in self.managers:
            colours, background = theme_colours(theme)
            manager = self.gui.UIManager(self.size, theme_path={"defaults": {"colours": colours}})
            self.managers[theme] = manager, self.pygame.Color(background)
        return self.managers[theme]

    def _png(self, surface: Any) -> bytes:
        from PIL import Image

        file = io.BytesIO()
        Image.frombytes("RGB", self.size, self.pygame.image.tobytes(surface, "RGB")).save(file, format="PNG")
        return file.getvalue()


def theme_colours(theme: str) -> tuple[dict[str, str], str]:
    """Colours of a theme by pygame-gui's names, and that of the background: one hue, light or dark."""
    rng = random.Random(theme)
    hue, is_dark = rng.random(), rng.random() < 0.5

    def colour(lightness: float, saturation: float = 0.3) -> str:
        lightness = 1 - lightness if is_dark else lightness
        return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, lightness, saturation))

    button = rng.uniform(0.68, 0.85)
    colours = {
        "normal_bg": colour(button),
        "hovered_bg": colour(button),
        "dark_bg": colour(rng.uniform(0.93, 1.0)),
        "normal_text": colour(0.05),
        "hovered_text": colour(0.05),
        "normal_border": colour(0.45),
        "unselected_bar": colour(0.45),
    }
    return colours, colour(rng.uniform(0.9, 0.97))


def _box(rect: Any) -> BoxPx:
    return rect.left, rect.top, rect.right, rect.bottom


def _check(split: str, num_rows: int, options: ScreenOptions) -> None:
    problems = {
        f"split {split!r} is none of {', '.join(NUM_THEMES)}": split not in NUM_THEMES,
        f"num_rows is {num_rows}, below 1": num_rows < 1,
        f"size_px is {options.size_px}, below {4 * TOKEN_PX}": options.size_px < 4 * TOKEN_PX,
        f"max_buttons is {options.max_buttons}, not within 2..{len(LABELS) - 1}": not (
            2 <= options.max_buttons < len(LABELS)
        ),
        f"wrong_scroll_share is {options.wrong_scroll_share}, not within 0..1": not (
            0 <= options.wrong_scroll_share <= 1
        ),
    }
    wrong = [problem for problem, is_wrong in problems.items() if is_wrong]
    if wrong:
        raise TaskDataError(f"widget_screens: {'; '.join(wrong)}.")
    check_size_px(options.size_px)


def _cache_path(cache_dir: str | Path | None, split: str, num_rows: int, seed: int, options: ScreenOptions) -> Path:
    folder = Path(cache_dir or cache_folder()).absolute()
    key = {"version": FORMAT_VERSION, "split": split, "num_rows": num_rows, "seed": seed, **asdict(options)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder / "widget_screens" / f"{split}-{digest}.parquet"


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    box, text, number = pa.list_(pa.int32()), pa.string(), pa.int32()
    return pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": text}),
            **dict.fromkeys(("problem", "instruction", "history", "action", "input_text"), text),
            "gt_bbox": pa.list_(pa.float64()),
            **dict.fromkeys(("width", "height", "resized_width_px", "resized_height_px"), number),
            **dict.fromkeys(("answer", "demonstration", "kind"), text),
            "buttons": pa.list_(pa.struct({"label": text, "box_px": box})),
            "field_px": box,
            "bar_px": box,
            "at_end": pa.bool_(),
        }
    )

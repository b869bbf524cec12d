"""The action space: every action, the arguments it takes, and which of them each benchmark offers.

The names are those of GUI-R1 (arXiv:2504.10458); UI-R1 (arXiv:2503.21620) and other data use further spellings of the
same actions, which `action_name` maps to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Argument = Literal["point", "text", "direction"]

DIRECTIONS = ("up", "down", "left", "right")
NO_TEXT = "no input text"  # stands in `input_text` where an action has no text
NO_POINT = (-100, -100)  # stands in `point` where an action points nowhere


@dataclass(frozen=True)
class ActionType:
    """An action of the space.

    Attributes:
        name: as answers write it.
        argument: what it needs: a point on the screen, a text, a direction, or nothing.
        text_required: a format reward refuses it with the filler in place of its text.
    """

    name: str
    argument: Argument | None = None
    text_required: bool = False


ACTIONS = {
    action.name: action
    for action in (
        ActionType("click", "point"),
        ActionType("doubleclick", "point"),
        ActionType("rightclick", "point"),
        ActionType("long_press", "point"),
        ActionType("moveto", "point"),
        ActionType("type", "text", text_required=True),
        ActionType("select", "text", text_required=True),
        ActionType("open_app", "text", text_required=True),
        ActionType("hotkey", "text"),
        ActionType("scroll", "direction"),
        ActionType("enter"),
        ActionType("press_back"),
        ActionType("press_home"),
        ActionType("press_recent"),
        ActionType("press_tab"),
        ActionType("press_space"),
        ActionType("press_down"),
        ActionType("press_pgdn"),
        ActionType("close/delete"),
        ActionType("wait"),
        ActionType("complete"),
        ActionType("impossible"),
    )
}

ALIASES = {
    "tap": "click",
    "double_click": "doubleclick",
    "right_click": "rightclick",
    "move_to": "moveto",
    "input_text": "type",
    "press_enter": "enter",
    "navigate_back": "press_back",
    "navigate_home": "press_home",
}

_OFFERED = {
    "gui_r1_high": "complete close/delete press_home click press_back type select scroll enter",
    "gui_r1_low": "click",
    "ui_r1": "click open_app scroll navigate_back input_text",
    "screenspot": "click",
    "androidcontrol": "wait long_press click press_back type open_app scroll",
    "guiact_web": "scroll click complete",
    "guiodyssey": "press_back press_recent press_home complete long_press scroll click impossible type",
    "omniact_desktop": "click moveto press_pgdn",
    "omniact_web": ("press_tab moveto rightclick press_enter scroll click press_down hotkey press_space doubleclick"),
}
ACTION_SETS = {name: tuple(offered.split()) for name, offered in _OFFERED.items()}
"""Actions that a prompt offers, by training data or benchmark, as the published prompts list them."""


def action_name(text: object) -> str | None:
    """The name of an action in the one spelling of this module; None if `text` is no string or blank.

    Case, blanks around it and the spellings in ALIASES make no difference. A name that is in no list stays itself.

    quirk of the published code: names compare case-sensitively (UI-R1), and `close/delete` can never be read (GUI-R1).

    >>> action_name(" Navigate_Back ")
    'press_back'
    """
    if not isinstance(text, str) or not (name := text.strip().lower()):
        return None
    return ALIASES.get(name, name)


def argument_of(name: str | None) -> Argument | None:
    """What an action needs, by any of its spellings; None for actions without argument and unknown ones."""
    action = ACTIONS.get(action_name(name) or "")
    return action.argument if action is not None else None

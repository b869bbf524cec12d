"""Prompt texts. Training and evaluation share them, with the list of actions as a parameter.

They ask for what the published prompts ask for, in our own words, and name the same answer formats. (quirks of the
published prompts: an image placeholder written out in the text of the evaluation, other names and lists in training
than in evaluation, and pseudo code such as enum[...] in the place of a sample.)

The picture stands before the text. (Published, GUI-R1: inside of the first sentence.)
"""

from __future__ import annotations

from collections.abc import Sequence

from mmrl_core.media import BoxConvention
from mmrl_gui.actions import DIRECTIONS, NO_POINT, NO_TEXT, argument_of
from mmrl_gui.parsing import action_answer

_UNITS = {
    BoxConvention.ABSOLUTE_PX: "whole pixels of the screenshot",
    BoxConvention.PER_MILLE: "whole numbers from 0 to 1000, thousandths of the screenshot's width and height",
    BoxConvention.UNIT: "numbers from 0 to 1, shares of the screenshot's width and height",
}


def gui_r1_prompt(
    instruction: str,
    *,
    actions: Sequence[str],
    history: str = "None",
    convention: BoxConvention | str = BoxConvention.ABSOLUTE_PX,
    thinking: bool = True,
) -> str:
    """Ask for the next action of a task: a list of one object with `action`, `point` and `input_text`.

    Args:
        instruction: the task, or the name of an element.
        actions: names of those that may be answered.
        history: what was done before; "None" if nothing.
        convention: what the numbers of a point mean.
        thinking: ask for a think block, which the format reward looks for.
    """
    units = _UNITS[BoxConvention(convention)]
    of_kind = {kind: [name for name in actions if argument_of(name) == kind] for kind in ("point", "text", "direction")}
    rules = []
    if of_kind["point"]:
        rules.append(f"For {_listed(of_kind['point'])}, 'point' is the place [x, y], in {units}.")
    rules.append(f"Where an action needs no place, 'point' is {list(NO_POINT)}.")
    if of_kind["text"]:
        rules.append(f"For {_listed(of_kind['text'])}, 'input_text' is the text.")
    if of_kind["direction"]:
        rules.append(f"For {_listed(of_kind['direction'])}, 'input_text' is one of {', '.join(DIRECTIONS)}.")
    rules.append(f"Where an action needs no text, 'input_text' is '{NO_TEXT}'.")
    samples = [action_answer([sample]) for sample in _samples(actions)]
    return (
        f"You are GUI-R1, an agent that operates a graphical user interface. The task is '{instruction}'. "
        f"What was done so far: '{history}'. Choose the one next action, out of: {', '.join(actions)}.\n"
        f"{' '.join(rules)}\n"
        + _form("[{'action': name, 'point': [x, y], 'input_text': text}]", thinking)
        + f" Samples of an answer: {' or '.join(samples)}."
    )


def ui_r1_prompt(
    instruction: str,
    *,
    actions: Sequence[str],
    convention: BoxConvention | str = BoxConvention.ABSOLUTE_PX,
    thinking: bool = True,
) -> str:
    """Ask for the action of one command: a list of one object with `action` and, for a click, `coordinate`.

    Args:
        instruction, actions, convention, thinking: as in `gui_r1_prompt`.
    """
    units = _UNITS[BoxConvention(convention)]
    samples = ["[{'action': 'click', 'coordinate': [123, 456]}]"]
    samples += [f"[{{'action': '{name}'}}]" for name in actions if name == "scroll"]
    return (
        f"Which action does the command '{instruction}' ask for on this screenshot? The actions are: "
        f"{', '.join(actions)}. A click needs the place of the cursor, 'coordinate', in {units}.\n"
        + _form("[{'action': name, 'coordinate': [x, y]}]", thinking)
        + f" Samples of an answer: {' or '.join(samples)}. Keep strictly to this form."
    )


def _form(answer: str, thinking: bool) -> str:
    think = "<think>your reasoning</think> " if thinking else ""
    order = "Reason first, then answer, exactly" if thinking else "Reply exactly"
    return f"{order} in this form: {think}<answer>{answer}</answer>."


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"


def _samples(actions: Sequence[str]) -> list[tuple[str, Sequence[float] | None, str | None]]:
    """One answer of each kind that is offered."""
    of_kind: dict[str | None, tuple[str, Sequence[float] | None, str | None]] = {}
    for name in actions:
        kind = argument_of(name)
        point = (123, 300) if kind == "point" else None
        text = {"text": "shanghai shopping mall", "direction": "down"}.get(kind or "")
        of_kind.setdefault(kind, (name, point, text))
    return list(of_kind.values())

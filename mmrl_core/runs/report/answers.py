"""All held-out answers of the report, as data for its script: filtered, sorted, searched and paged in the page.

A *set* is what one evaluation at one temperature answered. The page shows two sets side by side, of one run or of two.
Runs that noted only the first prompts, as versions before 0.2 did, have sets of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from mmrl_core.runs.charts import rounded
from mmrl_core.runs.intervals import mean_interval
from mmrl_core.runs.report.media import Media, is_area
from mmrl_core.runs.report.reading import Record, RunFiles, list_of, mapping_of
from mmrl_core.runs.report.text import name_of, number_of, readable, visible
from mmrl_core.runs.rollouts import RolloutFile, read_json_lines

MAX_TEXT_CHARS = 1_200_000  # of all answers together
MAX_ANSWER_CHARS = 4_000
MAX_PICTURE_CHARS = 1_100_000  # of all small pictures together, in base64
MAX_REWARDS = 8
MAX_SHAPES = 24


@dataclass
class AnswerTable:
    """Prompts and sets, as the script takes them.

    Attributes:
        prompts: each once, by the place of its id.
        left_out: what did not fit into the page, a sentence each.
    """

    prompts: list[dict[str, Any]] = field(default_factory=list)
    sets: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def answer_table(runs: Sequence[RunFiles], media: Sequence[Media]) -> AnswerTable:
    """The sets of all runs that fit into the page, in the order of their steps; the newest and the oldest go first.

    Args:
        media: of each run.
    """
    table, places, room = AnswerTable(), dict[tuple[str, str], int](), MAX_TEXT_CHARS
    found: dict[int, tuple[dict[str, Any], list[tuple[int, Record]]]] = {}
    files = [(number, file) for number, run in enumerate(runs) for file in _files_of(run)]
    for position in _by_importance(files):
        number, file = files[position]
        kept, left, is_whole = _within(file, room)
        if not is_whole and found:
            table.left_out.append(f"{_label(runs[number], file)} is in rollouts/{file.path.name}.")
            continue
        if not is_whole:
            table.left_out.append(f"More than these {len(kept):,} answers are in rollouts/{file.path.name}.")
        room = left
        placed = [(_place(line, places, table.prompts), line) for line in kept]
        if placed:
            found[position] = _set_of(runs, number, file, placed), placed
    chosen = [found[position] for position in sorted(found)]
    table.sets = [told for told, _ in chosen]
    _embed_pictures(table, chosen, media)
    _draw_shapes(table, chosen, media)
    return table


def _files_of(run: RunFiles) -> list[RolloutFile]:
    """Files of all answers, or where the run has none those of the first prompts."""
    by_split = {split: [file for file in run.files if file.split == split] for split in ("answers", "held_out")}
    return by_split["answers"] or by_split["held_out"]


def _by_importance(files: Sequence[tuple[int, RolloutFile]]) -> list[int]:
    """Positions of the files: of each run the last and the first at the lowest temperature, then the others."""
    by_run: dict[int, list[int]] = {}
    for position, (run, _) in enumerate(files):
        by_run.setdefault(run, []).append(position)
    first: list[int] = []
    for own in by_run.values():
        coolest = min(files[position][1].temperature or 0.0 for position in own)
        cool = [position for position in own if (files[position][1].temperature or 0.0) == coolest]
        first += [cool[-1], cool[0]]
    return list(dict.fromkeys([*first, *reversed(range(len(files)))]))


def _size(line: Record) -> int:
    texts = [line.get(key) for key in ("completion", "prompt", "answer")]
    return 80 + sum(min(len(text), MAX_ANSWER_CHARS) for text in texts if isinstance(text, str))


def _within(file: RolloutFile, room: int) -> tuple[list[Record], int, bool]:
    """The first lines of a file that fit, the room that they leave, and whether they are all. No more is read."""
    kept: list[Record] = []
    for line in read_json_lines(file.path):
        room -= _size(line)
        if room < 0 and kept:
            return kept, 0, False
        kept.append(line)
    return kept, max(room, 0), True


def _place(line: Record, places: dict[tuple[str, str], int], prompts: list[dict[str, Any]]) -> int:
    """Of the prompt of a line, which is added where it is new; other tasks may have the same ids."""
    key = name_of(line.get("prompt_id", "")), _text(line.get("prompt"))
    if key not in places:
        places[key] = len(prompts)
        gold = line.get("gold")
        gold = gold if isinstance(gold, str) else line.get("answer")
        prompts.append({"id": key[0], "prompt": key[1], "gold": _text(gold)})
    return places[key]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else ""
    left_out = len(text) - MAX_ANSWER_CHARS
    return visible(text if left_out <= 0 else f"{text[:MAX_ANSWER_CHARS]} … {left_out:,} more characters")


def _label(run: RunFiles, file: RolloutFile) -> str:
    labels = {one.step: one.label for one in run.evaluations}
    warmth = "greedy" if not file.temperature else f"T = {file.temperature:g}"
    return f"{labels.get(file.step) or f'step {file.step}'}, {warmth}"


def _set_of(
    runs: Sequence[RunFiles], number: int, file: RolloutFile, placed: Sequence[tuple[int, Record]]
) -> dict[str, Any]:
    names = list(dict.fromkeys(name for _, line in placed for name in mapping_of(line, "rewards")))[:MAX_REWARDS]
    by_prompt: dict[int, list[float]] = {}
    for place, line in placed:
        if isinstance(line.get("correct"), bool):
            by_prompt.setdefault(place, []).append(float(line["correct"]))
    shares = [fmean(own) for own in by_prompt.values()]
    interval = mean_interval(shares)
    label = _label(runs[number], file)
    return {
        "label": f"{runs[number].name}: {label}" if len(runs) > 1 else label,
        "run": number,
        "step": file.step,
        "right": rounded([fmean(shares)])[0] if shares else None,
        "interval": rounded(interval) if interval else None,
        "rewards": list(readable(names).values()),
        "rows": [_row(place, line, names) for place, line in placed],
    }


def _row(place: int, line: Record, names: Sequence[str]) -> dict[str, Any]:
    """An answer; what is not known or as usual is left out, because there are thousands."""
    rewards: Mapping[str, Any] = mapping_of(line, "rewards")
    values = [number_of(rewards.get(name)) for name in names]
    total, tokens = number_of(line.get("total")), number_of(line.get("num_tokens"))
    row = {
        "p": place,
        "text": _text(line.get("completion")),
        "said": _text(line.get("said")) or None,
        "ok": line["correct"] if isinstance(line.get("correct"), bool) else None,
        "total": None if total is None else rounded([total])[0],
        "tokens": None if tokens is None else rounded([tokens])[0],
        "cut": line.get("truncated") is True or None,
        "rewards": [None if value is None else rounded([value])[0] for value in values] if len(names) > 1 else None,
    }
    return {key: value for key, value in row.items() if value is not None}


class _Pictures:
    """Embeds small pictures of several runs, as long as there is room for them."""

    def __init__(self, media: Sequence[Media]) -> None:
        self._media = media
        self.room = MAX_PICTURE_CHARS

    def of(self, run: int, path: Any) -> dict[str, Any]:
        """The id and size of a picture; nothing where there is none, or no room."""
        if not isinstance(path, str) or self.room <= 0:
            return {}
        number = len(self._media[run].embedded)
        picture = self._media[run].small(path)
        if picture is None:
            return {}
        if len(self._media[run].embedded) > number:
            self.room -= len(picture["uri"])
        return {"picture": picture["id"], "size": [picture["width"], picture["height"]]}


Chosen = Sequence[tuple[dict[str, Any], Sequence[tuple[int, Record]]]]
"""Sets, each with the place of the prompt and the line of each of its rows."""


def _embed_pictures(table: AnswerTable, chosen: Chosen, media: Sequence[Media]) -> None:
    """Embed pictures of prompts, first those that the newest set has wrong, and pictures that a policy made."""
    pictures = _Pictures(media)
    first: dict[int, tuple[int, Record]] = {}
    for told, placed in chosen:
        for place, line in placed:
            first.setdefault(place, (told["run"], line))
    wrong = {place for _, placed in chosen[-1:] for place, line in placed if line.get("correct") is not True}
    for place in sorted(first, key=lambda place: (place not in wrong, place)):
        run, line = first[place]
        table.prompts[place] |= pictures.of(run, next(iter(list_of(line, "media")), None))
    for told, placed in reversed(chosen):
        for (_, line), row in zip(placed, told["rows"], strict=True):
            if made := pictures.of(told["run"], line.get("completion_media")):
                row["made"] = made
    if pictures.room <= 0:
        table.left_out.append("More pictures are in rollouts/media/.")


def _draw_shapes(table: AnswerTable, chosen: Chosen, media: Sequence[Media]) -> None:
    """Note what the view of a run draws on the pictures of prompts that are embedded."""
    for told, placed in chosen:
        for (place, line), row in zip(placed, told["rows"], strict=True):
            prompt = table.prompts[place]
            if "picture" not in prompt:
                continue
            areas = [shape for shape in media[told["run"]].shapes(line) if is_area(shape) and shape["medium"] == 0]
            drawn = {style: [_shape(one) for one in areas if one["style"] == style] for style in ("gold", "predicted")}
            prompt.setdefault("shapes", drawn["gold"][:MAX_SHAPES])
            if drawn["predicted"]:
                row["shapes"] = drawn["predicted"][:MAX_SHAPES]


def _shape(area: Mapping[str, Any]) -> list[Any]:
    """[x, y, width, height, label], in percent of the picture; a point has no width and height."""
    sides = [] if area["is_point"] else [area["width"], area["height"]]
    return [area["x"], area["y"], *sides, visible(area["label"])]

"""Data source of FIND: prompts alone. There is no data set; what a prompt is worth, a reward says."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmrl_core.data import DEFAULT_SPLIT, Row, Rows, load_rows, parse_split
from mmrl_core.errors import TaskDataError

BUILT_IN: Mapping[str, Sequence[tuple[str, str]]] = {
    "comparison": (
        ("colour", "A green dog is running on the grass"),
        ("composition", "A dog and a cat"),
        ("count", "Four pandas"),
        ("location", "A dog on the moon"),
    ),
    "ablation": (("composition", "A red book and a yellow vase"),),
    "video": (
        ("colour", "A green dog is running"),
        ("location", "A dog is running on the moon"),
        ("direction", "A panda is walking from left to right"),
        ("behaviour", "A monkey is playing the guitar"),
    ),
    "skills": (
        ("colour", "A purple banana"),
        ("colour", "A white crow on a black fence"),
        ("colour", "A blue strawberry beside a pink lemon"),
        ("colour", "An orange car in front of a turquoise house"),
        ("colour", "A silver fish in a golden bowl"),
        ("colour", "A cow with green and white spots"),
        ("colour", "A brown umbrella and a red bicycle"),
        ("colour", "A yellow elephant with grey ears"),
        ("count", "Two owls on a branch"),
        ("count", "Three red balloons"),
        ("count", "Four boats on a lake"),
        ("count", "Five eggs in a nest"),
        ("count", "Six candles on a table"),
        ("count", "One horse and two foals"),
        ("count", "Three cups and two spoons"),
        ("count", "A room without any chair but with seven lamps"),
        ("position", "A cat to the left of a dog"),
        ("position", "A clock above a piano"),
        ("position", "A ball under a bench"),
        ("position", "A bird behind a window"),
        ("position", "A teapot on top of a stack of books"),
        ("position", "A tree to the right of a tent"),
        ("position", "A suitcase between two chairs"),
        ("position", "A tractor in front of a castle"),
        ("text", "A street sign that says 'NORTH'"),
        ("text", "The word 'HELLO' written in the sand"),
        ("text", "A cake with the number 7 on it"),
        ("text", "A shop window with the word 'OPEN'"),
        ("text", "A book whose title is 'Rivers'"),
        ("text", "A mug with the letter B"),
        ("text", "A banner that reads 'Welcome home'"),
        ("text", "A train with '42' painted on its front"),
    ),
}
"""Lists by name, (category, prompt). `comparison`, `ablation` and `video` are those that FIND (arXiv:2407.19453) is
compared on, the video prompts in our words; of the ablation's two prompts the long portrait is left out. `skills` is
ours, in the manner of DrawBench and PaintSkills, eight prompts for each category."""


def prompts(
    split: str = DEFAULT_SPLIT, *, prompts: str | Sequence[str], repeat: int = 1, column: str = "prompt"
) -> Rows:
    """Rows of prompts: all of them once, then all again, `repeat` times; so that the first rows show every prompt.

    Args:
        split: "train", maybe with a range of the rows; a file may be another split, as in `mmrl_core.data.load_rows`.
        prompts: a list of texts; or the name of a built-in list (see BUILT_IN); or a local file: .txt with a prompt on
            each line, or .jsonl, .json, .csv, .tsv or .parquet with a column of prompts.
        repeat: rows for each prompt. In evaluation, where a row is one picture, this many pictures, each with noise of
            its own.
        column: of the prompts in a file.

    Returns:
        Rows with `prompt`; `category`, None if nothing says it; `repeat`, 0 for the first row of a prompt; and all
        other columns of a file.

    Raises:
        TaskDataError: no such list, file, split or column; no prompts, or something else among them; or repeat below 1.

    >>> [row["prompt"] for row in prompts("train[:3]", prompts=["a cat", "a dog"], repeat=2)]
    ['a cat', 'a dog', 'a cat']
    """
    if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
        raise TaskDataError(f"prompts: repeat is {repeat!r}; it is the number of rows for each prompt, 1 or more.")
    name, *ends = parse_split(split)
    records: list[tuple[Row, str]]
    if not isinstance(prompts, str):
        records = [({"prompt": prompt}, f"prompts[{index}]") for index, prompt in enumerate(prompts)]
    elif prompts in BUILT_IN:
        records = [({"prompt": prompt, "category": category}, prompts) for category, prompt in BUILT_IN[prompts]]
    elif (path := _file(prompts)).suffix.lower() == ".txt":
        records = _read_lines(path)
    else:
        records, name = _read_rows(path, name, column), DEFAULT_SPLIT
    if name != DEFAULT_SPLIT:
        raise TaskDataError(f"prompts: a list has no split {name!r}; write {DEFAULT_SPLIT}, maybe with a range.")
    for row, where in records:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise TaskDataError(f"{where}: {row['prompt']!r} is no prompt.")
    if not records:
        raise TaskDataError(f"prompts: {prompts!r} holds none.")
    return Rows([_Repeated(records, repeat)]).select_range(*ends)


class _Repeated:
    def __init__(self, records: Sequence[tuple[Row, str]], repeat: int) -> None:
        self._records, self._repeat = records, repeat

    def __len__(self) -> int:
        return len(self._records) * self._repeat

    def read(self, index: int) -> Row:
        repeat, number = divmod(index, len(self._records))
        return {"category": None, **self._records[number][0], "repeat": repeat}

    def where(self, index: int) -> str:
        return self._records[index % len(self._records)][1]


def _file(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        close = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Built-in lists: {', '.join(BUILT_IN)}."
        raise TaskDataError(f"prompts: {name!r} is neither a built-in list nor a file. {hint}")
    return path


def _read_lines(path: Path) -> list[tuple[Row, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskDataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return [({"prompt": line.strip()}, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _read_rows(path: Path, split: str, column: str) -> list[tuple[Row, str]]:
    rows, records = load_rows(path, split=split), list[tuple[Row, str]]()
    for index in range(len(rows)):
        row, where = rows[index], rows.where(index)
        if column not in row:
            raise TaskDataError(f"{where}: no column {column!r}, only {', '.join(row)}; set 'column'.")
        records.append(({**row, "prompt": row[column]}, where))
    return records

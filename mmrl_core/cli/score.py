"""`mmrl score`: rewards of completions that a file holds."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.cli.command import Command
from mmrl_core.errors import MMRLError

if TYPE_CHECKING:
    from mmrl_core.scoring import Judgement, RewardRunner

SCORE_LINES = 256  # lines scored at a time; more would delay the first answer, fewer would slow async rewards down


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reward", metavar="REWARD", help="reward id, see `mmrl list rewards`, or file.py:function")
    parser.add_argument(
        "file",
        metavar="FILE.jsonl",
        help='lines {"completion": str, "sample": {...}}, or - for standard input; out come lines {"reward": number or '
        'null} in the same order, with "error" where a line could not be scored',
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of the reward, YAML; repeatable"
    )


def run(arguments: argparse.Namespace) -> int:
    from mmrl_core.config import load_reward
    from mmrl_core.plugins import load_plugins
    from mmrl_core.scoring import RewardRunner

    runner = RewardRunner(load_plugins(), [load_reward(arguments.reward, arguments.option)])
    counts = {"lines": 0, "errors": 0, "scored": 0}
    with contextlib.ExitStack() as stack:
        if arguments.file == "-":
            lines: Any = sys.stdin.buffer
        elif Path(arguments.file).is_file():
            lines = stack.enter_context(open(arguments.file, "rb"))
        else:
            raise MMRLError(f"there is no file {arguments.file}.")
        out = sys.stdout
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # what a reward prints must not mix with results
        for result in _score_lines(runner, lines):
            counts["lines"] += 1
            counts["errors"] += "error" in result
            counts["scored"] += result["reward"] is not None
            print(json.dumps(result, allow_nan=False, ensure_ascii=False), file=out, flush=True)
    if counts["errors"]:
        print(f"mmrl: {counts['errors']} of {counts['lines']} lines could not be scored", file=sys.stderr)
    if counts["scored"] or not counts["lines"]:
        return 0
    if not counts["errors"]:
        print(f"mmrl: the reward left all {counts['lines']} lines unscored (it returned None)", file=sys.stderr)
    return 1


def _score_lines(runner: RewardRunner, lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """A result for each line, in order. Lines are scored many at a time, and a group is never cut."""
    pending: list[tuple[str, dict[str, Any]] | str] = []
    for line in lines:
        parsed = _parse_line(line)
        if len(pending) >= SCORE_LINES and (isinstance(parsed, str) or not _same_group(pending[-1], parsed)):
            yield from _results(runner, pending)
            pending = []
        pending.append(parsed)
    yield from _results(runner, pending)


def _same_group(previous: tuple[str, dict[str, Any]] | str, parsed: tuple[str, dict[str, Any]]) -> bool:
    return not isinstance(previous, str) and previous[1] == parsed[1]


def _results(runner: RewardRunner, parsed: Sequence[tuple[str, dict[str, Any]] | str]) -> Iterator[dict[str, Any]]:
    sound = [item for item in parsed if not isinstance(item, str)]
    judgements: Iterator[Judgement] = iter(
        runner.judge(runner.keys[0], [item[0] for item in sound], [item[1] for item in sound]) if sound else []
    )
    for item in parsed:
        if isinstance(item, str):
            yield {"reward": None, "error": item}
            continue
        judgement = next(judgements)
        yield {"reward": judgement.value} | ({} if judgement.failure is None else {"error": judgement.failure})


def _parse_line(line: bytes) -> tuple[str, dict[str, Any]] | str:
    """Completion and sample, or what is wrong with the line."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}" if line.strip() else "empty line"
    if not isinstance(row, dict):
        return f'expected {{"completion": str, "sample": {{...}}}}, got {type(row).__name__}'
    for key, kind in (("completion", str), ("sample", dict)):
        if not isinstance(row.get(key), kind):
            return (
                f"{key!r} is missing" if key not in row else f"{key!r} is not {'text' if kind is str else 'an object'}"
            )
    return row["completion"], row["sample"]


COMMAND = Command(
    "score",
    "Score completions from a file with one reward; neighbouring lines with equal samples are scored as a group.",
    "mmrl score visual_rft/iou completions.jsonl --option threshold=0.5",
    add_arguments,
    run,
)

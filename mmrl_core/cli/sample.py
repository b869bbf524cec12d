"""`mmrl sample`: a question of one's own to a checkpoint."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.cli.command import Command, positive
from mmrl_core.cli.evaluated import config_of, find_evaluated
from mmrl_core.errors import MMRLError

if TYPE_CHECKING:
    from mmrl_core.types import RolloutGroup, Scores

MEDIA = ("image", "video", "audio")
ROWS, BARE_TASK = "question.jsonl", "question.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="MODEL", help="a run (its newest checkpoint) or another model, as `mmrl eval` takes it"
    )
    parser.add_argument(
        "question",
        metavar="QUESTION",
        help="text of the user's message; system message, prefix and options of the chat template are the run's",
    )
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="config values to change")
    for kind in MEDIA:
        parser.add_argument(
            f"--{kind}", metavar="FILE", action="append", default=[], help=f"{kind} before the text; may be repeated"
        )
    parser.add_argument(
        "--temperature",
        type=_temperature,
        default=0.0,
        metavar="T",
        help="0 is greedy, the most likely token each time",
    )
    parser.add_argument(
        "--num", type=positive, default=1, metavar="N", help="answers, at a temperature above 0 (default: 1)"
    )
    parser.add_argument(
        "--max-tokens", type=positive, metavar="N", help="most tokens of an answer (default: as the run's evaluations)"
    )


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value


def run(arguments: argparse.Namespace) -> None:
    if arguments.num > 1 and arguments.temperature == 0:
        raise MMRLError(f"--num {arguments.num} greedy answers would all be the same. Set --temperature, such as 1.")
    evaluated = find_evaluated(arguments.checkpoint)
    media = {kind: [str(Path(file).expanduser().absolute()) for file in getattr(arguments, kind)] for kind in MEDIA}
    if missing := [file for files in media.values() for file in files if not Path(file).is_file()]:
        raise MMRLError(f"there is no file {missing[0]}.")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        row = json.dumps({"question": arguments.question, **media}) + "\n"
        (folder / ROWS).write_text(row * arguments.num, encoding="utf-8")
        (folder / BARE_TASK).write_text("name: question\n", encoding="utf-8")
        task = None if evaluated.run is not None else str(folder / BARE_TASK)
        overrides = [*_asked(folder / ROWS, media, arguments), *arguments.overrides]
        if evaluated.hub_name is None and evaluated.run is None:
            overrides = [f"model.path={json.dumps(str(evaluated.weights))}", *overrides]
        config, _ = config_of(evaluated, task, overrides)

        from mmrl_core.cli.opening import evaluate_checkpoint

        answers: list[str] = []

        def keep(groups: Sequence[RolloutGroup], scores: Scores, temperature: float) -> None:
            answers.extend(_shown(rollout) for group in groups for rollout in group.rollouts)

        evaluate_checkpoint(config, evaluated.weights, log_all=keep)
    print(*answers, sep="\n---\n")


def _asked(rows: Path, media: Mapping[str, Sequence[str]], arguments: argparse.Namespace) -> list[str]:
    """Overrides that make the question the only held-out row, and leave out what would score it."""
    prompt = {"text": "{question}", "messages": "", "answer": "", "marks": {}}
    prompt |= {f"{kind}s": [f"{{{kind}}}"] if files else [] for kind, files in media.items()}
    evaluation = {"metrics": [], "temperatures": [arguments.temperature], "samples": 1, "limit": None}
    if arguments.max_tokens is not None:
        evaluation["max_tokens"] = arguments.max_tokens
    return [
        "mixture=[]",
        "rewards=[]",
        f"data.held_out={json.dumps({'name': 'rows', 'path': str(rows)})}",
        f"data.media_root={json.dumps(rows.anchor)}",
        *(f"prompt.{key}={json.dumps(value)}" for key, value in prompt.items()),
        *(f"eval.{key}={json.dumps(value)}" for key, value in evaluation.items()),
    ]


def _shown(rollout: Any) -> str:
    """The completion of a rollout, with a mark where it met the limit."""
    text = rollout.completion if isinstance(rollout.completion, str) else repr(rollout.completion)
    return f"{text} [cut at {rollout.num_actions} tokens]" if rollout.truncated else text


COMMAND = Command(
    "sample",
    "Answer a question of your own, with media, from a checkpoint or any model.",
    'mmrl sample runs/first "How many cars are there?" --image street.jpg',
    add_arguments,
    run,
)

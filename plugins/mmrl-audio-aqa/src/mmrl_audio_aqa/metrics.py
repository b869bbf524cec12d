"""The metric of MMAU: completions and rows in, named numbers out. Shares are in 0..1; papers print them times 100."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl_audio_aqa.parsing import answer_block
from mmrl_audio_aqa.rewards import accuracy, mmau_match, prediction
from mmrl_core.errors import TaskDataError
from mmrl_core.scoring import score_each

Sample = Mapping[str, Any]


def mmau(
    completions: Sequence[str],
    samples: Sequence[Sample],
    *,
    by: Sequence[str] = ("task", "difficulty"),
    predictions: str | None = None,
    prediction_key: str = "model_output",
) -> dict[str, float]:
    """Accuracy by MMAU's own rule, `rewards.mmau_match`, over all rows and those of each task and difficulty.

    Args:
        completions: N texts.
        samples: N rows with `choices` and `answer`, and the columns of `by` where they have them.
        by: columns to give shares for, such as "sub-category".
        predictions: JSON file to write for MMAU's script or its leaderboard: the rows, each with its prediction.
        prediction_key: name of the prediction in that file. (quirk of the published code: it writes model_prediction,
            and MMAU's script reads model_output.)

    Returns:
        "accuracy"; "accuracy/<column>/<value>" for each value of each column; "option_accuracy", by the rule of
        `rewards.accuracy`; "readable", the share of completions with an answer block; "num_unscored", the rows without
        answer or options, which are left out of the other numbers. NaN where no row is left.

    Raises:
        TaskDataError: the file of predictions cannot be written.

    Source: MMAU, arXiv:2410.19168.

    >>> rows = [{"choices": ["dog", "cat"], "answer": "dog", "task": task} for task in ("sound", "speech")]
    >>> numbers = mmau(["a dog", "<answer>cat</answer>"], rows)
    >>> [numbers[name] for name in ("accuracy", "accuracy/task/sound", "accuracy/task/speech", "readable")]
    [0.5, 1.0, 0.0, 0.5]
    """
    of_group: dict[str, list[float]] = defaultdict(list)
    readable: list[float] = []
    chosen: list[float] = []
    for completion, sample in zip(completions, samples, strict=True):
        right = score_each(mmau_match, [completion], [sample])[0]
        if right is None:
            continue
        of_group["accuracy"].append(right)
        readable.append(float(answer_block(completion) is not None))
        option = score_each(accuracy, [completion], [{"solution": sample["answer"], **sample}])[0]
        if option is not None:  # else the answer is none of the options, which MMAU's rule does not mind
            chosen.append(option)
        for column in by:
            if sample.get(column) is not None:
                of_group[f"accuracy/{column}/{sample[column]}"].append(right)
    if predictions is not None:
        _write_predictions(completions, samples, Path(predictions).expanduser(), prediction_key)
    num_scored = len(of_group["accuracy"])
    return {name: _mean(values) for name, values in sorted(of_group.items())} | {
        "option_accuracy": _mean(chosen),
        "readable": _mean(readable),
        "num_unscored": float(len(samples) - num_scored),
    }


def _write_predictions(completions: Sequence[str], samples: Sequence[Sample], path: Path, key: str) -> None:
    rows = [{**sample, key: prediction(completion)} for completion, sample in zip(completions, samples, strict=True)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1, default=str), encoding="utf-8", errors="replace")
    except OSError as error:
        raise TaskDataError(f"metric mmau: predictions cannot be written to {path}: {error.strerror}") from error


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan

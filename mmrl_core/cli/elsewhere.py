"""`mmrl eval --with inspect:TASK` and `--with lmms:TASK`: tasks of other frameworks on a checkpoint of mmrl.

The results are kept as those of `mmrl eval`: `eval/<checkpoint>-<framework>-<task>-<limit or all>.json`, and what was
asked, answered and scored beside it as `.jsonl`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl_core.cli.answering import Answerer
from mmrl_core.errors import MissingPackageError, MMRLError
from mmrl_core.support import finite


@dataclass(frozen=True)
class Measured:
    """What a framework measured.

    Attributes:
        metrics: name -> number.
        lines: a mapping for each question, as JSON can hold it.
        notes: what the reader should know, such as where the framework keeps its own log.
    """

    metrics: Mapping[str, float]
    lines: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()


def measure(given: str, checkpoint: str, overrides: Sequence[str], limit: int | None, folder: Path) -> Measured:
    """Run a task of another framework.

    Args:
        given: "inspect:TASK" or "lmms:TASK".
        folder: for logs of the framework.

    Raises:
        MMRLError: there is no such framework or task, or the task failed.
        MissingPackageError: the framework is not installed.
    """
    framework, colon, task = given.partition(":")
    if not colon or not task or framework not in FRAMEWORKS:
        raise MMRLError(
            f"--with {given}: expected FRAMEWORK:TASK, such as inspect:my_task.py or lmms:mme. Frameworks: "
            f"{', '.join(FRAMEWORKS)}."
        )
    return FRAMEWORKS[framework](task, checkpoint, overrides, limit, folder)


def _with_inspect(task: str, checkpoint: str, overrides: Sequence[str], limit: int | None, folder: Path) -> Measured:
    inspect_ai = _imported("inspect_ai", "inspect_ai", "pip install 'mmrl-core[inspect]'")
    from inspect_ai.model import get_model

    from mmrl_core.cli import inspect_provider  # noqa: F401 - registers the provider, installed as such or not

    model = get_model(f"mmrl/{checkpoint}", memoize=False, overrides=list(overrides))
    logs = folder / "inspect"
    try:
        (log,) = inspect_ai.eval(task, model=model, limit=limit, log_dir=str(logs), display="none", log_level="warning")
    except MMRLError:
        raise
    except Exception as error:  # whatever finding and making the task raised
        raise MMRLError(f"inspect task {task!r}: {_first_line(error)}") from error
    finally:
        model.api.close()
    if log.status != "success" or log.results is None:
        reason = log.error.message if log.error is not None else log.status
        raise MMRLError(f"inspect task {task!r} failed: {reason}\nThe log of inspect_ai is {log.location}.")
    metrics = {
        f"{score.name}/{name}": float(metric.value)
        for score in log.results.scores
        for name, metric in score.metrics.items()
    }
    lines = [
        {
            "id": sample.id,
            "epoch": sample.epoch,
            "prompt": sample.input if isinstance(sample.input, str) else "\n".join(m.text for m in sample.input),
            "answer": sample.target,
            "completion": sample.output.completion,
            "scores": {name: _plain(score.value) for name, score in (sample.scores or {}).items()},
        }
        for sample in log.samples or ()
    ]
    return Measured(metrics, lines, [f"the log of inspect_ai: {log.location}"])


def _with_lmms(task: str, checkpoint: str, overrides: Sequence[str], limit: int | None, folder: Path) -> Measured:
    _imported(
        "lmms_eval",
        "lmms-eval",
        "pip install lmms-eval 'filelock<4', in an environment without mmrl-core's extra video (docs/metrics.md)",
    )
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from mmrl_core.cli.lmms_model import MMRLModel

    file = Path(task)
    is_file = file.suffix in (".yaml", ".yml")
    name = file.stem if is_file else task
    answerer = Answerer(checkpoint, list(overrides))
    try:
        manager = TaskManager("ERROR", include_path=str(file.parent.absolute()) if is_file else None)
        if name not in manager.all_tasks:
            raise MMRLError(f"lmms-eval has no task {name!r}; `lmms-eval --tasks list` shows what there is.")
        found = simple_evaluate(
            model=MMRLModel(answerer), tasks=[name], limit=limit, task_manager=manager, verbosity="ERROR"
        )
    except MMRLError:
        raise
    except Exception as error:  # whatever reading and running the task raised
        raise MMRLError(f"lmms-eval task {name!r}: {_first_line(error)}") from error
    finally:
        answerer.close()
    metrics = {
        f"{of}/{key.removesuffix(',none')}": float(value)
        for of, values in found["results"].items()
        for key, value in values.items()
        if isinstance(value, int | float) and not math.isnan(value)
    }
    lines = [
        {
            "id": line["doc_id"],
            "prompt": line.get("input"),
            "answer": line.get("target"),
            "completion": line.get("filtered_resps"),
        }
        for samples in found["samples"].values()
        for line in samples
    ]
    return Measured(metrics, json.loads(json.dumps(lines, default=str), parse_constant=lambda _: None))


FRAMEWORKS: Mapping[str, Callable[[str, str, Sequence[str], int | None, Path], Measured]] = {
    "inspect": _with_inspect,
    "lmms": _with_lmms,
}


def _imported(module: str, package: str, how: str) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        raise MissingPackageError(f"--with needs the package {package} ({error}). Try: {how}") from error


def _plain(value: Any) -> Any:
    """A score as JSON can hold it: NaN, which says that nothing was scored, is null."""
    return finite(value) if isinstance(value, float) else value


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"

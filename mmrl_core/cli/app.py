"""The command line: arguments, exit codes and printing; what a command does is elsewhere.

Exit codes: 0 done, 1 a check failed, 2 something the user can mend (the message says what), 130 interrupted.
Everything heavy is imported by the command that needs it, so that `mmrl list` imports neither torch nor pydantic.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import MMRLError

if TYPE_CHECKING:
    from mmrl_core.config import RunConfig
    from mmrl_core.discovery import Plugins
    from mmrl_core.registry import Entry
    from mmrl_core.scoring import Judgement, RewardRunner

ALGORITHM_KINDS = ("advantage", "loss", "strategy")
SCORE_LINES = 256  # lines scored at a time; more would delay the first answer, fewer would slow async rewards down
QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Environment of Hugging Face libraries, unless it is set: their bars and hints would bury what mmrl prints."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    try:
        arguments = _parse(argv)
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        # Where torchao is installed transformers imports it, and torch warns of what it does there.
        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
        return arguments.run(arguments) or 0
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a usage error
        return stop.code if isinstance(stop.code, int) else 1
    except MMRLError as error:
        print(f"mmrl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmrl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mmrl list | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes positionals in one go, so overrides that follow an option come back as unknown.
    takes_overrides = hasattr(arguments, "overrides")
    if unknown := [text for text in rest if not takes_overrides or text.startswith("-") or "=" not in text]:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if takes_overrides:
        arguments.overrides += rest
    return arguments


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; its help is the reference that the docs show."""
    parser = argparse.ArgumentParser(prog="mmrl", description="Reinforcement learning for multimodal models.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Any, sentence: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=sentence,
            description=sentence,
            epilog=f"Example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run, parser=added)
        return added

    train = command(
        "train",
        _train,
        "Train a policy as a task config says.",
        "mmrl train visual_rft/demo_detection stages.0.steps=5 --output runs/first",
    )
    _add_task(train)
    train.add_argument(
        "--output", type=Path, metavar="DIR", help="run directory (default: runs/<task name>-<date>-<time>)"
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in --output (default: start one)")
    train.add_argument("--dry-run", action="store_true", help="check everything that can be checked, and do not train")

    evaluate = command(
        "eval",
        _eval,
        "Compute a task's benchmark metrics of a checkpoint on its held-out rows.",
        "mmrl eval visual_rft/demo_detection --checkpoint runs/first/checkpoints/step-5 --limit 64",
    )
    _add_task(evaluate)
    evaluate.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        required=True,
        help="a folder checkpoints/step-N of a run, whose eval.json is written, or any model folder, for one in it",
    )
    evaluate.add_argument(
        "--limit", type=_positive, metavar="N", help="held-out rows used (default: eval.limit or all)"
    )

    score = command(
        "score",
        _score,
        "Score completions from a file with one reward; neighbouring lines with equal samples are scored as a group.",
        "mmrl score visual_rft/iou completions.jsonl --option threshold=0.5",
    )
    score.add_argument("reward", metavar="REWARD", help="reward id, see `mmrl list rewards`, or file.py:function")
    score.add_argument(
        "file",
        metavar="FILE.jsonl",
        help='lines {"completion": str, "sample": {...}}, or - for standard input; out come lines {"reward": number or '
        'null} in the same order, with "error" where a line could not be scored',
    )
    score.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of the reward, YAML; repeatable"
    )

    check = command(
        "check",
        _check,
        "Prove that a task or plugin is sound: gold answers score the maximum, empty and hostile ones are safe.",
        "mmrl check visual_rft/demo_detection",
    )
    check.add_argument("id", metavar="TASK|PLUGIN", help="task id, path of a YAML, or name of a plugin")
    check.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="config values to change")

    preview = command(
        "preview",
        _preview,
        "Show the first prompts of a task as the model will see them.",
        "mmrl preview visual_rft/demo_detection --num 2 --output preview",
    )
    _add_task(preview)
    preview.add_argument(
        "--num", type=_positive, default=3, metavar="N", help="prompts shown, of each part of a mixture (default: 3)"
    )
    preview.add_argument(
        "--output",
        type=Path,
        default=Path("preview"),
        metavar="DIR",
        help="folder for their media and the text (default: preview)",
    )

    listing = command("list", _list, "List what is installed.", "mmrl list rewards --json")
    listing.add_argument(
        "kind", nargs="?", choices=list(LISTS), metavar="KIND", help=f"one of {', '.join(LISTS)} (default: all)"
    )
    listing.add_argument("--json", action="store_true", help="print one JSON object {kind: [rows]}")

    info = command("info", _info, "Show what an id is, where it is from and what options it has.", "mmrl info clipped")
    info.add_argument("id", metavar="ID", help="plugin, task, preset, hook, or anything registered, see `mmrl list`")

    view = command("view", _view, "Write a run's report, one HTML file that needs no server.", "mmrl view runs/first")
    view.add_argument("run_directory", type=Path, metavar="RUN", help="run directory")

    from mmrl_core.testing import TINY_KINDS

    tiny = command(
        "tiny",
        _tiny,
        "Build a small random-weight model of a real architecture, offline.",
        "mmrl tiny qwen2_5_vl models/tiny --seed 0",
    )
    kinds = "; ".join(f"{name} ({kind.description})" for name, kind in TINY_KINDS.items())
    tiny.add_argument("kind", metavar="KIND", help=kinds)
    tiny.add_argument("directory", type=Path, metavar="DIR", help="folder to make")
    tiny.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the weights (default: 0)")
    return parser


def _add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help="task id, see `mmrl list tasks`, or path of a YAML")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="config values to change, YAML: optimizer.lr=1e-5"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


# Running a task.


def _train(arguments: argparse.Namespace) -> None:
    from mmrl_core.config import load_config

    config = load_config(arguments.task, arguments.overrides)
    if arguments.dry_run:
        from mmrl_core.cli.dry_run import check_run

        print(*check_run(config), sep="\n")
        return
    output = _run_directory(config, arguments.output, arguments.resume)

    from mmrl_core.trainer import train

    train(config, output, arguments.resume)


def _run_directory(config: RunConfig, output: Path | None, resume: bool) -> Path:
    """Where the run goes, once it is sure that nothing is overwritten and nothing else is resumed."""
    if resume:
        if output is None:
            raise MMRLError("--resume needs --output, the run directory to go on with.")
        if not output.is_dir():
            raise MMRLError(f"there is no run in {output} to resume. Leave out --resume to start one.")
        if (output / "config.yaml").is_file():
            _refuse_other_config(config, output / "config.yaml")
        return output
    if output is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise MMRLError("several processes would each choose a run directory by the clock: name one with --output.")
        import datetime

        output = Path("runs") / f"{config.name.replace('/', '-')}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    first_process = os.environ.get("RANK", "0") == "0"  # when the others look, the first may have begun to write
    if output.is_file() or (first_process and output.is_dir() and any(output.iterdir())):
        raise MMRLError(f"{output} exists and is not empty. Add --resume to go on with it, or name another --output.")
    return output


def _refuse_other_config(config: RunConfig, path: Path) -> None:
    from mmrl_core.config import differing_keys, load_config

    if differences := differing_keys(load_config(str(path)), config):
        listed = "\n".join(f"  {line}" for line in differences)
        raise MMRLError(
            f"the config is not that of the run, {path}:\n{listed}\n"
            "Resume with the same task and overrides, or start a new run with another --output."
        )


def _eval(arguments: argparse.Namespace) -> None:
    from mmrl_core.config import load_config

    config = load_config(arguments.task, arguments.overrides)
    checkpoint: Path = arguments.checkpoint
    if not checkpoint.is_dir():
        raise MMRLError(f"there is no checkpoint folder {checkpoint}.")

    from mmrl_core.evaluation import evaluate_checkpoint

    metrics = evaluate_checkpoint(config, checkpoint, arguments.limit)
    _print_table([{"metric": name, "value": _number(value)} for name, value in metrics.items()])
    path = _run_of(checkpoint) / "eval.json"
    result = {
        "task": arguments.task,
        "overrides": arguments.overrides,
        "checkpoint": str(checkpoint),
        "limit": arguments.limit,
        "metrics": {name: _finite(value) for name, value in metrics.items()},
    }
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    unfinished.replace(path)
    print(f"\nwritten to {os.path.relpath(path) if path.is_relative_to(Path.cwd()) else path}")


def _run_of(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to: RUN of RUN/checkpoints/step-N; any other folder is its own."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else checkpoint


def _finite(value: Any) -> Any:
    """NaN and infinity as null, which is all that JSON has for them."""
    return None if isinstance(value, float) and value - value != 0 else value


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _check(arguments: argparse.Namespace) -> int:
    from mmrl_core.config import load_config
    from mmrl_core.discovery import load_plugins
    from mmrl_core.testing import check_plugin, check_task

    if arguments.id in load_plugins().plugins:
        findings = check_plugin(arguments.id)
    else:
        findings = check_task(load_config(arguments.id, arguments.overrides))
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}")
    return 0 if all(finding.ok for finding in findings) else 1


def _preview(arguments: argparse.Namespace) -> None:
    from mmrl_core.config import load_config
    from mmrl_core.testing import preview_task

    print(preview_task(load_config(arguments.task, arguments.overrides), arguments.num, arguments.output))


def _view(arguments: argparse.Namespace) -> None:
    if not arguments.run_directory.is_dir():
        raise MMRLError(f"there is no run in {arguments.run_directory}.")

    from mmrl_core.runs import write_report

    print(write_report(arguments.run_directory))


def _tiny(arguments: argparse.Namespace) -> None:
    from mmrl_core.testing import build_tiny

    build_tiny(arguments.kind, arguments.directory, seed=arguments.seed)
    print(f"{arguments.kind} in {arguments.directory}")


# Scoring a file.


def _score(arguments: argparse.Namespace) -> None:
    import contextlib

    from mmrl_core.config import load_reward
    from mmrl_core.discovery import load_plugins
    from mmrl_core.scoring import RewardRunner

    runner = RewardRunner(load_plugins(), [load_reward(arguments.reward, arguments.option)])
    counts = {"lines": 0, "errors": 0}
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
            print(json.dumps(result, allow_nan=False, ensure_ascii=False), file=out, flush=True)
    if counts["errors"]:
        print(f"mmrl: {counts['errors']} of {counts['lines']} lines could not be scored", file=sys.stderr)


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


# What is installed.


def _list(arguments: argparse.Namespace) -> None:
    from mmrl_core.discovery import load_plugins

    plugins = load_plugins()
    tables = {kind: rows(plugins) for kind, rows in LISTS.items() if arguments.kind in (None, kind)}
    if arguments.json:
        print(json.dumps(tables, indent=2, ensure_ascii=False))
        return
    for kind, rows in tables.items():
        if len(tables) > 1:
            print(f"{'' if kind == next(iter(tables)) else chr(10)}{kind}")
        _print_table([{key: _first_line(value) for key, value in row.items()} for row in rows])
    for plugin in plugins.plugins.values() if "plugins" in tables else ():
        if plugin.error is not None:
            print(f"\nplugin {plugin.name!r} failed to load:\n{plugin.error}")


def _plugin_rows(plugins: Plugins) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for plugin in plugins.plugins.values():
        status = "ok" if plugin.error is None else "FAILED"
        row = {"name": plugin.name, "status": status, "distribution": plugin.distribution, "version": plugin.version}
        rows.append(row | ({"error": plugin.error} if plugin.error is not None else {"description": plugin.summary}))
    return rows


def _task_rows(plugins: Plugins) -> list[dict[str, Any]]:
    rows = []
    for task in plugins.tasks.values():
        try:
            rows.append({"id": task.id, "plugin": task.plugin, "description": _comment(task.path)})
        except (MMRLError, ImportError, OSError) as error:
            rows.append({"id": task.id, "plugin": task.plugin, "error": str(error)})
    return rows


def _reward_rows(plugins: Plugins) -> list[dict[str, Any]]:
    return [_entry_row(entry) | _plain(entry.details) for entry in plugins.registry.entries("reward")]


def _algorithm_rows(plugins: Plugins) -> list[dict[str, Any]]:
    from mmrl_core.discovery import presets

    rows = [
        {"kind": "preset", "id": name, "description": _comment(path)}
        for name, path in presets().items()
        if name.startswith("algorithm/")
    ]
    entries = [entry for kind in ALGORITHM_KINDS for entry in plugins.registry.entries(kind)]
    return rows + [{"kind": entry.kind, **_entry_row(entry)} for entry in entries]


def _hook_rows(plugins: Plugins) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "plugins": [p.name for p in plugins.plugins.values() if hasattr(p.module, name)],
            "description": _first_line(doc),
        }
        for name, doc in _hooks().items()
    ]


def _entry_rows(kind: str, plugins: Plugins) -> list[dict[str, Any]]:
    return [_entry_row(entry) for entry in plugins.registry.entries(kind)]


LISTS: Mapping[str, Callable[[Plugins], list[dict[str, Any]]]] = {
    "plugins": _plugin_rows,
    "tasks": _task_rows,
    "rewards": _reward_rows,
    "tools": partial(_entry_rows, "tool"),
    "algorithms": _algorithm_rows,
    "policies": partial(_entry_rows, "policy"),
    "behaviours": partial(_entry_rows, "behaviour"),
    "hooks": _hook_rows,
}


def _entry_row(entry: Entry) -> dict[str, Any]:
    return {"id": entry.id.removeprefix("core/"), "description": entry.description}


def _plain(details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, str | int | float | None) else repr(value) for key, value in details.items()
    }


def _hooks() -> dict[str, str]:
    """Hook name -> its documentation."""
    from mmrl_core import hookspecs

    return {name: value.__doc__ or "" for name, value in vars(hookspecs).items() if name.startswith("mmrl_")}


def _comment(path: Path) -> str:
    """The first line of a YAML, if it is a comment: what the file is."""
    with open(path, encoding="utf-8", errors="replace") as file:
        first = file.readline().strip()
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _first_line(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return next((line for line in str(value).strip().splitlines() if line), "")


def _print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Aligned columns; the last column that a row has is not padded, and errors stand in it."""
    if not rows:
        print("none")
        return
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in ("description", "error")))
    widths = {key: max(len(key), *(len(str(row.get(key, ""))) for row in rows)) for key in columns}
    has_text = any("description" in row or "error" in row for row in rows)
    print("  ".join([*(key.ljust(widths[key]) for key in columns), *(["description"] if has_text else [])]).rstrip())
    for row in rows:
        text = f"error: {row['error']}" if "error" in row else row.get("description", "")
        print("  ".join([*(str(row.get(key, "")).ljust(widths[key]) for key in columns), text]).rstrip())


# What an id is.


def _info(arguments: argparse.Namespace) -> None:
    from mmrl_core.discovery import load_plugins, presets
    from mmrl_core.registry import KINDS

    name: str = arguments.id
    plugins = load_plugins()
    parts: list[Callable[[], str]] = []
    if name in plugins.plugins:
        parts.append(partial(_plugin_info, plugins, name))
    if name in plugins.tasks:
        parts.append(partial(_task_info, plugins, name))
    if name in presets():
        parts.append(partial(_yaml_info, "preset", name, presets()[name], "core"))
    if name in _hooks():
        parts.append(partial("hook {}\n\n{}".format, name, _docstring(_hook_function(name))))
    for kind in KINDS:
        entries = {entry.id: entry for entry in plugins.registry.entries(kind)}
        if entry := entries.get(name) or entries.get(f"core/{name}"):
            parts.append(partial(_entry_info, plugins, entry))
    if not parts:
        import difflib

        ids = [entry.id.removeprefix("core/") for kind in KINDS for entry in plugins.registry.entries(kind)]
        known = [*plugins.plugins, *plugins.tasks, *presets(), *_hooks(), *ids]
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else "`mmrl list` shows what there is."
        raise MMRLError(f"nothing installed is called {name!r}. {hint}")
    errors = []
    for part in parts:  # an id may name several things, of which one may be broken
        try:
            print(f"{part()}\n")
        except MMRLError as error:
            errors.append(str(error))
    if errors:
        raise MMRLError("\n".join(errors))


def _plugin_info(plugins: Plugins, name: str) -> str:
    from mmrl_core.registry import KINDS

    plugin = plugins.plugins[name]
    lines = [f"plugin {name}", f"from: {plugin.distribution} {plugin.version}", plugin.summary]
    if plugin.error is not None:
        return "\n".join([*lines, "", "failed to load:", plugin.error])
    lines += ["", _docstring(plugin.module)] if plugin.module is not None and plugin.module.__doc__ else []
    provided = {kind: [e.id for e in plugins.registry.entries(kind) if e.id.startswith(f"{name}/")] for kind in KINDS}
    provided["task"] = [task.id for task in plugins.tasks.values() if task.plugin == name]
    provided["hook"] = [hook for hook in _hooks() if hook != "mmrl_register" and hasattr(plugin.module, hook)]
    plural = {"policy": "policies", "strategy": "strategies"}
    told = [f"{plural.get(kind, f'{kind}s')}: {', '.join(ids)}" for kind, ids in provided.items() if ids]
    return "\n".join([*lines, "", *told])


def _task_info(plugins: Plugins, name: str) -> str:
    task = plugins.tasks[name]
    return _yaml_info("task", name, task.path, f"plugin {task.plugin}")


def _yaml_info(kind: str, name: str, path: Path, origin: str) -> str:
    from mmrl_core.config import extends_chain

    chain = ", ".join(extends_chain(path)) or "nothing"
    return f"{kind} {name}\nfrom: {origin}, {path}\nextends: {chain}\n\n{path.read_text(encoding='utf-8').rstrip()}"


def _entry_info(plugins: Plugins, entry: Entry) -> str:
    import inspect

    from mmrl_core.config import option_names
    from mmrl_core.registry import KINDS

    plugin = plugins.plugins.get(entry.id.partition("/")[0])
    origin = f"{plugin.distribution} {plugin.version}" if plugin is not None else "core"
    lines = [f"{entry.kind} {entry.id.removeprefix('core/')}: {entry.description}", f"from: {origin}, {entry.target}"]
    lines += [f"kind: {KINDS[entry.kind]}", *(f"{key}: {value}" for key, value in entry.details.items())]
    target = entry.load()
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # not callable, or written in C
        signature = None
    if signature is not None:
        parameters = {name: _unquoted(parameter) for name, parameter in signature.parameters.items()}
        shown = signature.replace(parameters=list(parameters.values()), return_annotation=signature.empty)
        lines.append(f"signature: {entry.target.rpartition(':')[2]}{shown}")
        options = option_names(entry.kind, target)
        lines.append("options:" if options else "options: none")
        lines += [f"  {parameters[name]}" for name in options]
    return "\n".join([*lines, "", _docstring(target)]).rstrip()


class _Unquoted(str):
    __repr__ = str.__str__


def _unquoted(parameter: Any) -> Any:
    """A parameter whose annotation, a string where annotations are postponed, prints without quotes."""
    text = parameter.annotation
    return parameter.replace(annotation=_Unquoted(text)) if isinstance(text, str) else parameter


def _hook_function(name: str) -> Any:
    from mmrl_core import hookspecs

    return getattr(hookspecs, name)


def _docstring(thing: Any) -> str:
    import inspect

    return inspect.getdoc(thing) or "no documentation"

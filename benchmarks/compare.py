"""One GRPO step of mmrl against one of TRL, over a grid: ratios with their spread, and the limit that tokens set.

    python benchmarks/compare.py --grid required length --repeats 3 --output runs/step.json --plot docs/step.png

At each point of the grid the two engines run in turn, each in a process of its own (`step.py`), `--repeats` times. A
ratio is TRL's median step over mmrl's of the same repeat; given is the median of the repeats with their range. Results
are kept in `--output`; what is in it is not run again, so that an interrupted comparison goes on where it stopped, more
repeats can be added, and the tables can be printed again at no cost. Delete the file to measure anew. Run it on an
otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mmrl_core.support import written_aside

ENGINES = ("mmrl", "trl")
IMAGE_SIZES_PX = {150: 280, 450: 560, 1000: 868}
"""About so many prompt tokens -> width and height of its picture; one token is 28 x 28 px, the question the rest."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One step that is measured: about so many prompt tokens, group size, completion tokens, KL coefficient."""

    prompt: int
    group: int
    completion: int
    beta: float = 0.0


GRIDS = {
    "quick": (Point(150, 4, 8),),  # shows that both run, in a minute or two
    "required": (
        Point(150, 8, 32),
        Point(450, 8, 32),
        Point(450, 8, 32, 0.04),
        Point(450, 8, 128),
        Point(150, 16, 128),
        Point(1000, 16, 32),
    ),
    "group": tuple(Point(450, group, 32) for group in (4, 8, 16, 32)),
    "length": tuple(Point(prompt, 8, 32) for prompt in IMAGE_SIZES_PX),
    "full": tuple(
        Point(prompt, group, completion, beta)
        for prompt in IMAGE_SIZES_PX
        for completion in (32, 128)
        for group in (8, 16)
        for beta in (0.0, 0.04)
    ),
}


def measure(point: Point, engine: str, arguments: argparse.Namespace) -> Result:
    """Run `step.py` once."""
    options = {
        "engine": engine,
        "model": arguments.model,
        "image-size": IMAGE_SIZES_PX[point.prompt],
        "group": point.group,
        "completion": point.completion,
        "beta": point.beta,
        "prompts": arguments.prompts,
        "steps": arguments.steps,
        "warmup": arguments.warmup,
        "threads": arguments.threads,
    }
    command = [sys.executable, str(Path(__file__).with_name("step.py"))]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        raise SystemExit(f"{finished.stderr[-4000:]}\n{engine} failed at {point} (exit {finished.returncode})")
    return json.loads(finished.stdout.splitlines()[-1])


def collect(points: Sequence[Point], arguments: argparse.Namespace) -> list[Result]:
    """Measure what the output file does not hold yet; returns all it has of these points, also of further repeats."""
    output: Path = arguments.output
    done: list[Result] = json.loads(output.read_text()) if output.is_file() else []
    output.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(arguments, name) for name in ("prompts", "steps", "warmup", "threads")}
    settings["model"] = str(arguments.model)
    for point in points:
        for repeat in range(arguments.repeats):
            for engine in ENGINES:
                key = {"engine": engine, "repeat": repeat, "point": asdict(point), **settings}
                if any(entry["key"] == key for entry in done):
                    continue
                print(f"{point} repeat {repeat + 1} {engine} ...", file=sys.stderr, flush=True)
                result = measure(point, engine, arguments)
                done.append({"key": key, "result": result})
                with written_aside(output) as aside:
                    aside.write_text(json.dumps(done, indent=1) + "\n")
                print(f"    {result['seconds_median']:.2f} s a step", file=sys.stderr, flush=True)
    keys = [(entry["key"]["point"], entry["key"]["repeat"]) for entry in done]
    wanted = [asdict(point) for point in points]
    return [
        entry
        for entry, key in zip(done, keys, strict=True)
        if key[0] in wanted and keys.count(key) == len(ENGINES) and settings.items() <= entry["key"].items()
    ]


class Comparison:
    """The results of both engines at one point.

    Raises:
        SystemExit: they did not do the same work.
    """

    def __init__(self, point: Point, entries: Iterable[Result]) -> None:
        self.point = point
        self.results: dict[str, list[Result]] = {engine: [] for engine in ENGINES}
        for entry in entries:
            if entry["key"]["point"] == asdict(point):
                self.results[entry["key"]["engine"]].append(entry["result"])
        work = {
            tuple(result[name] for name in ("prompt_tokens", "completion_tokens", "prompt_hash"))
            for results in self.results.values()
            for result in results
        }
        if len(work) != 1:
            raise SystemExit(f"{point}: the runs did not do the same work: {sorted(work)}")

    @property
    def prompt_tokens(self) -> int:
        return self.results["mmrl"][0]["prompt_tokens_each"]

    @property
    def limit(self) -> float:
        """Tokens of G whole sequences over those of one prompt and G completions: G (P + C) / (P + G C)."""
        prompt, group, completion = self.prompt_tokens, self.point.group, self.point.completion
        return group * (prompt + completion) / (prompt + group * completion)

    def median(self, engine: str, value: Callable[[Result], float]) -> float:
        return median(value(result) for result in self.results[engine])

    def ratios(self, value: Callable[[Result], float]) -> list[float]:
        """TRL over mmrl, for each repeat."""
        pairs = zip(self.results["trl"], self.results["mmrl"], strict=True)
        return [value(trl) / value(mmrl) for trl, mmrl in pairs]


def with_range(values: Sequence[float]) -> str:
    """Median, and range in brackets.

    >>> with_range([3.0, 2.0, 2.5])
    '2.50 (2.00 to 3.00)'
    """
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def labels(comparison: Comparison) -> list[str]:
    point = comparison.point
    return [str(value) for value in (comparison.prompt_tokens, point.group, point.completion, f"{point.beta:g}")]


LABELS = ("P", "G", "C", "beta")


def time_table(comparisons: Sequence[Comparison]) -> str:
    """Seconds, their ratio, and the limit that the number of tokens sets."""
    rows = []
    for comparison in comparisons:
        ratios = comparison.ratios(seconds)
        rows.append(
            [
                *labels(comparison),
                *(f"{comparison.median(engine, seconds):.2f}" for engine in ENGINES),
                with_range(ratios),
                f"{comparison.limit:.2f}",
                f"{median(ratios) / comparison.limit:.2f}",
            ]
        )
    return table([*LABELS, "mmrl, s", "TRL, s", "TRL / mmrl", "limit", "ratio / limit"], rows)


def phase_table(comparisons: Sequence[Comparison]) -> str:
    """Seconds of each phase."""
    phases = ("generation", "reference", "update")
    titles = [f"{phase}, {engine}" for phase in phases for engine in ("mmrl", "TRL")]
    rows = [
        [
            *labels(comparison),
            *(
                f"{comparison.median(engine, lambda result: result['phases_median'][phase]):.2f}"  # noqa: B023
                for phase in phases
                for engine in ENGINES
            ),
        ]
        for comparison in comparisons
    ]
    return table([*LABELS, *titles], rows)


def memory_table(comparisons: Sequence[Comparison]) -> str:
    """Peak memory of the process, and of the steps alone; here mmrl over TRL."""
    names = ("step_memory_mib", "peak_rss_mib")
    titles = [f"{title}, {engine}" for title in ("steps", "process") for engine in ("mmrl", "TRL", "mmrl / TRL")]
    rows = []
    for comparison in comparisons:
        row = labels(comparison)
        for name in names:
            value = lambda result: result[name]  # noqa: B023, E731
            row += [f"{comparison.median(engine, value):.0f}" for engine in ENGINES]
            row.append(with_range([1 / ratio for ratio in comparison.ratios(value)]))
        rows.append(row)
    return table([*LABELS, *titles], rows)


def work_table(comparisons: Sequence[Comparison]) -> str:
    """What ran through the models in one step."""
    counters = [results[0]["counters"] for item in comparisons for results in item.results.values()]
    names = sorted({name for counts in counters for name in counts})
    rows = []
    for comparison in comparisons:
        for engine in ENGINES:
            counts = comparison.results[engine][0]["counters"]
            rows.append(
                [*labels(comparison), engine, *(f"{counts[name]:g}" if name in counts else "" for name in names)]
            )
    return table([*LABELS, "engine", *(name.replace("_", " ") for name in names)], rows)


def seconds(result: Result) -> float:
    return result["seconds_median"]


def machine(entries: Sequence[Result]) -> str:
    """Processor, memory, threads and versions."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions: dict[str, set[str]] = {}
    for entry in entries:
        for name, number in entry["result"]["versions"].items():
            versions.setdefault(name, set()).add(number)
    shown = ", ".join(f"{name} {' and '.join(sorted(numbers))}" for name, numbers in versions.items())
    return (
        f"{platform.system()}, {names[0] if names else platform.processor()}, {os.cpu_count()} cores, "
        f"{memory_gib:.0f} GiB, {entries[0]['key']['threads']} threads; {shown}."
    )


def plot(comparisons: Sequence[Comparison], path: Path) -> None:
    """Seconds of a step against prompt length at G = 8, and against group size at P of about 450; C = 32, beta = 0."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    by_length = [item for item in comparisons if item.point in GRIDS["length"]]
    by_group = [item for item in comparisons if item.point in GRIDS["group"]]
    for axes, chosen, name in (
        (left, by_length, "prompt tokens (G = 8)"),
        (right, by_group, "completions of a prompt"),
    ):
        position = (lambda item: item.prompt_tokens) if axes is left else (lambda item: item.point.group)
        chosen = sorted(chosen, key=position)
        places = [position(item) for item in chosen]
        for engine, title, colour, dashes in (("trl", "TRL", "#d55e00", "--"), ("mmrl", "mmrl", "#0072b2", "-")):
            times = [[seconds(result) for result in item.results[engine]] for item in chosen]
            axes.plot(places, [median(values) for values in times], dashes, color=colour, marker="o", label=title)
            axes.fill_between(places, list(map(min, times)), list(map(max, times)), color=colour, alpha=0.2)
        axes.set(xlabel=name, xlim=(0, None), ylim=(0, None))
        axes.grid(axis="y", alpha=0.3)
    if by_group:
        right.set_xlabel(f"completions of a prompt (P = {by_group[0].prompt_tokens})")
    left.set_ylabel("seconds of a step")
    left.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", nargs="+", choices=sorted(GRIDS), default=["required", "group", "length"])
    parser.add_argument("--repeats", type=int, default=3, help="times that each engine runs at a point")
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured in a run")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--prompts", type=int, default=2, help="prompts of a step")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (default: all cores)")
    parser.add_argument("--model", type=Path, default=Path("runs/step_model"), help="folder; built if it is missing")
    parser.add_argument("--output", type=Path, default=Path("runs/step.json"), help="all results, as JSON")
    parser.add_argument("--plot", type=Path, help="PNG of time against prompt length and group size")
    arguments = parser.parse_args()
    points = list(dict.fromkeys(point for name in arguments.grid for point in GRIDS[name]))
    entries = collect(points, arguments)
    comparisons = [Comparison(point, entries) for point in points]
    sections = {
        "Time": time_table,
        "Phases, seconds": phase_table,
        "Memory, MiB": memory_table,
        "Work of a step": work_table,
    }
    print(machine(entries))
    for title, make in sections.items():
        print(f"\n### {title}\n\n{make(comparisons)}")
    if arguments.plot is not None:
        plot(comparisons, arguments.plot)


if __name__ == "__main__":
    main()

"""Checks of rewards: gold answers score the maximum, hostile completions are safe."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmrl_core.config import RewardConfig
from mmrl_core.errors import MMRLError
from mmrl_core.plugins import Plugins, sign_of_style
from mmrl_core.scoring import CALLED_AS, Judgement, RewardRunner, advice
from mmrl_core.testing.hostile import READS, hostile_completions
from mmrl_core.testing.sections import Finding, Section, some
from mmrl_core.types import Prompt

NUM_HOSTILE_ROWS = 3  # rows whose samples meet the hostile completions
GROUP_SIZE = 3  # completions that are scored together, to see that each gets a result
MAX_HOSTILE_S = 10.0  # a reward that needs longer for one completion would hold up a run, whatever its timeout_s
TOLERANCE = 1e-6


def reward_findings(section: Section, prompts: Sequence[Prompt], plugins: Plugins) -> list[Finding]:
    """Check each reward of a section on the gold answers of its prompts, and on hostile completions."""
    findings = []
    for config in section.part.rewards:
        reads = plugins.registry.get("reward", config.name).details.get("reads", "text")
        # No picture can make a parser run for ever, and a network takes its time with the first one.
        limit_s = min(config.timeout_s, MAX_HOSTILE_S) if reads == "text" else config.timeout_s
        quick = config.model_copy(update={"timeout_s": limit_s})
        name = f"{section.name}reward {config.key!r}"
        runner = RewardRunner(plugins, [quick])
        try:
            runner.judge(config.key, [], [])
        except MMRLError as error:
            findings.append(Finding(True, f"{name}: skipped: {error}"))
            continue
        if reads not in READS:
            findings.append(Finding(True, f"{name}: skipped: it reads {reads!r}; known: {', '.join(READS)}"))
            continue
        if config.style is None and (sign := sign_of_style(runner.function(config.key), [*prompts[0].sample])):
            findings.append(Finding(False, f"{name}: {advice(sign)}"))
            continue
        hostile = hostile_completions(reads)
        failed: dict[str, str] = {}
        if reads == "text":
            finding, failed = _gold_finding(name, runner, config, prompts)
            findings.append(finding)
        findings += _hostile_findings(name, runner, quick, prompts[:NUM_HOSTILE_ROWS], hostile, failed)
        findings += _group_findings(name, runner, config.key, prompts[0], list(hostile.values()))
    return findings


def _group_findings(
    name: str, runner: RewardRunner, key: str, prompt: Prompt, completions: Sequence[Any]
) -> Iterator[Finding]:
    """Whether a reward gives a group as many results as it has completions: one for all would leave all unscored.

    A completion that makes it raise is found one by one, with its name, by the other checks.
    """
    group = list(completions[:GROUP_SIZE])
    failures = {j.failure for j in runner.judge(key, group, [prompt.sample] * len(group), prompt) if j.failure}
    for failure in failures:
        if failure.startswith("returned") and failure.endswith(f" for {len(group)} completions"):
            yield Finding(False, f"{name}: a group of {len(group)}, on {prompt.id}: {failure}. {CALLED_AS}")


def _gold_finding(
    name: str, runner: RewardRunner, config: RewardConfig, prompts: Sequence[Prompt]
) -> tuple[Finding, dict[str, str]]:
    """What the gold answers score; and by row why the reward fails on its gold answer."""
    answered = [prompt for prompt in prompts if prompt.answer]
    if not answered:
        return Finding(True, f"{name}: gold answer: skipped, the rows have none (prompt.answer)"), {}
    judgements: dict[str, Judgement] = {}
    for prompt in answered:  # one by one: neighbours with equal rows are no group here
        judgements[prompt.id] = runner.judge(config.key, [prompt.with_prefix(prompt.answer)], [prompt.sample], prompt)[
            0
        ]
    if failed := {key: j.failure for key, j in judgements.items() if j.failure is not None}:
        first = next(iter(failed))
        what = f"{name}: gold answer: fails on {some(list(failed))}; {first}: {failed[first]}"
        return Finding(False, what), failed
    return _gold_scores(name, runner.maximum(config.key), answered, judgements), {}


def _gold_scores(
    name: str, maximum: float | None, answered: Sequence[Prompt], judgements: Mapping[str, Judgement]
) -> Finding:
    scored = {key: j.value for key, j in judgements.items() if j.value is not None}
    unscored = [prompt for prompt in answered if prompt.id not in scored]
    left_out = (
        f"{name}: gold answer: unscored on {len(unscored)} of {len(answered)} rows, first on {unscored[0].id} "
        f"for {_shown(unscored[0].answer)}"
        if unscored
        else ""
    )
    if not scored:
        return Finding(False, f"{left_out}: it scores the gold answer of no row, so it would teach nothing")
    if maximum is None and not unscored:
        return Finding(True, f"{name}: gold answer: scored on {len(scored)} rows; the reward declares no maximum")
    if wrong := _below(scored, maximum):
        first = wrong[0]
        answer = next(prompt.answer for prompt in answered if prompt.id == first)
        return Finding(
            False,
            f"{name}: gold answer: not the maximum {maximum:g} on {some(wrong)}; "
            f"{first} scores {scored[first]:g} for {_shown(answer)}",
        )
    if unscored:
        meant = "meant if such rows are others' to score; if not, the reward cannot read their gold"
        return Finding(True, f"{left_out}, where totals are the other rewards alone: {meant}", doubtful=True)
    return Finding(True, f"{name}: gold answer: scores the maximum, {maximum:g}, on {len(scored)} rows")


def _below(scored: Mapping[str, float], maximum: float | None) -> list[str]:
    """Rows whose gold answer does not score the maximum; none if there is no maximum."""
    if maximum is None:
        return []
    return [key for key, value in scored.items() if abs(value - maximum) > TOLERANCE * max(1.0, abs(maximum))]


def _hostile_findings(
    name: str,
    runner: RewardRunner,
    config: RewardConfig,
    prompts: Sequence[Prompt],
    hostile: Mapping[str, Any],
    failed: Mapping[str, str],
) -> Iterator[Finding]:
    """What is wrong with hostile completions, each problem of a row once; `failed` is already told of the rows."""
    maximum = runner.maximum(config.key)
    problems: dict[tuple[str, str], list[str]] = {}  # (row, problem) -> completions
    tested = too_slow = False
    for description, completion in hostile.items():
        for prompt in prompts:
            start = time.monotonic()
            first = runner.judge(config.key, [completion], [prompt.sample], prompt)[0]
            elapsed_s = time.monotonic() - start
            too_slow = elapsed_s >= config.timeout_s
            # A call that never lets go of the interpreter, as regular expressions do, is late without being abandoned.
            problem = f"takes {elapsed_s:.1f} s" if too_slow and first.failure is None else first.failure or ""
            if not problem:
                second = runner.judge(config.key, [completion], [prompt.sample], prompt)[0]
                problem = _hostile_problem(first, second, maximum)
            if problem and problem == failed.get(prompt.id):
                continue
            tested = True
            if problem:
                problems.setdefault((prompt.id, problem), []).append(description)
                break  # on one row is enough
        if too_slow:  # the rest may take as long each
            break
    for (row, problem), descriptions in problems.items():
        others = f" (so do {len(descriptions) - 1} more)" if len(descriptions) > 1 else ""
        yield Finding(False, f"{name}: {descriptions[0]}, on {row}: {problem}{others}")
    if tested and not problems:
        yield Finding(True, f"{name}: {len(hostile)} empty, garbage and hostile completions are safe")


def _hostile_problem(first: Judgement, second: Judgement, maximum: float | None) -> str:
    """What is wrong with two judgements of one hostile completion; "" if nothing is."""
    if second.failure:
        return f"the second time: {second.failure}"
    if first.value != second.value or first.parts != second.parts:
        return f"scores {_number(first.value)}, and the next time {_number(second.value)}"
    if first.value is not None and maximum is not None and first.value > maximum + TOLERANCE * max(1.0, abs(maximum)):
        return f"scores {first.value:g}, above the maximum {maximum:g} that the reward declares"
    return ""


def _number(value: float | None) -> str:
    return "unscored" if value is None else f"{value:g}"


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."

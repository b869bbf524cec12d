"""Checks of rewards: gold answers score the maximum, hostile completions are safe."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
JOINTLY = 'register it with shape="group" if it compares completions.'


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
            findings.append(Finding(True, f"{name}: skipped: {error}", skipped=True))
            continue
        if reads not in READS:
            reason = f"{name}: skipped: it reads {reads!r}; known: {', '.join(READS)}"
            findings.append(Finding(True, reason, skipped=True))
            continue
        if config.style is None and (sign := sign_of_style(runner.function(config.key), [*prompts[0].sample])):
            findings.append(Finding(False, f"{name}: {advice(sign)}", property="groups"))
            continue
        hostile = hostile_completions(reads)
        failed: dict[str, str] = {}
        if reads == "text":
            own_time = RewardRunner(plugins, [config])  # its first call may start processes
            finding, failed = _gold_finding(name, own_time, config, prompts)
            findings.append(replace(finding, property="gold"))
        findings += _hostile_findings(name, runner, quick, prompts[:NUM_HOSTILE_ROWS], hostile, failed)
        gold = [prompts[0].with_prefix(prompts[0].answer)] if reads == "text" and prompts[0].answer else []
        jointly = plugins.registry.get("reward", config.name).details.get("shape") == "group"
        findings += _group_findings(name, runner, config.key, prompts[0], [*gold, *hostile.values()], jointly=jointly)
    return findings


def _group_findings(
    name: str, runner: RewardRunner, key: str, prompt: Prompt, completions: Sequence[Any], *, jointly: bool
) -> Iterator[Finding]:
    """Whether a group is scored as its completions are one by one, in any order, with a result for each.

    A completion that makes it raise is found one by one, with its name, by the other checks.

    Args:
        jointly: the reward compares completions, so that one by one it has nothing to compare with.
    """

    def judged(group: Sequence[Any]) -> list[Judgement]:
        return runner.judge(key, group, [prompt.sample] * len(group), prompt)

    group = list(completions[:GROUP_SIZE])
    where = f"{name}: a group of {len(group)}, on {prompt.id}"
    together = judged(group)
    for failure in dict.fromkeys(j.failure for j in together if j.failure):
        if failure.startswith("returned") and failure.endswith(f" for {len(group)} completions"):
            yield Finding(False, f"{where}: {failure}. {CALLED_AS}", property="groups")
            return
    if not jointly:
        single = [judged([completion])[0] for completion in group]
        if _difference(single, [judged([completion])[0] for completion in group]):
            return  # it never scores twice the same, which is found by itself
        if said := _difference(together, single):
            what = f"{where}: {said} alone. A completion's score may not depend on its neighbours, or {JOINTLY}"
            yield Finding(False, what, property="groups")
            return
    if said := _difference(together, judged(group[::-1])[::-1]):
        what = f"{where}: {said} in the opposite order. Judge each completion by itself, not by its place."
        yield Finding(False, what, property="order")


def _difference(first: Sequence[Judgement], second: Sequence[Judgement]) -> str:
    """The first place where judgements differ, as the middle of a sentence; "" if they agree or fail."""
    for place, (a, b) in enumerate(zip(first, second, strict=True)):
        same = a.value == b.value or (None not in (a.value, b.value) and _close(a.value, b.value))
        if not same and a.failure is None and b.failure is None:
            return f"completion {place} scores {_number(a.value)} in it, and {_number(b.value)}"
    return ""


def _close(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and abs(a - b) <= TOLERANCE * max(1.0, abs(a))


def _gold_finding(
    name: str, runner: RewardRunner, config: RewardConfig, prompts: Sequence[Prompt]
) -> tuple[Finding, dict[str, str]]:
    """What the gold answers score; and by row why the reward fails on its gold answer."""
    answered = [prompt for prompt in prompts if prompt.answer]
    if not answered:
        return Finding(True, f"{name}: gold answer: skipped, the rows have none (prompt.answer)", skipped=True), {}
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
    about: dict[str, str] = {}  # problem -> property
    tested = too_slow = False
    for description, completion in hostile.items():
        for prompt in prompts:
            first, elapsed_s = _timed(runner, config.key, completion, prompt)
            if elapsed_s >= config.timeout_s:  # once more: a process of its own may have been starting
                first, elapsed_s = _timed(runner, config.key, completion, prompt)
            too_slow = elapsed_s >= config.timeout_s
            # A call that never lets go of the interpreter, as regular expressions do, is late without being abandoned.
            problem = f"takes {elapsed_s:.1f} s" if too_slow and first.failure is None else first.failure or ""
            kind = "time" if too_slow else "hostile"
            if not problem:
                second = runner.judge(config.key, [completion], [prompt.sample], prompt)[0]
                problem, kind = _hostile_problem(first, second, maximum)
            if problem and problem == failed.get(prompt.id):
                continue
            tested = True
            if problem:
                about[problem] = kind
                problems.setdefault((prompt.id, problem), []).append(description)
                break  # on one row is enough
        if too_slow:  # the rest may take as long each
            break
    for (row, problem), descriptions in problems.items():
        others = f" (so do {len(descriptions) - 1} more)" if len(descriptions) > 1 else ""
        yield Finding(False, f"{name}: {descriptions[0]}, on {row}: {problem}{others}", property=about[problem])
    if tested and not problems:
        what = f"{name}: {len(hostile)} empty, garbage and hostile completions are safe"
        yield Finding(True, what, property="hostile")


def _timed(runner: RewardRunner, key: str, completion: Any, prompt: Prompt) -> tuple[Judgement, float]:
    """How a completion is judged, and the seconds that it took."""
    start = time.monotonic()
    return runner.judge(key, [completion], [prompt.sample], prompt)[0], time.monotonic() - start


def _hostile_problem(first: Judgement, second: Judgement, maximum: float | None) -> tuple[str, str]:
    """What is wrong with two judgements of a hostile completion, "" if nothing is, and the property that it breaks."""
    if second.failure:
        return f"the second time: {second.failure}", "determinism"
    if first.value != second.value or first.parts != second.parts:
        return f"scores {_number(first.value)}, and the next time {_number(second.value)}", "determinism"
    if first.value is not None and maximum is not None and first.value > maximum + TOLERANCE * max(1.0, abs(maximum)):
        return f"scores {first.value:g}, above the maximum {maximum:g} that the reward declares", "hostile"
    return "", ""


def _number(value: float | None) -> str:
    return "unscored" if value is None else f"{value:g}"


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."

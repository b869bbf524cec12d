"""Rewards written for other frameworks, called as they expect it: `style` of a reward.

A function of a style becomes one of our form, `(completions, samples, **options)`, and so falls under the same rules:
time limits, processes of their own, one failure for one completion. What its framework passes by name comes from the
data row: a parameter without a default is a column, one with a default an option (or a column, where rows have it).

=========  ===========================================================================================================
`trl`      `(prompts, completions, **columns)`, as `GRPOTrainer` calls it: completions are lists of messages, but where
           the row's `prompt` is a text
`trl_text` the same, where completions are texts
`verl`     `compute_score(data_source, solution_str, ground_truth, extra_info)`, or with lists of them, as the reward
           manager `batch` calls it
`swift`    a class of ms-swift's plugins: `__call__(self, completions, **columns)`
`easyr1`   `compute_score(reward_inputs)`, one or a list of them, or the older `(predict_str, ground_truth)`
=========  ===========================================================================================================
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrl_core.errors import PluginError, TaskDataError

Samples = Sequence[Mapping[str, Any]]

PEERS = {
    "trl": "TRL",
    "trl_text": "TRL, for completions that are texts",
    "verl": "verl",
    "swift": "ms-swift",
    "easyr1": "EasyR1",
}
"""Style -> whose it is."""

GOLD = ("ground_truth", "answer", "solution", "label")
"""Columns in which verl's and EasyR1's rewards find the gold, the first that a row has; but before them verl's own."""

TOTALS = {"verl": "score", "easyr1": "overall"}
"""Entry of a dict that is the reward."""

_VERL = {"data_source": "data_sources", "solution_str": "solution_strs", "ground_truth": "ground_truths"}
_EASYR1 = ("reward_inputs", "reward_input", "predict_str", "predict_strs", "predicts")
_TRL = frozenset(
    ("prompts", "prompt_ids", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
)
_EXPECTED = {
    "trl": ("completions",),
    "trl_text": ("completions",),
    "verl": ("solution_str", "solution_strs"),
    "swift": ("completions",),
    "easyr1": _EASYR1,
}
"""Style -> parameters of which a reward has one."""

_TRL_UNKNOWN = _TRL - {"prompts", "completion_ids"}
_TRL_LOGS = frozenset(("log_extra", "log_metric"))
"""What only writes down: a reward is the same without it."""

GOLD_COLUMNS = frozenset(
    ("answer", "answers", "ground_truth", "label", "labels", "reference", "solution", "target", "targets")
)
"""What rewards for TRL often call the column that they compare with; the data here may call it otherwise."""


def sign_of_style(function: Callable[..., Any], columns: Collection[str] = ()) -> tuple[str, str] | None:
    """Style that a reward was written in, and what in its parameters says so; None if nothing does.

    Args:
        function: as registered.
        columns: of the data rows. TRL passes each as an argument, so that a second parameter of such a name is one, as
            is one of the usual names for gold beside keywords.
    """
    if inspect.isclass(function):
        is_called = any("__call__" in vars(base) for base in function.__mro__)
        return ("swift", "is a class whose objects are called") if is_called else None
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    names = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    if own := [name for name in names if name in ("solution_str", "solution_strs")]:
        return "verl", f"takes {own[0]!r}, and would get completions and data rows"
    if names[:1] and names[0] in _EASYR1:
        return "easyr1", f"takes {names[0]!r}, and would get completions for it"
    sign = _sign_of_trl(names, len(parameters), columns)
    return ("trl", sign) if sign else None


def _sign_of_trl(names: Sequence[str], num_parameters: int, columns: Collection[str]) -> str:
    if names[:1] == ["prompts"] or (names and names[0] != "completions" and "completions" in names):
        return f"takes {names[0]!r} before 'completions', and would get completions for it"
    if foreign := [name for name in names if name in _TRL and (name != "prompts" or "samples" not in names)]:
        return f"takes {foreign[0]!r}, which nobody passes here"
    if len(names) == 1 and num_parameters > 1:
        return f"takes {names[0]!r} and keywords, and has no place for the data rows"
    if len(names) > 1 and names[1] in columns:
        return f"takes the column {names[1]!r} as its second argument, and would get whole data rows for it"
    if columns and num_parameters > len(names) > 1 and names[1] in GOLD_COLUMNS:
        return f"takes {names[1]!r} as its second argument, beside keywords, and would get whole data rows for it"
    return ""


def styled(
    function: Callable[..., Any], style: str, columns: Mapping[str, str] | None = None, result: str | None = None
) -> Callable[..., Any]:
    """A reward of another framework as one of our form; its options are its parameters with a default.

    Args:
        function: a function, or a class of ms-swift.
        style: a key of `PEERS`.
        columns: what the reward calls a column -> what the data call it.
        result: entry of the dict that it returns, which is the reward; default: that of `TOTALS`.

    Raises:
        PluginError: it cannot be called in this style.
    """
    reward = _Styled(function, style, dict(columns or {}), result or TOTALS.get(style))

    def call(completions: Sequence[Any], samples: Samples, **given: Any) -> Any:
        return reward.result(reward.call(completions, samples, **given))

    async def call_and_wait(completions: Sequence[Any], samples: Samples, **given: Any) -> Any:
        return reward.result(await reward.awaited(reward.call(completions, samples, **given)))

    made = functools.wraps(reward.called)(call_and_wait if reward.is_async else call)
    made.__signature__ = reward.signature  # type: ignore[attr-defined]
    return made


@dataclass
class _Styled:
    """A reward of another framework.

    Attributes:
        called: the function whose parameters count.
        style, columns, entry: see `styled`.
    """

    function: Callable[..., Any]
    style: str
    columns: Mapping[str, str]
    entry: str | None
    _made: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        is_class = inspect.isclass(self.function)
        if is_class and self.style != "swift":
            raise PluginError("it is a class, as rewards of style 'swift' are; name a function, or set that style.")
        function: Any = self.function
        self.called: Callable[..., Any] = function.__call__ if is_class else function
        parameters = list(inspect.signature(self.called).parameters.values())[is_class:]
        self.parameters = {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        self.takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.is_async = inspect.iscoroutinefunction(self.called)
        expected = _EXPECTED[self.style]
        is_open = self.takes_any and self.style != "easyr1"
        if not is_open and not any(name in self.parameters for name in expected):
            named = " or ".join(map(repr, expected[:2]))
            raise PluginError(f"style {self.style!r} is for rewards with a parameter {named}.")
        self._refuse_what_is_not_passed()

    def _refuse_what_is_not_passed(self) -> None:
        """Without it the reward would fail, or be another than where it comes from."""
        if self.style not in ("trl", "trl_text", "swift"):
            return
        unknown = _TRL_UNKNOWN if self.style != "swift" else {"trainer_state"}
        for name in sorted(unknown - _TRL_LOGS - self.columns.keys()):
            if name in self.parameters or (self.takes_any and _mentions(self.called, name)):
                what = f"it reads {name!r}, which {PEERS[self.style].partition(',')[0]} passes and a run here does not"
                raise PluginError(f"{what}: its scores would differ. Write it without.")
        needed = [name for name, p in self.parameters.items() if p.default is p.empty]
        if logs := [name for name in needed if name in unknown & _TRL_LOGS]:
            raise PluginError(f"it needs {logs[0]!r}, and nothing is logged here; give that parameter a default.")

    @property
    def signature(self) -> inspect.Signature:
        """Ours, with the options: parameters with a default that the style does not fill."""
        keyword, empty = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
        taken = {"completions", "prompts", "completion_ids", "extra_info", "extra_infos", *_VERL, *_VERL.values()}
        taken |= {*_EASYR1, "ground_truths"} | (_TRL if self.style.startswith("trl") else frozenset())
        options = {name: p for name, p in self.parameters.items() if name not in taken and p.default is not empty}
        if inspect.isclass(self.function):
            own = inspect.signature(self.function).parameters
            options |= {n: p for n, p in own.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            options.pop("args", None)
        ours = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("completions", "samples")]
        passed = [inspect.Parameter("prompts", keyword, default=None)]
        if (rollouts := self._reads_rollouts()) is not None:
            passed.append(inspect.Parameter("rollouts", keyword, default=empty if rollouts else None))
        own_options = [p.replace(kind=keyword) for p in options.values()]
        rest = [inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)]
        takes_any = self.takes_any and self.style == "verl"
        return inspect.Signature([*ours, *passed, *own_options, *(rest if takes_any else [])])

    def _reads_rollouts(self) -> bool | None:
        """Whether it needs rollouts, for what only a run knows; None: it does not take them."""
        if self.style.startswith("trl") and (ids := self.parameters.get("completion_ids")) is not None:
            return ids.default is ids.empty
        return True if self.style == "easyr1" and _mentions(self.called, "response_length") else None

    def call(
        self,
        completions: Sequence[Any],
        samples: Samples,
        *,
        prompts: Sequence[Any] | None = None,
        rollouts: Sequence[Any] | None = None,
        **options: Any,
    ) -> Any:
        """What the reward returns for a group; a list of what it returns for each, where it is called so."""
        if self.style == "verl":
            return self._call_verl(completions, samples, options)
        if self.style == "easyr1":
            return self._call_easyr1(completions, samples, rollouts, options)
        given: dict[str, Any] = {}
        if self.style == "swift":
            given["completions"] = list(completions)
        else:
            given["completions"] = [self._completion(*pair) for pair in zip(completions, samples, strict=True)]
            asked = prompts or [None] * len(samples)
            given["prompts"] = [row.get("prompt", asked[place]) for place, row in enumerate(samples)]
            if rollouts is not None:
                given["completion_ids"] = [[t for row in r.rows for t in row.action.tolist()] for r in rollouts]
        target = self._target(options)
        return target(**(self._columns(samples, given) | options))

    def _completion(self, completion: Any, row: Mapping[str, Any]) -> Any:
        prompt = row.get("prompt")  # messages too may be a text, where a table holds them as JSON
        is_text = isinstance(prompt, str) and not prompt.lstrip().startswith("[{")
        if is_text or self.style == "trl_text":
            return completion
        return [{"role": "assistant", "content": completion}]

    def _columns(self, samples: Samples, given: dict[str, Any]) -> dict[str, Any]:
        """What TRL and ms-swift pass by name: what is given, and the columns of the rows, as far as it takes them."""
        held = dict.fromkeys(column for row in samples for column in row if column not in ("prompt", "completion"))
        values = {column: [row.get(column) for row in samples] for column in held}
        values |= {name: [_value(row, column) for row in samples] for name, column in self.columns.items()} | given
        if not self.takes_any:
            values = {name: value for name, value in values.items() if name in self.parameters}
        needed = (name for name, p in self.parameters.items() if p.default is p.empty)
        if (missing := next((name for name in needed if name not in values), None)) is not None:
            raise TaskDataError(
                f"it takes {missing!r}, and the row has no such column. Columns: {', '.join(held)}. If one of them is "
                f"meant, set columns: {{{missing}: ...}}."
            )
        return values

    def _target(self, options: dict[str, Any]) -> Callable[..., Any]:
        """What is called. An object of a class is made once, with the options that its `__init__` takes."""
        if not inspect.isclass(self.function):
            return self.function
        own = inspect.signature(self.function).parameters
        for_init = {name: options.pop(name) for name in list(options) if name in own and name != "args"}
        if "object" not in self._made:
            if "args" in own:
                for_init["args"] = types.SimpleNamespace(**for_init)
            self._made["object"] = self.function(**for_init)
        return self._made["object"]

    def _gold(self, row: Mapping[str, Any]) -> Any:
        if (column := self.columns.get("ground_truth")) is not None:
            return _value(row, column)
        model = row.get("reward_model")
        if self.style == "verl" and isinstance(model, Mapping) and "ground_truth" in model:
            return model["ground_truth"]
        if (found := next((column for column in GOLD if column in row), None)) is None:
            raise TaskDataError(
                f"the row has no gold: none of {', '.join(GOLD)}. Columns: {', '.join(row)}. If one of them is meant, "
                "set columns: {ground_truth: ...}."
            )
        return row[found]

    def _call_verl(self, completions: Sequence[Any], samples: Samples, options: Mapping[str, Any]) -> Any:
        items = [
            {
                "data_source": _value(row, self.columns["data_source"])
                if "data_source" in self.columns
                else row.get("data_source"),
                "solution_str": text,
                "ground_truth": self._gold(row),
                "extra_info": dict(row.get("extra_info") or {}),
            }
            for text, row in zip(completions, samples, strict=True)
        ]
        if "solution_strs" in self.parameters:
            lists = {f"{name}s": [item[name] for item in items] for name in items[0]}
            return self.function(**self._taken(lists), **options)
        return [self.function(**self._taken(item), **options) for item in items]

    def _taken(self, values: dict[str, Any]) -> dict[str, Any]:
        return values if self.takes_any else {name: v for name, v in values.items() if name in self.parameters}

    def _call_easyr1(
        self, completions: Sequence[Any], samples: Samples, rollouts: Sequence[Any] | None, options: Mapping[str, Any]
    ) -> Any:
        golds = [self._gold(row) for row in samples]
        first = next(iter(self.parameters))
        if first in ("predicts", "predict_strs"):
            return self.function(list(completions), golds, **options)
        if first == "predict_str":
            return [self.function(text, gold, **options) for text, gold in zip(completions, golds, strict=True)]
        items = [{"response": text, "ground_truth": gold} for text, gold in zip(completions, golds, strict=True)]
        for item, rollout in zip(items, rollouts or (), strict=False):
            item["response_length"] = rollout.num_actions
        return (
            self.function(items, **options)
            if first == "reward_inputs"
            else [self.function(item, **options) for item in items]
        )

    async def awaited(self, called: Any) -> Any:
        """Results of coroutines, of several side by side."""
        import asyncio

        if isinstance(called, list) and all(inspect.isawaitable(item) for item in called):
            return list(await asyncio.gather(*called))
        return await called if isinstance(called, Awaitable) else called

    def result(self, returned: Any) -> Any:
        """What was returned, with the reward in place of a dict that holds it among others."""
        if not isinstance(returned, list | tuple):
            return returned
        return [self._number(item) for item in returned]

    def _number(self, item: Any) -> Any:
        if not isinstance(item, Mapping):
            return item
        if self.entry is None or self.entry not in item:
            wanted = f"no entry {self.entry!r}" if self.entry else "several entries, and 'result' does not say which"
            raise TaskDataError(f"it returned a dict with {wanted}: {', '.join(map(str, item))}")
        return item[self.entry]


def _value(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, `reward_model.ground_truth` of one inside.

    Raises:
        TaskDataError: the row has no such column.
    """
    value: Any = row
    for key in [column] if column in row else column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise TaskDataError(f"columns: the row has no column {column!r}. Columns: {', '.join(row)}.")
        value = value[key]
    return value


def _mentions(function: Any, text: str) -> bool:
    """Whether the code of a function, or of one inside of it, has a text among its constants."""

    def constants(code: types.CodeType) -> Iterator[Any]:
        for item in code.co_consts:
            yield from constants(item) if isinstance(item, types.CodeType) else [item]

    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and text in constants(code)

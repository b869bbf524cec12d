"""What plugins provide, by kind and id: kinds, entries, and how an entry is called with options."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl_core.config.options import Option, option_problems, options_of, signature_of
from mmrl_core.errors import MMRLError, PluginError, did_you_mean
from mmrl_core.support import Blaming, stand_ins

CORE = "core"


@dataclass(frozen=True)
class Kind:
    """A kind of entry that plugins register.

    Args:
        plural: for headings, such as "policies".
        description: what it is, and how it is called.
        positional: number of arguments that the core passes by position.
        given: keyword arguments that the core passes to those that take them. No config can set them.
    """

    name: str
    plural: str
    description: str
    positional: int = 0
    given: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("source", "sources", "data sources: (split, **options) -> rows", given=("split", "limit")),
        Kind(
            "reward",
            "rewards",
            "rewards: (completions, samples, **options) -> numbers or None",
            2,
            ("rollouts", "prompts"),
        ),
        Kind("metric", "metrics", "benchmark metrics: (completions, samples, **options) -> {name: number}", 2),
        Kind(
            "advantage",
            "advantages",
            "advantage stages: (advantages, view, **options) -> [B] or [B, T]",
            2,
            ("reduce_sum",),
        ),
        Kind("loss", "losses", "policy-loss surrogates: (inputs, **options) -> losses of tokens [B, T], metrics", 1),
        Kind(
            "statistic",
            "statistics",
            "quantities of the policy's distribution: (logits [n, V], tokens [n]) -> [n], without gradient",
            2,
        ),
        Kind(
            "strategy",
            "strategies",
            "rollout strategies: (policy, prompts, group_size, sampling, **options) -> groups",
            4,
            ("on_group", "environment"),
        ),
        Kind(
            "tool",
            "tools",
            "tools that a policy may call in a rollout: subclasses of mmrl_core.Tool, made with (**options)",
        ),
        Kind(
            "environment",
            "environments",
            "what a policy talks to over several turns: (tools, media_root, **options) -> Environment",
            2,
        ),
        Kind("engine", "engines", "rollout engines of the language-model policy"),
        Kind(
            "policy",
            "policies",
            "policies: classes of the Policy protocol, made with (path, *, device, engine, revision, **options)",
            1,
            ("device", "engine", "revision"),
        ),
        Kind(
            "model",
            "models",
            "builders of starting models: (directory, *, seed, **options)",
            given=("directory", "on_progress"),
        ),
        Kind(
            "behaviour",
            "behaviours",
            "hooks with options and state: classes whose methods are hooks, made with (**options) for each run",
        ),
        Kind(
            "view",
            "views",
            "what the report draws on a rollout's media: (completion, sample, **options) -> list of shapes",
            2,
        ),
    )
}


@dataclass(frozen=True)
class Entry:
    """Something a plugin provides: `id` is `namespace/name`, `target` the import string `module:attribute`."""

    kind: str
    id: str
    target: str
    description: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """Import and return the object.

        Raises:
            PluginError: the module or attribute cannot be imported; names the entry and the cause.
        """
        return self._imported(self.target)

    def declaration(self) -> Any:
        """What declares its options: the pydantic model that its detail `options` names, or else the entry itself.

        A model in a module of its own spares those who read configs the import of torch.
        """
        return self._imported(self.details.get("options", self.target))

    def detail(self, key: str) -> Any:
        """The object that a detail names by an import string; None if it has no such detail.

        Raises:
            PluginError: it cannot be imported.
        """
        return self._imported(self.details[key]) if key in self.details else None

    def _imported(self, target: str) -> Any:
        module_name, _, attribute = target.partition(":")
        try:
            return functools.reduce(getattr, attribute.split("."), importlib.import_module(module_name))
        except MMRLError:
            raise
        except Exception as error:
            raise PluginError(f"{self.kind} {self.id!r} ({target}) cannot be imported: {error}") from error

    def options(self) -> dict[str, Option]:
        """The options that a config can set, by name. Imports what declares them.

        Raises:
            PluginError: it cannot be imported.
        """
        kind = KINDS[self.kind]
        return options_of(self.declaration(), kind.positional, kind.given)

    def call(self, *arguments: Any, options: Mapping[str, Any], **given: Any) -> Any:
        """Call it, or make an object of it.

        Args:
            arguments: those that the kind passes by position.
            options: of a config.
            given: arguments of the run, named in the `given` of the kind. Those that it does not take are left out.

        Raises:
            PluginError: it cannot be imported, or an option is wrong; says which options there are.
        """
        target = self.load()
        check_options(self.kind, self.id, target, options)
        parameters = signature_of(target).parameters
        taken = {key: value for key, value in given.items() if key in parameters}
        with self._blaming():
            return target(*arguments, **options, **taken)

    def function(self) -> Callable[..., Any]:
        """The function that it is, to be called often: what it raises names the entry, as from `call`.

        Raises:
            PluginError: it cannot be imported.
        """
        target = self.load()

        def called(*arguments: Any, **options: Any) -> Any:
            with self._blaming():
                return target(*arguments, **options)

        return called

    def _blaming(self) -> Blaming:
        return Blaming(None if self.id.startswith(f"{CORE}/") else f"{self.kind} {self.id!r}")


def check_options(kind: str, name: str, target: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that a registered class or function does not take.

    Args:
        kind: one of `KINDS`.
        name: of the entry, for the message.
        target: what the entry loads.

    Raises:
        PluginError: an option is unknown, missing, of a wrong type, or passed by the run; a sentence for each, in the
            words in which reading a config reports them.
    """
    of = KINDS[kind]
    if problems := [problem.text for problem in option_problems(target, options, of.positional, of.given)]:
        raise PluginError("\n".join(f"{kind} {name!r}: {problem}" for problem in problems))


def install_hint(namespace: str) -> str:
    """How to install the plugin of a namespace that is not installed, for the end of a message.

    In a checkout the plugin's own folder is named; elsewhere the package, which may be on no index.
    """
    package = f"mmrl-{namespace.replace('_', '-')}"
    folder = Path(__file__).parents[2] / "plugins" / package
    if (folder / "pyproject.toml").is_file():
        return f" Try: pip install -e {folder}"
    return f" Try: pip install {package}, or, if it is on no package index, pip install PATH of its folder"


class Registry:
    """What installed plugins provide, by kind and id."""

    def __init__(self, namespace: str = CORE, entries: dict[str, dict[str, Entry]] | None = None) -> None:
        """
        Args:
            namespace: of the plugin that registers.
            entries: kind -> id -> entry, to add to. A new registry has none.
        """
        self._namespace = namespace
        self._entries = entries if entries is not None else {kind: {} for kind in KINDS}

    def add(self, kind: str, name: str, target: str, description: str, **details: Any) -> None:
        """Add an entry under the namespace of the plugin that is registering.

        Args:
            kind: one of `KINDS`.
            name: without namespace.
            target: "package.module:attribute"; imported when first used.
            description: one line, shown by `mmrl list`.
            details: what the kind's user reads without importing, such as `maximum=1.0` of a reward. `options` is the
                import string of the pydantic model of the options, where importing the entry is slow.

        Raises:
            PluginError: unknown kind, or the id is taken.
        """
        if kind not in self._entries:
            raise PluginError(f"plugin {self._namespace!r} registers a {kind!r}; kinds: {', '.join(KINDS)}.")
        entry = Entry(kind, f"{self._namespace}/{name}", target, description, _read_details(kind, name, details))
        if entry.id in self._entries[kind]:
            raise PluginError(f"plugin {self._namespace!r} registers {kind} {entry.id!r} twice.")
        self._entries[kind][entry.id] = entry

    def entries(self, kind: str) -> list[Entry]:
        return sorted(self._entries[kind].values(), key=lambda entry: entry.id)

    def get(self, kind: str, name: str) -> Entry:
        """The entry called `name`: an id, a core name without namespace, or `path/to/file.py:attribute`.

        Raises:
            PluginError: there is none; names what is close, and which plugin would be needed.
        """
        if ".py:" in name:
            return _file_entry(kind, name)
        entries = self._entries[kind]
        entry = entries.get(name) or entries.get(f"{CORE}/{name}")
        if entry is None:
            raise PluginError(self._missing(kind, name))
        return entry

    def _missing(self, kind: str, name: str) -> str:
        known = [entry.id.removeprefix(f"{CORE}/") for entry in self.entries(kind)]
        message = f"no installed plugin provides {kind} {name!r}"
        if hint := did_you_mean(name, known):
            message += f".{hint}"
        else:
            message += f" (installed: {', '.join(known) or 'none'})."
        namespace, slash, _ = name.partition("/")
        if slash and not any(known_id.startswith(f"{namespace}/") for known_id in known):
            message += install_hint(namespace)
        return message

    def registering(self, namespace: str) -> Registry:
        """The same registry, adding under another namespace."""
        return Registry(namespace, self._entries)


DETAILS_OF_FILES = {
    "reward": ("maximum", "shape", "reads"),
    "loss": ("needs", "idle_at_zero", "unit", "score", "frozen", "claims"),
    "advantage": ("needs", "baseline", "claims"),
    "behaviour": ("needs", "claims"),
}
"""Details that a function from a file declares as attributes: `brevity.maximum = 2.0`."""


def _file_entry(kind: str, name: str) -> Entry:
    """An entry for `file.py:attribute`: the file is imported under a name of its own."""
    path_text, _, attribute = name.rpartition(":")
    path = Path(path_text).expanduser().resolve()
    if not path.is_file():
        raise PluginError(f"{kind} {name!r}: there is no file {path_text}.")
    module_name = f"mmrl_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            with stand_ins():
                spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise PluginError(f"{kind} {name!r}: {path_text} cannot be imported: {error}") from error
    if not hasattr(sys.modules[module_name], attribute):
        raise PluginError(f"{kind} {name!r}: {path_text} has no {attribute!r}.")
    target = getattr(sys.modules[module_name], attribute)
    # A reward of a plugin that declares no maximum has 1; one from a file has promised nothing.
    details = {"maximum": None} if kind == "reward" else {}
    details |= {key: getattr(target, key) for key in DETAILS_OF_FILES.get(kind, ()) if hasattr(target, key)}
    return Entry(kind, name, f"{module_name}:{attribute}", f"from {path_text}", _read_details(kind, name, details))


LISTED_DETAILS = ("needs", "model_keys", "frozen", "claims")
"""Details that are lists of names."""


def _read_details(kind: str, name: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """Details with lists of names as tuples: a text is one name, where iterating it would give its letters."""
    read = dict(details)
    for key in LISTED_DETAILS:
        if key not in read:
            continue
        value = (read[key],) if isinstance(read[key], str) else read[key]
        if not isinstance(value, Collection) or not all(isinstance(item, str) for item in value):
            raise PluginError(f"{kind} {name!r} is declared with {key} {value!r}, which is no list of names.")
        read[key] = tuple(value)
    return read

"""Config files of other frameworks: YAML, or the shell script that starts a run, as keys and values."""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmrl_core.errors import ConfigError
from mmrl_core.peers.keys import SWIFT, TRL, Key
from mmrl_core.peers.keys_of_verl import EASYR1, RENAMED, VERL

TABLES: Mapping[str, Mapping[str, Key]] = {"trl": TRL, "verl": VERL, "easyr1": EASYR1, "swift": SWIFT}
NAMES = {"trl": "TRL", "verl": "verl", "easyr1": "EasyR1", "swift": "ms-swift"}
DOTTED = ("verl", "easyr1")
"""Those whose keys are sections in sections."""

_ENVIRONMENT = {
    "NPROC_PER_NODE": "num_processes",
    "MAX_PIXELS": "max_pixels",
    "num_processes": "num_processes",
    "nproc_per_node": "num_processes",
}
"""Variables and options of launchers that are keys of a config here."""


_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
}
"""What the arithmetic of a script may use."""


class Found(NamedTuple):
    """What a file says: whose it is, keys with values, and the folder that its paths are looked for in."""

    peer: str
    values: dict[str, Any]
    folder: Path


def read_file(path: Path, peer: str | None = None) -> Found:
    """Read a config.

    Args:
        path: a YAML file, or a shell script with one command that trains.
        peer: key of `NAMES`; None: it is recognised.

    Raises:
        ConfigError: there is no such file, or it is nothing of the kind.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        values, said = _yaml(path, text), ""
    else:
        values, said = _script(path, text)
    peer = peer or _peer(values, said)
    if peer is None:
        raise ConfigError(
            f"{path}: no key says whose config it is. Name the framework: --peer {', '.join(NAMES)}. Keys: "
            f"{', '.join(list(values)[:8]) or 'none'}"
        )
    if peer in DOTTED:
        values = {_as_listed(key): value for key, value in _flat(values, TABLES[peer])}
    return Found(peer, values, path.parent)


def _as_listed(key: str) -> str:
    """A key as the tables have it, if another version calls it otherwise."""
    before = next((start for start in RENAMED if key.startswith(start)), "")
    return RENAMED[before] + key.removeprefix(before) if before else key


def _peer(values: Mapping[str, Any], said: str) -> str | None:
    """Whose config it is, by its keys and the words of its command."""
    keys = {key.partition(".")[0] for key in values}
    if "actor_rollout_ref" in keys or "verl.trainer.main_ppo" in said:
        return "verl"
    if "worker" in keys or "verl.trainer.main" in said:
        return "easyr1"
    if "rlhf_type" in keys or re.search(r"\bswift\s+rlhf\b|rlhf\.py", said):
        return "swift"
    return "trl" if keys & (TRL.keys() - SWIFT.keys()) or keys & {"num_generations", "reward_funcs"} else None


def scalar(text: Any) -> Any:
    """A value as a command line or an older YAML writes it: `1e-6` is a number, `True` a bool, `[a,b]` a list."""
    if not isinstance(text, str):
        return text
    plain = text.strip()
    if plain.lower() in ("true", "false"):
        return plain.lower() == "true"
    if plain.lower() in ("null", "none", "~", ""):
        return None
    for kind in (int, float):
        try:
            return kind(plain)
        except ValueError:
            continue
    if plain[:1] == "[" and plain[-1:] == "]":
        return [scalar(item.strip().strip("'\"")) for item in plain[1:-1].split(",") if item.strip()]
    return text


def _scalars(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _scalars(item) for key, item in value.items()}
    return [_scalars(item) for item in value] if isinstance(value, list) else scalar(value)


def _yaml(path: Path, text: str) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: expected keys with values, this is {type(values).__name__}.")
    return dict(_scalars(values))


def _flat(values: Mapping[str, Any], table: Mapping[str, Key], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys; a key of the table keeps its mapping."""
    for key, value in values.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in table:
            yield from _flat(value, table, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# Scripts


def _script(path: Path, text: str) -> tuple[dict[str, Any], str]:
    """Keys of the command that trains, over those of a YAML that it names; and the command's words."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\s*\n", " ", "\n".join(lines))
    variables: dict[str, str] = {}
    best: list[str] = []
    for line in joined.splitlines():
        try:
            words = [_expanded(word, variables) for word in shlex.split(_summed(line, variables), comments=True)]
        except ValueError as error:
            raise ConfigError(f"{path}: {error} in {line.strip()[:80]!r}") from error
        words = words[1:] if words[:1] == ["export"] else words
        if words and all(re.match(r"\w+=", word) for word in words):
            variables |= dict(word.split("=", 1) for word in words)
        elif len(words) > len(best):
            best = words
    if not any(word.startswith("--") or "=" in word for word in best):
        raise ConfigError(f"{path}: no command is in it that has options, as one that starts a run does.")
    values: dict[str, Any] = {}
    for name, value in {**variables, **dict(w.split("=", 1) for w in best if re.match(r"[A-Z_]+=", w))}.items():
        if name in _ENVIRONMENT:
            values[_ENVIRONMENT[name]] = scalar(value)
    values |= _arguments(best)
    named = values.pop("config", None)
    if named is not None:
        if (found := find_path(str(named), path.parent)) is None:
            raise ConfigError(f"{path} names the config {named}, and there is no such file from here.")
        base = _yaml(found, found.read_text(encoding="utf-8-sig"))
        flat = any(isinstance(value, Mapping) for value in base.values()) and any("." in key for key in values)
        values = (dict(_flat(base, {})) if flat else base) | values
    return values, " ".join(best)


def _expanded(word: str, variables: Mapping[str, str]) -> str:
    """A word with variables of the script in place; those of the shell stay, but HOME and arguments with a default."""

    def value(match: re.Match[str]) -> str:
        name, default = match["name"] or match["bare"], match["default"]
        if name == "HOME":
            return "~"
        return variables.get(name, default if default is not None else "" if name in "@*" else match[0])

    # Braces hold no braces here, so that of `${A:-${B}}` the inner one is read first.
    pattern = r"\$(?:\{(?P<name>\w+|[@*])(?::-(?P<default>[^{}]*))?\}|(?P<bare>\w+|[@*]))"
    before = None
    while word != before:
        before, word = word, re.sub(pattern, value, word)
    return word


def _summed(line: str, variables: Mapping[str, str]) -> str:
    """A line with the numbers that `$((a + 2 * 3))` stands for."""
    return re.sub(r"\$\(\((.*?)\)\)", lambda match: _computed(match[1], variables), line)


def _computed(text: str, variables: Mapping[str, str]) -> str:
    """A sum or product of whole numbers and variables; the text without blanks where it is more."""
    filled = re.sub(r"\$?\{?([A-Za-z_]\w*)\}?", lambda match: variables.get(match[1], match[0]), text)
    try:
        return str(_number(ast.parse(filled.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return filled.replace(" ", "")


def _number(node: ast.AST) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_number(node.left), _number(node.right))
    raise ValueError


def _arguments(words: Sequence[str]) -> dict[str, Any]:
    """`--key value ...`, `--key=value`, and `key.path=value` of a command line."""
    values: dict[str, Any] = {}
    key: str | None = None
    for word in words:
        if word == "--":
            key = None
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            key = name.replace("-", "_")
            key = _ENVIRONMENT.get(key, key)
            values[key] = scalar(value) if equals else True
            key = None if equals else key
        elif override := re.fullmatch(r"\+{0,2}([\w.]+)=(.*)", word, re.DOTALL):
            values[override[1]] = scalar(override[2])
        elif key is not None and (values[key] is True or not word.endswith(".py")):  # else the script of a launcher
            value = scalar(word.rstrip(",") if word.endswith(",") else word)
            before = values[key]
            values[key] = value if before is True else [*(before if isinstance(before, list) else [before]), value]
        else:
            key = None
    return {name: value for name, value in values.items() if not re.fullmatch(r"[A-Z_]+", name)}


def find_path(text: str, folder: Path) -> Path | None:
    """A file or folder that a config names: from here, from beside the config, or from a folder above it."""
    named = Path(text).expanduser()
    places = [named] if named.is_absolute() else [Path(), folder, *folder.resolve().parents]
    return next((found for place in places if (found := place / named).exists()), None)

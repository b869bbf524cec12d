"""Writes the reference pages from the code: cli.md, config.md, hooks.md, algorithms.md, conformance.md, classes, peers.

python docs/generate.py            write them
python docs/generate.py --check    exit with 1 and name the pages that are out of date
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mmrl_core import hookspecs
from mmrl_core.checkpoint import MAY_CHANGE
from mmrl_core.cli import EXIT_CODES, make_parser
from mmrl_core.config import schema as config
from mmrl_core.config.limits import MAX_BYTES, MAX_DEPTH, MAX_EXTENDS, MAX_FILLED, MAX_VALUES
from mmrl_core.config.numbers import LARGEST, MOST
from mmrl_core.config.options import REQUIRED, Option, default_text
from mmrl_core.config.words import number
from mmrl_core.language_model import LanguageModelOptions
from mmrl_core.peers import ADVANTAGES, HEAD, LOSSES, OPTIONS, TEXT
from mmrl_core.plugins import presets
from mmrl_core.plugins.registry import CORE, KINDS, Entry, Kind, Registry
from mmrl_core.testing import PROPERTIES

sys.path.insert(0, str(Path(__file__).parent))
from class_pages import CLASSES, class_page
from coming_from import coming_from_page

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py; edit the code instead, and run it again. -->"
RESUMING = """Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and SIGXCPU stop a run after its last whole step is saved; a second one,
more than a second later, stops it at once. `--resume` goes on from the newest whole checkpoint: one with a file that
has changed since it was written is passed over, by name. It takes the task and overrides of the run, and refuses data
files that have changed. These keys may have other values, which the run notes; `*` is one part of a key, any number of
parts at its ends. A run that is complete goes on with its last stage when that gets more steps."""

HELP_WIDTH = "100"  # columns; argparse reads it from the environment


COMING_FROM = {"trl": "trl", "verl": "verl", "easyr1": "easyr1", "swift": "ms_swift"}
"""Other frameworks, and how their pages are called."""


def _class_page(name: str) -> str:
    return _page(class_page(name))


def _coming_from(peer: str) -> str:
    return _page(coming_from_page(peer))


# cli.md


def cli_page() -> str:
    os.environ |= {"COLUMNS": HELP_WIDTH, "NO_COLOR": "1"}
    parser = make_parser()
    parts = [
        "# Commands",
        "After `make demo` or `make install` the command is `.venv/bin/mmrl`; `source .venv/bin/activate` puts it on "
        "the PATH. `mmrl COMMAND --help` shows what is below.",
        _table(("exit code", "meaning"), [(f"`{code}`", meaning) for code, meaning in EXIT_CODES.items()]),
        "Any other is a fault of mmrl or of a plugin, with its traceback.",
        _fenced(parser.format_help()),
    ]
    for name, command in _commands(parser).items():
        parts += [f"## mmrl {name}", _fenced(command.format_help())]
        if name == "train":
            parts += [RESUMING, _table(("key", "what it is"), [(f"`{key}`", what) for key, what in MAY_CHANGE])]
    return _page(parts)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Command name -> its parser."""
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(subparsers.choices)


# config.md


def config_page() -> str:
    parts = [
        "# Config keys",
        "A task config is YAML of this schema. Unknown keys are errors. `extends` (a preset, a task id, a `.yaml` "
        "path, or a list of them; later ones win, and the file wins over all) is read before the schema is checked.",
        f"A stage inherits {', '.join(f'`{name}`' for name in config.STAGE_SECTIONS)} from the top and overrides them "
        "key by key. Mappings merge, scalars and lists replace; a mapping over a list changes single items of it, by "
        "position, name, label, task or kind (`stages.grpo.steps=5`, `rewards.iou.weight=2`).",
        "A `mixture` trains on several tasks at once, of any plugins: `mixture: [{task: vital/tools, weight: 2}, "
        "{task: visual_rft/detection}]`. [PartConfig](#partconfig-mixture) says what a part takes from its task, "
        "[design.md](design.md#mixtures) what is drawn and scored.",
        "A *component* is a registered entry by name, alone (`group_relative`) or with options "
        "(`{name: group_relative, eps: 1e-4}`); see [algorithms.md](algorithms.md) for the entries of the core, and "
        "`mmrl list` for those of plugins. A component keeps its options while it is merged under the same name; "
        "another name drops them.",
        "`plugins` adds up: a plugin or behaviour that a later file or override lists is appended, one that is there "
        "already has its options merged, and `{name: ..., enabled: false}` takes one out. An empty list takes out "
        "nothing.",
        "Options of the policy `language_model` have a short form: `model: {lora: {rank: 16}}` is "
        "`model: {policy: {lora: {rank: 16}}}`, and `model.lora.rank=16` works on the command line. In files that are "
        "merged the last one wins, whichever form it uses. [LanguageModelOptions](#languagemodeloptions-modelpolicy) "
        "lists them. With another policy a short form is an error.",
        "Every problem of a config is reported at once, with file and line: YAML, keys, values, components that are "
        "not installed, and their options (of what computes with torch, once all names are right). Problems that are "
        "alike are one line, with their number.",
        f"A file is UTF-8 of at most {number(MAX_BYTES)} bytes, values are nested at most {MAX_DEPTH} deep, and there "
        f"are at most {number(MAX_VALUES)} of them with aliases written out ({number(MAX_FILLED)} with what stages and "
        f"parts inherit). A file extends at most {MAX_EXTENDS} files, and so many may extend one another.",
        f"Every number is finite and has a range. Where its type shows no upper bound, a whole number is at most "
        f"{number(MOST)} and any other at most {LARGEST:g}, so that its square stays finite in float32. Numbers "
        "among the options of a component are finite.",
        "Scalars follow YAML 1.2: `1e-6` is a number; `yes`, `no`, `on`, `off` are text; the only bools are `true` and "
        "`false`.",
    ]
    for model in _sections():
        parts += [f"## {_section_title(model)}", inspect.cleandoc(_own_docstring(model)), _key_table(model)]
    return _page(parts)


def _sections() -> list[type[BaseModel]]:
    """The models of the schema, and those of the options of the core's policy after the section that has them."""
    found: list[type[BaseModel]] = []
    for model in _models(config.RunConfig):
        found.append(model)
        if model is config.ModelConfig:
            found += _models(LanguageModelOptions)
    return found


def _models(model: type[BaseModel], seen: dict[type[BaseModel], None] | None = None) -> list[type[BaseModel]]:
    """The models of the schema, each after one that has it as a section."""
    seen = {} if seen is None else seen
    if model not in seen:
        seen[model] = None
        for info in model.model_fields.values():
            for inner in _models_in(info.annotation):
                _models(inner, seen)
    return list(seen)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _section_title(model: type[BaseModel]) -> str:
    if model is config.RunConfig:
        return "Top of a config"
    if model is LanguageModelOptions:
        return f"{model.__name__}: `model.policy`"
    used = sorted({place for owner in _sections() for place in _places(owner, model)})
    return f"{model.__name__}: {', '.join(f'`{place}`' for place in used)}"


def _places(owner: type[BaseModel], model: type[BaseModel]) -> Iterator[str]:
    for name, info in owner.model_fields.items():
        if model in _models_in(info.annotation):
            prefix = "" if owner is config.RunConfig else f"{owner.__name__.removesuffix('Config').lower()}."
            if owner is LanguageModelOptions:
                prefix = "model.policy."
            if prefix == "stage." and name in config.STAGE_SECTIONS:
                continue  # the top shows it
            yield prefix + name


def _own_docstring(model: type[BaseModel]) -> str:
    return model.__dict__.get("__doc__") or ""


def _key_table(model: type[BaseModel]) -> str:
    rows = [
        (f"`{name}`", _type_text(info), _default_text(info), _cell(info.description or ""))
        for name, info in model.model_fields.items()
    ]
    return _table(("key", "type", "default", "what it is"), rows)


def _type_text(info: FieldInfo) -> str:
    return _bounded(_annotation_text(info.annotation), info.metadata)


def _annotation_text(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _bounded(_annotation_text(arguments[0]), arguments[1:])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_annotation_text(member) for member in arguments)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {_annotation_text(arguments[0])}"
    if origin is dict:
        return f"mapping of names to {_annotation_text(arguments[1])}"
    if origin is tuple:
        return f"list of {len(arguments)}, each a {_annotation_text(arguments[0])}"
    if annotation is type(None):
        return "null"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation.__name__
    return {str: "text", int: "whole number", float: "number", bool: "bool", Any: "anything"}.get(
        annotation, str(annotation)
    )


def _bounded(text: str, metadata: Iterable[Any]) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [
        f"{sign} {number(getattr(item, name))}"
        for item in metadata
        for name, sign in signs.items()
        if getattr(item, name, None) is not None and abs(getattr(item, name)) not in (MOST, LARGEST)
    ]
    return f"{text} {' and '.join(limits)}".strip()


def _default_text(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel) and not isinstance(default, config.Component):
        return "see its keys"
    return f"`{json.dumps(_plain(default))}`"


def _plain(value: Any) -> Any:
    if isinstance(value, config.Component):
        return value.name if not value.options else {"name": value.name, **value.options}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


# hooks.md


def hooks_page() -> str:
    hooks = {name: value for name, value in vars(hookspecs).items() if name.startswith("mmrl_")}
    parts = ["# Hooks", _rewrapped(inspect.getdoc(hookspecs) or "").replace("Every hook, in", "In")]
    parts += [_table(("hook", "what it is for"), [(f"[`{n}`](#{n})", _first_line(hook)) for n, hook in hooks.items()])]
    for name, hook in hooks.items():
        first = bool(hook.mmrl_spec.get("firstresult"))
        signature = str(inspect.signature(hook)).replace("'", "")
        kind = "The first plugin to return other than None decides." if first else "Every plugin is called."
        parts += [f"## {name}", _fenced(f"def {name}{signature}", "python"), kind, _fields(inspect.getdoc(hook) or "")]
    return _page(parts)


def _fields(docstring: str) -> str:
    """`:param x: ...` and `:returns: ...` as a list."""
    text, *fields = re.split(r"^:", docstring, flags=re.MULTILINE)
    items = []
    for field in fields:
        name, _, meaning = field.partition(":")
        label = f"`{name.removeprefix('param ')}`" if name.startswith("param ") else name
        items.append(f"- {label}: {' '.join(meaning.split())}")
    return "\n\n".join(filter(None, [_rewrapped(text), "\n".join(items)]))


# algorithms.md


def algorithms_page() -> str:
    from mmrl_core.plugins import builtin

    registry = Registry()
    builtin.mmrl_register(registry)
    kinds = [(f"[{k}](#{k})" if registry.entries(k) else k, kind.description) for k, kind in KINDS.items()]
    parts = [
        "# Registry: kinds, entries, presets",
        "What a config names is registered under a kind and an id. Entries of the core stand without namespace, those "
        "of a plugin as `plugin/name`, and a function in a file as `path/to/file.py:function`, from the current "
        "folder. `mmrl list` and `mmrl info ID` show what is installed.",
        "The options of an entry are the parameters of its signature that the run does not pass, or the fields of a "
        "pydantic model that the class or function has as its attribute `Options`. Reading a config checks names and "
        "types.",
        _table(("kind", "what it registers, and how it is called"), kinds),
    ]
    for name, kind in KINDS.items():
        entries = registry.entries(name)
        if entries:
            parts += [f"## {name}", f"{kind.description[0].upper()}{kind.description[1:]}.", *_given(kind)]
        for entry in entries:
            parts += [f"### {entry.id.removeprefix(f'{CORE}/')}", f"{entry.description}.", *_entry_parts(entry)]
    parts += ["## Presets", "Named under `extends`; `mmrl info PRESET` prints one."]
    rows = [(f"`{name}`", _cell(_leading_comment(path))) for name, path in presets().items()]
    parts += [_table(("preset", "what it sets"), rows), "## Names elsewhere", TEXT.replace("\n", " ")]
    for title, table in (("Losses", LOSSES), ("Advantages", ADVANTAGES), ("Options of `algorithm`", OPTIONS)):
        parts += [f"{title}:", _table(HEAD, [row[:4] for row in table])]
    return _page(parts)


def _entry_parts(entry: Entry) -> Iterator[str]:
    target = entry.load()
    if options := [_option_row(option) for option in entry.options().values()]:
        yield _table(("option", "type", "default"), options)
    yield _fenced(inspect.getdoc(target) or "")


def _option_row(option: Option) -> tuple[str, str, str]:
    default = "required" if option.default is REQUIRED else f"`{default_text(option.default)}`"
    return f"`{option.name}`", _cell(f"`{option.type}`" if option.type else ""), default


def _given(kind: Kind) -> Iterator[str]:
    if kind.given:
        yield f"The run passes {', '.join(f'`{name}`' for name in kind.given)} to those that take it."


def _leading_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")]]
    return " ".join(comment)


# conformance.md

CONFORMANCE = """`mmrl check PLUGIN` and pytest try the same properties, one list in `mmrl_core.testing.PROPERTIES`.
Each is `ok`, `FAIL` with what is wrong, where, and what to do, or `skip` with the reason why there was nothing to try.
No model is loaded and no hub is asked for data: what needs rows is tried on tasks whose data are here or are made, at
most four rows each, and on the cases that a test gives.

A plugin's tests need a file of these lines; pytest makes a test of each property. mmrl-core brings `mmrl_property` to
pytest by an entry point, so that no conftest is needed, and nothing is imported until a test asks for it."""

CASES_TEXT = """A *case* is a data set of one row in the form of a source, which `CASES` beside `PLUGIN` names by the
source's id. It stands in for data that are not here: its row is rendered and scored as each task of the source would,
and its file is taken away, torn, and replaced by another. `write(folder, medium)` writes the data and returns the
source's options; `json_rows` makes it for rows in a JSONL file. `kind` and `column` say what the medium is and where
the source's row holds it (`kind=None`: no media), `split` which split to ask for, and `tasks` for which tasks a row
is, where a source has several kinds of rows."""

TWO_LINES = """PLUGIN = "colours"


def test_conformance(mmrl_property):
    mmrl_property()"""

WITH_CASES = """from mmrl_core.testing import MEDIUM, SourceCase, json_rows

PLUGIN = "gui"
ROW = {"image": MEDIUM, "instruction": "Tap.", "gt_action": "click", "gt_bbox": [0.1, 0.1, 0.5, 0.5]}
CASES = {"gui/gui_r1": (SourceCase(json_rows(ROW), kind="image", column="image"),)}


def test_conformance(mmrl_property):
    mmrl_property()"""


def conformance_page() -> str:
    parts = [
        "# What a plugin keeps",
        CONFORMANCE,
        _fenced(TWO_LINES, "python"),
        CASES_TEXT,
        _fenced(WITH_CASES, "python"),
    ]
    for part in dict.fromkeys(tried.part for tried in PROPERTIES):
        rows = [(tried.name, _cell(tried.sentence)) for tried in PROPERTIES if tried.part == part]
        parts += [f"## {part}", _table(("property", "what holds"), rows)]
    return _page(parts)


# Markdown


def _page(parts: list[str]) -> str:
    title, *rest = [part for part in parts if part.strip()]
    return "\n\n".join([title, NOTE, *rest]) + "\n"


def _fenced(text: str, language: str = "") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _rewrapped(text: str) -> str:
    """Paragraphs on one line each, as Markdown wants them."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))


def _first_line(function: Callable[..., Any]) -> str:
    return _cell((inspect.getdoc(function) or "").split("\n\n")[0])


PAGES = {
    "cli.md": cli_page,
    "config.md": config_page,
    "hooks.md": hooks_page,
    "algorithms.md": algorithms_page,
    "conformance.md": conformance_page,
    **{name: functools.partial(_class_page, name) for name in CLASSES},
    **{f"coming_from_{name}.md": functools.partial(_coming_from, peer) for peer, name in COMING_FROM.items()},
}


def main(arguments: list[str]) -> int:
    """Write or check the pages; returns the exit code."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    stale = []
    for name, make in PAGES.items():
        path, text = FOLDER / name, make()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if arguments:
            stale.append(f"docs/{name}")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/{name}")
    if stale:
        print(f"out of date: {', '.join(stale)}. Run: python docs/generate.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

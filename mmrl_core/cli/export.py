"""`mmrl export`: a trained model as a folder for other programs, with a model card."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl_core.cli.command import Command
from mmrl_core.cli.evaluated import find_evaluated
from mmrl_core.cli.gguf_ready import add_sentencepiece, check_gguf_ready, converter_command
from mmrl_core.cli.hub import check_login, push
from mmrl_core.cli.model_card import model_card
from mmrl_core.errors import MMRLError
from mmrl_core.support import written_aside

if TYPE_CHECKING:
    from mmrl_core.config import RunConfig

PRECISIONS = ("float32", "bfloat16", "float16")
ADAPTER_FILE = "adapter_config.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run (its newest checkpoint), or its checkpoints/step-N")
    parser.add_argument("output", type=Path, metavar="DIR", help="folder to write; it must not exist, or be empty")
    parser.add_argument(
        "--merge",
        action="store_true",
        help="write the whole model, a LoRA adapter merged into its weights (default: the adapter as it was trained)",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="type of the weights of a whole model (default: as they were trained)"
    )
    parser.add_argument(
        "--gguf-ready",
        action="store_true",
        help="see to it that llama.cpp's convert_hf_to_gguf.py takes the folder, or refuse; an adapter needs --merge",
    )
    parser.add_argument(
        "--push",
        metavar="NAME",
        help="send the folder to the hub as NAME, owner/name, where you are logged in; a new model there is private",
    )


def run(arguments: argparse.Namespace) -> None:
    from mmrl_core.checkpoint import find_checkpoint
    from mmrl_core.config import load_config

    evaluated, output = find_evaluated(arguments.run_directory), arguments.output
    if evaluated.run is None or evaluated.weights is None:
        raise MMRLError(f"{arguments.run_directory} is no run and no checkpoint of one, so there is nothing to export.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise MMRLError(f"{output} exists and is not an empty folder. Name another, or remove it.")
    checkpoint = find_checkpoint(evaluated.weights)
    weights = checkpoint / "model"
    is_adapter = (weights / ADAPTER_FILE).is_file()
    if arguments.merge and not is_adapter:
        raise MMRLError(f"{weights} is no LoRA adapter, so there is nothing to merge. Leave out --merge.")
    if arguments.precision and is_adapter and not arguments.merge:
        raise MMRLError("--precision is for whole models, and this is a LoRA adapter. Add --merge, or leave it out.")
    if arguments.gguf_ready and is_adapter and not arguments.merge:
        raise MMRLError("--gguf-ready is for whole models, and this is a LoRA adapter. Add --merge, or leave it out.")
    if arguments.push is not None:
        check_login(arguments.push)
    own = str(evaluated.run / "config.yaml")
    config = load_config(own)
    if output.is_dir():
        output.rmdir()
    with written_aside(output) as aside:
        if arguments.merge or arguments.precision:
            aside.mkdir(exist_ok=True)
            # An adapter on quantised weights is merged into the plain ones.
            overrides = ["stages=[]", *(["model.lora=null", "model.quantization=null"] if is_adapter else [])]
            overrides += [f"model.precision={arguments.precision}"] if arguments.precision else []
            _write_whole(load_config(own, overrides), weights, aside)
        else:
            shutil.copytree(weights, aside, dirs_exist_ok=True)
        if arguments.gguf_ready:
            _make_gguf_ready(config, aside)
        card = model_card(evaluated.run, checkpoint.name, config, architecture=_architecture(aside))
        (aside / "README.md").write_text(card, encoding="utf-8")
    print(f"{checkpoint.name} of {evaluated.run} written to {output}")
    if arguments.gguf_ready:
        print(f"for llama.cpp: {converter_command(output)}")
    if arguments.push is not None:
        print(f"sent to {push(output, arguments.push, f'{checkpoint.name} of {config.name}')}")


def _write_whole(config: RunConfig, weights: Path, folder: Path) -> None:
    """Write a model as its policy does, after it was loaded from `weights`, with an adapter merged."""
    from mmrl_core.plugins import load_plugins
    from mmrl_core.policy import make_policy

    registry = load_plugins().registry
    with _with_its_base(config, weights) as path:
        policy = make_policy(config, registry, path=path, device="cpu")
        try:
            policy.save(folder)
        finally:
            policy.close()


def _make_gguf_ready(config: RunConfig, folder: Path) -> None:
    from mmrl_core.plugins import load_plugins
    from mmrl_core.starting_model import starting_model

    if not _architecture(folder):
        raise MMRLError("--gguf-ready is for models of transformers, which this is not. Leave it out.")
    add_sentencepiece(folder, starting_model(config, load_plugins().registry))
    check_gguf_ready(folder)


def _architecture(folder: Path) -> str | None:
    """Class in transformers of a model; None for an adapter, "" for what another policy wrote."""
    if (folder / ADAPTER_FILE).is_file():
        return None
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    return str((settings.get("architectures") or ["AutoModel"])[0])


@contextmanager
def _with_its_base(config: RunConfig, weights: Path) -> Iterator[Path]:
    """The folder of an adapter whose model is here; a copy that names the run's starting model, where it has moved."""
    from mmrl_core.plugins import load_plugins
    from mmrl_core.starting_model import starting_model

    registry = load_plugins().registry
    policy_class = registry.get("policy", config.model.policy.name).load()
    if not policy_class.needs_base(weights):
        yield weights
        return
    base = starting_model(config, registry)
    with tempfile.TemporaryDirectory() as made:
        copy = Path(made) / weights.name
        shutil.copytree(weights, copy)
        settings = json.loads((copy / ADAPTER_FILE).read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = str(base)
        (copy / ADAPTER_FILE).write_text(json.dumps(settings), encoding="utf-8")
        yield copy


COMMAND = Command(
    "export",
    "Write a checkpoint's model, or LoRA adapter, as a folder for other programs, with a model card.",
    "mmrl export runs/first exported --merge --precision bfloat16",
    add_arguments,
    run,
)

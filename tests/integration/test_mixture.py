"""Runs on a mixture: rewards, evaluation and written rollouts by part, resumed bit for bit, shared by two processes."""

import json
import math
import shutil
from collections import Counter

import pytest

from mmrl_core.errors import TaskDataError
from mmrl_core.runs import read_metrics

HARD = '"""Rewards of a part."""\n\ndef never(completions, samples):\n    return [0.0 for _ in completions]\n'


PROBE = """
from mmrl_core import hookimpl

ROWS = []

@hookimpl
def mmrl_after_update(batch):
    ROWS.extend(batch.rows)
"""


@pytest.fixture
def mixed(base_config, data_files, rewards_file, tmp_path):
    """`mixed(stage settings, **config)` -> plain config of 2 steps of 4 x 3: part `pictures`, three times `words`."""
    (tmp_path / "hard.py").write_text(HARD)
    words = {
        "name": "words",
        "weight": 3,
        "data": {"train": {"path": str(data_files / "text.jsonl")}, "held_out": None},
        "prompt": {"images": [], "text": "Say it: {question}"},
        "rewards": [f"{rewards_file}:spread", {"name": f"{tmp_path}/hard.py:never", "weight": 2.0}],
    }
    base = base_config("qwen2_vl")

    def config(stage=None, **settings):
        pictures = {"name": "pictures", "data": {"held_out": {**base["data"]["train"], "limit": 3}}}
        return {
            **base,
            "rewards": [f"{rewards_file}:spread"],
            "mixture": [pictures, words],
            "stages": [{"kind": "grpo", "steps": 2, "prompts_per_step": 4, "group_size": 3, **(stage or {})}],
            "log": {"rollouts_every_steps": 1, "rollouts_per_step": 4},
            **settings,
        }

    return config


def rollouts_of(output, pattern="step-*-train.jsonl"):
    files = sorted((output / "rollouts").glob(pattern))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def test_rollouts_are_scored_by_the_rewards_of_their_part(make_trainer, mixed):
    trainer = make_trainer(mixed())
    trainer.recorder.alarms.constant.patience = 2
    trainer.run(resume=False)
    steps = [record for record in read_metrics(trainer.output) if record["kind"] == "step"]
    for record, rollouts in zip(steps, rollouts_of(trainer.output), strict=True):
        of_part = {
            part: [r for r in rollouts if r["prompt_id"].startswith(f"{part}/train:")] for part in ("pictures", "words")
        }
        assert {part: len(members) for part, members in of_part.items()} == {"pictures": 3, "words": 9}
        # Of 4 prompts one is due at 1/2, the others at 1/6, 1/2 and 5/6; what is written takes the parts in turn.
        assert [r["prompt_id"].partition("/")[0] for r in rollouts[::3]] == ["words", "pictures", "words", "words"]
        for part, members in of_part.items():
            for rollout in members:
                scored = {name for name, value in rollout["rewards"].items() if value is not None}
                assert scored == ({"pictures/spread"} if part == "pictures" else {"words/spread", "words/never"})
                assert rollout["total"] == pytest.approx(rollout["rewards"][f"{part}/spread"], abs=1e-6)
                assert ("Say it" in rollout["prompt"]) == (part == "words")
            mean = sum(rollout["total"] for rollout in members) / len(members)
            assert record[f"reward/{part}/spread"] == pytest.approx(mean, rel=1e-5)
            assert record[f"reward/{part}/total"] == pytest.approx(mean, rel=1e-5)
        assert record["unscored"] == 0 and record["reward/words/never"] == 0
        assert any(rollout["advantage"] for rollout in rollouts)
    assert trainer.recorder.alarms.constant.state()["reported"] == [
        "words/never"
    ]  # and not what other parts leave unscored


def test_a_step_without_a_part_does_not_count_against_its_rewards(make_trainer, mixed):
    """Of 4 steps of 1 prompt, each is of one part: `pictures/spread` is absent from most."""
    trainer = make_trainer(mixed({"steps": 4, "prompts_per_step": 1}))
    trainer.recorder.alarms.constant.patience = 1
    trainer.run(resume=False)
    assert trainer.recorder.alarms.constant.state()["reported"] == ["words/never"]
    steps = [record for record in read_metrics(trainer.output) if record["kind"] == "step"]
    absent = [record["reward/pictures/spread"] is None for record in steps]
    assert Counter(absent) == {True: 3, False: 1}
    assert all(record["reward/total"] is not None for record in steps)


def test_held_out_rows_are_evaluated_by_part(make_trainer, mixed, data_files, rewards_file, tmp_path):
    metric = tmp_path / "metric.py"
    metric.write_text(
        "def rows(completions, samples):\n    return {'rows': len(completions), 'n': samples[0]['number']}\n"
    )
    config = mixed(eval={"temperatures": [0.0, 1.0]})
    words = config["mixture"][1]
    words |= {"metrics": [f"{metric}:rows"]}
    words["data"]["held_out"] = {"path": str(data_files / "text.jsonl"), "split": "train[10:]"}
    trainer = make_trainer(config)
    metrics = trainer.evaluator.evaluate(trainer.policy)
    for prefix in ("greedy", "t1"):
        assert metrics[f"{prefix}/words/rows"] == 6 and metrics[f"{prefix}/words/n"] == 10
        assert f"{prefix}/pictures/rows" not in metrics and f"{prefix}/pictures/reward/total" not in metrics
        assert metrics[f"{prefix}/words/reward/never"] == 0
        parts = [metrics[f"{prefix}/pictures/reward/spread"], metrics[f"{prefix}/words/reward/total"]]
        assert metrics[f"{prefix}/reward/total"] == pytest.approx(sum(parts) / 2)  # not weighted by rows
    assert metrics["num_prompts"] == 9
    trainer.run(resume=False)
    (shown, *_) = rollouts_of(trainer.output, "step-000000-held_out.jsonl")
    assert [r["prompt_id"].partition("/")[0] for r in shown] == ["pictures", "words"] * 3 + ["words"] * 3


def test_a_supervised_stage_learns_the_target_of_each_part(make_trainer, mixed, install):
    install("probe_targets", PROBE)
    stage = {"kind": "sft", "steps": 1, "mixture": {"words": {"target": "no {answer}"}}}
    trainer = make_trainer(mixed(stage, plugins=["probe_targets"]))
    trainer.run(resume=False)
    import probe_targets

    assert len(probe_targets.ROWS) == 4
    rows = {part: source for part, source in zip(("pictures", "words"), trainer.sampler.source.sources, strict=True)}
    tokenizer = trainer.policy.encoder.tokenizer
    for row in probe_targets.ROWS:
        part, _, name = row.prompt_id.partition("/")
        answer = rows[part].prompt(int(name.split(":")[1])).sample["answer"]
        expected = f"no {answer}" if part == "words" else answer
        assert tokenizer.decode(row.action, skip_special_tokens=True) == expected


def test_a_resumed_run_equals_one_never_stopped(make_trainer, mixed, data_files, tmp_path, without_times):
    """Stopped after step 3 of 6 with broken rows in one part; 12 prompts are not a whole number of epochs of either."""
    data = shutil.copytree(data_files, tmp_path / "data")
    (data / "picture-2.png").write_bytes(b"no picture")
    source = {"name": "rows", "path": str(data / "pictures.parquet")}
    settings = {"data": {"train": source, "max_broken": 0.5}, "checkpoint": {"every_steps": 3}}
    config = mixed({"steps": 6, "algorithm": {"kl": {"coefficient": 0.1}}}, **settings)
    config["mixture"][0] |= {"weight": 2, "data": {"held_out": {**source, "limit": 2}}}
    whole = make_trainer(config)
    whole.run(resume=False)

    stopped = make_trainer(config)
    shape_rewards = stopped.hooks.mmrl_shape_rewards

    def stop_in_the_fourth(**arguments):
        if stopped.state.step == 3:
            raise TaskDataError("stopped")
        return shape_rewards(**arguments)

    stopped.hooks.mmrl_shape_rewards = stop_in_the_fourth
    with pytest.raises(TaskDataError, match="stopped"):
        stopped.run(resume=False)
    resumed = make_trainer(config, stopped.output)
    resumed.run(resume=True)
    left_out = "count/media_encodes"
    expected, found = (
        [without_times(record, left_out) for record in read_metrics(trainer.output)] for trainer in (whole, resumed)
    )
    assert found == expected and any(math.isfinite(record.get("loss", math.nan)) for record in found)
    weights = [
        trainer.output / "checkpoints" / "step-6" / "model" / "model.safetensors" for trainer in (whole, resumed)
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert rollouts_of(resumed.output) == rollouts_of(whole.output)


def test_one_model_trains_on_tasks_of_two_plugins(make_trainer, tiny_model):
    """One talks to tools over two turns, the other answers pictures at once, without being told of tools."""
    small = {"train": {"num_rows": 12}, "held_out": {"num_rows": 4}}
    config = {
        "name": "test/two",
        "model": {"path": str(tiny_model("qwen2_5_vl")), "freeze": ["vision"]},
        "rollout": {"strategy": {"name": "multi_turn", "max_turns": 2}, "max_tokens": 6},
        "optimizer": {"lr": 1e-3},
        "mixture": [
            {"task": "vital/demo_tools", "data": small},
            {"task": "visual_rft/demo_detection", "name": "boxes", "data": small},
        ],
        "stages": [
            {
                "kind": "sft",
                "steps": 1,
                "prompts_per_step": 4,
                "mixture": {"demo_tools": {"target": "{demonstration}"}, "boxes": {"target": "{solution}"}},
            },
            {"kind": "grpo", "steps": 1, "prompts_per_step": 4, "group_size": 2},
        ],
        "checkpoint": {"every_steps": None},
    }
    trainer = make_trainer(config)
    trainer.run(resume=False)
    records = read_metrics(trainer.output)
    last = records[-1]
    assert last["label"] == "after grpo"
    assert {"greedy/demo_tools/accuracy", "greedy/demo_tools/reward/vital/task", "greedy/boxes/AP"} <= last.keys()
    assert {"greedy/boxes/reward/iou", "greedy/reward/total"} <= last.keys() and "greedy/boxes/accuracy" not in last
    step = records[-2]
    assert {"reward/demo_tools/vital/task", "reward/boxes/iou", "reward/boxes/total"} <= step.keys()
    tools, boxes = (source.prompt(0) for source in trainer.sampler.source.sources)
    assert [tool["function"]["name"] for tool in tools.tools] == ["get_video_clip_frame"] and boxes.tools == ()

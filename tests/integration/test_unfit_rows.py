"""Rows that the policy does not take are set aside with their reason, in training and in evaluation."""

import json
import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmrl_core.errors import TaskDataError, UnfitPromptError
from mmrl_core.evaluation import Evaluator
from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.plugins import load_plugins
from mmrl_core.runs import read_metrics
from mmrl_core.testing import AUDIO_WINDOW_S, check_task
from mmrl_core.types import Sampling

NUM_ROWS, UNFIT = 6, 2
MAX_TOKENS = 60


def words(folder, unfit):
    return {"question": "word " * (80 if unfit else 2)}


def pictures(folder, unfit):
    """A picture of 140 x 140 px is one of 25 tokens."""
    name = f"{'large' if unfit else 'small'}.png"
    Image.new("RGB", (280, 280) if unfit else (140, 140)).save(folder / name)
    return {"question": "what is it", "image": name}


def threads(folder, unfit):
    name = f"{'thread' if unfit else 'square'}.png"
    Image.new("RGB", (2250, 10) if unfit else (56, 56)).save(folder / name)
    return {"question": "what is it", "image": name}


def sounds(folder, unfit):
    name = f"{'long' if unfit else 'short'}.wav"
    soundfile.write(folder / name, np.zeros(16000 * (AUDIO_WINDOW_S + 1) if unfit else 1600, dtype=np.float32), 16000)
    return {"question": "what is it", "audio": name}


CASES = {
    "a text over the limit": ("qwen2", words, rf"has \d+ tokens, over model\.max_prompt_tokens={MAX_TOKENS}"),
    "a picture over the limit": ("qwen2_5_vl", pictures, rf"over model\.max_prompt_tokens={MAX_TOKENS}"),
    "a picture 225 times as wide as high": (
        "qwen2_vl",
        threads,
        r"refuses it \(pictures: 2250 x 10 px\): .*aspect ratio",
    ),
    "an audio beyond what the model hears": ("qwen2_audio", sounds, r"an audio of 5\.0 s, and the model hears 4 s"),
}


@pytest.fixture
def task(tmp_path, tiny_model, rewards_file):
    """`task(case, **data)` -> plain config of a run over six rows, of which one does not fit the model."""

    def config(case, **data):
        kind, make, _ = CASES[case]
        rows = [make(tmp_path, index == UNFIT) | {"answer": "dog", "number": index} for index in range(NUM_ROWS)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"name": "rows", "path": str(tmp_path / "rows.jsonl")}
        media = {"images": "image", "audios": "audio"}
        return {
            "name": "test/unfit",
            "model": {"path": str(tiny_model(kind)), "max_prompt_tokens": MAX_TOKENS},
            "data": {"train": source, "held_out": source, **data},
            "prompt": {
                **{name: [f"{{{column}}}"] for name, column in media.items() if column in rows[0]},
                "text": "{question}",
                "answer": "{answer}",
            },
            "rewards": [f"{rewards_file}:spread"],
            "rollout": {"max_tokens": 2},
            "stages": [{"kind": "sft", "steps": 2, "prompts_per_step": 3}],
            "checkpoint": {"every_steps": None},
        }

    return config


@pytest.mark.parametrize("case", CASES)
def test_such_a_row_is_set_aside_and_the_run_goes_on(case, task, make_trainer):
    trainer = make_trainer(task(case))
    trainer.run(resume=False)
    (broken,) = [json.loads(line) for line in (trainer.output / "set_aside.jsonl").read_text().splitlines()]
    assert (broken["id"], broken["index"]) == (f"train:{UNFIT}", UNFIT) and broken["file"]
    assert re.search(CASES[case][2], broken["reason"])
    records = read_metrics(trainer.output)
    assert [record["set_aside"] for record in records if record["kind"] == "step"][-1] == 1
    evaluations = [record for record in records if record["kind"] == "eval"]
    assert len(evaluations) == 2
    for record in evaluations:
        assert (record["num_prompts"], record["set_aside"]) == (NUM_ROWS - 1, 1), "counted, and not scored"


@pytest.mark.parametrize("case", CASES)
def test_with_on_long_error_such_a_row_ends_the_run_by_name(case, task, make_trainer):
    values = task(case, on_long="error")
    values["data"].pop("held_out")
    with pytest.raises(UnfitPromptError, match=f"prompt 'train:{UNFIT}'.*{CASES[case][2]}"):
        make_trainer(values).run(resume=False)


def test_a_row_without_an_answer_is_set_aside_where_answers_are_learnt(task, make_trainer, tmp_path):
    values = task("a text over the limit")
    rows = [words(tmp_path, unfit=False) | {"answer": None if index == UNFIT else "dog"} for index in range(NUM_ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values["data"].pop("held_out")
    trainer = make_trainer(values)
    trainer.run(resume=False)
    (broken,) = [json.loads(line) for line in (trainer.output / "set_aside.jsonl").read_text().splitlines()]
    assert broken["index"] == UNFIT and "no answer to learn: set the stage's target" in broken["reason"]


def test_so_many_such_rows_as_broken_ones_end_a_run(task, make_config, tiny_model, tmp_path):
    """With `max_broken` of 5 %, two of 20 are too many; the evaluation says the same."""
    values = task("a text over the limit")
    rows = [words(tmp_path, index in (3, 19)) | {"answer": "dog", "number": index} for index in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = LanguageModelPolicy(tiny_model("qwen2"), max_prompt_tokens=MAX_TOKENS)
    with pytest.raises(TaskDataError, match=r"2 of 20 rows of 'held_out' are broken, more than data\.max_broken"):
        Evaluator(make_config(values), load_plugins()).evaluate(policy)


def test_a_check_tells_of_such_rows_and_does_not_refuse_the_run(task, make_config):
    for case, (_, _, reason) in CASES.items():
        findings = [finding for finding in check_task(make_config(task(case))) if not finding.ok]
        assert findings and all(finding.tolerable for finding in findings), case
        expected = "more than model.max_prompt_tokens: 60" if "max_prompt_tokens" in reason else reason
        assert re.search(expected, findings[0].what)
        strict = [finding for finding in check_task(make_config(task(case, on_long="error"))) if not finding.ok]
        assert strict and not any(finding.tolerable for finding in strict), case


def test_a_dry_run_sets_them_aside_too(task, make_config):
    from mmrl_core.cli.dry_run import check_run

    lines = check_run(make_config(task("a text over the limit")))
    assert any("stage sft: 2 steps" in line for line in lines)
    assert any(line.startswith("set aside: ") and "max_prompt_tokens: 60" in line for line in lines)


def test_media_that_the_model_never_takes_are_a_mistake_of_the_task_and_end_the_run(task, make_trainer, tiny_model):
    values = task("a picture over the limit")
    values["model"]["path"] = str(tiny_model("qwen2"))
    values["data"].pop("held_out")
    with pytest.raises(TaskDataError, match=r"holds images, but the model takes none\. Take out prompt\.images"):
        make_trainer(values).run(resume=False)


def test_a_reply_that_the_processor_refuses_ends_the_conversation_and_not_the_run(tiny_model, make_prompt):
    policy = LanguageModelPolicy(tiny_model("qwen2_vl"))
    (group,) = policy.rollout([make_prompt("p", "zoom in")], 1, Sampling(max_tokens=2))
    for size, taken in (((2250, 10), False), ((56, 56), True)):
        content = [{"type": "image", "image": Image.new("RGB", size)}, {"type": "text", "text": "cut"}]
        observed = policy.observe(group.prompt, group.rollouts[0], [{"role": "tool", "content": content}])
        assert (observed is not None) == taken


def test_a_role_that_the_template_does_not_know_is_said_so(tiny_model):
    from mmrl_core.types import Prompt

    policy = LanguageModelPolicy(tiny_model("gemma2"), attention="eager")
    texts = {role: [{"type": "text", "text": "be brief"}] for role in ("system", "user")}
    prompt = Prompt("p", [{"role": role, "content": content} for role, content in texts.items()], {})
    with pytest.raises(UnfitPromptError, match=r"prompt 'p': .*roles system, user: System role not supported"):
        policy.prompt_length(prompt)

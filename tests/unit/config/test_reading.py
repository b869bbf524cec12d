"""Configs: merging, overrides, errors with file and line, and the check of components."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from mmrl_core.config.components import check_components
from mmrl_core.config.reading import (
    differing_keys,
    dump_config,
    extends_chain,
    load_config,
    load_reward,
)
from mmrl_core.config.schema import RunConfig
from mmrl_core.errors import ConfigError, PluginError
from mmrl_core.plugins import load_plugins, presets

GRPO_STAGE = "stages: [{kind: grpo, steps: 3}]\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a YAML file into the current folder, which is empty; returns its path."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "run.yaml") -> str:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    return write_file


def problems(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


# Scalars


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "0.000001", "1E-6", "+1e-06"])
def test_floats_without_a_point_are_numbers(write, text):
    assert load_config(write(f"name: x\noptimizer: {{lr: {text}}}")).optimizer.lr == 1e-6


@pytest.mark.parametrize("word", ["no", "off", "yes", "on", "2024-01-01", "1:30", "1e", "."])
def test_words_that_yaml_1_1_takes_for_something_else_are_text(write, word):
    assert load_config(write(f"name: x\nprompt: {{text: {word}}}")).prompt.text == word


def test_a_number_where_text_is_wanted_says_to_quote_it(write):
    assert problems(write("name: x\nmodel:\n  revision: 123")) == [
        "run.yaml:3: 'model.revision' should be text; got 123. Put it in quotes."
    ]


@pytest.mark.parametrize(("word", "meant"), [("yes", "true"), ("off", "false")])
def test_yes_and_off_where_a_bool_is_wanted_say_what_to_write(write, word, meant):
    (problem,) = problems(write(f"name: x\nmodel: {{trust_remote_code: {word}}}"))
    assert "should be true or false" in problem and f"Write {meant}" in problem


def test_quoted_numbers_are_not_numbers_and_numbers_no_bools(write):
    assert problems(write("name: x\nseed: '5'\nmodel: {trust_remote_code: 1}")) == [
        "run.yaml:2: 'seed' should be a whole number; got '5'.",
        "run.yaml:3: 'model.trust_remote_code' should be true or false; got 1.",
    ]


# Errors


def test_all_problems_are_reported_at_once_with_file_and_line(write):
    path = write("name: x\nreward: []\nseed: -1\nlr: 1\nalgorithm:\n  aggregate: tokenmean\nstages:\n  - kind: grop\n")
    found = problems(path)
    assert found[0].startswith("run.yaml:2: unknown key 'reward'. Did you mean 'rewards'? Keys here: algorithm, ")
    assert found[1].startswith("run.yaml:4: unknown key 'lr'. Did you mean 'optimizer.lr'?")
    assert "run.yaml:3: 'seed' should be at least 0; got -1." in found
    assert any(line.startswith("run.yaml:6: 'algorithm.aggregate'") and "'token_mean'?" in line for line in found)
    assert "run.yaml:8: 'stages.0.kind' should be 'sft' or 'grpo'; got 'grop'. Did you mean 'grpo'?" in found
    assert len(found) == 5, "what stages inherit is reported once"


def test_keys_that_contradict_each_other_are_reported_at_their_stage(write):
    found = problems(
        write(
            "name: x\nstages:\n  - {kind: sft, steps: 1, epochs: 1}\n  - kind: grpo\n    steps: 1\n"
            "    prompts_per_step: 1\n    algorithm: {updates_per_rollout: 2}"
        )
    )
    assert found[0] == "run.yaml:3: set exactly one of 'steps' and 'epochs'."
    assert found[1].startswith("run.yaml:4: updates_per_rollout=2 disjoint parts cannot be made of")


def test_an_error_in_an_extended_file_names_that_file(write):
    write("name: base\n\noptimizer:\n  lrr: 1\n", "parts/base.yaml")
    (problem,) = problems(write("extends: parts/base.yaml\nname: x"))
    assert problem.startswith("parts/base.yaml:4: unknown key 'lrr'. Did you mean 'lr'? Keys here: betas, ")


def test_missing_keys_are_reported_where_they_are_missed(write):
    assert problems(write("seed: 1\nrewards:\n  - visual_rft/iou\n  - weight: 2\n")) == [
        "run.yaml:1: missing key 'name'.",
        "run.yaml:4: missing key 'name'.",
    ]


def test_duplicate_keys_are_errors(write):
    assert problems(write("name: x\nseed: 1\nmodel: {}\nseed: 2")) == [
        "run.yaml:4: key 'seed' is written twice; first at run.yaml:2."
    ]


@pytest.mark.parametrize("text", ["name: [x", "name: x\n  seed: 1", "name: x\n\tseed: 1", "name: 'x", "a: *b", "a: \0"])
def test_what_is_not_yaml_is_one_error_with_its_line(write, text):
    (problem,) = problems(write(text))
    assert problem.startswith("run.yaml:") and "this is not YAML" in problem


@pytest.mark.parametrize("text", ["- name", "just text", "3"])
def test_a_config_that_is_no_mapping_is_refused(write, text):
    assert "a config is a mapping" in problems(write(text))[0]


def test_python_tags_are_not_constructed(write):
    assert "is not supported" in problems(write("name: !!python/object/apply:os.getcwd []\nseed: !foo 3"))[0]


def test_an_alias_that_contains_itself_is_refused(write):
    assert "part of" in problems(write("name: x\nrewards: &a [*a]"))[0]


def test_branches_of_a_union_make_one_error(write):
    assert problems(write("name: x\nmodel: {lora: {target_modules: 3}}")) == [
        "run.yaml:2: 'model.lora.target_modules' should be a list, or should be text; got 3. Put it in quotes."
    ]


def test_an_unknown_task_is_named_with_what_is_near():
    with pytest.raises(
        PluginError, match=r"no task 'visual_rft/demo_detektion'.*Did you mean 'visual_rft/demo_detection'"
    ):
        load_config("visual_rft/demo_detektion")
    with pytest.raises(ConfigError, match=r"there is no file no/such\.yaml"):
        load_config("no/such.yaml")


# Extending


def test_later_entries_win_and_the_file_wins_over_all(write):
    write("seed: 1\nversion: 1\ndescription: a\noptimizer: {lr: 1, warmup_steps: 7}", "a.yaml")
    write("seed: 2\nversion: 2", "b.yaml")
    config = load_config(write("extends: [a.yaml, b.yaml]\nname: x\nseed: 3\noptimizer: {lr: 3}"))
    assert (config.seed, config.version, config.description) == (3, 2, "a")
    assert (config.optimizer.lr, config.optimizer.warmup_steps) == (3, 7), "mappings merge deeply"


def test_lists_replace(write):
    write("rewards: [visual_rft/iou, visual_rft/format]", "a.yaml")
    config = load_config(write("extends: a.yaml\nname: x\nrewards: [visual_rft/format]"))
    assert [reward.name for reward in config.rewards] == ["visual_rft/format"]


def test_paths_are_relative_to_the_extending_file(write):
    write("seed: 5", "shared/base.yaml")
    write("extends: base.yaml", "shared/middle.yaml")
    config = load_config(write("extends: ../shared/middle.yaml\nname: x", "runs/run.yaml"))
    assert config.seed == 5
    assert extends_chain(Path("runs/run.yaml")) == ["shared/base.yaml", "shared/middle.yaml"]


def test_paths_may_be_relative_to_the_current_folder(write):
    write("seed: 5", "shared/base.yaml")
    assert load_config(write("extends: shared/base.yaml\nname: x", "runs/run.yaml")).seed == 5


def test_circles_are_refused_with_the_chain(write):
    write("extends: run.yaml", "b.yaml")
    assert problems(write("name: x\nextends: b.yaml")) == [
        "b.yaml:1: extends goes in a circle: run.yaml extends b.yaml extends run.yaml."
    ]


def test_a_file_extended_twice_is_no_circle(write):
    write("seed: 5", "base.yaml")
    write("extends: base.yaml", "a.yaml")
    assert load_config(write("extends: [a.yaml, base.yaml]\nname: x")).seed == 5


def test_what_cannot_be_extended_is_named_with_what_is_near(write):
    found = problems(write("name: x\nextends:\n  - algorithm/dap\n  - no.yaml\n  - 3"))
    assert (
        found[0].startswith("run.yaml:3: extends names 'algorithm/dap'") and "Did you mean 'algorithm/dapo'" in found[0]
    )
    assert found[1].startswith("run.yaml:4: there is no file 'no.yaml'")
    assert found[2].startswith("run.yaml:5: extends names presets, tasks or files; got 3")


@pytest.mark.parametrize("preset", sorted(presets()))
def test_presets_load_and_name_what_exists(write, preset):
    config = load_config(write(f"extends: {preset}\nname: x\n{GRPO_STAGE}"))
    check_components(config, load_plugins())
    assert config.stages[0].algorithm == config.algorithm


def test_algorithm_presets_hold_the_published_settings(write):
    def algorithm(name):
        return load_config(write(f"extends: algorithm/{name}\nname: x")).algorithm

    assert algorithm("dapo").loss.options == {"clip_low": 0.2, "clip_high": 0.28}
    assert algorithm("dapo").overlong.model_dump() == {"cache": 4096, "max_length": 20480}
    assert algorithm("gspo").loss.options == {"ratio": "sequence_mean", "clip_low": 3e-4, "clip_high": 4e-4}
    assert algorithm("dr_grpo").aggregate == "constant_length"
    assert algorithm("bnpo").aggregate == "local_token_mean"
    assert algorithm("cispo").loss.options == {"cap": 5.0}
    assert [stage.name for stage in algorithm("reinforce_pp").advantage] == ["discounted_returns", "whiten"]
    assert [stage.name for stage in algorithm("reinforce_pp_baseline").advantage] == ["group_mean", "whiten"]
    assert (algorithm("rloo").kl.place, algorithm("rloo").kl.estimator) == ("reward", "k1")
    assert algorithm("grpo").aggregate == "sequence_mean"


# Components


@pytest.mark.parametrize(
    ("over", "name", "options"),
    [
        ("{clip_high: 0.3}", "clipped", {"clip_low": 0.1, "clip_high": 0.3}),
        ("{name: clipped, clip_high: 0.3}", "clipped", {"clip_low": 0.1, "clip_high": 0.3}),
        ("{name: core/clipped, clip_high: 0.3}", "core/clipped", {"clip_low": 0.1, "clip_high": 0.3}),
        ("clipped", "clipped", {"clip_low": 0.1}),
        ("cispo", "cispo", {}),
        ("{name: cispo, cap: 5}", "cispo", {"cap": 5}),
    ],
)
def test_the_same_component_merges_and_another_replaces(write, over, name, options):
    write("algorithm: {loss: {name: clipped, clip_low: 0.1}}", "base.yaml")
    loss = load_config(write(f"extends: base.yaml\nname: x\nalgorithm: {{loss: {over}}}")).algorithm.loss
    assert (loss.name, loss.options) == (name, options)


def test_options_of_a_default_component_need_no_name(write):
    loss = load_config(
        write("name: x\nalgorithm: {loss: {clip_high: 0.3}}"), ["algorithm.loss.clip_low=0.1"]
    ).algorithm.loss
    assert (loss.name, loss.options) == ("clipped", {"clip_high": 0.3, "clip_low": 0.1})


def test_a_source_without_a_name_is_the_default_one_when_merged(write):
    write("data: {train: {path: rows.jsonl}}", "base.yaml")
    same = load_config(write("extends: base.yaml\nname: x\ndata: {train: {name: rows, split: val}}"))
    assert (same.data.train.split, same.data.train.options) == ("val", {"path": "rows.jsonl"})
    other = load_config(
        write("extends: base.yaml\nname: x\ndata: {train: {name: visual_rft/digit_scenes, num_rows: 3}}")
    )
    assert other.data.train.options == {"num_rows": 3}


# Stages


def test_stages_inherit_key_by_key_and_override(write):
    config = load_config(
        write(
            "name: x\n"
            "rewards: [visual_rft/iou]\n"
            "rollout: {max_tokens: 100, temperature: 0.9}\n"
            "algorithm: {loss: {name: clipped, clip_high: 0.28}}\n"
            "stages:\n"
            "  - {kind: sft, steps: 1, optimizer: {lr: 1e-5}}\n"
            "  - {kind: grpo, steps: 1, rollout: {max_tokens: 50}, rewards: [], algorithm: {loss: {clip_low: 0.1}}}\n"
        )
    )
    sft, grpo = config.stages
    assert (sft.optimizer.lr, grpo.optimizer.lr, config.optimizer.lr) == (1e-5, 1e-6, 1e-6)
    assert (sft.rollout.max_tokens, grpo.rollout.max_tokens, grpo.rollout.temperature) == (100, 50, 0.9)
    assert [reward.name for reward in sft.rewards] == ["visual_rft/iou"] and grpo.rewards == []
    assert grpo.algorithm.loss.options == {"clip_high": 0.28, "clip_low": 0.1}


def test_a_recipe_can_change_one_stage_of_what_it_extends(write):
    write("stages: [{kind: sft, steps: 1}, {kind: grpo, steps: 2}]", "base.yaml")
    config = load_config(write("extends: base.yaml\nname: x\nstages: {grpo: {group_size: 4}}"))
    assert [(stage.kind, stage.steps, stage.group_size) for stage in config.stages] == [("sft", 1, 8), ("grpo", 2, 4)]


# Overrides


def test_overrides_reach_mappings_items_and_new_keys(write):
    path = write(
        "name: x\nrewards: [visual_rft/iou, visual_rft/format]\nstages: [{kind: sft, steps: 1}, {kind: grpo, steps: 1}]"
    )
    overrides = [
        "stages.1.steps=5",
        "stages.sft.steps=7",
        "rewards.0.weight=2",
        "rewards.format.weight=0.5",
        "optimizer={lr: 1e-5}",
        "model.path=a=b",
        "eval.metrics=[visual_rft/coco_ap]",
    ]
    config = load_config(path, overrides)
    assert [stage.steps for stage in config.stages] == [7, 5]
    assert [reward.weight for reward in config.rewards] == [2.0, 0.5]
    assert [reward.weight for reward in config.stages[1].rewards] == [2.0, 0.5]
    assert (config.stages[0].optimizer.lr, config.model.path) == (1e-5, "a=b")
    assert config.where("stages", 1, "steps") == "command line" and config.where("stages", 1, "kind") == "run.yaml:3"


def test_wrong_overrides_are_reported_as_of_the_command_line(write):
    path = write(f"name: x\n{GRPO_STAGE}")
    found = problems(
        path,
        "rollout.temprature=1",
        "seed=x",
        "stages.3.steps=1",
        "stages.0.step=1",
        "nonsense",
        "a..b=1",
        "seed=[",
        "seed.x=1",
    )
    assert all(line.startswith("command line: ") for line in found)
    text = "\n".join(found)
    assert "'stages.3' is not in the list. Items: 0 (grpo)." in text
    assert "'nonsense' is not of the form key.path=value." in text
    assert "'a..b=1' is not of the form key.path=value." in text
    assert "this is not YAML" in text
    (problem,) = problems(path, "rollout.temprature=1")
    assert problem.startswith("command line: unknown key 'rollout.temprature'. Did you mean 'rollout.temperature'?")
    (problem,) = problems(path, "stages.0.step=1")
    assert problem.startswith("command line: unknown key 'stages.0.step'. Did you mean 'stages.0.steps'?")
    assert problems(path, "seed=x") == ["command line: 'seed' should be a whole number; got 'x'."]


def test_an_ambiguous_item_name_is_refused(write):
    path = write("name: x\nstages: [{kind: grpo, steps: 1, name: first}, {kind: grpo, steps: 1}]")
    assert "more than once" in problems(path, "stages.grpo.steps=2")[0]
    assert load_config(path, ["stages.first.steps=2"]).stages[0].steps == 2


def test_an_override_that_a_stage_overrides_again_is_refused(write):
    path = write("name: x\nstages:\n  - {kind: grpo, steps: 1, optimizer: {lr: 1}}\n  - {kind: sft, steps: 1}")
    assert problems(path, "optimizer.lr=2") == [
        "command line: 'optimizer.lr' has no effect in stage 0, which sets it at run.yaml:3. "
        "Write stages.0.optimizer.lr=... instead or as well."
    ]
    both = ["stages.0.optimizer.lr=3", "optimizer.lr=2"]
    for order in (both, both[::-1]):
        assert [stage.optimizer.lr for stage in load_config(path, order).stages] == [3, 2]
    assert load_config(path, ["optimizer.weight_decay=0.1"]).stages[0].optimizer.weight_decay == 0.1


# The resolved config


def test_a_dumped_config_loads_again_to_an_equal_one(write):
    config = load_config(
        write(
            "name: 'no'\n"
            "description: '1e-6'\n"
            "seed: 3\n"
            "prompt: {text: \"a: {b}\\n  c # d\\n\", system: 'null', answer: ' x '}\n"
            "optimizer: {lr: 1e-22}\n"
            "rewards: [{name: visual_rft/iou, threshold: 0.5, label: '0x10'}]\n"
            "algorithm: {frozen_policies: {a: {rule: every}}, loss: {clip_high: 1e-3}, overlong: {cache: 5}}\n"
            "stages:\n"
            "  - {kind: sft, steps: 1, algorithm: {overlong: null, loss: cispo, frozen_policies: {b: {}}}}\n"
            "  - {kind: grpo, steps: 1, data: {train: {path: x}}}\n"
        )
    )
    Path("saved.yaml").write_text(dump_config(config))
    assert load_config("saved.yaml") == config
    assert differing_keys(load_config("saved.yaml"), config) == []


def test_differing_keys_are_named_with_both_values(write):
    path = write(f"name: x\n{GRPO_STAGE}")
    assert differing_keys(load_config(path), load_config(path, ["stages.0.group_size=4", "model.lora={rank: 4}"])) == [
        "model.policy.lora: null there, a mapping here",
        "stages.0.group_size: 8 there, 4 here",
    ]


def test_where_a_value_came_from_does_not_make_configs_differ(write):
    config = load_config(write("\n\nname: x"))
    assert config.where("name") == "run.yaml:3" and config.where("optimizer", "lr") == "run.yaml:1"
    assert config == RunConfig(name="x") and RunConfig(name="x").where("name") == "config"
    other = load_config(write("name: x\nseed: 0", "other.yaml"))
    assert config.where("seed") != other.where("seed") and config == other
    assert config != RunConfig(name="y")


def test_models_built_in_python_refuse_unknown_keys_too():
    with pytest.raises(ValidationError):
        RunConfig(name="x", sede=1)


# Components against what is installed

REWARD_FILE = """
def good(completions, samples, *, threshold: float = 0.5, kind: "Literal['a', 'b']" = "a"):
    raise AssertionError("called")
def needs(texts, rows, rollouts, scale): ...
def any_option(completions, samples, **options): ...
broken = 3
"""


def test_options_are_checked_against_signatures_without_calling(write):
    write(REWARD_FILE.replace("\ndef good", "\nfrom typing import Literal\ndef good", 1), "my.py")
    path = write(
        "name: x\n"
        "plugins: [visual_rtf]\n"
        "rewards:\n"
        "  - {name: my.py:good, threshhold: 0.7}\n"
        "  - {name: my.py:good, threshold: high}\n"
        "  - {name: my.py:good, completions: []}\n"
        "  - {name: my.py:good, kind: c, wieght: 2}\n"
        "  - {name: my.py:needs, texts: 3}\n"
        "  - {name: my.py:needs, scale: 3, rollouts: 1}\n"
        "  - {name: my.py:any_option, whatever: 3}\n"
        "  - my.py:broken\n"
        "  - my.py:absent\n"
        "  - visual_rft/iuo\n"
        "rollout: {engine: vlm}\n" + GRPO_STAGE
    )
    found = problems(path)
    assert len(found) == len(set(found)), "what a stage inherits is reported once"
    expected = [
        "run.yaml:2: plugin 'visual_rtf' is not installed",
        "run.yaml:4: reward 'my.py:good': no option 'threshhold'. Did you mean 'threshold'? Options: threshold, kind, ",
        "run.yaml:5: reward 'my.py:good': option 'threshold' should be a number; got 'high'.",
        "run.yaml:6: reward 'my.py:good': 'completions' is passed by the run and cannot be set.",
        "run.yaml:7: reward 'my.py:good': option 'kind' should be 'a' or 'b'; got 'c'.",
        "run.yaml:7: reward 'my.py:good': no option 'wieght'. Did you mean 'weight'?",
        "run.yaml:8: reward 'my.py:needs': 'texts' is passed by the run and cannot be set. Options: scale.",
        "run.yaml:8: reward 'my.py:needs': missing option 'scale', which has no default.",
        "run.yaml:9: reward 'my.py:needs': 'rollouts' is passed by the run and cannot be set.",
        "run.yaml:11: reward 'my.py:broken': is not a function with a signature",
        "run.yaml:12: reward 'my.py:absent': my.py has no 'absent'.",
        "run.yaml:13: no installed plugin provides reward 'visual_rft/iuo'. Did you mean 'visual_rft/iou'?",
        "run.yaml:14: no installed plugin provides engine 'vlm'",
    ]
    for line in expected:
        assert any(problem.startswith(line) for problem in found), line
    assert len(found) == len(expected)


def test_options_of_what_computes_are_checked_once_all_names_are_right(write):
    """They import torch, for seconds; a wrong name is said before."""
    text = (
        "name: x\n"
        "rewards: [visual_rft/iuo]\n"
        "algorithm:\n"
        "  advantage:\n"
        "    - {name: group_relative, divide_by_std: groups}\n"
        "    - {name: whiten, reduce_sum: 1}\n" + GRPO_STAGE
    )
    (name,) = problems(write(text))
    assert name.startswith("run.yaml:2: no installed plugin provides reward 'visual_rft/iuo'. Did you mean")
    found = problems(write(text.replace("iuo", "iou")))
    expected = [
        "run.yaml:5: advantage 'group_relative': option 'divide_by_std' should be 'group', 'batch' or 'none'; "
        "got 'groups'. Did you mean 'group'?",
        "run.yaml:6: advantage 'whiten': 'reduce_sum' is passed by the run and cannot be set.",
    ]
    for line in expected:
        assert any(problem.startswith(line) for problem in found), line
    assert len(found) == len(expected)


PARTS_FILE = """
class Policy:
    def __init__(self, path, *, device="cpu", engine=None, num_steps: int = 10): raise AssertionError("called")
class Replay:
    def __init__(self, *, per_prompt: int): raise AssertionError("called")
"""


def test_options_of_policies_and_behaviours_are_checked_without_calling(write):
    write(PARTS_FILE, "my.py")
    path = write(
        "name: x\n"
        "model:\n"
        "  policy: {name: my.py:Policy, num_step: 3, num_steps: many, path: here, device: gpu}\n"
        "plugins:\n"
        "  - my.py:Replay\n"
        "  - {name: my.py:Replay, per_prompt: 2, capacity: 3}\n"
        "  - {name: visual_rft, per_prompt: 2}\n"
        "  - visual_rft\n"
        "  - visual_rft/absent\n"
    )
    expected = [
        "run.yaml:8: 'visual_rft' is listed twice in 'plugins'.",
        "run.yaml:6: 'my.py:Replay' is listed twice in 'plugins'.",
        "run.yaml:7: plugin 'visual_rft' takes no options. Behaviours, which do: none.",
        "run.yaml:5: behaviour 'my.py:Replay': missing option 'per_prompt', which has no default.",
        "run.yaml:6: behaviour 'my.py:Replay': no option 'capacity'. Options: per_prompt, enabled.",
        "run.yaml:9: no installed plugin provides behaviour 'visual_rft/absent' (installed: ",
        "run.yaml:3: policy 'my.py:Policy': no option 'num_step'. Did you mean 'num_steps'? Options: num_steps.",
        "run.yaml:3: policy 'my.py:Policy': option 'num_steps' should be a whole number; got 'many'.",
        "run.yaml:3: policy 'my.py:Policy': 'path' is passed by the run and cannot be set. Options: num_steps.",
        "run.yaml:3: policy 'my.py:Policy': 'device' is passed by the run and cannot be set. Options: num_steps.",
    ]
    found = problems(path)
    assert len(found) == len(expected)
    for line in expected:
        assert any(problem.startswith(line) for problem in found), line


def test_policies_and_plugins_stand_with_or_without_options(write):
    text = "name: x\nmodel: {policy: find/noise}\nplugins: [vital, {name: find/replay, per_prompt: 4}]"
    config = load_config(write(text), ["model.policy.num_steps=5", "plugins.replay.capacity=9"])
    assert (config.model.policy.name, config.model.policy.options) == ("find/noise", {"num_steps": 5})
    assert [(plugin.name, plugin.options) for plugin in config.plugins] == [
        ("vital", {}),
        ("find/replay", {"per_prompt": 4, "capacity": 9}),
    ]
    Path("saved.yaml").write_text(dump_config(config))
    assert load_config("saved.yaml") == config


def test_a_ratio_to_the_sampler_needs_no_correction_for_it(write):
    path = write("name: x\nalgorithm:\n  old_logprobs: sampler\n" + GRPO_STAGE)
    assert "has nothing to correct" in problems(path, "algorithm.importance_correction={}")[0]
    ahead = "rollout={steps_ahead: 1, engine: {name: hf, copy: true}}"
    assert load_config(path, [ahead]).stages[0].algorithm.old_logprobs == "sampler"
    assert "or algorithm.old_logprobs to 'sampler'" in problems(path, ahead, "algorithm.old_logprobs=trainer")[0]


def test_a_scale_of_the_learning_rate_is_a_regular_expression(write):
    (problem,) = problems(write("name: x\noptimizer:\n  lr_scale: {'mean(': 2}"))
    assert problem.startswith("run.yaml:3: 'mean(' is no regular expression: ")


def test_rewards_of_the_command_line_take_checked_options(write):
    write("def good(completions, samples, *, threshold: float = 0.5): ...", "my.py")
    assert load_reward("my.py:good", ["threshold=0.7", "timeout_s=1"]).options == {"threshold": 0.7}
    with pytest.raises(ConfigError) as caught:
        load_reward("my.py:good", ["treshold=0.7", "nonsense"])
    assert str(caught.value).splitlines() == [
        "command line: 'nonsense' is not of the form key=value.",
        "command line: no option 'treshold'. Did you mean 'threshold'? "
        "Options: threshold, weight, label, timeout_s, isolate, stop_on_failure, style, columns, result.",
    ]


# Everything in one go


def test_yaml_schema_components_and_options_are_reported_together(write):
    write("def good(completions, samples, *, threshold: float = 0.5): ...", "my.py")
    found = problems(
        write(
            "name: x\nname: y\nseed: -1\nreward: []\n"
            "rewards:\n  - {name: my.py:good, threshold: high}\n  - visual_rft/iuo\n"
            "rollout: {max_tokens: none, engine: vlm}\nalgorithm: {loss: {name: clipped}}\n"
            "model: {lora: {rnak: 1}}\n"
        )
    )
    expected = [
        "run.yaml:2: key 'name' is written twice",
        "run.yaml:4: unknown key 'reward'.",
        "run.yaml:3: 'seed' should be at least 0",
        "run.yaml:8: 'rollout.max_tokens' should be a whole number",
        "run.yaml:6: reward 'my.py:good': option 'threshold' should be a number; got 'high'.",
        "run.yaml:7: no installed plugin provides reward 'visual_rft/iuo'.",
        "run.yaml:8: no installed plugin provides engine 'vlm'",
        "run.yaml:10: unknown key 'rnak'. Did you mean 'rank'?",
    ]
    assert len(found) == len(expected)
    for line in expected:
        assert any(problem.startswith(line) for problem in found), line


def test_a_component_of_a_broken_section_is_checked_too(write):
    (weight, option) = problems(write("name: x\nrewards:\n  - {name: visual_rft/format, weight: a, strictt: 1}"))
    assert weight.startswith("run.yaml:3: 'rewards.0.weight' should be a number")
    assert option.startswith("run.yaml:3: reward 'visual_rft/format': no option 'strictt'.")


@pytest.mark.parametrize(
    "text",
    [
        "model: {path: x, lora: {rank: 4}, freeze: [vision], precision: bfloat16}",
        "model: {lora: {rank: -4}}",
        "optimiser: {lr: 1}",
        "rewards: [visual_rft/iuo]\nalgorithm: {loss: {name: clipped, clip_high: 0.3}}\nmodel: {lora: {rank: 4}}",
        "plugins: [visual_rtf]\nrollout: {engine: {name: vlm, copy: true}}",
    ],
)
def test_options_of_the_policy_and_wrong_names_are_known_without_torch(text, write):
    write(f"name: x\n{text}")
    code = (
        "import sys\nfrom mmrl_core.config import load_config\n"
        "try: load_config('run.yaml')\nexcept Exception as error: print(type(error).__name__)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == (["False"] if "path: x" in text else ["ConfigError", "False"])


def test_components_that_a_config_does_not_touch_are_not_imported(write):
    write("name: x\nseed: 1")
    code = (
        "import sys; from mmrl_core.config import load_config; load_config('run.yaml'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n"


# Options that a model declares

DECLARED_FILE = """
from pydantic import BaseModel, Field, model_validator

class Inner(BaseModel, extra="forbid"):
    rank: int = Field(4, gt=0)
    names: list[str] = []

class Settings(BaseModel):
    scale: float
    inner: Inner | None = None
    steps: int | None = None

    @model_validator(mode="after")
    def _either(self):
        if self.steps is not None and self.inner is not None:
            raise ValueError("'steps' and 'inner' are both set; set one")
        return self

def good(completions, samples, **options): raise AssertionError("called")
good.Options = Settings
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("scale: 1", []),
        ("scale: 1, inner: {rank: 2, names: [a]}", []),
        ("scale: '1'", ["'rewards.0.scale' should be a number; got '1'."]),
        ("steps: 1", ["reward 'my.py:good': missing option 'scale', which has no default."]),
        (
            "scale: 1, step: 2",
            ["reward 'my.py:good': no option 'step'. Did you mean 'steps'? Options: scale, inner, steps, weight, "],
        ),
        ("scale: 1, inner: {rnk: 2}", ["unknown key 'rnk'. Did you mean 'rank'? Keys here: names, rank."]),
        ("scale: 1, inner: {rank: 0}", ["'rewards.0.inner.rank' should be greater than 0; got 0."]),
        ("scale: 1, inner: {}, steps: 2", ["'steps' and 'inner' are both set; set one."]),
        ("scale: 1, samples: 2", ["reward 'my.py:good': 'samples' is passed by the run and cannot be set."]),
    ],
)
def test_options_that_a_model_declares_are_checked_by_it(write, options, expected):
    write(DECLARED_FILE, "my.py")
    path = write(f"name: x\nrewards:\n  - {{name: my.py:good, {options}}}")
    if not expected:
        assert load_config(path).rewards[0].options["scale"] == 1
        return
    found = problems(path)
    assert len(found) == len(expected)
    assert all(problem.startswith(f"run.yaml:3: {start}") for problem, start in zip(found, expected, strict=True))


# Options of the policy and their short forms


def options_of_policy(config):
    return config.model.policy.options


def test_short_forms_are_options_of_the_policy(write):
    config = load_config(write("name: x\nmodel: {path: p, precision: float32, lora: {rank: 4}}"))
    assert options_of_policy(config) == {"precision": "float32", "lora": {"rank": 4}}
    assert config.where("model", "policy", "lora", "rank") == "run.yaml:2"
    Path("saved.yaml").write_text(dump_config(config))
    assert "policy:\n    name: language_model\n    precision: float32" in Path("saved.yaml").read_text()
    assert load_config("saved.yaml") == config


@pytest.mark.parametrize("base", ["{lora: {rank: 4, alpha: 1}}", "{policy: {lora: {rank: 4, alpha: 1}}}"])
@pytest.mark.parametrize("over", ["{lora: {rank: 8}}", "{policy: {name: language_model, lora: {rank: 8}}}"])
def test_the_last_layer_wins_whichever_form_it_uses(write, base, over):
    write(f"model: {base}", "base.yaml")
    config = load_config(write(f"extends: base.yaml\nname: x\nmodel: {over}"))
    assert options_of_policy(config) == {"lora": {"rank": 8, "alpha": 1}}
    again = load_config("run.yaml", ["model.lora.alpha=2", "model.policy.lora.rank=9", "model.freeze=[vision]"])
    assert options_of_policy(again) == {"lora": {"rank": 9, "alpha": 2}, "freeze": ["vision"]}


def test_wrong_short_forms_are_reported_as_they_were_written(write):
    path = write("name: x\nmodel:\n  lora: {rnk: 2}\n  precison: float32\n  rank: 3\n  max_pixels: many")
    assert problems(path, "model.lora.alpha=x", "model.policy.frezze=[]") == [
        "run.yaml:4: unknown key 'precison'. Did you mean 'precision'? Keys here: attention, blind_check, build, "
        "chat_template, feature_cache, freeze, gradient_checkpointing, lora, max_pixels, max_prompt_tokens, "
        "min_pixels, path, policy, precision, quantization, revision, router_aux_loss, trust_remote_code.",
        "run.yaml:5: unknown key 'rank'. Did you mean 'model.lora.rank'? Keys here: attention, blind_check, build, "
        "chat_template, feature_cache, freeze, gradient_checkpointing, lora, max_pixels, max_prompt_tokens, "
        "min_pixels, path, policy, precision, quantization, revision, router_aux_loss, trust_remote_code.",
        "command line: policy 'language_model': no option 'frezze'. Did you mean 'freeze'? Options: "
        "trust_remote_code, precision, quantization, attention, chat_template, freeze, lora, router_aux_loss, "
        "gradient_checkpointing, min_pixels, max_pixels, max_prompt_tokens, blind_check, feature_cache.",
        "run.yaml:3: unknown key 'rnk'. Did you mean 'rank'? Keys here: alpha, rank, target_modules.",
        "command line: 'model.lora.alpha' should be a number; got 'x'.",
        "run.yaml:6: 'model.max_pixels' should be a whole number; got 'many'.",
    ]


def test_both_forms_of_an_option_in_one_file_are_refused(write):
    (problem,) = problems(write("name: x\nmodel:\n  policy: {lora: {rank: 4}}\n  lora: {rank: 8}"))
    assert problem == "run.yaml:4: 'model.lora' is set a second time; first at run.yaml:3."


def test_another_policy_refuses_short_forms_that_are_not_its_own(write):
    write(PARTS_FILE, "my.py")
    (problem,) = problems(write("name: x\nmodel:\n  policy: my.py:Policy\n  precision: float32"))
    assert problem.startswith("run.yaml:4: 'model.precision' is short for an option of policy 'language_model'")
    assert problem.endswith("and the policy here is 'my.py:Policy'. Its options: num_steps.")
    (problem,) = problems(write("name: x\nmodel: {policy: my.py:Policy}"), "model.lora.rank=8")
    assert problem.startswith("command line: 'model.lora' is short for an option of policy 'language_model'")


def test_another_policy_replaces_the_options_of_a_base_that_set_short_forms(write):
    write(PARTS_FILE, "my.py")
    write("model: {lora: {rank: 4}, precision: float32}", "base.yaml")
    config = load_config(write("extends: base.yaml\nname: x\nmodel: {policy: {name: my.py:Policy, num_steps: 3}}"))
    assert (config.model.policy.name, options_of_policy(config)) == ("my.py:Policy", {"num_steps": 3})


def test_a_component_without_a_name_merges_with_the_default_one_by_name(write):
    write("algorithm: {loss: {clip_low: 0.1}}", "base.yaml")
    loss = load_config(write("extends: base.yaml\nname: x\nalgorithm: {loss: {name: clipped, clip_high: 0.3}}"))
    assert loss.algorithm.loss.options == {"clip_low": 0.1, "clip_high": 0.3}


# Plugins add up


def named_plugins(config):
    return [(plugin.name, plugin.options) for plugin in config.plugins]


def test_plugins_of_two_presets_both_apply_and_a_repeated_one_merges_its_options(write):
    write("plugins: [vital, {name: find/replay, per_prompt: 4}]", "a.yaml")
    write("plugins: [{name: find/replay, capacity: 9}, visual_rft]", "b.yaml")
    path = write("extends: [a.yaml, b.yaml]\nname: x\nplugins: [{name: find/replay, per_prompt: 2}]")
    expected = [("vital", {}), ("find/replay", {"per_prompt": 2, "capacity": 9}), ("visual_rft", {})]
    assert named_plugins(load_config(path)) == expected
    assert named_plugins(load_config(path, ["plugins=[gui]", "plugins.replay.per_prompt=3"])) == [
        ("vital", {}),
        ("find/replay", {"per_prompt": 3, "capacity": 9}),
        ("visual_rft", {}),
        ("gui", {}),
    ]


def test_a_plugin_that_is_not_enabled_is_taken_out(write):
    write("plugins: [vital, {name: find/replay, per_prompt: 4}]", "a.yaml")
    path = write("extends: a.yaml\nname: x\nplugins: [{name: vital, enabled: false}]")
    assert named_plugins(load_config(path)) == [("find/replay", {"per_prompt": 4})]
    assert named_plugins(load_config(path, ["plugins.replay.enabled=false"])) == []
    back = load_config(path, ["plugins=[{name: vital, enabled: true}]"])
    assert named_plugins(back) == [("vital", {}), ("find/replay", {"per_prompt": 4})]
    assert RunConfig(name="x", plugins=[{"name": "vital", "enabled": False}]).plugins == []


def test_a_plugin_that_one_file_names_twice_is_refused_though_its_base_names_it_too(write):
    write("plugins: [vital]", "a.yaml")
    (problem,) = problems(write("extends: a.yaml\nname: x\nplugins:\n  - vital\n  - vital"))
    assert problem == "run.yaml:5: 'vital' is listed twice in 'plugins'."


# Defaults of declared options


def test_a_default_of_the_policy_does_not_differ_from_the_same_value_written_out(write):
    left_out = load_config(write("name: x"))
    written = load_config(write("name: x\nmodel: {precision: auto, max_prompt_tokens: 8192}", "written.yaml"))
    assert differing_keys(left_out, written) == differing_keys(written, left_out) == []
    other = load_config(write("name: x\nmodel: {precision: float32}", "other.yaml"))
    assert differing_keys(left_out, other) == ["model.policy.precision: 'auto' there, 'float32' here"]


def test_a_config_saved_with_every_short_form_resumes(write):
    """The form in which configs were saved while these keys belonged to the section `model`."""
    short = "model: {trust_remote_code: false, precision: auto, quantization: null, attention: sdpa, freeze: [], "
    short += "lora: null, gradient_checkpointing: false, min_pixels: null, max_pixels: null, max_prompt_tokens: 8192, "
    saved = load_config(write(f"name: x\n{short}feature_cache: null}}", "saved.yaml"))
    assert differing_keys(saved, load_config(write("name: x"))) == []


@pytest.mark.parametrize("policy", ["null", "3", "[language_model]"])
def test_a_policy_that_is_none_is_one_line(policy, write):
    (line,) = problems(write(f"name: x\nmodel: {{policy: {policy}, lora: {{rank: 4}}, freeze: [x]}}"))
    assert line.startswith("run.yaml:2: 'model.policy' should be a mapping; got ")


@pytest.mark.parametrize("name", ["giu", "gui/dats"])
def test_a_misspelt_plugin_is_refused_where_it_is_left_out_too(name, write):
    (line,) = problems(write(f"name: x\nplugins: [{{name: {name}, enabled: false}}]"))
    assert line.startswith(f"run.yaml:2: there is no plugin '{name}' to leave out. Did you mean 'gui")
    assert problems(write("name: x"), f"plugins=[{{name: {name}, enabled: false}}]")[0].startswith(
        "command line: there is"
    )


def test_what_another_file_lists_may_be_left_out_without_being_installed(write):
    write("name: base\nplugins: [absent, visual_rft]", "base.yaml")
    config = load_config(
        write("extends: base.yaml\nplugins: [{name: absent, enabled: false}, {name: gui, enabled: false}]")
    )
    assert [plugin.name for plugin in config.plugins] == ["visual_rft"]


def test_an_empty_list_of_plugins_takes_out_nothing(write):
    write("name: base\nplugins: [visual_rft]", "base.yaml")
    assert [p.name for p in load_config(write("extends: base.yaml\nplugins: []")).plugins] == ["visual_rft"]

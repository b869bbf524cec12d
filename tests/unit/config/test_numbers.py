"""Every number of the schema has a range: no key takes what training cannot compute with."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from mmrl_core.config import ModelConfig, RunConfig, component_problems, load_config
from mmrl_core.config.options import model_of
from mmrl_core.errors import ConfigError
from mmrl_core.language_model import LanguageModelOptions
from mmrl_core.plugins import load_plugins


def numbers_in(annotation: Any, info: Any = None) -> Iterator[tuple[type, Any]]:
    """Type and whole annotation of the numbers that an annotation names."""
    whole = (
        annotation if info is None else typing.Annotated[annotation, *info.metadata] if info.metadata else annotation
    )
    plain = typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation
    origin = typing.get_origin(plain)
    if plain in (int, float):
        yield plain, whole
    elif origin in (list, dict, tuple, typing.Union, types.UnionType):
        for member in typing.get_args(plain):
            yield from numbers_in(member)


def keys(model: Any, seen: set[Any]) -> Iterator[tuple[str, type, Any]]:
    """ "OptimizerConfig.lr", type and annotation of every number of a model and the models in it."""
    if model in seen:
        return
    seen.add(model)
    for name, info in model.model_fields.items():
        for kind, annotation in numbers_in(info.annotation, info):
            yield f"{model.__name__}.{name}", kind, annotation
        for inner in models_in(info.annotation):
            yield from keys(inner, seen)


def models_in(annotation: Any) -> Iterator[Any]:
    for member in (annotation, *typing.get_args(annotation)):
        if member is not annotation:
            yield from models_in(member)
        elif typing.get_origin(member) is None and (model := model_of(member)) is not None:
            yield model


SEEN: set[Any] = set()
NUMBERS = {
    key: (kind, annotation) for root in (RunConfig, LanguageModelOptions) for key, kind, annotation in keys(root, SEEN)
}

ZERO_MEANS_SOMETHING = {
    "LanguageModelOptions.router_aux_loss",
    "RunConfig.seed",
    "DataConfig.max_broken",
    "RewardConfig.weight",
    "RolloutConfig.top_k",
    "KLConfig.coefficient",
    "RefreshConfig.decay",
    "ImportanceConfig.minimum",
    "AlgorithmConfig.entropy_coefficient",
    "AlgorithmConfig.off_policy_threshold",
    "OptimizerConfig.betas",
    "OptimizerConfig.weight_decay",
    "OptimizerConfig.warmup_steps",
    "OptimizerConfig.final_lr_ratio",
    "EvalConfig.temperatures",
}
MAY_BE_NEGATIVE = {"RewardConfig.weight", "AlgorithmConfig.entropy_coefficient"}


def accepts(annotation: Any, value: float) -> bool:
    from pydantic import ConfigDict

    try:
        TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False)).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return False
    return True


def test_the_enumeration_reaches_every_section():
    assert {key.partition(".")[0] for key in NUMBERS} == {
        model.__name__ for model in SEEN if any(list(numbers_in(i.annotation)) for i in model.model_fields.values())
    }
    assert len(NUMBERS) > 50 and {"OptimizerConfig.lr_scale", "StageConfig.epochs", "LoraConfig.alpha"} <= set(NUMBERS)
    assert set(NUMBERS) >= ZERO_MEANS_SOMETHING | MAY_BE_NEGATIVE


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_range(key):
    kind, annotation = NUMBERS[key]
    for value in (math.nan, math.inf, -math.inf, 1e308, -1e308, 10**30, -(10**30)):
        assert not accepts(annotation, value), f"{key} takes {value}"
    assert accepts(annotation, kind(-1)) == (key in MAY_BE_NEGATIVE), f"{key}: -1"
    assert accepts(annotation, kind(0)) == (key in ZERO_MEANS_SOMETHING), f"{key}: 0"


def options_with_numbers() -> Iterator[tuple[str, Any]]:
    """ "loss clipped.clip_low" and its annotation, of every number among the options of what a step calls."""
    registry = load_plugins().registry
    for kind in ("advantage", "behaviour", "engine", "environment", "loss", "strategy"):
        for entry in registry.entries(kind):
            for name, option in entry.options().items():
                for _, annotation in numbers_in(option.annotation):
                    yield f"{kind} {entry.id.removeprefix('core/')}.{name}", annotation


def test_every_number_among_the_options_of_what_a_step_calls_is_finite():
    found = dict(options_with_numbers())
    assert {"loss text_reasoning/drpo.temperature", "behaviour text_reasoning/d3s.steps"} <= set(found)
    values = (math.nan, math.inf, -math.inf, 10**30)
    assert [key for key, kind in found.items() if any(accepts(kind, value) for value in values)] == []


def test_every_number_among_the_options_of_the_core_has_a_range():
    found = [(key, annotation) for key, annotation in options_with_numbers() if "/" not in key]
    assert {"loss cispo.cap", "advantage whiten.eps", "strategy multi_turn.max_turns", "engine vllm.memory_gib"} <= {
        key for key, _ in found
    }
    for key, annotation in found:
        for value in (math.nan, math.inf, -math.inf, -1, 10**30):
            assert not accepts(annotation, value), f"{key} takes {value}"


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("loss: {name: clipped, clip_low: 2}", "loss 'clipped': option 'clip_low' should be at most 1; got 2."),
        ("loss: {name: clipped, clip_low: {from: 1.5, to: 0.2, steps: 9}}", "should be at most 1; got 1.5."),
        ("loss: {name: clipped, clip_high: -0.1}", "option 'clip_high' should be at least 0; got -0.1."),
        ("loss: {name: clipped, dual_clip: 0.5}", "option 'dual_clip' should be at least 1; got 0.5."),
        ("loss: {name: cispo, cap: 0}", "option 'cap' should be greater than 0; got 0."),
        ("loss: {name: text_reasoning/rec, ring_low: 1.2}", "option 'ring_low' should be at most 1; got 1.2."),
        ("loss: {name: text_reasoning/sapo, positive: 0}", "option 'positive' should be greater than 0; got 0."),
        ("loss: {name: text_reasoning/drpo, max_length: 0}", "option 'max_length' should be at least 1; got 0."),
        ("loss: {name: find/find, clip: 2}", "option 'clip' should be at most 1; got 2."),
        ("advantage: [{name: group_relative, eps: -1}]", "option 'eps' should be at least 0; got -1."),
        ("advantage: [{name: discounted_returns, gamma: 1.1}]", "option 'gamma' should be at most 1; got 1.1."),
        ("advantage: [group_mean, {name: vital/difficulty, minimum: 2}]", "should be at most 1; got 2."),
        (
            "loss: {name: clipped, clip_low: 1.0, dual_clip: null}",
            None,
        ),  # no lower bound, as in clip_cov
        ("loss: {name: cispo, clip_low: 10, clip_high: 0.2}", None),  # verl's way to have no lower bound
    ],
)
def test_an_option_of_a_loss_or_stage_that_is_out_of_its_range_is_refused_in_one_line(section, problem, tmp_path):
    file = tmp_path / "task.yaml"
    base = "{name: t, model: {path: m}, data: {train: {path: x}}, prompt: {text: q}, rewards: [environment]"
    file.write_text(f"{base}, stages: [{{kind: grpo, steps: 1}}], algorithm: {{{section}}}}}")
    if problem is None:
        load_config(str(file))
        return
    with pytest.raises(ConfigError) as caught:
        load_config(str(file))
    assert str(caught.value).endswith(problem) and "\n" not in str(caught.value), str(caught.value)


ADDRESSES = {
    "RunConfig": "{}",
    "PartConfig": "mixture: [{{name: a, data: {{train: {{path: x}}}}, rewards: [environment], {}}}]",
    "DataConfig": "data: {{{}}}",
    "SourceConfig": "data: {{train: {{path: x, {}}}}}",
    "PromptConfig": "prompt: {{{}}}",
    "VideoConfig": "prompt: {{video: {{{}}}}}",
    "RewardConfig": "rewards: [{{name: environment, {}}}]",
    "RolloutConfig": "rollout: {{{}}}",
    "AlgorithmConfig": "algorithm: {{{}}}",
    "KLConfig": "algorithm: {{kl: {{{}}}}}",
    "RefreshConfig": "algorithm: {{frozen_policies: {{old: {{{}}}}}}}",
    "ImportanceConfig": "algorithm: {{importance_correction: {{{}}}}}",
    "DynamicSamplingConfig": "algorithm: {{dynamic_sampling: {{{}}}}}",
    "OverlongConfig": "algorithm: {{overlong: {{cache: 4, {}}}}}",
    "OptimizerConfig": "optimizer: {{{}}}",
    "EvalConfig": "eval: {{{}}}",
    "CheckpointConfig": "checkpoint: {{{}}}",
    "LogConfig": "log: {{{}}}",
    "ShardingConfig": "sharding: {{{}}}",
    "HardwareConfig": "hardware: {{memory_gib: 80, {}}}",
    "HardwareConfig.memory_gib": "hardware: {{{}}}",
    "StageConfig": "stages: [{{kind: sft, steps: 1, {}}}]",
    "LanguageModelOptions": "model: {{{}}}",
    "LoraConfig": "model: {{lora: {{{}}}}}",
    "OverlongConfig.cache": "algorithm: {{overlong: {{{}}}}}",
    "StageConfig.steps": "stages: [{{kind: sft, {}}}]",
    "StageConfig.epochs": "stages: [{{kind: sft, {}}}]",
}
"""Where a section is written, or a key that does not go beside the others."""


SHAPES = {
    "OptimizerConfig.betas": "[{}, 0.9]",
    "OptimizerConfig.lr_scale": "{{bias: {}}}",
    "EvalConfig.temperatures": "[{}]",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("configs")


@pytest.mark.parametrize("key", NUMBERS)
def test_a_file_with_an_endless_number_is_refused_with_the_key(key, folder):
    section, _, name = key.partition(".")
    written = f"{name}: {SHAPES.get(key, '{}').format('.inf')}"
    path = folder / "run.yaml"
    path.write_text(f"name: x\n{ADDRESSES.get(key, ADDRESSES[section]).format(written)}\n")
    with pytest.raises(ConfigError) as refused:
        load_config(str(path))
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{path}:2: ") and name in line and "should be a" in line and "got inf" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "algorithm: {loss: {name: clipped, clip_high: .inf}}",
            "loss 'clipped': option 'clip_high' should be a finite",
        ),
        (
            "algorithm: {loss: {name: clipped, clip_high: .nan}}",
            "option 'clip_high' should be a finite number; got nan",
        ),
        (
            "algorithm: {advantage: [{name: group_relative, eps: 1e999}]}",
            "option 'eps' should be a finite number; got inf",
        ),
        ("data: {train: {path: x, columns: {a: [1, .inf]}}}", "option 'columns.a.1' should be a finite number"),
        ("optimizer: {betas: [1.0, 0.999]}", "'optimizer.betas.0' should be less than 1; got 1.0"),
        ("optimizer: {eps: 1e-40}", "'optimizer.eps' should be at least 1e-30; got 1e-40"),
        ("seed: 4294967296", "'seed' should be at most 4,294,967,295; got 4294967296"),
        ("algorithm: {importance_correction: {minimum: 4}}", "minimum 4 is more than maximum 3: no weight is in range"),
        ("eval: {temperatures: [0, 0.0001]}", "a temperature is 0, which is greedy, or at least 0.001; got 0.0001"),
    ],
)
def test_what_is_refused_is_said(text, said, folder):
    path = folder / "said.yaml"
    path.write_text(f"name: x\n{text}\n")
    with pytest.raises(ConfigError) as refused:
        load_config(str(path))
    assert [said in line for line in str(refused.value).splitlines()].count(True) == 1, str(refused.value)


def test_a_config_made_in_python_is_checked_too():
    config = RunConfig(name="x", algorithm={"loss": {"name": "clipped", "clip_low": math.nan}})
    (line,) = component_problems(config, load_plugins())
    assert "option 'clip_low' should be a finite number; got nan" in line
    with pytest.raises(ValidationError, match="finite"):
        RunConfig(name="x", optimizer={"lr": math.inf})


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[3] / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_the_presets_are_in_range(path, folder):
    (folder / "preset.yaml").write_text(yaml.safe_dump({"name": "x", "extends": str(path)}))
    assert load_config(str(folder / "preset.yaml")).name == "x"


def test_model_config_has_no_number_of_its_own():
    assert not [name for name, info in ModelConfig.model_fields.items() if list(numbers_in(info.annotation, info))]

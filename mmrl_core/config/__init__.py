"""Task configs: the schema, and how YAML becomes a checked config. Loaded when first used."""

from typing import TYPE_CHECKING

from mmrl_core.support import lazy_names

if TYPE_CHECKING:
    from mmrl_core.config.components import check_components, component_problems, with_declared_defaults
    from mmrl_core.config.layers import files_beside
    from mmrl_core.config.messages import find_key
    from mmrl_core.config.methods import entries_in_order
    from mmrl_core.config.reading import differing_keys, dump_config, extends_chain, load_config, load_reward
    from mmrl_core.config.schedules import current
    from mmrl_core.config.schema import (
        AlgorithmConfig,
        Component,
        DataConfig,
        LoraConfig,
        ModelConfig,
        PartConfig,
        PromptConfig,
        RewardConfig,
        RolloutConfig,
        RunConfig,
        ShardingConfig,
        SourceConfig,
        StageConfig,
        check_trainable,
        longest_completion,
        parts_of,
    )

__all__ = [
    "AlgorithmConfig",
    "Component",
    "DataConfig",
    "LoraConfig",
    "ModelConfig",
    "PartConfig",
    "PromptConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "ShardingConfig",
    "SourceConfig",
    "StageConfig",
    "check_components",
    "check_trainable",
    "component_problems",
    "current",
    "differing_keys",
    "dump_config",
    "entries_in_order",
    "extends_chain",
    "files_beside",
    "find_key",
    "load_config",
    "load_reward",
    "longest_completion",
    "parts_of",
    "with_declared_defaults",
]

__getattr__ = lazy_names(
    __name__,
    {
        "check_components": "components",
        "component_problems": "components",
        "current": "schedules",
        "differing_keys": "reading",
        "dump_config": "reading",
        "entries_in_order": "methods",
        "extends_chain": "reading",
        "files_beside": "layers",
        "find_key": "messages",
        "load_config": "reading",
        "load_reward": "reading",
        **{name: "schema" for name in __all__ if name.endswith(("Config", "Component"))},
        "check_trainable": "schema",
        "longest_completion": "schema",
        "parts_of": "schema",
        "with_declared_defaults": "components",
    },
)

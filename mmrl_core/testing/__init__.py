"""What plugin authors test and build demos with: tiny models, the demo kit, checks, makers."""

from typing import TYPE_CHECKING

from mmrl_core.support import lazy_names

if TYPE_CHECKING:
    from mmrl_core.testing.checks import check_task
    from mmrl_core.testing.conformance import PROPERTIES, Property, check_plugin
    from mmrl_core.testing.demo_files import write_aside
    from mmrl_core.testing.hostile import HOSTILE
    from mmrl_core.testing.makers import make_group, make_loss_inputs, make_reward_view, make_scores
    from mmrl_core.testing.models.demo import VOCAB_MULTIPLE, build_model, build_processor, split_pattern
    from mmrl_core.testing.models.folder import new_model_folder
    from mmrl_core.testing.models.pictures import (
        CLASS_WORDS,
        MIN_DIGIT_WIDTH_PX,
        NUM_SCANS,
        ink_masks,
        photographs,
        scan_ids_by_class,
    )
    from mmrl_core.testing.models.sizes import AUDIO_TOKENS_PER_S, AUDIO_WINDOW_S, IMAGE_FACTOR_PX
    from mmrl_core.testing.models.templates import AUDIO_CHAT_TEMPLATE, SHORT_CHAT_TEMPLATE
    from mmrl_core.testing.models.tiny import TINY_KINDS, build_tiny
    from mmrl_core.testing.models.tokenizer import QWEN_AUDIO_TOKENS, UNSAMPLED_AUDIO_TOKENS, train_tokenizer
    from mmrl_core.testing.models.tower import (
        TEMPORAL_PATCH,
        TOKEN_PX,
        check_size_px,
        cut_patches,
        normalize_patches,
        picture_patches,
        pretrain_tower,
        tower_features,
    )
    from mmrl_core.testing.preview import preview_task
    from mmrl_core.testing.sections import Finding
    from mmrl_core.testing.source_case import (
        MEDIUM,
        SUFFIX,
        SourceCase,
        json_rows,
        medium_bytes,
        video_bytes,
        write_csv,
        write_json,
    )

__all__ = [
    "AUDIO_CHAT_TEMPLATE",
    "AUDIO_TOKENS_PER_S",
    "AUDIO_WINDOW_S",
    "CLASS_WORDS",
    "HOSTILE",
    "IMAGE_FACTOR_PX",
    "MEDIUM",
    "MIN_DIGIT_WIDTH_PX",
    "NUM_SCANS",
    "PROPERTIES",
    "QWEN_AUDIO_TOKENS",
    "SHORT_CHAT_TEMPLATE",
    "SUFFIX",
    "TEMPORAL_PATCH",
    "TINY_KINDS",
    "TOKEN_PX",
    "UNSAMPLED_AUDIO_TOKENS",
    "VOCAB_MULTIPLE",
    "Finding",
    "Property",
    "SourceCase",
    "build_model",
    "build_processor",
    "build_tiny",
    "check_plugin",
    "check_size_px",
    "check_task",
    "cut_patches",
    "ink_masks",
    "json_rows",
    "make_group",
    "make_loss_inputs",
    "make_reward_view",
    "make_scores",
    "medium_bytes",
    "new_model_folder",
    "normalize_patches",
    "photographs",
    "picture_patches",
    "pretrain_tower",
    "preview_task",
    "scan_ids_by_class",
    "split_pattern",
    "tower_features",
    "train_tokenizer",
    "video_bytes",
    "write_aside",
    "write_csv",
    "write_json",
]

__getattr__ = lazy_names(
    __name__,
    {
        "write_json": "source_case",
        "write_csv": "source_case",
        "json_rows": "source_case",
        "SUFFIX": "source_case",
        "MEDIUM": "source_case",
        "AUDIO_CHAT_TEMPLATE": "models.templates",
        "AUDIO_TOKENS_PER_S": "models.sizes",
        "AUDIO_WINDOW_S": "models.sizes",
        "CLASS_WORDS": "models.pictures",
        "Finding": "sections",
        "HOSTILE": "hostile",
        "IMAGE_FACTOR_PX": "models.sizes",
        "MIN_DIGIT_WIDTH_PX": "models.pictures",
        "NUM_SCANS": "models.pictures",
        "PROPERTIES": "conformance",
        "Property": "conformance",
        "QWEN_AUDIO_TOKENS": "models.tokenizer",
        "SHORT_CHAT_TEMPLATE": "models.templates",
        "SourceCase": "source_case",
        "TEMPORAL_PATCH": "models.tower",
        "TINY_KINDS": "models.tiny",
        "TOKEN_PX": "models.tower",
        "UNSAMPLED_AUDIO_TOKENS": "models.tokenizer",
        "VOCAB_MULTIPLE": "models.demo",
        "build_model": "models.demo",
        "build_processor": "models.demo",
        "build_tiny": "models.tiny",
        "check_plugin": "conformance",
        "check_size_px": "models.tower",
        "check_task": "checks",
        "cut_patches": "models.tower",
        "ink_masks": "models.pictures",
        "make_group": "makers",
        "make_loss_inputs": "makers",
        "make_reward_view": "makers",
        "make_scores": "makers",
        "medium_bytes": "source_case",
        "new_model_folder": "models.folder",
        "normalize_patches": "models.tower",
        "photographs": "models.pictures",
        "picture_patches": "models.tower",
        "pretrain_tower": "models.tower",
        "preview_task": "preview",
        "scan_ids_by_class": "models.pictures",
        "split_pattern": "models.demo",
        "tower_features": "models.tower",
        "train_tokenizer": "models.tokenizer",
        "video_bytes": "source_case",
        "write_aside": "demo_files",
    },
)

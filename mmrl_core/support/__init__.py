"""Small helpers that know nothing of training: files written whole, names imported late, packages of an extra."""

from mmrl_core.support.extras import need
from mmrl_core.support.files import finite, remove_unfinished, written_aside
from mmrl_core.support.lazy import lazy_names
from mmrl_core.support.model_paths import local_model

__all__ = ["finite", "lazy_names", "local_model", "need", "remove_unfinished", "written_aside"]

"""Rows of data sets, the prompts made of them, and which of them a step draws."""

from mmrl_core.data.draw import Draw, Mixture, in_turns, training_mixture
from mmrl_core.data.folders import DEFAULT_SPLIT, IMAGE_SUFFIXES
from mmrl_core.data.prompts import PromptSource
from mmrl_core.data.sources import Rows, load_rows, parse_split
from mmrl_core.data.stream import PromptStream
from mmrl_core.data.tables import Row, RowPart, read_parquet, write_parquet
from mmrl_core.data.templates import Template, value_of

__all__ = [
    "DEFAULT_SPLIT",
    "IMAGE_SUFFIXES",
    "Draw",
    "Mixture",
    "PromptSource",
    "PromptStream",
    "Row",
    "RowPart",
    "Rows",
    "Template",
    "in_turns",
    "load_rows",
    "parse_split",
    "read_parquet",
    "training_mixture",
    "value_of",
    "write_parquet",
]

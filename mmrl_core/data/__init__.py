"""Rows of data sets, the prompts made of them, and which of them a step draws."""

from mmrl_core.data.draw import Draw, Mixture, in_turns, training_mixture
from mmrl_core.data.prompts import BrokenRow, PromptSource, Template, value_of
from mmrl_core.data.sources import DEFAULT_SPLIT, IMAGE_SUFFIXES, Row, RowPart, Rows, load_rows, parse_split
from mmrl_core.data.stream import PromptStream

__all__ = [
    "DEFAULT_SPLIT",
    "IMAGE_SUFFIXES",
    "BrokenRow",
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
    "training_mixture",
    "value_of",
]

"""Rows of data sets, the prompts made of them, and which of them a step draws."""

from mmrl_core.data.draw import Draw, Mixture, in_turns, training_mixture
from mmrl_core.data.folders import DEFAULT_SPLIT, IMAGE_SUFFIXES
from mmrl_core.data.frames import SWAPPING, Frame, Placement, declared_size, picture_frame
from mmrl_core.data.noted_files import note_files
from mmrl_core.data.option_lists import labelled_options, read_options, read_texts
from mmrl_core.data.patterns import pattern_of
from mmrl_core.data.plain_text import plain_text
from mmrl_core.data.prompts import PromptSource
from mmrl_core.data.rows_in_memory import Row
from mmrl_core.data.sources import ListedRows, Rows, load_rows, parse_split
from mmrl_core.data.stream import PromptStream
from mmrl_core.data.tables import RowPart, read_parquet, write_parquet
from mmrl_core.data.templates import Template, value_of

__all__ = [
    "DEFAULT_SPLIT",
    "IMAGE_SUFFIXES",
    "SWAPPING",
    "Draw",
    "Frame",
    "ListedRows",
    "Mixture",
    "Placement",
    "PromptSource",
    "PromptStream",
    "Row",
    "RowPart",
    "Rows",
    "Template",
    "declared_size",
    "in_turns",
    "labelled_options",
    "load_rows",
    "note_files",
    "parse_split",
    "pattern_of",
    "picture_frame",
    "plain_text",
    "read_options",
    "read_parquet",
    "read_texts",
    "training_mixture",
    "value_of",
    "write_parquet",
]

"""Text and length of a prompt as the model sees it, from the processor alone."""

from __future__ import annotations

import sys
from pathlib import Path

from mmrl_core.language_model.encoder import PromptEncoder
from mmrl_core.language_model.loading import load_processor
from mmrl_core.language_model.options import LanguageModelOptions
from mmrl_core.language_model.towers import num_patches
from mmrl_core.support import PromptSizes
from mmrl_core.types import Prompt


class PromptPreview:
    """Texts and lengths of prompts as the policy encodes them, without the model's weights.

    Attributes:
        max_prompt_tokens: limit that the policy will set. No prompt is refused here.
    """

    def __init__(self, path: str | Path, options: LanguageModelOptions, *, revision: str | None = None) -> None:
        """Load the processor.

        Raises:
            PolicyError: it cannot be loaded, or the options do not fit it.
        """
        self.max_prompt_tokens = options.max_prompt_tokens
        processor = load_processor(path, options, revision=revision)
        self._encoder = PromptEncoder(processor, None, sys.maxsize)  # lengths do not depend on positions

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt after the chat template, with placeholders for media."""
        return self._encoder.render(prompt)

    def prompt_length(self, prompt: Prompt) -> int:
        """Tokens of the prompt, media included.

        Raises:
            TaskDataError: the model does not take such media, or an audio is longer than its window.
        """
        return len(self._encoder.encode(prompt))

    def prompt_sizes(self, prompt: Prompt) -> PromptSizes:
        """Lengths of a prompt and its answer, and of its media before their towers. Errors as `prompt_length`."""
        encoded = self._encoder.encode(prompt)
        answer = self._encoder.tokenizer(prompt.answer or "", add_special_tokens=False)["input_ids"]
        return PromptSizes(len(encoded), len(answer), num_patches(encoded.media))

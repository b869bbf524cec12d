"""What of a model and of its prompts decides how much memory training takes, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layers:
    """Equal layers of a transformer, and what one token leaves in one of them.

    Attributes:
        count: how many.
        parameters: of one.
        hidden: width of the residual stream.
        projections: numbers that backward needs besides those of norms: outputs of all linear layers, the attention's
            result, and what an MLP computes between its matrices.
        normed: width of all norms together.
        queries: width of the queries.
        keys: keys and values of a token, numbers.
        trained: whether gradients go through them.
    """

    count: int
    parameters: int
    hidden: int
    projections: int
    normed: int
    queries: int
    keys: int
    trained: bool = True


@dataclass(frozen=True)
class ModelSizes:
    """A model as its options would prepare it.

    Attributes:
        parameters: numbers of the model, those of adapters included.
        weights: bytes of them.
        trained: bytes of those that are trained, in their own type.
        trained_numbers: how many they are.
        computed: bytes of a number in matrix products.
        stream: bytes of a number in the residual stream.
        decoder: layers of the text decoder.
        towers: layers of each media tower.
        vocabulary: tokens that logits are of.
        chunk: tokens whose logits exist at one time in an update.
        adapted: whether adapters are trained.
    """

    parameters: int
    weights: int
    trained: int
    trained_numbers: int
    computed: int
    stream: int
    decoder: Layers
    towers: tuple[Layers, ...]
    vocabulary: int
    chunk: int
    adapted: bool


@dataclass(frozen=True)
class PromptSizes:
    """Lengths of a prompt.

    Attributes:
        tokens: of the prompt, media included.
        answer: of its answer in the data; 0 without one.
        tower: patches or frames that media towers run on.
    """

    tokens: int
    answer: int = 0
    tower: int = 0

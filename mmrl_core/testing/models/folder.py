"""Writing a model so that its folder appears complete or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrl_core.errors import ConfigError
from mmrl_core.support import written_aside


@contextmanager
def new_model_folder(directory: str | Path, *, seed: int) -> Iterator[Path]:
    """A folder to write a model into, which becomes ``directory`` if the block ends well and is removed otherwise.

    Args:
        directory: made if missing; must be empty. It appears complete or not at all.
        seed: of torch's global generator within the block. The caller's random state is left as it was.

    Raises:
        ConfigError: the directory is not empty.
    """
    directory = Path(directory).absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not an empty folder, and nothing is overwritten. Name another.")
    import torch

    with written_aside(directory) as unfinished, torch.random.fork_rng(devices=[]):
        unfinished.mkdir()
        torch.manual_seed(seed)
        yield unfinished

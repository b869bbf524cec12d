"""What mmrl adds to `vllm serve` through vLLM's own plug-in points. It does nothing until a server is told to use it.

- `register` is an entry point of vLLM's group `vllm.general_plugins`: it adds the weight-transfer backend `mmrl_gloo`,
  the load format `mmrl_empty` and the media connector `mmrl`, by name.
- `WorkerExtension` is for `--worker-extension-cls`: what the training calls in the server's workers.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.multimodal.media.connector import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.v1.sample.sampler import Sampler

GLOO = "mmrl_gloo"
EMPTY = "mmrl_empty"
CONNECTOR = "mmrl"
ARRAYS = "data:application/x-npz;base64,"
"""How the URL of a medium begins that the connector reads: numpy's .npz, without pickles."""


def register() -> None:
    """Make our names known to vLLM. Called once in each process of vLLM, also in those that do not use them."""
    engine = "mmrl_core.language_model.engines.vllm_transfer"
    WeightTransferEngineFactory.register_engine(GLOO, engine, "GlooWorkerEngine")
    register_model_loader(EMPTY)(EmptyLoader)
    MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)(ArrayConnector)


class EmptyLoader(BaseModelLoader):
    """A model of zeros, for a server whose weights are sent. (vLLM's "dummy" fills buffers with noise too.)"""

    def download_model(self, model_config: Any) -> None:
        pass

    def load_weights(self, model: Any, model_config: Any) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        missing = {name for name, _ in model.named_parameters()}
        load_weights = model.load_weights

        def noted(weights: Iterable[tuple[str, Tensor]]) -> Any:
            loaded = load_weights(weights)
            missing.difference_update(missing if loaded is None else loaded)
            return loaded

        model.load_weights, model.mmrl_missing = noted, missing


class ArrayConnector(MediaConnector):
    """Media as the very numbers that the trainer has: pixels, frames with their metadata, samples with their rate."""

    async def load_from_url_async(self, url: str, *arguments: Any, **options: Any) -> Any:
        if url.startswith(ARRAYS):
            return decode_media(url)
        return await super().load_from_url_async(url, *arguments, **options)


def encode_media(values: np.ndarray, about: Any = None) -> str:
    """URL of a medium: uint8 [height, width, 3], (uint8 [frames, height, width, 3], metadata) or (samples, rate)."""
    import base64

    buffer = io.BytesIO()
    np.savez(buffer, values=values, about=np.array(json.dumps(about)))
    return ARRAYS + base64.b64encode(buffer.getvalue()).decode()


def decode_media(url: str) -> Any:
    """The medium of a URL that `encode_media` made, as vLLM takes it."""
    import base64

    from PIL import Image

    with np.load(io.BytesIO(base64.b64decode(url[len(ARRAYS) :])), allow_pickle=False) as arrays:
        values, about = arrays["values"], json.loads(str(arrays["about"]))
    return Image.fromarray(values) if about is None else (values, about)


class TemperedSampler(Sampler):
    """Raw logprobs at each request's temperature (at 1 when greedy), before bans, top-k and top-p narrow the choice."""

    _temperature: Tensor | None = None

    def forward(self, logits: Tensor, sampling_metadata: Any, *arguments: Any, **options: Any) -> Any:
        self._temperature = sampling_metadata.temperature
        try:
            return super().forward(logits, sampling_metadata, *arguments, **options)
        finally:
            self._temperature = None

    def compute_logprobs(self, logits: Tensor) -> Tensor:
        if self._temperature is not None:
            greedy = self._temperature < 1e-5
            logits = logits.float() / torch.where(greedy, 1.0, self._temperature)[:, None]
        return super().compute_logprobs(logits)


class WorkerExtension:
    """Methods that a worker of vLLM gains."""

    model_runner: Any

    def mmrl_prepare(self) -> dict[str, Any]:
        """Have logprobs computed as the trainer does. Returns an error as {"error": why}."""
        sampler = self.model_runner.sampler
        if isinstance(sampler, TemperedSampler):
            return {}
        if type(sampler) is not Sampler or sampler.logprobs_mode != "raw_logprobs":
            return {"error": "set VLLM_USE_V2_MODEL_RUNNER=0 and leave --logprobs-mode at raw_logprobs"}
        self.model_runner.sampler = TemperedSampler(sampler.logprobs_mode, sampler.use_fp64_gumbel)
        return {}

    def mmrl_missing(self) -> dict[str, Any]:
        """Parameters of a model that began empty and have got no weights yet."""
        return {"missing": sorted(getattr(self.model_runner.get_model(), "mmrl_missing", ()))}

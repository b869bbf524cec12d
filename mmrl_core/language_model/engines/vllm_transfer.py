"""The policy's weights on their way into `vllm serve`, by vLLM's weight-transfer interface.

The trainer broadcasts each weight to all workers of all servers, which are told by HTTP to receive. vLLM itself brings
`nccl` (GPUs that are not shared) and `ipc` (one GPU for both). `mmrl_gloo` is ours and needs no GPU: weights go
through the machine's memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from mmrl_core.language_model.engines.vllm_host import Weights, repack_tied_layers
from mmrl_core.language_model.engines.vllm_plugin import GLOO


class PolicyWeights(WeightSource):
    """The policy's weights as vLLM asks for them. Names and shapes are those of the first call."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._metadata: list[ParamMeta] | None = None

    def metadata(self) -> list[ParamMeta]:
        if self._metadata is None:
            self._metadata = [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self.weights()]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, weight.detach().contiguous()) for name, weight in self.weights())


def open_transfer(
    backend: str, host: str, port: int, num_workers: int, client: VLLMWeightSyncClient, weights: Weights
) -> TrainerWeightTransferEngine[Any]:
    """Connect the trainer with all workers of the servers behind `client`.

    Args:
        backend: "nccl", "ipc" or "mmrl_gloo", as the servers were started with.
        host, port: where this process waits for the workers.
        num_workers: of all servers together.
    """
    source = PolicyWeights(weights)
    if backend == GLOO:
        info = GlooTrainerInitInfo(host, port, 1 + num_workers, rank=0)
        return GlooTrainerEngine.trainer_init(info, client=client, source=source)
    if backend == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        nccl = NCCLTrainerInitInfo(host, port, 1 + num_workers, rank=0)
        return WeightTransferTrainerFactory.trainer_init(nccl, client=client, source=source)
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    return WeightTransferTrainerFactory.trainer_init(IPCTrainerInitInfo(rank=0), client=client, source=source)


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """Where the trainer waits for workers, and how many processes there are with it."""

    backend: ClassVar[str] = GLOO
    master_address: str
    master_port: int
    world_size: int


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """What a worker is told of this. Its rank is `rank_offset` and its number within its server."""

    master_address: str
    master_port: int
    world_size: int
    rank_offset: int = 1


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The weights that will come, in their order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


def _join(info: GlooInitInfo | GlooTrainerInitInfo, rank: int) -> Any:
    return stateless_init_torch_distributed_process_group(
        info.master_address, info.master_port, rank, info.world_size, "gloo"
    )


class GlooTrainerEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """The trainer's side of `mmrl_gloo`."""

    init_info_cls = GlooTrainerInitInfo
    group: Any = None

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        engine = cls(client=client, source=source)
        with ThreadPoolExecutor(1) as thread:  # workers answer once all have met
            told = thread.submit(
                client.init_weight_transfer_engine,
                asdict(GlooInitInfo(init_info.master_address, init_info.master_port, init_info.world_size)),
            )
            engine.group = _join(init_info, 0)
            told.result()
        return engine

    def send_weights(self) -> None:
        assert self.source is not None
        coming = self.source.metadata()
        info = GlooUpdateInfo(
            [weight.name for weight in coming],
            [str(weight.dtype).removeprefix("torch.") for weight in coming],
            [list(weight.shape) for weight in coming],
        )
        self.client.start_weight_update()
        thread = ThreadPoolExecutor(1)
        try:
            told = thread.submit(self.client.update_weights, asdict(info))
            for _, weight in self.source:
                self.group.broadcast(weight.cpu().flatten().view(torch.uint8), 0).wait()
            told.result()
        finally:
            thread.shutdown(wait=False)  # after an error nobody may answer any more
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self.group = None


class GlooWorkerEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """A worker's side of `mmrl_gloo`."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    group: Any = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        parallel = self.parallel_config
        worker = parallel.data_parallel_index * parallel.world_size + parallel.rank
        self.group = _join(init_info, init_info.rank_offset + worker)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_layers(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As in the base class, which synchronises with a GPU that there need not be."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        failure: Exception | None = None
        for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            weight = torch.empty(shape, dtype=getattr(torch, dtype))
            self.group.broadcast(weight.flatten().view(torch.uint8), 0).wait()
            try:
                if failure is None:
                    self.model.load_weights([(name, weight.to(self.device))])
            except Exception as error:  # the trainer goes on to send, and would wait for us
                failure = error
        if failure is not None:
            raise failure

    def shutdown(self) -> None:
        self.group = None

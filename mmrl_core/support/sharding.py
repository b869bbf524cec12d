"""Weights, gradients and optimiser shared among processes: torch's FSDP2 (`fully_shard`).

Every process keeps a share of each weight. What a layer needs is gathered for its forward and backward pass and dropped
again, so that each pass is work of all processes: they make as many, in the same order. What is no layer of the text
decoder (embeddings, head, media towers, projectors) is gathered for a whole pass, by processes without media too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from mmrl_core.errors import PolicyError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed.tensor import DTensor


def shard(
    module: nn.Module,
    layers: Sequence[nn.Module],
    *,
    computed: torch.dtype | None = None,
    processes: int | None = None,
) -> None:
    """Leave each process its share of a module's weights; those of the first process count.

    Args:
        module: whole, and with the same weights requiring gradients in each process. Changed in place.
        layers: parts of it that are gathered one at a time; each runs equally often in every process.
        computed: type that weights are gathered and computed in; gradients are summed in float32. Default: their own.
        processes: share among as many neighbours; groups of them hold copies of each other. Default: among all.

    Raises:
        PolicyError: torch is too old, or the processes cannot be grouped so.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise PolicyError(f"sharding needs a newer torch than {torch.__version__}: pip install --upgrade torch")
    world = dist.get_world_size()
    share = processes or world
    if world % share:
        raise PolicyError(f"sharding.processes={share}: {world} processes cannot be put into groups of {share}.")
    for tensor in [*module.parameters(), *module.buffers()]:
        if not tensor.is_contiguous():
            tensor.data = tensor.data.contiguous()
        dist.broadcast(tensor.detach(), 0)
    device = next(module.parameters()).device.type
    if share == world:
        mesh = init_device_mesh(device, (world,))
    else:
        mesh = init_device_mesh(device, (world // share, share), mesh_dim_names=("copies", "shares"))
    given: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": True,
        "mp_policy": MixedPrecisionPolicy(computed, torch.float32 if computed else None, cast_forward_inputs=False),
    }
    scalars = {parameter for parameter in module.parameters() if parameter.dim() == 0}
    if any(parameter.requires_grad for parameter in scalars):
        raise PolicyError("sharding: this model trains a weight of one number, which cannot be shared. Freeze it.")
    for layer in layers:
        fully_shard(layer, **given, ignored_params=scalars)
    whole_module = fully_shard(module, **given, ignored_params=scalars)
    # A process may have had no use for a weight, such as a tower's: its gradient is then 0 there.
    whole_module.set_reduce_scatter_unused_params(True)


def share_weights(policy: Any, sharding: Any, accelerator: Any) -> None:
    """Let several processes train a policy: each with a share of its weights, or with all and gradients averaged (DDP).

    Args:
        sharding: of the run's config; None for copies.
    """
    if sharding is not None and accelerator.num_processes > 1:
        policy.shard(sharding)
    else:
        policy.module = accelerator.prepare(policy.module)


def sharing_in_words(module: nn.Module) -> list[str]:
    """A line on how a module's weights are shared, none if they are not."""
    from torch.distributed.fsdp import FSDPModule

    first = next(filter(is_shared, module.parameters()), None)
    if first is None:
        return []
    layers = sum(isinstance(part, FSDPModule) for part in module.modules()) - 1
    return [
        f"{first.device_mesh.size(-1)} processes share weights, gradients and optimiser; "
        + (f"{layers} layers are gathered one at a time" if layers else "all weights are gathered for each pass")
    ]


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Each process has all weights inside, whatever it computes; all enter and leave together. Nothing without shards.

    The weights cannot be changed inside.
    """
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(module, FSDPModule):
        yield
        return
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    # Or the first layer to run would be taken for the root. torch offers no other way than a whole pass.
    module._get_fsdp_state()._lazy_init()
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's share of a weight, in the same memory; a tensor that is not shared as it is."""
    return tensor.to_local() if is_shared(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a weight; every process asks for it."""
    return tensor.full_tensor() if is_shared(tensor) else tensor


def laid_out_like(values: Tensor, like: Tensor) -> Tensor:
    """Whole values, which every process has, as `like` is laid out: its share of them, or in its strides."""
    import torch

    if not is_shared(like):
        return torch.empty_like(like, requires_grad=False).copy_(values)
    from torch.distributed.tensor import distribute_tensor

    values = values.to(like.device, like.dtype).contiguous()  # by rows, as what is shared is
    return distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None)


def norm_of_shares(module: nn.Module, norm: float) -> float:
    """The norm of a whole, from that of each process's share of it; as it is where nothing is shared."""
    import torch
    import torch.distributed as dist

    first = next(filter(is_shared, module.parameters()), None)
    if first is None:
        return norm
    squares = torch.tensor([norm**2], dtype=torch.float64, device=first.to_local().device)
    dist.all_reduce(squares, group=first.device_mesh.get_group(-1))
    return float(squares.sqrt())


def is_shared(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a process has a share of it alone."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def load_whole(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole weights, of which each process keeps its share where they are shared."""
    own = module.state_dict()
    shared = {name: laid_out_like(weights[name], own[name]) for name in own.keys() & weights if is_shared(own[name])}
    module.load_state_dict({**weights, **shared})


def whole_on_first(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights by name in the memory of the first process, gathered one at a time; {} in the others.

    A weight with two names stays one.
    """
    seen: dict[int, Tensor] = {}
    for weight in weights.values():
        if id(weight) not in seen:
            full = whole(weight.detach())
            seen[id(weight)] = full.cpu() if is_first() else full.new_empty(0)
    return {name: seen[id(weight)] for name, weight in weights.items()} if is_first() else {}


def is_first() -> bool:
    """Whether this is the first process, or the only one."""
    import torch.distributed as dist

    return not dist.is_initialized() or dist.get_rank() == 0


def swap_weights(trained: Mapping[str, nn.Parameter], others: dict[str, Tensor]) -> None:
    """Exchange the values of parameters with those of a dict under the same names; nothing is copied but shares.

    Raises:
        PolicyError: shares were to be exchanged with weights that are gathered.
    """
    for name, parameter in trained.items():
        if is_shared(parameter) != is_shared(others[name]):
            raise PolicyError("frozen policies cannot be asked while processes have gathered the weights to sample.")
        if not is_shared(parameter):
            parameter.data, others[name] = others[name], parameter.data
            continue
        share, other = local(parameter.detach()), local(others[name])
        kept = share.clone()
        share.copy_(other)
        other.copy_(kept)


# The optimiser


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write a sharded optimiser by torch's distributed checkpoint; each process writes its share."""
    from torch.distributed.checkpoint.state_dict_saver import save

    save({"state": optimizer.state_dict()["state"]}, checkpoint_id=folder)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any] | Path) -> None:
    """Restore what was saved, by as many processes as there are now.

    Args:
        saved: a state dict of an optimiser that was not sharded, or the folder that `save_optimizer` wrote.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if isinstance(saved, Path):
        saved = {**optimizer.state_dict(), "state": _loaded_state(parameters, saved)}
    elif any(map(is_shared, parameters)):
        state = {
            index: {
                key: laid_out_like(value, parameters[index]) if value.shape == parameters[index].shape else value
                for key, value in values.items()
            }
            for index, values in saved["state"].items()
        }
        saved = {**saved, "state": state}
    optimizer.load_state_dict(saved)


def _loaded_state(parameters: Sequence[nn.Parameter], folder: Path) -> dict[int, dict[str, Tensor]]:
    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    described = FileSystemReader(folder).read_metadata().state_dict_metadata
    state: dict[int, dict[str, Tensor]] = {}
    for name, found in described.items():  # such as state.12.exp_avg
        _, index, key = name.split(".")
        assert isinstance(found, TensorStorageMetadata)  # AdamW's state is tensors
        parameter = parameters[int(index)].detach()
        empty = torch.zeros_like(parameter) if found.size == parameter.shape else torch.zeros(found.size)
        state.setdefault(int(index), {})[key] = empty
    load({"state": state}, checkpoint_id=folder)
    return state

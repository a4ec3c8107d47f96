"""Training networks that do not fit one device: parameters, gradients and optimiser shared out over all of them."""

from collections.abc import Mapping

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor


class FullyShard(ModelParallelStrategy):
    """PyTorch's FSDP2 over all processes: `--trainer.strategy fully_shard`.

    Each process holds its share of every parameter, of its gradient, average and optimiser state, and gathers those of
    one block at a time. Results are those of `ddp` up to rounding. Checkpoints are written by rank 0 as one file with
    whole tensors, the same as those of one process: they resume on any number of processes and load anywhere.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """One data-parallel group of all processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


StrategyRegistry.register(
    "fully_shard", FullyShard, "parameters, gradients and optimiser shared out over all processes"
)


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Share out the parameters of `network` in place, a unit for every block: what lies in its `nn.ModuleList`s.

    Nothing happens to a network that is shared out already.
    """
    from torch.distributed.fsdp import fully_shard

    if any(isinstance(parameter, DTensor) for parameter in network.parameters()):
        return
    for parameter in network.parameters():  # convolutions may lie with channels last, which FSDP2 does not know
        parameter.data = parameter.data.contiguous()
    blocks = [block for part in network.modules() if isinstance(part, nn.ModuleList) for block in part]
    inner = {id(below) for block in blocks for below in block.modules() if below is not block}
    for block in blocks:
        # Lists may lie in lists: only the outermost are gathered together. Modules without parameters need no unit.
        if id(block) not in inner and not isinstance(block, nn.ModuleList) and len([*block.parameters()]):
            fully_shard(block, mesh=mesh)
    # By default the outermost unit stays whole after a forward pass, until the next backward one: too long for whoever
    # looks at parameters in between, as averages do.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def local(tensor: Tensor) -> Tensor:
    """This process's share of a parameter; the parameter itself where it is not shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(shares: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors from every process's shares, laid out as the parameters are; all processes have to call it."""
    return {name: _whole(share, parameters[name]) for name, share in shares.items()}


@torch.no_grad()
def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, shared out as it is; every process has to give the same one."""
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor


@torch.no_grad()
def _whole(share: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return share
    shape, stride = parameter.shape, parameter.stride()
    laid = DTensor.from_local(share, parameter.device_mesh, parameter.placements, shape=shape, stride=stride)
    return laid.full_tensor().cpu()

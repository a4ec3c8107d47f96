"""Training networks that do not fit one device: parameters, gradients and optimiser shared out over all of them."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
    StrategyRegistry,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from asyncdiff.checkpoints import read_safely
from asyncdiff.checkpoints.export import is_export
from asyncdiff.training.compatibility import check_checkpoint

# Others than FullyShard that keep shares of the network; FullyShard is a ModelParallelStrategy itself.
SHARING = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-true")  # what Lightning takes for a ModelParallelStrategy


class FullyShard(ModelParallelStrategy):
    """PyTorch's FSDP2 over all processes: `--trainer.strategy fully_shard`.

    Each process holds its share of every parameter, of its gradient, average and optimiser state, and gathers those of
    one block at a time. Results are those of `ddp` up to rounding. Checkpoints are written by rank 0 as one file with
    whole tensors, the same as those of one process: they resume on any number of processes and load anywhere.

    Validation, tests and predictions have the network whole on every device, since processes may have unequal work.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self._evaluation = ExitStack()

    def setup_environment(self) -> None:
        """One data-parallel group of all processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read it as tensors and plain containers; ValueError for all else, and where it is of another model.

        Lightning loads the weights before it asks the module whether they are its own.
        """
        path = Path(self.broadcast(checkpoint_path))
        if weights_only is False:
            raise ValueError(
                "weights_only must be true, got false, which would run whatever code a checkpoint holds: leave it out"
            )
        if is_export(path):
            raise ValueError(
                f"ckpt_path must be a checkpoint under fully_shard, got the export {path}: give it as model.pretrained"
            )
        if path.is_file():  # else a folder of shards
            check_checkpoint(self.lightning_module, read_safely(path, mapped=True))
        return super().load_checkpoint(path, weights_only=True)

    def on_validation_start(self) -> None:
        """Gather the network."""
        self._gather()

    def on_test_start(self) -> None:
        """Gather the network."""
        self._gather()

    def on_predict_start(self) -> None:
        """Gather the network."""
        self._gather()

    def on_validation_end(self) -> None:
        """Share it out again."""
        self._evaluation.close()

    def on_test_end(self) -> None:
        """Share it out again."""
        self._evaluation.close()

    def on_predict_end(self) -> None:
        """Share it out again."""
        self._evaluation.close()

    def _gather(self) -> None:
        assert self.lightning_module is not None
        self._evaluation.enter_context(gathered(self.lightning_module))


StrategyRegistry.register(
    "fully_shard", FullyShard, "parameters, gradients and optimiser shared out over all processes"
)


def check_strategy(strategy: Strategy, precision: str) -> None:
    """Refuse what would fail later: at the first picture, at the first loading of a checkpoint, or without a word."""
    if isinstance(strategy, FullyShard):
        if precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision must be one of {', '.join(PRECISIONS)} under fully_shard, got {precision}: "
                "bf16-mixed is usual"
            )
    elif isinstance(strategy, SHARING):
        kind = type(strategy).__name__
        raise ValueError(
            f"trainer.strategy must copy the network or be fully_shard, got {kind}, whose pictures, averages and "
            "checkpoints would be those of shares: use --trainer.strategy fully_shard"
        )


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Share out the parameters of `network` in place, a unit for every block: what lies in its `nn.ModuleList`s.

    Nothing happens to a network that is shared out already.
    """
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


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """The module whole on every process, which then waits for no other in a forward pass; all have to enter and leave.

    For evaluations: processes may draw unequal numbers of images, in unequal numbers of steps. Its parameters are plain
    tensors inside. Nothing happens where nothing is shared out, or where it is whole already.
    """
    if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        yield
        return
    units = _units(module)
    # What is made in inference mode could never be trained with.
    with torch.inference_mode(False), torch.no_grad():
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
        scatter(module)


def scatter(module: nn.Module) -> None:
    """Let go of what other processes have shares of, so that parameters are the shares again."""
    for unit in _units(module):
        unit.reshard()


def _units(module: nn.Module) -> list[FSDPModule]:
    return [unit for unit in module.modules() if isinstance(unit, FSDPModule)]


def local(tensor: Tensor) -> Tensor:
    """This process's share of a parameter; the parameter itself where it is not shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(shares: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors from every process's shares, laid out as the parameters are; all processes have to call it."""
    return {name: _whole(share, parameters[name]) for name, share in shares.items()}


@torch.no_grad()
def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
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

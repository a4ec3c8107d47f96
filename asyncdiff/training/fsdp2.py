"""Shard parameters, gradients, EMA and optimizer state with FSDP2, for networks that do not fit on one device."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
    StrategyRegistry,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from asyncdiff.checkpoints import read_safely
from asyncdiff.checkpoints.export import is_export
from asyncdiff.training.compatibility import check_checkpoint
from asyncdiff.training.diffusion_module import DiffusionModule

# Strategies that shard the network in other ways; FullyShard itself is a ModelParallelStrategy, too.
OTHER_SHARDED_STRATEGIES = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)
# Precisions that Lightning accepts for a ModelParallelStrategy.
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-true")
ROUNDED = "_rounded_parameters"  # attribute of a unit: gathered parameters that `unshard` replaced by exact ones


class FullyShard(ModelParallelStrategy):
    """PyTorch's FSDP2 over all processes: `--trainer.strategy fully_shard`.

    Each process holds a shard of every parameter and of its gradient, EMA and optimizer state, and gathers the
    parameters of one block at a time. Results equal those of `ddp` up to rounding. Rank 0 writes checkpoints as one
    file with full tensors, the same as in a run of one process: they can be resumed on any number of processes and
    loaded anywhere.

    During validation, test and predict every device holds the full network, since processes may have unequal work.
    Under bf16-mixed, training steps gather the blocks in bfloat16 and sum gradients in float32.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self._evaluation = ExitStack()

    def setup_environment(self) -> None:
        """Make all processes one data-parallel group."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Return the contents of a checkpoint, read safely.

        Raise ValueError if it is an export, holds code, or does not fit the model, which is checked here because
        Lightning loads the weights before it calls the module's own hook.
        """
        path = Path(self.broadcast(checkpoint_path))
        if weights_only is False:
            raise ValueError(
                "weights_only=False is not supported: it would execute arbitrary code from the checkpoint; omit it"
            )
        if is_export(path):
            raise ValueError(
                f"fully_shard cannot load the export {path} as ckpt_path: set model.pretrained to it instead"
            )
        module = self.lightning_module
        if path.is_file() and isinstance(module, DiffusionModule):  # otherwise a folder of shards
            check_checkpoint(module, read_safely(path, mapped=True))
        return super().load_checkpoint(path, weights_only=True)

    def on_validation_start(self) -> None:
        """Gather the network on every process."""
        self._evaluation.enter_context(unshard(cast(LightningModule, self.lightning_module)))

    on_test_start = on_predict_start = on_validation_start

    def on_validation_end(self) -> None:
        """Shard the network again."""
        self._evaluation.close()

    on_test_end = on_predict_end = on_validation_end


StrategyRegistry.register(
    "fully_shard", FullyShard, "FSDP2: shards parameters, gradients and optimizer state over all processes"
)


def check_strategy(strategy: Strategy, precision: str) -> None:
    """Raise ValueError for a strategy or a precision that would fail later, or silently produce wrong results."""
    if isinstance(strategy, FullyShard):
        if precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision must be one of {', '.join(PRECISIONS)} with fully_shard, got {precision}: "
                "use bf16-mixed, for example"
            )
    elif isinstance(strategy, OTHER_SHARDED_STRATEGIES):
        kind = type(strategy).__name__
        raise ValueError(
            f"trainer.strategy {kind} is not supported, since images, EMA weights and checkpoints would come from "
            "single shards: use --trainer.strategy fully_shard"
        )


def shard(network: nn.Module, mesh: DeviceMesh, *, block_dtype: torch.dtype | None = None) -> None:
    """Shard the parameters of `network` in place, with one FSDP unit per block (module of an `nn.ModuleList`).

    A network that is already sharded is left unchanged.

    Args:
        network: network to shard.
        mesh: processes that hold a shard each.
        block_dtype: type in which blocks are gathered for a training step, as autocast would cast their weights anyway,
            except the gains of a U-Net's norms before attention; gradients are summed in float32. What is outside of
            all blocks, and on whose type the residual stream depends, keeps its type. None gathers blocks in the type
            of their weights, which is twice the traffic.
    """
    if any(isinstance(parameter, DTensor) for parameter in network.parameters()):
        return
    for parameter in network.parameters():  # FSDP2 does not support channels-last convolutions
        parameter.data = parameter.data.contiguous()
    lists = [part for part in network.modules() if isinstance(part, nn.ModuleList)]  # may be nested
    blocks = [block for part in lists for block in part if not isinstance(block, nn.ModuleList)]
    policy = MixedPrecisionPolicy()
    if block_dtype is not None:  # the residual stream and the levels are not rounded
        policy = MixedPrecisionPolicy(block_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    inner = {id(below) for block in blocks for below in block.modules() if below is not block}
    for block in blocks:
        # Only the outermost modules are units. Modules without parameters need none.
        if id(block) not in inner and len([*block.parameters()]):
            fully_shard(block, mesh=mesh, mp_policy=policy)
    # By default the outermost unit stays gathered after the forward pass until the next backward pass: too long for
    # code that reads parameters in between, such as the EMA.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    if mesh.device_type == "cpu":
        for unit in _units(network):  # in PyTorch 2.8 gloo sums where it should average (pytorch/pytorch#162338)
            unit.set_force_sum_reduction_for_comms(True)


@contextmanager
def unshard(module: nn.Module) -> Iterator[None]:
    """Gather the full module on every process inside this context, so that forward passes need no communication.

    For evaluation, where processes may sample unequal numbers of images, in unequal numbers of steps. All processes
    must enter and exit the context. Inside, parameters are plain tensors in the precision of the shards, also if
    training steps gather blocks in a lower one. It has no effect if nothing is sharded or everything is already
    gathered.
    """
    shards = {name: p for name, p in module.named_parameters() if isinstance(p, DTensor)}
    if not shards:
        yield
        return
    units = _units(module)
    # Tensors created in inference mode could not be trained.
    with torch.inference_mode(False), torch.no_grad():
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        gathered = [(p, shards[name]) for name, p in module.named_parameters() if name in shards]
        rounded = [(p, like) for p, like in gathered if p.dtype != like.dtype]
        vars(units[0])[ROUNDED] = [(p, p.data) for p, _ in rounded]
        for parameter, like in rounded:
            parameter.data = like.full_tensor()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
        reshard(module)


def reshard(module: nn.Module) -> None:
    """Reshard the module: free the gathered parameters."""
    for unit in _units(module):
        for parameter, data in vars(unit).pop(ROUNDED, ()):
            parameter.data = data  # where the next training step gathers
        unit.reshard()


def _units(module: nn.Module) -> list[FSDPModule]:
    return [unit for unit in module.modules() if isinstance(unit, FSDPModule)]


def local_shard(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def full_tensors(shards: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather full tensors from shards with the layout of `parameters`; all processes must call this."""
    gathered = {}
    for name, shard in shards.items():
        like = parameters[name]
        if isinstance(like, DTensor):
            mesh, placements, shape, stride = like.device_mesh, like.placements, like.shape, like.stride()
            shard = DTensor.from_local(shard, mesh, placements, shape=shape, stride=stride).full_tensor().cpu()
        gathered[name] = shard
    return gathered


@torch.no_grad()
def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Move a full tensor to the device of `like` and shard it like `like`; it must be equal on all processes."""
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor

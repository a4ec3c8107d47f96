"""Small networks for 8x8 gray images with random weights, in float64, and their inputs."""

from functools import partial

import torch
from conftest import randomize_weights
from torch import Tensor, nn

from asyncdiff.networks.dit import DiT
from asyncdiff.networks.unet import UNet
from asyncdiff.randomness import seeded
from asyncdiff.shapes import IndexedLevels

SMALL_UNET = {"channels": 1, "width": 8, "multipliers": (1, 2, 2), "blocks": 1, "attention": (1,), "head_dim": 4}
LABEL = torch.tensor([0, 5, 10])  # of ten classes; the last is "no label"


def dit(**options) -> DiT:
    torch.manual_seed(0)
    network = DiT(**{"channels": 1, "patch_size": 2, "dim": 32, "depth": 2, "heads": 4} | options)
    return randomize_weights(network.double()).eval()


def unet(**options) -> UNet:
    torch.manual_seed(0)
    return randomize_weights(UNet(**SMALL_UNET | options).double()).eval()


DITS = {"DiT": dit, "joint": partial(dit, joint_labels=True), "RoPE": partial(dit, rope=True, qk_norm=True)}
UNETS = {"U-Net": unet, "groups": partial(unet, groups=4)}
DIT_GRIDS = [(1, 1), (2, 2), (4, 4), (1, 4), (2, 1)]
UNET_GRIDS = [(1, 1), (2, 2), (4, 4), (8, 8), (8, 1), (2, 4)]  # levels of 8x8, 4x4 and 2x2 pixels: coarser and finer


def noisy(batch: int = 3, channels: int = 1, size: tuple[int, int] = (8, 8)) -> Tensor:
    return torch.randn(batch, channels, *size, generator=seeded(1), dtype=torch.float64)


def draw(grid: tuple[int, int], batch: int = 3, count: int = 5) -> IndexedLevels:
    """A level map of `count` levels, with an index of all patches even if it is constant."""
    index = torch.randint(count, (batch, *grid), generator=seeded(2))
    return IndexedLevels(torch.rand(count, generator=seeded(3), dtype=torch.float64), index)


def single(levels: IndexedLevels) -> IndexedLevels:
    """The same levels in float32."""
    return IndexedLevels(levels.values.float(), levels.index)


def stored_bytes(network: nn.Module, x: Tensor, levels: IndexedLevels, call=None) -> int:
    """Bytes that the forward pass stores for the backward pass, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = (call or network)(x, levels)
    del output
    return sum(size for at, size in storages.items() if at not in own)

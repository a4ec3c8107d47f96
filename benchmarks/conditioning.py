"""What one noise level per patch costs beside one per image: training steps and evaluations of a sampler.

    python -m benchmarks.conditioning train dit_s_64 dit_s_256 --threads 2
    python -m benchmarks.conditioning sample dit_s_64 unet_60m --rounds 9
    python -m benchmarks.conditioning train dit_b2 dit_xl2 --device cuda --precision bf16 --compile default

Variants of one network with the same weights, in turn, in one run: conditioned on one level per image (the usual way),
on a map in the naive way (every block computes the modulation of every place, as Patch Forcing and SRM do), and on a
map in ours (a table of distinct levels, gathered). Prints a Markdown table: medians, ratios to one level per image,
operations by PyTorch's counter, bytes that the forward pass keeps for the backward, and on a GPU the peak of memory and
the share of the device's peak speed.
"""

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from asyncdiff.callbacks.flops import peak_flops
from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.denoising.loss import training_loss
from asyncdiff.denoising.weightings import Sigmoid
from asyncdiff.networks.dit import DiT
from asyncdiff.networks.embeddings import LevelEmbedding
from asyncdiff.networks.modulation import Conditioning, IndexedVectors, Modulation
from asyncdiff.networks.unet import UNet
from asyncdiff.noise.levels import AlongPath, LevelDraw, Shared
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.shapes import UniqueLevels

# Variants
ONE, NAIVE, OURS = "one level an image", "map, naive", "map, ours"
BLOCKWISE = "map, SRM's way"
CONSTANT, TWO = "constant map", "two levels (inpainting)"
LADDER = "51 levels (adaptive clocks)"
LEVELS = 256  # equidistant values in training, AsyncDiffusion's default


@dataclass(frozen=True)
class Case:
    """A network at an image size, with the batch it is measured on."""

    network: Callable[[], nn.Module]
    channels: int
    size: int
    batch: int


def dit(patch: int, dim: int, depth: int, heads: int, channels: int = 3) -> Callable[[], DiT]:
    return partial(DiT, channels=channels, patch_size=patch, dim=dim, depth=depth, heads=heads)


# experiments/networks/unet_paper_60m.yaml
UNET = partial(
    UNet, width=128, multipliers=[1, 2, 2, 3], blocks=2, middle_blocks=3, attention=[2, 3], level_patch_size=8
)
CASES = {
    "dit_s_64": Case(dit(4, 384, 12, 6), 3, 32, 64),
    "dit_s_256": Case(dit(2, 384, 12, 6), 3, 32, 16),
    "dit_b_64": Case(dit(4, 768, 12, 12), 3, 32, 64),
    "dit_b_256": Case(dit(2, 768, 12, 12), 3, 32, 16),
    "unet_60m": Case(UNET, 3, 64, 4),
    "dit_b2": Case(dit(2, 768, 12, 12, 4), 4, 32, 256),  # latents of 256x256 images: for a GPU
    "dit_xl2": Case(dit(2, 1152, 28, 16, 4), 4, 32, 128),
}


# The naive way, for comparison only


@dataclass(frozen=True)
class PerPlace(IndexedVectors):
    """Vectors that were computed, and are kept, for every place."""

    @property
    def shared(self) -> bool:
        """True: there is nothing to gather."""
        return True

    def gather(self) -> Tensor:
        """The vectors."""
        return self.table.view(*self.index.shape, -1)


class NaiveModulation(Modulation):
    """A modulation whose product with the weight is made for every place."""

    def forward(self, conditioning: Conditioning) -> tuple[IndexedVectors, ...]:
        """Features are gathered first, then multiplied."""
        features = conditioning.levels[conditioning.index]  # of the patches, or of pixels that cover several
        if conditioning.label is not None:
            features = features + conditioning.label[:, None]
        vectors = self.linear(features).flatten(0, 1).chunk(self.count, dim=1)
        return tuple(PerPlace(v, conditioning.index, None) for v in vectors)


class BlockwiseModulation(NaiveModulation):
    """SRM's way (arXiv:2502.21075): every block embeds the level of every place once more."""

    embedding: "Remembering"

    def forward(self, conditioning: Conditioning) -> tuple[IndexedVectors, ...]:
        """The level's embedding, then the product with the weight, for every place."""
        assert len(conditioning.levels) == len(self.embedding.values), "no pixel covers several patches here"
        values = self.embedding.values[conditioning.index.flatten()]
        features = F.silu(LevelEmbedding.forward(self.embedding, values))
        index = torch.arange(len(values), device=values.device).view(conditioning.index.shape)
        return super().forward(replace(conditioning, levels=features, index=index))


class Remembering(LevelEmbedding):
    """A level embedding that keeps the levels it was last asked for."""

    def forward(self, levels: Tensor) -> Tensor:
        """The embedding, as ever."""
        self.values = levels
        return super().forward(levels)


def naive(network: nn.Module, kind: str) -> nn.Module:
    """A copy of the network, the same function, in a naive way."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, Modulation):
            module.__class__ = NaiveModulation if kind == NAIVE else BlockwiseModulation
            object.__setattr__(module, "embedding", copied.level_embedding)  # not as a part of the block
        elif isinstance(module, LevelEmbedding):
            module.__class__ = Remembering
    return copied


# What is measured


class Bench:
    """One network with its inputs, and its naive twin.

    Args:
        case: what is measured.
        device: where.
        precision: bf16 is autocast's.
        compiled: mode of torch.compile, "default" for its own; None leaves both eager.
    """

    def __init__(self, case: Case, device: torch.device, precision: torch.dtype, compiled: str | None):
        self.case, self.device, self.precision, self.compiled = case, device, precision, compiled
        torch.manual_seed(0)
        network = case.network().to(device)
        with torch.no_grad():  # zeros would make modulations and gradients trivial
            for p in network.parameters():
                p.add_(0.02 * torch.randn_like(p))
        self.networks = {ONE: network, NAIVE: naive(network, NAIVE)}
        if isinstance(network, UNet):
            self.networks[BLOCKWISE] = naive(network, BLOCKWISE)
        if compiled:
            for each in self.networks.values():
                each.compile(mode=None if compiled == "default" else compiled)
        self.optimizers = {k: torch.optim.AdamW(n.parameters(), 0.0, fused=True) for k, n in self.networks.items()}
        self.x = torch.randn(case.batch, case.channels, case.size, case.size, device=device)
        self.grid = network.grid((case.size, case.size))

    def denoiser(self, kind: str) -> Denoiser:
        """The network of a variant."""
        return Denoiser(self.networks.get(kind, self.networks[ONE]), RectifiedFlow())

    def drawn(self, kind: str) -> LevelDraw:
        """Level maps of one training batch."""
        if kind == ONE:
            return Shared()(self.case.batch, self.grid, device=self.device)
        draw = AlongPath()(self.case.batch, self.grid, device=self.device).quantized(LEVELS)
        return LevelDraw(draw.t, None, one_each(draw.t)) if kind in self.networks else draw

    def autocast(self) -> AbstractContextManager:
        """Mixed precision, if any."""
        return nullcontext() if self.precision == torch.float32 else torch.autocast(self.device.type, self.precision)

    def loss(self, kind: str) -> Tensor:
        """The training loss."""
        with self.autocast():
            result = training_loss(
                self.denoiser(kind), self.x, torch.randn_like(self.x), self.drawn(kind), Sigmoid(0.0)
            )
        return result.per_image.mean()

    def step(self, kind: str) -> None:
        """A training step: levels, noise, forward, backward, AdamW."""
        optimizer = self.optimizers.get(kind, self.optimizers[ONE])
        optimizer.zero_grad()
        self.loss(kind).backward()
        optimizer.step()

    def evaluation(self, kind: str) -> None:
        """An evaluation as a sampler makes it: which levels there are is found from the map."""
        t = torch.full((self.case.batch, *self.grid), 0.7, device=self.device)
        if kind == ONE:
            t = t[:, :1, :1]
        elif kind == TWO:
            t[:, :, : self.grid[1] // 2] = 0
        elif kind == LADDER:
            t = torch.randint(51, t.shape, device=self.device) / 50
        elif kind != CONSTANT:  # no two patches at the same level: there is no table to gain by
            t = torch.rand(t.shape, device=self.device)
        with torch.no_grad(), self.autocast():
            self.denoiser(kind)(self.x, t, unique=one_each(t) if kind in (NAIVE, BLOCKWISE) else None)

    def kept(self, kind: str) -> int:
        """Bytes kept for the backward, parameters left out."""
        own = {p.untyped_storage().data_ptr() for n in self.networks.values() for p in n.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss(kind)
        del loss
        return sum(storages.values())


def one_each(t: Tensor) -> UniqueLevels:
    """Every patch's level as one of its own."""
    return UniqueLevels(t.flatten(), torch.arange(t.numel(), device=t.device).view(t.shape))


RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": ("step", (ONE, BLOCKWISE, NAIVE, OURS)),
    "sample": ("evaluation", (ONE, CONSTANT, TWO, LADDER, BLOCKWISE, NAIVE, OURS)),
}


def timed(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(bench: Bench, what: str, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of every variant, its ratio to the first within each round, operations and memory."""
    method, kinds = RUNS[what]
    kinds = tuple(kind for kind in kinds if kind != BLOCKWISE or kind in bench.networks)
    runs = {kind: partial(getattr(bench, method), kind) for kind in kinds}
    operations, peaks = {}, {}
    for kind, run in runs.items():
        with FlopCounterMode(display=False) as counter:
            run()
        operations[kind] = counter.get_total_flops()
        run()  # warms up; the counter sees no compiled code
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            run()
            peaks[kind] = torch.cuda.max_memory_allocated()
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(rounds):
        for place in range(len(kinds)):  # whoever comes first in a round changes
            kind = kinds[(number + place) % len(kinds)]
            seconds[kind].append(timed(runs[kind], bench.device))
    first = kinds[0]
    told: dict[str, dict[str, float]] = {}
    for kind in kinds:
        ratios = [a / b for a, b in zip(seconds[kind], seconds[first], strict=True)]
        middle = statistics.median(seconds[kind])
        told[kind] = {
            "ms": 1000 * middle,
            "ratio": statistics.median(ratios),
            "images/s": bench.case.batch / middle,
            "operations": operations[kind] / operations[first],
        }
        if what == "train" and not bench.compiled:
            told[kind]["kept, MiB"] = bench.kept(kind) / 2**20
            told[kind]["kept"] = told[kind]["kept, MiB"] / told[first]["kept, MiB"]
        if peaks:
            told[kind] |= {"peak, GiB": peaks[kind] / 2**30, "peak": peaks[kind] / peaks[first]}
            available = peak_flops(bench.device, "bf16" if bench.precision == torch.bfloat16 else "32")
            if available:
                told[kind]["MFU, %"] = 100 * operations[first] / middle / available
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=RUNS)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, help="images; by default what a CPU can do, more for dit_b2 and dit_xl2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", help="default, or a mode such as reduce-overhead (CUDA graphs)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    precision = {"fp32": torch.float32, "bf16": torch.bfloat16}[given.precision]
    name = torch.cuda.get_device_name() if given.device.type == "cuda" else f"CPU, {given.threads} threads"
    print(f"{name}, torch {torch.__version__}, {given.precision}, compile: {given.compile}, {given.rounds} rounds")
    for number, label in enumerate(given.cases):
        case = CASES[label]
        case = Case(case.network, case.channels, case.size, given.batch or case.batch)
        bench = Bench(case, given.device, precision, given.compile)
        told = measure(bench, given.what, given.rounds)
        if number == 0:
            columns = " | ".join(told[ONE])
            print(f"\n| {given.what} | levels | {columns} |\n|{'---|' * (len(told[ONE]) + 2)}")
        for kind, values in told.items():
            numbers = " | ".join(f"{v:.0f}" if v >= 100 else f"{v:.3g}" for v in values.values())
            print(f"| {label}, batch {case.batch} | {kind} | {numbers} |", flush=True)
        del bench
        gc.collect()  # what refers to itself is large


if __name__ == "__main__":
    main()

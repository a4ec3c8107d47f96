"""Cost of one noise level per patch compared with one per image: training steps and sampler evaluations.

    python -m benchmarks.conditioning train dit_s_64 dit_s_256 --threads 2
    python -m benchmarks.conditioning sample dit_s_64 unet_60m --rounds 9
    python -m benchmarks.conditioning train dit_b2 dit_xl2 --device cuda --precision bf16 --compile default

Compares variants of one network with the same weights, interleaved in one run: conditioned on one level per image (the
standard), on a level map in the naive way (every block computes the modulation of every patch, as Patch Forcing and SRM
do), and on a level map as this library does (a table of the distinct levels, gathered). Prints a Markdown table: median
times, ratios to one level per image, operations by PyTorch's counter, bytes that the forward pass saves for the
backward pass, and on a GPU the peak memory and the model FLOPs utilization.
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
from asyncdiff.noise.level_samplers import AlongPath, LevelDraw, Shared
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.shapes import IndexedLevels

# Variants
ONE, NAIVE, TABLE = "one level per image", "map, naive", "map, asyncdiff"
BLOCKWISE = "map, as in SRM"
CONSTANT, TWO = "constant map", "two levels (inpainting)"
LADDER = "51 levels (adaptive sampler)"
LEVELS = 256  # distinct values in training, the default of AsyncDiffusion


@dataclass(frozen=True)
class Case:
    """Network with the size and number of the images that it is measured on."""

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


# Naive implementations, for comparison only


@dataclass(frozen=True)
class VectorPerPatch(IndexedVectors):
    """Modulation vectors that are computed and stored for every patch."""

    @property
    def shared(self) -> bool:
        """True, since there is nothing to gather."""
        return True

    def gather(self) -> Tensor:
        """Return the vectors."""
        return self.table.view(*self.index.shape, -1)


class NaiveModulation(Modulation):
    """Modulation that multiplies the features of every patch by the weight."""

    def forward(self, conditioning: Conditioning) -> tuple[IndexedVectors, ...]:
        """Gather the features first, then multiply."""
        features = conditioning.levels[conditioning.index]  # per patch, or per pixel if pixels cover several patches
        if conditioning.label is not None:
            features = features + conditioning.label[:, None]
        vectors = self.linear(features).flatten(0, 1).chunk(self.count, dim=1)
        return tuple(VectorPerPatch(v, conditioning.index, None) for v in vectors)


class BlockwiseModulation(NaiveModulation):
    """Modulation as in SRM (arXiv:2502.21075): every block embeds the level of every patch again."""

    embedding: "CachingEmbedding"

    def forward(self, conditioning: Conditioning) -> tuple[IndexedVectors, ...]:
        """Embed the level, then multiply by the weight, for every patch."""
        assert len(conditioning.levels) == len(self.embedding.values), "no pixel covers several patches here"
        values = self.embedding.values[conditioning.index.flatten()]
        features = F.silu(LevelEmbedding.forward(self.embedding, values))
        index = torch.arange(len(values), device=values.device).view(conditioning.index.shape)
        return super().forward(replace(conditioning, levels=features, index=index))


class CachingEmbedding(LevelEmbedding):
    """Level embedding that stores the levels of its last call."""

    def forward(self, levels: Tensor) -> Tensor:
        """Store the levels and return their embedding."""
        self.values = levels
        return super().forward(levels)


def naive(network: nn.Module, kind: str) -> nn.Module:
    """Return a copy of the network that computes the same function with a naive implementation."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, Modulation):
            module.__class__ = NaiveModulation if kind == NAIVE else BlockwiseModulation
            object.__setattr__(module, "embedding", copied.level_embedding)  # without registering a submodule
        elif isinstance(module, LevelEmbedding):
            module.__class__ = CachingEmbedding
    return copied


# Measurements


class Bench:
    """Network with its inputs, and its naive copies.

    Args:
        case: network, image size and batch size.
        device: device to measure on.
        precision: float32, or bfloat16 for autocast.
        compiled: mode of torch.compile, "default" for its default; None for eager mode.
    """

    def __init__(self, case: Case, device: torch.device, precision: torch.dtype, compiled: str | None):
        self.case, self.device, self.precision, self.compiled = case, device, precision, compiled
        torch.manual_seed(0)
        network = case.network().to(device)
        with torch.no_grad():  # zero-initialized weights would make modulations and gradients trivial
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
        """Denoiser of a variant."""
        return Denoiser(self.networks.get(kind, self.networks[ONE]), RectifiedFlow())

    def draw_levels(self, kind: str) -> LevelDraw:
        """Draw the level maps of one training batch."""
        if kind == ONE:
            return Shared()(self.case.batch, self.grid, device=self.device)
        draw = AlongPath()(self.case.batch, self.grid, device=self.device).quantized(LEVELS)
        return LevelDraw(indexed_per_patch(draw.t)) if kind in self.networks else draw

    def autocast(self) -> AbstractContextManager:
        """Return the autocast context, if the precision needs one."""
        return nullcontext() if self.precision == torch.float32 else torch.autocast(self.device.type, self.precision)

    def loss(self, kind: str) -> Tensor:
        """Return the training loss."""
        with self.autocast():
            result = training_loss(
                self.denoiser(kind), self.x, torch.randn_like(self.x), self.draw_levels(kind), Sigmoid(0.0)
            )
        return result.per_image.mean()

    def step(self, kind: str) -> None:
        """Run a training step: levels, noise, forward pass, backward pass, AdamW."""
        optimizer = self.optimizers.get(kind, self.optimizers[ONE])
        optimizer.zero_grad()
        self.loss(kind).backward()
        optimizer.step()

    def evaluation(self, kind: str) -> None:
        """Evaluate as a sampler does: the distinct levels are found from the map."""
        t = torch.full((self.case.batch, *self.grid), 0.7, device=self.device)
        if kind == ONE:
            t = t[:, :1, :1]
        elif kind == TWO:
            t[:, :, : self.grid[1] // 2] = 0
        elif kind == LADDER:
            t = torch.randint(51, t.shape, device=self.device) / 50
        elif kind != CONSTANT:  # all levels differ: the table saves nothing
            t = torch.rand(t.shape, device=self.device)
        with torch.no_grad(), self.autocast():
            self.denoiser(kind)(self.x, indexed_per_patch(t) if kind in (NAIVE, BLOCKWISE) else t)

    def saved_bytes(self, kind: str) -> int:
        """Return the bytes that are saved for the backward pass, without the parameters."""
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


def indexed_per_patch(t: Tensor) -> IndexedLevels:
    """Treat the level of every patch as distinct."""
    return IndexedLevels(t.flatten(), torch.arange(t.numel(), device=t.device).view(t.shape))


RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": ("step", (ONE, BLOCKWISE, NAIVE, TABLE)),
    "sample": ("evaluation", (ONE, CONSTANT, TWO, LADDER, BLOCKWISE, NAIVE, TABLE)),
}


def seconds_of(run: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(bench: Bench, what: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return for every variant the median time, its ratio to the first variant per round, operations and memory."""
    method, kinds = RUNS[what]
    kinds = tuple(kind for kind in kinds if kind != BLOCKWISE or kind in bench.networks)
    runs = {kind: partial(getattr(bench, method), kind) for kind in kinds}
    operations, peaks = {}, {}
    for kind, run in runs.items():
        with FlopCounterMode(display=False) as counter:
            run()
        operations[kind] = counter.get_total_flops()
        run()  # warms up, since the counter bypasses compiled code
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            run()
            peaks[kind] = torch.cuda.max_memory_allocated()
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(rounds):
        for place in range(len(kinds)):  # rotates the order
            kind = kinds[(number + place) % len(kinds)]
            seconds[kind].append(seconds_of(runs[kind], bench.device))
    first = kinds[0]
    results: dict[str, dict[str, float]] = {}
    for kind in kinds:
        ratios = [a / b for a, b in zip(seconds[kind], seconds[first], strict=True)]
        median = statistics.median(seconds[kind])
        results[kind] = {
            "ms": 1000 * median,
            "ratio": statistics.median(ratios),
            "images/s": bench.case.batch / median,
            "operations": operations[kind] / operations[first],
        }
        if what == "train" and not bench.compiled:
            results[kind]["saved, MiB"] = bench.saved_bytes(kind) / 2**20
            results[kind]["saved"] = results[kind]["saved, MiB"] / results[first]["saved, MiB"]
        if peaks:
            results[kind] |= {"peak, GiB": peaks[kind] / 2**30, "peak": peaks[kind] / peaks[first]}
            available = peak_flops(bench.device, "bf16" if bench.precision == torch.bfloat16 else "32")
            if available:
                results[kind]["MFU, %"] = 100 * operations[first] / median / available
    return results


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=RUNS)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--batch", type=int, help="batch size (default: sized for a CPU, larger for dit_b2 and dit_xl2)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--compile", help="mode of torch.compile: default, or for example reduce-overhead (CUDA graphs)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    precision = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    name = torch.cuda.get_device_name() if options.device.type == "cuda" else f"CPU, {options.threads} threads"
    print(
        f"{name}, torch {torch.__version__}, {options.precision}, compile: {options.compile}, {options.rounds} rounds"
    )
    for number, label in enumerate(options.cases):
        case = CASES[label]
        case = Case(case.network, case.channels, case.size, options.batch or case.batch)
        bench = Bench(case, options.device, precision, options.compile)
        results = measure(bench, options.what, options.rounds)
        if number == 0:
            columns = " | ".join(results[ONE])
            print(f"\n| {options.what} | levels | {columns} |\n|{'---|' * (len(results[ONE]) + 2)}")
        for kind, values in results.items():
            numbers = " | ".join(f"{v:.0f}" if v >= 100 else f"{v:.3g}" for v in values.values())
            print(f"| {label}, batch {case.batch} | {kind} | {numbers} |", flush=True)
        del bench
        gc.collect()  # reference cycles hold the network


if __name__ == "__main__":
    main()

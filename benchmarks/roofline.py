"""Estimate training steps and network evaluations on GPUs, without a GPU, from counted operators.

    python -m benchmarks.roofline train dit_b2 dit_xl2 --batch 256 --gpu h200
    python -m benchmarks.roofline train imagenet64_unet_async --batch 64 128 --gpu h100
    python -m benchmarks.roofline sample dit_xl2 --batch 64 --precision tf32

Counts, and prints as Markdown: kernels of a step, operations, bytes that kernels read and write, and the largest memory
that tensors take at once. Training includes the loss, gradient norm, clipping, AdamW and EMA.
Levels are one per image, a map with 256 distinct levels, or a map in the naive way (the modulation of every patch is
computed and stored), see `benchmarks.conditioning`.

Estimates from these counts, for the constants below: a kernel takes as long as its operations or its bytes, whichever
is longer. MFU is the share of the GPU's peak that the operations of the model with one level per image are, three times
those of its forward pass. *Compiled* assumes that all operators of the network between two matrix products become one
kernel, which reads and writes only what others produce or need: the best that fusion can reach.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from asyncdiff.callbacks.ema import update_averages
from asyncdiff.checkpoints import object_config
from asyncdiff.denoising import Denoiser, Velocity, training_loss
from asyncdiff.networks.modulation import Modulation
from asyncdiff.noise import LevelDraw, RectifiedFlow
from asyncdiff.shapes import IndexedLevels
from asyncdiff.training.optimization.gradients import gradient_norms, nan_gradient_if_nonfinite, total_norm
from benchmarks.conditioning import NaiveModulation, indexed_per_patch
from benchmarks.operators import Operator, Recorder, filled, without_data

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


@dataclass(frozen=True)
class GPU:
    """Data sheet of a GPU.

    Attributes:
        flops: dense FLOP/s by precision.
        bandwidth: bytes per second from memory.
        memory: bytes.
    """

    flops: dict[str, float]
    bandwidth: float
    memory: float


# NVIDIA's data sheets of the SXM versions, without sparsity.
HOPPER = {"float32": 67e12, "tf32": 494.5e12, "bf16": 989.5e12}
GPUS = {"h100": GPU(HOPPER, 3.35e12, 80e9), "h200": GPU(HOPPER, 4.8e12, 141e9)}
# Assumptions, none of them measured here.
MATMUL = 0.65  # share of the peak that large matrix products reach
BANDWIDTH = 0.8  # share of the bandwidth that kernels reach which only move data
ATOMICS = 0.6e12  # atomic additions per second in float32
KERNEL = 2e-6  # seconds of the smallest kernel
HOST = 6e-6  # seconds that the host needs per kernel in eager mode

ONE, MAPS, NAIVE_MAPS, DIFFERENT = "one per image", "maps", "maps, naive", "all different"
LEVELS = {"train": (ONE, MAPS, NAIVE_MAPS), "sample": (ONE, "two (inpainting)", DIFFERENT)}
VALUES = 256  # distinct levels in training, the default of AsyncDiffusion


@dataclass(frozen=True)
class Case:
    """Network with the images and the number of levels that it is trained on."""

    network: dict[str, Any]
    channels: int
    size: int
    values: int = VALUES

    @classmethod
    def of_layer(cls, name: str, channels: int, size: int, **arguments: Any) -> "Case":
        """Case of a file in experiments/networks, with 1000 classes."""
        config = yaml.safe_load((EXPERIMENTS / "networks" / f"{name}.yaml").read_text())["model"]["network"]
        config = {"class_path": "asyncdiff.networks.DiT"} | config
        return cls(config | {"init_args": {**config["init_args"], "channels": channels, **arguments}}, channels, size)

    @classmethod
    def of_experiment(cls, name: str) -> "Case":
        """Case of a file in experiments."""
        model = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())["model"]
        channels = model["network"]["init_args"]["channels"]
        return cls(model["network"], channels, model["image_size"], model.get("level_values", VALUES))

    def changed(self, arguments: dict[str, Any]) -> "Case":
        """Return the case with other arguments of the network."""
        return replace(self, network=self.network | {"init_args": self.network["init_args"] | arguments})

    def build(self, *, compiled: bool = False) -> nn.Module:
        """Build the network, without data; with `compiled`, it takes itself for compiled."""
        with torch.device("meta"):
            network: Any = object_config.build(self.network, ["asyncdiff"])
        network._compiled = compiled
        return network


LATENTS = {"channels": 4, "size": 32, "patch_size": 2, "classes": 1000}  # of images of 256x256 pixels
CASES = {
    **{f"dit_{size}2": (lambda size=size: Case.of_layer(f"dit_{size}", **LATENTS)) for size in ("s", "b", "l", "xl")},
    "unet_cifar": lambda: Case.of_layer("unet_cifar", 3, 32, classes=10),
    "unet_imagenet64": lambda: Case.of_layer("unet_imagenet64", 3, 64, classes=1000),
    "unet_60m": lambda: Case.of_layer("unet_paper_60m", 3, 64, classes=1000),
    "unet_620m": lambda: Case.of_layer("unet_paper_620m", 3, 64, classes=1000),
    **{
        name: (lambda name=name: Case.of_experiment(name))
        for name in (
            *("latents_dit_async", "imagenet256_dit_xl_finetune"),
            *("imagenet64_unet_async", "imagenet256_unet_async", "lsun256_unet_async"),
        )
    },
}


@dataclass(frozen=True)
class Counts:
    """What a step or an evaluation consists of.

    Attributes:
        operators: operators in order.
        peak: bytes of the tensors that exist at once, at most.
        base: bytes of weights, gradients, optimizer and EMA, which exist always.
    """

    operators: list[Operator]
    peak: int
    base: int

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return sum(operator.flops for operator in self.operators)

    @property
    def bytes(self) -> int:
        """Bytes that kernels read and write."""
        return sum(operator.bytes for operator in self.operators)


def count_training(case: Case, batch: int, levels: str, *, compiled: bool = False) -> Counts:
    """Count a training step in mixed precision, bfloat16.

    Args:
        case: network and images.
        batch: number of images.
        levels: one of `LEVELS["train"]`.
        compiled: whether to count what is compiled, before anything is fused.
    """
    network = case.build(compiled=compiled)
    with without_data(compiled=compiled):
        x, draw, label = _inputs(filled(network), case, batch, levels)
        eps = torch.randn_like(x)
        parameters = list(network.parameters())
        optimizer = torch.optim.AdamW(parameters, fused=True)
        averages = [p.detach().clone() for p in parameters]
        weight = torch.zeros(())
        with Recorder() as recorder:
            base = sum(map(recorder.size, (*parameters, *averages)))
            for _ in range(2):  # the first step creates the optimizer's state
                recorder.start()
                with torch.autocast("cuda", torch.bfloat16), recorder.compiled(network):
                    loss = training_loss(Denoiser(network, RectifiedFlow()), x, eps, draw, Velocity(), label)
                    mean = nan_gradient_if_nonfinite(loss.per_image.mean())
                recorder.phase = "backward"
                mean.backward()
                recorder.phase, recorder.fusible = "optimizer", False
                gradients = [p.grad for p in parameters if p.grad is not None]
                norm = total_norm(gradient_norms(gradients), gradients)
                torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
                optimizer.step()
                update_averages(averages, [p.detach() for p in parameters], weight)
                optimizer.zero_grad()
                del loss, mean, gradients, norm
            return Counts(recorder.operators, recorder.peak, base * 5 // 2)  # + gradients and AdamW's two averages


def count_evaluation(case: Case, batch: int, levels: str, precision: str, *, compiled: bool = False) -> Counts:
    """Count one evaluation of the network in sampling, at one of `LEVELS["sample"]`; see `count_training`."""
    network = case.build(compiled=compiled)
    with without_data(compiled=compiled), torch.no_grad():
        x, draw, label = _inputs(filled(network), case, batch, levels)
        with Recorder() as recorder, torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            base = sum(map(recorder.size, network.parameters()))
            recorder.start()
            with recorder.compiled(network):
                Denoiser(network, RectifiedFlow())(x, draw.levels, label)
        return Counts(recorder.operators, recorder.peak, base)


def _inputs(network: nn.Module, case: Case, batch: int, levels: str) -> tuple[Tensor, LevelDraw, Tensor | None]:
    """Return images, level maps and labels; change the network if it is to treat them in the naive way."""
    grid = network.grid((case.size, case.size))
    t = torch.rand(batch, *grid)
    draw = {
        ONE: lambda: LevelDraw(IndexedLevels.per_image(t[:, 0, 0].clone())),
        MAPS: lambda: LevelDraw(t).quantized(case.values),
        NAIVE_MAPS: lambda: LevelDraw(indexed_per_patch(t)),
        DIFFERENT: lambda: LevelDraw(indexed_per_patch(t)),
        "two (inpainting)": lambda: LevelDraw(IndexedLevels(t[0, 0, :2].clone(), t.long())),
    }[levels]()
    draw.t  # noqa: B018  computed before the step begins
    x = torch.randn(batch, case.channels, case.size, case.size)
    classes = case.network["init_args"].get("classes", 0)
    label = torch.zeros(batch, dtype=torch.long) if classes else None
    for module in network.modules():
        if isinstance(module, Modulation) and levels == NAIVE_MAPS:
            module.__class__ = NaiveModulation
    return x, draw, label


# Estimates


def seconds(operator: Operator, gpu: GPU, precision: str = "bf16") -> float:
    """Return how long a kernel takes."""
    peak = gpu.flops["bf16" if operator.bits == 16 else "float32" if precision == "bf16" else precision]
    times = (operator.flops / (MATMUL * peak), operator.bytes / (BANDWIDTH * gpu.bandwidth), operator.atomics / ATOMICS)
    return max(KERNEL, *times)


def fused(operators: Sequence[Operator]) -> Iterator[Operator]:
    """Yield the kernels of a compiled network: neighbors that can be fused become one operator.

    It reads what others have written, and writes what others will read. Sums over other axes than the last are
    kernels of their own, which read their inputs again.
    """
    last_read = {piece[0]: place for place, operator in enumerate(operators) for piece in operator.reads}
    place = 0
    for fusible, group in groupby(operators, key=lambda operator: (operator.fusible, operator.phase)):
        members = list(group)
        place += len(members)
        if not fusible[0]:
            yield from members
            continue
        yield _merged(members, last_read, place)
        yield from (replace(m, name=f"{m.name} again", writes={}) for m in members if m.reduces)


def _merged(members: Sequence[Operator], last_read: dict[int, int], end: int) -> Operator:
    """Return one operator in place of several, of which the last is the one before place `end`."""
    made: set[int] = set()
    reads, writes = {}, {}
    for member in members:
        reads |= {piece: size for piece, size in member.reads.items() if piece[0] not in made}
        made |= {piece[0] for piece in member.writes}
        writes |= {piece: size for piece, size in member.writes.items() if last_read.get(piece[0], -1) >= end}
    return replace(members[0], name="fused", reads=reads, writes=writes)


@dataclass(frozen=True)
class Estimate:
    """Time of a step, and what follows from it."""

    kernels: int
    seconds: float
    images_per_second: float
    mfu: float

    def cells(self) -> tuple[str, ...]:
        """Return milliseconds, images per second and MFU for a table."""
        return f"{1e3 * self.seconds:.1f}", f"{self.images_per_second:.0f}", f"{self.mfu:.2f}"


def estimate(
    operators: Sequence[Operator], gpu: GPU, batch: int, needed: int, precision: str = "bf16", host: float = HOST
) -> Estimate:
    """Estimate the time of all operators, one after the other.

    Args:
        operators: kernels of a step.
        gpu: GPU.
        batch: number of images.
        needed: operations that the model needs, for the MFU.
        precision: precision of matrix products.
        host: seconds of the host per kernel, which hide behind the device's.
    """
    operators = list(operators)
    total = max(sum(seconds(operator, gpu, precision) for operator in operators), host * len(operators))
    return Estimate(len(operators), total, batch / total, needed / total / gpu.flops[precision])


# Tables

COLUMNS = ("kernels", "TFLOP", "GB moved", "memory, GB", "ms", "images/s", "MFU")
COMPILED = tuple(f"compiled: {name}" for name in ("kernels", "GB moved", "ms", "images/s", "MFU"))


def cells(what: str, case: Case, batch: int, levels: str, gpu: GPU, precision: str) -> list[str]:
    """Return the cells of a table row, by the names of `COLUMNS` and `COMPILED`."""

    def count(levels: str, compiled: bool = False) -> Counts:
        if what == "train":
            return count_training(case, batch, levels, compiled=compiled)
        return count_evaluation(case, batch, levels, precision, compiled=compiled)

    counts = count(levels)
    single = counts if levels == ONE else count(ONE)
    forward = sum(operator.flops for operator in single.operators if operator.phase == "forward")
    needed = forward * (3 if what == "train" else 1)
    kernels = list(fused(count(levels, compiled=True).operators))
    eager = estimate(counts.operators, gpu, batch, needed, precision)
    compiled = estimate(kernels, gpu, batch, needed, precision, host=0)
    moved = sum(kernel.bytes for kernel in kernels)
    return [
        *(f"{eager.kernels}", f"{counts.flops / 1e12:.1f}", f"{counts.bytes / 1e9:.1f}", f"{counts.peak / 1e9:.1f}"),
        *eager.cells(),
        *(f"{compiled.kernels}", f"{moved / 1e9:.1f}"),
        *compiled.cells(),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=LEVELS)
    parser.add_argument("cases", nargs="+", choices=CASES, metavar="case", help=", ".join(CASES))
    parser.add_argument("--batch", type=int, nargs="+", default=[256], help="numbers of images on one GPU")
    parser.add_argument("--gpu", choices=GPUS, default="h200")
    parser.add_argument("--precision", choices=HOPPER, default="bf16", help="of sampling; training is in bf16")
    levels = sorted({name for names in LEVELS.values() for name in names})
    parser.add_argument("--levels", nargs="+", choices=levels, help="default: what training or sampling has")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="instead of the experiment's")
    parser.add_argument("--qk_norm", action=argparse.BooleanOptionalAction, help="instead of the experiment's")
    options = parser.parse_args(argv)
    changes = {name: getattr(options, name) for name in ("checkpointing", "qk_norm")}
    changes = {name: value for name, value in changes.items() if value is not None}
    print(f"Estimates for one {options.gpu.upper()}, from operators counted without it.\n")
    head = (options.what, "batch", "levels", *COLUMNS, *COMPILED)
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for name in options.cases:
        case = CASES[name]().changed(changes)
        for batch in options.batch:
            for levels in options.levels or LEVELS[options.what]:
                row = cells(options.what, case, batch, levels, GPUS[options.gpu], options.precision)
                print(f"| {' | '.join((name, str(batch), levels, *row))} |", flush=True)


if __name__ == "__main__":
    main()

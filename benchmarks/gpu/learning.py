"""A real run: AsyncPatch levels against shared levels, in turns with equal steps, then what the models can do."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asyncdiff import AsyncDiffusion
from asyncdiff.denoising import Sigmoid
from asyncdiff.evaluation import FrechetDistance, TrainedClassifier, as_features
from asyncdiff.networks import DiT
from asyncdiff.noise import AlongPath, Half, LevelSampler, Shared
from asyncdiff.precision import computing_in, full_float32
from asyncdiff.sampling import Multistep, Sampler
from asyncdiff.training import OptimizerSettings
from benchmarks.gpu.fits import fit, trainer_precision
from benchmarks.gpu.images import real_images
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Finding
from benchmarks.gpu.runner import Deadline, Measurement
from datamodules.base import ImageDataModule

LEVELS: dict[str, LevelSampler] = {"AsyncPatch": AlongPath(), "shared": Shared()}


@dataclass(frozen=True)
class Scale:
    """Sizes of the run.

    Attributes:
        network: arguments of the DiT.
        batch: images per step.
        steps: number of steps in a turn.
        images: number of images that are generated, and that are inpainted.
        reference: number of real images of the Fréchet distance.
        dim: number of its features.
    """

    network: dict[str, int]
    batch: int
    steps: int
    images: int
    reference: int
    dim: int


LARGE = Scale({"patch_size": 2, "dim": 384, "depth": 12, "heads": 6}, 256, 600, 1024, 10_000, 64)
SMALL = Scale({"patch_size": 2, "dim": 64, "depth": 2, "heads": 2}, 64, 40, 64, 512, 16)


def measurements(machine: Machine) -> Iterator[Measurement]:
    """Yield turns without end, each followed by an evaluation; later calls of the command continue the runs."""
    setting = Setting(machine)
    for turn in count(1):
        step = turn * setting.scale.steps
        for name in LEVELS:
            yield Measurement(f"training, {name}, step {step}", partial(setting.train, name, step))
        for name in LEVELS:
            yield Measurement(f"evaluation, {name}, step {step}", partial(setting.evaluate, name, step))


@dataclass
class Setting:
    """Data, metric and models of the runs, each made when it is first needed.

    Attributes:
        machine: machine to train on.
        modules: modules that are trained, by name; compiled once.
    """

    machine: Machine
    modules: dict[str, AsyncDiffusion] = field(default_factory=dict)

    @property
    def scale(self) -> Scale:
        """Sizes of the run."""
        return SMALL if self.machine.small else LARGE

    def data(self) -> ImageDataModule:
        """Return the images; a trainer needs its own data module."""
        return real_images(self.machine.data, self.scale.batch)

    def checkpoint(self, name: str) -> Path:
        """Return the path of a run's checkpoint."""
        return self.machine.output / "learning" / name / "last.ckpt"

    @property
    def features_file(self) -> Path:
        """Path of the weights of the feature extractor."""
        return self.machine.output / "learning" / "features.safetensors"

    @cached_property
    def metric(self) -> FrechetDistance:
        """Fréchet distance with the real images; its features are trained on them once for all calls."""
        data, scale = self.data(), self.scale
        batches = list(islice(data.images("train", 256), max(1, scale.reference // 256)))
        metric = FrechetDistance(self.features(data, batches))
        with full_float32(self.machine.device):
            for batch in batches:
                metric.update(batch["image"].to(self.machine.device), real=True)
        return metric

    def features(self, data: ImageDataModule, batches: list[Any]) -> nn.Module:
        """Return the features: a classifier of the labels, or pixels without labels."""
        from safetensors.torch import load_file, save_file

        if not data.classes:
            pixels = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
            return as_features(pixels, dim=16 * data.channels)
        features = TrainedClassifier(data.channels, data.classes, dim=self.scale.dim, epochs=4).to(self.machine.device)
        if self.features_file.is_file():
            features.load_state_dict(load_file(self.features_file))
        else:
            features.prepare(batches)
            self.features_file.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: value.cpu() for name, value in features.state_dict().items()}, self.features_file)
        return features

    def module(self, name: str, data: ImageDataModule) -> AsyncDiffusion:
        """Return the module of a run."""
        if not self.modules:  # both at once, since compiling one network forgets the graphs of earlier ones
            optimizer = OptimizerSettings(learning_rate=6e-4, warmup_steps=min(500, self.scale.steps))
            for each, levels in LEVELS.items():
                torch.manual_seed(0)
                network = DiT(channels=data.channels, classes=data.classes, **self.scale.network)
                self.machine.compile(network, compiled=not self.machine.small and True in self.machine.modes)
                options = {"image_size": data.size, "optimizer": optimizer, "label_dropout": 0.3}
                self.modules[each] = AsyncDiffusion(network, levels, Sigmoid(1.0), **options)
        return self.modules[name]

    def train(self, name: str, step: int, deadline: Deadline) -> Finding:
        """Continue a run up to a step."""
        data, checkpoint, precision = self.data(), self.checkpoint(name), trainer_precision(self.machine)
        module, every = self.module(name, data), max(1, self.scale.steps // 4)
        resume = checkpoint if checkpoint.is_file() else None
        trainer, metrics = fit(
            module,
            data,
            checkpoint.parent,
            step,
            self.machine.trainer_options,
            precision=precision,
            every=every,
            resume=resume,
        )
        trainer.save_checkpoint(checkpoint)
        last = {tag: values[-1] for tag, values in metrics.values.items() if tag in ("train/loss",)}
        rate = {"images/s": metrics.values.get("train/images_per_second", [float("nan")])[-1]}
        row = {"precision": precision, "batch": data.batch_size, "steps": step, **last, **rate}
        return Finding([row], details={"metrics": metrics.values})

    @torch.no_grad()
    def evaluate(self, name: str, step: int, deadline: Deadline) -> Finding:
        """Generate and inpaint images with the EMA weights; compare their features with those of real images."""
        device, data = self.machine.device, self.data()
        module = AsyncDiffusion.load_from_checkpoint(self.checkpoint(name), device)
        real = torch.cat([batch["image"] for batch in islice(data.images("val", self.scale.images), 1)]).to(device)
        known = Half()(data.size, data.size).to(device)
        sampler, options = Sampler(solver=Multistep(), steps=20), {"batch_size": 256}
        labels = [i % data.classes for i in range(self.scale.images)] if data.classes else None
        with computing_in(self.machine.precision, device):
            generated = module.generate(range(self.scale.images), labels, sampler=sampler, **options)
            inpainted = module.inpaint(real, known, seeds=range(len(real)), sampler=sampler, **options)
        distances = {"real": real, "generated": generated, "inpainted": inpainted}
        row: dict[str, Any] = {"precision": self.machine.precision, "steps": step, "images": self.scale.images}
        row |= {f"Fréchet, {key}": self.distance(images) for key, images in distances.items()}
        unknown = (inpainted - real)[:, :, ~known]
        row["error of the unknown half, rms"] = float(unknown.square().mean().sqrt())
        return Finding([row])

    def distance(self, images: torch.Tensor) -> float:
        """Return the Fréchet distance of images from the real ones, with features in float32."""
        self.metric.reset()
        with full_float32(self.machine.device):
            for part in images.split(256):
                self.metric.update(part.clamp(-1, 1), real=False)
        return float(self.metric.compute())

"""Evaluation on the pretended GPU: numbers are those of the CPU, and the host waits at the end only."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from pretend_gpu.pretended_cuda import pretended_cuda, run_on_both
from pretend_gpu.watch import Watch
from small_runs import Pixels, small_dit
from torch import Tensor, nn

from asyncdiff.cli.jobs.distributed import Ranks
from asyncdiff.cli.jobs.extract_features import extract
from asyncdiff.cli.jobs.image_sources import ImageSource
from asyncdiff.denoising import Denoiser
from asyncdiff.evaluation import TrainedClassifier, as_features
from asyncdiff.evaluation.frechet import FrechetDistance
from asyncdiff.evaluation.held_out_images import evaluate_in_batches
from asyncdiff.evaluation.inpainting_benchmark import InpaintingBenchmark, ValidationImages
from asyncdiff.model import DiffusionModel
from asyncdiff.noise import RectifiedFlow
from asyncdiff.noise.masks import mask_by_name
from asyncdiff.sampling import Sampler

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
GPU = torch.device("cuda")


def updates(device: torch.device, watch: Watch) -> Tensor:
    metric, images = FrechetDistance(Pixels()), IMAGES.to(device)
    watch.clear()
    for real in (True, False):
        for part in images.split(2):
            metric.update(part, real=real)
            watch.step()
    assert not watch.waits
    return metric.compute()


class Source(ImageSource):
    """Images that are on the device already."""

    count, batch_size, shape, label = 6, 2, (1, 8, 8), "images"

    def __init__(self, device: torch.device, watch: Watch):
        self.images, self.watch = IMAGES.to(device), watch

    def read(self, batches: Sequence[Sequence[int]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in batches:
            self.watch.step()
            yield torch.tensor(rows), self.images[rows[0] : rows[-1] + 1]
        assert not self.watch.waits
        self.watch.step()

    def fingerprint(self) -> dict[str, Any]:
        return {}


def extraction(device: torch.device, watch: Watch) -> list[Tensor]:
    features, source = as_features(Pixels()).to(device), Source(device, watch)
    watch.clear()
    found = extract(features, source, Ranks(0, 1, device), max_features=4, keep_images=3)
    assert not watch.waits
    return [found.features, found.moments.gaussian().cov, found.first_images]


def training(device: torch.device, watch: Watch) -> Tensor:
    classifier = TrainedClassifier(1, 10, epochs=2, width=8, dim=16).to(device)
    label = torch.arange(128) % 10
    image = torch.rand(128, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    watch.clear()
    classifier.prepare([{"image": image, "label": label}])
    assert not watch.waits
    return classifier.embedding.weight.detach().cpu()


class Distance(nn.Module):
    """Mean squared distance of images."""

    name = "distance"

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return (images - others).square().mean((1, 2, 3))


def inpainting(device: torch.device, watch: Watch) -> list[Any]:
    denoiser = Denoiser(small_dit(), RectifiedFlow()).eval().to(device)
    metric = FrechetDistance(Pixels().to(device))
    metric.update(IMAGES.to(device), real=True)
    bench = InpaintingBenchmark(Distance(), metric, rounds=2, batch_size=2)
    data = ValidationImages(IMAGES.to(device), range(6), [0, 1, 2, 3, 4, 5])
    sampler = ("cached", Sampler(steps=3, refresh=2))
    watch.clear()

    def progress(_: int) -> None:
        watch.step()
        assert not watch.waits

    scores = bench.evaluate(denoiser, data, ("half", mask_by_name("half")), sampler, progress=progress)
    return [*scores.frechet, scores.lpips, scores.diversity, scores.evaluations, scores.patches]


@pytest.mark.parametrize("flow", [updates, extraction, training, inpainting])
@pytest.mark.filterwarnings("ignore:the Fréchet distance of")
def test_nothing_waits_between_batches(flow: Callable[[torch.device, Watch], Any]):
    watch, usual, found = run_on_both(flow)
    torch.testing.assert_close(found, usual, rtol=1e-12, atol=0)
    assert not watch.mixed


class HeldOut:
    """Images in memory, as a data set gives them."""

    def __init__(self, watch: Watch):
        self.watch = watch

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        self.watch.step()
        return {"image": IMAGES[indices], "label": torch.tensor(indices), "index": torch.tensor(indices)}


def test_rows_of_held_out_images_are_read_while_the_next_ones_are_computed():
    def flow(device: torch.device, watch: Watch) -> Tensor:
        watch.clear()
        rows = evaluate_in_batches(
            HeldOut(watch),
            range(6),
            lambda x, label, _: x.flatten(1) * label[:, None],
            batch_size=2,
            device=device,
            labels=True,
        )
        found = list(rows)
        assert len(watch.waits) <= 1  # for the last batch
        return torch.cat(found)

    watch, usual, found = run_on_both(flow)
    assert torch.equal(found, usual)
    assert not watch.mixed


@pytest.mark.parametrize("where", ["next", "compute"])
def test_images_of_another_range_are_noticed_one_batch_late(where):
    with pretended_cuda():
        metric = FrechetDistance(Pixels())
        metric.update((IMAGES + 1).mul(127.5).to(GPU), real=True)
        with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\], got values from"):
            metric.update(IMAGES.to(GPU), real=False) if where == "next" else metric.compute()


def test_a_sampler_that_changes_known_pixels_is_noticed():
    class Careless(Sampler):
        def frames(self, *args, **options):
            for frame in super().frames(*args, **options):
                yield replace(frame, x_t=frame.x_t + 1)

    with pretended_cuda():
        denoiser, bench = Denoiser(small_dit(), RectifiedFlow()).to(GPU), InpaintingBenchmark(batch_size=2)
        data = ValidationImages(IMAGES.to(GPU), range(6))
        with pytest.raises(RuntimeError, match=r"careless changed \d+ known values with half"):
            bench.evaluate(denoiser, data, ("half", mask_by_name("half")), ("careless", Careless(steps=1)))


@pytest.mark.parametrize(("name", "tf32"), [(None, (False, True)), ("float32", (False, False)), ("tf32", (True, True))])
def test_a_model_draws_with_the_settings_of_its_precision_and_metrics_with_none(name, tf32):
    """Without a precision, with PyTorch's defaults, which convolve in TF32."""
    seen: dict[str, tuple[bool, bool]] = {}

    def note(what: str) -> None:
        seen[what] = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    class Noted(Pixels):
        def forward(self, images: Tensor) -> Tensor:
            note("features")
            return super().forward(images)

    network = small_dit()
    network.register_forward_pre_hook(lambda *_: note("network"))
    with pretended_cuda():
        denoiser = Denoiser(network, RectifiedFlow()).eval().to(GPU)
        model = DiffusionModel(denoiser, Sampler(steps=1), 8, precision=name)
        metric = FrechetDistance(Noted())
        with model.sampling_context() if name else nullcontext():
            metric.update(model.generate([0, 1]), real=True)
    assert seen == {"network": tf32, "features": (False, False)}

"""Evaluation on the pretended GPU: bounds, Fréchet distances, the inpainting benchmark and canvases are the CPU's."""

from typing import Any

import pytest
import torch
from pretend_gpu.bounds import bounds, images, network
from pretend_gpu.fake_ranks import fake_ranks
from pretend_gpu.pretended_cuda import pretended_cuda, run_on_both
from pretend_gpu.watch import Watch
from small_runs import Pixels
from torch import Tensor

from asyncdiff.denoising import Denoiser
from asyncdiff.evaluation import FrechetDistance, TrainedClassifier, as_features
from asyncdiff.evaluation.inpainting_benchmark import InpaintingBenchmark, ValidationImages
from asyncdiff.networks import DiT, UNet
from asyncdiff.noise import RectifiedFlow
from asyncdiff.noise.masks import Half
from asyncdiff.sampling import Sampler, TiledSampler

BOUNDS = bounds()
WAITS_OF_A_BOUND = 2  # the range of the images, and the known pixels; none per evaluation
WAITS_OF_A_CANVAS = 2  # the picture is read at the end
few_images = pytest.mark.filterwarnings("ignore:the Fréchet distance of")


class SquaredError(torch.nn.Module):
    """Distance between images that needs no weights."""

    name = "squared_error"

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return (images - others).square().mean((1, 2, 3))


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name: str) -> None:
    watch, usual, found = run_on_both(BOUNDS[name])
    assert not watch.mixed
    assert len(watch.waits) <= WAITS_OF_A_BOUND, watch.waits
    assert usual["evaluations"] == found["evaluations"] > 1
    for part in ("total", "per_patch", "error"):
        assert torch.allclose(usual[part], found[part].cpu(), rtol=1e-4, atol=1e-5), part


@few_images
def test_frechet_distance_reads_nothing_between_batches() -> None:
    def flow(device: torch.device, watch: Watch) -> Tensor:
        metric = FrechetDistance(as_features(Pixels())).to(device)
        batches = torch.rand(4, 32, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
        for number, batch in enumerate(batches):
            watch.clear()
            watch.step()
            metric.update(batch, real=number % 2 == 0)
        if device.type == "cuda":
            assert not watch.waits, watch.waits
        return metric.compute().cpu()

    watch, usual, found = run_on_both(flow)
    assert not watch.mixed
    assert torch.allclose(usual, found, rtol=1e-6)


@few_images
def test_frechet_distance_over_two_ranks() -> None:
    """Two equal ranks have twice as many images, and nearly the same distance."""
    x = torch.rand(2, 64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with pretended_cuda() as watch, fake_ranks(watch) as ranks:
        metric = FrechetDistance(as_features(Pixels())).to("cuda")
        for real in (False, True):
            metric.update(x[int(real)].cuda(), real=real)
        distance = metric.compute()
        assert not watch.mixed
        assert ranks.calls["all_reduce"] > 0
        assert metric.real_n == metric.fake_n
    assert float(distance) > 0


def test_trained_classifier() -> None:
    def flow(device: torch.device, watch: Watch) -> Tensor:
        features = TrainedClassifier(1, 3, epochs=1, width=4, dim=8).to(device)
        watch.clear()
        features.prepare([{"image": images(24), "label": torch.arange(24) % 3}])
        return features(images().to(device)).cpu()

    watch, usual, found = run_on_both(flow)
    assert not watch.mixed
    assert torch.allclose(usual, found, atol=1e-5)


@few_images
def test_inpainting_benchmark() -> None:
    data = ValidationImages(images(6), range(6), [0, 1, 2, 0, 1, 2])

    def flow(device: torch.device, watch: Watch) -> dict[str, Any]:
        metric = FrechetDistance(as_features(Pixels())).to(device)
        metric.update(data.images.to(device), real=True)
        benchmark = InpaintingBenchmark(SquaredError(), metric, rounds=2, batch_size=4)
        denoiser = Denoiser(network(DiT), RectifiedFlow()).to(device)
        watch.clear()
        return benchmark.evaluate(denoiser, data, ("half", Half()), ("walk", Sampler(steps=2))).card()

    watch, usual, found = run_on_both(flow)
    assert not watch.mixed
    for score in ("frechet", "evaluations", "patches"):
        assert found[score] == pytest.approx(usual[score], rel=1e-4), score
    for score in ("lpips", "diversity"):
        assert found[score] == pytest.approx(usual[score], rel=1e-4), score


@pytest.mark.parametrize("kind", [DiT, UNet])
@pytest.mark.parametrize("tileable", [False, True])
def test_canvases(kind: type, tileable: bool) -> None:
    def flow(device: torch.device, watch: Watch) -> Tensor:
        denoiser = Denoiser(network(kind), RectifiedFlow()).to(device)
        sampler = TiledSampler(Sampler(steps=2), tileable=tileable)
        watch.clear()
        with torch.no_grad():
            drawn: Tensor = sampler(
                denoiser, size=(16, 16), shape=(1, 8, 8), seed=0, exemplar=torch.zeros(1, 4, 4), device=device
            )
        return drawn.cpu()

    watch, usual, found = run_on_both(flow)
    assert not watch.mixed
    assert torch.allclose(usual, found, atol=1e-5)
    assert len(watch.waits) <= WAITS_OF_A_CANVAS, watch.waits

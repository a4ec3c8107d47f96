"""Training steps on the pretended GPU: nothing waits, no devices mix, and losses and weights are those of the CPU.

Covered are all level samplers, weightings, targets and processes, found by looking at the packages, DiT and U-Net.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from pretend_gpu.every_sampler import every_instance, every_sampler
from pretend_gpu.pretended_cuda import run_on_both
from pretend_gpu.training_runs import latent_cache
from pretend_gpu.watch import Watch
from small_runs import randomize_weights
from torch import Tensor, nn

import asyncdiff.denoising
import asyncdiff.noise
from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks.loss_by_level import sum_by_bin
from asyncdiff.denoising import ELBO, NoiseTarget, Target, Weighting
from asyncdiff.networks import DiT, UNet
from asyncdiff.noise import AlongPath, LevelSampler, LinearVP, Process
from asyncdiff.training import OptimizerSettings
from datamodules import LatentCache

pytestmark = pytest.mark.filterwarnings("ignore:.*self.log:UserWarning")  # there is no trainer
Batch = dict[str, Tensor]
SIZE = 16  # of images: some masks need 8x8 patches
SAMPLERS = every_sampler()


def dit(**options: Any) -> nn.Module:
    return DiT(channels=1, patch_size=2, dim=16, depth=1, heads=2, classes=3, **{"uncertainty": True, **options})


def unet(**options: Any) -> nn.Module:
    sizes: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "blocks": 1, "head_dim": 8, "level_patch_size": 2}
    return UNet(channels=1, classes=3, uncertainty=True, **sizes, **options)


def module_of(network: Callable[[], nn.Module] = dit, **options: Any) -> AsyncDiffusion:
    """A small module; learning is slow, since rounding decides about Adam's first steps where gradients are small."""
    torch.manual_seed(0)
    settings = OptimizerSettings(learning_rate=1e-6, warmup_steps=1, stop_after_bad_steps=3)
    return AsyncDiffusion(randomize_weights(network()), image_size=SIZE, optimizer=settings, **options)


def with_levels(levels: LevelSampler, network: Callable[[], nn.Module] = dit) -> AsyncDiffusion:
    """A small module with a level sampler, and with the weighting that it needs."""
    try:
        return module_of(network, levels=levels)
    except ValueError:
        return module_of(network, levels=levels, weighting=ELBO(), level_values=0)


def batches(count: int) -> list[Batch]:
    """Batches of two images as a loader gives them: pinned, keys and all."""
    generator = torch.Generator().manual_seed(1)
    image = [torch.rand(2, 1, SIZE, SIZE, generator=generator) * 2 - 1 for _ in range(count)]
    index = torch.arange(2)
    return [{"image": x, "label": index, "index": index, "key": index + 2 * i} for i, x in enumerate(image)]


def moved(batch: Batch, device: torch.device) -> Batch:
    """Move what the trainer moves."""
    if device.type == "cpu":
        return batch
    there = {name: x.pin_memory().to(device, non_blocking=True) for name, x in batch.items()}
    return there | {name: batch[name] for name in ("index", "key")}


def train(
    make: Callable[[], AsyncDiffusion], data: Sequence[Batch], precision: torch.dtype | None = None
) -> Callable[[torch.device, Watch], dict[str, Any]]:
    """Return a flow of training steps; what the first one does is forgotten, since it checks the data."""

    def flow(device: torch.device, watch: Watch) -> dict[str, Any]:
        module = make().to(device)
        optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]
        losses, sums = [], []
        for number, batch in enumerate(data):
            if number == 1:
                watch.clear()
            watch.step()
            batch = moved(batch, device)
            module.on_train_batch_start(batch, number)
            with torch.autocast(device.type, precision, enabled=precision is not None):
                result = module.training_step(batch, number)
            optimizer.zero_grad()
            result["loss"].backward()
            assert module.guard.check(optimizer, module, step=number + 1, epoch=0) is None
            module.configure_gradient_clipping(optimizer, 1.0)
            optimizer.step()
            losses.append(result["loss"].detach())
            sums.append(sum_by_bin(result["t"], result["error"], 4))
        seen = list(watch.waits)
        weights, gradients = (
            torch.cat([x.detach().flatten() for x in tensors])
            for tensors in (module.parameters(), (p.grad for p in module.parameters() if p.grad is not None))
        )
        made = {"losses": torch.stack(losses), "sums": torch.stack(sums), "weights": weights, "gradients": gradients}
        return {**made, "waits": seen, "skipped": module.guard.state()}

    return flow


def check(
    make: Callable[[], AsyncDiffusion], data: Sequence[Batch], precision: torch.dtype | None = None
) -> dict[str, Any]:
    """Train on both; return what the CPU made."""
    watch, usual, found = run_on_both(train(make, data, precision))
    assert not watch.mixed
    # Distinct levels are found by sorting if they are not rounded: sorting waits, and what it finds is read.
    assert len(found["waits"]) <= (0 if make().level_values else 2 * (len(data) - 1)), found["waits"]
    assert sum(watch.kernels.values()) > 100
    rounding = {"rtol": 1e-4, "atol": 1e-5} if precision is None else {"rtol": 0.05, "atol": 5e-3}
    for name in ("losses", "sums", "weights", "gradients"):
        assert torch.allclose(found[name], usual[name], equal_nan=True, **rounding), name
    assert found["skipped"] == usual["skipped"]
    return usual


@pytest.mark.slow  # many: what their draws cost is held by test_levels.py
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("network", [dit, unet])
def test_every_level_sampler(name: str, network: Callable[[], nn.Module]) -> None:
    check(lambda: with_levels(SAMPLERS[name], network), batches(2))


def test_levels_that_are_not_rounded() -> None:
    check(lambda: module_of(levels=AlongPath(), level_values=0), batches(2))


@pytest.mark.parametrize("weighting", every_instance(Weighting, asyncdiff.denoising), ids=lambda x: type(x).__name__)
def test_every_weighting(weighting: Weighting) -> None:
    values = 0 if isinstance(weighting, ELBO) else 256
    check(lambda: module_of(levels=SAMPLERS["Floored"], weighting=weighting, level_values=values), batches(2))


@pytest.mark.parametrize("target", every_instance(Target, asyncdiff.denoising), ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("process", every_instance(Process, asyncdiff.noise), ids=lambda x: type(x).__name__)
def test_every_target_and_process(target: Target, process: Process) -> None:
    if isinstance(target, NoiseTarget) and not isinstance(process, LinearVP):
        pytest.skip("noise does not determine the image at t = 1")
    check(lambda: module_of(levels=SAMPLERS["Floored"], target=target, process=process), batches(2))


@pytest.mark.parametrize("network", [dit, unet])
def test_mixed_precision(network: Callable[[], nn.Module]) -> None:
    check(lambda: module_of(network), batches(3), torch.bfloat16)


@pytest.mark.parametrize("options", [{"checkpointing": True}, {"qk_norm": True}, {"uncertainty": False}])
def test_options_of_networks(options: dict[str, Any]) -> None:
    check(lambda: module_of(lambda: dit(**options)), batches(2))


def test_steps_that_are_not_finite_are_skipped_without_a_wait() -> None:
    data = batches(5)
    data[2]["image"] = torch.full_like(data[2]["image"], torch.nan)
    usual = check(module_of, data)
    assert usual["skipped"]["skipped"] == 1
    assert usual["losses"].isnan().tolist() == [False, False, True, False, False]
    assert usual["weights"].isfinite().all()


def test_latents(tmp_path: Any) -> None:
    """Noise of the keys, scale and shift of a cache are applied on the GPU."""
    root = latent_cache(tmp_path / "latents", (1, SIZE, SIZE), classes=3)

    def flow(device: torch.device, watch: Watch) -> dict[str, Any]:
        data = LatentCache(root, size=SIZE, channels=1, batch_size=2)
        loaded = iter(data.train_dataloader())
        module = module_of().to(device)
        found: list[Tensor] = []
        for number in range(3):
            if number == 1:
                watch.clear()
            watch.step()
            raw = next(loaded)
            if device.type == "cuda":
                assert raw["moments"].is_pinned()
            batch = data.on_after_batch_transfer(data.transfer_batch_to_device(raw, device, 0), 0)
            assert batch["image"].device == device or device.type == "cuda"
            module.on_train_batch_start(batch, number)
            loss = module.training_step(batch, number)["loss"]
            loss.backward()
            found.append(torch.stack([loss.detach(), batch["image"].square().mean()]))
        return {"found": torch.stack(found), "waits": list(watch.waits)}

    watch, usual, found = run_on_both(flow)
    assert not watch.mixed
    assert not found["waits"]
    assert torch.allclose(found["found"], usual["found"], rtol=1e-5)

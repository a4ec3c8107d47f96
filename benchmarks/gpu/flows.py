"""One small flow of each kind, from seeds on the CPU to tensors, to compare devices and precisions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA
from asyncdiff.denoising.likelihood import bound, discrete_bound
from asyncdiff.denoising.loss import training_loss
from asyncdiff.evaluation.features import TrainedClassifier
from asyncdiff.evaluation.frechet import FrechetDistance
from asyncdiff.networks import DiT, UNet
from asyncdiff.networks.modulation import IndexedVectors, add_gated, modulate
from asyncdiff.noise import AlongPath, AsyncPatch, Ordered, Raster
from asyncdiff.randomness import per_image, seeded
from asyncdiff.sampling import (
    DDIM,
    Adaptive,
    Autoregressive,
    ClassifierFree,
    DualLoop,
    Heun,
    ImageSampler,
    InputGuidance,
    LookAhead,
    Multistep,
    RePaint,
    Sampler,
    Sequential,
    TiledSampler,
)
from benchmarks.levels_speed import SAMPLERS as LEVELS

SIZE, CLASSES, STEPS, BATCH = 8, 10, 6, 4
SHAPE = (1, SIZE, SIZE)
EXACT, WALK = 1e-5, 1e-4  # relative differences in float32: of single evaluations, of walks; TF32 has about 1e-3
# After steps of AdamW, which divides small gradients by their size, rounding errors included; and of the progress that
# `FluxProgress` finds, by another method on GPUs.
TRAINED = 1e-3
BRANCHING = 1e-2  # where rounding may change a decision, such as the stride of a patch or a rank


@dataclass(frozen=True)
class Flow:
    """Computation from seeds to tensors by name.

    Attributes:
        run: function of the device.
        tolerance: largest root mean square of the differences between devices, relative to the values', in float32.
    """

    run: Callable[[torch.device], dict[str, Tensor]]
    tolerance: float


def flows() -> dict[str, Flow]:
    """Return all flows by name."""
    found = {
        "training step, DiT": Flow(partial(train, "DiT"), TRAINED),
        "training step, U-Net": Flow(partial(train, "U-Net"), TRAINED),
        "backward pass of the modulation": Flow(modulation_gradients, EXACT),
    }
    found |= {f"sampler, {name}": Flow(partial(draw, s), BRANCHING if adaptive(s) else WALK) for name, s in samplers()}
    found |= {f"inpainting, {name}": Flow(partial(inpaint, sampler), WALK) for name, sampler in inpainters()}
    found |= {
        "sampler, tiles": Flow(draw_tiles, WALK),
        "sampler, U-Net": Flow(partial(draw, Sampler(AsyncPatch(), Multistep(), STEPS), kind="U-Net"), WALK),
        "likelihood": Flow(likelihood, TRAINED),
        "Fréchet features": Flow(frechet_features, EXACT),
        "all level samplers": Flow(draw_levels, BRANCHING),
    }
    return found


def samplers() -> list[tuple[str, ImageSampler]]:
    """Return every sampler and solver once, by name."""
    return [
        ("DDIM", Sampler(steps=STEPS)),
        ("DDIM(0.25)", Sampler(AsyncPatch(), DDIM(0.25), STEPS)),
        ("Heun", Sampler(AsyncPatch(), Heun(), STEPS)),
        ("Multistep", Sampler(AsyncPatch(), Multistep(), STEPS)),
        ("guided", Sampler(steps=STEPS, guidance=[ClassifierFree(2.0)])),
        ("look-ahead", Sampler(steps=STEPS, guidance=[LookAhead()])),
        ("autoregressive", Autoregressive(overlap=0.5, steps_per_patch=2)),
        ("partial updates", Autoregressive(steps_per_patch=2, refresh=4, margin=1)),
        ("adaptive", Adaptive(steps=STEPS)),
        ("dual loop", Adaptive(DualLoop(), steps=STEPS)),
        ("sequential", Adaptive(Sequential(together=4), steps=STEPS)),
    ]


def inpainters() -> list[tuple[str, ImageSampler]]:
    """Return samplers that inpaint, by name."""
    return [
        ("DDIM", Sampler(solver=DDIM(0.25), steps=STEPS)),
        ("guided", Sampler(AsyncPatch(), steps=STEPS, guidance=[InputGuidance(1.0)])),
        ("RePaint", RePaint(STEPS, 2, 2)),
        ("RePaint, held", RePaint(STEPS, 2, 2, hold=True)),
    ]


def adaptive(sampler: ImageSampler) -> bool:
    """Return whether a sampler decides by predictions, so that rounding may change its path."""
    return isinstance(sampler, Adaptive) or any(isinstance(rule, LookAhead) for rule in sampler.guidance)


def build(kind: str = "DiT", **options: Any) -> AsyncDiffusion:
    """Return a small model, a "DiT" or "U-Net", in which every weight is random: zeros would switch most of it off."""
    torch.manual_seed(0)
    common: dict[str, Any] = {"channels": SHAPE[0], "classes": CLASSES, "uncertainty": True}
    if kind == "DiT":
        network: torch.nn.Module = DiT(patch_size=2, dim=64, depth=2, heads=2, **common)
    else:
        network = UNet(width=32, multipliers=(1, 2), blocks=1, head_dim=32, level_patch_size=2, **common)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.15 * torch.randn(p.shape))
    return AsyncDiffusion(network, image_size=SIZE, **options)


def images() -> Tensor:
    """Return images on the CPU."""
    return torch.randn(BATCH, *SHAPE, generator=seeded(1)).clamp(-1, 1)


def train(kind: str, device: torch.device) -> dict[str, Tensor]:
    """Train for some steps with guard, clipping and EMA, on levels and noise drawn on the CPU."""
    module, ema, trainer = build(kind).to(device), EMA(0.9), mock.Mock(Trainer, global_step=0)
    optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    optimizer.param_groups[0]["lr"] = 1e-3
    x, label = images().to(device), torch.arange(BATCH).to(device)
    grid = module.denoiser.grid(SHAPE[1:])
    losses, first = [], torch.zeros(())
    ema.on_train_start(trainer, module)
    for step in range(STEPS):
        levels, eps = (
            draw((BATCH, *shape), generator=seeded(step)) for draw, shape in ((torch.rand, grid), (torch.randn, SHAPE))
        )
        drawn = AlongPath()(BATCH, grid, generator=seeded(step))
        drawn = type(drawn)(levels.to(device)).quantized(module.level_values)
        loss = training_loss(module.denoiser, x, eps.to(device), drawn, module.weighting, label)
        total = module.guard.watch(loss.per_image.mean() + 0.01 * loss.uncertainty.mean())  # type: ignore[union-attr]
        optimizer.zero_grad()
        total.backward()
        module.guard.check(optimizer, module, step=step, epoch=0)
        parameters = list(module.denoiser.parameters())
        if step == 0:
            first = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, module.guard.norm)
        optimizer.step()
        torch.clear_autocast_cache()  # in a context around all steps, the converted weights would stay the first ones
        trainer.global_step += 1
        ema.on_train_batch_end(trainer, module)
        losses.append(total.detach())
    assert ema.average is not None
    trained = {"raw": {n: p.detach() for n, p in module.named_parameters()}, "ema": ema.average}
    weights = {name: torch.cat([p.flatten() for p in values.values()]) for name, values in trained.items()}
    return {"losses": torch.stack(losses), "gradient": first} | weights


def modulation_gradients(device: torch.device) -> dict[str, Tensor]:
    """Return the gradients of modulation and gate: sums over the tokens of every level, by the device's own method."""
    count, tokens, dim = 256, 64, 48
    index = torch.randint(count, (BATCH, tokens), generator=seeded(0)).to(device)
    leaves = {
        name: torch.randn(shape, generator=seeded(number)).to(device).requires_grad_()
        for number, (name, shape) in enumerate(
            {
                "x": (BATCH, tokens, dim),
                "shift": (count, dim),
                "scale": (count, dim),
                "gate": (count, dim),
                "label": (BATCH, dim),
            }.items()
        )
    }
    vectors = {name: IndexedVectors(leaves[name], index, leaves["label"]) for name in ("shift", "scale", "gate")}
    changed = modulate(leaves["x"], vectors["shift"], vectors["scale"])
    add_gated(leaves["x"], vectors["gate"], changed).square().mean().backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def draw(sampler: ImageSampler, device: torch.device, kind: str = "DiT") -> dict[str, Tensor]:
    """Return images of a sampler."""
    return {"images": build(kind).to(device).eval().generate(range(3), [0, 1, 2], sampler=sampler)}


def known_pixels() -> Tensor:
    """Return a mask that cuts patches."""
    known = torch.zeros(SHAPE[1:], dtype=torch.bool)
    known[:, :3] = True
    return known


def inpaint(sampler: ImageSampler, device: torch.device) -> dict[str, Tensor]:
    """Return inpainted images."""
    module = build().to(device).eval()
    return {"images": module.inpaint(images()[0], known_pixels(), seeds=range(3), labels=[0, 1, 2], sampler=sampler)}


def draw_tiles(device: torch.device) -> dict[str, Tensor]:
    """Return an image larger than the model's."""
    tiled = TiledSampler(Sampler(steps=STEPS), overlap=0.5, batch_size=3)
    denoiser = build().to(device).eval().denoiser
    with torch.no_grad():
        return {"canvas": tiled(denoiser, size=(12, 16), shape=SHAPE, seed=0, device=device)}


def likelihood(device: torch.device) -> dict[str, Tensor]:
    """Return the bounds along two paths, and that of the ancestral sampler."""
    denoiser = build().to(device).eval().denoiser
    x = (((images() + 1) * 127.5).round() / 127.5 - 1).to(device)
    label = torch.arange(BATCH).to(device)
    paths = {"async": AsyncPatch(), "ordered": Ordered(Raster())}
    found = {
        name: bound(denoiser, x, path, label=label, points=4, generator=per_image(range(BATCH))).rate
        for name, path in paths.items()
    }
    return found | {
        "ancestral": discrete_bound(denoiser, x, label=label, steps=4, generator=per_image(range(BATCH))).rate
    }


def frechet_features(device: torch.device) -> dict[str, Tensor]:
    """Return features of a classifier trained on the CPU, and a distance in them."""
    classifier = TrainedClassifier(SHAPE[0], CLASSES, epochs=1)
    classifier.prepare([{"image": images().repeat(16, 1, 1, 1), "label": torch.arange(16 * BATCH) % CLASSES}])
    metric = FrechetDistance(classifier)
    many = torch.randn(2, 128, *SHAPE, generator=seeded(2)).clamp(-1, 1).to(device)
    metric.update(many[0], real=True)
    metric.update(many[1] * 0.5, real=False)
    return {"features": metric.extract(many[0]), "distance": metric.compute()}


def draw_levels(device: torch.device) -> dict[str, Tensor]:
    """Return level maps of all level samplers, from one CPU generator per image."""
    found = {}
    for name, levels in LEVELS.items():
        drawn = levels(BATCH, (8, 8), generator=per_image(range(BATCH)), device=device)
        found[name] = drawn.t
        if drawn.importance is not None:
            found[f"importance, {name}"] = drawn.importance
    return found


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Return the largest relative difference of any tensor, and its name: root mean squares; inf for NaN."""
    assert found.keys() == expected.keys()
    return max((_relative(found[name].cpu().double(), expected[name].cpu().double()), name) for name in found)


def _relative(found: Tensor, expected: Tensor) -> float:
    if not (found.isfinite().all() and expected.isfinite().all()):
        return float("inf")
    size = float(expected.square().mean().sqrt())
    return float((found - expected).square().mean().sqrt()) / max(size, 1e-12)

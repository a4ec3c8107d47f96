"""The LightningModule learns, is rebuilt from its checkpoint, and generates image i from seed i alone."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from small_runs import quiet_trainer, save_untrained, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA
from asyncdiff.denoising.loss import training_loss
from asyncdiff.denoising.weightings import ELBO, Sigmoid, Velocity
from asyncdiff.noise.level_samplers import AlongPath, Independent
from asyncdiff.noise.masks import Half
from asyncdiff.noise.paths import AsyncPatch, Floored
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.sampling.solvers import DDIM
from asyncdiff.training import OptimizerSettings
from datamodules import Digits


def model(seed: int = 0, **options) -> AsyncDiffusion:
    options = {"image_size": 8, "optimizer": OptimizerSettings(learning_rate=3e-3, warmup_steps=10), **options}
    network = small_dit(seed=seed, depth=2, heads=4)
    return AsyncDiffusion(network, sampler=Sampler(AsyncPatch(), DDIM(0.25), steps=5), **options)


def fit(folder, module, callbacks=(), resume=None, **options) -> Trainer:
    run = quiet_trainer(folder, callbacks=list(callbacks), **{"max_steps": 3, **options})
    run.fit(module, datamodule=Digits(batch_size=32), ckpt_path=resume, weights_only=True if resume else None)
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A module after a few steps, its EMA callback, and its checkpoint file with and without the optimizer."""
    folder = tmp_path_factory.mktemp("trained")
    module, ema = model(), EMA(0.9)
    run = fit(folder, module, [ema])
    run.save_checkpoint(folder / "last.ckpt")
    run.save_checkpoint(folder / "weights.ckpt", weights_only=True)
    return module, ema, folder / "last.ckpt"


@pytest.mark.parametrize("weighting", [Velocity(), Sigmoid(1.0)])
def test_one_batch_overfits(weighting):
    module = AsyncDiffusion(small_dit(), weighting=weighting, label_dropout=0.0, image_size=8)
    batch = next(iter(Digits(batch_size=2).images("train", 2)))
    optimizer = torch.optim.Adam(module.parameters(), 1e-2, betas=(0.9, 0.95))
    eps = torch.randn(batch["image"].shape, generator=torch.Generator().manual_seed(0))
    draw = module._sample_levels(2, torch.Generator().manual_seed(1))
    losses = []
    for _ in range(150):
        loss = training_loss(module.denoiser, batch["image"], eps, draw, weighting, batch["label"]).per_image.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


def test_a_checkpoint_gives_the_same_samples_bit_for_bit(trained):
    module, _, file = trained
    raw = AsyncDiffusion.load_from_checkpoint(file, weights="raw")
    assert torch.equal(raw.generate([0, 1, 2], [3, 4, 5]), module.generate([0, 1, 2], [3, 4, 5]))


@pytest.mark.parametrize("file", ["last.ckpt", "weights.ckpt"])
def test_ema_weights_are_loaded_by_default(trained, file):
    module, ema, last = trained
    loaded = AsyncDiffusion.load_from_checkpoint(last.with_name(file))
    with ema.swapped(module):
        expected = module.generate([0], [1])
    assert torch.equal(loaded.generate([0], [1]), expected)
    assert not torch.equal(module.generate([0], [1]), expected)
    assert not loaded.training


def test_a_checkpoint_rebuilds_every_argument(trained):
    module, _, file = trained
    loaded = AsyncDiffusion.load_from_checkpoint(file)
    assert loaded.optimizer == module.optimizer == OptimizerSettings(3e-3, (0.9, 0.99), warmup_steps=10)
    assert loaded.predict == module.predict
    assert loaded.sampler.steps == 5
    assert loaded.network.dim == 32


def test_a_checkpoint_holds_no_code(trained):
    contents = torch.load(trained[2], weights_only=True)
    assert {"recipe", "state_dict", "ema"} <= set(contents)


def test_other_files_are_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint of AsyncDiffusion"):
        AsyncDiffusion.load_from_checkpoint(tmp_path / "foreign.ckpt")
    with pytest.raises(FileNotFoundError, match=r"checkpoint_path .*none.ckpt is not a file"):
        AsyncDiffusion.load_from_checkpoint(tmp_path / "none.ckpt")


def test_image_i_depends_on_seed_i_only(trained):
    module = trained[0]
    together = module.generate([5, 6, 7], [0, 1, 2])
    alone = module.generate([6], [1])
    batched = module.generate([5, 6, 7], [0, 1, 2], batch_size=2)
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert torch.allclose(together, batched, atol=1e-5)


def test_inpainting_returns_known_pixels_bit_for_bit(trained):
    module = trained[0]
    image = next(iter(Digits().images("val", 4)))["image"]
    known = Half()(8, 8)
    out = module.inpaint(image, known)
    assert torch.equal(out[..., known], image[..., known])
    assert (out[..., ~known] != image[..., ~known]).any()


def test_one_image_is_inpainted_once_per_seed(trained):
    image = torch.rand(1, 8, 8)
    out = trained[0].inpaint(image, Half()(8, 8), seeds=[0, 1, 2])
    assert out.shape == (3, 1, 8, 8)
    assert not torch.equal(out[0], out[1])


def test_sampling_keeps_the_training_mode(trained):
    module = trained[0]
    module.train()
    module.network.blocks[0].eval()
    module.generate([0], [0])
    assert module.training
    assert not module.network.blocks[0].training


def test_invalid_arguments_are_refused(trained):
    module = trained[0]
    with pytest.raises(ValueError, match=r"mask of the image's size \(8, 8\).*got shape \(16, 16\)"):
        module.inpaint(torch.zeros(1, 8, 8), torch.ones(16, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="labels must lie in 0 .. 9, got 10"):
        module.generate([0], [10])
    with pytest.raises(ValueError, match="one class per seed, got 1 for 2"):
        module.generate([0, 1], [3])
    with pytest.raises(ValueError, match="one seed per image, got 3 for 2 images"):
        module.inpaint(torch.zeros(2, 1, 8, 8), torch.ones(8, 8, dtype=torch.bool), seeds=[0, 1, 2])


def test_requiring_missing_ema_weights_is_an_error(tmp_path):
    save_untrained(tmp_path, model())
    with pytest.raises(ValueError, match="has no EMA weights"):
        AsyncDiffusion.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt", weights="ema")
    AsyncDiffusion.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt")


def test_elbo_with_unsuited_levels_is_refused_when_built():
    with pytest.raises(ValueError, match="ELBO .* got Independent, which does not provide them"):
        model(weighting=ELBO(), levels=Independent())
    floored = AlongPath(Floored(AsyncPatch(), 0.01))
    with pytest.raises(ValueError, match="level_values must be 0 with the weighting ELBO, got 256"):
        model(weighting=ELBO(), levels=floored)
    model(weighting=ELBO(), levels=floored, level_values=0)


def test_an_image_smaller_than_a_patch_is_refused_when_built():
    with pytest.raises(ValueError, match="at least as large as a patch, got 1x1 pixels with patches of 2x2"):
        model(image_size=1)


class Losses(EMA):
    """Records the training losses."""

    def __init__(self):
        super().__init__(0.5)
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, *args):
        super().on_train_batch_end(trainer, module, outputs, *args)
        self.seen.append(outputs["loss"].item())


def losses(folder, resume=None, seed=0, **options) -> list[float]:
    module, record = model(seed, label_dropout=0.5), Losses()
    run = fit(folder, module, [record], resume, **{"max_steps": 4, **options})
    run.save_checkpoint(folder / "end.ckpt")
    return record.seen


def test_training_is_a_function_of_its_seeds_and_validation_and_resuming_do_not_change_it(tmp_path):
    torch.manual_seed(99)
    first = losses(tmp_path)
    torch.manual_seed(7)
    assert losses(tmp_path) == first
    assert losses(tmp_path, val_check_interval=2, limit_val_batches=1, num_sanity_val_steps=1) == first
    half = losses(tmp_path, max_steps=2)
    assert half + losses(tmp_path, tmp_path / "end.ckpt", seed=1) == first


def test_warm_up_counts_steps():
    module = model(optimizer=OptimizerSettings(learning_rate=0.1, warmup_steps=4))
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    assert configured["lr_scheduler"]["interval"] == "step"


def test_logged_values(tmp_path):
    run = fit(tmp_path, model(), log_every_n_steps=1, limit_val_batches=2, val_check_interval=3)
    metrics = run.callback_metrics
    expected = {"train/loss", "train/gradient_norm", "val/loss", "val/error_constant", "val/error_heterogeneous"}
    assert expected <= set(metrics)
    assert all(math.isfinite(v) for v in metrics.values())
    gap = metrics["val/error_constant"] - metrics["val/error_heterogeneous"]
    assert metrics["val/error_gap"].item() == pytest.approx(gap.item(), abs=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bf16_trains(tmp_path, precision):
    module = model()
    options = {"precision": precision, "gradient_clip_val": 1.0, "val_check_interval": 3, "limit_val_batches": 2}
    run = fit(tmp_path, module, **options)
    assert run.callback_metrics["val/loss"].dtype == torch.float32
    assert all(p.isfinite().all() for p in module.parameters())

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from small_runs import FULL_RATE, quiet_trainer, small_dit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asyncdiff import AsyncDiffusion, DiffusionModel
from asyncdiff.callbacks import EMA, Likelihood
from asyncdiff.denoising.likelihood import LEVEL_EDGES, CategoricalDecoder, GaussianDecoder
from asyncdiff.evaluation.likelihood_by_path import PathLikelihoodEvaluator, check_labels
from asyncdiff.noise.masks import Half
from asyncdiff.noise.orders import CustomOrder
from asyncdiff.noise.paths import AsyncPatch, Ordered, Synchronous
from datamodules import Digits

PATHS = {"synchronous": Synchronous(), "async": AsyncPatch()}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    module = AsyncDiffusion(small_dit(patch_size=4), image_size=8, optimizer=FULL_RATE)
    plain = Likelihood(PATHS, count=20, points=3, batch_size=8)
    half = Likelihood({"async": AsyncPatch()}, count=20, points=3, mask=Half(), labels=False, name="half")
    root = tmp_path_factory.mktemp("likelihood")
    batches = {"limit_val_batches": 1, "limit_test_batches": 1}
    trainer = quiet_trainer(root, max_steps=2, logger=True, callbacks=[EMA(0.9), plain, half], **batches)
    trainer.fit(module, datamodule=Digits(batch_size=32))
    return trainer, module, plain, half


def by_hand(measured, mask=None, label=True):
    trainer, module, *_ = measured
    held_out = Digits().dataset("val")
    chosen = [i * len(held_out) // 20 for i in range(20)]
    images, labels = held_out.images[chosen], held_out.labels[chosen]
    bounds = PathLikelihoodEvaluator(PATHS, 3, CategoricalDecoder(17), mask)
    with trainer.callbacks[0].swapped(module), torch.no_grad():
        rows = bounds.evaluate(module.denoiser.eval(), images, labels if label else None, chosen)
    return bounds.summarize(rows, (2, 2))


def test_the_bound_is_that_of_the_ema_model(measured):
    summary, results = by_hand(measured), measured[2].results
    for name in PATHS:
        assert results[f"bits_per_dim/{name}"] == pytest.approx(summary.mean(name), rel=1e-5)
    assert results["bits_per_dim/path_gap"] == pytest.approx(summary.gap()[0], rel=1e-3)


def test_the_conditional_bound_without_labels(measured):
    expected = by_hand(measured, Half(), label=False).mean("async")
    assert measured[3].results["half/bits_per_dim/async"] == pytest.approx(expected, rel=1e-5)


def test_parts_and_levels_add_up(measured):
    found = measured[2].results | measured[2].details
    parts = [found[f"bits_per_dim_parts/async/{term}"] for term in ("prior", "diffusion", "reconstruction")]
    assert math.fsum(parts) == pytest.approx(found["bits_per_dim/async"], rel=1e-6)
    levels = [found[f"bits_per_dim_by_level/async/up_to_{edge}"] for edge in LEVEL_EDGES]
    assert math.fsum(levels) == pytest.approx(parts[1], rel=1e-5)


def test_metrics_and_figures_go_to_tensorboard(measured):
    trainer = measured[0]
    events = EventAccumulator(trainer.logger.log_dir).Reload()
    tags = events.Tags()
    assert {"bits_per_dim/synchronous", "bits_per_dim/path_gap", "half/bits_per_dim/async"} <= set(tags["scalars"])
    assert {"images/bits", "images/bits_half"} <= set(tags["images"])
    files = {file.name for file in (Path(trainer.default_root_dir) / "images").iterdir()}
    assert {"bits.png", "bits_half.png"} <= files


def test_validate_and_test_compute_the_metrics(measured, monkeypatch):
    monkeypatch.setattr("asyncdiff.callbacks.likelihood.log_figure", lambda *_: None)
    trainer, module, plain, _ = measured
    before = dict(plain.results)
    for run in (trainer.validate, trainer.test):
        plain.results = {}
        metrics = run(module, datamodule=Digits(batch_size=64), verbose=False)[0]
        assert metrics["bits_per_dim/async"] == pytest.approx(before["bits_per_dim/async"], rel=1e-6)


def test_densities_are_reported_in_nats():
    bounds = PathLikelihoodEvaluator(PATHS, 2, GaussianDecoder())
    rows = torch.randn(5, 2, 4 + len(LEVEL_EDGES) + 4).abs()
    summary = bounds.summarize(rows, (2, 2))
    assert summary.unit == "nats/dim"
    assert "nats_per_dim/async" in summary.scalars()
    assert "| path | nats/dim |" in summary.table()


def test_the_path_gap_is_paired():
    """A shift common to all images has no standard error, however different the images are."""
    rows = torch.rand(50, 2, 4 + len(LEVEL_EDGES) + 4) * 100
    rows[:, 1] = rows[:, 0]
    rows[..., 3] = 10
    rows[:, 1, 1] += 5 * 10 * math.log(2)
    summary = PathLikelihoodEvaluator(PATHS).summarize(rows, (2, 2))
    gap, error = summary.gap()
    assert gap == pytest.approx(5, rel=1e-5)
    assert error < 1e-5
    assert summary.standard_error("async") > 0.1


def test_the_path_gap_of_equal_paths_is_zero_on_average():
    """The largest of four means minus the smallest would be 2.06 standard deviations of one on average."""
    rows = torch.zeros(400, 64, 4, 4 + len(LEVEL_EDGES) + 4)
    rows[..., 1] = torch.randn(400, 64, 4, generator=torch.Generator().manual_seed(0))
    rows[..., 3] = 1
    bounds = PathLikelihoodEvaluator(dict.fromkeys("abcd", Synchronous()), decoder=GaussianDecoder())
    gaps, errors = zip(*(bounds.summarize(r, (2, 2)).gap() for r in rows), strict=True)
    spread = torch.tensor(gaps).std().item()
    assert abs(math.fsum(gaps) / 400) < 4 * spread / math.sqrt(400)
    assert spread == pytest.approx(math.fsum(errors) / 400, rel=0.15)


def test_labels_must_suit_the_model():
    model = DiffusionModel.assemble(small_dit(classes=3), image_size=8)
    check_labels(model, 3, conditioned=True, label_dropout=0)
    check_labels(model, None, conditioned=False, label_dropout=None)
    check_labels(DiffusionModel.assemble(small_dit(classes=0), image_size=8), 3, conditioned=True, label_dropout=0)
    with pytest.raises(ValueError, match="the model has 3 classes, but the data has 10: use the data it was trained"):
        check_labels(model, 10, conditioned=True, label_dropout=0.1)
    with pytest.raises(ValueError, match="trained with label_dropout 0 and needs class labels, got labels false: set"):
        check_labels(model, 3, conditioned=False, label_dropout=0)


def test_two_callbacks_of_the_same_name_are_refused(measured):
    module = measured[1]
    twice = Trainer(
        callbacks=[Likelihood(PATHS), Likelihood(PATHS)], logger=False, fast_dev_run=True, accelerator="cpu"
    )
    with pytest.raises(ValueError, match="names of Likelihood callbacks must differ"):
        twice.fit(module, datamodule=Digits(batch_size=32))


def test_unsuitable_arguments_are_refused_before_training(measured):
    order = CustomOrder([[0, 1, 2]])
    module = measured[1]
    trainer = Trainer(
        callbacks=[Likelihood({"mine": Ordered(order)})], logger=False, fast_dev_run=True, accelerator="cpu"
    )
    with pytest.raises(ValueError, match="grid has .* values, which do not divide the level map of 2x2 patches"):
        trainer.fit(module, datamodule=Digits(batch_size=32))

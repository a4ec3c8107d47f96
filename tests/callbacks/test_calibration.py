import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from small_runs import FULL_RATE, quiet_trainer, small_dit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA, Calibration
from asyncdiff.callbacks.calibration import STREAM, rank_correlation, reliability
from asyncdiff.evaluation.figures.calibration_figure import calibration_figure
from asyncdiff.evaluation.figures.style import pixels
from asyncdiff.noise.level_samplers import AlongPath
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.randomness import counter_key, normal, per_image
from asyncdiff.shapes import mean_per_patch
from datamodules import Digits


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    root = tmp_path_factory.mktemp("calibration")
    module = AsyncDiffusion(small_dit(uncertainty=True), image_size=8, optimizer=FULL_RATE)
    callback = Calibration(count=20, bins=5, groups=3, batch_size=8)
    trainer = quiet_trainer(
        root,
        max_steps=2,
        limit_val_batches=1,
        limit_test_batches=1,
        logger=TensorBoardLogger(root, name="", version=""),
        callbacks=[EMA(0.9), callback, Calibration(count=20, name="other", batch_size=20)],
    )
    trainer.fit(module, datamodule=Digits(batch_size=32))
    return trainer, module, callback


def test_the_head_is_compared_with_the_errors_of_the_ema_model(measured):
    trainer, module, callback = measured
    data = Digits().dataset("val")
    chosen = [i * len(data) // 20 for i in range(20)]
    x, label = data.images[chosen], data.labels[chosen]
    generators = per_image(counter_key(i, STREAM) for i in chosen)
    eps = normal(x.shape, generator=generators)
    t = AlongPath(AsyncPatch())(20, (4, 4), generator=generators).t
    with trainer.callbacks[0].swapped(module), torch.no_grad():
        prediction = module.denoiser.eval()(module.process.noised(x, eps, t), t, label)
    error, expected = mean_per_patch((eps - x - prediction.v) ** 2, (4, 4)), prediction.logvar.exp()
    assert callback.results["calibration/ratio"] == pytest.approx(float(error.mean() / expected.mean()), rel=1e-5)
    middle = (t >= 0.4) & (t < 0.6)
    for kind, values in (("predicted", expected), ("actual", error)):
        found = callback.details[f"calibration_by_level/{kind}/0.400-0.600"]
        assert found == pytest.approx(float(values[middle].mean()), rel=1e-5)


def test_doubling_the_prediction_halves_the_ratio(measured, monkeypatch):
    monkeypatch.setattr(Calibration, "_plot", lambda *_: None)
    trainer, module, callback = measured
    before = {k: callback.compute_metrics(trainer, module)[f"calibration/{k}"] for k in ("ratio", "correlation")}
    inner = module.denoiser.forward

    def doubled(*args, **kwargs):
        prediction = inner(*args, **kwargs)
        return replace(prediction, logvar=prediction.logvar + math.log(2))

    module.denoiser.forward = doubled
    try:
        after = callback.compute_metrics(trainer, module)
    finally:
        module.denoiser.forward = inner
    assert after["calibration/ratio"] == pytest.approx(before["ratio"] / 2, rel=1e-5)
    assert after["calibration/correlation"] == pytest.approx(before["correlation"], rel=1e-6)
    assert abs(before["correlation"]) > 1e-3


def test_the_numbers_do_not_depend_on_the_batch_size(measured):
    trainer, _, callback = measured
    other = trainer.callbacks[2]
    assert other.results["other/calibration/ratio"] == pytest.approx(callback.results["calibration/ratio"], rel=1e-5)


def test_metrics_and_figures_go_to_tensorboard(measured):
    trainer = measured[0]
    tags = EventAccumulator(trainer.logger.log_dir).Reload().Tags()
    assert {"calibration/ratio", "calibration/correlation", "other/calibration/ratio"} <= set(tags["scalars"])
    assert "calibration_by_level/predicted/0.400-0.600" in tags["scalars"]
    assert {"images/calibration", "images/calibration_other"} <= set(tags["images"])
    files = {file.name for file in (Path(trainer.default_root_dir) / "images").iterdir()}
    assert {"calibration.png", "calibration_other.png"} <= files


def test_a_network_without_a_head_is_refused_before_training():
    module = AsyncDiffusion(small_dit(), image_size=8, optimizer=FULL_RATE)
    for run in ("fit", "validate"):
        trainer = Trainer(callbacks=[Calibration(count=4)], logger=False, fast_dev_run=True, accelerator="cpu")
        with pytest.raises(
            ValueError, match=r"Calibration needs .* uncertainty head, but DiT has none: .*uncertainty: true"
        ):
            getattr(trainer, run)(module, datamodule=Digits(batch_size=32))
        assert trainer.global_step == 0


def synthetic(n=40000, factor=1.0):
    """Return patches of 16 pixels whose errors have the predicted variance, times a factor."""
    g = torch.Generator().manual_seed(0)
    t = torch.rand(n, generator=g, dtype=torch.float64)
    predicted = (torch.randn(n, generator=g, dtype=torch.float64) - 2 * t).exp()
    actual = factor * predicted * torch.randn(n, 16, generator=g, dtype=torch.float64).square().mean(1)
    return t, predicted, actual


@pytest.mark.parametrize("factor", [1.0, 0.5, 3.0])
def test_a_calibrated_head_lies_on_the_diagonal(factor):
    found = reliability(*synthetic(factor=factor), 10, 8)
    assert found.ratio == pytest.approx(factor, rel=0.02)
    assert torch.allclose(found.actual / found.predicted, torch.full((10,), factor).double(), rtol=0.05)
    assert torch.allclose(
        found.grouped_actual / found.grouped_predicted, torch.full((10, 8), factor).double(), rtol=0.1
    )
    assert (found.grouped_predicted.diff(dim=1) > 0).all()
    assert 0.8 < found.correlation < 1


def test_only_patches_of_one_level_are_ranked_against_each_other():
    """A head that depends only on the level bin has correlation 0, however well it predicts the mean error."""
    t, predicted, actual = synthetic()
    level = (t * 10).floor()
    assert reliability(t, (-level).exp(), actual, 10, 8).correlation == 0
    assert reliability(t, actual, actual, 10, 8).correlation == pytest.approx(1)
    assert reliability(t, 1 / actual, actual, 10, 8).correlation == pytest.approx(-1)
    other = predicted[torch.randperm(len(predicted), generator=torch.Generator().manual_seed(1))]
    assert abs(reliability(t, other, actual, 10, 8).correlation) < 4 / math.sqrt(len(t))


def test_rank_correlation_is_spearmans():
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double(), torch.tensor([2.0, 1.0, 40.0, 3.0, 50.0]).double()
    assert rank_correlation(a, b) == pytest.approx(1 - 6 * (1 + 1 + 1 + 1) / (5 * 24))
    tied = torch.tensor([1.0, 1.0, 2.0, 2.0]).double()  # ranks 1.5 1.5 3.5 3.5 against 1 2 3 4
    assert rank_correlation(tied, torch.arange(4).double()) == pytest.approx(4 / math.sqrt(4 * 5))


def test_patches_without_noise_and_empty_bins_are_ignored():
    t = torch.tensor([0.0, 0.55, 0.56, 1.0]).double()
    predicted, actual = torch.tensor([9.0, 1.0, 3.0, 2.0]).double(), torch.tensor([9.0, 2.0, 4.0, 6.0]).double()
    found = reliability(t, predicted, actual, 10, 2)
    assert found.ratio == pytest.approx(12 / 6)
    assert found.predicted.isfinite().nonzero().flatten().tolist() == [5, 9]
    assert (found.predicted[5], found.actual[9]) == (2, 6)
    assert found.grouped_actual[5].tolist() == [2, 4]


def test_the_figure_shows_the_numbers():
    found = reliability(*synthetic(), 10, 8)
    empty = torch.full_like(found.predicted[:1], math.nan)
    predicted, actual = torch.cat([empty, found.predicted[1:]]), torch.cat([empty, found.actual[1:]])
    figure = calibration_figure(predicted, actual, found.grouped_predicted, found.grouped_actual, note="a note")
    by_level, between = figure.axes[:2]
    shown = {patch.get_label(): patch.get_data().values for patch in by_level.patches}
    assert shown["actual"][1:] == pytest.approx(found.actual[1:].numpy())
    assert shown["predicted"][1:] == pytest.approx(found.predicted[1:].numpy())
    *lines, diagonal = between.lines
    assert [list(line.get_ydata()) for line in lines] == found.grouped_actual.tolist()
    assert [list(line.get_xdata()) for line in lines] == found.grouped_predicted.tolist()
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    assert "a note" in {text.get_text() for text in figure.texts}
    assert pixels(figure).min() == 0 or pixels(figure).std() > 5

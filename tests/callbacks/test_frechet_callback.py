from pathlib import Path

import pytest
from small_runs import FULL_RATE, Pixels, quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA, Frechet
from asyncdiff.evaluation import FrechetDistance
from asyncdiff.evaluation.result_card import read_card
from asyncdiff.noise.masks import Half
from asyncdiff.sampling.samplers import Sampler
from datamodules import Digits


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    module = AsyncDiffusion(small_dit(), sampler=Sampler(steps=2), image_size=8, optimizer=FULL_RATE)
    callback = Frechet(Pixels(), mask=Half(), count=40, batch_size=16)
    trainer = quiet_trainer(tmp_path_factory.mktemp("frechet"), max_steps=1, callbacks=[EMA(0.9), callback])
    trainer.fit(module, datamodule=Digits(batch_size=32))
    return trainer, module, callback


def by_hand(images):
    data, metric = Digits(), FrechetDistance(Pixels())
    metric.update(data.dataset("train").images, real=True)
    metric.update(images, real=False)
    return metric.compute().item()


def test_the_floor_is_that_of_real_held_out_images(measured):
    expected = by_hand(Digits().dataset("val").images)
    assert measured[2].results["frechet/pixels_real"] == pytest.approx(expected, rel=1e-9)


def test_the_distance_is_that_of_the_ema_model(measured):
    trainer, module, callback = measured
    with trainer.callbacks[0].swapped(module):
        images = module.generate(range(40), [i % 10 for i in range(40)], batch_size=16)
    assert callback.results["frechet/pixels"] == pytest.approx(by_hand(images), rel=1e-6)


def test_every_held_out_image_is_inpainted(measured):
    trainer, module, callback = measured
    truth = Digits().dataset("val").images
    with trainer.callbacks[0].swapped(module):
        images = module.inpaint(truth, Half()(8, 8), seeds=range(len(truth)), batch_size=16)
    assert callback.results["frechet/pixels_inpainted"] == pytest.approx(by_hand(images), rel=1e-6)


def test_the_result_card_holds_metrics_and_protocol(measured):
    trainer, _, callback = measured
    card = read_card(Path(trainer.default_root_dir) / "evaluation" / "frechet_pixels.json")
    assert card["metrics"] == callback.results
    protocol = card["protocol"]
    assert protocol["step"] == 1
    assert protocol["samples"]["seeds"] == [0, 39]
    assert protocol["samples"]["sampler"]["init_args"]["steps"] == 2
    assert protocol["reference"]["count"] == len(Digits().dataset("train"))
    assert protocol["features"]["dim"] == 16
    assert protocol["mask"]["class_path"] == "asyncdiff.noise.Half"

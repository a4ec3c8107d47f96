"""Settings of the optimizer and of predict: what is refused, and how `predict` uses its own."""

import re

import pytest
import torch
from small_runs import small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.checkpoints.object_config import build, describe
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.tasks import Generate
from asyncdiff.training import OptimizerSettings, PredictSettings


def model(**options):
    predict = PredictSettings(**options)
    return AsyncDiffusion(small_dit(classes=0), sampler=Sampler(steps=2), image_size=4, predict=predict)


def test_seeds_may_be_listed():
    assert [request.seed for request in model(count=3).predict_requests()] == [0, 1, 2]
    named = model(seeds=[9, 2], count=3)
    assert [request.seed for request in named.predict_requests()] == [9, 2]
    (batch,) = named.predict_dataloader()
    assert torch.equal(named.eval().predict_step(batch, 0), named.generate(seeds=[9, 2]))


@pytest.mark.parametrize(
    ("seeds", "rule"),
    [
        ([], r"be different, got \[\]"),
        ([3, 3], r"be different, got \[3, 3\]"),
        ([-1], "be an integer from 0 to 4294967295, got -1"),
        ([0, 2**32], "be an integer from 0 to 4294967295, got 4294967296"),
    ],
)
def test_seeds_must_be_different_and_in_range(seeds, rule):
    with pytest.raises(ValueError, match=f"predict.seeds must {rule}"):
        PredictSettings(seeds=seeds)


def test_a_data_set_as_large_as_imagenet_may_be_generated():
    assert PredictSettings(count=1_281_167).count == 1_281_167


def test_labels_must_not_be_negative():
    with pytest.raises(ValueError, match="predict.labels must be at least 0, got -1"):
        PredictSettings(labels=[3, -1])


@pytest.mark.parametrize("name", ["count", "batch_size"])
def test_counts_of_images_must_be_positive(name):
    with pytest.raises(ValueError, match=f"predict.{name} must be at least 1, got 0: set the number of images"):
        PredictSettings(**{name: 0})


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("learning_rate", 0.0, "positive, got 0.0: use 1e-4"),
        ("learning_rate", float("inf"), "finite, got inf"),
        ("learning_rate", float("nan"), "positive, got nan"),
        ("weight_decay", -0.1, "at least 0, got -0.1"),
        ("weight_decay", 10_000.0, "below 1 / learning_rate, got 10000.0"),
        ("warmup_steps", -1, "at least 0, got -1"),
        ("stop_after_bad_steps", -1, "at least 0, got -1: use 10, or 0 to never stop"),
    ],
)
def test_optimizer_settings_out_of_range_are_refused(name, value, rule):
    with pytest.raises(ValueError, match=f"optimizer.{name} must be {rule}"):
        OptimizerSettings(**{name: value})


@pytest.mark.parametrize("betas", [(0.9, 1.0), (0.9,), (0.9, 0.9, 0.9)])
def test_betas_are_checked(betas):
    rule = r"optimizer.betas must be two numbers in \[0, 1\), got "
    settings = OptimizerSettings()
    object.__setattr__(settings, "betas", betas)  # where types are checked, the constructor refuses other lengths
    with pytest.raises(ValueError, match=rule + re.escape(f"{list(betas)}: use [0.9, 0.99]")):
        settings.__post_init__()


@pytest.mark.parametrize(
    "settings", [OptimizerSettings(betas=(0.5, 0.9), warmup_steps=3), PredictSettings(Generate("8x8"), seeds=[1])]
)
def test_settings_are_described_and_rebuilt(settings):
    described = describe(settings)
    assert described["class_path"] == f"asyncdiff.training.{type(settings).__name__}"
    assert describe(build(described)) == described

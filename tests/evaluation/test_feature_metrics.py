import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from asyncdiff.evaluation.feature_metrics import inception_score, kernel_distance, subset_size_for


def features(n: int, seed: int, *, d: int = 16, shift: float = 0.0) -> Tensor:
    """Return correlated features, like those of networks."""
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / math.sqrt(d)
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ mix + shift


def test_kid_of_all_images_matches_torch_fidelity():
    real, fake = features(200, 0), features(200, 1, shift=0.2)
    expected = kid_features_to_metric(real, fake, kid_subsets=1, kid_subset_size=200, verbose=False)
    found = kernel_distance(real, fake)
    assert found.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-10)
    assert math.isnan(found.deviation)


def test_kid_of_the_same_subsets_matches_torch_fidelity(monkeypatch):
    real, fake = features(300, 0), features(250, 1, shift=0.2)
    draws = np.random.RandomState(2020)
    monkeypatch.setattr(torch, "randperm", lambda n: torch.from_numpy(draws.permutation(n)))
    found = kernel_distance(real, fake, subsets=20, subset_size=100)
    options = {"kid_subsets": 20, "kid_subset_size": 100, "rng_seed": 2020, "verbose": False}
    expected = kid_features_to_metric(real, fake, **options)
    assert found.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-10)
    assert found.deviation == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-10)


def test_kid_of_equal_distributions_is_zero_within_its_error():
    found = kernel_distance(features(2000, 0), features(2000, 1), subsets=20, subset_size=250)
    assert abs(found.mean) < 2 * found.deviation
    shifted = kernel_distance(features(2000, 0), features(2000, 1, shift=0.3), subsets=20, subset_size=250)
    assert shifted.mean > 10 * abs(found.mean)


def test_seeds_select_the_subsets_without_changing_the_global_random_state():
    before = torch.get_rng_state()
    first, again, other = (
        kernel_distance(features(90, 0), features(80, 1), subset_size=40, seed=s).mean for s in (0, 0, 1)
    )
    assert first == again != other
    scores = [inception_score(features(90, 0), seed=s).mean for s in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_subset_size_is_limited_by_the_smaller_side():
    assert [subset_size_for(5000, 2000), subset_size_for(5000, 360)] == [1000, 360]
    assert kernel_distance(features(90, 0), features(40, 1)).deviation > 0


def test_the_inception_score_matches_torch_fidelity(monkeypatch):
    logits = 3 * features(205, 0)
    expected_of_all = isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"]
    assert inception_score(logits, splits=1).mean == pytest.approx(expected_of_all, rel=1e-10)
    monkeypatch.setattr(torch, "randperm", torch.arange)
    expected = isc_features_to_metric(logits[:200], splits=10, shuffle=False)
    found = inception_score(logits[:200])
    assert found.mean == pytest.approx(expected["inception_score_mean"], rel=1e-10)
    # torch-fidelity divides by the number of splits, torchmetrics by one less.
    assert found.deviation == pytest.approx(expected["inception_score_std"] * math.sqrt(10 / 9), rel=1e-10)


def test_the_inception_score_lies_between_one_and_the_number_of_classes():
    confident = 50 * torch.eye(8, dtype=torch.float64).repeat(10, 1)
    assert inception_score(confident, splits=1).mean == pytest.approx(8, rel=1e-9)
    assert inception_score(torch.zeros(80, 8)).mean == pytest.approx(1, rel=1e-9)


def test_too_few_images_are_rejected():
    with pytest.raises(ValueError, match=r"number of images on each side must be at least 100, got 40: subset_size"):
        kernel_distance(features(200, 0), features(40, 1), subset_size=100)
    with pytest.raises(ValueError, match=r"must be at least 2, got 1: KID"):
        kernel_distance(features(200, 0), features(1, 1))
    with pytest.raises(ValueError, match=r"must be at least 10, got 9: the Inception score has 10 splits"):
        inception_score(features(9, 0))

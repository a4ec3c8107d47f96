import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from asyncdiff.evaluation import FrechetDistance
from asyncdiff.evaluation.feature_metrics import fit_gaussian, frechet_distance
from asyncdiff.evaluation.frechet import Moments, frechet, square_root

DIM = 12


class Projection(nn.Module):
    """Maps 3 x 4 x 4 images to DIM correlated features, the same in every process."""

    dim = DIM

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(48, DIM, generator=torch.Generator().manual_seed(5))
        self.register_buffer("weight", weight)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        # In float64, because a float32 product can round differently for other batch sizes.
        return self.drop((images.flatten(1).double() @ self.weight.double()).tanh().to(self.weight.dtype))


def images(n: int, seed: int, *, shift: float = 0.0) -> Tensor:
    noise = torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (0.3 * noise + shift).clamp(-1, 1)


def features(n: int, d: int, seed: int, *, mean: float = 0.0, spectrum: float = 1.0) -> Tensor:
    draw = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mixing = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(99)) / math.sqrt(d)
    return (draw * torch.logspace(0, -spectrum, d, dtype=torch.float64)) @ mixing + mean


def torch_fidelity_distance(real: Tensor, fake: Tensor) -> float:
    return fid_statistics_to_metric(*map(fid_features_to_statistics, (real, fake)), verbose=False)[KEY_METRIC_FID]


def metric_of(real: Tensor, fake: Tensor) -> FrechetDistance:
    class Size(nn.Identity):
        dim = real.shape[1]

    metric = FrechetDistance(Size())
    metric.update_features(real, real=True)
    metric.update_features(fake, real=False)
    return metric


def metric_of_images(real: Tensor, fake: Tensor, *, batch: int = 1000) -> FrechetDistance:
    metric = FrechetDistance(Projection())
    for side, all_images in ((True, real), (False, fake)):
        for part in all_images.split(batch):
            metric.update(part, real=side)
    return metric


def test_sets_of_other_shapes_or_ranges_are_refused():
    class MeanColor(nn.Module):
        dim = 3

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)).expand(-1, 3)

    metric = FrechetDistance(MeanColor(), keep_reference=False)
    metric.update(images(4, 0), real=True)
    for other in (torch.zeros(4, 3, 8, 8), torch.zeros(4, 1, 4, 4)):
        with pytest.raises(ValueError, match=r"must have the same shape, got \(3, 4, 4\) and"):
            metric.extract(other)
    with pytest.raises(ValueError, match="images must lie in"):
        metric.extract(images(4, 0).abs() * 255)
    metric.reset()
    metric.extract(torch.zeros(4, 3, 8, 8))


@pytest.mark.parametrize("spectrum", [0.0, 1.0, 2.0])
def test_the_distance_matches_torch_fidelity(spectrum):
    real, fake = features(300, 40, 0, spectrum=spectrum), features(200, 40, 1, mean=0.1, spectrum=spectrum)
    expected = pytest.approx(torch_fidelity_distance(real, fake), rel=1e-6)
    assert metric_of(real, fake).compute().item() == expected
    assert frechet_distance(fit_gaussian(real), fake, real_count=len(real)) == expected


def test_the_distance_matches_a_general_matrix_square_root():
    real, fake = features(500, 16, 0, spectrum=0.0), features(300, 16, 1, mean=0.2, spectrum=0.0)
    (m1, s1), (m2, s2) = ((x.mean(0).numpy(), np.cov(x.numpy(), rowvar=False)) for x in (real, fake))
    expected = np.square(m1 - m2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    assert frechet_distance(fit_gaussian(real), fake, real_count=len(real)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:the Fréchet distance of")
@pytest.mark.parametrize(("n_real", "n_fake"), [(30, 30), (30, 400), (400, 30)])
def test_rank_deficient_covariances_match_torch_fidelity_and_the_singular_values_of_the_samples(n_real, n_fake):
    # tr (S1^(1/2) S2 S1^(1/2))^(1/2) is the nuclear norm of X1 X2^T for centered, scaled samples: no squares, so exact.
    real, fake = features(n_real, 64, 0), features(n_fake, 64, 1, mean=0.1)
    a, b = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (real, fake))
    expected = (real.mean(0) - fake.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    expected -= 2 * torch.linalg.svdvals(a @ b.T).sum()
    found = metric_of(real, fake).compute().item()
    assert found == pytest.approx(expected.item(), rel=1e-6)
    assert found == pytest.approx(torch_fidelity_distance(real, fake), rel=1e-5)
    assert frechet_distance(fit_gaussian(real), fake, real_count=None) == pytest.approx(found, rel=1e-6)


def test_commuting_covariances_match_the_closed_form():
    # With a common eigenbasis the distance is a sum over its axes: (m1 - m2)^2 + (s1 - s2)^2.
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=generator)).Q
    s1, s2, m1, m2 = torch.rand(4, 20, dtype=torch.float64, generator=generator)
    cov1, cov2 = ((basis * s.square()) @ basis.T for s in (s1, s2))
    expected = (m1 - m2).square().sum() + (s1 - s2).square().sum()
    torch.testing.assert_close(frechet(m1, cov1, m2, cov2), expected, rtol=1e-10, atol=0)


def test_the_square_root_reproduces_the_covariance_and_has_its_rank():
    cov = features(9, 30, 0).T.cov()
    root = square_root(cov)
    assert root.shape == (8, 30)
    torch.testing.assert_close(root.T @ root, cov, rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:the Fréchet distance of")
@pytest.mark.parametrize("n", [500, 20])
def test_identical_sets_have_distance_zero(n):
    x = features(n, 32, 0, mean=1.0)
    assert 0 <= metric_of(x, x.clone()).compute().item() < 1e-8
    assert 0 <= frechet_distance(fit_gaussian(x), x, real_count=n) < 1e-9


def test_the_distance_is_symmetric_and_that_of_the_means_without_variance():
    a, b = fit_gaussian(features(200, 16, 0)), fit_gaussian(features(200, 16, 1, mean=0.3))
    torch.testing.assert_close(frechet(*a, *b), frechet(*b, *a), rtol=1e-10, atol=0)
    x = torch.ones(40, 8)
    assert metric_of(x, x + 2).compute().item() == pytest.approx(8 * 4)


def test_the_distance_does_not_depend_on_order_or_batch_size():
    real, fake = images(60, 0), images(50, 1, shift=0.1)
    whole = metric_of_images(real, fake).compute()
    for batch in (1, 7, 50):
        torch.testing.assert_close(
            metric_of_images(real.flip(0), fake.roll(3, 0), batch=batch).compute(), whole, rtol=1e-9, atol=0
        )


def test_the_covariance_matches_numpy_despite_a_large_mean():
    x = 1e3 + torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))
    metric = metric_of(x, x)
    expected = np.cov(x.double().numpy(), rowvar=False)
    found = metric.statistics(real=True).cov.numpy()
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()
    np.testing.assert_allclose(np.diag(found), np.diag(expected), rtol=1e-6)


def test_moments_of_batches_equal_those_of_all_images_even_far_from_zero():
    x, moments = features(1000, 16, 0, mean=1e6), Moments(16)
    for batch in x.split([700, 299, 1]):
        moments.add(batch)
    mean, cov = moments.gaussian()
    assert moments.count == 1000
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-15, atol=0)
    torch.testing.assert_close(cov, (x - x.mean(0)).T.cov(), rtol=1e-9, atol=1e-9)
    assert frechet(mean, cov, *fit_gaussian(x)) == pytest.approx(0, abs=1e-9)


def test_reset_keeps_the_reference_unless_told_otherwise():
    metric = metric_of_images(images(60, 0), images(50, 1))
    metric.reset()
    assert (metric.real_n, metric.fake_n) == (60, 0)
    metric.update(images(40, 2, shift=0.2), real=False)
    expected = metric_of_images(images(60, 0), images(40, 2, shift=0.2)).compute()
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-12, atol=0)
    metric.keep_reference = False
    metric.reset()
    assert (metric.real_n, metric.fake_n) == (0, 0)


def test_reference_root_is_computed_once_and_again_after_new_real_images(monkeypatch):
    calls = []
    monkeypatch.setattr("asyncdiff.evaluation.frechet.square_root", lambda c: calls.append(1) or square_root(c))
    metric = metric_of_images(images(60, 0), images(50, 1))
    first = metric.compute()
    metric.reset()
    metric.update(images(50, 1), real=False)
    assert metric.compute() == first
    assert len(calls) == 1
    metric.update(images(30, 3, shift=0.3), real=True)
    metric.compute()
    assert len(calls) == 2


def test_autocast_inference_mode_and_training_mode_change_nothing():
    expected = metric_of_images(images(60, 0), images(50, 1)).compute()
    assert (expected.dtype, expected.shape, expected.device.type) == (torch.float64, (), "cpu")
    metric = FrechetDistance(Projection().train())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        metric.update(images(60, 0), real=True)
        metric.update(images(20, 7), real=False)
        metric.reset()
    metric.features.train()
    metric.update(images(50, 1), real=False)
    assert metric.compute() == expected


def test_too_few_images_give_one_warning():
    metric = metric_of_images(images(60, 0), images(5, 1))
    with pytest.warns(UserWarning, match="5 fake images in 12 feature dimensions"):
        metric.compute()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.compute()
    few, many = features(20, 64, 0), features(500, 64, 1)
    for real, fake, side in ((many, few, "generated"), (few, many, "real")):
        with pytest.warns(UserWarning, match=f"20 {side} images in 64 feature dimensions"):
            frechet_distance(fit_gaussian(real), fake, real_count=len(real))


def test_infinite_features_give_nan_and_a_warning():
    metric = metric_of_images(images(60, 0), images(50, 1))
    metric.update_features(torch.full((1, DIM), torch.inf), real=False)
    with pytest.warns(UserWarning, match="NaN or infinite"):
        assert metric.compute().isnan()


def test_unknown_and_wrong_dims_and_single_images_are_rejected():
    with pytest.raises(ValueError, match=r"got None from Flatten: wrap the module with as_features"):
        FrechetDistance(nn.Flatten())
    with pytest.raises(ValueError, match=r"must have shape \(batch, 12\), got \(4, 11\)"):
        FrechetDistance(Projection()).update_features(torch.zeros(4, 11), real=True)
    with pytest.raises(ValueError, match="number of fake images must be at least 2, got 1: a covariance"):
        metric_of_images(images(60, 0), images(1, 1)).compute()
    with pytest.raises(ValueError, match=r"number of images must be at least 2, got 1: a covariance"):
        fit_gaussian(features(1, 16, 0))
    with pytest.raises(ValueError, match=r"have 8 features, but generated images have 16: use the same feature extr"):
        frechet_distance(fit_gaussian(features(9, 8, 0)), features(20, 16, 0), real_count=9)

import math

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from asyncdiff.evaluation import precision_recall as module
from asyncdiff.evaluation.precision_recall import density_coverage, precision_recall, squared_radii


def features(n: int, seed: int, *, d: int = 8, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("distances", [1 << 25, 3 * 400])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_precision_and_recall_match_torch_fidelity(monkeypatch, distances, shift):
    """Compute in one block and in blocks of three rows, near zero and far from it."""
    monkeypatch.setattr(module, "DISTANCES", distances)
    real, fake = features(400, 0), features(300, 1, scale=1.2)
    options = {"prc_neighborhood": 3, "prc_batch_size": 100, "save_cpu_ram": True, "verbose": False}
    expected = prc_features_to_metric(fake, real, **options)
    found = precision_recall(real + shift, fake + shift)
    assert 0.2 < found.precision < 0.95
    assert found.precision == pytest.approx(expected["precision"], abs=1e-7)
    assert found.recall == pytest.approx(expected["recall"], abs=1e-7)


@pytest.mark.parametrize("distances", [1 << 25, 3 * 300])
def test_density_and_coverage_match_their_definitions(monkeypatch, distances):
    monkeypatch.setattr(module, "DISTANCES", distances)
    real, fake = features(300, 0), features(200, 1, scale=0.7)
    distances_within_real = torch.linalg.vector_norm(real[:, None] - real[None], dim=2)
    radii = distances_within_real.sort(dim=1).values[:, 5]
    inside = torch.linalg.vector_norm(fake[:, None] - real[None], dim=2) < radii
    found = density_coverage(real, fake)
    assert found.density == pytest.approx(inside.sum().item() / (5 * 200), rel=1e-12)
    assert found.coverage == pytest.approx(inside.any(0).double().mean().item(), rel=1e-12)


def test_equal_sets_and_equal_distributions_have_density_one_and_the_expected_coverage():
    real = features(300, 0)
    assert density_coverage(real, real.clone()) == (1.0, 1.0)
    assert precision_recall(real, real.clone()) == (1.0, 1.0)
    found = density_coverage(features(1000, 0), features(1000, 1))
    expected = 1 - math.prod((1000 - i) / (2000 - i) for i in range(1, 6))  # arXiv:2002.09797, lemma 2
    assert found.coverage == pytest.approx(expected, abs=0.02)
    assert found.density == pytest.approx(1, abs=0.1)


def test_distant_sets_do_not_overlap_and_a_narrow_set_has_high_precision_and_low_recall():
    assert precision_recall(features(50, 0), features(50, 1) + 100) == (0, 0)
    assert density_coverage(features(50, 0), features(50, 1) + 100) == (0, 0)
    narrow = precision_recall(features(400, 0), features(400, 1, scale=0.3))
    assert narrow.precision > 0.95
    assert narrow.recall < 0.2


def test_radii_are_distances_from_the_kth_neighbor_excluding_the_point_itself():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    assert squared_radii(line, 1).tolist() == [1, 1, 4, 16]
    assert squared_radii(line, 2).tolist() == [9, 4, 9, 36]
    duplicates = torch.ones(4, 3, dtype=torch.float64) / 3
    assert squared_radii(duplicates, 2).tolist() == [0] * 4


def test_invalid_inputs_are_rejected():
    with pytest.raises(ValueError, match=r"number of fake images must be at least 4, got 3: .*, or k smaller than 3"):
        precision_recall(features(20, 0), features(3, 1))
    with pytest.raises(ValueError, match=r"number of real images must be at least 6, got 5"):
        density_coverage(features(5, 0), features(9, 1))
    with pytest.raises(ValueError, match="same number of features, got 8 and 4"):
        precision_recall(features(20, 0), features(20, 1, d=4))
    with pytest.raises(ValueError, match="must be finite"):
        precision_recall(features(20, 0), features(20, 1) * torch.nan)

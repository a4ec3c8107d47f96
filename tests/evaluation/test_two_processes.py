from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from asyncdiff.evaluation import FrechetDistance, TrainedClassifier, as_features
from asyncdiff.evaluation.frechet import Moments

pytestmark = pytest.mark.slow

# Images on ranks 0 and 1, real and generated: uneven counts, none generated on rank 1, none at all on rank 1.
SHARES = {"uneven": ((9, 9), (8, 8)), "one side": ((10, 17), (7, 0)), "idle rank": ((17, 17), (0, 0))}


def metric() -> FrechetDistance:
    return FrechetDistance(as_features(nn.Flatten(), dim=12))


def images(n: int, seed: int) -> Tensor:
    return (torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1) / seed


def distances(real: Tensor, fake: Tensor, *, more: int) -> tuple[Tensor, Tensor, int]:
    """Return the distance before and after `more` generated images, and this process's count of generated images."""
    frechet = metric()
    for side, own in ((True, real), (False, fake)):
        if len(own):
            frechet.update(own, real=side)
    first = frechet.compute()
    if more:
        frechet.update(images(more, 3), real=False)
    return first, frechet.compute(), int(frechet.fake_n)


def far_features() -> Tensor:
    return torch.randn(1000, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 1e6


def trained_weights(rank: int) -> dict[str, Tensor]:
    classifier = TrainedClassifier(3, 2, width=8, dim=16, epochs=2)
    classifier.prepare([{"image": images(40, 1 + rank).repeat(1, 1, 4, 4), "label": torch.arange(40) % 2}])
    return classifier.state_dict()


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found = {}
    for name, shares in SHARES.items():
        real, fake = (
            images(17, seed).split([first, second])[rank] for seed, first, second in zip((1, 2), *shares, strict=True)
        )
        # Only rank 0 gets more images: rank 1 must not return a cached result and leave rank 0 waiting.
        found[name] = distances(real, fake, more=5 if rank == 0 else 0)
    moments = Moments(12)
    moments.add(far_features().split([700, 300])[rank])
    torch.save((found, trained_weights(rank), tuple(moments.over_processes().gaussian())), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", SHARES)
def test_any_split_over_ranks_gives_the_distance_of_one_process(ranks, name):
    expected = distances(images(17, 1), images(17, 2), more=5)
    for rank, (found, *_) in enumerate(ranks):
        torch.testing.assert_close(found[name][:2], expected[:2], rtol=1e-9, atol=0)
        assert found[name][2] == SHARES[name][rank][1] + 5 * (rank == 0)  # the rank's own sums are restored


def test_moments_of_all_ranks_keep_their_precision_far_from_zero(ranks):
    for _, _, (mean, cov) in ranks:
        torch.testing.assert_close(mean, far_features().mean(0), rtol=1e-15, atol=0)
        torch.testing.assert_close(cov, far_features().T.cov(), rtol=1e-9, atol=1e-9)


def test_all_ranks_use_the_classifier_trained_on_rank_0(ranks):
    (_, first, _), (_, second, _) = ranks
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, trained_weights(0))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(first, trained_weights(1))

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from asyncdiff.evaluation import FrechetDistance, TrainedClassifier, as_features

pytestmark = pytest.mark.slow

# Real and generated images of each rank: uneven shares, no generated images on rank 1, nothing at all on rank 1.
SHARES = {"uneven": ((9, 9), (8, 8)), "one side": ((10, 17), (7, 0)), "idle rank": ((17, 17), (0, 0))}


def metric() -> FrechetDistance:
    return FrechetDistance(as_features(nn.Flatten(), dim=12))


def images(n: int, seed: int) -> Tensor:
    return (torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1) / seed


def distances(real: Tensor, fake: Tensor, *, more: int) -> tuple[Tensor, Tensor, int]:
    """The distance before and after `more` generated images, and how many generated images this process has seen."""
    frechet = metric()
    for side, mine in ((True, real), (False, fake)):
        if len(mine):
            frechet.update(mine, real=side)
    first = frechet.compute()
    if more:
        frechet.update(images(more, 3), real=False)
    return first, frechet.compute(), int(frechet.fake_n)


def classifier_of(rank: int) -> dict[str, Tensor]:
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
        # Only rank 0 goes on after the first answer: rank 1 must not answer from a cache and leave it waiting.
        found[name] = distances(real, fake, more=5 if rank == 0 else 0)
    torch.save((found, classifier_of(rank)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", SHARES)
def test_any_shares_give_the_distance_of_one_process(ranks, name):
    expected = distances(images(17, 1), images(17, 2), more=5)
    for rank, (found, _) in enumerate(ranks):
        torch.testing.assert_close(found[name][:2], expected[:2], rtol=1e-9, atol=0)
        assert found[name][2] == SHARES[name][rank][1] + 5 * (rank == 0)  # the sums are the rank's own again


def test_the_classifier_is_that_of_rank_0_everywhere(ranks):
    (_, first), (_, second) = ranks
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, classifier_of(0))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(first, classifier_of(1))

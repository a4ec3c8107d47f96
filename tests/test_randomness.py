import pytest
import torch
from scipy import stats

from asyncdiff.randomness import RandomSource, counter_key, fork, normal, per_image, seeded, uniform


def test_counter_keys_are_the_same_on_every_machine():
    assert counter_key(0) == 4246866556266386882
    assert counter_key(1, 2, 3) == 1517167407554927345


def test_counter_keys_do_not_collide():
    keys = {counter_key(a, b, c) for a in range(20) for b in range(50) for c in range(20)}
    assert len(keys) == 20_000
    assert counter_key(1, 23) != counter_key(12, 3)


@pytest.mark.parametrize("draw", [normal, uniform])
def test_row_i_depends_on_seed_i_only(draw):
    together = draw((3, 2, 5), generator=per_image([7, 8, 9]))
    alone = draw((1, 2, 5), generator=per_image([8]))
    assert torch.equal(together[1:2], alone)


def test_one_generator_draws_the_whole_batch():
    assert torch.equal(normal((4, 3), generator=seeded(5)), torch.randn(4, 3, generator=seeded(5)))


def test_too_few_generators_are_refused():
    with pytest.raises(ValueError, match="got 2 for 3 images"):
        normal((3, 4), generator=per_image([0, 1]))


def test_a_source_draws_for_its_batch():
    source = RandomSource(3, (2, 2), seeded(0), dtype=torch.float64)
    assert torch.equal(source.uniform(4), torch.rand(3, 4, generator=seeded(0), dtype=torch.float64))
    assert source.normal(2, 2).shape == (3, 2, 2)
    alone = RandomSource(1, (2, 2), per_image([8]))
    together = RandomSource(3, (2, 2), per_image([7, 8, 9]))
    for name in ("uniform", "normal"):
        assert torch.equal(getattr(together, name)(5)[1:2], getattr(alone, name)(5))
    assert torch.equal(together.stratified()[1:2], alone.stratified())


@pytest.mark.parametrize("batch", [1, 2, 7, 64, 1000])
def test_each_stratum_has_one_number(batch):
    for seed in range(20):
        s = RandomSource(batch, (1, 1), seeded(seed), dtype=torch.float64).stratified()
        assert torch.equal((s * batch).floor().long().sort().values, torch.arange(batch))
        single = RandomSource(batch, (1, 1), seeded(seed)).stratified()
        assert ((single >= 0) & (single < 1)).all()


def test_stratified_numbers_are_uniform_whatever_their_position():
    """Every position is U(0, 1) (Kolmogorov-Smirnov); with one generator per image, two positions are uncorrelated."""
    shared = torch.stack([RandomSource(4, (1, 1), seeded(k)).stratified() for k in range(2000)])
    apart = torch.stack([RandomSource(4, (1, 1), per_image(range(4 * k, 4 * k + 4))).stratified() for k in range(2000)])
    for column in (*shared.T, *apart.T):
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-3
    assert abs(stats.pearsonr(apart[:, 0], apart[:, 1]).statistic) < 4 / 2000**0.5
    # Of n stratified numbers the sum has the variance 1/12 of one: cov = (1 - n) / 12 / (n (n - 1)), correlation -1/n.
    assert stats.pearsonr(shared[:, 0], shared[:, 1]).statistic == pytest.approx(-1 / 4, abs=4 / 2000**0.5)


def test_forks_leave_the_draws_of_their_parent_unchanged():
    """However much is drawn from a fork, the parent draws the same numbers; equal parents have equal forks."""
    drawn = []
    for amount in (0, 1, 1000):
        parent = seeded(3)
        child = fork(parent)
        torch.rand(amount, generator=child)
        drawn.append(torch.rand(5, generator=parent))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    first, second = (torch.rand(5, generator=fork(seeded(3))) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, drawn[0])


def test_forks_of_image_generators_depend_on_their_image_only():
    together, alone = fork(per_image([7, 8, 9])), fork(per_image([8]))
    assert torch.equal(uniform((3, 5), generator=together)[1:2], uniform((1, 5), generator=alone))
    assert fork(None) is None

import pytest
import torch

from asyncdiff.randomness import counter_key, normal, per_image, seeded, uniform


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


def test_a_generator_short_is_refused():
    with pytest.raises(ValueError, match="got 2 for 3 images"):
        normal((3, 4), generator=per_image([0, 1]))

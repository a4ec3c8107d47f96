"""Laws of the DiT: what a level map means, what it costs, and what depends on what."""

import pytest
import torch
from conftest import randomize_weights

from asyncdiff.networks.dit import DiT, patchify, unpatchify
from asyncdiff.shapes import UniqueLevels, unique_levels


def noisy(batch: int = 3, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def levels(batch: int = 3, grid: tuple[int, int] = (4, 4)) -> torch.Tensor:
    return torch.rand(batch, *grid, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (4, 4), (1, 4), (2, 1)])
def test_constant_map_equals_the_1x1_map(small_dit, grid):
    """Detected as constant, and gathered patch by patch if the caller passes an index of all patches."""
    x, t = noisy(), levels(grid=(1, 1))
    label, exact = torch.tensor([0, 5, 10]), small_dit(x, t, torch.tensor([0, 5, 10]))
    every = UniqueLevels(t.flatten(), torch.arange(3)[:, None, None].expand(3, *grid).contiguous())
    for unique in (None, every):
        assert torch.allclose(small_dit(x, t.expand(3, *grid), label, unique=unique), exact, rtol=0, atol=1e-13)


def test_constant_map_equals_scalar_conditioning(small_dit):
    """Comparison with standard adaLN: one modulation per image from silu(level) + silu(label)."""
    x, t, label = noisy(), levels(grid=(1, 1)), torch.tensor([0, 5, 10])
    net = small_dit
    c = torch.nn.functional.silu(net.level_embedding(t.flatten()))
    c = c + torch.nn.functional.silu(net.label_embedding(label))

    def adaln(linear, count):
        return [m[:, None] for m in linear(c).chunk(count, dim=1)]

    from asyncdiff.networks.embeddings import grid_positions

    h = net.embed(patchify(x, 2)) + grid_positions((4, 4), net.dim, x.device).double()
    for block in net.blocks:
        b1, s1, g1, b2, s2, g2 = adaln(block.modulation.linear, 6)
        h = h + g1 * block.attention(block.norm1(h) * (1 + s1) + b1)
        h = h + g2 * block.mlp(block.norm2(h) * (1 + s2) + b2)
    shift, scale = adaln(net.final_modulation.linear, 2)
    expected = unpatchify(net.head(net.norm(h) * (1 + scale) + shift), (4, 4), 2)
    assert torch.allclose(net(x, t, label), expected, atol=1e-12)


def test_passing_the_distinct_levels_changes_nothing(small_dit):
    x, t = noisy(), (levels() * 255).round() / 255
    table = UniqueLevels(torch.arange(256, dtype=torch.float64) / 255, (t * 255).round().long())
    assert torch.allclose(small_dit(x, t, unique=table), small_dit(x, t), atol=1e-13)
    assert torch.equal(small_dit(x, t, unique=unique_levels(t)), small_dit(x, t))


def test_modulations_are_computed_once_per_distinct_level(small_dit):
    rows = []
    hook = small_dit.blocks[0].modulation.linear.register_forward_hook(
        lambda _, inputs, __: rows.append(len(inputs[0]))
    )
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)[torch.randint(2, (64, 4, 4))]
    small_dit(noisy(64), t)
    hook.remove()
    assert rows == [2]


def test_every_patch_depends_on_its_own_level(small_dit):
    x, t = noisy(1), levels(1)
    changed = t.clone()
    changed[0, 1, 2] = 1 - changed[0, 1, 2]
    difference = (small_dit(x, changed) - small_dit(x, t)).abs().reshape(4, 2, 4, 2).amax((1, 3))
    assert difference.argmax() == 1 * 4 + 2  # the patch itself most
    assert (difference > 0).all()  # and all others through attention


def test_coarser_level_map_equals_the_repeated_map():
    torch.manual_seed(0)
    fine = randomize_weights(DiT(channels=1, patch_size=2, dim=32, depth=2, heads=4).double())
    coarse = DiT(channels=1, patch_size=2, dim=32, depth=2, heads=4, level_patch_size=4).double()
    coarse.load_state_dict(fine.state_dict())
    t = levels(grid=(2, 2))
    assert coarse.grid((8, 8)) == (2, 2)
    repeated = t.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.allclose(coarse(noisy(), t), fine(noisy(), repeated), atol=1e-13)


def test_permuting_patches_permutes_the_output_without_positions():
    torch.manual_seed(0)
    net = randomize_weights(DiT(channels=1, patch_size=2, dim=32, depth=2, heads=4, positions=False).double())
    x, t, order = noisy(), levels(), torch.randperm(16, generator=torch.Generator().manual_seed(3))

    def permuted(image):
        return unpatchify(patchify(image, 2)[:, order], (4, 4), 2)

    t_permuted = t.flatten(1)[:, order].reshape(3, 4, 4)
    assert torch.allclose(net(permuted(x), t_permuted), permuted(net(x, t)), atol=1e-12)
    with_positions = randomize_weights(DiT(channels=1, patch_size=2, dim=32, depth=2, heads=4).double())
    assert not torch.allclose(with_positions(permuted(x), t_permuted), permuted(with_positions(x, t)), atol=1e-3)


def test_gradients_reach_every_parameter(small_dit):
    label = torch.arange(11)  # all classes and the null class
    small_dit(noisy(11), levels(11), label).square().mean().backward()
    silent = [name for name, p in small_dit.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_the_initial_network_is_zero():
    torch.manual_seed(0)
    net = DiT(channels=3, patch_size=2, dim=32, depth=2, heads=4)
    assert (net(torch.randn(2, 3, 8, 8), torch.rand(2, 4, 4)) == 0).all()
    assert all((block.modulation.linear.weight == 0).all() for block in net.blocks)
    assert all(block.mlp.fc1.weight.any() for block in net.blocks)


def test_missing_label_means_the_null_class(small_dit):
    x, t = noisy(), levels()
    assert torch.equal(small_dit(x, t), small_dit(x, t, torch.full((3,), 10)))


def test_all_sizes_that_patches_divide_work(small_dit):
    x = torch.randn(2, 1, 12, 6, dtype=torch.float64)
    assert small_dit(x, levels(2, (6, 3))).shape == x.shape


def test_unpatchify_inverts_patchify():
    x = noisy(channels=3)
    assert torch.equal(unpatchify(patchify(x, 2), (4, 4), 2), x)


@pytest.mark.parametrize(
    ("size", "message"),
    [((1, 8), "at least as large as a patch, got 1x8"), ((8, 9), "multiples of the patch size 2, got 8x9")],
)
def test_images_that_do_not_fit_are_refused(small_dit, size, message):
    with pytest.raises(ValueError, match=message):
        small_dit(torch.zeros(1, 1, *size, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64))


def test_other_misuse_is_refused(small_dit):
    with pytest.raises(ValueError, match="images must have 1 channels, got 3"):
        small_dit(noisy(channels=3), levels())
    with pytest.raises(ValueError, match="token grid 4x4, got 8x8"):
        small_dit(noisy(), levels(grid=(8, 8)))
    with pytest.raises(ValueError, match="level_patch_size must be a multiple of patch_size 2, got 3"):
        DiT(patch_size=2, level_patch_size=3)
    with pytest.raises(ValueError, match="dim 30 with 4 heads"):
        DiT(dim=30, heads=4)
    unconditional = DiT(channels=1, dim=32, depth=1, heads=4)
    with pytest.raises(ValueError, match="classes=0"):
        unconditional(torch.zeros(1, 1, 8, 8), torch.zeros(1, 4, 4), torch.zeros(1, dtype=torch.int64))

"""Laws of the DiT: its conditioning, its positions, and what a level map costs."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small_networks import DITS, LABEL, dit, draw, noisy, single, stored_bytes
from torch.utils.flop_counter import FlopCounterMode

from asyncdiff.networks.attention import rotate, rotations
from asyncdiff.networks.dit import DiT, patchify, unpatchify
from asyncdiff.networks.embeddings import grid_positions
from asyncdiff.networks.modulation import IndexedVectors
from asyncdiff.randomness import seeded
from asyncdiff.shapes import IndexedLevels

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


def test_constant_map_equals_scalar_conditioning():
    """Comparison with standard adaLN: one modulation per image from silu(level) + silu(label)."""
    net, x, t = dit(classes=10), noisy(), draw((1, 1)).t
    c = F.silu(net.level_embedding(t.flatten())) + F.silu(net.label_embedding(LABEL))

    def adaln(linear, count):
        return [m[:, None] for m in linear(c).chunk(count, dim=1)]

    h = net.embed(patchify(x, 2)) + grid_positions((4, 4), net.dim, x.device).double()
    for block in net.blocks:
        b1, s1, g1, b2, s2, g2 = adaln(block.modulation.linear, 6)
        h = h + g1 * block.attention(block.norm1(h) * (1 + s1) + b1)
        h = h + g2 * block.mlp(block.norm2(h) * (1 + s2) + b2)
    shift, scale = adaln(net.final_modulation.linear, 2)
    expected = unpatchify(net.head(net.norm(h) * (1 + scale) + shift), (4, 4), 2)
    assert torch.allclose(net(x, t, LABEL), expected, atol=1e-12)


def naive_network(network: DiT, x: torch.Tensor, levels: IndexedLevels, label=None) -> torch.Tensor:
    """The network with one conditioning per token, gathered, computed and stored by plain autograd."""

    def gather(row: IndexedVectors) -> torch.Tensor:
        vectors = row.table[row.index]
        return vectors if row.label is None else vectors + row.label[:, None]

    t = levels.t
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IndexedVectors, "gather", gather)
        patch.setattr(IndexedVectors, "shared", True)
        return network(x, IndexedLevels(t.flatten(), torch.arange(t.numel()).view(t.shape)), label)


@pytest.mark.parametrize("name", DITS)
def test_level_table_matches_one_conditioning_per_patch(name):
    """The entire network, with the gradients of all parameters."""
    net, x, levels = DITS[name](classes=10), noisy(), draw((4, 4), count=7)
    weight = torch.randn(x.shape, generator=seeded(4), dtype=torch.float64)
    table, naive = net(x, levels, LABEL), naive_network(net, x, levels, LABEL)
    assert torch.allclose(table, naive, rtol=0, atol=1e-12)
    gradients = (torch.autograd.grad((v * weight).sum(), list(net.parameters())) for v in (table, naive))
    assert all(torch.allclose(got, expected, rtol=0, atol=1e-10) for got, expected in zip(*gradients, strict=True))


def test_the_six_vectors_per_token_are_not_stored():
    """DiT-S with 64 tokens: memory of a level map compared with one level per image."""
    network = DiT(channels=3, patch_size=4, dim=384, depth=2, heads=6)
    x, levels = noisy(64, 3, (32, 32)).float(), single(draw((8, 8), 64, 256))
    scalar = stored_bytes(network, x, IndexedLevels(levels.values, levels.index[:, :1, :1]))
    assert stored_bytes(network, x, levels) < 1.08 * scalar
    assert stored_bytes(network, x, levels, partial(naive_network, network)) > 1.3 * scalar


def test_operation_count_of_a_level_map_compared_with_one_level():
    """DiT-XL/2 at 256 tokens, batch 64, forward and backward, counted: 256 levels against one per image, and naive."""
    counted = []
    with torch.device("meta"):
        network = DiT(channels=4, patch_size=2, dim=1152, depth=28, heads=16)
        for side, count in ((1, 64), (16, 256), (16, 64 * 256)):
            levels = IndexedLevels(torch.empty(count), torch.empty(64, side, side, dtype=torch.int64))
            with FlopCounterMode(display=False) as counter:
                network(torch.empty(64, 4, 32, 32), levels).sum().backward()
            counted.append(counter.get_total_flops())
    assert counted[1] < 1.01 * counted[0]
    assert counted[2] == pytest.approx(1.48 * counted[0], rel=0.02)


def test_modulations_are_computed_once_per_distinct_level():
    net, rows = dit(), []
    net.blocks[0].modulation.linear.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    net(noisy(64), draw((4, 4), 64, count=2).t)
    assert rows == [2]


def test_every_patch_depends_on_its_own_level():
    net, x, t = dit(), noisy(1), draw((4, 4), 1).t
    changed = t.clone()
    changed[0, 1, 2] = 1 - changed[0, 1, 2]
    difference = (net(x, changed) - net(x, t)).abs().reshape(4, 2, 4, 2).amax((1, 3))
    assert difference.argmax() == 1 * 4 + 2  # the patch itself most
    assert (difference > 0).all()  # and all others through attention


def test_a_network_of_coarser_level_patches_computes_the_same():
    fine, coarse, t = dit(), dit(level_patch_size=4), draw((2, 2)).t
    coarse.load_state_dict(fine.state_dict())
    assert coarse.grid((8, 8)) == (2, 2)
    assert torch.equal(coarse(noisy(), t), fine(noisy(), t))


def test_permuting_patches_permutes_the_output_without_positions():
    x, t, order = noisy(), draw((4, 4)).t, torch.randperm(16, generator=seeded(3))

    def permuted(image):
        return unpatchify(patchify(image, 2)[:, order], (4, 4), 2)

    t_permuted = t.flatten(1)[:, order].reshape(3, 4, 4)
    without, with_positions = dit(positions=False), dit()
    assert torch.allclose(without(permuted(x), t_permuted), permuted(without(x, t)), atol=1e-12)
    assert not torch.allclose(with_positions(permuted(x), t_permuted), permuted(with_positions(x, t)), atol=1e-3)


def test_rope_depends_only_on_distances():
    """Scores of equal queries and keys depend on the distance of their tokens, by row and by column separately."""
    network, x, t = dit(positions=False, rope=True), noisy(1, size=(16, 16)), draw((8, 8), 1, 64).t
    shifted = network(x.roll((2, 4), (2, 3)), t.roll((1, 2), (1, 2)))
    assert not torch.allclose(shifted, network(x, t).roll((2, 4), (2, 3)), atol=1e-3)
    q, k = torch.randn(2, 1, 4, 1, 8, generator=seeded(2), dtype=torch.float64).expand(2, 1, 4, 64, 8)
    rope = rotations((8, 8), 8, x.device).double()
    scores = (rotate(q, rope) @ rotate(k, rope).transpose(2, 3))[0]
    grid = scores.reshape(4, 8, 8, 8, 8)
    assert torch.allclose(grid[:, :-1, :-1, :-1, :-1], grid[:, 1:, 1:, 1:, 1:], atol=1e-5)
    assert not torch.allclose(grid[:, 0, 0, 1, 0], grid[:, 0, 0, 0, 1], atol=1e-2)


@pytest.mark.parametrize("name", SIZES)
def test_parameter_count_matches_dit(name):
    """Exactly, except for learned variances, which this DiT does not have. The level map itself adds none."""
    dim, depth, heads = SIZES[name]
    with torch.device("meta"):
        network = DiT(4, 2, dim, depth, heads, classes=1000)
    linear = {(16, dim): 1, (256, dim): 1, (dim, dim): 1 + depth, (dim, 3 * dim): depth, (dim, 6 * dim): depth}
    linear |= {(dim, 4 * dim): depth, (4 * dim, dim): depth, (dim, 2 * dim): 1, (dim, 16): 1}
    expected = sum(count * (i + 1) * o for (i, o), count in linear.items()) + 1001 * dim
    assert sum(p.numel() for p in network.parameters()) == expected
    positions, variances = 256 * dim, (dim + 1) * 16  # the fixed embedding is counted in the figure that DiT prints
    assert name != "XL" or expected + positions + variances == 675_129_632


def test_branches_are_not_zero_before_their_gates():
    assert all(block.mlp.fc1.weight.any() for block in DiT(dim=32, depth=2, heads=4).blocks)


def test_unpatchify_inverts_patchify():
    x = noisy(channels=3)
    assert torch.equal(unpatchify(patchify(x, 2), (4, 4), 2), x)


@pytest.mark.parametrize(
    ("x", "grid", "label", "message"),
    [
        (noisy(size=(1, 8)), (1, 1), None, "at least as large as a patch, got 1x8"),
        (noisy(size=(8, 9)), (1, 1), None, "multiples of the patch size 2, got 8x9"),
        (noisy(channels=3), (4, 4), None, "images must have 1 channels, got 3"),
        (noisy(), (8, 8), None, "token grid 4x4, got 8x8"),
        (noisy(), (4, 4), LABEL, "classes=0"),
    ],
)
def test_unsuitable_inputs_are_refused(x, grid, label, message):
    with pytest.raises(ValueError, match=message):
        dit()(x, draw(grid).t, label)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 2, "level_patch_size": 3}, "level_patch_size must be a multiple of patch_size 2, got 3"),
        ({"dim": 30, "heads": 4}, "dim 30 with 4 heads"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiT(**options)

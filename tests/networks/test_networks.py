"""Laws of both networks: what a level map means, and what changes no result."""

import pytest
import torch
from small_networks import DIT_GRIDS, DITS, LABEL, UNET_GRIDS, UNETS, dit, draw, noisy, single, stored_bytes, unet

from asyncdiff.networks.dit import DiT
from asyncdiff.networks.modulation import Modulation
from asyncdiff.networks.unet import UNet
from asyncdiff.networks.unet_blocks import ResidualBlock
from asyncdiff.shapes import IndexedLevels

NETWORKS = DITS | UNETS
ON_GRIDS = [(name, grid) for name in DITS for grid in DIT_GRIDS] + [
    (name, grid) for name in UNETS for grid in UNET_GRIDS
]
BOTH = pytest.mark.parametrize("make", [dit, unet])


@pytest.mark.parametrize(("name", "grid"), ON_GRIDS)
def test_constant_map_equals_the_1x1_map(name, grid):
    """Detected as constant, and gathered patch by patch if the caller passes an index of all patches."""
    net, x, one = NETWORKS[name](classes=10), noisy(), draw((1, 1))
    everywhere = IndexedLevels(one.values, one.index.expand(3, *grid).contiguous())
    expected = net(x, one, LABEL)
    assert expected.std() > 0.1
    for levels in (everywhere.t, everywhere):
        assert torch.allclose(net(x, levels, LABEL), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("name", "grid"), ON_GRIDS)
def test_passing_the_distinct_levels_changes_nothing(name, grid):
    """The table may also have levels that no patch uses."""
    net, x, known = NETWORKS[name](classes=10), noisy(), draw(grid)
    table = IndexedLevels(torch.cat([known.values, torch.ones(60, dtype=torch.float64)]), known.index)
    expected = net(x, known.t)
    for levels in (known, table):
        assert torch.allclose(net(x, levels), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", NETWORKS)
def test_coarser_level_map_equals_the_repeated_map(name):
    net, coarse = NETWORKS[name](), draw((2, 2)).t
    repeated = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.allclose(net(noisy(), coarse), net(noisy(), repeated), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", NETWORKS)
def test_missing_label_means_the_null_class(name):
    net, x, t = NETWORKS[name](classes=10), noisy(), draw((4, 4)).t
    assert torch.equal(net(x, t), net(x, t, torch.full((3,), 10)))
    assert not torch.allclose(net(x, t), net(x, t, torch.zeros(3, dtype=torch.int64)), atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_parameter(name):
    net, levels = NETWORKS[name](classes=10, uncertainty=True), draw((4, 4), batch=11)
    label = torch.arange(11)  # all classes and the null class
    v, logvar = net(noisy(11), levels, label)
    (v.square().mean() + logvar.square().mean()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@BOTH
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing_changes_no_gradient_and_stores_less(make, dropout):
    gradients, stored, levels = [], [], draw((4, 4))
    for checkpointing in (False, True):
        net = make(classes=10, dropout=dropout, checkpointing=checkpointing).train()
        torch.manual_seed(1)
        net(noisy(), levels, LABEL).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
        stored.append(stored_bytes(net, noisy(), levels))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert any(g.any() for g in gradients[0])
    assert stored[1] < (0.5 if make is dit else 0.4) * stored[0]


@pytest.mark.parametrize(
    ("name", "grid", "tolerance"),
    [("DiT", (4, 4), 0.02), ("RoPE", (4, 4), 0.02), ("U-Net", (1, 1), 0.05), ("U-Net", (8, 8), 0.05)],
)
def test_bfloat16_is_close_to_float32(name, grid, tolerance):
    """The residual stream stays in float32, and so do the gradients."""
    net, levels = NETWORKS[name](classes=10, uncertainty=True).float(), single(draw(grid))
    x, streams = noisy().float(), []
    exact = net(x, levels, LABEL)
    for block in net.blocks if isinstance(net, DiT) else [m for m in net.modules() if isinstance(m, ResidualBlock)]:
        block.register_forward_hook(lambda _, __, output: streams.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x, levels, LABEL)
    for a, b in zip(rounded, exact, strict=True):
        assert ((a - b).square().mean() / b.square().mean()).sqrt() < tolerance
    assert set(streams) == {torch.float32}
    rounded[0].float().square().sum().backward()
    assert {p.grad.dtype for p in net.parameters() if p.grad is not None} == {torch.float32}
    assert next(net.parameters()).grad.any()


@pytest.mark.parametrize(
    ("make", "options"), [(DiT, {"dim": 32, "depth": 2, "heads": 4}), (UNet, {"width": 8, "head_dim": 4, "classes": 3})]
)
def test_the_initial_network_is_zero(make, options):
    net = make(channels=3, uncertainty=True, **options)
    v, logvar = net(torch.randn(2, 3, 16, 16), torch.rand(2, 4, 4))
    assert (v == 0).all()
    assert torch.allclose(logvar, torch.zeros_like(logvar), atol=1e-6)
    modulations = [module for module in net.modules() if isinstance(module, Modulation)]
    assert len(modulations) == (2 + 1 if make is DiT else 4 * (2 + 3) + 2)
    assert not any(module.linear.weight.any() or module.linear.bias.any() for module in modulations)


@pytest.mark.parametrize(
    ("make", "size", "grids"), [(dit, (12, 6), [(6, 3)]), (unet, (12, 20), [(3, 5), (1, 1), (12, 20), (6, 5)])]
)
def test_all_sizes_that_levels_and_patches_divide_work(make, size, grids):
    net, x = make(), noisy(2, size=size)
    assert net.grid(size) == grids[0]
    for grid in grids:
        assert net(x, draw(grid, 2).t).shape == x.shape

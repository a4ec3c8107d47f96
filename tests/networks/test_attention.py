"""Attention and MLP equal those of timm with the same weights, bit for bit, also in gradients and random draws."""

from collections.abc import Callable

import pytest
import timm.layers
import torch
from torch import Tensor, nn

from asyncdiff.networks.attention import Attention, rotate, rotations
from asyncdiff.networks.layers import MLP, RMSNorm
from asyncdiff.randomness import seeded

GRID, DIM, HEADS = (3, 5), 48, 4
NORM = {"qkv_bias": True, "norm_layer": RMSNorm}


def timm_rope(grid: tuple[int, int], dim: int) -> Tensor:
    pair = timm.layers.build_rotary_pos_embed(list(grid), dim=dim, temperature=100.0, in_pixels=False)
    return torch.cat(pair, dim=-1)


def assert_equal_layers(ours: Callable[[], nn.Module], theirs: Callable[[], nn.Module], *inputs: tuple[Tensor, ...]):
    """Two layers draw the same weights and the same dropout, and return the same outputs and gradients."""
    results = []
    for make, arguments in zip((ours, theirs), inputs, strict=True):
        torch.manual_seed(0)
        layer = make()
        x = torch.randn(2, GRID[0] * GRID[1], DIM, requires_grad=True)
        output = layer(x, *arguments)
        output.square().sum().backward()
        weights = list(layer.state_dict().items())
        results.append([*weights, output, x.grad, *(p.grad for p in layer.parameters()), torch.rand(1)])
    for a, b in zip(*results, strict=True):
        if isinstance(a, tuple):
            assert a[0] == b[0]
            a, b = a[1], b[1]
        assert torch.equal(a, b)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("rope", [False, True])
def test_attention_is_timms(qk_norm, dropout, rope):
    options = NORM | {"qk_norm": qk_norm, "proj_drop": dropout}

    def theirs():
        if rope:
            return timm.layers.AttentionRope(DIM, HEADS, num_prefix_tokens=0, **options)
        return timm.layers.Attention(DIM, HEADS, **options)

    inputs = (
        ((rotations(GRID, DIM // HEADS, torch.device("cpu")),), (timm_rope(GRID, DIM // HEADS),)) if rope else ((), ())
    )
    assert_equal_layers(lambda: Attention(DIM, HEADS, qk_norm, dropout), theirs, *inputs)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_mlp_is_timms(dropout):
    assert_equal_layers(
        lambda: MLP(DIM, 4 * DIM, dropout),
        lambda: timm.layers.Mlp(DIM, 4 * DIM, act_layer=lambda: nn.GELU(approximate="tanh"), drop=dropout),
        (),
        (),
    )


@pytest.mark.parametrize("grid", [(1, 1), (16, 16), (4, 9), (40, 3)])
@pytest.mark.parametrize("dim", [4, 12, 64, 72])
def test_rotations_are_timms(grid, dim):
    x = torch.randn(2, 3, grid[0] * grid[1], dim, generator=seeded(0))
    expected = timm.layers.apply_rot_embed_cat(x, timm_rope(grid, dim))
    assert torch.equal(rotate(x, rotations(grid, dim, torch.device("cpu"))), expected)

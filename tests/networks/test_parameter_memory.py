"""Networks that cannot fit into memory are refused before anything is allocated, naming the argument to lower."""

import pytest
import torch

from asyncdiff.networks import DiT, UNet, parameter_memory
from asyncdiff.networks.parameter_memory import BLOCK

NETWORKS = [
    (DiT, {}),
    (DiT, {"dim": 1152, "depth": 28, "heads": 16, "classes": 1000}),
    (DiT, {"dim": 64, "heads": 4, "depth": 1, "patch_size": 64}),
    (DiT, {"dim": 64, "heads": 4, "depth": 2, "mlp_ratio": 100.0, "channels": 500, "classes": 10**5}),
    (UNet, {}),
    (UNet, {"classes": 1000, "blocks": 5, "middle_blocks": 7}),
    (UNet, {"width": 32, "multipliers": (1, 4, 8), "head_dim": 8}),
]


@pytest.mark.parametrize(("kind", "arguments"), NETWORKS)
def test_the_estimate_is_never_above_the_number_of_parameters(kind, arguments):
    """Nothing is refused that fits, except for the memory of the blocks' Python objects, which is counted, too."""
    with torch.device("meta"):
        network = kind(**arguments)
    count, numbers = sum(p.numel() for p in network.parameters()), network._numbers()
    objects = BLOCK * sum("Block" in type(module).__name__ for module in network.modules())
    assert 0.3 * count < sum(numbers.values()) - objects <= count


@pytest.mark.parametrize(
    ("kind", "argument", "value"),
    [
        (DiT, "dim", 6_400_000),
        (DiT, "depth", 10**8),
        (DiT, "classes", 10**12),
        (DiT, "channels", 10**12),
        (DiT, "patch_size", 10**6),
        (UNet, "width", 6_400_000),
        (UNet, "blocks", 10**13),
        (UNet, "middle_blocks", 10**13),
        (UNet, "classes", 10**12),
        (UNet, "channels", 10**12),
        (UNet, "multipliers", (1, 10**9)),
    ],
)
def test_the_argument_that_is_too_large_is_named(kind, argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} must fit into memory, got .* available: lower it; "):
        kind(**{argument: value, "attention": ()} if kind is UNet else {argument: value, "heads": 1})


def test_what_fits_is_built_and_other_devices_are_not_checked(monkeypatch):
    monkeypatch.setattr(parameter_memory, "SMALL", 0)
    monkeypatch.setattr(parameter_memory, "available_memory", lambda: 10**6)
    DiT(dim=16, depth=1, heads=1)
    with pytest.raises(ValueError, match=r"^depth must fit into memory, got 40, .* at most 977 KiB of parameters"):
        DiT(dim=16, depth=40, heads=1)
    with torch.device("meta"):
        assert len(DiT(dim=16, depth=40, heads=1).blocks) == 40

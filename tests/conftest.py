"""What all tests share: one thread, so that parallel workers do not fight, and a small network."""

import pytest
import torch

# Here and not below faults/: of several processes the one that prints loads this file only.
from faults.campaign import campaign, pytest_runtest_logreport, pytest_terminal_summary  # noqa: F401

from asyncdiff.networks.dit import DiT

torch.set_num_threads(1)


def awaken(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter a random value: at initialisation most of a DiT is switched off by zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return network


@pytest.fixture
def small_dit() -> DiT:
    """A DiT for 8x8 gray images with ten classes, awake, in float64."""
    torch.manual_seed(0)
    network = DiT(channels=1, patch_size=2, dim=32, depth=2, heads=4, classes=10).double()
    return awaken(network).eval()

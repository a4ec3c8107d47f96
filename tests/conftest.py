"""Shared setup: one thread, so that parallel workers do not compete for cores, and fixtures with small networks."""

import hashlib
import json

import pytest
import torch

# Imported here and not below faults/, since the process of pytest-xdist that prints loads this file only.
from cli.command_errors import expect_error  # noqa: F401
from cpu_limit import pytest_addoption, pytest_runtest_call, pytest_runtest_setup  # noqa: F401
from faults.campaign import campaign, pytest_runtest_logreport, pytest_terminal_summary  # noqa: F401
from small_runs import color_run, digits_run, randomize_weights  # noqa: F401

from asyncdiff.networks.dit import DiT

torch.set_num_threads(1)


@pytest.fixture
def small_dit() -> DiT:
    """A DiT for 8x8 grayscale images with ten classes, with random weights, in float64."""
    torch.manual_seed(0)
    network = DiT(channels=1, patch_size=2, dim=32, depth=2, heads=4, classes=10).double()
    return randomize_weights(network).eval()


@pytest.fixture(scope="session")
def alexnet(tmp_path_factory) -> str:
    """Command-line option for LPIPS with random weights in a file."""
    from torchvision import models

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = models.alexnet(weights=None).features.state_dict(prefix="features.")
    file = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(state, file)
    arguments = {"weights": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    return json.dumps({"class_path": "asyncdiff.evaluation.features.lpips.LPIPS", "init_args": arguments})


@pytest.fixture(scope="session")
def latent_run(tmp_path_factory):
    """A finished run on latents of a tiny autoencoder: its trainer and its folder."""
    from latent_models import train_on_latents

    return train_on_latents(tmp_path_factory.mktemp("latents"))

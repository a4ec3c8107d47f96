"""Compiled networks match eager ones, and are compiled once for any number of distinct levels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncdiff import AsyncDiffusion
from asyncdiff.networks.dit import DiT

HERE = Path(__file__).parent


def run_compiled(*arguments, products: bool = False) -> dict:
    command = [sys.executable, str(HERE / "compiled_network.py"), json.dumps([*arguments, products])]
    path = os.pathsep.join(str(p) for p in (HERE.parents[1], HERE.parent))
    environment = os.environ | {"JAXTYPING_DISABLE": "1", "PYTHONPATH": path}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"rope": True, "qk_norm": True}, {"joint_labels": True}])
def test_compiled_dit_matches_eager_and_compiles_once(options):
    """One graph for training, however many levels there are; two for sampling and two for validation, one level an
    image or a map, however many images."""
    report = run_compiled("dit", options, "aot_eager", [4], True)
    assert report["frames"] == {"4": 1}
    assert report["all"] <= 5
    assert report["difference"] < 2e-4


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"joint_labels": True}])
def test_compiled_dit_sums_gradients_by_products(options):
    """As on a GPU, in bfloat16: one graph for training, however many levels there are; another for images with as many
    levels as tokens, for which products save nothing."""
    report = run_compiled("dit", options, "aot_eager", [4], False, products=True)
    assert report["frames"] == {"4": 1 + options.get("joint_labels", False)}
    assert report["difference"] < 0.05  # bfloat16, relative to the largest entry of each tensor


@pytest.mark.slow
def test_inductor_matches_eager():
    report = run_compiled("dit", {"checkpointing": True}, "inductor", [4], True)
    assert report["frames"] == {"4": 1}
    assert report["difference"] < 2e-3  # float32 sums in another order, relative to the largest entry of each tensor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "backend", "grids"),
    [
        ({"multipliers": [1, 2]}, "eager", [8]),
        ({}, "aot_eager", [4, 1, 8]),
        ({"checkpointing": True}, "aot_eager", [4]),
        ({"groups": 4}, "aot_eager", [4]),
    ],
)
def test_compiled_unet_matches_eager_and_compiles_once(options, backend, grids):
    """One graph for each grid: finer than all resolutions except the first, coarser, or one level per image."""
    report = run_compiled("unet", {"multipliers": [1, 2, 3]} | options, backend, grids, False)
    assert report["frames"] == {str(grid): 1 for grid in grids}
    assert report["difference"] < 2e-4


def test_a_run_compiles_its_network_and_a_checkpoint_does_not_require_it(monkeypatch):
    compiled = []
    monkeypatch.setattr(DiT, "compile", lambda self, *_, **__: compiled.append(self))
    model = AsyncDiffusion(DiT(channels=1, dim=32, depth=1, heads=4), image_size=8, compiled=True)
    assert compiled == [model.network]
    checkpoint: dict = {}
    model.on_save_checkpoint(checkpoint)
    assert checkpoint["recipe"]["init_args"]["compiled"] is False

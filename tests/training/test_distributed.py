"""Two processes give the same images, distances and losses as one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asyncdiff import AsyncDiffusion

HERE = Path(__file__).resolve().parent


def evaluated(folder: Path, processes: int) -> dict:
    out = folder / f"{processes}.pt"
    environment = os.environ | {
        "PYTHONPATH": f"{HERE.parents[1]}:{HERE.parent}",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(HERE / "distributed_run.py"), str(processes), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    return evaluated(folder, 1), evaluated(folder, 2)


@pytest.mark.slow
def test_images_do_not_depend_on_the_number_of_processes(one_and_two):
    one, two = (result["images"] for result in one_and_two)
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_distances_count_every_image_once(one_and_two):
    one, two = (result["frechet"] for result in one_and_two)
    assert set(one) == {"frechet/pixels", "frechet/pixels_real", "frechet/pixels_inpainted"}
    assert two == pytest.approx(one, rel=1e-6)


@pytest.mark.slow
def test_predictions_are_the_same_files(one_and_two):
    """A task with five seeds in batches of two, split over the processes: the same files byte for byte."""
    one, two = ({f.name: f.read_bytes() for f in Path(r["predicted"]).glob("*.png")} for r in one_and_two)
    assert len(one) == 6  # with their contact sheet
    assert two == one


@pytest.mark.slow
def test_losses_count_every_image_once(one_and_two):
    one, two = (result["losses"] for result in one_and_two)
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_a_fit_runs_to_its_end_and_its_checkpoint_loads(one_and_two):
    for result in one_and_two:
        model = AsyncDiffusion.load_from_checkpoint(result["trained"], weights="ema")
        assert model.generate([0], [1]).isfinite().all()
        images = Path(result["trained"]).parents[1] / "images"
        assert {p.name for p in images.iterdir()} == {"samples.png", "samples_0000001.png", "samples_0000002.png"}

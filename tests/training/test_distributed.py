"""Two processes give the same images, distances and losses as one process."""

from pathlib import Path

import distributed_run
import pytest
import torch
from processes import run_script

from asyncdiff import AsyncDiffusion

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    distributed_run.main(1, str(folder / "1.pt"))
    run_script("distributed_run.py", 2, folder / "2.pt")
    return [torch.load(folder / f"{processes}.pt", weights_only=True) for processes in (1, 2)]


def test_images_do_not_depend_on_the_number_of_processes(one_and_two):
    one, two = (result["images"] for result in one_and_two)
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_distances_and_losses_count_every_image_once(one_and_two):
    one, two = one_and_two
    assert set(one["frechet"]) == {"frechet/pixels", "frechet/pixels_real", "frechet/pixels_inpainted"}
    assert two["frechet"] == pytest.approx(one["frechet"], rel=1e-6)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)


def test_predictions_are_the_same_files(one_and_two):
    """A task with five seeds in batches of two, split over the processes: the same files byte for byte."""
    one, two = ({f.name: f.read_bytes() for f in Path(r["predicted"]).glob("*.png")} for r in one_and_two)
    assert len(one) == 6  # with their contact sheet
    assert two == one


def test_a_fit_runs_to_its_end_and_its_checkpoint_loads(one_and_two):
    for result in one_and_two:
        model = AsyncDiffusion.load_from_checkpoint(result["trained"], weights="ema")
        assert model.generate([0], [1]).isfinite().all()
        images = Path(result["trained"]).parents[1] / "images"
        assert {p.name for p in images.iterdir()} == {"samples.png", "samples_0000001.png", "samples_0000002.png"}

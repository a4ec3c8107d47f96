"""Files that `predict` writes: images by seed, a contact sheet for a task; existing files are never overwritten."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from small_runs import quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import ImageWriter
from asyncdiff.checkpoints.run_lock import hold
from asyncdiff.noise.masks import Half
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.tasks import Inpaint
from asyncdiff.tasks.photos import read_photo, to_bytes, to_model
from asyncdiff.training import PredictSettings


def module(**options) -> AsyncDiffusion:
    predict = PredictSettings(batch_size=2, **options)
    return AsyncDiffusion(small_dit(classes=3), sampler=Sampler(steps=2), image_size=8, predict=predict)


def predict(model, root, writer=None):
    return quiet_trainer(root, callbacks=[writer or ImageWriter()]).predict(model)


def names(folder):
    return sorted(f.name for f in folder.iterdir() if f.is_file())


def test_predictions_are_the_images_of_their_seeds(tmp_path):
    model = module(count=5)
    drawn = torch.cat(predict(model, tmp_path))
    assert names(tmp_path / "predictions") == [f"{i:06d}_class{i % 3}.png" for i in range(5)]
    expected = model.generate(range(5), [0, 1, 2, 0, 1])
    assert torch.allclose(drawn, expected, atol=1e-5)
    for i in range(5):
        written = read_photo(tmp_path / "predictions" / f"{i:06d}_class{i % 3}.png", 1)
        assert torch.equal(written, to_bytes(drawn[i]))


def test_a_second_run_is_numbered_and_a_given_folder_refused(tmp_path):
    model = module(count=1)
    predict(model, tmp_path)
    before = (tmp_path / "predictions" / "000000_class0.png").read_bytes()
    model.predict = PredictSettings(count=1, labels=[2])
    predict(model, tmp_path)
    assert names(tmp_path / "predictions-2") == ["000000_class2.png"]
    assert (tmp_path / "predictions" / "000000_class0.png").read_bytes() == before
    with pytest.raises(ValueError, match="output folder .*predictions already contains images"):
        predict(model, tmp_path, ImageWriter(str(tmp_path / "predictions")))


def test_a_folder_into_which_another_process_draws_is_refused_or_passed_over(tmp_path):
    with hold(tmp_path / "predictions", "being written"):
        with pytest.raises(ValueError, match=r"predictions is being written by process \d+ on "):
            predict(module(count=1), tmp_path, ImageWriter(str(tmp_path / "predictions")))
        predict(module(count=1), tmp_path)
    assert names(tmp_path / "predictions-2") == ["000000_class0.png"]
    assert not (tmp_path / "predictions").exists()


def test_a_task_has_its_own_folder_and_a_sheet(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    model = module(count=3, task=Inpaint(str(tmp_path / "photo.png"), "half"))
    predict(model, tmp_path)
    folder = tmp_path / "predictions" / "inpaint"
    assert names(folder) == [*(f"photo_seed{i}.png" for i in range(3)), "sheet.png"]
    truth = read_photo(tmp_path / "photo.png", 1)
    expected = model.inpaint(to_model(truth), Half()(8, 8), seeds=range(3))
    for i in range(3):
        written = read_photo(folder / f"photo_seed{i}.png", 1)
        assert torch.equal(written[:, :, :4], truth[:, :, :4])
        assert (written.int() - to_bytes(expected[i]).int()).abs().max() <= 1


def test_processes_share_the_requests_without_overlap(tmp_path, monkeypatch):
    model = module(count=5)
    every = [request.seed for request in model.predict_requests()]
    model.trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(type(model), "global_rank", rank)
        monkeypatch.setattr(Trainer, "world_size", 3)
        shares += [request.seed for batch in model.predict_dataloader() for request in batch]
    assert sorted(shares) == every == list(range(5))

"""Warm start: which weights are loaded, what is reported, and what is refused."""

import logging

import pytest
import torch
from small_runs import quiet_trainer, small_dit

from asyncdiff.noise.processes import CosineVP
from asyncdiff.training import OptimizerSettings
from asyncdiff.training.lightning_module import AsyncDiffusion
from asyncdiff.training.warm_start import load_pretrained
from datamodules import Digits


def model(seed: int, network: dict | None = None, **options) -> AsyncDiffusion:
    return AsyncDiffusion(small_dit(seed=seed, **(network or {})), image_size=8, **options)


@pytest.fixture
def file(digits_run):
    """Return the checkpoint of a run with an EMA."""
    return digits_run / "checkpoints" / "last.ckpt"


@pytest.fixture
def report(caplog):
    """Return a function that lists the lines printed by loading."""
    caplog.set_level(logging.INFO)

    def lines() -> list[str]:
        text = "\n".join(record.getMessage() for record in caplog.records)
        return [line for line in text.splitlines() if line.startswith("pretrained: ")]

    return lines


def test_a_fit_starts_from_the_ema_weights(file, tmp_path, report):
    fresh = model(1, pretrained=str(file), optimizer=OptimizerSettings(learning_rate=1e-12))
    start = AsyncDiffusion.load_from_checkpoint(file).state_dict()
    raw = AsyncDiffusion.load_from_checkpoint(file, weights="raw").state_dict()
    run = quiet_trainer(tmp_path, max_steps=1)
    run.fit(fresh, datamodule=Digits(batch_size=32))
    assert run.global_step == 1  # of its own
    assert all(torch.allclose(weight, start[name], atol=1e-7) for name, weight in fresh.state_dict().items())
    assert not all(torch.allclose(weight, raw[name], atol=1e-5) for name, weight in fresh.state_dict().items())
    count = len(fresh.denoiser.state_dict())
    assert report() == [f"pretrained: loaded {count} of {count} weights from {file}"]


def test_a_resumed_run_keeps_its_own_weights(file, tmp_path):
    """The pretrained file may even be gone."""
    again = model(2, pretrained=str(tmp_path / "gone.ckpt"), optimizer=OptimizerSettings(learning_rate=1e-12))
    run = quiet_trainer(tmp_path, max_steps=3)
    run.fit(again, datamodule=Digits(batch_size=32), ckpt_path=file, weights_only=True)
    raw = AsyncDiffusion.load_from_checkpoint(file, weights="raw").state_dict()
    assert all(torch.allclose(weight, raw[name], atol=1e-7) for name, weight in again.state_dict().items())


def test_checkpoints_do_not_record_pretrained(file):
    checkpoint = {}
    model(0, pretrained=str(file)).on_save_checkpoint(checkpoint)
    assert checkpoint["recipe"]["init_args"]["pretrained"] is None


def test_missing_weights_and_differences_are_reported(file, report):
    wider = model(1, {"uncertainty": True, "depth": 2}, process=CosineVP())
    before = {name: weight.clone() for name, weight in wider.state_dict().items()}
    load_pretrained(wider.model, file)
    for name, weight in wider.state_dict().items():
        assert torch.equal(weight, before[name]) == ("uncertainty_head" in name or "blocks.1" in name)
    first, missing, *differences = report()
    assert first.startswith("pretrained: loaded 21 of 33 weights from ")
    assert missing.startswith("pretrained: not in the checkpoint, initialized: network.blocks.1.attention.qkv.weight, ")
    assert missing.endswith(" and 8 more")
    assert differences == [
        "pretrained: network.depth is 2, but 1 in the checkpoint",
        "pretrained: network.uncertainty is True, but False in the checkpoint",
        "pretrained: process is asyncdiff.noise.CosineVP, but asyncdiff.noise.RectifiedFlow in the checkpoint",
    ]


def test_unused_weights_are_reported(file, report):
    load_pretrained(model(1, {"classes": 0}).model, file)
    assert "pretrained: not in the model, ignored: network.label_embedding.table.weight" in report()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="pretrained must be an existing checkpoint or export, got .*none.ckpt: check the path"
    ):
        load_pretrained(model(1).model, tmp_path / "none.ckpt")
    recipe = {"class_path": "asyncdiff.AsyncDiffusion", "init_args": {}}
    torch.save({"state_dict": {"other.weight": torch.ones(2)}, "recipe": recipe}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="pretrained .*other.ckpt contains no weights of this network"):
        load_pretrained(model(1).model, tmp_path / "other.ckpt")

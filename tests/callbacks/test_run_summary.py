"""What a run prints at its start, and the epoch under which it logs."""

from pathlib import Path

import pytest
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from small_runs import quiet_trainer
from torch.utils.data import DataLoader, IterableDataset

from asyncdiff.ablation.tensorboard import read_curves
from asyncdiff.callbacks import RunSummary
from asyncdiff.cli.train import main

RUN = """
data: {class_path: datamodules.Digits, init_args: {batch_size: 256}}
model:
  network:
    class_path: asyncdiff.networks.DiT
    init_args: {channels: 1, patch_size: 4, dim: 16, depth: 1, heads: 1, classes: 10}
  image_size: 8
  sampler: {class_path: asyncdiff.sampling.Sampler, init_args: {steps: 2}}
trainer:
  accelerator: cpu
  max_steps: 8
  log_every_n_steps: 1
  limit_val_batches: 0
  limit_test_batches: 1
  enable_progress_bar: false
  logger:
    class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args: {save_dir: "${trainer.default_root_dir}", name: "", version: ""}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: "${trainer.default_root_dir}/checkpoints", save_last: true, save_top_k: 0}
"""
STEPS_PER_EPOCH = 5  # 1,438 images in batches of 256, the incomplete one left out


def start(command: str, run: Path, *options: str) -> None:
    file = run.with_suffix(".yaml")
    file.write_text(RUN)
    main([command, "--config", str(file), "--trainer.default_root_dir", str(run), *options])


def epochs(run: Path) -> dict[int, float]:
    return dict(read_curves(run)["epoch"])


@pytest.mark.filterwarnings("ignore")
def test_a_run_prints_model_data_hardware_and_steps_once(tmp_path, capfd):
    run = tmp_path / "run"
    start("fit", run)
    out, err = capfd.readouterr()
    parameters = "trainable parameters, 8x8 pixels of 1 channel, 10 classes"
    assert out.startswith("model: DiT, ")
    assert parameters in out.splitlines()[0]
    assert out.splitlines()[1:4] == [
        "data: Digits, 1,438 training images, 256 per step",
        "hardware: CPU, precision 32-true",
        "steps: starts at step 1, ends after step 8",
    ]
    for noise in ("FLOPs", "TPU", "Seed set", "Modules in"):
        assert noise not in out + err
    start("fit", run, "--auto_resume", "true", "--trainer.max_steps", "12")
    assert "steps: resumes after step 8, ends after step 12" in capfd.readouterr().out
    start("test", run, "--ckpt_path", "last")
    assert f"weights: {run}/checkpoints/last.ckpt, step 12" in capfd.readouterr().out
    # A step belongs to the epoch in which it was taken, also after a run that was extended; `test` logs at that epoch.
    expected = {step: step // STEPS_PER_EPOCH for step in range(12)}
    assert epochs(run) == expected | {12: 2}


class Stream(IterableDataset):
    """Images without end, which say so when they are counted."""

    def __iter__(self):
        raise NotImplementedError

    def __len__(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("limits", "end"),
    [
        ({"max_steps": 1000}, "after step 1,000"),
        ({"max_epochs": 1}, "after 1 epoch"),
        ({"max_steps": 1000, "max_epochs": 2}, "after step 1,000 or after 2 epochs"),
        ({"max_time": "00:01:00:00", "max_epochs": -1}, "at trainer.max_time"),
    ],
)
def test_objects_of_users_are_described_and_every_limit_is_named(tmp_path, limits, end, capsys):
    trainer = quiet_trainer(tmp_path, **{"max_epochs": None, **limits})
    trainer.fit_loop._combined_loader = CombinedLoader(DataLoader(Stream()))
    RunSummary().on_train_start(trainer, LightningModule())
    assert capsys.readouterr().out.splitlines() == [
        "model: LightningModule, 0 trainable parameters",
        "data: Stream, training images",
        "hardware: CPU, precision 32-true",
        f"steps: starts at step 1, ends {end}",
    ]


@pytest.mark.filterwarnings("ignore")
def test_lightnings_table_is_printed_on_request(tmp_path, capfd):
    start("fit", tmp_path / "run", "--trainer.enable_model_summary", "true", "--trainer.max_steps", "1")
    out, _ = capfd.readouterr()
    assert "Total params" in out
    assert "model: DiT" not in out

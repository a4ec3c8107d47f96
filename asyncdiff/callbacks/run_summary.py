"""Print what a run consists of when it starts: model, data, hardware and steps."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from asyncdiff.training.lightning_internals import logged_step
from asyncdiff.training.lightning_module import AsyncDiffusion
from datamodules.base import ImageDataModule


class RunSummary(Callback):
    """Prints a line each about the model, the data, the hardware and the steps of a run before its first step.

    `validate`, `test` and `predict` print the checkpoint and its step. `train.py` adds this callback by default, in
    place of Lightning's table of modules, unless `trainer.enable_model_summary` is given.

    Args:
        precision_note: printed after the precision, such as why it was chosen.
    """

    def __init__(self, precision_note: str = ""):
        self.precision_note = precision_note

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the lines, after a resumed run has found its step."""
        lines = {
            "model": _model(pl_module),
            "data": _data(trainer),
            "hardware": _hardware(trainer, self.precision_note),
        }
        lines["steps"] = _steps(trainer)
        for name, text in lines.items():
            print(f"{name}: {text}", flush=True)

    @rank_zero_only
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print which weights are evaluated, unless this is a validation during training."""
        if trainer.state.fn != TrainerFn.FITTING and trainer.ckpt_path:
            step = logged_step(trainer)
            hardware = _hardware(trainer, self.precision_note)
            print(f"weights: {trainer.ckpt_path}, step {step:,}\nhardware: {hardware}", flush=True)

    on_test_start = on_predict_start = on_validation_start


def _model(module: LightningModule) -> str:
    """Describe the network and what it generates."""
    parameters = f"{sum(p.numel() for p in module.parameters() if p.requires_grad):,} trainable parameters"
    if not isinstance(module, AsyncDiffusion):
        return f"{type(module).__name__}, {parameters}"
    channels, height, width = module.shape
    space = "pixels" if module.codec is None else "latents"
    network = getattr(module.network, "_orig_mod", module.network)
    labels = f"{module.model.classes} classes" if module.model.classes else "no classes"
    channels_text = f"{channels} channel{'s' if channels > 1 else ''}"
    return f"{type(network).__name__}, {parameters}, {height}x{width} {space} of {channels_text}, {labels}"


def _data(trainer: Trainer) -> str:
    """Describe the training images and how many of them a step takes."""
    data: Any = getattr(trainer, "datamodule", None)
    images: Any = getattr(trainer.train_dataloader, "dataset", None)
    try:
        count = f"{len(images):,} training images"
    except Exception:  # a stream has no length, and tells so in many ways
        count = "training images"
    if not isinstance(data, ImageDataModule):
        return f"{type(data or images).__name__}, {count}"
    per_step = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    return f"{type(data).__name__}, {count}, {per_step:,} per step"


def _hardware(trainer: Trainer, precision_note: str) -> str:
    """Describe the devices and the precision, and point to a GPU that is not used."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    count = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    nodes = f" on {trainer.num_nodes} nodes" if trainer.num_nodes > 1 else ""
    other = torch.accelerator.current_accelerator(check_available=True)
    unused = f" (not used: {other.type.upper()}, see trainer.accelerator)" if other and device.type == "cpu" else ""
    note = f" ({precision_note})" if precision_note else ""
    return f"{count}{name}{nodes}, precision {trainer.precision}{note}{unused}"


def _steps(trainer: Trainer) -> str:
    """Describe where the run starts and where it ends."""
    done = trainer.global_step
    start = f"resumes after step {done:,}" if done else "starts at step 1"
    steps, epochs = trainer.max_steps, trainer.max_epochs or 0
    ends = [f"after step {steps:,}"] if steps > 0 else []
    ends += [f"after {epochs:,} epoch{'s' if epochs > 1 else ''}"] if epochs > 0 else []
    return f"{start}, ends {' or '.join(ends) or 'at trainer.max_time'}"

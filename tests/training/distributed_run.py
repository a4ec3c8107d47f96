"""Run by test_distributed.py: evaluate a fixed model on N processes and save the results of rank 0."""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from small_runs import Pixels, quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA, DenoisingStrip, Frechet, ImageWriter, InpaintingGrid, SampleGrid
from asyncdiff.noise.masks import Half
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.sampling.solvers import DDIM
from asyncdiff.tasks import Autoregress
from asyncdiff.training import PredictSettings
from datamodules import Digits


class Draw(Callback):
    """Draws every image on every process."""

    def __init__(self, callbacks):
        self.callbacks, self.images = callbacks, []

    def on_test_end(self, trainer, pl_module):
        self.images = [callback.draw(trainer, pl_module) for callback in self.callbacks]


def main(processes: int, out: str) -> None:
    torch.set_num_threads(1)
    module = AsyncDiffusion(small_dit(), sampler=Sampler(AsyncPatch(), DDIM(0.25), steps=4), image_size=8)
    # 7 and 5 images: neither is a multiple of two processes.
    draw = Draw([SampleGrid(count=7, columns=4), InpaintingGrid(count=5, columns=3), DenoisingStrip(count=1, frames=3)])
    frechet = Frechet(Pixels(), count=33, mask=Half(), batch_size=8)
    folder = Path(out).parent / f"run{processes}"
    strategy = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    trainer = quiet_trainer(folder, callbacks=[draw, frechet], **strategy)
    trainer.test(module, datamodule=Digits(batch_size=50), verbose=False)
    losses = {name: value.item() for name, value in trainer.callback_metrics.items()}

    task = Autoregress("shuffled", overlap=0.5, steps_per_patch=2)
    module.predict = PredictSettings(task, count=5, batch_size=2)
    written = Path(out).parent / f"predicted{processes}"
    writing = quiet_trainer(folder, callbacks=[ImageWriter(str(written))], **strategy)
    writing.predict(module, return_predictions=False)

    keep = ModelCheckpoint(save_last=True, every_n_train_steps=2)
    callbacks = [EMA(0.9), SampleGrid(count=3, every_n_steps=1), Frechet(Pixels(), count=9, every_n_steps=2), keep]
    options = {"max_steps": 2, "limit_val_batches": 2, "val_check_interval": 1, "enable_checkpointing": True}
    fit = quiet_trainer(folder, callbacks=callbacks, **options, **strategy)
    fit.fit(module, datamodule=Digits(batch_size=50 // processes))
    if trainer.is_global_zero:
        result = {"images": draw.images, "frechet": frechet.results, "losses": losses}
        torch.save(result | {"trained": keep.last_model_path, "predicted": str(written)}, out)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

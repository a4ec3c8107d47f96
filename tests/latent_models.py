"""Small latent models: random tiny autoencoders in files, and a run on their latents."""

from pathlib import Path

import numpy as np
import torch
from conftest import randomize_weights
from safetensors.torch import save_file
from small_runs import quiet_trainer

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import DenoisingStrip, Frechet, InpaintingGrid, SampleGrid
from asyncdiff.latents import TinyAutoencoder
from asyncdiff.latents.taesd import build_decoder, build_encoder
from asyncdiff.networks import DiT
from asyncdiff.noise import Half
from asyncdiff.sampling import DDIM, Sampler
from asyncdiff.training import OptimizerSettings
from datamodules import Arrays


def tiny_files(folder, channels=4, pooled=False):
    """Write a random tiny autoencoder of width 16 into two files, and return it."""
    torch.manual_seed(0)
    for name, make in (("encoder", build_encoder), ("decoder", build_decoder)):
        save_file(make(3, channels, 16, pooled=pooled).state_dict(), folder / f"{name}.safetensors")
    return TinyAutoencoder(str(folder / "encoder.safetensors"), str(folder / "decoder.safetensors"))


def model_of(codec, channels, size, **network):
    torch.manual_seed(0)
    network = randomize_weights(DiT(channels=channels, patch_size=2, dim=32, depth=1, heads=2, **network))
    sampler = Sampler(solver=DDIM(0.25), steps=3)
    optimizer = OptimizerSettings(warmup_steps=1)
    return AsyncDiffusion(network, sampler=sampler, codec=codec, image_size=size, optimizer=optimizer)


def data_of(folder, codec):
    data = Arrays(str(folder), size=4, channels=4, batch_size=8)
    data.codec = codec.fingerprint()
    return data


class Means(torch.nn.Module):
    dim = 3

    def forward(self, images):
        assert images.shape[1:] == (3, 32, 32)
        return images.mean((2, 3))


def train_on_latents(folder: Path):
    """Train on latents of a tiny autoencoder with image callbacks; return the trainer and the folder of the run."""
    codec = tiny_files(folder)
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    np.save(folder / "train.npy", codec.encode(images).numpy()[:16])
    np.save(folder / "val.npy", codec.encode(images).numpy()[16:])
    callbacks = [
        SampleGrid(count=4, columns=2),
        InpaintingGrid(Half(), count=2, columns=1),
        DenoisingStrip(count=1, frames=3),
        Frechet(Means(), mask=Half(), count=8, batch_size=4),
    ]
    trainer = quiet_trainer(folder, max_steps=1, callbacks=callbacks)
    trainer.fit(model_of(codec, 4, 4), datamodule=data_of(folder, codec))
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return trainer, folder

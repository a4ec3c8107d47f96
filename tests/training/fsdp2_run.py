"""Run by test_fsdp2.py on two processes: train under a strategy, with all callbacks that use the network."""

import sys
from pathlib import Path

import torch
from conftest import randomize_weights
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from small_runs import Pixels, quiet_trainer, small_dit
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA, Frechet, Likelihood, SampleGrid, Throughput
from asyncdiff.networks.unet import UNet
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.training import OptimizerSettings
from asyncdiff.training.fsdp2 import full_tensors, local_shard, shard, unshard
from datamodules import Digits

STEPS, HALF = 4, 2


def network(name: str) -> nn.Module:
    if name == "dit":
        return small_dit(depth=2, uncertainty=True)
    torch.manual_seed(0)
    return randomize_weights(
        UNet(channels=1, width=8, multipliers=(1, 2), blocks=1, head_dim=8, classes=10, level_patch_size=2)
    )


def module(name: str, **options) -> AsyncDiffusion:
    defaults = {"sampler": Sampler(steps=2), "image_size": 8, "optimizer": OptimizerSettings(1e-2, warmup_steps=2)}
    return AsyncDiffusion(network(name), **defaults, **options)


class Types(Callback):
    """Records in which types a step computes, and whether evaluations have the exact weights."""

    def __init__(self):
        self.types = {}

    def on_train_batch_start(self, trainer, module, *_):
        block, embed = module.network.blocks[0], module.network.embed

        def record(block, args):
            if not torch.is_grad_enabled():  # an evaluation
                return
            self.types = {"residual stream": args[0].dtype, "embedding": embed.weight.dtype}
            self.types["block"] = next(block.parameters()).dtype

        self.hook = block.register_forward_pre_hook(record)

    def on_train_batch_end(self, trainer, module, *_):
        self.hook.remove()
        network = module.network
        shards = dict(network.named_parameters())
        exact = full_tensors({name: local_shard(p.detach()) for name, p in shards.items()}, shards)
        with unshard(network):
            assert all(torch.equal(p, exact[name]) for name, p in network.named_parameters())
            network.state_dict()  # as for a checkpoint, which shards the network
        assert all(p.dtype == torch.float32 for p in network.parameters())


def trainer(folder: Path, strategy: str, callbacks: list, steps: int, precision: str = "32-true") -> Trainer:
    torch.manual_seed(0)
    return quiet_trainer(
        folder,
        devices=2,
        strategy=strategy,
        callbacks=callbacks,
        max_steps=steps,
        precision=precision,
        gradient_clip_val=1.0,
        val_check_interval=HALF,
        check_val_every_n_epoch=None,
        limit_val_batches=2,
        log_every_n_steps=1,
        enable_checkpointing=True,
        logger=TensorBoardLogger(str(folder), name="", version=""),
    )


def gradient_difference() -> float:
    """Return the largest difference of the gradients if blocks are gathered in bfloat16."""
    found = []
    for is_sharded in (False, True):
        chosen = small_dit(depth=2, uncertainty=True)
        if is_sharded:
            shard(chosen, init_device_mesh("cpu", (2,)), block_dtype=torch.bfloat16)
        torch.manual_seed(1)  # the same images on both processes
        x, t = torch.randn(8, 1, 8, 8), torch.rand(8, 4, 4)
        with torch.autocast("cpu", torch.bfloat16):
            v, logvar = chosen(x, t, torch.arange(8))
        ((v - x).square().mean() + logvar.mean()).backward()
        parameters = dict(chosen.named_parameters())
        found.append(full_tensors({name: local_shard(p.grad) for name, p in parameters.items()}, parameters))
    return max((found[0][name] - found[1][name]).abs().max().item() for name in found[0])


def callbacks(folder: Path) -> list:
    return [
        EMA(0.9),
        SampleGrid(count=3, every_n_steps=HALF),
        Frechet(Pixels(), count=9, every_n_steps=HALF),
        Likelihood(points=2, count=6),
        Throughput(),
        ModelCheckpoint(str(folder), filename="{step}", every_n_train_steps=HALF, save_top_k=-1),
    ]


def main(strategy: str, folder: Path) -> None:
    results = {}
    for name in ("dit", "unet"):
        data = {"datamodule": Digits(batch_size=16)}
        active = callbacks(folder / name)
        run = trainer(folder / name, strategy, active, STEPS)
        run.fit(module(name), **data)
        likelihood = next(callback for callback in active if isinstance(callback, Likelihood))
        counted = next(callback for callback in active if isinstance(callback, Throughput))._flops or 0
        measured = {**run.callback_metrics, **likelihood.results, "flops": counted}
        results[name] = {tag: float(value) for tag, value in measured.items()}
    # 359 images for two processes in batches of 179: one of them has a batch more, and must not wait for the other.
    uneven = trainer(folder / "uneven", strategy, [], STEPS)
    uneven.limit_val_batches = 1.0
    uneven.validate(module("dit"), datamodule=Digits(batch_size=16, eval_batch_size=179), verbose=False)
    results["uneven"] = {tag: float(value) for tag, value in uneven.callback_metrics.items()}
    # In bfloat16, once more.
    folder16, types = folder / "bf16", Types()
    half = trainer(folder16, strategy, [*callbacks(folder16), types], STEPS, "bf16-mixed")
    half.fit(module("dit"), datamodule=Digits(batch_size=16))
    likelihood = next(callback for callback in half.callbacks if isinstance(callback, Likelihood))
    results["bf16"] = {tag: float(value) for tag, value in {**half.callback_metrics, **likelihood.results}.items()}
    results["types"] = {name: str(dtype) for name, dtype in types.types.items()}
    results["gradient_difference"] = gradient_difference()
    # Resume from the middle, and start a new run from the weights alone, under the same strategy.
    second = folder / "resumed"
    resumed = trainer(second, strategy, callbacks(second), STEPS)
    resumed.fit(module("dit"), ckpt_path=str(folder / "dit" / f"step={HALF}.ckpt"), datamodule=Digits(batch_size=16))
    tuned = folder / "tuned"
    start = module("dit", pretrained=str(folder / "dit" / f"step={STEPS}.ckpt"))
    keep = ModelCheckpoint(str(tuned), filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tuned, strategy, [EMA(0.9), keep], 1).fit(start, datamodule=Digits(batch_size=16))
    if resumed.is_global_zero:
        torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for strategy in ("ddp", "fully_shard"):
        main(strategy, Path(sys.argv[1]) / strategy)

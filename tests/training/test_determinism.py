"""`trainer.deterministic: true` works: a training step has no operator without a deterministic kernel on GPUs."""

from collections import Counter

import pytest
import torch
from pretend_gpu.pretended_cuda import pretended_cuda
from small_runs import quiet_trainer, randomize_weights, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA
from asyncdiff.callbacks.loss_by_level import sum_by_bin
from asyncdiff.networks import UNet
from asyncdiff.noise import level_samplers, paths
from asyncdiff.randomness import normal
from datamodules import Digits

# Operators for which torch.use_deterministic_algorithms raises an error on a GPU, as its documentation lists them.
REFUSED = {
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
    *("max_unpool2d", "max_unpool3d", "upsample_linear1d_backward", "upsample_bilinear2d_backward"),
    *("upsample_bicubic2d_backward", "upsample_trilinear3d_backward", "reflection_pad1d_backward"),
    *("reflection_pad2d_backward", "reflection_pad3d_backward", "nll_loss2d_forward", "_ctc_loss_backward"),
    *("put_", "histc", "bincount", "median", "nanmedian", "grid_sampler_2d_backward", "grid_sampler_3d_backward"),
}


def unet() -> UNet:
    return randomize_weights(UNet(channels=1, width=8, multipliers=(1, 2), blocks=1, head_dim=8, classes=10))


@pytest.mark.parametrize(
    "network",
    [
        lambda: small_dit(uncertainty=True, rope=True, qk_norm=True, dropout=0.1),
        lambda: small_dit(joint_labels=True),
        unet,
    ],
    ids=["dit", "joint labels", "unet"],
)
@pytest.mark.parametrize(
    "levels",
    [level_samplers.AlongPath(paths.AsyncPatch()), level_samplers.SumBeta(), level_samplers.Shared()],
    ids=lambda levels: type(levels).__name__,
)
def test_a_step_has_no_operator_that_deterministic_algorithms_refuse(network, levels):
    model = AsyncDiffusion(network(), levels, image_size=8)
    model.log = lambda *_, **__: None
    with pretended_cuda() as watch:
        model.to("cuda")
        batch = {"image": normal((4, 1, 8, 8), device="cuda").clamp(-1, 1), "label": torch.arange(4).cuda()}
        step = model.training_step(batch, 0)
        step["loss"].backward()
        sum_by_bin(step["t"], step["error"], 8)
    assert sum(watch.kernels.values()) > 100
    assert Counter({name: count for name, count in watch.kernels.items() if name in REFUSED}) == {}


def test_deterministic_runs_on_a_cpu_are_the_usual_ones(tmp_path):
    found = []
    for deterministic in (False, True, True):
        ema = EMA(0.9)
        trainer = quiet_trainer(tmp_path, max_steps=3, callbacks=[ema], deterministic=deterministic)
        trainer.fit(AsyncDiffusion(small_dit(), image_size=8), datamodule=Digits(batch_size=16))
        found.append(ema.average)
    torch.use_deterministic_algorithms(False)  # which Lightning leaves on
    usual, *others = found
    assert all(torch.equal(other[name], usual[name]) for other in others for name in usual)

"""Small run for the page: a randomly initialized network for 8x8 color images in patches of 2x2."""

from small_runs import save_untrained, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.sampling import Sampler

DIMENSIONS = {"channels": 3, "patch_size": 2, "dim": 32, "depth": 1, "heads": 2, "classes": 3}
CONFIG = {
    "model": {
        "network": {"class_path": "asyncdiff.networks.DiT", "init_args": DIMENSIONS},
        "sampler": {"class_path": "asyncdiff.sampling.Sampler", "init_args": {"steps": 4}},
        "image_size": 8,
    },
    "data": {"class_path": "datamodules.Digits"},
    "trainer": {"precision": "bf16-mixed", "logger": False, "callbacks": None},  # the precision of training only
}


def small_run(folder):
    """Write a checkpoint and the config of a run into the folder, and return it."""
    model = AsyncDiffusion(small_dit(**DIMENSIONS), sampler=Sampler(steps=4), image_size=8)
    return save_untrained(folder, model, CONFIG)

"""Count the waits and kernels of steps, level maps and evaluations on the pretended GPU, as a table in Markdown.

    PYTHONPATH=tests python -m pretend_gpu.count [training levels sampling likelihood]

With another version of the package in front of PYTHONPATH, and started in another folder, that one is counted.
"""

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pretend_gpu.pretended_cuda import CUDA, pretended_cuda
from pretend_gpu.watch import Watch

Row = tuple[str, float, float, str]
RUNS: dict[str, dict[str, Any]] = {
    "1 GPU": {},
    "1 GPU, bf16-mixed": {"precision": "bf16-mixed"},
    "1 GPU, each of 2 accumulated batches": {"accumulate_grad_batches": 2},
    "2 GPUs": {"ranks": 2},
    "1 GPU, latents": {"latents": "cache"},
    "2 GPUs, each of 2 accumulated batches": {"ranks": 2, "accumulate_grad_batches": 2},
    "2 GPUs, fully_shard": {"ranks": 2, "strategy": "fully_shard"},
}


def where(waits: list[tuple[str, str]], most: int = 3) -> str:
    """Return the most frequent places of waits."""
    return "; ".join(f"{n} x {what} at {place}" for (what, place), n in Counter(waits).most_common(most))


def training() -> Iterator[Row]:
    """Yield the waits of a batch of train.py with the demo's callbacks, between logs, validations and checkpoints."""
    from pretend_gpu.training_runs import latent_cache, train_demo

    for name, options in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            if "latents" in options:
                options = options | {"latents": latent_cache(Path(folder) / "latents", (1, 8, 8))}
            quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
            with quiet[0], quiet[1]:
                run = train_demo(
                    Path(folder) / "run", max_steps=8, val_check_interval=8, log_every_n_steps=8, **options
                )
        batches = [batch for batch in run.batches if batch.step in (1, 2, 4, 5, 6)]
        waits = [wait for batch in batches for wait in batch.waits]
        kernels = sum(batch.kernels for batch in batches) / len(batches)
        yield f"training batch, {name}", len(waits) / len(batches), kernels, where(waits)


def counted(flow: Callable[[Watch], int]) -> Row:
    """Return the waits and kernels of a flow per unit; the flow returns the number of units."""
    with pretended_cuda() as watch:
        units = max(flow(watch), 1)
        row = len(watch.waits) / units, sum(watch.kernels.values()) / units, where(watch.waits)
        assert not watch.mixed, watch.mixed[:3]
    return ("", *row)


def levels() -> Iterator[Row]:
    """Yield the waits of drawing level maps for 64 images of 16x16 patches, the second time."""
    from pretend_gpu.every_sampler import every_sampler

    for name, sampler in every_sampler().items():

        def draw(watch: Watch, sampler: Any = sampler) -> int:
            sampler(64, (16, 16), device=CUDA)
            watch.clear()
            sampler(64, (16, 16), device=CUDA)
            return 1

        yield (f"level maps, {name}", *counted(draw)[1:])


def sampling() -> Iterator[Row]:
    """Yield the waits of walks per network evaluation."""
    from pretend_gpu.test_sampling import ADAPTIVE, PLAIN, inputs, walk

    from asyncdiff.networks import DiT, UNet

    samplers = PLAIN | {f"Adaptive {name}": sampler for name, sampler in ADAPTIVE.items()}
    for kind in (DiT, UNet):
        for name, sampler in samplers.items():
            for given in inputs(sampler):

                def draw(watch: Watch, sampler: Any = sampler, kind: Any = kind, given: Any = given) -> int:
                    return len(walk(sampler, kind, **given)(CUDA, watch).waits) - 1

                about = f"evaluation, {kind.__name__}, {name}" + "".join(f", {key}" for key in given)
                try:
                    yield (about, *counted(draw)[1:])
                except (ValueError, TypeError) as error:  # not every network and version can do everything
                    print(f"left out: {about}: {str(error).splitlines()[0][:80]}", file=sys.stderr)


def likelihood() -> Iterator[Row]:
    """Yield the waits of bounds per network evaluation."""
    from pretend_gpu.bounds import bounds

    for name, flow in bounds().items():

        def evaluate(watch: Watch, flow: Any = flow) -> int:
            return int(flow(CUDA, watch)["evaluations"])

        yield (f"evaluation, {name}", *counted(evaluate)[1:])


PARTS = {"training": training, "levels": levels, "sampling": sampling, "likelihood": likelihood}


def main(parts: list[str]) -> None:
    """Print the table of some parts, or of all."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print("| what | waits | kernels | where |\n|---|---|---|---|")
    for part in parts or PARTS:
        for what, waits, kernels, places in PARTS[part]():
            print(f"| {what} | {waits:g} | {kernels:.0f} | {places} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

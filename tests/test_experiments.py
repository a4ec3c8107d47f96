"""Every experiment file builds: all its classes are made, with all their arguments."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer

from asyncdiff import cli
from asyncdiff.module import AsyncDiffusion

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
EXPERIMENTS = sorted(FOLDER.glob("*.yaml"))
SIZES = sorted((FOLDER / "networks").glob("*.yaml"))


@pytest.fixture
def built(monkeypatch):
    """Builds what a command line describes and returns it instead of running it."""

    def build(*arguments: str) -> cli.ExperimentCLI:
        made = []
        monkeypatch.setattr(cli.ExperimentCLI, "_run_subcommand", lambda self, _: made.append(self))
        cli.main(["fit", *arguments, "--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "1"])
        return made[0]

    return build


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda f: f.stem)
def test_every_experiment_builds(file, built):
    made = built("--config", str(file))
    assert isinstance(made.model, AsyncDiffusion)
    assert isinstance(made.trainer, Trainer)
    assert isinstance(made.datamodule, LightningDataModule)
    assert made.model.shape == (made.datamodule.channels, made.datamodule.size, made.datamodule.size)
    assert Path(made.trainer.default_root_dir) == Path("runs") / file.stem
    assert made.model.seed == made.datamodule.seed == 0


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda f: f.stem)
def test_experiments_are_complete_and_short(file):
    assert len(file.read_text().splitlines()) <= 80


@pytest.mark.parametrize("file", SIZES, ids=lambda f: f.stem)
def test_sizes_are_layered_on_an_experiment(file, built):
    with torch.device("meta"):  # shapes without memory
        made = built("--config", str(FOLDER / "folder_dit_async.yaml"), "--config", str(file))
    sizes = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}
    network = made.model.network
    assert (network.dim, network.depth, network.heads, network.patch_size) == (
        *sizes[file.stem.removeprefix("dit_")],
        2,
    )


def test_the_three_level_experiments_differ_in_their_levels_only():
    files = [(FOLDER / f"digits_dit_{name}.yaml").read_text() for name in ("shared", "independent", "async")]
    stripped = []
    for text, name in zip(files, ("shared", "independent", "async"), strict=True):
        head, rest = text.split("  levels:\n")
        without_comment = (head + rest[rest.index("  weighting:") :]).split("\n", 1)[1]
        stripped.append(without_comment.replace(f"digits_dit_{name}", "RUN"))
    assert stripped[0] == stripped[1] == stripped[2]

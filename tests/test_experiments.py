"""Every experiment file builds: all its classes are made, with all their arguments."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, Trainer

from asyncdiff import cli, levels, recipe
from asyncdiff.cli_errors.names import find_class
from asyncdiff.commands.experiment import Experiment
from asyncdiff.module import AsyncDiffusion
from asyncdiff.networks.unet import UNet

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
EXPERIMENTS = sorted(FOLDER.glob("*.yaml"))
SIZES = sorted((FOLDER / "networks").glob("dit_*.yaml"))
UNETS = sorted((FOLDER / "networks").glob("unet_*.yaml"))
LEVELS = sorted((FOLDER / "levels").glob("*.yaml"))
OBJECTIVES = sorted((FOLDER / "objectives").glob("*.yaml"))


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
    with torch.device("meta"):  # shapes without memory
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


@pytest.mark.parametrize("file", UNETS, ids=lambda f: f.stem)
def test_unets_are_layered_on_an_experiment(file, built):
    """In the place of its network: what the layer leaves out stays the experiment's, or is the network's default."""
    with torch.device("meta"):
        made = built("--config", str(FOLDER / "folder_dit_async.yaml"), "--config", str(file), "--vars.size", "64")
    network, layer = made.model.network, unet_arguments(file)
    assert {key: recipe.describe(getattr(network, key)) for key in layer} == layer
    assert set(inspect.signature(UNet).parameters) - set(layer) == {
        "channels",
        "classes",
        "uncertainty",
        "checkpointing",
    }
    assert (network.channels, network.classes, network.uncertainty, network.checkpointing) == (3, 0, False, False)
    assert network.grid((64, 64)) == (64 // network.level_patch_size,) * 2


def test_the_imagenet64_experiment_has_the_network_of_its_layer():
    layer = unet_arguments(FOLDER / "networks" / "unet_imagenet64.yaml")
    own = unet_arguments(FOLDER / "imagenet64_unet_async.yaml")
    assert own == layer | {"channels": 3, "classes": 1000}


@pytest.mark.parametrize(("name", "classes"), [("imagenet256", 1000), ("lsun256", 0)])
def test_the_latent_experiments_have_the_network_of_their_layer(name, classes):
    layer = unet_arguments(FOLDER / "networks" / "unet_paper_620m.yaml")
    assert unet_arguments(FOLDER / f"{name}_unet_async.yaml") == layer | {"channels": 3, "classes": classes}


def unet_arguments(file: Path) -> dict:
    arguments = yaml.safe_load(file.read_text())["model"]["network"]["init_args"]
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}


@pytest.mark.parametrize("file", LEVELS, ids=lambda f: f.stem)
def test_levels_are_layered_on_an_experiment_and_train(file, built, tmp_path):
    made = layered(file, built, tmp_path)
    # Nothing is left of the experiment's own.
    assert recipe.describe(made.model.levels) == recipe.describe(Experiment(file).levels())
    takes_a_step(made)


@pytest.mark.parametrize("file", OBJECTIVES, ids=lambda f: f.stem)
def test_objectives_are_layered_on_an_experiment_and_train(file, built, tmp_path):
    made = layered(file, built, tmp_path)
    assert file.stem.startswith(type(made.model.weighting).__name__.lower())
    takes_a_step(made)


def layered(file, built, root):
    words = ["--config", str(FOLDER / "digits_dit_async.yaml"), "--config", str(file)]
    return built(*words, "--trainer.callbacks", "[]", "--trainer.default_root_dir", str(root))


def takes_a_step(made) -> None:
    before = made.model.network.head.weight.clone()
    made.trainer.fit(made.model, datamodule=made.datamodule)
    assert made.trainer.global_step == 1
    assert torch.isfinite(made.trainer.callback_metrics["train/loss"])
    assert not torch.equal(made.model.network.head.weight, before)


@pytest.mark.parametrize("file", [*LEVELS, *OBJECTIVES], ids=lambda f: f.stem)
def test_a_layer_leaves_no_argument_to_the_file_below(file):
    """Arguments of the same name, whatever their class, stay where a layer names a class only."""
    classes = list(described(yaml.safe_load(file.read_text())["model"]))
    assert classes
    for entry in classes:
        kind = find_class(entry["class_path"])
        taken = [] if kind.__init__ is object.__init__ else inspect.signature(kind).parameters
        assert set(entry.get("init_args", {})) == set(taken), entry["class_path"]


def test_every_level_sampler_has_a_layer():
    named = {entry["class_path"] for f in LEVELS for entry in described(yaml.safe_load(f.read_text()))}
    samplers = [k for k in vars(levels).values() if isinstance(k, type) and issubclass(k, levels.LevelSampler)]
    assert {f"asyncdiff.levels.{k.__name__}" for k in samplers if not inspect.isabstract(k)} <= named


def described(value: object) -> Iterator[dict]:
    """Every {class_path, init_args} in a file."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield value
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from described(item)


def test_the_three_level_experiments_differ_in_their_levels_only():
    files = [(FOLDER / f"digits_dit_{name}.yaml").read_text() for name in ("shared", "independent", "async")]
    stripped = []
    for text, name in zip(files, ("shared", "independent", "async"), strict=True):
        head, rest = text.split("  levels:\n")
        without_comment = (head + rest[rest.index("  weighting:") :]).split("\n", 1)[1]
        stripped.append(without_comment.replace(f"digits_dit_{name}", "RUN"))
    assert stripped[0] == stripped[1] == stripped[2]

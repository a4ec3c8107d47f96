"""Every experiment file builds: all its objects are constructed with all their arguments."""

import inspect
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, Trainer

from asyncdiff.__main__ import main
from asyncdiff.ablation import Ablation
from asyncdiff.ablation.launch import resolve_config
from asyncdiff.checkpoints import object_config
from asyncdiff.cli import train as cli
from asyncdiff.cli.commands.shared.command_parser import command_parser
from asyncdiff.cli.errors.suggestions import find_class
from asyncdiff.cli.jobs.evaluate_inpainting import on_pixels
from asyncdiff.cli.jobs.experiment_file import Experiment
from asyncdiff.latents import Codec
from asyncdiff.model import DiffusionModel
from asyncdiff.networks.unet import UNet
from asyncdiff.noise import level_samplers
from asyncdiff.noise.masks import MASKS
from asyncdiff.training.lightning_module import AsyncDiffusion

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
EXPERIMENTS = sorted(FOLDER.glob("*.yaml"))
SIZES = sorted((FOLDER / "networks").glob("dit_*.yaml"))
UNETS = sorted((FOLDER / "networks").glob("unet_*.yaml"))
LEVELS = sorted((FOLDER / "levels").glob("*.yaml"))
PAPER = sorted(f for f in (FOLDER / "ablations").glob("*.yaml") if f.stem.startswith(("imagenet", "lsun")))
INPAINTING = sorted((FOLDER / "inpainting").glob("*.yaml"))
OBJECTIVES = sorted((FOLDER / "objectives").glob("*.yaml"))


@pytest.fixture
def build_experiment(monkeypatch):
    """Function that builds the experiment of a command line and returns it without running it."""

    def build(*arguments: object) -> cli.ExperimentCLI:
        made = []
        monkeypatch.setattr(cli.ExperimentCLI, "_run_subcommand", lambda self, _: made.append(self))
        cli.main(["fit", *map(str, arguments), "--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "1"])
        return made[0]

    return build


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda f: f.stem)
def test_every_experiment_builds_and_has_at_most_80_lines(file, build_experiment):
    assert len(file.read_text().splitlines()) <= 80
    with torch.device("meta"):  # shapes without memory
        made = build_experiment("--config", file)
    assert isinstance(made.model, AsyncDiffusion)
    assert isinstance(made.trainer, Trainer)
    assert isinstance(made.datamodule, LightningDataModule)
    assert made.model.shape == (made.datamodule.channels, made.datamodule.size, made.datamodule.size)
    assert Path(made.trainer.default_root_dir) == Path("runs") / file.stem
    assert made.model.seed == made.datamodule.seed == 0


def test_no_experiment_asks_for_bfloat16_where_it_may_be_emulated():
    files = [*FOLDER.rglob("*.yaml")]
    precisions = {file.stem: yaml.safe_load(file.read_text()).get("trainer", {}).get("precision") for file in files}
    assert {name for name, precision in precisions.items() if precision == "auto"} == {
        *("cifar10_dit_async", "folder_dit_async", "textures_dit_async"),
        *("imagenet64_unet_async", "imagenet256_unet_async", "lsun256_unet_async"),
        *("imagenet256_dit_xl_finetune", "latents_dit_async"),
    }
    assert {*precisions.values()} == {"auto", "32-true", None}  # float32 on every device: digits, and a small ablation


def test_experiments_for_gpus_compile_their_network():
    compiled = {file.stem for file in EXPERIMENTS if yaml.safe_load(file.read_text())["model"].get("compiled")}
    assert compiled == {file.stem for file in EXPERIMENTS if file.stem.startswith(("imagenet", "lsun", "latents"))}


def test_large_networks_normalize_queries_and_keys_unless_their_weights_do_not():
    normalized = {file.stem: yaml.safe_load(file.read_text())["model"]["network"]["init_args"] for file in SIZES}
    assert {name for name, arguments in normalized.items() if arguments.get("qk_norm")} == {"dit_l", "dit_xl"}
    fine_tuned = yaml.safe_load((FOLDER / "imagenet256_dit_xl_finetune.yaml").read_text())["model"]
    assert fine_tuned["pretrained"]
    assert fine_tuned["network"]["init_args"]["qk_norm"] is False


@pytest.mark.parametrize("file", SIZES, ids=lambda f: f.stem)
def test_network_sizes_can_be_layered_on_an_experiment(file, build_experiment):
    with torch.device("meta"):
        network = build_experiment("--config", FOLDER / "folder_dit_async.yaml", "--config", file).model.network
    sizes = {"s": (384, 12, 6, 2), "b": (768, 12, 12, 2), "l": (1024, 24, 16, 2), "xl": (1152, 28, 16, 2)}
    found = (network.dim, network.depth, network.heads, network.patch_size)
    assert found == sizes[file.stem.removeprefix("dit_")]


@pytest.mark.parametrize("file", UNETS, ids=lambda f: f.stem)
def test_unets_can_be_layered_on_an_experiment(file, build_experiment):
    """The layer replaces the network; omitted arguments keep the experiment's value or the default."""
    argv = ["--config", FOLDER / "folder_dit_async.yaml", "--config", file, "--vars.size", "64"]
    with torch.device("meta"):
        network = build_experiment(*argv).model.network
    layer = unet_arguments(file)
    kept = {"channels": 3, "classes": 0, "uncertainty": False, "checkpointing": False}
    assert set(inspect.signature(UNet).parameters) - set(layer) == set(kept)
    assert {key: object_config.describe(getattr(network, key)) for key in layer | kept} == layer | kept
    assert network.grid((64, 64)) == (64 // network.level_patch_size,) * 2


@pytest.mark.parametrize(
    ("name", "layer", "classes"),
    [
        ("imagenet64", "unet_imagenet64", 1000),
        ("imagenet256", "unet_paper_620m", 1000),
        ("lsun256", "unet_paper_620m", 0),
    ],
)
def test_unet_experiments_have_the_network_of_their_layer(name, layer, classes):
    layer = unet_arguments(FOLDER / "networks" / f"{layer}.yaml")
    assert unet_arguments(FOLDER / f"{name}_unet_async.yaml") == layer | {"channels": 3, "classes": classes}


def unet_arguments(file: Path) -> dict:
    arguments = yaml.safe_load(file.read_text())["model"]["network"]["init_args"]
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}


@pytest.mark.parametrize("file", [*LEVELS, *OBJECTIVES], ids=lambda f: f.stem)
def test_levels_and_objectives_can_be_layered_on_an_experiment_and_train(file, build_experiment, tmp_path):
    argv = ["--config", FOLDER / "digits_dit_async.yaml", "--config", file, "--trainer.callbacks", "[]"]
    made = build_experiment(*argv, "--trainer.default_root_dir", tmp_path)
    if file in LEVELS:  # no level sampler argument of the experiment remains
        assert object_config.describe(made.model.levels) == object_config.describe(Experiment(file).levels())
    else:
        assert file.stem.startswith(type(made.model.weighting).__name__.lower())
    before = made.model.network.head.weight.clone()
    made.trainer.fit(made.model, datamodule=made.datamodule)
    assert torch.isfinite(made.trainer.callback_metrics["train/loss"])
    assert not torch.equal(made.model.network.head.weight, before)


@pytest.mark.parametrize("file", [*LEVELS, *OBJECTIVES], ids=lambda f: f.stem)
def test_a_layer_sets_all_arguments_of_its_classes(file):
    """If a layer names only a class, arguments of the same name from the file below remain."""
    classes = list(object_configs(yaml.safe_load(file.read_text())["model"]))
    assert classes
    for entry in classes:
        kind = find_class(entry["class_path"])
        accepted = [] if kind.__init__ is object.__init__ else inspect.signature(kind).parameters
        assert set(entry.get("init_args", {})) == set(accepted), entry["class_path"]


def test_every_level_sampler_has_a_file_in_experiments_levels():
    named = {entry["class_path"] for f in LEVELS for entry in object_configs(yaml.safe_load(f.read_text()))}
    samplers = [
        k for k in vars(level_samplers).values() if isinstance(k, type) and issubclass(k, level_samplers.LevelSampler)
    ]
    assert {f"asyncdiff.noise.{k.__name__}" for k in samplers if not inspect.isabstract(k)} <= named


def object_configs(value: object) -> Iterator[dict]:
    """Yield every {class_path, init_args} in a file."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield value
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from object_configs(item)


def test_the_three_level_experiments_differ_only_in_their_levels():
    files = [(FOLDER / f"digits_dit_{name}.yaml").read_text() for name in ("shared", "independent", "async")]
    stripped = []
    for text, name in zip(files, ("shared", "independent", "async"), strict=True):
        head, rest = text.split("  levels:\n")
        without_comment = (head + rest[rest.index("  weighting:") :]).split("\n", 1)[1]
        stripped.append(without_comment.replace(f"digits_dit_{name}", "RUN"))
    assert stripped[0] == stripped[1] == stripped[2]


@pytest.mark.slow
@pytest.mark.parametrize("file", PAPER, ids=lambda f: f.stem)
def test_every_trial_of_the_papers_ablations_builds(file, build_experiment, tmp_path):
    ablation = Ablation.read(file)
    parameters, images = (59_979_779, 512) if "imagenet64" in file.stem else (626_142_723, 256)
    for trial in ablation.trials():
        argv = [*trial.argv(tmp_path), "--trainer.callbacks", "[]"]  # Inception's weights are not here
        with torch.device("meta"):
            made = build_experiment(*argv, "--trainer.devices", "1")
        assert made.model.shape == (made.datamodule.channels, made.datamodule.size, made.datamodule.size)
        (levels_file,) = (f for f in trial.files if f.parent.name == "levels")
        assert object_config.describe(made.model.levels) == object_config.describe(Experiment(levels_file).levels())
        classes = 1000 if "imagenet" in file.stem else 0
        assert made.model.classes == classes
        # Unconditional networks have no label table: 1000 classes and "no label", 1024 numbers each.
        count = sum(p.numel() for p in made.model.network.parameters())
        assert count == parameters - (0 if classes else 1001 * 1024)
        trainer = resolve_config(trial, tmp_path, cli.parse_config)["trainer"]
        together = int(trainer["devices"]) * trainer.get("accumulate_grad_batches", 1)
        assert made.datamodule.batch_size * together == images
        assert trainer["gradient_clip_val"] == 1
        (fid,) = (c for c in trainer["callbacks"] if c["class_path"].endswith("Frechet"))
        assert fid["init_args"]["count"] == 50_000
        assert fid["init_args"]["features"]["class_path"] == "asyncdiff.evaluation.InceptionFeatures"
        sampler = object_config.describe(made.model.sampler)["init_args"]
        assert (sampler["steps"], sampler["solver"]["init_args"]["stochasticity"]) == (250, 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("file", PAPER, ids=lambda f: f.stem)
def test_the_command_in_an_ablation_file_header_writes_a_slurm_script(file, tmp_path, monkeypatch):
    (line,) = (command for command in commands_in(file) if command[:1] == ["ablate"])
    monkeypatch.chdir(FOLDER.parent)
    script = tmp_path / "job.sh"
    main([str(script) if argument == "job.sh" else argument for argument in line] + ["--output", str(tmp_path / "out")])
    assert Path(line[1]).resolve() == file
    trials = len(Ablation.read(file).trials())
    assert f"#SBATCH --array=0-{trials - 1}%{trials}" in script.read_text()  # all at once
    assert "#SBATCH --gres=gpu:8" in script.read_text()


def test_ablation_files_list_the_papers_numbers_next_to_their_variants():
    table = (FOLDER.parent / "docs" / "evaluation.md").read_text()
    published = {}
    for file in PAPER:
        text = file.read_text().replace("\n# ", " ")
        if found := re.search(r"FID of 50000 images in the paper: (.*?\d\.\d\d)\.\s", text):
            published[file.stem] = dict(re.findall(r"(\w+) (\d\.\d\d)", found[1]))
            assert set(published[file.stem]) <= {trial.variant for trial in Ablation.read(file).trials()}
            assert all(number in table for number in published[file.stem].values())
    assert published == {
        "imagenet64_levels": {"shared": "1.74", "perlin": "2.05", "independent": "2.54", "async": "1.77"},
        "imagenet256_levels": {"shared": "8.24", "async": "8.06"},
        "lsun256_levels": {"shared": "2.83", "async": "3.09"},
    }


@pytest.mark.parametrize("name", ["imagenet256", "lsun256"])
def test_cached_latents_match_the_pixels_of_an_experiment(name, monkeypatch, tmp_path, capsys):
    pixels = Experiment(FOLDER / "pixels" / f"{name}.yaml").data()
    latents = Experiment(FOLDER / f"{name}_unet_async.yaml").data()
    diffusers = pytest.importorskip("diffusers")
    diffusers.VQModel(  # as many stages as the published one, but narrower
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8] * 3,
        latent_channels=3,
        norm_num_groups=4,
        num_vq_embeddings=16,
    ).save_pretrained(tmp_path)
    monkeypatch.setenv("ASYNCDIFF_VQ_F4", str(tmp_path))
    codec = codec_of(FOLDER / "codecs" / "vq_f4.yaml")
    assert (pixels.size, pixels.channels) == (latents.size * codec.factor, codec.pixel_channels) == (256, 3)
    assert latents.channels == codec.channels
    # The command in the header runs until it needs the photos, which are missing here.
    (line,) = (command for command in commands_in(FOLDER / f"{name}_unet_async.yaml") if command[0] == "cache-latents")
    monkeypatch.chdir(FOLDER.parent)
    argv = [str(tmp_path / "out") if argument == latents.root.name else argument for argument in line]
    with pytest.raises(SystemExit):
        main([argument for argument in argv if argument not in ("--processes", "8")])
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: root must be")


@pytest.mark.parametrize("file", INPAINTING, ids=lambda f: f.stem)
def test_the_papers_inpainting_evaluation_runs_as_documented(file, latent_run, alexnet, tmp_path):
    """Run the command in the header of the file on a small run, with few steps of the same sampler."""
    (line,) = commands_in(file)
    documented = re.sub(r"\\\n +", "", (FOLDER.parent / "docs" / "evaluation.md").read_text())
    assert shlex.join(line) in documented
    numbers = re.findall(r"\w+ (\d\d\.\d / \.\d{3})", file.read_text())
    assert numbers
    assert all(f"| {number} |" in documented for number in numbers)
    samplers = yaml.safe_load(file.read_text())
    (name,) = samplers
    own = object_config.build(samplers[name], ["asyncdiff"])
    assert (own.steps, own.solver.stochasticity) == (250, 1.0 if name == "repaint" else 0.25)
    if name == "repaint":
        assert sum(b < a for a, b in pairwise([own.steps, *own.schedule()])) == 2410
    samplers[name]["init_args"] |= {"steps": 6} | ({"jump": 2, "resamples": 2} if name == "repaint" else {})
    (tmp_path / "samplers.yaml").write_text(yaml.safe_dump(samplers))
    _, folder = latent_run
    data = {"class_path": "datamodules.Arrays", "init_args": {"root": str(folder), "size": 4, "channels": 4}}
    (folder / "config.yaml").write_text(json.dumps({"data": data}))
    changed = {
        line[1]: str(folder),
        str(file.relative_to(FOLDER.parent)): str(tmp_path / "samplers.yaml"),
        "10000": "3",
        "--features": "--metrics",
        "asyncdiff.evaluation.InceptionFeatures": "lpips",
    }
    assert set(changed) <= set(line)
    options = ["--lpips", alexnet, "--examples", "1", "--device", "cpu", "--output", str(tmp_path)]
    main([changed.get(argument, argument) for argument in line] + options)
    card = json.loads((tmp_path / "inpainting.json").read_text())
    assert [(row["mask"], row["sampler"]) for row in card["rows"]] == [
        (mask, name) for mask in ("extreme", "square", "thin", "wide")
    ]
    assert card["protocol"]["masks"]["thin"]["init_args"]["factor"] == 8
    assert card["protocol"]["samplers"][name]["init_args"]["steps"] == 6
    assert card["masks"]["square"]["unknown"] == 0.25


def test_invalid_pixel_masks_are_rejected(latent_run):
    _, folder = latent_run
    model = DiffusionModel.load(folder)
    with pytest.raises(ValueError, match="--masks lines leaves no latent known with --pixel_masks: choose other masks"):
        on_pixels({"square": MASKS["square"], "lines": MASKS["lines"]}, model)
    with pytest.raises(
        ValueError, match="--pixel_masks needs a latent model; masks of this pixel model cover pixels already: drop it"
    ):
        on_pixels({"square": MASKS["square"]}, replace(model, codec=None))


def commands_in(file: Path) -> list[list[str]]:
    """Return the arguments of every `python -m asyncdiff` command in a file's comments."""
    text = re.sub(r"\\\n# +", "", file.read_text())
    return [shlex.split(line) for line in re.findall(r"^#   python -m asyncdiff (.*)$", text, re.MULTILINE)]


def codec_of(file: Path) -> Codec:
    parser = command_parser("sample", "")
    parser.add_argument("--codec", type=Codec, sub_configs=True)
    return parser.instantiate(parser.parse_args(["--codec", str(file)])).codec

"""`python -m asyncdiff port`: what it reads, what every command then does with it, and what it refuses."""

import argparse
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from photo_files import pixels_of, random_photo
from reference_dit import forward, random_weights

from asyncdiff import AsyncDiffusion, DiffusionModel
from asyncdiff.__main__ import main
from asyncdiff.cli import train as cli
from asyncdiff.denoising.targets import NoiseTarget, VelocityTarget
from asyncdiff.denoising.weightings import Epsilon
from asyncdiff.noise.processes import LinearVP, RectifiedFlow
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.sampling.solvers import DDIM

WEIGHTS = random_weights(channels=3, dtype=torch.float32)
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABEL = torch.tensor([3, 10])


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(WEIGHTS, "weights.pt")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Folder of a diffusers pipeline, of a DiT for 8x8 images of 3 channels."""
    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 3, "out_channels": 6, "num_layers": 2}
    model = DiTTransformer2DModel(**sizes, sample_size=8, num_embeds_ada_norm=10)
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    model.save_pretrained(folder / "transformer")
    DDPMScheduler(beta_start=1e-4, beta_end=0.015, num_train_timesteps=900).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture
def refused(expect_error):
    """Function that runs `port`, which must fail, and returns its error message."""

    def run(*argv: str) -> str:
        message = expect_error("port", *argv, "--output", "out.ckpt")
        assert not Path("out.ckpt").exists()
        return message

    return run


def port(*argv: str) -> AsyncDiffusion:
    main(["port", *argv, "--output", "out/model.ckpt"])
    return AsyncDiffusion.load_from_checkpoint("out/model.ckpt")


def predict(model: AsyncDiffusion, t: float):
    with torch.no_grad():
        return model.denoiser(X, torch.full((2, 1, 1), t), LABEL)


# What is read


def test_original_dit_weights_are_converted(capfd):
    model = port("weights.pt", "--kind", "dit", "--heads", "4", "--classes", "10")
    printed = capfd.readouterr().out.splitlines()
    assert printed == [
        "kind: DiT in original layout",
        "network: DiT(dim=32, depth=2, heads=4, classes=10, joint_labels=True)",
        f"parameters: {sum(p.numel() for p in model.network.parameters()):,}",
        "dropped: 3 output channels of the learned sigma",
        "process: LinearVP(), target: NoiseTarget()",
        "images: 8x8 pixels with 3 channels",
        "checkpoint: out/model.ckpt",
    ]
    assert isinstance(model.process, LinearVP)
    assert isinstance(model.target, NoiseTarget)
    assert isinstance(model.weighting, Epsilon)
    assert isinstance(model.sampler, Sampler)
    assert isinstance(model.sampler.solver, DDIM)
    assert (model.sampler.steps, model.sampler.solver.stochasticity) == (50, 0)
    assert (model.shape, model.classes, model.level_values) == ((3, 8, 8), 10, 32)
    eps = forward(WEIGHTS, X, torch.full((2,), 499.0), LABEL, 4)[:, :3]
    assert torch.allclose(predict(model, 0.5).eps, eps, atol=1e-5)


def test_original_sit_weights_are_converted(capfd):
    model = port("weights.pt", "--kind", "sit", "--heads", "4", "--classes", "10")
    assert "process: RectifiedFlow(), target: VelocityTarget()" in capfd.readouterr().out
    assert isinstance(model.process, RectifiedFlow)
    assert isinstance(model.target, VelocityTarget)
    to_image = forward(WEIGHTS, X, torch.full((2,), 0.7), LABEL, 4)[:, :3]
    assert torch.allclose(predict(model, 0.3).v, -to_image, atol=1e-5)


def test_safetensors_and_name_prefixes_are_read():
    from safetensors.torch import save_file

    save_file(WEIGHTS, "weights.safetensors")
    plain = port("weights.safetensors", "--kind", "dit", "--heads", "4", "--classes", "10")
    torch.save({f"module.{name}": weight for name, weight in WEIGHTS.items()}, "parallel.pth")
    Path("out/model.ckpt").unlink()
    parallel = port("parallel.pth", "--kind", "dit", "--heads", "4", "--classes", "10")
    assert torch.equal(predict(plain, 0.5).v, predict(parallel, 0.5).v)


@pytest.mark.parametrize(("argv", "which"), [([], 2), (["--weights", "ema"], 2), (["--weights", "raw"], 1)])
def test_a_training_checkpoint_has_raw_and_ema_weights(argv, which, capfd):
    sets = {"model": WEIGHTS, "ema": {name: 2 * weight for name, weight in WEIGHTS.items()}}
    sets["ema"]["pos_embed"] = WEIGHTS["pos_embed"]
    torch.save(sets | {"opt": {"state": {}}, "args": argparse.Namespace(image_size=256, num_classes=10)}, "train.pt")
    model = port("train.pt", "--kind", "dit", "--heads", "4", *argv)
    table = WEIGHTS["y_embedder.embedding_table.weight"]
    assert torch.equal(model.network.label_embedding.table.weight, which * table)
    name = {2: "EMA weights", 1: "raw weights"}[which]
    assert f"kind: DiT in original layout, {name}\n" in capfd.readouterr().out


@torch.no_grad()
def test_a_diffusers_pipeline_is_converted(pipeline, capfd):
    model = port(str(pipeline))
    printed = capfd.readouterr().out
    assert "kind: DiT in diffusers layout\n" in printed
    assert (
        "normalization: eps is 1e-06 as in the authors' code, but 1e-05 in the second norms of this folder\n" in printed
    )
    assert "process: LinearVP(beta_end=0.015, steps=900), target: NoiseTarget()\n" in printed
    theirs = DiTTransformer2DModel.from_pretrained(pipeline / "transformer").eval()
    eps = theirs(X, timestep=torch.full((2,), 449), class_labels=LABEL).sample[:, :3]
    assert torch.allclose(predict(model, 0.5).eps, eps, atol=1e-5)


def test_ddpm_is_assumed_for_a_transformer_folder_without_scheduler(pipeline, capfd):
    shutil.copytree(pipeline / "transformer", "folder")
    first = port("folder")
    assert (
        "process: LinearVP() (assumed, the folder has no scheduler), target: NoiseTarget()\n" in capfd.readouterr().out
    )
    weights = DiTTransformer2DModel.from_pretrained("folder").state_dict()
    torch.save(weights, "folder/diffusion_pytorch_model.bin")
    Path("folder/diffusion_pytorch_model.safetensors").unlink()
    Path("out/model.ckpt").unlink()
    assert torch.equal(predict(port("folder"), 0.5).v, predict(first, 0.5).v)


def test_the_authors_frequencies_can_be_selected(pipeline):
    assert port(str(pipeline), "--frequencies", "authors").network.level_period == 10_000
    Path("out/model.ckpt").unlink()
    assert port(str(pipeline)).network.level_period == pytest.approx(10_000 ** (128 / 127))


def test_latent_weights_are_recognized(capfd):
    torch.save(random_weights(dtype=torch.float32, sigma=False), "latents.pt")
    port("latents.pt", "--kind", "sit", "--heads", "4", "--classes", "10")
    printed = capfd.readouterr().out
    assert "images: 8x8 latents with 4 channels; decode them with --codec" in printed
    assert "dropped: nothing\n" in printed


# What is done with it


def test_every_command_reads_the_checkpoint():
    port("weights.pt", "--kind", "dit", "--heads", "4", "--classes", "10")
    photo = random_photo(Path("photo.png"), 8, 8)
    few = ["--steps", "3", "--seeds", "0,1"]
    main(["sample", "out/model.ckpt", *few, "--labels", "1,2", "--guidance", "3", "--output", "drawn"])
    assert sorted(file.name for file in Path("drawn").iterdir()) == [
        "000000_class1.png",
        "000001_class2.png",
        "predict.yaml",
        "sheet.png",
    ]
    main(["inpaint", "out/model.ckpt", "--image", photo, "--mask", "half", *few, "--output", "inpainted"])
    kept = (pixels_of("inpainted/photo_seed0.png") == pixels_of(photo)).all(0)
    assert kept.sum() >= 32  # the known half, bit for bit
    assert not kept.all()


def test_fit_and_validate_can_start_from_the_checkpoint(caplog):
    caplog.set_level(logging.INFO)
    torch.save(random_weights(channels=1, dtype=torch.float32), "gray.pt")
    port("gray.pt", "--kind", "dit", "--heads", "4", "--classes", "10")
    sizes = {"channels": 1, "patch_size": 2, "dim": 32, "depth": 2, "heads": 4, "classes": 10, "joint_labels": True}
    config = {
        "model": {
            "network": {"class_path": "asyncdiff.networks.DiT", "init_args": sizes | {"uncertainty": True}},
            "process": {"class_path": "asyncdiff.noise.LinearVP"},
            "target": {"class_path": "asyncdiff.denoising.NoiseTarget"},
            "weighting": {"class_path": "asyncdiff.denoising.Epsilon"},
            "sampler": {"class_path": "asyncdiff.sampling.Sampler", "init_args": {"steps": 2}},
            "image_size": 8,
            "level_values": 8,
            "pretrained": "out/model.ckpt",
        },
        "data": {"class_path": "datamodules.Digits"},
        "trainer": {
            "default_root_dir": "run",
            "accelerator": "cpu",
            "logger": False,
            "max_steps": 1,
            "limit_val_batches": 1,
            "enable_progress_bar": False,
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": "run/checkpoints", "save_last": True},
                },
            ],
        },
    }
    Path("config.yaml").write_text(json.dumps(config))
    cli.main(["fit", "--config", "config.yaml"])
    printed = [record.getMessage() for record in caplog.records]
    assert "pretrained: loaded 31 of 33 weights from out/model.ckpt" in printed
    start, end = (DiffusionModel.load(file).network for file in ("out/model.ckpt", "run"))
    for (name, before), after in zip(start.named_parameters(), end.parameters(), strict=False):
        assert torch.allclose(before, after, atol=1e-5), name  # a step of the warm-up
    cli.main(["validate", "--config", "config.yaml", "--model.network.init_args.uncertainty", "false",
              "--ckpt_path", "out/model.ckpt"])  # fmt: skip


# What is refused


class Payload:
    def __reduce__(self):
        return os.mkdir, ("payload",)


def test_code_in_a_file_is_not_executed(refused):
    torch.save(WEIGHTS | {"x": Payload()}, "evil.pt")
    line = refused("evil.pt", "--kind", "dit")
    assert line == "evil.pt cannot be read safely as a checkpoint: it would call posix.mkdir"
    assert not Path("payload").exists()


def test_damaged_files_are_rejected(refused):
    whole = Path("weights.pt").read_bytes()
    Path("cut.pt").write_bytes(whole[: len(whole) // 2])
    Path("text.pt").write_text("no weights at all")
    Path("empty.pt").write_bytes(b"")
    for name in ("cut.pt", "text.pt", "empty.pt"):
        assert refused(name, "--kind", "dit").startswith(f"{name} cannot be read safely as a checkpoint: ")
    Path("cut.safetensors").write_bytes(whole[:1000])
    line = refused("cut.safetensors", "--kind", "dit")
    assert line.startswith("cut.safetensors cannot be read as a safetensors file: ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none.pt"], "CHECKPOINT must be a file of weights or a diffusers folder, got none.pt, which does not exist"),
        (["weights.pt"], "--kind is required for a file: add --kind dit or --kind sit"),
        (["weights.pt", "--kind", "dit"], "no official model has a width of 32, so the number of heads is unknown"),
        (["weights.pt", "--kind", "dit", "--heads", "5", "--classes", "10"], "dim must be divisible by heads and by"),
        (["weights.pt", "--kind", "dit", "--heads", "0"], "--heads must be at least 1, got 0"),
        (["weights.pt", "--kind", "dat"], "--kind: must be one of 'dit', 'sit' or null, got dat"),
        (["weights.pt", "--kind", "dit", "--weights", "ema"], "--weights is ema, but weights.pt contains a single set"),
        (["weights.pt", "--kind", "dit", "--frequencies", "authors"], "--frequencies applies only to a diffusers"),
        (["weights.pt", "--kind", "sit", "--heads", "4", "--classes", "10", "--image_size", "16"],
         "image_size must be 8, according to the positions in"),
        (["PIPELINE", "--kind", "sit"], "--kind must be dit for a diffusers folder, got sit: diffusers has no SiT"),
        (["PIPELINE", "--classes", "9"], "--classes is 9, but the folder's config.json has 10: drop --classes"),
        (["PIPELINE", "--heads", "4"], "--heads is 4, but the folder's config.json has 2: drop --heads"),
        (["PIPELINE", "--weights", "raw"], "--weights is raw, but a diffusers folder contains a"),
        (["PIPELINE/transformer/diffusion_pytorch_model.safetensors"],
         "PIPELINE/transformer/diffusion_pytorch_model.safetensors contains diffusers weights, which need their"),
        (["PIPELINE/scheduler"],
         "CHECKPOINT must be a file of weights or a diffusers folder, but PIPELINE/scheduler/config.json is missing"),
    ],
)  # fmt: skip
def test_user_errors_are_one_line(argv, message, pipeline, refused):
    line = refused(*(argument.replace("PIPELINE", str(pipeline)) for argument in argv))
    assert line.startswith(message.replace("PIPELINE", str(pipeline)))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            {"conv.weight": torch.ones(2)},
            "CHECKPOINT must contain a DiT or a SiT, got tensors named conv.weight ... in it.pt",
        ),
        ({}, "CHECKPOINT must contain a DiT or a SiT, got no tensors in it.pt"),
        ([1, 2], "it.pt must contain named tensors, got type list"),
        (torch.ones(3), "it.pt must contain named tensors, got type Tensor"),
        ({"epoch": 3}, "it.pt must contain only named tensors, but 'epoch' has type int"),
        ({"model": WEIGHTS}, "--weights ema reads the tensors at 'ema', but it.pt has no such entry"),
    ],
)
def test_files_with_other_contents_are_rejected(contents, message, refused):
    torch.save(contents, "it.pt")
    argv = ["--weights", "ema"] if message.startswith("--weights") else []
    assert refused("it.pt", "--kind", "dit", *argv).startswith(message)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("transformer/config.json", {"_class_name": "PixArtTransformer2DModel"}, "CHECKPOINT must contain a DiTTransf"),
        ("transformer/config.json", {"activation_fn": "geglu"}, "activation_fn must be gelu-approximate in a DiT"),
        ("transformer/config.json", {"num_attention_heads": 3}, "dim must be divisible by heads"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "scaled_linear"}, "beta_schedule of the scheduler must"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type of the scheduler must"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.5}, "beta_start and beta_end must satisfy 0 < beta_start"),
    ],
)  # fmt: skip
def test_folders_with_other_models_are_rejected(file, change, message, pipeline, refused):
    shutil.copytree(pipeline, "changed")
    path = Path("changed") / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert refused("changed").startswith(message)


def test_incomplete_folders_are_rejected(pipeline, refused):
    shutil.copytree(pipeline, "changed")
    Path("changed/transformer/config.json").write_text("{")
    assert refused("changed").startswith("changed/transformer/config.json cannot be read as a JSON file: ")
    shutil.copy(pipeline / "transformer/config.json", "changed/transformer/config.json")
    Path("changed/transformer/diffusion_pytorch_model.safetensors").unlink()
    assert refused("changed").startswith(
        "changed/transformer contains neither diffusion_pytorch_model.safetensors nor diff"
    )


@pytest.mark.parametrize("name", ["weights.pt", "out.pth"])
def test_the_output_must_be_a_new_checkpoint_file(name, expect_error):
    line = expect_error("port", "weights.pt", "--kind", "dit", "--heads", "4", "--classes", "10", "--output", name)
    assert line.startswith(f"--output must be a new .ckpt file, got {name}: choose another")

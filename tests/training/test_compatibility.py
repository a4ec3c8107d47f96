"""Checkpoints, data and models that do not fit together give a one-line error with both values, file and remedy."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from small_runs import quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.checkpoints import object_config
from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO
from asyncdiff.cli import train as cli
from asyncdiff.denoising.targets import CleanTarget
from asyncdiff.denoising.weightings import Sigmoid
from asyncdiff.networks.unet import UNet
from asyncdiff.noise.level_samplers import Shared
from asyncdiff.noise.processes import CosineVP, LinearVP
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.sampling.solvers import Heun
from asyncdiff.training import OptimizerSettings
from asyncdiff.training.compatibility import check_weights, differences, record_latents
from asyncdiff.training.warm_start import load_pretrained
from datamodules import Digits

SMALL = {"width": 8, "multipliers": (1, 2), "blocks": 1, "head_dim": 8, "groups": 4}
CODEC = {"class": "a.Codec", "weights": "0123456789abcdef", "channels": 1, "factor": 8, "scale": [1.0], "shift": [0.0]}


def model(network=None, **options) -> AsyncDiffusion:
    built = network if isinstance(network, torch.nn.Module) else small_dit(**(network or {}))
    return AsyncDiffusion(built, **{"image_size": 8, **options})


def trainer(folder, **options) -> Trainer:
    options = {"max_steps": 3, "limit_val_batches": 1, **options}
    return quiet_trainer(folder, plugins=[AtomicCheckpointIO()], **options)


def fit(folder, path, module=None, **options) -> Trainer:
    run = trainer(folder, **options)
    run.fit(module or model(), datamodule=Digits(batch_size=32), ckpt_path=path)
    return run


@pytest.fixture
def file(digits_run):
    """Return the checkpoint of a run after two steps."""
    return digits_run / "checkpoints" / "last.ckpt"


def modified(file, tmp_path, change) -> str:
    """Return the path of a modified copy of a checkpoint."""
    checkpoint = torch.load(file, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "modified.ckpt")
    return str(tmp_path / "modified.ckpt")


NEW_RUN = "start a new run without ckpt_path"
CASES = [
    (
        "architecture",
        lambda: model(UNet(channels=1, classes=10, **SMALL)),
        "model.network must be asyncdiff.networks.DiT as in {file}, got asyncdiff.networks.UNet: "
        "set it to asyncdiff.networks.DiT, or {otherwise}",
    ),
    *(
        (
            kind,
            partial(model, {argument: got}),
            f"model.network.{argument} must be {held} as in {{file}}, got {got}: set it to {held}, or {{otherwise}}",
        )
        for kind, argument, held, got in (
            ("patch size", "patch_size", 2, 4),
            ("channels", "channels", 1, 3),
            ("classes", "classes", 10, 3),
            ("width", "dim", 32, 64),
            ("heads", "heads", 2, 4),  # the shapes are the same
        )
    ),
]
CONTINUED = [
    *CASES,
    (
        "depth",
        lambda: model({"depth": 2, "dim": 64}),
        "model.network.dim must be 32 as in {file}, got 64 (model.network.depth also differs): "
        "set it to 32, or {otherwise}",
    ),
    (
        "levels of larger patches",
        lambda: model({"level_patch_size": 4}),
        "model.network.level_patch_size must be null as in {file}, got 4: set it to null, or {otherwise}",
    ),
    (
        "image size",
        lambda: model(image_size=16),
        "model.image_size must be 8 as in {file}, got 16: set it to 8, or {otherwise}",
    ),
    (
        "process",
        lambda: model(process=CosineVP()),
        "model.process must be asyncdiff.noise.RectifiedFlow as in {file}, got asyncdiff.noise.CosineVP: "
        "set it to asyncdiff.noise.RectifiedFlow, or {otherwise}",
    ),
    (
        "target",
        lambda: model(target=CleanTarget()),
        "model.target must be asyncdiff.denoising.VelocityTarget as in {file}, got asyncdiff.denoising.CleanTarget: "
        "set it to asyncdiff.denoising.VelocityTarget, or {otherwise}",
    ),
    (
        "everything",
        lambda: model({"channels": 3, "patch_size": 1, "dim": 64, "depth": 2, "heads": 4, "classes": 0}),
        "model.network.channels must be 1 as in {file}, got 3 (model.network.patch_size, model.network.dim, "
        "model.network.depth and more also differ): set it to 1, or {otherwise}",
    ),
]


@pytest.mark.parametrize(("make", "message"), [case[1:] for case in CONTINUED], ids=[case[0] for case in CONTINUED])
def test_a_run_resumes_only_with_the_same_model(file, tmp_path, make, message):
    with pytest.raises(ValueError, match="must be") as refusal:
        fit(tmp_path, file, make())
    assert str(refusal.value) == message.format(file=file, otherwise=NEW_RUN)


def test_weights_are_evaluated_only_in_the_same_model(file, tmp_path):
    for work in ("validate", "test"):
        with pytest.raises(ValueError, match="must be") as refusal:
            getattr(trainer(tmp_path), work)(model({"patch_size": 4}), datamodule=Digits(), ckpt_path=str(file))
        assert str(refusal.value) == (
            f"model.network.patch_size must be 2 as in {file}, got 4: set it to 2, or use a checkpoint of this model"
        )


def test_arguments_that_do_not_affect_the_weights_may_change(file, tmp_path):
    other = model(
        {"dropout": 0.1, "checkpointing": True},
        optimizer=OptimizerSettings(learning_rate=3e-5, betas=(0.8, 0.9), warmup_steps=5),
        levels=Shared(),
        weighting=Sigmoid(1.0),
        sampler=Sampler(solver=Heun(), steps=3),
        label_dropout=0.3,
        level_values=0,
        seed=3,
    )
    assert fit(tmp_path, file, other).global_step == 3


def test_another_precision_is_warned_about(file, tmp_path):
    assert torch.load(file, weights_only=True)["precision"] == "32-true"
    expected = (
        f"{file} was trained with trainer.precision 32-true, this run continues with bf16-mixed: set .* to 32-true"
    )
    with pytest.warns(UserWarning, match=expected):
        fit(tmp_path, file, precision="bf16-mixed").save_checkpoint(tmp_path / "bf16.ckpt")
    assert torch.load(tmp_path / "bf16.ckpt", weights_only=True)["precision"] == "bf16-mixed"


def test_the_same_precision_and_an_unknown_one_are_accepted(file, tmp_path, recwarn):
    fit(tmp_path, file)
    fit(tmp_path, modified(file, tmp_path, lambda checkpoint: checkpoint.pop("precision")), precision="bf16-mixed")
    assert not [warning for warning in recwarn if "precision" in str(warning.message)]


def test_arguments_of_a_process_are_compared():
    before = object_config.describe(model(process=LinearVP()))
    (found,) = differences(model(process=LinearVP(beta_end=0.03)).model, before)
    assert (found.name, found.here, found.there) == ("model.process.beta_end", 0.03, 0.02)


def test_what_is_no_argument_any_more_is_ignored_even_if_the_object_has_such_an_attribute():
    module = model()
    before = object_config.describe(module)
    before["init_args"]["network"]["init_args"] |= {"blocks": 12, "training": 3}
    before["init_args"]["process"]["init_args"] |= {"alpha": 0.5}
    assert differences(module.model, before) == []


def test_lists_equal_tuples_and_new_arguments_are_ignored():
    unet = model(UNet(channels=1, **SMALL))
    before = object_config.describe(unet)
    arguments = before["init_args"]["network"]["init_args"]
    arguments["multipliers"] = list(arguments["multipliers"])
    del arguments["middle_blocks"]
    assert differences(unet.model, before) == []
    arguments["multipliers"] = [1, 4]
    assert [one.name for one in differences(unet.model, before)] == ["model.network.multipliers"]


@pytest.mark.parametrize(("make", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_training_starts_from_weights_of_the_same_network(file, make, message):
    with pytest.raises(ValueError, match="must be") as refusal:
        load_pretrained(make().model, file)
    assert str(refusal.value) == message.format(file=file, otherwise="train without model.pretrained")


# Weights that do not fit the network although the object configs agree


def test_other_shapes_are_refused_even_if_the_object_configs_agree(file, tmp_path):
    def wrong(checkpoint):
        for name in ("denoiser.network.head.weight", "denoiser.network.head.bias"):
            checkpoint["state_dict"][name] = torch.zeros(3, *checkpoint["state_dict"][name].shape)
            checkpoint["ema"]["0.9"]["weights"].pop(name)

    path = modified(file, tmp_path, wrong)
    expected = (
        f"denoiser.network.head.weight must have the shape (3, 4, 32) as in {path}, got (4, 32) (1 more differ): "
        "set the network's sizes to those of the checkpoint"
    )
    for load in (AsyncDiffusion.load_from_checkpoint, lambda p: fit(tmp_path, p)):
        with pytest.raises(ValueError, match="must have") as refusal:
            load(path)
        assert str(refusal.value) == expected


def test_missing_and_unexpected_weights_are_refused():
    own = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(3)}
    check_weights(own, own, "x.ckpt")
    two = {"a": own["a"], "b": own["b"]}
    for here, there, missing in (
        (own, {"a": own["a"]}, "b and 1 more are missing in x.ckpt"),
        (two, own, "c is missing in the model"),
    ):
        with pytest.raises(ValueError, match="must have the same weights") as refusal:
            check_weights(here, there, "x.ckpt")
        assert str(refusal.value) == (
            f"the model and x.ckpt must have the same weights, but {missing}: "
            "configure the network as in the checkpoint"
        )


def test_other_files_are_refused(file, tmp_path):
    def foreign(checkpoint):
        del checkpoint["recipe"]

    path = modified(file, tmp_path, foreign)
    with pytest.raises(ValueError, match="is not a checkpoint of AsyncDiffusion") as refusal:
        fit(tmp_path, path)
    assert str(refusal.value) == (
        f"ckpt_path {path} is not a checkpoint of AsyncDiffusion, it has no description of the model: "
        "choose a checkpoint written by train.py"
    )
    torch.save({"weights": torch.ones(2)}, tmp_path / "weights.ckpt")
    with pytest.raises(
        ValueError, match="ckpt_path .*weights.ckpt is not a checkpoint, it has no state_dict or no Lightning version"
    ):
        fit(tmp_path, str(tmp_path / "weights.ckpt"))


# Data


class Latents(Digits):
    """Digits that claim to be latents."""

    codec = CODEC


class Fewer(Digits):
    """Digits that claim to have three classes."""

    classes = 3


@pytest.mark.parametrize(
    ("key", "value", "there", "here"),
    [
        ("weights", "fedcba9876543210", "0123456789ab", "fedcba987654"),
        ("scale", [0.5], "[1.0]", "[0.5]"),
        ("shift", [0.25], "[0.0]", "[0.25]"),
    ],
)
def test_latents_of_another_codec_are_refused(file, tmp_path, monkeypatch, key, value, there, here):
    def add_codec(checkpoint):
        checkpoint["latents"] = CODEC

    path = modified(file, tmp_path, add_codec)
    run = trainer(tmp_path)
    run.fit(model(), datamodule=Latents(batch_size=32), ckpt_path=path)
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert AsyncDiffusion.load_from_checkpoint(tmp_path / "last.ckpt").latents == {"here": CODEC}
    monkeypatch.setattr(Latents, "codec", CODEC | {key: value})
    for work in ("fit", "validate"):
        with pytest.raises(ValueError, match="the codec must have") as refusal:
            getattr(trainer(tmp_path), work)(model(), datamodule=Latents(batch_size=32), ckpt_path=path)
        assert str(refusal.value) == (
            f"the codec must have the {key} {there} as for {path}, got {here}: "
            "use the data and model.codec of that run, or start a new run without ckpt_path"
        )


def test_pixels_and_unknown_latents_are_accepted():
    module = model()
    record_latents(module, here=None, there={})
    record_latents(module, there=CODEC)
    assert module.latents == {"there": CODEC}


@pytest.mark.parametrize("work", ["fit", "validate", "test"])
def test_data_with_another_number_of_classes_is_refused(tmp_path, work):
    with pytest.raises(ValueError, match="classes") as refusal:
        getattr(trainer(tmp_path), work)(model(), datamodule=Fewer(batch_size=32))
    assert str(refusal.value) == (
        "network.classes must equal the number of classes in the data, 3, got 10: "
        "set it to 3, or to 0 to ignore the labels"
    )


def test_images_of_other_channels_and_sizes_are_refused(tmp_path):
    for module, shape in ((model({"channels": 3}), "(3, 8, 8)"), (model(image_size=16), "(1, 16, 16)")):
        with pytest.raises(ValueError, match="images must have") as refusal:
            fit(tmp_path, None, module)
        assert str(refusal.value) == (
            f"images must have the model's shape (channels, height, width) {shape}, got (1, 8, 8): "
            "set image_size and network.channels"
        )


class Bytes(Digits):
    """Digits of a data module that forgot to scale its images."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return batch | {"image": ((batch["image"] + 1) * 127.5).round()}


@pytest.mark.parametrize("work", ["fit", "validate", "test"])
def test_images_of_another_range_are_refused(tmp_path, work):
    with pytest.raises(ValueError, match=r"images of the data must lie in \[-1, 1\], got values from 0 to 255: pass"):
        getattr(trainer(tmp_path), work)(model(), datamodule=Bytes(batch_size=32))


def test_the_command_line_prints_a_one_line_error(file, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    argv = ["fit", "--data", "datamodules.Digits", "--model.network", "asyncdiff.networks.DiT", "--model.image_size=8"]
    sizes = {"channels": 1, "patch_size": 4, "dim": 32, "depth": 1, "heads": 2, "classes": 10}
    argv += [f"--model.network.init_args.{name}={value}" for name, value in sizes.items()]
    argv += ["--trainer.default_root_dir=new", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    argv += ["--trainer.enable_model_summary=false", f"--ckpt_path={file}"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"error: model.network.patch_size must be 2 as in {file}, got 4: set it to 2, or {NEW_RUN}"
    )

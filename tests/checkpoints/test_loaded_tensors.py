"""Weights that are not finite, or that a file only describes, are refused wherever they are read, with their name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from small_runs import quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.__main__ import main
from asyncdiff.callbacks import EMA
from asyncdiff.checkpoints import read_checkpoint
from asyncdiff.checkpoints.export import save
from asyncdiff.checkpoints.export.save import write_export
from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO
from asyncdiff.checkpoints.loaded_tensors import check_tensors
from asyncdiff.cli.jobs.external_checkpoints import read_source
from asyncdiff.evaluation.features.weights import read_tensors
from asyncdiff.evaluation.reference_statistics import load_reference
from asyncdiff.latents.autoencoder import Autoencoder
from asyncdiff.model import DiffusionModel
from asyncdiff.training.warm_start import load_pretrained
from datamodules import Digits
from datamodules.storage.latent_shards import DamagedError, manifest_sha256, read_manifest

HEAD = "denoiser.network.head.weight"
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64]
SMALL_FLOATS = [torch.float8_e4m3fn, torch.float8_e5m2]
BAD = [float("nan"), float("inf"), -float("inf")]


def refuse(**tensors):
    check_tensors(tensors, "a.ckpt", "use another")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", BAD)
def test_one_value_that_is_not_finite_is_found(dtype, value):
    weights = torch.ones(5, 7, dtype=dtype)
    weights[3, 4] = value
    with pytest.raises(ValueError, match=r"^w must hold finite numbers, got NaN or infinity in 1 of .*a\.ckpt: use"):
        refuse(v=torch.ones(3), w=weights)
    with pytest.raises(ValueError, match=r"w must hold finite numbers"):
        refuse(w=weights.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.float8_e5m2], ids=str)
def test_buffers_may_be_infinite_but_not_nan(dtype):
    mask = torch.tensor([-torch.inf, 0.0, torch.inf]).to(dtype)
    check_tensors({"w": mask}, "a.ckpt", "use another", buffers={"w"})
    mask[1] = torch.nan
    with pytest.raises(ValueError, match=r"^w must hold finite numbers"):
        check_tensors({"w": mask}, "a.ckpt", "use another", buffers={"w"})


@pytest.mark.parametrize("dtype", SMALL_FLOATS, ids=str)
def test_one_byte_that_is_not_a_number_is_found(dtype):
    weights = torch.ones(6).to(dtype)
    refuse(w=weights)
    weights[2] = float("nan")
    with pytest.raises(ValueError, match=r"1 of its 6 values"):
        refuse(w=weights)


@pytest.mark.parametrize("dtype", [*DTYPES, *SMALL_FLOATS, torch.int64, torch.uint8, torch.bool], ids=str)
def test_the_largest_finite_values_and_empty_tensors_are_accepted(dtype):
    """No sum may overflow; 127 and 255 are numbers among integers, although they are NaN as 8-bit floats."""
    if dtype in (torch.int64, torch.uint8):
        largest = torch.tensor([127, 255]).to(dtype)
    else:
        largest = torch.full((64,), 1.0 if dtype == torch.bool else torch.finfo(dtype).max, dtype=torch.float64).to(
            dtype
        )
    refuse(a=largest, b=torch.empty(0, 3).to(dtype), c=torch.tensor(1).to(dtype))


def test_several_tensors_are_counted():
    with pytest.raises(ValueError, match=r"^a must .* in 2 of its 2 values \(1 more of 3 tensors are like it\)"):
        refuse(a=torch.full((2,), torch.nan), b=torch.ones(1), c=torch.tensor(torch.inf))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**9, 10**9),  # 4 bytes in the file, 4 EB in memory
        torch.zeros(4).as_strided((10**6,), (0,)),
        torch.empty(3, device="meta"),  # would leave random weights in the network
        torch.eye(3).to_sparse(),
    ],
    ids=["expanded", "strided", "meta", "sparse"],
)
def test_a_tensor_that_is_only_described_is_refused(tensor):
    with pytest.raises(ValueError, match=r"^w must be stored number by number, got a tensor of shape .* a\.ckpt"):
        refuse(w=tensor)


def test_views_of_one_storage_are_accepted():
    flat = torch.ones(12)
    refuse(a=flat[:6].view(2, 3), b=flat[6:].view(3, 2).T, c=flat)


# Every reader


@pytest.fixture
def broken(digits_run, tmp_path):
    """Return a function that copies a run of two steps with NaN in its weights: raw, ema or optimizer."""

    def copy(*kinds):
        run = tmp_path / "run"
        (run / "checkpoints").mkdir(parents=True)
        checkpoint = torch.load(digits_run / "checkpoints" / "last.ckpt", weights_only=True)
        (average,) = checkpoint["ema"].values()
        moments = checkpoint["optimizer_states"][0]["state"]
        weights = {
            "raw": checkpoint["state_dict"],
            "ema": average["weights"],
            "optimizer": moments[next(iter(moments))],
        }
        for kind in kinds:
            weights[kind]["exp_avg_sq" if kind == "optimizer" else HEAD].view(-1)[0] = torch.nan
        torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
        for file in digits_run.glob("*.yaml"):
            shutil.copy(file, run)
        return run / "checkpoints" / "last.ckpt"

    return copy


REFUSED = (
    r"^(ema\.[\d.]+\.)?(denoiser\.)?network\.head\.weight must hold finite numbers, got NaN or infinity in 1 of its "
)
READERS = {
    "load": DiffusionModel.load,
    "load_from_checkpoint": AsyncDiffusion.load_from_checkpoint,
    "pretrained": lambda file: load_pretrained(AsyncDiffusion(small_dit(), image_size=8).model, file),
    **{
        stage: lambda file, stage=stage: getattr(quiet_trainer(file.parent, plugins=[AtomicCheckpointIO()]), stage)(
            AsyncDiffusion(small_dit(), image_size=8), datamodule=Digits(batch_size=32), ckpt_path=file
        )
        for stage in ("fit", "validate", "test", "predict")
    },
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_of_a_checkpoint_refuses_weights_that_are_not_finite(reader, broken):
    file = broken("raw", "ema")
    with pytest.raises(ValueError, match=REFUSED) as refusal:
        READERS[reader](file)
    assert str(file) in str(refusal.value)


def test_the_other_weights_of_a_checkpoint_can_be_used(broken):
    file = broken("ema")
    with pytest.raises(ValueError, match=r"or other weights of this one \(raw or ema\)"):
        DiffusionModel.load(file)
    assert DiffusionModel.load(file, weights="raw").generate([0]).isfinite().all()


def test_a_run_does_not_resume_from_optimizer_state_that_is_not_finite(broken):
    file = broken("optimizer")
    assert DiffusionModel.load(file).classes == 10  # its weights are finite
    with pytest.raises(ValueError, match=r"^optimizer\.0\.exp_avg_sq must .*: resume from an earlier checkpoint"):
        READERS["fit"](file)
    trainer = quiet_trainer(file.parent, max_steps=3, plugins=[AtomicCheckpointIO()], callbacks=[EMA(0.9)])
    trainer.validate(AsyncDiffusion(small_dit(), image_size=8), datamodule=Digits(batch_size=32), ckpt_path=file)


COMMANDS = {
    "sample": ["sample", "RUN"],
    "evaluate": ["evaluate", "RUN", "--likelihood", "--images", "8"],
    "export": ["export", "RUN", "--output", "shared"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_a_run_whose_weights_are_not_finite(command, broken, monkeypatch, tmp_path, capfd):
    run = broken("raw", "ema").parent.parent
    (run / "config.yaml").write_text(json.dumps({"data": {"class_path": "datamodules.Digits"}, "model": {}}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ending:
        main([str(run) if word == "RUN" else word for word in COMMANDS[command]])
    assert ending.value.code == 2
    assert "denoiser.network.head.weight must hold finite numbers" in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "shared").exists()


def test_an_export_with_weights_that_are_not_finite_is_neither_written_nor_read(digits_run, tmp_path, monkeypatch):
    checkpoint = read_checkpoint(digits_run / "checkpoints" / "last.ckpt")
    software = {"lightning": "2.6.0"}
    config = {"recipe": checkpoint["recipe"], "weights": "raw", "step": 2, "software": software}
    weights = {**checkpoint["state_dict"], HEAD: torch.full((4, 32), torch.nan)}
    with pytest.raises(ValueError, match=r"head\.weight must hold finite numbers"):
        write_export(tmp_path / "shared", weights, config, "card")
    assert not (tmp_path / "shared").exists()
    monkeypatch.setattr(save, "check_tensors", lambda *_, **options: None)  # as another program would write it
    write_export(tmp_path / "shared", weights, config, "card")
    with pytest.raises(ValueError, match=r"head\.weight must .*: use another checkpoint, or other weights"):
        AsyncDiffusion.from_pretrained(tmp_path / "shared")


def test_weights_of_other_projects_are_checked(tmp_path):
    state = {"x_embedder.proj.weight": torch.ones(4, 1, 2, 2), "blocks.0.adaLN_modulation.1.weight": torch.ones(24, 4)}
    state["x_embedder.proj.weight"][0, 0, 0, 0] = torch.nan
    for suffix, write in {".pt": torch.save, ".safetensors": save_file}.items():
        file = tmp_path / f"dit{suffix}"
        write(state, file)
        with pytest.raises(ValueError, match=r"^x_embedder\.proj\.weight must hold finite numbers, .*: download"):
            read_source(file)
    torch.save({"model": state, "ema": state}, tmp_path / "both.pt")
    with pytest.raises(ValueError, match=r": try another --weights, or another file"):
        read_source(tmp_path / "both.pt")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_feature_extractors_are_checked(suffix, tmp_path):
    (torch.save if suffix == ".pth" else save_file)({"a": torch.tensor([1.0, torch.inf])}, tmp_path / f"net{suffix}")
    with pytest.raises(ValueError, match=r"^a must hold finite numbers, got NaN or infinity in 1 of its 2 values"):
        read_tensors(tmp_path / f"net{suffix}")


def test_reference_statistics_are_checked(tmp_path):
    import numpy as np

    np.savez(tmp_path / "reference.npz", mu=np.zeros(2), sigma=np.array([[1.0, 0.0], [0.0, np.nan]]))
    with pytest.raises(ValueError, match=r"^covariance must hold finite numbers, .* 1 of its 4 values"):
        load_reference(tmp_path / "reference.npz")


class Scaling(Autoencoder):
    """Codec of one layer with a given weight."""

    channels = pixel_channels = factor = 1

    def __init__(self, weight: float, dtype: str = "float32"):
        super().__init__(1.0, 0.0, dtype)
        self.weight = weight

    def load_network(self):
        network = torch.nn.Conv2d(1, 1, 1)
        torch.nn.init.constant_(network.weight, self.weight)
        return network

    def encode_raw(self, network, images):
        return network(images), None

    def decode_raw(self, network, raw):
        return network(raw)


@pytest.mark.parametrize(("weight", "dtype"), [(float("nan"), "float32"), (1e5, "float16")])
def test_weights_of_codecs_are_checked_in_their_data_type(weight, dtype):
    assert Scaling(1e5).decode(torch.ones(1, 1, 2, 2)).isfinite().all()
    with pytest.raises(ValueError, match=r"^weight must hold finite numbers, got NaN or infinity in 1 of its 1 values"):
        Scaling(weight, dtype).decode(torch.ones(1, 1, 2, 2))


def test_the_scale_of_cached_latents_is_a_number(tmp_path):
    manifest = {"version": 1, "codec": {"scale": [1.0], "shift": [0.0]}, "splits": {}}
    for shift in (0.0, float("nan")):
        manifest["codec"]["shift"] = [shift]
        contents = manifest | {"sha256": manifest_sha256(manifest)}
        (tmp_path / "manifest.json").write_text(json.dumps(contents))
        if shift == 0:
            assert read_manifest(tmp_path)["codec"]["shift"] == [0.0]
    with pytest.raises((ValueError, DamagedError), match=r"manifest\.json is damaged"):
        read_manifest(tmp_path)

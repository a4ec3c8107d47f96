"""Files whose descriptions are too large, too deep or of the wrong types are refused in one line, at no cost."""

import pickle
import resource
import threading
import zipfile
from contextlib import nullcontext

import pytest
import torch
from small_runs import small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.__main__ import main
from asyncdiff.checkpoints import object_config, read_checkpoint
from asyncdiff.checkpoints.build_limits import limited_to
from asyncdiff.checkpoints.export.save import write_export
from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO
from asyncdiff.checkpoints.load import find_damage
from asyncdiff.checkpoints.plain_values import MAX_DEPTH, MAX_VALUES, check_extent
from asyncdiff.cli.errors import user_error_message
from asyncdiff.evaluation.features.weights import read_tensors
from asyncdiff.model import DiffusionModel
from asyncdiff.networks import DiT, UNet

MEGABYTES = 300  # that a refusal may take; the numbers below stand for terabytes


def contents() -> dict:
    built = AsyncDiffusion(small_dit(), image_size=8)
    checkpoint = {"state_dict": built.state_dict(), "epoch": 0, "global_step": 1, "pytorch-lightning_version": "2.6.0"}
    built.on_save_checkpoint(checkpoint)
    return checkpoint


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.fixture
def refused(tmp_path):
    """Return a function that saves a changed checkpoint, and returns the line with which every reader refuses it."""

    def load(change) -> str:
        checkpoint, file = contents(), tmp_path / "hostile.ckpt"
        torch.save(checkpoint, file)
        AsyncDiffusion.load_from_checkpoint(file)  # whatever a load takes in any case
        change(checkpoint)
        torch.save(checkpoint, file)
        before, lines = peak(), []
        for read in (DiffusionModel.load, AsyncDiffusion.load_from_checkpoint):
            with pytest.raises(ValueError, match=r".") as refusal:
                read(file)
            lines.append(user_error_message(refusal.value))
        assert all(line is not None and "\n" not in line for line in lines)
        assert peak() - before < MEGABYTES
        return lines[0]

    return load


def network(**arguments):
    return lambda checkpoint: checkpoint["recipe"]["init_args"]["network"]["init_args"].update(arguments)


def another(class_path, **arguments):
    config = {"class_path": class_path, "init_args": arguments}
    return lambda checkpoint: checkpoint["recipe"]["init_args"].update(network=config)


def entries(**values):
    return lambda checkpoint: checkpoint.update({name.replace("__", "-"): value for name, value in values.items()})


def nested(depth: int, copies: int = 1):
    value = "x"
    for _ in range(depth):
        value = [value] * copies
    return value


@pytest.mark.parametrize(
    "change",
    [
        network(dim=6_400_000),
        network(depth=10**8),
        network(classes=10**12),
        network(channels=10**9),
        network(patch_size=10**6),
        network(mlp_ratio=1e12),
        network(dim=64),  # somewhat larger than the file: refused by the shapes
        another("asyncdiff.networks.UNet", width=10**6),
        another("asyncdiff.networks.UNet", blocks=10**8),
        another("asyncdiff.networks.UNet", middle_blocks=10**8),
        another("asyncdiff.networks.UNet", multipliers=[1] * 10_000),
        another("asyncdiff.networks.dit.DiTBlock", dim=10**6, heads=1),
        another("asyncdiff.networks.embeddings.LabelEmbedding", classes=10**13, dim=4),
    ],
)
def test_networks_larger_than_the_weights_are_refused(change, refused):
    line = refused(change)
    assert any(word in line for word in ("weights", "memory", "shape", "at most", "must be as large"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (network(dim="x"), ""),
        (network(dim=[1]), ""),
        (network(unknown=1), "asyncdiff.networks.DiT cannot be built as the file describes it"),
        (entries(recipe={"class_path": "asyncdiff.AsyncDiffusion", "init_args": {}}), "network"),
        (another(["asyncdiff.networks.DiT"]), ""),
        (another("asyncdiff.networks.DiT.forward"), "class_path"),
        (entries(state_dict="x"), "its entry state_dict is of another form: choose a checkpoint written by train.py"),
        (entries(state_dict={"a": 1}), "its entry state_dict is of another form"),
        (entries(ema=[1]), "its entry ema is of another form"),
        (entries(ema={"0.9": 3}), "its entry ema is of another form"),
        (entries(ema={"0.9": {"weights": 5}}), "its entry ema is of another form"),
        (entries(global_step="x"), "its entry global_step is of another form"),
        (entries(pytorch__lightning_version=[1]), ""),
    ],
)
def test_values_of_the_wrong_types_are_refused(change, words, refused):
    assert words in refused(change)


def test_a_resumed_run_checks_the_entries(tmp_path):
    torch.save(contents() | {"ema": [1]}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="its entry ema is of another form"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("levels", [nested(12, copies=10), nested(MAX_DEPTH + 1), ["x"] * (MAX_VALUES + 1)])
def test_object_configs_are_bounded(levels, refused):
    """A list of a list of ... of itself ten times takes a few bytes, and more values than there are atoms on Earth."""
    line = refused(lambda checkpoint: checkpoint["recipe"]["init_args"].update(levels=levels))
    assert line.startswith("recipe of the checkpoint must ")
    with pytest.raises(ValueError, match="^the object config must "):
        object_config.build({"class_path": "asyncdiff.networks.DiT", "init_args": {"dim": levels}})


def test_a_pickle_deeper_than_python_can_count_is_refused(tmp_path):
    """pickle writes no such nesting, and reads it without any recursion."""
    checkpoint = contents()
    checkpoint["recipe"]["init_args"]["levels"] = "MARK"
    torch.save(checkpoint, tmp_path / "a.ckpt")
    deep = b"]" * 100_000 + b"a" * 99_999  # lists, then appends
    mark = pickle.BINUNICODE + (4).to_bytes(4, "little") + b"MARK"
    with zipfile.ZipFile(tmp_path / "a.ckpt") as old, zipfile.ZipFile(tmp_path / "deep.ckpt", "w") as new:
        for entry in old.infolist():
            record = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert mark in record
                start = record.index(mark)
                memo = record[start + len(mark) :]  # the string is put into the memo
                record = record[:start] + deep + memo
            new.writestr(entry.filename, record)
    with pytest.raises(ValueError, match=f"nested at most {MAX_DEPTH} deep"):
        read_checkpoint(tmp_path / "deep.ckpt")


def test_configs_at_the_bounds_are_accepted():
    check_extent(nested(MAX_DEPTH), "it")
    check_extent(["x"] * (MAX_VALUES - 1), "it")


@pytest.mark.parametrize("read", [lambda file: DiffusionModel.load(file), lambda file: read_tensors(file)])
@pytest.mark.parametrize("kind", ["compressed", "repeated"])
def test_archives_that_unpack_to_more_than_their_size_are_refused(read, kind, tmp_path):
    torch.save(contents(), tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as old,
        zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED if kind == "compressed" else 0) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        if kind == "repeated":  # a thousand entries of the directory, one record
            new.writestr("archive/data/999", b"\0" * 10**6)
            record = new.getinfo("archive/data/999")
            new.filelist += [record] * 1000
    with pytest.raises(ValueError, match="its records are compressed or larger than the file"):
        read(tmp_path / "bomb.ckpt")
    assert find_damage(tmp_path / "a.ckpt") is None


def test_a_header_of_safetensors_that_claims_more_than_the_file_is_refused(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4000000000000000000]}}'
    file = tmp_path / "a.safetensors"
    for claimed in (header, header.replace(b"[0,4000000000000000000]", b"[0,4]")):
        file.write_bytes(len(claimed).to_bytes(8, "little") + claimed + b"\0\0\0\0")
        with pytest.raises(ValueError, match="cannot be read safely"):
            read_tensors(file)
    file.write_bytes((2**62).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="cannot be read safely"):
        read_tensors(file)


# The limit itself


def test_the_limit_accepts_networks_of_the_file_s_size_and_counts_its_own_thread_only():
    weights = small_dit().state_dict()
    with limited_to(weights, "a.ckpt"):
        for build in (
            small_dit,
            lambda: UNet(channels=1, width=8, multipliers=(1,), attention=(), blocks=1, head_dim=8),
        ):
            build()
            other = threading.Thread(target=lambda: DiT(dim=512, depth=8, heads=8))
            other.start()
            other.join()
    DiT(dim=128, depth=4, heads=8)  # outside of it nothing is counted


class Masked(torch.nn.Module):
    """Network of a package of the user: a mask with infinities, and a frozen part that is not saved."""

    channels = 1

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 1)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer("table", torch.zeros(2**23), persistent=False)

    def grid(self, size):
        return size

    def forward(self, x, t, labels=None):
        return self.conv(x)


def test_classes_of_other_packages_may_have_more_weights_than_the_file_and_infinite_buffers(tmp_path):
    built, file = AsyncDiffusion(Masked(), image_size=8), tmp_path / "a.ckpt"
    checkpoint = {"state_dict": built.state_dict(), "pytorch-lightning_version": "2.6.0"}
    built.on_save_checkpoint(checkpoint)
    for broken in (False, True):
        if broken:
            checkpoint["state_dict"]["denoiser.network.conv.weight"].fill_(torch.inf)
        torch.save(checkpoint, file)
        for read in (DiffusionModel.load, AsyncDiffusion.load_from_checkpoint):
            with pytest.raises(ValueError, match=r"conv\.weight must hold") if broken else nullcontext():
                loaded = read(file, allow=("asyncdiff", Masked.__module__))
                assert loaded.denoiser.network.mask.isneginf().sum() == 6


def test_hooks_of_the_limit_are_registered_once():
    """PyTorch iterates over them in every thread that builds a module, so adding and removing some would break that."""
    with limited_to({}, "a.ckpt"):
        during = dict(torch.nn.modules.module._global_parameter_registration_hooks)
        with limited_to({}, "b.ckpt"):
            small_dit()
    assert dict(torch.nn.modules.module._global_parameter_registration_hooks) == during


@pytest.mark.parametrize("layers", [10**8, 10**5], ids=["endless", "many"])
def test_modules_without_weights_are_counted_too(layers):
    built = []

    def endless():
        for _ in range(layers):
            built.append(1)
            yield torch.nn.Identity()

    with limited_to({"a": torch.ones(1)}, "a.ckpt"), pytest.raises(ValueError, match="many more modules"):
        torch.nn.ModuleList(endless())
    assert len(built) < 10_000


def test_exports_are_bounded_as_checkpoints_are(tmp_path):
    checkpoint = contents()
    software = {"lightning": "2.6.0"}
    config = {"recipe": checkpoint["recipe"], "weights": "raw", "step": 1, "software": software}
    network(depth=1000)(checkpoint)
    write_export(tmp_path / "shared", checkpoint["state_dict"], config, "card")
    with pytest.raises(ValueError, match=r"^the model in .*shared must be as large as its \d+ weights, got"):
        AsyncDiffusion.from_pretrained(tmp_path / "shared")
    config["recipe"]["init_args"]["levels"] = nested(MAX_DEPTH + 1)
    write_export(tmp_path / "deep", checkpoint["state_dict"], config, "card")
    with pytest.raises(ValueError, match=r"deep/config\.yaml:\d+: .*; download or export it again"):
        AsyncDiffusion.from_pretrained(tmp_path / "deep")


def test_exporting_builds_no_part_larger_than_the_file(tmp_path, capfd):
    """The sampler's and the training's parts may be of any class of the package, networks among them."""
    checkpoint = contents()
    endless = {"class_path": "asyncdiff.networks.DiT", "init_args": {"depth": 1000, "dim": 64, "heads": 1}}
    checkpoint["recipe"]["init_args"]["weighting"] = endless
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "shared")])
    assert "must be as large as its" in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "shared").exists()

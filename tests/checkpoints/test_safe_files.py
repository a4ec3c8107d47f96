"""No file can execute code: a pickle with a payload is refused with a one-line error wherever files are read."""

import ast
import io
import pickle
import re
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.__main__ import main
from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO
from asyncdiff.cli import train as cli
from asyncdiff.cli.errors import user_error_message
from asyncdiff.cli.jobs.experiment_file import Experiment
from asyncdiff.evaluation import reference_statistics
from asyncdiff.evaluation.features.inception import InceptionFeatures
from asyncdiff.evaluation.features.lpips import LPIPS
from asyncdiff.evaluation.features.timm import TimmFeatures
from asyncdiff.evaluation.features.weights import file_sha256
from asyncdiff.latents import DiffusersAutoencoder, TinyAutoencoder
from asyncdiff.training.fsdp2 import FullyShard
from asyncdiff.training.warm_start import load_pretrained
from datamodules import Arrays, Digits, EdmZip, ImageNet64, LatentCache
from datamodules.index_cache import cached_arrays

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("asyncdiff", "datamodules", "benchmarks")
REASON = r"it (would call [\w.]+|is damaged or in another format)"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYNCDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["train.py"])


class Payload:
    """Creates the file `marker` when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def payload(tmp_path):
    """Yield a payload, and check that it was never executed."""
    yield Payload(tmp_path / "marker")
    assert not (tmp_path / "marker").exists()


def model() -> AsyncDiffusion:
    return AsyncDiffusion(small_dit(), image_size=8)


def contents(**more) -> dict:
    """Contents of a complete checkpoint of AsyncDiffusion."""
    built = model()
    checkpoint = {"state_dict": built.state_dict(), "epoch": 0, "global_step": 1, "pytorch-lightning_version": "2.6.0"}
    built.on_save_checkpoint(checkpoint)
    return checkpoint | more


SAVED = {
    "torch.save": torch.save,
    "torch.save of old": lambda value, file: torch.save(value, file, _use_new_zipfile_serialization=False),
    "pickle": lambda value, file: Path(file).write_bytes(pickle.dumps(value)),
}


def writer(payload, save):
    def write(path="evil.ckpt", **more) -> Path:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        save(contents(more=payload, **more), file)
        return file

    return write


@pytest.fixture
def poisoned(payload):
    """Return a function that writes a checkpoint with a payload and returns its path."""
    return writer(payload, torch.save)


@pytest.fixture(params=SAVED)
def poisoned_in_any_format(request, payload):
    """The same for all formats in SAVED; torch.load refuses plain pickles before it reaches the payload."""
    return writer(payload, SAVED[request.param])


def line(call, *args, **options) -> str:
    """Return the one-line error of a call that must fail, as a command would print it."""
    with pytest.raises((ValueError, OSError)) as refusal:
        call(*args, **options)
    reported = user_error_message(refusal.value)
    assert reported is not None, "it was not refused on purpose"
    assert "\n" not in reported
    return reported


def stopped(capfd, call, *words) -> str:
    """Return the last line on stderr of a command that must exit with code 2 and print no traceback."""
    with pytest.raises(SystemExit) as ending:
        call([str(word) for word in words])
    assert ending.value.code == 2
    reported = capfd.readouterr().err
    assert "Traceback" not in reported
    return reported.splitlines()[-1]


def quiet(**options):
    return quiet_trainer(Path(), max_steps=2, **options)


def test_the_payload_runs_when_a_pickle_is_read(tmp_path):
    """Check the premise of all tests in this file."""
    torch.save(contents(more=Payload(tmp_path / "marker")), "evil.ckpt")
    torch.load("evil.ckpt", weights_only=False)
    assert (tmp_path / "marker").exists()


# Checkpoints


def test_load_from_checkpoint_refuses_code(poisoned_in_any_format):
    reported = line(AsyncDiffusion.load_from_checkpoint, poisoned_in_any_format())
    assert re.match(f"evil.ckpt cannot be read safely as a checkpoint: {REASON}$", reported)


def test_pretrained_weights_with_code_are_refused(poisoned):
    assert "cannot be read safely" in line(load_pretrained, model().model, poisoned())


def test_the_trainer_with_the_plugin_refuses_code(poisoned):
    run = quiet(plugins=[AtomicCheckpointIO()])
    reported = line(run.validate, model(), datamodule=Digits(), ckpt_path=poisoned())
    assert reported.startswith("evil.ckpt cannot be read safely as a checkpoint: it would call")
    refused = line(run.fit, model(), datamodule=Digits(), ckpt_path=poisoned(), weights_only=False)
    assert refused.startswith(
        "weights_only=False is not supported: it would execute arbitrary code from the checkpoint"
    )


def test_the_trainer_without_the_plugin_refuses_code(poisoned):
    """Lightning itself reads the file in this case."""
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        quiet().fit(model(), datamodule=Digits(), ckpt_path=poisoned())


def test_fully_shard_refuses_code(poisoned):
    strategy = FullyShard()
    strategy.broadcast = lambda path: path
    strategy._lightning_module = model()
    strategy._model = strategy._lightning_module
    reported = line(strategy.load_checkpoint, poisoned())
    assert reported.startswith("evil.ckpt cannot be read safely as a checkpoint: ")


def test_train_py_refuses_code(poisoned, capfd):
    Path("experiment.yaml").write_text(
        "data: datamodules.Digits\n"
        "model: {image_size: 8, network: {class_path: asyncdiff.networks.DiT, "
        "init_args: {channels: 1, patch_size: 2, dim: 32, depth: 1, heads: 2, classes: 10}}}\n"
        "trainer: {accelerator: cpu, logger: false, enable_model_summary: false, default_root_dir: run, max_steps: 1}\n"
    )
    evil = poisoned()
    for words in (("fit", "--ckpt_path", evil), ("predict", "--ckpt_path", evil), ("fit", "--model.pretrained", evil)):
        reported = stopped(capfd, cli.main, words[0], "--config", "experiment.yaml", *words[1:])
        assert reported.startswith("error: evil.ckpt cannot be read safely as a checkpoint: it would call")
    reported = stopped(
        capfd, cli.main, "fit", "--config", "experiment.yaml", "--ckpt_path", evil, "--weights_only", "false"
    )
    assert reported.startswith("error: weights_only=False is not supported")


def test_commands_refuse_code(poisoned, capfd):
    evil = poisoned("run/checkpoints/last.ckpt")
    Path("run/config.yaml").write_text("data: {class_path: datamodules.Digits}\n")
    for words in (
        ("sample", "run"),
        ("sample", evil),
        ("evaluate", "run", "--likelihood"),
        ("export", "run", "--output", "x"),
        ("port", evil, "--kind", "dit", "--output", "x.ckpt"),
    ):
        assert "cannot be read safely as a checkpoint: it would call" in stopped(capfd, main, *words)


# Exports


def test_exports_with_code_are_refused(payload):
    torch.save(contents(), "good.ckpt")
    main(["export", "good.ckpt", "--output", "good"])
    weights = Path("good/model.safetensors")
    whole = weights.read_bytes()
    for write in SAVED.values():
        write(contents(more=payload), weights)
        assert "is not a valid safetensors file" in line(AsyncDiffusion.from_pretrained, "good")
    weights.write_bytes(whole)
    Path("good/pytorch_model.bin").write_bytes(pickle.dumps(payload))  # a file that nobody asked for
    assert AsyncDiffusion.from_pretrained("good").classes == 10
    Path("good/config.yaml").write_text(f"!!python/object/apply:pathlib.Path.touch [{payload.marker}]")
    assert "was changed after the export" in line(AsyncDiffusion.from_pretrained, "good")


def test_yaml_tags_with_code_are_refused(payload, capfd):
    for tag in ("object/apply:os.system", "object/new:os.system", "name:os.system", "module:os"):
        Path("evil.yaml").write_text(f"model: !!python/{tag} ['touch {payload.marker}']\n")
        assert "evil.yaml" in line(Experiment, Path("evil.yaml"))
    assert f"tags are not allowed, got !!python/{tag}" in stopped(capfd, cli.main, "fit", "--config", "evil.yaml")


# Codecs


def test_tiny_autoencoders_refuse_code(poisoned_in_any_format):
    good = {"0.weight": torch.zeros(4, 3, 3, 3), "14.weight": torch.zeros(4, 4, 3, 3)}
    evil = poisoned_in_any_format("evil.pth", **good)
    codec = TinyAutoencoder(str(evil), str(evil))
    assert re.search(f"cannot be read safely as a checkpoint: {REASON}$", line(codec.encode, torch.zeros(1, 3, 32, 32)))


def test_autoencoders_of_diffusers_refuse_code(payload):
    from diffusers import AutoencoderKL

    sizes = {"block_out_channels": (4,), "norm_num_groups": 4, "latent_channels": 2}
    AutoencoderKL(**sizes).save_pretrained("vae", safe_serialization=False)
    file = Path("vae/diffusion_pytorch_model.bin")
    torch.save(torch.load(file, weights_only=True) | {"more": payload}, file)
    assert "the weights in vae cannot be loaded with its config.json" in line(
        DiffusersAutoencoder("vae").encode, torch.zeros(1, 3, 8, 8)
    )


# Evaluation


def test_feature_networks_refuse_code(poisoned_in_any_format):
    evil = poisoned_in_any_format("evil.pth")
    sha = file_sha256(evil)
    for kind in (
        lambda: InceptionFeatures(str(evil), sha256=sha),
        lambda: TimmFeatures("resnet10t", str(evil)),
        lambda: LPIPS("alex", str(evil), sha),
    ):
        assert re.match(f"weights evil.pth cannot be read safely: {REASON}$", line(kind))


def objects(payload) -> np.ndarray:
    return np.array([payload, payload], dtype=object)


def test_reference_statistics_refuse_code(payload, poisoned_in_any_format):
    np.savez("evil.npz", mu=objects(payload), sigma=objects(payload))
    assert "reference must contain arrays mu and sigma, got evil.npz" in line(
        reference_statistics.load_reference, Path("evil.npz")
    )
    for name, prefix in (
        ("evil_too.npz", "reference must contain arrays mu and sigma, got evil_too.npz: "),
        ("evil_too.safetensors", "reference evil_too.safetensors cannot be read: "),
    ):
        assert line(reference_statistics.load_reference, poisoned_in_any_format(name)).startswith(prefix)


# Data


def test_arrays_refuse_code(payload):
    np.save("train.npy", objects(payload))
    assert "is not an array that can be read safely" in line(Arrays(".", size=8).setup, "fit")
    Path("train.npy").write_bytes(pickle.dumps(payload))  # what numpy reads as a pickle, if it may
    assert "is not an array that can be read safely" in line(Arrays(".", size=8).setup, "fit")


def test_imagenet64_batches_refuse_code(payload):
    folder = Path("imagenet64")
    folder.mkdir()
    for name in ("train_data_batch_1", "val_data"):
        np.savez(folder / f"{name}.npz", data=np.zeros((2, 3 * 64 * 64), np.uint8), labels=objects(payload))
    with pytest.warns(UserWarning, match="holds 1 of 10"):
        assert "cannot be read" in line(ImageNet64(str(folder)).setup, "fit")
    for name in ("train_data_batch_1", "val_data"):
        (folder / f"{name}.npz").unlink()
        (folder / name).write_bytes(pickle.dumps(payload))
    assert "got a pickle, which can run any code when read" in line(ImageNet64(str(folder)).setup, "fit")


def test_zip_archives_refuse_arrays_of_objects(payload):
    stream = io.BytesIO()
    np.save(stream, objects(payload))
    with zipfile.ZipFile("evil.zip", "w") as archive:
        for i in range(4):
            archive.writestr(f"{i}.npy", stream.getvalue())
    data = EdmZip("evil.zip", size=8, on_corrupt="raise", horizontal_flip=False)
    assert "evil.zip" in line(lambda: next(iter(data.images("train", 2))))


def test_cached_indices_with_code_are_computed_again(payload):
    def found() -> np.ndarray:
        return cached_arrays("kind", "identity", lambda: {"names": np.arange(3)})["names"]

    found()
    (file,) = Path("cache").glob("kind-*")
    with file.open("wb") as stream:
        np.save(stream, objects(payload))
    content = file.read_bytes()
    file.write_bytes(content + zlib.crc32(content).to_bytes(4, "little"))  # a matching checksum
    assert np.array_equal(found(), np.arange(3))


def test_latent_caches_refuse_code(payload):
    folder = Path("latents")
    folder.mkdir()
    (folder / "manifest.json").write_bytes(pickle.dumps(payload))
    assert "latents" in line(LatentCache("latents", size=4, channels=4).setup, "fit")


# Source code: the linter finds calls that could execute code from a file; pyproject.toml lists them


def lint(*argv, **options):
    rules = ["--select", "S102,S301,S302,S307,S506,S602,S604,S605,TID251"]
    command = [sys.executable, "-m", "ruff", "check", "--quiet", *rules, *argv]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, **options)


def unsafe_parts(code: str) -> list[str]:
    """Return arguments that allow code in data files, unless they have their safe value, and calls of two builtins."""
    safe = {"allow_pickle": False, "weights_only": True}
    nodes = [*ast.walk(ast.parse(code))]
    flags = [node for node in nodes if isinstance(node, ast.keyword) and node.arg in safe]
    found = [ast.unparse(node) for node in flags if getattr(node.value, "value", None) is not safe[node.arg]]
    calls = [getattr(node.func, "id", "") for node in nodes if isinstance(node, ast.Call)]
    return [*found, *(name for name in calls if name in ("__import__", "compile"))]


def test_no_package_reads_pickles():
    done = lint("train.py", *PACKAGES)
    assert (done.returncode, done.stdout) == (0, "")
    files = [ROOT / "train.py", *(file for name in PACKAGES for file in (ROOT / name).rglob("*.py"))]
    texts = {file: file.read_text() for file in files}
    assert len(texts) > 150
    suspects = "allow_pickle|weights_only|__import__|compile"
    found = {file: unsafe_parts(text) for file, text in texts.items() if re.search(suspects, text)}
    assert len(found) > 5
    assert not any(found.values()), found


UNSAFE = """
import importlib, joblib, marshal, os, pickle, shelve, subprocess, torch, yaml
from torch import load
torch.load(f, weights_only=True)
torch.jit.load(f)
torch.hub.load(f)
torch.package.PackageImporter(f)
torch.serialization.load(f)
torch.serialization.safe_globals([f])
pickle.load(f)
pickle.loads(f)
pickle.Unpickler(f)
marshal.load(f)
shelve.open(f)
joblib.load(f)
yaml.load(f, Loader=yaml.Loader)
yaml.load_all(f)
yaml.full_load(f)
yaml.full_load_all(f)
yaml.unsafe_load(f)
yaml.unsafe_load_all(f)
importlib.import_module(f)
os.system(f)
subprocess.run(f, shell=True)
eval(f)
exec(f)
"""


def test_unsafe_calls_are_found():
    found = lint("--output-format", "concise", "--stdin-filename", "asyncdiff/new.py", "-", input=UNSAFE).stdout
    lines = {int(line.split(":")[1]) for line in found.splitlines()}
    assert lines == set(range(3, UNSAFE.count("\n") + 1)), found
    safe = "import numpy as np, yaml\nnp.load(f)\nyaml.safe_load(f)\nmodel.eval()\nmodel.compile()\n"
    assert lint("--stdin-filename", "asyncdiff/new.py", "-", input=safe).stdout == ""
    for flag in ("allow_pickle=True", "allow_pickle=x", "weights_only=False", "weights_only=x"):
        assert unsafe_parts(f"read(f, {flag})") == [flag]
    assert unsafe_parts("__import__(f); compile(f, f, f)") == ["__import__", "compile"]
    assert unsafe_parts("read(f, allow_pickle=False, weights_only=True); re.compile(f)") == []

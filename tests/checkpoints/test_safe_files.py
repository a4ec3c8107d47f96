"""No file can execute code: a pickle with a payload is refused with a one-line error wherever files are read."""

import ast
import functools
import io
import pickle
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomize_weights
from lightning.pytorch import Trainer

from asyncdiff import AsyncDiffusion
from asyncdiff.__main__ import main
from asyncdiff.cli import train as cli
from asyncdiff.cli.commands.shared.experiment_file import Experiment
from asyncdiff.cli.errors import user_error_message
from asyncdiff.evaluation import reference_statistics
from asyncdiff.evaluation.features.inception import InceptionFeatures
from asyncdiff.evaluation.features.lpips import LPIPS
from asyncdiff.evaluation.features.timm import TimmFeatures
from asyncdiff.evaluation.features.weights import file_sha256
from asyncdiff.latents import DiffusersAutoencoder, TinyAutoencoder
from asyncdiff.networks.dit import DiT
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
    torch.manual_seed(0)
    return AsyncDiffusion(
        randomize_weights(DiT(channels=1, patch_size=2, dim=32, depth=1, heads=2, classes=10)), image_size=8
    )


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


def quiet(**options) -> Trainer:
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", max_steps=2, enable_checkpointing=False, **silent, **options)


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
    assert "cannot be read safely" in line(load_pretrained, model(), poisoned())


@pytest.mark.parametrize("work", ["fit", "validate"])
def test_the_trainer_with_the_plugin_refuses_code(poisoned, work):
    from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO

    run = quiet(plugins=[AtomicCheckpointIO()])
    reported = line(getattr(run, work), model(), datamodule=Digits(), ckpt_path=poisoned())
    assert reported.startswith("evil.ckpt cannot be read safely as a checkpoint: it would call")


def test_the_plugin_refuses_weights_only_false(poisoned):
    from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO

    run = quiet(plugins=[AtomicCheckpointIO()])
    refused = line(run.fit, model(), datamodule=Digits(), ckpt_path=poisoned(), weights_only=False)
    assert (
        refused == "weights_only=False is not supported: it would execute arbitrary code from the checkpoint; omit it"
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


@pytest.mark.parametrize("tag", ["object/apply:os.system", "object/new:os.system", "name:os.system", "module:os"])
def test_yaml_tags_with_code_are_refused(payload, tag, capfd):
    Path("evil.yaml").write_text(f"model: !!python/{tag} ['touch {payload.marker}']\n")
    assert "evil.yaml" in line(Experiment, Path("evil.yaml"))
    assert f"could not determine a constructor for the tag 'tag:yaml.org,2002:python/{tag}'" in stopped(
        capfd, cli.main, "fit", "--config", "evil.yaml"
    )


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


# Source code of the packages

# Calls that may execute code from a file, with the keyword arguments that prevent it; None means never to be used.
READERS: dict[str, dict[str, object] | None] = {
    "torch.load": {"weights_only": True},
    "torch.jit.load": None,
    "torch.hub.load": None,
    "torch.package.PackageImporter": None,
    "pickle.load": None,
    "pickle.loads": None,
    "pickle.Unpickler": None,
    "marshal.load": None,
    "marshal.loads": None,
    "shelve.open": None,
    "joblib.load": None,
    "yaml.load": None,
    "yaml.load_all": None,
    "yaml.full_load": None,
    "yaml.unsafe_load": None,
    "os.system": None,
    "eval": None,
    "exec": None,
    "compile": None,
    "__import__": None,
}
# Modules that may import others by a computed name, and why.
IMPORTERS = {
    "asyncdiff/__main__.py": "names in the table of commands",
    "asyncdiff/cli/commands/evaluate.py": "names in the table of measurements",
    "asyncdiff/checkpoints/object_config.py": "after the package was found among the allowed ones",
    "asyncdiff/cli/errors/suggestions.py": "names of our own packages, and what the command line has named itself",
}
# Classes that weights_only may read, and why.
SAFE_GLOBALS = {
    "asyncdiff/cli/commands/shared/external_checkpoints.py": "argparse.Namespace, which holds values and does nothing"
}


def dotted(node: ast.expr) -> str:
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@functools.cache
def sources() -> list[tuple[str, ast.Module]]:
    files = [ROOT / "train.py", *(file for name in PACKAGES for file in sorted((ROOT / name).rglob("*.py")))]
    return [(file.relative_to(ROOT).as_posix(), ast.parse(file.read_text())) for file in files]


def unsafe_calls(tree: ast.Module) -> list[str]:
    """Return the calls in a source file that could execute code from a data file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):  # under another name they would not be seen
            found += [f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in READERS]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else "?" for k in node.keywords}
        if name in READERS:
            needed = READERS[name]
            if needed is None or any(given.get(key) is not value for key, value in needed.items()):
                found.append(name)
        if given.get("allow_pickle", False) is not False or given.get("shell", False) is not False:
            found.append(name)
        if given.get("weights_only", True) is not True and name != "super.load_checkpoint":
            found.append(name)
    return found


def test_no_package_reads_pickles():
    trees = sources()
    assert len(trees) > 150
    assert {name: wrong for name, tree in trees if (wrong := unsafe_calls(tree))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=x)",
        "from torch import load",
        "pickle.load(f)",
        "np.load(f, allow_pickle=True)",
        "numpy.load(f, allow_pickle=x)",
        "yaml.load(f, Loader=yaml.Loader)",
        "eval('1')",
        "subprocess.run('x', shell=True)",
        "f.load_checkpoint(path, weights_only=False)",
    ],
)
def test_unsafe_calls_are_found(code):
    assert unsafe_calls(ast.parse(code))


@pytest.mark.parametrize(
    "code", ["torch.load(f, weights_only=True)", "np.load(f)", "yaml.safe_load(f)", "model.eval()"]
)
def test_safe_calls_are_accepted(code):
    assert not unsafe_calls(ast.parse(code))


@pytest.mark.parametrize(
    ("call", "known"), [("importlib.import_module", IMPORTERS), ("torch.serialization.safe_globals", SAFE_GLOBALS)]
)
def test_every_exception_is_listed_with_a_reason(call, known):
    found = {
        name for name, tree in sources() for n in ast.walk(tree) if isinstance(n, ast.Call) and dotted(n.func) == call
    }
    assert found == set(known)

"""Latent caches: contents, resuming, refusals, verification; a killed and resumed cache has the same bytes."""

import json
import math
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from asyncdiff.checkpoints.run_lock import InUseError, hold
from asyncdiff.cli.commands import cache_latents
from asyncdiff.latents import Codec, Identity, Moments
from asyncdiff.latents.cache import Settings, cache, verify
from asyncdiff.latents.cache.shards import data_arguments, path_arguments
from datamodules import Crops, Digits, EdmZip, HuggingFace, ImageFolder, ImageNet, ImageNet64, Lsun
from datamodules.storage.latent_shards import MANIFEST, DamagedError, read_header

SMALL = Settings(shard_size=100)


class Halves(Codec):
    """A tiny codec with a variance: averages of 2x2 pixels and of their left halves, so that mirroring matters."""

    scale, shift = (0.5, 2.0), (0.25, -1.0)
    channels, pixel_channels, factor = 2, 1, 2

    def __init__(self, gain: float = 1.0):
        self.gain = gain

    def moments(self, images):
        time.sleep(0.001)
        blocks = images.unfold(2, 2, 2).unfold(3, 2, 2)
        mean = torch.stack([blocks.mean((4, 5)), blocks[..., 0].mean(4)], 2)[:, 0] * self.gain
        return Moments(mean, -1 - mean.square())

    def decode(self, latents):
        raise NotImplementedError

    def weights_sha256(self):
        return None if self.gain == 1 else str(self.gain)


@pytest.fixture
def data():
    return Digits()


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of an uninterrupted cache."""
    out = tmp_path_factory.mktemp("whole")
    assert cache(Digits(), Halves(), out, SMALL, batch_size=32) is not None
    return out


def test_shards_hold_the_moments_of_the_images_and_of_their_mirror_images(whole, data):
    files = sorted(whole.glob("train-*"))
    assert [file.name for file in files] == [f"train-{k:05d}-of-00015.safetensors" for k in range(15)]
    assert not list(whole.glob("test-*"))  # the test split is val
    images = data.dataset("train").images
    codec = Halves()
    for number, file in enumerate(files):
        shard = load_file(file)
        rows = slice(100 * number, 100 * (number + 1))
        assert torch.equal(shard["index"], torch.arange(1438)[rows])
        assert torch.equal(shard["label"], data.dataset("train").labels[rows])
        for view, seen in enumerate((images[rows], images[rows].flip(-1))):
            moments = codec.moments(seen)
            assert torch.equal(shard["mean"][:, view], moments.mean.half())
            assert torch.equal(shard["logvar"][:, view], moments.logvar.half())


def test_the_manifest_describes_the_cache(whole, data):
    manifest = json.loads((whole / MANIFEST).read_text())
    assert manifest["version"] == 1
    assert manifest["codec"] == Halves().fingerprint()
    assert manifest["made_by"] == {"class_path": f"{__name__}.Halves", "init_args": {"gain": 1.0}}
    config = {"class_path": "datamodules.Digits", "init_args": {"held_out": 0.2}}
    assert manifest["data"] == config | {"size": 8, "channels": 1, "crop": None, "label_names": list("0123456789")}
    train = manifest["splits"]["train"]
    assert (train["count"], train["unreadable"], train["classes"]) == (1438, 0, 10)
    assert (train["shape"], train["views"], train["dtype"]) == ([2, 4, 4], 2, "float16")
    assert [shard["count"] for shard in train["shards"]] == [100] * 14 + [38]
    for shard in train["shards"]:
        assert (whole / shard["file"]).stat().st_size == shard["bytes"]
        assert read_header(whole / shard["file"]).start % 8 == 0
    images = data.dataset("train").images
    moments = Halves().moments(torch.cat([images, images.flip(-1)]))
    drawn = (moments.mean + (moments.logvar / 2).exp() * torch.randn(moments.mean.shape)).double()
    latents = (drawn - torch.tensor([0.25, -1.0])[:, None, None]) * torch.tensor([0.5, 2.0])[:, None, None]
    assert train["mean"] == pytest.approx(latents.mean((0, 2, 3)).tolist(), abs=0.02)
    assert train["std"] == pytest.approx(latents.std((0, 2, 3)).tolist(), abs=0.02)


def test_caches_of_deterministic_codecs_in_float32_without_flips(tmp_path, data):
    manifest = cache(data, Identity(1), tmp_path, Settings(("val",), "float32", flip=False))
    assert list(manifest["splits"]) == ["val"]
    (file,) = tmp_path.glob("*.safetensors")
    shard = load_file(file)
    assert set(shard) == {"mean", "label", "index"}
    assert torch.equal(shard["mean"][:, 0], data.dataset("val").images)
    assert manifest["splits"]["val"]["moments"] == ["mean"]


def test_a_second_run_can_add_a_split(tmp_path, data, whole):
    cache(data, Halves(), tmp_path, Settings(("val",), shard_size=100), batch_size=32)
    cache(data, Halves(), tmp_path, Settings(("train",), shard_size=100), batch_size=32)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize(("order", "world"), [((2, 0, 1), 3), (range(24, -1, -1), 25)])
def test_several_processes_write_the_same_cache_and_the_last_one_the_manifest(order, world, tmp_path, data, whole):
    """There are 19 shards: of 25 processes, the last six have nothing to do."""
    for number, rank in enumerate(order, 1):
        manifest = cache(data, Halves(), tmp_path, SMALL, batch_size=32, rank=rank, world=world)
        assert (manifest is not None) == (tmp_path / MANIFEST).exists() == (number == world)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_second_command_is_refused_unless_it_encodes_another_share(tmp_path, monkeypatch, rank):
    """Processes that share the work have different ranks."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    argv = ["--data", "datamodules.Digits", "--codec", "asyncdiff.latents.Identity", "--codec.init_args.channels", "1"]
    argv += ["--splits", "val", "--shard_size", "300", "--device", "cpu", "--out", str(tmp_path)]
    with hold(tmp_path, "being encoded", lock=tmp_path / ".rank_0.lock"):
        if rank:
            cache_latents.main(argv)
        else:
            with pytest.raises(InUseError, match=rf"{tmp_path} is being encoded by process {os.getpid()} on "):
                cache_latents.main(argv)
    assert len(list(tmp_path.iterdir())) == rank


@pytest.mark.slow
def test_the_command_starts_processes_whose_data_are_read_by_workers(tmp_path):
    options = ["--data", "datamodules.Digits", "--data.init_args.workers", "1", "--codec", "asyncdiff.latents.Identity"]
    options += ["--codec.init_args.channels", "1", "--splits", "val", "--shard_size", "100"]
    command = [sys.executable, "-m", "asyncdiff", "cache-latents", *options, "--processes", "2", "--out", "by_two"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cache(Digits(), Identity(1), tmp_path / "by_one", Settings(("val",), shard_size=100))
    assert contents(tmp_path / "by_two") == contents(tmp_path / "by_one")


def test_shards_of_at_most_256_megabytes_by_default():
    assert Settings().images(4, 32) == 8192  # Stable Diffusion's at 256 pixels: 32 KB an image
    assert Settings(flip=False).images(4, 32) == 16384
    assert Settings(dtype="float32").images(4, 32) == 4096
    assert Settings().images(32, 16) * 2 * 2 * 2 * 32 * 16**2 <= 2**28


# Kills


def work(out: Path) -> None:
    cache(Digits(), Halves(), out, SMALL, batch_size=32)
    os._exit(0)


def killed(out: Path, after: float) -> bool:
    """Return whether the process was still running when it was killed."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(out,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks among threads
        process.start()
    process.join(after)
    alive = process.is_alive()
    process.kill()  # has no effect if it has just ended
    process.join()
    return alive


@pytest.mark.slow
def test_kills_at_random_times_change_no_byte(tmp_path, whole):
    began = time.perf_counter()
    killed(tmp_path / "timed", 60)
    duration = time.perf_counter() - began
    moments, found = random.Random(0), []
    for trial in range(3):
        out = tmp_path / str(trial)
        while killed(out, moments.uniform(0, 0.7) * duration):
            names = [file.name for file in out.glob("*")] if out.exists() else []
            found.append(len([name for name in names if name.endswith(".safetensors")]))
            assert MANIFEST not in names or found[-1] == 19
            if len(found) > 40:
                break
        cache(Digits(), Halves(), out, SMALL, batch_size=32)
        assert contents(out) == contents(whole)  # and no temporary file is left
    assert any(0 < count < 19 for count in found)


def test_intact_shards_are_kept_and_damaged_ones_are_encoded_again(tmp_path, data, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    files = sorted(tmp_path.glob("train-*"))
    (tmp_path / MANIFEST).unlink()
    before = {file.name: file.stat().st_mtime_ns for file in files}
    damaged = {
        files[1]: lambda b: b[:-3] + bytes([b[-3] ^ 1]) + b[-2:],  # a bit
        files[2]: lambda b: b[:-100],
        files[3]: lambda b: b"",
        files[4]: lambda b: b[:20] + b"\0" + b[21:],
        files[5]: lambda b: b"\xff" * 8 + b[8:],
    }
    for file, damage in damaged.items():
        file.write_bytes(damage(file.read_bytes()))
    files[6].unlink()
    lines = []
    assert cache(data, Halves(), tmp_path, SMALL, batch_size=32, report=lines.append) is not None
    assert contents(tmp_path) == contents(whole)
    assert [line.split(" is damaged")[0] for line in lines] == [str(file) for file in damaged]
    assert all(line.endswith(": encoding it again") for line in lines)
    changed = {name for name, when in before.items() if (tmp_path / name).stat().st_mtime_ns != when}
    assert changed == {file.name for file in files[1:7]}


def test_partial_files_of_dead_processes_are_removed_and_others_kept(tmp_path, data):
    import socket

    host = socket.gethostname()
    stale = tmp_path / f".train-00000-of-00001.safetensors.{host}.{2**22 + 1}.tmp"  # above the largest number
    living = tmp_path / f".train-00000-of-00001.safetensors.{host}.{os.getpid()}.tmp"
    elsewhere = tmp_path / f".train-00000-of-00001.safetensors.other.{2**22 + 1}.tmp"
    for file in (stale, living, elsewhere):
        file.write_bytes(b"half")
    cache(data, Identity(1), tmp_path, Settings(("val",)))
    assert (stale.exists(), living.exists(), elsewhere.exists()) == (False, True, True)


# Refusals


@pytest.mark.parametrize(
    ("codec", "settings", "options", "differing"),
    [
        (Halves(2.0), SMALL, {}, "codec.weights, null instead of 2.0"),
        (Halves(), Settings(dtype="float32", shard_size=100), {}, "dtype, float16 instead of float32"),
        (Halves(), Settings(flip=False, shard_size=100), {}, "views, 2 instead of 1"),
        (Halves(), Settings(shard_size=50), {}, "shard_size, 100 instead of 50"),
        (Halves(), Settings(("train",), shard_size=50), {}, "shard_size, 100 instead of 50"),
        (Halves(), SMALL, {"held_out": 0.3}, "data.init_args.held_out, 0.2 instead of 0.3"),
    ],
)
def test_a_cache_with_other_settings_is_refused_and_left_unchanged(codec, settings, options, differing, whole):
    before = contents(whole)
    with pytest.raises(ValueError, match=f"--out must be .* with another {differing}: choose another --out"):
        cache(Digits(**options), codec, whole, settings)
    assert contents(whole) == before


def test_settings_that_change_no_pixel_may_differ(whole):
    before = contents(whole)
    cache(Digits(batch_size=3, seed=8), Halves(), whole, SMALL)
    assert contents(whole) == before


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for number in range(12):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[number % 2] / f"{number}.png")
    return folder


def folder_of(photos, **options):
    return ImageFolder(str(photos), 8, val_root=str(photos), **options)


CHANNELS = {"channels": 3}
ENCODED = {"crop": "adm", "reduced_decoding": False, "size": 8}


@pytest.mark.parametrize(
    ("data", "expected"),
    [(ImageFolder("a", 8, crop="adm", seed=1), {**ENCODED, **CHANNELS, "held_out": 0.05, "val_root": None}),
     (EdmZip("a", 8, crop="adm", workers=1), {**ENCODED, **CHANNELS, "held_out": 0.01, "val_root": None}),
     (Lsun("a", 8, crop="adm"), {**ENCODED, **CHANNELS, "held_out": 0.01, "categories": None}),
     (ImageNet("a", 8, crop="adm", on_corrupt="raise"), {**ENCODED, "ground_truth": None}),
     (HuggingFace("a", 8, crop="adm"), {**ENCODED, **CHANNELS, "held_out": 0.01, "root": "a", "train_split": "train"}
      | dict.fromkeys(["config_name", "image_column", "label_column", "revision", "test_split", "val_split"])),
     (ImageNet64("a"), {"converted": None, "size": 64}),
     (Crops("a", 8), {**CHANNELS, "crops": 10000, "held_out": 0.1, "labels": "none", "scale": 1.0, "size": 8}),
     (Digits(batch_size=3), {"held_out": 0.2})],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_the_recorded_arguments_of_a_data_module_are_those_of_version_0_1(data, expected):
    """A cache is compared by them: an argument more or less would refuse every existing cache."""
    recorded = {name: value for name, value in data_arguments(data) if name not in path_arguments(data)}
    assert recorded == expected


def test_a_folder_that_changed_is_refused_and_one_that_moved_is_not(photos, tmp_path):
    out = tmp_path / "cache"
    cache(folder_of(photos), Identity(), out, Settings())
    moved = photos.rename(tmp_path / "moved")
    assert cache(folder_of(moved), Identity(), out, Settings()) is not None
    (moved / "a" / "0.png").rename(moved / "a" / "00.png")
    with pytest.raises(ValueError, match=r"another set of images \(names or labels have changed\)"):
        cache(folder_of(moved), Identity(), out, Settings())


@pytest.mark.filterwarnings("ignore:cannot read")
def test_unreadable_images_are_left_out_and_counted(photos, tmp_path):
    (photos / "a" / "2.png").write_bytes(b"no image")
    (photos / "b" / "5.png").write_bytes(b"no image")
    manifest = cache(folder_of(photos), Identity(), tmp_path / "out", Settings(("train",), shard_size=5), batch_size=2)
    train = manifest["splits"]["train"]
    assert (train["count"], train["unreadable"]) == (10, 2)
    index = [k for file in sorted((tmp_path / "out").glob("*.safetensors")) for k in load_file(file)["index"].tolist()]
    names = [folder_of(photos).dataset("train").name(k)[-7:] for k in range(12)]
    assert index == [k for k in range(12) if not names[k].endswith(("a/2.png", "b/5.png"))]
    verify(tmp_path / "out")


class Wild(Identity):
    """A codec whose numbers are too large for one image."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def moments(self, images):
        mean = images.clone()
        mean[3] = self.value
        return Moments(mean, None)


@pytest.mark.parametrize(
    ("value", "message"),
    [(1e5, "mean of latents must fit into float16, got 100000 for .*png: use --dtype float32"),
     (math.nan, "mean of latents must be finite, got NaN or infinity for .*png: remove the image")],
)  # fmt: skip
def test_errors_about_unstorable_latents_name_the_image(value, message, photos, tmp_path):
    data, out = folder_of(photos), tmp_path / "out"
    with pytest.raises(ValueError, match=message) as raised:
        cache(data, Wild(value), out, Settings())
    assert data.dataset("train").name(3) in str(raised.value)
    assert not list(out.iterdir())
    if value == 1e5:
        cache(data, Wild(value), out, Settings(dtype="float32"))


@pytest.mark.parametrize(
    ("channels", "size", "message"),
    [(3, 8, "--data must have 1 channels, as the codec does, got 3"),
     (1, 9, "size of the data module must be a multiple of the codec's 2 pixels, got 9: set it to 8")],
)  # fmt: skip
def test_data_that_the_codec_cannot_encode_are_refused(channels, size, message, photos, tmp_path):
    with pytest.raises(ValueError, match=message):
        cache(ImageFolder(str(photos), size, channels=channels), Halves(), tmp_path / "out", Settings())


def test_a_full_disk_is_a_one_line_error_and_leaves_no_partial_shard(tmp_path, data, monkeypatch):
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 5:  # two for every shard: the third
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match="cannot write .*train-00002-of-.*: No space left on device: free disk space"
    ) as e:
        cache(data, Halves(), tmp_path, SMALL, batch_size=32)
    assert "\n" not in str(e.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"train-{k:05d}-of-00015.safetensors" for k in (0, 1)]


# Verification


def test_verify_finds_every_flipped_byte(tmp_path, data):
    cache(data, Halves(), tmp_path, Settings(("val",), shard_size=180), batch_size=90)
    verify(tmp_path)
    places = random.Random(0)
    for file in sorted(tmp_path.glob("*.safetensors")):
        intact, header = file.read_bytes(), read_header(file).start
        for place in [*places.sample(range(header), 60), *places.sample(range(header, len(intact)), 20)]:
            file.write_bytes(intact[:place] + bytes([intact[place] ^ 1 << places.randrange(8)]) + intact[place + 1 :])
            with pytest.raises(DamagedError, match=f"^{file} is damaged, .*: delete it and run the command again$"):
                verify(tmp_path)
        file.write_bytes(intact)
    verify(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file.name} is missing: run the command"):
        verify(tmp_path)

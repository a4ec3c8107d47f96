"""File formats that are read: how to write a file, and how to read all of it into something that can be compared."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from latent_caches import write_latent_cache
from PIL import Image
from safetensors.torch import save_file

from asyncdiff.checkpoints import object_config, read_checkpoint
from asyncdiff.cli.jobs.experiment_file import Experiment
from asyncdiff.cli.jobs.external_checkpoints import read_tensors
from asyncdiff.evaluation import reference_statistics
from asyncdiff.evaluation.frechet import Gaussian
from asyncdiff.evaluation.result_card import make_card, read_card
from datamodules import Arrays, EdmZip, LatentCache, Lsun
from datamodules.images.image_files import ImageFiles
from datamodules.index_cache import cache_folder, cached_arrays
from datamodules.storage import npz_batches
from datamodules.storage.imagenet_tars import TarImages, tar_index
from datamodules.storage.latent_shards import MANIFEST, shard_name

SIZE = 8
OPTIONS: dict[str, Any] = {"size": SIZE, "channels": 3, "train": False, "flip": False, "on_corrupt": "raise"}


class Case(NamedTuple):
    """File format.

    Attributes:
        name: file name in the folder.
        make: writes the files into a folder.
        read: reads the content of a folder; equal for equal contents.
        checked: whether the format detects every change, by checksums.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    checked: bool = False


def noise(seed: int, side: int = 24) -> Image.Image:
    """Return an image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def encoded(seed: int, kind: str = "png", side: int = 24, **options: Any) -> bytes:
    """Return an image of random pixels as an encoded file."""
    stream = io.BytesIO()
    noise(seed, side).save(stream, kind, **options)
    return stream.getvalue()


def _image(kind: str, checked: bool = False, **options: Any) -> Case:
    def make(folder: Path) -> None:
        (folder / f"image.{kind}").write_bytes(encoded(0, kind, **options))

    def read(folder: Path) -> Any:
        data = ImageFiles(folder, [f"image.{kind}"], class_names=[], **OPTIONS)
        return data.read([(0, 0)])["image"].tolist()

    return Case(f"image.{kind}", make, read, checked)


def _of(data: Any) -> Any:
    """Return all images and labels of a data module."""
    splits = (data.images(name, 4) for name in ("train", "val"))
    batches = [batch for split in splits for batch in split]
    return [(batch["image"].tolist(), batch["label"].tolist()) for batch in batches]


def _make_zip(folder: Path) -> None:
    names = [f"00000/img{i:08d}.png" for i in range(6)]
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, encoded(i), zipfile.ZIP_DEFLATED if i % 2 else zipfile.ZIP_STORED)
        archive.writestr("dataset.json", json.dumps({"labels": [[name, i] for i, name in enumerate(names)]}))


def _read_zip(folder: Path) -> Any:
    data = EdmZip(str(folder / "images.zip"), SIZE, horizontal_flip=False, held_out=0.3, on_corrupt="raise")
    return _of(data)


def _make_tar(folder: Path) -> None:
    with tarfile.open(folder / "images.tar", "w") as archive:
        for i in range(5):
            info = tarfile.TarInfo(f"n0144076{i}/{i}.png")
            info.size = len(data := encoded(i))
            archive.addfile(info, io.BytesIO(data))


def _read_tar(folder: Path) -> Any:
    files, places = tar_index(folder / "images.tar")
    names = files.class_names(folder)
    options = {"class_names": names, "labels": files.labels(names), **OPTIONS}
    data = TarImages(folder / "images.tar", files.names, places=places, **options)
    return [data.read([(i, 0)])["image"].tolist() for i in range(len(data))], data.labels.tolist()


def _make_database(folder: Path) -> None:
    import lmdb

    environment = lmdb.open(str(folder), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for i in range(40):  # small values are stored in the leaves, large ones on separate pages
            transaction.put(b"%040x" % i, encoded(i, side=24 if i % 3 else 48))
    environment.close()
    (folder / "lock.mdb").unlink()


def _read_database(folder: Path) -> Any:
    return _of(Lsun(str(folder), SIZE, horizontal_flip=False, held_out=0.2, on_corrupt="raise"))


def _make_batch(folder: Path) -> None:
    values = np.random.default_rng(0)
    pixels = values.integers(0, 256, (6, 3 * SIZE * SIZE), dtype=np.uint8)
    np.savez_compressed(folder / "batch.npz", data=pixels, labels=values.integers(1, 10, 6))


def _read_batch(folder: Path) -> Any:
    batch = npz_batches.open_batch(folder / "batch.npz", size=SIZE, numbers=10)
    return batch.labels.tolist(), b"".join(npz_batches._chunks(batch))


def _make_arrays(folder: Path) -> None:
    np.save(folder / "train.npy", np.random.default_rng(0).normal(size=(6, 4, SIZE, SIZE)).astype(np.float32))


def _read_arrays(folder: Path) -> Any:
    return _of(Arrays(str(folder), SIZE, held_out=0.3))


def _make_cache(folder: Path) -> None:
    values = np.random.default_rng(0)
    latents = {name: values.normal(size=(4, 2, 4, 2, 2)).astype(np.float16) for name in ("mean", "logvar")}
    split = latents | {"label": np.arange(4), "index": np.arange(4)}
    write_latent_cache(folder, {"train": split, "val": split}, shard=4, scale=[1.0] * 4, shift=[0.0] * 4)


def _read_cache(folder: Path) -> Any:
    return _of(LatentCache(str(folder), 2, horizontal_flip=False, verify=True))


FINGERPRINT = {"features": {"name": "classifier", "dim": 8}, "images": "digits"}


def _make_reference(folder: Path) -> None:
    rows = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    gaussian = Gaussian(rows.double().mean(0), rows.double().T.cov())
    reference_statistics.save_reference(
        reference_statistics.Reference(gaussian, 20, rows, FINGERPRINT), folder / "reference.safetensors"
    )


def _make_statistics(folder: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 8))
    np.savez(folder / "statistics.npz", mu=rows.mean(0), sigma=np.cov(rows.T))


def _read_reference(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        reference = reference_statistics.load_reference(folder / name)
        rows = None if reference.features is None else reference.features.tolist()
        fingerprint = {key: value for key, value in reference.fingerprint.items() if key != "sha256"}
        return reference.gaussian.mean.tolist(), reference.gaussian.cov.tolist(), reference.count, rows, fingerprint

    return read


WEIGHTS = {"a.weight": torch.arange(96.0).reshape(8, 12), "b.bias": torch.ones(7)}


def _make_weights(folder: Path) -> None:
    save_file(WEIGHTS, folder / "weights.safetensors")


def _read_weights(folder: Path) -> Any:
    return {name: value.tolist() for name, value in read_tensors(folder / "weights.safetensors").items()}


def _make_checkpoint(folder: Path) -> None:
    torch.save(
        {"recipe": {"class_path": "asyncdiff.AsyncDiffusion", "init_args": {}}, "state_dict": WEIGHTS},
        folder / "last.ckpt",
    )


def _read_checkpoint(folder: Path) -> Any:
    checkpoint = read_checkpoint(folder / "last.ckpt")
    return checkpoint["recipe"], {name: value.tolist() for name, value in checkpoint["state_dict"].items()}


def _index_arrays() -> dict[str, np.ndarray]:
    return {"names": np.array([b"a/b.png", b"c/d.png"]), "begins": np.arange(200)}


def _make_index(folder: Path) -> None:
    cached_arrays("zip", 1, _index_arrays)
    (file,) = cache_folder().glob("zip-*")
    (folder / "zip.index").write_bytes(file.read_bytes())


def _read_index(folder: Path) -> Any:
    (file,) = cache_folder().glob("zip-*")
    file.unlink()
    file.write_bytes((folder / "zip.index").read_bytes())
    return {name: array.tolist() for name, array in cached_arrays("zip", 1, _index_arrays).items()}


def _make_card(folder: Path) -> None:
    (folder / "card.json").write_text(
        json.dumps(make_card({"split": "val", "count": 10}, {"frechet": 1.25, "kid": 0.5}))
    )


def _make_experiment(folder: Path) -> None:
    path = {"class_path": "asyncdiff.noise.AsyncPatch", "init_args": {"spread": 0.5}}
    levels = {"class_path": "asyncdiff.noise.AlongPath", "init_args": {"path": path}}
    (folder / "levels.yaml").write_text(json.dumps({"model": {"levels": levels}}, indent=1))


def _read_experiment(folder: Path) -> Any:
    return object_config.describe(Experiment(folder / "levels.yaml").levels())


CASES = {
    "JPEG": _image("jpeg"),
    "PNG": _image("png", checked=True),
    "WebP": _image("webp", lossless=True),
    "GIF": _image("gif"),
    "TIFF": _image("tiff"),
    "zip": Case("images.zip", _make_zip, _read_zip, checked=True),
    "tar": Case("images.tar", _make_tar, _read_tar, checked=True),
    "LMDB": Case("data.mdb", _make_database, _read_database, checked=True),
    "npz": Case("batch.npz", _make_batch, _read_batch, checked=True),
    "npy": Case("train.npy", _make_arrays, _read_arrays),
    "latent shards": Case(shard_name("train", 0, 1), _make_cache, _read_cache, checked=True),
    "manifests": Case(MANIFEST, _make_cache, _read_cache, checked=True),
    "index caches": Case("zip.index", _make_index, _read_index, checked=True),
    "references": Case(
        "reference.safetensors", _make_reference, _read_reference("reference.safetensors"), checked=True
    ),
    "published statistics": Case("statistics.npz", _make_statistics, _read_reference("statistics.npz"), checked=True),
    "weights": Case("weights.safetensors", _make_weights, _read_weights),
    "checkpoints": Case("last.ckpt", _make_checkpoint, _read_checkpoint, checked=True),
    "cards": Case("card.json", _make_card, lambda folder: read_card(folder / "card.json")),
    "YAML": Case("levels.yaml", _make_experiment, _read_experiment),
}

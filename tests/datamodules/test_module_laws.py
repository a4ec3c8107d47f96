"""Laws that several data modules share: refused arguments, damaged images, and what is pickled for workers."""

import multiprocessing
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoded_files import cache_fixture, encoded, npy, seen, write_lmdb, write_zip  # noqa: F401

from datamodules import (
    Arrays,
    Crops,
    EdmLatents,
    EdmZip,
    HuggingFace,
    ImageFolder,
    ImageNet,
    ImageNet64,
    Lsun,
    Streamed,
)
from datamodules.images.encoded import EncodedDataModule

WRONG: dict[Any, list[dict[str, Any]]] = {
    EdmZip: [{"channels": 2}, {"held_out": 1.0}, {"on_corrupt": "x"}, {"batch_size": 0}],
    EdmLatents: [{"shift": (0,)}, {"scale": (1, 1, 1, 0)}, {"channels": 0}, {"held_out": 0}],
    ImageNet: [{"crop": "random"}, {"on_corrupt": "ignore"}, {"size": 0}, {"workers": -1}],
    ImageFolder: [{"channels": 2}, {"held_out": 0.0}, {"held_out": 1.0}, {"on_corrupt": "ignore"}, {"size": 0}],
    HuggingFace: [{"channels": 2}, {"held_out": 1.0}, {"on_corrupt": "x"}, {"workers": -1}, {"seed": -1}],
    Streamed: [{"cache_gigabytes": -1}, {"held_out": 0.0}, {"classes": -1}, {"eval_batch_size": 0}],
    Crops: [{"scale": 0.0}, {"held_out": 0.0}, {"held_out": 1.0}, {"crops": 0}, {"channels": 2}, {"labels": "name"}],
    Lsun: [{"channels": 2}, {"held_out": 0.0}, {"on_corrupt": "x"}, {"categories": ["a", "a"]}],
    Arrays: [{"held_out": 0.0}, {"channels": 0}, {"scale": 0.0}, {"scale": -1.0}, {"scale": float("nan")}],
}


@pytest.mark.parametrize(("kind", "wrong"), [(kind, wrong) for kind, cases in WRONG.items() for wrong in cases])
def test_impossible_arguments_are_refused(kind: Any, wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name} must .*, got '?{re.escape(str(value))}.*: "):
        kind(**({"root": "/nowhere", "size": 8} | wrong))


def zip_of(root: Path, values: list[bytes], **options: Any) -> EncodedDataModule:
    files = {f"00000/img{i:08d}.png": value for i, value in enumerate(values)}
    file = str(write_zip(root / "a.zip", files))
    return EdmZip(file, 4, val_root=file, **options)


def database_of(root: Path, values: list[bytes], **options: Any) -> EncodedDataModule:
    for split in ("train", "val"):
        if not (root / f"a_{split}_lmdb").exists():
            write_lmdb(root / f"a_{split}_lmdb", values)
    return Lsun(str(root), 4, **options)


def arrays_of(root: Path, values: list[bytes]) -> Arrays:
    np.save(root / "train.npy", np.random.default_rng(0).standard_normal((len(values), 4, 4, 4)))
    return Arrays(str(root), 4)


def npz_of(root: Path, values: list[bytes]) -> ImageNet64:
    pixels = np.random.default_rng(0).integers(0, 256, (len(values), 48), dtype=np.uint8)
    for name in ("train_data_batch_1", "val_data"):
        np.savez(root / f"{name}.npz", data=pixels, labels=np.arange(len(values)) % 9 + 1)
    return ImageNet64(str(root), 4)


@pytest.mark.filterwarnings("ignore:.*holds 1 of 10")
@pytest.mark.parametrize("made", [zip_of, database_of, arrays_of, npz_of])
def test_data_sets_are_pickled_as_places_in_files(tmp_path: Path, made: Any) -> None:
    data = made(tmp_path, [encoded(7)] * 2000).dataset("train")
    text = pickle.dumps(data)
    assert len(text) < 2000 * (8 + 8) + 6000  # rows and labels; names alone are longer
    items = [(index, 10 * index) for index in (0, 900, 1800)]
    assert torch.equal(pickle.loads(text).__getitems__(items)["image"], data.__getitems__(items)["image"])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("made", "name"), [(zip_of, r"a.zip/00000/img00000005.png"), (database_of, r"key (30)+35")])
def test_damaged_images_are_left_out_or_stop_the_run(tmp_path: Path, made: Any, name: str, workers: int) -> None:
    values = [encoded(i) for i in range(12)]
    values[5], values[6] = values[5][:40], npy(np.zeros((4, 4, 3), np.uint8))
    data = made(tmp_path, values, batch_size=4, horizontal_flip=False, workers=workers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sorted(seen(data.train_dataloader())) == [0, 1, 2, 3, 4, 7, 7, 7, 8, 9, 10, 11]
        assert seen(data.val_dataloader()) == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    others = set(multiprocessing.active_children())
    loader = made(tmp_path, values, on_corrupt="raise", horizontal_flip=False, workers=workers).val_dataloader()
    with pytest.raises(ValueError, match=rf"cannot read .*{name}: .*; replace the file, or") as caught:
        list(loader)
    assert workers or "\n" not in str(caught.value)  # torch adds the traceback of the worker
    assert set(multiprocessing.active_children()) <= others  # a worker that is left could keep the program waiting

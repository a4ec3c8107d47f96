"""Laws that several data modules share: their options, refused arguments, damaged images, what workers unpickle."""

import inspect
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
from jsonargparse import ArgumentParser

import datamodules
from asyncdiff.cli.errors.diagnosis import explain_entries
from asyncdiff.cli.errors.entries import command_line_entries
from datamodules import (
    Arrays,
    Crops,
    Digits,
    EdmLatents,
    EdmZip,
    HuggingFace,
    ImageDataModule,
    ImageFolder,
    ImageNet,
    ImageNet64,
    Lsun,
    Streamed,
    classes,
)
from datamodules.images.encoded import EncodedDataModule

EXPORTED = [getattr(datamodules, name) for name in datamodules.__all__]
MODULES = [kind for kind in EXPORTED if issubclass(kind, ImageDataModule) and not inspect.isabstract(kind)]
LOADING = {"batch_size", "eval_batch_size", "workers", "seed"}
ENCODED = {"crop", "reduced_decoding", "horizontal_flip", "on_corrupt", "size", *LOADING}


def test_the_package_exports_every_class_that_files_may_name_without_their_package() -> None:
    assert set(datamodules.__all__) == {name for name in vars(classes) if not name.startswith("_")}


def test_all_data_modules_are_tested() -> None:
    assert len(MODULES) == 12
    assert sum(issubclass(kind, EncodedDataModule) for kind in MODULES) == 6


@pytest.mark.parametrize("kind", MODULES)
def test_options_of_the_command_line_have_a_text_and_are_the_arguments_in_python(kind: type[ImageDataModule]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    listed = {action.dest: action for action in parser._actions if action.dest != "help"}
    arguments = inspect.signature(kind).parameters
    assert (ENCODED if issubclass(kind, EncodedDataModule) else LOADING) <= arguments.keys() == listed.keys()
    for name, argument in arguments.items():
        option = listed[name]
        assert option._typehint == argument.annotation, name  # type: ignore[attr-defined]
        assert option.required == (argument.default is argument.empty), name
        assert option.required or option.default == argument.default, name
        assert len(str(option.help).split()) > 2, name


@pytest.mark.parametrize("kind", MODULES)
def test_a_misspelled_shared_option_is_refused_and_corrected(kind: Any) -> None:
    arguments = {} if kind is Digits else {"root": "/x", "size": 8}
    with pytest.raises(TypeError, match=r"(EncodedDataModule|ImageDataModule)\.__init__\(\) .* argument 'batchsize'"):
        kind(**arguments, batchsize=1)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    argv = [f"--data=datamodules.{kind.__name__}", "--data.init_args.batchsize=1"]
    found = explain_entries(parser, list(command_line_entries(parser, argv)), ValueError())
    expected = f"{kind.__name__} has no argument batchsize; did you mean batch_size?"
    assert found == f"--data.init_args.batchsize: {expected}"


def test_root_and_size_are_positional() -> None:
    data = ImageFolder("photos", 64, crop="adm", seed=3)
    assert (data.root, data.size, data.channels, data.crop, data.seed) == (Path("photos"), 64, 3, "adm", 3)
    with pytest.raises(TypeError, match=r"ImageFolder.__init__\(\) takes 3 positional arguments but 4"):
        ImageFolder("photos", 64, 1)  # type: ignore[call-arg, arg-type]


def test_arguments_that_a_class_fixes_are_no_options() -> None:
    assert "channels" not in inspect.signature(ImageNet).parameters
    with pytest.raises(TypeError, match="channels"):
        ImageNet("photos", 64, channels=1)

    class Textures(Crops):
        size = 64

        def __init__(self, root: str, *, level: int = 0, **options: Any) -> None:
            super().__init__(root, self.size, **options)

    expected = inspect.signature(Crops).parameters.keys() - {"size"} | {"level"}
    assert inspect.signature(Textures).parameters.keys() == expected


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

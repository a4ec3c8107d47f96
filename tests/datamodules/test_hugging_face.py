import json
import pickle
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoded_files import encoded, grays, seen, unpack

from datamodules.hugging_face import HuggingFace, TableImages

datasets = pytest.importorskip("datasets")

NAMES = ["ant", "bee", "cat"]
WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def table(values: Sequence[int], labels: Sequence[Any] | None = None, kind: Any = "names", **columns: Any) -> Any:
    """Gray images, labeled by their index modulo 3 by default."""
    features = {"image": datasets.Image()}
    content: dict[str, Any] = {"image": [{"bytes": encoded(value), "path": None} for value in values]} | columns
    if kind is not None:
        content["label"] = [i % 3 for i in range(len(values))] if labels is None else labels
        features["label"] = datasets.ClassLabel(names=NAMES) if kind == "names" else datasets.Value(kind)
    rest = datasets.Dataset.from_dict(content).features
    return datasets.Dataset.from_dict(content, features=datasets.Features({**rest, **features}))


def saved(place: Path, **splits: Any) -> Path:
    datasets.DatasetDict(splits).save_to_disk(str(place))
    return place


def parquet(place: Path, **splits: Any) -> Path:
    for name, data in splits.items():
        (place / "data").mkdir(parents=True, exist_ok=True)
        data.to_parquet(str(place / "data" / f"{name}-00000-of-00001.parquet"))
    return place


def hub(root: Path, **options: Any) -> HuggingFace:
    return HuggingFace(str(root), 4, **({"batch_size": 4, "horizontal_flip": False} | options))


def labels(batches: Any) -> list[int]:
    return [label for batch in batches for label in batch["label"].tolist()]


@pytest.mark.parametrize("write", [saved, parquet])
@pytest.mark.parametrize("workers", WORKERS)
def test_saved_tables_and_parquet_files_are_read(tmp_path: Path, write: Any, workers: int) -> None:
    root = write(tmp_path / "a", train=table(range(20)), validation=table(range(100, 105)), test=table([200]))
    data = hub(root, workers=workers)
    assert data.classes == 3
    assert seen(data.images("train", 6)) == list(range(20))
    assert labels(data.images("train", 6)) == [i % 3 for i in range(20)]
    assert sorted(seen(data.train_dataloader())) == list(range(20))
    assert seen(data.val_dataloader()) == [100, 101, 102, 103, 104]
    assert seen(data.test_dataloader()) == [200]


def test_a_table_without_splits_is_the_training_split(tmp_path: Path) -> None:
    table(range(200), kind=None).save_to_disk(str(tmp_path / "a"))
    data = hub(tmp_path / "a", held_out=0.1)
    assert data.classes == 0
    kept = seen(data.images("val", 50))
    assert sorted(kept + seen(data.images("train", 50))) == list(range(200))
    assert len(kept) == pytest.approx(20, abs=5 * 4.3)
    assert seen(hub(tmp_path / "a", held_out=0.1, seed=3).images("test", 50)) == kept


def test_a_folder_of_images_is_read_from_its_files(tmp_path: Path) -> None:
    for i in range(30):
        file = tmp_path / "train" / ["b", "a"][i % 2] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(i))
    data = hub(tmp_path, held_out=0.2)
    assert data.classes == 2
    pairs = [
        (g, label)
        for split in ("train", "val")
        for b in data.images(split, 30)  # type: ignore[arg-type]
        for g, label in zip(grays(b["image"]), b["label"].tolist(), strict=True)
    ]
    assert sorted(pairs) == [(i, 1 - i % 2) for i in range(30)]
    for file in tmp_path.rglob("0*.png"):
        file.unlink()
    with pytest.warns(UserWarning, match=r"cannot read .* train row \d+: .*0\d\.png"):
        left = seen(data.images("train", 30)) + seen(data.images("val", 30))
    assert sorted(left) == list(range(10, 30))


def test_hidden_files_are_no_images_and_folders_of_systems_no_classes(tmp_path: Path) -> None:
    files = {f"train/{'ab'[i % 2]}/{i}.png": encoded(i) for i in range(8)}
    hidden = ("train/a/._0.png", "train/.ipynb_checkpoints/0.png", "__MACOSX/train/a/0.png", "train/a/Thumbs.db")
    data = hub(unpack(tmp_path / "a", files | dict.fromkeys(hidden, b"not an image")), held_out=0.3)
    assert data.classes == 2
    assert len(data.dataset("train")) + len(data.dataset("val")) == 8  # type: ignore[arg-type]
    (tmp_path / "a" / "train" / "@eaDir").mkdir()
    with pytest.raises(ValueError, match=r"must not contain the folder @eaDir of an operating system, got it in"):
        hub(tmp_path / "a").setup()


def test_splits_may_be_named(tmp_path: Path) -> None:
    root = saved(tmp_path / "a", fit=table(range(8)), check=table([50]), dev=table([60]))
    named = hub(root, train_split="fit", val_split="check", test_split="dev")
    assert (seen(named.val_dataloader()), seen(named.test_dataloader())) == ([50], [60])
    found = hub(root, train_split="fit")
    assert (seen(found.val_dataloader()), seen(found.test_dataloader())) == ([60], [60])
    for argument in ("train_split", "val_split", "test_split"):
        with pytest.raises(ValueError, match=rf"{argument} must be a split of .* \(fit, check, dev\), got 'x': choose"):
            hub(root, **({"train_split": "fit"} | {argument: "x"})).setup()


def test_a_split_without_labels_is_skipped_unless_it_is_named(tmp_path: Path) -> None:
    unlabelled = table([7, 8], [-1, -1], "int64")
    root = saved(tmp_path / "a", train=table(range(8)), val=table([50]), test=unlabelled)
    assert seen(hub(root).test_dataloader()) == [50]
    with pytest.raises(ValueError, match=r"test_split must have labels as training has, got 'test' with -1 for some"):
        hub(root, test_split="test").setup()
    assert seen(hub(root, label_column="").test_dataloader()) == [7, 8]
    with pytest.raises(ValueError, match=r"labels of .* test must lie in \[0, 0\).*, got -1 in column 'label': remove"):
        hub(root, train_split="test").setup()


def test_labels_may_be_integers_or_strings(tmp_path: Path) -> None:
    root = saved(tmp_path / "a", train=table([1, 2, 3], [0, 4, 2], "int32"), val=table([4], [3], "int32"))
    assert hub(root).classes == 5
    assert labels(hub(root).val_dataloader()) == [3]
    root = saved(tmp_path / "b", train=table([1, 2, 3], ["z", "a", "z"], "string"), val=table([4], ["z"], "string"))
    data = hub(root)
    assert (data.classes, labels(data.images("train", 3)), labels(data.val_dataloader())) == (2, [1, 0, 1], [1])


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (
            table([1, 2], ["a", "b"], "string"),
            table([3], ["c"], "string"),
            r"occur in training, got 'c' in column 'lab",
        ),
        (table([1, 2], [0, 1], "int64"), table([3], [2], "int64"), r"lie in \[0, 2\), the classes of training, got 2"),
        (table([1, 2], [0, None], "int64"), table([3]), r"exist in every row, got none in 1 of 2"),
        (table([1, 2], [0, -1], "int64"), table([3]), r"lie in \[0, 1\), the classes of training, got -1"),
        (table([1, 2], [0.5, 1.5], "float32"), table([3]), r"be class labels, integers or strings, got float"),
    ],
)
def test_labels_that_are_not_classes_are_refused(tmp_path: Path, train: Any, val: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"labels of .* must {message}.*: ") as caught:
        hub(saved(tmp_path / "a", train=train, val=val)).setup()
    assert "\n" not in str(caught.value)


def test_columns_are_found_by_their_type_and_may_be_named(tmp_path: Path) -> None:
    data = table([1, 2, 3]).rename_columns({"image": "img", "label": "fine"})
    assert hub(saved(tmp_path / "a", train=data)).classes == 3
    two = data.add_column("coarse", [0, 0, 1]).cast_column("coarse", datasets.ClassLabel(names=["x", "y"]))
    with pytest.raises(ValueError, match=r"label_column must .* \(fine, coarse\), got 2 possible .*or set an empty"):
        hub(saved(tmp_path / "b", train=two)).setup()
    assert hub(tmp_path / "b", label_column="coarse").classes == 2
    assert hub(tmp_path / "b", label_column="").classes == 0
    masks = table([9, 9, 9]).select_columns(["image"]).rename_column("image", "mask")
    pair = datasets.concatenate_datasets([table([1, 2, 3]), masks], axis=1)
    with pytest.raises(ValueError, match=r"image_column must .* \(image, mask\), got 2 possible columns: choose"):
        hub(saved(tmp_path / "c", train=pair)).setup()
    assert set(seen(hub(tmp_path / "c", image_column="mask", held_out=0.5).images("train", 3))) == {9}
    with pytest.raises(ValueError, match=r"image_column must .* \(image, label, mask\), got 'x': choose"):
        hub(tmp_path / "c", image_column="x").setup()
    with pytest.raises(ValueError, match=r"image_column must .* \(none\), got 0 possible columns: choose from x, y"):
        hub(saved(tmp_path / "d", train=datasets.Dataset.from_dict({"x": [1, 2], "y": [3, 4]}))).setup()


def test_plain_parquet_files_with_bytes_are_read(tmp_path: Path) -> None:
    plain = datasets.Dataset.from_dict(
        {"picture": [encoded(i) for i in range(10)], "label": [i % 2 for i in range(10)]}
    )
    data = hub(parquet(tmp_path / "a", train=plain, validation=plain))
    assert data.classes == 2
    assert seen(data.val_dataloader()) == list(range(10))


@pytest.mark.parametrize("workers", WORKERS)
def test_a_damaged_cell_is_left_out_or_stops_the_run(tmp_path: Path, workers: int) -> None:
    data = table(range(12)).to_dict()
    data["image"] = [{"bytes": encoded(i), "path": None} for i in range(12)]
    data["image"][5]["bytes"] = encoded(5)[:40]
    data["image"][6] = None
    data["image"][7] = {"bytes": b"", "path": None}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    broken = datasets.Dataset.from_dict(data, features=features)
    root = saved(tmp_path / "a", train=broken, val=broken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = hub(root, workers=workers)
        assert sorted(seen(found.train_dataloader())) == [0, 1, 2, 3, 4, 8, 8, 8, 8, 9, 10, 11]
        assert seen(found.val_dataloader()) == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    with pytest.raises(ValueError, match=r"cannot read .*a val row 5: .*; replace the file, or leave it out"):
        list(hub(root, on_corrupt="raise").val_dataloader())


@pytest.mark.parametrize("write", [saved, parquet])
def test_truncated_files_are_refused(tmp_path: Path, write: Any) -> None:
    root = write(tmp_path / "a", train=table(range(50)), validation=table(range(5)))
    (file,) = [p for p in root.rglob("*") if p.suffix in (".arrow", ".parquet") and "train" in str(p)]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"root must be a data set that can be loaded, got .*a: .+") as caught:
        hub(root).setup()
    assert "\n" not in str(caught.value)


def test_offsets_outside_of_the_data_are_refused(tmp_path: Path) -> None:
    """Arrow would read there, and the process would end."""
    root = saved(tmp_path / "a", train=table(range(50)), validation=table(range(5)))
    (file,) = (root / "validation").glob("*.arrow")
    content, ends = file.read_bytes(), np.cumsum([0] + [len(encoded(i)) for i in range(5)]).astype("<i4").tobytes()
    assert content.count(ends) == 1
    file.unlink()  # the table in memory is mapped from it
    file.write_bytes(content.replace(ends, ends[:-4] + b"\0\0\0\x40"))
    with pytest.raises(ValueError, match=r"a validation is damaged: .*; write or download it again"):
        hub(root).setup()


def test_missing_or_too_little_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"root must be a folder or a name .*, got .*none: no such folder"):
        hub(tmp_path / "none").setup()
    (tmp_path / "void").mkdir()
    with pytest.raises(ValueError, match=r"root must be a data set that can be loaded, got .*void: "):
        hub(tmp_path / "void").setup()
    with pytest.raises(ValueError, match=r"root must be a data set that can be loaded, got no/such: "):
        hub(Path("no/such")).setup()
    root = saved(tmp_path / "a", train=table(range(5)), val=table([1]))
    with pytest.raises(ValueError, match=r"batch_size must leave at least one batch .* got 64 x 1"):
        hub(root, batch_size=64).setup("fit")
    one = saved(tmp_path / "b", train=table([1]))
    with pytest.raises(ValueError, match=r"leave an image to train on, got .* with 1, all held out"):
        hub(one).setup()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"needs datasets, which is not installed: pip install datasets"):
        hub(root).setup()


def test_a_dataset_is_pickled_as_the_names_of_its_files(tmp_path: Path) -> None:
    root = saved(tmp_path / "a", train=table(range(100, 200)), val=table([1]))
    data = hub(root).dataset("train")
    text = pickle.dumps(data)
    assert len(text) < 8000
    again = pickle.loads(text)
    assert isinstance(again, TableImages)
    assert torch.equal(again.read([(7, 0)])["image"], data.read([(7, 0)])["image"])
    assert not np.array_equal(again.fetch(3), again.fetch(4))


def test_no_script_of_a_data_set_is_run(tmp_path: Path) -> None:
    root = tmp_path / "evil"
    root.mkdir()
    (root / "evil.py").write_text(f"import pathlib; pathlib.Path({json.dumps(str(tmp_path / 'ran'))}).touch()")
    with pytest.raises(ValueError, match="root must be a data set that can be loaded"):
        hub(root).setup()
    assert not (tmp_path / "ran").exists()

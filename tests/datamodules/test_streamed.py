import io
import json
import multiprocessing
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoded_files import cache_fixture, encoded, grays  # noqa: F401
from PIL import Image

from datamodules import Streamed
from datamodules.storage.streamed_shards import LIVE, Shards

litdata = pytest.importorskip("litdata")

SIZE = 4
COUNT = 120
PER_SHARD = 5
WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]


def sample(index: int, kind: str = "PNG") -> Any:
    return {"image": encoded(index, kind), "label": index % 7}


def shards(place: Path, make: Callable[[int], Any] = sample, count: int = COUNT, per_shard: int = PER_SHARD) -> Path:
    """Write shards like litdata.optimize, with its own writer but without its processes."""
    from litdata.streaming import Cache

    place.mkdir(parents=True)
    writer = Cache(str(place), chunk_size=per_shard)
    for index in range(count):
        writer[index] = make(index)
    writer.done()
    writer.merge()
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("litdata") / "all")


def streamed(root: str | Path, **options: Any) -> Streamed:
    return Streamed(str(root), SIZE, **({"classes": 7, "batch_size": 4, "horizontal_flip": False} | options))


def seen(batches: Any) -> list[tuple[int, int]]:
    """Return gray level, which is the index of the sample, and label."""
    return [pair for b in batches for pair in zip(grays(b["image"]), b["label"].tolist(), strict=True)]


def truth(indices: Any) -> set[tuple[int, int]]:
    return {(index, index % 7) for index in indices}


@pytest.mark.parametrize("workers", WORKERS)
def test_an_epoch_has_every_sample_once_with_its_label(folder: Path, workers: int) -> None:
    data = streamed(folder, workers=workers, batch_size=1)
    train, val = seen(data.train_dataloader()), seen(data.val_dataloader())
    assert len(train) == len(data.dataset("train")) == COUNT - PER_SHARD
    assert len(val) == len(data.dataset("val")) == PER_SHARD
    assert {*train, *val} == truth(range(COUNT))
    assert val == sorted(val)


STORED: list[Callable[[int], Any]] = [
    lambda i: (Image.open(io.BytesIO(encoded(i, "JPEG"))), i % 7),
    lambda i: (Image.open(io.BytesIO(encoded(i))).copy(), i % 7),
    lambda i: {"picture": np.full((SIZE, SIZE, 3), i, np.uint8), "name": f"x{i}", "class": i % 7},
    lambda i: {"picture": torch.full((3, SIZE, SIZE), i, dtype=torch.uint8), "class": i % 7},
]


@pytest.mark.parametrize("make", STORED, ids=["JPEG", "Pillow", "rows, columns, channels", "channels, rows, columns"])
def test_images_may_be_stored_in_many_ways(tmp_path: Path, make: Callable[[int], Any]) -> None:
    data = streamed(shards(tmp_path / "d", make, count=20))
    assert set(seen(data.images("train", 4))) | set(seen(data.images("val", 4))) == truth(range(20))


@pytest.mark.parametrize("workers", WORKERS)
def test_a_run_resumes_with_the_next_sample(folder: Path, workers: int) -> None:
    full = seen(streamed(folder, workers=workers).train_dataloader())
    loader = streamed(folder, workers=workers).train_dataloader()
    taken = seen(batch for _, batch in zip(range(9), loader, strict=False))
    again = streamed(folder, workers=2 - workers).train_dataloader()
    again.load_state_dict(loader.state_dict())
    assert taken + seen(again) == full


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of downloads of every shard."""
    from litdata.streaming.downloader import LocalDownloaderWithCache

    counts: Counter[str] = Counter()
    usual = LocalDownloaderWithCache.download_file

    def download_file(downloader: Any, remote: str, local: str) -> None:
        counts[Path(remote).name] += Path(remote).name != "index.json"
        usual(downloader, remote, local)

    monkeypatch.setattr(LocalDownloaderWithCache, "download_file", download_file)
    return counts


def test_each_shard_is_downloaded_once_and_kept(folder: Path, tmp_path: Path, downloads: Counter[str]) -> None:
    data = streamed(f"local:{folder}", cache_dir=str(tmp_path / "fetched"))
    data.setup("fit")
    assert not downloads.total()
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        assert len(seen(loader)) == 112  # the full batches of 4 of 115
    seen(data.val_dataloader())
    files = [f"chunk-0-{i}.bin" for i in range(COUNT // PER_SHARD)]
    assert +downloads == Counter(files)
    assert {f.name for f in (tmp_path / "fetched" / "train").glob("*.bin")} == set(files)
    assert sorted(f.name for f in folder.iterdir()) == sorted(["index.json", *files])


def test_a_bounded_cache_keeps_its_limit_and_downloads_once_per_epoch(tmp_path: Path, downloads: Counter[str]) -> None:
    root = shards(tmp_path / "many", lambda i: {"image": encoded(i % 200)}, count=300)  # 60 shards
    largest = max(file.stat().st_size for file in root.glob("*.bin"))
    limit, cache = (LIVE + 1) * largest, tmp_path / "c"
    data = streamed(f"local:{root}", classes=0, cache_dir=str(cache), cache_gigabytes=limit / 1e9, batch_size=1)
    held = [sum(file.stat().st_size for file in cache.rglob("*.bin")) for _ in data.train_dataloader()]
    assert len(held) == len(data.dataset("train")) == 290
    assert limit - 2 * largest < max(held) <= limit
    assert sorted((+downloads).values()) == [1] * 58


def test_processes_download_different_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules.order import ShuffledShard

    data = streamed(folder).dataset("train")
    parts = []
    for rank in range(2):
        indices = [i for i, _ in ShuffledShard(data, rank=rank, world=2)]
        parts.append({data.relative_name(i).split()[0] for i in indices})
    assert len(parts[0] & parts[1]) <= 1
    assert len(parts[0] | parts[1]) == COUNT // PER_SHARD - 1


def test_a_spawned_worker_reads_the_same(folder: Path) -> None:
    data = streamed(folder).dataset("train")
    first = data.read([(3, 0), (40, 1)])
    again = pickle.loads(pickle.dumps(data)).read([(3, 0), (40, 1)])
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["label"], again["label"])


class Trap:
    def __reduce__(self) -> Any:
        return (Path.write_text, (Path("/nonexistent-folder/sprung"), "run"))


def test_no_pickle_is_ever_read(tmp_path: Path) -> None:
    root = shards(tmp_path / "d", lambda i: {"image": encoded(i), "label": i % 7, "more": Trap()}, count=10)
    assert "pickle" in json.loads((root / "index.json").read_text())["config"]["data_format"]
    assert set(seen(streamed(root).images("train", 4))) <= truth(range(10))


def test_an_unreadable_image_is_replaced_in_training_and_left_out_in_evaluation(tmp_path: Path) -> None:
    def make(index: int) -> Any:
        return {"image": b"no image" if index == 3 else encoded(index), "label": index % 7}

    root = shards(tmp_path / "d", make, count=10)
    data = streamed(root, val_root=str(root), batch_size=10)
    with pytest.warns(UserWarning, match=r"cannot read .*/d/chunk-0-0.bin sample 3: its 8 bytes"):
        train = seen(data.train_dataloader())
    assert sorted(train) == sorted([*((i, i % 7) for i in range(10) if i != 3), (4, 4)])
    with pytest.warns(UserWarning, match="sample 3"):
        assert set(seen(data.val_dataloader())) == truth(set(range(10)) - {3})
    with pytest.raises(ValueError, match=r"sample 3.*on_corrupt: skip"):
        seen(streamed(root, val_root=str(root), on_corrupt="raise").val_dataloader())


def damage(file: Path, kind: str) -> None:
    content = file.read_bytes()
    ends = np.cumsum([0] + [len(encoded(i)) for i in range(60, 65)]).astype("<i4").tobytes()
    assert content.count(ends) == 1  # where the images begin in the table of shard 12
    outside = ends[:-4] + b"\0\0\0\x40"
    damaged = {"truncated": content[:-7], "header": b"x" * 9 + content[9:], "table": content.replace(ends, outside)}
    file.unlink() if kind == "removed" else file.write_bytes(damaged[kind])


DAMAGED = {
    "truncated": "is damaged: it has",
    "header": "is damaged: it does not start with the offsets of 5 samples",
    "table": "is damaged: .*offset",
    "removed": "is missing, although index.json lists it",
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("workers", WORKERS)
def test_a_damaged_shard_is_named(folder: Path, tmp_path: Path, kind: str, workers: int) -> None:
    root = shutil.copytree(folder, tmp_path / "d")
    damage(root / "chunk-0-12.bin", kind)
    loader = streamed(root, workers=workers, batch_size=1).train_dataloader()
    processes = set(multiprocessing.active_children())
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"d/chunk-0-12.bin {DAMAGED[kind]}"):
            seen(loader)
    assert set(multiprocessing.active_children()) <= processes  # no worker is left
    if kind == "removed" and not workers:
        with pytest.raises(ValueError, match=rf"local:{root}/chunk-0-12.bin cannot be downloaded: .*doesn't exist"):
            seen(streamed(f"local:{root}", batch_size=1).train_dataloader())


def test_labels_are_checked_and_left_out_without_classes(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\), got [56] for .*chunk-0-\d+.bin sample \d"):
        seen(streamed(folder, classes=5).train_dataloader())
    data = streamed(folder, classes=0)
    assert data.classes == 0
    assert {label for _, label in seen(data.train_dataloader())} == {0}


def two_images(index: int) -> Any:
    return {"image": encoded(index), "mask": encoded(0), "a": 1, "b": 2}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, r"image_field must be one of .*\(image, mask\), got 2 possible columns: choose"),
        ({"image_field": "a"}, r"image_field must be one of .*\(image, mask\), got 'a'"),
        ({"image_field": "mask"}, r"label_field must be one of .*\(a, b\), got 2 possible columns.*classes at 0"),
        ({"image_field": "mask", "label_field": "image"}, r"label_field .*got 'image'"),
    ],
)
def test_ambiguous_fields_are_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        streamed(shards(tmp_path / "d", two_images, count=10), **options).setup()


def test_samples_without_images_are_refused(tmp_path: Path) -> None:
    root = shards(tmp_path / "d", lambda i: {"a": i, "b": 2}, count=10)
    with pytest.raises(ValueError, match=r"image_field .* got 0 possible columns: store images .* which have a, b"):
        streamed(root).setup()


def test_fields_are_selected_by_name(tmp_path: Path) -> None:
    data = streamed(shards(tmp_path / "d", two_images, count=10), image_field="image", label_field="b")
    assert {label for _, label in seen(data.train_dataloader())} == {2}


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"root": "ftp://host/d"}, ValueError, r"root must be a folder or begin with one of s3://.*got ftp://host/d"),
    ({"root": "/nonexistent"}, FileNotFoundError, r"root must hold shards .*got /nonexistent without index.json"),
    ({"cache_gigabytes": 1e-9}, ValueError, r"cache_gigabytes must hold 20 shards per process"),
    ({"held_out": 0.9999999}, ValueError, r"root must leave an image to train on.*write smaller shards"),
]


@pytest.mark.parametrize(("options", "kind", "says"), REFUSED)
def test_bad_arguments_are_refused(folder: Path, options: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        streamed(**({"root": folder} | options)).setup()


@pytest.mark.parametrize("key", ["compression", "encryption"])
def test_compressed_and_encrypted_shards_are_refused(folder: Path, tmp_path: Path, key: str) -> None:
    root = shutil.copytree(folder, tmp_path / "d")
    index = json.loads((root / "index.json").read_text())
    index["config"][key] = {"compression": "zstd", "encryption": {"algorithm": "fernet", "level": "sample"}}[key]
    (root / "index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError,
        match=r"root must hold shards without compression or encryption, got (compressed|encrypted) ones|zstd",
    ):
        Shards(str(root))


def test_fingerprints_of_different_shards_differ(folder: Path, tmp_path: Path) -> None:
    other = shards(tmp_path / "d", lambda i: sample(i, "JPEG"))
    prints = [streamed(root).dataset(split).fingerprint() for root in (folder, other) for split in ("train", "val")]
    assert len(set(prints)) == 4
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert streamed(moved).dataset("train").fingerprint() == prints[0]

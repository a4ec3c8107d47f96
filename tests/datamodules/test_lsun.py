import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoded_files import cache_fixture, encoded, grays, seen, write_lmdb  # noqa: F401

from datamodules.lsun import Lsun

pytest.importorskip("lmdb")  # writes the databases
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

SAMPLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "lsun_sample"


def rooms(root: Path, train: int = 40, val: int = 4, category: str = "bedroom") -> Path:
    write_lmdb(root / f"{category}_train_lmdb", [encoded(i) for i in range(train)])
    if val:
        write_lmdb(root / f"{category}_val_lmdb", [encoded(100 + i) for i in range(val)])
    return root


def lsun(root: Path, **options: Any) -> Lsun:
    return Lsun(str(root), 4, **({"batch_size": 4, "horizontal_flip": False} | options))


def names(data: Any) -> list[str]:
    return [data.name(i) for i in range(len(data))]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_database_is_read_in_the_order_of_its_keys(tmp_path: Path, workers: int) -> None:
    data = lsun(rooms(tmp_path), workers=workers)
    data.setup("fit")
    assert data.classes == 0
    assert seen(data.images("train", 7)) == list(range(40))
    assert sorted(seen(data.train_dataloader())) == list(range(40))
    for batches in (data.val_dataloader(), data.test_dataloader()):
        assert seen(batches) == [100, 101, 102, 103]
    assert data.dataset("val").name(3) == f"{tmp_path}/bedroom_val_lmdb key {(b'%040x' % 3).hex()}"  # type: ignore[attr-defined]
    assert not (tmp_path / "bedroom_train_lmdb" / "lock.mdb").exists()


def test_keys_may_differ_in_length_and_contain_any_byte(tmp_path: Path) -> None:
    keys = [b"a", b"a\0", b"ab\0\0", b"\xff" * 200]
    write_lmdb(tmp_path / "x_train_lmdb", [encoded(i) for i in range(4)], keys)
    write_lmdb(tmp_path / "x_val_lmdb", [encoded(9)])
    data = lsun(tmp_path).dataset("train")
    assert seen([data.__getitems__(range(4))]) == [0, 1, 2, 3]
    assert [name.split(" key ")[1] for name in names(data)] == [key.hex() for key in keys]


def test_several_categories_are_labeled_in_the_given_order(tmp_path: Path) -> None:
    rooms(rooms(rooms(tmp_path), 6, 2, "church"), 5, 1, "tower")
    data = lsun(tmp_path, categories=["tower", "bedroom"])
    batches = list(data.images("train", 50))
    assert (data.classes, data.label_names) == (2, ["tower", "bedroom"])
    assert lsun(tmp_path, categories=["tower"]).label_names == ()
    assert batches[0]["label"].tolist() == [0] * 5 + [1] * 40
    assert grays(batches[0]["image"]) == [*range(5), *range(40)]
    assert [label for batch in data.val_dataloader() for label in batch["label"].tolist()] == [0, 1, 1, 1, 1]
    everything = lsun(tmp_path)
    assert everything.classes == 3
    assert next(iter(everything.images("train", 60)))["label"].tolist() == [0] * 40 + [1] * 6 + [2] * 5


@pytest.mark.parametrize("name", ["bedroom_train_lmdb", "photos"])
def test_the_root_may_be_a_database_itself(tmp_path: Path, name: str) -> None:
    rooms(tmp_path)
    (tmp_path / "bedroom_train_lmdb").rename(tmp_path / name)
    data = lsun(tmp_path / name, held_out=0.2)
    if name == "photos":
        assert sorted(seen(data.images("train", 9)) + seen(data.images("val", 9))) == list(range(40))
    else:
        assert (len(data.dataset("train")), len(data.dataset("val"))) == (40, 4)
    with pytest.raises(ValueError, match=r"categories must be left out for the single database .*: omit it, or"):
        lsun(tmp_path / name, categories=["tower"]).setup()


def test_without_validation_a_fraction_is_held_out_by_the_keys(tmp_path: Path) -> None:
    rooms(tmp_path, 600, 0)
    splits = [lsun(tmp_path, held_out=0.1, seed=seed) for seed in (0, 1)]
    parts = [[names(data.dataset(split)) for split in ("train", "val")] for data in splits]  # type: ignore[arg-type]
    assert parts[0] == parts[1]
    assert not set(parts[0][0]) & set(parts[0][1])
    assert len(parts[0][0]) + len(parts[0][1]) == 600
    assert len(parts[0][1]) == pytest.approx(60, abs=5 * 7.4)
    rooms(tmp_path / "fewer", 300, 0)
    fewer = [Path(name).name for name in names(lsun(tmp_path / "fewer", held_out=0.1).dataset("val"))]
    assert fewer == [Path(name).name for name in parts[0][1]][: len(fewer)]  # more images move none


def test_jpeg_and_webp_are_recognized_by_content(tmp_path: Path) -> None:
    values = [encoded(50, kind, (16, 8)) for kind in ("JPEG", "WEBP", "PNG")]
    data = lsun(rooms(tmp_path) / "m_train_lmdb", batch_size=1)
    write_lmdb(tmp_path / "m_train_lmdb", values)
    write_lmdb(tmp_path / "m_val_lmdb", values)
    assert np.abs(np.array(seen(data.images("train", 3))) - 50).max() <= 2


def test_keys_are_listed_once_and_nothing_is_written_elsewhere(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    lsun(Path()).setup()
    entries = sorted(cache.iterdir())
    assert [entry.name.split("-")[0] for entry in entries] == ["lmdb", "lmdb"]
    lsun(Path()).setup()
    assert sorted(cache.iterdir()) == entries
    files = sorted(str(path.relative_to(tmp_path / "data")) for path in tmp_path.glob("data/**/*") if path.is_file())
    assert files == ["bedroom_train_lmdb/data.mdb", "bedroom_val_lmdb/data.mdb"]


@pytest.mark.parametrize("kept", [0, 100, 5000, 8192, 30000])
def test_a_truncated_database_is_refused(tmp_path: Path, kept: int) -> None:
    file = rooms(tmp_path, 400) / "bedroom_train_lmdb" / "data.mdb"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"data\.mdb (cannot be read as an LMDB|must have \d+ bytes, got).*; copy or"):
        lsun(tmp_path).setup()


@pytest.mark.parametrize("target", ["itself", "first"])
def test_pages_that_point_to_each_other_are_refused(tmp_path: Path, target: str) -> None:
    """All nodes of the branch page point to the branch itself, or to one leaf."""
    file = rooms(tmp_path, 400) / "bedroom_train_lmdb" / "data.mdb"
    data = bytearray(file.read_bytes())
    headers = {at: struct.unpack_from("<Q2xH", data, at) for at in range(2 * 4096, len(data), 4096)}
    branch = next(at for at, header in headers.items() if header == (at // 4096, 1))
    (lower,) = struct.unpack_from("<H", data, branch + 12)
    nodes = [branch + offset for (offset,) in struct.iter_unpack("<H", data[branch + 16 : branch + lower])]
    first = data[nodes[0] : nodes[0] + 4]
    for node in nodes:
        data[node : node + 4] = (branch // 4096).to_bytes(4, "little") if target == "itself" else first
    file.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"cannot be read as an LMDB file: its (page|value of key) .* is damaged; copy"
    ):
        lsun(tmp_path).setup()


def test_missing_empty_and_foreign_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"root must be a folder of LMDBs, got .*none: no such folder; check"):
        lsun(tmp_path / "none").setup()
    with pytest.raises(ValueError, match=r"root must contain CATEGORY_train_lmdb/data.mdb, got .* without any: unpack"):
        lsun(tmp_path).setup()
    rooms(rooms(tmp_path), category="tower")
    with pytest.raises(ValueError, match=r"among those of .* \(bedroom, tower\), got 'kitchen': choose"):
        lsun(tmp_path, categories=["bedroom", "kitchen"]).setup()
    write_lmdb(tmp_path / "void" / "x_train_lmdb", [])
    with pytest.raises(ValueError, match=r"x_train_lmdb/data.mdb must hold images, got none: copy"):
        lsun(tmp_path / "void").setup()
    (tmp_path / "bedroom_train_lmdb" / "data.mdb").write_bytes(b"x" * 20000)
    with pytest.raises(ValueError, match=r"bedroom_train_lmdb/data.mdb cannot be read as an LMDB file: .*; copy"):
        lsun(tmp_path).setup()
    rooms(tmp_path / "one", 1, 0)
    with pytest.raises(ValueError, match=r"leave an image to train on, got .* with 1, all held out by held_out=0.01"):
        lsun(tmp_path / "one").setup()


def test_the_fingerprint_depends_on_the_images_and_not_on_their_folder(tmp_path: Path) -> None:
    rooms(tmp_path / "a")
    rooms(tmp_path / "b")
    rooms(tmp_path / "c", 41)
    prints = [lsun(tmp_path / name).dataset("train").fingerprint() for name in "abc"]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="sample databases are not here")
def test_photographs() -> None:
    data = Lsun(str(SAMPLE), 64, categories=["church_outdoor", "bedroom"], batch_size=16)
    assert [len(data.dataset(split)) for split in ("train", "val", "test")] == [771, 80, 80]  # type: ignore[arg-type]
    assert data.classes == 2
    batches = list(data.images("val", 40))
    assert sum(len(batch["image"]) for batch in batches) == 80
    assert all(0.3 < batch["image"].std() < 0.8 for batch in batches)

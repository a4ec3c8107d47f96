import gzip
import io
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoded_files import cache_fixture, encoded, labels_of, unpack  # noqa: F401
from timm.data import ImageNetInfo
from torch.utils.data import DataLoader

from datamodules import ImageNet
from datamodules.index_cache import MappedArray
from datamodules.storage import imagenet_classes
from datamodules.storage.imagenet_tars import TarImages

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

WNIDS = ["n01440764", "n01751748", "n09193705"]  # tench, sea snake, alp: numbers 449, 490, 361; places 0, 65, 970
NUMBERS, SORTED_INDEX = [449, 490, 361], [0, 65, 970]
TRUTH = [2, 0, 1, 1, 0]  # the class of each validation image


# PNGs of one gray level, named .JPEG like one of ImageNet's files.
TRAIN = {f"{wnid}/{wnid}_{i}.JPEG": encoded(10 * label + i) for label, wnid in enumerate(WNIDS) for i in (2, 1, 3)}
VAL = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": encoded(100 + i) for i in range(len(TRUTH))}


TRUTHS = {
    "numbers": "".join(f"{NUMBERS[t]}\n" for t in TRUTH),
    "wnids": "".join(f"{WNIDS[t]}\n" for t in TRUTH),
    "caffe": "".join(f"{name} {SORTED_INDEX[t]}\n" for t, name in reversed(list(zip(TRUTH, VAL, strict=True)))),
    "names and wnids": "".join(f"val/{name} {WNIDS[t]}\n" for t, name in zip(TRUTH, VAL, strict=True)),
}


def tarred(files: dict[str, bytes], how: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=how) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def tar_of_tars(files: dict[str, bytes], how: int = tarfile.GNU_FORMAT) -> bytes:
    inner: dict[str, dict[str, bytes]] = {}
    for name, data in files.items():
        inner.setdefault(name.split("/")[0], {})[name.split("/")[1]] = data
    return tarred({f"{wnid}.tar": tarred(below, how) for wnid, below in inner.items()}, how)


def folders(root: Path) -> None:
    unpack(root / "train", TRAIN)
    unpack(root / "val", {f"{WNIDS[t]}/{name}": data for t, (name, data) in zip(TRUTH, VAL.items(), strict=True)})


def flat(root: Path) -> None:
    unpack(root / "train", TRAIN)
    unpack(root / "val", VAL)
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text(TRUTHS["numbers"])


def kaggle(root: Path) -> None:
    unpack(root / "ILSVRC/Data/CLS-LOC/train", TRAIN)
    unpack(root / "ILSVRC/Data/CLS-LOC/val", VAL)
    rows = [f"{Path(name).stem},{WNIDS[t]} 1 2 3 4 " for t, name in zip(TRUTH, VAL, strict=True)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))


def tars(root: Path) -> None:
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of_tars(TRAIN))
    (root / "ILSVRC2012_img_val.tar").write_bytes(tarred(VAL))
    devkit = {"ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": TRUTHS["numbers"].encode()}
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(tarred(devkit)))


def imagenet(root: Path, **options: Any) -> ImageNet:
    return ImageNet(str(root), 4, **({"batch_size": 3, "horizontal_flip": False} | options))


def seen(data: ImageNet, split: Any) -> list[tuple[int, int]]:
    """Return gray level and label of every image of a split."""
    return list(labels_of(data.images(split, 4)).items())


@pytest.mark.parametrize("layout", [folders, flat, kaggle, tars])
def test_every_layout_gives_the_same_images_and_labels(tmp_path: Path, layout: Callable[[Path], None]) -> None:
    layout(tmp_path)
    data = imagenet(tmp_path)
    data.prepare_data()
    assert (data.classes, data.channels, data.size) == (3, 3, 4)
    assert seen(data, "train") == [(10 * label + i, label) for label in range(3) for i in (1, 2, 3)]
    assert sorted(seen(data, "val")) == [(100 + i, label) for i, label in enumerate(TRUTH)]
    assert data.dataset("test") is data.dataset("val")


@pytest.mark.parametrize("how", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tar_files_of_every_format_are_read(tmp_path: Path, how: int) -> None:
    tars(tmp_path)
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of_tars(TRAIN, how))
    long = {f"{'deep/' * 25}{name}": data for name, data in VAL.items()} if how != tarfile.USTAR_FORMAT else VAL
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tarred(long, how))
    data = imagenet(tmp_path)
    assert [level for level, _ in seen(data, "train")] == [1, 2, 3, 11, 12, 13, 21, 22, 23]
    assert [label for _, label in seen(data, "val")] == TRUTH  # a folder that is no class is none


def test_an_index_is_built_once_and_mapped_by_every_process(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tars(tmp_path)
    imagenet(tmp_path).prepare_data()
    assert sorted(entry.name.split("-")[0] for entry in cache.iterdir()) == ["tar", "tar"]
    monkeypatch.setattr("datamodules.storage.imagenet_tars._build_index", lambda file: pytest.fail("read again"))
    train = imagenet(tmp_path).dataset("train")
    assert isinstance(train, TarImages)
    expected = train.__getitems__([(i, 0) for i in range(9)])["image"]  # the descriptor is open from here on
    again = pickle.loads(pickle.dumps(train))
    assert isinstance(again.names, MappedArray)
    assert isinstance(again.places, MappedArray)
    assert torch.equal(again.__getitems__([(i, 0) for i in range(9)])["image"], expected)
    loader = DataLoader(train, 3, num_workers=1, collate_fn=lambda batch: batch)
    assert torch.equal(torch.cat([batch["image"] for batch in loader]), expected)


@pytest.mark.parametrize("damage", ["cut", "cut at a member", "header", "inner header", "text", "empty", "no images"])
def test_a_damaged_tar_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    tars(tmp_path)
    file = tmp_path / "ILSVRC2012_img_train.tar"
    data = bytearray(file.read_bytes())
    second = data.index(WNIDS[1].encode() + b".tar")
    inner = data.index(f"{WNIDS[1]}_1.JPEG".encode())
    if "header" in damage:
        data[(inner if damage == "inner header" else second) + 150] ^= 1  # in the sum of the header
    others = {"text": b"no tar" * 200, "empty": b"", "no images": tarred({"a.txt": b"a"})}
    others |= {"cut": data[: len(data) // 2], "cut at a member": data[:second]}
    file.write_bytes(others.get(damage, data))
    with pytest.raises(
        ValueError, match=rf"{file} (cannot be read as a tar file.*: copy it|must hold images)"
    ) as caught:
        imagenet(tmp_path).setup()
    assert "\n" not in str(caught.value)


def test_an_image_beyond_the_end_of_the_file_is_left_out(tmp_path: Path) -> None:
    tars(tmp_path)
    data = imagenet(tmp_path)
    data.setup()
    file = tmp_path / "ILSVRC2012_img_val.tar"
    last = list(VAL)[-1]
    file.write_bytes(file.read_bytes()[: file.read_bytes().index(last.encode()) + 530])  # after the index was made
    with pytest.warns(UserWarning, match=rf"cannot read .*{last}: the file ends \d+ bytes too early"):
        assert len(seen(data, "val")) == len(VAL) - 1


@pytest.mark.parametrize("kind", TRUTHS)
def test_ground_truths_of_every_kind_give_the_same_labels(tmp_path: Path, kind: str) -> None:
    root, file = tmp_path / "root", tmp_path / "truth.txt"
    root.mkdir()
    tars(root)
    file.write_text(TRUTHS[kind])
    assert [label for _, label in seen(imagenet(root, ground_truth=str(file)), "val")] == TRUTH


def test_some_validation_images_are_found_by_their_numbers(tmp_path: Path) -> None:
    flat(tmp_path)
    for name in list(VAL)[1:3]:
        (tmp_path / "val" / name).unlink()
    assert [label for _, label in seen(imagenet(tmp_path), "val")] == [TRUTH[0], *TRUTH[3:]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\n" * 5, r"must hold WordNet IDs or numbers from 1 to 1000, got '0'"),
        ("1001\n" * 5, "got '1001'"),
        ("tench\n" * 5, "got 'tench'"),
        ("1\n2\n", r"a line per image, got 2 in .* for 5 images"),
        ("", "got .* without any"),
        ("ILSVRC2012_val_00000001.JPEG 3\n", r"must name every image, got .* without ILSVRC2012_val_00000002\.JPEG"),
        ("ILSVRC2012_val_00000001.JPEG 1000\n", "numbers from 0 to 999, got '1000'"),
    ],
)
def test_unsuitable_ground_truths_are_refused(tmp_path: Path, text: str, message: str) -> None:
    flat(tmp_path)
    (tmp_path / "truth.txt").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        imagenet(tmp_path, ground_truth=str(tmp_path / "truth.txt")).setup()
    assert "\n" not in str(caught.value)


def test_flat_validation_images_need_a_ground_truth_and_others_none(tmp_path: Path) -> None:
    flat(tmp_path)
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").unlink()
    with pytest.raises(ValueError, match=r"in class folders or have a ground truth, got neither: set"):
        imagenet(tmp_path).setup()
    with pytest.raises(FileNotFoundError, match=r"ground_truth must be a file, got .*none"):
        imagenet(tmp_path, ground_truth=str(tmp_path / "none")).setup()
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"ground_truth .*tar\.gz cannot be read"):
        imagenet(tmp_path).setup()
    folders(tmp_path / "folders")
    with pytest.raises(ValueError, match="ground_truth must be left out"):
        imagenet(tmp_path / "folders", ground_truth="truth.txt").setup()


@pytest.mark.parametrize("layout", [folders, flat, tars])
def test_validation_images_of_other_classes_are_left_out(tmp_path: Path, layout: Callable[[Path], None]) -> None:
    layout(tmp_path)
    if layout is tars:
        others = {name: data for name, data in TRAIN.items() if WNIDS[0] not in name}
        (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of_tars(others))
    else:
        shutil.rmtree(tmp_path / "train" / WNIDS[0])
    data = imagenet(tmp_path)
    with pytest.warns(UserWarning, match=r"2 of 5 images of .* are left out: training does not have their classes"):
        data.setup()
    assert data.classes == 2
    assert sorted(seen(data, "val")) == [(100 + i, label - 1) for i, label in enumerate(TRUTH) if label > 0]


def test_missing_files_are_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"root must be the folder of ImageNet, got .*none"):
        imagenet(tmp_path / "none").setup()
    with pytest.raises(FileNotFoundError, match=r"a folder train or ILSVRC2012_img_train\.tar, got .* with neither"):
        imagenet(tmp_path).setup()
    unpack(tmp_path / "train", TRAIN)
    with pytest.raises(FileNotFoundError, match=r"a folder val or ILSVRC2012_img_val\.tar"):
        imagenet(tmp_path).setup()
    unpack(tmp_path / "val", VAL)
    for name in TRAIN:
        (tmp_path / "train" / name).rename(tmp_path / "train" / Path(name).name)
    with pytest.raises(ValueError, match=r"images of .*train must lie in class folders"):
        imagenet(tmp_path).setup()


def test_the_fingerprint_depends_on_the_crop_and_not_on_the_layout(tmp_path: Path) -> None:
    made = []
    for layout in (folders, tars):
        (root := tmp_path / layout.__name__).mkdir()
        layout(root)
        made += [imagenet(root, crop=crop).dataset("train").fingerprint() for crop in ("short_side", "adm")]
    assert made[0] == made[2]
    assert made[1] == made[3] != made[0]


def test_numbers_of_the_challenge_map_to_indices_of_sorted_ids() -> None:
    by_number, places = imagenet_classes.BY_NUMBER, imagenet_classes.SORTED_INDEX
    assert ImageNetInfo().label_names() == imagenet_classes.SORTED
    assert len(set(by_number)) == 1000
    assert (by_number[0], by_number[999]) == ("n02119789", "n03255030")  # kit fox, dumbbell
    # The first validation images by the development kit's numbers and by caffe's val.txt.
    numbers = np.array([490, 361, 171, 822, 297, 482, 13, 704, 599, 164])
    assert places[numbers - 1].tolist() == [65, 970, 230, 809, 516, 57, 334, 415, 674, 332]
    assert [imagenet_classes.SORTED[place] for place in places] == by_number
    assert sorted(places) == list(range(1000))

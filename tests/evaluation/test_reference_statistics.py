import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from asyncdiff.evaluation.kid_and_is import gaussian_of
from asyncdiff.evaluation.reference_statistics import Reference, check, load, place, save

STAMP = {"features": {"name": "pixels", "dim": 4, "weights": "abc"}, "images": {"split": "train", "count": 50}}


def reference() -> Reference:
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    return Reference(gaussian_of(rows), 50, rows, STAMP)


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    own, file = reference(), tmp_path / "new" / "statistics.safetensors"
    save(own, file)
    found = load(file)
    assert found.gaussian.cov.dtype == torch.float64
    assert torch.equal(found.gaussian.cov, own.gaussian.cov)
    assert torch.equal(found.gaussian.mean, own.gaussian.mean)
    assert torch.equal(found.rows, own.rows)
    assert (found.count, found.stamp) == (50, STAMP)
    check(found, STAMP, file)
    assert [f.name for f in file.parent.iterdir()] == ["statistics.safetensors"]


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "statistics.safetensors"
    save(reference(), file)
    before = file.read_bytes()

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save(reference(), file)
    assert file.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_the_place_depends_on_every_key(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYNCDIFF_CACHE", str(tmp_path))
    assert place(STAMP).parent == tmp_path / "references"
    assert place(STAMP).name.startswith("pixels-")
    assert place(json.loads(json.dumps(STAMP))) == place(STAMP)
    other = STAMP | {"images": {"split": "train", "count": 49}}
    assert place(other) != place(STAMP)


@pytest.mark.parametrize(
    ("expected", "rule"),
    [
        (STAMP | {"images": {"split": "val", "count": 50}}, "the same images.split, got train in"),
        (STAMP | {"features": STAMP["features"] | {"weights": "xyz"}}, "the same features.weights, got abc in"),
    ],
)
def test_statistics_of_other_things_are_refused_by_the_key_that_differs(tmp_path, expected, rule):
    with pytest.raises(ValueError, match=rule) as error:
        check(reference(), expected, tmp_path / "file")
    assert "\n" not in str(error.value)


def test_published_statistics_are_external(tmp_path):
    own, file = reference(), tmp_path / "cifar10-32x32.npz"
    np.savez(file, mu=own.gaussian.mean.numpy(), sigma=own.gaussian.cov.numpy().astype(np.float32))
    found = load(file)
    assert found.gaussian.mean.dtype == found.gaussian.cov.dtype == torch.float64
    assert (found.count, found.rows) == (None, None)
    assert found.stamp["external"] == "cifar10-32x32.npz"
    check(found, STAMP, file)
    with pytest.raises(ValueError, match="must be of 5 features, got 4"):
        check(found, {"features": {"dim": 5}}, file)


def test_other_files_are_refused_in_one_line(tmp_path):
    save_file({"mean": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    np.savez(tmp_path / "other.npz", mu=np.zeros(2))
    np.savez(tmp_path / "objects.npz", mu=np.array([{}]), sigma=np.eye(1))
    np.savez(tmp_path / "shapes.npz", mu=np.zeros(2), sigma=np.eye(3))
    for file in tmp_path.iterdir():
        with pytest.raises(ValueError, match="reference must") as error:
            load(file)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="existing file"):
        load(tmp_path / "nowhere.npz")

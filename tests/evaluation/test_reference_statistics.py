import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from asyncdiff.evaluation.feature_metrics import fit_gaussian
from asyncdiff.evaluation.reference_statistics import (
    Reference,
    cache_path,
    check_fingerprint,
    load_reference,
    save_reference,
)

FINGERPRINT = {"features": {"name": "pixels", "dim": 4, "weights": "abc"}, "images": {"split": "train", "count": 50}}


def reference() -> Reference:
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    return Reference(fit_gaussian(features), 50, features, FINGERPRINT)


def test_saving_and_loading_is_lossless(tmp_path):
    written, file = reference(), tmp_path / "new" / "statistics.safetensors"
    save_reference(written, file)
    found = load_reference(file)
    assert found.gaussian.cov.dtype == torch.float64
    assert torch.equal(found.gaussian.cov, written.gaussian.cov)
    assert torch.equal(found.gaussian.mean, written.gaussian.mean)
    assert torch.equal(found.features, written.features)
    assert (found.count, found.fingerprint) == (50, FINGERPRINT)
    check_fingerprint(found, FINGERPRINT, file)
    assert [f.name for f in file.parent.iterdir()] == ["statistics.safetensors"]


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "statistics.safetensors"
    save_reference(reference(), file)
    before = file.read_bytes()

    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        save_reference(reference(), file)
    assert file.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_cache_path_depends_on_every_key(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYNCDIFF_CACHE", str(tmp_path))
    assert cache_path(FINGERPRINT).parent == tmp_path / "references"
    assert cache_path(FINGERPRINT).name.startswith("pixels-")
    assert cache_path(json.loads(json.dumps(FINGERPRINT))) == cache_path(FINGERPRINT)
    other = FINGERPRINT | {"images": {"split": "train", "count": 49}}
    assert cache_path(other) != cache_path(FINGERPRINT)


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("images", "split", "val", "has another images.split, train instead of val: omit --reference"),
        ("features", "weights", "xyz", "has another features.weights, abc instead of xyz"),
    ],
)
def test_statistics_with_another_fingerprint_are_rejected_naming_the_key(part, key, value, message, tmp_path):
    expected = FINGERPRINT | {part: FINGERPRINT[part] | {key: value}}
    with pytest.raises(ValueError, match=message) as error:
        check_fingerprint(reference(), expected, tmp_path / "file")
    assert "\n" not in str(error.value)


def test_npz_statistics_are_marked_as_external(tmp_path):
    written, file = reference(), tmp_path / "cifar10-32x32.npz"
    np.savez(file, mu=written.gaussian.mean.numpy(), sigma=written.gaussian.cov.numpy().astype(np.float32))
    found = load_reference(file)
    assert found.gaussian.mean.dtype == found.gaussian.cov.dtype == torch.float64
    assert (found.count, found.features) == (None, None)
    assert found.fingerprint["external"] == "cifar10-32x32.npz"
    check_fingerprint(found, FINGERPRINT, file)
    with pytest.raises(ValueError, match="has 4 features, but the feature extractor has 5"):
        check_fingerprint(found, {"features": {"dim": 5}}, file)


def test_invalid_files_are_rejected_in_one_line(tmp_path):
    save_file({"mean": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    np.savez(tmp_path / "other.npz", mu=np.zeros(2))
    np.savez(tmp_path / "objects.npz", mu=np.array([{}]), sigma=np.eye(1))
    np.savez(tmp_path / "shapes.npz", mu=np.zeros(2), sigma=np.eye(3))
    for file in tmp_path.iterdir():
        with pytest.raises(ValueError, match=r"reference (.* cannot be read: |must contain )") as error:
            load_reference(file)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz is not a file"):
        load_reference(tmp_path / "nowhere.npz")

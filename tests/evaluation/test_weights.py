import hashlib

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from asyncdiff.evaluation.features.weights import file_sha256, published_hash, read_tensors, tensors_sha256

STATE = {"b": torch.arange(3.0), "a": torch.ones(2, 2), "scalar": torch.tensor(True)}


def test_a_file_with_another_hash_is_rejected_before_it_is_unpickled(tmp_path, monkeypatch):
    path = tmp_path / "tensors.pth"
    torch.save(STATE, path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert file_sha256(path) == found
    for digits in (8, 64):
        assert torch.equal(read_tensors(path, sha256=found[:digits].upper())["b"], torch.arange(3.0))
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("the file was opened as a pickle"))
    assert published_hash(URL_INCEPTION_V3) == "6726825d"
    with pytest.raises(ValueError, match=f"must have the SHA-256 6726825d, got {found}"):
        read_tensors(path, sha256="6726825d")
    for invalid in ("", "6726825", "not hexadecimal", "0" * 65):
        with pytest.raises(ValueError, match="first 8 to 64 hex digits"):
            read_tensors(path, sha256=invalid)


def test_hash_of_tensors_does_not_depend_on_order_or_memory_layout():
    digest = tensors_sha256(STATE)
    assert digest == tensors_sha256(dict(reversed(STATE.items())))
    assert digest == tensors_sha256(STATE | {"a": torch.ones(2, 2).T})
    assert digest != tensors_sha256(STATE | {"a": torch.ones(1, 4)})
    assert tensors_sha256({"half": torch.ones(2, dtype=torch.bfloat16)})

import hashlib
import pickle

import pytest
import torch

from asyncdiff.evaluation.features.weights import file_sha256, published_hash, read_tensors, tensors_sha256

CALLS = []


class Payload:
    def __reduce__(self):
        return CALLS.append, ("unpickled",)


@pytest.fixture
def tensors(tmp_path):
    path = tmp_path / "tensors.pth"
    torch.save({"weight": torch.arange(3.0)}, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_with_another_hash_is_rejected_before_it_is_unpickled(tensors, monkeypatch):
    path, found = tensors
    for digits in (8, 64):
        assert torch.equal(read_tensors(path, sha256=found[:digits].upper())["weight"], torch.arange(3.0))
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("the file was opened as a pickle"))
    with pytest.raises(ValueError, match=f"must have the SHA-256 6726825d, got {found}"):
        read_tensors(path, sha256="6726825d")


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_no_code_from_a_file_runs_even_if_its_hash_matches(tmp_path, save):
    path = tmp_path / "payload.pth"
    save({"weight": Payload()}, path)
    with pytest.raises(ValueError, match="weights .* cannot be read safely: it would call"):
        read_tensors(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert not CALLS


@pytest.mark.parametrize("sha256", ["", "6726825", "not hexadecimal", "0" * 65])
def test_an_invalid_hash_is_rejected(tensors, sha256):
    with pytest.raises(ValueError, match="first 8 to 64 hex digits"):
        read_tensors(tensors[0], sha256=sha256)


def test_the_published_file_name_contains_the_hash():
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    assert published_hash(URL_INCEPTION_V3) == "6726825d"


def test_hash_of_tensors_does_not_depend_on_order_or_memory_layout(tmp_path):
    state = {"b": torch.arange(3.0), "a": torch.ones(2, 2), "scalar": torch.tensor(True)}
    digest = tensors_sha256(state)
    assert digest == tensors_sha256(dict(reversed(state.items())))
    assert digest == tensors_sha256(state | {"a": torch.ones(2, 2).T})
    assert digest != tensors_sha256(state | {"a": torch.ones(1, 4)})
    assert tensors_sha256({"half": torch.ones(2, dtype=torch.bfloat16)})
    torch.save(state, tmp_path / "x.pt")
    assert file_sha256(tmp_path / "x.pt") == hashlib.sha256((tmp_path / "x.pt").read_bytes()).hexdigest()

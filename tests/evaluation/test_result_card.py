import hashlib
import json

import torch
from torch import nn

from asyncdiff.evaluation import TrainedClassifier, as_features
from asyncdiff.evaluation.features.weights import file_sha256, tensors_sha256
from asyncdiff.evaluation.result_card import abbreviate, differences, make_card, read_card, software, value_at

PROTOCOL = {"a": 1, "sampler": {"class": "Sampler", "steps": 50}, "seeds": [0, 9], "gone": None}


def test_equal_protocols_do_not_differ_even_after_json():
    assert differences(PROTOCOL, json.loads(json.dumps(PROTOCOL))) == []
    assert differences({"size": (8, 8)}, {"size": [8, 8]}) == []


def test_differences_are_dotted_keys_in_order():
    other = {"a": 2, "sampler": {"class": "Sampler", "steps": 20, "path": None}, "seeds": [0, 8], "new": 1}
    assert differences(PROTOCOL, other) == ["a", "sampler.steps", "sampler.path", "seeds", "gone", "new"]
    assert differences(PROTOCOL, PROTOCOL | {"sampler": None}) == ["sampler"]
    assert value_at(other, "sampler.steps") == 20
    assert value_at(other, "sampler.steps.more") is None


def test_cards_are_unchanged_after_writing_and_reading(tmp_path):
    file = tmp_path / "card.json"
    file.write_text(json.dumps(make_card(PROTOCOL, {"frechet/x": 1.5}, notes=[])))
    assert read_card(file) == {"format": 1, "protocol": PROTOCOL, "metrics": {"frechet/x": 1.5}, "notes": []}


def test_long_values_are_truncated():
    assert abbreviate("x" * 100) == "x" * 57 + "..."
    assert abbreviate({"a": 1}) == '{"a": 1}'


def test_software_contains_hardware_and_versions():
    found = software("cpu")
    assert found["torch"] == torch.__version__
    assert found["hardware"].endswith("threads")
    assert found["commit"]


def test_hash_of_tensors_does_not_depend_on_order_or_memory_layout(tmp_path):
    state = {"b": torch.arange(3.0), "a": torch.ones(2, 2), "scalar": torch.tensor(True)}
    digest = tensors_sha256(state)
    assert digest == tensors_sha256(dict(reversed(state.items())))
    assert digest == tensors_sha256(state | {"a": torch.ones(2, 2).T})
    assert digest != tensors_sha256(state | {"a": torch.ones(1, 4)})
    assert tensors_sha256({"half": torch.ones(2, dtype=torch.bfloat16)})
    torch.save(state, tmp_path / "x.pt")
    assert file_sha256(tmp_path / "x.pt") == hashlib.sha256((tmp_path / "x.pt").read_bytes()).hexdigest()


def test_fingerprints_of_features_change_with_their_weights():
    classifier = TrainedClassifier(1, 2, width=8, dim=16, epochs=1)
    before = classifier.fingerprint()
    assert before == classifier.fingerprint()
    assert (before["class"], before["name"], before["dim"]) == (
        "asyncdiff.evaluation.TrainedClassifier",
        "classifier",
        16,
    )
    classifier.prepare([{"image": torch.randn(8, 1, 8, 8), "label": torch.arange(8) % 2}])
    after = classifier.fingerprint()
    assert differences(before, after) == ["weights"]
    copy = TrainedClassifier(1, 2, width=8, dim=16, epochs=1)
    copy.load_state_dict(classifier.state_dict())
    assert copy.fingerprint() == after
    json.dumps(after)


def test_fingerprints_of_plain_modules_contain_their_class():
    fingerprint = as_features(nn.Flatten(), dim=4).fingerprint()
    assert fingerprint["input"] == {"module": "torch.nn.modules.flatten.Flatten"}
    assert fingerprint["weights"] == hashlib.sha256().hexdigest()

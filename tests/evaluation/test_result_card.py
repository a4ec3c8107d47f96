import hashlib
import json

import torch
from torch import nn

from asyncdiff.evaluation import TrainedClassifier, as_features
from asyncdiff.evaluation.features.weights import file_sha256, tensors_sha256
from asyncdiff.evaluation.result_card import card_of, differences, read_card, software, told, value_at

STAMP = {"a": 1, "sampler": {"class": "Sampler", "steps": 50}, "seeds": [0, 9], "gone": None}


def test_equal_stamps_do_not_differ_also_after_a_file():
    assert differences(STAMP, json.loads(json.dumps(STAMP))) == []
    assert differences({"size": (8, 8)}, {"size": [8, 8]}) == []


def test_differences_are_dotted_keys_in_order():
    other = {"a": 2, "sampler": {"class": "Sampler", "steps": 20, "path": None}, "seeds": [0, 8], "new": 1}
    assert differences(STAMP, other) == ["a", "sampler.steps", "sampler.path", "seeds", "gone", "new"]
    assert differences(STAMP, STAMP | {"sampler": None}) == ["sampler"]
    assert value_at(other, "sampler.steps") == 20
    assert value_at(other, "sampler.steps.more") is None


def test_a_card_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "card.json"
    file.write_text(json.dumps(card_of(STAMP, {"frechet/x": 1.5}, notes=[])))
    assert read_card(file) == {"format": 1, "protocol": STAMP, "metrics": {"frechet/x": 1.5}, "notes": []}


def test_long_values_are_told_by_their_beginning():
    assert told("x" * 100) == "x" * 57 + "..."
    assert told({"a": 1}) == '{"a": 1}'


def test_software_names_what_computes():
    found = software("cpu")
    assert found["torch"] == torch.__version__
    assert found["hardware"].endswith("threads")
    assert found["commit"]


def test_tensors_have_a_hash_of_their_own(tmp_path):
    state = {"b": torch.arange(3.0), "a": torch.ones(2, 2), "scalar": torch.tensor(True)}
    digest = tensors_sha256(state)
    assert digest == tensors_sha256(dict(reversed(state.items())))
    assert digest == tensors_sha256(state | {"a": torch.ones(2, 2).T})
    assert digest != tensors_sha256(state | {"a": torch.ones(1, 4)})
    assert tensors_sha256({"half": torch.ones(2, dtype=torch.bfloat16)})
    torch.save(state, tmp_path / "x.pt")
    assert file_sha256(tmp_path / "x.pt") == hashlib.sha256((tmp_path / "x.pt").read_bytes()).hexdigest()


def test_stamps_of_features_change_with_their_weights():
    classifier = TrainedClassifier(1, 2, width=8, dim=16, epochs=1)
    before = classifier.stamp()
    assert before == classifier.stamp()
    assert (before["class"], before["name"], before["dim"]) == (
        "asyncdiff.evaluation.TrainedClassifier",
        "classifier",
        16,
    )
    classifier.prepare([{"image": torch.randn(8, 1, 8, 8), "label": torch.arange(8) % 2}])
    after = classifier.stamp()
    assert differences(before, after) == ["weights"]
    copy = TrainedClassifier(1, 2, width=8, dim=16, epochs=1)
    copy.load_state_dict(classifier.state_dict())
    assert copy.stamp() == after
    json.dumps(after)


def test_stamps_of_plain_modules_name_them():
    stamp = as_features(nn.Flatten(), dim=4).stamp()
    assert stamp["input"] == {"module": "torch.nn.modules.flatten.Flatten"}
    assert stamp["weights"] == hashlib.sha256().hexdigest()
